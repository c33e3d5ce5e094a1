"""The parts of `make gpu`, each run by tools/gpu.py in a process of its own: python tools/gpu_parts.py PART[,PART] DEVICE [--tiny]. Prints a line of JSON a figure."""

import itertools
import json
import math
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
DEVICE, TINY = "cpu", True  # set by main
FAMILIES = ("llama", "gpt_neox", "qwen3", "gemma3_text")
SMALL = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def figure(
    what: str,
    value: float,
    unit: str = "",
    low: float = -math.inf,
    high: float = math.inf,
    always: bool = False,
    **more,
):
    """Print a figure, and whether it is within what was expected on paper; at tiny sizes only what must hold always is judged."""
    expected = (
        {"expected": [None if math.isinf(bound) else bound for bound in (low, high)]}
        if (low, high) != (-math.inf, math.inf)
        else {}
    )
    judged = {"holds": bool(low <= value <= high)} if expected and (always or not TINY) else {}
    print(json.dumps({"what": what, "value": value, "unit": unit, **expected, **judged, **more}), flush=True)


def settle():
    """Wait for the card."""
    import torch

    if DEVICE == "cuda":
        torch.cuda.synchronize()


def timed(function, repeats: int = 3) -> float:
    """Time a call in seconds: the fastest, after one that nobody times."""
    best = math.inf
    for number in range(1 + repeats):
        settle()
        started = time.perf_counter()
        function()
        settle()
        best = min(best, time.perf_counter() - started) if number else best
    return best


def peak_of(function) -> tuple[int, int]:
    """Say how many bytes a call has allocated and reserved at its peak; on a CPU the process."""
    import torch
    from llmlab.common.device import peak_memory

    if DEVICE == "cpu":
        function()
        return peak_memory(), peak_memory()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    function()
    settle()
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


def made_up(count: int, head: int, per_head: int, own: int, answer: int, vocabulary: int = 500) -> list:
    """Make examples of random tokens: `per_head` of them begin with the same `head` tokens."""
    from llmlab.tokens.tokenize import Example

    draw, examples, shared = random.Random(1), [], []
    head, own, answer = (max(2, size // 16) if TINY else size for size in (head, own, answer))
    for number in range(count):
        if number % per_head == 0:
            shared = [draw.randrange(3, vocabulary) for _ in range(head)]
        ids = shared + [draw.randrange(3, vocabulary) for _ in range(own + answer)]
        examples.append(Example(ids, len(ids) - answer, ((len(ids) - answer, len(ids)),)))
    return examples


def korquad(count: int) -> list:
    """Make reading questions, six to a paragraph: of 12 examples 12,996 tokens are read, 2,996 distinct, 192 learned."""
    return made_up(count, head=1000, per_head=6, own=67, answer=16)


def instruct(count: int) -> list:
    """Make instructions under one header: of 12 examples 11,868 tokens are read, 10,559 distinct, 8,340 learned."""
    return made_up(count, head=119, per_head=count, own=175, answer=695)


def settings(name: str, **values):
    """Make a configuration for a preset; at tiny sizes for a small model of its family."""
    from llmlab.config.load import make_config
    from llmlab.models.presets import MODELS

    preset, model = MODELS[name], name
    if TINY:
        config = {**preset.config, **SMALL, "num_key_value_heads": 2, "head_dim": 16}
        model = {"id": preset.id, "family": preset.family, "license": preset.license, "config": config}
    return make_config({"model": model, "report_to": [], "eval_strategy": "no", "warmup_steps": 0, **values})


def random_model(config, layers: int | None = None) -> tuple:
    """Make a model with random weights on the device, ready to train, and its head."""
    import torch
    from llmlab.batching.loss import find_head
    from llmlab.experiment.meta_model import build_meta_model, find_blueprint, place_meta_model
    from llmlab.experiment.trace import keep_blocks
    from llmlab.models.checkpoints import compute_in_half, master_weights

    blueprint, config = find_blueprint(config), master_weights(config)
    if layers and layers < blueprint.architecture.num_hidden_layers:
        blueprint = keep_blocks(blueprint, range(layers))
    model = build_meta_model(config, blueprint)
    place_meta_model(model, DEVICE)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                weight.fill_(0 if "gemma" in blueprint.architecture.model_type else 1)
    compute_in_half(model, config)
    return model, find_head(model)


def all_logits(model, pack) -> "torch.Tensor":
    """Compute the loss as trainers do that pack without sharing: logits of every token."""
    import torch
    from llmlab.batching.attention import pack_inputs

    targets = torch.full((len(pack.input_ids),), -100)
    targets[pack.sources] = torch.tensor(pack.targets)
    logits = model(**pack_inputs(pack, DEVICE), use_cache=False).logits[0]
    return torch.nn.functional.cross_entropy(logits.float(), targets.to(DEVICE), reduction="sum")


def take_step(model, head, batcher, examples, optimizer=None, plainly: bool = False):
    """Take an optimizer step."""
    from llmlab.batching.batcher import batch_mode
    from llmlab.batching.loss import loss_of_answers

    step = batcher(examples)
    for batch in step["batches"]:
        moved = {
            name: value.to(DEVICE, non_blocking=True) if hasattr(value, "to") else value
            for name, value in batch.items()
        }
        with batch_mode(model, batch):
            loss = all_logits(model, batch["pack"]) if plainly else loss_of_answers(model, head, moved)[0]
            (loss / step["learned"]).backward()
    if optimizer:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def adam(model):
    """Make AdamW over what is trained."""
    import torch

    return torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-5)


def attention():
    """Compare the ways to attend over a tree with float64 under a mask, forward and backward."""
    import torch
    from llmlab.batching.attention import BlockwiseAttention, dense_attention, flex_forest, flex_mask
    from llmlab.batching.forest import Segment
    from llmlab.batching.varlen import VarlenAttention, call_borders

    def varlen(query, key, value, segments, scale, window):
        rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
        return VarlenAttention.apply(*rows, call_borders(segments, query.device), scale).transpose(0, 1)[None]

    def flex(query, key, value, segments, scale, window):
        return flex_forest(query, key, value, flex_mask(segments, window, query.device), scale)

    def blocks(query, key, value, segments, scale, window):
        return BlockwiseAttention.apply(query, key, value, segments, scale, window, None)

    on_card, sizes, lengths = DEVICE == "cuda", (64, 128, 256), (155, 1000, 1024, 2953)
    heads, kind = ((32, 32), (32, 8), (24, 8), (4, 1)), torch.bfloat16
    if TINY:
        sizes, lengths, heads, kind = (16,), (155, 200), ((4, 1), (3, 3)), torch.float32
    ways = (
        [("varlen", varlen, None, heads), ("flex", flex, 512, heads[1:2])]
        if on_card
        else [("blocks", blocks, None, heads), ("blocks", blocks, 50, heads)]
    )
    for (way, function, window, counts), size in itertools.product(ways, sizes):
        worst, scale = 0.0, size**-0.5
        for (queries, keys), tokens in itertools.product(counts, lengths):
            torch.manual_seed(0)
            rows = [
                torch.randn(1, number, tokens, size, device=DEVICE).to(kind).requires_grad_()
                for number in (queries, keys, keys)
            ]
            third = tokens // 3
            segments = (
                Segment(0, third, tokens),
                Segment(third, 2 * third, tokens),
                Segment(2 * third, 2 * third + 9, 2 * third + 9),
                Segment(2 * third + 9, tokens, tokens),
            )
            exact = [row.detach().double().requires_grad_() for row in rows]
            upstream = torch.randn(1, queries, tokens, size, device=DEVICE).to(kind)
            expected = dense_attention(*exact, segments, scale, window)
            wanted = [expected, *torch.autograd.grad(expected, exact, upstream.double())]
            output = function(*rows, segments, scale, window)
            found = [output, *torch.autograd.grad(output, rows, upstream)]
            errors = [((one.double() - other).norm() / other.norm()).item() for one, other in zip(found, wanted)]
            worst = max(worst, *(error if math.isfinite(error) else 1e9 for error in errors))
        seen = f", window {window}" if window else ""
        figure(
            f"{way}, head size {size}{seen}: worst error against float64",
            worst,
            "",
            high=1e-4 if kind == torch.float32 else 1e-2,
            always=True,
        )
        seconds = timed(lambda: function(*rows, segments, scale, window).backward(upstream))
        figure(
            f"{way}, head size {size}{seen}: {tokens} tokens, {queries} heads of {keys}, forward and backward",
            1000 * seconds,
            "ms",
        )


def graphs():
    """Count what is compiled over lengths, measured and trained, with three models in one process."""
    from torch._dynamo.utils import counters

    from llmlab.batching.batcher import Batcher
    import torch

    for name, layers, high in (("gemma3-270m", 6, 8), ("llama2-7b", 2, 0), ("qwen3-8b", 2, 0)):
        model, head = random_model(settings(name, gradient_checkpointing=name == "qwen3-8b"), layers)
        counters.clear()
        started = time.perf_counter()
        for number in range(2 if TINY else 12):
            examples = made_up(4, head=900, per_head=4, own=16 * (7 + 11 * number), answer=32)
            with torch.no_grad():
                take_forward(model.eval(), head, Batcher("tree", 8192, 4), examples)
            take_step(model.train(), head, Batcher("tree", 8192, 4), examples)
        settle()
        figure(f"{name}: graphs compiled over lengths", counters["stats"]["unique_graphs"], "", high=high)
        figure(f"{name}: seconds for all of it", time.perf_counter() - started, "s", high=90 if high else 10)
        model = head = None


def take_forward(model, head, batcher, examples):
    """Measure the loss of examples."""
    from llmlab.batching.batcher import held_out_totals

    return held_out_totals(model, head, batcher, examples)


def gradients():
    """Compare gradients of trees and packs with those of examples one by one, on this device."""
    from llmlab.batching.batcher import Batcher
    from llmlab.models.adapters import prepare_full
    from llmlab.models.checkpoints import compute_in_half
    from llmlab.models.testing import tiny_model
    from llmlab.training.gradients import compare_gradients

    examples = made_up(
        6, head=1600 if TINY else 200, per_head=3, own=300 if TINY else 40, answer=160 if TINY else 12, vocabulary=400
    )
    for family, half, batching in itertools.product(FAMILIES, (False, True), ("tree", "packed")):
        wide = {"hidden_size": 256, "head_dim": 64} if not TINY else {}
        model = prepare_full(tiny_model(family, **wide).to(DEVICE), False)
        compute_in_half(model, SimpleNamespace(bf16=half, fp16=False))
        check = compare_gradients(model, Batcher(batching, 4096, 1), examples)
        kind = "bfloat16" if half else "float32"
        measured = {"difference of losses": check.loss_difference, "distance of gradients": check.gradients}
        for (what, value), bound in zip(measured.items(), check.bounds):
            figure(f"{family}, {batching}, {kind}: {what}", value, "", high=bound, always=True)


WAYS = {"LoRA": {}, "full": {"use_peft": False}, "8-bit": {"load_in_8bit": True}, "4-bit": {"load_in_4bit": True}}


def trainer_of(folder: Path, steps: int = 2, **values):
    """Make a trainer of a small checkpoint."""
    from llmlab.config.load import make_config
    from llmlab.models.checkpoints import load_tokenizer, locate_model
    from llmlab.models.testing import save_tiny_checkpoint
    from llmlab.training.trainer import build_model, make_trainer

    path = folder / "model"
    if not path.exists():
        save_tiny_checkpoint(path, "llama")
    config = make_config(
        {"model": str(path), "max_steps": steps, "eval_strategy": "no", "report_to": [], "warmup_steps": 0, **values}
    )
    examples = made_up(8 * steps, head=640, per_head=4, own=200, answer=100, vocabulary=400)
    model = build_model(config, locate_model(config.model))
    return make_trainer(config, model, load_tokenizer(path), examples, examples[:3], folder)


def formats():
    """Train two steps in every format and by every way; each must end in a loss that is a number."""
    import importlib.util

    from llmlab.training.trainer import run_training

    mixed, done, failed = ["", "bf16", "fp16"] if DEVICE == "cuda" else ["", "bf16"], 0, {}
    ways = {name: way for name, way in WAYS.items() if "bit" not in name or importlib.util.find_spec("bitsandbytes")}
    for (name, way), dtype, half, recompute in itertools.product(
        ways.items(), ("auto", "float32")[TINY:], mixed[TINY:], (False, True)[TINY:]
    ):
        values = {**way, "dtype": dtype, "gradient_checkpointing": recompute, **({half: True} if half else {})}
        with tempfile.TemporaryDirectory() as folder:
            try:
                metrics = run_training(trainer_of(Path(folder), **values))
                done += math.isfinite(metrics["eval_loss"])
            except Exception as error:
                failed[f"{name}, {dtype}, {half or 'none'}, {recompute}"] = f"{type(error).__name__}: {error}"[:200]
    figure(
        "combinations of way, dtype, mixed precision and checkpointing that train",
        done,
        f"of {done + len(failed)}",
        low=done + len(failed),
        always=True,
        failed=failed,
    )


def head():
    """Time the loss under a frozen head, ours against logits in whole and Liger's fused kernel."""
    import torch
    from llmlab.batching.loss import LOGITS_CHUNK_BYTES, FrozenHeadLoss

    kind = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    for name, words, width, ours in (
        ("LLaMA-2", 32_000, 4096, 2.7),
        ("Qwen3", 151_936, 4096, 13),
        ("Gemma 3 270M", 262_144, 640, 11),
    ):
        positions, words, width = (64, words // 64, width // 16) if TINY else (2048, words, width)
        hidden = torch.randn(positions, width, device=DEVICE, dtype=kind, requires_grad=True)
        weight = torch.randn(words, width, device=DEVICE, dtype=kind) * 0.02
        targets = torch.randint(words, (positions,), device=DEVICE)

        def lab():
            FrozenHeadLoss.apply(hidden, weight, targets, LOGITS_CHUNK_BYTES).backward()

        def plain():
            torch.nn.functional.cross_entropy((hidden @ weight.T).float(), targets, reduction="sum").backward()

        exact, found = (hidden.detach().double().requires_grad_() for _ in range(2))
        torch.nn.functional.cross_entropy(exact @ weight.double().T, targets, reduction="sum").backward()
        hidden.grad = None
        lab()
        found = ((hidden.grad.double() - exact.grad).norm() / exact.grad.norm()).item()
        figure(f"{name}: error of the gradient", found, "", high=2e-2 if DEVICE == "cuda" else 1e-5, always=True)
        figure(f"{name}: ours", 1000 * timed(lab), "ms", high=1.25 * ours)
        figure(f"{name}: ours, memory", (peak_of(lab)[0]) / 1e9, "GB", high=0.6 + 2e-9 * words * width + 0.1)
        figure(f"{name}: logits in whole", 1000 * timed(plain), "ms")
        try:
            from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
        except ImportError:
            continue
        fused = LigerFusedLinearCrossEntropyLoss(reduction="sum")
        figure(f"{name}: Liger's fused kernel", 1000 * timed(lambda: fused(weight, hidden, targets).backward()), "ms")


ON_PAPER = {  # tokens read a second on an H100: TRL's way, and trees
    ("llama2-7b", "KorQuAD"): (16_200, 69_000),
    ("llama2-7b", "instruct"): (16_200, 18_200),
    ("koalpaca", "KorQuAD"): (18_000, 77_000),
    ("koalpaca", "instruct"): (18_100, 20_300),
    ("gemma3-270m", "KorQuAD"): (279_000, 600_000),
    ("gemma3-270m", "instruct"): (280_000, 334_000),
}


def speed():
    """Measure tokens read a second, and memory, by every way of batching."""
    from llmlab.batching.batcher import Batcher

    for name in ("gemma3-270m", "koalpaca", "llama2-7b"):
        model, lm_head = random_model(
            settings(name, target_modules=["query_key_value"] if name == "koalpaca" else ["q_proj", "v_proj"])
        )
        optimizer = adam(model.train())
        for shape, make in (("KorQuAD", korquad), ("instruct", instruct)):
            examples = make(6 if TINY else 24)
            read, (theirs, ours) = sum(len(example.input_ids) for example in examples), ON_PAPER[name, shape]
            for way, pack in (
                ("tree", 2048),
                ("tree", 8192),
                ("tree", 16384),
                ("packed", 8192),
                ("padded", 0),
                ("TRL's way", 8192),
            ):
                plainly = way == "TRL's way"
                batcher = Batcher("packed" if plainly else way, pack, 4, target_tokens=None)
                run = lambda: take_step(model, lm_head, batcher, examples, optimizer, plainly)  # noqa: E731
                bounds = (
                    {"low": 0.75 * theirs, "high": 1.25 * theirs}
                    if plainly
                    else {"low": 0.75 * ours}
                    if (way, pack) == ("tree", 8192)
                    else {}
                )
                allocated, reserved = peak_of(run)
                figure(
                    f"{name}, {shape}: {way}{f' of {pack:,}' if pack else ''}",
                    read / timed(run, 2),
                    "tokens/s",
                    **bounds,
                    allocated=allocated,
                    reserved=reserved,
                )
        model = lm_head = optimizer = run = None


def determinism():
    """Take five steps twice: are the traces equal, and what does determinism cost?"""
    import torch

    def train(batching, steps=5):
        with tempfile.TemporaryDirectory() as folder:
            trainer = trainer_of(Path(folder), steps, batching=batching)
            trainer.train()
            return trainer.loss_trace

    for batching in ("tree", "packed", "padded"):
        same = sum(one == other for one, other in zip(train(batching), train(batching)))
        figure(
            f"{batching}: steps of five with the same loss to the last bit",
            same,
            "",
            low=0 if batching == "padded" else 5,
            always=True,
        )
    from llmlab.batching.batcher import Batcher

    model, lm_head = random_model(settings("gemma3-270m"))
    examples, seconds = instruct(6 if TINY else 12), {}
    for kind, on, fill in (("off", False, False), ("on", True, False), ("on, fresh memory filled", True, True)):
        torch.use_deterministic_algorithms(on, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = fill
        seconds[kind] = timed(lambda: take_step(model, lm_head, Batcher("tree", 8192, 4), examples))
    for kind, high in (("on", 1.05), ("on, fresh memory filled", 1.25)):
        figure(
            f"deterministic kernels {kind}: seconds against off", seconds[kind] / seconds["off"], "times", high=high
        )


def generation():
    """Measure answers: tokens a second by batch size, with shared contexts computed once and not."""
    from llmlab.evaluation.generation import generate_scored
    from llmlab.models.testing import tiny_tokenizer

    model, _ = random_model(settings("llama2-7b"))
    tokenizer, tokens = tiny_tokenizer(), 4 if TINY else 32
    prompts = [example.input_ids[: example.prompt_length] for example in korquad(6 if TINY else 64)]
    for size, share, expected in ((4, True, 140), (16, True, 560), (64, True, 2000), (16, False, None)):
        asked = prompts[: max(size, 16)]
        ask = lambda: generate_scored(  # noqa: E731
            model,
            tokenizer,
            asked,
            tokens,
            share=share,
            per_device_eval_batch_size=size,
            generation_args={"min_new_tokens": tokens},
        )
        bounds = {"low": 0.75 * expected} if expected else {}
        words = "computed once" if share else "computed for each"
        figure(
            f"7B, {size} questions at a time, contexts {words}",
            tokens * len(asked) / timed(ask, 1),
            "tokens/s",
            **bounds,
        )


def plan():
    """Compare plans with what happens: the peak, and the time of a pass."""
    from llmlab.batching.batcher import Batcher
    from llmlab.experiment.meta_model import find_blueprint
    from llmlab.experiment.passes import pass_tokens
    from llmlab.experiment.plan import make_plan
    from llmlab.experiment.trace import probe_seconds

    examples = instruct(8)
    for name in ("gemma3-270m", "llama2-7b"):
        config = settings(name, max_steps=1, pack_tokens=4096)
        made = make_plan(config, SimpleNamespace(examples=examples))
        probed = probe_seconds(config, find_blueprint(config), made.passes.typical) / pass_tokens(made.passes.typical)
        model, lm_head = random_model(config)
        optimizer, batcher = adam(model.train()), Batcher("tree", 4096, 4)
        run = lambda: take_step(model, lm_head, batcher, examples, optimizer)  # noqa: E731
        taken = peak_of(run)[0] if DEVICE == "cuda" else made.peak - made.framework
        figure(
            f"{name}: planned bytes against those allocated",
            (made.peak - made.framework) / taken,
            "times",
            low=0.9,
            high=1.1,
        )
        tokens = batcher(examples)["sharing"].tokens_computed
        figure(
            f"{name}: probed seconds against those taken", probed * tokens / timed(run), "times", low=0.8, high=1.25
        )
        model = lm_head = optimizer = run = None


def qlora():
    """Train over 4-bit weights, in 16 and in 32 bits."""
    import importlib.util

    from llmlab.batching.batcher import Batcher

    if not importlib.util.find_spec("bitsandbytes"):
        print(json.dumps({"skipped": "bitsandbytes is not installed"}))
        return
    seconds, examples = {}, korquad(6 if TINY else 12)
    for kind, values in (("16 bits", {"dtype": "bfloat16"}), ("32 bits", {"dtype": "float32"})):
        model, lm_head = random_model(settings("llama2-7b", load_in_4bit=True, **values))
        optimizer = adam(model.train())
        run = lambda: take_step(model, lm_head, Batcher("tree", 4096, 4), examples, optimizer)  # noqa: E731
        seconds[kind] = timed(run, 1)
        figure(f"7B in 4 bits, computed in {kind}: a step", seconds[kind], "s", head=str(lm_head.weight.dtype))
        figure(f"7B in 4 bits, computed in {kind}: allocated", peak_of(run)[0] / 1e9, "GB")
        model = lm_head = optimizer = run = None
    figure("32 bits against 16", seconds["32 bits"] / seconds["16 bits"], "times", low=4)


def profile():
    """Count what stops the card in a pass: synchronisations, copies, kernels, gaps."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watch

    from llmlab.batching.batcher import Batcher

    layers = 2 if TINY else 8
    model, lm_head = random_model(settings("llama2-7b"), layers)
    examples, batcher = korquad(12), Batcher("tree", 16384, 4)
    run = lambda: take_step(model.train(), lm_head, batcher, examples)  # noqa: E731
    seconds, passes = timed(run), len(batcher(examples)["batches"])
    with watch(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if DEVICE == "cuda" else [])]) as seen:
        run()
        settle()
    calls, busy, kernels = Counter(event.name for event in seen.events()), 0.0, 0
    for event in seen.events():
        if event.device_type.name == "CUDA":
            busy, kernels = busy + event.time_range.elapsed_us() / 1e6, kernels + 1
    waits = sum(calls[name] for name in ("cudaStreamSynchronize", "cudaEventSynchronize"))
    figure("synchronisations a pass", waits / passes, "", high=2)
    figure("copies to the card a pass", calls["cudaMemcpyAsync"] / passes, "", high=12)
    figure("kernels a layer, forward and backward", kernels / layers / passes, "", high=150)
    figure("operators a pass", sum(number for name, number in calls.items() if name.startswith("aten::")) / passes)
    figure("share of the time in which the card computes", busy / seconds, "", low=0.8)


def sharded():
    """Check gradients in float64, and a model that FSDP2 divides among one process: its head is used outside of its forward pass."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from llmlab.batching.batcher import Batcher
    from llmlab.batching.loss import find_head
    from llmlab.models.adapters import prepare_full
    from llmlab.models.testing import tiny_model
    from llmlab.training.gradients import compare_gradients

    examples, batcher = (
        made_up(6, head=640, per_head=3, own=200, answer=100, vocabulary=400),
        Batcher("tree", 4096, 1),
    )
    check = compare_gradients(prepare_full(tiny_model("llama").to(DEVICE).double(), False), batcher, examples)
    figure("float64: distance of gradients", check.gradients, "", high=1e-12, always=True)
    torch.distributed.init_process_group(
        "nccl" if DEVICE == "cuda" else "gloo", rank=0, world_size=1, store=torch.distributed.HashStore()
    )
    plain, model = (prepare_full(tiny_model("llama").to(DEVICE), False) for _ in range(2))
    lm_head = find_head(model)
    for layer in model.model.layers:
        fully_shard(layer, mesh=init_device_mesh(DEVICE, (1,)))
    fully_shard(model, mesh=init_device_mesh(DEVICE, (1,)))
    take_step(plain, find_head(plain), batcher, examples)
    take_step(model, lm_head, batcher, examples)
    whole = {name: weight.grad.full_tensor() for name, weight in model.named_parameters() if weight.grad is not None}
    far = max(
        ((whole[name] - weight.grad).norm() / weight.grad.norm()).item() for name, weight in plain.named_parameters()
    )
    figure("FSDP2: distance of gradients from those of the whole model", far, "", high=1e-5, always=True)
    torch.distributed.destroy_process_group()


PARTS = {  # name -> function and its seconds
    "attention": (attention, 60),
    "gradients": (gradients, 40),
    "formats": (formats, 50),
    "head": (head, 30),
    "speed": (speed, 150),
    "graphs": (graphs, 90),
    "determinism": (determinism, 30),
    "generation": (generation, 40),
    "plan": (plan, 30),
    "qlora": (qlora, 40),
    "profile": (profile, 20),
    "sharded": (sharded, 20),
}


def main():
    global DEVICE, TINY
    names, DEVICE, TINY = sys.argv[1].split(","), sys.argv[2], "--tiny" in sys.argv
    for name in names:
        if len(names) > 1:
            print(json.dumps({"part": name}), flush=True)
        PARTS[name][0]()


if __name__ == "__main__":
    main()
