"""Train several small experiments, run each again from its record, and print whether both came out the same to the last bit.

    python tools/verify_gallery.py                          # the six below; on two cores some minutes each
    python tools/verify_gallery.py --settings mine.yaml     # a YAML list of parameters, an experiment an entry
    python tools/verify_gallery.py --runs runs/2026*        # records that are there already: only the rerun
"""
import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import yaml

SMALL = {
    "max_steps": 6, "max_train_samples": 48, "max_eval_samples": 6, "num_samples": 2, "max_new_tokens": 16,
    "max_length": 512, "report_to": "[]"
}
EXPERIMENTS = [
    {"model": "gemma3-270m", "dataset": "lab-ko-mrc", "batching": "tree"},
    {"model": "gemma3-270m", "dataset": "lab-ko-instruct", "batching": "packed", "lora_dropout": 0.1},
    {"model": "gemma3-270m", "dataset": "lab-ko-mrc", "batching": "padded", "load_in_4bit": True},
    {"model": "smollm2-135m", "dataset": "lab-ko-instruct", "batching": "tree"},
    {"model": "smollm2-135m", "dataset": "lab-ko-mrc", "batching": "packed", "load_in_4bit": True},
    {"model": "smollm2-135m", "dataset": "lab-ko-instruct+lab-ko-mrc", "batching": "padded", "lora_dropout": 0.1},
]


def lab(*words) -> subprocess.CompletedProcess:
    "Run a command of the lab beside this Python."
    return subprocess.run(
        [sys.executable, "-c", "from llmlab.commands.cli import main; main()", *map(str, words)], text=True,
        capture_output=True, stdin=subprocess.DEVNULL
    )


def records(output: Path) -> set[Path]:
    "List the runs in a folder."
    return {path.parent for path in output.glob("*/record.json")}


def train(settings: dict, output: Path) -> Path | None:
    "Train once; return the run's folder, or None with a word where it failed."
    known, parameters = records(output), {**SMALL, **settings, "output_dir": str(output)}
    done = lab("train", "-y", yaml.safe_dump(parameters, allow_unicode=True))
    if done.returncode:
        print(f"{settings}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    return (records(output) - known).pop()


def verify(folder: Path) -> dict:
    "Run a record again and return what `verify.json` says, with the exit status."
    known = records(folder.parent)
    done = lab("rerun", folder, "--verify")
    new = (records(folder.parent) - known) or {folder}
    report = new.pop() / "verify.json"
    if not report.exists():
        print(done.stderr, file=sys.stderr)
    return {
        **(json.loads(report.read_text(encoding="utf-8")) if report.exists() else {"identical": False, "checks": []}),
        "status": done.returncode
    }


def main():
    "Train, rerun, and print the table."
    from llmlab.common.display import text_table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=Path, help="a YAML list of parameters")
    parser.add_argument("--runs", type=Path, nargs="*", help="folders of finished runs")
    parser.add_argument("--output-dir", type=Path, default=Path("runs"), help="where new runs go")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the experiments to run, from 1")
    arguments = parser.parse_args()
    experiments = arguments.runs or (
        yaml.safe_load(arguments.settings.read_text(encoding="utf-8")) if arguments.settings else EXPERIMENTS
    )
    rows, output = [], arguments.output_dir.resolve()
    for number, experiment in enumerate(experiments, 1):
        if arguments.only and number not in arguments.only:
            continue
        began, named = time.monotonic(), isinstance(experiment, Path)
        folder = experiment.resolve() if named else train(experiment, output)
        report = verify(folder) if folder else {"identical": False, "checks": [], "status": "not trained"}
        same = {check["what"]: "same" if check["same"] else "DIFFERENT" for check in report["checks"]}
        answers = {value for name, value in same.items() if name.startswith("answers")}
        rows.append([number, folder.name if named else ", ".join(f"{name}={value}" for name, value in experiment.items()), *(same.get(name, "-") for name in ("data", "loss trace", "adapter")),
                     "-" if not answers else "same" if answers == {"same"} else "DIFFERENT", report["status"], f"{time.monotonic() - began:.0f} s"])
        print(f"{number}: {'identical' if report['identical'] else 'NOT identical'}", file=sys.stderr, flush=True)
    print(text_table(["", "experiment", "data", "losses", "weights", "answers", "exit", "took"], rows))
    sys.exit(0 if rows and all(row[6] == 0 for row in rows) else 1)


if __name__ == "__main__":
    main()
