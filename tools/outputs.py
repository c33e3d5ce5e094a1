"""Run notebooks and commit what their example cells show: `python tools/outputs.py [NOTEBOOK ...]`; without names, all chapters.

Cells that say `#| eval: false`, `#| slow` or `#| gpu` are left out and keep what they show; cells that are exported or hidden show nothing.
Run it after a change of an example; `make prepare` then cleans the notebooks.
"""
import json
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parent.parent
WHOLE_RUNS = ("train", "evaluate", "compare", "add_your_own")  # their results are records, not examples
LEFT_OUT = re.compile(r"^#\|\s*(eval:\s*false|slow|gpu)", re.MULTILINE)
SILENT = re.compile(r"^#\|\s*(exports?|exporti|hide|default_exp)\b", re.MULTILINE)
# depends on what the cache has
PROGRESS = re.compile(r"^(<progress|[\w ()-]*rows: [\d,]+ rows from the cache|[\w -]*rows prepared \()")
NOISE = re.compile(r"^(Failed to load CPU gemm|.*(it/s|s/it)\])", re.MULTILINE)


def chapters() -> list[Path]:
    "List the notebooks whose examples are shown."
    found = sorted((ROOT / "nbs").rglob("*.ipynb"))
    return [path for path in found if path.stem not in WHOLE_RUNS and ".ipynb_checkpoints" not in path.parts]


def shown(cell: dict) -> list[dict]:
    "Keep of a cell's outputs what a reader should see: no warnings, no progress, no counters."
    if SILENT.search(cell["source"]):
        return []
    kept = []
    for output in cell["outputs"]:
        if output["output_type"] == "stream" and (output["name"] == "stderr" or NOISE.match(output["text"])):
            continue
        if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
            continue
        if output["output_type"] == "display_data" and PROGRESS.search(str(output["data"].get("text/html"))):
            continue
        if output["output_type"] == "execute_result":
            output["execution_count"] = None
        kept.append(output)
    return kept


def refresh(path: Path) -> float:
    "Run a notebook in its own folder, as its tests do, and write its outputs; return the seconds it took."
    started, notebook = time.monotonic(), nbformat.read(path, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type != "code" or not LEFT_OUT.search(cell.source)]
    client = NotebookClient(
        notebook, timeout=900, kernel_name="python3", coalesce_streams=True,
        extra_arguments=["--IPKernelApp.log_level=CRITICAL"], resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute()
    written = json.loads(path.read_text(encoding="utf-8"))
    ran = {(cell.id, cell.source): cell for cell in notebook.cells if cell.cell_type == "code"}
    for old in written["cells"]:  # the file may have changed meanwhile
        if cell := ran.get((old["id"], "".join(old["source"]))):
            old["outputs"] = [split_lines(output) for output in shown(cell)]
    path.write_text(json.dumps(written, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return time.monotonic() - started


def split_lines(output: dict) -> dict:
    "Write an output's texts as lists of lines, as notebooks on disk have them."
    output = json.loads(json.dumps(output))
    if isinstance(output.get("text"), str):
        output["text"] = output["text"].splitlines(keepends=True)
    for kind, text in output.get("data", {}).items():
        if isinstance(text, str) and kind != "image/png":
            output["data"][kind] = text.splitlines(keepends=True)
    return output


def main(names: list[str]) -> int:
    "Refresh the notebooks named, or all of them; say which fail."
    os.environ |= {"IN_TEST": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "MPLBACKEND": "module://matplotlib_inline.backend_inline", "MLFLOW_DISABLE_TELEMETRY": "true",
                   "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "0", "COLUMNS": "120", "TQDM_DISABLE": "1"}
    failed = []
    for path in [Path(name).resolve() for name in names] or chapters():
        try:
            print(f"{path.relative_to(ROOT)}: {refresh(path):.0f} s", flush=True)
        except CellExecutionError as error:
            failed.append(path)
            print(f"{path.relative_to(ROOT)} FAILED\n{error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
