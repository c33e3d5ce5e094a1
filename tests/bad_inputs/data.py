"""Files of rows that are broken, ambiguous, of another format than their ending says, or without a row to learn."""
import json
from collections.abc import Callable
from pathlib import Path

from . import Bad, text_file

GOOD = '{"question": "수도는?", "answer": "서울"}'


def lines(*rows, **settings) -> Callable[[Path], dict]:
    "Make settings whose dataset is a .jsonl file: of objects, or of lines as they are."
    content = "\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    return text_file("rows.jsonl", content, **settings)


def value(content, **settings) -> Callable[[Path], dict]:
    "Make settings whose dataset is a .json file of this value."
    return text_file("rows.json", json.dumps(content, ensure_ascii=False), **settings)


def squad(*articles) -> Callable[[Path], dict]:
    return value({"data": list(articles)})


def talks(*messages) -> Callable[[Path], dict]:
    "Make settings whose dataset holds the same conversation in twelve rows."
    return lines(*[{"messages": list(messages)}] * 12)


def table(columns: list[tuple], **settings) -> Callable[[Path], dict]:
    "Make settings whose dataset is a parquet file of columns: name, type in pyarrow's words, values."
    def write(folder: Path) -> dict:
        import pyarrow
        from pyarrow import parquet

        arrays = [pyarrow.array(values, type=kind(pyarrow) if callable(kind) else kind) for _, kind, values in columns]
        path = folder / "rows.parquet"
        parquet.write_table(pyarrow.Table.from_arrays(arrays, names=[name for name, _, _ in columns]), path)
        return {"dataset": str(path), **settings}

    return write


def cut_table(folder: Path) -> dict:
    "A parquet file of which the end is missing."
    settings = table([("question", None, ["a"] * 100), ("answer", None, ["b"] * 100)])(folder)
    path = Path(settings["dataset"])
    path.write_bytes(path.read_bytes()[:-40])
    return settings


def broken_text(folder: Path) -> dict:
    "A parquet column of text whose bytes are no UTF-8, as a tool that does not check them writes it."
    import pyarrow
    from pyarrow import parquet

    raw = pyarrow.array([b"\xb0\xa1"] * 12, type=pyarrow.binary()).view(pyarrow.string())
    path = folder / "rows.parquet"
    parquet.write_table(pyarrow.table({"question": raw, "answer": ["b"] * 12}), path)
    return {"dataset": str(path)}


USER, ASSISTANT = {"role": "user", "content": "수도는?"}, {"role": "assistant", "content": "서울"}
SYSTEM = {"role": "system", "content": "짧게"}
MENDED = ("rows.jsonl", "2")
LEFT = "no row is left"

CASES = [
    # one object a line
    Bad("an empty file", text_file("rows.jsonl", ""), ("rows.jsonl", "no rows")),
    Bad("white space alone", text_file("rows.jsonl", "\n  \n\t\n"), ("rows.jsonl", "no rows")),
    Bad("a line that is cut", lines(GOOD, '{"question": "a"'), (*MENDED, "JSON")),
    Bad("a line with a comma too many", lines(GOOD, '{"question": "a", "answer": "b",}'), (*MENDED, "Mend or delete")),
    Bad("a line in Python's spelling", lines(GOOD, "{'question': 'a', 'answer': None}"), MENDED),
    Bad("a line of text", lines(GOOD, "수도는? 서울"), MENDED),
    Bad("a line that is a number", lines(GOOD, "7"), (*MENDED, "object", "int")),
    Bad("a line that is null", lines(GOOD, "null"), (*MENDED, "object")),
    Bad("a line that is a list", lines(GOOD, '["a", "b"]'), (*MENDED, "list")),
    Bad("a tab within a text", lines(GOOD, '{"question": "a\tb", "answer": "c"}'), MENDED),
    Bad("a key twice", lines(GOOD, '{"question": "a", "answer": "b", "answer": "c"}'), (*MENDED, "'answer'", "twice")),
    Bad("a key twice, deep inside", lines(GOOD, '{"question": "a", "answer": "b", "meta": {"n": 1, "n": 2}}'), (*MENDED, "'n'")),
    Bad("half a character", lines(GOOD, '{"question": "a", "answer": "\\ud800"}'), (*MENDED, "half of a character")),
    Bad("half a character in a column nobody uses", lines(GOOD, '{"id": "\\uDFFF", "question": "a", "answer": "b"}'), MENDED),
    Bad("half a character as a column's name", lines(GOOD, '{"\\udabc": 1, "question": "a", "answer": "b"}'), MENDED),
    Bad("a number of 10,000 digits", lines(GOOD, '{"question": "a", "answer": ' + "9" * 10_000 + "}"), (*MENDED, "digits")),
    Bad("100,000 brackets", lines(GOOD, "[" * 100_000), (*MENDED, "deeper")),
    Bad("an object in objects without end", lines('{"a":' * 100_000 + "1" + "}" * 100_000), ("rows.jsonl", "deeper")),
    Bad("a list of all rows, named .jsonl", text_file("rows.jsonl", f"[{GOOD}, {GOOD}]"), ("rows.jsonl", r"rename it to \.json")),
    Bad("a value over many lines, named .jsonl", text_file("rows.jsonl", json.dumps([json.loads(GOOD)], indent=1)), r"to \.json"),
    Bad("an object over many lines", text_file("rows.jsonl", json.dumps(json.loads(GOOD), indent=1)), (r"rows.jsonl, line 1", r"to \.json")),
    Bad("UTF-16 with its mark", text_file("rows.jsonl", GOOD.encode("utf-16")), ("rows.jsonl", "UTF-8")),
    Bad("UTF-16 without its mark", text_file("rows.jsonl", GOOD.encode("utf-16-le")), ("rows.jsonl", "UTF-16")),
    Bad("UTF-32 without its mark", text_file("rows.jsonl", GOOD.encode("utf-32-be")), ("rows.jsonl", "UTF-8")),
    Bad("lines in CP949", text_file("rows.jsonl", f"{GOOD}\n{GOOD}".encode("cp949")), ("rows.jsonl, line 1", "UTF-8")),
    Bad("a picture, named .jsonl", text_file("rows.jsonl", b"\x89PNG\r\n\x1a\n\x00\x00"), ("rows.jsonl", "line 1")),
    Bad("an archive, named .json", text_file("rows.json", b"\x1f\x8b\x08\x00" + bytes(range(256))), ("rows.json", "line 1")),
    # nothing to learn
    Bad("no known column", lines({"text": "a"}), ("rows.jsonl", "text", "column_mapping")),
    Bad("a question and no answer", lines({"question": "a", "label": 1}), ("answer", "label", "column_mapping")),
    Bad("a thousand columns, none of them known", lines({f"column {number}": "x" for number in range(1000)}), "column_mapping"),
    Bad("a column with a terminal's codes in its name", lines({"\x1b[31mred": "a"}), (r"x1b\[31mred", "column_mapping")),
    Bad("answers that are null", lines(*[{"question": "a", "answer": None}] * 12), (LEFT, "no answer")),
    Bad("answers of white space", lines(*[{"question": "a", "answer": " \n\t"}] * 12), (LEFT, "no answer")),
    Bad("questions that are lists", lines(*[{"question": ["a", "b"], "answer": "c"}] * 12), (LEFT, "question is a list")),
    Bad("questions that are objects", lines(*[{"question": {"ko": "a"}, "answer": "c"}] * 12), (LEFT, "question is an object")),
    Bad("questions as lists of messages", lines(*[{"prompt": [USER, SYSTEM], "completion": [ASSISTANT]}] * 12), (LEFT, "is a list")),
    Bad("contexts that are lists", lines(*[{"question": "a", "context": ["b", "c"], "answer": "c"}] * 12), "context is a list"),
    Bad("answers that are objects without text", lines(*[{"question": "a", "answer": {"ko": "c"}}] * 12), "answer is an object"),
    Bad("a history that is no list of pairs", lines(*[{"question": "a", "answer": "b", "history": [["c"]]}] * 12), "history"),
    Bad("rows that are all unanswerable", lines(*[{"question": "a", "answer": "b", "is_impossible": True}] * 12), "unanswerable"),
    Bad("one group", lines(*[{"question": "수도는?", "answer": f"서울 {number}"} for number in range(12)]), "one group"),
    Bad("a single row", lines(GOOD), "1 rows? make up one group"),
    # conversations
    Bad("messages that are text", lines(*[{"messages": "안녕"}] * 12), (LEFT, "no list of messages")),
    Bad("messages that are no objects", talks("안녕", "반가워"), (LEFT, "not objects")),
    Bad("messages that are null", lines(*[{"messages": None}] * 12), (LEFT, "no list of messages")),
    Bad("no answer in a conversation", talks(USER), (LEFT, "no turn of the assistant")),
    Bad("a conversation that the assistant begins", talks(ASSISTANT, USER, ASSISTANT), "does not begin with the user"),
    Bad("a system message in the middle", talks(USER, SYSTEM, ASSISTANT), "system message in the middle"),
    Bad("a call of a tool", talks(USER, {**ASSISTANT, "tool_calls": [{"id": "1"}]}), "turn of a tool"),
    Bad("what a tool says", talks(USER, ASSISTANT, {"role": "tool", "content": "{}"}, ASSISTANT), "turn of a tool"),
    Bad("a role nobody knows", talks({"role": "developer", "content": "a"}, USER, ASSISTANT), "role other than"),
    Bad("a picture in a message", talks({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, ASSISTANT), "other than text"),
    Bad("a message that is an object", talks({"role": "user", "content": {"parts": ["a"]}}, ASSISTANT), "message is an object"),
    Bad("an empty message", talks(USER, {"role": "assistant", "content": " "}), "an empty message"),
    Bad("a weight between 0 and 1", talks(USER, {**ASSISTANT, "weight": 0.5}), "a weight other than"),
    Bad("a weight that is text", talks(USER, {**ASSISTANT, "weight": "0"}), "a weight other than"),
    Bad("a flag that is text", talks(USER, {**ASSISTANT, "train": "false"}), "a weight other than"),
    Bad("a loss that is a list", talks(USER, {**ASSISTANT, "loss": []}), "a weight other than"),
    Bad("weights that leave nothing", talks(USER, {**ASSISTANT, "weight": 0}), "no turn of the assistant is learned"),
    Bad("losses that leave nothing", talks(USER, {**ASSISTANT, "loss": False}), "no turn of the assistant is learned"),
    # one JSON value
    Bad("an empty .json", text_file("rows.json", ""), ("rows.json", "line 1")),
    Bad("lines, named .json", text_file("rows.json", f"{GOOD}\n{GOOD}"), ("rows.json", "line 2", r"Rename it to \.jsonl")),
    Bad("a number", value(7), ("rows.json", "list of objects")),
    Bad("an object without rows", value({"version": 1}), ("rows.json", "list of objects")),
    Bad("columns in place of rows", value({"question": {"0": "a"}, "answer": {"0": "b"}}), "orient='records'"),
    Bad("a list with a text in it", value([json.loads(GOOD), "b"]), "list of objects"),
    Bad("an empty list", value([]), "no rows"),
    Bad("a value with a key twice", text_file("rows.json", '[{"question": "a", "question": "b", "answer": "c"}]'), ("rows.json", "twice")),
    Bad("a value with half a character", text_file("rows.json", '[{"question": "\\ud834", "answer": "c"}]'), "half of a character"),
    Bad("a deep value", text_file("rows.json", "[" * 100_000), ("rows.json", "deeper")),
    Bad("paragraphs that are null", squad({"paragraphs": None}), ("article 1", "'paragraphs'")),
    Bad("paragraphs that are text", squad({"paragraphs": "서울이 수도다."}), ("article 1", "'paragraphs'")),
    Bad("an article without paragraphs", squad({"paragraphs": []}, {"title": "x"}), ("article 2", "'paragraphs'")),
    Bad("questions that are null", squad({"paragraphs": [{"context": "x", "qas": None}]}), ("article 1, paragraph 1", "'qas'")),
    Bad("questions that are text", squad({"paragraphs": [{"context": "x", "qas": "수도는?"}]}), "'qas'"),
    Bad("a paragraph without its text", squad({"paragraphs": [{"qas": [{"id": "1", "question": "?"}]}]}), "'context'"),
    Bad("a question without its text", squad({"paragraphs": [{"context": "x", "qas": [{"id": "7"}]}]}), ("question 7", "'question'")),
    Bad("paragraphs that are lists", squad({"paragraphs": [["x"]]}), "'paragraphs'"),
    Bad("a paragraph that is an object", squad({"paragraphs": [{"context": {"a": 1}, "qas": [{"question": "?", "answers": ["x"]}]}]}),
        "context is an object"),
    # tables
    Bad("a header alone", text_file("rows.csv", "question,answer\n"), ("rows.csv", "no rows")),
    Bad("an empty table", text_file("rows.csv", ""), "no rows"),
    Bad("a row with too many fields", text_file("rows.csv", "question,answer\na,b\nc,d,e\n"), ("rows.csv, line 3", "Quote")),
    Bad("a quotation mark that stays open", text_file("rows.csv", 'question,answer\na,"b\n'), ("rows.csv", "quotation mark")),
    Bad("text behind a quotation mark", text_file("rows.csv", 'question,answer\n"a"b,c\n'), ("rows.csv, line 2", "quotation mark")),
    Bad("semicolons", text_file("rows.csv", "question;answer\na;b\n"), ("rows.csv", "semicolons")),
    Bad("bars", text_file("rows.csv", "question|answer\na|b\n"), "bars"),
    Bad("tabs, named .csv", text_file("rows.csv", "question\tanswer\na\tb\n"), r"rename it to \.tsv"),
    Bad("commas, named .tsv", text_file("rows.tsv", "question,answer\na,b\n"), r"rename it to \.csv"),
    Bad("a column twice", text_file("rows.csv", "question,answer,answer\na,b,c\n"), ("rows.csv", "'answer' stands twice")),
    Bad("no header", text_file("rows.csv", "수도는?,서울\n인구는?,940만\n"), "column_mapping"),
    Bad("a table in UTF-16 without its mark", text_file("rows.csv", "question,answer\na,b\n".encode("utf-16-le")), "UTF-16"),
    Bad("a table in no encoding", text_file("rows.csv", b"question,answer\n\xff\xfe\xfd,b\n"), ("rows.csv, line 2", "UTF-8")),
    Bad("messages that Python wrote", text_file("rows.csv", 'messages\n' + "\"[{'role': 'user'}]\"\n" * 12), "no list of messages"),
    Bad("no parquet", text_file("rows.parquet", "question,answer\n"), ("rows.parquet", "parquet")),
    Bad("an empty parquet", text_file("rows.parquet", b""), ("rows.parquet", "parquet")),
    Bad("a parquet without its end", cut_table, ("rows.parquet", "parquet")),
    Bad("a parquet without rows", table([("question", lambda arrow: arrow.string(), []), ("answer", lambda arrow: arrow.string(), [])]), "no rows"),
    Bad("a parquet with a column twice", table([("question", None, ["a"]), ("answer", None, ["b"]), ("answer", None, ["c"])]), "twice"),
    Bad("a column of bytes", table([("question", None, ["a"] * 12), ("answer", None, [b"b"] * 12)]), "answer is bytes"),
    Bad("a column of text that is no UTF-8", broken_text, ("rows.parquet", "column 'question'")),
    Bad("a date past the year 9999", table([("question", None, ["a"] * 3), ("answer", lambda arrow: arrow.timestamp("s"), [10**12] * 3)]),
        ("rows.parquet", "column 'answer'")),
    Bad("answers that are all null", table([("question", None, ["a"] * 12), ("answer", lambda arrow: arrow.null(), [None] * 12)]), "no answer"),
    # names of columns
    Bad("a column that is not there", lines(GOOD, column_mapping={"question": "Q"}), ("column_mapping", "'Q'", "question, answer")),
    Bad("a column the lab does not have", lines(GOOD, column_mapping={"reply": "answer"}), ("column_mapping", "'reply'")),
    Bad("a column for two", lines(GOOD, column_mapping={"question": "question", "answer": "question"}), ("column_mapping", "'question'", "once")),
    Bad("a column of an eval_dataset that is not there", lambda folder: {
        "eval_dataset": lines(GOOD, GOOD)(folder)["dataset"], "column_mapping": {"answer": "nowhere"}}, ("column_mapping", "nowhere")),
    Bad("an eval_dataset that is cut", lambda folder: {"eval_dataset": lines('{"question": ')(folder)["dataset"]}, "rows.jsonl, line 1"),
    Bad("a stream that is cut", lines(GOOD, '{"question"', streaming=True, eval_strategy="no"), MENDED),
    Bad("a stream of one value", value([json.loads(GOOD)], streaming=True, eval_strategy="no"), ("rows.json", "streaming")),
]
