"""`make gpu`, tried without one: every part at tiny sizes, what is kept of a part that is cut off, and the table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOL = ROOT / "tools" / "gpu.py"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools" / "bench"))
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import gpu

    return gpu


@pytest.fixture(scope="module")
def figures():
    """Run all parts in one process, at tiny sizes on the CPU; return each part's figures."""
    sys.path.insert(0, str(ROOT / "tools"))
    from gpu_parts import PARTS

    sys.path.remove(str(ROOT / "tools"))
    done = subprocess.run(
        [sys.executable, TOOL.with_name("gpu_parts.py"), ",".join(PARTS), "cpu", "--tiny"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            line = json.loads(line)
            if "part" in line:
                part = found[line["part"]] = []
            else:
                part.append(line)
    assert [*found] == [*PARTS] and sum(seconds for _, seconds in PARTS.values()) <= 600
    return found


def test_every_part_measures(figures):
    assert all(figures.values())
    for part, lines in figures.items():
        wrong = [line for line in lines if not line.get("holds", True)]
        assert not wrong, part
        assert all({"what", "value", "unit"} <= {*line} for line in lines)
    judged = {part for part, lines in figures.items() if any(line.get("holds") for line in lines)}
    assert judged == {
        "attention",
        "gradients",
        "formats",
        "head",
        "determinism",
        "sharded",
    }  # what must hold on any machine
    ways = {line["what"].split(": ")[1] for line in figures["speed"]}
    assert ways == {
        "tree of 2,048",
        "tree of 8,192",
        "tree of 16,384",
        "packed of 8,192",
        "padded",
        "TRL's way of 8,192",
    }


def test_a_part_is_a_line_and_a_table(gpu, tmp_path):
    out = tmp_path / "gpu.json"
    done = subprocess.run(
        [sys.executable, TOOL, "--device", "cpu", "--tiny", "--only", "attention", "--out", out],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    part = json.loads(done.stdout.splitlines()[0])
    assert (
        part["part"] == "attention" and part["status"] == "done" and part == json.loads(out.read_text())["parts"][0]
    )
    assert (
        "| blocks, head size 16: worst error against float64 |" in done.stdout
        and "at most 0.0001 | yes |" in done.stdout
    )


def test_what_a_part_measured_before_its_end_is_kept(gpu, monkeypatch, tmp_path):
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "gpu_parts.py").write_text(
        'import sys, time\nprint(\'{"what": "one", "value": 1, "unit": "s"}\\n{"cut\', flush=True)\ntime.sleep(60) if sys.argv[1] == \'slow\' else sys.exit(\'lost\')\n'
    )
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    for name, status, limit in (("slow", "cut off", 2), ("bad", "failed", 30)):
        part = gpu.run_part(name, limit, "cpu", True, None)
        assert part["status"] == status and [line["what"] for line in part["figures"]] == ["one"]
        assert part.get("error") == (None if name == "slow" else "lost")


def test_without_a_card_it_says_so(gpu, monkeypatch, capsys):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2 and "--device cpu --tiny" in capsys.readouterr().err
    monkeypatch.setattr(gpu, "REQUIRED", ("torch", "none_of_this_name"))
    assert gpu.main([]) == 2 and "none_of_this_name" in capsys.readouterr().err


def test_its_table_says_what_was_expected(gpu):
    from report import gpu_report

    lines = [
        {"what": "a", "value": 0.0123, "unit": "", "expected": [None, 0.01], "holds": False},
        {
            "what": "b",
            "value": 16_200.0,
            "unit": "tokens/s",
            "expected": [12_150, 20_250],
            "holds": True,
            "allocated": 3e9,
            "reserved": 4e9,
        },
        {"what": "c", "value": 7, "unit": "ms"},
    ]
    parts = [
        {"part": "x", "status": "done", "seconds": 1.0, "limit": 9, "figures": lines},
        {"part": "y", "status": "failed", "seconds": 2, "limit": 9, "figures": [], "error": "why"},
    ]
    text = gpu_report(
        {
            "machine": {
                "python": "3",
                "versions": {"torch": "2"},
                "card": "C",
                "memory": 2**36,
                "capability": "9.0",
                "cuda": "13",
            },
            "date": "d",
            "tiny": False,
            "parts": parts,
        }
    )
    assert (
        "| a | 0.0123 | at most 0.01 | **no** |" in text
        and "failed after 2 s of 9: why." in text
        and "| c | 7 ms |  |  |" in text
    )
    assert (
        "| b, 3.0 GB allocated, 4.0 reserved | 16,200 tokens/s | 12,150 to 20,250 | yes |" in text
        and "C (64 GiB, sm_90, CUDA 13)" in text
    )
