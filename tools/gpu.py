"""Measure the lab on a GPU in ten minutes at most: twelve parts, each a process of its own, beside what was expected of them on paper.

    make gpu                                       # all of them; figures go to nbs/bench/gpu.json
    make gpu ARGS="--only attention gradients"     # some
    python tools/gpu.py --device cpu --tiny        # the parts themselves, tried on any machine

Nothing is downloaded: weights are random, at presets' sizes, and made on the card; texts are random tokens in the shapes of KorQuAD and of instructions.
A machine with torch, transformers, peft and accelerate, but not the rest that llmlab imports, takes that as a folder, filled elsewhere by
`pip install --target FOLDER pydantic pydantic-settings ...`, with --site FOLDER. Without bitsandbytes the parts for 4 and 8 bits are left out.
"""

import argparse
import datetime
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "nbs" / "bench" / "gpu.json"
sys.path[:0] = [str(ROOT), str(ROOT / "tools"), str(ROOT / "tools" / "bench")]
SECONDS = 600  # of all parts together
REQUIRED = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "pydantic",
    "lazy_loader",
    "psutil",
    "yaml",
    "tabulate",
    "ftfy",
    "datasets",
    "huggingface_hub",
)


def read_figures(text: str) -> list:
    """Keep the lines of a part's output that are figures, and what it left out."""
    lines = []
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                lines.append(json.loads(line))
            except ValueError:  # cut off
                pass
    return lines


def run_part(name: str, limit: float, device: str, tiny: bool, site: str | None) -> dict:
    """Run a part in a process of its own, and return what it has printed by its end, or by its limit."""
    paths = [str(ROOT), *([str(Path(site).resolve())] if site else []), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, str(ROOT / "tools" / "gpu_parts.py"), name, device, *(["--tiny"] if tiny else [])]
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output, errors = process.communicate(timeout=limit)
        status = "done" if process.returncode == 0 else "failed"
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        status = "cut off"
    figures = read_figures(output)
    part = {
        "part": name,
        "status": status,
        "seconds": round(time.monotonic() - started, 1),
        "limit": limit,
        "figures": [line for line in figures if "what" in line],
    }
    part |= next((line for line in figures if "skipped" in line), {})
    if status == "failed":
        part["error"] = (errors.strip().splitlines() or ["no word"])[-1][:500]
    return part


def machine(device: str) -> dict:
    """Say what was measured on."""
    import torch

    found = {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "device": device,
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "card": properties.name,
            "memory": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
    return found


def problem(device: str, site: str | None) -> str | None:
    """Say why nothing can be measured here."""
    sys.path[:0] = [str(Path(site).resolve())] if site else []
    if missing := [name for name in REQUIRED if importlib.util.find_spec(name) is None]:
        return f"these packages are missing: {', '.join(missing)}. Fill a folder elsewhere by `pip install --target FOLDER ...`, and give --site FOLDER."
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return "torch sees no CUDA device. Try the parts themselves by: python tools/gpu.py --device cpu --tiny"


def main(arguments=None) -> int:
    """Run parts, print a line of JSON for each, then the table; return the exit status."""
    from gpu_parts import PARTS
    from report import gpu_report

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="at tiny sizes: to try the parts, not to measure")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument("--site", metavar="FOLDER", help="packages that this machine lacks")
    parser.add_argument(
        "--out", type=Path, help="a file for the figures, otherwise nbs/bench/gpu.json; tiny ones go nowhere"
    )
    options = parser.parse_args(arguments)
    if why := problem(options.device, options.site):
        print(f"Nothing can be measured: {why}", file=sys.stderr)
        return 2
    started, out = time.monotonic(), options.out or (None if options.tiny else RESULTS)
    kept = json.loads(out.read_text())["parts"] if out and out.exists() else []
    results = {
        "machine": machine(options.device),
        "date": datetime.date.today().isoformat(),
        "tiny": options.tiny,
        "parts": [part for part in kept if part["part"] not in options.only],
    }
    for name in options.only:
        left = SECONDS - (time.monotonic() - started)
        limit = PARTS[name][1] if not options.tiny else 120
        if left < 5 and not options.tiny:
            part = {"part": name, "status": "no time was left", "seconds": 0, "limit": 0, "figures": []}
        else:
            part = run_part(
                name, limit if options.tiny else min(limit, left), options.device, options.tiny, options.site
            )
        print(json.dumps(part), flush=True)
        results["parts"].append(part)
        if out:
            out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{gpu_report(results)}")
    return int(any(part["status"] == "failed" for part in results["parts"]))


if __name__ == "__main__":
    sys.exit(main())
