"""A file is read only if its sidecar vouches for it; whatever else stands there is refused by name."""

import json
import os

import pytest

from quietreasoning.config import UserError
from quietreasoning.memory.sidecar import MAX_BYTES, check, replacing, seal, sidecar_of

AGAIN = "build it anew with quiet index knn"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "knn.index"
    with replacing(path) as temporary:
        temporary.write_bytes(bytes(range(256)) * 8)
    seal(path, kind="knn-index", dim=16, metric="l2", counts={"entries": 9}, made_by={"factory": "Flat"})
    return path


def refused(path, **wanted):
    with pytest.raises(UserError) as caught:
        check(path, again=AGAIN, **{"kind": "knn-index"} | wanted)
    said = str(caught.value)
    assert path.name in said and AGAIN in said and "\n" not in said
    return said


def test_what_was_sealed_is_what_is_read(file):
    found = check(file, kind="knn-index", again=AGAIN, dim=16, metric="l2")
    assert found.counts == {"entries": 9} and found.made_by == {"factory": "Flat"} and found.bytes == 2048
    assert sorted(p.name for p in file.parent.iterdir()) == ["knn.index", "knn.index.json"]
    found.agree(file, AGAIN, entries=9, dim=16, metric="l2")
    for other in ({"entries": 8, "dim": 16}, {"entries": 9, "dim": 17}):
        with pytest.raises(UserError, match=AGAIN):
            found.agree(file, AGAIN, **other)


def test_a_file_that_is_not_the_one_is_refused(file):
    assert "kind" in refused(file, kind="knn-keys")
    assert "dim is 16" in refused(file, dim=8) and "metric is l2" in refused(file, metric="ip")
    held = file.read_bytes()
    for place in (0, 1000, 2047):
        file.write_bytes(held[:place] + bytes([held[place] ^ 1]) + held[place + 1 :])
        assert "damaged" in refused(file)
    for cut in (held[:-1], held[:1024], b"", held + b"x"):
        file.write_bytes(cut)
        assert "cut off" in refused(file)
    file.unlink()
    assert "missing" in refused(file)


HOSTILE = {
    "format": (2, True, "1", None),
    "file": ("../knn.index", "/etc/passwd", "other.index", 3, None),
    "kind": ("", 3, "k" * 65),
    "sha256": ("", "A" * 64, "0" * 63, ["0"] * 64, None),
    "bytes": (-1, 1.5, 10**20, "2048", True),
    "dim": (0, -16, 16.0, 10**9, True, None),
    "metric": ("cosine", [], {}, None),
    "counts": ([], {"entries": -1}, {"entries": 1e3}, {"entries": True}, {"entries": 10**30}),
    "made_by": ([], "me", None),
}


def test_a_hostile_sidecar_is_refused_field_by_field(file):
    beside = sidecar_of(file)
    whole = json.loads(beside.read_text())
    for name, values in HOSTILE.items():
        for value in values:
            beside.write_text(json.dumps(whole | {name: value}))
            assert name in refused(file)
        beside.write_text(json.dumps({key: value for key, value in whole.items() if key != name}))
        assert "fields" in refused(file)
    beside.write_text(json.dumps(whole | {"path": "../secret"}))
    assert "fields" in refused(file)


def test_a_sidecar_that_is_no_json_is_refused(file):
    beside = sidecar_of(file)
    text = beside.read_text()
    torn = ("", "[]", "null", text[:-9], "[" * 50_000, text.replace("16", "NaN"), '{"dim": 1, "dim": 2}')
    for bad in torn:
        beside.write_text(bad)
        refused(file)
    beside.write_bytes(b"\xff\xfe" + text.encode())
    refused(file)
    beside.write_text(text + " " * MAX_BYTES)
    assert f"at most {MAX_BYTES}" in refused(file)
    beside.unlink()
    assert "missing" in refused(file)
    os.mkfifo(beside)  # opening it would wait forever
    assert "regular" in refused(file)


def test_a_failure_leaves_what_stood_there(file):
    held = file.read_bytes()
    with pytest.raises(ZeroDivisionError), replacing(file) as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert file.read_bytes() == held and len(list(file.parent.iterdir())) == 2
    with replacing(file) as temporary:  # and where the process dies before the new sidecar
        temporary.write_bytes(held[::-1])
    assert "damaged" in refused(file)
    with pytest.raises(ValueError, match="a sidecar of"):
        seal(file, kind="k", dim=1, metric="l2", counts={}, made_by={"text": "x" * MAX_BYTES})
