"""The bench's pure parts: what exact training must compute, the order of contestants, tables and plots of made-up measurements."""
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies

BENCH = Path(__file__).resolve().parent.parent / "tools" / "bench"


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))


def example(prompt, answer):
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


@settings(deadline=None, max_examples=50)
@given(strategies.lists(strategies.lists(strategies.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=8))
def test_each_distinct_beginning_counts_once(sequences):
    sys.path.insert(0, str(BENCH))
    from flops import distinct_depths
    beginnings = {tuple(sequence[:length]) for sequence in sequences for length in range(1, len(sequence) + 1)}
    assert sorted(distinct_depths(sequences)) == sorted(len(beginning) - 1 for beginning in beginnings)


def test_operations_are_those_counted_by_hand():
    from flops import Sizes, count_work
    sizes = Sizes(
        hidden_size=4, intermediate_size=6, num_attention_heads=2, num_key_value_heads=1, head_dim=3, vocab_size=10,
        windows=(None, 2)
    )
    work = count_work([example([1, 2, 3], [4]), example([1, 2, 5], [6, 7])], sizes, lora_r=2)
    assert (work["tokens"], work["distinct_tokens"], work["supervised_tokens"]) == (9, 7, 3)  # 1 2 | 3 4 | 5 6 7
    assert work["visible_pairs"] == (1 + 2 + 3 + 4 + 3 + 4 + 5) + (1 + 2 + 2 + 2 + 2 + 2 + 2)
    block = 4 * 6 + 2 * 4 * 3 + 6 * 4 + 3 * 4 * 6  # q, k and v, o, MLP
    assert work["flops"]["blocks"] == 4 * block * 2 * 7
    assert work["flops"]["attention"] == 12 * 2 * 3 * 35
    assert work["flops"]["lora"] == 6 * 2 * ((4 + 6) + (4 + 3)) * 2 * 7
    assert work["flops"]["head"] == 4 * 4 * 10 * 3
    assert work["flops"]["total"] == sum(value for name, value in work["flops"].items() if name != "total")
    assert 0 < work["spared"] < work["flops"]["total"]


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_blocks_hold_the_weights_that_the_model_has(family):
    from flops import sizes_of
    from llmlab.models.adapters import block_layers
    from llmlab.models.testing import tiny_model
    model = tiny_model(family)
    sizes = sizes_of(model.config.to_dict())
    assert sizes.block_parameters * len(sizes.windows) == sum(
        layer.weight.numel() for layer in block_layers(model).values()
    )
    kinds = getattr(model.config, "layer_types", None) or ["full_attention"] * len(sizes.windows)
    assert sizes.windows == tuple(
        model.config.sliding_window if kind == "sliding_attention" else None for kind in kinds
    )


def test_contestants_take_turns():
    from compare import alternate
    assert [name for _, name in alternate("ABC", 2)] == list("ABCABC")


def test_fastest_variant_is_kept_and_failures_are_not():
    from compare import fastest
    assert fastest(
        [{"variant": "a", "failed": "no"}, {"variant": "b", "seconds": 3.0}, {"variant": "c", "seconds": 2.0}]
    ) == "c"
    assert fastest([{"variant": "a", "failed": "no"}]) is None


def test_micro_batches_are_full():
    from clock import split_evenly
    assert split_evenly(12, 4) == (4, 3)
    assert split_evenly(10, 4) == (2, 5)
    assert split_evenly(3, 4) == (3, 1)


@settings(deadline=None, max_examples=50)
@given(strategies.lists(strategies.booleans(), min_size=1, max_size=12))
def test_labels_and_ranges_say_the_same(learned):
    sys.path.insert(0, str(BENCH))
    from with_lab import ranges
    labels = [7 if on else -100 for on in learned]
    assert [any(start <= place < stop for start, stop in ranges(labels)) for place in range(len(labels))] == learned


def test_groups_of_questions_are_whole_and_from_all_over():
    from prepare import choose_rows
    rows = [{"group": number, "question": part} for number in range(9) for part in range(7)]
    chosen = choose_rows(rows, "mrc", 18)
    assert [row["group"] for row in chosen] == [1] * 6 + [4] * 6 + [7] * 6
    assert len({row["group"] for row in choose_rows(rows, "instruct", 5)}) == 5


def run(contestant, seconds, turn=0, loss=2.0, **more):
    return {"contestant": contestant, "variant": "some", "turn": turn, "loss": loss, "seconds": seconds, "cpu_seconds": 2 * seconds, "peak_bytes": 2**30,
            "growth_bytes": 2**29, "examples": 12, "supervised_tokens": 60, "computed_tokens": 900, "versions": {"trl": "1.2"}, **more}


@pytest.fixture
def results():
    from flops import Sizes, count_work
    sizes = Sizes(4, 6, 2, 1, 3, 10, (None,))
    work = count_work([example([1, 2, 3], [4])], sizes)
    pair = {"workload": "mrc", "data": "made up", "paragraphs": 2, "work": work, "lora_r": 8, "lora_targets": ["q_proj"], "model": "tiny", "threads": 2,
            "machine": {"system": "s", "processor": "p", "cores": 2, "memory_bytes": 2**33}, "date": "2026-01-01", "unavailable": {"llamafactory": "no wheel"},
            "trial": [run("hf", 9.0), {"contestant": "hf", "variant": "odd", "turn": 0, "failed": "it broke"}], "exact_loss": 2.0,
            "runs": [run("llmlab", 1.0), run("hf", 9.0), run("trl", 8.0, loss=2.1, peak_bytes=2**31), run("gemm", 1.0, flops_per_second=work["flops"]["total"] / 0.5),
                     run("llmlab", 3.0, 1), run("hf", 7.0, 1), run("llmlab", 2.0, 2), {"contestant": "odd", "variant": "x", "turn": 0, "failed": "it broke"}]}
    return {"mrc/tiny": pair}


def test_table_holds_medians_and_ratios_and_flags_other_losses(results, monkeypatch):
    import report
    monkeypatch.setitem(report.NAMES, "odd", "Odd")
    rows = report.summarize(results["mrc/tiny"])
    own, hf, trl, odd = rows
    assert (own["seconds"], own["runs"], own["examples/s"], own["share of the bound"]) == (2.0, 3, 6.0, 0.25)
    assert (hf["seconds"], hf["time against llmlab"], hf["same loss"]) == (8.0, 4.0, True)
    assert trl["same loss"] is False and odd["failed"] == "it broke"
    best = report.against_fastest(rows)
    assert best["times"] == 4.0 and best["bound"] == 0.25
    text = report.pair_report("mrc/tiny", results["mrc/tiny"])
    assert "**losses differ**" in text and "TRL 1.2" in text and "LLaMA-Factory could not be measured: no wheel" in text and "failed: it broke" in text


def test_results_are_merged_by_pair_and_written(results, tmp_path, capsys, monkeypatch):
    import compare
    import report
    monkeypatch.setitem(report.NAMES, "odd", "Odd")
    path = tmp_path / "sub" / "results.json"
    compare.merge(path, "mrc/tiny", {"old": True})
    compare.merge(path, "instruct/tiny", results["mrc/tiny"])
    compare.merge(path, "mrc/tiny", results["mrc/tiny"])
    assert list(json.loads(path.read_text())) == ["mrc/tiny", "instruct/tiny"]
    report.write(path)
    assert "### instruct/tiny" in capsys.readouterr().out
    assert path.with_name("plot.png").read_bytes()[:4] == b"\x89PNG"
    assert len(path.with_name("table.csv").read_text().splitlines()) == 9


def test_a_trial_is_used_again_for_the_same_examples_only(results, tmp_path):
    import compare
    path, pair = tmp_path / "results.json", results["mrc/tiny"]
    assert compare.earlier_trial(path, "mrc/tiny", pair) == []
    compare.merge(path, "mrc/tiny", pair)
    assert compare.earlier_trial(path, "mrc/tiny", pair) == pair["trial"]
    assert compare.earlier_trial(path, "instruct/tiny", pair) == []
    assert compare.earlier_trial(path, "mrc/tiny", {**pair, "threads": 1}) == []


def test_a_peer_that_cannot_be_installed_is_said_to_be_so(tmp_path, monkeypatch):
    import compare
    monkeypatch.setattr(compare, "ENVIRONMENTS", tmp_path / ".bench")
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    monkeypatch.setattr(
        compare, "PEERS", {"none": ("x.py", "none", ("/no/such/package-1.0-py3-none-any.whl",), (), ())}
    )
    assert compare.install("none")
    assert not (tmp_path / ".bench" / "none" / "installed.txt").exists()


def test_shapes_of_multiplications_share_out_all_operations():
    from flops import Sizes
    from gemm import shapes_of
    shapes = shapes_of(Sizes(4, 6, 2, 1, 3, 10, (None, None)), tokens=50, supervised=5)
    assert sum(share for *_, share in shapes) == pytest.approx(1)
    assert (50, 4, 6) in {shape[:3] for shape in shapes} and (5, 10, 4) in {shape[:3] for shape in shapes}


def test_scaled_examples_share_a_context_and_nothing_else():
    from flops import distinct_depths
    from scale import made_examples
    examples = made_examples(100, 4, own=10, answer=3)
    assert len(distinct_depths([entry["input_ids"] for entry in examples])) == 100 + 4 * 13


def test_points_take_the_place_of_older_ones(tmp_path):
    from scale import keep, plot
    path = tmp_path / "scale.json"
    for seconds in (1.0, 2.0):
        for batching in ("tree", "padded-1"):
            keep(path, {
                "part": "context", "model": "tiny", "context": 256, "questions": 8, "batching": batching,
                "seconds": seconds, "peak_bytes": 2**30
            })
    keep(path, {
        "part": "rows", "model": "tiny", "rows": 1000, "streaming": False, "seconds": 1.0, "cpu_seconds": 1.0,
        "peak_bytes": 2**30
    })
    lines = json.loads(path.read_text())["lines"]
    assert [line["seconds"] for line in lines] == [2.0, 2.0, 1.0]
    assert len(plot(lines).axes) == 6


def test_sampling_is_compared_seed_by_seed():
    """Gains are differences of the same seed from random order, with their standard error; one seed alone gets a table without."""
    import report

    runs = [{"seed": seed, "group_size": group, "losses": {"10": loss, "0": 2.0, "5": loss + 1}, "cpu_seconds": 10.0 * group, "train_questions": 50, "held_out_questions": 7}
            for seed, group, loss in ((1, 1, 0.5), (1, 6, 0.52), (2, 1, 0.6), (2, 6, 0.58), (3, 6, 0.1))]
    results = {"dataset": "made.json", "runs": runs, "settings": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 10, "model": "m",
                                                                  "target_modules": "all-linear"}}
    text = report.sampling_report(results)
    # a seed without both is left out
    assert "80 of them seen in 10 steps of 8" in text and "2.0000 before" in text and "seed 3" not in text
    assert "| up to 6 | 0.5200 | 0.5800 | 0.5500 | +0.0000 (0.0200) | 60 |" in text and "| 1, random order | 0.5000 | 0.6000 | 0.5500 |  | 10 |" in text
    assert "standard error" in report.sampling_report({**results, "runs": runs[:1]})
    lines = report.plot_sampling(results).axes[0].get_lines()
    assert list(lines[0].get_xdata()) == [40, 80] and list(lines[0].get_ydata()) == pytest.approx([1.52, 0.52])


def test_what_was_not_measured_stays_empty():
    """A point that failed says why, and shows no figure that nobody measured."""
    import scale

    lines = [{"part": "rows", "rows": 10, "seconds": 1.5, "peak_bytes": 2**30, "private_bytes": None}, {"part": "rows", "rows": 20, "failed": "took too long"},
             {"part": "context", "rows": 30}]
    assert scale.scale_table(lines, "rows", ["rows", "seconds", "peak_bytes", "private_bytes"]).splitlines()[2:] == [
        "| 10 | 1.50 | 1.00 |  |", "| 20 | took too long |  |  |"]
