"""A compressor comes back as it was saved, and only to the states it was made of."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from quietreasoning.backbone.compressor_file import Origin, load_compressor, read_origin, save_compressor
from quietreasoning.config import UserError
from quietreasoning.nn.compressor import metric_pca, pca, regression
from quietreasoning.nn.moments import Moments

WIDTH = 12
IDENTITY = {"path": "lab/model-3b", "revision": "abc123"}
FOLDER = {"path": "/models/one", "revision": "", "sha256": "aa"}
ORIGIN = Origin(IDENTITY, layer=4, hidden_size=WIDTH, centred=True, tokens=500, skipped=1)
WANTED = {"identity": IDENTITY, "layer": 4, "hidden_size": WIDTH}


@pytest.fixture(scope="module")
def moments():
    found = Moments(WIDTH)
    found.update(
        torch.randn(500, WIDTH, generator=torch.Generator().manual_seed(0)) @ torch.randn(WIDTH, WIDTH)
    )
    return found


@pytest.fixture
def saved(moments, tmp_path):
    return save_compressor(tmp_path / "made" / "one.safetensors", pca(moments, 6), ORIGIN)


@pytest.mark.parametrize("kind", ["pca", "metric", "regression"])
def test_it_comes_back_to_the_bit_with_where_it_came_from(moments, tmp_path, kind):
    solve = {
        "pca": lambda: pca(moments, 6),
        "metric": lambda: metric_pca(moments, torch.eye(WIDTH), 6),
        "regression": lambda: regression(moments, 8, 4),
    }
    made, origin = (
        solve[kind](),
        replace(ORIGIN, kind=kind, layer="pre_norm", hidden_size=solve[kind]().hidden_size),
    )
    path = save_compressor(tmp_path / "one.safetensors", made, origin)
    loaded = load_compressor(path, identity=IDENTITY, layer="pre_norm", hidden_size=made.hidden_size)
    assert read_origin(path) == origin
    for name, wanted in made.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], wanted)
    assert [file.name for file in tmp_path.iterdir()] == ["one.safetensors"]


def test_a_narrower_one_is_the_prefix(saved, moments):
    for name, wanted in pca(moments, 3).state_dict().items():
        assert torch.equal(load_compressor(saved, **WANTED, width=3).state_dict()[name], wanted)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer": 5}, "was made of layer 4, not 5. Make one of these states"),
        ({"layer": "last"}, "layer 4, not 'last'"),
        ({"hidden_size": 24}, "states of width 12, not 24"),
        ({"identity": IDENTITY | {"path": "lab/other"}}, "model lab/model-3b@abc123, not lab/other@abc123"),
        ({"identity": IDENTITY | {"revision": "def456"}}, "not lab/model-3b@def456"),
        ({"identity": {"scratch": "{}"}}, "model lab/model-3b@abc123, not {}"),
        ({"layer": 5, "hidden_size": 24}, "layer 4, not 5; states of width 12, not 24"),
        ({"width": 7}, "holds 6 directions, width=7 was asked for. Choose 1 to 6"),
        ({"width": 0}, "Choose 1 to 6"),
    ],
)
def test_other_states_are_refused_with_the_cure(saved, change, words):
    with pytest.raises(UserError) as refusal:
        load_compressor(saved, **(WANTED | change))
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


def test_equal_weights_are_one_model_wherever_they_stand(moments, tmp_path):
    path = save_compressor(tmp_path / "one.safetensors", pca(moments), replace(ORIGIN, identity=FOLDER))
    load_compressor(path, **(WANTED | {"identity": FOLDER | {"path": "/moved"}}))
    with pytest.raises(UserError, match="whose weights are not those of /models/one"):
        load_compressor(path, **(WANTED | {"identity": FOLDER | {"sha256": "bb"}}))


def test_a_model_that_names_no_revision_is_compared_by_its_name(saved):
    load_compressor(saved, **(WANTED | {"identity": IDENTITY | {"revision": ""}}))
    with pytest.raises(UserError, match="not lab/other"):
        load_compressor(saved, **(WANTED | {"identity": {"path": "lab/other", "revision": ""}}))


def test_a_changed_byte_is_found(saved):
    content = bytearray(saved.read_bytes())
    content[-5] ^= 1
    saved.write_bytes(content)
    with pytest.raises(UserError, match="has changed since it was written"):
        load_compressor(saved, **WANTED)


def test_what_is_no_compressor_is_refused_and_nothing_is_unpickled(saved, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    pickled, cut, foreign, newer = (tmp_path / name for name in ("best.pt", "cut", "foreign", "newer"))
    torch.save({"weight": Trap()}, pickled)
    (tmp_path / "sprung").unlink(missing_ok=True)
    cut.write_bytes(saved.read_bytes()[:-20])
    save_file({"weight": torch.ones(2)}, foreign)
    with safe_open(saved, "pt") as file:
        header = json.loads(file.metadata()["compressor"]) | {"format": 2}
    save_file({"weight": torch.ones(2)}, newer, {"compressor": json.dumps(header)})
    bare = tmp_path / "bare"
    save_file({"weight": torch.ones(2)}, bare, {"compressor": json.dumps({"format": 1})})
    for path, words in (
        (bare, "or damaged"),
        (pickled, r"Pickled files \(.pt\) are not loaded"),
        (cut, "no safetensors, or damaged"),
        (foreign, "is no compressor"),
        (newer, "has format 2; it must be 1"),
        (tmp_path / "absent", "there is no such file"),
        (tmp_path, "compressor"),
    ):
        with pytest.raises(UserError, match=words):
            load_compressor(path, **WANTED)
    assert not (tmp_path / "sprung").exists()


def test_a_write_that_fails_leaves_the_file_before_it(saved, moments):
    before = saved.read_bytes()
    (saved.parent / f".tmp-{saved.name}").mkdir()  # stands where the new file would be written
    with pytest.raises(UserError, match=r"could not be written.*give another path"):
        save_compressor(saved, pca(moments, 2), ORIGIN)
    assert saved.read_bytes() == before
    load_compressor(saved, **WANTED)


def test_saving_again_replaces(saved, moments):
    save_compressor(saved, pca(moments, 2), ORIGIN)
    assert load_compressor(saved, **WANTED).width == 2
