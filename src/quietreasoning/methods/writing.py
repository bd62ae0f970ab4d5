"""Writing an answer: one loop for every method, and the books a `Response` keeps.

A method says what stands before the first written token (`Writer.prepare`); the rest is here.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from quietreasoning.backbone import Backbone, Past, States, last_hidden, role_of
from quietreasoning.backbone.sampling import sample
from quietreasoning.contract import Markers, Method, Permit, Response, Role
from quietreasoning.methods.sequence import filler_embedding, prefix_ids
from quietreasoning.nn.corrupt import corrupt


@dataclass(frozen=True)
class Ready:
    """A cache that the next token can be written after, and what it cost."""

    states: States
    given: bool = True  # the answer prefix was read; else the method writes it
    passes: int | Sequence[int] = 0  # sequential ones before the first written token, of all rows or of each
    latent_steps: int | Sequence[int] = 0  # of all rows, or of each
    heads: list[list[int]] | None = None  # tokens of each row that were written before, answer prefix last
    confidence: list[float] | None = None  # of each row, that its answer will be right


class Speaker(Method):
    """A method that answers in tokens of its own choice."""

    takes_effort: ClassVar[bool] = True

    @abstractmethod
    def say(
        self,
        prompt_BP: Tensor,
        control: str | None,
        effort: int | None,
        limit: int,
        permit: Permit | None = None,
    ) -> tuple[list[list[int]], Ready]:
        """What is written, at most `limit` tokens a row, and what stood before it; ValueError for a bad
        effort. permit: holds what follows the answer prefix (`behind`)."""

    @torch.no_grad()
    def generate(
        self,
        prompt_BP: Tensor,
        *,
        max_new_tokens: int,
        control: str | None = None,
        effort: int | None = None,
        permit: Permit | None = None,
    ) -> Response:
        self.refuse(control, effort)
        started = time.perf_counter()
        rows, ready = self.say(prompt_BP, control, effort, max_new_tokens, permit)
        return respond(rows, self.markers, ready, started)

    def refuse(self, control: str | None, effort: int | None) -> None:
        """ValueError for a dial that this method has not."""
        name = self.config.name
        if control is not None and control not in self.controls:
            choices = ", ".join(self.controls) or "none: it has no thoughts to corrupt"
            raise ValueError(f"control={control!r} does not apply to {name}; it takes {choices}")
        if effort is not None and not self.takes_effort:
            raise ValueError(f"effort={effort} does not apply to {name}, which has no latent steps to vary")


class Writer(Speaker):
    """A method that reads, then writes its answer token by token."""

    @abstractmethod
    def prepare(self, prompt_BP: Tensor, control: str | None, effort: int | None, limit: int) -> Ready:
        """Everything before the answer. limit: most tokens a row may write; ValueError for a bad effort."""

    def say(
        self,
        prompt_BP: Tensor,
        control: str | None,
        effort: int | None,
        limit: int,
        permit: Permit | None = None,
    ) -> tuple[list[list[int]], Ready]:
        ready = self.prepare(prompt_BP, control, effort, limit)
        if not ready.given and ready.heads is None:
            permit = behind(permit, self.markers.answer_prefix)
        return self.write(ready.states, limit, permit), ready

    def write(self, states: States, limit: int, permit: Permit | None = None) -> list[list[int]]:
        """What the model says after `states`, a row each."""
        eos = self.markers.eos
        return greedy(
            self.backbone, states.past, last_hidden(states), max_new_tokens=limit, eos=eos, permit=permit
        )

    def prefix(self, prompt_BP: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and roles [B, M] of the answer prefix behind each prompt."""
        ids_BM = prefix_ids(self.markers, len(prompt_BP), prompt_BP.device)
        return ids_BM, role_of(ids_BM, Role.MARKER)

    def corrupted(
        self, thoughts_BKD: Tensor, control: str | None, prompt_BP: Tensor, real_BK: Tensor | None = None
    ) -> Tensor:
        """The thoughts under a control; as they are without one."""
        if control is None:
            return thoughts_BKD
        filler_D = filler_embedding(self.backbone, self.markers, prompt_BP.device)
        return corrupt(thoughts_BKD, control, filler_D, row_seeds(prompt_BP), real_BK)


def greedy(
    backbone: Backbone,
    past: Past,
    hidden_BD: Tensor,
    *,
    max_new_tokens: int,
    eos: int,
    permit: Permit | None = None,
) -> list[list[int]]:
    """Write the most likely tokens until end of sequence or the limit.

    A row that has ended feeds padding, which no other row sees: answers do not depend on the batch.
    `past` grows in place. Rows do not keep the end of sequence.
    """
    rows = sample(backbone, past, hidden_BD, max_new_tokens=max_new_tokens, eos=eos, permit=permit)
    return [row[:-1] if row[-1:] == [eos] else row for row in rows]


def behind(permit: Permit | None, prefix: tuple[int, ...]) -> Permit | None:
    """The permit for rows that write the answer prefix themselves: before it all may be written."""
    if permit is None:
        return None

    def asked(row: int, tokens: Sequence[int], logits_V: Tensor) -> Tensor | None:
        at = find(tokens, prefix)
        return None if at is None else permit(row, tokens[at + len(prefix) :], logits_V)

    return asked


def find(tokens: Sequence[int], prefix: tuple[int, ...]) -> int | None:
    """Where `prefix` begins in `tokens`, or None."""
    for start in range(len(tokens) - len(prefix) + 1):
        if tuple(tokens[start : start + len(prefix)]) == prefix:
            return start
    return None


def respond(rows: list[list[int]], markers: Markers, ready: Ready, started: float) -> Response:
    """A Response from written rows. Where the answer prefix was not given it is searched for, and a row that
    never wrote it has no answer."""
    prefix, passes = markers.answer_prefix, of_each(ready.passes, len(rows))
    if ready.heads is not None:
        rows = [[*head, *row] for head, row in zip(ready.heads, rows, strict=True)]
    if ready.given:
        answers, visible, spent = rows, [0] * len(rows), passes
        tokens = [[*prefix, *row] for row in rows]
    else:
        answers, visible, spent, tokens = [], [], [], rows
        for row, before in zip(rows, passes, strict=True):
            at = find(row, prefix)
            first = len(row) if at is None else at + len(prefix)  # where the answer begins
            answers.append(row[first:])
            visible.append(first if at is None else at)
            spent.append(before + first)
    steps = of_each(ready.latent_steps, len(rows))
    milliseconds = (time.perf_counter() - started) * 1000
    return Response(tokens, answers, visible, spent, steps, milliseconds, ready.confidence)


def of_each(count: int | Sequence[int], rows: int) -> list[int]:
    """A number of all rows, or of each, as a list."""
    return [count] * rows if isinstance(count, int) else list(count)


def row_seeds(prompt_BP: Tensor) -> list[int]:
    """One seed a prompt, from its tokens alone, so that noise does not depend on the batch."""
    weights_P = torch.arange(prompt_BP.shape[1], 0, -1, device=prompt_BP.device)
    return (prompt_BP.clamp(min=0) * weights_P).sum(1).tolist()
