"""recall/encyclopaedia as a user runs it: the commands of `make memory`, from a model to its reading."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from quietreasoning.backbone import role_of
from quietreasoning.build import open_run, resolve
from quietreasoning.cli.main import app
from quietreasoning.config import UserError
from quietreasoning.contract import Role
from quietreasoning.data.config import build_task
from quietreasoning.memory.made import open_made
from quietreasoning.methods.recall.events import encoded, encoder_of
from quietreasoning.run import train_run

MAKEFILE = Path(__file__).parents[2] / "Makefile"
SMALL = ["data.options.facts=60", "data.options.mentions=240", "backbone.scratch.layers=1", "eval.n=8"]
BOOK = "runs/plain-encyclopaedia-0"


def commands():
    """What the Makefile runs to fill the stores, as arguments of `quiet`."""
    text = MAKEFILE.read_text(encoding="utf-8")
    variables = dict(
        line.split(" = ") for line in text.splitlines() if line.startswith(("BOOK =", "STORES ="))
    )
    rule = text.partition("$(STORES)/knn.index: |")[2].partition("\n\n")[0]
    assert variables["BOOK"] == BOOK
    for name, value in variables.items():
        rule = rule.replace(f"$({name})", value)
    return [
        shlex.split(line.replace("$@", "runs/encyclopaedia/knn.index"))[1:] for line in rule.splitlines()[1:]
    ]


def quiet(arguments):
    done = CliRunner().invoke(app, [*arguments, "--json", "-"])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return json.loads(done.stdout) if done.exit_code == 0 else done.stderr


def trained(recipe, *settings):
    assert train_run(resolve(recipe, [*SMALL, *settings, "train.batch_size=16"]), doctor=False) == 0


def test_a_model_its_stores_and_the_reading_of_both(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{BOOK} is no run folder"):
        trained("recall/encyclopaedia", "train.steps=2")
    trained("plain/encyclopaedia", "train.steps=3")
    with pytest.raises(UserError, match=r"runs/encyclopaedia/events.*quiet index episodic"):
        trained("recall/encyclopaedia", "train.steps=2")
    episodic, *others = commands()
    told = quiet(episodic)
    assert told["added"] == told["entries"] == told["events"] > 100 and told["renewed"] == 0
    assert quiet(episodic)["added"] == 0, "the same again renews what is there"
    assert not [said for said in map(quiet, others) if isinstance(said, str)]
    base = open_run(BOOK)
    with open_made(Path("runs/encyclopaedia/events"), encoder=encoder_of(base.method.backbone)) as store:
        entries = [one.entry for one in store.query(np.eye(64, dtype=np.float32)[:1], 200)[0]]
    for entry in entries[:3]:
        ids = torch.tensor([entry.tokens])
        states = base.method.backbone(ids, role_of(ids, Role.PROMPT)).hidden_BTD.detach()
        np.testing.assert_allclose(encoded(states, ids >= 0)[0], entry.vector_D, atol=1e-5)
        assert base.encoder.text(list(entry.tokens)) == entry.text and "####" in entry.text

    trained("recall/encyclopaedia", "train.steps=2")
    run = open_run("runs/recall-encyclopaedia-0")
    asked = run.encoder.prompts(list(build_task(run.config.stages[-1].data).split("test", 8)))
    closed, plain = (
        m.generate(asked, max_new_tokens=2, **o).answers
        for m, o in ((run.method, {"control": "zero"}), (base.method, {}))
    )
    assert closed == plain
    spent = run.method.spent
    run.method.generate(asked, max_new_tokens=2)
    assert (spent.queries, spent.lookups) == (8, 16)


@pytest.mark.parametrize(
    ("more", "cure"),
    [
        ((), "give one"),
        (("--input", "a.jsonl", "--run", "runs/x"), "give one"),
        (("--input", "a.jsonl"), "needs --encoder"),
        (("--run", "runs/x", "--encoder", "a"), "drop it"),
    ],
)
def test_events_have_one_source(more, cure, tmp_path):
    assert cure in quiet(["index", "episodic", "--output", str(tmp_path), *more])
