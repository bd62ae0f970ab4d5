"""`quiet index consolidate`: what is asked for often is learned, checked, served, and taken back."""

import json
import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from quietreasoning.build import open_run, resolve
from quietreasoning.cli.main import app
from quietreasoning.config import UserError
from quietreasoning.data.config import build_task
from quietreasoning.indices.consolidate import consolidate, judge, roll_back
from quietreasoning.indices.episodic import make_episodic
from quietreasoning.memory.made import open_made
from quietreasoning.run import train_run
from quietreasoning.workspace.consolidated import TABLE, generations_of, made_of
from quietreasoning.workspace.consolidation import ConsolidationSettings, Overlay, choose_rows, reading
from quietreasoning.workspace.table_file import write_table

SIZES = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "read_block": 1},
    **{
        "ssm_blocks": [1],
        "slot_width": 32,
        "router_width": 16,
        "ssm_inner": 32,
        "pkm_blocks": [1],
        "pkm_slots": 1024,
    },
    **{"pkm_value_dim": 32, "pkm_heads": 2, "pkm_key_dim": 16, "pkm_topk": 4, "max_position_embeddings": 64},
}
RECIPE = {
    "backbone": {"workspace": {"preset": "tiny", "sizes": SIZES}},
    "data": {
        "task": "encyclopaedia",
        "options": {"facts": 40, "mentions": 60, "relations": 2, "values": 8, "name_words": [1]},
        "tokenizer": {"train": "words"},
        "format": {"prompt_suffix": ""},
    },
    "method": {"name": "workspace", "features": ["pkm"]},
    "optim": {"name": "adamw", "lr": 1e-3},
    "train": {"steps": 2, "batch_size": 16, "save_every": 0, "eval_every": 0, "log_every": 50},
    "eval": {"n": 4, "max_new_tokens": 4, "timing": 0, "samples": 0, "controls": []},
}
# the values of a run of two steps are tiny, and so are steps that are measured by them
SETTINGS = ConsolidationSettings(min_hits=3, steps=30, rate=500.0, held_out=20, tolerance=0.5)
FACTS = 4


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("consolidate")
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE))
    assert train_run(resolve(str(folder / "recipe.yaml"), [], str(folder / "run")), doctor=False) == 0
    return folder


@pytest.fixture
def place(trained, tmp_path):
    """A run of its own, and a store of some facts that were asked for."""
    run, store = tmp_path / "run", tmp_path / "store"
    shutil.copytree(trained / "run", run)
    facts = list(build_task(open_run(run).config.stages[-1].data).split("train"))[:FACTS]
    texts = [f"{q.prompt} {q.answer}" for q in facts]
    rows = [{"text": text, "vector": np.eye(8)[i].tolist()} for i, text in enumerate(texts)]
    rows.append({"text": "unheard-of words", "vector": np.eye(8)[7].tolist()})
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_episodic(tmp_path / "events.jsonl", store, "made@1", backend="flat")
    with open_made(store) as events:
        for _ in range(3):
            events.query(np.eye(8, dtype=np.float32)[[*range(FACTS), 7]])
    return run, store


def logits(run):
    loaded = open_run(run)
    with torch.no_grad():
        return loaded.method.backbone.model(torch.arange(12)[None]).logits


def noise(table, rows_U, new, others, settings):
    overlay = Overlay(table, rows_U)
    torch.nn.init.normal_(overlay.change_UV)
    return overlay


def test_what_was_promoted_is_known_by_heart_and_the_way_back_is_exact(place):
    run, store = place
    before = logits(run)
    done = consolidate(run, store, SETTINGS)
    assert done["accepted"] and done["promoted"] == FACTS and done["left_out"] == 1
    assert done["asked_before"] < 1 and done["asked_after"] == 1.0 and done["generation"] == 1
    learned = logits(run)
    assert not torch.equal(learned, before)  # the next one to open the run is served by it
    table = open_run(run).method.backbone.model.model.table
    assert table.is_int8
    again = consolidate(run, store, SETTINGS)
    assert not again["accepted"] and again["promotable"] == 1 and "no entry has 3 hits" in again["why"]

    with open_made(store) as events:  # upon a table of bytes, of which only rows that learn may change
        for _ in range(3):
            events.query(np.eye(8, dtype=np.float32)[5:6] + 0.1)
        name = json.loads((run / "pkm" / "current.json").read_text())["state"]["name"]
        events.consolidate(name, [1, 2])
    second = consolidate(run, store, SETTINGS, teacher=noise)
    assert not second["accepted"] and torch.equal(logits(run), learned)

    assert roll_back(run, store)["generation"] == 0
    assert torch.equal(logits(run), before)
    with open_made(store) as events:
        assert len(events.promotable(3, place=name)) == FACTS + 1


def test_a_damaged_table_is_refused_and_one_of_another_checkpoint_left_alone(place, capsys):
    run, _ = place
    before, generations = logits(run), generations_of(run)
    (checkpoint,) = run.glob("step-*")
    for made, table in ((made_of(checkpoint), "damaged"), (made_of(checkpoint) | {"checkpoint": "x"}, "x")):
        with generations.alone() as state, generations.made(state) as shadow:
            write_table(shadow / TABLE, 1024, 32)
            generations.commit(shadow, state, made)
        path = generations.path(generations.state().current) / TABLE
        if table == "x":
            assert torch.equal(logits(run), before) and "was made of x" in capsys.readouterr().err
        else:
            assert not torch.equal(logits(run), before)
            path.write_bytes(path.read_bytes()[:-1] + b"\1")
            with pytest.raises(UserError, match=r"table\.npy is damaged"):
                open_run(run)


def test_noise_is_refused_and_leaves_everything_as_it_was(place):
    run, store = place
    before = logits(run)
    done = consolidate(run, store, SETTINGS, teacher=noise)
    assert not done["accepted"] and "not surely answered better" in done["why"]
    assert torch.equal(logits(run), before) and done["generation"] == 0
    assert [path.name for path in (run / "pkm").iterdir() if path.is_dir()] == []
    with open_made(store) as events:
        assert len(events.promotable(3)) == FACTS + 1
    with pytest.raises(UserError, match="nothing is in force"):
        roll_back(run, store)


def test_the_check_asks_for_surely_better_and_surely_not_worse():
    settings, same = ConsolidationSettings(), "1" * 50 + "0" * 50
    better = judge({"asked": "0" * 30, "held_out": same}, {"asked": "1" * 30, "held_out": same}, settings)
    assert better["accepted"] and better["asked_gain"] == [1, 1, 1]
    lucky = judge({"asked": "00", "held_out": same}, {"asked": "10", "held_out": same}, settings)
    assert not lucky["accepted"] and "not surely answered better" in lucky["why"]
    hurt = "0" * 4 + same[4:]
    worse = judge({"asked": "0" * 30, "held_out": same}, {"asked": "1" * 30, "held_out": hurt}, settings)
    assert not worse["accepted"] and "lost more than 0.02" in worse["why"]


def test_rows_are_those_that_the_texts_read_and_others_seldom_read(place):
    table = open_run(place[0]).method.backbone.model.model.table
    slots = table.slots

    def loss(indices, weight=1.0):
        at = torch.tensor(indices).view(1, -1, 1, 1)
        return lambda: weight * table.gather(at, torch.ones(at.shape)).sum()

    rows = choose_rows(table, [loss([5, 9, 9, slots - 1])], [loss([9]), loss([9]), loss([7])], 2)
    assert rows.tolist() == [5, slots - 1]
    overlay = Overlay(table, torch.tensor([9, 5]))
    with torch.no_grad():
        overlay.change_UV += torch.tensor([[1.0], [2.0]])  # of row 5, and of row 9
    at, weights = torch.tensor([[[[5, 9, 7]]]]), torch.tensor([[[[0.5, 0.25, 9.0]]]])
    plain = table.gather(at, weights)
    with reading(table, overlay):
        torch.testing.assert_close(table.gather(at, weights) - plain, torch.ones_like(plain))
    assert torch.equal(table.gather(at, weights), plain)


def test_the_command_says_what_came_of_it(place, tmp_path):
    run, store = place

    def quiet(*words):
        done = CliRunner().invoke(app, ["index", "consolidate", *map(str, words), "--json", "-"])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, json.loads(done.stdout) if done.stdout.strip() else None, done.stderr

    code, figures, _ = quiet(run, "--store", store, "--min-hits", 4)
    assert code == 1 and figures["accepted"] is False and figures["promotable"] == 0
    code, _, said = quiet(run, "--store", store, "--rollback")
    assert code == 2 and "nothing" in said
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n')
    code, _, said = quiet(run, "--store", store, "--min-hits", 3, "--questions", tmp_path / "bad.jsonl")
    assert code == 2 and "--questions" in said
    assert quiet(tmp_path, "--store", store)[0] == 2
