"""What code mode is worth over many tasks: `measure(rows)`, with intervals and gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quietreasoning.config import UserError
from quietreasoning.evaluate.judging import (
    FAIL,
    LEAST_ROWS,
    OPEN,
    PASS,
    Figure,
    Judgement,
    Measured,
    Trial,
    judge,
    ratio,
)
from quietreasoning.evaluate.statistics import wilson

SAVING, ADOPTION = 0.25, 0.6


@dataclass(frozen=True)
class TaskRow:
    """One task as it was answered. tokens: written and read, program and summary or calls and results;
    direct_tokens: what plain calls take; leaks: places with personal data or bulk output; code: a program was
    written."""

    eligible: bool
    code: bool
    success: bool
    tokens: int
    direct_tokens: int
    leaks: int = 0


def measure(rows: Sequence[TaskRow], *, seed: int = 0) -> Judgement:
    """The gates: at least 25 % fewer tokens on eligible tasks, no leak at all, at least 60 % of eligible
    tasks by program. Beside them, without a threshold: programs where none was due, and success.

    A task that failed saves nothing: its tokens count as those of plain calls at least. Intervals of 95 %:
    bootstrap over tasks for tokens, Wilson for shares; fewer than 10 tasks show nothing of tokens. UserError
    without rows, or where a count is below 0 or direct_tokens is 0.
    """
    if not rows:
        raise UserError("no rows to measure; give at least one")
    for number, row in enumerate(rows, start=1):
        if min(row.tokens, row.leaks) < 0 or row.direct_tokens < 1:
            raise UserError(f"row {number}: {row} needs counts of 0 or more, and direct_tokens above 0")
    due = [row for row in rows if row.eligible]
    leaks = sum(row.leaks > 0 for row in rows)
    figures = (
        _saving(due, seed),
        _share("leaks", [row.leaks > 0 for row in rows], needs=0.0, verdict=FAIL if leaks else PASS),
        _share("adoption", [row.code for row in due], needs=ADOPTION),
        _share("over-use", [row.code for row in rows if not row.eligible]),
        _share("success", [row.success for row in rows]),
        _share("success of programs", [row.success for row in rows if row.code]),
    )
    return Judgement("code mode", (Trial("code mode", figures),), {"tasks": len(rows), "eligible": len(due)})


def _saving(due: Sequence[TaskRow], seed: int) -> Figure:
    if not due:
        nothing = Measured(0.0, -1.0, 1.0)
        return Figure("tokens saved", nothing, 0, "tasks", SAVING, True, OPEN, "no eligible task")
    spent = np.array([row.tokens if row.success else max(row.tokens, row.direct_tokens) for row in due])
    found = ratio(spent.astype(float), np.array([float(row.direct_tokens) for row in due]), seed)
    saved = Measured(1 - found.value, 1 - found.high, 1 - found.low)
    few = len(due) < LEAST_ROWS
    verdict = OPEN if few else judge(saved, SAVING, inclusive=True)
    note = f"fewer than {LEAST_ROWS} eligible tasks" if few else ""
    return Figure("tokens saved", saved, len(due), "tasks", SAVING, True, verdict, note)


def _share(what: str, met: Sequence[bool], needs: float | None = None, verdict: str | None = None) -> Figure:
    interval = wilson(sum(met), len(met))
    found = Measured(sum(met) / len(met) if met else 0.0, interval.low, interval.high)
    if needs is not None and verdict is None:
        verdict = judge(found, needs, inclusive=True)
    return Figure(what, found, len(met), "tasks", needs, needs is not None, verdict)
