"""What somebody else wrote is run only by a person who says so: extensions and benchmark files that a record names."""
import hashlib
import json
import os
import shutil

import pytest
from click.testing import CliRunner

from llmlab import LabError, make_config
from llmlab.commands.cli import main
from llmlab.common.files import trusted
from llmlab.config.load import config_to_yaml
from llmlab.experiment.extensions import load_extensions
from llmlab.models.checkpoints import locate_model
from llmlab.models.testing import save_tiny_checkpoint
from llmlab.runs.finished import FinishedRun, load_trained
from llmlab.runs.record import begin_record
from llmlab.runs.rerun import rerun_settings
from llmlab.training.trainer import build_model

CODE = """
from pathlib import Path
Path(__file__).with_name("it_ran").touch()  # a mark that nobody can overlook
from llmlab import PROMPTS, Prompt
PROMPTS["theirs"] = Prompt((("question", "{question}\\n"), ("answer", "{answer}")))
"""


@pytest.fixture(autouse=True)
def nobody(tmp_path, monkeypatch):
    """Be a user who has run nothing yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("LLMLAB_TRUST", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make a run with an extension, as its author has it."""
    folder = tmp_path_factory.mktemp("author")
    checkpoint = save_tiny_checkpoint(folder / "model")
    config = make_config({"model": str(checkpoint), "dataset": "lab-ko-instruct", "dtype": "float32", "report_to": [], "prompt": "lab",
                          "task": "instruct", "extensions": [str(folder / "theirs.py")], "output_dir": str(folder)})
    record = begin_record(folder / "20260101-000000-theirs-1111", config)
    record.save_adapter(build_model(config, locate_model(config)))
    (record.folder / "extensions").mkdir()
    (record.folder / "extensions" / "theirs.py").write_text(CODE, encoding="utf-8")
    (record.folder / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
    record.note(status="finished", extensions={str(folder / "theirs.py"): hashlib.sha256(CODE.encode()).hexdigest()})
    return record.folder


@pytest.fixture
def theirs(made, tmp_path):
    """Get that run from somebody: the file that it names is not here."""
    return shutil.copytree(made, tmp_path / "runs" / made.name)


def ran(folder):
    """Say whether any extension in a folder was run."""
    return any(folder.rglob("it_ran"))


def call(*words, **options):
    return CliRunner().invoke(main, [str(word) for word in words], **options)


def unfinished(run):
    """Make of a run one that can be resumed, with the file that it names beside it."""
    record = json.loads((run / "record.json").read_text(encoding="utf-8"))
    file = run.parent.parent / "theirs.py"
    file.write_text(CODE, encoding="utf-8")
    name, = record["extensions"]
    config = (run / "config.yaml").read_text(encoding="utf-8").replace(name, str(file))
    (run / "config.yaml").write_text(config, encoding="utf-8")
    record |= {"status": "interrupted", "extensions": {str(file): record["extensions"][name]}}
    (run / "record.json").write_text(json.dumps(record), encoding="utf-8")


COMMANDS = {
    "chat": lambda run: ("chat", run), "export": lambda run: ("export", run, "-o", "out"),
    "merge": lambda run: ("merge", run, "-o", "out"), "rerun": lambda run: ("rerun", run),
    "evaluate": lambda run: ("evaluate", run), "train -f": lambda run: (
        "train", "-y", f"{{model: {run}/none, extensions: [{run}/extensions/theirs.py]}}"),
    "plan": lambda run: ("plan", "-y", f"{{extensions: [{run}/extensions/theirs.py]}}"),
}


@pytest.fixture
def project(tmp_path):
    """Make the folder a project, whose notebooks are the lab's."""
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nruns_path = runs\n")
    (tmp_path / "nbs").symlink_to(os.path.join(os.path.dirname(__file__), "..", "nbs"))


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_what_a_foreign_record_brings(command, theirs, project):
    done = call(*COMMANDS[command](theirs))
    assert done.exit_code == 2, done.output
    assert 'PROMPTS["theirs"] = Prompt' in done.output and "--trust" in done.output
    assert not ran(theirs.parent.parent)


def test_resume_runs_no_file_that_only_the_record_has_named(theirs, project):
    unfinished(theirs)
    done = call("resume", theirs)
    assert done.exit_code == 2 and "--trust" in done.output and "it_ran" in done.output
    assert not ran(theirs.parent.parent)


def test_resume_refuses_an_extension_that_was_edited(theirs, project):
    unfinished(theirs)
    (theirs.parent.parent / "theirs.py").write_text(CODE + "# later\n", encoding="utf-8")
    done = call("resume", theirs, "--trust")
    assert done.exit_code == 2 and "is not what it was when the run began" in done.output
    assert not ran(theirs.parent.parent)


def test_trust_shows_and_runs_it_once_and_for_all(theirs, project):
    done = call("chat", theirs, "--trust", input="")
    assert done.exit_code == 0, done.output
    assert "it_ran" in done.output and ran(theirs)
    assert not trusted(), "said for one command only"
    done = call("chat", theirs, input="")
    assert done.exit_code == 0 and "it_ran" not in done.output


def test_ones_own_run_goes_on_without_a_word(theirs, project, tmp_path):
    (tmp_path / "mine.py").write_text(CODE, encoding="utf-8")
    load_extensions(["mine.py"])  # as a training does that names it
    done = call("chat", theirs, input="")
    assert done.exit_code == 0 and "it_ran" not in done.output


def test_one_letter_more_is_another_file(theirs, tmp_path):
    (tmp_path / "mine.py").write_text(CODE + "#", encoding="utf-8")
    load_extensions(["mine.py"])
    with pytest.raises(LabError, match="--trust"):
        FinishedRun(theirs)


def test_names_that_a_record_made_up_are_not_run(theirs, tmp_path):
    """The settings name a file of this machine, of which the record's own list knows nothing."""
    (tmp_path / "mine.py").write_text(CODE, encoding="utf-8")
    record = json.loads((theirs / "record.json").read_text(encoding="utf-8"))
    record["params"]["extensions"] = [str(tmp_path / "mine.py")]
    record["extensions"] = {}
    (theirs / "record.json").write_text(json.dumps(record), encoding="utf-8")
    FinishedRun(theirs)
    assert not ran(tmp_path)


def test_a_copy_that_is_not_what_the_record_says_is_refused(theirs):
    (theirs / "extensions" / "theirs.py").write_text("other", encoding="utf-8")
    with pytest.raises(LabError, match="has no copy of its extension"):
        FinishedRun(theirs)


def test_what_was_shown_is_what_runs(tmp_path):
    """A compiled file beside the source, which Python would take in its place, is never looked at."""
    import py_compile

    source = tmp_path / "mine.py"
    source.write_text(CODE)
    py_compile.compile(str(source), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    source.write_text("# nothing\n")
    load_extensions([str(source)])
    assert not ran(tmp_path)


def test_hidden_letters_are_shown(theirs):
    code = "# \x1b[2J harmless \u202e\n"
    record = json.loads((theirs / "record.json").read_text(encoding="utf-8"))
    (theirs / "extensions" / "theirs.py").write_text(code, encoding="utf-8")
    record["extensions"] = {"theirs.py": hashlib.sha256(code.encode()).hexdigest()}
    (theirs / "record.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(LabError) as caught:
        FinishedRun(theirs)
    assert r"\x1b[2J" in str(caught.value) and r"\u202e" in str(caught.value) and "\x1b" not in str(caught.value)


def test_python_in_a_model_folder_is_never_run(theirs, tmp_path, monkeypatch):
    """A record that asks for it, past all checks of settings, with a model that brings its own tokenizer in Python."""
    monkeypatch.setenv("LLMLAB_TRUST", "1")
    record = json.loads((theirs / "record.json").read_text(encoding="utf-8"))
    model = shutil.copytree(record["params"]["model"], tmp_path / "model")
    (model / "own.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'it_ran')!r}).touch()\n\nclass Own:\n    pass\n"
    )
    for name, kind in (("tokenizer_config.json", "AutoTokenizer"), ("config.json", "AutoModelForCausalLM")):
        content = json.loads((model / name).read_text(encoding="utf-8"))
        content["auto_map"] = {
            kind: ["own.Own", "own.Own"] if kind == "AutoTokenizer" else "own.Own", "AutoConfig": "own.Own"
        }
        (model / name).write_text(json.dumps(content), encoding="utf-8")
    record["params"] |= {"model": str(model), "tokenizer_args": {"trust_remote_code": True}, "extensions": []}
    (theirs / "record.json").write_text(json.dumps({**record, "extensions": {}}), encoding="utf-8")
    try:
        load_trained(FinishedRun(theirs))
    except LabError:  # to refuse it is right as well
        pass
    assert not ran(tmp_path)


def test_benchmark_files_of_a_record_want_trust_too(theirs, tmp_path):
    record = json.loads((theirs / "record.json").read_text(encoding="utf-8"))
    (tmp_path / "task.yaml").write_text("task: theirs\nprocess_docs: !function utils.read\n")
    (tmp_path / "utils.py").write_text(CODE)
    config = (theirs / "config.yaml").read_text(encoding="utf-8")
    name, = record["extensions"]
    config = config.replace("lm_eval_tasks: []", f"lm_eval_tasks: [{tmp_path}/task.yaml]").replace(name, "")
    (theirs / "config.yaml").write_text(config.replace("extensions: ['']", "extensions: []"), encoding="utf-8")
    (theirs / "record.json").write_text(json.dumps({**record, "extensions": {}}), encoding="utf-8")
    with pytest.raises(LabError, match="task.yaml comes with a run"):
        rerun_settings(theirs)


def test_each_command_that_takes_a_run_takes_trust():
    takers = {name for name, command in main.commands.items()
              if {"run", "runs", "parameters"} & {parameter.name for parameter in command.params}}
    assert {
        "train", "evaluate", "resume", "rerun", "compare", "plan", "preview", "merge", "export", "chat", "sweep"
    } <= takers
    for name in takers:
        assert "--trust" in call(name, "--help").output


def test_the_page_on_security_states_the_versions_that_are_asked_for():
    """The floors in SECURITY.md are those of settings.ini and of constraints.txt."""
    import re
    from pathlib import Path

    root = Path(__file__).resolve().parent.parent
    page, settings, pins = (
        (root / name).read_text(encoding="utf-8") for name in ("SECURITY.md", "settings.ini", "constraints.txt")
    )
    floors = re.findall(r"^\| (\w+) \| ([\d.]+)( \(`constraints.txt`\))? \|", page, re.MULTILINE)
    assert len(floors) >= 6
    for package, version, pinned in floors:
        if package == "Python":
            assert re.search(rf"min_python\s*=\s*{re.escape(version)}\b", settings)
        elif pinned:
            assert f"\n{package}=={version}" in pins
        else:
            assert re.search(rf"\b{package}>={re.escape(version)}(?![.\d])", settings), package
    assert ".config/llmlab/trusted" in page
