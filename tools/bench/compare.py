"""Compare llmlab's batching with its peers: one optimizer step over the same tokens, each measurement a process of its own, the contestants in turn.

    make bench                                                         # all pairs; installs the peers first, in .bench/
    make bench ARGS="--models gemma3-270m --workloads mrc --repeats 5" # one pair; its figures replace those of that pair in the file
    make bench ARGS="--data mrc=../shared/data/korquad_v1_dev.json"    # another set of that shape
    make bench ARGS="--reuse-trial --slower-peers-once"                # less than half the time: no variant is tried again
    make bench ARGS="--only table"                                     # the table of what has been measured

Each peer tries its variants once (padded, length-sorted, packed) and goes on with the fastest. Figures go to nbs/bench/results.json.
"""
import argparse
import datetime
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import report

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RESULTS = ROOT / "nbs" / "bench" / "results.json"
ENVIRONMENTS = ROOT / ".bench"
WORKLOADS = {"mrc": "lab-ko-mrc", "instruct": "lab-ko-instruct"}
MODELS = ("gemma3-270m", "smollm2-135m")
PEERS = {  # peer -> its script, environment (None: the lab's own), packages, packages without what they ask for, variants to try
    "hf": ("with_hf.py", None, (), (), ("padded-1", "padded-2", "padded-4", "flattened-4")),
    "trl": ("with_trl.py", "trl", ("torch==2.13.0", "trl==1.16.0", "transformers==5.23.0", "peft==0.21.2", "accelerate==1.15.0", "datasets==5.2.0"), (),
            ("padded-1", "padded-2", "padding_free-4", "packed-2048")),
    "llamafactory": (
        "with_llamafactory.py", "llamafactory",
        ("torch==2.13.0", "transformers==5.6.0", "peft==0.18.1", "accelerate==1.11.0", "datasets==4.0.0", "trl==0.24.0", "torchdata==0.11.0", "tyro<0.9",
         "einops", "omegaconf", "pandas", "protobuf", "pydantic", "pyyaml", "safetensors", "scipy", "sentencepiece", "tiktoken", "matplotlib", "fire",
         "sse-starlette", "fastapi", "uvicorn"), ("llamafactory==0.9.5",), ("padded-1", "padded-2", "packed-2048")),
}


def environment(threads: int) -> dict:
    """Return the environment that all contestants get alike; THP_MEM_ALLOC_ENABLE is what llmlab sets for itself, so all have it."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
            "THP_MEM_ALLOC_ENABLE": "1", "CUDA_VISIBLE_DEVICES": "", "WANDB_DISABLED": "true", "PYTHONWARNINGS": "ignore", "DISABLE_VERSION_CHECK": "0"}


def install(peer: str) -> str:
    """Install a peer in an environment of its own, once; return why it cannot be had, or nothing."""
    _, name, packages, alone, _ = PEERS[peer]
    if name is None:
        return ""
    folder, wanted = ENVIRONMENTS / name, "\n".join([*packages, *alone])
    stamp = folder / "installed.txt"
    if stamp.exists() and stamp.read_text() == wanted:
        return ""
    print(f"Installing {peer} into {folder.relative_to(ROOT)}, once: {', '.join(packages[:4] + alone)} ...", flush=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    steps = [
        [sys.executable, "-m", "venv", str(folder)], [*pip, *packages],
        *([[*pip, "--no-deps", *alone]] if alone else [])
    ]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["pip failed"])[-1]
    stamp.write_text(wanted)
    return ""


def python_of(peer: str | None) -> str:
    """Return the interpreter of a peer."""
    name = PEERS[peer][1] if peer in PEERS else None
    return str(ENVIRONMENTS / name / "bin" / "python") if name else sys.executable


def run_one(script: str, peer: str | None, task: Path, variant: str, threads: int, limit: float) -> dict:
    """Run one measurement in a process of its own; return its line, or {"failed": why}."""
    try:
        done = subprocess.run([python_of(peer), str(HERE / script), str(task), variant], env=environment(threads), capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, timeout=limit, cwd=task.parent)
    except subprocess.TimeoutExpired:
        return {"failed": f"took more than {limit:.0f} s"}
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()] or [
            f"exit status {done.returncode}"
        ]
        return {"failed": f"exit status {done.returncode}: {lines[-1][:300]}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def alternate(contestants: list, repeats: int):
    """Yield (turn, contestant) in alternation: A B C A B C ..."""
    yield from itertools.product(range(repeats), contestants)


def fastest(trial: list) -> str | None:
    """Return the variant of the quickest measurement of a trial that did not fail."""
    done = [entry for entry in trial if "failed" not in entry]
    return min(done, key=lambda entry: entry["seconds"])["variant"] if done else None


def earlier_trial(path: Path, name: str, pair: dict) -> list:
    """Return the trial that the file holds of a pair, where it was of the same examples, on the same machine, with as many threads."""
    known = json.loads(path.read_text(encoding="utf-8")).get(name) if path.exists() else None
    same = known and all(
        known[part] == json.loads(json.dumps(pair[part])) for part in ("data", "work", "machine", "threads")
    )
    return known["trial"] if same else []


def compare_pair(workload: str, model: str, options) -> dict:
    """Measure one pair of data and model; return all that was seen."""
    with tempfile.TemporaryDirectory() as folder:
        source = options.data.get(workload, WORKLOADS[workload])
        subprocess.run([sys.executable, str(HERE / "prepare.py"), folder, workload, model, source, str(options.examples), str(options.seed)],
                       check=True, env=environment(options.threads), cwd=ROOT, stdin=subprocess.DEVNULL)
        path = Path(folder, "task.json")
        task = json.loads(path.read_text())
        pair = {name: task[name] for name in ("workload", "data", "paragraphs", "work", "lora_r", "lora_targets")} | {
            "model": model, "threads": options.threads, "machine": machine(), "date": datetime.date.today().isoformat(), "unavailable": {}, "trial": [], "runs": []}

        def measure(script, contestant, variant, kind, turn=0):
            line = {
                "contestant": contestant, "variant": variant, "turn": turn,
                **run_one(script, contestant, path, variant, options.threads, options.limit)
            }
            pair[kind].append(line)
            print(f"{workload}/{model} {kind} {turn} {contestant:<13} {variant:<15} " + (line.get("failed") or (
                f"{line['seconds']:7.2f} s  {line['cpu_seconds']:7.2f} cpu s  {line['peak_bytes'] / 2**30:5.2f} GiB  loss {line['loss']:.6f}"
                f"{line.get('flops_per_second', 0) / 1e9 or '':>8.5}")), flush=True)
            return line

        pair["trial"] = earlier = earlier_trial(
            options.results, f"{workload}/{model}", pair
        ) if options.reuse_trial else []
        exact = next((line for line in earlier if line["contestant"] == "llmlab"), None) or measure(
            "with_lab.py", "llmlab", "padded-1", "trial"
        )
        if "failed" in exact:
            raise SystemExit(f"{workload}/{model}: the exact reference could not be computed: {exact['failed']}")
        pair["exact_loss"] = exact["loss"]
        turns = [("with_lab.py", "llmlab", options.batching)]
        for peer in options.peers:
            script, _, _, _, variants = PEERS[peer]
            if why := install(peer):
                pair["unavailable"][peer] = why
                print(f"{peer} cannot be installed here and is left out: {why}", flush=True)
                continue
            tried = [line for line in earlier if line["contestant"] == peer]
            tried = tried or [
                measure(script, peer, variant, "trial") for variant in options.variants.get(peer, variants)
            ]
            if (best := fastest(tried)) is None:
                pair["unavailable"][peer] = f"no variant ran: {tried[0]['failed']}"
            else:
                turns.append((script, peer, best))
        turns += [("gemm.py", "gemm", str(options.pack_tokens))]
        if options.slower_peers_once:
            quickest = fastest(
                [{**entry, "variant": entry["contestant"]} for entry in pair["trial"] if entry["contestant"] in PEERS]
            )
            slower = {turn[1:] for turn in turns if turn[1] in PEERS and turn[1] != quickest}
            pair["runs"] += [line for line in pair["trial"] if (line["contestant"], line["variant"]) in slower]
            turns = [turn for turn in turns if turn[1:] not in slower]
        for turn, (script, contestant, variant) in alternate(turns, options.repeats):
            measure(script, contestant, variant, "runs", turn)
        return pair


def machine() -> dict:
    """Describe this machine, without its name."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        model = next(line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name"))
        memory = int(next(
            line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal")
        ).split()[1]) * 1024
    except (OSError, StopIteration):
        model, memory = platform.processor(), None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": f"{platform.system()} {platform.machine()}", "processor": model, "cores": cores,
        "memory_bytes": memory
    }


def merge(path: Path, name: str, entry: dict):
    """Write one entry into the file of results, in place of what it had under that name."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**known, name: entry}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def parse(words: list | None = None):
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__.split("\n\n")[0])
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="presets of the Llama and Gemma 3 families")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--repeats", type=int, default=5, help="alternations")
    parser.add_argument(
        "--examples", type=int, default=12, help="of the optimizer step; on paragraphs, whole groups of questions"
    )
    parser.add_argument("--batching", default="tree", help="of llmlab: tree, packed, or padded-N")
    parser.add_argument(
        "--data", nargs="+", default=[], metavar="WORKLOAD=SOURCE",
        help="a file, or the name of a set, instead of the bundled one"
    )
    parser.add_argument(
        "--variants", nargs="+", default=[], metavar="PEER=VARIANT,VARIANT", help="which variants a peer tries"
    )
    parser.add_argument(
        "--slower-peers-once", action="store_true", help="peers other than the fastest of the trial are not run again"
    )
    parser.add_argument(
        "--reuse-trial", action="store_true",
        help="take the variants that were fastest when the file's figures of the same pair were made"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--pack-tokens", type=int, default=2048, help="rows of the matrices by which the machine's speed is measured"
    )
    parser.add_argument("--limit", type=float, default=900, help="seconds a measurement may take")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--only", choices=("install", "measure", "table", "extras"), help="part of the work")
    options = parser.parse_args(words)
    options.data = dict(word.split("=", 1) for word in options.data)
    options.data = {
        name: str(Path(source).resolve()) if Path(source).exists() else source for name, source in options.data.items()
    }
    options.variants = {
        name: variants.split(",") for name, variants in (word.split("=", 1) for word in options.variants)
    }
    return options


def main():
    options = parse()
    if options.only == "install":
        sys.exit(max(bool(why := install(peer)) and bool(print(f"{peer}: {why}") or True) for peer in options.peers))
    if options.only in (None, "measure"):
        for workload in options.workloads:
            for model in options.models:
                merge(options.results, f"{workload}/{model}", compare_pair(workload, model, options))
    if options.only in (None, "extras"):
        done = subprocess.run(
            [sys.executable, str(HERE / "extras.py")], env=environment(options.threads), check=True,
            capture_output=True, text=True, cwd=ROOT
        )
        merge(options.results, "extras", {
            **json.loads(done.stdout.splitlines()[-1]), "machine": machine(), "date": datetime.date.today().isoformat()
        })
    report.write(options.results)


if __name__ == "__main__":
    main()
