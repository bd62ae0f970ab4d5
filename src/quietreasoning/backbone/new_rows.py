"""Rows of tokens that a model has never met: in its embedding and in its head.

Both matrices grow, never shrink, and a new row starts at the mean of its word pieces' rows. Where the model
itself is frozen, each matrix gets a parameter `new_rows` [N, D] that is added to those rows alone: it is what
trains and what a checkpoint holds; the grown matrix can be made again from the model and the tokenizer.
Shapes: N new tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, pad

from quietreasoning.config import UserError

NAME = "new_rows"  # last part of the parameters' names
Starts = Mapping[int, Sequence[int]]  # id of a new token -> ids of its word pieces


@torch.no_grad()
def grow(model: nn.Module, vocab_size: int, starts: Starts, where: str) -> None:
    """Room for `vocab_size` tokens, and the first values of the new rows, in place.

    A token without pieces starts at the mean of all rows. UserError where a token beyond the embedding is
    not among the new ones; `where` names the model.
    """
    rows = model.get_input_embeddings().num_embeddings
    if not set(range(rows, vocab_size)) <= starts.keys():
        raise UserError(
            f"{where}: the tokenizer has {vocab_size} tokens, the embedding only {rows}. "
            "Give the tokenizer of this model."
        )
    if vocab_size > rows:
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
    for matrix in _matrices(model):
        for token, pieces in starts.items():
            source_ND = matrix.weight[list(pieces)] if pieces else matrix.weight[:rows]
            matrix.weight[token] = source_ND.float().mean(0).to(matrix.weight.dtype)


def train_new_rows(model: nn.Module, tokens: Sequence[int]) -> None:
    """Give the matrices a trainable `new_rows` each, zero at first; tied ones share it."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is table.weight
    for matrix in (table, head):
        ids_N = torch.tensor(sorted(tokens), device=matrix.weight.device)
        matrix.register_buffer("new_ids", ids_N, persistent=False)
        shared = tied and matrix is head
        rows_ND = matrix.weight.new_zeros(len(tokens), matrix.weight.shape[1])
        matrix.new_rows = table.new_rows if shared else nn.Parameter(rows_ND)
        matrix.new_rows_on = True
    table.register_forward_hook(_read)
    head.register_forward_hook(_write)


def with_new_rows(model: nn.Module) -> Iterator[nn.Module]:
    """The matrices that have new rows; `new_rows_on` says whether they count."""
    return (module for module in model.modules() if NAME in module._parameters)


@torch.no_grad()
def fold_new_rows(model: nn.Module) -> None:
    """Add the deltas to the matrices for good; they are zero again. Function does not change."""
    for matrix in _matrices(model):  # tied ones once
        if NAME in matrix._parameters:
            matrix.weight[matrix.new_ids] += matrix.new_rows
            matrix.new_rows.zero_()


def blended(table: nn.Module, weights: Tensor) -> Tensor:
    """[..., V] -> [..., D]: the table's rows, new ones included, under these weights."""
    weights = weights.to(table.weight.dtype)
    out = weights @ table.weight
    if getattr(table, "new_rows_on", False):
        out = out + weights[..., table.new_ids] @ table.new_rows
    return out


def _matrices(model: nn.Module) -> list[nn.Module]:
    """Embedding and head; the embedding alone where they are one."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    return [table] if head.weight is table.weight else [table, head]


def _read(table: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
    """Forward hook of an embedding. The module is its argument, so that a deep copy keeps its own rows."""
    if not table.new_rows_on:
        return out
    hit = args[0][..., None] == table.new_ids
    # row 0 is zero, for every other token; a look-up keeps its precision under autocast
    index = (hit * torch.arange(1, len(table.new_ids) + 1, device=hit.device)).sum(-1)
    scale: Any = getattr(table, "embed_scale", 1.0)  # some families scale in the look-up
    return out + (embedding(index, pad(table.new_rows, (0, 0, 1, 0))) * scale).to(out.dtype)


def _write(head: nn.Module, args: tuple[Tensor, ...], logits: Tensor) -> Tensor:
    """Forward hook of a head: adds in place, for logits are large."""
    if not head.new_rows_on:
        return logits
    return logits.index_add_(-1, head.new_ids, linear(args[0], head.new_rows).to(logits.dtype))
