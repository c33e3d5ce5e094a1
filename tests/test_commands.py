"""The command line as a person meets it: whose defaults count, which run is the latest, what is said."""
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from llmlab.commands import cli
from llmlab.common.files import bundled
from llmlab.config.schema import default_of
from llmlab.runs.folders import find_run

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))


def call(*words):
    """Run a command; return exit status, stdout and stderr."""
    done = CliRunner().invoke(cli.main, [*map(str, words)], prog_name="llmlab")
    return done.exit_code, done.stdout, done.stderr


# Whose defaults

@pytest.fixture
def used(monkeypatch):
    """Let the train notebook be one that somebody has used in JupyterLab, and saved."""
    notebook = json.loads((ROOT / "nbs" / "train.ipynb").read_text(encoding="utf-8"))
    cell = next(cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", []))
    source = "".join(cell["source"]) + "\nmax_steps = 4\nresume = 'latest'\nlora_r = 64"
    cell["source"] = source.splitlines(keepends=True)
    monkeypatch.setattr(cli, "read_notebook", lambda name: notebook)


def test_a_saved_notebook_poisons_no_default(used, capsys):
    config = cli.checked_config({"lora_r": "4"})
    assert (config.max_steps, config.resume, config.lora_r) == (default_of("max_steps"), None, 4)
    said = capsys.readouterr().err
    assert "max_steps=4" in said and "resume='latest'" in said and "lora_r=64" in said


def test_a_run_is_handed_the_defaults_that_the_notebook_lacks(used, monkeypatch, tmp_path):
    """What papermill is told: they stand in the record, in the cell below the notebook's own."""
    papermill, told = cli.import_papermill(), []
    monkeypatch.setattr(papermill, "execute_notebook", lambda *paths, parameters, **options: told.append(parameters))
    assert cli.run_notebook("train.ipynb", {"output_dir": str(tmp_path)}) == 0
    assert told == [{"max_steps": default_of("max_steps"), "resume": None, "lora_r": default_of("lora_r"),
                     "output_dir": str(tmp_path)}]


def test_the_notebook_as_it_is_shipped_has_the_defaults(capsys):
    assert cli.standard_settings() == {} and capsys.readouterr().err == ""


# The latest

def save_record(folder, name, **facts):
    """Write a record of a run."""
    (folder / name).mkdir()
    (folder / name / "record.json").write_text(json.dumps({"run_id": name, "params": {}, **facts}))
    return folder / name


def test_latest_is_the_latest_that_finished_where_weights_are_wanted(tmp_path):
    finished = save_record(tmp_path, "20260101-080000-a-b-1111", status="finished")
    begun = save_record(tmp_path, "20260102-080000-a-b-2222", status="interrupted", data={})
    save_record(tmp_path, "20260103-080000-a-b-3333", status="failed")  # before its data were read
    save_record(tmp_path, "20260104-080000-a-b-4444", status="finished", kind="evaluation")
    assert find_run("latest", str(tmp_path)) == begun
    assert find_run("latest", str(tmp_path), finished=True) == finished
    status, shown, said = call("merge", "latest", "-o", tmp_path / "merged", "--output-dir", tmp_path)
    assert finished.name in said and shown == "" and status == 2, said  # it has no weights
    finished.rename(tmp_path.parent / finished.name)
    status, _, said = call("export", "latest", "-o", tmp_path / "out", "--output-dir", tmp_path)
    assert status == 2 and "no finished run" in said


# What is said

def test_an_unknown_model_is_answered_by_the_nearest_and_no_list():
    for words in (["train", "-p", "model", "gema3-270m"], ["chat", "gema3-270m"]):
        status, _, said = call(*words)
        assert status == 2 and "Did you mean 'gemma3-270m'?" in said and "koalpaca" not in said
        assert len(said) < 350


def test_what_presets_take_is_what_the_rule_says():
    """The file is kept so that `llmlab presets` needs no torch; here it is computed."""
    from preset_memory import written

    assert bundled("memory.yaml").read_text(encoding="utf-8") == written(), "run tools/preset_memory.py"


def test_every_command_stands_in_one_group_with_a_whole_summary():
    shown = CliRunner().invoke(cli.main, ["--help"], prog_name="llmlab", terminal_width=80).stdout
    assert "..." not in shown.partition("Start here:")[2] and "More:" not in shown and "Start here:" in shown
    grouped = [name for names in cli.GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(cli.main.commands)
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_help_on_settings_is_as_wide_as_the_terminal(columns):
    done = CliRunner().invoke(cli.main, ["train", "--help"], prog_name="llmlab", terminal_width=columns)
    shown = done.stdout.splitlines()
    assert columns - 15 < max(map(len, shown)) <= columns
    assert "What you change first (-p NAME VALUE):" in shown and "LoRA:" in shown


@pytest.mark.parametrize("columns", [60, 80, 100, 300])
def test_presets_fit_a_terminal(columns):
    from llmlab.experiment.memory import preset_table

    head, rows = cli.narrow(*preset_table(), ("hub id", "GiB in bf16", "in 4-bit", "context"), columns)
    widest = max(map(len, cli.text_table(head, rows).splitlines()))
    assert widest <= max(columns, 76) and {"model", "licence", "LoRA in 4-bit"} <= set(head)


# Answers for programs

def parsed(*words):
    """Run a command with --json; its stdout must be JSON and nothing else, without numbers that are none."""
    status, shown, _ = call(*words, "--json")
    return status, json.loads(shown, parse_constant=pytest.fail)


def test_presets_as_json():
    status, answer = parsed("presets")
    assert status == 0 and answer["models"]["gemma3-270m"]["id"] == "google/gemma-3-270m"
    assert "lab-ko-mrc" in answer["datasets"] and "koalpaca" in answer["prompts"] and "mrc" in answer["tasks"]


def test_a_comparison_as_json(tmp_path):
    """Also of a loss that ran away, and of a record that was damaged."""
    metrics = {"eval_loss": float("nan"), "train_runtime": 2.5}
    names = [save_record(tmp_path, f"2026010{day}-080000-a-b-1111", status="finished", metrics=metrics).name
             for day in (1, 2)]
    status, answer = parsed("compare", *names, "--output-dir", tmp_path)
    assert status == 0 and [run["run"] for run in answer["runs"]] == names
    assert answer["runs"][0]["metrics"] == {"eval_loss": None, "train_runtime": 2.5}
    assert all(set(row) for table in answer["tables"] for row in table["rows"])
    status, answer = parsed("compare", "--output-dir", tmp_path)
    assert [row["run"] for row in answer["tables"][0]["rows"]] == names[::-1] or len(answer["runs"]) == 2


def test_a_preview_as_json():
    status, answer = parsed("preview", "-p", "dataset", bundled("story-rows.jsonl"), "-p", "model", "smollm2-135m")
    assert answer["serious"] == sum(finding["level"] == "serious" for finding in answer["findings"])
    assert status == int(answer["serious"] > 0) and answer["tokens"]["train"] and answer["examples"][0]["sent"]


def test_an_error_leaves_stdout_empty():
    for words in (["compare", "nosuchrun"], ["plan", "-p", "lora_r", "0"], ["preview", "-p", "seeds", "1"]):
        status, shown, said = call(*words, "--json")
        assert (status, shown) == (2, "") and said.startswith("Error: ")
