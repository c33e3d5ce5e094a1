"""What a GPU makes of a run, on a CPU: its number formats with real numbers, its placement with a card that is none."""
from types import SimpleNamespace

import pytest
import torch

from llmlab.batching.batcher import Batcher, batch_mode
from llmlab.batching.loss import find_head, loss_of_answers
from llmlab.common.device import device_for_model
from llmlab.config.load import make_config
from llmlab.evaluation.generation import generate_scored
from llmlab.models.checkpoints import choose_dtype, load_tokenizer, locate_model, master_weights
from llmlab.models.testing import save_tiny_checkpoint
from llmlab.tokens.tokenize import Example
from llmlab.training.trainer import build_model, make_trainer, run_training

WAYS = {"LoRA": {}, "4-bit": {"load_in_4bit": True}, "8-bit": {"load_in_8bit": True}, "full": {"use_peft": False},
        "head": {"modules_to_save": ["lm_head"]}}
FORMATS = [{"dtype": dtype, **half} for dtype in ("float32", "bfloat16") for half in ({}, {"bf16": True})]


def run(first, count):
    """Make up a run of tokens."""
    return [3 + (first * 37 + 11 * place * place) % 250 for place in range(count)]


EXAMPLES = [Example(run(text, 40) + run(question + 9, 8), 40, ((40, 48),)) for text in (1, 2) for question in range(4)]


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def tiny(request, tmp_path_factory):
    """A tiny model of either kind: with a head of its own, and with a head that is the embedding."""
    return save_tiny_checkpoint(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture
def start(tiny, tmp_path):
    """A function that makes a trainer of a tiny model."""
    def make(**settings):
        config = make_config({"model": str(tiny), "max_steps": 2, "eval_strategy": "no", "report_to": [], "warmup_steps": 0,
                              "learning_rate": 1e-30, "lr_scheduler_type": "constant", "num_threads": 1, **settings})
        model = build_model(config, locate_model(config.model))
        return make_trainer(config, model, load_tokenizer(tiny), EXAMPLES, EXAMPLES[:3], tmp_path)

    return make


# Number formats


@pytest.mark.parametrize("numbers", FORMATS, ids=lambda numbers: "-".join(map(str, numbers.values())))
@pytest.mark.parametrize("way", WAYS)
def test_every_format_trains_and_is_measured_in_one_precision(way, numbers, start, tmp_path):
    trainer = start(**WAYS[way], **numbers)
    asked = [example.input_ids[:40] for example in EXAMPLES[:2]]
    before = generate_scored(trainer.model, trainer.processing_class, asked, 4)
    metrics = run_training(trainer)  # so small a step that weights in float32 stay what they were
    after = generate_scored(trainer.model, trainer.processing_class, asked, 4)
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_loss_before"], rel=1e-6)
    assert [answer.log_probability for answer in after] == pytest.approx([answer.log_probability for answer in before], rel=1e-5)
    trained = {weight.dtype for weight in trainer.model.parameters() if weight.requires_grad}
    assert trained == {torch.float32}
    trainer.model.save_pretrained(tmp_path / "saved")
    assert list((tmp_path / "saved").glob("*.safetensors"))


def test_answers_are_computed_as_losses_are(start):
    seen = set()
    for numbers in ({}, {"bf16": True}):
        model = start(dtype="float32", **numbers).model
        seen.add(model(input_ids=torch.tensor([[5, 6, 7]])).logits.dtype)
        seen.add(model.get_output_embeddings()(torch.ones(1, model.config.hidden_size)).dtype)
    assert seen == {torch.float32, torch.bfloat16}


def test_tables_of_a_quantized_model_stay_in_half(start):
    model = start(dtype="bfloat16", load_in_4bit=True).model
    assert model.get_input_embeddings().weight.dtype == model.get_output_embeddings().weight.dtype == torch.bfloat16
    assert all(weight.dtype == torch.float32 for name, weight in model.named_parameters() if "norm" in name)


# A card that is none


@pytest.fixture
def card(monkeypatch):
    """A second card, as far as torch says; what would be loaded onto it is noted, and loaded onto the CPU."""
    from transformers import AutoModelForCausalLM

    seen = SimpleNamespace(maps=[], half=True)
    load = AutoModelForCausalLM.from_pretrained

    def loaded(path, **options):
        seen.maps.append(options.pop("device_map", None))
        return load(path, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", loaded)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or seen.half)
    return seen


@pytest.mark.parametrize("settings, expected", [
    ({}, ("auto", True, False)), ({"load_in_4bit": True}, ("auto", True, False)), ({"dtype": "float32"}, ("float32", False, False)),
    ({"use_peft": False}, ("float32", True, False)), ({"modules_to_save": ["lm_head"]}, ("float32", True, False)),
    ({"fp16": True}, ("auto", False, True)), ({"dtype": "float16"}, ("float16", False, True)),
    ({"use_peft": False, "fp16": True}, ("float32", False, True)), ({"dtype": "float32", "bf16": True}, ("float32", True, False)),
])
def test_a_card_computes_in_half_unless_asked_otherwise(settings, expected, card):
    config = master_weights(make_config({**settings}))
    assert (config.dtype, config.bf16, config.fp16) == expected


def test_a_card_without_bfloat16_takes_float16(card):
    assert choose_dtype("auto", fp16=False) == torch.bfloat16
    card.half = False
    assert choose_dtype("auto", fp16=False) == torch.float16
    config = master_weights(make_config({}))
    assert config.fp16 and not config.bf16


@pytest.mark.parametrize("name, way", [(None, {}), ("FSDP", {}), ("DEEPSPEED", {}), (None, {"use_peft": False})])
def test_a_model_is_loaded_onto_its_process_own_card(name, way, tiny, card, monkeypatch):
    if name:
        monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    build_model(make_config({"model": str(tiny), "dtype": "float32", **way}), locate_model(str(tiny)))
    assert card.maps == [None if name else {"": 1}] and device_for_model() == ("cpu" if name else 1)


@pytest.mark.parametrize("way", [{}, {"use_peft": False}, {"modules_to_save": ["lm_head"]}], ids=str)
def test_everything_meets_on_the_device_of_the_model(way, tiny, monkeypatch):
    """On torch's device without content, which refuses what lies on another one."""
    model = build_model(make_config({"model": str(tiny), **way}), locate_model(str(tiny)))
    head = find_head(model)
    model.to("meta")
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # which it has none of
    for batch in Batcher("tree", 1024, 4)(EXAMPLES)["batches"]:
        with batch_mode(model, batch):
            loss, count = loss_of_answers(model, head, batch)
            loss.backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert {tensor.device.type for tensor in (loss, count, *gradients)} == {"meta"}
