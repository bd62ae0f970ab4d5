"""One dictionary in a `.pt` file: out, in and out again, and nothing pickled on the way in."""

import pytest
import torch

from quietreasoning.config import UserError
from quietreasoning.data.pairs.folder import read_rows
from quietreasoning.data.pairs.seed_layout import KEYS, export_pairs, import_pairs
from quietreasoning.data.pairs.shards import PairStates
from quietreasoning.data.tasks import TASKS

MODEL = {"path": "org/name", "sha256": "ab" * 32}


@pytest.fixture(scope="module")
def made(roll):
    return roll(layers="1,last", samples_per_problem=2, dtype="bfloat16").folder


@pytest.fixture
def held(made, tmp_path):
    export_pairs(made, tmp_path / "pairs.pt", "last")
    return torch.load(tmp_path / "pairs.pt", weights_only=True)


def test_the_dictionary_holds_the_kept_pairs_of_one_layer(made, held):
    states = PairStates(made)
    assert tuple(held) == KEYS and held["hidden_size"] == 32
    assert held["problems"] == [row["problem"] for row in states.rows]
    assert held["seq_lengths"] == [len(pre_LD) for pre_LD in held["hidden_pre"]]
    assert held["num_thinking_tokens"] == [row["num_thinking_tokens"] for row in states.rows]
    assert held["hidden_post"].shape == (len(states), 32) and held["hidden_post"].dtype == torch.bfloat16
    for row, pre_LD, post_D in zip(states.rows, held["hidden_pre"], held["hidden_post"], strict=True):
        assert torch.equal(pre_LD, states.pre(row["key"], "last"))
        assert torch.equal(post_D, states.post(row["key"], "last"))


def test_in_and_out_again_nothing_is_lost(held, tmp_path):
    count = import_pairs(tmp_path / "pairs.pt", tmp_path / "in", "last", MODEL)
    assert count == export_pairs(tmp_path / "in", tmp_path / "again.pt", "last") == len(held["problems"])
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    order = sorted(range(count), key=lambda i: [held["problems"][i], held["hidden_post"][i].tolist()])
    other = sorted(range(count), key=lambda i: [again["problems"][i], again["hidden_post"][i].tolist()])
    for i, j in zip(order, other, strict=True):
        for key in KEYS[:-1]:
            left, right = held[key][i], again[key][j]
            assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right
    assert again["hidden_size"] == 32


def test_what_came_in_knows_its_model_and_layer_and_has_no_chains(held, tmp_path):
    import_pairs(tmp_path / "pairs.pt", tmp_path / "in", 18, MODEL)
    states = PairStates(tmp_path / "in", identity=MODEL, layers=(18,))
    assert states.identity == MODEL and states.hidden_size == 32
    with pytest.raises(UserError, match="their weights differ"):
        PairStates(tmp_path / "in", identity=MODEL | {"sha256": "cd" * 32})
    with pytest.raises(UserError, match="holds states of layers 18, not last"):
        states.post(states.rows[0]["key"], "last")
    with pytest.raises(UserError, match=r"holds no chains to train on. Make pairs with quiet data pairs"):
        TASKS["pairs"](path=str(tmp_path / "in")).split("train")
    splits = {row["id"]: row["split"] for row in read_rows(tmp_path / "in")}
    assert len(splits) == len(set(held["problems"]))
    with pytest.raises(UserError, match=r"holds pairs already. Give another --out"):
        import_pairs(tmp_path / "pairs.pt", tmp_path / "in", 18, MODEL)


def test_one_split_alone_may_go_out(made, tmp_path):
    rows = PairStates(made).rows
    count = export_pairs(made, tmp_path / "train.pt", 1, "train")
    assert 0 < count == sum(row["split"] == "train" for row in rows)
    with pytest.raises(UserError, match=r"not 0. Ask for one of these"):
        export_pairs(made, tmp_path / "x.pt", 0)
    assert not (tmp_path / "x.pt").exists()


class Harmful:
    def __reduce__(self):
        return print, ("code that ran",)


@pytest.mark.parametrize("what", ["object", "text", "cut", "absent"])
def test_a_file_of_pickled_objects_or_none_at_all_is_refused(held, tmp_path, capsys, what):
    path = tmp_path / "bad.pt"
    if what == "object":
        torch.save(held | {"problems": [Harmful()]}, path)
    elif what == "text":
        path.write_text("no file of tensors")
    elif what == "cut":
        path.write_bytes((tmp_path / "pairs.pt").read_bytes()[:500])
    message = "does not exist" if what == "absent" else "holds pickled objects, which could run code"
    with pytest.raises(UserError, match=message):
        import_pairs(path, tmp_path / "in", "last", MODEL)
    assert "code that ran" not in capsys.readouterr().out and not (tmp_path / "in").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: list(held), "it is a list, no dictionary"),
        (lambda held: {k: v for k, v in held.items() if k != "problems"}, "no problems"),
        (lambda held: held | {"hidden_size": 31}, r"hidden_post is not of shape \[N, 31\]"),
        (lambda held: held | {"hidden_post": held["hidden_post"][:-1]}, "hidden_pre, .*: not a list of"),
        (lambda held: held | {"seq_lengths": [1] * len(held["problems"])}, "seq_lengths are not those"),
        (lambda held: held | {"hidden_pre": held["seq_lengths"]}, r"hidden_pre is not of shape \[L, 32\]"),
        (lambda held: held | {"problems": [1] * len(held["problems"])}, "no text"),
    ],
)
def test_another_layout_is_refused_by_name(held, tmp_path, change, message):
    torch.save(change(held), tmp_path / "other.pt")
    with pytest.raises(UserError, match=f"has another layout: .*{message}"):
        import_pairs(tmp_path / "other.pt", tmp_path / "in", "last", MODEL)


def test_a_model_that_nobody_loaded_is_known_by_its_name_and_revision(held, tmp_path):
    import_pairs(tmp_path / "pairs.pt", tmp_path / "in", "last", {"path": "org/name", "revision": ""})
    for identity in (MODEL, {"path": "org/name", "revision": "a1"}, {"path": "org/name"}):
        assert PairStates(tmp_path / "in", identity=identity).identity["path"] == "org/name"
    with pytest.raises(UserError, match="their weights differ"):
        PairStates(tmp_path / "in", identity={"path": "org/other"})
