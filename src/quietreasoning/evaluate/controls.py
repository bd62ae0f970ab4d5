"""Which arms stand beside a method: itself, each control it supports, each effort asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from quietreasoning.contract import Method
from quietreasoning.evaluate.rows import arm_name

FROM_OTHER_ROWS = ("shuffle", "mean")  # these need company, and depend on it by definition


@dataclass(frozen=True)
class Arm:
    """One line of the table: a method, perhaps with corrupted thoughts, another effort or another cache.

    Several arms may share one method; `label` names it ("slots"). method: in eval mode or not, on the
    device where its prompts shall go.
    """

    method: Method
    label: str
    control: str | None = None
    effort: int | None = None
    cache: str | None = None  # a key of eval.kv_caches, named in the label too

    @property
    def name(self) -> str:
        return arm_name(self.label, self.control, self.effort)


def arms_of(
    method: Method,
    label: str,
    controls: Iterable[str] = (),
    efforts: Iterable[int] = (),
    caches: Iterable[str] = (),
) -> list[Arm]:
    """The method, then its controls (those it supports, in the order asked for), then its efforts and caches.

    Give `efforts` only for a method that has such a dial; the harness refuses them otherwise.
    """
    corrupted = [Arm(method, label, control=name) for name in controls if name in method.controls]
    through = [Arm(method, f"{label} ({name})", cache=name) for name in caches]
    dialled = [Arm(method, label, effort=effort) for effort in efforts]
    return [Arm(method, label), *corrupted, *dialled, *through]
