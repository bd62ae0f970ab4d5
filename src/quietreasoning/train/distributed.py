"""One process or many: `torchrun --nproc-per-node 2 ...` runs the same command on two ranks.

Every number that ranks must agree on travels through `NamedSum`, a sum of dictionaries on the CPU.
Sharding (FSDP2) treats the whole method as one group: a method calls inner layers several times in
one forward and reads weights between calls, and per-layer sharding would free them in between. So
weights are gathered whole for a step, and sharded (with gradients and optimizer state) between steps.
A parameter that no rank reaches in a step has gradient zero when sharded, none otherwise.

Tables of which a step reads a few rows (`optim/rowwise.py`) have sparse gradients. DDP would want their
bucket as large as the table, so it is told to leave them alone and `add_tables` sends the touched rows.
FSDP2 reduces dense tensors only: there, tables give dense gradients, sharded with the rest.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from quietreasoning.config import UserError
from quietreasoning.optim.rowwise import rowwise_names, touched_rows


@dataclass(frozen=True)
class Machine:
    """Where this process runs and which of how many it is."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world: int = 1

    @classmethod
    def start(cls, device: str = "auto") -> Machine:
        """Join the process group that torchrun's environment describes, if there is one.

        device: "auto" takes the accelerator where there is one; "cpu" never does.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            found = torch.accelerator.current_accelerator() if device == "auto" else torch.device(device)
            return cls(found or torch.device("cpu"))
        from accelerate import PartialState  # the launcher alone needs it

        # without an accelerator accelerate must be told, or it starts no process group at all
        cpu = device == "cpu" or torch.accelerator.current_accelerator() is None
        state = PartialState(cpu=cpu)
        # ranks that share one CPU answer "cpu:0"; tensors there live on "cpu"
        on = torch.device("cpu") if state.device.type == "cpu" else state.device
        return cls(on, state.process_index, state.num_processes)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds on any rank. Every rank must ask."""
        return flag if self.world == 1 else self.sum([float(flag)])[0] > 0

    def sum(self, values: list[float]) -> list[float]:
        if self.world == 1:
            return values
        buffer = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(buffer)
        return buffer.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank."""
        if self.world == 1:
            return [value]
        everyone: list[Any] = [None] * self.world
        dist.all_gather_object(everyone, value)
        return everyone


class NamedSum:
    """Adds dictionaries over ranks in one all-reduce, even where ranks meet a new name at different steps."""

    def __init__(self, machine: Machine):
        self.machine = machine
        self.names: list[str] = []

    def __call__(self, values: Mapping[str, float]) -> dict[str, float]:
        if self.machine.world == 1:
            return dict(values)
        unknown = any(name not in self.names for name in values)
        total = self._reduce(unknown, values)
        if total[0]:
            everyone = self.machine.gather(sorted(values))
            self.names = sorted({name for names in [self.names, *everyone] for name in names})
            total = self._reduce(False, values)
        return dict(zip(self.names, total[1:], strict=True))

    def _reduce(self, unknown: bool, values: Mapping[str, float]) -> list[float]:
        return self.machine.sum([float(unknown), *(float(values.get(name, 0.0)) for name in self.names)])


def wrap(step_module: nn.Module, machine: Machine, sharding: str) -> nn.Module:
    """`step_module` as the ranks run it together: itself, in DDP, or sharded in place by FSDP2."""
    if machine.world == 1:
        return step_module
    if sharding == "ddp":
        ids = None if machine.device.type == "cpu" else [machine.device]
        # conditional computation leaves parameters unused in some steps and on some ranks; this one always
        # is, or every rank of every other run would warn that none was
        step_module.register_parameter("never_used", nn.Parameter(torch.zeros((), device=machine.device)))
        left_alone = sorted(rowwise_names(step_module))
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(step_module, left_alone)
        return DistributedDataParallel(step_module, device_ids=ids, find_unused_parameters=True)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard  # slow to import

    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 13):
        raise UserError(
            f"train.sharding=fsdp needs torch 2.13 or newer, got {torch.__version__}. Use train.sharding=ddp."
        )
    for module in step_module.modules():
        if getattr(module, "sparse_grad", False):
            module.sparse_grad = False
    frozen = {p for p in step_module.parameters() if not p.requires_grad}
    mesh = init_device_mesh(machine.device.type, (machine.world,))
    root = fully_shard(step_module, mesh=mesh, reshard_after_forward=False, ignored_params=frozen)
    root.set_reduce_scatter_unused_params(True)  # else ranks with different unused parameters deadlock
    return root


@torch.no_grad()
def add_tables(tables: Iterable[nn.Parameter], machine: Machine) -> None:
    """The mean over ranks of the gradients of replicated tables, sparse and equal to the bit on every rank.

    A rank may have touched none of a table's rows. If none did, the table has no gradient.
    """
    for p in tables:
        if p.grad is None:
            rows, values = torch.zeros(0, dtype=torch.long, device=p.device), p.new_zeros(0, *p.shape[1:])
        else:
            rows, values = touched_rows(p.grad)
        sizes = [torch.zeros(1, dtype=torch.long, device=p.device) for _ in range(machine.world)]
        dist.all_gather(sizes, torch.tensor([len(rows)], device=p.device))
        counts = [int(size) for size in sizes]
        p.grad = None
        if max(counts):
            all_rows = torch.cat(_gather_padded(rows, counts))
            all_values = torch.cat(_gather_padded(values, counts)) / machine.world
            found = torch.sparse_coo_tensor(all_rows[None], all_values, p.shape, check_invariants=False)
            p.grad = found.coalesce()


def _gather_padded(tensor: Tensor, counts: list[int]) -> list[Tensor]:
    """Every rank's tensor, whose first dimensions are `counts`: collectives want them all of one shape."""
    padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    everyone = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(everyone, padded)
    return [found[:count] for found, count in zip(everyone, counts, strict=True)]


def is_sharded(wrapped: nn.Module) -> bool:
    return any(is_shard(p) for p in wrapped.parameters())


def is_shard(tensor: Tensor) -> bool:
    if not dist.is_initialized():
        return False
    from torch.distributed.tensor import DTensor  # slow to import, and one process never shards

    return isinstance(tensor, DTensor)


@contextmanager
def synchronising(wrapped: nn.Module, last: bool, sharded: bool) -> Iterator[None]:
    """Gradients meet over ranks in the last lane only. Must be around the forward too."""
    if isinstance(wrapped, DistributedDataParallel):
        with nullcontext() if last else wrapped.no_sync():
            yield
    else:
        if sharded:
            wrapped.set_requires_gradient_sync(last)
        yield


@contextmanager
def whole(wrapped: nn.Module) -> Iterator[None]:
    """Inside the block every module holds its full weights: for evaluation, outside the wrapped forward."""
    if not is_sharded(wrapped):
        yield
        return
    wrapped.unshard()
    try:
        yield
    finally:
        wrapped.reshard()


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole tensor of a shard; every rank must ask."""
    return tensor.full_tensor() if is_shard(tensor) else tensor


def shard_like(full: Tensor, like: Tensor) -> Tensor:
    """`full` on the device of `like`, sharded as `like` is if it has as many rows and dimensions."""
    full = full.to(like.device)
    if not is_shard(like) or full.ndim != like.ndim or full.shape[:1] != like.shape[:1]:
        return full
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full, like.device_mesh, like.placements)


@torch.no_grad()
def unwrap(wrapped: nn.Module) -> None:
    """Give every module of a sharded method its own whole weights back, ties kept."""
    if not is_sharded(wrapped):
        return
    whole_of: dict[int, nn.Parameter] = {}
    for module in wrapped.modules():
        for name, p in module.named_parameters(recurse=False):
            if is_shard(p):
                if id(p) not in whole_of:
                    whole_of[id(p)] = nn.Parameter(p.full_tensor(), requires_grad=p.requires_grad)
                setattr(module, name, whole_of[id(p)])
