"""Paths that lead to nothing, to something that is no ordinary file, or to a file of another kind than is wanted."""
import os
import socket
from collections.abc import Callable
from pathlib import Path

from . import Bad

GOOD = '{"question": "수도는?", "answer": "서울"}\n'


def at(parameter: str, make: Callable[[Path], object], name: str, **settings) -> Callable[[Path], dict]:
    "Make settings of which one names a path below the case's folder, at which something was made."
    def write(folder: Path) -> dict:
        path = folder / name
        make(path)
        return {parameter: [str(path)] if parameter == "extensions" else str(path), **settings}

    return write


def listen(path: Path):
    "Make a socket; a path to one may only be short, so it is made from within its folder."
    here = Path.cwd()
    os.chdir(path.parent)
    socket.socket(socket.AF_UNIX).bind(path.name)
    os.chdir(here)


def link_to(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


def circle(path: Path):
    path.symlink_to(path.name)


def text(content: str | bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def folder_of_files(path: Path):
    path.mkdir()
    (path / "b.jsonl").write_text(GOOD)


PIPES = [
    Bad(f"a pipe as {parameter} ({ending})", at(parameter, os.mkfifo, f"pipe{ending}"), (parameter, "pipe"))
    for parameter, ending in (
        ("dataset", ".jsonl"), ("dataset", ".json"), ("dataset", ".csv"), ("dataset", ".tsv"), ("dataset", ".parquet"),
        ("extensions", ".py"), ("extensions", ".yaml"), ("question_set", ".jsonl"),
    )
]

CASES = [
    *PIPES,
    Bad("a pipe as eval_dataset", at("eval_dataset", os.mkfifo, "pipe.jsonl"), "pipe"),
    Bad("a pipe in a stream", at("dataset", os.mkfifo, "pipe.jsonl", streaming=True, eval_strategy="no"), "pipe"),
    Bad("a pipe in a mix", lambda folder: {
        "dataset": {at("dataset", os.mkfifo, "pipe.csv")(folder)["dataset"]: 0.5, "lab-ko-instruct": 0.5}}, "pipe"),
    Bad("a socket as rows", at("dataset", listen, "rows.jsonl"), ("dataset", "socket")),
    Bad("a socket as an extension", at("extensions", listen, "more.py"), ("extensions", "socket")),
    Bad("a device without an end", at("dataset", link_to("/dev/zero"), "rows.jsonl"), ("rows.jsonl", "device")),
    Bad("a device that is empty", at("dataset", link_to("/dev/null"), "rows.csv"), ("rows.csv", "device")),
    Bad("a device as questions", at("question_set", link_to("/dev/zero"), "set.jsonl"), ("question_set", "device")),
    Bad("a folder, named .jsonl", at("dataset", folder_of_files, "rows.jsonl"), ("folder", r"b\.jsonl")),
    Bad("a folder as a question set", at("question_set", folder_of_files, "set.jsonl"), ("question_set", "folder")),
    Bad("a folder as an extension", at("extensions", folder_of_files, "more.py"), ("extensions", "folder|no .py")),
    Bad("a link to nowhere", at("dataset", link_to("nowhere"), "rows.jsonl"), ("rows.jsonl", "neither")),
    Bad("a link to itself", at("dataset", circle, "rows.jsonl"), ("rows.jsonl", "neither")),
    Bad("a file as a folder", at("dataset", lambda path: text(GOOD)(path.parent.parent / "rows.jsonl"), "../rows.jsonl/rows.jsonl"), "neither"),
    Bad("a name of 300 letters", {"dataset": "가" * 300 + ".jsonl"}, ("dataset", "neither")),
    Bad("a name of 300 letters as questions", {"question_set": "x" * 300 + ".jsonl"}, "question_set"),
    Bad("a name of 300 letters as an extension", {"extensions": ["x" * 300 + ".py"]}, "extensions"),
    Bad("a path of 10,000 letters", {"dataset": "a/" * 5_000 + "rows.jsonl"}, ("dataset", "neither")),
    Bad("a path of 10,000 letters as a model", {"model": "a/" * 5_000}, "model"),
    Bad("nobody's home", {"dataset": "~nobody-is-called-so/rows.jsonl"}, ("dataset", "neither")),
    Bad("nobody's home as a model", {"model": "~nobody-is-called-so/model"}, "model"),
    Bad("nobody's home as an extension", {"extensions": ["~nobody-is-called-so/more.py"]}, "extensions"),
    Bad("a path with a NUL", {"dataset": "rows\0.jsonl"}, r"rows\\x00\.jsonl"),
    Bad("a path of white space", {"dataset": "   "}, "dataset"),
    Bad("the folder here", {"dataset": "."}, "folder"),
    Bad("half of a path's name", {"dataset": "\udcb0rows.jsonl"}, ("dataset", r"\\udcb0rows")),
    Bad("another ending", at("dataset", text(GOOD), "rows.txt"), ("rows.txt", r"\.jsonl", "rename")),
    Bad("no ending", at("dataset", text(GOOD), "rows"), ("rows", r"\.jsonl")),
    Bad("a file within a mix", {"dataset": "lab-ko-instruct+nowhere.jsonl"}, "nowhere.jsonl"),
    Bad("an extension in CP949", at("extensions", text("# 옛날\n".encode("cp949")), "more.py"), ("extensions", "UTF-8")),
    Bad("an extension of another kind", at("extensions", text("{}"), "more.json"), ("extensions", r"\.py")),
    Bad("questions with a history", at("question_set", text(b'{"question": "?", "history": [["a", "b"]]}'), "set.jsonl"), ("set.jsonl, line 1", "history")),
    Bad("questions in CP949", at("question_set", text(GOOD.encode("cp949")), "set.jsonl"), ("set.jsonl", "UTF-8")),
]
if Path("/proc/self/mem").exists():  # reading its beginning is an error of the machine, as of a disk that is broken
    CASES.append(Bad("a file that breaks as it is read", at("dataset", link_to("/proc/self/mem"), "rows.jsonl"),
                     ("rows.jsonl", "cannot be read")))
