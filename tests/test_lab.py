"""JupyterLab: what ran is the record, a stop can be gone on from, and a mistake is one message."""
import html
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.parse import quote

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from waiting import PATIENCE, wait_for

from llmlab.config.schema import default_of
from llmlab.models.testing import save_tiny_checkpoint
from llmlab.runs.record import is_running
from llmlab.training.checkpoints import newest_checkpoint, step_of

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
from lab import MINE, OPTIONS, SETTINGS, copy_notebook  # noqa: E402
TRAIN = ROOT / "nbs" / "train.ipynb"
SMALL = {
    "dataset": "lab-ko-mrc", "max_train_samples": 16, "max_eval_samples": 4, "num_samples": 2, "max_new_tokens": 8,
    "max_steps": 3, "dtype": "float32", "max_length": 512,
}
OUTSIDE = {"MLFLOW_TRACKING_URI", "LLMLAB_RUN_DIR", "IN_TEST"}  # would change what a run does


def with_values(source, **settings):
    """Change values in a parameters cell, as a person types them."""
    for name, value in settings.items():
        source, count = re.subn(rf"(?m)^{name} = [^#\n]*", f"{name} = {value!r}  ", source)
        assert count == 1, name
    return source


class Page:
    """A notebook in JupyterLab: its cells are sent to the kernel by their ids; the file is what was saved last."""

    def __init__(self, path):
        self.path = path
        self.cells = nbformat.read(path, as_version=4).cells
        environment = {name: value for name, value in os.environ.items() if name not in OUTSIDE}
        self.manager, self.client = start_new_kernel(
            kernel_name="python3", cwd=path.parent, env={**environment, "JPY_SESSION_NAME": str(path)}
        )

    @property
    def codes(self):
        return [cell for cell in self.cells if cell.cell_type == "code"]

    def change(self, **settings):
        self.codes[0].source = with_values(self.codes[0].source, **settings)

    def run(self, cell, when=None):
        """Run a cell; call `when` on each thing that it shows. Return its messages, by kind and content."""
        content = {"code": cell.source, "silent": False, "store_history": True, "user_expressions": {},
                   "allow_stdin": False, "stop_on_error": True}
        request = self.client.session.msg("execute_request", content, metadata={"cellId": cell.id})
        self.client.shell_channel.send(request)
        shown = []
        while True:
            message = self.client.get_iopub_msg(timeout=PATIENCE)
            if message["parent_header"].get("msg_id") != request["header"]["msg_id"]:
                continue
            if message["content"].get("execution_state") == "idle":
                return shown
            shown.append((message["msg_type"], message["content"]))
            if when:
                when(message["msg_type"], message["content"])

    def run_all(self, when=None):
        """Run the cells up to the first that fails; return what each has shown."""
        results = []
        for cell in self.codes:
            results.append(self.run(cell, when))
            if any(kind == "error" for kind, _ in results[-1]):
                break
        return results

    def records(self):
        return sorted(path.parent for path in self.path.parent.glob("runs/*/record.json"))

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A copy of the train notebook with a tiny model, open in a kernel."""
    folder = tmp_path_factory.mktemp("lab")
    save_tiny_checkpoint(folder / "tiny-llama")
    (folder / "my_train.ipynb").write_bytes(TRAIN.read_bytes())
    page = Page(folder / "my_train.ipynb")
    page.change(model="tiny-llama", **SMALL)
    yield page
    page.close()


def executed(folder):
    cells = nbformat.read(folder / "train.ipynb", as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code"]


def test_the_record_is_what_ran(page):
    """No cell was saved: the record has each as it was run, all that it showed, and the headings."""
    results = page.run_all()
    assert len(results) == len(page.codes), results[-1][-1]
    folder = page.records()[-1]
    record = read_record(folder)
    assert record["status"] == "finished" and record["params"]["max_steps"] == 3
    cells = executed(folder)
    assert [cell.source for cell in cells] == [cell.source for cell in page.codes]
    assert "max_steps = 3" in cells[0].source and cells[0].metadata.tags == ["parameters"]
    for cell, messages in zip(cells, results):
        assert cell.execution_count
        shown = [kind for kind, _ in messages if kind in ("display_data", "execute_result")]
        kept = [output.output_type for output in cell.outputs if output.output_type != "stream"]
        assert kept == shown
        printed = "".join(content["text"] for kind, content in messages if kind == "stream")
        assert "".join(output.text for output in cell.outputs if output.output_type == "stream") == printed
    text = (folder / "train.html").read_text()
    assert "3 steps in" in text and "step 1 of 3" not in text and "The same questions, before and after" in text
    assert TRAIN.read_bytes() == page.path.read_bytes()


def read_record(folder):
    return json.loads((folder / "record.json").read_text(encoding="utf-8"))


def errors(messages):
    return [content for kind, content in messages if kind == "error"]


def mlflow_status(folder):
    from llmlab.runs.tracking import connect

    client = connect(f"sqlite:///{folder.parent / 'mlflow.db'}")
    return client.get_run(read_record(folder)["mlflow_run_id"]).info.status


WAIT_FOR_STOP = """
import time
from transformers import TrainerCallback

class WaitForStop(TrainerCallback):
    def on_step_begin(self, args, state, control, **others):
        while state.global_step == 2 and not record.termination.asked and "resumed" not in record.content:
            time.sleep(0.05)

record.callbacks.append(WaitForStop())
"""


@pytest.fixture(scope="module")
def stopped(page):
    """A run that is stopped in one of its first three steps of five, in a kernel that lives on; with a cell that was never saved."""
    page.change(max_steps=5, eval_strategy="no")
    training = next(number for number, cell in enumerate(page.cells) if "choose_trainer" in cell.source)
    page.cells.insert(training, nbformat.v4.new_code_cell(WAIT_FOR_STOP))
    interrupts = []

    def stop(kind, content):
        if re.search("step [12] of 5", content.get("data", {}).get("text/html", "")) and not interrupts:
            interrupts.append(page.manager.interrupt_kernel())

    results = page.run_all(stop)
    assert interrupts, results[-1]
    return page.records()[-1], results


def test_a_stop_saves_the_step_and_says_how_to_go_on(page, stopped):
    """One message; a checkpoint of the step; a record, an MLflow run and a page that say what happened."""
    folder, results = stopped
    error, = errors(results[-1])
    step = step_of(newest_checkpoint(folder / "checkpoints"))
    said = " ".join(error["traceback"])
    assert 1 <= step <= 3 and said == (
        f"Stopped. This run has a checkpoint of step {step}: to go on from there, set resume = 'latest' in the first "
        f"cell and run all cells, or type `llmlab resume {folder.name}` in a terminal."
    )
    record = read_record(folder)
    assert record["status"] == "interrupted" and record["ended"] and not is_running(record)
    assert mlflow_status(folder) == "KILLED"
    page_text = html.unescape((folder / "train.html").read_text(encoding="utf-8"))
    assert said in " ".join(page_text.split())
    cells = executed(folder)
    assert [cell.source for cell in cells] == [cell.source for cell in page.codes]
    ran = [bool(cell.execution_count) for cell in cells]  # of this run, not of the one before it
    assert ran == [True] * len(results) + [False] * (len(cells) - len(results))
    assert not any(cell.outputs for cell in cells[len(results):])


def test_training_twice_is_refused(page, stopped):
    """The model has learned already: the cell says so, and how to go on."""
    training = next(cell for cell in page.codes if "choose_trainer" in cell.source)
    error, = errors(page.run(training))
    message = " ".join(error["traceback"])
    assert message.startswith("LabError: This model was trained already") and "resume = 'latest'" in message


def test_a_stopped_run_goes_on_in_the_same_kernel(page, stopped):
    """resume = 'latest' ends the run in the same record, as if nothing had happened."""
    folder, _ = stopped
    before, step = page.records(), step_of(newest_checkpoint(folder / "checkpoints"))
    page.change(resume="latest", **{name: default_of(name) for name in ("model", "eval_strategy", *SMALL)})
    results = page.run_all()
    assert len(results) == len(page.codes), errors(results[-1])
    record = read_record(folder)
    assert record["status"] == "finished" and record["resumed"][0]["step"] == step and page.records() == before
    assert len(json.loads((folder / "loss_trace.json").read_text())) == 5
    assert mlflow_status(folder) == "FINISHED" and not is_running(record)
    assert "resume = 'latest'" in executed(folder)[0].source


def test_a_mistake_is_one_message_and_leaves_no_record(page):
    before = page.records()
    page.change(resume=None, model="gema3-270m")
    results = page.run_all()
    message = " ".join(errors(results[-1])[0]["traceback"])
    assert message.startswith("LabError: ") and "Did you mean 'gemma3-270m'?" in message
    assert page.records() == before


def test_a_cell_that_fails_is_in_the_record(page):
    """What went wrong, on the page and in the record; the kernel lets go of it."""
    page.change(model="tiny-llama", **SMALL)
    opened = next(number for number, cell in enumerate(page.codes) if "open_record" in cell.source)
    for cell in page.codes[:opened + 1]:
        assert not errors(page.run(cell))
    assert errors(page.run(nbformat.v4.new_code_cell("print('나누기')\n1 / 0")))
    folder = page.records()[-1]
    record = read_record(folder)
    assert record["status"] == "failed" and "division by zero" in record["error"] and not is_running(record)
    text = (folder / "train.html").read_text(encoding="utf-8")
    assert "나누기" in text and "ZeroDivisionError" in text


# One's own copy

def test_the_copy_is_kept_once_it_was_changed(tmp_path):
    """A second start opens what the person has; only a copy in which nothing was changed follows the notebook."""
    source, mine = ROOT / "nbs" / ".train.ipynb", tmp_path / MINE
    try:
        source.write_bytes(TRAIN.read_bytes())
        assert "a copy of" in copy_notebook(source, mine)
        notebook = json.loads(source.read_text(encoding="utf-8"))
        notebook["cells"][0]["source"] = ["# Another title"]
        source.write_text(json.dumps(notebook), encoding="utf-8")
        assert "a copy of" in copy_notebook(source, mine) and "Another title" in mine.read_text(encoding="utf-8")
        own = json.loads(mine.read_text(encoding="utf-8"))
        own["cells"][1]["source"] = ["max_steps = 7"]
        mine.write_text(json.dumps(own), encoding="utf-8")
        assert copy_notebook(source, mine) == f"Opening your {MINE}."
        shutil.copy(TRAIN, source)
        assert "has changed since you copied it" in copy_notebook(source, mine)
        assert json.loads(mine.read_text(encoding="utf-8")) == own
    finally:
        source.unlink()


# In a browser

WAIT_OF_FIVE = WAIT_FOR_STOP.replace("while state", "while state.max_steps == 5 and state")


@pytest.fixture
def jupyterlab(browser, tmp_path):
    """A JupyterLab as `make lab` starts it, on a project of its own, and a browser that looks at it."""
    project = tmp_path / "project"
    project.mkdir()
    shutil.copy(ROOT / "settings.ini", project)
    save_tiny_checkpoint(project / "tiny-llama")
    copy_notebook(TRAIN, project / MINE)
    notebook = nbformat.read(project / MINE, as_version=4)
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    codes[0].source = with_values(codes[0].source, model="tiny-llama", **{**SMALL, "max_steps": -1}, eval_strategy="no")
    training = next(number for number, cell in enumerate(notebook.cells) if "choose_trainer" in cell.source)
    notebook.cells.insert(training, nbformat.v4.new_code_cell(WAIT_OF_FIVE))
    nbformat.write(notebook, project / MINE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {**OPTIONS, "ServerApp.root_dir": project, "ServerApp.port": port, "IdentityProvider.token": "",
               "ServerApp.allow_root": True, "ServerApp.open_browser": False}
    own = {name: str(tmp_path / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR")}
    own["JUPYTER_CONFIG_PATH"] = str(SETTINGS)
    environment = {name: value for name, value in os.environ.items() if name not in OUTSIDE} | own
    command = [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]
    with open(tmp_path / "server.log", "w") as log:
        server = subprocess.Popen(command, cwd=project, env=environment, stdout=log, stderr=log)
    try:
        def is_up():
            try:
                return urllib.request.urlopen(f"http://127.0.0.1:{port}/api").status == 200
            except OSError:
                assert server.poll() is None, (tmp_path / "server.log").read_text()

        wait_for(is_up, "the server")
        browser.open(f"http://127.0.0.1:{port}/")
        yield browser, project
    finally:
        server.terminate()
        server.wait(60)


def scroll_to(browser, text, line=False):
    """Scroll through the notebook, from above and as often as need be, until a text is seen (or a line of code that begins so)."""
    look = f"""(async () => {{
        const pane = document.querySelector(".jp-WindowedPanel-outer")
        pane.scrollTop = window.isAsked ? (pane.scrollTop + pane.clientHeight >= pane.scrollHeight ? 0 : pane.scrollTop + 500) : 0
        window.isAsked = true
        for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame)
        const found = [...pane.querySelectorAll("p, pre, span, div")].filter(each => each.innerText?.includes(text)).pop()
        if (found) found.scrollIntoView({{block: "center"}})
        return {"[...document.querySelectorAll('.cm-line')].some(each => each.innerText.startsWith(text))"
                if line else "!!found"}
    }})()""".replace("(text)", f"({json.dumps(text)})")
    browser.value("window.isAsked = false")
    wait_for(lambda: browser.value(look), text)


def type_value(browser, name, value):
    """Change a setting in the first cell, as a person does: click on its line, mark it, and type."""
    scroll_to(browser, f"{name} = ", line=True)
    browser.click(".jp-CodeCell .cm-line", f"{name} = ")
    browser.press("Home")
    browser.press("End", shift=True)
    browser.type(f"{name} = {value!r}")
    browser.wait_for_text(f"{name} = {value!r}")


def choose(browser, menu, entry):
    browser.click(".lm-MenuBar-itemLabel", menu)
    browser.click(".lm-Menu-itemLabel", entry)


def wait_for_record(project, status, number=1):
    """Wait until there are so many records, and the newest says how its run went."""
    def reached():
        folders = sorted(path.parent for path in project.glob("runs/*/record.json"))
        if len(folders) == number and read_record(folders[-1]).get("status") == status:
            return folders[-1]

    return wait_for(reached, f"a record that says {status}")


def test_an_afternoon_in_a_browser(jupyterlab):
    """A value is changed and all is run; a run is stopped, and gone on with; a mistake is made; the record is looked at."""
    browser, project = jupyterlab
    browser.wait_for_text("Fine-tune a model")
    browser.wait_for_text("Python 3")
    assert "official Jupyter news" not in browser.text() and "settings.ini" in browser.text()

    type_value(browser, "max_steps", 3)
    browser.picture("lab_changed")
    choose(browser, "Run", "Run All Cells")
    first = wait_for_record(project, "finished")
    assert read_record(first)["params"]["max_steps"] == 3
    browser.wait_for_text(read_record(first)["mlflow_run_id"])  # the end of the last cell
    browser.picture("lab_finished")

    type_value(browser, "max_steps", 5)
    choose(browser, "Run", "Run All Cells")
    scroll_to(browser, " of 5, ")  # the curve lives
    browser.picture("lab_training")
    choose(browser, "Kernel", "Interrupt Kernel")
    second = wait_for_record(project, "interrupted", 2)
    scroll_to(browser, "Stopped. This run has a checkpoint of step")
    browser.picture("lab_stopped")
    assert "resume = 'latest'" in browser.text() and "Traceback" not in browser.text()

    type_value(browser, "resume", "latest")
    choose(browser, "Run", "Run All Cells")
    assert wait_for_record(project, "finished", 2) == second
    assert len(json.loads((second / "loss_trace.json").read_text())) == 5
    browser.wait_for_text(read_record(second)["mlflow_run_id"])
    scroll_to(browser, "Open its page")
    browser.picture("lab_resumed")
    link = wait_for(
        lambda: browser.value("document.querySelector('.llmlab-here a[href*=\"/files/\"]')?.href"), "the page's address"
    )
    assert f"{second.name}/train.html" in link

    type_value(browser, "resume", None)
    type_value(browser, "model", "gema3-270m")
    choose(browser, "Run", "Run All Cells")
    scroll_to(browser, "Did you mean 'gemma3-270m'?")
    browser.picture("lab_mistake")
    assert "Traceback" not in browser.text() and "LabError: " in browser.text()
    assert len(list(project.glob("runs/*/record.json"))) == 2

    browser.open(link)
    for seen in ("tiny-llama was trained on lab-ko-mrc", "held-out loss", "exact match", "Questions and answers",
                 "The same questions, before and after"):
        assert seen in browser.text(), seen
    assert browser.value("document.querySelectorAll('.answer').length") >= 2
    assert browser.value("document.querySelector('.curve img').naturalWidth") > 100
    browser.picture("record")


# In MLflow

@pytest.fixture
def mlflow_address(page):
    """Where `llmlab ui` says that it shows the runs of this module."""
    while len(page.records()) < 2:  # where the tests above were left out
        assert not errors(page.run_all()[-1])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name not in OUTSIDE}
    printed = page.path.parent / "ui.log"
    with open(printed, "w") as log:
        server = subprocess.Popen(
            ["llmlab", "ui", "--port", str(port), "--output-dir", str(page.path.parent / "runs")], env=environment,
            stdout=log, stderr=log, start_new_session=True
        )

    def address():
        assert server.poll() is None, printed.read_text()
        return "Application startup complete" in printed.read_text() and re.search(r"http://\S+", printed.read_text())

    try:
        yield wait_for(address, "MLflow")[0]
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def test_mlflow_shows_the_runs_in_a_browser(page, mlflow_address, browser):
    """The address leads to the runs, not to chats: their short names and data; then one, with its card; then two beside one another."""
    browser.open(mlflow_address)
    names = [f"tiny-llama mrc {folder.name[-4:]}" for folder in page.records()]
    for shown in (*names, "Run Name", "Created", "Dataset", "Duration", "lab-ko-mrc, training"):
        browser.wait_for_text(shown)
    assert "/runs?workflowType=machine_learning" in browser.value("location.href") and "Judges" not in browser.text()
    browser.picture("mlflow_runs")
    browser.click("label, button, [role=radio], span", "GenAI")  # MLflow remembers what is chosen, not what it opened on
    browser.click("label, button, [role=radio], span", "Model training")
    wait_for(lambda: browser.value("localStorage['mlflow.workflowType_v1']") == '"machine_learning"', "MLflow's memory")
    browser.open(mlflow_address.replace("/#", "/?again#"))
    browser.wait_for_text(names[-1])
    done = next(folder for folder in page.records() if read_record(folder)["status"] == "finished")
    browser.click("a[href*='/runs/']", f"tiny-llama mrc {done.name[-4:]}")
    for shown in ("tiny-llama was trained on lab-ko-mrc", "max_steps", "eval/loss"):
        browser.wait_for_text(shown)
    assert "Judges" not in browser.text()
    browser.picture("mlflow_run")
    number = re.search(r"experiments/(\d+)/", mlflow_address)[1]
    pair = json.dumps([read_record(folder)["mlflow_run_id"] for folder in page.records()[-2:]])
    browser.value(f"location.hash = '#/compare-runs?runs={quote(pair)}&experiments={quote(json.dumps([number]))}"
                  "&workflowType=machine_learning'")
    for name in names[-2:]:
        browser.wait_for_text(name)
    browser.wait_for_text("Comparing 2 Runs")
    browser.picture("mlflow_compare")
