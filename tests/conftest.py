"""What holds for every test: no network, no telemetry, no window, and the same cases on every run."""
import os
import sys
from pathlib import Path

from hypothesis import settings

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "Agg",
    # nbdev, papermill and Jupyter are started by name: those beside this Python must be found, activated or not.
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
}
settings.register_profile("llmlab", deadline=None, derandomize=True)
settings.load_profile("llmlab")
