"""A command that only answers imports nothing heavy: no time is measured, the modules are looked at."""
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TRAINING = {"torch", "transformers", "peft", "bitsandbytes", "accelerate", "mlflow", "datasets", "pandas", "ray"}
NOTEBOOKS = {"papermill", "nbformat", "nbclient", "nbconvert", "IPython", "jsonschema", "pyarrow", "requests"}
GRAMMAR = {"rfc3987_syntax"}  # jsonschema's, of international web addresses: seconds to build
CALL = """
import sys
from llmlab.commands.cli import main
try:
    main({words}, prog_name="llmlab")
finally:
    print("modules:", *sorted({{name.split(".")[0] for name, module in sys.modules.items() if module}}))
"""
COMMANDS = {  # words -> exit status, what is said, what is not imported
    "--help": (0, "train", TRAINING | NOTEBOOKS | {"numpy"}),
    "train --help": (0, "learning_rate", TRAINING | NOTEBOOKS | {"numpy"}),
    "train -p learning_rat 1e-4": (2, "Did you mean 'learning_rate'?", TRAINING | NOTEBOOKS | {"numpy"}),
    "train -p model gema3-270m": (2, "Did you mean 'gemma3-270m'?", TRAINING | NOTEBOOKS | {"numpy"}),
    "train -p lora_r 0": (2, "lora_r", TRAINING | NOTEBOOKS | {"numpy"}),
    "train -p dataset lab-ko-instuct": (2, "Did you mean 'lab-ko-instruct'?", TRAINING | NOTEBOOKS | {"numpy"}),
    "preview -p prompt labb": (2, "Did you mean 'lab'?", TRAINING | NOTEBOOKS | {"numpy"}),
    "plan -p model gema3-270m": (2, "Did you mean 'gemma3-270m'?", TRAINING | NOTEBOOKS | {"numpy"}),
    "check-gradients -p seeds 1": (2, "Did you mean 'seed'?", TRAINING | NOTEBOOKS | {"numpy"}),
    "sweep -p learning_rat 1,2": (2, "Did you mean 'learning_rate'?", TRAINING | NOTEBOOKS),
    "evaluate nosuchrun": (2, "nosuchrun", TRAINING | NOTEBOOKS | {"numpy"}),
    "resume nosuchrun": (2, "nosuchrun", TRAINING | NOTEBOOKS | {"numpy"}),
    "rerun nosuchrun": (2, "nosuchrun", TRAINING | NOTEBOOKS | {"numpy"}),
    "chat nosuchrun": (2, "nosuchrun", TRAINING | NOTEBOOKS | {"numpy"}),
    "export nosuchrun -o out": (2, "nosuchrun", TRAINING | NOTEBOOKS | {"numpy"}),
    "presets": (0, "gemma3-270m", TRAINING | NOTEBOOKS | {"numpy"}),
    "compare": (0, "gemma3-270m", TRAINING | NOTEBOOKS | {"numpy"}),
    "compare 20261125-211836 20261125-212115": (0, "eval_loss", TRAINING | NOTEBOOKS),
}


def modules_after(words):
    """Run a command in a process of its own; return exit status, what it said, and the modules it had imported."""
    code = CALL.format(words=words.split())
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL)
    said, _, modules = done.stdout.rpartition("modules:")
    return done.returncode, said + done.stderr, set(modules.split())


@pytest.mark.parametrize("words", COMMANDS)
def test_an_answer_needs_nothing_heavy(words):
    status, says, heavy = COMMANDS[words]
    returned, said, modules = modules_after(words)
    assert (returned, says in said) == (status, True), said
    assert "click" in modules, "no modules were read"
    assert not modules & heavy


STARTING = """
import sys
from llmlab.commands.cli import import_papermill, run_notebook
import_papermill()
from papermill.clientwrap import PapermillNotebookClient

def execute(client):
    print("modules:", *sorted({{name.split(".")[0] for name, module in sys.modules.items() if module}}))
    raise KeyboardInterrupt

PapermillNotebookClient.execute = execute
run_notebook("train.ipynb", {{"output_dir": {folder!r}}})
"""


def test_a_kernel_is_started_without_what_trains(tmp_path):
    """All that `llmlab train` imports before its kernel runs: papermill, and what opens and closes a record."""
    done = subprocess.run([sys.executable, "-c", STARTING.format(folder=str(tmp_path))], cwd=ROOT, capture_output=True,
                          text=True, stdin=subprocess.DEVNULL)
    modules = set(done.stdout.rpartition("modules:")[2].split())
    assert "papermill" in modules, done.stderr
    assert not modules & (TRAINING | GRAMMAR | {"IPython", "nbconvert"})
    assert [path.name for path in tmp_path.glob("*/record.json")] == ["record.json"]
