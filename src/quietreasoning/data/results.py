"""Where the result of a step stands in it."""

from __future__ import annotations

from collections.abc import Sequence


def result_tokens(step: str, result: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Which tokens of a step spell its result: those that overlap its last whole occurrence."""
    start = find_result(step, result)
    if start < 0:
        return []
    end = start + len(result)
    return [i for i, (first, last) in enumerate(offsets) if first < end and last > start and last > first]


def find_result(step: str, result: str) -> int:
    """Where the result stands last in the step, whole if it can be; -1 where it does not."""
    if not result:
        return -1
    start = step.rfind(result)
    last = start
    while start >= 0:
        before = step[start - 1] if start else " "
        after = step[start + len(result)] if start + len(result) < len(step) else " "
        if not before.isalnum() and not after.isalnum():
            return start
        start = step.rfind(result, 0, start + len(result) - 1)
    return last
