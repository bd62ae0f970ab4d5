"""Router regularisers, over the chunks of one sequence.

R rows (sequences), C chunks, E choices of a head, J binary heads. chunks_RC: bool, the chunks that exist.
Every loss is (sum over rows with a chunk, number of those rows): one unit, the sequence, for all of them. The
papers average over a batch; here over a row's own chunks, so that a batch of 8 equals 8 batches of 1. The
price: a target for the mean binds every sequence, not only the average one, and the fewer chunks, the harder.
Where one chunk would make the term meaningless it is switched off and says so.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from quietreasoning.losses.rows import row_mean, statistic, sum_rows


def router_z(logits_RCE: Tensor, chunks_RC: Tensor, binary: bool = False) -> tuple[Tensor, Tensor]:
    """Mean over a row's chunks of logsumexp(logits)^2 (ST-MoE, arXiv 2202.08906, eq. 5).

    binary: logits_RCJ are J heads of their own; each stands for the pair (0, l), whose logsumexp is
    softplus(l); mean over heads.
    """
    logits_RCE = statistic(logits_RCE)
    z2_RC = F.softplus(logits_RCE).square().mean(-1) if binary else logits_RCE.logsumexp(-1).square()
    return sum_rows(row_mean(z2_RC, chunks_RC), chunks_RC.any(1))


def balance(p_RCE: Tensor, chunks_RC: Tensor, chosen_RCE: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """E * sum_e f_e P_e (Switch, arXiv 2101.03961, eq. 4); 1 when balanced, E when one expert takes all.

    f_e: share of the row's chunks sent to e (chosen_RCE, e.g. a top-k mask, else the arg max; no gradient),
    P_e: mean probability. A row of one chunk has nothing to balance: it costs 1, without gradient, for else
    it would be punished for deciding.
    """
    p_RCE = statistic(p_RCE)
    experts = p_RCE.shape[-1]
    if chosen_RCE is None:
        chosen_RCE = F.one_hot(p_RCE.argmax(-1), experts)
    sent_RCE = chosen_RCE.detach().to(p_RCE)
    sent_RCE = sent_RCE / sent_RCE.sum(-1, keepdim=True).clamp(min=1e-9)
    cost_R = experts * (row_mean(sent_RCE, chunks_RC) * row_mean(p_RCE, chunks_RC)).sum(-1)
    return sum_rows(cost_R.masked_fill(chunks_RC.sum(1) < 2, 1.0), chunks_RC.any(1))


def entropy_floor(
    p_RCE: Tensor, chunks_RC: Tensor, floor: float, binary: bool = False
) -> tuple[Tensor, Tensor]:
    """relu(floor - H(mean over the row's chunks of p))^2, H in nats.

    Of the mean, so that single decisions may be confident as long as they differ; a row of one chunk must
    keep the floor in its one decision, so keep the floor low (0.1 leaves a binary head up to p = 0.98).
    binary: p_RCJ are J probabilities of yes; mean over heads of the squared hinge.
    """
    mean_RE = row_mean(statistic(p_RCE), chunks_RC)
    entropy_RE = _entropy(mean_RE)
    if binary:
        short_R = (floor - entropy_RE - _entropy(1 - mean_RE)).relu().square().mean(-1)
    else:
        short_R = (floor - entropy_RE.sum(-1)).relu().square()
    return sum_rows(short_R, chunks_RC.any(1))


def _entropy(p: Tensor) -> Tensor:
    return -p * p.clamp(min=1e-9).log()  # finite slope at p = 0, where entr's is infinite


def expected_cost(p_RCJ: Tensor, cost_J: Tensor, chunks_RC: Tensor) -> Tensor:
    """(R,): what a row is expected to spend over all its chunks, sum_c sum_j p_j cost_j."""
    cost_RC = statistic(p_RCJ) @ cost_J.to(statistic(p_RCJ))
    return cost_RC.masked_fill(~chunks_RC, 0).sum(1)


def budget(cost_R: Tensor, rows_R: Tensor, limit: float | Tensor) -> tuple[Tensor, Tensor]:
    """relu(expected cost - limit) per row: the hinge that a weight or Lagrange multiplier scales.

    limit: one for all, or one a row (so much a chunk, times its chunks).
    """
    return sum_rows((statistic(cost_R) - limit).relu(), rows_R)


def gate_target(
    gate_RCJ: Tensor, chunks_RC: Tensor, mean: float = 0.4, std: float = 0.1
) -> tuple[Tensor, Tensor]:
    """(mean g - 0.4)^2 + relu(0.1 - std g)^2 over a row's chunks: used, but not always, and not a constant.

    gate: (R, C), or (R, C, J) for J gates, averaged. The second part needs two chunks and is 0 for one. Its
    slope vanishes where all gates of a row are equal; the language-model loss has to break that tie.
    """
    gate_RCJ = statistic(gate_RCJ)
    if gate_RCJ.dim() == 2:
        gate_RCJ = gate_RCJ[..., None]
    mean_RJ = row_mean(gate_RCJ, chunks_RC)
    variance_RJ = row_mean((gate_RCJ - mean_RJ[:, None]).square(), chunks_RC)
    narrow_RJ = (std - (variance_RJ + 1e-8).sqrt()).relu().square()
    narrow_RJ = narrow_RJ * (chunks_RC.sum(1) > 1)[:, None]
    return sum_rows(((mean_RJ - mean).square() + narrow_RJ).mean(-1), chunks_RC.any(1))
