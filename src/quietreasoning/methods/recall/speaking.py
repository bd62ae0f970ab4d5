"""Writing with what was retrieved: what `greedy` takes for a model reads events, and mixes neighbours in.

Shapes: B rows, T tokens so far, D width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quietreasoning.backbone import Backbone, Past, States
from quietreasoning.contract import IGNORE
from quietreasoning.methods.recall.asking import Fuse
from quietreasoning.methods.recall.neighbours import Datastore, Queries


class Voice:
    """A model whose head reads fused states. It is a stranger to the model, which stays as it is."""

    def __init__(self, backbone: Backbone, fuse: Fuse | None, lookups: Lookups | None):
        self.backbone, self.fuse, self.lookups = backbone, fuse, lookups

    def __call__(self, ids_B1: Tensor, role_B1: Tensor, past: Past) -> States:
        states = self.backbone(ids_B1, role_B1, past)
        if self.lookups is not None:
            self.lookups.wrote(ids_B1)
        return states

    def logits(self, hidden_BD: Tensor) -> Tensor:
        if self.fuse is not None:
            hidden_BD = self.fuse(hidden_BD[:, None])[:, 0]
        logits_BV = self.backbone.logits(hidden_BD)
        return logits_BV if self.lookups is None else self.lookups.mixed(logits_BV)


class Lookups:
    """The look-ups of answers that are being written: who still may, and what they have cost.

    rare_B: whose answer is looked up at all. shuffled: each row gets what the row before it retrieves, as far
    from it as that is.
    """

    def __init__(
        self, datastore: Datastore, queries: Queries, ids_BT: Tensor, rare_B: Tensor, shuffled: bool
    ):
        self.datastore, self.queries, self.ids_BT, self.shuffled = datastore, queries, ids_BT, shuffled
        self.rare, self.spent = rare_B.tolist(), [0] * len(ids_BT)
        self.open = [True] * len(ids_BT)

    def wrote(self, ids_B1: Tensor) -> None:
        self.ids_BT = torch.cat([self.ids_BT, ids_B1], 1)
        self.open = (ids_B1[:, 0] != IGNORE).tolist()

    def mixed(self, logits_BV: Tensor) -> Tensor:
        most = self.datastore.settings.max_lookups
        asks = [
            rare and is_open and spent < most
            for rare, is_open, spent in zip(self.rare, self.open, self.spent, strict=True)
        ]
        rows = [row for row, does in enumerate(asks) if does]
        if not rows:
            self.queries.forget()
            return logits_BV
        read = {*rows, *((row - 1) % len(asks) for row in rows)} if self.shuffled else rows
        query_BD = self.queries.newest(self.ids_BT, sorted(read))
        asked_BD = query_BD.roll(1, dims=0) if self.shuffled else None
        return self.datastore.knn.mixed(logits_BV, query_BD, self.spent, asks, asked_BD)
