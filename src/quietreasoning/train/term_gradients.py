"""How hard each term pulls: the norm of its own gradient, for the log.

    gradient/<term> = || d (weight * total / count) / d theta ||_2

over the trainable parameters: what the term adds to the step's gradient, before clipping. Two terms whose
norms differ by a thousand are one loss.

One lane of a rank is differentiated alone, its rows and no others; the count is that of all lanes and ranks,
as everywhere. So the figures of one step compare with each other; against `train/grad_norm` they are smaller
by about lanes times ranks, and where rows disagree their sum is smaller still. Nothing of the step changes:
no gradient is stored, and its backward follows on the same graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from quietreasoning.contract import Term


def share(term: Term, counts: Mapping[str, float]) -> Tensor:
    """weight * total / count: what a term adds to the loss. The only place where a loss is divided."""
    return term.total * (term.weight / max(counts[term.unit], 1.0))


def term_norms(
    terms: Mapping[str, Term], counts: Mapping[str, float], params: Sequence[nn.Parameter]
) -> dict[str, Tensor]:
    """Term -> the norm of its share's gradient, a scalar on the device; 0 where it has none.

    Costs a backward for each term with a weight, and keeps the graph. A gradient may be sparse.
    """
    norms = {}
    for name, term in terms.items():
        norms[name] = torch.zeros((), device=term.total.device)
        if term.weight and term.total.requires_grad:
            grads = torch.autograd.grad(share(term, counts), params, retain_graph=True, allow_unused=True)
            norms[name] = torch.nn.utils.get_total_norm([held(grad) for grad in grads if grad is not None])
    return norms


def held(grad: Tensor) -> Tensor:
    """The values a gradient holds: all of a dense one, the touched rows of a sparse one."""
    return grad.coalesce().values() if grad.is_sparse else grad
