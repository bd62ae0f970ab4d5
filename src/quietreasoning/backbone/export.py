"""A tuned model as transformers knows it: adapters in the weights, rows of new tokens in their matrices."""

from __future__ import annotations

from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from quietreasoning.backbone import int_folder, torchao_folder
from quietreasoning.backbone.heads import fold_scales
from quietreasoning.backbone.new_rows import NAME, fold_new_rows, with_new_rows
from quietreasoning.nn.fake_quant import prepared


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """The same model, in place, with everything that was added to its layers gone into them.

    Function changes by rounding alone, in the precision of the weights.
    """
    tuners = {name: m for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    for tuner in tuners.values():
        tuner.merge()
    fold_scales(model)
    for name, tuner in tuners.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, tuner.get_base_layer())
    fold_new_rows(model)
    for matrix in list(with_new_rows(model)):
        matrix.new_rows_on = False  # its hook has nothing left to add
        del matrix._parameters[NAME]
    return model


def trim(model: nn.Module, vocab_size: int) -> None:
    """Cut embedding and head to their first rows, in place; logits of what stays are what they were."""
    model.resize_token_embeddings(vocab_size, mean_resizing=False)


def save(
    model: nn.Module, folder: Path, *, eos: int, dtype: torch.dtype | None = None, torchao: bool = False
) -> None:
    """Write weights and configuration; generation there ends at `eos`.

    Countable layers are written as integers, made before anything is cast to `dtype`: in plain tensors, or
    with `torchao` in its own, which are made of the cast weights.
    """
    logging.disable_progress_bar()
    model.generation_config.eos_token_id = eos
    counted = dict(prepared(model))
    if counted and torchao:
        torchao_folder.save(model.to(dtype), folder, next(iter(counted.values())).bits)
        return
    if counted:
        int_folder.convert(model)
    model.to(dtype)
    model.save_pretrained(folder)


def reopened(folder: Path) -> nn.Module:
    """What transformers makes of the folder, in the precision it was written in; of integers in a layout that
    it reads with another package, what `backbone.path` does."""
    logging.disable_progress_bar()
    shape = AutoConfig.from_pretrained(folder)
    if int_folder.described(shape, str(folder)):
        return int_folder.load(shape, folder, shape.dtype, "sdpa", str(folder))
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
