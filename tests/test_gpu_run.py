"""Whole runs on a card that is none (tests/card.py): real numbers, and nothing may lie elsewhere or in another format than what it meets."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from card import CARD, a_card
from llmlab.batching import attention, varlen
from llmlab.config.load import make_config
from llmlab.evaluation.generation import generate_scored
from llmlab.models.checkpoints import load_tokenizer, locate_model
from llmlab.models.testing import save_tiny_checkpoint
from llmlab.tokens.tokenize import Example
from llmlab.training.trainer import build_model, make_trainer, run_training

NOTEBOOK = Path(__file__).parent.parent / "nbs" / "03_batching" / "08_varlen.ipynb"
WAYS = {"LoRA": {}, "QLoRA": {"load_in_4bit": True}, "full": {"use_peft": False}}


def run(first, count):
    """Make up a run of tokens."""
    return [3 + (first * 37 + 11 * place * place) % 250 for place in range(count)]


EXAMPLES = [
    Example(run(text, 40) + run(question + 9, 8), 40, ((40, 48),)) for text in (1, 2) for question in range(4)
]


@pytest.fixture(scope="module", params=["llama"])
def tiny(request, tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture
def card(monkeypatch):
    """A card, with what stands in for its flash kernel; `ways` counts how packs were attended over, and in which format."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    emulation, ways, choose = {"torch": torch}, Counter(), attention.choose_way
    exec("".join(next(cell for cell in cells if cell["id"] == "varlen-emulate")["source"]), emulation)

    def forward(query, key, value, borders, scale):
        assert query.dtype == key.dtype == value.dtype and query.dtype.itemsize == 2, (
            "the kernel takes halves of one kind"
        )
        output, log_sum = emulation["emulated_forward"](query, key, value, borders, scale)
        return output, log_sum.float()

    def backward(upstream, query, key, value, output, log_sum, *others):
        assert upstream.dtype == query.dtype == output.dtype and log_sum.dtype == torch.float32
        return emulation["emulated_backward"](upstream, query, key, value, output, log_sum.to(query.dtype), *others)

    def counted(query, *others):
        ways[choose(query, *others), query.dtype] += 1
        return choose(query, *others)

    monkeypatch.setattr(varlen, "flash_forward", forward)
    monkeypatch.setattr(varlen, "flash_backward", backward)
    monkeypatch.setattr(attention, "choose_way", counted)
    with a_card(monkeypatch) as made:
        made.ways = ways
        yield made


@pytest.fixture
def start(tiny, tmp_path):
    """A function that makes a trainer of a tiny model."""

    def make(**settings):
        config = make_config(
            {
                "model": str(tiny),
                "max_steps": 2,
                "eval_strategy": "no",
                "report_to": [],
                "warmup_steps": 0,
                **settings,
            }
        )
        model = build_model(config, locate_model(config.model))
        return make_trainer(config, model, load_tokenizer(tiny), EXAMPLES, EXAMPLES[:3], tmp_path)

    return make


@pytest.mark.parametrize("mixed", ["none", "bf16", "fp16"])
@pytest.mark.parametrize("way", WAYS)
def test_a_run_stays_on_its_card_and_in_its_format(way, mixed, card, start, tmp_path):
    """Load, prepare, answer, measure, train, measure, answer, save."""
    trainer = start(**WAYS[way], **({} if mixed == "none" else {mixed: True}))
    half = torch.float16 if mixed == "fp16" else torch.bfloat16
    asked = [example.input_ids[:40] for example in EXAMPLES[:2]]
    generate_scored(trainer.model, trainer.processing_class, asked, 4)
    metrics = run_training(trainer)
    after = generate_scored(trainer.model, trainer.processing_class, asked, 4)
    assert {weight.device for weight in trainer.model.parameters()} == {CARD} and trainer.args.device == CARD
    assert {weight.dtype for weight in trainer.model.parameters() if weight.requires_grad} == {torch.float32}
    assert trainer.batcher.batching == "tree" and {*card.ways} == {("varlen", half)}  # the probe among them
    assert all(
        map(
            math.isfinite,
            [metrics["eval_loss_before"], metrics["eval_loss"], *(answer.log_probability for answer in after)],
        )
    )
    assert metrics["eval_loss"] != metrics["eval_loss_before"]
    trainer.model.save_pretrained(tmp_path / "saved")
    assert list((tmp_path / "saved").glob("*.safetensors"))


@pytest.mark.parametrize(
    "settings",
    [
        {"batching": "padded"},
        {"batching": "packed"},
        {"dtype": "float32"},
        {"modules_to_save": ["lm_head"]},
        {"load_in_8bit": True},
    ],
    ids=str,
)
def test_other_ways_stay_there_too(settings, card, start):
    trainer = start(**settings)
    metrics = run_training(trainer)
    assert {weight.device for weight in trainer.model.parameters()} == {CARD} and math.isfinite(metrics["eval_loss"])
    ways = {way for way, _ in card.ways}
    assert ways == (
        {"dense"} if "dtype" in settings else set() if settings.get("batching") == "padded" else {"varlen"}
    )


def test_the_card_refuses_what_lies_elsewhere(card):
    weight, here = torch.ones(3, device="cuda:0"), torch.ones(3)
    assert (
        weight.device == CARD
        and (weight + 1).device == (weight * torch.tensor(2.0)).device == CARD
        and here.device.type == "cpu"
    )
    for mixed in (lambda: weight + here, lambda: torch.nn.functional.linear(here, weight), lambda: weight.numpy()):
        with pytest.raises((RuntimeError, TypeError), match="card"):
            mixed()
    assert here.to(weight).device == CARD and weight.cpu().device.type == "cpu" and weight.cpu().numpy().sum() == 3
    grown = torch.ones(3, device="cuda:0", requires_grad=True)
    (grown * weight).sum().backward()
    assert grown.grad.device == CARD
