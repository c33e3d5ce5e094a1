"""FlexAttention's kernels, which packs in windows and under soft caps take on a GPU: compiled for cards that are not there (tests/gpu_kernels.py), they fit."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmlab.models.presets import MODELS

CARDS = [(8, 0), (8, 6), (8, 9), (9, 0)]  # A100; 3090, A10, A6000; 4090, L4, L40S; H100, H200
SIZES = [(64, 64), (128, 128), (192, 128), (256, 256)]  # of a head: of queries and keys, of values
needs_triton = pytest.mark.skipif(
    not importlib.util.find_spec("triton"), reason="the kernels of a GPU are compiled by triton: pip install triton"
)


def head_sizes(sizes: dict) -> tuple[int, int]:
    """Read from a model's sizes how many numbers a head has, of queries and of values."""
    if "qk_rope_head_dim" in sizes:
        return sizes["qk_nope_head_dim"] + sizes["qk_rope_head_dim"], sizes["v_head_dim"]
    size = sizes.get("head_dim") or sizes["hidden_size"] // sizes["num_attention_heads"]
    return size, size


def compiled(folder: Path, size, value_size, softcap=None, tiles="ours", cards=CARDS) -> list[dict]:
    """Compile the forward and the backward pass in a process of its own, which believes in cards."""
    case = {"head_size": size, "value_size": value_size, "softcap": softcap, "tiles": tiles, "capabilities": cards}
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    command = [sys.executable, str(Path(__file__).parent / "gpu_kernels.py"), json.dumps(case)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    seen = [(tuple(line["capability"]), line["pass"]) for line in lines]
    assert seen == [(card, way) for card in cards for way in ("forward", "backward")]
    return lines


def test_every_preset_has_one_of_these_sizes():
    assert {head_sizes(preset.config) for preset in MODELS.values()} == {*SIZES}


@needs_triton
@pytest.mark.parametrize("softcap", [None, 50.0])
@pytest.mark.parametrize("size, value_size", SIZES)
def test_kernels_fit_every_card(size, value_size, softcap, tmp_path):
    if softcap and size in (64, 192):
        pytest.skip("Gemma 2 has heads of 128 and 256")
    for line in compiled(tmp_path, size, value_size, softcap):
        assert 0 < line["shared"] <= line["limit"], line


@needs_triton
def test_the_tiles_of_torch_would_not_fit(tmp_path):
    """The same measure refuses what crashed on a 3090 and on a 4090: heads of 256 in FlexAttention's own tiles."""
    for line in compiled(tmp_path, 256, 256, tiles="default", cards=[(8, 6), (8, 9)]):
        assert line["shared"] > line["limit"], line
