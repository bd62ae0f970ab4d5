"""What the last feed-forward layer of a causal language model reads, after its norm: keys and queries.

Of the states tried in "Generalization through Memorization" (arXiv 1911.00172, section 5) it did best.
Shapes: B rows, T positions, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from quietreasoning.config import UserError

LAYER = "ffn_input"  # of the last block; what a datastore says it holds
FEED_FORWARD = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
NORM = "mlp_norm"  # blocks that keep their feed-forward weights themselves


@contextmanager
def watch_ffn(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside the block every forward of `model` appends the states [B, T, D] here, without gradients.

    A workspace model appends several pieces, which belong together along T; it lays rows of different lengths
    out anew, so padding of several rows is refused there. The list is the caller's to empty. UserError for a
    family whose feed-forward layer cannot be told, or does not read what a norm gave.
    """
    seen: list[Tensor] = []
    block = last_block(model)
    normed: list[Tensor] = []
    with ExitStack() as hooks:

        def on(module: nn.Module, hook: Any, *, before: bool = False) -> None:
            if before:
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            else:
                handle = module.register_forward_hook(hook)
            hooks.callback(handle.remove)

        own = getattr(block, NORM, None)
        if isinstance(own, nn.Module):
            on(own, lambda module, args, output: seen.append(output.detach()))
            on(model.get_decoder(), _refuse_padding, before=True)
        else:
            for child in block.children():
                if "norm" in type(child).__name__.lower():
                    on(child, lambda module, args, output: normed.append(output))

            def keep(module, args, kwargs):
                state = args[0] if args else next(iter(kwargs.values()))
                if not any(state is output for output in normed):
                    raise _unknown(model, "reads what no norm of its block gave")
                normed.clear()
                seen.append(state.detach())

            on(_feed_forward(model, block), keep, before=True)
        yield seen


@torch.no_grad()
def read_ffn(model: nn.Module, ids_BT: Tensor) -> Tensor:
    """The states [B, T, D] of rows of equal length, without padding; float32, on the CPU.

    The head is not run. The model should be in eval mode.
    """
    with watch_ffn(model) as seen:
        model.get_decoder()(ids_BT, use_cache=False)
    return joined(seen, *ids_BT.shape).float().cpu()


def joined(seen: list[Tensor], rows: int, width: int) -> Tensor:
    """What one forward over [rows, width] tokens left, as [B, T, D]; the list is emptied."""
    states_BTD = seen[0] if len(seen) == 1 else torch.cat(seen, 1) if seen else None
    seen.clear()
    if states_BTD is None or states_BTD.shape[:2] != (rows, width):
        raise UserError(
            f"the last feed-forward layer read {None if states_BTD is None else tuple(states_BTD.shape[:2])} "
            f"states where {rows} rows of {width} tokens stand. Give this model rows without padding."
        )
    return states_BTD


def _refuse_padding(base: nn.Module, args: tuple, kwargs: dict) -> None:
    mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    if mask is not None and len(mask) > 1 and not bool(mask.all()):
        raise UserError(
            "a workspace model lays rows of different lengths out anew, and their states cannot be told "
            "apart: with kNN-LM give it one prompt at a time"
        )


def last_block(model: nn.Module) -> nn.Module:
    """UserError where the family keeps its blocks in no list of its own."""
    depth = model.config.get_text_config().num_hidden_layers
    lists = [m for m in model.get_decoder().modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not lists:
        raise _unknown(model, f"keeps no list of {depth} blocks")
    return lists[0][-1]


def _feed_forward(model: nn.Module, block: nn.Module) -> nn.Module:
    found = [child for name, child in block.named_children() if name in FEED_FORWARD]
    if len(found) != 1:
        raise _unknown(model, f"has {len(found)} feed-forward layers in its last block that are called so")
    return found[0]


def _unknown(model: nn.Module, why: str) -> UserError:
    return UserError(
        f"{type(model).__name__} {why}, so that no keys can be taken from it. Choose a model with a norm "
        "before the feed-forward layer of each block, such as Llama, Qwen, SmolLM, GPT-2 or GPT-NeoX."
    )
