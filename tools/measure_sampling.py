"""Does a model learn as well when examples of one paragraph come in one step?

    python tools/measure_sampling.py korquad_v1_dev.json -o nbs/bench/sampling.json

Trains Gemma 3 270M on the same number of questions in random order (`group_size` 1) and in groups, from several seeds, and measures
the loss on the answers to questions about other paragraphs as it goes. Each run is added to the file as soon as it is done; runs that
are there already are not made again.
"""
import argparse
import json
import os
import time
from pathlib import Path

from transformers import TrainerCallback

from llmlab.config.load import make_config
from llmlab.common.files import write_atomic
from llmlab.data.load import load_data
from llmlab.models.checkpoints import load_tokenizer, locate_model
from llmlab.tokens.encode import encode_rows
from llmlab.tokens.prompts import PROMPTS
from llmlab.runs.environment import describe_environment
from llmlab.training.trainer import build_model, make_trainer


class Watch(TrainerCallback):
    """Note the held-out loss after each evaluation."""

    def __init__(self):
        self.losses = {}

    def on_log(self, args, state, control, logs=None, **others):
        for name in ("before_loss", "eval_loss"):
            if name in (logs or {}):
                self.losses[state.global_step] = logs[name]
                print(state.global_step, logs[name], flush=True)


def measure(config, seconds=time.process_time):
    """Train once; return what was seen and what it cost."""
    checkpoint, data = locate_model(config), load_data(config)
    tokenizer = load_tokenizer(checkpoint.path, config)
    shared, watch = dict(prompt=PROMPTS["lab"], tokenizer=tokenizer), Watch()
    train, held_out = (
        encode_rows(rows, settings=config, held_out=rows is data.held_out, **shared)
        for rows in (data.train, data.held_out)
    )
    trainer = make_trainer(
        config, build_model(config, checkpoint), tokenizer, train.examples, held_out.examples, "unused", [watch]
    )
    trainer.evaluate(metric_key_prefix="before")
    started = seconds()
    trainer.train()
    spent = seconds() - started
    return {"losses": watch.losses, "cpu_seconds": spent, "train_questions": len(train.rows), "held_out_questions": len(held_out.rows),
            **{name: value for name, value in trainer.batching_facts().items()}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("-o", "--output", type=Path, default=Path("nbs/bench/sampling.json"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--groups", type=int, nargs="+", default=[6, 1])
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--held-out", type=int, default=120)
    options = parser.parse_args()
    for seed in options.seeds:
        for group in options.groups:
            results = json.loads(options.output.read_text()) if options.output.exists() else {"runs": []}
            if any((run["seed"], run["group_size"]) == (seed, group) for run in results["runs"]):
                continue
            settings = dict(model="gemma3-270m", dataset=options.dataset, task="mrc", validation_fraction=0.444, max_eval_samples=options.held_out,
                            per_device_train_batch_size=24, gradient_accumulation_steps=1, group_size=group, seed=seed, max_steps=options.steps,
                            target_modules="all-linear", eval_strategy="steps", eval_steps=5, pack_tokens=2048, report_to=[])
            run = {"seed": seed, "group_size": group, **measure(make_config(settings))}
            results |= {"settings": {name: value for name, value in settings.items() if name not in ("dataset", "seed", "group_size")},
                        "environment": describe_environment(), "dataset": Path(options.dataset).name, "threads": os.environ.get("OMP_NUM_THREADS")}
            results["runs"].append(run)
            options.output.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(options.output, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
