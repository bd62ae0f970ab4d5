"""PQCache (arXiv 2407.12820): codes that tell, without reading the keys, which of them a query will want.

Shapes: B rows, G key/value heads, R query heads that share one, N closed tokens, P parts of a key, E = C / P
channels of a part, Z centroids, K tokens read.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quietreasoning.config import UserError
from quietreasoning.memory.kv_cache.settings import PQSettings
from quietreasoning.memory.kv_cache.stores import Pair, Store


class KeyIndex:
    """Product-quantised keys of a closed text. They save reading, not memory: exact pairs stay stored."""

    def __init__(self, settings: PQSettings, keys_BGNC: Tensor, valid_BN: Tensor, forced_BN: Tensor):
        """forced: tokens that are always read (sinks and the observation window)."""
        width = keys_BGNC.shape[-1]
        if width % settings.parts:
            raise UserError(
                f"pq.parts={settings.parts} does not divide the head width {width}; use a divisor of it"
            )
        self.settings, self.valid_BN, self.forced_BN = settings, valid_BN, forced_BN
        parts_BGPNE = keys_BGNC.unflatten(3, (settings.parts, -1)).transpose(2, 3)
        self.centroids_BGPZE, self.codes_BGPN = k_means(
            parts_BGPNE, valid_BN[:, None, None], settings.centroids, settings.rounds
        )
        self._set_sizes()

    def _set_sizes(self) -> None:
        forced = int(self.forced_BN.sum(1).max())
        count = self.valid_BN.shape[1]
        self.read = min(count, forced + self.settings.top)
        self.proposed = min(count, forced + int(self.settings.top * self.settings.candidates))

    def visible_BK(self) -> Tensor | None:
        """Which of the tokens that `pick` returns are real."""
        if bool(self.valid_BN.all()):
            return None
        return torch.arange(self.read, device=self.valid_BN.device) < self.valid_BN.sum(1)[:, None]

    def pick(self, query_BHC: Tensor, store: Store, scaling: float) -> Pair:
        """The exact keys and values [B, G, K, C] that this query's heads want most, real ones first."""
        query_BGRC = query_BHC.unflatten(1, (self.codes_BGPN.shape[1], -1))
        if self.proposed == self.valid_BN.shape[1]:
            index_BGK = torch.arange(self.proposed, device=query_BHC.device).expand(*query_BGRC.shape[:2], -1)
        else:
            index_BGK = self._propose(query_BGRC, scaling)
        keys, values = store.take(index_BGK)
        scores_BGRK = (query_BGRC @ keys.mT).float() * scaling
        at = tuple(
            t[:, None].expand(index_BGK.shape[0], index_BGK.shape[1], -1)
            for t in (self.valid_BN, self.forced_BN)
        )
        valid_BGK, forced_BGK = (t.gather(2, index_BGK) for t in at)
        chosen_BGK = _top(scores_BGRK, valid_BGK, forced_BGK, self.read)[..., None]
        chosen = chosen_BGK.expand(-1, -1, -1, keys.shape[-1])
        return keys.gather(2, chosen), values.gather(2, chosen)

    def _propose(self, query_BGRC: Tensor, scaling: float) -> Tensor:
        query_BGPRE = query_BGRC.unflatten(3, (self.settings.parts, -1)).transpose(2, 3)
        table_BGPRZ = query_BGPRE @ self.centroids_BGPZE.to(query_BGRC.dtype).mT
        codes_BGPRN = self.codes_BGPN.long()[:, :, :, None].expand(-1, -1, -1, table_BGPRZ.shape[3], -1)
        scores_BGRN = table_BGPRZ.gather(4, codes_BGPRN).sum(2).float() * scaling
        valid, forced = self.valid_BN[:, None], self.forced_BN[:, None]
        return _top(scores_BGRN, valid, forced, self.proposed)

    def rows(self, change: Callable[[Tensor], Tensor]) -> None:
        for name in ("centroids_BGPZE", "codes_BGPN", "valid_BN", "forced_BN"):
            setattr(self, name, change(getattr(self, name)))

    def tensors(self) -> tuple[Tensor, ...]:
        return self.centroids_BGPZE, self.codes_BGPN, self.valid_BN, self.forced_BN


def _top(scores_BGRN: Tensor, valid_BGN: Tensor, forced_BGN: Tensor, count: int) -> Tensor:
    """By the attention that the heads of a group pay together; forced ones first, padding last.

    Tokens of one code have one score: of equals the earlier comes first, or a row's choice would depend on
    the batch. Floats that are not negative are ordered as their bits are, so score and place fit one integer.
    """
    share_BGN = scores_BGRN.masked_fill(~valid_BGN[:, :, None], -torch.inf).softmax(-1).sum(2)
    bits_BGN = share_BGN.masked_fill(forced_BGN, torch.inf).view(torch.int32).long() << 32
    ranked_BGN = bits_BGN - torch.arange(bits_BGN.shape[-1], device=bits_BGN.device)
    return ranked_BGN.masked_fill(~valid_BGN, torch.iinfo(torch.long).min).topk(count, -1).indices


def k_means(x_BGPNE: Tensor, valid: Tensor, clusters: int, rounds: int) -> tuple[Tensor, Tensor]:
    """Lloyd's rounds from evenly spaced real tokens, so that a row's codes depend on nothing but the row.

    Centroids [B, G, P, Z, E] and codes, uint8 [B, G, P, N]. A centroid that loses all its tokens stays.
    """
    count_B = valid[:, 0, 0].sum(-1)
    spaced_BZ = torch.arange(clusters, device=x_BGPNE.device) * count_B[:, None] // clusters
    start = spaced_BZ[:, None, None, :, None].expand(*x_BGPNE.shape[:3], -1, x_BGPNE.shape[-1])
    x = x_BGPNE.float()
    centroids = x.gather(3, start)
    weight = valid[..., None].to(x.dtype)
    for _ in range(rounds):
        near = _nearest(x, centroids)[..., None]
        size = torch.zeros_like(centroids[..., :1]).scatter_add(3, near, weight.expand_as(x[..., :1]))
        total = torch.zeros_like(centroids).scatter_add(3, near.expand_as(x), x * weight)
        centroids = torch.where(size > 0, total / size.clamp(min=1), centroids)
    return centroids.to(x_BGPNE.dtype), _nearest(x, centroids).to(torch.uint8)


def _nearest(x: Tensor, centroids: Tensor) -> Tensor:
    """argmin |x - c|^2 = argmin |c|^2 - 2 x.c"""
    return (centroids.square().sum(-1)[..., None, :] - 2 * x @ centroids.mT).argmin(-1)
