"""What is passed on to the libraries stands once in the table, and works where it says so; failing training says why."""
import dataclasses
import json
import math
import warnings

import pytest
import torch
import yaml
from transformers.trainer_utils import SchedulerType

from llmlab.common.errors import LabError
from llmlab.config.load import make_config
from llmlab.config.passed import (
    BY_LOSS, KINDS, LIBRARY_CLASSES, PASSED_FILE, learning_rates, library_fields, read_table,
)
from llmlab.data.load import load_data
from llmlab.evaluation.generation import generate_scored, generation_settings
from llmlab.experiment.prepare import prepare
from llmlab.models.checkpoints import load_tokenizer, locate_model, make_quantization
from llmlab.models.testing import save_tiny_checkpoint
from llmlab.scale.workers import choose_trainer
from llmlab.training.checkpoints import checkpoints_in, newest_checkpoint
from llmlab.training.faults import STOPPED_STEP
from llmlab.training.trainer import build_model, make_trainer, run_training, training_arguments
from llmlab.tokens.encode import encode_rows
from llmlab.tokens.prompts import find_prompt

TABLE = yaml.safe_load(PASSED_FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    "A tiny model."
    return save_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def examples(tiny):
    "A few examples."
    rows = load_data("lab-ko-instruct", max_train_samples=12, max_eval_samples=2).train
    return encode_rows(rows, find_prompt("lab"), load_tokenizer(tiny), max_length=512,
        preprocessing_num_workers=1).examples


@pytest.fixture
def start(tiny, examples, tmp_path):
    "A function that makes a trainer of a tiny model."
    def make(**settings):
        config = make_config({"model": str(tiny), "max_steps": 4, "eval_strategy": "no", "report_to": [],
            "warmup_steps": 0, "lr_scheduler_type": "constant",
                              "gradient_accumulation_steps": 1, "learning_rate": 1e-2, **settings})
        return make_trainer(config, build_model(config, locate_model(config.model)), load_tokenizer(tiny), examples,
            examples[:2], tmp_path)

    return make


# The table

@pytest.mark.parametrize("dict_name", LIBRARY_CLASSES)
def test_every_field_of_the_installed_library_stands_once_in_the_table(dict_name):
    kinds = TABLE[dict_name]
    listed = [*kinds["lab"], *(name for names in [*kinds["works"].values(),
        *kinds["refused"].values()] for name in names)]
    assert len(listed) == len(set(listed)), "a field that stands twice"
    assert library_fields(dict_name) <= set(listed), "fields that llmlab/config/passed.yaml lacks"
    if dict_name != "tokenizer_args":  # whose fields are each tokenizer's own
        assert library_fields(dict_name) == set(listed), "fields that the library no longer has"
    assert set(kinds["works"]) <= {"stated", *KINDS}


def test_the_table_names_settings_that_there_are():
    settings = make_config({}).model_dump()
    assert all(setting in settings for fields in TABLE.values() for setting in fields["lab"].values())


def test_what_the_table_does_not_know_is_refused_until_it_does(monkeypatch):
    import transformers

    @dataclasses.dataclass
    class NewArguments(transformers.TrainingArguments):
        brand_new: int = 0

    monkeypatch.setattr(transformers, "TrainingArguments", NewArguments)
    with pytest.raises(LabError, match="brand_new is new in the transformers that is installed"):
        make_config({"training_args": {"brand_new": 1}})


@pytest.mark.parametrize("dict_name", LIBRARY_CLASSES)
def test_what_is_refused_is_refused_with_its_reason(dict_name):
    for name, (kind, word) in read_table()[dict_name].items():
        if kind == "works":
            continue
        with pytest.raises(LabError, match=name) as caught:
            make_config({dict_name: {name: None}, "load_in_4bit": dict_name == "quantization_args"})
        assert "secret" in str(caught.value) or word in str(caught.value)


# What works: it reaches what reads it

SEVERAL = {"num_workers": 2}  # processes
TRAINING = {  # field -> a value, and what it needs
    "lr_scheduler_kwargs": ({"num_cycles": 2}, {"lr_scheduler_type": "cosine_with_restarts"}),
    "optim_args": ("momentum=0.9", {"optim": "sgd"}),
    "tf32": (False, {}), "logging_first_step": (True, {"logging_steps": 3}), "log_level": ("error", {}),
    "log_level_replica": ("error", SEVERAL),
    "log_on_each_node": (False, SEVERAL), "full_determinism": (True, {}), "debug": ("underflow_overflow", {}),
    "ddp_broadcast_buffers": (True, SEVERAL),
    "ddp_static_graph": (True, SEVERAL), "fsdp": ("full_shard", SEVERAL), "adam_beta1": (0.5, {}), "adam_beta2": (0.5,
    {}),
    "adam_epsilon": (0.1, {}), "neftune_noise_alpha": (5.0, {"batching": "padded"}), "eval_delay": (1.0,
    {"eval_strategy": "steps"}),
    "dataloader_num_workers": (1, {}), "ddp_bucket_cap_mb": (5, SEVERAL), "ddp_timeout": (60, SEVERAL),
}
ELSEWHERE = {  # needs a GPU, a group of processes, a package, or another field
    "optim_target_modules", "ddp_backend", "fsdp_config", "deepspeed", "torch_empty_cache_steps",
    "dataloader_prefetch_factor", "use_liger_kernel", "liger_kernel_config",  # tests/test_liger.py
}


def works(dict_name):
    "List the fields that work."
    return [name for name, (kind, _) in read_table()[dict_name].items() if kind == "works"]


def test_every_training_argument_that_works_is_tried():
    assert set(works("training_args")) == set(TRAINING) | ELSEWHERE


@pytest.mark.parametrize("name", TRAINING)
def test_a_training_argument_reaches_the_trainer(name, monkeypatch):
    value, needs = TRAINING[name]
    monkeypatch.setenv("LLMLAB_LAUNCHER", "test")  # something will start the processes
    arguments = training_arguments(make_config({"training_args": {name: value}, "max_steps": 9, **needs}), "unused")
    found = getattr(arguments, name)  # as it was given, or read: of debug a list of options, of fsdp that it is on
    assert found == value or (name in ("debug", "fsdp") and found)


@pytest.mark.parametrize("passed, others", [
    ({"adam_beta1": 0.1}, {}), ({"adam_beta2": 0.5}, {}), ({"adam_epsilon": 0.1}, {}), ({"optim_args": "momentum=0.9"},
    {"optim": "sgd", "learning_rate": 1.0}),
    ({"lr_scheduler_kwargs": {"num_cycles": 2}}, {"lr_scheduler_type": "cosine_with_restarts"}),
    ({"neftune_noise_alpha": 50.0}, {"batching": "padded"}),
], ids=str)
def test_a_training_argument_changes_training(start, passed, others):
    losses = []
    for training_args in ({}, passed):
        trainer = start(training_args=training_args, **others)
        trainer.train()
        losses.append(trainer.loss_trace)
    assert losses[0] != losses[1]


def test_training_arguments_that_change_no_result_change_none(start):
    reference = start()
    reference.train()
    trainer = start(training_args={"dataloader_num_workers": 1, "full_determinism": True, "logging_first_step": True},
        logging_steps=3)
    trainer.train()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert trainer.loss_trace == reference.loss_trace
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [1, 3]


def test_evaluations_are_delayed(start):
    trainer = start(training_args={"eval_delay": 3}, eval_strategy="steps", eval_steps=1)
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry] == [3, 4]


# Schedules

KWARGS = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1, "warmup_lr_rate": 0.2},
    "warmup_stable_decay": {"num_decay_steps": 2},
    "polynomial": {"lr_end": 1e-5, "power": 2}, "cosine_with_restarts": {"num_cycles": 2},
    "inverse_sqrt": {"timescale": 3},
}


@pytest.mark.parametrize("kind", [kind.value for kind in SchedulerType])
def test_every_schedule_trains_as_it_was_computed_beforehand(start, kind):
    """The rates that training logs are those that were looked at before any weight was read."""
    warmup = 0 if kind in ("constant", *BY_LOSS) else 2
    settings = {"lr_scheduler_type": kind, "warmup_steps": warmup, "max_steps": 6, "eval_strategy": "steps",
                "eval_steps": 1, "training_args": {"lr_scheduler_kwargs": KWARGS[kind]} if kind in KWARGS else {}}
    config = make_config(settings | {"learning_rate": 1e-2})
    with warnings.catch_warnings(action="ignore"):
        trainer = start(**settings)
        trainer.train()
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    expected = learning_rates(config, 6)
    if kind in BY_LOSS:
        assert not expected and all(rate > 0 for rate in logged)
    else:
        assert logged == pytest.approx(expected) and (len(set(logged)) > 1) == (kind != "constant")


@pytest.mark.parametrize("settings, idle", [
    ({"max_steps": 1}, 1), ({"max_steps": 4}, 1), ({"max_steps": 4, "warmup_steps": 0}, 0), ({"max_steps": 4,
    "lr_scheduler_type": "constant", "warmup_steps": 0}, 0),
])
def test_steps_that_learn_nothing_are_told(start, settings, idle):
    defaults = {name: make_config({}).model_dump()[name] for name in ("warmup_steps", "lr_scheduler_type")}
    with warnings.catch_warnings(record=True, action="always") as said:
        start(**{**defaults, **settings})
    told = [str(one.message) for one in said if "learning rate is 0" in str(one.message)]
    assert len(told) == bool(idle) and all(f"in {idle} of {settings['max_steps']} steps" in one for one in told)


def test_a_warmup_longer_than_the_epochs_is_refused(start):
    with pytest.raises(LabError, match="warmup_steps=200, and the run has 3 steps"):
        start(max_steps=-1, warmup_steps=200, lr_scheduler_type="linear")


# Generation

GENERATION = {  # field -> settings with it
    "early_stopping": {"num_beams": 2, "early_stopping": True}, "do_sample": {"do_sample": True, "temperature": 30.0},
    "temperature": {"do_sample": True, "temperature": 50.0},
    "top_k": {"do_sample": True, "top_k": 3, "temperature": 30.0}, "top_p": {"do_sample": True, "top_p": 0.9,
    "temperature": 30.0},
    "min_p": {"do_sample": True, "min_p": 0.01}, "top_h": {"do_sample": True, "top_h": 0.5},
    "typical_p": {"do_sample": True, "typical_p": 0.9},
    "epsilon_cutoff": {"do_sample": True, "epsilon_cutoff": 1e-4}, "eta_cutoff": {"do_sample": True,
    "eta_cutoff": 1e-4},
    "num_beams": {"num_beams": 3}, "length_penalty": {"num_beams": 3, "length_penalty": -2.0},
    "repetition_penalty": {"repetition_penalty": 5.0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1}, "min_new_tokens": {"min_new_tokens": 4},
    "use_cache": {"use_cache": False},
    "cache_implementation": {"cache_implementation": "dynamic"}, "renormalize_logits": {"renormalize_logits": True},
    "remove_invalid_values": {"remove_invalid_values": True},
    "forced_eos_token_id": {"forced_eos_token_id": 2},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": [1, 1.5]},
    "guidance_scale": {"guidance_scale": 1.5}, "watermarking_config": {"watermarking_config": {"bias": 20.0}},
    "disable_compile": {"disable_compile": True},
    "prefill_chunk_size": {"prefill_chunk_size": 4},
}
BY_TOKEN = ("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias")
CHANGING = {"do_sample", "repetition_penalty", "no_repeat_ngram_size", "watermarking_config", *BY_TOKEN}  # any answer


def test_every_generation_argument_that_works_is_tried():
    assert set(works("generation_args")) == {*GENERATION, *BY_TOKEN}


@pytest.fixture(scope="module")
def asked(tiny):
    "A model, its tokenizer, prompts that begin alike, and what it answers by itself."
    config = make_config({"model": str(tiny)})
    model, tokenizer = build_model(config, locate_model(config.model)), load_tokenizer(tiny)
    prompts = [tokenizer("다음 물음에 답하세요. " * 4 + text).input_ids for text in ("수도는?", "강은?", "산은 어디에 있나요?")]
    return model, tokenizer, prompts, generate_scored(model, tokenizer, prompts, 6)


@pytest.mark.parametrize("name", [*GENERATION, *BY_TOKEN])
def test_a_generation_argument_reaches_the_answers(asked, name):
    """Each gets past the checks, and several prompts, which share their beginning, can be answered with it."""
    model, tokenizer, prompts, plain = asked
    first = tokenizer(plain[0].text, add_special_tokens=False).input_ids[0]
    by_token = {"bad_words_ids": [[first]], "suppress_tokens": [first], "begin_suppress_tokens": [first],
        "sequence_bias": [[[first], -50.0]]}
    given = GENERATION.get(name) or {name: by_token[name]}
    config = make_config({"generation_args": given})
    assert getattr(generation_settings(model, tokenizer, 6, config.generation_args), name) is not None
    answers = generate_scored(model, tokenizer, prompts, 6, config)
    assert len(answers) == len(prompts) and (name not in CHANGING or answers != plain)


# Quantization

def test_quantization_arguments_reach_the_quantizer():
    of_4bit, of_8bit = {"llm_int8_skip_modules": ["lm_head"],
        "bnb_4bit_quant_storage": "uint8"}, {"llm_int8_threshold": 3.0}
    assert {*of_4bit, *of_8bit} == set(works("quantization_args"))
    made = make_quantization(torch.float32, make_config({"load_in_4bit": True, "quantization_args": of_4bit}))
    assert (made.llm_int8_skip_modules, made.bnb_4bit_quant_storage) == (["lm_head"], torch.uint8)
    assert make_quantization(torch.float32, make_config({"load_in_8bit": True,
        "quantization_args": of_8bit})).llm_int8_threshold == 3.0


# When training fails

def test_a_loss_that_is_no_number_stops_training(tiny, tmp_path):
    """It stops at the step, keeps the last good checkpoint, and writes down the rows of the step; and says so."""
    config = make_config({"model": str(tiny), "dataset": "lab-ko-instruct", "max_train_samples": 24,
        "max_eval_samples": 2, "learning_rate": 1e9, "max_grad_norm": 0,
                          "max_steps": 30, "use_peft": False, "save_strategy": "steps", "save_steps": 1,
                          "save_total_limit": 1, "eval_strategy": "no", "report_to": []})
    experiment = prepare(config)
    record = type("Record", (), {"folder": tmp_path, "begin_training": lambda: None})
    trainer = choose_trainer(experiment.config, experiment.build_model(), experiment.tokenizer, experiment.train,
        experiment.held_out, record)
    with pytest.raises(LabError, match="Training stopped at step") as caught:
        run_training(trainer)
    step = trainer.state.global_step + 1
    assert f"step {step}" in str(caught.value) and step < 30 and STOPPED_STEP in str(caught.value)
    assert not math.isfinite(trainer.loss_trace[-1]) or len(trainer.loss_trace) == step
    written = json.loads((tmp_path / STOPPED_STEP).read_text(encoding="utf-8"))
    assert written["step"] == step and len(written["examples"]) == 8
    known = {row["where"] for row in experiment.train.rows}
    assert all(entry["row"] in known and entry["text"] for entry in written["examples"])
    kept = checkpoints_in(tmp_path / "checkpoints")
    assert newest_checkpoint(tmp_path / "checkpoints").name == f"checkpoint-{step - 1}" and len(kept) <= 2


def test_gradients_that_are_no_numbers_stop_training_before_they_are_learned(start):
    trainer = start()
    weight = next(weight for name,
        weight in trainer.model.named_parameters() if weight.requires_grad and "lora_B" in name)
    weight.register_hook(lambda gradient: gradient * math.nan if trainer.state.global_step == 2 else gradient)
    with pytest.raises(LabError, match="step 3: the norm of the gradients is nan"):
        trainer.train()
    assert all(weight.isfinite().all() for weight in trainer.model.parameters())


def test_a_model_whose_weights_are_no_numbers_is_refused(start):
    trainer = start()
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(math.nan)
    with pytest.raises(LabError, match="before a step is trained"):
        run_training(trainer)


@pytest.mark.parametrize("error", [MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
                                   RuntimeError("[enforce fail at alloc_cpu.cpp:127] can't allocate memory")],
                         ids=lambda error: type(error).__name__)
def test_memory_that_runs_out_is_explained(start, monkeypatch, error):
    trainer = start()

    def fail(*positional, **named):
        raise error

    monkeypatch.setattr(trainer, "training_step", fail)
    with pytest.raises(LabError, match="ran out of .*memory.* per_device_train_batch_size .*llmlab plan"):
        run_training(trainer)
