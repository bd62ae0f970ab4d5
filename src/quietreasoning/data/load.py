"""A split, ready to train or evaluate on: examples that keep within the length limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from quietreasoning.config import UserError
from quietreasoning.data.config import DataConfig
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.example import Example
from quietreasoning.data.tasks import Task
from quietreasoning.data.windows import spread, windows

_CHUNK = 1024


def load_split(
    task: Task,
    name: str,
    config: DataConfig,
    encoder: Encoder,
    *,
    n: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> tuple[Sequence[Example], int]:
    """(examples, how many were dropped for their length); n=None takes the size in the settings. `check`
    may raise to stop.

    Unless too_long=drop nothing is encoded here: the encoder refuses or cuts an example when it meets it.
    Running text is cut into windows, which always fit; n then counts windows, taken evenly over the split.
    """
    if task.text:
        options = task.config
        cut = windows(task.split(name), encoder, options.window, join=options.join, check=check)
        return spread(cut, n if n is not None else size_of(config, name)), 0
    examples = task.split(name, n if n is not None else size_of(config, name))
    if config.too_long != "drop":
        return examples, 0
    kept: list[Example] = []
    for first in range(0, len(examples), _CHUNK):
        check()
        chunk = examples[first : first + _CHUNK]
        kept += [e for e, fits in zip(chunk, encoder.fit(chunk), strict=True) if fits]
    dropped = len(examples) - len(kept)
    if dropped > config.max_dropped_fraction * len(examples):
        raise UserError(
            f"{dropped} of {len(examples)} {name} examples are too long, more than "
            f"data.max_dropped_fraction={config.max_dropped_fraction:g} allows; raise it or "
            "data.max_prompt_tokens, or use a longer context"
        )
    return kept, dropped


def size_of(config: DataConfig, name: str) -> int | None:
    """How many examples of a split the settings ask for."""
    return {"train": config.train, "valid": config.valid, "test": config.test}.get(name)
