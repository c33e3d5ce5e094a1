"""Tables and plots of what was measured. Nothing here computes more than medians and ratios of what the file of results holds."""
import csv
import json
import statistics
from pathlib import Path

TOLERANCE = 1e-4  # of the first loss, relative: more, and a contestant has not computed the same
NAMES = {"llmlab": "llmlab", "hf": "HF Trainer", "trl": "TRL", "llamafactory": "LLaMA-Factory"}
PACKAGES = {"llmlab": "transformers", "hf": "transformers", "trl": "trl", "llamafactory": "llamafactory"}
COLUMNS = ["contestant", "setting", "runs", "seconds", "CPU seconds", "examples/s", "supervised tokens/s", "computed tokens", "peak GiB", "growth GiB",
           "time against llmlab", "share of the bound", "first loss", "same loss"]


def median(runs: list, name: str) -> float:
    """Return the median of one figure over runs."""
    return statistics.median(run[name] for run in runs)


def is_same(loss: float, exact: float) -> bool:
    """Say whether a first loss is that of exact training."""
    return abs(loss - exact) <= TOLERANCE * abs(exact)


def bound_seconds(pair: dict) -> float | None:
    """Divide the operations that exact training needs by the speed at which this machine multiplied in the same alternations; None where that was not measured."""
    speeds = [run["flops_per_second"] for run in pair["runs"] if run["contestant"] == "gemm" and "failed" not in run]
    return pair["work"]["flops"]["total"] / statistics.median(speeds) if speeds else None


def summarize(pair: dict) -> list:
    """Return one dict a contestant, by the names of COLUMNS; those that failed have only a `failed`."""
    rows, bound = [], bound_seconds(pair)
    groups = {name: runs for name in NAMES if (runs := [run for run in pair["runs"] if run["contestant"] == name])}
    done = {name: [run for run in runs if "failed" not in run] for name, runs in groups.items()}
    own = median(done["llmlab"], "seconds") if done.get("llmlab") else None
    for name, runs in groups.items():
        if not done[name]:
            rows.append({"contestant": NAMES[name], "setting": runs[0]["variant"], "failed": runs[0]["failed"]})
            continue
        seconds, loss, version = median(done[name], "seconds"), median(done[name], "loss"), done[name][0]["versions"].get(PACKAGES[name], "")
        values = [f"{NAMES[name]}{f' {version}' if name != 'llmlab' else ''}", runs[0]["variant"], len(done[name]), seconds, median(done[name], "cpu_seconds"),
                  runs[0]["examples"] / seconds, runs[0]["supervised_tokens"] / seconds, runs[0]["computed_tokens"],
                  median(done[name], "peak_bytes") / 2**30, median(done[name], "growth_bytes") / 2**30, seconds / own if own else None,
                  bound / seconds if bound else None, loss, is_same(loss, pair["exact_loss"])]
        rows.append(dict(zip(COLUMNS, values)))
    return rows


def against_fastest(rows: list) -> dict | None:
    """Compare llmlab with the fastest peer: how many times its speed, and the share of its peak memory; None where one of the two is missing."""
    done = [row for row in rows if "failed" not in row]
    own, peers = [row for row in done if row["contestant"] == "llmlab"], [
        row for row in done if row["contestant"] != "llmlab"
    ]
    if not own or not peers:
        return None
    peer = min(peers, key=lambda row: row["seconds"])
    return {"peer": peer["contestant"], "setting": peer["setting"], "times": peer["seconds"] / own[0]["seconds"], "memory": own[0]["peak GiB"] / peer["peak GiB"],
            "bound": own[0]["share of the bound"], "most": 1 / peer["share of the bound"] if peer["share of the bound"] else None}


def cell(name: str, value) -> str:
    """Write one value for a table."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**losses differ**"
    if isinstance(value, float):
        return f"{value:.0%}" if name == "share of the bound" else f"{value:.6f}" if name == "first loss" else f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def table(names: list, rows: list) -> str:
    """Write rows of text under names as a table in Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (names, ["---"] * len(names), *rows))


def markdown(rows: list) -> str:
    """Write rows as a table, a contestant a column: there are fewer of them than figures, so that it fits a page."""
    failed = {row["contestant"]: f"failed: {row['failed']}" for row in rows if "failed" in row}
    figures = [[name, *(failed.pop(row["contestant"], "") if "failed" in row and name != "setting" else cell(name, row.get(name)) for row in rows)]
               for name in COLUMNS[1:]]
    return table(["", *(row["contestant"] for row in rows)], figures)


def describe(pair: dict) -> str:
    """Say on what, where and when a pair was measured."""
    work, machine = pair["work"], pair["machine"]
    memory = f", {machine['memory_bytes'] / 2**30:.0f} GiB" if machine["memory_bytes"] else ""
    versions = next(
        (run["versions"] for run in pair["runs"] if run["contestant"] == "llmlab" and "failed" not in run), {}
    )
    return (f"{pair['data']}, {work['examples']} examples on {pair['paragraphs']} {'paragraphs' if pair['workload'] == 'mrc' else 'subjects'}: {work['tokens']:,} tokens, "
            f"{work['distinct_tokens']:,} of them distinct by their beginnings, {work['supervised_tokens']:,} supervised. {pair['model']}, LoRA r={pair['lora_r']} on "
            f"{', '.join(pair['lora_targets'])}, float32. {machine['processor']}, {machine['cores']} cores ({pair['threads']} threads){memory}; {machine['system']}; "
            f"{', '.join(f'{name} {number}' for name, number in versions.items() if name != 'llamafactory')}; {pair['date']}.")


def pair_report(name: str, pair: dict) -> str:
    """Write the section of one pair: what it is, its table, llmlab against the fastest peer, and the trial of variants."""
    rows, bound = summarize(pair), bound_seconds(pair)
    parts = [f"### {name}", describe(pair), markdown(rows)]
    if best := against_fastest(rows):
        parts.append(f"Against the fastest peer ({best['peer']}, {best['setting']}): {best['times']:.1f} times its speed, {best['memory']:.2f} of its peak memory"
                     + (f"; {best['bound']:.0%} of the GEMM bound, which is {best['most']:.1f} times that peer's speed." if best["bound"] else "."))
    if bound:
        flops = pair["work"]["flops"]
        shares = ", ".join(f"{part} {flops[part] / flops['total']:.0%}" for part in flops if part != "total")
        parts.append(f"The bound: {flops['total'] / 1e9:,.0f} GFLOP ({shares}) at {flops['total'] / bound / 1e9:,.0f} GFLOP/s are {bound:.2f} s; "
                     f"{pair['work']['spared'] / flops['total']:.0%} of it could be left out besides in the first and the last layer.")
    trial = [f"{NAMES[run['contestant']]} {run['variant']} " + (f"failed ({run['failed']})" if "failed" in run else f"{run['seconds']:.1f} s"
             + ("" if is_same(run["loss"], pair["exact_loss"]) else f" (first loss {run['loss']:.4f}, exact {pair['exact_loss']:.4f})")) for run in pair["trial"]]
    parts.append("Tried once each: " + "; ".join(trial) + ".")
    parts += [f"{NAMES[peer]} could not be measured: {why}" for peer, why in pair["unavailable"].items()]
    return "\n\n".join(parts)


def pairs_of(results: dict) -> dict:
    """Return the entries that are pairs of data and model."""
    return {name: entry for name, entry in results.items() if "/" in name}


def extras_report(extras: dict) -> str:
    """Write what preparation takes, and what a notebook costs."""
    lines = [f"- preparing rows ({entry['data']}, {entry['model']}, {entry['processes']} process{'es' * (entry['processes'] > 1)}): {entry['rows']:,} rows "
              f"({entry['tokens']:,} tokens) in {entry['seconds']:.1f} s, {entry['rows'] / entry['seconds']:,.0f} rows/s" for entry in extras["preparation"]]
    notebook = extras["notebook"]
    lines.append(f"- one training of a tiny model: {notebook['script_seconds']:.1f} s as a script, {notebook['notebook_seconds']:.1f} s as `llmlab train` runs its "
                 f"notebook (medians of {notebook['repeats']}); the notebook also evaluates, answers questions, writes the record and its page")
    return "\n".join(lines)


def plot_pairs(results: dict):  # a matplotlib figure
    """Draw speed and peak memory of each contestant, a panel a pair."""
    from matplotlib import pyplot

    pairs = pairs_of(results)
    figure, axes = pyplot.subplots(
        2, max(len(pairs), 1), figsize=(3.2 * max(len(pairs), 1) + 1, 5.2), squeeze=False, layout="constrained"
    )
    for column, (name, pair) in zip(axes.T, pairs.items()):
        rows = [row for row in summarize(pair) if "failed" not in row]
        labels = [
            row["contestant"].split(" ")[0] + ("" if row["same loss"] else "*") + f"\n{row['setting']}" for row in rows
        ]
        colors = ["#2a6f97" if row["contestant"] == "llmlab" else "#b0b7bd" for row in rows]
        for axis, measure in zip(column, ("examples/s", "peak GiB")):
            bars = axis.bar(labels, [row[measure] for row in rows], color=colors)
            axis.bar_label(bars, fmt="{:.2f}", fontsize=7)
            axis.set_ylabel(measure)
            axis.tick_params(axis="x", labelsize=6)
            axis.spines[["top", "right"]].set_visible(False)
        column[0].set_title(name, fontsize=9)
    if any(not row["same loss"] for pair in pairs.values() for row in summarize(pair) if "failed" not in row):
        figure.supxlabel("* its first loss is not that of exact training", fontsize=7)
    return figure


def sampling_gains(results: dict) -> tuple[dict, int]:
    """Return for each group size its runs by seed, as (held-out losses by questions seen, seconds of processor time), and the questions of a step.

    Only seeds that were run with every group size are in it: others would compare unlike with unlike.
    """
    groups, settings = {}, results["settings"]
    size = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    for run in sorted(results["runs"], key=lambda run: (-run["group_size"], run["seed"])):
        losses = {int(step) * size: run["losses"][step] for step in sorted(run["losses"], key=int)}
        groups.setdefault(run["group_size"], {})[run["seed"]] = losses, run["cpu_seconds"]
    common = set.intersection(*(set(runs) for runs in groups.values()))
    return {group: {seed: run for seed, run in runs.items() if seed in common} for group, runs in groups.items()}, size


def sampling_report(results: dict) -> str:
    """Write how well a model learns by group size, seed by seed, with the mean over seeds and the paired difference from random order."""
    (groups, size), facts, settings, rows = sampling_gains(results), results["runs"][0], results["settings"], []
    last = {group: [[*losses.values()][-1] for losses, _ in runs.values()] for group, runs in groups.items()}
    for group, runs in groups.items():
        apart = [own - other for own, other in zip(last[group], last[1])] if 1 in groups and group != 1 else []
        compared = f"{statistics.mean(apart):+.4f} ({statistics.stdev(apart) / len(apart)**0.5:.4f})" if len(apart) > 1 else ""
        rows.append([f"up to {group}" if group > 1 else "1, random order", *(f"{loss:.4f}" for loss in last[group]), f"{statistics.mean(last[group]):.4f}", compared,
                     f"{statistics.mean(seconds for _, seconds in runs.values()):,.0f}"])
    before = statistics.mean(losses[0] for runs in groups.values() for losses, _ in runs.values())
    seeds = [f"seed {seed}" for seed in next(iter(groups.values()))]
    return (f"{results['dataset']}: {facts['train_questions']:,} questions to draw from, {size * settings['max_steps']:,} of them seen in {settings['max_steps']} steps of "
            f"{size}; the loss is that of {facts['held_out_questions']} questions about other paragraphs, {before:.4f} before. {settings['model']}, LoRA on "
            f"{settings['target_modules']}.\n\n"
            + table(["examples of a paragraph in a step", *seeds, "mean", "less random order (standard error)", "processor seconds"], rows))


def plot_sampling(results: dict):  # a matplotlib figure
    """Draw the held-out loss against examples seen: a thin line a seed, a thick one their mean."""
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 3.2), layout="constrained")
    for color, (group, runs) in zip(("#2a6f97", "#d1495b", "#66a182", "#edae49"), sampling_gains(results)[0].items()):
        # what was before is in the text, and would flatten the rest
        curves = [[*losses.items()][1:] for losses, _ in runs.values()]
        for curve in curves:
            axis.plot(*zip(*curve), color=color, linewidth=0.6, alpha=0.6)
        means = [(points[0][0], statistics.mean(loss for _, loss in points)) for points in zip(*curves)]
        axis.plot(
            *zip(*means), color=color, linewidth=2, marker="o", markersize=3,
            label=f"up to {group} of a paragraph in a step" if group > 1 else "random order"
        )
    axis.set(xlabel="questions seen", ylabel="held-out loss")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    return figure


def rounded(value: float | None) -> str:
    """Write a figure of any size to three digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"


def gpu_report(results: dict) -> str:
    """Write what `make gpu` measured: a table a part, each figure beside what was expected of it on paper."""
    machine, sections = results["machine"], []
    card = f"{machine['card']} ({machine['memory'] / 2**30:.0f} GiB, sm_{machine['capability'].replace('.', '')}, CUDA {machine['cuda']})" if "card" in machine else "no card: a CPU"
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    for part in results["parts"]:
        rows = []
        for line in part["figures"]:
            low, high = line.get("expected", (None, None))
            expected = f"{rounded(low)} to {rounded(high)}" if None not in (low, high) else f"at least {rounded(low)}" if low is not None else ""
            expected = f"at most {rounded(high)}" if low is None and high is not None else expected
            memory = f", {line['allocated'] / 1e9:.1f} GB allocated, {line['reserved'] / 1e9:.1f} reserved" if "allocated" in line else ""
            rows.append([line["what"] + memory, f"{rounded(line['value'])} {line['unit']}".strip(), expected, {True: "yes", False: "**no**"}.get(line.get("holds"), "")])
        status = f"{part['status']} after {part['seconds']:.0f} s of {part['limit']:.0f}" + "".join(f": {part[name]}" for name in ("error", "skipped") if name in part)
        sections += [f"### {part['part']}", f"{status}.", *([table(["figure", "measured", "on paper", "within"], rows)] if rows else [])]
    return "\n\n".join([f"{card}; Python {machine['python']}, {versions}; {results['date']}." + (" At tiny sizes, which measure nothing." if results["tiny"] else ""), *sections])


def write(path: Path):
    """Print the tables of a file of results, and write table.md, table.csv and plot.png beside it."""
    import matplotlib

    matplotlib.use("Agg")
    results = json.loads(path.read_text(encoding="utf-8"))
    sections = [pair_report(name, pair) for name, pair in pairs_of(results).items()]
    sections += [
        "### Preparation, and the notebook's price", extras_report(results["extras"])
    ] if "extras" in results else []
    text = "\n\n".join(sections) + "\n"
    print(text)
    path.with_name("table.md").write_text(text, encoding="utf-8")
    with path.with_name("table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["pair", *COLUMNS, "failed"])
        writer.writeheader()
        writer.writerows({"pair": name, **row} for name, pair in pairs_of(results).items() for row in summarize(pair))
    if pairs_of(results):
        plot_pairs(results).savefig(path.with_name("plot.png"), dpi=110)


def quick_report(kept: dict) -> str:
    """Write what `quick.py` measured, a column for each checkout, as Markdown."""
    names = list(dict.fromkeys(name for figures in kept.values() for name in figures["seconds"]))
    heads = [f"{keep} (of {figures['repeat']})" for keep, figures in kept.items()]
    rows = [[name, *(f"{figures['seconds'].get(name, float('nan')):.2f}" for figures in kept.values())] for name in names]
    return table(["processor seconds, median", *heads], rows)
