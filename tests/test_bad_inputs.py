"""Every bad input ends in one clear message, before anything is trained: the tables of tests/bad_inputs/, all of them."""
import importlib
import pkgutil
import re
import signal

import pytest

import bad_inputs
from llmlab import LabError, make_config, make_trainer, prepare
from llmlab.models.testing import save_tiny_checkpoint
from llmlab.runs.parameters import check_names

CASES = []
for module in pkgutil.iter_modules(bad_inputs.__path__):
    for case in importlib.import_module(f"bad_inputs.{module.name}").CASES:
        CASES.append(pytest.param(case, id=f"{module.name}: {case.name}"))
LONGEST_MESSAGE = 1500  # characters
SECONDS = 60  # a case that hangs is ended


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    "A tiny model and a few rows, for cases whose fault lies elsewhere."
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_checkpoint(folder / "model")
    rows = [f'{{"question": "{number} 더하기 1은?", "answer": "{number + 1}입니다."}}' for number in range(12)]
    (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return {"model": str(folder / "model"), "dataset": str(folder / "rows.jsonl"), "max_steps": 1, "report_to": []}


def begin(settings):
    "Do all that a run does before its first step."
    config = make_config(settings)
    check_names(config)
    experiment = prepare(config)
    model = experiment.build_model()
    train, held_out = experiment.train, experiment.held_out
    make_trainer(
        experiment.config, model, experiment.tokenizer, getattr(train, "examples", train), held_out.examples, "nowhere")


@pytest.fixture
def alarm():
    def ring(number, frame):
        raise TimeoutError(f"no end within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_the_settings_around_the_cases_are_good(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begin(tiny)


@pytest.mark.parametrize("case", CASES)
def test_bad_input_ends_in_one_message(case, tiny, tmp_path, monkeypatch, alarm):
    monkeypatch.chdir(tmp_path)
    settings = case.settings(tmp_path) if callable(case.settings) else case.settings
    with pytest.raises(LabError) as caught:
        begin({**tiny, **settings})
    message = str(caught.value)
    for expression in [case.says] if isinstance(case.says, str) else case.says:
        assert re.search(expression, message), message
    assert len(message) <= LONGEST_MESSAGE
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", message), "control characters"
