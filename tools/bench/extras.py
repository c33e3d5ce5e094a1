"""What preparation costs, and what the notebook costs over a plain script: rows into tokens, and one training of a tiny model both ways. Prints one JSON line."""
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
ROWS, REPEATS = 20_000, 3


def measure_preparation(model: str, source: str, processes: int) -> dict:
    """Turn rows (the bundled ones, over and over, each with a mark of its own) into tokens on disk, nothing from the cache."""
    from datasets import Dataset
    from llmlab.models.checkpoints import load_tokenizer, locate_model
    from llmlab.tokens.encode import encode_rows
    from llmlab.tokens.prompts import find_prompt
    from prepare import read_rows

    own = read_rows(source)
    rows = Dataset.from_list([
        {**own[number % len(own)], "question": f"{own[number % len(own)]['question']} ({number})"}
        for number in range(ROWS)
    ])
    tokenizer, prompt = load_tokenizer(locate_model(model).path), find_prompt("lab")
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        encoded = encode_rows(rows, prompt, tokenizer, 2048, cache_dir=folder, preprocessing_num_workers=processes)
        seconds = time.perf_counter() - started
    tokens = sum(length * count for length, count in encoded.tokens.lengths.items())
    return {
        "data": source, "model": model, "rows": len(rows), "tokens": tokens, "processes": processes, "seconds": seconds
    }


def script_of(parameters: dict) -> str:
    """Write the train notebook's cells one after another as a script, with these parameters."""
    cells = json.loads((ROOT / "nbs" / "train.ipynb").read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        parts.append("".join(cell["source"]))
        if "parameters" in cell["metadata"].get("tags", []):
            parts += [f"{name} = {value!r}" for name, value in parameters.items()]
    return "\n\n".join(part for part in parts if not part.startswith("%"))


def timed(command: list, folder: str) -> float:
    """Run a command in a process of its own, and return its seconds."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{command[:3]} failed: {done.stderr[-1500:]}")
    return seconds


def measure_notebook() -> dict:
    """Train a tiny model once as a script and once as the notebook, the same cells both times, in turn."""
    from llmlab.models.testing import save_tiny_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        save_tiny_checkpoint(f"{folder}/tiny")
        parameters = dict(model=f"{folder}/tiny", output_dir=f"{folder}/runs", max_steps=2, max_train_samples=8, max_eval_samples=4, report_to=[], num_samples=0,
                          max_length=512)
        Path(folder, "settings.yaml").write_text(json.dumps(parameters))
        Path(folder, "train.py").write_text(script_of(parameters), encoding="utf-8")
        pairs = [(timed([sys.executable, f"{folder}/train.py"], str(ROOT)), timed([str(Path(sys.executable).with_name("papermill")), str(ROOT / "nbs" / "train.ipynb"),
                  f"{folder}/out-{number}.ipynb", "-f", f"{folder}/settings.yaml"], str(ROOT))) for number in range(REPEATS)]
    script, notebook = map(statistics.median, zip(*pairs))
    return {"script_seconds": script, "notebook_seconds": notebook, "repeats": REPEATS}


def main():
    preparation = [measure_preparation(model, source, processes) for model, source in (("gemma3-270m", "lab-ko-mrc"), ("smollm2-135m", "lab-ko-instruct"))
                   for processes in sorted({1, len(os.sched_getaffinity(0))})]
    print("\n" + json.dumps({"preparation": preparation, "notebook": measure_notebook()}))


if __name__ == "__main__":
    main()
