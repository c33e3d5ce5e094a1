"""What every contestant's process does alike: read the examples, warm up, hold the clock, print one line. Needs torch, transformers and peft, not llmlab."""
import json
import os
import platform
import resource
import sys
import time
from importlib.metadata import PackageNotFoundError, version

UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "trl", "llamafactory")


def cpu_seconds() -> float:
    """Add up the processor time of this process and its children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_bytes() -> int:
    """Read the most memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT


def resident_bytes() -> int:
    """Read the memory this process has now; the peak, where that cannot be read."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_bytes()


def versions() -> dict:
    """List the versions that are at work."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    return found


def read_task() -> dict:
    """Read the task that the driver wrote: model, adapter, settings and examples."""
    with open(sys.argv[1], encoding="utf-8") as file:
        return {**json.load(file), "variant": sys.argv[2] if len(sys.argv) > 2 else ""}


def split_evenly(count: int, size: int) -> tuple:
    """Say how `count` examples make micro-batches of `size` or fewer that are all full: (size, number)."""
    size = max(number for number in range(1, min(size, count) + 1) if count % number == 0)
    return size, count // size


def common_arguments(task: dict, folder: str) -> dict:
    """Return the training arguments that all share: one optimizer step over all examples, in float32."""
    return dict(output_dir=folder, max_steps=1, learning_rate=task["learning_rate"], lr_scheduler_type="constant", max_grad_norm=1.0, optim="adamw_torch",
                logging_steps=1, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True, seed=task["seed"], bf16=False, fp16=False,
                gradient_checkpointing=False)


def load_model(task: dict):
    """Load the base model in float32, with the adapter that all begin with."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32)
    return PeftModel.from_pretrained(base, task["adapter"], is_trainable=True)


class Clock:
    """Holds wall time, processor time and memory around one optimizer step."""

    def note_memory(self):
        self.before = resident_bytes()

    def start(self):
        self.cpu, self.wall = cpu_seconds(), time.perf_counter()

    def stop(self):
        self.wall, self.cpu = time.perf_counter() - self.wall, cpu_seconds() - self.cpu
        self.peak = peak_bytes()


def clock_callback(clock: Clock, warm_up):
    """Make a callback of transformers' Trainer that warms up, then holds the clock from the start of training to the end of its step, and counts tokens."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        loss, tokens = None, 0

        def on_train_begin(self, args, state, control, model=None, train_dataloader=None, **others):
            clock.note_memory()
            warm_up(model)
            # accelerate's wrapper reads from that one
            loader = getattr(train_dataloader, "base_dataloader", train_dataloader)
            self.collate, loader.collate_fn = loader.collate_fn, self.count
            clock.start()

        def count(self, rows):
            batch = self.collate(rows)
            self.tokens += batch["input_ids"].numel() if "input_ids" in batch else 0  # llmlab counts its own
            return batch

        def on_step_end(self, args, state, control, **others):
            clock.stop()

        def on_log(self, args, state, control, logs=None, **others):
            self.loss = (logs or {}).get("train_loss", self.loss)  # the others are rounded

    return Watch()


def warm_up_on(examples: list):
    """Make a function that runs the longest example forward and backward, so that no thread, kernel or memory is new when the clock runs."""
    def warm_up(model):
        import torch

        example = max(examples, key=lambda example: len(example["input_ids"]))
        ids, labels = (torch.tensor([example[name]]) for name in ("input_ids", "labels"))
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss.backward()
        model.zero_grad(set_to_none=True)

    return warm_up


def report(task: dict, clock: Clock, loss: float, computed_tokens: int, **more):
    """Print the one line that the driver reads."""
    examples = task["examples"]
    supervised = sum(label != -100 for example in examples for label in example["labels"][1:])
    print("\n" + json.dumps({
        "loss": loss, "seconds": clock.wall, "cpu_seconds": clock.cpu, "peak_bytes": clock.peak, "growth_bytes": clock.peak - clock.before,
        "examples": len(examples), "supervised_tokens": supervised, "computed_tokens": computed_tokens, "versions": versions(), **more}), flush=True)
