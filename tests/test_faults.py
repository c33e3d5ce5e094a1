"""What goes wrong around a run: folders, records, trackers, disks, kernels. One message each, and a truthful record."""
import errno
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import click
import nbformat
import papermill
import pytest
from click.testing import CliRunner

import llmlab.runs.tracking as tracking
from llmlab.commands.cli import main
from llmlab.commands.papermill_engine import LabEngine, RunFailed, complete_command_line
from llmlab.common.errors import LabError, fault_advice, first_line, without_secrets
from llmlab.common.files import write_atomic
from llmlab.config.load import config_to_yaml, make_config
from llmlab.config.schema import parameters_cell
from llmlab.runs.compare import find_runs, list_runs
from llmlab.runs.folders import find_run, read_record
from llmlab.runs.record import Record, begin_record
from llmlab.runs.sync import sync_run, unsynced_runs

ROOT = Path(__file__).resolve().parent.parent
CANARY = "Canary-5eeded-Pa55word"
ESCAPES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def save_run(folder, name="20260101-080000-tiny-rows-1111", record=None, config=True, **settings):
    """Make the folder of a run that has ended, by hand; `record`: its content, where that is what is wrong."""
    run = folder / name
    run.mkdir(parents=True)
    made = make_config({"output_dir": str(folder), "report_to": [], **settings})
    facts = {"run_id": name, "status": "interrupted", "params": made.model_dump(), "metrics": {},
             "data": {"fingerprint": "0" * 64}}
    text = json.dumps({**facts, **record} if isinstance(record, dict) else facts)
    (run / "record.json").write_text(record if isinstance(record, str) else text, encoding="utf-8")
    if config is True:
        (run / "config.yaml").write_text(config_to_yaml(made), encoding="utf-8")
    elif config:
        (run / "config.yaml").write_bytes(config)
    return run


def invoke(*words):
    """Call llmlab in this process; return its exit status and what it wrote."""
    done = CliRunner().invoke(main, [str(word) for word in words], prog_name="llmlab")
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    return done.exit_code, done.output


# Command lines that cannot be: a row is a function of an empty folder that returns words, and what the message must say

def wrong_file(name, content, *words):
    """Make a row whose command names a file of this content last."""
    def make(folder):
        (folder / name).write_bytes(content)
        return [*words, folder / name]

    return make


def of_run(*words, **what):
    """Make a row whose command is about a run that is damaged in some way."""
    def make(folder):
        save_run(folder / "runs", **what)
        return [*words, "--output-dir", folder / "runs"]

    return make


def into(place):
    """Make a row that trains into a folder that cannot be; `place` makes it and returns its path."""
    return lambda folder: ["train", "-p", "output_dir", place(folder)]


def training(*words):
    """Make a row that trains into a folder that can be; words that are functions make a file first."""
    def make(folder):
        made = [word(folder) if callable(word) else word for word in words]
        return ["train", "-p", "output_dir", folder / "runs", *made]

    return make


def file_in(folder):
    (folder / "notes").write_text("no folder")
    return folder / "notes"


def link_in(folder):
    (folder / "moved").symlink_to(folder / "nowhere")
    return folder / "moved"


def fifo_in(folder):
    os.mkfifo(folder / "pipe.yaml")
    return folder / "pipe.yaml"


LATEST, HALF = ("latest",), '{"run_id": "a", "sta'
COMMAND_LINES = {
    "output_dir: a file": (into(file_in), ("output_dir", "is a file")),
    "output_dir: below a file": (into(lambda folder: file_in(folder) / "deeper" / "runs"), ("output_dir", "is a file")),
    "output_dir: a link to nowhere": (into(link_in), ("output_dir", "link to nowhere")),
    "output_dir: below a link to nowhere": (into(lambda folder: link_in(folder) / "runs"),
                                            ("output_dir", "link to nowhere")),
    "output_dir: in /proc": (into(lambda folder: "/proc/llmlab/runs"), ("output_dir", "may write to")),
    "output_dir: a name too long": (into(lambda folder: folder / ("run" * 100)), ("output_dir", "too long")),
    "output_dir: nobody's home": (into(lambda folder: "~nosuchuser/runs"), ("output_dir", "nosuchuser")),
    "output_dir: a null byte": (into(lambda folder: "ru\0ns"), "output_dir"),
    "logging_dir: a file": (training("-p", "logging_dir", file_in, "-p", "report_to", "tensorboard"),
                          ("logging_dir", "file")),
    "cache_dir: a file": (training("-p", "cache_dir", file_in), ("cache_dir", "file")),
    "cache_dir: nobody's home": (training("-p", "cache_dir", "~nosuchuser/x"), "cache_dir"),
    "-f: missing": (lambda folder: ["train", "-f", folder / "missing.yaml"], "missing.yaml"),
    "-f: a folder": (lambda folder: ["train", "-f", folder], "-f"),
    "-f: a pipe": (lambda folder: ["train", "-f", fifo_in(folder)], ("-f", "pipe")),
    "-f: broken YAML": (wrong_file("mine.yaml", b"{seed: ", "train", "-f"), "mine.yaml"),
    "-f: a list": (wrong_file("list.yaml", b"- 1\n- 2\n", "train", "-f"), "list.yaml"),
    "-f: a null byte": (wrong_file("null.yaml", b"seed: 1\0\n", "train", "-f"), "null.yaml"),
    "-f: an old Korean encoding": (wrong_file("old.yaml", "run_name: 실험".encode("cp949"), "train", "-f"),
                                   ("old.yaml", "UTF-8")),
    "-y: broken": (lambda folder: ["train", "-y", "{seed: "], "-y"),
    "-y: text": (lambda folder: ["plan", "-y", "seed"], "-y"),
    "-p: twice": (lambda folder: ["train", "-p", "seed", "1", "-p", "seed", "2"], ("seed", "twice")),
    "a dataset's name too long": (training("-p", "dataset", "d" * 300), "dataset"),
    "a model's name too long": (training("-p", "model", "/" + "m" * 300), "model"),
    "a benchmark misspelt": (training("-p", "lm_eval_tasks", "[kobest_bolq]"),
                             ("lm_eval_tasks", "lm-eval")),
    "a password in an address": (training("-p", "mlflow_tracking_uri", f"http://me:{CANARY}@lab.example"),
                                 "mlflow_tracking_uri"),
    "a password with a slash": (training("-p", "mlflow_tracking_uri", f"http://me:a/{CANARY}@lab.example"),
                                "mlflow_tracking_uri"),
    "a token in an address": (training("-p", "mlflow_tracking_uri", f"https://lab.example/?token={CANARY}"),
                              "mlflow_tracking_uri"),
    "a hub token as a name": (training("-p", "run_name", "hf_AbCdEfGh1234567890"), "run_name"),
    "a password in another address": (
        lambda folder: ["plan", "-p", "dataset", f"https://me:{CANARY}@lab.example/rows.jsonl"], "dataset"),
    "compare: unknown": (lambda folder: ["compare", "nosuchrun", "--output-dir", folder], "nosuchrun"),
    "compare: a name too long": (lambda folder: ["compare", "r" * 300, "--output-dir", folder], "run="),
    "compare: nobody's home": (lambda folder: ["compare", "~nosuchuser/x", "--output-dir", folder], "nosuchuser"),
    "compare: no such server": (lambda folder: ["compare", "--from", "mlflow", "--mlflow-tracking-uri", f"http://me:{CANARY}@127.0.0.1:9"],
                                ("MLflow", "127.0.0.1:9")),
    "resume: a damaged record": (of_run("resume", "20260101", record=HALF), ("record.json", "damaged")),
    "resume: no settings": (of_run("resume", "20260101", config=False), "config.yaml"),
    "resume: broken settings": (of_run("resume", "20260101", config=b"{seed: "), "config.yaml"),
    "resume: settings that are no text": (of_run("resume", "20260101", config=b"\xff\xfe\x00"),
                                          ("config.yaml", "UTF-8")),
    "resume: nothing but a damaged run": (of_run("resume", *LATEST, record=HALF), "latest"),
    "resume: a start that failed": (of_run("resume", *LATEST, record='{"status": "failed", "params": {}}'), "latest"),
    "rerun: a damaged record": (of_run("rerun", "20260101", record="[]"), ("record.json", "damaged")),
    "rerun: no settings": (of_run("rerun", "20260101", config=False), "config.yaml"),
    "rerun: to be verified, unfinished": (of_run("rerun", "20260101", "--verify"), "interrupted"),
    "evaluate: a damaged record": (of_run("evaluate", "20260101", record='{"params": null}'), "record.json"),
    "evaluate: of another version": (
        of_run("evaluate", "20260101", record='{"status": "finished", "params": {"lora_rank": 4}}'), "lora_rank"),
    "chat: a damaged record": (of_run("chat", "20260101", record='{"status": 3}'), ("record.json", "status")),
    "chat: unfinished": (of_run("chat", "20260101"), "interrupted"),
    "merge: unfinished": (of_run("merge", "20260101", "-o", "merged"), "interrupted"),
    "export: a damaged record": (of_run("export", "20260101", "-o", "exported", record=HALF),
                                 ("record.json", "damaged")),
    "export: without its weights": (of_run("export", "20260101", "-o", "exported", record={"status": "finished"}),
                                    "adapter"),
    "sync: a damaged record": (of_run("sync", "20260101", record=HALF), ("record.json", "damaged")),
    "sync: not tracked": (of_run("sync", "20260101"), "report_to"),
}


@pytest.mark.parametrize("name", COMMAND_LINES)
def test_a_command_line_that_cannot_be(name, tmp_path, monkeypatch):
    """Exit status 2, one message that names what is wrong and shows no secret, and nothing made."""
    make, says = COMMAND_LINES[name]
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words = make(tmp_path)
    if words[0] == "evaluate":  # it has no option for the folder, but takes the setting
        words = [*words[:-2], "-p", "output_dir", words[-1]]
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    runs = set((ROOT / "runs").glob("*"))
    status, shown = invoke(*words)
    assert status == 2, shown
    for expression in [says] if isinstance(says, str) else says:
        assert expression in shown, shown
    assert len(re.findall("(?m)^Error: ", shown)) == 1 and "Traceback" not in shown and not ESCAPES.search(shown)
    assert CANARY not in shown and "hf_AbCdEfGh1234567890" not in shown
    assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}.keys() == before.keys()
    assert set((ROOT / "runs").glob("*")) == runs and not list(ROOT.glob("merged")) + list(ROOT.glob("exported"))


PAPERMILL_LINES = {
    "-y broken": (["-y", "{seed: "], "-y"),
    "-f missing": (["-f", "missing.yaml"], "missing.yaml"),
    "-b no base64": (["-b", "!!!"], "base64"),
    "-b no YAML": (["-b", "e3NlZWQ6IA=="], "-b"),
    "-b no text": (["-b", "//79"], "-b"),
    "-p twice": (["-p", "seed", "1", "-p", "seed", "2"], "twice"),
    "-y the same twice": (["-y", "{seed: 1, seed: 2}"], "seed"),
}


@pytest.mark.parametrize("output", [[], ["out.ipynb"]], ids=["", "with an output path"])
@pytest.mark.parametrize("name", PAPERMILL_LINES)
def test_parameters_that_papermill_cannot_read(name, output):
    """They are refused before papermill looks at them, with an output path and without."""
    words, says = PAPERMILL_LINES[name]
    with pytest.raises(LabError, match=re.escape(says)):
        complete_command_line(["papermill", str(ROOT / "nbs" / "train.ipynb"), *output, *words])


def test_papermill_ends_with_status_2():
    """And papermill's own command says so, in one message."""
    words = [sys.executable, "-m", "papermill", "train.ipynb", "-y", "{seed: "]
    done = subprocess.run(words, cwd=ROOT / "nbs", capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("Error: ") == 1 and "Traceback" not in done.stderr, done.stderr


# Records of which one is damaged

DAMAGES = {
    "empty": "", "cut": HALF, "a list": "[]", "null": "null", "text": '"a"', "no UTF-8": b"\xff\xfe{}",
    "params null": '{"params": null}', "params a list": '{"params": []}', "status a number": '{"status": 3}',
    "metrics text": '{"metrics": {"eval_loss": "low"}}', "metrics a list": '{"metrics": [1]}',
    "data text": '{"data": "rows"}', "fingerprint a number": '{"data": {"fingerprint": 5}}',
    "packages a list": '{"environment": {"packages": []}}', "entries a list": '{"entries": []}',
    "resumed a number": '{"resumed": 2}', "nested without end": "[" * 100_000,
    "digits without end": '{"max_steps": ' + "9" * 10_000 + "}",
    "a key twice": '{"status": "finished", "status": "failed"}',
}


@pytest.mark.parametrize("name", DAMAGES)
def test_one_damaged_record_stops_no_other_run(name, tmp_path):
    """It is listed as damaged, with the reason; `latest` and the comparison go on with the others."""
    metrics = {"train_runtime": float("nan"), "eval_loss": 2.0}
    good = save_run(tmp_path, "20260101-080000-good-1111", {"status": "finished", "metrics": metrics})
    bad, content = tmp_path / "20260102-080000-bad-2222", DAMAGES[name]
    bad.mkdir()
    (bad / "record.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    status, shown = invoke("compare", "--output-dir", tmp_path)
    assert status == 0 and re.search(r"bad-2222\s+damaged", shown) and re.search(r"good-1111\s+finished", shown), shown
    assert str(bad / "record.json") in shown
    assert find_run("latest", str(tmp_path)) == good
    with pytest.raises(LabError, match="record.json is damaged"):
        read_record(bad)
    assert invoke("compare", good.name, bad.name, "--output-dir", tmp_path)[0] == 0


@pytest.mark.parametrize("file", ["metrics.jsonl", "samples.jsonl", "questions.jsonl"])
@pytest.mark.parametrize("line", ["{broken}", "[1]", '{"other": 1}', b"\xff\xfe"])
def test_a_damaged_line_of_a_record_is_told(file, line, tmp_path):
    """A line in the middle that is none; half a line at the end is how a killed run ends, and no damage."""
    save_run(tmp_path, "20260101-080000-good-1111")
    bad = save_run(tmp_path, "20260102-080000-bad-2222")
    line = line if isinstance(line, bytes) else line.encode()
    (bad / file).write_bytes(line + b'\n{"step": 1, "question": "a"}\n')
    shown = list_runs(find_runs([], str(tmp_path), "runs", None))
    assert [row[1] for row in shown.rows] == ["interrupted", "damaged"] and file in shown.note
    (bad / file).write_bytes(b'{"step": 1, "question": "a"}\n{"step": 2, "que')
    assert [row[1] for row in list_runs(find_runs([], str(tmp_path), "runs", None)).rows] == ["interrupted"] * 2


def test_two_runs_never_share_a_folder(tmp_path):
    """Of two that begin in the same second under the same name, one is refused and changes nothing."""
    config = make_config({"output_dir": str(tmp_path), "report_to": []})
    begin_record(tmp_path / "same", config).note(mine=True)
    with pytest.raises(LabError, match="holds a run already"):
        begin_record(tmp_path / "same", config)
    assert read_record(tmp_path / "same")["mine"]


def test_escapes_of_a_foreign_record_stay_off_the_terminal(tmp_path):
    """A record that somebody sent, and the words of a command line, move no cursor."""
    params = {"model": "a\x1b]0;owned\x07b", "dataset": "c\r\x9bd"}
    save_run(tmp_path, record={"status": "fin\x1b[2Jished", "params": params})
    for words in (["compare", "--output-dir", tmp_path], ["train", "-p", "\x1b[31m", "1"], ["compare", "\x1b[31m"],
                  ["train", "--\x1b[31m"], ["nosuch\x1b[31m"], ["train", "-p", "dataset", "\x1b[31m.jsonl"],
                  ["resume", "a\x1bb", "--output-dir", tmp_path]):
        assert not ESCAPES.search(invoke(*words)[1].replace("\r\n", "\n")), words


@pytest.mark.parametrize("words", [("compare",), ("presets",), ("train", "--help")], ids=" ".join)
def test_a_reader_that_goes_away_is_no_error(words):
    """`llmlab ... | head -1` ends without a word of its own."""
    first = f"{sys.executable} -c 'from llmlab.commands.cli import main; main(prog_name=\"llmlab\")' {' '.join(words)} | head -1"
    done = subprocess.run(["bash", "-c", first], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.count("\n") == 1 and done.stderr == ""


# Trackers

def serve(answer):
    """Open a server on this machine that answers each connection by a function; return its address."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(50)

    def accept():
        while True:
            connection = listener.accept()[0]
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return f"127.0.0.1:{listener.getsockname()[1]}"


def hang(connection):
    connection.recv(65536)
    threading.Event().wait()


def trickle(connection):
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(0.05)


def reset(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def refuse(connection):
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    connection.close()


def use_server(run, folder):
    """Send a run's life to a tracker: settings, a hundred steps, files, its end."""
    run.log_params({"lora_r": 4})
    for step in range(100):
        run.log_metrics({"loss": 1.0}, step)
    (folder / "a.txt").write_text("a")
    run.log_files(folder / "a.txt")
    run.finish()


@pytest.mark.parametrize("is_begun", [False, True], ids=["from the start", "after the start"])
@pytest.mark.parametrize("answer", [hang, trickle, reset, refuse])
def test_a_server_that_does_not_answer_is_given_up(answer, is_begun, tmp_path, monkeypatch, capsys):
    """All its calls cost one patience together; the run goes on, says so once, and shows no password."""
    monkeypatch.setattr(tracking, "HANG_SECONDS", 0.5)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "set below")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{CANARY}@{serve(answer)}")
    uri = tracking.tracking_uri(None, str(tmp_path))
    assert CANARY not in uri + os.environ["MLFLOW_TRACKING_URI"] and os.environ["MLFLOW_TRACKING_PASSWORD"] == CANARY
    begin = {
        True: lambda: tracking.MlflowRun.open(uri, "abc"), False: lambda: tracking.MlflowRun.start(uri, "lab", "a", {})
    }
    run = begin[is_begun]()
    use_server(run, tmp_path)
    shown = capsys.readouterr().out
    assert run.problems and shown.count("llmlab sync") == 1 and CANARY not in shown + str(run.problems)
    if answer in (hang, trickle):
        assert run.waited < 5 and run.client is None and len(run.problems) == 1
        again = tracking.MlflowRun.open(uri, "abc", run.waited)  # as another process opens it, to add the page
        use_server(again, tmp_path)
        assert again.problems == [] and again.client is None


def test_an_error_without_a_message_is_survived(tmp_path, capsys):
    """Some exceptions say nothing but their name."""
    run = tracking.MlflowRun(f"sqlite:///{tmp_path / 'x.db'}")

    def fail():
        raise TimeoutError

    run._try("anything", fail)
    assert run.problems == ["anything: TimeoutError: TimeoutError"] and "anything" in capsys.readouterr().out
    assert first_line(TimeoutError()) == "TimeoutError" and first_line(ValueError("\n\nlate\n")) == "late"


def test_what_a_tracker_missed_is_sent_later(tmp_path, monkeypatch):
    """A run whose server was away is listed, sent whole by `sync`, and not sent twice."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = make_config({"output_dir": str(tmp_path), "lora_r": 4})
    record = begin_record(tmp_path / "20260101-080000-tiny-rows-1111", config)
    for step in (1, 2, 3):
        record.append_metrics({"step": step, "time": "2026-01-01T08:00:00+00:00", "loss": 4.0 - step})
    record.note(status="finished", metrics={"eval_loss": 1.5}, max_steps=3, process_created=0)
    record.note(mlflow_problems=["start: TimeoutError"], mlflow_waited=10.0)
    save_run(tmp_path, "20260102-080000-bad-2222", HALF)
    assert unsynced_runs(str(tmp_path)) == [record.folder]
    status, shown = invoke("sync", "--output-dir", tmp_path)
    assert status == 0 and f"{record.folder.name}: sent" in shown
    content = read_record(record.folder)
    assert content["mlflow_problems"] == [] and "mlflow_waited" not in content
    client = tracking.connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    sent = client.get_run(content["mlflow_run_id"])
    assert sent.info.status == "FINISHED" and sent.data.params["lora_r"] == "4" and sent.data.metrics["final/eval_loss"] == 1.5
    assert [point.value for point in client.get_metric_history(sent.info.run_id, "train/loss")] == [3.0, 2.0, 1.0]
    assert unsynced_runs(str(tmp_path)) == [] and sync_run(record.folder) == []
    assert len(client.get_metric_history(sent.info.run_id, "train/loss")) == 3
    assert "missed nothing" in invoke("sync", "--output-dir", tmp_path)[1]


def test_a_record_holds_no_credentials(tmp_path, monkeypatch):
    """Whatever a library says of an address, or of a token, is written down without what lets somebody in."""
    monkeypatch.setenv("HF_TOKEN", CANARY)
    (tmp_path / "run").mkdir()
    record = Record(tmp_path / "run")
    said = f"GET http://me:pa/{CANARY}x@lab.example/?api_key=q{CANARY}&page=2 with {CANARY} and hf_AbCdEfGh1234567890 failed"
    record.note(error=said, mlflow_problems=[said], params={"deep": {"er": [said]}})
    text = (tmp_path / "run" / "record.json").read_text()
    assert CANARY not in text and "hf_AbCdEfGh" not in text and "page=2" in text and "lab.example" in text
    assert str(LabError(said)) == without_secrets(said)


# Disks, memory, kernels

FAULTS = {
    OSError(errno.ENOSPC, "No space left on device"): "disk is full", OSError(errno.EDQUOT, "Disk quota exceeded"): "disk is full",
    RuntimeError("[enforce fail at inline_container.cc:595] . unexpected pos 64 vs 0"): "disk is full", MemoryError(): "Memory ran out",
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"): "Memory ran out",
}


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: f"{type(error).__name__} {error}"[:40])
def test_a_fault_of_the_machine_is_one_message(error, monkeypatch):
    """Wherever a command meets it, and however deep below another error, with what to do."""
    def fail(*positional, **named):
        raise ValueError("could not go on") from error

    monkeypatch.setattr("llmlab.experiment.plan.make_plan", fail)
    status, shown = invoke("plan", "-p", "dataset", "lab-ko-mrc")
    assert status == 1 and FAULTS[error] in shown and len(re.findall("(?m)^Error: ", shown)) == 1
    assert fault_advice(ValueError("of another kind")) is None
    assert fault_advice(fault_advice(error)) == fault_advice(error)


def full_disk(monkeypatch, failures):
    """Let the next so many files that are written whole find no room on the disk."""
    count = iter(range(10**6))

    def fsync(number):
        if next(count) < failures:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_full_disk_leaves_the_old_file_and_no_half(tmp_path, monkeypatch):
    """What was to be written is not there, in no place; what was there is."""
    (tmp_path / "record.json").write_text("{}")
    full_disk(monkeypatch, 1)
    with pytest.raises(OSError):
        write_atomic(tmp_path / "record.json", "more")
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"] and (tmp_path / "record.json").read_text() == "{}"


def execute(folder, *cells, tagged=0, output=None, **settings):
    """Run a notebook that the lab takes for its own; `tagged`: the cell that opens the record."""
    papermill.engines.papermill_engines.register(None, LabEngine)
    first = nbformat.v4.new_code_cell(parameters_cell(), metadata={"tags": ["parameters"]})
    codes = [first, *map(nbformat.v4.new_code_cell, cells)]
    codes[1 + tagged].metadata["tags"] = ["record"]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    notebook = nbformat.v4.new_notebook(cells=codes, metadata={"kernelspec": kernel})
    nbformat.write(notebook, folder / "asked.ipynb")
    parameters = {"output_dir": str(folder / "runs"), "report_to": [], **settings}
    output = output or folder / "runs" / "mine" / "train.ipynb"
    return papermill.execute_notebook(folder / "asked.ipynb", output, parameters=parameters, progress_bar=False)


def the_record(folder):
    """Read the only record below a folder; nothing half-written may lie beside it."""
    path, = folder.glob("runs/*/record.json")
    assert not [each for each in path.parent.iterdir() if each.name.startswith(".")]
    return read_record(path.parent)


@pytest.fixture(scope="module", autouse=True)
def kernels_at_hand():
    """Let kernels find this Python's packages, and the lab its engine."""
    papermill.engines.papermill_engines.register(None, LabEngine)


TELL = "from llmlab.common.errors import LabError\nraise LabError('dataset=rows.jsonl, line 3: no such thing')"


def test_what_is_found_before_the_record_leaves_no_folder(tmp_path):
    """A message from a cell up to the tagged one ends like one about a parameter: status 2, and nothing made."""
    output = tmp_path / "named.ipynb"
    with pytest.raises(click.UsageError, match="line 3: no such thing") as caught:
        execute(tmp_path, TELL, output=output)
    assert caught.value.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["asked.ipynb"]


def test_a_run_that_cannot_be_resumed_stays_as_it_was(tmp_path):
    """Its record, its curve and its notebook are put back."""
    run = save_run(tmp_path / "runs", "mine")
    (run / "train.ipynb").write_text("the notebook of before")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(click.UsageError, match="line 3"):
        execute(tmp_path, TELL, resume="mine")
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_what_goes_wrong_after_it_is_recorded(tmp_path):
    """The record says failed and why, without a secret; `latest` is a run that has begun."""
    said = f"print('http://me:{CANARY}@lab.example')"
    with pytest.raises(papermill.PapermillExecutionError):
        execute(tmp_path, said, TELL)
    record = the_record(tmp_path)
    assert record["status"] == "failed" and "line 3: no such thing" in record["error"]
    for name in ("train.ipynb", "train.html"):
        text = (tmp_path / "runs" / "mine" / name).read_text()
        assert "lab.example" in text and not re.search(f"me:{CANARY}@lab.example'?$", text) and "no such thing" in text


def test_a_killed_kernel_is_told(tmp_path):
    """The kernel ends by SIGKILL, as when memory runs out: one message, and the same in the record."""
    with pytest.raises(RunFailed, match="kernel was killed.*memory") as caught:
        execute(tmp_path, "print('begun')", "import os\nos.kill(os.getpid(), 9)")
    record = the_record(tmp_path)
    assert caught.value.exit_code == 1 and record["status"] == "failed" and "kernel was killed" in record["error"]
    assert (tmp_path / "runs" / "mine" / "train.html").exists()


def test_a_full_disk_is_told_and_the_record_says_so(tmp_path, monkeypatch):
    """A step finds no room, nor does the record at first: what was half written makes the room."""
    half = tmp_path / "runs" / "mine" / "checkpoints" / "checkpoint-2"
    cells = (f"import os\nos.makedirs({str(half)!r})\nopen({str(half / 'model.safetensors')!r}, 'w').close()",
             f"open({str(tmp_path / 'runs' / 'mine' / '.adapter.1')!r}, 'w').close()\nraise OSError(28, 'No space left on device')")
    end = LabEngine.execute_managed_notebook.__func__

    def then_full(cls, *positional, **named):
        end(cls, *positional, **named)
        full_disk(monkeypatch, 1)

    monkeypatch.setattr(LabEngine, "execute_managed_notebook", classmethod(then_full))
    with pytest.raises(papermill.PapermillExecutionError):
        execute(tmp_path, *cells)
    record = the_record(tmp_path)
    assert record["status"] == "failed" and "disk is full" in record["error"] and "output_dir" in record["error"]
    assert not half.exists()


def test_a_terminal_that_is_closed_interrupts_the_run(tmp_path):
    """SIGHUP ends a run as Ctrl-C does, and its record says so."""
    cell = f"import os, time\nos.kill({os.getpid()}, {int(signal.SIGHUP)})\ntime.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        execute(tmp_path, "print('begun')", cell)
    assert the_record(tmp_path)["status"] == "interrupted"
