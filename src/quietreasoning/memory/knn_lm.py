"""kNN-LM: the next-token distribution of a language model, mixed with what followed its nearest known states.

"Generalization through Memorization" (arXiv 1911.00172, equations 2 and 3), with a weight of each token's
own in [0, 0.5] that sees what was found (`knn_weight`), and look-ups only where a rare entity is likely
("When Not to Trust Language Models", arXiv 2212.10511, section 5, retrieves by popularity). The head of the
model is where the mixture enters, so that whatever scores, samples or searches sees the same distribution;
`KNNLogits` does the same for `generate`.

Shapes: B rows, T positions, K neighbours, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from quietreasoning.config import Settings, UserError
from quietreasoning.memory.arrays import VALUES, Rows, bounds, open_values
from quietreasoning.memory.datastore import Source
from quietreasoning.memory.knn_index import (
    AGAIN,
    CANDIDATES,
    KNNIndex,
    own_keys,
    search_exactly,
    search_for_others,
)
from quietreasoning.memory.knn_weight import MAX_LAMBDA, Evidence
from quietreasoning.memory.sidecar import check, hash_of, sidecar_of


class KNNSettings(Settings):
    """How an answer may use its datastore."""

    neighbours: int = Field(32, ge=1, le=32)
    """Entries that a look-up fetches."""
    candidates: int = Field(CANDIDATES, ge=1)
    """Times as many are ranked by their exact distances, where the keys are at hand."""
    temperature: float = Field(1.0, gt=0)
    """Of the softmax over negative squared distances; tune it on development data with the weight."""
    rare_entity_threshold: float = Field(0.2, ge=0, le=1)
    """Least probability of a rare entity at which a token is looked up; 0 looks up every token."""
    max_lookups: int = Field(3, ge=0)
    """Look-ups an answer may cost; its later tokens are the model's alone."""


def values_of(index: Path) -> Path:
    """Where the values of an index stand."""
    return index.with_name(f"{index.name}.values.npy")


def own_values(index: KNNIndex, path: Path) -> Rows:
    """The values that an index at `path` was made with; UserError where others stand beside it."""
    beside = values_of(path)
    if sidecar_of(beside).exists():
        check(beside, kind=VALUES, again=AGAIN)
    if not beside.is_file() or hash_of(beside) != index.sidecar.made_by.get("values_sha256"):
        raise UserError(f"{beside} is missing, or was not made with {path}; {AGAIN}")
    return open_values(beside, "values", len(index))


def knn_log_probs(distances_BK: Tensor, tokens_BK: Tensor, temperature: float, vocabulary: int) -> Tensor:
    """log p_kNN [B, V], float32: softmax(-d / T) over what was found, added up where a token stands twice.

    distances: squared L2. tokens: -1 where nothing was found, which then has no share. -inf for tokens that
    no neighbour has; a row without any neighbour is -inf throughout.
    """
    found_BK = tokens_BK >= 0
    scores_BK = (-distances_BK.double() / temperature).masked_fill(~found_BK, -torch.inf)
    scores_BK = scores_BK - scores_BK.amax(1, keepdim=True).clamp(min=torch.finfo(torch.double).min)
    shares_BK = scores_BK.exp()
    shares_BK = shares_BK / shares_BK.sum(1, keepdim=True).clamp(min=torch.finfo(torch.double).tiny)
    p_BV = shares_BK.new_zeros(len(tokens_BK), vocabulary)
    return p_BV.scatter_add_(1, tokens_BK.clamp(min=0), shares_BK).log().float()


def mix(log_lm: Tensor, log_knn: Tensor, weight: Tensor) -> Tensor:
    """log of weight p_kNN + (1 - weight) p_LM, elementwise; exactly `log_lm` where the weight is 0."""
    quiet = weight <= 0
    safe = weight.clamp(min=torch.finfo(weight.dtype).tiny)
    mixed = torch.logaddexp(safe.log() + log_knn, torch.log1p(-weight) + log_lm)
    return torch.where(quiet, log_lm, mixed)


@dataclass
class Counts:
    """What look-ups cost and found."""

    tokens: int = 0  # that were asked about
    rare: int = 0  # of them above the threshold
    lookups: int = 0
    neighbours: int = 0  # that were found
    refused: int = 0  # rare, with the answer's budget spent


@dataclass
class KNNLM:
    """A datastore beside a model: which neighbours its states have, and the mixture with its logits.

    weight: what n look-ups found -> [n] in [0, 0.5], such as `Lambda`. rare: [n, D] -> [n], by the query
    state, the probability that a rare entity comes next; without one every token counts as rare.
    keys: as they were, on disk; with them `candidates` for each neighbour are ranked by exact distances.
    """

    index: KNNIndex
    values: NDArray[np.integer]
    source: Source
    weight: Callable[[Evidence], Tensor]
    rare: Callable[[Tensor], Tensor] | None = None
    settings: KNNSettings = field(default_factory=KNNSettings)
    keys: Rows | None = None
    counts: Counts = field(default_factory=Counts)

    @classmethod
    def open(
        cls,
        path: Path,
        source: Source,
        weight: Callable[[Evidence], Tensor],
        rare: Callable[[Tensor], Tensor] | None = None,
        settings: KNNSettings | None = None,
        keys: Path | None = None,
    ) -> KNNLM:
        """An index with the values beside it, and its keys where candidates shall be ranked exactly.

        UserError for damaged files, and for those of another model, tokenizer or layer.
        """
        index = KNNIndex.open(path, source.dim)
        source.check(index.sidecar.made_by.get("source"), str(path))
        values = own_values(index, path)
        refuse_foreign(values, source.vocabulary, str(values_of(path)))
        rows = None if keys is None else own_keys(index, keys, str(path))
        return cls(index, values.parts[0], source, weight, rare, settings or KNNSettings(), rows)

    def look_up(self, query_BD: Tensor, asked_BD: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Squared distances to the queries and next tokens [B, K], on the CPU; -1 where nothing was found.

        asked: states that are looked up in the place of the queries, to which these neighbours are foreign.
        """
        k, queries = min(self.settings.neighbours, len(self.index)), _array(query_BD)
        if asked_BD is not None:
            asked, candidates = _array(asked_BD), self.settings.candidates
            distances, ids = search_for_others(self.index, self.keys, queries, asked, k, candidates)
        elif self.keys is None:
            distances, ids = self.index.search(queries, k)
        else:
            distances, ids = search_exactly(self.index, self.keys, queries, k, self.settings.candidates)
        tokens = np.where(ids >= 0, self.values[np.maximum(ids, 0)], -1).astype(np.int64)
        self.counts.lookups += len(queries)
        self.counts.neighbours += int((ids >= 0).sum())
        return torch.from_numpy(distances), torch.from_numpy(tokens)

    def evidence(
        self, query_BD: Tensor, vocabulary: int, asked_BD: Tensor | None = None, own: float | None = None
    ) -> Evidence:
        """What look-ups find, on the queries' device. own: share of a query's squared length; a key that is
        no farther does not count as found."""
        distances_BK, tokens_BK = (found.to(query_BD.device) for found in self.look_up(query_BD, asked_BD))
        if own is not None:
            size_B1 = query_BD.float().pow(2).sum(1, keepdim=True)
            tokens_BK = tokens_BK.masked_fill(distances_BK <= own * size_B1, -1)
        log_knn_BV = knn_log_probs(distances_BK, tokens_BK, self.settings.temperature, vocabulary)
        return Evidence(query_BD, distances_BK, tokens_BK, log_knn_BV)

    def share(self, evidence: Evidence) -> Tensor:
        """lambda [B] of what was found; 0 where that is nothing."""
        return self.weight(evidence).clamp(0, MAX_LAMBDA).float() * evidence.some_B

    @torch.no_grad()
    def mixed(
        self,
        logits_BV: Tensor,
        query_BD: Tensor,
        spent: list[int],
        asks: Sequence[bool],
        asked_BD: Tensor | None = None,
    ) -> Tensor:
        """Logits where nothing is looked up, bit for bit; elsewhere the log-probabilities of the mixture.

        spent: look-ups that each row's answer has cost, which is counted on here. asks: rows that are still
        writing. asked: as of `look_up`.
        """
        rows = [row for row in self._rare(query_BD, asks) if self._afford(spent, row)]
        if not rows:
            return logits_BV
        asked_bD = None if asked_BD is None else asked_BD[rows]
        evidence = self.evidence(query_BD[rows], logits_BV.shape[1], asked_bD)
        weight_b1 = self.share(evidence)[:, None].to(logits_BV.device)
        log_lm_bV = logits_BV[rows].float().log_softmax(-1)
        mixed_bV = mix(log_lm_bV, evidence.log_knn_BV.to(logits_BV.device), weight_b1)
        out_BV = logits_BV.clone()
        out_BV[rows] = torch.where(weight_b1 > 0, mixed_bV.to(out_BV.dtype), out_BV[rows])
        return out_BV

    def _rare(self, query_BD: Tensor, asks: Sequence[bool]) -> list[int]:
        asking = [row for row, does in enumerate(asks) if does]
        self.counts.tokens += len(asking)
        if self.rare is not None and asking:
            sure = (self.rare(query_BD[asking]) >= self.settings.rare_entity_threshold).tolist()
            asking = [row for row, is_rare in zip(asking, sure, strict=True) if is_rare]
        self.counts.rare += len(asking)
        return asking

    def _afford(self, spent: list[int], row: int) -> bool:
        if spent[row] >= self.settings.max_lookups:
            self.counts.refused += 1
            return False
        spent[row] += 1
        return True


def _array(states_BD: Tensor) -> NDArray[np.float32]:
    return states_BD.detach().float().cpu().numpy()


def refuse_foreign(values: Rows, vocabulary: int, where: str) -> None:
    """UserError where a value is no token."""
    low, high = bounds(values)
    if low < 0 or high >= vocabulary:
        raise UserError(
            f"{where}: token ids go from {low} to {high}, and the tokenizer has 0 to {vocabulary - 1}. Give "
            f"the values that belong to it, or {AGAIN}."
        )
