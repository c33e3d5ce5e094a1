"""Packs change no gradient: every family, in both precisions, on odd shapes and on random trees."""

import pytest
import torch
from hypothesis import given, settings, strategies

from llmlab.batching.alone import forest_problem
from llmlab.common.errors import LabError
from llmlab.config.load import make_config
from llmlab.models.adapters import add_lora, add_tokens, prepare_full
from llmlab.models.checkpoints import load_base_model, load_tokenizer, locate_model, make_quantization, quiet_transformers
from llmlab.tokens.tokenize import Example
from llmlab.models.testing import save_tiny_checkpoint, tiny_model, tiny_tokenizer
from llmlab.batching.batcher import Batcher
from llmlab.training.trainer import build_model, make_trainer
from llmlab.training.gradients import check_gradients, compare_gradients, step_gradients
from llmlab.batching.loss import find_head

FAMILIES = {  # family -> sizes over the tiny ones; windows here are shorter than the examples
    "llama": {}, "gpt_neox": {}, "qwen2": {}, "qwen3": {}, "gemma": {}, "phi3": {"sliding_window": 24}, "mistral": {"sliding_window": 24},
    "gemma2": {"sliding_window": 24, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}, "gemma3_text": {"sliding_window": 24}, "exaone4": {},
    "hyperclovax": {}, "gemma4_text": {"sliding_window": 24}, "olmo2": {}, "granite": {"logits_scaling": 4.0}, "gpt2": {"n_positions": 1024}, "qwen3_moe": {}}


def example(*parts, learned=1):
    """Make an example of runs of tokens; the last `learned` parts carry loss."""
    ids = [token for part in parts for token in part]
    start = len(ids) - sum(len(part) for part in parts[len(parts) - learned:])
    return Example(ids, start, ((start, len(ids)),))


def run(first, count):
    """Make up a run of tokens."""
    return [3 + (first * 37 + 11 * place * place) % 250 for place in range(count)]


SHAPES = {
    "questions of two texts": [example(run(0, 9), run(text, 40), run(10 * text + question, 5 + question), run(question, 1 + 2 * question), [1])
                               for text in (1, 2) for question in range(4)],
    "answers of one token": [example(run(1, 30), run(question, 4), [50 + question]) for question in range(3)],
    "an example that begins another, and one that stands twice": [example(run(1, 30), run(2, 6)), example(run(1, 30), run(2, 6), run(3, 9), learned=2), *[example(run(5, 20), run(6, 3))] * 2],
    "nothing shared": [example(run(number, 12), run(number + 20, 4)) for number in range(5)],
    "one example": [example(run(1, 30), run(2, 6))],
    "turns that are learned one by one": [Example(run(1, 60), 50, ((10, 20), (30, 33), (50, 60))), Example(run(1, 40) + run(9, 20), 55, ((10, 20), (55, 60)))],
    "everything is learned": [Example(run(1, 40), 0, ((0, 40),)), Example(run(1, 20) + run(2, 9), 0, ((0, 29),))],
}


def lora(model, dtype=torch.float32):
    """Put LoRA on every linear layer of a tiny model."""
    with quiet_transformers():
        model = model if getattr(model, "is_quantized", False) else model.to(dtype)
        tuned = add_lora(model, "all-linear", lora_r=4, lora_alpha=8)
        return tuned if getattr(model, "is_quantized", False) else tuned.to(dtype)


def close(checked):
    """Tiny random models can round to a little over 1e-5 in float32; that they are exact is seen in float64."""
    return checked.dtype == "float32" and checked.loss_difference < 1e-6 and checked.gradients < 5e-5


@pytest.mark.parametrize("family, dtype", [(family, dtype) for family in FAMILIES for dtype in (torch.float32, torch.float64)
                                           if (family, dtype) != ("qwen3_moe", torch.float64)])  # its experts are not there in float64
def test_family(family, dtype):
    model = lora(tiny_model(family, **FAMILIES[family]), dtype)
    assert forest_problem(model) is None
    cases = [(shape, "tree", 64) for shape in SHAPES] + [
        ("questions of two texts", "tree", 512), ("questions of two texts", "packed", 512)
    ]
    for shape, batching, tokens in cases:
        checked = compare_gradients(model, Batcher(batching, tokens, 2), SHAPES[shape])
        assert checked.passed or close(checked), (shape, batching, tokens, checked.lines())


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_all_weights(family):
    """Full fine-tuning: the head too, which is the embedding in one family and not in the other."""
    model = prepare_full(tiny_model(family).double(), False)
    for shape, examples in SHAPES.items():
        assert compare_gradients(model, Batcher("tree", 256, 2), examples).passed, shape


def test_saved_modules_new_tokens_and_4_bit(tmp_path):
    save_tiny_checkpoint(tmp_path)
    tokenizer, quantization = tiny_tokenizer(), make_quantization(torch.float32, load_in_4bit=True)
    with quiet_transformers():
        quantized = lora(load_base_model(tmp_path, torch.float32, quantization))
        head = add_lora(
            tiny_model("llama").double(), ["q_proj"], lora_r=4, lora_alpha=8, modules_to_save=["lm_head"]
        ).double()
        grown = tiny_model("gemma3_text", vocab_size=len(tokenizer), tie_word_embeddings=True)
        ids = add_tokens(grown, tokenizer, ["<메모>"])
        grown = add_lora(grown.double(), ["q_proj"], lora_r=4, lora_alpha=8, new_token_ids=ids).double()
    for model in (quantized, head, grown):
        for shape, examples in SHAPES.items():
            checked = compare_gradients(model, Batcher("tree", 256, 2), examples)
            assert checked.passed or close(checked), (shape, checked.lines())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_checkpointing_and_bf16(checkpointing):
    """Gradient checkpointing computes the same; bfloat16 stays as near to float64 as padding does."""
    examples, results = SHAPES["questions of two texts"], {}
    for dtype in (torch.float64, torch.bfloat16):
        for batching in ("tree", "padded"):
            model = lora(tiny_model("gemma3_text", sliding_window=24), dtype)
            if checkpointing:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
                model.enable_input_require_grads()
            loss, gradients, _ = step_gradients(model.train(), find_head(model), Batcher(batching, 256, 1), examples)
            results[dtype, batching] = torch.cat([gradients[name].flatten().double() for name in sorted(gradients)])
    reference = results[torch.float64, "padded"]
    distance = {key: ((value - reference).norm() / reference.norm()).item() for key, value in results.items()}
    assert distance[torch.float64, "tree"] < 1e-6
    assert distance[torch.bfloat16, "tree"] < 1.5 * distance[torch.bfloat16, "padded"] < 0.2, distance


@strategies.composite
def forests(draw):
    """Draw examples that grow out of one another."""
    words, paths, examples = strategies.integers(3, 6), [[]], []
    for _ in range(draw(strategies.integers(1, 8))):
        ids = [*draw(strategies.sampled_from(paths)), *draw(strategies.lists(words, min_size=1, max_size=30))][:120]
        start = draw(strategies.integers(0, len(ids) - 1))
        examples.append(Example(ids, start, ((start, len(ids)),)))
        paths.append(ids[:draw(strategies.integers(0, len(ids)))])
    return examples


@pytest.fixture(scope="module")
def windowed():
    """A model with full layers and layers with a short window."""
    return lora(tiny_model("gemma3_text", sliding_window=10), torch.float64)


@settings(max_examples=60)
@given(forests(), strategies.sampled_from([16, 64, 1000]), strategies.sampled_from(["tree", "packed"]))
def test_random_trees(windowed, examples, tokens, batching):
    if not any(stop - max(1, start) for example in examples for start, stop in example.learned):
        return  # the first token of all is predicted by nothing
    checked = compare_gradients(windowed, Batcher(batching, tokens, 3), examples)
    assert checked.passed, checked.lines()


def test_a_family_without_the_registry_falls_back(tmp_path):
    save_tiny_checkpoint(tmp_path, "bloom")
    config = make_config({"model": str(tmp_path), "report_to": [], "max_steps": 2, "eval_strategy": "no"})
    checkpoint, tokenizer = locate_model(str(tmp_path)), load_tokenizer(tmp_path)
    with pytest.warns(
        UserWarning,
        match="batching=tree cannot be had with this model: its layers do not go through .* batching=padded"
    ):
        trainer = make_trainer(
            config, build_model(config, checkpoint), tokenizer, SHAPES["nothing shared"], SHAPES["one example"],
            tmp_path / "run"
        )
    trainer.train()
    assert trainer.batching_facts()["batching"] == "padded" and len(trainer.loss_trace) == 2


def test_float64_of_quantized_weights_is_refused(tmp_path):
    config = make_config({"load_in_4bit": True, "report_to": []})
    with pytest.raises(LabError, match="leave out load_in_4bit"):
        check_gradients(config, None, None, [], float64=True)
