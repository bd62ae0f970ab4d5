"""One line for every kind of mistake: key, value, what is allowed, the nearest key, the source."""

from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from quietreasoning.config import OneOf, Pick, Settings, UserError, suggest
from quietreasoning.layers import Resolved, expand, label
from quietreasoning.validation import keys, recipe_schema, validate


class Weights(Settings):
    answer: float = Field(1.0, ge=0)
    """Weight of the answer."""


class Cot(Settings):
    name: Literal["cot"] = "cot"
    """Visible."""
    weights: Weights = Weights()


class Slots(Settings):
    name: Literal["slots"] = "slots"
    """Parallel."""
    loops: int = Field(4, ge=1, le=9)
    """Passes."""
    attend: Literal["causal", "full"] = "causal"
    """Mask."""
    weights: Weights = Weights()

    @model_validator(mode="after")
    def _odd(self):
        if self.loops == 7:
            raise ValueError("loops must not be 7")
        return self


class Hops(Settings):
    hops: int = 4
    """k."""


class Words(Settings):
    length: int = 3
    """Words."""


class Data(Settings):
    task: Annotated[str, OneOf("task", ("pointer", "words"))] = "pointer"
    """Which task."""
    options: Annotated[Settings, Pick("task", {"pointer": Hops, "words": Words}, by="task")] = {}
    """Settings of the task."""


class Train(Settings):
    steps: int = Field(100, gt=0)
    """Optimizer steps."""
    lr: float = 1e-3
    """Rate."""
    compile: bool = False
    """Whether to compile."""
    scales: dict[str, float] = {}
    """Factors."""
    named: dict[str, Weights] = {}
    """By names of the user's own."""
    enable: tuple[str, ...] = ()
    """Prefixes."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Averages."""
    budget: int | None = None
    """Tokens."""

    @model_validator(mode="after")
    def _user_error_names_its_own_key(self):
        if self.budget == 13:
            raise UserError("train.budget: 13 is unlucky; take 12")
        return self


class Stage(Settings):
    name: str
    """Its name."""
    method: Annotated[Settings, Pick("method", {"cot": Cot, "slots": Slots})]
    """How to reason."""
    data: Data = Data()
    """What on."""
    train: Train = Train()
    """How long."""


class Run(Settings):
    seed: int = 0
    """Seed."""
    stages: tuple[Stage, ...]
    """What to train."""


def settle(values, source="recipe r"):
    resolved = expand(Resolved(label(values, source)))
    return validate(Run, resolved.values, resolved.provenance)


def test_what_is_valid_becomes_its_own_class():
    run = settle({"method": {"name": "slots", "loops": 6}, "data": {"options": {"hops": 2}}})
    assert isinstance(run.stages[0].method, Slots) and run.stages[0].method.loops == 6
    assert isinstance(run.stages[0].data.options, Hops) and run.stages[0].data.options.hops == 2
    assert settle({"method": {"name": "cot"}, "data": {"task": "words"}}).stages[0].data.options == Words()


def test_what_is_dumped_is_read_back():
    run = settle({"method": {"name": "slots", "loops": 6}, "train": {"enable": ["a", "b"]}})
    for mode in ("json", "python"):
        dumped = run.model_dump(mode=mode)
        assert dumped["stages"][0]["method"]["loops"] == 6
        assert validate(Run, dumped) == run


COT = {"method": {"name": "cot"}}
SLOTS = {"name": "slots"}


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            COT | {"sead": 1},
            "sead=1: no such setting. Did you mean 'seed'? Choices: seed, stages. (from recipe r)",
        ),
        (
            COT | {"train": {"stpes": 1}},
            "train.stpes=1: no such setting. Did you mean 'train.steps'? "
            "Choices: betas, budget, compile, enable, lr, named, scales, steps. (from recipe r)",
        ),
        (
            COT | {"train": {"named": {"a": {"answer:2": None}}}},  # {answer:2} in YAML
            "train.named.a.answer:2=null: no such setting. Write `answer: 2`, with a space. "
            "Did you mean 'train.named.a.answer'? Choices: answer. (from recipe r)",
        ),
        (
            {"method": SLOTS | {"lops": 4}},
            "method.lops=4: no such setting. Did you mean 'method.loops'? "
            "Choices: attend, loops, name, weights. (from recipe r)",
        ),
        (
            {"method": {"name": "slot"}},
            "method.name=slot: names no method. Did you mean 'slots'? Choices: cot, slots. (from recipe r)",
        ),
        (
            {"method": {"loops": 4}},
            "method.name: names the method and must be given. Choices: cot, slots.",
        ),
        ({"train": {"steps": 5}}, "method: must be given: How to reason."),
        ({"method": "cot"}, "method=cot: must be a mapping of settings (from recipe r)"),
        (
            {"method": SLOTS | {"attend": "ful"}},
            "method.attend=ful: not allowed. Did you mean 'full'? Choices: causal, full. (from recipe r)",
        ),
        ({"method": SLOTS | {"loops": 0}}, "method.loops=0: must be at least 1 (from recipe r)"),
        ({"method": SLOTS | {"loops": 10}}, "method.loops=10: must be at most 9 (from recipe r)"),
        ({"method": SLOTS | {"loops": 2.5}}, "method.loops=2.5: must be a whole number (from recipe r)"),
        ({"method": SLOTS | {"loops": 7}}, "method: loops must not be 7 (from recipe r)"),
        (COT | {"train": {"steps": 0}}, "train.steps=0: must be above 0 (from recipe r)"),
        (COT | {"train": {"steps": "no"}}, "train.steps='no': must be a whole number (from recipe r)"),
        (
            COT | {"train": {"steps": False}},
            "train.steps=false: must be a number, not true or false (from recipe r)",
        ),
        (COT | {"train": {"lr": True}}, "train.lr=true: must be a number, not true or false (from recipe r)"),
        (
            COT | {"train": {"budget": True}},
            "train.budget=true: must be a number, not true or false (from recipe r)",
        ),
        (COT | {"train": {"lr": float("nan")}}, "train.lr=.nan: must be a finite number (from recipe r)"),
        (
            COT | {"train": {"scales": {"a": True}}},
            "train.scales: must be a number, not true or false (from recipe r)",
        ),
        (
            COT | {"train": {"scales": 5}},
            "train.scales=5: must be a mapping, such as {a: 1} (from recipe r)",
        ),
        (COT | {"train": {"scales": {"a": "x"}}}, "train.scales.a=x: must be a number (from recipe r)"),
        (COT | {"train": {"compile": "maybe"}}, "train.compile=maybe: must be true or false (from recipe r)"),
        (COT | {"train": {"enable": "x"}}, "train.enable=x: must be a list, such as [1, 2] (from recipe r)"),
        (
            COT | {"train": {"enable": [1]}},
            "train.enable.0=1: must be text; put quotes around it (from recipe r)",
        ),
        (COT | {"train": {"betas": [1]}}, "train.betas=[1]: needs at least 2 values (from recipe r)"),
        (COT | {"train": None}, "train=null: must be a mapping of settings (from recipe r)"),
        (COT | {"train": {"budget": 13}}, "train.budget: 13 is unlucky; take 12 (from recipe r)"),
        (
            COT | {"data": {"task": "pointr"}},
            "data.task=pointr: names no task. Did you mean 'pointer'? "
            "Choices: pointer, words. (from recipe r)",
        ),
        (
            COT | {"data": {"options": {"hop": 4}}},
            "data.options.hop=4: no such setting. Did you mean 'data.options.hops'? "
            "Choices: hops. (from recipe r)",
        ),
        (
            COT | {"data": {"task": "words", "options": {"hops": 4}}},
            "data.options.hops=4: no such setting. Choices: length. (from recipe r)",
        ),
        (
            COT | {"train": {"steps": "x", "lr": "y"}},
            "train.steps=x: must be a whole number (from recipe r) [and 1 more]",
        ),
        (
            {"stages": [{"name": "a", **COT}, {"name": "b", "train": {"steps": -1}}]},
            "stages.b.train.steps=-1: must be above 0 (from recipe r, stage b)",
        ),
        (
            {"loops": 3, "stages": [{"name": "a", "method": SLOTS}]},
            "loops=3: no such setting. Did you mean 'stages.a.method.loops'? "
            "Choices: seed, stages. (from recipe r)",
        ),
    ],
)
def test_one_line(values, line):
    with pytest.raises(UserError) as caught:
        settle(values)
    assert str(caught.value) == line


def test_yes_and_no_are_booleans_only_where_a_boolean_is_asked():
    assert settle(COT | {"train": {"compile": "no"}}).stages[0].train.compile is False


def test_numbers_written_as_text_are_numbers():
    assert settle(COT | {"train": {"lr": "1e-4", "steps": 1e2}}).stages[0].train.lr == 1e-4


def test_settings_are_frozen_and_hashable():
    run = settle(COT)
    with pytest.raises(ValueError, match="frozen"):
        run.seed = 1


def test_docs_come_from_the_docstrings_under_the_fields():
    assert Train.docs()["steps"] == "Optimizer steps."


def test_keys_follow_what_is_picked():
    values = {"stages": [{"name": "a", "method": {"name": "slots"}, "data": {"task": "words"}}]}
    found = set(keys(Run, values))
    assert {"seed", "stages.a.method.loops", "stages.a.data.options.length"} <= found
    assert "stages.a.data.options.hops" not in found


def test_json_schema_holds_every_choice():
    schema = Run.model_json_schema()
    text = str(schema)
    assert "loops" in text and "hops" in text and "length" in text and "Passes." in text


def test_the_schema_of_recipes_fits_recipes():
    schema = recipe_schema(Run)
    assert {"base", "seed", "method", "data", "train", "stages"} == set(schema["properties"])
    assert "required" not in schema and "required" not in str(schema["$defs"])
    assert schema["additionalProperties"] is False


def test_suggest():
    assert suggest("slotz", ["slots", "cot"]) == "Did you mean 'slots'? Choices: cot, slots."
    assert suggest("xyz", {"b": 1, "a": 2}) == "Choices: a, b."
    assert suggest("x", ()) == "Choices: none."
