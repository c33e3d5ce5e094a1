"""A record can be run again, gone on with, and compared."""
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmlab.models.testing import save_tiny_checkpoint
from llmlab.runs.tracking import connect

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("kill_test", ROOT / "tools" / "kill_test.py")
kill_test = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(kill_test)


def llmlab(*words):
    """Run a command of the lab to its end."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "LLMLAB_RUN_DIR")
    }
    return subprocess.run(
        ["llmlab", *map(str, words)], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=300
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A small checkpoint of the LLaMA family."""
    return save_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def extension(tmp_path_factory):
    """A file that adds a prompt."""
    path = tmp_path_factory.mktemp("extension") / "mine.yaml"
    path.write_text(
        "prompts:\n  mine:\n    parts: [[question, '질문: {question}\\n'], [marker, '답:'], [answer, ' {answer}']]\n"
    )
    return path


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """The folder of a finished run, with dropout, two epochs, evaluations and checkpoints."""
    return kill_test.undisturbed(tmp_path_factory.mktemp("whole"), tiny)[0]


def test_killed_again_and_again_a_run_ends_as_if_nothing_had_happened(whole, tiny, tmp_path):
    """SIGKILL while a checkpoint is written, after training, and while the notebook is: the same weights, losses, curve, scores and answers."""
    parameters, choice, folder = [
        *{**kill_test.SETTINGS, "model": tiny, "output_dir": tmp_path}.items()
    ], random.Random(3), None
    for phase in ("saving", "after training"):
        assert kill_test.run_and_kill(parameters, tmp_path, phase, choice, victims=("both",))[0]
        folder = next(tmp_path.glob("*/record.json")).parent
        parameters = [("resume", folder), ("output_dir", tmp_path)]
    steps = sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoints/checkpoint-*"))
    newest = folder / "checkpoints" / f"checkpoint-{steps[-1]}" / "optimizer.pt"
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")  # a byte that changed on the disk
    kill_test.run_and_kill(parameters, tmp_path, "writing the notebook", choice, victims=("both",))
    assert json.loads((folder / "record.json").read_text())["resumed"][-1]["step"] == steps[-2]
    if not (folder / "train.html").exists():
        done = llmlab("resume", folder)
        assert done.returncode == 0, done.stderr
    assert kill_test.outcome(folder) == kill_test.outcome(whole)
    record = json.loads((folder / "record.json").read_text())
    assert record["resumed"] and len(list(tmp_path.glob("*/record.json"))) == 1
    client = connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert [run.info.run_id for run in runs] == [record["mlflow_run_id"]] and runs[0].info.status == "FINISHED"
    steps = [point.step for point in client.get_metric_history(runs[0].info.run_id, "train/loss")]
    assert steps == sorted(set(steps))
    refused = llmlab("resume", folder)
    assert refused.returncode == 2 and "finished" in refused.stderr


def test_a_rerun_is_verified(whole):
    """A record is run again from its folder alone: the same to the last bit; with another seed it is not, and that is said."""
    done = llmlab("rerun", whole / "train.ipynb", "--verify")
    assert done.returncode == 0, done.stderr
    assert "Identical" in done.stdout and "DIFFERENT" not in done.stdout
    again = next(path.parent for path in whole.parent.glob("*/verify.json"))
    record, original = (json.loads((folder / "record.json").read_text()) for folder in (again, whole))
    assert record["rerun_of"] == whole.name and record["params"]["num_threads"] == original["environment"]["torch_threads"]
    report = json.loads((again / "verify.json").read_text())
    assert report["identical"] and report["first_differing_step"] is None and {check["what"] for check in report["checks"]} >= {"data", "model weights", "loss trace", "adapter"}
    assert len(json.loads((whole / "loss_trace.json").read_text())) == original["metrics"]["steps"]


def test_what_has_changed_since_is_said(whole, tiny, tmp_path, extension, monkeypatch):
    """Settings and versions that are others come first, with how far off the result is."""
    import shutil

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    old = tmp_path / whole.name
    shutil.copytree(whole, old, ignore=shutil.ignore_patterns("checkpoints"))
    record = json.loads((old / "record.json").read_text())
    record["environment"]["packages"]["torch"] = "2.0.0"
    (old / "record.json").write_text(json.dumps(record))
    done = llmlab(
        "rerun", old, "--verify", "-p", "seed", 7, "-p", "extensions", extension, "-p", "prompt", "mine", "-p",
        "report_to", "[]"
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("other torch than in the record: 2.0.0 there") and "torch: 2.0.0 in the record" in done.stderr
    assert "other setting than in the record: seed=42 there, 7 here" in done.stdout and "differ from step 1 on" in done.stdout and "apart" in done.stdout
    first = next(path.parent for path in tmp_path.glob("*/verify.json"))
    extension.write_text(extension.read_text().replace("질문", "물음"))
    done = llmlab("rerun", first, "--verify")  # the extension was edited, and the record has its own copy
    assert done.returncode == 0, done.stdout + done.stderr


def test_runs_are_compared(whole, tmp_path):
    """The table says what differs and only that, from folders and from MLflow alike; without names all runs are listed."""
    folders = sorted(path.parent for path in whole.parent.glob("*/record.json"))
    listed = llmlab("compare", "--output-dir", whole.parent)
    assert listed.returncode == 0 and all(
        f"{folder.name}  finished" in listed.stdout for folder in folders
    ), listed.stderr
    assert llmlab("compare", "no-such-run", "--output-dir", whole.parent).returncode == 2
    shown = [
        llmlab("compare", *(folder.name for folder in folders), "--output-dir", whole.parent, "--from", source)
        for source in ("runs", "mlflow")
    ]
    assert shown[0].returncode == 0 and shown[0].stdout == shown[1].stdout, shown[1].stderr
    client = connect(f"sqlite:///{whole.parent / 'mlflow.db'}")  # a run of which MLflow has no files
    bare = client.create_run(client.get_experiment_by_name("llmlab").experiment_id, run_name="bare")
    client.log_param(bare.info.run_id, "learning_rate", "0.5")
    client.log_metric(bare.info.run_id, "eval_loss", 3.25)
    client.set_terminated(bare.info.run_id, "KILLED")
    listed = llmlab("compare", "--output-dir", whole.parent, "--from", "mlflow").stdout
    assert re.search(r"^bare +interrupted .*3\.250", listed, re.MULTILINE) and whole.name in listed
    page = llmlab("compare", folders[0], folders[-1], "--output-dir", whole.parent, "--notebook")
    assert page.returncode == 0, page.stderr
    text = next(whole.parent.glob("comparisons/*/compare.html")).read_text()
    assert "data:image/png" in text and "정답" in text and folders[0].name in text
    assert sys.executable not in text
