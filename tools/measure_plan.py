"""Measure how near plans come: train each setting for real, two steps in a process of its own, and compare its peak with the plan's.

    python tools/measure_plan.py                 # all settings, some 10 minutes on two cores
    python tools/measure_plan.py smollm gemma    # only these
    python tools/measure_plan.py --plan-again    # with what was measured before, after a change of plans

Each is written into tools/plan_measured.json, which the plan notebook shows, as soon as it is measured.
"""
import json
import os
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
SETTINGS = {  # name: per_device_train_batch_size, max_length, and the rest
    "smollm": (2, 256, SMOLLM),
    "smollm-full": (2, 256, SMOLLM | dict(use_peft=False, gradient_accumulation_steps=2, pack_tokens=512)),
    "smollm-all-linear": (1, 512, SMOLLM | dict(target_modules="all-linear", lora_r=32)),
    "smollm-checkpointing": (4, 256, SMOLLM | dict(gradient_checkpointing=True, target_modules="all-linear")),
    "smollm-4bit": (2, 256, SMOLLM | dict(load_in_4bit=True, bnb_4bit_use_double_quant=True, target_modules="all-linear")),
    "smollm-bf16": (2, 256, SMOLLM | dict(bf16=True, training_args={"use_cpu": True})),
    "smollm-padded": (2, 256, SMOLLM | dict(batching="padded")),
    "gemma": (2, 256, GEMMA),
    "gemma-4bit": (2, 128, GEMMA | dict(load_in_4bit=True)),
    "gemma-bfloat16": (2, 128, GEMMA | dict(dtype="bfloat16")),
    "gemma-padded": (4, 128, GEMMA | dict(target_modules="all-linear", batching="padded")),
    "gemma-checkpointing": (2, 512, GEMMA | dict(gradient_checkpointing=True)),
    "gemma-mrc": (4, None, GEMMA | dict(dataset="lab-ko-mrc")),
    "gemma-full": (2, 128, GEMMA | dict(use_peft=False)),
}
TIMED = ("gemma-mrc",)  # settings of which the time is compared as well


def write_rows(path: Path, seed: int, count: int = 24):
    """Write rows that are longer than any max_length here, from the lab's own texts."""
    from llmlab.config.load import make_config
    from llmlab.data.load import load_data

    rows = list(load_data(make_config({})).train)
    order = random.Random(seed)
    texts = ["\n".join(row["question"] + " " + row["answer"] for row in order.sample(rows, 80)) for _ in range(count)]
    path.write_text("\n".join(
        json.dumps({"question": f"{seed}-{number}", "answer": text}, ensure_ascii=False) for number,
        text in enumerate(texts)
    ))


def complete(name: str, folder: str) -> dict:
    """Write out the parameters of a setting."""
    size, length, settings = SETTINGS[name]
    data = {} if length is None else dict(
        dataset=f"{folder}/train.jsonl", eval_dataset=f"{folder}/held_out.jsonl", max_eval_samples=size,
        max_length=length
    )
    return {"per_device_train_batch_size": size, "per_device_eval_batch_size": size, "gradient_accumulation_steps": 1, "max_steps": 2, "eval_strategy": "no",
            "report_to": [], **data, **settings}


def train(settings: dict) -> dict:
    """Train as the train notebook does; return the peak and the seconds of training and evaluation."""
    from llmlab.config.load import make_config
    from llmlab.data.load import load_data
    from llmlab.models.checkpoints import load_tokenizer, locate_model
    from llmlab.tokens.encode import encode_rows
    from llmlab.tokens.prompts import choose_prompt, find_prompt
    from llmlab.training.trainer import build_model, make_trainer, run_training
    from llmlab.common.device import peak_memory

    config = make_config(settings)
    checkpoint = locate_model(config)
    tokenizer, data = load_tokenizer(checkpoint.path, config), load_data(config)
    shared = dict(prompt=find_prompt(choose_prompt(config.prompt, checkpoint.preset)), tokenizer=tokenizer)
    rows = encode_rows(data.train, settings=config, **shared), encode_rows(
        data.held_out, settings=config, held_out=True, **shared
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            config, build_model(config, checkpoint), tokenizer, rows[0].examples, rows[1].examples, folder
        )
        started = time.perf_counter()
        run_training(trainer)
    return {"peak": peak_memory(), "seconds": time.perf_counter() - started}


def plan(settings: dict, probe: bool) -> dict:
    """Plan the same."""
    from llmlab.config.load import make_config
    from llmlab.experiment.plan import make_plan

    planned = make_plan(make_config(settings), probe=probe)
    return {"peak": planned.peak, "seconds": planned.seconds, "phase": planned.phase, "parts": planned.parts}


def in_child(what: str, *values) -> subprocess.Popen:
    """Begin one of the above in a process of its own."""
    return subprocess.Popen(
        [sys.executable, __file__, what, json.dumps(values)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def result(child: subprocess.Popen) -> dict:
    """Wait for what a process says."""
    output, errors = child.communicate()
    if child.returncode:
        raise SystemExit(errors[-3000:])
    return json.loads(output.splitlines()[-1])


def measure(name: str, trained: dict | None = None) -> dict:
    """Plan a setting, and train it, unless that was done."""
    size, length, settings = SETTINGS[name]
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder) / "train.jsonl", 1)
        write_rows(Path(folder) / "held_out.jsonl", 2)
        planning = in_child("plan", complete(name, folder), name in TIMED)
        planned = result(planning) if name in TIMED else None
        trained = trained or result(in_child("train", complete(name, folder)))
        planned = planned or result(planning)  # memory does not mind company, time does
    shown = {**settings, "per_device_train_batch_size": size, **({"max_length": length} if length else {})}
    return {"settings": shown, "planned": planned, "measured": trained, "error": planned["peak"] / trained["peak"] - 1}


def keep(name: str, row: dict):
    """Write a setting's row into the table, beside the others."""
    table = json.loads(TABLE.read_text()) if TABLE.is_file() else {"rows": {}}
    rows = {**table["rows"], name: row}
    versions = {package: version(package) for package in ("torch", "transformers", "peft", "bitsandbytes")}
    machine = f"{platform.system()} {platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    table = {"machine": machine, "versions": versions, "rows": {name: rows[name] for name in SETTINGS if name in rows}}
    TABLE.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] in (["plan"], ["train"]):
        print(json.dumps({"plan": plan, "train": train}[sys.argv[1]](*json.loads(sys.argv[2]))))
    else:
        again = "--plan-again" in sys.argv
        for name in [word for word in sys.argv[1:] if not word.startswith("--")] or SETTINGS:
            row = measure(name, json.loads(TABLE.read_text())["rows"][name]["measured"] if again else None)
            keep(name, row)
            seconds = f", {row['planned']['seconds']:.0f} and {row['measured']['seconds']:.0f} s" if name in TIMED else ""
            print(f"{name:<24} {row['planned']['peak'] / 2**20:8,.0f} {row['measured']['peak'] / 2**20:8,.0f} MiB {row['error']:+6.1%} "
                  f"({row['planned']['phase']}){seconds}", flush=True)
