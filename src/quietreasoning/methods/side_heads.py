"""Heads beside thoughts that come one after another: rows that stop apart, answers with a confidence.

Read `until_halted` for generation and `side_terms` for training. Shapes: B rows, K thoughts, T visible
tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from quietreasoning.backbone import Backbone, States, last_hidden
from quietreasoning.config import UserError
from quietreasoning.contract import Batch, Markers, Role, Term
from quietreasoning.methods.halting import HaltSettings, halt_term, halt_unit
from quietreasoning.methods.judged import JudgedConfig
from quietreasoning.methods.latent import LatentMethod, Thoughts
from quietreasoning.methods.self_evaluation import (
    answer_outcome,
    self_evaluation_term,
)
from quietreasoning.methods.sequence import Visible, count_labels, score_visible
from quietreasoning.nn.side_heads import HaltHead


class HeadedConfig(JudgedConfig):
    """Settings of a method that may have heads beside its thoughts."""

    HEADS: ClassVar[tuple[str, ...]] = ("halt", "self_evaluation")

    name: str
    """Which method."""
    halt: HaltSettings | None = Field(None)
    """Stop each row's thoughts where its hazard says so; null = always all of them."""


class Depths(NamedTuple):
    """What stopping after each thought would give: what a threshold is chosen from, without gradient."""

    hazard_BK: Tensor  # probability of stopping there
    right_BK: Tensor  # bool: greedy writing would give the gold answer
    confidence_BK: Tensor | None  # the method's own, where it has one


class Headed(LatentMethod):
    """A method whose thoughts come one after another, with a head that stops them and one that judges.

    A subclass calls `start_heads` at the end of its `__init__`, before `start_policy`; adds `side_units` to
    its units and `side_terms`, where there are some, to the terms of its training step; thinks by
    `until_halted` where it has a halting head and no effort is given; gives all thoughts in `think_through`.
    """

    config: HeadedConfig

    def __init__(self, backbone: Backbone, config: HeadedConfig, markers: Markers):
        super().__init__(backbone, config, markers)
        self.halt: HaltHead | None = None

    def start_heads(self) -> None:
        """Build what is configured. UserError for a model whose cache has no room for gaps."""
        if (halt := self.config.halt) is not None:
            if self.backbone.is_workspace or self.backbone.sliding:
                raise UserError(
                    "method.halt: rows that stop apart leave gaps, which a workspace model or a sliding "
                    "window would count. Choose a backbone with full attention in every layer, or set "
                    "method.halt=null."
                )
            self.halt = HaltHead(self.backbone.width, halt.hidden, halt.detach)
            self.halt.requires_grad_(halt.weight > 0)
        self.start_judge()

    @property
    def term_weights(self) -> dict[str, float]:
        halt = self.config.halt
        return super().term_weights | ({"halt": halt.weight, "early": halt.early} if halt else {})

    @property
    def halts(self) -> bool:
        """Whether the halting head learns."""
        return self.config.halt is not None and self.config.halt.weight > 0

    @property
    def practises(self) -> bool:
        """Whether the model learns to answer after fewer thoughts."""
        return self.config.halt is not None and self.config.halt.early > 0

    def side_units(self, batch: Batch) -> dict[str, int]:
        """What `side_terms` sums over; empty where there are none."""
        counts = self.judge_units(batch)
        counts |= halt_unit(self.config.halt, batch) if self.halts else {}
        return counts | ({"token": count_labels(batch, self.markers, None)} if self.practises else {})

    def until_halted(self, prompt: States, most: int, next_thought: Callable[[Tensor], Tensor]) -> Thoughts:
        """Thoughts of each row up to the first whose hazard is above the threshold, `most` at most.

        Whether to stop is read from the state that a thought is made of, so k thoughts cost k passes, as
        if there had never been more. A row that has stopped is fed padding, which no other row sees.
        """
        hidden_BD, past = last_hidden(prompt), prompt.past.fork()
        going_B = torch.ones(len(hidden_BD), dtype=torch.bool, device=hidden_BD.device)
        inputs, said, real = [], [], []
        while True:
            inputs.append(next_thought(hidden_BD))
            said.append(hidden_BD)
            real.append(going_B)
            going_B = going_B & ~(self.halt(hidden_BD).float().sigmoid() > self.config.halt.threshold)
            if len(inputs) == most or not going_B.any():
                break
            role_B1 = torch.where(going_B, int(Role.THOUGHT), int(Role.PAD))[:, None]
            states = self.backbone(inputs[-1][:, None], role_B1, past)
            hidden_BD, past = last_hidden(states), states.past
        real_BK = torch.stack(real, 1)
        content_BKD, said_BKD = (torch.stack(part, 1) for part in (inputs, said))
        taken = real_BK.sum(1).tolist()
        return Thoughts(content_BKD.masked_fill(~real_BK[..., None], 0), taken, taken, said_BKD, real_BK)

    def after_each(
        self, prompt: States, thoughts_BKD: Tensor, visible: Visible, last_BTD: Tensor | None, first: int = 1
    ) -> list[Tensor]:
        """States [B, T, D] that predict the visible tokens after `first` to K thoughts, one read for each but
        the last where that is given, which then is cut from its graph."""
        ids_BT, role_BT = visible.ids_BT[:, :-1], visible.role_BT[:, :-1]
        found = []
        for k in range(first, thoughts_BKD.shape[1] + (last_BTD is None)):
            states = self.read(prompt, thoughts_BKD[:, :k], ids_BT, role_BT)
            found.append(torch.cat([prompt.hidden_BTD[:, -1:], states.hidden_BTD], 1)[:, k:])
        return found if last_BTD is None else [*found, last_BTD.detach()]

    def side_terms(
        self,
        batch: Batch,
        prompt: States,
        thoughts_BKD: Tensor,
        hidden_BKD: Tensor,
        last_BTD: Tensor | None,
    ) -> tuple[dict[str, Term], dict[str, tuple[Tensor, Tensor]]]:
        """Terms of the heads, and of answers after fewer thoughts. Where rows may stop apart, all of them are
        about the answers after every thought; these are read without gradient unless they are practised."""
        halt, terms, metrics, outcome = self.config.halt, {}, {}, None
        if self.judges or self.practises or halt.compares:
            visible = self.visible(batch)
            first = 1 if halt is not None else max(1, thoughts_BKD.shape[1])
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.practises):
                reads = self.after_each(prompt, thoughts_BKD, visible, last_BTD, first)
            each = [answer_outcome(self.backbone, read_BTD, visible.labels_BT) for read_BTD in reads]
            outcome = [torch.stack(part, 1) for part in zip(*each, strict=True)]
        if self.practises:
            totals = [score_visible(self.backbone, read_BTD, visible)[0] for read_BTD in reads[:-1]]
            terms["early"] = Term(torch.stack(totals).mean(), "token", halt.early)
        if self.halts:
            logp_BK = outcome[0] if halt.compares else None
            terms["halt"], measured = halt_term(halt, self.halt(hidden_BKD), logp_BK, batch.halt_B2)
            metrics |= measured
        if self.judges:
            z_BK, weight = self.self_evaluation(self._asked(reads)), self.config.self_evaluation.weight
            terms["self_evaluation"], measured = self_evaluation_term(z_BK, outcome[1], weight)
            metrics |= measured
        return terms, metrics

    @torch.no_grad()
    def depths(self, batch: Batch) -> Depths:
        """ValueError without a halting head."""
        if self.halt is None:
            raise ValueError("depths compares where to stop, and method.halt is null")
        prompt, visible = self.open(batch.prompt_BP), self.visible(batch)
        thoughts = self.think_through(prompt)
        reads = self.after_each(prompt, thoughts.content_BKD, visible, None)
        right = [answer_outcome(self.backbone, read_BTD, visible.labels_BT)[1] for read_BTD in reads]
        confidence_BK = None
        if self.self_evaluation is not None:
            confidence_BK = self.self_evaluation(self._asked(reads)).float().sigmoid()
        hazard_BK = self.halt(thoughts.said_BKD).float().sigmoid()
        return Depths(hazard_BK, torch.stack(right, 1), confidence_BK)

    def _asked(self, reads: list[Tensor]) -> Tensor:
        """States [B, K, D] at the end of the answer prefix, of those that predict visible tokens."""
        return torch.stack([read_BTD[:, len(self.markers.answer_prefix)] for read_BTD in reads], 1)
