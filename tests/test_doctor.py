"""`llmlab doctor`: what it says of a machine that is well, and of machines on which something is broken."""
import json
import shutil
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner

from llmlab.commands import doctor
from llmlab.commands.cli import main


@pytest.fixture
def untried(monkeypatch):
    """Leave out the tiny trainings, which take half a minute and are tried by one test alone."""
    monkeypatch.setitem(doctor.CHECKS, "training", lambda: iter([doctor.Finding("tree", "ok", "not tried")]))


def call(*words):
    done = CliRunner().invoke(main, ["doctor", *words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done


def findings(check):
    return {finding.name: finding for finding in check()}


def test_each_way_is_trained_here():
    found = findings(doctor.check_training)
    assert set(found) == set(doctor.WAYS)
    assert {finding.verdict for finding in found.values()} == {"ok"}, found


def test_a_report_is_read_by_programs_and_knows_no_home(untried, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    report = json.loads(call("--json").stdout)
    assert {"python", "packages", "device", "disk", "cache", "notebooks", "hub", "mlflow", "tree"} <= {
        each["name"] for each in report["findings"]
    }
    assert str(tmp_path) not in json.dumps(report) and "~" in json.dumps(report)
    assert {each["verdict"] for each in report["findings"]} <= set(doctor.VERDICTS)
    assert report["ok"] == all(each["verdict"] != "FAILS" for each in report["findings"])


def test_to_be_offline_is_no_fault(untried, monkeypatch):
    done = call()
    assert "offline, by HF_HUB_OFFLINE" in done.output and "FAILS  hub" not in done.output

    def unreachable():
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_session", unreachable)
    assert findings(doctor.check_hub)["hub"].verdict == "note"


def broken_package(monkeypatch):
    version = metadata.version

    def without(name):
        if name == "peft":
            raise metadata.PackageNotFoundError(name)
        return "0.0.1" if name == "transformers" else version(name)

    monkeypatch.setattr(metadata, "version", without)
    return "packages", ["peft is not installed", "transformers 0.0.1 is not"]


def full_disk(monkeypatch):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(2**40, 2**40, 2**20))
    return "disk", ["0.0 GiB free"]


def foreign_kernel(monkeypatch):
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager

    monkeypatch.setattr(
        KernelSpecManager, "get_kernel_spec", lambda self, name: KernelSpec(argv=["/opt/other/bin/python"])
    )
    return "notebooks", ["/opt/other/bin/python", "ipykernel install"]


def no_kernel(monkeypatch):
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    def missing(self, name):
        raise NoSuchKernel(name)

    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", missing)
    return "notebooks", ["missing", "ipykernel install"]


def dead_server(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:sesame-1234@127.0.0.1:9")
    return "mlflow", ["127.0.0.1:9"]


def no_torch(monkeypatch):
    def missing():
        raise ImportError("libcudart.so.13: cannot open shared object file")
        yield

    monkeypatch.setitem(doctor.CHECKS, "device", missing)
    return "device", ["cannot be checked, ImportError: libcudart.so.13"]


@pytest.mark.parametrize("break_it", [broken_package, full_disk, foreign_kernel, no_kernel, dead_server, no_torch])
def test_what_is_broken_is_named_and_the_rest_is_looked_at(untried, monkeypatch, break_it):
    name, words = break_it(monkeypatch)
    done = call()
    failed = [line for line in done.output.splitlines() if line.startswith("FAILS")]
    assert done.exit_code == 1 and failed and all(line.split()[1] == name for line in failed), failed
    assert all(any(word in line for line in failed) for word in words)
    assert "sesame" not in done.output
    assert "tree" in done.output, "the checks after it"


def wrong_attention(monkeypatch):
    monkeypatch.setattr(
        doctor, "try_training", lambda folder, **settings: [2.5, 2.0 + 0.1 * (settings.get("batching") == "packed")]
    )
    return {"packed"}


def no_kernels_for_4_bit(monkeypatch):
    def try_training(folder, **settings):
        if "load_in_4bit" in settings:
            raise RuntimeError("no kernel image is available for execution on the device")
        return [2.5, 2.0]

    monkeypatch.setattr(doctor, "try_training", try_training)
    return {"4 bit"}


def no_gradients(monkeypatch):
    def try_training(folder, **settings):
        raise OSError()

    monkeypatch.setattr(doctor, "try_training", try_training)
    return set(doctor.WAYS)


@pytest.mark.parametrize("break_it", [wrong_attention, no_kernels_for_4_bit, no_gradients])
def test_a_way_that_does_not_work_fails_alone(monkeypatch, break_it):
    expected = break_it(monkeypatch)
    assert {name for name, finding in findings(doctor.check_training).items() if finding.verdict == "FAILS"} == expected


def test_nothing_is_left_behind(untried, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    call()
    assert not [*Path(tmp_path).iterdir()]
