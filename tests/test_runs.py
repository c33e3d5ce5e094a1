"""Whole runs, as a person starts them: from the command line to the record, and what happens when they cannot go on."""
import ast
import hashlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import nbformat
import papermill
import pytest
from waiting import PATIENCE, wait_for

from llmlab.config.schema import ExperimentConfig, parameters_cell
from llmlab.config.load import config_from_yaml
from llmlab.common.device import has_gpu
from llmlab.models.testing import save_tiny_checkpoint, save_to_hub_cache, tiny_model
from llmlab.training.checkpoints import newest_checkpoint

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "nbs" / "train.ipynb"
PAPERMILL, TRAIN = ("papermill", "train.ipynb"), ("llmlab", "train")
SMALL = {"max_train_samples": 16, "max_eval_samples": 4, "num_samples": 2, "max_new_tokens": 8, "max_steps": 3}
# would change what a run does
OUTSIDE = {"MLFLOW_TRACKING_URI", "LLMLAB_RUN_DIR", "IN_TEST", "HF_HOME", "HF_HUB_CACHE"}


def environment(**more):
    """Return the environment of a command: that of the tests, without what would change a run."""
    return {name: value for name, value in os.environ.items() if name not in OUTSIDE} | more


def parameters(settings):
    """Write settings as the words of a command line."""
    return [str(word) for name, value in settings.items() for word in ("-p", name, value)]


def call(*command, cwd=ROOT / "nbs"):
    """Run a command off a terminal."""
    return subprocess.run([str(word) for word in command], cwd=cwd, env=environment(), text=True, stdin=subprocess.DEVNULL,
                          capture_output=True, timeout=PATIENCE)


def call_on_terminal(*command, cwd):
    """Run a command on a terminal of its own; return its exit status and everything that was shown."""
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = subprocess.Popen(
        [str(word) for word in command], cwd=cwd, env=environment(), stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = bytearray()

    def read():
        try:
            while block := os.read(ours, 4096):
                shown.extend(block)
        except OSError:  # the terminal is closed
            pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    status = process.wait(PATIENCE)
    reader.join(10)
    os.close(ours)
    return status, shown.decode(errors="replace")


class Run:
    """A run's folder, read."""

    def __init__(self, folder, done=None):
        self.folder, self.done = Path(folder), done
        self.record = json.loads(self.text("record.json"))

    def text(self, name):
        """Return the text of one of its files."""
        return (self.folder / name).read_text(encoding="utf-8")

    def lines(self, name):
        """Return the rows of one of its jsonl files."""
        return [json.loads(line) for line in self.text(name).split("\n")[:-1]]

    @property
    def config(self):
        return config_from_yaml(self.folder / "config.yaml")

    def mlflow(self, uri=None):
        """Return its run in MLflow, and the client that found it."""
        from llmlab.runs.tracking import connect

        client = connect(uri or f"sqlite:///{self.folder.parent / 'mlflow.db'}")
        return client.get_run(self.record["mlflow_run_id"]), client


def folders(output):
    """List the runs in an output folder."""
    return {path.parent for path in output.glob("*/record.json")}


def start(*words, output, cwd=ROOT / "nbs", **settings):
    """Run a command with small settings to its end; return its one new run."""
    before = folders(output)
    done = call(*words, *parameters({**SMALL, "output_dir": output, **settings}), cwd=cwd)
    new = folders(output) - before
    assert len(new) == 1, done.stderr
    return Run(new.pop(), done)


def assert_finished(run):
    """A finished run says so in its exit status and in its record."""
    assert run.done is None or run.done.returncode == 0, run.done.stderr
    assert run.record["status"] == "finished"


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Where most runs go; one folder, so that MLflow's store is made once."""
    return tmp_path_factory.mktemp("output")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A small checkpoint of the LLaMA family."""
    return save_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def finished(output, tiny):
    """A finished run of `papermill train.ipynb` from nbs/, its settings given in every way there is."""
    file = output.parent / f"{output.name}.yaml"
    file.write_text("lora_alpha: 32\n")
    return start(*PAPERMILL, "-f", file, "-y", "{lora_r: 4}", "-r", "truncation", "false", output=output, model=tiny, target_modules="[q_proj,v_proj]",
                 learning_rate="5e-4", report_to="[mlflow,tensorboard]")


# The notebook

def test_parameters_cell_is_the_configuration():
    """The first cell of the notebook states every setting as ExperimentConfig does."""
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])] == [parameters_cell()]


def test_papermill_finds_every_setting():
    """papermill's own inspection lists every field, with its comment."""
    found = papermill.inspect_notebook(str(NOTEBOOK))
    assert sorted(found) == sorted(ExperimentConfig.model_fields)
    assert all(entry["help"] for entry in found.values())


def test_notebook_is_short_cells_under_headings():
    """Cells have one to four lines and no definitions, and each stands under a heading."""
    title = None
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#+ .+", cell.source, re.MULTILINE)
            title = headings[-1] if headings else title
        elif "parameters" not in cell.metadata.get("tags", []):
            assert title and title.startswith("## "), cell.source
            assert 1 <= len(cell.source.splitlines()) <= 4, cell.source
            assert not any(
                isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Lambda))
                for node in ast.walk(ast.parse(cell.source))
            ), cell.source


# A run that finishes

def test_terminal_output_is_progress_only(finished):
    """Off a terminal, nothing of the notebook lands on stdout, and stderr names the output."""
    assert_finished(finished)
    assert finished.done.stdout == ""
    assert str(finished.folder / "train.ipynb") in finished.done.stderr and "Traceback" not in finished.done.stderr


def test_record_is_complete(finished):
    """The record's folder holds every file and record.json every field."""
    assert re.fullmatch(r"\d{8}-\d{6}-tiny-llama-lab-ko-instruct-[0-9a-f]{4}", finished.folder.name)
    names = {
        "train.ipynb", "train.html", "config.yaml", "record.json", "metrics.jsonl", "loss_trace.json", "samples.jsonl",
        "adapter", "environment.txt", "logs"
    }
    left = {path.name for path in finished.folder.iterdir()}
    assert names <= left <= names | {"checkpoints"}
    record = finished.record
    assert {"run_id", "status", "mlflow_run_id", "params", "data", "model", "adapter_sha256", "loss_trace_sha256", "metrics", "environment", "git",
            "started", "ended"} <= set(record)
    assert record["run_id"] == finished.folder.name and record["started"] <= record["ended"] and "error" not in record
    assert {
        "eval_loss_before", "eval_loss", "train_loss", "train_runtime", "peak_memory_bytes"
    } <= set(record["metrics"])
    assert record["metrics"]["eval_loss"] < record["metrics"]["eval_loss_before"]
    assert record["data"]["read"] == record["data"]["kept"] + sum(
        reason["rows"] for reason in record["data"]["dropped"].values()
    )
    assert re.fullmatch("[0-9a-f]{64}", record["data"]["fingerprint"])
    assert {"id", "revision", "sha256"} <= set(record["model"]) and re.fullmatch(
        "[0-9a-f]{64}", record["model"]["sha256"]
    )


def test_settings_arrive_as_meant(finished):
    """Text becomes what its setting wants, and what is written down loads again as the same configuration."""
    config = finished.config
    assert (config.truncation, config.target_modules, config.learning_rate) == (False, ["q_proj", "v_proj"], 5e-4)
    assert (config.lora_r, config.lora_alpha, config.report_to) == (4, 32, ["mlflow", "tensorboard"])
    assert (config.task, config.prompt, config.max_new_tokens) == ("instruct", "lab", 8)
    assert config.model_dump() == finished.record["params"]


def test_notebook_and_page_show_the_run(finished):
    """The executed notebook ran whole and in order, and its page reads without it."""
    cells = [
        cell for cell in nbformat.read(finished.folder / "train.ipynb", as_version=4).cells if cell.cell_type == "code"
    ]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(
        output.output_type == "error" or output.get("name") == "stderr" for cell in cells for output in cell.outputs
    )
    page = finished.text("train.html")
    assert finished.folder.name in page and "data:image/png" in page and "before (학습 전)" in page


def test_samples_and_curve_are_written(finished):
    """Each answered question has its answers, and each step its loss."""
    samples = finished.lines("samples.jsonl")
    assert len(samples) == 2 and all({"question", "answers", "before", "after"} <= set(sample) for sample in samples)
    losses = [(line["step"], line["loss"]) for line in finished.lines("metrics.jsonl") if "loss" in line]
    assert [step for step, _ in losses] == [1, 2, 3]
    assert sum(loss for _, loss in losses) / 3 == pytest.approx(finished.record["metrics"]["train_loss"], rel=1e-3)


def test_adapter_is_the_one_recorded(finished):
    """The adapter loads as safetensors, and its checksum is that of the record."""
    from safetensors.torch import load_file

    path = finished.folder / "adapter" / "adapter_model.safetensors"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == finished.record["adapter_sha256"]
    assert any(tensor.abs().sum() > 0 for name, tensor in load_file(path).items() if "lora_B" in name)
    assert json.loads(finished.text("adapter/adapter_config.json"))["base_model_name_or_path"] == finished.record["model"]["id"]
    assert finished.text("adapter/README.md").count(finished.folder.name) and "## How to ask" in finished.text("adapter/README.md")


def test_mlflow_has_the_run(finished):
    """The store in output_dir holds settings, curve and files, and no other store is made."""
    run, client = finished.mlflow()
    assert run.info.status == "FINISHED" and run.info.run_name == f"tiny-llama instruct {finished.folder.name[-4:]}"
    assert run.data.tags["llmlab.run_id"] == finished.folder.name
    assert run.data.params.items() >= {name: str(value) for name, value in finished.record["params"].items()}.items()
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2, 3]
    for name, value in finished.record["metrics"].items():
        last = client.get_metric_history(run.info.run_id, f"final/{name.removesuffix('_before')}")
        assert last[0 if name.endswith("_before") else -1].value == pytest.approx(value), name
    assert run.data.tags["mlflow.note.content"].startswith("tiny-llama was trained on lab-ko-instruct")
    assert client.get_experiment(run.info.experiment_id).tags["mlflow.experimentKind"] == "custom_model_development"
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"train.html", "train.ipynb", "samples.jsonl", "config.yaml", "record.json", "adapter"} <= files
    assert "adapter/adapter_model.safetensors" in {
        file.path for file in client.list_artifacts(run.info.run_id, "adapter")
    }
    assert not [
        place / name for place in (ROOT, ROOT / "nbs") for name in ("mlflow.db", "mlruns", "mlartifacts")
        if (place / name).exists()
    ]


def test_data_is_tracked(finished):
    """The data's fingerprint and counts stand in MLflow as well."""
    run, _ = finished.mlflow()
    for name in ("read", "kept", "train", "held_out"):
        assert run.data.params[f"data_{name}"] == str(finished.record["data"][name])
    fingerprint = finished.record["data"]["fingerprint"]
    assert run.data.tags["data_fingerprint"] == fingerprint
    assert run.data.tags["adapter_sha256"] == finished.record["adapter_sha256"]
    assert {each.dataset.digest for each in run.inputs.dataset_inputs} == {fingerprint[:36]}
    assert sorted(tag.value for each in run.inputs.dataset_inputs for tag in each.tags) == ["held out", "training"]


def test_tensorboard_files_are_written(finished):
    """Where tensorboard is asked for, its event files lie in the run's folder."""
    assert [path for path in (finished.folder / "logs").rglob("events.out.tfevents.*") if path.stat().st_size]


# The same again, and otherwise

def test_same_settings_give_the_same_weights(finished, tmp_path):
    """A record's own config.yaml, run again by `llmlab train`, gives the same losses and the same adapter to the last bit."""
    file = finished.folder / "config.yaml"
    done = call(*TRAIN, "-f", file, *parameters({"output_dir": tmp_path, "report_to": "[]"}), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    run = Run(*folders(tmp_path))
    assert done.stdout == f"{run.folder}\n" and "Finished:" in done.stderr
    assert_finished(run)
    assert run.record["mlflow_run_id"] is None and not list(tmp_path.glob("mlflow.db"))
    for name in ("loss_trace_sha256", "adapter_sha256"):
        assert run.record[name] == finished.record[name]


def free_port():
    """Return a port on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_output_path_seed_and_absent_server(finished, tmp_path):
    """A named output path gets the notebook as well as the record; another seed changes the weights; without its server a run goes on."""
    named, output = tmp_path / "mine.ipynb", tmp_path / "runs"
    run = start(*PAPERMILL, named, "-f", finished.folder / "config.yaml", output=output, seed=7, report_to="[mlflow]",
                mlflow_tracking_uri=f"http://127.0.0.1:{free_port()}")
    assert_finished(run)
    sources = [
        [cell.source for cell in nbformat.read(path, as_version=4).cells]
        for path in (named, run.folder / "train.ipynb")
    ]
    assert sources[0] == sources[1] and "What was saved" in run.text("train.html")
    assert run.record["mlflow_problems"] and "MLflow missed" in run.text("train.html")
    assert not (output / "mlflow.db").exists()
    for name in ("loss_trace_sha256", "adapter_sha256"):
        assert run.record[name] != finished.record[name]


def test_terminal_from_the_root_on_reading_questions(output, tiny):
    """On a terminal, from the root: progress by steps, and questions scored before and after."""
    before = folders(output)
    settings = {
        **SMALL, "output_dir": output, "model": tiny, "dataset": "lab-ko-mrc", "report_to": "[]", "max_length": 512
    }
    status, shown = call_on_terminal("papermill", "nbs/train.ipynb", *parameters(settings), cwd=ROOT)
    assert status == 0, shown
    assert "Training" in shown and "step 3 of 3" in shown and "Traceback" not in shown
    run = Run(*(folders(output) - before))
    assert_finished(run)
    assert run.config.task == "mrc"
    names = {"exact_match_before", "f1_before", "exact_match", "f1"}
    samples = run.lines("samples.jsonl")
    assert len(samples) == run.record["data"]["held_out"] == 4 and all(names <= set(sample) for sample in samples)
    for name in names:
        assert run.record["metrics"][name] == pytest.approx(100 * sum(sample[name] for sample in samples) / 4)


@pytest.fixture
def server(tmp_path):
    """An MLflow server on this machine; its address."""
    port = free_port()
    words = ["mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}", "--artifacts-destination", str(tmp_path / "artifacts"),
             "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with open(tmp_path / "server.log", "w") as log:
        process = subprocess.Popen(words, cwd=tmp_path, env=environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"), stdin=subprocess.DEVNULL, stdout=log,
                                   stderr=log, start_new_session=True)
    uri, deadline = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE
    try:
        while True:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "server.log").read_text()
                time.sleep(0.5)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(PATIENCE)


def test_koalpaca_from_the_cache_and_a_server(server, tmp_path):
    """`papermill train.ipynb -p model koalpaca` trains where its weights are in the cache, and tells the server named by URI."""
    save_to_hub_cache(tmp_path / "hub", "beomi/KoAlpaca-Polyglot-5.8B", "gpt_neox")
    run = start(
        *PAPERMILL, output=tmp_path / "runs", model="koalpaca", cache_dir=tmp_path / "hub", mlflow_tracking_uri=server
    )
    assert_finished(run)
    assert run.config.target_modules == ["query_key_value"] and run.config.prompt == "koalpaca"
    assert "### 질문:" in re.sub("<[^>]+>", "", run.text("train.html"))
    assert run.record["model"]["id"] == "beomi/KoAlpaca-Polyglot-5.8B" and run.record["mlflow_problems"] == []
    tracked, client = run.mlflow(server)
    assert tracked.info.status == "FINISHED" and tracked.data.params["model"] == "koalpaca"
    files = {file.path for file in client.list_artifacts(tracked.info.run_id)}
    assert {"train.html", "train.ipynb", "samples.jsonl", "adapter"} <= files
    assert not (tmp_path / "runs" / "mlflow.db").exists()


# Data and weights of other kinds

def write_rows(path, names, encoding="utf-8"):
    """Write 40 questions and answers as a JSON list or a CSV file with these column names."""
    import csv

    rows = [dict(zip(names, (f"{number} 더하기 {number}의 답은 무엇인가요?", f"답은 {2 * number}입니다."))) for number in range(40)]
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding=encoding)
        return path
    with open(path, "w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_four_bits_and_mapped_columns(output, tiny, tmp_path):
    """A 4-bit base trains, on a JSON file whose Korean columns are named on the command line."""
    file = write_rows(tmp_path / "상담.json", ("상담 질문 (원문, 전체)", "상담 답변 (원문, 전체)"))
    mapping = "{question: '상담 질문 (원문, 전체)', answer: '상담 답변 (원문, 전체)'}"
    run = start(*PAPERMILL, output=output, model=tiny, dataset=file, column_mapping=mapping, load_in_4bit="true", report_to="[]", max_steps=20,
                learning_rate=0.01)
    assert_finished(run)
    assert run.record["data"]["read"] == 40 and run.record["data"]["parts"][0]["columns"]["question"] == "상담 질문 (원문, 전체)"
    assert run.record["metrics"]["eval_loss"] < run.record["metrics"]["eval_loss_before"]
    assert run.config.load_in_4bit and run.config.column_mapping["answer"] == "상담 답변 (원문, 전체)"
    if not has_gpu():
        assert run.config.bnb_4bit_compute_dtype == "float32"


def test_evaluation_leaves_four_bit_gradients_as_they_are(tmp_path):
    """A 4-bit base passes gradients on to the layers below after an evaluation as it does before one."""
    import torch

    from llmlab.models.adapters import add_lora
    from llmlab.models.checkpoints import load_base_model, make_quantization

    tiny_model("llama", hidden_size=128, head_dim=32).save_pretrained(tmp_path)
    base = load_base_model(tmp_path, torch.float32, make_quantization(torch.float32, load_in_4bit=True))
    model = add_lora(base, ["q_proj", "v_proj"], lora_r=4, lora_alpha=8, lora_args={"init_lora_weights": False})
    tokens = torch.arange(3, 35, device=model.device)[None]

    def gradients():
        model.train().zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        return {
            name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
        }

    before = gradients()
    with torch.no_grad():
        model.eval()(input_ids=tokens)
    after = gradients()
    assert len(before) == 8 and before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_best_checkpoint_and_old_korean_encoding(output, tiny, tmp_path):
    """Training stops when the held-out loss no longer falls and ends with the best checkpoint; the CSV file is in cp949."""
    file = write_rows(tmp_path / "questions.csv", ("Q", "A"), "cp949")
    run = start(*TRAIN, output=output, cwd=ROOT, model=tiny, dataset=file, report_to="none", max_steps=200, learning_rate=0.5, eval_strategy="steps",
                eval_steps=2, save_strategy="steps", save_steps=2, save_total_limit=1, load_best_model_at_end="true", early_stopping_patience=2)
    assert_finished(run)
    assert any("cp949" in note for note in run.record["data"]["notes"])
    losses = [line["eval_loss"] for line in run.lines("metrics.jsonl") if "eval_loss" in line]
    assert run.record["metrics"]["steps"] == 2 * len(losses) < 200
    assert losses[-1] > min(losses) and run.record["metrics"]["eval_loss"] == pytest.approx(min(losses), rel=1e-6)


# Runs that cannot be

REFUSED = {
    "unknown": ({"modle": "tinyllama"}, "'modle' is not a parameter of this notebook. Did you mean 'model'?"),
    "wrong kind": ({"learning_rate": "fast"}, "learning_rate='fast'"),
    "out of range": ({"lora_dropout": "1.5"}, "lora_dropout="),
    "contradiction": ({"load_best_model_at_end": "true", "eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2, "save_steps": 3},
                      "save_steps to be a multiple of eval_steps"),
    "unknown to the library": ({"training_args": "{adam_epsilo: 1e-8}"}, "Did you mean 'adam_epsilon'?"),
    "no GPU": ({"fp16": "true"}, "fp16=true needs a GPU"),
}


@pytest.mark.parametrize("command", [PAPERMILL, TRAIN], ids=["papermill", "llmlab"])
@pytest.mark.parametrize("settings, message", REFUSED.values(), ids=REFUSED)
def test_settings_are_refused_before_anything_runs(command, settings, message, tmp_path):
    """What cannot be ends at once with a message, status 2, and no folder."""
    if "fp16" in settings and has_gpu():
        pytest.skip("this machine has a GPU")
    done = call(*command, *parameters({"output_dir": tmp_path / "runs", **settings}))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr and done.stdout == ""
    assert not list(tmp_path.iterdir())


def test_refused_settings_leave_no_output_file(tmp_path):
    """With an output path, a refused run writes nothing there either."""
    done = call(*PAPERMILL, tmp_path / "out.ipynb", "-y", "{lora_rank: 4}", "-p", "output_dir", tmp_path)
    assert done.returncode == 2 and "Did you mean 'lora_r" in done.stderr
    assert not list(tmp_path.iterdir())


# Runs that end badly

def test_absent_weights_are_explained(tmp_path):
    """Without its weights a run says what is missing and what to do as the last words, and leaves nothing behind."""
    (tmp_path / "hub").mkdir()
    done = call(
        *PAPERMILL,
        *parameters({**SMALL, "output_dir": tmp_path / "runs", "model": "koalpaca", "cache_dir": tmp_path / "hub"})
    )
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ") and "beomi/KoAlpaca-Polyglot-5.8B" in last and "hf download" in last and "cache_dir=PATH" in last
    assert not (tmp_path / "runs").exists()


def test_failure_on_the_way_is_recorded(finished, output, tiny):
    """A run that fails after its start is failed in its record, in MLflow and on its page."""
    run = start(*PAPERMILL, output=output, model=tiny, target_modules="[q_prj]")
    assert run.done.returncode == 1 and "Traceback" not in run.done.stderr
    assert "Did you mean 'q_proj'?" in run.done.stderr.strip().splitlines()[-1]
    assert run.record["status"] == "failed" and "q_prj" in run.record["error"] and run.record["ended"]
    tracked, client = run.mlflow()
    assert tracked.info.status == "FAILED"
    assert {"train.html", "train.ipynb"} <= {file.path for file in client.list_artifacts(tracked.info.run_id)}
    assert re.search("LabError.*Did you mean 'q_proj'", re.sub("<[^>]+>", "", run.text("train.html")))


def is_alive(process_id):
    """Say whether a process is still there."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return "Z" not in subprocess.run(
        ["ps", "-o", "stat=", "-p", str(process_id)], capture_output=True, text=True
    ).stdout


def test_termination_is_recorded(finished, output, tiny):
    """A terminated run saves its notebook, says so in its record and in MLflow, and leaves no kernel behind."""
    before, settings = folders(output), {
        **SMALL, "output_dir": output, "model": tiny, "max_steps": 100_000, "eval_strategy": "no"
    }
    process = subprocess.Popen([*PAPERMILL, *parameters(settings)], cwd=ROOT / "nbs", env=environment(), stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        folder = wait_for(lambda: folders(output) - before, "a record").pop()
        metrics = folder / "metrics.jsonl"
        wait_for(lambda: metrics.exists() and re.search(r'"step": [1-9]', metrics.read_text()), "a step of training")
        process.terminate()
        shown = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode != 0
    assert "Traceback" not in shown
    run = Run(folder)
    assert run.record["status"] == "interrupted" and run.record["ended"], shown
    assert newest_checkpoint(folder / "checkpoints"), shown
    wait_for(lambda: not is_alive(run.record["process"]), "the kernel's end", 60)
    cells = [cell for cell in nbformat.read(folder / "train.ipynb", as_version=4).cells if cell.cell_type == "code"]
    assert cells[2].outputs and not cells[-1].outputs and (folder / "train.html").exists()
    tracked, client = run.mlflow()
    assert tracked.info.status == "KILLED"
    assert {"train.html", "train.ipynb"} <= {file.path for file in client.list_artifacts(tracked.info.run_id)}
