"""Mixtures of experts as whole runs: LoRA reaches the experts, and what is left out is named."""
import warnings

import pytest
import torch

from llmlab import load_data, make_config, make_trainer
from llmlab.experiment.plan import make_plan, plan_rows
from llmlab.models.checkpoints import describe_model, load_base_model, load_tokenizer, locate_model, show_model
from llmlab.models.testing import save_tiny_checkpoint, tiny_model, tiny_tokenizer
from llmlab.tokens.encode import encode_rows
from llmlab.tokens.prompts import find_prompt
from llmlab.training.gradients import check_gradients
from llmlab.training.trainer import build_model

MIXTURES = ["mixtral", "qwen2_moe", "gpt_oss", "deepseek_v3", "solar_open", "exaone_moe", "axk1"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Write tiny mixtures."""
    folder = tmp_path_factory.mktemp("models")
    return {family: save_tiny_checkpoint(folder / family, family) for family in MIXTURES}


@pytest.fixture(scope="module")
def examples(models):
    rows = load_data("lab-ko-instruct", max_train_samples=8, max_eval_samples=2).train
    tokenizer = load_tokenizer(models["mixtral"])
    return encode_rows(rows, find_prompt("lab"), tokenizer, max_length=1024, preprocessing_num_workers=1).examples


def settings(folder, **others):
    return make_config({"model": str(folder), "report_to": [], "eval_strategy": "no", **others})


def built(folder, **others):
    """Build a model as a run does; return it and what was said."""
    config = settings(folder, **others)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = build_model(config, locate_model(config.model))
    return model, [str(one.message) for one in said]


@pytest.mark.parametrize("family", MIXTURES)
def test_all_linear_reaches_experts_and_no_router_in_every_family(family, models, examples, tmp_path):
    """A step changes an adapter of every expert weight, and of no router."""
    model, _ = built(models[family], target_modules="all-linear")
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    names = [name for name, _ in tiny_model(family).named_parameters() if name.endswith("proj")]
    layers = sum("experts" in name and "shared" not in name for name in names)
    assert sum(".experts." in name and "lora_B" in name for name in trained) == layers > 0
    assert not any(".gate.lora" in name or ".router." in name for name in trained)
    schedule = {"max_steps": 1, "learning_rate": 0.01, "warmup_steps": 0, "lr_scheduler_type": "constant"}
    config = settings(models[family], target_modules="all-linear", **schedule)
    make_trainer(config, model, load_tokenizer(models[family]), examples, examples[:2], tmp_path).train()
    adapters = {name: weight for name, weight in model.named_parameters() if "lora_B" in name}
    moved = [weight.any().item() for name, weight in adapters.items() if ".experts." in name]
    assert len(moved) == layers and all(moved)


def test_experts_left_frozen_are_named(models):
    model, said = built(models["mixtral"])
    assert not any("experts" in name for name, weight in model.named_parameters() if weight.requires_grad)
    told = next(line for line in said if line.startswith("experts: 49,152 weights (55.6%)"))
    assert "without adapters" in told and "all-linear" in told
    _, said = built(models["mixtral"], load_in_4bit=True)
    assert any("not packed: load_in_4bit" in line for line in said), said
    _, said = built(models["exaone_moe"], target_modules="all-linear")
    assert any("LoRA does not reach" in line and "mlp.shared_experts.gate_proj" in line for line in said), said


def test_plan_and_the_first_lines_of_a_run_tell_of_experts(models):
    chosen = {"load_in_4bit": True, "target_modules": "all-linear"}
    config = settings(models["solar_open"], dataset="lab-ko-instruct", max_train_samples=8, **chosen)
    told = dict(row for row in plan_rows(make_plan(config)) if len(row) == 2)
    description = describe_model(built(models["solar_open"], **chosen)[0], locate_model(config.model))
    assert told["experts"] == description["notes"]["experts"]
    assert "12,288 weights (22.5%), in float32, with LoRA of" in told["experts"] and "not packed" in told["experts"]
    assert "the router is frozen" in show_model(description).data


@pytest.mark.parametrize("asked", [True, False])
def test_the_router_s_loss_is_named_where_a_configuration_asks_for_it(asked, tmp_path, examples):
    """The loss is the answers' alone either way, and the same."""
    tiny_model("mixtral", output_router_logits=asked, router_aux_loss_coef=0.5).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    model, said = built(tmp_path / "model")
    assert any("router_aux_loss_coef=0.5" in line and "left out" in line for line in said) is asked
    config, tokenizer = settings(tmp_path / "model", max_steps=1), load_tokenizer(tmp_path / "model")
    trainer = make_trainer(config, model, tokenizer, examples, examples[:2], tmp_path)
    trainer.train()
    assert abs(trainer.loss_trace[0] - 6.2) < 0.1


@pytest.mark.parametrize("float64", [True, False])
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_gradients_are_those_of_examples_alone_in_both_precisions(family, float64, models, examples):
    config = settings(models[family], target_modules="all-linear")
    check = check_gradients(config, locate_model(config.model), load_tokenizer(models[family]), examples, float64)
    assert check.passed, check.lines()
    assert check.dtype == ("float64" if float64 else "float32")


def test_expert_weights_of_three_dimensions_keep_half_precision_beside_4_bit(models):
    """In float32, as everything else that is not packed, they would take twice the memory."""
    model, _ = built(models["solar_open"], load_in_4bit=True, dtype="bfloat16")
    weights = {name: weight for name, weight in model.named_parameters() if "norm" in name or ".experts." in name}
    kinds = {name.rsplit(".", 1)[-1]: weight.dtype for name, weight in weights.items()}
    assert kinds["down_proj"] == kinds["gate_up_proj"] == torch.bfloat16 and kinds["weight"] == torch.float32
    assert load_base_model(models["solar_open"], torch.bfloat16).dtype == torch.bfloat16
