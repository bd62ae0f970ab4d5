"""A tuned model as transformers knows it: adapters in the weights, rows of new tokens in their matrices."""

from __future__ import annotations

from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from quietreasoning.backbone.heads import fold_scales
from quietreasoning.backbone.new_rows import NAME, fold_new_rows, with_new_rows


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


def save(model: nn.Module, folder: Path, *, eos: int) -> None:
    """Write weights and configuration; generation there ends at `eos`."""
    logging.disable_progress_bar()
    model.generation_config.eos_token_id = eos
    model.save_pretrained(folder)


def reopened(folder: Path) -> nn.Module:
    """What transformers makes of the folder, in the precision it was written in."""
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
