"""What decoding carries from token to token: keys and values, slots, plan, state-space state, the open chunk.

Shapes: R rows, S positions read, N positions of the open chunk, K slots, D widths.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from transformers import Cache

from quietreasoning.config import UserError
from quietreasoning.nn.router import Plan
from quietreasoning.nn.ssm import SSMState
from quietreasoning.nn.trunk import HeldChoice, Piece


@dataclass
class State:
    """Of R streams, between two columns. Every tensor leads with R."""

    length_R: Tensor  # real tokens read
    filled_R: Tensor  # of them, in the open chunk
    valid_RS: Tensor  # which cached positions are real
    past: tuple[tuple[Piece, ...], ...]  # keys and values by block
    plan: Plan
    slots_RKD: Tensor | None = None
    readable: tuple[Piece, ...] = ()  # keys and values of the slots, by write block
    held: tuple[HeldChoice, ...] = ()  # the plan's adapters by block, once tokens come one by one
    ssm: tuple[SSMState, ...] = ()  # by expert
    open_RND: Tensor | None = None  # the read block's states of the open chunk
    open_RN: Tensor | None = None  # which of them are real and not yet taken in

    def map(self, change: Callable[[Tensor], Tensor]) -> State:
        """The same state with every tensor changed; `change` must keep the leading dimension's meaning."""
        return State(
            **{f.name: pytree.tree_map_only(Tensor, change, getattr(self, f.name)) for f in fields(self)}
        )

    def take_in(self, x_RND: Tensor, valid_RN: Tensor) -> State:
        """Keep what the read block said of a column until its chunk ends."""
        if not self.open_RN.shape[1]:
            return replace(self, open_RND=x_RND, open_RN=valid_RN)
        open_RND = torch.cat([self.open_RND.to(x_RND.dtype), x_RND], 1)
        return replace(self, open_RND=open_RND, open_RN=torch.cat([self.open_RN, valid_RN], 1))

    def first(self, rows: int) -> State:
        """The first `rows` streams."""
        return self if rows == len(self.length_R) else self.map(lambda t: t[:rows])


def put_rows(old: Any, new: Any, rows: Tensor) -> Any:
    """`old` with its `rows` replaced, leaf by leaf; structures are alike."""

    def put(a: Tensor, b: Tensor) -> Tensor:
        return a.index_copy(0, rows, b.to(a.dtype)) if isinstance(a, Tensor) else b

    return pytree.tree_map(put, old, new)


class WorkspaceCache(Cache):
    """A transformers cache that carries the whole `State`; it grows by being replaced, never in place."""

    is_compileable = False

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.state: State | None = None
        self.prompt_ended = False  # the next token opens a new chunk

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0 if self.state is None else int(self.state.valid_RS.shape[1])

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        return -1

    @classmethod
    def given(cls, cache: object) -> WorkspaceCache:
        """A new one for None; UserError for a cache of another kind, which would lose slots and plan."""
        if cache is None:
            return cls()
        if not isinstance(cache, cls):
            raise UserError(
                f"past_key_values={type(cache).__name__}: a workspace model keeps its keys and values with "
                "its slots, in a WorkspaceCache; pass one of these, or leave past_key_values out"
            )
        return cache

    def fork(self) -> WorkspaceCache:
        """A copy that can grow on its own; tensors are shared, none is written in place."""
        return copy.copy(self)

    def _change(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.state is not None:
            self.state = self.state.map(change)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search: slots, plan and state-space states move with keys and values."""
        self._change(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._change(lambda t: t[indices.to(t.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._change(lambda t: t.repeat_interleave(repeats, dim=0))
