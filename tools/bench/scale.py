"""Measure how time and memory grow: with the questions of a paragraph, with the context's length, with the number of rows.

    make scale                                   # all three; about 15 minutes on two cores
    make scale ARGS="--only questions context"   # parts of it
    make scale ARGS="--only rows --rows 1000 10000"

Each measurement is a process of its own. Figures go to nbs/bench/scale.json, a point in place of what it had before.
"""
import argparse
import datetime
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from compare import HERE, ROOT, environment, machine, run_one
from flops import count_work, sizes_of
from report import table

RESULTS = ROOT / "nbs" / "bench" / "scale.json"
QUESTIONS, CONTEXTS, ROWS = (1, 2, 4, 8, 16, 32), (256, 512, 1024, 2048, 4096), (1_000, 10_000, 100_000, 1_000_000)


def made_examples(
    context: int, questions: int, own: int = 40, answer: int = 8, vocabulary: int = 40_000, seed: int = 1
) -> list:
    """Make one paragraph of `context` tokens and questions of `own` tokens on it with answers, all drawn by chance: only their lengths matter here."""
    draw = random.Random(seed)

    def tokens(count):
        return [draw.randrange(1000, vocabulary) for _ in range(count)]

    paragraph, examples = tokens(context), []
    for _ in range(questions):
        prompt, learned = paragraph + tokens(own), tokens(answer)
        examples.append(
            {"input_ids": prompt + learned, "labels": [-100] * len(prompt) + learned, "prompt_length": len(prompt)}
        )
    return examples


def base_task(model: str, folder: str) -> dict:
    """Prepare the model once, in a process of its own, and return its task with the examples left out."""
    subprocess.run([sys.executable, str(HERE / "prepare.py"), folder, "instruct", model, "lab-ko-instruct", "1", "42"], check=True, cwd=ROOT,
                   env=environment(2), stdin=subprocess.DEVNULL)
    return json.loads(Path(folder, "task.json").read_text())


def measure_steps(model: str, shapes: list, batchings: list, limit: float):
    """Yield a line for each shape and way of batching: (kind, context, questions)."""
    with tempfile.TemporaryDirectory() as folder:
        task = base_task(model, folder)
        sizes = sizes_of(json.loads(Path(task["model"], "config.json").read_text()))
        for kind, context, questions in shapes:
            examples = made_examples(context, questions)
            path = Path(folder, f"{context}-{questions}.json")
            path.write_text(
                json.dumps({**task, "examples": examples, "work": count_work(examples, sizes, task["lora_r"])})
            )
            for batching in batchings:
                done = run_one("with_lab.py", None, path, batching, 2, limit)
                kept = {name: done[name] for name in (
                    "failed", "seconds", "cpu_seconds", "peak_bytes", "growth_bytes", "computed_tokens", "loss"
                ) if name in done}
                yield {"part": kind, "model": model, "context": context, "questions": questions, "batching": batching, "tokens": sum(
                    len(example["input_ids"]) for example in examples), **kept}


def write_rows(path: Path, count: int):
    """Write rows of questions and answers to a file, one after another, none held."""
    words = "강 산 바다 하늘 나무 길 사람 마을 학교 시장 책 노래 시간 날씨 여름 겨울 아침 저녁 음식 이야기".split()
    draw = random.Random(7)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            answer = " ".join(draw.choices(words, k=draw.randint(10, 40)))
            file.write(json.dumps(
                {"instruction": f"{number}번째 질문: {' '.join(draw.choices(words, k=8))}?", "output": answer},
                ensure_ascii=False
            ) + "\n")


def prepare_rows(path: str, folder: str, model: str, streaming: bool):
    """In a process of its own: read, check, split and tokenize rows as a run does; print seconds and memory. Streaming: one pass over all training rows."""
    from clock import cpu_seconds, peak_bytes, resident_bytes
    from llmlab.data.load import load_data
    from llmlab.models.checkpoints import load_tokenizer, locate_model
    from llmlab.tokens.encode import encode_rows, encode_stream
    from llmlab.tokens.prompts import find_prompt

    tokenizer, prompt = load_tokenizer(locate_model(model).path), find_prompt("lab")
    # imports and such
    encode_rows(
        [{"question": "가", "answer": "나", "input": "", "context": "", "system": "", "history": []}], prompt, tokenizer,
        512, cache_dir=folder
    )
    before, started, cpu = resident_bytes(), time.perf_counter(), cpu_seconds()
    data = load_data(path, cache_dir=folder, streaming=streaming, max_eval_samples=200)
    read = time.perf_counter() - started
    if streaming:
        count = sum(1 for _ in encode_stream(data.train, prompt, tokenizer, 512))
    else:
        count = len(
            encode_rows(data.train, prompt, tokenizer, 512, cache_dir=folder, preprocessing_num_workers=1).examples
        )
    print("\n" + json.dumps({"examples": count, "seconds": time.perf_counter() - started, "reading_seconds": read, "cpu_seconds": cpu_seconds() - cpu,
                             "peak_bytes": peak_bytes(), "before_bytes": before, "private_bytes": private_bytes()}))


def private_bytes() -> int | None:
    """Read the memory that is this process's own now, less mapped files that the system may drop; None where that cannot be read."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines["RssAnon"].split()[0]) * 1024
    except (OSError, KeyError):
        return None


def measure_rows(model: str, counts: list, limit: float):
    """Yield a line for each number of rows, as an ordinary set and as a stream."""
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            write_rows(Path(folder, "rows.jsonl"), count)
            for streaming in (False, True):
                try:
                    done = subprocess.run([sys.executable, __file__, "--inside", f"{folder}/rows.jsonl", f"{folder}/cache", model, str(streaming)], cwd=ROOT, text=True,
                                          capture_output=True, stdin=subprocess.DEVNULL, env=environment(2), timeout=limit)
                    found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {
                        "failed": done.stderr.strip().splitlines()[-1]
                    }
                except subprocess.TimeoutExpired:
                    found = {"failed": f"took more than {limit:.0f} s"}
                yield {"part": "rows", "model": model, "rows": count, "streaming": streaming, **found}


def keep(path: Path, line: dict):
    """Put a line into the file, in place of the one of the same point."""
    point = ("part", "model", "context", "questions", "batching", "rows", "streaming")
    known = json.loads(path.read_text(encoding="utf-8"))["lines"] if path.exists() else []
    others = [old for old in known if any(old.get(name) != line.get(name) for name in point)]
    path.parent.mkdir(parents=True, exist_ok=True)
    line = {**line, "date": datetime.date.today().isoformat(), "machine": machine()}
    path.write_text(json.dumps({"lines": [*others, line]}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def plot(lines: list):  # a matplotlib figure
    """Draw seconds and memory for each part."""
    from matplotlib import pyplot

    time_of = {"questions": "seconds", "context": "seconds", "rows": "cpu_seconds"}  # rows are prepared by one process
    labels = {
        "questions": "questions on one paragraph of 512 tokens", "context": "tokens of the context of 8 questions",
        "rows": "rows prepared"
    }
    figure, axes = pyplot.subplots(2, 3, figsize=(11, 5.6), layout="constrained")
    for column, (part, measured) in zip(axes.T, time_of.items()):
        own = [line for line in lines if line["part"] == part and "failed" not in line]
        for series in dict.fromkeys((line["model"], line.get("batching"), line.get("streaming")) for line in own):
            points = sorted((line[part], line[measured], line["peak_bytes"] / 2**30) for line in own
                            if (line["model"], line.get("batching"), line.get("streaming")) == series)
            label = f"{series[0]}, {series[1] or ('stream' if series[2] else 'set on disk')}"
            for axis, place in zip(column, (1, 2)):
                axis.plot(
                    [point[0] for point in points], [point[place] for point in points], marker="o", markersize=3,
                    label=label
                )
        for axis, measure in zip(column, ("processor seconds" if measured == "cpu_seconds" else "seconds", "peak GiB")):
            axis.set(xscale="log", xlabel=labels[part], ylabel=measure)
            axis.spines[["top", "right"]].set_visible(False)
        ticks = sorted({line[part] for line in own})
        for axis in column:
            axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=7)
            axis.minorticks_off()
        if own:
            column[0].set_yscale("log")
            column[0].yaxis.set_major_formatter("{x:g}")
            column[0].yaxis.set_minor_formatter("" if part == "rows" else "{x:g}")
            column[0].tick_params(axis="y", which="both", labelsize=7)
            column[1].set_ylim(bottom=0)
            column[1].legend(fontsize=6)
    return figure


def scale_table(lines: list, part: str, names: list) -> str:
    """Write the points of one part as a table; what was not measured stays empty."""
    def cell(line, name):
        if name.endswith("seconds") and "failed" in line:
            return line["failed"]
        value = line.get(name)
        return "" if value is None else f"{value:,.2f}" if name.endswith("seconds") else f"{value / 2**30:,.2f}" if name.endswith("bytes") else str(value)

    titles = [name.replace("_bytes", " GiB").replace("cpu_seconds", "processor seconds") for name in names]
    return table(titles, [[cell(line, name) for name in names] for line in lines if line["part"] == part])


def main():
    if sys.argv[1:2] == ["--inside"]:
        return prepare_rows(*sys.argv[2:5], streaming=sys.argv[5] == "True")
    parser = argparse.ArgumentParser(prog="make scale ARGS=...", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--only", nargs="+", choices=("questions", "context", "rows"), default=["questions", "context", "rows"]
    )
    parser.add_argument("--models", nargs="+", default=["smollm2-135m"])
    parser.add_argument("--batching", nargs="+", default=["tree", "padded-1"])
    parser.add_argument("--questions", nargs="+", type=int, default=QUESTIONS)
    parser.add_argument("--contexts", nargs="+", type=int, default=CONTEXTS)
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--limit", type=float, default=1800, help="seconds a measurement may take")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    shapes = [("questions", 512, count) for count in options.questions if "questions" in options.only]
    shapes += [("context", length, 8) for length in options.contexts if "context" in options.only]
    for model in options.models:
        steps = measure_steps(model, shapes, options.batching, options.limit) if shapes else ()
        for line in steps:
            keep(options.results, line)
            print(json.dumps(line), flush=True)
        for line in measure_rows(model, options.rows, options.limit) if "rows" in options.only else ():
            keep(options.results, line)
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
