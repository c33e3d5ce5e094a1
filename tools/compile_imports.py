"""Import, once, what training, plans, notebooks and tests import, so that Python keeps it compiled beside its source.

    python tools/compile_imports.py

An installation that compiles all of its 25,000 files takes twice as long, and one that compiles none is paid for later,
each time where Python may not write (PYTHONDONTWRITEBYTECODE, as in many containers). tools/install.py calls this.
"""
import importlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
AROUND = ["papermill.execute", "nbclient", "nbconvert", "ipykernel.kernelapp", "ipykernel.inprocess", "ipywidgets",
          "matplotlib.pyplot", "mlflow.store.tracking.sqlalchemy_store", "mlflow.server", "alembic.command",
          "jupyterlab.labapp", "pytest", "_pytest.assertion.rewrite", "xdist", "hypothesis", "nbdev.test",
          "nbdev.export", "execnb.nbio", "importlinter"]


def modules_of_lab():
    "Name every module of llmlab, papermill first, which imports one of them by itself; and those of its models' families."
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    from llmlab.models.presets import MODELS

    files = sorted((ROOT / "llmlab").rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    families = sorted({preset.family for preset in MODELS.values()})
    classes = [MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[family]] for family in families]
    return ["papermill", *names, *(model.__module__ for model in classes)]


def import_all(names):
    "Import modules; say which cannot be had."
    for name in names:
        if name.endswith(("__init__", "_modidx")):
            continue
        try:
            importlib.import_module(name)
        except Exception as error:  # of another's module, on this machine: the rest goes on
            print("  {} cannot be imported: {!r}".format(name, error), file=sys.stderr)


def main():
    "Import the lab's part and the rest beside one another."
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    parts = [subprocess.Popen([sys.executable, __file__, part], env=environment, cwd=str(ROOT), stdin=subprocess.DEVNULL)
             for part in ("lab", "around")]
    for part in parts:
        part.wait()


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        sys.path.insert(0, str(ROOT))
        import_all(modules_of_lab() if sys.argv[1] == "lab" else AROUND)
