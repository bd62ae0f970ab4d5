"""Putting prompts to a method: batches, padding, clocks, and the mode it was in given back.

A method's answers do not depend on how batches are cut, so they are cut by length to save padding;
only controls that borrow from other rows keep the given order.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Method, Permit, Response
from quietreasoning.evaluate.config import EvalConfig
from quietreasoning.evaluate.controls import FROM_OTHER_ROWS, Arm
from quietreasoning.evaluate.meter import Meter

WARM_UP = 2
Prompt = np.ndarray  # token ids, one dimension
Permits = Callable[[Method, Sequence[int]], Permit] | None  # of the examples in a batch, by their numbers
Check = Callable[[], None]  # raises where the user asked to stop
Progress = Callable[[str, int, int], None]  # (arm, prompts done, prompts)


@dataclass
class Answers:
    """What one arm said to every prompt, in the order of the examples."""

    tokens: list[list[int]]
    answers: list[list[int]]
    visible_tokens: list[int]
    passes: list[int]
    latent_steps: list[int]
    ms_batched: float
    batch: int
    confidence: list[float] | None = None


@contextmanager
def answering(method: Method) -> Iterator[None]:
    """Eval mode and no gradients."""
    with in_eval_mode(method), torch.inference_mode():
        yield


@contextmanager
def in_eval_mode(method: Method) -> Iterator[None]:
    """Every module gets back the mode it had, frozen ones theirs."""
    modes = [(module, module.training) for module in method.modules()]
    method.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def answer_all(
    arm: Arm,
    prompts: Sequence[Prompt],
    config: EvalConfig,
    check_stop: Check,
    progress: Progress,
    permits: Permits = None,
    meter: Meter | None = None,
) -> Answers:
    lists = {
        name: [None] * len(prompts)
        for name in ("tokens", "answers", "visible_tokens", "passes", "latent_steps")
    }
    batches = cut(prompts, config.batch_size, keep_order=arm.control in FROM_OTHER_ROWS)
    timed: list[tuple[float, int]] = []
    sure: dict[int, float] = {}
    done = 0
    for batch in batches:
        check_stop()
        if meter is not None:
            meter.begin()
        response, milliseconds = _ask(arm, prompts, batch, config.max_new_tokens, permits)
        if meter is not None:
            meter.note(response, milliseconds)
        for name, values in lists.items():
            for i, value in zip(batch, getattr(response, name), strict=True):
                values[i] = value
        sure.update(zip(batch, response.confidence or (), strict=False))  # none, or one a prompt
        timed.append((milliseconds, len(batch)))
        done += len(batch)
        progress(arm.name, done, len(prompts))
    full = [(ms, size) for ms, size in timed if size == len(batches[0])]
    full = full[1:] or full  # the first batch warms up, where there is a second
    ms_batched = sum(ms for ms, _ in full) / sum(size for _, size in full)
    confidence = [sure[i] for i in range(len(prompts))] if sure else None
    return Answers(**lists, ms_batched=ms_batched, batch=len(batches[0]), confidence=confidence)


def cut(prompts: Sequence[Prompt], size: int, keep_order: bool) -> list[list[int]]:
    """Indices of each batch, longest prompts first so that memory runs out at once or never.

    keep_order: batches of neighbours of at least 2 rows, for controls that borrow from other rows; a
    last row alone joins the batch before it.
    """
    order = list(range(len(prompts)))
    if not keep_order:
        order.sort(key=lambda i: (-len(prompts[i]), i))
    size = max(size, 2) if keep_order else size
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    if keep_order and len(batches) > 1 and len(batches[-1]) == 1:
        alone = batches.pop()
        batches[-1].extend(alone)
    return batches


def time_alone(
    arm: Arm, prompts: Sequence[Prompt], config: EvalConfig, check_stop: Check, permits: Permits = None
) -> float | None:
    """Median milliseconds of one prompt alone, over prompts spread evenly through the data."""
    if not config.timing:
        return None
    number = min(config.timing, len(prompts))
    chosen = [i * len(prompts) // number for i in range(number)]
    times = []
    for i, example in enumerate([chosen[0]] * WARM_UP + chosen):
        check_stop()
        _, milliseconds = _ask(arm, prompts, [example], config.max_new_tokens, permits)
        if i >= WARM_UP:
            times.append(milliseconds)
    return statistics.median(times)


def _ask(
    arm: Arm, prompts: Sequence[Prompt], examples: Sequence[int], max_new_tokens: int, permits: Permits
) -> tuple[Response, float]:
    device = device_of(arm.method)
    prompt_BP = pad_left([prompts[i] for i in examples]).to(device)
    permit = None if permits is None else permits(arm.method, examples)
    _wait(device)
    started = time.perf_counter()
    try:
        response = arm.method.generate(
            prompt_BP,
            max_new_tokens=max_new_tokens,
            control=arm.control,
            effort=arm.effort,
            permit=permit,
        )
    except ValueError as error:
        if arm.effort is None:
            raise
        raise UserError(f"eval.efforts: {error}") from None
    _wait(device)
    return response, (time.perf_counter() - started) * 1000


def pad_left(prompts: Sequence[Prompt]) -> Tensor:
    """prompt_BP, padded on the left with IGNORE."""
    width = max(len(prompt) for prompt in prompts)
    ids = np.full((len(prompts), width), IGNORE, dtype=np.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        row[width - len(prompt) :] = prompt
    return torch.from_numpy(ids)


def device_of(method: Method) -> torch.device:
    return next(method.parameters()).device


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"
