"""The data doctor: one file with every fault, each found at its row; a clean one; the text for a server."""
import json
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from llmlab.common.errors import LabError
from llmlab.config.load import make_config
from llmlab.tokens.show import trace
from llmlab.data.doctor import LEVELS
from llmlab.experiment.preview import make_preview, mask_text, preview_lines, sent_json, show_preview
from llmlab.models.testing import save_tiny_checkpoint, tiny_tokenizer

ROOT = Path(__file__).resolve().parent.parent
PLACES = "광주 부산 대구 인천 대전 울산 수원 창원 성남 고양 용인 청주 전주 안산 천안 남양주 화성 김해 평택 포항".split()
THINGS = "바다에서 무엇을 먹나요?,산은 얼마나 높나요?,기차로 몇 시간이 걸리나요?,언제 눈이 오나요?,시장은 어디에 있나요?".split(",")
CLEAN = [{"question": f"{place}에서 {PLACES[number * 7 % 20 - turn]}까지 {THINGS[(number + turn) % 5]}",
          "answer": f"{place} 사람들은 「{number + turn}」이라고 합니다 ㅎㅎ."}
         for number, place in enumerate(PLACES, start=1) for turn in (0, 1)]
TURNS = ("{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
         "{% if add_generation_prompt %}<|assistant|>{% endif %}")


def dirty_rows():
    """Pair each faulty row with what is said of it; None where an earlier row is to be repeated."""
    long = "이 도시는 매우 크고 사람들이 많이 살며 " * 12
    return [
        ({"question": "인구는 몇 명인가요?", "answer": "서\ufffd울입니다."}, "broken characters"),
        ({"question": "나무는 몇 그루인가요?", "answer": "ì•ˆë…•í•˜ì„¸ìš”"}, "broken characters"),
        ({"question": "이 강의 이름은 무엇인가요?", "answer": unicodedata.normalize("NFD", "한강입니다.")}, "NFD"),
        ({"question": "바람은 어느 쪽에서 부나요?", "answer": "북쪽\u200b입니다."}, "invisible"),
        ({"question": "점심은 어디에서 먹나요?", "answer": "식당<br/>입니다&nbsp;."}, "HTML"),
        ({"question": "끝은 어떻게 적나요?", "answer": "</s> 이라고 적습니다."}, "special token"),
        ({"question": "밤하늘 별은 몇 개인가요?", "answer": "..."}, "without a letter"),
        ({"question": "메아리가 들리나요?", "answer": "메아리가 들리나요"}, "their own question"),
        ({"question": "도시를 길게 설명해 주세요.", "answer": long}, "middle of a sentence"),
        ({"question": "아무 말 없이 지나갈까요?", "answer": ""}, "no answer"),
        ({"question": "", "answer": "답만 있습니다."}, "no question"),
        ({"question": "책을 통째로 옮겨 주세요.", "answer": "옛날 옛적에 호랑이가 살았습니다. " * 60}, "lose the end of their answer"),
        ({"question": "숲을 그려 주세요. " * 150, "answer": "그렸습니다."}, "longer than max_length"),
        (CLEAN[0], "say exactly what an earlier row says"),
        ({"question": CLEAN[3]["question"].replace(" ", "") + "!!", "answer": "모릅니다."}, "with another answer"),
    ]


def write(path, rows):
    """Write a jsonl file."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A checkpoint of which nothing but the tokenizer and the configuration is left."""
    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", beginning=True, chat_template=TURNS)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    return str(folder)


@pytest.fixture
def look(tiny, tmp_path):
    """Make a preview with the tiny tokenizer."""
    def preview(dataset, **settings):
        usual = {"model": tiny, "dataset": dataset, "prompt": "koalpaca", "max_length": 1024,
                 "cache_dir": str(tmp_path / "cache")}
        return make_preview(make_config(usual | settings))
    return preview


def places(preview, words):
    """List the places of the findings that say so."""
    return [place for finding in preview.findings if words in finding.what for place in finding.where]


def test_every_fault_is_found_at_its_row(look, tmp_path):
    faults = dirty_rows()
    path = write(tmp_path / "dirty.jsonl", CLEAN + [row for row, _ in faults])
    preview = look(path, compose_hangul=False)
    for number, (_, words) in enumerate(faults, start=len(CLEAN) + 1):
        named = [place.split(" (training")[0] for place in places(preview, words)]
        assert any(f"dirty.jsonl, line {number}" in place for place in named), (number, words, preview.findings)
    total = {finding.what: finding.rows for finding in preview.findings}
    for words in {words for _, words in faults}:
        found = next(count for what, count in total.items() if words in what)
        assert found == sum(other == words for _, other in faults), (words, total)
    levels = [finding.level for finding in preview.findings]
    assert preview.serious >= 5 and levels == sorted(levels, key=LEVELS.index)
    assert all(finding.mend for finding in preview.findings if finding.level != "note")


def test_a_clean_set_has_no_finding(look, tmp_path):
    preview = look(write(tmp_path / "clean.jsonl", CLEAN))
    assert [finding for finding in preview.findings if finding.level != "note"] == [] and not preview.serious


def test_answers_that_are_no_span(look, tmp_path):
    rows = [{"context": f"{place}의 인구는 {number}명이다.", "question": "인구는?", "answer": f"{number}명"}
            for number, place in enumerate(PLACES)]
    odd = {"context": "제주는 섬이다.", "question": "제주는?", "answer": "큰 섬"}
    preview = look(write(tmp_path / "read.jsonl", [*rows, odd]))
    assert places(preview, "no span of their context") == ["read.jsonl, line 21"]


def test_leaks_between_sets(look, tmp_path):
    """A held-out question that is trained on, in other words or under another paragraph, is named with its twin."""
    train = write(tmp_path / "train.jsonl", CLEAN)
    tested = [CLEAN[0], {"question": CLEAN[5]["question"].replace("?", "요?"), "answer": "모릅니다."},
              {"question": "전혀 다른 이야기를 해 주세요.", "answer": "싫습니다."}]
    preview = look(train, eval_dataset=write(tmp_path / "test.jsonl", tested))
    assert places(preview, "left out of training") == ["train.jsonl, line 1 (held out: test.jsonl, line 1)"]
    near = places(preview, "nearly the same")
    assert len(near) == 1 and near[0].startswith("test.jsonl, line 2 (training: train.jsonl, line 6,")
    rows = [{"context": f"{place}에 대한 긴 글입니다. {place}에는 강이 있다.", "question": f"{place}의 강은?", "answer": "강"}
            for place in PLACES]
    other = [{"context": "완전히 다른 글이며 강과 산이 나온다.", "question": "광주의 강은?", "answer": "강"}]
    preview = look(write(tmp_path / "a.jsonl", rows), eval_dataset=write(tmp_path / "b.jsonl", other))
    assert places(preview, "same question with the same answer") == ["b.jsonl, line 1 (training: a.jsonl, line 1)"]
    assert preview.serious == 1


@pytest.mark.parametrize("prompt", ["koalpaca", "lab", "chat"])
def test_sent_text_is_what_generation_is_sent(look, tiny, tmp_path, prompt):
    """Tokenized as a server would, it gives the tokens before the answer, in a conversation too."""
    talks = [{"messages": [{"role": role, "content": f"{place} {word}"} for role, word in
                           [("system", "짧게."), ("user", "안녕?"), ("assistant", "네."), ("user", "또?"),
                            ("assistant", "끝.")]]} for place in PLACES]
    for rows in (CLEAN, talks):
        preview = look(write(tmp_path / "rows.jsonl", rows), prompt=prompt)
        (index,) = preview.examples
        sent, example = sent_json(preview.train, index), trace(preview.train, index)
        ids = tiny_tokenizer(True, TURNS)(sent["prompt"], add_special_tokens=sent["add_special_tokens"]).input_ids
        assert ids == example.input_ids[:example.prompt_length] and ids.count(0) == 1
        assert json.dumps(sent, ensure_ascii=False) in "\n".join(preview_lines(preview))
        assert ("안녕?" in sent["prompt"] and "또?" in sent["prompt"] and "끝." not in sent["prompt"]) == (rows is talks)
        assert "끝." in mask_text(preview.train, index, False).split("⟦")[-1] or rows is CLEAN


def test_special_token_as_text_is_sent_as_tokens(look, tmp_path):
    rows = [{**row, "question": f"</s> {row['question']}"} for row in CLEAN]
    preview = look(write(tmp_path / "special.jsonl", rows))
    example = trace(preview.train, preview.examples[0])
    assert sent_json(preview.train, preview.examples[0]) == {"prompt": example.input_ids[:example.prompt_length]}


def test_terminal_and_notebook(look, tmp_path):
    path = write(tmp_path / "dirty.jsonl", CLEAN + [{"question": "색을 바꿀까요?", "answer": "\x1b[31m빨강입니다."}])
    preview = look(path)
    plain, colored = "\n".join(preview_lines(preview)), "\n".join(preview_lines(preview, color=True))
    assert "\x1b" not in plain and "⟦" in plain
    assert "\x1b[30;42m" in colored and "⟦" not in colored.replace("⟦ and ⟧", "")
    assert "\\u001b" in plain and "line 41 (" in plain
    page = show_preview(preview).data
    assert "data:image/png" in page and "사람들은" in re.sub("<[^>]*>", "", page) and "invisible ones" in page


def test_stream_is_looked_at_from_its_beginning(look, tmp_path):
    preview = look(write(tmp_path / "clean.jsonl", CLEAN), streaming=True, max_steps=5)
    assert any("stream" in finding.what for finding in preview.findings)
    assert len(preview.train.rows) + len(preview.held_out.rows) == len(CLEAN)


def test_hub_model_without_its_tokenizer_is_refused(look, tmp_path):
    with pytest.raises(LabError, match="tokenizer cannot be had"):
        look(write(tmp_path / "clean.jsonl", CLEAN), model="nobody/nothing")


def test_command(tiny, tmp_path):
    """The exit status is 0 for clean data, 1 for a serious finding, and 2 for settings that cannot be."""
    def command(path):
        given = {"model": tiny, "dataset": str(path), "prompt": "koalpaca", "cache_dir": str(tmp_path)}
        words = [word for name, value in given.items() for word in ("-p", name, value)]
        program = Path(sys.executable).with_name("llmlab")
        return subprocess.run([program, "preview", *words], cwd=ROOT, capture_output=True, text=True)

    done = command(write(tmp_path / "clean.jsonl", CLEAN))
    assert done.returncode == 0 and "0 serious findings" in done.stdout, done.stderr
    assert command(write(tmp_path / "dirty.jsonl", CLEAN + [{"question": "왜?", "answer": ""}])).returncode == 1
    assert command(tmp_path / "missing.jsonl").returncode == 2
