"""The cache of prepared sets: cleared of what is not used, never of what is."""
import os
import time
import warnings

import pytest

from llmlab.tokens import encode as packing
from llmlab.common.files import clear_unused
from llmlab.tokens.encode import encode_rows, prepared_cache
from llmlab.tokens.prompts import PROMPTS
from llmlab.models.testing import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def prepare(cache, number):
    """Prepare a small set, or read it from the cache."""
    row = {
        "question": f"{number} 더하기 1은?", "input": "", "context": "", "system": "", "history": [],
        "answer": f"{number + 1}입니다."
    }
    return encode_rows([row], PROMPTS["lab"], TOKENIZER, 512, cache_dir=cache)


def text(encoded):
    """Return what the one example of a set says."""
    return TOKENIZER.decode(encoded.examples[0].input_ids)


def age(folder, days):
    """Make everything in a cache as if it had last been used so many days ago."""
    for file in folder.iterdir():
        os.utime(file, (time.time() - days * 86400,) * 2)


def sets(folder):
    """Name the sets in a cache, each of which has its account."""
    assert {path.stem for path in folder.glob("*.json")} == {path.stem for path in folder.glob("*.arrow")}
    return {path.stem for path in folder.glob("*.arrow")}


def test_reading_is_using_and_writing_clears(tmp_path):
    """A set that is read stays when another is written; one that was not read for long goes."""
    prepare(tmp_path, 0)
    folder = prepared_cache(tmp_path)
    first = sets(folder)
    age(folder, 365)
    assert prepare(tmp_path, 0).tokens.from_cache
    prepare(tmp_path, 1)
    assert first < sets(folder)
    age(folder, 365)
    prepare(tmp_path, 2)
    assert len(sets(folder)) == 1 and not sets(folder) & first


def test_set_is_not_cleared_while_it_is_read(tmp_path, monkeypatch):
    """A process that clears the cache just when another has begun to read a set leaves that set alone."""
    prepare(tmp_path, 0), prepare(tmp_path, 1)
    folder, cleared, digest = prepared_cache(tmp_path), [], packing.file_digest
    age(folder, 10)
    monkeypatch.setattr(
        packing, "file_digest", lambda path: (cleared.extend(clear_unused(folder, max_bytes=0)), digest(path))[1]
    )
    with warnings.catch_warnings(action="error"):
        encoded = prepare(tmp_path, 0)
    assert encoded.tokens.from_cache and len(cleared) == 1 and len(sets(folder)) == 1 and "0 더하기" in text(encoded)


@pytest.mark.skipif(os.name == "nt", reason="Windows deletes no file that is open: there it stays")
def test_what_is_open_outlives_its_name(tmp_path):
    """A run that has been reading for longer than anything is kept goes on reading."""
    encoded = prepare(tmp_path, 0)
    folder = prepared_cache(tmp_path)
    age(folder, 365)
    assert len(clear_unused(folder)) == 1 and not sets(folder)
    assert "0 더하기" in text(encoded)


def test_set_without_its_account_is_prepared_anew(tmp_path):
    """What another process has not finished writing, or was killed while writing, is no set yet; that is nothing to warn of."""
    prepare(tmp_path, 0)
    next(prepared_cache(tmp_path).glob("*.json")).unlink()
    with warnings.catch_warnings(action="error"):
        encoded = prepare(tmp_path, 0)
    assert not encoded.tokens.from_cache and "0 더하기" in text(encoded)
