"""Plans against the real thing: what is counted without content is what a real model has, holds and keeps."""
import math
import time

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from llmlab.experiment import plan as planning
from llmlab.common.cards import CARDS
from llmlab.common.device import planned_card
from llmlab.config.load import make_config
from llmlab.config.schema import ExperimentConfig
from llmlab.common.errors import LabError
from llmlab.models.checkpoints import count_parameters, locate_model
from llmlab.tokens.tokenize import Example
from llmlab.experiment.meta_model import build_meta_model, find_blueprint, place_meta_model
from llmlab.experiment.meter import Meter, count_bytes
from llmlab.experiment.passes import Work, find_passes, pass_tokens, supervised_tokens
from llmlab.experiment.plan import make_plan, plan_lines
from llmlab.experiment.trace import find_meta_head, trace_quickly, trace_run, without_content
from llmlab.models.testing import save_tiny_checkpoint, save_to_hub_cache, tiny_model, tiny_tokenizer
from llmlab.batching.batcher import batch_mode
from llmlab.training.trainer import build_model, make_trainer
from llmlab.batching.loss import find_head, loss_of_answers

FAMILIES = ("llama", "gemma3_text", "gpt_neox", "qwen3", "exaone4")
WAYS = {
    "lora": {}, "all-linear": dict(target_modules="all-linear", lora_r=4), "dora": dict(use_dora=True),
    "saved": dict(modules_to_save=["lm_head"]), "full": dict(use_peft=False), "4-bit": dict(load_in_4bit=True),
    "nested": dict(load_in_4bit=True, bnb_4bit_use_double_quant=True), "8-bit": dict(load_in_8bit=True),
    "bfloat16": dict(dtype="bfloat16"), "checkpointing": dict(gradient_checkpointing=True),
}
TEXT = list(range(3, 33))
EXAMPLES = [Example([*TEXT[:20], 40 + number, *TEXT[:number]], 20, ((21, 21 + number),))
            for number in (3, 9, 6, 12)]  # of one beginning, and of several lengths


def passes(batching="tree", **settings):
    """Cut the examples into passes."""
    config = ExperimentConfig(batching=batching, max_length=64, per_device_train_batch_size=4,
                              gradient_accumulation_steps=1, **settings)
    return find_passes(config, Work(EXAMPLES, EXAMPLES[:2], len(EXAMPLES)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Write a tiny checkpoint of each family."""
    return {family: save_tiny_checkpoint(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


def both(folder, settings):
    """Build a model twice: for real, and in outline."""
    config = ExperimentConfig(model=str(folder), **settings)
    return config, build_model(config, locate_model(str(folder))), build_meta_model(config, find_blueprint(str(folder)))


def tensors_of(model):
    """List the tensors of a real model, quantization constants among them."""
    found = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        constants = getattr(parameter, "quant_state", None)
        for state in filter(None, (constants, getattr(constants, "state2", None))):
            found += [value for value in vars(state).values() if isinstance(value, torch.Tensor)]
        codes = (getattr(parameter, "CB", None), getattr(parameter, "SCB", None))
        found += [value for value in codes if value is not None]
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ("llama", "gemma3_text", "gpt_neox"))
def test_outline_has_the_parameters_and_bytes_of_the_real_model(folders, family, way):
    if way == "saved" and family == "gpt_neox":
        pytest.skip("its head has another name")
    config, real, outline = both(folders[family], WAYS[way])
    assert count_parameters(outline) == count_parameters(real)
    with FakeTensorMode():
        assert count_bytes(place_meta_model(outline, "cpu")) == count_bytes(tensors_of(real))


@pytest.mark.parametrize("family, batching, way", [
    *(("llama", "tree", way) for way in WAYS),
    *((family, "tree", way) for family in ("gemma3_text", "gpt_neox", "exaone4") for way in ("lora", "full", "4-bit")),
    *((family, "padded", way) for family in ("llama", "gemma3_text")
      for way in ("lora", "full", "checkpointing", "bfloat16")),
    ("gpt_neox", "packed", "lora")])
def test_step_without_content_holds_what_a_real_step_holds(folders, family, batching, way):
    config, real, outline = both(folders[family], WAYS[way])
    cut = passes(batching)
    planned = trace_run(config, find_blueprint(str(folders[family])), cut)
    head, trained = find_head(real), [parameter for parameter in real.parameters() if parameter.requires_grad]
    vocab_size = real.get_input_embeddings().weight.shape[0]
    with Meter(vocab_size=vocab_size, known=tensors_of(real)) as meter, batch_mode(real, cut.train):
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(lambda parameter: meter.enter(parameter.grad, "gradients"))
        loss_of_answers(real.train(), head, cut.train)[0].backward()
    expected = sum(planned.phases["training"][kind] for kind in ("activations", "logits", "gradients"))
    assert meter.peak.total() == pytest.approx(expected, rel=0.01)
    assert meter.operations == planned.operations["train"]
    assert meter.now["gradients"] == planned.phases["optimizer step"]["gradients"]


@pytest.mark.parametrize("batching, way", (
    ("tree", "lora"), ("tree", "full"), ("tree", "4-bit"), ("padded", "lora"), ("padded", "checkpointing")))
def test_bytes_saved_for_the_backward_pass_are_those_that_hooks_see(folders, way, batching):
    config, real, outline = both(folders["llama"], WAYS[way])
    batch = passes(batching).train

    def saved(model, head, batch):
        kept, known = [], {tensor.untyped_storage()._cdata for tensor in tensors_of(model)}
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.append(tensor) or tensor, lambda saved: saved
        )
        with hooks, batch_mode(model, batch):
            loss = loss_of_answers(model.train(), head, batch)[0]
        return count_bytes(tensor for tensor in kept if tensor.untyped_storage()._cdata not in known), loss

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    outside, learned = without_content(batch, mode, "cpu"), supervised_tokens(batch)
    with mode:
        place_meta_model(outline, "cpu")
        head = find_meta_head(outline)
        with Meter(learned):
            planned = saved(outline, head, outside)[0]
    assert planned == saved(real, find_head(real), batch)[0] > 0


@pytest.mark.parametrize("family, batching, way", (
    ("llama", "tree", "lora"), ("llama", "padded", "full"), ("gemma3_text", "tree", "checkpointing")))
def test_few_layers_tell_of_many(tmp_path, family, batching, way):
    """What knobs bring is worked out from the first layers, and is what the whole model says."""
    sizes = {"layer_types": None} if family == "gemma3_text" else {}
    tiny_model(family, num_hidden_layers=9, **sizes).save_pretrained(tmp_path)
    config = ExperimentConfig(model=str(tmp_path), **WAYS[way])
    blueprint, cut = find_blueprint(str(tmp_path)), passes(batching)
    whole, quick = trace_run(config, blueprint, cut), trace_quickly(config, blueprint, cut)
    assert whole.parameters == quick.parameters
    for phase, parts in whole.phases.items():
        assert quick.phases[phase].total() == pytest.approx(parts.total(), rel=0.05), phase


@pytest.mark.parametrize("family", FAMILIES)
def test_head_is_found_without_content(folders, family):
    config, real, outline = both(folders[family], {})
    expected = find_head(real)
    with FakeTensorMode():
        place_meta_model(outline, "cpu")
        assert (find_meta_head(outline) is None) == (expected is None)


def tiny_plan(folder, **settings):
    """Plan a run of a tiny model on the lab's own questions."""
    few = dict(max_length=256, max_train_samples=20, max_eval_samples=4)
    return make_plan(ExperimentConfig(model=str(folder), **few, **settings))


def test_parts_add_up_and_work_is_counted(folders):
    plan = tiny_plan(folders["llama"], per_device_train_batch_size=2, gradient_accumulation_steps=5, num_train_epochs=2)
    assert plan.peak == sum(plan.parts.values()) and plan.framework > 10**8
    assert all(plan.peak >= parts.total() + plan.framework for parts in plan.trace.phases.values())
    assert 0 < plan.work.rows <= 20 and max(plan.work.lengths) <= 256
    assert plan.steps == 2 * math.ceil(plan.work.rows / 10)
    assert plan.trace.phases["training"]["optimizer state"] == 2 * plan.trace.phases["training"]["adapter"]
    assert plan.fits and "it fits" in "\n".join(plan_lines(plan))


@pytest.mark.parametrize("settings", (
    {"gradient_checkpointing": True}, {"pack_tokens": 512}, {"load_in_4bit": True},
    {"max_length": 128, "pack_tokens": 256}, {"batching": "padded", "per_device_train_batch_size": 1}))
def test_knobs_save_memory(settings):
    usual = dict(per_device_train_batch_size=8, per_device_eval_batch_size=1, gradient_accumulation_steps=1,
                 max_length=256)
    blueprint = find_blueprint("kanana1.5-2.1b")
    examples = [Example([number, *[0] * 255], 0, ((0, 256),)) for number in range(8)]

    def need(settings):
        config = ExperimentConfig(model="kanana1.5-2.1b", **{**usual, **settings})
        return trace_quickly(config, blueprint, find_passes(config, Work(examples, examples[:1], 8))).need

    assert need(settings) < 0.95 * need({})


@pytest.mark.parametrize("batching", ("tree", "packed", "padded"))
def test_passes_are_those_of_the_trainer(folders, tmp_path, batching):
    """What is planned is what the trainer's own loader hands out."""
    config = ExperimentConfig(model=str(folders["llama"]), batching=batching, max_length=64,
                              per_device_train_batch_size=2, gradient_accumulation_steps=1)
    cut = find_passes(config, Work(EXAMPLES, EXAMPLES[:2], 4))
    model = build_model(config, locate_model(config.model))
    trainer = make_trainer(config, model, tiny_tokenizer(), EXAMPLES, EXAMPLES[:2], tmp_path)
    steps = list(trainer.get_train_dataloader())
    assert len(steps) == cut.steps == 2
    assert sum(step["sharing"].tokens_computed for step in steps) == cut.sharing.tokens_computed
    assert max(pass_tokens(batch) for step in steps for batch in step["batches"]) == pass_tokens(cut.train)


def test_model_without_packs_is_planned_as_it_is_trained(folders, monkeypatch):
    def refuse(*positional, **named):
        raise NotImplementedError("its attention asks for s_aux")

    monkeypatch.setattr("llmlab.batching.attention.forest_attention", refuse)
    plan = tiny_plan(folders["llama"])
    assert plan.config.batching == "padded" and "asks for s_aux), and is trained with batching=padded" in plan.work.note


def test_what_cannot_fit_says_so_and_names_knobs(folders, monkeypatch):
    monkeypatch.setattr(planning, "memory_at_hand", lambda: 2 * 2**30)
    plan = make_plan(ExperimentConfig(model="koalpaca", cache_dir=str(folders["llama"])), probe=True, knobs=True)
    text = "\n".join(plan_lines(plan))
    assert not plan.fits and plan.seconds is None and "IT DOES NOT FIT" in text
    names = [name for name, _ in plan.knobs]
    assert names[0] == "gradient_checkpointing=True" and "load_in_4bit=True" in names
    assert names[-1].startswith("together: ")
    assert all(size < plan.need for _, size in plan.knobs)


def test_model_that_was_never_downloaded_is_planned_offline_in_seconds(tmp_path):
    started = time.monotonic()
    config = ExperimentConfig(model="koalpaca", load_in_4bit=True, cache_dir=str(tmp_path))
    plan = make_plan(config)
    assert time.monotonic() - started < 60
    assert plan.trace.parameters["total"] - plan.trace.parameters["trainable"] == 5_885_059_072
    assert plan.blueprint.folder is None and "tokenizer is not at hand" in plan.work.note
    with pytest.raises(LabError, match="sizes are not known"):
        find_blueprint("nobody/nothing", cache_dir=str(tmp_path))


def test_hub_cache_is_enough(tmp_path):
    snapshot = save_to_hub_cache(tmp_path, "someone/tiny", "qwen3")
    blueprint = find_blueprint("someone/tiny", cache_dir=str(tmp_path))
    assert (blueprint.folder, blueprint.architecture.model_type) == (snapshot, "qwen3")


def test_time_is_estimated(folders):
    config = ExperimentConfig(model=str(folders["llama"]), max_train_samples=20, max_eval_samples=4)
    plan = make_plan(config, probe=True)
    assert 0 < plan.seconds < 60


@pytest.mark.parametrize("device, dtype", (("rtx-4090", "bfloat16"), ("t4", "float16")))
def test_a_card_that_is_not_here_is_planned_for(tmp_path, device, dtype):
    config = ExperimentConfig(model="polyglot-ko-1.3b", cache_dir=str(tmp_path), max_length=128, load_in_4bit=True)
    plan = make_plan(config, device=device)
    text = "\n".join(plan_lines(plan))
    assert plan.at_hand == CARDS[device].usable and plan.card is CARDS[device] and plan.seconds > 0
    assert f"computed with in {dtype}" in text and "On paper, not measured" in text
    assert plan.framework == planning.CUDA_CONTEXT_BYTES and plan.parts["fragments"] > 0
    assert planned_card() is None


def test_full_fine_tuning_on_a_card_keeps_weights_in_float32(tmp_path):
    config = ExperimentConfig(model="polyglot-ko-1.3b", cache_dir=str(tmp_path), max_length=128, use_peft=False)
    plan = make_plan(config, device="a100-80gb")
    weights = plan.trace.phases["training"]["weights"]
    assert weights == pytest.approx(4 * plan.trace.parameters["total"], rel=0.01)
    assert plan.trace.phases["training"]["optimizer state"] == pytest.approx(2 * weights, rel=0.01)
    apart = make_plan(config.model_copy(update={"num_workers": 2}), device="a100-80gb")
    assert apart.need - plan.need == pytest.approx(weights, rel=0.01)  # the buckets
    assert apart.seconds < plan.seconds


def test_an_unknown_card_and_a_card_for_a_run_are_refused():
    with pytest.raises(LabError, match="device='rtx-4091' is not known. Did you mean 'rtx-4090'"):
        make_plan(ExperimentConfig(model="koalpaca"), device="rtx-4091")
    with pytest.raises(LabError, match="device is a parameter of `llmlab plan` alone"):
        make_config({"device": "rtx-4090"})
