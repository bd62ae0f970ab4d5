"""Where chunks begin: one rule for training, prefill and decoding.

A chunk begins at the start of a document, at every token that `starts` marks (the end of a prompt), and
after every `chunk` real tokens. Padding stands nowhere: it neither counts nor moves a boundary.

The tokens of B rows are laid out as R streams, one a document (packed documents never meet), and each
stream as columns of at most `chunk` tokens: column c holds the c-th chunk of every stream, real tokens first.

Shapes: B rows, T positions of the input, R streams, N tokens of a column.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Column:
    """One chunk of the first R streams."""

    index_RN: Tensor  # where each token stands in the flattened input; 0 where there is none
    valid_RN: Tensor
    position_RN: Tensor  # since the document began
    fresh_R: Tensor  # whether a new chunk begins here: the workspace advances first
    full: bool  # every place holds a token


@dataclass(frozen=True)
class Layout:
    columns: list[Column]
    row_R: Tensor  # the input row of each stream; streams with more columns come first
    length_R: Tensor  # real tokens
    filled_R: Tensor  # tokens in the last chunk


def lay_out(
    valid_BT: Tensor,
    chunk: int | None,
    *,
    starts_BT: Tensor | None = None,
    documents_BT: Tensor | None = None,
    length_B: Tensor | None = None,
    filled_B: Tensor | None = None,
) -> Layout:
    """The columns of an input, or of its continuation.

    chunk: longest chunk; None never ends one. length_B, filled_B: what a cache holds already: real
    tokens, and those of the open chunk. With them each row is one stream, in the order of the rows.
    """
    cached = length_B is not None
    if cached and valid_BT.shape[1] == 1 and bool(valid_BT.all()):
        return _next_token(chunk, starts_BT, length_B, filled_B)
    stream_N, rank_N, place_N, row_R = _streams(valid_BT, documents_BT)
    streams = len(row_R)
    counts_R = torch.zeros(streams, dtype=torch.long, device=valid_BT.device)
    counts_R.index_add_(0, stream_N, torch.ones_like(stream_N))
    filled_R = filled_B if cached else torch.zeros_like(counts_R)
    before_R = length_B if cached else torch.zeros_like(counts_R)

    marked_N = torch.zeros_like(stream_N, dtype=torch.bool)
    if chunk is not None and starts_BT is not None:
        marked_N = starts_BT.flatten()[place_N]
    offset_N = _since_mark(stream_N, rank_N, marked_N, filled_R)
    begins_N = marked_N & (rank_N + before_R[stream_N] > 0)
    if chunk is not None:
        begins_N = begins_N | ((offset_N % chunk == 0) & (rank_N + before_R[stream_N] > 0))
    # column 0 holds the open chunk, or the first new one
    begun_N = begins_N & (rank_N > 0)
    number_N = _running(begun_N.long(), stream_N, rank_N)
    inside_N = _place_in_column(stream_N, number_N, rank_N)

    order_R = torch.arange(streams, device=valid_BT.device)
    columns_R = torch.zeros_like(counts_R).scatter_reduce_(0, stream_N, number_N + 1, "amax")
    if not cached:  # streams with many chunks first: later columns hold a prefix of the streams
        order_R = columns_R.argsort(descending=True, stable=True)
    rank_of_R = torch.empty_like(order_R).scatter_(0, order_R, torch.arange(streams, device=order_R.device))
    number, inside, at = number_N, inside_N, rank_of_R[stream_N]
    sizes = _column_sizes(number, inside)
    per_column = columns_R[order_R].tolist()
    columns = []
    for c, size in enumerate(sizes):
        held = streams if cached else sum(count > c for count in per_column)
        pick = number == c
        index = place_N.new_zeros(held, size)
        position, valid = torch.zeros_like(index), torch.zeros_like(index, dtype=torch.bool)
        fresh = torch.zeros(held, dtype=torch.bool, device=index.device)
        where = (at[pick], inside[pick])
        index[where], valid[where] = place_N[pick], True
        position[where] = (rank_N + before_R[stream_N])[pick]
        first = pick & (inside == 0)
        fresh[at[first]] = begins_N[first]
        columns.append(Column(index, valid, position, fresh, bool(valid.all())))
    last_N = rank_N == counts_R[stream_N] - 1
    filled_R = filled_R.clone()
    since_N = offset_N % chunk + 1 if chunk is not None else offset_N + 1
    filled_R[stream_N[last_N]] = since_N[last_N]
    return Layout(columns, row_R[order_R], (before_R + counts_R)[order_R], filled_R[order_R])


def _next_token(chunk: int | None, starts_B1: Tensor | None, length_B: Tensor, filled_B: Tensor) -> Layout:
    """One real token for every row, as in decoding."""
    row_B = torch.arange(len(length_B), device=length_B.device)
    fresh_B, offset_B = torch.zeros_like(row_B, dtype=torch.bool), filled_B
    if chunk is not None:
        offset_B = filled_B % chunk
        if starts_B1 is not None:
            offset_B = offset_B.masked_fill(starts_B1[:, 0], 0)
        fresh_B = (offset_B == 0) & (length_B > 0)
    valid_B1 = torch.ones_like(fresh_B)[:, None]
    column = Column(row_B[:, None], valid_B1, length_B[:, None], fresh_B, True)
    return Layout([column], row_B, length_B + 1, offset_B + 1)


def _streams(valid_BT: Tensor, documents_BT: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of every real token: its stream, its rank there, its flat place; and the row of each stream."""
    rows, width = valid_BT.shape
    place_N = valid_BT.flatten().nonzero()[:, 0]
    row_N = place_N // width
    if documents_BT is None:
        rank_N = (valid_BT.long().cumsum(1) - 1).flatten()[place_N]
        return row_N, rank_N, place_N, torch.arange(rows, device=place_N.device)
    key_N = torch.stack([row_N, documents_BT.flatten()[place_N]], 1)
    keys, stream_N = torch.unique(key_N, dim=0, return_inverse=True)
    order_N = stream_N.argsort(stable=True)
    place_N, stream_N = place_N[order_N], stream_N[order_N]
    return stream_N, _place_in_column(stream_N, torch.zeros_like(stream_N), None), place_N, keys[:, 0]


def _since_mark(stream_N: Tensor, rank_N: Tensor, marked_N: Tensor, filled_R: Tensor) -> Tensor:
    """Tokens since the last mark, or since the open chunk began."""
    # tokens are sorted by stream, then rank: the last mark before each token by a running maximum
    at = torch.arange(len(stream_N), device=stream_N.device)
    anchor = torch.where(marked_N | (rank_N == 0), at, 0).cummax(0).values if len(at) else at
    from_open = ~marked_N[anchor] if len(at) else marked_N
    return at - anchor + torch.where(from_open, filled_R[stream_N], 0)


def _running(value_N: Tensor, stream_N: Tensor, rank_N: Tensor) -> Tensor:
    """Sum of `value` over a stream's tokens up to each."""
    total = value_N.cumsum(0)
    if not len(total):
        return total
    at = torch.arange(len(total), device=total.device)
    first = torch.where(rank_N == 0, at, 0).cummax(0).values
    return total - total[first] + value_N[first]


def _place_in_column(stream_N: Tensor, number_N: Tensor, rank_N: Tensor | None) -> Tensor:
    """How many tokens of the same stream and column stand before each; tokens come sorted."""
    if not len(stream_N):
        return stream_N
    at = torch.arange(len(stream_N), device=stream_N.device)
    new = torch.ones_like(stream_N, dtype=torch.bool)
    new[1:] = (stream_N[1:] != stream_N[:-1]) | (number_N[1:] != number_N[:-1])
    return at - torch.where(new, at, 0).cummax(0).values


def _column_sizes(number_N: Tensor, inside_N: Tensor) -> list[int]:
    if not len(number_N):
        return []
    sizes = inside_N.new_zeros(int(number_N.max()) + 1)
    return sizes.scatter_reduce_(0, number_N, inside_N + 1, "amax").tolist()
