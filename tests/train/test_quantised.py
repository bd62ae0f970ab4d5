"""When layers compute in integers: a rule of the budget, in steps or tokens, and of nothing else."""

import pytest
from pydantic import ValidationError

from quietreasoning.train.quantised import due
from quietreasoning.train.settings import QuantConfig, TrainConfig


def first(start, **budget):
    """The first step, or token, from which layers count."""
    config = TrainConfig(**budget, quant={"start": start})
    whole = budget.get("steps") or budget["tokens"]
    steps = "steps" in budget
    return next(n for n in range(whole + 1) if due(config, *((n, 0) if steps else (0, n))))


@pytest.mark.parametrize(("start", "step"), [(0, 0), (0.7, 7), (0.75, 8), (1, 10)])
def test_the_share_of_the_budget_is_kept_exactly(start, step):
    assert first(start, steps=10) == first(start, tokens=10) == step


def test_off_never_and_without_steps_at_once():
    assert not due(TrainConfig(steps=10), 10, 10**9)
    assert due(TrainConfig(steps=0, quant={}), 0, 0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"group": 32}, "group=32 needs weight_bits=4"),
        ({"weight_bits": 3}, "weight_bits"),
        ({"activation_bits": 4}, "activation_bits"),
        ({"start": 1.5}, "start"),
        ({"lr_multiplier": 0}, "lr_multiplier"),
        ({"bits": 8}, "bits"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, says):
    with pytest.raises(ValidationError, match=says):
        QuantConfig(**settings)
