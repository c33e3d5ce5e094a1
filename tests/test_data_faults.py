"""What a file says is what is learned: text stays as it is, and whatever is changed, left out or odd is counted by name."""
import json
import re
import unicodedata

import pytest

from llmlab import LabError, load_data
from llmlab.data.rows import row_digest
from llmlab.evaluation import find_task
from llmlab.models.checkpoints import load_tokenizer
from llmlab.models.testing import save_tiny_checkpoint
from llmlab.tokens.encode import encode_rows
from llmlab.tokens.prompts import find_prompt

USER, ASSISTANT = {"role": "user", "content": "수도는?"}, {"role": "assistant", "content": "서울"}
PIECES = unicodedata.normalize("NFD", "대한민국의 수도")


def load(folder, rows, ending=".jsonl", **settings):
    "Load a file of rows: objects as one a line, text and bytes as they are."
    path = folder / f"rows{ending}"
    if isinstance(rows, list):
        rows = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_bytes(rows if isinstance(rows, bytes) else rows.encode())
    return load_data(str(path), **settings)


def all_rows(data):
    return sorted((*data.train, *data.held_out), key=lambda row: row["where"])


def pairs(count=12, **columns):
    "Make rows that differ, with the same further columns."
    return [{"question": f"{number} 더하기 1은?", "answer": f"{number + 1}입니다.", **columns} for number in range(count)]


def talks(*messages, count=12):
    "Make conversations that differ in their first question."
    first, *others = messages
    return [{"messages": [{**first, "content": f"{number}: {first['content']}"}, *others]} for number in range(count)]


TEXTS = {
    "the first indentation of code": "    for row in rows:\n        yield row",
    "white space behind": "서울입니다.\n\n",
    "tabs": "\t가\t나\t",
    "line breaks of Windows": "가\r\n나\r\n",
    "separators of Unicode": "앞\u2028뒤\u2029끝\x85새 줄",
    "a byte order mark inside": "가\ufeff나",
    "characters of no width": "가\u200b나\u200d다",
    "entities and tags of HTML": "&lt;b&gt; &amp;nbsp; <br>가",
    "text in the wrong encoding": "ìì¸ â€œx”",
    "ligatures and wide letters": "ﬁ ＡＢＣ ㎏ ½",
    "Hanja that Unicode would unify": "\uf914\uf9a0 樂",
    "accents in pieces": "cafe\u0301",
    "old Hangul": "\u1112\u119e\u11ab",
    "numbers as text": "007",
    "words for nothing": "NA",
    "braces": "{answer} {{x}} {0}",
    "long text": "가나다 " * 9000,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet"])
def test_text_is_learned_as_it_stands(text, ending, tmp_path):
    rows = pairs(8, context=text)
    for row in rows:
        row |= {"question": f"{row['question']}{text}", "answer": text}
    if ending == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
        data = load_data(str(tmp_path / "rows.parquet"))
    elif ending == ".csv":
        quoted = [",".join('"' + value.replace('"', '""') + '"' for value in row.values()) for row in [dict.fromkeys(rows[0], ""), *rows]]
        data = load(tmp_path, "\n".join([",".join(rows[0]), *quoted[1:]]), ".csv", task="instruct", validation_fraction=0.4)
    else:
        data = load(tmp_path, json.dumps(rows) if ending == ".json" else rows, ending)
    read = {row["question"]: row for row in all_rows(data)}
    assert read.keys() == {row["question"] for row in rows}
    assert all(row["answer"] == row["context"] == text for row in read.values())


REMARKS = {  # what is odd about rows -> the rows, the remark, and how many rows it counts
    "Hangul in pieces": (pairs(input=PIECES), "Hangul in pieces", 12),
    "numbers as answers": (pairs(10) + [{"question": "얼마?", "answer": 7}, {"question": "맞나?", "answer": True}], "numbers, dates, or true", 2),
    "several answers": (pairs(11) + [{"question": "수도는?", "answer": ["서울", "서울시"]}], "several answers", 1),
    "a wrong place of an answer": (pairs(context="서울이 수도다.") + [{"question": "?", "context": "서울이 수도다.", "answer": [{"text": "서울", "answer_start": 3}]}],
                                   "does not stand at its answer_start", 1),
    "a negative place": ([{**row, "answer": {"text": ["서울"], "answer_start": [-7]}} for row in pairs(context="서울이 수도다. 서울")], "answer_start", 12),
    "a place that is text": ([{**row, "answer": [{"text": "서울", "answer_start": "0"}]} for row in pairs(context="서울이")], "answer_start", 12),
    "a name of a speaker": (talks(USER, {**ASSISTANT, "name": "철수"}), "field 'name', which is not used", 12),
    "a refusal": (talks(USER, {**ASSISTANT, "refusal": "싫습니다"}), "field 'refusal'", 12),
    "pictures beside a text": (talks({**USER, "images": ["a.png"]}, ASSISTANT), "field 'images'", 12),
    "reasoning of the user": (talks({**USER, "reasoning_content": "흠"}, ASSISTANT), "field 'reasoning_content', which is not used", 12),
    "reasoning": (talks(USER, {**ASSISTANT, "reasoning_content": "수도라면"}), r"reasoning \(reasoning_content\)", 12),
    "thinking": (talks(USER, {**ASSISTANT, "thinking": "수도라면"}), r"reasoning \(thinking\)", 12),
    "a user to be learned": (talks({**USER, "train": True}, ASSISTANT), "turn of the user", 12),
    "a message in parts": (talks(USER, {"role": "assistant", "content": [{"type": "text", "text": "가"}, {"type": "text", "text": "나"}]}), "several parts", 12),
    "two answers in a row": (talks(USER, ASSISTANT, ASSISTANT, ASSISTANT), "consecutive messages", 12),
    "a last word of the user": (talks(USER, ASSISTANT, USER), "end with the user", 12),
    "a last turn that is not learned": (talks(USER, ASSISTANT, USER, {**ASSISTANT, "loss": False}), "not learned, which were cut", 12),
    "two system texts": ([{**row, "system": "길게"} for row in talks(USER, ASSISTANT)] + [
        {"system": "길게", "messages": [{"role": "system", "content": "짧게"}, USER, ASSISTANT]}], "system text in a column and another", 1),
    "a late column": (pairs(1000) + [{"question": "수도는?", "answer": "서울", "context": "지문"}], r"columns that the first 1000 rows have not.*context", 1),
}


@pytest.mark.parametrize("odd", REMARKS)
def test_what_is_changed_or_odd_is_counted(odd, tmp_path):
    rows, remark, count = REMARKS[odd]
    data = load(tmp_path, rows)
    assert data.report.kept == data.report.read == len(rows)
    assert any(re.match(rf"{count:,} rows of rows.jsonl .*{remark}", note) for note in data.report.all_notes()), data.report.all_notes()


NOTES = {
    "columns nobody uses": (pairs(weight=0, tools=[]), ".jsonl", "not used: weight, tools"),
    "an id twice": (pairs(id="a"), ".jsonl", "11 rows of rows.jsonl have the id of another"),
    "a row twice": (pairs() + pairs(1), ".jsonl", "1 rows of rows.jsonl repeat another"),
    "code page 949": ("질문,답변\n" + "\n".join(f"{n}은?,{n}" for n in range(12)), ".csv", "read as cp949"),
    "fields that are missing": ("question,answer,input\n" + "\n".join(f"{n}?,{n},x" for n in range(12)) + "\n수도는?,서울\n", ".csv", r"fewer fields .*\(the first: line 14\)"),
    "texts that Excel may have cut": ("question,answer\n" + "\n".join(f"{n}?,{n}" for n in range(12)) + f"\n?,{'가' * 32_767}\n", ".csv", r"32,767 characters.*line 14"),
}


@pytest.mark.parametrize("odd", NOTES)
def test_what_is_odd_of_a_file_is_noted(odd, tmp_path):
    rows, ending, note = NOTES[odd]
    rows = rows.encode("cp949") if odd == "code page 949" else rows
    data = load(tmp_path, rows, ending)
    assert any(re.search(note, line) for line in data.report.all_notes()), data.report.all_notes()


def test_good_rows_get_no_remark(tmp_path):
    for rows in (pairs(), talks(USER, ASSISTANT, USER, ASSISTANT), pairs(id=None)):
        assert load(tmp_path, rows).report.all_notes() == []


def test_hangul_in_pieces_is_put_together_or_kept(tmp_path):
    rows = [{unicodedata.normalize("NFD", "질문"): f"{number}: {PIECES}", unicodedata.normalize("NFD", "답변"): PIECES} for number in range(12)]
    whole = unicodedata.normalize("NFC", PIECES)
    assert {row["answer"] for row in all_rows(load(tmp_path, rows))} == {whole}
    kept = load(tmp_path, rows, compose_hangul=False)
    assert {row["answer"] for row in all_rows(kept)} == {PIECES} and not kept.report.all_notes()
    named = load(tmp_path, rows, column_mapping={"question": "답변", "answer": "질문"})
    assert all_rows(named)[0]["question"] == whole
    streamed = load(tmp_path, rows, streaming=True)
    assert {row["answer"] for row in all_rows(streamed)} == {whole}
    for task in ("instruct", "mrc"):
        assert find_task(task).measure(PIECES, [whole]) == find_task(task).measure(whole, [PIECES]) == find_task(task).measure(whole, [whole])


def test_reasoning_is_learned_where_it_is_asked_for_and_counted_where_not(tmp_path):
    template = ("{% for message in messages %}<|{{ message.role }}|>{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
                "{{ message.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}")
    tokenizer = load_tokenizer(save_tiny_checkpoint(tmp_path / "model", chat_template=template))
    thought = {**ASSISTANT, "reasoning_content": "한국의 수도라면"}
    rows = all_rows(load(tmp_path, talks(USER, thought, USER, {**thought, "content": "서울이다"})))
    assert (rows[0]["reasoning"], rows[0]["history"][0]["reasoning"]) == ("한국의 수도라면", "한국의 수도라면")
    parts = [["question", "{question}"], ["answer", "{answer}"]]
    for thinking in (True, False):
        encoded = encode_rows(rows, find_prompt({"parts": parts, "chat": True, "thinking": thinking}), tokenizer, cache_dir=str(tmp_path))
        example = encoded.examples[0]
        learned = [tokenizer.decode(example.input_ids[start:stop]) for start, stop in example.learned]
        assert ["한국의 수도라면" in text for text in learned] == [thinking, thinking], learned
        assert encoded.tokens.counts["reasoning_left_out"] == (0 if thinking else len(rows))
    plain = encode_rows(rows, find_prompt("lab"), tokenizer, cache_dir=str(tmp_path))
    assert plain.tokens.counts["reasoning_left_out"] == len(rows)


def test_a_template_that_trims_answers_is_counted(tmp_path):
    template = "{% for message in messages %}<|{{ message.role }}|>{{ message.content | trim }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    tokenizer = load_tokenizer(save_tiny_checkpoint(tmp_path / "model", chat_template=template))
    rows = all_rows(load(tmp_path, [{**row, "answer": f"    {row['answer']}"} for row in pairs()]))
    counts = {name: encode_rows(rows, find_prompt(name), tokenizer, cache_dir=str(tmp_path)).tokens.counts["answers_changed"] for name in ("chat", "lab")}
    assert counts == {"chat": 12, "lab": 0}


def test_reasoning_counts_in_a_digest_and_rows_without_it_keep_theirs(tmp_path):
    plain, thought = (all_rows(load(tmp_path, talks(USER, answer)))[0] for answer in (ASSISTANT, {**ASSISTANT, "reasoning": "흠"}))
    assert row_digest(plain) != row_digest(thought)
    assert row_digest(plain) == row_digest({name: value for name, value in plain.items() if name != "reasoning"})


def test_a_link_is_read_by_its_own_ending(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0a1b2c").write_text("\n".join(map(json.dumps, pairs())))
    (tmp_path / "snapshot").mkdir()
    link = tmp_path / "snapshot" / "train.jsonl"
    link.symlink_to("../blobs/0a1b2c")
    data = load_data(str(link))
    assert (data.report.parts[0].name, data.report.read) == ("train.jsonl", 12)


def test_a_file_is_found_by_its_name_in_either_spelling(tmp_path):
    written, typed = (unicodedata.normalize(form, "한국어.jsonl") for form in ("NFD", "NFC"))
    (tmp_path / written).write_text("\n".join(map(json.dumps, pairs())))
    assert load_data(str(tmp_path / typed)).report.read == 12


def test_weights_of_a_conversation_decide_what_is_learned(tmp_path):
    for flag in ({"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}, {"loss": 0}, {"train_on_turn": False}):
        row = all_rows(load(tmp_path, talks(USER, {**ASSISTANT, **flag}, USER, ASSISTANT)))[0]
        assert [turn["learn"] for turn in row["history"]] == [False]


def test_an_id_of_zero_is_an_id(tmp_path):
    rows = [{**row, "id": number} for number, row in enumerate(pairs())]
    assert {row["id"] for row in all_rows(load(tmp_path, rows))} == {str(number) for number in range(12)}


def test_nothing_is_said_of_a_file_that_could_not_be_opened(tmp_path):
    with pytest.raises(LabError, match="rows.jsonl, line 3") as caught:
        load(tmp_path, '{"question": "a", "answer": "b"}\n\n{"question"')
    assert "Traceback" not in str(caught.value)
