"""Where rows say that thinking should stop: each rule, its edge, and what is not known."""

import math

import pytest
import torch

from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE
from quietreasoning.data.config import Format, HaltFormat
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.example import Example
from quietreasoning.data.halt_targets import (
    TIERS,
    HaltTarget,
    bounded_loops,
    curriculum_target,
    halt_target,
    judge_target,
    utility_shares,
    utility_step,
)
from quietreasoning.data.tokenizers import train_words

GOES_ON = False


@pytest.mark.parametrize(
    ("loop", "score", "previous", "halts"),
    [
        (1, 0.8, None, True),  # high at once, in the first loop too
        (1, 0.79, None, GOES_ON),
        (2, 0.85, 0.1, True),
        (2, 0.5, 0.46, True),  # still rising, by too little
        (2, 0.5, 0.5, True),
        (2, 0.5, 0.25, GOES_ON),
        (2, 0.4, 0.45, GOES_ON),  # falling is not shrinking
        (2, 0.4, 0.9, GOES_ON),
        (4, 0.0, 0.9, True),  # the last loop halts whatever the score
        (4, None, None, True),
    ],
)
def test_the_judge(loop, score, previous, halts):
    assert judge_target(loop, 4, score, previous) == HaltTarget(loop, halts)


def test_the_edge_of_a_shrinking_gain():
    assert judge_target(2, 4, 0.55, 0.5, shrinking=0.05 + 1e-9).halts
    assert not judge_target(2, 4, 0.75, 0.5, shrinking=0.25).halts


def test_missing_metadata_gives_no_target():
    assert judge_target(None, 4, 0.9) is None
    assert judge_target(2, 4, None, 0.5) is None
    assert judge_target(2, 4, 0.5, None) is None, "only the gain could tell"
    assert judge_target(2, 4, 0.9, None) == HaltTarget(2), "the score alone tells"
    assert curriculum_target(None, 4) is None
    assert utility_step(None, 0.1) is None and utility_shares([], 0.1, 1.0) is None
    assert [halt_target({}, source) for source in ("curriculum", "judge", "utility")] == [None] * 3
    with pytest.raises(UserError, match="loop_index=5"):
        judge_target(5, 4, 0.1)


def test_the_curriculum():
    assert [curriculum_target(stage, 4).step for stage in (0, 1, 2, 3)] == [4, 3, 2, 2]
    assert [curriculum_target(stage, 1).step for stage in (0, 1, 2)] == [1, 1, 1]


def test_utilities():
    assert utility_step([0.2, 0.9, 0.9], 0.0) == HaltTarget(2), "the earliest of equals"
    assert utility_step([0.2, 0.5, 0.9], 0.35) == HaltTarget(3)
    assert utility_step([0.2, 0.5, 0.9], 0.45) == HaltTarget(1)
    assert utility_step([0.2, 0.5, 0.9], 1.0, [0.0, 0.1, 0.9]) == HaltTarget(2)
    shares = utility_shares([0.2, 0.5, 0.9], 0.1, 0.5)
    mass = [math.exp(u / 0.5) for u in (0.1, 0.3, 0.6)]
    assert shares == pytest.approx([each / sum(mass) for each in mass])
    with pytest.raises(UserError, match="2 costs for 3 scores"):
        utility_step([0.2, 0.5, 0.9], 1.0, [0.0, 0.1])


def test_a_tier_bounds_the_loops():
    assert {name: (tier.spans, tier.loops) for name, tier in TIERS.items()} == {
        **{"Tier-1": (0, 1), "Tier-2": (1, 2), "Tier-3": (3, 3)}
    }
    assert [bounded_loops(8, tier) for tier in (None, *TIERS)] == [8, 1, 2, 3]
    assert bounded_loops(1, "Tier-3") == 1
    with pytest.raises(UserError, match="Did you mean 'Tier-2'"):
        bounded_loops(4, "Tier2")


def test_a_row_of_the_dataset():
    row = {"max_loops": 4, "curriculum_stage": 1, "loop_index": 2, "judge_score": 0.5, "prev_score": 0.2}
    assert halt_target(row, "curriculum") == HaltTarget(3)
    assert halt_target(row, "judge") == HaltTarget(2, halts=False)
    assert halt_target(row, "judge", tier="Tier-2") == HaltTarget(2), "two loops are all it may run"
    assert halt_target(row | {"tier": "Tier-1"}, "judge", tier="Tier-3") == HaltTarget(1)
    assert halt_target(row | {"scores": [0.1, 0.3, 0.9, 0.95]}, "utility", cost=0.1) == HaltTarget(3)
    assert halt_target(row | {"scores": [0.1, 0.3, 0.9]}, "utility", tier="Tier-2") == HaltTarget(2)
    with pytest.raises(UserError, match="Did you mean 'judge'"):
        halt_target(row, "juge")


ROWS = [
    {"max_loops": 4, "curriculum_stage": 1, "loop_index": 2, "judge_score": 0.5, "prev_score": 0.2},
    {"max_loops": 4, "curriculum_stage": 0, "loop_index": 2, "judge_score": 0.5, "scores": [0.1, 0.9, 0.95]},
    {"loop_index": 1, "judge_score": 0.9, "scores": [0.6]},
    {},
]


@pytest.mark.parametrize(
    "settings",
    [
        {"source": "judge", "max_loops": 3},
        {"source": "judge", "high": 0.4, "tier": "Tier-3"},
        {"source": "curriculum", "max_loops": 4},
        {"source": "utility", "cost": 0.1},
    ],
)
def test_a_batch_carries_what_the_pure_function_says_of_each_row(settings):
    examples = [Example(str(i), "a", (), (), "b", {"metadata": row}) for i, row in enumerate(ROWS)]
    examples += [Example("bare", "a", (), (), "b")]
    coder = Encoder(train_words(["a", "b", "####"]), Format(halt=HaltFormat(**settings)))
    named = {key: value for key, value in settings.items() if key != "source"}
    wanted = [halt_target(row, settings["source"], **named) for row in (*ROWS, {})]
    assert coder.batch(examples).halt_B2.tolist() == [
        [IGNORE] * 2 if one is None else [one.step, one.halts] for one in wanted
    ]
    assert None in wanted and any(wanted)
    plain = Encoder(coder.tokenizer).batch(examples)
    assert plain.halt_B2.shape == (len(examples), 0) and plain.halt_B2.dtype == torch.int64
    for broken in ({"judge_score": "high"}, {"loop_index": 1.5}, {"scores": [0.1, True]}):
        with pytest.raises(UserError, match=f"example 7: its metadata: {next(iter(broken))}="):
            coder.encode(Example("7", "a", (), (), "b", {"metadata": ROWS[0] | broken}))


def test_settings_of_another_source_are_refused():
    with pytest.raises(ValueError, match=r"halt\.cost has no effect with halt\.source=judge"):
        HaltFormat(cost=0.1)
