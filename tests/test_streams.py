"""Streams: each pass has an order of its own, and a run stopped in any pass goes on at its place, to the same bits."""
import json
import random

import pytest
from transformers import TrainerCallback

from llmlab.config.load import make_config
from llmlab.data.load import load_data
from llmlab.models.checkpoints import load_tokenizer, locate_model
from llmlab.models.testing import save_tiny_checkpoint
from llmlab.tokens.encode import encode_rows, encode_stream
from llmlab.tokens.prompts import find_prompt
from llmlab.training.trainer import build_model, hash_trace, make_trainer, run_training

ROWS = 22
EXAMPLES_PER_STEP = 4
STEPS = 16  # of a run: three passes


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "A tiny model, and two files of rows."
    folder = tmp_path_factory.mktemp("streams")
    save_tiny_checkpoint(folder / "model")
    for name in ("rows", "more"):
        lines = [json.dumps({"question": f"{name} {number}번은?", "answer": "가나다라마바사"[:number % 7 + 1]},
            ensure_ascii=False) for number in range(ROWS)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


class Interruption(TrainerCallback):
    "Stop a run in the middle of a step."

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **others):
        if state.global_step == self.step:
            raise InterruptedError


def stream_run(files, output, resume=False, stop=None, dataset=None, **settings):
    "Train on a stream; return the trainer, the metrics, and the examples in the order in which they came."
    config = make_config({
        "model": str(files / "model"), "dataset": dataset or str(files / "rows.jsonl"), "streaming": True,
        "max_eval_samples": 2, "max_steps": STEPS,
        "per_device_train_batch_size": EXAMPLES_PER_STEP, "gradient_accumulation_steps": 1, "lora_dropout": 0.1,
        "learning_rate": 1e-2, "report_to": [],
        "save_strategy": "steps", "save_steps": 1, "eval_strategy": "epoch", **settings})
    data, tokenizer = load_data(config), load_tokenizer(config.model)
    model = build_model(config, locate_model(config.model))
    train = encode_stream(data.train, find_prompt("lab"), tokenizer, config)
    held_out = encode_rows(data.held_out, find_prompt("lab"), tokenizer, config, held_out=True)
    trainer = make_trainer(config, model, tokenizer, train, held_out.examples, output,
        [Interruption(stop)] if stop else [])
    seen = []
    step = trainer.training_step

    def note(model, inputs, *others):
        seen.append([tuple(example.input_ids) for example in inputs["examples"]])
        return step(model, inputs, *others)

    trainer.training_step = note
    try:
        metrics = run_training(trainer, resume)
    except InterruptedError:
        metrics = None
    return trainer, metrics, seen


@pytest.fixture(scope="module")
def through(files, tmp_path_factory):
    "A run that nothing stops."
    return stream_run(files, tmp_path_factory.mktemp("through"))


def passes_of(steps):
    "Cut the examples of some steps into passes: one ends where an example comes again."
    passes = [[]]
    for example in (example for step in steps for example in step):
        if example in passes[-1]:
            passes.append([])
        passes[-1].append(example)
    return passes


def test_each_pass_has_its_own_order(through):
    first, second, third = passes_of(through[2])[:3]
    assert sorted(first) == sorted(second) and first != second
    assert third != first[:len(third)] and third != second[:len(third)]


def test_unshuffled_rows_come_as_they_stand_in_every_pass(files, tmp_path):
    _, _, steps = stream_run(files, tmp_path, shuffle=False, max_steps=10, save_strategy="no", save_steps=None)
    first, second = passes_of(steps)[:2]
    assert first[:len(second)] == second


def curve(trainer):
    "What was logged, but for times."
    return [{name: value for name, value in entry.items() if name in ("step", "epoch", "loss",
        "eval_loss")} for entry in trainer.state.log_history]


def evaluations(trainer):
    "What was logged of the evaluations while it trained."
    return [entry for entry in curve(trainer) if "eval_loss" in entry and entry["step"] > 0]


@pytest.mark.parametrize("stop", [2, "end of a pass", "second pass", "third pass"])
def test_a_stopped_stream_goes_on_at_its_place(files, through, tmp_path, stop):
    """Stopped anywhere, and resumed from the step before: the same rows, losses to the last bit, and evaluations."""
    trainer, metrics, steps = through
    in_a_pass = -(-len(passes_of(steps)[0]) // EXAMPLES_PER_STEP)
    choose = random.Random(16).randrange
    step = {"end of a pass": in_a_pass, "second pass": choose(in_a_pass + 1, 2 * in_a_pass),
        "third pass": choose(2 * in_a_pass + 1, STEPS)}.get(stop, stop)
    _, _, before = stream_run(files, tmp_path, stop=step)
    resumed, again, after = stream_run(files, tmp_path, resume=True)
    assert len(before) == step and before + after == steps
    assert hash_trace(resumed.loss_trace) == hash_trace(trainer.loss_trace)
    assert again["eval_loss"] == metrics["eval_loss"] and again["epochs"] == metrics["epochs"]
    assert curve(resumed)[-1] == curve(trainer)[-1]
    assert evaluations(resumed) == evaluations(trainer)


def test_a_stream_saved_at_the_end_of_a_pass_goes_on_with_the_next(files, tmp_path):
    settings = {"save_strategy": "epoch", "save_steps": None}
    whole, _, steps = stream_run(files, tmp_path / "whole", **settings)
    stream_run(files, tmp_path / "cut", stop=STEPS - 1, **settings)
    resumed, _, after = stream_run(files, tmp_path / "cut", resume=True, **settings)
    assert hash_trace(resumed.loss_trace) == hash_trace(whole.loss_trace) and after == steps[-len(after):]
    assert len(after) < STEPS and curve(resumed) == curve(whole)


def test_a_mix_of_streams_goes_on_at_its_place(files, tmp_path):
    mix = {"dataset": {str(files / "rows.jsonl"): 0.7, str(files / "more.jsonl"): 0.3}, "max_eval_samples": 4,
        "max_steps": 20}
    whole, _, steps = stream_run(files, tmp_path / "whole", **mix)
    _, _, before = stream_run(files, tmp_path / "cut", stop=14, **mix)
    resumed, _, after = stream_run(files, tmp_path / "cut", resume=True, **mix)
    assert before + after == steps and hash_trace(resumed.loss_trace) == hash_trace(whole.loss_trace)
