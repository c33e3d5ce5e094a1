"""Measure how near plans come: train each setting for real, two steps in a process of its own, and compare its peak with the plan's.

    python tools/measure_plan.py            # all settings, about 15 minutes on two cores; writes tools/plan_measured.json
    python tools/measure_plan.py 3 7        # only these, printed
"""
import json
import platform
import random
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

TABLE = Path(__file__).with_name("plan_measured.json")
GEMMA, SMOLLM = dict(model="gemma3-270m"), dict(model="smollm2-135m")
SETTINGS = [  # per_device_train_batch_size, max_length, and the rest
    (4, 256, GEMMA),
    (8, 128, GEMMA | dict(target_modules="all-linear")),
    (1, 1024, GEMMA),
    (4, 512, GEMMA | dict(gradient_checkpointing=True)),
    (4, 256, GEMMA | dict(load_in_4bit=True)),
    (2, 256, GEMMA | dict(dtype="bfloat16")),
    (4, 512, SMOLLM),
    (1, 1024, SMOLLM | dict(target_modules="all-linear")),
    (8, 256, SMOLLM | dict(gradient_checkpointing=True, target_modules="all-linear", lora_r=32)),
    (4, 256, SMOLLM | dict(load_in_4bit=True, bnb_4bit_use_double_quant=True, target_modules="all-linear")),
    (2, 256, SMOLLM | dict(use_peft=False, gradient_accumulation_steps=2)),
    (2, 512, SMOLLM | dict(bf16=True, training_args={"use_cpu": True})),
    (4, None, SMOLLM | dict(dataset="lab-ko-instruct")),
]
TIMED = (0, 6)  # settings of which the time is compared as well


def write_rows(path: Path, seed: int, count: int = 24):
    """Write rows that are longer than any max_length here, from the lab's own texts."""
    from llmlab.config import call_with, make_config
    from llmlab.data import load_data

    rows = list(call_with(load_data, make_config({})).train)
    order = random.Random(seed)
    texts = ["\n".join(row["question"] + " " + row["answer"] for row in order.sample(rows, 80)) for _ in range(count)]
    path.write_text("\n".join(json.dumps({"question": f"{seed}-{number}", "answer": text}, ensure_ascii=False) for number, text in enumerate(texts)))


def complete(number: int, folder: str) -> dict:
    """Write out the parameters of a setting."""
    size, length, settings = SETTINGS[number]
    data = {} if length is None else dict(dataset=f"{folder}/train.jsonl", eval_dataset=f"{folder}/held_out.jsonl", max_eval_samples=size, max_length=length)
    return {"per_device_train_batch_size": size, "per_device_eval_batch_size": size, "gradient_accumulation_steps": 1, "max_steps": 2, "eval_strategy": "no",
            "report_to": [], **data, **settings}


def train(settings: dict) -> dict:
    """Train as the train notebook does; return the peak and the seconds of training and evaluation."""
    from llmlab.config import call_with, make_config
    from llmlab.data import load_data
    from llmlab.models import load_tokenizer, locate_model
    from llmlab.packing import encode_rows
    from llmlab.prompts import choose_prompt, find_prompt
    from llmlab.training import build_model, make_trainer, peak_memory, run_training

    config = make_config(settings)
    checkpoint = call_with(locate_model, config)
    tokenizer, data = call_with(load_tokenizer, config, path=checkpoint.path), call_with(load_data, config)
    shared = dict(prompt=find_prompt(choose_prompt(config.prompt, checkpoint.preset)), tokenizer=tokenizer)
    rows = call_with(encode_rows, config, rows=data.train, **shared), call_with(encode_rows, config, rows=data.held_out, held_out=True, **shared)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(config, build_model(config, checkpoint), tokenizer, rows[0].examples, rows[1].examples, folder)
        started = time.perf_counter()
        run_training(trainer)
    return {"peak": peak_memory(), "seconds": time.perf_counter() - started}


def plan(settings: dict, probe: bool) -> dict:
    """Plan the same."""
    from llmlab.config import make_config
    from llmlab.plan import make_plan

    planned = make_plan(make_config(settings), probe=probe, knobs=False)
    return {"peak": planned.peak, "seconds": planned.seconds, "phase": planned.phase, "parts": planned.parts}


def in_child(what: str, *values) -> dict:
    """Run one of the above in a process of its own."""
    done = subprocess.run([sys.executable, __file__, what, json.dumps(values)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def measure(numbers: list[int]) -> list[dict]:
    """Plan and train the settings, one after the other."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder) / "train.jsonl", 1)
        write_rows(Path(folder) / "held_out.jsonl", 2)
        for number in numbers:
            size, length, settings = SETTINGS[number]
            planned, trained = in_child("plan", complete(number, folder), number in TIMED), in_child("train", complete(number, folder))
            rows.append({"settings": {**settings, "per_device_train_batch_size": size, "max_length": length or "as it is"}, "planned": planned, "measured": trained})
            seconds = f", {planned['seconds']:.0f} and {trained['seconds']:.0f} s" if planned["seconds"] else ""
            print(f"{number:>2} {planned['peak'] / 2**20:8,.0f} {trained['peak'] / 2**20:8,.0f} MiB {planned['peak'] / trained['peak'] - 1:+6.1%}"
                  f"{seconds}  {rows[-1]['settings']}", flush=True)
    return rows


if __name__ == "__main__":
    if sys.argv[1:2] in (["plan"], ["train"]):
        print(json.dumps({"plan": plan, "train": train}[sys.argv[1]](*json.loads(sys.argv[2]))))
    else:
        chosen = [int(word) for word in sys.argv[1:]]
        measured = measure(chosen or list(range(len(SETTINGS))))
        if not chosen:
            machine = f"{platform.system()} {platform.machine()}, {len(__import__('os').sched_getaffinity(0))} cores"
            versions = {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")}
            TABLE.write_text(json.dumps({"machine": machine, "versions": versions, "rows": measured}, indent=1, ensure_ascii=False) + "\n")
