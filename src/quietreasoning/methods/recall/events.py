"""Events of a store, found for prompts: who may read which, and their tokens side by side.

Shapes: B rows, P prompt tokens, K events of a row, E different events, N tokens of an event, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from quietreasoning.backbone import Backbone
from quietreasoning.backbone.weights import weights_identity
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE
from quietreasoning.memory.episodic import EpisodicStore, Found
from quietreasoning.memory.made import open_made
from quietreasoning.memory.vectors import unit
from quietreasoning.methods.recall.settings import Episodic

Row = list[Found]


def model_sha256(backbone: Backbone) -> str:
    """Of the weights at hand. UserError where no process holds them whole."""
    if any(hasattr(p, "full_tensor") for p in backbone.parameters()):
        raise UserError(
            "method.recall: weights that are sharded cannot be held against a store. Name the encoder in "
            "method.episodic.encoder and leave knn out, or set train.sharding=ddp"
        )
    return weights_identity(backbone)["sha256"]


def encoder_of(backbone: Backbone) -> str:
    """The name under which `encoded` makes vectors: of these very weights."""
    return f"{model_sha256(backbone)}:last"


def encoded(hidden_BTD: Tensor, real_BT: Tensor) -> Tensor:
    """What a text stands under and is asked by [B, D]: the mean of its last states at length 1, fp32."""
    hidden_BTD = hidden_BTD.float() * real_BT[..., None]
    mean_BD = hidden_BTD.sum(1) / real_BT.sum(1, keepdim=True).clamp(min=1)
    return torch.nn.functional.normalize(mean_BD, dim=-1)


class Events:
    """A store as a method asks it. It is opened, and held against the model, at the first query: by then a
    checkpoint's weights are in place."""

    def __init__(self, settings: Episodic, backbone: Backbone):
        self.settings, self._backbone = settings, backbone

    @cached_property
    def store(self) -> EpisodicStore:
        encoder = self.settings.encoder or encoder_of(self._backbone)
        return open_made(Path(self.settings.store), encoder=encoder, dim=self._backbone.width)

    def find(self, asked_BD: Tensor, k: int, *, count: bool = False) -> list[Row]:
        """The nearest k living events of each query, best first; one without a second token says nothing and
        is left out. count: they get a hit."""
        if not len(self.store):
            return [[] for _ in asked_BD]
        found = self.store.query(unit(asked_BD.detach().float().cpu().numpy()), k, count=count)
        return [[one for one in row if len(one.entry.tokens) > 1] for row in found]

    def foreign(self, keys_B: Tensor, k: int) -> list[Row]:
        """Events that have nothing to do with a row: the nearest to a direction drawn from its key."""
        width = self._backbone.width
        drawn = [torch.randn(width, generator=torch.Generator().manual_seed(int(key))) for key in keys_B]
        return self.find(torch.stack(drawn), k)


def drawn(keys_B: Tensor, share: float) -> Tensor:
    """Which rows [B] are corrupted, by their keys alone."""
    draws = [torch.rand((), generator=torch.Generator().manual_seed(int(key))) for key in keys_B]
    return torch.stack(draws) < share


def without_own(found: Sequence[Row], prompt_BP: Tensor) -> list[Row]:
    """The events less those in which the row's own prompt stands, whole: a row must not read itself."""
    return [
        [one for one in row if not holds(one.entry.tokens, prompt)]
        for row, prompt in zip(found, tokens_of(prompt_BP), strict=True)
    ]


def tokens_of(ids_BT: Tensor) -> list[list[int]]:
    return [[i for i in row if i != IGNORE] for row in ids_BT.tolist()]


def holds(tokens: Sequence[int], run: Sequence[int]) -> bool:
    """Whether `run` stands in `tokens`, in one piece. Nothing stands nowhere."""
    whole, part = (np.asarray(ids, "<i4").tobytes() for ids in (tokens, run))
    at = whole.find(part) if part else -1
    while at > 0 and at % 4:  # bytes that begin inside a token
        at = whole.find(part, at + 1)
    return at >= 0


@dataclass(frozen=True)
class Laid:
    """Events of B rows as tensors."""

    ids_EN: Tensor  # tokens of the different events, padded on the right
    index_BK: Tensor  # which of them each row has, -1 where it has fewer


def laid_out(found: Sequence[Row], device: torch.device) -> Laid | None:
    """None where no row has any event."""
    entries = {one.entry.id: one.entry for row in found for one in row}
    if not entries:
        return None
    place = {number: at for at, number in enumerate(entries)}
    longest, most = max(len(e.tokens) for e in entries.values()), max(map(len, found))
    ids = [[*e.tokens, *[IGNORE] * (longest - len(e.tokens))] for e in entries.values()]
    index_BK = [[*(place[one.entry.id] for one in row), *[-1] * (most - len(row))] for row in found]
    return Laid(torch.tensor(ids, device=device), torch.tensor(index_BK, device=device))


def prepended(found: Sequence[Row], prompt_BP: Tensor, room: int | None) -> Tensor:
    """Prompts with the tokens of their events before them, the nearest event last; padded on the left.

    room: tokens a row may have; the farthest events that do not fit are left out, whole.
    """
    rows = []
    for row, prompt in zip(found, tokens_of(prompt_BP), strict=True):
        ids = prompt
        for one in row:
            if room is not None and len(ids) + len(one.entry.tokens) > room:
                break
            ids = [*one.entry.tokens, *ids]
        rows.append(ids)
    longest = max(map(len, rows))
    padded = [[*[IGNORE] * (longest - len(row)), *row] for row in rows]
    return torch.tensor(padded, device=prompt_BP.device)
