"""Whole runs on a card that is none (tests/card.py): real numbers, and nothing may lie elsewhere or in another format than what it meets."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from card import CARD, a_card
from llmlab.batching import alone, attention, varlen
from llmlab.batching.alone import forest_problem
from llmlab.batching.batcher import Batcher, Step, choose_pack_tokens, held_out_totals
from llmlab.batching.loss import FrozenHeadLoss
from llmlab.common.errors import LabError
from llmlab.config.load import make_config
from llmlab.evaluation.generation import generate_scored
from llmlab.models.checkpoints import load_tokenizer, locate_model
from llmlab.models.testing import save_tiny_checkpoint
from llmlab.scale import workers
from llmlab.tokens.tokenize import Example
from llmlab.training.gradients import check_gradients
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
    facts, is_ordered = trainer.batching_facts(), ways == {"varlen"}
    assert facts["bit_for_bit"] is is_ordered and ("not_bit_for_bit" in facts) is not is_ordered


@pytest.mark.parametrize("batching, sizes, dtype, capability, expected", [
    ("tree", {}, torch.bfloat16, (8, 0), None), ("packed", {"head_dim": 256}, torch.float16, (9, 0), None),
    ("padded", {}, torch.bfloat16, (8, 0), "padded batches attend under a mask"),
    ("tree", {}, torch.float32, (8, 0), "packs in float32 on a card of capability 8.0"),
    ("tree", {}, torch.float16, (7, 5), "packs in float16 on a card of capability 7.5"),
    ("tree", {"head_dim": 256, "global_head_dim": 512}, torch.bfloat16, (8, 0), "heads of 512 numbers"),
    ("tree", {"attention_dropout": 0.1}, torch.bfloat16, (8, 0), "attention_dropout"),
])
def test_which_ways_are_bit_for_bit(batching, sizes, dtype, capability, expected, monkeypatch):
    with a_card(monkeypatch, capability):
        sample = torch.empty(0, dtype=dtype, device="cuda:0")
        reason = alone.unordered_sums(batching, SimpleNamespace(**sizes), sample)
        assert (reason is None) if expected is None else expected in reason
        ways = attention.choose_way(torch.empty((1, 2, 5, 64), dtype=dtype, device="cuda:0"),
                                    torch.empty((1, 2, 5, 64)), None, None, sizes.get("attention_dropout", 0))
        if batching == "tree" and "head_dim" not in sizes:
            assert (ways == "dense") is (reason is not None), "as the layers will choose"
    assert alone.unordered_sums(batching, SimpleNamespace(**sizes), torch.empty(0, dtype=dtype)) is None, "on a CPU all are"


def test_bits_are_not_compared_where_there_is_no_order(tmp_path):
    from llmlab.runs.rerun import finished_record

    reason = "padded batches attend under a mask, and that attention's backward pass adds up in any order"
    record = {"status": "finished", "adapter_sha256": "0" * 64, "batching": {"bit_for_bit": False, "not_bit_for_bit": reason}}
    (tmp_path / "record.json").write_text(json.dumps(record))
    with pytest.raises(LabError, match=f"cannot be verified bit by bit: on its GPU, {reason}.*batching=tree"):
        finished_record(tmp_path)
    record["batching"] = {"bit_for_bit": True}
    (tmp_path / "record.json").write_text(json.dumps(record))
    assert finished_record(tmp_path) == record


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


# What a pass costs beside its kernels


def test_a_batch_crosses_once_and_nobody_waits(card, start):
    """Packs are tensors before the loop has them, are pinned, and go to the card once; sums stay there."""
    trainer = start()
    steps = iter(trainer.get_train_dataloader())
    step = next(steps)
    assert isinstance(step, Step) and all(
        {"input_ids", "sources", "targets"} <= {*batch} for batch in step["batches"]
    )
    assert step.pin_memory()["batches"][0]["targets"].tolist() == step["batches"][0]["targets"].tolist()
    assert card.counts["pinned"] >= 4 and trainer._prepare_inputs(step) is step
    batcher, costs = Batcher("packed", 100, 1), []
    for count in (1, 4):  # a pass holds two examples: emulated kernels wait for their borders
        examples = [EXAMPLES[number] for number in range(count)]
        card.counts.clear()
        with torch.no_grad():
            totals = held_out_totals(
                trainer.model.eval(), trainer.head, replace(batcher, pack_tokens=len(EXAMPLES[0].input_ids)), examples
            )
        costs.append(Counter(card.counts))
        assert totals.device == CARD
    assert costs[1]["fetched"] == costs[0]["fetched"] == 0
    kernels = 2 * trainer.model.config.num_hidden_layers  # `tolist` of an emulated kernel: of queries and of keys
    assert [cost["waits"] for cost in costs] == [kernels, 4 * kernels]
    assert costs[1]["sent"] - costs[0]["sent"] == 3 * 4  # input_ids, position_ids, sources, targets


def test_logits_of_a_card_are_not_rounded(card, monkeypatch):
    asked, multiply = [], torch.mm

    def keeping(left, right, out_dtype=None):
        asked.append(out_dtype)
        return multiply(left.to(out_dtype), right.to(out_dtype))

    monkeypatch.setattr(torch, "mm", keeping)
    hidden, weight = (torch.randn(size, device="cuda:0").bfloat16() for size in ((3, 8), (20, 8)))
    loss = FrozenHeadLoss.apply(hidden.requires_grad_(), weight, torch.tensor([1, 2, 3], device="cuda:0"), 2**20)
    assert asked == [torch.float32] and loss.dtype == torch.float32
    exact = torch.nn.functional.cross_entropy(
        hidden.float() @ weight.float().T, torch.tensor([1, 2, 3], device="cuda:0"), reduction="sum"
    )
    assert torch.allclose(loss, exact, rtol=1e-6)


@pytest.mark.parametrize(
    "values, memory, expected",
    [
        ({}, 80e9, 16_384),
        ({}, 24e9, 16_384),
        ({"large": True}, 80e9, 5_120),
        ({"large": True}, 24e9, 2_048),
        ({"large": True, "recompute": True}, 24e9, 11_264),
    ],
)
def test_packs_are_as_large_as_the_card_holds(values, memory, expected, monkeypatch):
    config = (
        SimpleNamespace(hidden_size=4096, intermediate_size=11_008, num_hidden_layers=32)
        if values.get("large")
        else SimpleNamespace(hidden_size=640, intermediate_size=2048, num_hidden_layers=18)
    )
    config.get_text_config = lambda decoder: config
    weights = [SimpleNamespace(nbytes=13_500_000_000 if values.get("large") else 540_000_000, requires_grad=False)]
    model = SimpleNamespace(
        config=config,
        device=CARD,
        parameters=lambda: weights,
        is_gradient_checkpointing=values.get("recompute", False),
    )
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda device: (0, memory)
    )  # what is free at the moment decides nothing
    assert choose_pack_tokens(1024, model) == expected and choose_pack_tokens(1024) == 2048


def test_gradients_are_checked_in_the_format_of_training(card, tiny):
    config = make_config({"model": str(tiny), "report_to": []})
    check = check_gradients(config, locate_model(str(tiny)), load_tokenizer(tiny), EXAMPLES)
    assert (
        (check.dtype, check.half.dtype) == ("float32", "bfloat16")
        and check.passed
        and "And as it is trained:" in check.lines()
    )
    assert {*card.ways} == {("dense", torch.float32), ("varlen", torch.bfloat16)}
    assert not replace(check, half=replace(check.half, gradients=0.1)).passed and 1e-4 < check.half.gradients < 0.05


def test_the_probe_runs_the_kernels_of_training_and_passes_lack_of_memory_on(card, start, monkeypatch):
    sizes, forward = [], varlen.flash_forward

    def seen(query, *others):
        sizes.append(len(query))
        return forward(query, *others)

    monkeypatch.setattr(varlen, "flash_forward", seen)
    trainer = start()
    assert max(sizes) > 200, "a GPU takes short rows another way"
    monkeypatch.setattr(varlen, "flash_backward", lambda *tensors: raise_out_of_memory())
    with pytest.raises(torch.OutOfMemoryError):
        forest_problem(trainer.model)


def raise_out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


# What is set for a GPU before anything runs


def test_memory_of_a_card_grows_in_segments_unless_somebody_chose():
    code = "import llmlab.common.device, os; print(os.environ['PYTORCH_ALLOC_CONF'], os.environ['CUBLAS_WORKSPACE_CONFIG'])"
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PYTORCH_", "CUBLAS_"))}
    for chosen, expected in (
        ({}, "expandable_segments:True :4096:8"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, "backend:native :4096:8"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code], env={**plain, **chosen}, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == expected


def test_fresh_memory_is_not_filled(start):
    torch.utils.deterministic.fill_uninitialized_memory = True
    trainer = start()
    assert torch.are_deterministic_algorithms_enabled() and not torch.utils.deterministic.fill_uninitialized_memory
    assert trainer.batching_facts()["examples_per_step"] == 8 and trainer.batching_facts()["group_size"] == 2


def test_chance_is_kept_on_the_card_of_this_process_alone(card, start, monkeypatch):
    """Without names fork_rng asks every card, and warns."""
    named, fork = [], torch.random.fork_rng
    monkeypatch.setattr(
        torch.random, "fork_rng", lambda devices=None, **others: named.append(devices) or fork(devices, **others)
    )
    trainer = start()
    trainer.evaluate()
    generate_scored(trainer.model, trainer.processing_class, [EXAMPLES[0].input_ids[:40]], 2)
    assert named == [[0], [0]]


def test_windows_need_a_compiler_and_say_so(monkeypatch):
    attention.compiled_flex.cache_clear()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(attention.shutil, "which", lambda name: None)
    with pytest.raises(NotImplementedError, match="apt-get install gcc python3-dev"):
        attention.compiled_flex()
    monkeypatch.setenv("CC", "gcc")
    monkeypatch.setattr(attention.Path, "exists", lambda path: True)
    assert callable(attention.compiled_flex()) and torch._dynamo.config.recompile_limit >= 64
    attention.compiled_flex.cache_clear()


def test_the_driver_gives_its_memory_to_the_workers(monkeypatch, tmp_path):
    events = []
    model = SimpleNamespace(
        to=lambda device: events.append(str(device)), parameters=lambda: iter([SimpleNamespace(device=CARD)])
    )
    trainer = workers.WorkersTrainer(make_config({"num_workers": 2}), model, tmp_path, "fingerprint")
    (trainer.workspace).mkdir()
    (trainer.workspace / "result.json").write_text(json.dumps({"loss_trace": [1.0], "batching": {}, "metrics": {}}))
    monkeypatch.setattr(trainer, "prepare", lambda resume: None)
    monkeypatch.setattr(trainer, "follow", lambda launch: events.append("workers"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: events.append("freed"))
    monkeypatch.setattr(workers, "load_weights", lambda model, folder: events.append("loaded"))
    trainer.run()
    assert events == ["cpu", "freed", "workers", "cuda:0", "loaded"]
