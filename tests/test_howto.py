"""The how-tos: every setting in a command, and every file that is shown, is one that the lab takes. (test_readme_ko.py compares the languages.)"""
import re
import shlex
import sys
from pathlib import Path

import pytest

from llmlab import load_data
from llmlab.config.load import make_config

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(path.name for path in (ROOT / "nbs" / "howto").glob("*.qmd"))
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FORMATS = FENCE.findall((ROOT / "nbs" / "howto" / "formats.qmd").read_text(encoding="utf-8"))


def commands(path):
    "List the words of each command in a page."
    text = "\n".join(text for kind, text in FENCE.findall(path.read_text(encoding="utf-8")) if kind == "sh")
    return [shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines()]


@pytest.mark.parametrize("name", PAGES)
def test_settings_in_commands_are_taken(name):
    for words in commands(ROOT / "nbs" / "howto" / name):
        if words[:2] in (["llmlab", "train"], ["llmlab", "preview"]):
            pairs = [(words[at + 1], words[at + 2]) for at, word in enumerate(words) if word == "-p"]
            make_config({name: value for name, value in pairs if "/" not in value})


@pytest.mark.parametrize("number", [number for number, (kind, _) in enumerate(FORMATS) if kind != "sh"])
def test_every_form_that_is_shown_can_be_read(number, tmp_path):
    kind, text = FORMATS[number]
    path = tmp_path / f"example.{kind}"
    path.write_text(text, encoding="utf-8")
    report = load_data(str(path), eval_dataset="lab-ko-mrc", cache_dir=str(tmp_path / "cache")).report
    assert report.train == report.parts[0].read > 0 and not report.parts[0].dropped, report


def test_the_table_of_cards_is_what_the_tool_writes():
    """Which model fits which card: `python tools/fits.py` writes it anew."""
    sys.path.insert(0, str(ROOT / "tools"))
    from fits import PAGES as TABLES
    from fits import SHOWN, way, written

    from llmlab.common.cards import CARDS
    from llmlab.models.presets import MODELS

    for path in TABLES:
        text = (ROOT / path).read_text(encoding="utf-8")
        assert written(path) == text, f"run `python tools/fits.py`: {path}"
        assert all(f"| {card} " in text for card in SHOWN) and "| gemma3-270m" in text
    for name, expected in (("gemma3-270m", ["16", "16"]), ("qwen3-8b", ["4\\*", "16"]), ("qwen3-32b", ["", "16\\*"])):
        assert [way(MODELS[name], CARDS[card]) for card in ("rtx-4080", "a100-80gb")] == expected
