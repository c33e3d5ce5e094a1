"""A pass computes its examples as if each stood alone, whatever stands beside it: lengths, sides, noise, and lengths at which a model switches."""
import warnings

import pytest
import torch

from llmlab.batching.alone import SWITCHES, Switch, embedding_noise, forest_problem, length_switch, pass_problem
from llmlab.batching.batcher import Batcher
from llmlab.batching.loss import find_head
from llmlab.common.errors import LabError
from llmlab.config.load import make_config
from llmlab.evaluation.generation import generate_answers
from llmlab.models.adapters import prepare_full
from llmlab.models.checkpoints import load_tokenizer, locate_model
from llmlab.models.testing import save_tiny_checkpoint, tiny_model, tiny_tokenizer
from llmlab.tokens.tokenize import Example
from llmlab.training.gradients import compare_gradients
from llmlab.training.trainer import build_model, make_trainer, training_arguments

N = 32  # tokens up to which the models here compute in one way
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0],
            "original_max_position_embeddings": N, "factor": 32.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}
SWITCHING = {
    "phi3": {"rope_parameters": LONGROPE, "original_max_position_embeddings": N},
    "llama": {"rope_parameters": LONGROPE},
    "gemma3_text": {"rope_parameters": {"full_attention": LONGROPE, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
                    "layer_types": ["sliding_attention", "full_attention"]},
    "phimoe": {"rope_parameters": {**LONGROPE, "short_mscale": 1.0, "long_mscale": 1.3, "rope_theta": 1e4}},
}


def example(length, beginning=24, own=0):
    """Make an example that shares its beginning with the others; the last half of the rest is learned."""
    ids = [3 + place * place % 250 for place in range(min(beginning, length))]
    ids += [3 + (own * 31 + place * 7) % 250 for place in range(length - len(ids))]
    start = max(1, length - 4)
    return Example(ids, start, ((start, length),))


AROUND = [example(length, own=length) for length in (N + 1, 9, N - 1, N + 2, N, 2 * N, 12)]


@pytest.mark.parametrize(
    "family",
    ["gpt2", "gptj", "opt", "llama", "gpt_neox", "bloom", "mpt", "gemma3_text", "codegen", "gpt_bigcode", "biogpt"]
)
def test_padding_moves_nothing(family):
    """Positions that are learned, turned, or a slope: with padding on either side, and to a fixed length."""
    sizes = {"opt": {"word_embed_proj_dim": 32, "ffn_dim": 64}, "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2},
             "gptj": {"rotary_dim": 8}, "codegen": {"rotary_dim": 8}}
    model = prepare_full(tiny_model(family, **sizes.get(family, {})).double(), False)
    for side, length in (("left", None), ("left", 3 * N), ("right", 3 * N)):
        checked = compare_gradients(model, Batcher("padded", 64, 4, 2, side, length), AROUND[:4])
        assert checked.passed, (side, length, checked.lines())


@pytest.mark.parametrize("family", SWITCHING)
@pytest.mark.parametrize("batching", ["tree", "packed", "padded"])
def test_examples_on_either_side_of_a_switch(family, batching):
    model = prepare_full(tiny_model(family, **SWITCHING[family]), False)
    assert length_switch(model.config) == Switch("longrope", N)
    model = model if family == "phimoe" else model.double()  # its experts are not there in float64
    for side, length in (("right", None), ("left", None), ("right", 3 * N)):
        batcher = Batcher(batching, 512, 4, 2, side, length, switch=N)
        checked = compare_gradients(model, batcher, AROUND)
        assert checked.passed or checked.gradients < 5e-5 and family == "phimoe", (side, length, checked.lines())
        if family != "phimoe":
            blind = compare_gradients(model, Batcher(batching, 512, 4, 2, side, length), AROUND)
            assert not blind.passed, "without the switch the test could not fail"


def test_the_probe_looks_around_switches():
    """Each length that a configuration names is probed, forward and backward, as far as passes reach."""
    for family, sizes in SWITCHING.items():
        assert forest_problem(tiny_model(family, **sizes)) is None, family
    blind = Batcher("packed", 512, 1)
    model = tiny_model("phi3", **SWITCHING["phi3"])
    assert "off by" in pass_problem(model, blind) and pass_problem(model, blind, longest=N) is None
    tempered = tiny_model("llama4_text", attn_temperature_tuning=True, floor_scale=N, attn_scale=1.0, no_rope_layers=[0, 0],
                          num_local_experts=2, layer_types=["full_attention"] * 2, intermediate_size_mlp=64)
    assert forest_problem(tempered, longest=N) is None and "off by" in forest_problem(tempered)
    assert {"floor_scale", "original_max_position_embeddings"} <= {*SWITCHES}


def test_a_probe_leaves_no_trace():
    model = tiny_model("phi3", **SWITCHING["phi3"]).train()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    random = torch.random.get_rng_state()
    forest_problem(model)
    pass_problem(model, Batcher("padded", 64, 4))
    assert model.training and torch.equal(torch.random.get_rng_state(), random)
    assert all(weight.grad is None and torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert not model.get_input_embeddings()._forward_hooks and model.config._attn_implementation == "sdpa"


def trainer_of(folder, family="llama", sizes=None, model=None, examples=AROUND, **settings):
    """Make a trainer of a tiny model of a family."""
    tiny_model(family, **(sizes or {})).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    config = make_config({"model": model or str(folder), "report_to": [], "eval_strategy": "no", "max_steps": 1, "max_length": 2 * N,
                          "per_device_train_batch_size": 8, "shuffle": False, "gradient_accumulation_steps": 1, **settings})
    return make_trainer(
        config, build_model(config, locate_model(config.model)), load_tokenizer(folder), examples, examples[:2],
        folder / "run"
    )


@pytest.mark.parametrize("settings", [
    {}, {"batching": "packed"}, {"batching": "padded", "padding_side": "left"},
    {"batching": "padded", "padding": "max_length"}
])
def test_a_trainer_knows_its_model(settings, tmp_path):
    """Longer examples than a switch never share a pass with shorter ones, in training and in evaluation."""
    trainer = trainer_of(tmp_path, "phi3", SWITCHING["phi3"], **settings)
    trainer.train()
    head, one = find_head(trainer.model), Batcher("padded", 1, 1)
    assert trainer.batcher.switch == N
    assert compare_gradients(trainer.model.double(), trainer.batcher, AROUND).passed
    assert [len(one.batches(AROUND)[0]), head is not None] == [len(AROUND), True]


def test_dynamic_rope(tmp_path):
    """Refused beyond the length that its frequencies are made for; up to it, exact, and longer passes before change nothing."""
    sizes = {"rope_parameters": DYNAMIC, "max_position_embeddings": 2 * N}
    with pytest.raises(LabError, match="max_length=65: beyond 64 tokens .*dynamic.* Set max_length=64 or less"):
        trainer_of(tmp_path, sizes=sizes, max_length=2 * N + 1)
    fresh, seasoned = trainer_of(tmp_path / "a", sizes=sizes), trainer_of(tmp_path / "b", sizes=sizes)
    with torch.no_grad():
        seasoned.model(input_ids=torch.arange(3 * N)[None])
    fresh.train()
    seasoned.train()
    assert seasoned.loss_trace == fresh.loss_trace
    assert compare_gradients(fresh.model.double(), fresh.batcher, AROUND).passed


def test_noise_goes_by_the_example(tmp_path):
    """NEFTune: a row's noise is drawn within alpha / sqrt(L d) of its own length, in training alone, and is gone afterwards."""
    bounds, alpha, lengths = [], 5.0, [len(each.input_ids) for each in AROUND]
    trainer = trainer_of(tmp_path, batching="padded", training_args={"neftune_noise_alpha": alpha})
    embeddings = trainer.model.get_input_embeddings()

    def look(layer, inputs, output):  # before the noise, which is put on last
        bounds.append(output.detach())

    def look_again(layer, inputs, output):
        bounds[-1] = (output.detach() - bounds[-1]).abs().amax((1, 2))

    embeddings.register_forward_hook(look)
    plain = embeddings.forward
    trainer.model.base_model.model.model.layers[0].register_forward_pre_hook(
        lambda layer, inputs: look_again(layer, inputs, inputs[0])
    )
    trainer.train()
    noise = torch.cat(bounds[-1:])
    expected = torch.tensor([alpha / (length * embeddings.embedding_dim)**0.5 for length in lengths])
    assert (noise <= expected).all() and (noise > 0.95 * expected).all()
    trainer.evaluate()
    assert bounds[-1].abs().max() == 0 and embeddings.forward == plain


def test_no_noise_without_alpha():
    model = tiny_model()
    with embedding_noise(model, {}, None), embedding_noise(model, {}, 0):
        assert not model.get_input_embeddings()._forward_hooks


def test_answers_around_a_switch():
    """An answer is the same in a batch and asked alone, on either side of a switch and across it."""
    model, tokenizer = tiny_model("phi3", **SWITCHING["phi3"]), tiny_tokenizer()
    prompts = [each.input_ids for each in AROUND]
    together = generate_answers(model, tokenizer, prompts, 6, per_device_eval_batch_size=4)
    alone = [generate_answers(model, tokenizer, [prompt], 6)[0] for prompt in prompts]
    assert together == alone


def test_every_argument_that_scales_with_a_pass_is_known(tmp_path):
    """A new kind of noise among transformers' training arguments would want the same question asked."""
    config = make_config({"report_to": []})
    noisy = {name for name in vars(training_arguments(config, tmp_path)) if "noise" in name}
    assert noisy == {"neftune_noise_alpha"}


def test_tiny_checkpoints_that_pad_on_one_side_only(tmp_path):
    save_tiny_checkpoint(tmp_path / "model", "rwkv")
    settings = {"batching": "padded", "target_modules": ["key"], "padding_side": "left"}
    with pytest.raises(LabError, match="padding_side=left: .* Set padding_side=right"):
        trainer_of(tmp_path, "rwkv", **settings)
    trainer_of(tmp_path, "rwkv", **{**settings, "padding_side": "right"}).train()
    trainer_of(
        tmp_path, "rwkv", **settings, padding="longest", per_device_eval_batch_size=1, per_device_train_batch_size=1
    )


@pytest.mark.parametrize("settings, told", [
    ({}, 1), ({"batching": "padded"}, 1), ({"quantization_args": {"llm_int8_threshold": 0.0}}, 0),
    ({"batching": "padded", "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1}, 0),
])
def test_columns_that_a_pass_of_8_bits_computes_apart_are_told(settings, told, tmp_path):
    """An example then hangs on its neighbours: it is said, and refused neither as a matter of padding nor of packs."""
    pytest.importorskip("bitsandbytes")
    model = tiny_model("llama")
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data *= 4  # columns beyond the threshold
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    config = make_config({"model": str(tmp_path), "load_in_8bit": True, "report_to": [], **settings})
    model = build_model(config, locate_model(config))
    with warnings.catch_warnings(record=True, action="always") as said:
        made = make_trainer(config, model, load_tokenizer(tmp_path), AROUND, AROUND[:2], tmp_path / "run")
    assert made.batcher.batching == config.batching
    assert sum("llm_int8_threshold: 0" in str(one.message) for one in said) == told
