"""Files of rows that are broken, ambiguous, or no ordinary files."""
from . import Bad, text_file

CASES = [
    Bad("an empty file", text_file("rows.jsonl", ""), "rows.jsonl"),
    Bad("a line that is cut", text_file("rows.jsonl", '{"question": "a", "answer": "b"}\n{"question": "a"'), ("rows.jsonl", "2")),
]
