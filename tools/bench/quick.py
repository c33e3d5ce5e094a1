"""Measure what a command costs before it answers: processor seconds, the median of several runs, each a process of its own.

    python tools/bench/quick.py                          # a minute; writes nbs/bench/quick.json
    python tools/bench/quick.py --root ../older --keep before    # the same of another checkout, kept under that name

Processor time is nearly the same on a busy machine, where the time on the clock is not.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from compare import ROOT, machine

RESULTS = ROOT / "nbs" / "bench" / "quick.json"
CALL = "import sys; from llmlab.commands.cli import main; main(sys.argv[1:], prog_name='llmlab')"
START = """
import os, subprocess, sys

class Started(subprocess.Popen):
    def __init__(self, words, *others, **named):
        if "ipykernel" in str(words):
            os._exit(0)
        super().__init__(words, *others, **named)

subprocess.Popen = Started
"""
RUNS = ["20261125-211836", "20261125-212115"]  # in the gallery
COMMANDS = {  # what is asked -> words, the statement before them
    "--help": (["--help"], ""),
    "a misspelt parameter": (["train", "-p", "learning_rat", "1e-4"], ""),
    "a misspelt model": (["train", "-p", "model", "gema3-270m"], ""),
    "presets": (["presets"], ""),
    "compare of two runs": (["compare", *RUNS], ""),
    "train, until its kernel starts": (["train", "-p", "output_dir", "FOLDER"], START),
}


def processor_seconds(words: list[str], before: str, root: Path) -> float:
    """Run a command in a checkout; return the seconds of processor time that it and its children took."""
    with tempfile.TemporaryDirectory() as folder:
        words = [folder if word == "FOLDER" else word for word in words]
        process = subprocess.Popen([sys.executable, "-c", before + CALL, *words], cwd=root, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        usage = os.wait4(process.pid, 0)[2]
    return usage.ru_utime + usage.ru_stime


def main():
    """Measure, keep the figures, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeat", type=int, default=5, help="runs of each command")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to measure")
    parser.add_argument("--keep", default="now", help="name of the figures")
    options = parser.parse_args()
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    figures = {}
    for name, (words, before) in COMMANDS.items():
        seconds = [processor_seconds(words, before, options.root) for _ in range(options.repeat)]
        figures[name] = round(statistics.median(seconds), 2)
        print(f"{name:<32}{figures[name]:>8.2f} s", flush=True)
    kept[options.keep] = {"seconds": figures, "repeat": options.repeat, "machine": machine()}
    RESULTS.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
