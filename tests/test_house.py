"""The house itself: one version, pinned requirements, a package in step with its notebooks, commands that work."""
import builtins
import dis
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import types
from configparser import ConfigParser
from importlib.metadata import EntryPoint
from pathlib import Path
from shlex import split

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
from pins import PYTHONS, check  # noqa: E402
TOOLS = Path(sys.executable).parent
COMMANDS = ["help", "install", "train", "test", "lab", "ui", "docs", "bench", "scale", "gpu", "prepare", "pins", "clean"]

parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = parser["DEFAULT"]


def run(*command, cwd, **environment):
    """Run `command` in `cwd` and return what it did, without what an outer make or notebook test put in the environment."""
    inherited = {name: value for name, value in os.environ.items()
                 if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "ARGS", "PYTHON", "IN_TEST")}
    return subprocess.run([str(word) for word in command], cwd=cwd, env=inherited | environment, text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def succeed(*command, cwd, **environment):
    """Run `command`, show what it printed if it fails, and return that."""
    done = run(*command, cwd=cwd, **environment)
    assert done.returncode == 0, done.stdout
    return done.stdout


def project_files():
    """List the project's files as they are now: tracked or new, but nothing that git ignores, and no runs that nobody committed."""
    listed = succeed("git", "ls-files", "-z", "--cached", cwd=ROOT)
    listed += succeed("git", "ls-files", "-z", "--others", "--exclude-standard", "--exclude=/runs/", cwd=ROOT)
    return [Path(name) for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture
def copy(tmp_path):
    """Copy the project, less its runs, to a folder where a test may change it."""
    for name in project_files():
        if name.parts[0] != "runs":
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


# Stated once

def test_version_and_name_are_those_of_settings():
    printed = succeed(sys.executable, "setup.py", "--quiet", "--name", "--version", cwd=ROOT)
    assert printed.split()[-2:] == [SETTINGS["lib_name"], SETTINGS["version"]]
    package = (ROOT / SETTINGS["lib_path"] / "__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{SETTINGS["version"]}"' in package
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+)", changes, re.MULTILINE)[1] == SETTINGS["version"]


@pytest.mark.parametrize(
    "key, group", [("console_scripts", "console_scripts"), ("papermill_engines", "papermill.engine")]
)
def test_entry_points_can_be_imported(key, group):
    import papermill  # noqa: F401  an engine is loaded while papermill is, never before
    for word in split(SETTINGS[key]):
        name, value = word.split("=")
        assert callable(EntryPoint(name, value, group).load())


def test_commands_are_installed_beside_python():
    for word in split(SETTINGS["console_scripts"]):
        assert (TOOLS / word.split("=")[0]).exists()


def test_every_requirement_is_pinned_and_allowed():
    lines = [
        line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    pinned = [Requirement(line) for line in lines]
    assert all(re.fullmatch(r"==[\w.!]+", str(pin.specifier)) for pin in pinned)
    here = [pin for pin in pinned if pin.marker is None or pin.marker.evaluate()]
    pins = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in here}
    assert len(pins) == len(here), "a package is pinned twice"
    for word in split(SETTINGS["requirements"]) + split(SETTINGS["dev_requirements"]):
        requirement = Requirement(word)
        assert canonicalize_name(requirement.name) in pins, f"{word} has no pin in constraints.txt"
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), f"constraints.txt contradicts {word}"


@pytest.mark.parametrize("python", PYTHONS)
def test_every_promised_python_can_install_the_pins(python):
    problem = check(python)
    if re.search("error sending request|failed to fetch|dns error|connection", problem, re.IGNORECASE):
        pytest.skip("no package registry can be reached, which this asks")
    assert not problem


# Notebooks first

def test_package_is_what_the_notebooks_export(copy):
    def modules(package):
        return {str(path.relative_to(package)): path.read_text(encoding="utf-8") for path in package.rglob("*.py")}

    package = copy / SETTINGS["lib_path"]
    for module in package.rglob("*.py"):  # what a package offers by its own name is written by hand
        if module.name != "__init__.py":
            module.unlink()
    succeed(TOOLS / "nbdev_export", cwd=copy)
    exported, present = modules(package), modules(ROOT / SETTINGS["lib_path"])
    assert sorted(exported) == sorted(present)
    different = [name for name in exported if exported[name] != present[name]]
    assert not different, f"run 'make prepare': {different}"
    assert (copy / "pyproject.toml").read_text() == (ROOT / "pyproject.toml").read_text()


def test_clean_keeps_tags_and_changes_no_notebook(copy):
    notebooks = {path: path.read_bytes() for path in copy.glob("nbs/**/*.ipynb")}
    assert notebooks
    cell = {"cell_type": "code", "id": "0", "execution_count": 3, "outputs": [], "source": ["model = 'a'"],
            "metadata": {"tags": ["parameters"], "collapsed": True}}
    tagged = copy / "nbs" / "tagged.ipynb"
    tagged.write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    succeed(TOOLS / "nbdev_clean", cwd=copy)
    cleaned = json.loads(tagged.read_text())["cells"][0]
    assert cleaned["metadata"] == {"tags": ["parameters"]}
    assert cleaned["execution_count"] is None
    changed = [path.name for path, before in notebooks.items() if path.read_bytes() != before]
    assert not changed, f"run 'make prepare': {changed}"


def test_files_beside_the_code_are_shipped(copy):
    succeed(sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", copy / "built", cwd=copy)
    beside = [
        path.relative_to(copy) for path in (copy / SETTINGS["lib_path"]).rglob("*")
        if path.suffix in (".yaml", ".json", ".jsonl", ".md")
    ]
    assert Path("llmlab/models/presets.yaml") in beside
    assert all((copy / "built" / path).is_file() for path in beside)


def test_train_has_one_parameters_cell():
    cells = json.loads((ROOT / "nbs" / "train.ipynb").read_text(encoding="utf-8"))["cells"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    assert [cell["cell_type"] for cell in tagged] == ["code"]


def test_hooks_leave_the_work_tree_as_it_is(copy, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")  # nbdev_install_hooks also writes to ~/.jupyter
    for command in ("git init --quiet", "git add --all", "git -c user.name=a -c user.email=a@b commit --quiet -m a",
                    f"{TOOLS / 'nbdev_install_hooks'}"):
        succeed(*split(command), cwd=copy, HOME=str(home))
    assert succeed("git", "status", "--porcelain", cwd=copy) == ""
    assert "nbdev_merge" in succeed("git", "config", "merge.nbdev-merge.driver", cwd=copy)
    assert "nbdev-merge" in succeed("git", "check-attr", "merge", "nbs/train.ipynb", cwd=copy)


@pytest.mark.parametrize("package", ["llmlab", "llmlab.config", "llmlab.data", "llmlab.evaluation", "llmlab.models"])
def test_offered_names_are_there(package):
    """What a package offers by its own name is imported when it is used: each of these names is tried."""
    offered = importlib.import_module(package)
    assert offered.__all__ and all(hasattr(offered, name) for name in offered.__all__)


def test_importing_the_lab_is_quick():
    """Neither the lab nor its command line loads torch before it is needed."""
    code = "import sys, llmlab, llmlab.commands.cli; print(sorted({'torch', 'transformers', 'datasets', 'mlflow', 'ray'} & set(sys.modules)))"
    assert succeed(sys.executable, "-c", code, cwd=ROOT).strip() == "[]"


def test_no_file_names_a_machine():
    folder = r"(?<![\w.~-])/(work|root|home)/\w"
    registry = r"(pypi|pythonhosted|npmjs)\.(org|com)|(download\.pytorch|deb\.debian)\.org"
    texts = {name: (ROOT / name).read_text(encoding="utf-8", errors="ignore") for name in project_files()}
    found = {str(name): match[0] for name, text in texts.items() if (match := re.search(f"{folder}|{registry}", text))}
    assert not found


# Commands

def global_names(code):
    """List the names that functions take from their module, or from Python itself."""
    names = {each.argval for each in dis.get_instructions(code) if each.opname == "LOAD_GLOBAL"}
    return names.union(*(global_names(each) for each in code.co_consts if isinstance(each, types.CodeType)))


def test_every_name_that_functions_read_is_there():
    """What an import forgot would be missed when its line runs, which may be at a stop or at a fault."""
    importlib.import_module("papermill")  # which imports the lab's engine by itself, and wants to be the first to
    missing = {}
    for file in sorted((ROOT / "llmlab").rglob("*.py")):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        known = vars(importlib.import_module(name)).keys() | vars(builtins).keys()
        missing[name] = global_names(compile(file.read_text(encoding="utf-8"), str(file), "exec")) - known
    assert not any(missing.values()), {name: names for name, names in missing.items() if names}


def test_make_lists_every_command():
    listed = re.findall(r"^make (\w+)", succeed("make", cwd=ROOT), re.MULTILINE)
    assert listed == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_make_knows_what_to_do(command):
    assert succeed("make", "--dry-run", command, cwd=ROOT)


FAKE_PYTHON = r"""#!/bin/sh
# Stands for Python and pip: writes down what is asked of it, makes a "virtual environment" of itself, fails when told to.
case "$*" in
    -c*) exit "$TOO_OLD" ;;
    "-m venv --clear "*) echo venv >> log; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
    "tools/install.py"*) exec python3 "$@" ;;
    "-m pip install "*) echo pip "$*" >> log; echo "Downloading torch-2.0-py3-none-any.whl (1.5 GB)"; exit "$PIP_FAILS" ;;
    "-m uv "*) echo uv "$*" >> log; exit "$UV_FAILS" ;;
esac
"""


@pytest.fixture
def bare(tmp_path):
    """Give a folder with what an installation needs, and a stand-in for Python."""
    (tmp_path / "tools").mkdir()
    for name in ("Makefile", "settings.ini", "setup.py", "constraints.txt", "tools/install.py"):
        shutil.copy2(ROOT / name, tmp_path / name)
    (tmp_path / "fake").write_text(FAKE_PYTHON)
    (tmp_path / "fake").chmod(0o755)
    return tmp_path


def install(folder, too_old=0, pip_fails=0, uv_fails=0, torch="cuda"):
    """Run `make install` with the stand-in; return its exit status and text, and what Python and pip were asked to do."""
    (folder / "log").write_text("")
    fails = {"TOO_OLD": str(too_old), "PIP_FAILS": str(pip_fails), "UV_FAILS": str(uv_fails)}
    done = run("make", "install", "PYTHON=./fake", f"TORCH={torch}", cwd=folder, **fails)
    return done, [line.split()[0] for line in (folder / "log").read_text().splitlines()]


def test_old_python_is_refused_with_the_way_out(bare):
    done, asked = install(bare, too_old=1)
    assert done.returncode != 0 and not asked and not (bare / ".venv").exists()
    assert f"Python {SETTINGS['min_python']} or later" in done.stdout and "PYTHON=python3.12" in done.stdout


def test_installation_happens_once_and_again_when_requirements_change(bare):
    assert install(bare)[1] == ["venv", "pip", "pip", "pip"]
    assert install(bare)[1] == []
    stamp = (bare / ".venv" / ".installed").stat().st_mtime
    for name in ("settings.ini", "setup.py", "constraints.txt"):
        os.utime(bare / name, (stamp + 10, stamp + 10))
        os.utime(bare / ".venv" / ".installed", (stamp, stamp))
        assert install(bare)[1] == ["pip", "pip", "pip"], name
        os.utime(bare / name, (stamp - 10, stamp - 10))


def test_interrupted_installation_starts_afresh(bare):
    done, asked = install(bare, pip_fails=1)
    assert done.returncode != 0 and asked == ["venv", "pip"] and "the same command starts afresh" in done.stdout
    assert install(bare)[1] == ["venv", "pip", "pip", "pip"]
    assert install(bare)[1] == []


def test_what_is_compiled_at_the_end_is_there_and_its_failure_is_said(capfd):
    tool = runpy.run_path(str(ROOT / "tools" / "compile_imports.py"))
    assert [name for name in tool["AROUND"] if importlib.util.find_spec(name) is None] == []
    tool["import_all"](["llmlab._modidx", "llmlab.no_such_module"])
    assert capfd.readouterr().err.strip().splitlines()[0].startswith("llmlab.no_such_module cannot be imported")


@pytest.mark.parametrize("uv_fails", [0, 1])
def test_without_a_gpu_the_build_without_cuda_comes_first(bare, uv_fails):
    done, asked = install(bare, torch="cpu", uv_fails=uv_fails)
    assert done.returncode == 0 and asked == ["venv", "pip", "pip", "uv", "pip", "pip"]
    assert "--torch-backend cpu torch==" in (bare / "log").read_text()
    assert ("out of reach" in done.stdout) == bool(uv_fails)
