"""FlexAttention's kernels for cards that are not there: Inductor writes them, Triton's wheel compiles them, nothing runs them.

    python tests/gpu_kernels.py '{"head_size": 256, "value_size": 256, "softcap": null, "tiles": "ours", "capabilities": [[8, 6]]}'

Prints a line of JSON for each pass and card: the bytes of shared memory that a block asks for, and those that it may have.
"""

import contextlib
import copy
import importlib.util
import json
import re
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
import torch._inductor.config
import torch._inductor.runtime.triton_helpers
import torch.utils._triton
import triton
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.device_interface import CudaInterface
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention import flex_attention
from torch.utils._pytree import tree_map
from triton.backends.compiler import GPUTarget

from llmlab.batching import attention
from llmlab.batching.forest import Segment

KERNEL = re.compile(r"async_compile\.triton\('(triton_tem\w+)', '''(.*?)''', device_str='cuda'\)", re.DOTALL)
SHARED = {  # compute capability -> bytes of shared memory that one block may have
    (8, 0): 166_912,
    (8, 6): 101_376,
    (8, 9): 101_376,
    (9, 0): 232_448,
}


class Written(Exception):
    """Stop where the code is written and would be loaded."""


def pretend(capability):
    """Have torch believe in a card of this capability."""
    card = SimpleNamespace(
        major=capability[0], minor=capability[1], name="none", gcnArchName="", multi_processor_count=108, warp_size=32,
        max_threads_per_multi_processor=1536, regs_per_multiprocessor=65_536, total_memory=2**34,
        shared_memory_per_block=49_152, shared_memory_per_block_optin=SHARED[capability],
        shared_memory_per_multiprocessor=SHARED[capability] + 1024, max_threads_per_block=1024, L2_cache_size=2**25, is_integrated=0,
    )
    target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)

    def answers(answer):
        return lambda *arguments, **named: answer

    for place, name, answer in (
        (torch.cuda, "is_available", True), (torch.cuda, "device_count", 1), (torch.cuda, "current_device", 0),
        (torch.cuda, "is_initialized", True), (torch.cuda, "_lazy_init", None), (torch.cuda, "synchronize", None),
        (torch.cuda, "get_device_properties", card), (torch.cuda, "get_device_capability", capability),
        (torch.cuda, "get_device_name", "none"), (torch.cuda, "_exchange_device", 0), (torch.cuda, "_maybe_exchange_device", 0),
        (torch.cuda, "get_rng_state", torch.zeros(16, dtype=torch.uint8)), (torch.cuda, "set_rng_state", None),
        (torch._C, "_cuda_getCurrentRawStream", 0), (torch._C, "_cuda_getDevice", 0), (torch._C, "_cuda_setDevice", None),
        (torch._C, "_cuda_exchangeDevice", 0), (torch._C, "_cuda_maybeExchangeDevice", 0),
        (torch._inductor.runtime.triton_helpers, "set_driver_to_gpu", None),
    ):
        setattr(place, name, answers(answer))
    for name, answer in (
        ("is_available", True), ("device_count", 1), ("current_device", 0), ("is_triton_capable", True),
        ("raise_if_triton_unavailable", None), ("get_raw_stream", 0), ("synchronize", None), ("get_device_properties", card),
        ("get_compute_capability", 10 * capability[0] + capability[1]),
    ):
        setattr(CudaInterface, name, staticmethod(answers(answer)))
    CudaInterface.Worker.get_device_properties = staticmethod(answers(card))
    CudaInterface.Worker.current_device = staticmethod(answers(0))
    torch.version.cuda = "13.0"
    memory = {"max_shared_mem": SHARED[capability], "multiprocessor_count": 108, "max_num_regs": 65_536, "warpSize": 32}
    triton.runtime.driver.set_active(SimpleNamespace(
        get_current_target=answers(target), get_current_device=answers(0), get_current_stream=answers(0),
        set_current_device=answers(None), get_active_torch_device=answers(torch.device("cuda:0")),
        utils=SimpleNamespace(get_device_properties=answers(memory)),
    ))
    for function in vars(torch.utils._triton).values():  # what they knew of the machine before
        if hasattr(function, "cache_clear"):
            function.cache_clear()
    return target


def captured(case: dict) -> list[torch.fx.GraphModule]:
    """Trace the lab's own call forward and backward, as if a CPU could go backward."""
    graphs = []

    def keep(graph, inputs):
        graphs.append(copy.deepcopy(graph))
        return make_boxed_func(graph.forward)

    def keep_only(graph, inputs):  # a CPU would take minutes for a backward pass under a soft cap
        keep(graph, inputs)
        raise Written

    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep_only, decompositions=select_decomp_table())
    compiled = torch.compile(flex_attention.flex_attention, backend=backend)
    segments = Segment(0, 350, 700), Segment(350, 525, 525), Segment(525, 700, 700)
    sizes = zip((4, 2, 2), (case["head_size"], case["head_size"], case["value_size"]))
    rows = [torch.randn((1, heads, 700, size), dtype=torch.bfloat16, requires_grad=True) for heads, size in sizes]
    with (
        patch.object(flex_attention, "_validate_device", lambda *rows: None),
        patch.object(attention, "compiled_flex", lambda: compiled),
        patch.object(attention, "SMALL_TILES", attention.SMALL_TILES if case["tiles"] == "ours" else None),
    ):
        mask = attention.flex_mask(segments, 200, torch.device("cpu"))
        with contextlib.suppress(Written, BackendCompilerFailed):
            attention.flex_forest(*rows, mask, 0.1, case["softcap"]).sum().backward()
    assert len(graphs) == 2, "one forward, one backward"
    return graphs


def moved(graph: torch.fx.GraphModule, device: torch.device) -> list:
    """Move a graph to a card, without content; return its inputs."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def move(value):
        if not isinstance(value, torch.Tensor):
            return value
        with torch.no_grad():
            empty = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
            return FakeTensor(mode, empty, device)

    for module in graph.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                if "device" in node.kwargs:
                    node.kwargs = {**node.kwargs, "device": device}
                if "val" in node.meta:
                    node.meta["val"] = tree_map(move, node.meta["val"])
                for name in ("tensor_meta", "example_value"):
                    node.meta.pop(name, None)
            module.recompile()
    return [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]


def written(graph: torch.fx.GraphModule) -> str:
    """Have Inductor write a graph's kernels for the card."""
    codes = []

    def keep(lowering):
        code = lowering.codegen()[0]
        codes.append(getattr(code, "value", code))
        raise Written

    with (
        patch.object(GraphLowering, "compile_to_module", keep),
        patch.object(FakeTensor, "copy_", lambda tensor, other: tensor),  # it would ask for the card
        torch.no_grad(),
    ):
        try:
            compile_fx_inner(graph, moved(graph, torch.device("cuda:0")))
        except Exception:
            if not codes:
                raise
    return codes[0]


def shared_bytes(code: str, target: GPUTarget):
    """Compile the attention kernels of a code; yield which way each goes, and its bytes of shared memory."""
    for name, source in KERNEL.findall(code):
        path = Path(tempfile.mkdtemp()) / "kernel.py"
        path.write_text(source.replace("\\\\", "\\"), encoding="utf-8")
        spec = importlib.util.spec_from_file_location("kernel", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        kernel = getattr(module, name)
        (choice,) = kernel.configs
        names = kernel.fn.arg_names
        constants = {**kernel.triton_meta["constants"], **choice.kwargs}
        source = triton.compiler.ASTSource(
            fn=kernel.fn,
            signature={**kernel.triton_meta["signature"], **dict.fromkeys(choice.kwargs, "constexpr")},
            constexprs={(names.index(each),): value for each, value in constants.items() if each in names},
            attrs=kernel.triton_meta["configs"][0],
        )
        options = {"num_warps": choice.num_warps, "num_stages": choice.num_stages}
        made = triton.compile(source, target=target, options=options)
        yield "backward" if "backward" in name else "forward", made.metadata.shared


def main(case: dict):
    """Compile a case for its cards."""
    graphs = captured(case)
    torch._inductor.config.fx_graph_cache, torch._inductor.config.compile_threads = False, 1
    for capability in map(tuple, case["capabilities"]):
        target = pretend(capability)
        for graph in graphs:
            for direction, shared in shared_bytes(written(copy.deepcopy(graph)), target):
                line = {"capability": capability, "pass": direction, "shared": shared, "limit": SHARED[capability]}
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
