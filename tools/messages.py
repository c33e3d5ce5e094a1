"""Gather every message a user can meet, and keep llmlab/bundled/messages.ko.po in step; --check only looks."""
import argparse
import ast
import inspect
import json
import re
import sys
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po, write_po

from llmlab.common.language import HOLE, SAID

ROOT = Path(__file__).resolve().parent.parent
CATALOGUE = ROOT / "llmlab" / "bundled" / "messages.ko.po"
CALLS = {
    "LabError", "NoText", "RunFailed", "BadParameters", "warn", "say", "echo", "print", "UsageError", "Finding", "Table",
    "translate", "tell", "drop", "cut", "note", "Check", "_leak", "_check_cuts",
}
TABLES = {  # functions that make a table or a report: all words in them are shown
    "_order_problem", "_read_message", "progress_text", "time_left", "_read_pair", "read_conversation",
    "_card_rows", "_cost", "_memory_rows", "_model_rows", "_paired_row", "_phases", "_precision_rows", "_step_rows",
    "_work_rows", "check_caches", "check_device", "check_disk", "check_hub", "check_mlflow", "check_notebooks",
    "check_report", "check_tokens", "check_training", "check_versions", "check_whole", "comparison_tables",
    "differences", "finding_line", "lines", "list_runs", "make_preview", "measure_table", "model_notes",
    "paired_table", "plan_rows", "preset_table", "presets", "preview_lines", "preview_tables", "score_table",
    "table_of", "text_histogram", "verify_lines", "_short", "format_epilog", "_caches", "all_notes", "chat_command",
    "store_splits",
}
KEYWORDS = {"help", "short_help", "epilog", "reason"}
HELD = [  # what a plan counts under a name that it makes as it goes, and its phases of one word
    "activations", "logits", "framework", "Memory at its peak: training", "Memory at its peak: evaluation",
    "peak of training", "peak of evaluation", "rows {0}", "of this notebook", "Train", "More",
    "line {0}", "line {0} ({1})", "{0}, line {1}", "{0}, line {1} ({2})", "training: {0}", "training: {0}, {1} alike",
    "held out: {0}", "{0} ({1}): {2} GiB", "at least {0}", "not valid JSON ({0}, column {1}).",
    "not valid JSON ({0}, line {1}, column {2}).",
    "serious", "look", "note", "ok", "FAILS", "disk", "cache", "hub", "DIFFERENT", "same",
    *SAID,
]
STAGES = ("train.ipynb", "evaluate.ipynb", "compare.ipynb")  # whose headings are what `llmlab train` says it is at
VALUES = {"_TOKEN_FACTS", "_TOKEN_NOTES", "_NEEDS", "KNOBS_HEADING", "COMMANDS", "CHECKS"}  # whose values are shown
NAMES = {"GROUPS", "EXAMPLES", "SAVE_MEMORY", "_FAULTS"}  # tables of text that is shown
BARE = re.compile(HOLE.pattern + r"[`'\"]*(은|는|이|가|을|를|과|와|으로|로|라는|이라는)(?=[\s,.])")
FROM_ELSEWHERE = [  # written by click, and headings that have no template of their own
    "Options", "Usage:", "Show this message and exit.", "Show the version and exit.", "[default: {0}]", "[required]",
    "Try {0} for help.", "No such command {0}.", "No such option {0}.", "Did you mean {0}?", "Possible options: {0}",
    "Missing option {0}.", "Missing argument {0}.", "Missing command.", "Option {0} requires an argument.",
    "Option {0} requires {1} arguments.", "Option {0} does not take a value.", "Got unexpected extra argument ({0})",
    "Got unexpected extra arguments ({0})", "Invalid value for {0}: {1}", "{0} is not a valid {1}.",
    "{0} is not one of {1}.", "{0} is not in the range {1}.",
    "input should be {0}", "input should be a valid {0}", "input should be a valid {0}, unable to parse string as {1}",
    "input should be a valid {0}, got a number with a fractional part", "input should be a finite number",
    "input should be a valid boolean, unable to interpret input", "input should be less than {0}",
    "input should be greater than {0}", "input should be less than or equal to {0}",
    "input should be greater than or equal to {0}",
]


def template(node) -> str | None:
    "Write a string, an f-string or a sum of them with numbered holes."
    parts = flat(node)
    if parts is None:
        return None
    count = iter(range(99))
    return "".join(part if isinstance(part, str) else f"{{{next(count)}}}" for part in parts)


def flat(node):
    "List a string's constant parts, and its holes as nodes."
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return [part.value if isinstance(part, ast.Constant) else part for part in node.values]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = flat(node.left), flat(node.right)
        if left is not None or right is not None:
            return (left or [node.left]) + (right or [node.right])
    return None


def sentences(node) -> list[str]:
    "List the templates in an expression: its own, those it chooses from, and those that may fill its holes."
    if isinstance(node, ast.IfExp):
        return sentences(node.body) + sentences(node.orelse)
    if isinstance(node, (ast.Tuple, ast.List)):
        return [text for part in node.elts for text in sentences(part)]
    if isinstance(node, ast.Dict):
        return [text for part in (*node.keys, *node.values) if part for text in sentences(part)]
    own = template(node)
    if own is None:
        return []
    inside = [part for part in flat(node) if not isinstance(part, str)]
    chosen = [inner.value if isinstance(inner, ast.FormattedValue) else inner for inner in inside]
    return [own, *(text for part in chosen if isinstance(part, ast.IfExp) for text in sentences(part))]


def words_of(function) -> list[str]:
    "List what a function puts into a table: elements of lists, and values that it names."
    found = []
    for node in ast.walk(function):
        if isinstance(node, (ast.List, ast.Tuple)):
            found += [text for part in node.elts for text in sentences(part)]
        elif isinstance(node, (ast.Assign, ast.Return)) and node.value is not None:
            found += sentences(node.value)
        elif isinstance(node, ast.Dict):
            found += [text for part in node.keys if part for text in sentences(part)]
        elif isinstance(node, (ast.ListComp, ast.GeneratorExp)):
            found += sentences(node.elt)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "append":
            found += [text for part in node.args for text in sentences(part)]
    has_words, is_name = re.compile("[A-Za-z]{2,}"), re.compile(r"[\w.]*_")
    return [text for text in found if has_words.search(HOLE.sub("", text)) and not is_name.match(text)]


def is_command(function) -> bool:
    "Say whether a function is a command of click's."
    return any(re.search(r"\.(command|group)\b", ast.unparse(mark)) for mark in function.decorator_list)


def said_later(node):
    "Give the value of what yields, returns or lists a message, for others to say."
    if isinstance(node, (ast.Yield, ast.Return, ast.AugAssign)):
        return node.value
    return node.elt if isinstance(node, (ast.ListComp, ast.GeneratorExp)) else None


def of_module(tree) -> list[str]:
    "List the messages of a module."
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            given = node.args if name in CALLS else node.args[1:2] if name == "Need" else []
            if name == "append" and ast.unparse(node.func).endswith("notes.append"):
                given = node.args
            given = [*given, *(word.value for word in node.keywords if word.arg in KEYWORDS)]
            found += [text for part in given for text in sentences(part)]
        elif said_later(node) is not None:
            found += [text for text in sentences(said_later(node)) if re.search(r"\w \S.*[.?]$", text, re.DOTALL)]
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in NAMES:
            value = node.value
            found += [key.value for key in value.keys] if node.targets[0].id == "GROUPS" else sentences(value)
        elif isinstance(node, ast.Subscript) and getattr(node.value, "attr", "") == "remarks":
            found += sentences(node.slice)
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("reason", "note"):
            found += sentences(node.value)
        elif isinstance(node, ast.FunctionDef) and is_command(node):
            found += (ast.get_docstring(node) or "").split("\n\n")
    return found


def of_tables(tree) -> list[str]:
    "List the words of a module's tables, single ones too."
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in TABLES:
            found += words_of(node)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Table":
            found += [text for part in node.args for text in sentences(part) if re.search("[A-Za-z]{2,}", text)]
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in VALUES:
            values = node.value.values if isinstance(node.value, ast.Dict) else [node.value]
            found += [text for value in values for text in sentences(value)]
    return found


def is_message(text: str) -> bool:
    "Say whether a template has words to translate."
    return "|os error" not in text and re.search(r"[A-Za-z]{2,} \S|^[A-Z][a-z]+:", HOLE.sub("", text)) is not None


def messages() -> dict[str, str]:
    "List every message with the module it comes from."
    found = {text: "click" for text in FROM_ELSEWHERE} | {text: "llmlab/experiment/meter.py" for text in HELD}
    for name in STAGES:
        for cell in json.loads((ROOT / "nbs" / name).read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "markdown":
                found |= {heading: f"nbs/{name}" for heading in re.findall("(?m)^## (.+)$", "".join(cell["source"]))}
    for path in sorted((ROOT / "llmlab").rglob("*.py")):
        if path.name != "_modidx.py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for text in of_tables(tree):
                found.setdefault(text, path.relative_to(ROOT).as_posix())
            for text in of_module(tree):
                for part in inspect.cleandoc(text).split("\n\n"):
                    part = " ".join(part.split()) if "\b" not in part else part
                    if is_message(part):
                        found.setdefault(part.strip(), path.relative_to(ROOT).as_posix())
    return found


def problems(found: dict[str, str], known: Catalog) -> list[str]:
    "Say what is missing in the catalogue, stale, or has other holes."
    said = {message.id: message.string for message in known if message.id}
    faults = [f"no Korean: {text} ({place})" for text, place in found.items() if not said.get(text)]
    faults += [f"stale: {text}" for text in said if text not in found]
    for text, korean in said.items():
        if korean and not set(HOLE.findall(korean)) == set(HOLE.findall(text)):
            faults.append(f"other holes: {text}")
        if BARE.search(korean or ""):
            faults.append(f"a particle of one form on a hole (write both, as 은(는)): {text}")
    return faults


def main() -> int:
    "Write the catalogue anew, keeping what is translated; with --check, list what is wrong with it."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where something is missing")
    arguments = parser.parse_args()
    found = messages()
    known = Catalog(locale="ko")
    if CATALOGUE.exists():
        with open(CATALOGUE, "rb") as file:
            known = read_po(file, locale="ko")
    if not arguments.check:
        fresh = Catalog(locale="ko", project="llmlab", fuzzy=False)
        for text, place in found.items():
            old = known.get(text)
            fresh.add(text, old.string if old else "", locations=[(place, None)])
        with open(CATALOGUE, "wb") as file:
            write_po(file, fresh, width=0, omit_header=True)
        known = fresh
    faults = problems(found, known)
    print("\n".join([*faults, f"{len(found)} messages, {len(faults)} faults"]))
    return int(bool(faults) and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
