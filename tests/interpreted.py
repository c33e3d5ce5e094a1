"""Liger's kernels on a CPU, in Triton's interpreter, over trees:  TRITON_INTERPRET=1 python tests/interpreted.py FAMILY...

Prints a line of JSON a family: how far logits and gradients are from those without the kernels.
"""

import json
import sys

import liger_kernel.ops.geglu
import liger_kernel.ops.rms_norm
import numpy
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from llmlab.batching.batcher import Batcher
from llmlab.models.adapters import prepare_full, use_liger
from llmlab.models.checkpoints import REPLACED, leave_liger
from llmlab.models.testing import tiny_model
from llmlab.tokens.tokenize import Example
from llmlab.training.gradients import compare_gradients

convert = interpreter._implicit_cvt


@triton.jit
def root(x):
    """Compute what a GPU's own rsqrt computes, which no CPU has."""
    return 1 / tl.sqrt(x)


@triton.jit
def tanh(x):
    """Compute what a GPU's own tanh computes."""
    return 2 * tl.sigmoid(2 * x) - 1


def with_floats(argument):
    """Hand on a number as a compiled kernel gets it; the interpreter leaves it a Python one."""
    if isinstance(argument, float):
        return tl.tensor(interpreter.TensorHandle(numpy.array([argument], numpy.float32), tl.float32), tl.float32)
    return convert(argument)


def main(families):
    """Compare each family with itself."""
    interpreter._implicit_cvt = with_floats
    liger_kernel.ops.rms_norm.rsqrt, liger_kernel.ops.geglu.tanh = root, tanh
    shared = [*range(3, 20)]
    examples = [
        Example([*shared, 40 + number, 41, 42, 3 + number], 20, ((20, 21),)) for number in range(3)
    ]
    for family in families:
        model, ids = prepare_full(tiny_model(family), False), torch.tensor([[*range(5, 15)]])
        forward = model.forward
        with torch.no_grad():
            plain = model(ids).logits
            use_liger(model)
            difference = (model(ids).logits - plain).abs().max().item()
        checked = compare_gradients(model, Batcher("tree", 1024, 1), examples)
        has_norms, replaced = "LigerRMSNorm" in repr(model), len(REPLACED)
        leave_liger()
        print(json.dumps({
            "family": family, "difference": difference, "gradients": checked.gradients, "passed": checked.passed,
            "has_norms": has_norms, "same_forward": model.forward == forward, "replaced": replaced, "left": len(REPLACED),
        }), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
