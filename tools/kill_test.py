"""Kill trainings with SIGKILL at random moments, resume each, and compare the end with that of a run that was left alone.

    python tools/kill_test.py --kills 40

A tiny model is trained, so that a kill takes seconds: in turn on rows that are held, and on rows that are streamed. What dies is papermill,
the kernel, or both; when is drawn at random, with a preference for the moments at which something is being written. A run is killed and
resumed until it ends; then weights, losses, curve, scores and answers must be those of the undisturbed run, to the last bit, in one record
and one MLflow run, and nothing half-written may lie beside them. A run that hangs ends the test.
"""
import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {"max_train_samples": 40, "max_eval_samples": 4, "num_samples": 1, "max_new_tokens": 4, "num_train_epochs": 2, "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2, "learning_rate": 0.01, "lora_dropout": 0.1, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 2}
STREAM = {
    **{name: value for name, value in SETTINGS.items() if name != "num_train_epochs"}, "streaming": "true",
    "max_steps": 18
}
KINDS = {"rows": SETTINGS, "stream": STREAM}
PATIENCE = 900  # seconds until a run counts as stuck
VICTIMS = ("papermill", "kernel", "both", "both")
PHASES = ("any moment", "training", "saving", "after training", "writing the notebook")


def read_json(path: Path) -> dict:
    "Read a JSON file; an empty dict where there is none."
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def read_lines(path: Path) -> list[dict]:
    "Read the complete lines of a jsonl file."
    return [
        json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.endswith("}")
    ] if path.exists() else []


def start(*parameters) -> subprocess.Popen:
    "Start the train notebook through papermill, in a session of its own; what it writes goes to a file, which cannot fill up as a pipe does."
    outside = ("MLFLOW_TRACKING_URI", "LLMLAB_RUN_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in outside} | {
        "MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_OFFLINE": "1"
    }
    words = [str(word) for name, value in parameters for word in ("-p", name, value)]
    log = tempfile.TemporaryFile("w+", encoding="utf-8")
    process = subprocess.Popen([sys.executable, "-m", "papermill", "train.ipynb", *words], cwd=ROOT / "nbs", env=environment, stdin=subprocess.DEVNULL,
                               stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    process.log = log
    return process


def wait_for(process: subprocess.Popen):
    "Wait until a run has ended; where it failed, end with what it wrote."
    if process.wait(PATIENCE):
        process.log.seek(0)
        raise SystemExit(f"A run failed by itself:\n{process.log.read()[-3000:]}")


def has_come(phase: str, folder: Path | None, step: int) -> bool:
    "Say whether a run is where it is to be killed: at or after an optimizer step, in the phases that know one."
    if folder is None:
        return False
    if phase == "training":
        return any("loss" in line and line["step"] >= step for line in read_lines(folder / "metrics.jsonl"))
    if phase == "saving":
        begun = [path for path in folder.glob("checkpoints/checkpoint-*") if int(path.name.split("-")[1]) >= step]
        return any(not (path / "complete.json").exists() for path in begun)
    if phase == "after training":
        return any("train_loss" in line for line in read_lines(folder / "metrics.jsonl"))
    return phase == "writing the notebook" and read_json(folder / "record.json").get("status") == "finished"


def kill(process: subprocess.Popen, folder: Path | None, victim: str) -> str:
    "Send SIGKILL to papermill, to the kernel or to both, or SIGTERM to papermill, and say where the run was."
    record = read_json(folder / "record.json") if folder else {}
    lines = read_lines(folder / "metrics.jsonl") if folder else []
    step = max((line["step"] for line in lines), default=0)
    state = ("no record yet" if not record else "finished" if record["status"] == "finished" else "after training" if any("train_loss" in line for line in lines)
             else f"step {step}" if step else "before training" if lines else "starting")
    kernel = record.get("process")
    if victim == "SIGTERM":
        process.terminate()
        process.wait(120)
        return state
    if kernel not in (None, process.pid) and victim != "papermill":
        try:
            os.kill(kernel, signal.SIGKILL)
        except ProcessLookupError:
            pass
    if victim != "kernel" or kernel in (None, process.pid):
        os.kill(process.pid, signal.SIGKILL)
    process.wait(120)
    return state


def run_and_kill(
    parameters: list, output: Path, phase: str, choice: random.Random, duration: float = 20.0, victims: tuple = VICTIMS
) -> tuple[str | None, str]:
    "Start a run and kill it in a phase; return where it was (None: it ended first), and what was killed."
    process, began, known = start(*parameters), time.monotonic(), set(output.glob("*/record.json"))
    resumed = next((Path(value) for name, value in parameters if name == "resume"), None)
    moment, step, victim = choice.uniform(0, 1.2 * duration), choice.randint(1, 18), choice.choice(victims)
    while process.poll() is None:
        if time.monotonic() - began > PATIENCE:
            os.killpg(process.pid, signal.SIGKILL)
            raise SystemExit(f"A run hangs: {parameters}")
        new = set(output.glob("*/record.json")) - known
        folder = resumed or (new.pop().parent if new else None)
        lived = read_json(folder / "record.json").get("process") if folder else None
        if phase == "any moment" and time.monotonic() - began > moment or phase != "any moment" and lived not in (None, process.pid) and has_come(phase, folder, step):
            time.sleep(
                choice.uniform(0, 0.3) if phase in ("after training", "writing the notebook")
                else choice.uniform(0, 0.02)
            )
            if process.poll() is None:
                return kill(process, folder, victim), victim
        time.sleep(0.002)
    wait_for(process)
    return None, victim


def outcome(folder: Path) -> dict:
    "Collect what must be the same at the end, however often a run was killed."
    record, machine = read_json(folder / "record.json"), ("time", "before_runtime", "eval_runtime", "after_runtime")
    curve = [
        {name: value for name, value in line.items() if name not in machine}
        for line in read_lines(folder / "metrics.jsonl") if "train_runtime" not in line
    ]
    scores = {name: value for name, value in record["metrics"].items() if not name.endswith(("_runtime", "_bytes"))}
    left = sorted(re.sub(r"\d+", "N", path.name) for path in folder.rglob(".*"))
    return {"status": record["status"], "half-written": left, "adapter": record["adapter_sha256"], "trace": record["loss_trace_sha256"], "metrics": scores,
            "curve": sorted(curve, key=lambda line: (line["step"], sorted(line))), "answers": (folder / "samples.jsonl").read_text(encoding="utf-8"),
            "page": (folder / "train.html").exists()}


def undisturbed(output: Path, model: Path, kind: str = "rows", **settings) -> tuple[Path, float]:
    "Run the experiment to its end; return its folder and the seconds it took."
    began, process = time.monotonic(), start(*{**KINDS[kind], "model": model, "output_dir": output, **settings}.items())
    wait_for(process)
    return next(output.glob("*/record.json")).parent, time.monotonic() - began


def main():
    "Kill until as many kills are done as wanted, and all runs have ended."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument(
        "--terminate", action="store_true", help="send SIGTERM to papermill now and then, instead of SIGKILL"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from llmlab.models.testing import save_tiny_checkpoint
    from llmlab.runs.tracking import connect

    choice, kills, ended, wrong, kind = random.Random(arguments.seed), 0, 0, 0, "rows"
    with tempfile.TemporaryDirectory() as place:
        model, output, current, expected = save_tiny_checkpoint(Path(place) / "tiny"), Path(place) / "killed", None, {}
        for name in KINDS:
            folder, duration = undisturbed(Path(place) / name, model, name)
            expected[name] = outcome(folder)
            print(f"{name}, undisturbed: {duration:.0f} s, adapter {expected[name]['adapter'][:16]}, losses {expected[name]['trace'][:16]}", flush=True)
        while kills < arguments.kills or current:
            kind = kind if current else ("rows" if kills < arguments.kills / 2 else "stream")
            is_over = kills >= arguments.kills or kind == "rows" and kills >= arguments.kills / 2
            phase = "never" if is_over else choice.choice(PHASES)
            parameters = [("resume", current), ("output_dir", output)] if current else [
                *{**KINDS[kind], "model": model, "output_dir": output}.items()
            ]
            known = set(output.glob("*/record.json"))
            state, victim = run_and_kill(
                parameters, output, phase, choice, duration,
                (*VICTIMS, "SIGTERM", "SIGTERM") if arguments.terminate else VICTIMS
            )
            current = current or next((path.parent for path in set(output.glob("*/record.json")) - known), None)
            page = False
            if state:
                kills += 1
                print(f"kill {kills:2}: {kind:6} {state:16} of {victim:10} (wanted: {phase})", flush=True)
                page = current and (current / "train.html").exists() and read_json(current / "record.json").get("status") == "finished"
            if current and (not state or page):  # killed when all was written: there is nothing to go on with
                found, ended = outcome(current), ended + 1
                different = [name for name in expected[kind] if found[name] != expected[kind][name]]
                wrong += bool(different)
                print(f"  ended: {'DIFFERENT in ' + ', '.join(different) if different else 'identical, adapter ' + found['adapter'][:16]}", flush=True)
                current = None
        client = connect(f"sqlite:///{output / 'mlflow.db'}")
        tracked = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
        records = [read_json(path)["mlflow_run_id"] for path in output.glob("*/record.json")]
    print(f"{kills} kills, {ended} runs ended, {wrong} of them different; {len(records)} records, {len(tracked)} MLflow runs")
    sys.exit(1 if wrong or len(tracked) != len(records) else 0)


if __name__ == "__main__":
    main()
