"""Sweeps: a grid on two Ray nodes of which one is killed, an interruption, an early stop, and what is refused before anything runs."""
import csv
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import yaml
from waiting import PATIENCE, wait_for

from llmlab.models.testing import save_tiny_checkpoint

pytest.importorskip("ray", reason="Ray is not installed (pip install 'llmlab[ray]')")

from llmlab.scale.ray import QUIET
from llmlab.scale.sweep import point_of  # noqa: E402
from llmlab.scale.sweep_points import make_sweep  # noqa: E402
from llmlab.scale.trial import trial_states  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "max_train_samples": 16, "max_eval_samples": 4, "num_samples": 1, "max_new_tokens": 4, "eval_strategy": "steps"
}
ENVIRONMENT = {**{name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "IN_TEST")}, **QUIET, "OMP_NUM_THREADS": "1"}


def words(*options, **parameters):
    """Write a sweep's command line."""
    given = [word for name, value in {**SMALL, **parameters}.items() for word in ("-p", name, str(value))]
    return ["llmlab", "sweep", *given, *options]


def sweep(*options, **parameters):
    """Run a sweep to its end."""
    return subprocess.run(
        words(*options, **parameters), cwd=ROOT, env=ENVIRONMENT, text=True, stdin=subprocess.DEVNULL,
        capture_output=True, timeout=PATIENCE
    )


def record_of(folder, state):
    """Read the record of a trial's run."""
    return json.loads((folder.parent.parent / state["run"] / "record.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Small checkpoints of two families."""
    place = tmp_path_factory.mktemp("models")
    return [str(save_tiny_checkpoint(place / f"tiny-{family}", family)) for family in ("llama", "qwen3")]


# What is refused

REFUSED = {
    "nothing varies": (["-p", "lora_r", "4"], "nothing varies"),
    "a wrong name in one point": (["-p", "model", "gemma3-270m,gema3"], "Did you mean"),
    "a wrong value in one point": (["-p", "lora_r", "4,0"], "lora_r"),
    "a range in a grid": (["-p", "learning_rate", "{loguniform: [1e-5, 1e-3]}"], "search=grid"),
    "draws without a number": (["-p", "lora_r", "4,8", "--search", "random"], "num_samples"),
    "an unknown option of ASHA": (["-p", "lora_r", "4,8", "-p", "max_steps", "9", "--scheduler", "{asha: {grace_periods: 3}}"], "Did you mean 'grace_period'"),
    "no evaluation to stop at": (["-p", "lora_r", "4,8", "-p", "eval_strategy", "no", "--scheduler", "asha"], "eval_strategy"),
}


@pytest.mark.parametrize("options, message", REFUSED.values(), ids=REFUSED)
def test_sweeps_are_refused_before_anything_runs(options, message, tmp_path):
    """What cannot be ends at once with a message, status 2, and no folder."""
    from click.testing import CliRunner

    from llmlab.commands.cli import main

    done = CliRunner().invoke(main, ["sweep", *options, "-p", "output_dir", str(tmp_path / "runs")])
    assert done.exit_code == 2 and message in done.output, done.output
    assert not list(tmp_path.iterdir())


def test_without_ray_the_way_out_is_named(monkeypatch, tmp_path):
    """Without Ray, sweeps and several workers say how to get it."""
    import importlib.util

    from llmlab.common.errors import LabError
    from llmlab.config.load import make_config
    from llmlab.scale.sweep import run_sweep

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *others: None if name == "ray" else find(name, *others)
    )
    with pytest.raises(LabError, match=r"pip install 'llmlab\[ray\]'"):
        run_sweep(make_sweep({"parameters": {"lora_r": [4, 8], "output_dir": str(tmp_path)}}))
    with pytest.raises(LabError, match=r"pip install 'llmlab\[ray\]'"):
        make_config({"num_workers": 2})


# Whole sweeps

@pytest.mark.slow
def test_grid_survives_a_dead_node_and_an_interruption(tiny, tmp_path):
    """A grid of six on two nodes: one is killed, then the sweep is interrupted; the same command finishes it, and repeats nothing."""
    from ray.cluster_utils import Cluster

    os.environ.update(QUIET)
    runs, yaml_file = tmp_path / "runs", tmp_path / "six.yaml"
    parameters = {
        **SMALL, "model": tiny, "learning_rate": [1e-3, 2e-3, 3e-3], "max_steps": 24, "eval_steps": 4,
        "save_strategy": "steps", "save_steps": 4, "output_dir": str(runs)
    }
    yaml_file.write_text(yaml.safe_dump({"parameters": parameters}))
    folder, command = runs / "sweeps" / "six", ["llmlab", "sweep", str(yaml_file), "--address"]
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 10**8}
    )
    try:
        second = cluster.add_node(num_cpus=1, object_store_memory=10**8)
        process = subprocess.Popen([*command, cluster.address], cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                   preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))  # tests in the background have it ignored
        lost = wait_for(lambda: next(
            (state for state in trial_states(folder) if state.get("ray_node") == second.node_id and state.get("step")),
            None
        ), "a trial on the second node")
        cluster.remove_node(second, allow_graceful=False)
        wait_for(lambda: [
            state for state in trial_states(folder) if state["key"] == lost["key"] and state["starts"] == 2
            or state.get("status") == "finished"
        ], "another node")
        wait_for(lambda: any(state.get("status") == "finished" for state in trial_states(folder)), "a finished trial")
        process.send_signal(signal.SIGINT)
        shown = process.communicate(timeout=PATIENCE)[0]
        assert process.returncode != 0, shown
        before = {state["key"]: state for state in trial_states(folder) if state.get("status")}  # those that had begun
        cluster.add_node(num_cpus=1, object_store_memory=10**8)
        assert any(state["status"] != "finished" for state in before.values()) or len(before) < 6, shown
        again = subprocess.run(
            [*command, cluster.address], cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=2 * PATIENCE
        )
    finally:
        cluster.shutdown()
    assert again.returncode == 0, again.stderr
    states = {state["key"]: state for state in trial_states(folder)}
    assert [state["status"] for state in states.values()] == ["finished"] * 6
    for key, state in before.items():
        assert states[key]["run"] == state["run"]
        assert state["status"] != "finished" or states[key]["starts"] == state["starts"]
    assert states[lost["key"]]["starts"] > 1 and record_of(folder, states[lost["key"]])["resumed"]
    check_results(folder, states.values())
    third = subprocess.run(
        command[:-1], cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=PATIENCE
    )
    assert third.returncode == 0 and {state["key"]: state for state in trial_states(folder)} == states, third.stderr


def check_results(folder, states):
    """Every trial has a full record and a child in MLflow, and stands in the tables."""
    from llmlab.runs.tracking import connect

    job = json.loads((folder / "job.json").read_text())
    client = connect(f"sqlite:///{folder.parent.parent / 'mlflow.db'}")
    parent = client.get_run(job["mlflow_run_id"])
    assert parent.info.status == "FINISHED" and parent.data.tags["llmlab.sweep"] == folder.name
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{job['mlflow_run_id']}'")
    assert sorted(child.data.tags["llmlab.run_id"] for child in children) == sorted(state["run"] for state in states)
    assert all(child.info.status == "FINISHED" for child in children)
    with open(folder / "results.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["eval_loss"]) for row in rows]
    assert len(rows) == len(states) and losses == sorted(losses)
    for state in states:
        record, place = record_of(folder, state), folder.parent.parent / state["run"]
        assert record["status"] == "finished" and record["metrics"]["eval_loss"] == state["value"]
        assert {name: record["params"][name] for name in state["parameters"]} == state["parameters"]
        assert all((place / name).exists() for name in ("train.ipynb", "train.html", "adapter", "metrics.jsonl"))
        assert all(
            state["run"] in (folder / name).read_text(encoding="utf-8") for name in ("results.md", "results.html")
        )


@pytest.mark.slow
def test_asha_ends_a_bad_trial_early(tiny, tmp_path):
    """The trial that learns nothing is ended at its first comparison, and its record says why."""
    done = sweep("--name", "asha", "--scheduler", "{asha: {grace_period: 20, reduction_factor: 2}}", "--max-concurrent", "1", model=tiny[0], learning_rate="1e-2,1e-8",
                 max_steps=120, eval_steps=20, output_dir=tmp_path, report_to="[]")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "sweeps" / "asha"
    good, bad = trial_states(folder)
    assert (good["status"], good["step"]) == ("finished", 120), done.stderr
    assert bad["status"] == "stopped" and bad["step"] < 120
    record = record_of(folder, bad)
    assert record["status"] == "interrupted" and "ended early by ASHA" in record["error"] and "ended early by ASHA" in (folder / "results.md").read_text()


def test_optuna_goes_on_from_what_it_has_seen(tmp_path):
    """Optuna is asked for points within their ranges; after an interruption it begins with the points that it had chosen before."""
    from llmlab.scale.sweep import make_search
    from llmlab.scale.sweep_points import trial_key
    from llmlab.scale.trial import open_folder

    asked = make_sweep({"parameters": {"lora_r": [4, 8], "learning_rate": {"loguniform": ["1e-5", "1e-3"]}, "output_dir": str(tmp_path)}, "search": "optuna", "num_samples": 5,
                        "seeds": 2})
    folder = open_folder(asked)
    suggest = make_search(asked, folder, [])["search_alg"]
    chosen = [point_of({**suggest.suggest(f"a{number}"), "__first_seed__": 42}) for number in range(4)]
    assert [point["seed"] for point in chosen] == [42, 43, 42, 43] and chosen[0]["learning_rate"] == chosen[1]["learning_rate"] != chosen[2]["learning_rate"]
    assert all(point["lora_r"] in (4, 8) and 1e-5 <= point["learning_rate"] <= 1e-3 for point in chosen)
    for number, point in enumerate(chosen):
        (folder / "trials" / f"{trial_key(point)}.json").write_text(
            json.dumps({"created": number, "parameters": point, "run": None})
        )
    suggest = make_search(asked, folder, [])["search_alg"]
    assert [point_of({**suggest.suggest(f"b{number}"), "__first_seed__": 42}) for number in range(4)] == chosen


@pytest.mark.slow
def test_a_trial_is_stopped_killed_and_resumed(tiny, tmp_path):
    """Without Ray: a trial that is asked to stop saves its record, one whose process is killed is to be tried again, and both go on in the same run."""
    from llmlab.scale.sweep_points import list_points
    from llmlab.scale.trial import TrialRun, open_folder

    asked = make_sweep({"name": "one", "parameters": {**SMALL, "num_samples": 0, "model": tiny[0], "lora_r": [4], "max_steps": 40, "eval_steps": 2, "save_strategy": "steps", "save_steps": 2,
                                                      "report_to": "[]", "output_dir": str(tmp_path)}})
    folder, (point,) = open_folder(asked), list_points(asked)
    trial = TrialRun(folder, point)
    trial.start()
    assert trial.next_report()["step"] == 2
    (folder / "stop").touch()
    assert trial.next_report()["ended"] and trial.process.poll() is not None
    assert (trial.state["status"], trial.record()["status"], trial.record()["error"]) == (
        "interrupted", "interrupted", "the sweep was interrupted"
    )
    (folder / "stop").unlink()
    again = TrialRun(folder, point)
    again.start()
    wait_for(lambda: again.record().get("resumed"), "the run to go on")
    again.process.kill()
    again.process.wait()
    with pytest.raises(RuntimeError, match="status -9"):
        while "ended" not in again.next_report():
            pass
    last = TrialRun(folder, point)
    last.start()
    reports = [last.next_report()]
    while "ended" not in reports[-1]:
        reports.append(last.next_report())
    steps = [report["step"] for report in reports]
    assert steps == sorted(steps) and steps[-1] == 40 and last.state["status"] == "finished" and last.state["starts"] == 3
    assert last.run == trial.run and len(last.record()["resumed"]) == 2
    unchanged = TrialRun(folder, point)
    unchanged.start()
    assert unchanged.process is None and unchanged.state["starts"] == 3
