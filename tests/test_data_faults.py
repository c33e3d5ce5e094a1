"""What a file says is what is learned: text stays as it is, and whatever is changed, left out or odd is counted by name."""
import json
import re
import unicodedata

import pytest
from tokenizers import Regex, normalizers

from llmlab import LabError, load_data
from llmlab.data.rows import row_digest
from llmlab.evaluation import find_task
from llmlab.models.checkpoints import load_tokenizer
from llmlab.models.testing import save_tiny_checkpoint, tiny_tokenizer
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


def reading(answer):
    "Make rows that ask about paragraphs which begin alike."
    return [{"question": f"{number}: 수도는?", "context": f"서울이 수도다. {number}", "answer": answer} for number in range(12)]


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


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_text_is_learned_as_it_stands(ending, tmp_path):
    rows = [{"question": f"{name}?{text}", "input": text, "answer": text} for name, text in TEXTS.items()]
    content = rows
    if ending == ".parquet":
        import pyarrow
        from pyarrow import parquet

        file = pyarrow.BufferOutputStream()
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        content = file.getvalue().to_pybytes()
    elif ending in (".csv", ".tsv"):
        separator = "," if ending == ".csv" else "\t"
        lines = [separator.join('"' + value.replace('"', '""') + '"' for value in row.values()) for row in rows]
        content = "\n".join([separator.join(rows[0]), *lines])
    elif ending == ".json":
        content = json.dumps(rows)
    read = {row["question"]: row for row in all_rows(load(tmp_path, content, ending))}
    assert read.keys() == {row["question"] for row in rows}
    for row in rows:
        assert (read[row["question"]]["answer"], read[row["question"]]["input"]) == (row["answer"], row["input"])


REMARKS = {  # what is odd about rows -> the rows, the remark, and how many rows it counts
    "Hangul in pieces": (pairs(input=PIECES), "Hangul in pieces", 12),
    "numbers as answers": (pairs(10) + [{"question": "얼마?", "answer": 7}, {"question": "맞나?", "answer": True}], "numbers, dates, or true", 2),
    "several answers": (pairs(11) + [{"question": "수도는?", "answer": ["서울", "서울시"]}], "several answers", 1),
    "a wrong place of an answer": (reading({"text": "서울", "answer_start": 3}), "does not stand at its answer_start", 12),
    "a negative place": (reading({"text": ["서울"], "answer_start": [-7]}), "answer_start", 12),
    "a place that is text": (reading([{"text": "서울", "answer_start": "0"}]), "answer_start", 12),
    "one wrong place of two": (reading([{"text": "서울", "answer_start": 0}, {"text": "수도", "answer_start": 0}]), "answer_start", 12),
    "a missing place": (reading({"text": ["서울", "수도"], "answer_start": [0]}), "answer_start", 12),
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
    assert any(
        re.match(rf"{count:,} rows of rows.jsonl .*{remark}", note) for note in data.report.all_notes()
    ), data.report.all_notes()


NOTES = {
    "columns nobody uses": (pairs(weight=0, tools=[]), ".jsonl", "not used: weight, tools"),
    "an id twice": (pairs(id="a"), ".jsonl", "11 rows of rows.jsonl have the id of another"),
    "a row twice": (pairs() + pairs(1), ".jsonl", "1 rows of rows.jsonl repeat another"),
    "code page 949": ("질문,답변\n" + "\n".join(f"{n}은?,{n}" for n in range(12)), ".csv", "read as cp949"),
    "a column without a name": ("question,answer,\n" + "\n".join(f"{n}?,{n}," for n in range(12)), ".csv", r"not used: \(no name\)"),
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
    spans = {"text": ["서울"], "answer_start": [0]}
    for rows in (
        pairs(), talks(USER, ASSISTANT, USER, ASSISTANT), pairs(id=None), reading(spans),
        reading([{"text": "서울", "answer_start": 0}])
    ):
        assert load(tmp_path, rows).report.all_notes() == []


def test_hangul_in_pieces_is_put_together_or_kept(tmp_path):
    rows = [{
        unicodedata.normalize("NFD", "질문"): f"{number}: {PIECES}",
        unicodedata.normalize("NFD", "답변"): f"{PIECES} {number}"
    } for number in range(12)]
    whole = unicodedata.normalize("NFC", PIECES)
    wholes = {f"{whole} {number}" for number in range(12)}
    assert {row["answer"] for row in all_rows(load(tmp_path, rows))} == wholes
    kept = load(tmp_path, rows, compose_hangul=False)
    assert {row["answer"] for row in all_rows(kept)} == {
        f"{PIECES} {number}" for number in range(12)
    } and not kept.report.all_notes()
    named = load(tmp_path, rows, column_mapping={"question": "답변", "answer": "질문"})
    assert {row["question"] for row in all_rows(named)} == wholes
    streamed = load(tmp_path, rows, streaming=True)
    assert {row["answer"] for row in all_rows(streamed)} == wholes
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
        encoded = encode_rows(
            rows, find_prompt({"parts": parts, "chat": True, "thinking": thinking}), tokenizer, cache_dir=str(tmp_path)
        )
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
    counts = {
        name: encode_rows(rows, find_prompt(name), tokenizer, cache_dir=str(tmp_path)).tokens.counts["answers_changed"]
        for name in ("chat", "lab")
    }
    assert counts == {"chat": 12, "lab": 0}


NORMALIZERS = {  # what a tokenizer does to text -> how many of five rows it changes
    "nothing": (None, 0), "NFC": (normalizers.NFC(), 1), "NFKC": (normalizers.NFKC(), 2), "single spaces": (normalizers.Replace(Regex(" +"), " "), 1),
    "small letters": (normalizers.Lowercase(), 1),
}


@pytest.mark.parametrize("kind", NORMALIZERS)
def test_a_tokenizer_that_rewrites_text_is_counted(kind, tmp_path):
    normalizer, count = NORMALIZERS[kind]
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizer
    rows = [
        {"question": f"{number}?", "answer": answer} for number,
        answer in enumerate(["서울", "두  칸", "½", "KBS", "cafe\u0301"])
    ]
    assert encode_rows(rows, find_prompt("lab"), tokenizer, cache_dir=str(tmp_path)).tokens.counts["changed_by_tokenizer"] == count


def test_reasoning_counts_in_a_digest_and_rows_without_it_keep_theirs(tmp_path):
    plain, thought = (
        all_rows(load(tmp_path, talks(USER, answer)))[0] for answer in (ASSISTANT, {**ASSISTANT, "reasoning": "흠"})
    )
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
    for flag in (
        {"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}, {"loss": 0}, {"train_on_turn": False}
    ):
        row = all_rows(load(tmp_path, talks(USER, {**ASSISTANT, **flag}, USER, ASSISTANT)))[0]
        assert [turn["learn"] for turn in row["history"]] == [False]


def test_an_id_of_zero_is_an_id(tmp_path):
    rows = [{**row, "id": number} for number, row in enumerate(pairs())]
    assert {row["id"] for row in all_rows(load(tmp_path, rows))} == {str(number) for number in range(12)}


def test_nothing_is_said_of_a_file_that_could_not_be_opened(tmp_path):
    with pytest.raises(LabError, match="rows.jsonl, line 3") as caught:
        load(tmp_path, '{"question": "a", "answer": "b"}\n\n{"question"')
    assert "Traceback" not in str(caught.value)


def faults_of_the_hub():
    "What `load_dataset` raises, by what is wrong."
    from datasets import exceptions

    return {
        "gone": (exceptions.DatasetNotFoundError("x"), "no such dataset"), "offline": (ConnectionError("x"), "cannot be reached"),
        "several configurations": (ValueError("Config name is missing.\nPick one"), "Set dataset_config"),
        "a script": (RuntimeError("Dataset scripts are no longer supported, but found x.py"), "scripts are no longer supported.*by hand"),
        "no such files": (exceptions.DataFilesNotFoundError("No data files found"), "No data files found.*by hand"),
        "broken files": (exceptions.DatasetGenerationError("An error occurred"), "An error occurred.*by hand"),
        "a disk": (OSError(5, "Input/output error"), "Input/output error"), "no words": (RuntimeError(), "RuntimeError"),
    }


@pytest.mark.parametrize("fault", faults_of_the_hub())
def test_what_the_hub_refuses_is_one_message(fault, monkeypatch):
    error, words = faults_of_the_hub()[fault]

    def fail(*_, **__):
        raise error

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(LabError, match=rf"(?s)dataset='nobody/rows' cannot be had: .*{words}"):
        load_data("nobody/rows")


def test_rows_of_the_hub_that_break_off_are_one_message(monkeypatch):
    def rows():
        yield from pairs(3)
        raise UnicodeDecodeError("utf-8", b"\xb0", 0, 1, "invalid start byte")

    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: {"train": rows()})
    with pytest.raises(LabError, match="dataset=nobody/rows: train cannot be read after row 3"):
        load_data("nobody/rows")


@pytest.mark.parametrize("place", ["file", "file/below", "x" * 300, "~nobody-is-called-so/cache"])
def test_a_cache_that_cannot_be_is_one_message(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match="cache_dir='.*Name a folder"):
        load(tmp_path, pairs(), cache_dir=place)
