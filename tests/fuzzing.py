"""What the fuzzer draws, and what must hold of each: an account that adds up, or one message that says what is wrong.

A subject is a strategy of hypothesis and a check. tests/test_fuzz.py draws a few of each subject; tools/fuzz.py draws for as long as it is told.
"""
import csv
import io
import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from hypothesis import strategies as some

from llmlab import ExperimentConfig, LabError, make_config
from llmlab.config.arguments import read_settings
from llmlab.config.load import config_from_yaml, config_to_yaml
from llmlab.data.load import load_data
from llmlab.experiment.extensions import REGISTRIES, load_extensions
from llmlab.tokens.prompts import find_prompt, prompt_text, render

LONGEST_MESSAGE = 1500  # characters


@dataclass(frozen=True)
class Subject:
    "Something that takes what people write."
    inputs: some.SearchStrategy
    check: Callable[[object, Path], None]  # an input and a folder for its files; raises where something does not hold


def check_message(error: LabError):
    "A message says something, at no great length, and cannot speak to a terminal."
    message = str(error)
    assert message.strip(), "an empty message"
    assert len(message) <= LONGEST_MESSAGE, message
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", message), repr(message)
    assert "Traceback" not in message, message


# Files of rows

HANGUL = some.text(some.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3), max_size=8)
PIECES = HANGUL.map(lambda text: unicodedata.normalize("NFD", text))
ODD = some.sampled_from(["", " ", "\n", "\u2028", "\x85", "\ufeff", "\0", "\x1b[2J", "NaN", "null", "[", "{answer}", "{{", "%s", "\ud800",
                         "    return x", "답\r\n", "'", '"', "\\", "\u200b", "1e999", "-0", "</s>", "x" * 40_000, "[[\"가\", \"나\"]]"])
TEXTS = some.one_of(HANGUL, PIECES, ODD, some.text(max_size=12))
SCALARS = some.one_of(some.none(), some.booleans(), some.integers(), some.floats(), TEXTS)
ROLES = some.sampled_from(["user", "assistant", "system", "tool", "human", "gpt", "User", "", None, 7, "function"])
CONTENTS = some.one_of(SCALARS, some.lists(
    some.fixed_dictionaries({"type": some.sampled_from(["text", "image", None]), "text": SCALARS}), max_size=2
))
EXTRAS = {"weight": some.sampled_from([0, 1, 0.5, None, "0", True]), "train": some.sampled_from([True, False, "no"]), "loss": SCALARS, "name": SCALARS,
          "reasoning_content": SCALARS, "tool_calls": some.sampled_from([None, [], [{}]])}
MESSAGES = some.one_of(some.fixed_dictionaries({"role": ROLES, "content": CONTENTS}, optional=EXTRAS),
                       some.fixed_dictionaries({"from": ROLES, "value": CONTENTS}, optional=EXTRAS))
TALKS = some.one_of(SCALARS, some.lists(some.one_of(MESSAGES, MESSAGES, SCALARS), max_size=6))
SPANS = some.fixed_dictionaries(
    {"text": some.one_of(SCALARS, some.lists(SCALARS, max_size=2))},
    optional={"answer_start": some.one_of(SCALARS, some.lists(SCALARS, max_size=2))}
)
CELLS = some.one_of(
    SCALARS, some.lists(SCALARS, max_size=3), SPANS, some.lists(SPANS, max_size=2),
    some.dictionaries(TEXTS, SCALARS, max_size=2)
)
COLUMNS = ["question", "answer", "질문", "답변", unicodedata.normalize("NFD", "질문"), "instruction", "output", "input", "context", "history", "id", "system",
           "is_impossible", "Question "]
GOOD_PAIRS = [{"question": f"{number} 더하기 1은?", "answer": f"{number + 1}입니다."} for number in range(4)]
GOOD_TALKS = [
    {"messages": [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]}
    for row in GOOD_PAIRS
]


def among(good: list, odd: some.SearchStrategy) -> some.SearchStrategy:
    "Draw lists of odd rows, most of them behind good ones, so that there is something left to train on."
    return some.tuples(some.sampled_from([good, good, good, []]), some.lists(odd, max_size=8)).map(
        lambda pair: pair[0] + pair[1]
    )


PAIRS = some.fixed_dictionaries({"question": TEXTS, "answer": CELLS}, optional={name: CELLS for name in COLUMNS[2:]})
TALK_ROWS = some.fixed_dictionaries({"messages": TALKS}, optional={"system": CELLS, "id": CELLS, "question": TEXTS})
ROWS = some.one_of(
    among(GOOD_PAIRS, PAIRS), among(GOOD_TALKS, TALK_ROWS),
    among(GOOD_PAIRS, some.dictionaries(TEXTS, CELLS, max_size=3))
)
TABLES = some.tuples(some.sampled_from([2, 3, 3, 3]), some.lists(some.lists(TEXTS, min_size=3, max_size=4), max_size=8)).map(
    lambda drawn: [[row["question"], row["answer"], ""] for row in GOOD_PAIRS] + [row[:drawn[0] + (row[0] == "")] for row in drawn[1]])
SPEAKERS = some.lists(
    some.fixed_dictionaries({"role": ROLES.map(str), "content": some.one_of(some.none(), TEXTS)}), max_size=4
)
KINDS = [TEXTS, some.integers(-2**63, 2**63 - 1), some.booleans(), some.floats(), some.binary(max_size=4), some.datetimes(), some.decimals(-99, 99, places=2),
         some.lists(TEXTS, max_size=2), some.fixed_dictionaries({"text": some.lists(TEXTS, max_size=2), "answer_start": some.lists(some.integers(0, 9), max_size=2)}),
         SPEAKERS]
QUESTIONS = some.one_of(
    CELLS,
    some.lists(some.fixed_dictionaries({}, optional={"id": CELLS, "question": CELLS, "answers": CELLS}), max_size=3)
)
ARTICLES = some.lists(some.one_of(SCALARS, some.fixed_dictionaries({}, optional={"title": CELLS, "paragraphs": some.one_of(
    SCALARS, some.lists(some.fixed_dictionaries({}, optional={"context": CELLS, "qas": QUESTIONS}), max_size=2))})), max_size=3)
ENCODINGS = some.sampled_from([*["utf-8"] * 12, "utf-8-sig", "utf-16", "utf-16-le", "cp949", "utf-32-be"])
SETTINGS = some.fixed_dictionaries({}, optional={
    "task": some.sampled_from(["instruct", "mrc"]), "column_mapping": some.dictionaries(some.sampled_from(["question", "answer", "context", "x"]), TEXTS, max_size=2),
    "compose_hangul": some.booleans(), "streaming": some.just(True), "max_train_samples": some.integers(1, 5), "sampling": some.sampled_from(["first", "random"])})


def as_lines(rows: list) -> str:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def as_table(rows: list, separator: str) -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=separator, escapechar="\\").writerows([["question", "answer", "id"], *rows])
    return file.getvalue()


@some.composite
def parquets(draw) -> bytes:
    "Draw a table of a few columns, each of one kind; what pyarrow does not write becomes text that is no parquet."
    import pyarrow
    from pyarrow import parquet

    names = draw(some.one_of(some.just(["messages"]), some.lists(some.sampled_from(COLUMNS), min_size=1, max_size=5)))
    rows, file, columns = draw(some.integers(1, 8)), io.BytesIO(), []
    for name in names:
        usual = SPEAKERS if name == "messages" else TEXTS
        values = some.one_of(some.none(), draw(some.sampled_from([usual] * 12 + KINDS)))
        columns.append(draw(some.lists(values, min_size=rows, max_size=rows)))
    try:
        parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(values) for values in columns], names=names), file)
    except (pyarrow.ArrowException, UnicodeError, OverflowError, TypeError):
        return b"PAR1" + repr(columns).encode("utf-8", "replace")
    return file.getvalue()


@some.composite
def files(draw) -> tuple[str, bytes, dict]:
    "Draw a file's ending, its content, and the settings it is read with: good ones, and such as were damaged on their way."
    ending = draw(some.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".parquet"]))
    if ending == ".parquet":
        content = draw(parquets())
    elif ending in (".csv", ".tsv"):
        content = as_table(
            draw(TABLES), draw(some.sampled_from([*({".csv": ",", ".tsv": "\t"}[ending]) * 9, ",", "\t", ";"]))
        )
    elif draw(some.booleans()) and ending == ".json":
        content = json.dumps({"data": draw(ARTICLES)}, ensure_ascii=draw(some.booleans()))
    else:
        rows = draw(ROWS)
        content = as_lines(rows) if ending == ".jsonl" or draw(some.integers(0, 5)) == 0 else json.dumps(rows)
    if isinstance(content, str):
        content = content.encode(draw(ENCODINGS), "surrogatepass" if draw(some.booleans()) else "replace") if content.isascii() else content.encode("utf-8", "replace")
    for _ in range(draw(some.sampled_from([0, 0, 0, 1, 2]))):  # damage
        place = draw(some.integers(0, len(content)))
        content = content[:place] + draw(some.binary(max_size=4)) + content[place + draw(some.integers(0, 3)):]
    return ending, content, draw(SETTINGS)


def check_file(drawn: tuple, folder: Path):
    "Every row that was read is used or dropped, and every use is true to the file; or the file is refused by one message."
    ending, content, settings = drawn
    path = folder / f"rows{ending}"
    path.write_bytes(content)
    try:
        data = load_data(str(path), cache_dir=str(folder / "cache"), **settings)
        train, held_out = list(data.train), list(data.held_out)
    except LabError as error:
        check_message(error)
        return
    report = data.report
    dropped = sum(entry["rows"] for entry in report.dropped.values())
    assert report.read == report.train + report.held_out + dropped, report.to_dict()
    assert settings.get("streaming") or (report.train, report.held_out) == (len(train), len(held_out)), report.to_dict()
    for row in (*train, *held_out):
        assert row["question"].strip() and row["answer"].strip() and row["answer"] == row["answers"][0], row
    json.dumps(report.to_dict(), ensure_ascii=False).encode()
    report._repr_html_()


# Settings

NAMES = some.one_of(
    some.sampled_from(sorted(ExperimentConfig.model_fields)),
    some.sampled_from(sorted(ExperimentConfig.model_fields)).map(lambda name: name[:-1]), TEXTS
)
WORDS = some.sampled_from(["auto", "none", "no", "yes", "true", "steps", "epoch", "[a, b]", "{a: 1}", "a, b", "[", "{a: 1, a: 2}", "&a [*a]", "5e-4", "1e400", "-1", "0", "64",
                           "q_proj", "((", "cosine", "constant", "sgd", "padded", "tree", "chat", "lab", "first", "random", "../..", "~nobody-here", "=x", "!!python/none x"])
LEAVES = some.one_of(
    some.none(), some.booleans(), some.integers(-3, 3000), some.sampled_from([10**400, 2**63, 1e300, 0.5, 1e-5]),
    some.floats(), WORDS, TEXTS
)
VALUES = some.recursive(
    LEAVES, lambda inner: some.one_of(some.lists(inner, max_size=3), some.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6
)
PASSED = some.dictionaries(some.sampled_from([
    "eos_token", "chat_template", "add_prefix_space", "init_lora_weights", "rank_pattern", "layers_to_transform", "llm_int8_threshold", "adam_beta1", "temperature", "num_beams",
    "stop_strings", "lr_scheduler_kwargs", "optim_args", "label_smoothing_factor", "hub_token"]), VALUES, max_size=2)
DICTS = some.sampled_from(["training_args", "lora_args", "quantization_args", "tokenizer_args", "generation_args"])
GIVEN = some.one_of(some.dictionaries(NAMES, VALUES, max_size=4), some.dictionaries(DICTS, PASSED, max_size=2))


def check_settings(drawn: dict, folder: Path):
    "Settings are refused by one message, or made into a configuration that a file keeps as it is."
    try:
        config = make_config(drawn)
    except LabError as error:
        check_message(error)
        return
    path = folder / "config.yaml"
    path.write_text(config_to_yaml(config), encoding="utf-8")
    assert config_from_yaml(path) == config, path.read_text(encoding="utf-8")


YAML_TEXTS = some.one_of(some.text(max_size=40), some.lists(some.sampled_from(
    ["{", "}", "[", "]", ": ", ", ", "a", "&a ", "*a", "- ", "\n", "  ", "!!int ", "!x ", "? ", "| ", "'", '"', "#", "<<", "2024-13-45", "1_0", "0x", "~", "%", "\t", "\0", "---"]),
    max_size=14).map("".join))


def check_yaml(drawn: str, folder: Path):
    "A text of parameters becomes a dict of names, or one message that says where it came from."
    try:
        settings = read_settings(drawn, "-y")
    except LabError as error:
        check_message(error)
        assert str(error).startswith("-y"), error
        return
    assert all(isinstance(name, str) for name in settings)


# Prompts

PART_TEXTS = some.lists(some.one_of(some.sampled_from(["{question}", "{answer}", "{context}", "{input}", "{system}", "{context:.0}", "{", "}", "{{", "}}", "{x}", "{question!r}",
                                                       "{question:>9}", "{answer:{x}}", "{}", "{0}", "{question.x}", " ", "\n"]), HANGUL), max_size=4).map("".join)
PARTS = some.lists(some.tuples(
    some.sampled_from(["question", "context", "input", "marker", "header", "system", "answer", "x"]), PART_TEXTS
), max_size=3)
PROMPT_FIELDS = some.one_of(
    some.tuples(some.one_of(PARTS, some.just([("question", "{question}\n")])), some.one_of(PART_TEXTS, some.just("{answer}"))).map(
        lambda drawn: {"parts": [*drawn[0], ("answer", drawn[1])]}),
    some.fixed_dictionaries({}, optional={"parts": some.one_of(PARTS, VALUES), "chat": VALUES, "thinking": VALUES, "part": VALUES}), VALUES)
ASKED = some.fixed_dictionaries({"question": some.one_of(HANGUL, some.sampled_from(["{answer}", "{{", "%s", "{0.x}"])).filter(bool), "answer": HANGUL.filter(bool)},
                                optional={"context": TEXTS, "input": TEXTS, "system": TEXTS,
                                          "history": some.lists(some.fixed_dictionaries({"question": HANGUL.filter(bool), "answer": HANGUL.filter(bool)}), max_size=2)})


def check_prompt(drawn: tuple, folder: Path):
    "A prompt is refused by one message, or it asks the question as it stands, and ends with the answer as it stands."
    fields, row = drawn
    try:
        prompt = find_prompt(fields)
    except LabError as error:
        check_message(error)
        return
    if prompt.chat:
        return
    spans = render(prompt, row)
    assert row["question"] in prompt_text(spans) and row["answer"] in spans[-1].text and spans[-1].role == "answer", spans
    text = "".join(span.text for span in spans)
    for exchange in [*row.get("history", []), row]:  # each in its turn
        for said in (exchange["question"], exchange["answer"]):
            assert said in text, (said, spans)
            text = text.partition(said)[2]


# Extensions

SECTIONS = some.dictionaries(some.one_of(some.sampled_from(["models", "datasets", "prompts", "tasks"]), TEXTS), some.one_of(VALUES, some.dictionaries(TEXTS, some.one_of(
    VALUES, PROMPT_FIELDS, some.dictionaries(some.sampled_from(["id", "source", "task", "needs", "score", "max_new_tokens", "parts", "license", "prompt"]), VALUES, max_size=3)),
    max_size=2)), max_size=2)
STATEMENTS = some.lists(some.sampled_from([
    "import sys; sys.exit(0)", "raise KeyboardInterrupt", "1/0", "raise TimeoutError()", "PROMPTS['m'] = 5", "DATASETS['m'] = {}", "PROMPTS.clear()", "del TASKS['mrc']", "x = (",
    "raise SystemExit(3)", "TASKS[1] = TASKS['mrc']", "def f(): return f()\nf()", "from llmlab import PROMPTS, DATASETS, TASKS", "PROMPTS['m'] = PROMPTS['lab']", "'\0'",
    "raise ValueError('\x1b[2J')", "raise BaseException", "assert False", "MODELS", "import no_such"]), max_size=4).map("\n".join)


def check_extension(drawn: object, folder: Path):
    "A file adds entries of the right kind, or is refused by one message, and then has added nothing; it never ends the process."
    path = folder / ("mine.py" if isinstance(drawn, str) else "mine.yaml")
    path.write_bytes(
        (drawn if isinstance(drawn, str) else yaml.safe_dump(drawn, allow_unicode=False)).encode("utf-8", "replace")
    )
    before = {name: dict(registry.entries) for name, registry in REGISTRIES.items()}
    try:
        load_extensions([str(path)])
        for registry in REGISTRIES.values():
            assert all(
                isinstance(name, str) and isinstance(entry, registry.kind) for name, entry in registry.entries.items()
            )
    except LabError as error:
        check_message(error)
        assert before == {name: registry.entries for name, registry in REGISTRIES.items()}
    finally:
        for name, entries in before.items():
            REGISTRIES[name].entries.clear()
            REGISTRIES[name].entries.update(entries)


SUBJECTS = {
    "rows": Subject(files(), check_file),
    "settings": Subject(GIVEN, check_settings),
    "yaml": Subject(YAML_TEXTS, check_yaml),
    "prompts": Subject(some.tuples(PROMPT_FIELDS, ASKED), check_prompt),
    "extensions": Subject(some.one_of(SECTIONS, STATEMENTS), check_extension),
}
