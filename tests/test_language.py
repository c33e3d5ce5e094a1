"""Messages in Korean: every one that a person can meet has its translation, and what the commands print is Korean."""
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from babel.messages.pofile import read_po

from llmlab.common.language import translate

ROOT = Path(__file__).resolve().parent.parent
HANGUL = re.compile("[가-힣]")
TOOL = runpy.run_path(str(ROOT / "tools" / "messages.py"))
ASKED = {  # what is typed -> exit status, a word of the answer
    "--help": (0, "사용법"),
    "train --help": (0, "옵션"),
    "plan --help": (0, "카드"),
    "presets": (0, "라이선스"),
    "presets --help": (0, "옵션"),
    "compare 20261125": (2, "실행"),
    "plan -p model koalpaca -p device a100-80gb": (0, "메모리가 가장 많이 필요한 때: 학습"),
    "preview -p model smollm2-135m -p max_train_samples 20": (0, "학습하는 토큰의 비율"),
    "train -p learning_rat 1e-4": (2, "오류: 'learning_rat': 이 노트북에 그런 파라미터는 없습니다. 혹시 'learning_rate'"),
    "train -p batching foo": (2, "다음 중 하나여야 합니다"),
    "train -p learning_rate 1 -p learning_rate 2": (2, "'1'과 '2'로 두 번"),
    "preview -p dataset {bad}": (2, "2번째 줄: 올바른 JSON이 아닙니다"),
    "compare": (0, "상태"),
    "train -p model gema3-270m": (2, "알 수 없는 모델"),
    "train -p dataset lab-ko-instrukt": (2, "프리셋"),
    "train -p learning_rate fast": (2, "learning_rate"),
    "train -p use_peft false -p load_in_4bit true": (2, "양자화"),
    "train -p prompt labb": (2, "prompt='labb'"),
    "train -p task mcr": (2, "task='mcr'"),
    "train -p lr_scheduler_type constant -p warmup_steps 5": (2, "warmup_steps"),
    "chat no-such-run": (2, "no-such-run"),
    "resume no-such-run": (2, "no-such-run"),
    "trian": (2, "없는 명령"),
    "export no-such-run": (2, "옵션이 빠졌습니다"),
}

PATTERNS = {}  # template: at least three words of its own, or a whole line
for template in TOOL["messages"]():
    parts = TOOL["HOLE"].split(template)[::2]
    if len(re.findall("[A-Za-z]{2,}", " ".join(parts))) >= 3 and "\n" not in template and "`" not in template:
        PATTERNS[template] = re.compile(".+?".join(map(re.escape, parts)))
    elif len(parts) == 1 and "\n" not in template:
        PATTERNS[template] = re.compile(rf"^\s*{re.escape(template)}:?\s*$")


def catalogue():
    with open(TOOL["CATALOGUE"], "rb") as file:
        return read_po(file, locale="ko")


def test_every_message_has_its_korean():
    assert TOOL["problems"](TOOL["messages"](), catalogue()) == [], "run tools/messages.py, and translate what it names"


def test_what_is_missing_stale_or_has_other_holes_is_found():
    found = {"{0} is no run.": "a.py", "Nothing is lost.": "b.py"}
    known = catalogue()
    for message in list(known):
        if message.id:
            known.delete(message.id)
    known.add("{0} is no run.", "실행이 아닙니다.")
    known.add("Gone for long.", "사라졌습니다.")
    known.add("{0} is lost.", "{0}는 없습니다.")
    kinds = [fault.split(":")[0] for fault in TOOL["problems"](found, known)]
    assert sorted(kinds) == ["a particle of one form on a hole (write both, as 은(는))", "no Korean", "other holes",
                             "stale", "stale"]


def english_in(line):
    "List the templates of several words that still stand in a line as they are written in the code."
    return [template for template, pattern in PATTERNS.items() if pattern.search(line)]


@pytest.mark.parametrize("words", ASKED)
def test_the_command_line_answers_in_korean(words, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "a", "answer": "b"}\n{"question": "a",\n')
    status, said = ASKED[words]
    call = "import sys; from llmlab.commands.cli import main; main(sys.argv[1:], prog_name='llmlab')"
    typed = words.format(bad=bad).split()
    done = subprocess.run([sys.executable, "-c", call, *typed], cwd=ROOT, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, env={**os.environ, "LLMLAB_LANG": "ko", "COLUMNS": "300"})
    answer = done.stdout + done.stderr
    assert done.returncode == status and said in answer and HANGUL.search(answer), answer
    for line in filter(str.strip, answer.splitlines()):
        assert not english_in(line), line


def test_a_message_is_translated_with_what_it_names(monkeypatch):
    monkeypatch.setenv("LLMLAB_LANG", "ko")
    korean = "실행 a-b: 아직 진행 중입니다. 끝날 때까지 기다리십시오."
    assert translate("Run a-b is still going on: wait for its end.") == korean
    assert translate("\nError: Run a-b is still going on: wait for its end.") == f"\n오류: {korean}"  # below a bar
    monkeypatch.setenv("LLMLAB_LANG", "en")
    assert translate("Run a-b is still going on: wait for its end.").startswith("Run a-b")
