"""The tutorials, run as a person runs them."""
import hashlib
import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIALS = Path(__file__).resolve().parent.parent / "nbs" / "tutorials"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Execute the tutorial in its folder, with temporary files where they can be found; return the records it made, in order."""
    temporary = tmp_path_factory.mktemp("tutorial")
    notebook = nbformat.read(TUTORIALS / "add_your_own.ipynb", as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(f"import tempfile; tempfile.tempdir = {str(temporary)!r}"))
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(TUTORIALS)}}
    ).execute()
    return sorted(path.parent for path in temporary.glob("*/runs/*/record.json"))


def content(run):
    """Read a run's record."""
    return json.loads((run / "record.json").read_text(encoding="utf-8"))


def test_three_runs_are_finished(runs):
    assert [content(run)["status"] for run in runs] == ["finished"] * 3
    assert all((run / "adapter" / "adapter_model.safetensors").is_file() for run in runs)


def test_entries_of_a_notebook_are_trained_with(runs):
    record = content(runs[0])
    assert {name: record["params"][name] for name in ("model", "dataset", "prompt", "task")} == dict.fromkeys(
        ("model", "dataset", "prompt", "task"), "mine"
    )
    assert record["entries"]["model"]["id"].endswith("tiny-llama") and record["model"]["license"] == "Apache-2.0"
    assert record["entries"]["prompt"]["parts"][0] == ["header", "계산해 보세요.\n"]
    assert record["data"]["parts"][0]["columns"] == {"question": "물음", "answer": "대답"} and record["data"]["license"] == "CC0-1.0"
    assert {"right_number_before", "right_number"} <= set(record["metrics"])


def test_command_line_takes_a_folder_a_file_and_a_mapping(runs):
    record = content(runs[1])
    assert record["params"]["model"].endswith("tiny-llama") and record["params"]["dataset"].endswith("sums.csv")
    assert record["params"]["prompt"]["parts"][1] == ["marker", "답:"] and record["entries"]["prompt"]["parts"][1] == ["marker", "답:"]
    assert record["data"]["kept"] == 40 and not (runs[1] / "extensions").exists()


def test_extension_is_kept_with_its_hash(runs):
    record, file = content(runs[2]), runs[2] / "extensions" / "my_lab.py"
    assert list(record["extensions"].values()) == [hashlib.sha256(file.read_bytes()).hexdigest()]
    assert record["params"]["task"] == "sums" and "right_number" in record["metrics"] and "def right_number" in file.read_text(encoding="utf-8")
