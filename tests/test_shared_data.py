"""Real Korean data, where it lies beside the project: every row accounted for, and scores as the official script gives them."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmlab.data.load import load_data
from llmlab.evaluation.tasks import choose_task
from llmlab.evaluation.scores import korquad_score, korquad_scores, normalize_answer

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"

SOURCES = {  # file -> rows, task, and settings where columns do not name themselves
    "hrc.jsonl": (929, "instruct", {"question": "질의", "answer": "상담례, 결정례 기반 답변"}),
    "hrc_instruct.jsonl": (929, "instruct", {}),
    "chatbot.csv": (7093, "instruct", {}),
    "kobest_boolq.jsonl": (3461, "mrc", {}),
    "korquad_v1_dev.json": (3459, "mrc", {}),
}


def shared(name):
    """Return the path of a shared file; skip where it is not there."""
    if not (SHARED / name).is_file():
        pytest.skip(f"../shared/data/{name} is not there")
    return SHARED / name


def read(name):
    """Return the content of a shared JSON file."""
    return json.loads(shared(name).read_text(encoding="utf-8"))


def test_scores_are_those_of_the_official_script():
    """Each case is normalised and scored as KorQuAD's own script does it."""
    for case in read("korquad_eval_cases.json"):
        score = korquad_score(case["prediction"], case["answers"])
        assert normalize_answer(case["prediction"]) == case["normalized_prediction"], case
        assert score["exact_match"] == pytest.approx(case["em"], abs=1e-12), case
        assert score["f1"] == pytest.approx(case["f1"], abs=1e-12), case


def test_totals_are_those_of_the_official_script():
    """Questions without an answer count as wrong, and the totals agree to the last digits."""
    expected = read("korquad_predictions.expected.json")
    scores = korquad_scores(read("korquad_predictions.json"), shared("korquad_v1_dev.json"))
    assert {name: scores[name] for name in ("exact_match", "f1")} == pytest.approx(
        {name: expected[name] for name in ("exact_match", "f1")}, abs=1e-9
    )


@pytest.mark.parametrize("name", SOURCES)
def test_every_row_is_accounted_for(name):
    """Every row is used, or dropped with its place; nothing that is held out is trained on."""
    rows, task, mapping = SOURCES[name]
    data = load_data(str(shared(name)), column_mapping=mapping)
    report = data.report
    assert report.read == rows
    assert report.read == report.kept + sum(reason["rows"] for reason in report.dropped.values())
    assert report.kept == report.train + report.held_out == len(data.train) + len(data.held_out)
    places = [*data.train["where"], *data.held_out["where"]]
    assert len(set(places)) == report.kept
    assert not set(places) & {place for reason in report.dropped.values() for place in reason["where"]}
    assert not set(data.train["group"]) & set(data.held_out["group"])
    assert choose_task("auto", data) == task


def test_a_mix_of_real_sets_keeps_its_shares():
    """KorQuAD and HRC in equal shares: the largest mix without repetition, scored on the same rows as any other."""
    names = [str(shared(name)) for name in ("korquad_v1_dev.json", "hrc_instruct.jsonl")]
    equal = load_data(dict.fromkeys(names, 0.5))
    reading, instructions = equal.report.parts
    assert reading.train == instructions.train == 929 - instructions.held_out
    assert equal.task == "auto" and set(equal.train["task"]) == {"mrc", "instruct"}
    assert load_data("+".join(names)).held_out["id"] == equal.held_out["id"]


@pytest.mark.parametrize("name", ["chatbot.csv", "kobest_boolq.jsonl"])
def test_a_stream_trains_on_what_is_not_held_out(name):
    """A stream's pass over a real file accounts for each row, and no held-out group enters training."""
    data = load_data(str(shared(name)), streaming=True, max_eval_samples=50)
    rows = list(data.train)
    report = data.report
    assert report.read == SOURCES[name][0] == report.kept + sum(reason["rows"] for reason in report.dropped.values())
    assert report.train == len(rows) and report.held_out == len(data.held_out) == 50
    assert not {row["group"] for row in rows} & set(data.held_out["group"])


def in_a_fresh_process(code, *arguments, **environment):
    """Run Python code in a process of its own, and return what it printed."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], env=os.environ | environment, capture_output=True,
        text=True, check=True
    ).stdout


def test_the_same_rows_are_chosen_in_every_process():
    """Neither Python's hashes nor the process decide what is held out, sampled, and in what order."""
    code = """
from llmlab.data import load_data
data = load_data({"lab-ko-instruct": 0.5, "lab-ko-mrc": 0.5}, max_train_samples=0.3, sampling="random")
print(data.report.fingerprint, *data.train["id"], *data.held_out["id"])"""
    first, second = (in_a_fresh_process(code, PYTHONHASHSEED=seed) for seed in ("1", "2"))
    assert first == second and len(first.split()) > 50


def test_rows_live_on_disk(tmp_path):
    """Reading a file takes a fraction of its size in memory, whatever its size."""
    file = tmp_path / "large.jsonl"
    with file.open("w", encoding="utf-8") as lines:
        for number in range(30_000):
            lines.write(json.dumps(
                {"question": f"물음 {number}", "answer": f"답 {number} " + "한강이 흐른다. " * 400}, ensure_ascii=False
            ) + "\n")
    code = """
import sys
from llmlab.data import load_data

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

load_data("lab-ko-mrc", cache_dir=sys.argv[2])  # what is imported once does not count
before = peak()
data = load_data(sys.argv[1], cache_dir=sys.argv[2])
print(len(data.train), peak() - before)"""
    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not tell a process's peak memory")
    rows, grown = map(int, in_a_fresh_process(code, file, tmp_path / "cache").split())
    assert rows == 27_000 and grown < file.stat().st_size / 2, f"{grown / 2**20:.0f} MiB for a file of {file.stat().st_size / 2**20:.0f} MiB"
    assert not list((tmp_path / "cache").glob("*")), "the rows of an ended process are left behind"
