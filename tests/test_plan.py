"""Plans against the real thing: what is counted without content is what a real model has, holds and keeps."""
import time

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from llmlab import plan as planning
from llmlab.config import ExperimentConfig, LabError
from llmlab.models import count_parameters, locate_model
from llmlab.plan import Batch, Meter, count_bytes, find_blueprint, make_plan, outline_head, outline_model, place_outline, plan_lines, trace_run
from llmlab.testing import save_tiny_checkpoint, save_to_hub_cache
from llmlab.training import build_model, find_head, loss_of_answers

FAMILIES = ("llama", "gemma3_text", "gpt_neox", "qwen3", "exaone4")
WAYS = {"lora": {}, "all-linear": dict(target_modules="all-linear", lora_r=4), "dora": dict(use_dora=True), "saved": dict(modules_to_save=["lm_head"]),
        "full": dict(use_peft=False), "4-bit": dict(load_in_4bit=True), "nested": dict(load_in_4bit=True, bnb_4bit_use_double_quant=True),
        "8-bit": dict(load_in_8bit=True), "bfloat16": dict(dtype="bfloat16"), "checkpointing": dict(gradient_checkpointing=True)}
BATCH = Batch(3, 24, 40, padded=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Write a tiny checkpoint of each family."""
    return {family: save_tiny_checkpoint(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


def both(folder, settings):
    """Build a model twice: for real, and in outline."""
    config = ExperimentConfig(model=str(folder), **settings)
    return config, build_model(config, locate_model(str(folder))), outline_model(config, find_blueprint(str(folder)))


def tensors_of(model):
    """List the tensors of a real model, quantization constants among them."""
    found = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        for state in filter(None, (getattr(parameter, "quant_state", None), getattr(getattr(parameter, "quant_state", None), "state2", None))):
            found += [value for value in vars(state).values() if isinstance(value, torch.Tensor)]
        found += [value for value in (getattr(parameter, "CB", None), getattr(parameter, "SCB", None)) if value is not None]
    return found


def real_batch(batch):
    """Make a batch with content, of which exactly `learned` tokens are learned."""
    made = batch.tensors()
    labels = torch.full_like(made["labels"], -100)
    places = torch.nonzero(torch.ones(batch.examples, batch.length - 1))[:batch.learned]
    labels[places[:, 0], places[:, 1] + 1] = 1
    made["attention_mask"][-1, -1] = 0  # so that the mask cannot be left out
    return {**made, "labels": labels}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ("llama", "gemma3_text", "gpt_neox"))
def test_outline_has_the_parameters_and_bytes_of_the_real_model(folders, family, way):
    if way == "saved" and family == "gpt_neox":
        pytest.skip("its head has another name")
    config, real, outline = both(folders[family], WAYS[way])
    assert count_parameters(outline) == count_parameters(real)
    with FakeTensorMode():
        assert count_bytes(place_outline(outline, "cpu")) == count_bytes(tensors_of(real))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ("llama", "gemma3_text", "gpt_neox", "exaone4"))
def test_step_without_content_holds_what_a_real_step_holds(folders, family, way):
    if way == "saved" and family in ("gpt_neox", "gemma3_text"):
        pytest.skip("its head has another name, or is its embedding")
    config, real, outline = both(folders[family], {**WAYS[way], "gradient_accumulation_steps": 1})
    planned = trace_run(config, find_blueprint(str(folders[family])), BATCH, BATCH)
    head, trained = find_head(real), [parameter for parameter in real.parameters() if parameter.requires_grad]
    with Meter(words=real.get_input_embeddings().weight.shape[0], known=tensors_of(real)) as meter:
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(lambda parameter: meter.enter(parameter.grad, "gradients"))
        loss_of_answers(real.train(), head, real_batch(BATCH))[0].backward()
    expected = sum(planned.phases["training"][kind] for kind in ("activations", "logits", "gradients"))
    assert meter.peak.total() == pytest.approx(expected, rel=0.01)
    assert meter.operations == planned.operations["train"]
    assert meter.now["gradients"] == planned.phases["optimizer step"]["gradients"]


@pytest.mark.parametrize("way", ("lora", "full", "4-bit", "checkpointing"))
def test_bytes_saved_for_the_backward_pass_are_those_that_hooks_see(folders, way):
    config, real, outline = both(folders["llama"], WAYS[way])

    def saved(model, head, batch):
        kept, known = [], {tensor.untyped_storage()._cdata for tensor in tensors_of(model)}
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
            loss = loss_of_answers(model.train(), head, batch)[0]
        return count_bytes(tensor for tensor in kept if tensor.untyped_storage()._cdata not in known), loss

    with FakeTensorMode():
        place_outline(outline, "cpu")
        head = outline_head(outline)
        with Meter(BATCH.learned):
            without_content = saved(outline, head, BATCH.tensors())[0]
    assert without_content == saved(real, find_head(real), real_batch(BATCH))[0] > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_head_is_found_without_content(folders, family):
    config, real, outline = both(folders[family], {})
    expected = find_head(real)
    with FakeTensorMode():
        place_outline(outline, "cpu")
        assert (outline_head(outline) is None) == (expected is None)


def tiny_plan(folder, **settings):
    """Plan a run of a tiny model on the lab's own questions."""
    return make_plan(ExperimentConfig(model=str(folder), max_length=256, max_train_samples=20, max_eval_samples=4, **settings), probe=False)


def test_parts_add_up_and_work_is_counted(folders):
    plan = tiny_plan(folders["llama"], per_device_train_batch_size=2, gradient_accumulation_steps=5, num_train_epochs=2)
    assert plan.peak == sum(plan.parts.values()) and plan.framework > 10**8
    assert all(plan.peak >= parts.total() + plan.framework for parts in plan.trace.phases.values())
    assert 0 < len(plan.work.lengths) <= 20 and max(plan.work.lengths) <= 256 and plan.steps == 4
    assert plan.trace.phases["training"]["optimizer state"] == 2 * plan.trace.phases["training"]["adapter"]
    assert plan.fits and "it fits" in "\n".join(plan_lines(plan))


@pytest.mark.parametrize("settings", ({"gradient_checkpointing": True}, {"per_device_train_batch_size": 1}, {"load_in_4bit": True}, {"max_length": 128}))
def test_knobs_save_memory(folders, settings):
    usual = dict(per_device_train_batch_size=8, per_device_eval_batch_size=1, gradient_accumulation_steps=1, max_length=256)
    blueprint = find_blueprint("kanana1.5-2.1b")
    work = planning.Work([], [], 256, 1.0)
    before, after = (planning.trace_config(ExperimentConfig(model="kanana1.5-2.1b", **{**usual, **more}), blueprint, work).need for more in ({}, settings))
    assert after < 0.95 * before


def test_what_cannot_fit_says_so_and_names_knobs(folders, monkeypatch):
    monkeypatch.setattr(planning, "memory_at_hand", lambda: 2 * 2**30)
    plan = make_plan(ExperimentConfig(model="koalpaca", cache_dir=str(folders["llama"])), probe=True)
    text = "\n".join(plan_lines(plan))
    assert not plan.fits and plan.seconds is None and "IT DOES NOT FIT" in text
    names = [name for name, _ in plan.knobs]
    assert names[0] == "gradient_checkpointing=True" and "load_in_4bit=True" in names and names[-1].startswith("together: ")
    assert all(size < plan.need for _, size in plan.knobs)


def test_model_that_was_never_downloaded_is_planned_offline_in_seconds(tmp_path):
    started = time.monotonic()
    plan = make_plan(ExperimentConfig(model="koalpaca", load_in_4bit=True, cache_dir=str(tmp_path)), probe=False, knobs=False)
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
    plan = make_plan(ExperimentConfig(model=str(folders["llama"]), max_train_samples=20, max_eval_samples=4), knobs=False)
    assert 0 < plan.seconds < 60
