"""The way that packs take on a GPU, on a CPU: an emulated kernel in float64, every family, windows, soft caps and grouped heads."""
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

from llmlab.batching import attention, varlen
from llmlab.batching.batcher import Batcher
from llmlab.batching.forest import Segment
from llmlab.models.adapters import prepare_full
from llmlab.models.presets import MODELS
from llmlab.models.testing import tiny_model
from llmlab.tokens.tokenize import Example
from llmlab.training.gradients import compare_gradients

NOTEBOOK = Path(__file__).parent.parent / "nbs" / "03_batching" / "08_varlen.ipynb"
FAMILIES = {  # family -> sizes, and the ways that its layers take; windows are shorter than the examples
    "llama": ({}, {"varlen"}), "gpt_neox": ({}, {"varlen"}), "qwen2": ({}, {"varlen"}), "qwen3": ({}, {"varlen"}),
    "mistral": ({"sliding_window": 24}, {"flex"}), "phi3": ({"sliding_window": 24}, {"flex"}), "exaone4": ({}, {"varlen", "flex"}),
    "hyperclovax": ({}, {"varlen"}), "gpt2": ({}, {"varlen"}), "granite": ({}, {"varlen"}), "olmo2": ({}, {"varlen"}),
    "gemma3_text": ({"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]}, {"varlen", "flex"}),
    "gemma4_text": ({"sliding_window": 24}, {"flex", "dense"}),
    "deepseek_v3": ({}, {"varlen"}), "exaone_moe": ({}, {"varlen", "flex"}), "solar_open": ({}, {"varlen"}), "axk1": ({}, {"varlen"}),
    "gemma2": ({"sliding_window": 24, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}, {"flex"}),
}


def run(first, count):
    """Make up a run of tokens."""
    return [3 + (first * 37 + 11 * place * place) % 250 for place in range(count)]


def example(*parts):
    """Make an example of runs of tokens; the last one is learned."""
    ids = [token for part in parts for token in part]
    return Example(ids, len(ids) - len(parts[-1]), ((len(ids) - len(parts[-1]), len(ids)),))


TREE = [example(run(0, 9), run(text, 130), run(10 * text + question, 5 + question), run(question, 1 + 2 * question), [1])
        for text in (1, 2) for question in range(3)] + [example(run(7, 40), run(8, 3)), example(run(9, 4), [5])]


def emulated_flex(query, key, value, score_mod, block_mask, scale, enable_gqa, kernel_options):
    """Compute what FlexAttention computes: in blocks that are listed, whole or by the rule."""
    tokens, size = query.shape[2], block_mask.BLOCK_SIZE[0]
    rows, visible = torch.arange(tokens), torch.zeros(tokens, tokens, dtype=torch.bool)
    by_rule = block_mask.mask_mod(0, 0, rows[:, None], rows[None])
    for counts, order, allowed in ((block_mask.kv_num_blocks, block_mask.kv_indices, by_rule),
                                   (block_mask.full_kv_num_blocks, block_mask.full_kv_indices, torch.ones_like(by_rule))):
        for block, (count, columns) in enumerate(zip(counts[0, 0].tolist(), order[0, 0].tolist())):
            for column in columns[:count]:
                place = slice(block * size, (block + 1) * size), slice(column * size, (column + 1) * size)
                assert not visible[place].any(), "a block is listed twice"
                visible[place] = allowed[place]
    groups = query.shape[1] // key.shape[1]
    assert enable_gqa is (groups > 1) and groups & (groups - 1) == 0
    scores = query @ key.repeat_interleave(groups, 1).transpose(2, 3) * scale
    scores = scores if score_mod is None else score_mod(scores, 0, 0, rows[:, None], rows[None])
    return scores.masked_fill(~visible, float("-inf")).softmax(-1) @ value.repeat_interleave(groups, 1)


@pytest.fixture
def gpu(monkeypatch):
    """Have packs take a GPU's way, with what its kernels compute; count the ways taken."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    emulation, taken = {"torch": torch}, Counter()
    exec("".join(next(cell for cell in cells if cell["id"] == "varlen-emulate")["source"]), emulation)
    choose = attention.choose_way

    def counted(*arguments):
        way = choose(*arguments)
        taken[way] += 1
        return way

    for name in ("forward", "backward"):
        monkeypatch.setattr(varlen, f"flash_{name}", emulation[f"emulated_{name}"])
    monkeypatch.setattr(attention, "has_flash", lambda query: True)
    monkeypatch.setattr(attention, "choose_way", counted)
    monkeypatch.setattr(attention, "compiled_flex", lambda: emulated_flex)
    return taken


def test_every_family_of_a_preset_is_here():
    assert {preset.family for preset in MODELS.values()} <= {*FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_exact(family, gpu):
    sizes, ways = FAMILIES[family]
    model = prepare_full(tiny_model(family, **sizes).double(), False)
    for batching, tokens in (("tree", 1024), ("tree", 200), ("packed", 1024)):
        gpu.clear()
        checked = compare_gradients(model, Batcher(batching, tokens, 1), TREE)
        assert checked.loss_difference < 1e-12 and checked.gradients < 1e-12, checked.lines()
        assert {*gpu} == ways


class Context:
    """Keep what an autograd function keeps."""

    def save_for_backward(self, *tensors):
        self.saved_tensors = tensors


@pytest.mark.parametrize("heads, key_heads, size", [(8, 2, 64), (4, 1, 256), (3, 3, 128)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_torch_takes_the_calls(heads, key_heads, size, dtype):
    """Torch's own operators, on tensors without content: shapes and types of what goes in and comes out."""
    segments = Segment(0, 150, 700), Segment(150, 400, 650), Segment(400, 420, 420), Segment(420, 650, 650), Segment(650, 700, 700)
    with torch.no_grad():
        rows = [
            torch.empty((1, number, 700, size), device="meta", dtype=dtype)[0].transpose(0, 1)
            for number in (heads, key_heads, key_heads)
        ]
        calls, context = varlen.call_borders(segments, rows[0].device), Context()
        assert len(calls) == 3 and {borders.queries.dtype for borders in calls} == {torch.int32}
        output = varlen.VarlenAttention.forward(context, *rows, calls, 0.1)
        gradients = varlen.VarlenAttention.backward(context, torch.empty_like(output))
        log_sum = context.saved_tensors[-1]
    assert gradients[3:] == (None, None) and (tuple(log_sum.shape), log_sum.dtype) == ((heads, 700), torch.float32)
    for made, given in zip((output, *gradients), (rows[0], *rows)):
        assert (made.shape, made.dtype, made.device) == (given.shape, dtype, given.device)


def test_ways():
    """Which tensors go which way on a card that has flash attention."""
    def way(size, value_size=None, window=None, softcap=None, dropout=0.0):
        return attention.choose_way(
            torch.empty((1, 2, 5, size)), torch.empty((1, 2, 5, value_size or size)), window, softcap, dropout
        )

    before = attention.has_flash
    attention.has_flash = lambda query: True
    try:
        assert [way(64), way(256), way(192, 128)] == ["varlen"] * 3
        assert [way(64, window=9), way(64, softcap=2.0), way(20), way(64, 128)] == ["flex"] * 4
        assert [way(512), way(64, dropout=0.1)] == ["dense"] * 2
    finally:
        attention.has_flash = before
    assert way(64) == "blocks" and way(64, dropout=0.1) == "dense"
    assert not attention.has_flash(torch.empty(1, dtype=torch.bfloat16))
    with FakeTensorMode():
        assert not attention.has_flash(torch.empty(1, dtype=torch.float32, device="cuda")), "exact in float32"


def test_layers_find_the_pack_from_any_thread():
    """Gradient checkpointing on a GPU computes a layer again in a thread of the backward pass."""
    from concurrent.futures import ThreadPoolExecutor

    from llmlab.batching.forest import make_packs

    model, (pack,) = tiny_model("llama"), make_packs(TREE, 1024)
    with attention.forest_mode(model, pack), torch.no_grad(), ThreadPoolExecutor(1) as pool:
        inputs = attention.pack_inputs(pack)
        here = model(**inputs, use_cache=False).logits
        there = pool.submit(lambda: model(**inputs, use_cache=False).logits).result()
    assert torch.allclose(here, there) and not attention.UNDER_WAY and set(inputs) == {"input_ids", "position_ids"}
