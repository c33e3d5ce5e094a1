"""The house as a story: results are shown, code is plain, floors hold, and nothing grows beyond its limit."""
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
from measure_house import (  # noqa: E402
    LINE_WIDTH, SPINE, WHOLE_RUNS, circles, imports, measure, nested_ternaries, read_modules, read_notebooks,
    restated_defaults, train_modules, upward,
)

MAX_CELLS = 60  # of a notebook
MAX_EXPORTS_UNSHOWN = 3  # exported cells in a row without a cell that shows something
MAX_CODE_LINES = 16_600  # of the package; raised only for what people can do that they could not before
MAX_SPINE_LINES = 2_530  # of the modules that a sceptic must read to believe the claims
MAX_NODES_A_LINE = 4.8  # expression nodes for each code line
MAX_TERNARIES = 28  # for 1,000 lines that are not blank
MAX_WIDE_SCRIPT_LINES = 480  # of tests and tools together; of the package and the notebooks none
MAX_TRAIN_MODULES = 9  # that train.ipynb goes through, one after another

NOTEBOOKS = read_notebooks(ROOT)
CHAPTERS = [notebook for notebook in NOTEBOOKS if notebook.module]
MODULES = read_modules(ROOT)


def named(notebook):
    return str(notebook.path.relative_to(ROOT / "nbs"))


@pytest.fixture(scope="module")
def figures():
    return measure(ROOT, defaults=False)


# Results are shown

@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=named)
def test_cells_that_should_show_something_do(notebook):
    silent = [(number, notebook.cells[number].source) for number in notebook.missing()]
    assert not silent, "run `python tools/outputs.py NOTEBOOK`, or end the cell with a semicolon"


@pytest.mark.parametrize("notebook", CHAPTERS, ids=named)
def test_few_definitions_follow_one_another_without_a_result(notebook):
    run, number = notebook.longest_run()
    assert run <= MAX_EXPORTS_UNSHOWN, f"{run} exported cells without a shown one, up to cell {number}"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=named)
def test_notebooks_are_short(notebook):
    assert len(notebook.cells) <= MAX_CELLS


@pytest.mark.parametrize("notebook", CHAPTERS, ids=named)
def test_shown_results_are_of_no_machine(notebook):
    for number, cell in enumerate(notebook.cells):
        shown = str(cell.outputs)
        local = [text for text in (" at 0x", "/tmp/", str(ROOT)) if text in shown]
        assert not local, f"cell {number} shows {local}"


# Plain code

@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=named)
def test_code_lines_are_narrow(notebook):
    assert not notebook.long_lines(), f"more than {LINE_WIDTH} characters"


def test_scripts_grow_no_wider():
    paths = [*ROOT.glob("tests/*.py"), *ROOT.glob("tools/**/*.py")]
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    assert sum(len(line) > LINE_WIDTH for line in lines) <= MAX_WIDE_SCRIPT_LINES


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=named)
def test_no_ternary_holds_another(notebook):
    nested = [(number, line) for number, cell in enumerate(notebook.code_cells) for line in nested_ternaries(cell.tree)]
    assert not nested, "(code cell, line) of a ternary in a ternary"


def test_lines_are_not_dense(figures):
    assert figures["expression nodes a code line"] <= MAX_NODES_A_LINE
    assert figures["ternaries per 1,000 lines"] <= MAX_TERNARIES


# Nothing is written twice

OWN_MEANING = {  # names that are settings elsewhere, and here say something of their own
    "llmlab.data.sources.DatasetPreset.__init__: task='auto'",
    "llmlab.models.presets.ModelPreset.__init__: target_modules=None",
    "llmlab.training.trainer.LabTrainer.evaluate: eval_dataset=None",  # transformers' own signature
}


def test_no_default_is_stated_twice():
    assert set(restated_defaults(ROOT)) <= OWN_MEANING


# The house

def test_imports_keep_to_their_floors():
    from importlinter.cli import lint_imports

    assert lint_imports(config_filename=str(ROOT / "tests" / "floors.ini"), no_cache=True) == 0


def test_imports_inside_functions_keep_to_them_too():
    assert not upward(ROOT, MODULES)
    assert not circles(imports(MODULES))


def test_package_keeps_to_its_size(figures):
    assert figures["code lines"] <= MAX_CODE_LINES


def test_spine_can_be_read_in_an_evening(figures):
    assert {module.name for module in MODULES} >= set(SPINE)
    assert figures["code lines of the spine"] <= MAX_SPINE_LINES


def test_train_reads_as_sentences():
    assert len(train_modules(ROOT)) <= MAX_TRAIN_MODULES


def test_whole_runs_are_left_out_of_examples_alike():
    from outputs import WHOLE_RUNS as also

    assert WHOLE_RUNS == also
