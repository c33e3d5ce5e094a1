"""Bad input, as tables: what a person may write by mistake, and the one message that must come of it.

Each module here holds the CASES of one subject. tests/test_bad_inputs.py runs them all.
"""
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Bad:
    "One bad input: the settings that hold it, and what the message about it must say."
    name: str  # in a few words, for the test's report
    settings: dict | Callable[[Path], dict]  # a function gets an empty folder, makes its files there, and returns the settings
    says: str | tuple[str, ...]  # regular expressions, all of which the message must match: the file, row or parameter, and the way out


def text_file(name: str, content: str | bytes, **settings) -> Callable[[Path], dict]:
    "Make settings whose dataset is a file of this content."
    def write(folder: Path) -> dict:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return {"dataset": str(path), **settings}

    return write


def setting_file(name: str, content: str | bytes, setting: str, **settings) -> Callable[[Path], dict]:
    "Make settings of which one names a file of this content, alone or, where a list is wanted, in a list."
    def write(folder: Path) -> dict:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return {setting: [str(path)] if setting in ("extensions", "lm_eval_tasks") else str(path), **settings}

    return write
