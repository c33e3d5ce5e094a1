"""The how-tos: each in both languages with the same commands, and every command, setting and file in them is one that the lab takes."""
import re
import shlex
from pathlib import Path

import click
import pytest

from llmlab import load_data
from llmlab.commands.cli import main
from llmlab.config.load import make_config

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(path.name for path in (ROOT / "nbs" / "howto").glob("*.qmd"))
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FORMATS = FENCE.findall((ROOT / "nbs" / "howto" / "formats.qmd").read_text(encoding="utf-8"))


def fences(path):
    "List the blocks of code in a page, commands without their remarks."
    blocks = FENCE.findall(path.read_text(encoding="utf-8"))
    return [(kind, re.sub(r" +#.*$", "", text, flags=re.MULTILINE) if kind == "sh" else text) for kind, text in blocks]


def test_pages_are_there_in_both_languages():
    korean = {path.name for path in (ROOT / "nbs" / "ko").glob("*.qmd")}
    assert set(PAGES) == korean - {"index.qmd"}


@pytest.mark.parametrize("name", PAGES)
def test_both_languages_have_the_same_commands(name):
    assert fences(ROOT / "nbs" / "howto" / name) == fences(ROOT / "nbs" / "ko" / name)


@pytest.mark.parametrize("name", PAGES)
def test_commands_are_those_of_the_lab(name):
    for kind, text in fences(ROOT / "nbs" / "howto" / name):
        for line in text.replace("\\\n", " ").splitlines() if kind == "sh" else []:
            words = shlex.split(line)
            if words[:1] != ["llmlab"]:
                continue
            command = main.commands[words[1]]
            command.make_parser(click.Context(command)).parse_args(words[2:])
            if words[1] in ("train", "preview"):
                pairs = [(words[at + 1], words[at + 2]) for at, word in enumerate(words) if word == "-p"]
                settings = {name: value for name, value in pairs if "/" not in value}
                make_config(settings)


@pytest.mark.parametrize("number", [number for number, (kind, _) in enumerate(FORMATS) if kind != "sh"])
def test_every_form_that_is_shown_can_be_read(number, tmp_path):
    kind, text = FORMATS[number]
    path = tmp_path / f"example.{kind}"
    path.write_text(text, encoding="utf-8")
    report = load_data(str(path), eval_dataset="lab-ko-mrc", cache_dir=str(tmp_path / "cache")).report
    assert report.train == report.parts[0].read > 0 and not report.parts[0].dropped, report
