"""Embedding and head of a model folder for another vocabulary: rows that stay are copied, others are made.

Both matrices, the bias of a head and their precision; tied ones stay tied.
Shapes: V rows before, N rows after, D width, R made rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from quietreasoning.backbone.config import BackboneConfig
from quietreasoning.backbone.load import _load_pretrained, _read_shape
from quietreasoning.config import UserError

WAYS = ("mean", "normal", "small", "zeros", "pieces")
STD, SMALL = 0.02, 0.01  # where a configuration names none; of "small"
SPREAD = 1e-9  # share of the rows' covariance around their mean, as in transformers' mean resizing
JITTER = 1e-6  # share of the mean variance that keeps a covariance of few rows positive


@dataclass(frozen=True)
class NewRows:
    """Where each row comes from. old_N: a row of before, -1: made. how: one of WAYS. pieces: made id -> rows
    of before whose mean it is under "pieces". padding: made ids that no token has, at the mean. tokens_M:
    rows of before that tokens have, whose mean and spread count."""

    old_N: Tensor
    how: str
    pieces: Mapping[int, Sequence[int]]
    padding: frozenset[int]
    tokens_M: Tensor


def open_folder(folder: Path) -> nn.Module:
    """A causal language model from safetensors in the precision of its files, in eval mode; UserError where
    it is none, needs code of its own or lacks weights."""
    config = BackboneConfig(path=str(folder))
    shape = _read_shape(config, "FOLDER")
    dtype = getattr(shape, "dtype", None) or torch.float32
    return _load_pretrained(config, dtype, "FOLDER", shape_will_do=False).eval()


def save_folder(model: nn.Module, folder: Path) -> None:
    logging.disable_progress_bar()
    model.save_pretrained(folder)


@torch.no_grad()
def replace_rows(model: nn.Module, rows: NewRows, pad_id: int | None) -> None:
    """In place; what is drawn is the same each time. pad_id: of the new tokenizer. UserError where embedding
    and head are not a table and a linear layer."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(table, nn.Embedding) or not isinstance(head, nn.Linear):
        raise UserError(
            f"{type(model).__name__}: embedding and head are {type(table).__name__} and "
            f"{type(head).__name__}; only an Embedding and a Linear can be given another vocabulary"
        )
    tied = head.weight is table.weight
    std = getattr(model.config.get_text_config(), "initializer_range", None) or STD
    table.weight = _grown(table.weight, rows, std)
    head.weight = table.weight if tied else _grown(head.weight, rows, std)
    if head.bias is not None:
        head.bias = _bias(head.bias, rows)
    table.num_embeddings = head.out_features = len(rows.old_N)
    if table.padding_idx is not None:
        table.padding_idx = pad_id
    model.config.get_text_config().vocab_size = model.vocab_size = len(rows.old_N)


def renumber(model: nn.Module, new_of: Mapping[int, int], eos: int) -> None:
    """Ids in the configurations (begin, end, padding, ...) by the new numbers; those of dropped tokens go,
    and generation ends at `eos` where no end is left."""
    inner = model.config.get_text_config()
    for config in {id(each): each for each in (model.config, inner, model.generation_config)}.values():
        for name, value in list(vars(config).items()):
            if name.endswith("_token_id") and value is not None:
                setattr(config, name, _moved(value, new_of))
        if getattr(config, "eos_token_id", None) is None:
            config.eos_token_id = eos


def _moved(value: Any, new_of: Mapping[int, int]) -> Any:
    if isinstance(value, list):
        return [new_of[id] for id in value if id in new_of] or None
    return new_of.get(value)


def _grown(weight_VD: Tensor, rows: NewRows, std: float) -> nn.Parameter:
    out_ND = weight_VD.new_empty(len(rows.old_N), weight_VD.shape[1])
    kept_N = rows.old_N >= 0
    out_ND[kept_N] = weight_VD[rows.old_N[kept_N]]
    made_R = (~kept_N).nonzero()[:, 0]
    if len(made_R):
        known_MD = weight_VD[rows.tokens_M].float()
        out_ND[made_R] = _made(weight_VD, known_MD, made_R, rows, std).to(out_ND.dtype)
    return nn.Parameter(out_ND, requires_grad=weight_VD.requires_grad)


def _made(weight_VD: Tensor, known_MD: Tensor, made_R: Tensor, rows: NewRows, std: float) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    mean_D = known_MD.mean(0)
    size = (len(made_R), len(mean_D))
    if rows.how == "mean":
        new_RD = mean_D + torch.randn(size, generator=draw) @ _root(known_MD - mean_D).T * SPREAD**0.5
    elif rows.how == "pieces":
        new_RD = mean_D.expand(size).clone()
        for row, id in enumerate(made_R.tolist()):
            if rows.pieces.get(id):
                new_RD[row] = weight_VD[list(rows.pieces[id])].float().mean(0)
    else:
        scale = {"normal": std, "small": SMALL, "zeros": 0.0}[rows.how]
        new_RD = torch.randn(size, generator=draw) * scale
    beyond_R = torch.tensor([id in rows.padding for id in made_R.tolist()])
    return torch.where(beyond_R[:, None], mean_D, new_RD)


def _root(centred_MD: Tensor) -> Tensor:
    """Lower triangular root [D, D] of the rows' covariance."""
    covariance_DD = centred_MD.T @ centred_MD / len(centred_MD)
    jitter = JITTER * covariance_DD.diagonal().mean().clamp(min=1e-12)
    return torch.linalg.cholesky(covariance_DD + jitter * torch.eye(len(covariance_DD)))


def _bias(bias_V: Tensor, rows: NewRows) -> nn.Parameter:
    """A made token's is that of the mean, or of its pieces; 0 under "zeros"."""
    kept_N, mean = rows.old_N >= 0, bias_V[rows.tokens_M].float().mean()
    out_N = torch.full((len(rows.old_N),), float(mean), dtype=bias_V.dtype)
    out_N[kept_N] = bias_V[rows.old_N[kept_N]]
    for id in (~kept_N).nonzero()[:, 0].tolist():
        if id in rows.padding:
            continue
        if rows.how == "zeros":
            out_N[id] = 0
        elif rows.how == "pieces" and rows.pieces.get(id):
            out_N[id] = bias_V[list(rows.pieces[id])].float().mean()
    return nn.Parameter(out_N, requires_grad=bias_V.requires_grad)
