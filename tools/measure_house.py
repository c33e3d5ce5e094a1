"""Measure the house: `python tools/measure_house.py [--before GIT_REV] [--by-folder] [--worst N [--folder NAME]]`.

Without arguments it measures what lies in the working tree; `--before` measures a revision too, and prints
before -> after -> target. `--by-folder` prints one line a folder, `--worst N` where the N worst places of each kind
are. tests/test_story.py uses the same functions.

What is counted:
- Code lines: lines of `llmlab/**/*.py` that are neither blank nor comments at the margin, docstrings among them;
  `_modidx.py` is left out.
- Expression nodes: every `ast.expr` below a module, for each code line. Ternaries: for 1,000 lines that are not blank.
- Circles: groups of modules that import one another, also from inside functions. Floors: the longest chain of
  folders (of modules, where the package is flat), a circle standing on one. Upward: against tests/floors.ini; without
  it, from within a circle to a later notebook.
- A shown cell is not exported and has committed output. A cell that should show something is one that is not
  exported, hidden or left out when notebooks run, and that prints or ends in an expression which is no test.
"""
import argparse
import ast
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "llmlab"
LINE_WIDTH = 120  # characters
SPINE = (  # what a sceptic must read to believe the claims
    "common.settings", "config.schema", "tokens.prompts", "tokens.tokenize", "tokens.truncation", "batching.forest",
    "batching.attention", "batching.steps", "batching.loss", "training.trainer", "training.checkpoints",
    "training.saving", "evaluation.scores", "runs.record",
)
EXPORTED = re.compile(r"^#\|\s*export", re.MULTILINE)
HIDDEN = re.compile(r"^#\|\s*hide", re.MULTILINE)
LEFT_OUT = re.compile(r"^#\|\s*(eval:\s*false|slow|gpu|exec_doc)", re.MULTILINE)  # exec_doc: run when the site is built
WHOLE_RUNS = ("train", "evaluate", "compare", "add_your_own")  # their results are records; tools/outputs.py skips them
SPEAKS = re.compile(r"\b(we|you|us|our|your|let's|i)\b", re.IGNORECASE)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def terms(tree: ast.AST, kind) -> list[ast.AST]:
    "List a tree's nodes of one kind."
    return [node for node in ast.walk(tree) if isinstance(node, kind)]


def is_all(node: ast.AST) -> bool:
    "Whether a statement sets `__all__`."
    return isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"


# The package

@dataclass(frozen=True)
class Module:
    "One file of the package."
    name: str  # dotted, without the package's own name: data.rows
    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def folder(self) -> str:
        return self.name.split(".")[0]

    @property
    def code_lines(self) -> int:
        return sum(bool(line.strip()) and not line.startswith("# ") for line in self.lines)

    @property
    def filled_lines(self) -> int:
        return sum(bool(line.strip()) for line in self.lines)

    @property
    def long_lines(self) -> list[int]:
        "Number the lines that are too wide; nbdev writes `__all__` itself, which is left out."
        names = next((node for node in self.tree.body if is_all(node)), None)
        generated = range(names.lineno, names.end_lineno + 1) if names else ()
        wide = [number for number, line in enumerate(self.lines, 1) if len(line) > LINE_WIDTH]
        return [number for number in wide if number not in generated]

    @property
    def expressions(self) -> int:
        return len(terms(self.tree, ast.expr))

    @property
    def ternaries(self) -> int:
        return len(terms(self.tree, ast.IfExp))

    @property
    def nested_ternaries(self) -> list[int]:
        return nested_ternaries(self.tree)

    @property
    def comprehensions(self) -> int:
        return len(terms(self.tree, COMPREHENSIONS))

    def dense_lines(self) -> list[tuple[int, int]]:
        "List (expression nodes, line number), the densest first."
        counts = Counter(node.lineno for node in terms(self.tree, ast.expr))
        return [(count, line) for line, count in counts.most_common()]

    def definitions(self) -> set[str]:
        "Name what the module defines at its margin."
        names = {node.name for node in self.tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        for node in self.tree.body:
            targets = getattr(node, "targets", [getattr(node, "target", None)])  # of one value, or of several
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                names |= {name.id for target in targets for name in terms(target, ast.Name)}
        return names


def nested_ternaries(tree: ast.AST) -> list[int]:
    "List the lines of ternaries that hold another one as a branch or condition."
    return [node.lineno for node in terms(tree, ast.IfExp)
            if any(isinstance(branch, ast.IfExp) for branch in (node.body, node.test, node.orelse))]


def read_modules(root: Path) -> list[Module]:
    "Read the package below `root`."
    paths = [path for path in sorted((root / PACKAGE).rglob("*.py")) if path.name != "_modidx.py"]
    return [Module(module_name(path.relative_to(root / PACKAGE)), path) for path in paths]


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# Imports

def imports(modules: list[Module]) -> dict[str, set[str]]:
    "Map each module on those it imports, wherever the import stands; packages' own `__init__` files are left out."
    names = {module.name for module in modules if module.path.name != "__init__.py"}
    return {module.name: imported(module, names) - {module.name} for module in modules if module.name in names}


def imported(module: Module, names: set[str]) -> set[str]:
    "Name the modules of the package that one of them imports."
    candidates = set()
    for node in terms(module.tree, ast.Import):
        candidates |= {alias.name.removeprefix(f"{PACKAGE}.") for alias in node.names}
    for node in terms(module.tree, ast.ImportFrom):
        base = absolute(node, module.name)
        candidates |= {base, *(f"{base}.{alias.name}".strip(".") for alias in node.names)}
    return candidates & names


def absolute(node: ast.ImportFrom, name: str) -> str:
    "Say which module `from X import` means, without the package's own name."
    target = node.module or ""
    if not node.level:
        return target.removeprefix(PACKAGE).lstrip(".") if target.split(".")[0] == PACKAGE else "?"
    return ".".join([*name.split(".")[:-node.level], target]).strip(".")


def by_folder(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    "Fold a graph of modules to one of folders (a flat package stays as it is)."
    folders = {name.split(".")[0]: set() for name in graph}
    for name, targets in graph.items():
        folders[name.split(".")[0]] |= {target.split(".")[0] for target in targets} - {name.split(".")[0]}
    return folders


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    "Name all that can be reached from `start` by at least one arrow."
    seen, waiting = set(), list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(graph[name])
    return seen


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    "List the groups of modules that import one another, however far round."
    beyond = {name: reachable(graph, name) for name in graph}
    in_circles = [name for name in graph if name in beyond[name]]
    return {frozenset(other for other in beyond[name] if name in beyond[other]) for name in in_circles}


def floors(graph: dict[str, set[str]]) -> int:
    "Count the floors of the longest chain of imports; modules in a circle stand on one floor."
    rings = {name: frozenset([name]) for name in graph} | {name: ring for ring in circles(graph) for name in ring}
    heights = {}

    def height(ring: frozenset) -> int:
        if ring not in heights:
            below = {rings[target] for name in ring for target in graph[name]} - {ring}
            heights[ring] = 1 + max((height(lower) for lower in below), default=0)
        return heights[ring]

    return max(height(ring) for ring in rings.values())


def upward(root: Path, modules: list[Module]) -> list[tuple[str, str]]:
    "List imports that run up: by tests/floors.ini; in a flat package those of a circle that lead to a later notebook."
    graph = by_folder(imports(modules))
    arrows = [(name, target) for name in sorted(graph) for target in sorted(graph[name])]
    order = stated_floors(root)
    if not order:
        order, rings = notebook_order(root), circles(graph)
        arrows = [arrow for arrow in arrows if any(ring.issuperset(arrow) for ring in rings)]
    known = [(name, target) for name, target in arrows if name in order and target in order]
    return [(name, target) for name, target in known if order[target] >= order[name]]


def stated_floors(root: Path) -> dict[str, int]:
    "Read each folder's floor from the import contract, the lowest being 1."
    contract = root / "tests" / "floors.ini"
    if not contract.exists():
        return {}
    layers = re.search(r"^layers =\n((?:[ ]+.*\n)+)", contract.read_text(encoding="utf-8"), re.MULTILINE)[1].split("\n")
    floors_up = [layer.split("|") for layer in reversed(layers) if layer.strip()]
    numbered = [(folder.strip(), floor) for floor, folders in enumerate(floors_up, 1) for folder in folders]
    return {folder.removeprefix(f"{PACKAGE}."): floor for folder, floor in numbered}


def notebook_order(root: Path) -> dict[str, int]:
    "Number the modules of a flat package as their notebooks are."
    return {notebook.module: number for number, notebook in enumerate(read_notebooks(root), 1) if notebook.module}


# The notebooks

@dataclass
class Cell:
    "One cell of a notebook."
    kind: str  # code or markdown
    source: str
    outputs: list = field(default_factory=list)

    @cached_property
    def tree(self) -> ast.Module:
        try:
            return ast.parse(self.source)
        except SyntaxError:  # a shell command or a magic
            return ast.parse("")

    @property
    def statements(self) -> list[ast.stmt]:
        return [node for node in self.tree.body if not isinstance(node, (ast.Import, ast.ImportFrom))]

    @property
    def exported(self) -> bool:
        return self.kind == "code" and bool(EXPORTED.search(self.source)) and bool(self.statements)

    @property
    def defines(self) -> bool:
        "Whether the cell exports a function or a class, with or without helpers of its own."
        return self.exported and any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in self.tree.body)

    @property
    def example(self) -> bool:
        "Whether the cell shows or tests something."
        unexported = self.kind == "code" and not EXPORTED.search(self.source) and "default_exp" not in self.source
        return unexported and (bool(self.statements) or bool(LEFT_OUT.search(self.source)))

    @property
    def shown(self) -> bool:
        return self.example and bool(self.outputs)

    @property
    def should_show(self) -> bool:
        "Whether the cell's point is what it shows."
        if not self.example or HIDDEN.search(self.source) or LEFT_OUT.search(self.source) or not self.statements:
            return False
        last = self.statements[-1]
        if isinstance(last, ast.Expr) and not is_silent(last.value):
            return not self.source.rstrip().endswith(";")
        return any(called(node) == "print" for statement in self.statements for node in own_calls(statement))


def own_calls(statement: ast.stmt) -> list[ast.Call]:
    "List the calls of a statement, less those in functions that it only defines."
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return []
    return terms(statement, ast.Call)


def called(node: ast.AST) -> str:
    "Name what a call calls, or the empty string."
    function = node.func if isinstance(node, ast.Call) else None
    return getattr(function, "id", getattr(function, "attr", ""))


SILENT = {  # calls that end a cell and return nothing
    "print", "mkdir", "write_text", "write_bytes", "cleanup", "close", "update", "append", "clear", "unlink", "rmtree",
    "savefig", "setattr", "settle", "note", "start", "stop", "set", "extend", "add",
}


def is_silent(node: ast.expr) -> bool:
    "Whether an expression at a cell's end shows nothing by itself: a test, a text, or a call made for its effect."
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) or node.value is Ellipsis
    return called(node).startswith(("test_", "assert", "nbdev_", "show_doc")) or called(node) in SILENT


@dataclass
class Notebook:
    "One notebook of the site."
    path: Path
    cells: list[Cell]

    @property
    def module(self) -> str | None:
        for cell in self.code_cells:
            if match := re.search(r"^#\|\s*default_exp\s+(\S+)", cell.source, re.MULTILINE):
                return match[1]
        return None

    @property
    def folder(self) -> str:
        return (self.module or "other").split(".")[0]

    @property
    def code_cells(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.kind == "code"]

    def longest_run(self, breaks: str = "shown") -> tuple[int, int]:
        "Count the most exported cells in a row without a cell that is `shown` (or an `example`); say where they end."
        longest, run = (0, 0), 0
        for number, cell in enumerate(self.cells):
            run = run + cell.exported
            if getattr(cell, breaks):
                run = 0
            longest = max(longest, (run, number))
        return longest

    def missing(self) -> list[int]:
        "Number the cells that should show something and show nothing."
        if self.path.stem in WHOLE_RUNS:
            return []
        return [number for number, cell in enumerate(self.cells) if cell.should_show and not cell.outputs]

    def long_lines(self) -> list[tuple[int, str]]:
        "List code lines that are too wide, with their cell's number."
        return [(number, line) for number, cell in enumerate(self.cells) if cell.kind == "code"
                for line in cell.source.splitlines() if len(line) > LINE_WIDTH]


def read_notebooks(root: Path) -> list[Notebook]:
    "Read all notebooks below nbs/."
    paths = [path for path in sorted((root / "nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in path.parts]
    return [read_notebook(path) for path in paths]


def read_notebook(path: Path) -> Notebook:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return Notebook(path, [Cell(cell["cell_type"], "".join(cell["source"]), cell.get("outputs", [])) for cell in cells])


def prose(notebooks: list[Notebook]) -> list[str]:
    "Split the notebooks' markdown into sentences, without code, tables, links' targets and headings."
    sentences = []
    for cell in (cell for notebook in notebooks for cell in notebook.cells if cell.kind == "markdown"):
        text = re.sub(r"```[\s\S]*?```|\$\$[\s\S]*?\$\$|^[ >]*(#|\||!\[).*$", "", cell.source, flags=re.MULTILINE)
        text = re.sub(r"\]\([^)]*\)", "]", text)
        pieces = re.split(r"(?<=[.!?:])\s+|\n\s*\n|\n(?:[-*>]|\d+\.) ", text)
        sentences += [piece for piece in pieces if len(piece.split()) > 2]
    return sentences


def train_modules(root: Path, homes: dict[str, str] | None = None) -> list[str]:
    """Follow train.ipynb's use of the package, name by name: the modules it imports from, one entry a stay there.

    With `homes`, a name's folder by where it is defined, whatever it is imported from.
    """
    known, stays = {}, []
    for cell in read_notebook(root / "nbs" / "train.ipynb").code_cells:
        for node in terms(cell.tree, ast.ImportFrom):
            for alias in node.names:
                if (node.module or "").split(".")[0] == PACKAGE:
                    known[alias.asname or alias.name] = (homes or {}).get(alias.name, node.module)
        names = [node for node in terms(cell.tree, ast.Name) if node.id in known and node.id != "call_with"]
        for name in sorted(names, key=lambda node: (node.lineno, node.col_offset)):
            if not stays or stays[-1] != known[name.id]:
                stays.append(known[name.id])
    return stays


# Settings stated twice

RESTATED = """
import importlib, inspect, json, logging, pkgutil, sys
logging.disable(logging.CRITICAL)
import llmlab
try:
    from llmlab.config.schema import ExperimentConfig
except ImportError:
    from llmlab.config import ExperimentConfig
defaults = {name: field.default for name, field in ExperimentConfig.model_fields.items()}

def functions(module):
    for name, value in vars(module).items():
        if getattr(value, '__module__', None) != module.__name__:
            continue
        if inspect.isfunction(value):
            yield name, value
        if inspect.isclass(value) and value is not ExperimentConfig:
            yield from ((f'{name}.{key}', method) for key, method in vars(value).items() if inspect.isfunction(method))

restated = []
for info in pkgutil.walk_packages(llmlab.__path__, 'llmlab.'):
    if 'papermill_engine' in info.name or info.name.endswith('_modidx'):
        continue
    module = importlib.import_module(info.name)
    for name, function in functions(module):
        for parameter in inspect.signature(function).parameters.values():
            stated, default = defaults.get(parameter.name, inspect), parameter.default
            if type(default) is type(stated) and default == stated:
                restated.append(f'{info.name}.{name}: {parameter.name}={default!r}')
print(json.dumps(restated))
"""


def restated_defaults(root: Path) -> list[str]:
    "List parameters that are named like a setting and repeat its default; a process of its own imports the package."
    environment = os.environ | {"PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", RESTATED]
    done = subprocess.run(command, cwd=root, env=environment, text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


# All together

@dataclass
class House:
    "Some modules of the package and the notebooks they come from."
    modules: list[Module]
    notebooks: list[Notebook]  # that export

    @property
    def cells(self) -> list[Cell]:
        return [cell for notebook in self.notebooks for cell in notebook.cells]

    @property
    def code_lines(self) -> int:
        return sum(module.code_lines for module in self.modules)

    @property
    def nodes_a_line(self) -> float:
        return round(sum(module.expressions for module in self.modules) / max(1, self.code_lines), 2)

    def per_thousand(self, name: str) -> float:
        "Count something of modules for 1,000 lines that are not blank."
        count, lines = (sum(getattr(module, each) for module in self.modules) for each in (name, "filled_lines"))
        return round(1000 * count / max(1, lines), 1)

    @property
    def nested_ternaries(self) -> int:
        return sum(len(module.nested_ternaries) for module in self.modules)

    @property
    def long_lines(self) -> int:
        return sum(len(module.long_lines) for module in self.modules)

    def longest_run(self, breaks: str = "shown") -> int:
        return max(notebook.longest_run(breaks)[0] for notebook in self.notebooks)

    @property
    def examples_a_definition(self) -> float:
        return round(sum(cell.example for cell in self.cells) / max(1, sum(cell.defines for cell in self.cells)), 2)

    @property
    def markdown_a_code_cell(self) -> float:
        markdown = sum(cell.kind == "markdown" for cell in self.cells)
        return round(markdown / (len(self.cells) - markdown), 2)

    @property
    def speaks(self) -> float:
        sentences = prose(self.notebooks)
        return round(100 * sum(len(SPEAKS.findall(text)) for text in sentences) / max(1, len(sentences)), 1)


def read_house(root: Path, folder: str | None = None) -> House:
    "Read the package and its chapters, or one folder of them."
    chapters = [notebook for notebook in read_notebooks(root) if notebook.module]
    if folder is None:
        return House(read_modules(root), chapters)
    return House([module for module in read_modules(root) if module.folder == folder],
                 [notebook for notebook in chapters if notebook.folder == folder])


def measure(root: Path, defaults: bool = True) -> dict[str, float | int | str]:
    "Take every figure of the working tree below `root`."
    house, notebooks = read_house(root), read_notebooks(root)
    graph = imports(house.modules)
    spine = [module.code_lines for module in house.modules if module.name in SPINE]
    written = [module for module in house.modules if module.path.name != "__init__.py"]
    homes = {name: module.folder for module in written for name in module.definitions()}
    return {
        "import circles": len(circles(graph)),
        "imports that run upward": len(upward(root, house.modules)),
        "package floors": floors(by_folder(graph)),
        "expression nodes a code line": house.nodes_a_line,
        "ternaries per 1,000 lines": house.per_thousand("ternaries"),
        "nested ternaries": house.nested_ternaries,
        "comprehensions per 1,000 lines": house.per_thousand("comprehensions"),
        "lines over 120": house.long_lines,
        "lines over 120 in notebooks' code": sum(len(notebook.long_lines()) for notebook in notebooks),
        "restated defaults": len(restated_defaults(root)) if defaults else "-",
        "longest run of exports without example or test": house.longest_run("example"),
        "longest run of exports without a shown cell": house.longest_run(),
        "example or test cells an exported definition": house.examples_a_definition,
        "shown results missing": sum(len(notebook.missing()) for notebook in notebooks),
        "markdown : code cells": house.markdown_a_code_cell,
        "'we/you' per 100 sentences": house.speaks,
        "longest notebook, cells": max(len(notebook.cells) for notebook in notebooks),
        "code lines": house.code_lines,
        "code lines of the spine": sum(spine) if spine else "-",
        "modules that train.ipynb goes through": len(train_modules(root)),
        "folders that it goes through, by where names are defined": len(train_modules(root, homes)),
    }


TARGETS = {
    "import circles": "0",
    "imports that run upward": "0",
    "package floors": "8",
    "expression nodes a code line": "<= 4.8",
    "ternaries per 1,000 lines": "<= 28",
    "nested ternaries": "0",
    "lines over 120": "0",
    "lines over 120 in notebooks' code": "0",
    "restated defaults": "0",
    "longest run of exports without example or test": "3",
    "longest run of exports without a shown cell": "3",
    "example or test cells an exported definition": ">= 1.2",
    "shown results missing": "0",
    "markdown : code cells": ".42 to .55",
    "'we/you' per 100 sentences": ">= 25",
    "longest notebook, cells": "60",
    "code lines": "<= 7500",
    "code lines of the spine": "<= 2500",
    "modules that train.ipynb goes through": "9",
}


def checkout(revision: str, folder: str) -> Path:
    "Unpack a revision into `folder`."
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return Path(folder)


def markdown_table(rows: list[list]) -> str:
    "Write rows, of which the first is the head, in Markdown."
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(str(value) for value in line) + " |" for line in lines)


def comparison(after: dict, before: dict | None) -> str:
    "Write the figures as a Markdown table."
    if before is None:
        rows = [[name, after[name], TARGETS.get(name, "")] for name in after]
        return markdown_table([["figure", "now", "target"], *rows])
    rows = [[name, before[name], after[name], TARGETS.get(name, "")] for name in after]
    return markdown_table([["figure", "before", "after", "target"], *rows])


def folder_table(root: Path) -> str:
    "Write a line for each folder, with what its people can mend."
    restated = Counter(entry.split(":")[0].split(".")[1] for entry in restated_defaults(root))
    rows = [["folder", "code", "nodes", "ternaries", "nested", ">120", "notebooks >120", "defaults", "run", "examples",
             "missing", "md:code", "we/you", "cells"]]
    for folder in sorted({notebook.folder for notebook in read_house(root).notebooks}):
        house = read_house(root, folder)
        wide = sum(len(notebook.long_lines()) for notebook in house.notebooks)
        missing = sum(len(notebook.missing()) for notebook in house.notebooks)
        rows.append([
            folder, house.code_lines, house.nodes_a_line, house.per_thousand("ternaries"), house.nested_ternaries,
            house.long_lines, wide, restated[folder], house.longest_run(), house.examples_a_definition, missing,
            house.markdown_a_code_cell, house.speaks, max(len(notebook.cells) for notebook in house.notebooks),
        ])
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(str(value).ljust(width) for value, width in zip(row, widths)) for row in rows)


def worst(root: Path, count: int, folder: str | None = None) -> str:
    "Say where the worst places are, in the whole house or in one folder."
    house = read_house(root, folder)
    places = {"nested ternaries": [], "lines over 120": [], "code lines too wide in notebooks": [],
              "runs of exports without a shown cell": [], "cells that should show something": []}
    dense, sizes = [], []
    for module in house.modules:
        for nodes, line in module.dense_lines()[:count]:
            dense.append((nodes, f"{module.name}:{line}  {module.lines[line - 1].strip()[:100]}"))
        places["nested ternaries"] += [f"{module.name}:{line}" for line in module.nested_ternaries]
        places["lines over 120"] += [f"{module.name}:{line}" for line in module.long_lines]
    for notebook in house.notebooks if folder else read_notebooks(root):
        path = notebook.path.relative_to(root)
        sizes.append((len(notebook.cells), path))
        wide = [f"{path} [{number}] {line.strip()[:90]}" for number, line in notebook.long_lines()]
        places["code lines too wide in notebooks"] += wide
        run, number = notebook.longest_run()
        if run > 3:
            places["runs of exports without a shown cell"].append(f"{run:3} {path} up to [{number}]")
        last_lines = [(number, notebook.cells[number].source.splitlines()[-1][:90]) for number in notebook.missing()]
        places["cells that should show something"] += [f"{path} [{number}] {line}" for number, line in last_lines]
    inside = f"{PACKAGE}.{folder}." if folder else PACKAGE
    places["restated defaults"] = [entry for entry in restated_defaults(root) if entry.startswith(inside)]
    places["densest lines, by expression nodes"] = [f"{nodes:4} {line}" for nodes, line in sorted(dense, reverse=True)]
    places["longest notebooks, in cells"] = [f"{size:4} {path}" for size, path in sorted(sizes, reverse=True)]
    groups = [[f"{name} ({len(lines)})", *(f"  {line}" for line in lines[:count])] for name, lines in places.items()]
    return "\n\n".join("\n".join(group) for group in groups)


def main(words: list[str]) -> None:
    "Print what is asked for."
    parser = argparse.ArgumentParser(description="Measure the house, before and after.")
    parser.add_argument("--before", metavar="GIT_REV", help="a revision to compare with")
    parser.add_argument("--by-folder", action="store_true", help="one line for each folder")
    parser.add_argument("--worst", type=int, metavar="N", help="where the N worst places of each kind are")
    parser.add_argument("--folder", help="only in this folder of the package (with --worst)")
    asked = parser.parse_args(words)
    if asked.by_folder:
        print(folder_table(ROOT))
    if asked.worst:
        print(worst(ROOT, asked.worst, asked.folder))
    if asked.by_folder or asked.worst:
        return
    before = None
    if asked.before:
        with tempfile.TemporaryDirectory() as folder:
            before = measure(checkout(asked.before, folder))
    print(comparison(measure(ROOT), before))


if __name__ == "__main__":
    main(sys.argv[1:])
