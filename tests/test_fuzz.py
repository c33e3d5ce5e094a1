"""Whatever people write, the lab says what became of it: a short run of the fuzzer (tools/fuzz.py is the long one)."""
import tempfile
from pathlib import Path

import fuzzing
import pytest
from hypothesis import HealthCheck, given, settings

EXAMPLES = 60  # of each subject; always the same ones


@pytest.mark.parametrize("name", fuzzing.SUBJECTS)
def test_whatever_is_written_is_used_or_refused(name, tmp_path):
    subject = fuzzing.SUBJECTS[name]

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(drawn=subject.inputs)
    def draw(drawn):
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            subject.check(drawn, Path(folder))

    draw()


def test_a_wrong_account_would_be_found(tmp_path, monkeypatch):
    "The check itself can fail: a loader that loses a row without a word is caught."
    load = fuzzing.load_data

    def lose(path, **options):
        data = load(path, **options)
        data.train = data.train.select(range(len(data.train) - 1))
        return data

    monkeypatch.setattr(fuzzing, "load_data", lose)
    rows = "\n".join(f'{{"question": "{number}?", "answer": "{number}"}}' for number in range(12))
    with pytest.raises(AssertionError):
        fuzzing.check_file((".jsonl", rows.encode(), {}), tmp_path)
