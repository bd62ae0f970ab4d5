"""`quiet index`: every command end to end on tiny files, bad input refused, defaults as promised."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from quietreasoning.cli.main import app
from quietreasoning.config import UserError
from quietreasoning.memory.episodic_settings import EpisodicSettings
from quietreasoning.memory.knn_index import KNNIndex, fitting
from quietreasoning.memory.made import open_made
from quietreasoning.memory.sidecar import check
from quietreasoning.tools import build_indices
from quietreasoning.workspace import WorkspaceConfig, WorkspaceForCausalLM
from quietreasoning.workspace.table_file import load_table, scale_of, write_table

N, DIM = 600, 8


def quiet(*arguments):
    """Exit code, figures and complaints; a refusal is one line and no traceback."""
    done = CliRunner().invoke(app, ["index", *map(str, arguments), "--json", "-"])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, json.loads(done.stdout) if done.exit_code == 0 else None, done.stderr


@pytest.fixture
def arrays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    keys = draw.normal(size=(N, DIM)).astype(np.float32)
    np.save("keys.npy", keys)
    np.save("values.npy", draw.integers(0, 50, N))
    np.save("queries.npy", keys[:40] + 0.01)
    return keys


KNN = ("knn", "--keys", "keys.npy", "--values", "values.npy", "--output", "knn.index", "--dim", DIM)
VERIFY = ("verify-knn", "--index", "knn.index", "--queries", "queries.npy")


def refused(*words, says):
    code, _, said = quiet(*words)
    assert code == 2 and says in " ".join(said.split()), (code, said)


@pytest.mark.parametrize(
    ("command", "defaults"),
    [
        ("pkm", {"slots": 4_000_000, "value_dim": 256}),
        ("knn", {"factory": "IVF4096,PQ32"}),
        ("episodic", {"backend": "faiss_ivfpq", "ttl_days": 30.0}),
        ("verify-knn", {"k": 10}),
        ("consolidate", {"min_hits": 20}),
    ],
)
def test_defaults_are_the_promised_ones(command, defaults):
    parameters = {p.name: p for p in typer.main.get_command(app).commands["index"].commands[command].params}
    assert {name: parameters[name].default for name in defaults} == defaults


def test_knn_is_built_checked_and_found_again(arrays, tmp_path):
    code, figures, said = quiet(*KNN, "--factory", "IVF64,PQ4")
    assert code == 0 and (figures["factory"], figures["entries"]) == ("IVF8,Flat", N)
    assert "cannot train IVF64,PQ4; built IVF8,Flat" in said and "adding" in said  # a bar, and aloud
    code, figures, _ = quiet(*VERIFY)
    assert code == 0 and figures["recall"] == 1.0 and figures["nprobe"] == 8 and figures["k"] == 10
    _, one, _ = quiet(*KNN, "--factory", "IVF8,Flat", "--nprobe", 1)
    code, poor, _ = quiet(*VERIFY)
    assert one["nprobe"] == 1 and 0.2 < poor["recall"] < 1  # a real share: a cell of eight is looked into
    assert poor["reranked_recall"] == poor["recall"]  # more candidates of the same cell
    assert figures["reranked_recall"] == 1.0 and figures["candidates"] == 8
    index = KNNIndex.open(tmp_path / "knn.index", DIM)
    distances, ids = index.search(arrays[:3], 1)
    assert ids[:, 0].tolist() == [0, 1, 2] and np.allclose(distances, 0, atol=1e-5)
    code, all_found, said = quiet(*VERIFY, "--k", 10 * N)
    assert code == 0 and all_found["k"] == N and f"k is {N}" in said


def test_what_is_found_is_what_a_naive_search_finds(arrays, tmp_path):
    quiet(*KNN, "--factory", "Flat")
    queries = np.load("queries.npy")
    gaps = ((queries[:, None] - arrays[None]) ** 2).sum(-1)
    distances, ids = KNNIndex.open(tmp_path / "knn.index").search(queries, 5)
    np.testing.assert_array_equal(ids, np.argsort(gaps, 1)[:, :5])
    np.testing.assert_allclose(distances, np.sort(gaps, 1)[:, :5], rtol=1e-3, atol=1e-5)


def test_factories_shrink_by_what_they_can_learn_from():
    assert fitting("IVF4096,PQ32", 159_744) == "IVF4096,PQ32"
    assert fitting("IVF4096,PQ32", 159_743) == "IVF2048,PQ32"
    assert fitting("IVF4096,PQ32", 9_983) == "IVF128,Flat"
    assert fitting("IVF4096,PQ32", 20) == "Flat" and fitting("HNSW32", 20) == "HNSW32"


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_keys_are_found_where_the_index_says_and_must_be_the_same(arrays, tmp_path):
    quiet(*KNN, "--factory", "Flat")
    (tmp_path / "moved").mkdir()
    for name in ("keys.npy", "queries.npy", *(path.name for path in tmp_path.glob("knn.index*"))):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    moved = ("verify-knn", "--index", "moved/knn.index", "--queries", "moved/queries.npy")
    assert quiet(*moved)[1]["recall"] == 1  # index and keys have moved together
    (tmp_path / "moved" / "keys.npy").rename(tmp_path / "keys.npy")
    refused(*moved, says="moved/keys.npy, which is gone. Say where it is now: --keys")
    assert quiet(*moved, "--keys", "keys.npy")[0] == 0
    np.save("moved/keys.npy", arrays + 1)
    refused(*moved, says="made of other keys")
    away = ("--keys", tmp_path / "keys.npy", *KNN[3:5], "--output", "far/i", *KNN[7:], "--factory", "Flat")
    assert quiet("knn", *away)[0] == 0  # named in full and not beneath: kept in full
    (tmp_path / "far").rename(tmp_path / "moved" / "farther")
    assert quiet("verify-knn", "--index", "moved/farther/i", *moved[3:])[0] == 0


def test_a_rebuild_that_fails_or_is_killed_never_pairs_an_index_with_foreign_values(arrays, tmp_path):
    built = ("--output", "a/knn.index", *KNN[7:], "--factory", "IVF8,Flat")
    verify = ("verify-knn", "--index", "a/knn.index", *VERIFY[3:])
    assert quiet(*KNN[:5], *built)[0] == 0
    old = contents("a")
    np.save("bad.npy", np.where(np.arange(N)[:, None] == 7, np.nan, arrays).astype(np.float32))
    np.save("others.npy", np.arange(N))
    refused(
        "knn", "--keys", "bad.npy", "--values", "others.npy", *built, says="row 7 holds what is no finite"
    )
    np.save("bad.npy", np.where(np.arange(N)[:, None] == 7, 1e30, arrays).astype(np.float32))
    refused("knn", "--keys", "bad.npy", "--values", "others.npy", *built, says="row 7 holds a number that is")
    assert contents("a") == old and quiet(*verify)[0] == 0
    assert quiet(*KNN[:3], "--values", "others.npy", *built)[0] == 0
    new = contents("a")
    order = ("knn.index", "knn.index.json", "knn.index.values.npy", "knn.index.values.npy.json")
    changed = [number for number, name in enumerate(order) if old[name] != new[name]]
    assert changed == [1, 2, 3]  # the same keys, other values
    for killed in range(1, 4):  # so many of the four were in place
        for number, name in enumerate(order):
            (tmp_path / "a" / name).write_bytes((new if number < killed else old)[name])
        if killed > 1:
            refused(*verify, says="build it anew with quiet index knn")
        else:
            assert quiet(*verify)[0] == 0
    (tmp_path / "a" / order[2]).unlink()
    refused(*verify, says="values.npy is missing")


def test_bad_input_is_refused_by_name(arrays, tmp_path):
    refused(*KNN, says="IVF4096,PQ8,")  # the default's 32 bytes do not divide 8
    refused(*KNN, "--factory", "Flat", "--nprobe", 3, says="--nprobe 3")
    refused(*KNN[:5], "--output", tmp_path, *KNN[7:], "--factory", "Flat", says="is a folder")
    refused(
        *KNN[:5], "--output", "keys.npy", *KNN[7:], "--factory", "Flat", says="replace the file of --keys"
    )
    refused(
        *KNN[:5], "--output", "keys.npy/i", *KNN[7:], "--factory", "Flat", says="is a file; name a folder"
    )
    refused(*KNN[:-1], DIM + 1, "--factory", "Flat", says="dim")
    refused(*KNN, "--factory", "PQ3", says="--factory PQ3")
    refused(*KNN, "--factory", "__import__", says="--factory __import__")
    np.save("short.npy", np.arange(N - 1))
    refused(*KNN[:3], "--values", "short.npy", *KNN[5:], "--factory", "Flat", says=f"{N - 1} entries")
    np.save("floats.npy", np.zeros(N))
    refused(*KNN[:3], "--values", "floats.npy", *KNN[5:], "--factory", "Flat", says="float64 (600,)")
    np.save("negative.npy", np.full(N, -1))
    refused(*KNN[:3], "--values", "negative.npy", *KNN[5:], "--factory", "Flat", says="give token ids")
    whole = (tmp_path / "keys.npy").read_bytes()
    (tmp_path / "keys.npy").write_bytes(whole[:-5])
    refused(*KNN, "--factory", "Flat", says="no whole .npy file")
    np.save("keys.npy", arrays.astype(np.float64))
    refused(*KNN, "--factory", "Flat", says="float64 (600, 8)")
    np.save("keys.npy", np.where(np.arange(N)[:, None] == 7, np.nan, arrays).astype(np.float32))
    refused(*KNN, "--factory", "Flat", says="row 7")
    np.save("keys.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    refused(*KNN, "--factory", "Flat", says="no whole .npy file")
    assert not (tmp_path / "knn.index").exists()
    (tmp_path / "keys.npy").write_bytes(whole)
    quiet(*KNN, "--factory", "Flat")
    np.save("other.npy", arrays + 1)
    refused(*VERIFY, "--keys", "other.npy", says="made of other keys")
    refused(*VERIFY[:3], "--queries", "absent.npy", says="no such file")
    index = tmp_path / "knn.index"
    index.write_bytes(index.read_bytes()[:-1] + b"\7")
    refused(*VERIFY, says="knn.index is damaged")
    (tmp_path / "knn.index.json").unlink()
    refused(*VERIFY, says="quiet index knn")


def test_a_table_of_a_trained_model_serves_as_the_model_does(tmp_path):
    torch.manual_seed(0)
    model = WorkspaceForCausalLM(WorkspaceConfig.preset("tiny", pkm_slots=64)).eval()
    model.model.set_features(("workspace", "pkm"))
    table = model.model.table
    with torch.no_grad():
        table.values.normal_()
        for reader in model.model.memory.values():
            reader.out.weight.normal_(std=0.3)
    path, ids = tmp_path / "pkm.npy", torch.arange(20)[None]
    write_table(path, 64, 32, table)
    table.quantize_()
    with torch.no_grad():
        want = model(ids).logits
        table.values_int8, table.scale = torch.zeros_like(table.values_int8), torch.zeros_like(table.scale)
        assert not torch.equal(model(ids).logits, want)
        load_table(model, path)
        assert torch.equal(model(ids).logits, want)
    held = scale_of(path).read_bytes()
    scale_of(path).write_bytes(held[:-1] + b"\1")
    with pytest.raises(UserError, match="damaged"):
        load_table(model, path)
    scale_of(path).write_bytes(held)
    table.keys.data.add_(0.1)
    with pytest.raises(UserError, match="other sub-keys"):
        load_table(model, path)


def test_pkm_writes_a_silent_table_and_refuses_what_is_no_square(arrays, tmp_path):
    code, figures, _ = quiet("pkm", "--path", "pkm.npy", "--slots", 64, "--value-dim", 32)
    values, scale = np.load("pkm.npy"), np.load("pkm.scale.npy")
    assert code == 0 and values.shape == (64, 32) and values.dtype == np.int8 and not values.any()
    assert scale.shape == (64, 1) and scale.dtype == np.float32 and figures["slots"] == 64
    assert check(tmp_path / "pkm.npy", kind="pkm-values", again="", dim=32).counts == {"entries": 64}
    code, _, said = quiet("pkm", "--path", "pkm.npy", "--slots", 65)
    assert code == 2 and "64 or 81" in said
    other = WorkspaceForCausalLM(WorkspaceConfig.preset("tiny", pkm_slots=81))
    with pytest.raises(UserError, match="81 slots of 32"):
        load_table(other, tmp_path / "pkm.npy")
    assert quiet("pkm", "--path", "pkm.npy", "--slots", 64, "--run", "absent")[0] == 2


def test_episodic_writes_a_store_that_answers(arrays, tmp_path):
    rows = [{"text": f"event {i}", "source": "book"} for i in range(30)]
    with_vectors = [row | {"vector": arrays[i].tolist(), "created": 1.0} for i, row in enumerate(rows)]
    for name, some in (("plain", rows), ("vectors", with_vectors)):
        text = "".join(json.dumps(row) + "\n" for row in some)
        (tmp_path / f"{name}.jsonl").write_text(text)
    np.save("thirty.npy", arrays[:30])
    made = ("episodic", "--input", "plain.jsonl", "--output", "store", "--encoder", "m:last")
    flat = ("--vectors", "thirty.npy", "--backend", "flat", "--ttl-days", 90)
    code, figures, _ = quiet(*made, *flat)
    assert code == 0 and (figures["added"], figures["entries"]) == (30, 30)
    again = quiet(*made, *flat)[1]
    assert (again["added"], again["renewed"], again["entries"]) == (0, 30, 30)
    with open_made(tmp_path / "store") as store:  # as it was made, not by default
        assert store.settings == EpisodicSettings(backend="flat", ttl_days=90)
        assert store.query(arrays[7], 1)[0][0].entry.text == "event 7"
    old = quiet("episodic", "--input", "vectors.jsonl", "--output", "old", *made[5:], "--backend", "flat")[1]
    assert (old["expired"], old["entries"]) == (30, 0)  # stamped in 1970
    for words, says in (
        ((*made[:-1], "other:last", *flat), "other:last"),
        (made, "plain.jsonl:1"),
        ((*made, "--vectors", "keys.npy"), f"{N} vectors for 30 events"),
        ((*made, *flat[:2], "--backend", "fais"), "--backend fais"),
        ((*made, *flat[:4], "--ttl-days", 0), "--ttl-days 0"),
    ):
        code, _, said = quiet(*words)
        assert code == 2 and says in " ".join(said.split()), said
    (tmp_path / "store" / "episodic.json").write_text("{}")
    with pytest.raises(UserError, match=r"does not say how this store was made.*quiet index episodic"):
        open_made(tmp_path / "store")
    (tmp_path / "plain.jsonl").write_text('{"text": "a"}\n{"text": 3}\n')
    assert "plain.jsonl:2" in quiet(*made, *flat)[2]


EVENTS = ("episodic", "--input", "ev.jsonl", "--output", "store", "--encoder", "m:last")


def events(*rows):
    Path("ev.jsonl").write_text("".join(json.dumps({"text": "a"} | row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"vector": [0] * DIM}, "its vector is zero"),
        ({"vector": [1e300] * DIM}, "no finite number in float32"),
        ({"vector": [10**400] * DIM}, "cannot be"),
        ({"vector": [1] * DIM, "created": 1e30}, "created=1e+30 is yet to come"),
    ],
)
def test_an_event_that_cannot_be_is_told_by_its_line_and_nothing_is_made(arrays, tmp_path, row, says):
    events({"vector": arrays[0].tolist()}, row)
    refused(*EVENTS, says=f"ev.jsonl:2: {'vector=' if says == 'cannot be' else ''}")
    refused(*EVENTS, says=says)
    assert not (tmp_path / "store").exists()


def test_the_default_backend_fits_its_codes_to_the_width(arrays, tmp_path):
    events(*({"vector": vector.tolist(), "created": 0} for vector in arrays[:3]), {"vector": [1] * DIM})
    refused(*EVENTS[:-1], " ", says="--encoder names nothing")
    if find_spec("scann") is None:
        refused(*EVENTS, "--backend", "scann", says="needs scann")
        assert not (tmp_path / "store").exists()  # no journal that is bound to an encoder
    code, figures, said = quiet(*EVENTS)
    assert code == 0 and figures["m"] == 8 and "made with m=8" in said
    assert figures["expired_on_arrival"] == figures["expired"] == 3 and "3 of 4 events had expired" in said
    with open_made(tmp_path / "store") as store:
        assert store.settings.index.m == 8 and len(store) == 1
        store.forget(store.journal.ids())
    refused(*EVENTS[:-1], "n", says="is empty and was made for encoder=m:last")


@pytest.mark.parametrize(
    "command",
    [
        ("index", "keys", "absent", "--dataset", "chains", "--out"),
        ("index", *EVENTS[:3], "--encoder", "m", "--output"),
        ("data", "teacher", "absent", "--dataset", "chains", "--out"),
        ("data", "pairs", "absent", "--out"),
    ],
)
def test_an_output_that_is_a_file_is_refused_before_any_work(arrays, command):
    events({"vector": [1] * DIM})
    for out in ("keys.npy", "keys.npy/below"):
        done = CliRunner().invoke(app, [*command, out])
        assert done.exit_code == 2 and "keys.npy is a file; name a folder" in done.stderr, done.stderr


def test_the_first_name_is_the_same_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["build_indices", "pkm", "--path", str(tmp_path / "p.npy"), "--slots", "17"]
    )
    with pytest.raises(SystemExit) as stop:
        build_indices.run()
    assert stop.value.code == 2 and "16 or 25" in capsys.readouterr().err and not list(tmp_path.iterdir())
