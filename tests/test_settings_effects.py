"""A setting that has no effect is an error: the table of conditions, walked over, and every setting in it or always at work."""
import pytest

from llmlab import ExperimentConfig, LabError, make_config
from llmlab.config.checks import NEEDS

ALWAYS = """
    cache_dir model model_revision shuffle seed task prompt dataset dataset_config eval_dataset column_mapping max_train_samples
    max_eval_samples streaming compose_hangul max_length truncation learn_turns preprocessing_num_workers overwrite_cache use_fast
    new_tokens template_day tokenizer_args dtype load_in_4bit load_in_8bit use_peft task_type batching max_steps per_device_train_batch_size
    gradient_accumulation_steps learning_rate lr_scheduler_type warmup_steps weight_decay max_grad_norm optim fp16 bf16
    gradient_checkpointing num_threads training_args num_workers logging_steps eval_strategy save_strategy eval_generate_steps
    load_best_model_at_end early_stopping_patience resume per_device_eval_batch_size num_samples max_new_tokens question_set
    lm_eval_tasks generation_args output_dir report_to extensions
""".split()  # the data and the libraries decide about these, and what they say is tested with them

VALUES = {  # setting -> a value that is not its default
    "eval_steps": 10, "save_steps": 10, "save_total_limit": 2, "bnb_4bit_quant_type": "fp4", "bnb_4bit_compute_dtype": "float32",
    "bnb_4bit_use_double_quant": True, "quantization_args": {"bnb_4bit_quant_storage": "uint8"}, "data_seed": 7, "num_train_epochs": 2,
    "pack_tokens": 512, "group_size": 2, "padding": "max_length", "padding_side": "left", "doc_stride": 64, "lm_eval_limit": 5,
    "ray_address": "auto", "resources_per_worker": {"CPU": 1}, "max_failures": 1, "ddp_find_unused_parameters": True,
    "sampling": "random", "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "bias": "all", "target_modules": ["q_proj"],
    "fan_in_fan_out": True, "modules_to_save": ["lm_head"], "use_dora": True, "use_rslora": True,
    "lora_args": {"rank_pattern": {"q_proj": 4}}, "metric_for_best_model": "eval_f1", "mlflow_tracking_uri": "http://127.0.0.1:5000",
    "experiment_name": "mine", "run_name": "first", "logging_dir": "logs", "validation_fraction": 0.2, "split_seed": 7,
}
SCORED = {"eval_strategy": "steps", "eval_generate_steps": 10, "eval_steps": 10}
CONTEXTS = {  # a part of the condition -> settings under which it does not hold, and under which it does
    "eval_strategy=steps": ({"eval_strategy": "epoch"}, {"eval_strategy": "steps"}),
    "save_strategy=steps": ({"save_strategy": "no"}, {"save_strategy": "steps"}),
    "load_in_4bit=true": ({}, {"load_in_4bit": True}),
    "shuffle=true": ({"shuffle": False}, {}),
    "max_steps=-1": ({"max_steps": 3}, {}),
    "batching=tree": ({"batching": "padded"}, {"batching": "packed"}),
    "room for two examples": ({"pack_tokens": 8}, {"pack_tokens": 64}),
    "truncation=true": ({"truncation": False}, {}),
    "a max_length above it": ({"max_length": 64}, {"max_length": 65}),
    "batching=padded": ({}, {"batching": "padded"}),
    "lm_eval_tasks": ({}, {"lm_eval_tasks": ["kobest_boolq"]}),
    "num_workers above 1": ({}, {"num_workers": 2}),
    "max_train_samples or": ({}, {"max_train_samples": 10}),
    "use_peft=true": ({"use_peft": False}, {}),
    "load_best_model_at_end or": (SCORED, {**SCORED, "early_stopping_patience": 2}),
    "mlflow in report_to": ({"report_to": []}, {"report_to": ["tensorboard", "mlflow"]}),
    "tensorboard in": ({"report_to": ["mlflow"]}, {"report_to": ["tensorboard"]}),
    "a held-out share": ({"eval_dataset": "other.jsonl"}, {}),
}
ROWS = [(name, need) for need in NEEDS for name in need.names.split()]


def complaints(settings):
    """Say what the lab answers; what this machine lacks does not count here."""
    try:
        make_config(settings)
    except LabError as error:
        return [line for line in str(error).splitlines() if "Ray" not in line]
    return []


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)


def test_every_setting_always_works_or_says_what_it_needs():
    conditional = {name for name, _ in ROWS}
    assert conditional | set(ALWAYS) == set(ExperimentConfig.model_fields)
    assert not conditional & set(ALWAYS)
    assert conditional == set(VALUES)


@pytest.mark.parametrize("name, need", ROWS, ids=[f"{name}: {need.condition[:30]}" for name, need in ROWS])
def test_a_setting_without_effect_is_refused_and_one_with_effect_is_not(name, need):
    idle, at_work = next(contexts for words, contexts in CONTEXTS.items() if words in need.condition)
    value = {name: VALUES[name]}
    refused = [line for line in complaints({**value, **idle}) if line.startswith(f"{name}=")]
    assert refused and "no effect" in refused[0] and need.condition in refused[0] and f"leave {name} at" in refused[0]
    assert complaints({**value, **at_work}) == []


def test_the_default_is_never_complained_about():
    for idle, _ in CONTEXTS.values():
        assert [line for line in complaints({**idle, "pack_tokens": None}) if "no effect" in line] == []


@pytest.mark.parametrize("family, is_idle", [("llama", True), ("gpt_neox", False)])
def test_biases_are_trained_or_missed(family, is_idle):
    import warnings

    from llmlab.models.adapters import add_lora
    from llmlab.models.testing import tiny_model

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        targets = ["q_proj"] if is_idle else ["query_key_value"]
        adapted = add_lora(tiny_model(family), targets, make_config({"bias": "all"}))
    assert is_idle == any("bias=all has no effect" in str(each.message) for each in said)
    assert is_idle != any(
        name.endswith("bias") and parameter.requires_grad for name, parameter in adapted.named_parameters()
    )
