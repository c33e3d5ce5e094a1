"""Recipes of other tools: the table is whole, and what comes out of a recipe is the same experiment, or said to be another."""
import json

import pytest
import yaml
from click.testing import CliRunner

from llmlab import LabError
from llmlab.commands.cli import main
from llmlab.config.load import config_from_yaml
from llmlab.config.recipes import SPECIAL, guess_tool, import_recipe, recipe_table, recipe_to_yaml
from llmlab.config.schema import ExperimentConfig

TABLE = recipe_table()
TOOLS = TABLE["tools"]
RECIPES = {
    "LLaMA-Factory": {
        "model_name_or_path": "Qwen/Qwen3-4B", "stage": "sft", "finetuning_type": "lora", "lora_rank": 4, "lora_target": "all",
        "dataset": "mine", "dataset_dir": "data", "template": "qwen3", "cutoff_len": 512, "val_size": 0.1, "mask_history": True,
        "quantization_bit": 4, "warmup_ratio": 0.1, "bf16": True, "report_to": "none", "neftune_noise_alpha": 5,
    },
    "axolotl": {
        "base_model": "skt/A.X-4.0-Light", "adapter": "lora", "lora_r": 16, "lora_alpha": 32, "lora_target_modules": ["q_proj"],
        "datasets": [{"path": "a.jsonl", "type": "chat_template", "split": "train[:5%]"}, {"path": "json", "data_files": ["b.jsonl"], "type": "chat_template"}],
        "sequence_len": 4096, "micro_batch_size": 2, "num_epochs": 2, "optimizer": "adamw_torch", "learning_rate": 1e-4,
        "evals_per_epoch": 1, "saves_per_epoch": 4, "val_set_size": 0.05, "train_on_inputs": False, "flash_attention": True,
        "special_tokens": {"pad_token": "<pad>"}, "rl": "dpo", "weight_decay": 0.1,
    },
    "TRL": {
        "model_name_or_path": "gemma3-270m", "dataset_name": "lab-ko-instruct", "use_peft": True, "lora_r": 8, "max_length": 256,
        "lora_target_modules": "all-linear", "packing": True, "completion_only_loss": True, "gradient_checkpointing": True,
        "eval_strategy": "steps", "eval_steps": 100, "lr_scheduler_type": "cosine", "adam_beta2": 0.95,
    },
    "Trainer": {
        "model_name_or_path": "gemma3-270m", "learning_rate": 1e-5, "evaluation_strategy": "epoch", "push_to_hub": True,
        "label_smoothing_factor": 0.1, "save_steps": 0.5, "num_train_epochs": 1,
    },
}
EXPECTED = {
    "LLaMA-Factory": {
        "model": "Qwen/Qwen3-4B", "lora_r": 4, "lora_alpha": 8, "target_modules": "all-linear", "max_length": 512, "prompt": "chat",
        "validation_fraction": 0.1, "learn_turns": "last", "load_in_4bit": True, "bnb_4bit_use_double_quant": True, "warmup_steps": 0.1,
        "learning_rate": 5e-5, "num_train_epochs": 3, "training_args": {"neftune_noise_alpha": 5},
        "column_mapping": {"question": "물음", "answer": "답"},
    },
    "axolotl": {
        "model": "skt/A.X-4.0-Light", "use_peft": True, "lora_r": 16, "target_modules": ["q_proj"], "dataset": "a.jsonl+b.jsonl",
        "prompt": "chat", "max_length": 4096, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "warmup_steps": 0.03,
        "optim": "adamw_torch", "eval_strategy": "epoch", "validation_fraction": 0.05, "weight_decay": 0.1,
    },
    "TRL": {
        "model": "gemma3-270m", "dataset": "lab-ko-instruct", "lora_r": 8, "lora_alpha": 32, "lora_dropout": 0.05, "max_length": 256,
        "learning_rate": 2e-5, "eval_strategy": "steps", "eval_steps": 100, "per_device_train_batch_size": 8,
        "training_args": {"adam_beta2": 0.95}, "lr_scheduler_type": "cosine",
    },
    "Trainer": {"model": "gemma3-270m", "learning_rate": 1e-5, "eval_strategy": "epoch", "lr_scheduler_type": "linear"},
}
MISSING = {
    "LLaMA-Factory": {"template"}, "axolotl": {"rl", "saves_per_epoch", "special_tokens", "datasets, split"}, "TRL": set(),
    "Trainer": {"push_to_hub", "label_smoothing_factor", "save_steps", "dataset"},
}


def write(folder, recipe):
    "Write a recipe, and the data sets that LLaMA-Factory finds beside it."
    (folder / "data").mkdir(exist_ok=True)
    columns = {"prompt": "물음", "response": "답"}
    (folder / "data" / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "mine.json", "columns": columns}}), encoding="utf-8")
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    return path


@pytest.mark.parametrize("tool", TOOLS)
def test_a_recipe_comes_along(tool, tmp_path):
    assert guess_tool(RECIPES[tool]) == tool
    recipe = import_recipe(write(tmp_path, RECIPES[tool]), tool)
    assert {name: recipe.settings.get(name) for name in EXPECTED[tool]} == EXPECTED[tool]
    assert set(recipe.missing) == MISSING[tool]
    if tool == "LLaMA-Factory":
        assert recipe.settings["dataset"] == str(tmp_path / "data" / "mine.json")


@pytest.mark.parametrize("tool", TOOLS)
def test_nothing_of_a_recipe_is_passed_over_in_silence(tool, tmp_path):
    recipe = import_recipe(write(tmp_path, {**RECIPES[tool], "no_such_setting": 3}), tool)
    table, text = TOOLS[tool], recipe_to_yaml(recipe)
    assert "no_such_setting: the lab knows no such setting" in text
    moved = {**TOOLS["Trainer"]["names"], **table["names"]}
    for name, value in RECIPES[tool].items():
        ours = moved.get(name, name).partition(".")[0]
        is_elsewhere = name in table.get("values", {}) or name in SPECIAL[tool] or name in SPECIAL["Trainer"]
        is_asked = value not in (False, None)
        assert ours in recipe.settings or name in text or is_elsewhere or name in recipe.settings.get("training_args", {}) or not is_asked, name


@pytest.mark.parametrize("tool", TOOLS)
def test_the_table_leads_to_settings(tool):
    table = TOOLS[tool]
    targets = [*table["names"].values(), *table["defaults"]]
    for values in table.get("values", {}).values():
        targets += [name for settings in values.values() for name in settings]
    assert {name.partition(".")[0] for name in targets} <= set(ExperimentConfig.model_fields)
    explained = [name for kind in ("needless", "missing") for names in table.get(kind, {}).values() for name in names]
    assert not {name for name in explained if explained.count(name) > 1} and not set(explained) & set(table["names"])


def test_reasons_are_used_and_in_both_languages():
    used = {"held_out"}
    for table in TOOLS.values():
        used |= {reason for kind in ("needless", "missing") for reason in table.get(kind, {})} | set(table.get("notes", []))
    assert used == set(TABLE["reasons"])
    assert all(set(reason) == {"en", "ko"} and all(reason.values()) for reason in TABLE["reasons"].values())


def test_the_command_writes_what_train_reads(tmp_path):
    path, output = write(tmp_path, RECIPES["axolotl"]), tmp_path / "settings.yaml"
    done = CliRunner().invoke(main, ["import", str(path), "-o", str(output)])
    assert done.exit_code == 0 and "rl did not come along" in done.stderr and not done.stdout
    assert config_from_yaml(output).per_device_train_batch_size == 2
    again = CliRunner().invoke(main, ["import", str(path), "-o", str(output)])
    assert again.exit_code == 2 and "is there already" in again.stderr
    printed = CliRunner().invoke(main, ["import", str(path)])
    assert printed.stdout.strip() == output.read_text(encoding="utf-8").strip()


@pytest.mark.parametrize(("recipe", "says"), [
    ({"datasets": [{"type": "alpaca"}]}, "has no path"), ({"datasets": "x"}, "should be a list"),
    ({"base_model": 3, "micro_batch_size": "many"}, "per_device_train_batch_size"), ({"cutoff_len": 512, "dataset": "other", "dataset_dir": "data"}, "no 'other'"),
    ({"lora_rank": [1]}, "is no number"), ({"learning_rate": -1}, "learning_rate"), ({"val_set_size": "some"}, "is no number")])
def test_bad_recipes_end_in_one_message(recipe, says, tmp_path):
    with pytest.raises(LabError, match=says):
        import_recipe(write(tmp_path, recipe))
