"""Method distill with a cache in place of its teacher: the same lesson, or a refusal that names the cure."""

import json
import re

import pytest
import torch
import yaml
from typer.testing import CliRunner

from quietreasoning.build import Builder, resolve
from quietreasoning.capture import Request, capture
from quietreasoning.cli.main import app
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE
from quietreasoning.data.config import build_task
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.teacher_cache.keys import predicting
from quietreasoning.data.teacher_cache.targets import Keep
from quietreasoning.data.tokenizers import load_tokenizer, save_tokenizer, train_bpe
from quietreasoning.equip import equip, recorded_teacher
from quietreasoning.methods.sequence import visible_part
from quietreasoning.train.rng import seed_all

T = 2.0
UNTAUGHT = ("method.weights.kd=0", "method.divergence.temperature=1")  # needs neither teacher nor cache


@pytest.fixture(scope="module")
def recipe(smollm3, sums, tmp_path_factory):
    """A tiny student of that teacher's tokenizer; whom it learns from is said by each test."""
    values = {
        "backbone": {"scratch": {"layers": 1, "width": 16, "heads": 1, "context": 256}},
        "data": {"task": "gsm8k", "path": str(sums), "train": 6, "tokenizer": {"path": str(smollm3)}},
        "method": {"name": "distill", "weights": {"kd": 1, "answer": 0.5}, "divergence": {"temperature": T}},
        "train": {"steps": 1, "batch_size": 4},
        "eval": {"n": 2},
    }
    path = tmp_path_factory.mktemp("recipe") / "student.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.fixture(scope="module")
def take(smollm3, recipe, tmp_path_factory):
    """`take(keep, steps)`: a capture of the recipe's rows in a new folder."""

    def make(keep, steps=True, *settings):
        out = tmp_path_factory.mktemp("cache") / "c"
        settings = (f"method.steps={str(steps).lower()}", *UNTAUGHT, *settings)
        capture(Request(str(smollm3), out, recipe, None, settings, steps=steps, keep=keep, dtype="float32"))
        return out

    return make


@pytest.fixture(scope="module")
def whole(take):
    """Every probability, at temperature 2, of rows with their steps and without."""
    return {steps: take(Keep(100_000, temperatures=(T,)), steps) for steps in (True, False)}


def lesson(recipe, *settings):
    """The method, built and equipped as a run does it, and its terms of the first training batch."""
    config = resolve(recipe, settings).config
    builder, (stage,) = Builder(config), config.stages
    seed_all(0, 0, 0)
    method = builder.method(stage)
    batches = builder.batches(stage, method.backbone.context, [])
    equip(method, batches.examples, batches.encoder, "numeric")
    return method, method(batches.batch_at(0)).terms


@pytest.mark.parametrize("steps", [True, False])
def test_a_cache_of_every_probability_teaches_what_the_teacher_does(smollm3, recipe, whole, steps):
    said = f"method.steps={str(steps).lower()}"
    _, live = lesson(recipe, said, f"method.teacher={{path: {smollm3}, dtype: float32}}")
    _, kept = lesson(recipe, said, f"method.cache.path={whole[steps]}")
    torch.testing.assert_close(kept["kd"].total, live["kd"].total, rtol=2e-3, atol=1e-3)
    assert torch.equal(kept["answer"].total, live["answer"].total) and live["kd"].total > 1
    header = json.loads((whole[steps] / "teacher.json").read_text())
    assert header["settings"]["data"].get("steps", True) is steps


def quiet(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert "Traceback" not in done.output
    return done.exit_code, done.output


def test_draws_teach_in_the_teachers_direction(smollm3, recipe, take):
    """Their cross-entropy lacks the teacher's entropy, a constant; its gradient is right on average."""
    alone = "method.divergence.temperature=1"
    many = take(Keep(draws=256), True, alone)
    kinds = (f"method.teacher={{path: {smollm3}, dtype: float32}}", f"method.cache.path={many}")
    slopes = []
    for kind in kinds:
        method, terms = lesson(recipe, alone, kind)
        head = next(method.backbone.model.get_output_embeddings().parameters())
        slopes.append(torch.autograd.grad(terms["kd"].total, head)[0].flatten())
    live, drawn = slopes
    assert (drawn @ live / (live @ live)).item() == pytest.approx(1, abs=0.1)


def test_the_doctor_passes_on_a_cached_recipe(recipe, take):
    more = ("method.steps=false", "method.divergence.temperature=1", "train.batch_size=2")
    folder = take(Keep(draws=12), False, *more[1:])
    code, told = quiet("doctor", recipe, f"method.cache.path={folder}", *more)
    assert code == 0 and "healthy" in told, told


def test_a_row_that_no_teacher_read_changes_nothing_for_the_rows_beside_it(recipe, smollm3, whole):
    """As the doctor asks: its own batch first, which must be known, then rows that it has changed."""
    encoder = Encoder(load_tokenizer(str(smollm3)), context=256)
    examples = build_task(resolve(recipe, UNTAUGHT).config.stages[0].data).split("train", 2)
    batch = encoder.batch(examples)
    visible = visible_part(batch, encoder.markers(), 0)
    ids_BT = torch.cat([batch.prompt_BP, visible.ids_BT], 1)
    labels_BT = torch.cat([torch.full_like(batch.prompt_BP, IGNORE), visible.labels_BT], 1)
    learned_BT = predicting(labels_BT != IGNORE)
    teacher = recorded_teacher(str(whole[True]), encoder, T, "bucket", 1000, probing=True)
    changed_BT = ids_BT.clone()
    changed_BT[1, -20] += 1
    with pytest.raises(UserError, match="not among the 6 that the teacher read"):
        teacher(changed_BT, learned_BT)
    first, second = teacher(ids_BT, learned_BT), teacher(changed_BT, learned_BT)
    own = int(learned_BT[0].sum())
    assert torch.equal(first.logp_NK[:own], second.logp_NK[:own]) and len(first) == len(second)
    assert not torch.equal(first.logp_NK[own:], second.logp_NK[own:])


@pytest.mark.parametrize(
    ("command", "steps", "settings", "says"),
    [
        ("train", True, "method.steps=false", "captured with visible steps, and method.steps=false.*--no-st"),
        ("doctor", False, "method.steps=true", "captured without visible steps.*Set method.steps=false, or"),
        (
            "doctor",
            True,
            "data.format.answer_prefix=A",
            "not among the 6 that the teacher read.*capture anew",
        ),
        ("train", True, "method.divergence.temperature=3", "temperature is 2 in its header and 3 was asked"),
        (
            "train",
            True,
            "data.tokenizer.path=other",
            "is 298 in its header and 273 at hand.*Read it with the",
        ),
    ],
)
def test_another_cache_is_refused_with_the_cure(
    recipe, whole, tmp_path, monkeypatch, command, steps, settings, says
):
    monkeypatch.chdir(tmp_path)
    if settings.endswith("other"):
        save_tokenizer(train_bpe(["Ann has bags of nuts"] * 3, vocab=320), tmp_path / "other")
    more = ["--no-doctor", "--out", "run"] if command == "train" else []
    code, told = quiet(command, recipe, f"method.cache.path={whole[steps]}", settings, *more)
    assert code == 2 and re.search(says, told), told


def test_a_recipe_that_learns_other_positions_is_refused_at_the_capture(smollm3, recipe, tmp_path):
    words = ["data", "teacher", smollm3, "--recipe", recipe, "--out", tmp_path / "c", *UNTAUGHT]
    code, told = quiet(*words, "--no-steps")
    assert code == 2 and "method.steps=true" in told and "leave --no-steps out" in told
    code, told = quiet(*words, "method.steps=false")
    assert code == 2 and "give --no-steps, or set method.steps=true" in told
