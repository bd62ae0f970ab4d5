"""Shards of FSDP2 in optimizer code: what this rank holds, and the whole. Without a process group: no-ops."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def is_shard(tensor: Tensor) -> bool:
    if not (dist.is_available() and dist.is_initialized()):
        return False
    from torch.distributed.tensor import DTensor  # slow to import, and one process never shards

    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """This rank's rows, sharing memory with `tensor`."""
    return tensor.to_local() if is_shard(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The full tensor; every rank must ask, in the same order."""
    return tensor.full_tensor() if is_shard(tensor) else tensor


def cut_like(full: Tensor, like: Tensor) -> Tensor:
    """`full`, which every rank holds, sharded as `like` is; each rank cuts its own part, nothing is sent."""
    if not is_shard(like):
        return full
    from torch.distributed.tensor import DTensor, Replicate

    mesh = like.device_mesh
    replicated = DTensor.from_local(full, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return replicated.redistribute(placements=like.placements)


def highest(tensor: Tensor) -> Tensor:
    """The largest of every rank's values, place by place, on every rank; in place."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor
