"""What stands in both languages says the same: the same sections, commands and links, and only commands that there are."""
import re
from pathlib import Path

import pytest
import yaml

from llmlab.commands.cli import main
from llmlab.config.schema import ExperimentConfig, field_comments

ROOT = Path(__file__).resolve().parent.parent
ENGLISH, KOREAN = "README.md", "README.ko.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def read(name):
    """Read a file of the root."""
    return (ROOT / name).read_text(encoding="utf-8")


def headings(text):
    """List the levels of the headings, in order."""
    return [len(marks) for marks in re.findall(r"^(#+) \S", FENCE.sub("", text), re.MULTILINE)]


def code_blocks(text):
    """List the code blocks, less what is translated: comments of commands, and descriptions in a listing of files."""
    blocks = []
    for language, body in FENCE.findall(text):
        kept = re.compile(r"^(.*?)(?:\s+#.*)?$" if language else r"^(\s*\S+)?.*$")
        blocks.append((language, [kept.match(line)[1] for line in body.splitlines()]))
    indented = re.findall(r"^ {4}\S.*$", FENCE.sub("", text), re.MULTILINE)
    return [*blocks, ("indented", indented)]


def links(text):
    """List where the links lead, but for the one to the other language."""
    targets = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text))
    return sorted(target for target in targets if Path(target).name not in (ENGLISH, KOREAN))


def commands(text, program):
    """List the lines of code, in blocks or between backquotes, that call a program."""
    code = [line for _, body in FENCE.findall(text) for line in body.splitlines()] + re.findall(
        r"`([^`\n]+)`", FENCE.sub("", text)
    )
    return [re.sub(r"\s+#.*", "", line) for line in code if line.startswith(f"{program} ")]


HOWTOS = sorted(path.name for path in (ROOT / "nbs" / "howto").glob("*.qmd"))


LOOKED_UP = {"formats.qmd", "troubleshooting.qmd"}  # pages in which one looks something up


def linked_pages(text):
    """List the pages that links lead to: each language has its own Settings."""
    return sorted(link.rpartition("/")[2] for link in links(text))


@pytest.mark.parametrize("name", HOWTOS)
@pytest.mark.parametrize("part", [headings, code_blocks, linked_pages])
def test_each_howto_has_the_same_in_korean(name, part):
    assert part(read(f"nbs/howto/{name}")) == part(read(f"nbs/ko/{name}"))


@pytest.mark.parametrize("name", HOWTOS)
def test_howtos_are_of_one_screen_and_name_commands_that_there_are(name):
    text = read(f"nbs/howto/{name}")
    assert len(text.splitlines()) <= (90 if name in LOOKED_UP else 50)
    for line in commands(text, "llmlab"):
        command = main.commands[line.split()[1]]
        options = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r" (--[\w-]+|-\w)(?= )", line)) <= options, line
        own = {"device"} if " plan " in line else set()  # the card that is planned for
        assert set(re.findall(r" -p (\w+) ", line)) <= set(ExperimentConfig.model_fields) | own, line


def test_every_setting_has_its_meaning_in_korean():
    korean = yaml.safe_load(read("llmlab/bundled/settings.ko.yaml"))
    assert list(korean["sections"]) == list(field_comments())
    assert set(korean["settings"]) == set(ExperimentConfig.model_fields)
    assert all(re.search("[가-힣]", meaning) for name, meaning in korean["settings"].items())


@pytest.mark.parametrize("part", [headings, code_blocks, links])
def test_both_have_the_same(part):
    english, korean = part(read(ENGLISH)), part(read(KOREAN))
    assert english and korean == english


def test_sections_are_about_the_same():
    """What stands between backquotes is never translated, so a fact that one of them lacks shows there."""
    named = [[sorted(set(re.findall(r"`[^`\n]+`", section))) for section in re.split(r"^## .*$", FENCE.sub("", read(name)), flags=re.MULTILINE)]
             for name in (ENGLISH, KOREAN)]
    assert named[0] == named[1]


def test_each_leads_to_the_other():
    assert read(KOREAN).split("\n\n")[1] == f"[English]({ENGLISH})"
    assert f"{KOREAN})" in read(ENGLISH).split("\n## ")[0]


@pytest.mark.parametrize("name", [ENGLISH, KOREAN])
def test_local_links_lead_somewhere(name):
    missing = [link for link in links(read(name)) if "://" not in link and not (ROOT / link.partition("#")[0]).exists()]
    assert not missing


@pytest.mark.parametrize("name", [ENGLISH, KOREAN])
def test_named_commands_exist(name):
    text = read(name)
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
    made = [line.split()[1] for line in commands(text, "make")]
    assert made and set(made) <= targets
    called = [line.split()[1] for line in commands(text, "llmlab")]
    assert called and set(called) <= set(main.commands)
    parameters = [
        parameter for program in ("llmlab", "papermill") for line in commands(text, program)
        for parameter in re.findall(r" -p (\w+) ", line)
    ]
    assert parameters and set(parameters) <= set(ExperimentConfig.model_fields)
