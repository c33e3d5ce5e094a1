"""Open JupyterLab with a copy of the train notebook of one's own, my_train.ipynb: what is tried there changes no tracked file.

    python tools/lab.py                      # and whatever else `jupyter lab` takes, such as --no-browser --port 8890
"""
import hashlib
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MINE = "my_train.ipynb"  # ignored by git
OPTIONS = {
    "ServerApp.root_dir": str(ROOT),  # so that runs/ can be opened, with the pages in it
    "LabApp.default_url": f"/lab/tree/{MINE}",
}
SETTINGS = ROOT / "tools" / "jupyter"  # JupyterLab's defaults here: it fetches no news, and saves every 20 seconds


def digest(notebook: dict) -> str:
    "Hash the sources of a notebook."
    return hashlib.sha256(json.dumps(["".join(cell["source"]) for cell in notebook["cells"]]).encode()).hexdigest()


def copy_notebook(source: Path, place: Path) -> str:
    "Make one's own copy, or make it anew where nothing was changed in it; say what is opened."
    text = source.read_text(encoding="utf-8")
    notebook = json.loads(text)
    origin = digest(notebook)
    if place.exists():
        mine = json.loads(place.read_text(encoding="utf-8"))
        began = mine["metadata"].get("llmlab", {}).get("copied")
        if began == origin or digest(mine) != began:
            kept = f"Opening your {place.name}."
            if began == origin:
                return kept
            return f"{kept} {source.name} has changed since you copied it: to begin with the new one, rename or delete yours."
    notebook["metadata"]["llmlab"] = {"copied": origin}
    place.write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return f"Opening {place.name}, a copy of {source.relative_to(ROOT)} to try things in."


if __name__ == "__main__":
    print(copy_notebook(ROOT / "nbs" / "train.ipynb", ROOT / MINE), flush=True)
    options = [f"--{name}={value}" for name, value in OPTIONS.items()]
    jupyter = Path(sys.executable).with_name("jupyter")
    paths = [str(SETTINGS), os.environ.get("JUPYTER_CONFIG_PATH")]
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(filter(None, paths))
    os.execv(jupyter, [str(jupyter), "lab", *options, *sys.argv[1:]])
