"""What a teacher is, and the two that know all their logits; `kd_sparse` has those that know less.

Each gives the divergence of the student's logits from itself, row by row, and gets no gradient.
Shapes: N positions of the whole batch, C those of a chunk, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from quietreasoning.losses.divergence import Head
from quietreasoning.losses.kd import Divergence, chosen_temperature, divergence, entropy


class Teacher(Protocol):
    def __len__(self) -> int:
        """How many positions it knows."""

    def check(self, choice: Divergence, temperature_N: Tensor | None = None) -> None:
        """ValueError where it does not know enough for this divergence at this temperature."""

    def rows(self, rows_C: Tensor | slice) -> Teacher:
        """Itself at some positions, with everything computed that `against`, `top` and `entropy` share."""

    def against(self, student_NV: Tensor, choice: Divergence, temperature_N: Tensor | None = None) -> Tensor:
        """Divergence [N] in nats of the student's logits, times T^2; ValueError as `check`."""

    def top(self) -> Tensor:
        """Its most likely id at each position [N]."""

    def entropy(self) -> Tensor:
        """Its entropy [N] in nats at the temperature it is stored at (logits: 1), or ValueError."""


@dataclass(frozen=True, eq=False)
class DenseTeacher:
    """All logits [N, V']. V' may differ from the student's V: see `kd.divergence`."""

    logits_NV: Tensor

    def __len__(self) -> int:
        return len(self.logits_NV)

    def check(self, choice: Divergence, temperature_N: Tensor | None = None) -> None:
        chosen_temperature(choice, temperature_N)

    def rows(self, rows_C: Tensor | slice) -> DenseTeacher:
        return DenseTeacher(self.logits_NV[rows_C])

    def against(self, student_NV: Tensor, choice: Divergence, temperature_N: Tensor | None = None) -> Tensor:
        return divergence(self.logits_NV, student_NV, choice, temperature_N)

    def top(self) -> Tensor:
        return self.logits_NV.argmax(-1)

    def entropy(self) -> Tensor:
        return entropy(self.logits_NV)


@dataclass(frozen=True, eq=False)
class StateTeacher:
    """Another model's last hidden states [N, D'] and its head; only the logits of the rows asked for ever
    exist.

    The head is called without gradient and with what autocast says at the time.
    """

    hidden_ND: Tensor
    head: Head

    def __len__(self) -> int:
        return len(self.hidden_ND)

    def check(self, choice: Divergence, temperature_N: Tensor | None = None) -> None:
        chosen_temperature(choice, temperature_N)

    def rows(self, rows_C: Tensor | slice) -> DenseTeacher:
        with torch.no_grad():
            return DenseTeacher(self.head(self.hidden_ND[rows_C].detach()))

    def against(self, student_NV: Tensor, choice: Divergence, temperature_N: Tensor | None = None) -> Tensor:
        return self.rows(slice(None)).against(student_NV, choice, temperature_N)

    def top(self) -> Tensor:
        return self.rows(slice(None)).top()

    def entropy(self) -> Tensor:
        return self.rows(slice(None)).entropy()
