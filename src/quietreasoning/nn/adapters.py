"""Banks of small changes to a linear layer, a few of which are chosen for each row.

R rows, T tokens, I inputs, O outputs, E adapters in the bank, K chosen, P rank, Q width of a fusion's query.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Choice(NamedTuple):
    """The adapters of each row, the same for all its tokens."""

    indices_RK: Tensor  # long
    weights_RK: Tensor
    shares_RE: Tensor | None = None  # what `spread` says, where it is known already


def spread(choice: Choice, adapters: int) -> Tensor:
    """Weights of all adapters [R, E], zero where not chosen."""
    if choice.shares_RE is not None:
        return choice.shares_RE
    zero_RE = choice.weights_RK.new_zeros(len(choice.weights_RK), adapters)
    return zero_RE.scatter(1, choice.indices_RK, choice.weights_RK)


class Held(NamedTuple):
    """A bank's say for rows whose choice stays, as in decoding: nothing is gathered anew."""

    down_RIC: Tensor  # of all chosen ranks, C = K x P
    up_RCO: Tensor  # with weights and scale
    scale_R1O: Tensor | None = None  # of the layer's own output; `up` has it already

    def __call__(self, x_RTI: Tensor, linear: nn.Linear) -> Tensor:
        base_RTO = linear(x_RTI) if self.scale_R1O is None else linear(x_RTI) * self.scale_R1O
        return torch.baddbmm(base_RTO, torch.bmm(x_RTI, self.down_RIC), self.up_RCO)


class AdapterBank(nn.Module):
    """LoRA (arXiv 2106.09685, section 4.1), E times: delta = sum_k w_k (alpha / rank) B_k A_k x.

    A is random and B zero, so a fresh bank changes nothing. Only chosen adapters are computed and get a
    gradient; the others' is zero, not missing: keep the bank out of weight decay, or it decays what nobody
    chose. Where all ranks together are few, all are computed and the others' weighed with zero, cheaper than
    gathering: `small` says how few. What they say stands beside a narrow input as further channels of the
    linear layer, so that the wide output is written once.
    """

    small = 64

    def __init__(self, in_features: int, out_features: int, adapters: int, rank: int, alpha: float):
        super().__init__()
        if adapters < 1 or rank < 1:
            raise ValueError(f"adapters={adapters}, rank={rank}: an empty bank; give at least 1 of each")
        self.adapters, self.rank, self.scale = adapters, rank, alpha / rank
        self.in_features, self.out_features = in_features, out_features
        self.down_EPI = nn.Parameter(torch.empty(adapters, rank, in_features))
        self.up_EOP = nn.Parameter(torch.empty(adapters, out_features, rank))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = self.in_features**-0.5  # as nn.Linear and the paper's code draw A
        nn.init.uniform_(self.down_EPI, -bound, bound)
        nn.init.zeros_(self.up_EOP)

    def forward(
        self,
        x_RTI: Tensor,
        choice: Choice,
        fusion: AdapterFusion | None = None,
        linear: nn.Linear | None = None,
    ) -> Tensor:
        """[R, T, I] -> [R, T, O] in x's dtype: two batched products over the K ranks side by side.

        linear: the layer the bank belongs to; its own output is added. With a fusion, its shares take the
        place of the weights token by token; equal to `fusion(x, self.each(x, choice), weights)` without the
        (R, T, K, O) between.
        """
        if fusion is None and self.adapters * self.rank <= self.small:
            return self._all(x_RTI, choice, linear)
        delta_RTO = self._chosen(x_RTI, choice, fusion)
        return delta_RTO if linear is None else linear(x_RTI) + delta_RTO

    def _all(self, x_RTI: Tensor, choice: Choice, linear: nn.Linear | None) -> Tensor:
        low_RTC = F.linear(x_RTI, self.down_EPI.flatten(0, 1).to(x_RTI.dtype))
        weights_RE1 = (spread(choice, self.adapters) * self.scale)[..., None].to(low_RTC.dtype)
        low_RTC = low_RTC * weights_RE1.expand(-1, -1, self.rank).flatten(1)[:, None]
        up_OC = self.up_EOP.transpose(0, 1).flatten(1)
        if linear is None:
            return F.linear(low_RTC, up_OC.to(low_RTC.dtype)).to(x_RTI.dtype)
        if self.in_features > self.out_features:
            base_NO, low_NC = linear(x_RTI).flatten(0, 1), low_RTC.flatten(0, 1)
            total_NO = torch.addmm(base_NO, low_NC.to(base_NO.dtype), up_OC.T.to(base_NO.dtype))
            return total_NO.unflatten(0, x_RTI.shape[:2])
        both_OI = torch.cat([linear.weight, up_OC.to(linear.weight.dtype)], 1)
        return F.linear(torch.cat([x_RTI, low_RTC.to(x_RTI.dtype)], 2), both_OI, linear.bias)

    def _chosen(self, x_RTI: Tensor, choice: Choice, fusion: AdapterFusion | None) -> Tensor:
        low_RTKP, up_RKOP = self._low(x_RTI, choice), self._gather(self.up_EOP, choice, x_RTI)
        if fusion is None:
            weights_RTK = choice.weights_RK[:, None]
        else:
            reading_RKQP = fusion.key.weight.to(up_RKOP) @ up_RKOP * self.scale
            keys_RTKQ = torch.einsum("rtkp,rkqp->rtkq", low_RTKP, reading_RKQP)
            weights_RTK = fusion.shares(x_RTI, keys_RTKQ, choice.weights_RK)
        low_RTKP = low_RTKP * (weights_RTK * self.scale)[..., None].to(low_RTKP.dtype)
        delta_RTO = torch.bmm(low_RTKP.flatten(2), up_RKOP.transpose(2, 3).flatten(1, 2)).to(x_RTI.dtype)
        return delta_RTO if fusion is None else fusion.value(delta_RTO)

    def hold(self, choice: Choice, scale_R1O: Tensor | None = None) -> Held:
        """What this choice adds, ready to use; scale: what layer and bank together are multiplied by."""
        weights_RKOP = self._gather(self.up_EOP, choice, self.up_EOP)
        weights_RKOP = weights_RKOP * (choice.weights_RK * self.scale)[..., None, None].to(weights_RKOP.dtype)
        up_RCO = weights_RKOP.mT.flatten(1, 2)
        down_RIC = self._gather(self.down_EPI, choice, self.down_EPI).flatten(1, 2).mT.contiguous()
        return Held(down_RIC, up_RCO if scale_R1O is None else up_RCO * scale_R1O, scale_R1O)

    def each(self, x_RTI: Tensor, choice: Choice) -> Tensor:
        """[R, T, I] -> [R, T, K, O]: (alpha / rank) B_k A_k x of every chosen adapter, without its weight."""
        low_RTKP, up_RKOP = self._low(x_RTI, choice), self._gather(self.up_EOP, choice, x_RTI)
        return (torch.einsum("rtkp,rkop->rtko", low_RTKP, up_RKOP) * self.scale).to(x_RTI.dtype)

    def merged(self, weights_E: Tensor) -> Tensor:
        """[E] -> [O, I]: what to add to W when the weights are the same for every input; fp32."""
        up_EOP = self.up_EOP.float() * (weights_E.float() * self.scale)[:, None, None]
        return torch.einsum("eop,epi->oi", up_EOP, self.down_EPI.float())

    def _gather(self, bank: Tensor, choice: Choice, x: Tensor) -> Tensor:
        return bank[choice.indices_RK].to(x.dtype)

    def _low(self, x_RTI: Tensor, choice: Choice) -> Tensor:
        down_RCI = self._gather(self.down_EPI, choice, x_RTI).flatten(1, 2)
        return torch.bmm(x_RTI, down_RCI.mT).unflatten(2, (-1, self.rank))


class IA3Bank(nn.Module):
    """IA3 (arXiv 2205.05638, section 3.3), E times: a scale per channel, 1 + sum_k w_k (l_k - 1).

    Starts at 1 everywhere: no weight decay, which would pull it to 0.
    """

    no_decay = ("scale_EW",)

    def __init__(self, width: int, adapters: int):
        super().__init__()
        if adapters < 1:
            raise ValueError(f"adapters={adapters}: an empty bank; give at least 1")
        self.scale_EW = nn.Parameter(torch.ones(adapters, width))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.scale_EW)

    def forward(self, choice: Choice, dtype: torch.dtype | None = None) -> Tensor:
        """[R, 1, W], to multiply keys, values or activations [R, T, W]; dtype: theirs, if not the bank's."""
        share_RE = spread(choice, len(self.scale_EW)).to(self.scale_EW.dtype)
        scale_RW = torch.addmm(self.scale_EW.new_ones(()), share_RE, self.scale_EW - 1)
        return scale_RW[:, None].to(dtype or self.scale_EW.dtype)

    def merged(self, weights_E: Tensor) -> Tensor:
        """[E] -> [W] for weights that are the same for every input; fp32."""
        return 1 + weights_E.float() @ (self.scale_EW.float() - 1)


class AdapterFusion(nn.Module):
    """AdapterFusion (arXiv 2005.00247, section 3.2): sum_k softmax_k(q(x) . k(o_k)) v(o_k), chosen adapters.

    Departures: outputs are LoRA deltas, not bottleneck adapters; q and k are narrow and scaled by 1 /
    sqrt(Q); v is a diagonal, 1 at the start, where the paper has a matrix near the identity (on every linear
    layer that would be more parameters than the trunk); and the softmax is weighted by the router and scaled
    back to the router's total, with k = 0 at the start, so that a fresh fusion is the bank's own weighted
    sum, and the router's weights keep their say and their gradient. No bias: zero deltas give zero.
    """

    def __init__(self, in_features: int, out_features: int, dim: int):
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim={dim}: no room for a query; give at least 1, e.g. the adapters' rank")
        self.query = nn.Linear(in_features, dim, bias=False)
        self.key = nn.Linear(out_features, dim, bias=False)
        self.diagonal_O = nn.Parameter(torch.empty(out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.query.reset_parameters()
        nn.init.zeros_(self.key.weight)
        nn.init.ones_(self.diagonal_O)

    def forward(self, x_RTI: Tensor, each_RTKO: Tensor, weights_RK: Tensor | None = None) -> Tensor:
        """[R, T, I] and the adapters' outputs [R, T, K, O] -> [R, T, O]; no weights: the paper's softmax."""
        keys_RTKQ = each_RTKO @ self.key.weight.T.to(each_RTKO.dtype)
        shares_RTK = self.shares(x_RTI, keys_RTKQ, weights_RK).to(each_RTKO.dtype)
        return self.value(torch.einsum("rtk,rtko->rto", shares_RTK, each_RTKO)).to(x_RTI.dtype)

    def shares(self, x_RTI: Tensor, keys_RTKQ: Tensor, weights_RK: Tensor | None) -> Tensor:
        """[R, T, K] fp32: w_k exp(s_k) / sum_j w_j exp(s_j), times sum_j w_j. Weights are not negative."""
        query_RTQ = x_RTI @ self.query.weight.T.to(x_RTI.dtype)
        score_RTK = torch.einsum("rtq,rtkq->rtk", query_RTQ.to(keys_RTKQ.dtype), keys_RTKQ)
        statistic = torch.promote_types(score_RTK.dtype, torch.float32)
        score_RTK = score_RTK.to(statistic) * self.query.weight.shape[0] ** -0.5
        if weights_RK is None:
            return score_RTK.softmax(-1)
        weights_R1K = weights_RK[:, None].to(statistic)
        mass_RTK = weights_R1K * (score_RTK - score_RTK.amax(-1, keepdim=True)).exp()
        total_R11 = weights_R1K.sum(-1, keepdim=True)
        return mass_RTK / mass_RTK.sum(-1, keepdim=True).clamp(min=1e-20) * total_R11

    def value(self, delta_RTO: Tensor) -> Tensor:
        """v is linear and shared by all adapters, so it may come after their sum."""
        return delta_RTO * self.diagonal_O.to(delta_RTO.dtype)
