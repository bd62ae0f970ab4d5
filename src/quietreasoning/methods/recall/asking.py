"""Asking the store: which events a row gets, how near they are, and how an answer's states read them.

Shapes: B rows, P prompt tokens, T states of an answer, K events of a row, E different events, S places in the
events of a row, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from quietreasoning.backbone import Backbone, role_of
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Role
from quietreasoning.methods.recall.events import (
    Events,
    Row,
    drawn,
    encoded,
    holds,
    laid_out,
    tokens_of,
    without_own,
)
from quietreasoning.methods.recall.settings import Episodic
from quietreasoning.nn.event_reader import EventReader, QueryMap, log_shares

Fuse = Callable[[Tensor], Tensor]
"""Last states [B, T, D] -> those that the head reads instead."""


@dataclass(frozen=True)
class Retrieved:
    """What a query of the store gave B rows."""

    asked_BD: Tensor
    found: list[Row]  # candidates, nearest first
    events: int  # of them that are read

    @property
    def read(self) -> list[Row]:
        return [row[: self.events] for row in self.found]

    def shuffled(self) -> Retrieved:
        """Each row with what the row before it found."""
        return replace(self, found=[*self.found[-1:], *self.found[:-1]])

    def holding(self, answer_BA: Tensor, eos: int) -> list[list[bool]]:
        """Which candidates hold their row's answer."""
        answers = tokens_of(answer_BA.masked_fill(answer_BA == eos, IGNORE))
        pairs = zip(self.found, answers, strict=True)
        return [[holds(one.entry.tokens, answer) for one in row] for row, answer in pairs]


class Asker(nn.Module):
    """The trainable side of a store: a map of queries, and a reader of events where they are attended to."""

    def __init__(self, settings: Episodic, backbone: Backbone):
        super().__init__()
        width = backbone.width
        if settings.reading == "attend" and width % settings.heads:
            raise UserError(
                f"method.episodic.heads={settings.heads} does not divide the model's width {width}"
            )
        self.settings, self.events = settings, Events(settings, backbone)
        self.query_map = QueryMap(width) if settings.project else None
        self.reader = EventReader(width, settings.heads) if settings.reading == "attend" else None

    def find(
        self, hidden_BPD: Tensor, prompt_BP: Tensor, events: int, *, training: bool, count: bool = False
    ) -> Retrieved:
        """One query a prompt. training: rows may not read themselves. count: what is found gets a hit."""
        query_BD = encoded(hidden_BPD, prompt_BP != IGNORE)
        asked_BD = query_BD if self.query_map is None else self.query_map(query_BD)
        found = self.events.find(asked_BD, self.settings.candidates, count=count)
        return Retrieved(asked_BD, without_own(found, prompt_BP) if training else found, events)

    def corrupted(self, retrieved: Retrieved, prompt_BP: Tensor, keys_B: Tensor) -> Retrieved:
        """A share of the rows, by their keys, with foreign events in the place of what they found."""
        gone = drawn(keys_B, self.settings.corrupt).nonzero()[:, 0].tolist()
        if not gone:
            return retrieved
        foreign = without_own(self.events.foreign(keys_B[gone], self.settings.candidates), prompt_BP[gone])
        rows = dict(enumerate(retrieved.found)) | dict(zip(gone, foreign, strict=True))
        return replace(retrieved, found=list(rows.values()))

    def log_shares(self, retrieved: Retrieved, most: int) -> Tensor:
        """log p(event | query) [B, most] of the candidates; -inf where there is none."""
        vectors_BKD = np.zeros((len(retrieved.found), most, retrieved.asked_BD.shape[1]), np.float32)
        real_BK = np.zeros(vectors_BKD.shape[:2], bool)
        for b, row in enumerate(retrieved.found):
            for k, one in enumerate(row):
                vectors_BKD[b, k], real_BK[b, k] = one.entry.vector_D, True
        asked_BD = retrieved.asked_BD
        vectors_BKD, real_BK = (torch.from_numpy(a).to(asked_BD.device) for a in (vectors_BKD, real_BK))
        if self.query_map is None:
            return log_shares(1.0, asked_BD, vectors_BKD, real_BK)
        return self.query_map.log_shares(asked_BD, vectors_BKD, real_BK)

    def fuse(self, backbone: Backbone, retrieved: Retrieved) -> Fuse | None:
        """How states read these events; None where there are none."""
        laid = laid_out(retrieved.read, retrieved.asked_BD.device)
        if laid is None:
            return None
        share_BK = self.log_shares(retrieved, max(map(len, retrieved.found)))[:, : laid.index_BK.shape[1]]
        with torch.no_grad():
            states = backbone(laid.ids_EN, role_of(laid.ids_EN, Role.STEP))  # texts of their own
            before_ESD, token_ESD = states.hidden_BTD[:, :-1], backbone.embed(laid.ids_EN[:, 1:])
        at_BK, real_BK = laid.index_BK.clamp(min=0), laid.index_BK >= 0
        real_BKS = (laid.ids_EN[:, 1:] != IGNORE)[at_BK] & real_BK[..., None]
        score_BKS = share_BK.masked_fill(~real_BK, 0.0)[..., None].expand(real_BKS.shape)
        places = [each.flatten(1, 2) for each in (before_ESD[at_BK], token_ESD[at_BK], score_BKS, real_BKS)]
        return lambda hidden_BTD: self.reader(hidden_BTD, *places)

    def retrieve_loss(self, retrieved: Retrieved, answer_BA: Tensor, eos: int) -> Tensor:
        """- log of the share of the candidates that hold the answer, summed over rows that have such."""
        holding = retrieved.holding(answer_BA, eos)
        most = max(1, *map(len, holding))
        share_BK = self.log_shares(retrieved, most)
        right_BK = torch.tensor([row + [False] * (most - len(row)) for row in holding]).to(share_BK.device)
        log_b = share_BK.masked_fill(~right_BK, -torch.inf)[right_BK.any(1)].logsumexp(1)
        return -log_b.sum() + 0.0 * self.query_map.log_scale.sum()  # a graph, whatever was found
