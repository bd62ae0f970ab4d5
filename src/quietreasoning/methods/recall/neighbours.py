"""A kNN-LM datastore beside a method: its neighbours in training and in writing, and who asks for them.

Shapes: B rows, T tokens, A answer tokens, n queries, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from quietreasoning.backbone import Backbone
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Batch
from quietreasoning.memory.datastore import Source
from quietreasoning.memory.ffn_input import joined, read_ffn, watch_ffn
from quietreasoning.memory.knn_index import KNNIndex
from quietreasoning.memory.knn_lm import KNNLM, KNNSettings
from quietreasoning.memory.knn_weight import Evidence, Lambda
from quietreasoning.methods.recall.events import model_sha256
from quietreasoning.methods.recall.settings import Neighbours

OWN = 1e-5  # of a query's squared length: a key no farther is that of the same text


class Datastore:
    """Neighbours of a model's states; opened, and held against the model, at the first look-up."""

    def __init__(self, settings: Neighbours, backbone: Backbone, weight: Lambda):
        self.settings, self._backbone, self._weight = settings, backbone, weight

    @cached_property
    def knn(self) -> KNNLM:
        """The index's tokenizer is taken at its word: a method has none, and the weights tell the model."""
        path, backbone, told = Path(self.settings.index), self._backbone, self.settings.model_dump()
        said = KNNIndex.open(path, backbone.width).sidecar.made_by.get("source")
        if not isinstance(said, dict) or not said.get("tokenizer_sha256"):
            raise UserError(
                f"method.knn.index={path} does not say whose states it holds. Make it of a datastore: quiet "
                "index keys, then quiet index knn --keys FOLDER"
            )
        source = Source(
            model_sha256(backbone), said["tokenizer_sha256"], backbone.width, int(said["vocabulary"])
        )
        settings = KNNSettings(**{name: told[name] for name in KNNSettings.model_fields})
        keys = None if self.settings.keys is None else Path(self.settings.keys)
        return KNNLM.open(path, source, self._weight, settings=settings, keys=keys)

    def foreign(self, batch: Batch, share: float) -> Tensor:
        """Entries [B, A] that answer tokens ask by in the place of their own states; -1 where by their own.

        The rows and the entries are drawn by the rows' keys; the first number that a key gives decides on
        events (`events.drawn`), so that a row may have foreign ones of either kind alone.
        """
        foreign_BA = torch.full(batch.answer_BA.shape, -1)
        draws = [torch.Generator().manual_seed(key) for key in batch.keys_B.tolist()] if share else []
        for row, draw in enumerate(draws):
            if torch.rand(2, generator=draw)[1] < share:
                foreign_BA[row] = torch.randint(len(self.knn.index), foreign_BA[row].shape, generator=draw)
        return foreign_BA.to(batch.answer_BA.device)

    def evidence(
        self, query_nD: Tensor, vocabulary: int, foreign_n: Tensor, *, without_own: bool
    ) -> Evidence:
        """What n look-ups find. foreign: as above. without_own: a text does not find itself, nor another that
        says the same up to here."""
        asked_nD, gone_n = None, foreign_n >= 0
        if gone_n.any():
            asked_nD = query_nD.float().clone()
            asked_nD[gone_n] = torch.from_numpy(self.knn.keys.take(foreign_n[gone_n].cpu().numpy())).to(
                asked_nD
            )
        return self.knn.evidence(query_nD, vocabulary, asked_nD, OWN if without_own else None)


class Queries:
    """The states that keys are made of, of what a model has just read.

    A workspace model lays rows of different lengths out anew, so that nothing can be watched there: its rows
    are read once more, those of one length together and without padding.
    """

    def __init__(self, backbone: Backbone, seen: list[Tensor] | None):
        self._backbone, self._seen = backbone, seen

    def of(self, ids_BT: Tensor) -> Tensor:
        """[B, T, D] of the ids that the last forward read, zero or without meaning at padding."""
        return read_apart(self._backbone, ids_BT) if self._seen is None else joined(self._seen, *ids_BT.shape)

    def newest(self, ids_BT: Tensor, rows: list[int]) -> Tensor:
        """[B, D] of the last token of ids_BT, of these rows at least, after a forward of whatever of them."""
        if self._seen is not None:
            newest_BD = self._seen[-1][:, -1]
            self._seen.clear()
            return newest_BD
        states_BD = torch.zeros(len(ids_BT), self._backbone.width, device=ids_BT.device)
        states_BD[rows] = read_apart(self._backbone, ids_BT[rows])[:, -1]
        return states_BD

    def forget(self) -> None:
        """Nothing will be asked by what was read so far."""
        if self._seen is not None:
            self._seen.clear()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is read inside the block is no text of the rows."""
        kept = list(self._seen or ())
        yield
        if self._seen is not None:
            self._seen[:] = kept


@contextmanager
def queries(backbone: Backbone) -> Iterator[Queries]:
    with nullcontext() if backbone.is_workspace else watch_ffn(backbone.model) as seen:
        yield Queries(backbone, seen)


def read_apart(backbone: Backbone, ids_BT: Tensor) -> Tensor:
    """What the last feed-forward layer reads [B, T, D], each row as if it were alone and without padding."""
    real_BT = ids_BT != IGNORE
    states_BTD = torch.zeros(*ids_BT.shape, backbone.width, device=ids_BT.device)
    length_B = real_BT.sum(1)
    for length in length_B.unique().tolist():
        if length:
            here_BT = real_BT & (length_B == length)[:, None]
            alike_bL = ids_BT[here_BT].reshape(-1, length)
            states_BTD[here_BT] = read_ffn(backbone.model, alike_bL).to(states_BTD).flatten(0, 1)
    return states_BTD
