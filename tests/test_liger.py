"""Liger's kernels: what the lab hands on and keeps from them; and, where they are installed, what they compute over trees."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from transformers.models.llama import modeling_llama

from card import a_card
from llmlab.common.errors import LabError
from llmlab.config.load import make_config
from llmlab.config.passed import LIGER_PARTS
from llmlab.models import adapters
from llmlab.models.checkpoints import leave_liger, locate_model
from llmlab.models.testing import save_tiny_checkpoint, tiny_model
from llmlab.training.trainer import build_model, training_arguments

FAMILIES = ("llama", "qwen3", "gemma3_text")
installed = all(map(importlib.util.find_spec, ("liger_kernel", "triton")))
needs_liger = pytest.mark.skipif(not installed, reason="Liger's kernels are not installed: pip install liger-kernel triton")


@pytest.fixture
def liger(monkeypatch):
    """A package that is called as Liger's is; what it was called with."""
    asked = []

    def apply_to_llama(model, **chosen):
        asked.append(chosen)
        monkeypatch.setattr(modeling_llama, "LlamaMLP", type("LigerMLP", (modeling_llama.LlamaMLP,), {}))
        modeling_llama.apply_rotary_pos_emb = "Liger's"

    made = {name: ModuleType(name) for name in ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.monkey_patch")}
    for name, module in made.items():
        module.__spec__ = SimpleNamespace(name=name)
        monkeypatch.setitem(sys.modules, name, module)
    made["liger_kernel.transformers.monkey_patch"].MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": apply_to_llama}
    made["liger_kernel.transformers"]._apply_liger_kernel_to_instance = apply_to_llama
    monkeypatch.setattr("transformers.integrations.liger.is_liger_kernel_available", lambda: True)
    yield asked
    leave_liger()


def settings(**training_args):
    """Ask for Liger's kernels."""
    return make_config({"training_args": {"use_liger_kernel": True, **training_args}, "report_to": []})


def test_a_cpu_has_no_use_for_them(liger):
    with pytest.raises(LabError, match="use_liger_kernel has no effect without a GPU") as caught:
        settings()
    assert len(str(caught.value).splitlines()) == 1


def test_what_the_lab_does_not_hand_on(liger, monkeypatch):
    with a_card(monkeypatch):
        for name in ("cross_entropy", "fused_linear_cross_entropy"):
            with pytest.raises(LabError, match=f"{name} has no place here: the lab's own loss takes hidden states"):
                settings(liger_kernel_config={name: True})
        with pytest.raises(LabError, match="'rms_nrom' is not known: it may have rope, rms_norm"):
            settings(liger_kernel_config={"rms_nrom": True})
        with pytest.raises(LabError, match="bool"):
            settings(liger_kernel_config={"rope": "fast"})


def test_without_the_package_they_are_refused_before_anything_is_read(monkeypatch):
    monkeypatch.setattr("llmlab.config.passed.importlib.util.find_spec", lambda name: None)
    with a_card(monkeypatch), pytest.raises(LabError, match="pip install liger-kernel"):
        settings()


def test_they_are_in_the_model_before_it_is_measured_and_never_in_its_loss(liger, monkeypatch, tmp_path):
    """transformers would put them in when training begins: after the held-out loss before."""
    tiny, plain = save_tiny_checkpoint(tmp_path / "llama", "llama"), modeling_llama.apply_rotary_pos_emb
    with a_card(monkeypatch):
        config = settings(liger_kernel_config={"rms_norm": False})
        build_model(config, locate_model(str(tiny)))
        arguments = training_arguments(config, tmp_path)
        assert liger == [{"rms_norm": False, "cross_entropy": False, "fused_linear_cross_entropy": False}]
        assert not arguments.use_liger_kernel, "or transformers would put them in again, with those of the loss"
        assert modeling_llama.apply_rotary_pos_emb == "Liger's"
        model = build_model(make_config({"report_to": []}), locate_model(str(tiny)))
    assert "LigerMLP" not in repr(model)
    assert modeling_llama.apply_rotary_pos_emb is plain and len(liger) == 1, "the next model is computed as its settings say"


def test_a_family_without_kernels_is_named(liger):
    with pytest.raises(LabError, match="no kernels for models of the family gpt_neox"):
        adapters.use_liger(tiny_model("gpt_neox"))


@needs_liger
def test_its_parts_are_those_of_the_installed_one():
    import inspect

    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as families

    parts = {name for apply in families.values() for name in inspect.signature(apply).parameters}
    assert parts - {"model", "kwargs", "cross_entropy", "fused_linear_cross_entropy"} == {*LIGER_PARTS}


@needs_liger
def test_what_they_compute_over_trees():
    """The kernels themselves, run by Triton's interpreter: the model's numbers, and gradients as exact as without."""
    script = [sys.executable, str(Path(__file__).parent / "interpreted.py"), *FAMILIES]
    done = subprocess.run(script, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [line["family"] for line in lines] == [*FAMILIES]
    for line in lines:
        assert 0 < line["difference"] < 1e-6 and line["passed"] and line["gradients"] < 1e-6, line
        assert line["has_norms"] and line["same_forward"], line
        assert line["replaced"] and not line["left"], line
