"""What holds for every test: no network, no telemetry, no window, and the same cases on every run."""
import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "LLMLAB_LANG": "en",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "Agg",
    # nbdev, papermill and Jupyter are started by name: those beside this Python must be found, activated or not.
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
}
# two processes of two threads each, on two cores, wait for one another more than they compute
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("llmlab", deadline=None, derandomize=True)
settings.load_profile("llmlab")


@pytest.fixture
def browser(tmp_path):
    """A browser of the test's own; without a Chromium the test is skipped, and says so."""
    from browser import CHROMIUM, Browser

    if CHROMIUM is None:
        pytest.skip("no Chromium on the path: nothing is opened in a browser")
    browser = Browser(tmp_path / "browser")
    yield browser
    browser.close()


def pytest_addoption(parser):
    parser.addoption(
        "--slow", action="store_true", help="run the tests marked slow too: whole sweeps and clusters, minutes each"
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes, and runs with --slow only")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="takes minutes: run it with --slow"))
