"""Contestant that is none: how fast this machine multiplies matrices of the model's own shapes, forward and backward, in float32."""
import time

from clock import Clock, read_task, report
from flops import Sizes


def shapes_of(sizes: Sizes, tokens: int, supervised: int) -> list:
    """List (rows, in, out, share of the operations): each block matrix both ways, and the head in chunks of 256 MiB of scores."""
    rows = min(supervised, max(1, 2**28 // (4 * sizes.vocab_size)))
    blocks = [(tokens, one, other, len(sizes.windows) * tokens * one * other) for one, other in sizes.products.values()]
    ways = [way for rows, one, other, weight in [*blocks, (rows, sizes.hidden_size, sizes.vocab_size, supervised * sizes.hidden_size * sizes.vocab_size)]
            for way in ((rows, one, other, weight), (rows, other, one, weight))]
    total = sum(weight for *_, weight in ways)
    return [(rows, one, other, weight / total) for rows, one, other, weight in ways]


def measure(rows: int, one: int, other: int, transposed: bool) -> float:
    """Return operations a second of the better half of a second's repetitions."""
    import torch

    left, right = torch.randn(rows, one), torch.randn(other, one).T if transposed else torch.randn(one, other)
    target, times, until = torch.empty(rows, other), [], time.perf_counter() + 0.25
    while len(times) < 3 or time.perf_counter() < until:
        started = time.perf_counter()
        torch.mm(left, right, out=target)
        times.append(time.perf_counter() - started)
    return 2 * rows * one * other / sorted(times)[len(times) // 4]


def main():
    task, clock = read_task(), Clock()
    work = task["work"]
    sizes = Sizes(**{**work["sizes"], "windows": tuple(work["sizes"]["windows"])})
    rows = min(work["distinct_tokens"], int(task["variant"] or 2048))
    shapes = shapes_of(sizes, rows, work["supervised_tokens"])
    clock.note_memory()
    clock.start()
    rates = [measure(*shape[:3], transposed=number % 2 == 0) for number, shape in enumerate(shapes)]
    clock.stop()
    rate = 1 / sum(share / rate for (*_, share), rate in zip(shapes, rates))
    report(
        task, clock, 0.0, 0, flops_per_second=rate, rows=rows,
        shapes=[[*shape, rate] for shape, rate in zip(shapes, rates)]
    )


if __name__ == "__main__":
    main()
