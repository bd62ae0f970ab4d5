"""Row-wise Adam for tables of which a step reads a few rows: state and work of the rows that were read.

Adam's second moment (arXiv 1412.6980) kept once a row, as row-wise Adagrad does for embedding tables (DLRM,
arXiv 1906.00091); no first moment, no weight decay. For a row i with gradient g that is not all zero:

    count_i += 1;  square_i = b2 * square_i + (1 - b2) * mean(g^2)
    rms_i = sqrt(square_i / (1 - b2^count_i))
    row_i -= lr * g / (max(rms_i, FLOOR * rms) + eps)

rms is that of all rows with a gradient, over the last steps. Without this floor every row that is touched
moves by lr, also those that hardly had a part in the loss: the gradients of rows lie four orders of magnitude
apart, most belong to tokens at which nothing is learned, and they would write over what few rows were told.
All other rows keep every bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from quietreasoning.optim.shards import is_shard, local

FLOOR = 2.0
DECAY = 0.95  # of the mean over all rows


class RowwiseAdam(Optimizer):
    """Takes sparse or dense gradients, of whole tables or of tables sharded by rows."""

    def __init__(self, params: Iterable[Any], lr: float, beta2: float = 0.95, eps: float = 1e-8):
        super().__init__(params, {"lr": lr, "beta2": beta2, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        assert closure is None, "nothing here evaluates a loss anew"
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    if not state:
                        state |= {"square": _column(p, torch.float32), "count": _column(p, torch.int32)}
                        state |= {name: torch.zeros((), device=p.device) for name in ("steps", "mean")}
                    _update(p, state, group)


def _update(p: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    table_SV = local(p)
    rows_U, grad_UV = touched_rows(p.grad)
    grad_UV = grad_UV.float()
    mean_U1 = grad_UV.pow(2).mean(1, keepdim=True)
    least = FLOOR * _rms_of_all(p, state, mean_U1)
    square_S1, count_S1 = local(state["square"]), local(state["count"])
    count_U1 = count_S1[rows_U] + 1
    square_U1 = square_S1[rows_U].lerp(mean_U1, 1.0 - group["beta2"])
    count_S1[rows_U], square_S1[rows_U] = count_U1, square_U1
    rms_U1 = (square_U1 / (1.0 - group["beta2"] ** count_U1)).sqrt()
    change_UV = grad_UV / (torch.maximum(rms_U1, least) + group["eps"])
    table_SV[rows_U] = torch.add(table_SV[rows_U], change_UV.to(table_SV.dtype), alpha=-group["lr"])


def _rms_of_all(p: Tensor, state: dict[str, Tensor], mean_U1: Tensor) -> Tensor:
    """RMS of the gradients of touched rows over the last steps, on every rank that of the whole table."""
    found = torch.stack([mean_U1.sum(), mean_U1.new_tensor(float(len(mean_U1)))])
    if is_shard(p):
        for group in p.device_mesh.get_all_groups():
            dist.all_reduce(found, group=group)
    if found[1] > 0:
        state["steps"] += 1
        state["mean"].lerp_(found[0] / found[1], 1.0 - DECAY)
    return (state["mean"] / (1.0 - DECAY ** state["steps"].clamp(min=1))).sqrt()


def touched_rows(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [U] whose gradient is not all zero, in order, and their gradients [U, V]; of a shard, its own."""
    if grad.is_sparse:
        grad = grad.coalesce()
        rows, values = grad.indices()[0], grad.values()
        some = (values != 0).any(1)
        return rows[some], values[some]
    rows = (local(grad) != 0).any(1).nonzero().flatten()
    return rows, local(grad)[rows]


def rowwise_names(module: nn.Module) -> set[str]:
    """Parameters that want `RowwiseAdam`: modules name them in a class attribute `rowwise`.

    An attribute of the module and not of the parameter: copying, sharding and loading replace parameters.
    """
    wanted = {id(getattr(m, name)) for m in module.modules() for name in getattr(m, "rowwise", ())}
    return {name for name, p in module.named_parameters() if id(p) in wanted}


def _column(p: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros [S, 1], sharded as the rows of `p` are."""
    if not is_shard(p):
        return torch.zeros(len(p), 1, dtype=dtype, device=p.device)
    from torch.distributed.tensor import zeros

    return zeros(len(p), 1, dtype=dtype, device_mesh=p.device_mesh, placements=p.placements)
