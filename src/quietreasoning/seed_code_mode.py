"""Old keys of code mode: what a stage of method `prefer` reads, of these its own lines of the table."""

from __future__ import annotations

from functools import partial
from typing import Any

from quietreasoning.seed_seen import NOTHING, OFF, Line, Seen

ON, WEIGHT = "code_mode.enabled", "code_mode.weight"
START, TOOLS = "code_mode.weight_schedule.start_weight", "code_mode_pref.eligibility_rules.min_tools"
POS, NEG = "code_mode_pref.weights.pos", "code_mode_pref.weights.neg"


def _weight(times: str, seen: Seen) -> Any:
    if not seen.keys() & {ON, WEIGHT}:
        return NOTHING
    weight = seen.number(WEIGHT, 0.3) if seen.on(ON, True) else 0.0
    return round(weight * seen.number(times, 1.0), 12) if weight else OFF


def _start(seen: Seen) -> Any:
    weight = _weight("", seen) if START in seen else NOTHING
    return weight if weight in (NOTHING, OFF) else round(seen.number(START) / weight, 12)


def _tools(seen: Seen) -> Any:
    weight = _weight("", seen) if TOOLS in seen else NOTHING
    return weight if weight in (NOTHING, OFF) else seen.value(TOOLS)


CODE_MODE = tuple(
    Line(new, old, value, why, "prefer")
    for new, old, value, why in (
        ("method.weights.prefer", (WEIGHT, ON), partial(_weight, ""), ".3 where it is left out"),
        ("method.weights.code", (WEIGHT, ON, POS), partial(_weight, POS), "times pos"),
        ("method.weights.unlikely", (WEIGHT, ON, NEG), partial(_weight, NEG), "times neg"),
        ("method.ramp.start", (START, WEIGHT, ON), _start, "as a share of the weight"),
        ("data.format.spans.direct_calls", (TOOLS, WEIGHT, ON), _tools, ""),
    )
)
