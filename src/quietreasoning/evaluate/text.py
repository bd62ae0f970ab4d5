"""`evaluate_text(arms, windows, ...) -> Report`: how well a method predicts running text, or what else it
measures.

The training step itself is asked, in eval mode and without gradients: its term "lm" is the summed
negative log-likelihood of the tokens that its unit "token" counts, its metric "token_accuracy" how
many of them it ranks first. Windows are read in runs of neighbours, and the intervals resample runs,
so that windows of one document may be alike. A method that answers nothing is read in the same way, on rows
of any kind; whatever its forward measures beside goes into `figures`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from quietreasoning.config import UserError
from quietreasoning.contract import Batch
from quietreasoning.data.example import Example
from quietreasoning.evaluate.asking import Progress, device_name, device_of, in_eval_mode
from quietreasoning.evaluate.config import EvalConfig
from quietreasoning.evaluate.controls import Arm
from quietreasoning.evaluate.harness import Stopped
from quietreasoning.evaluate.rows import LARGEST, Report, Row
from quietreasoning.evaluate.statistics import ratio_bootstrap

RUNS = 100  # windows are read one at a time up to this many, so that an interval has enough to resample


def evaluate_text(
    arms: Sequence[Arm],
    windows: Sequence[Example],
    *,
    task: str,
    batch: Callable[[Sequence[Example]], Batch],
    config: EvalConfig,
    seed: int = 0,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress = lambda arm, done, total: None,
) -> Report:
    """Every arm as trained on every window; controls and efforts are about answers and left out.

    UserError where a method does not read text; Stopped when `stop()` turns true.
    """
    arms = [arm for arm in arms if arm.control is None and arm.effort is None]
    if not arms or not windows:
        raise UserError(f"task {task}: {len(arms)} arms and {len(windows)} windows leave nothing to evaluate")
    for arm in arms:
        if arm.method.answers and not arm.method.reads_text:
            raise UserError(f"task {task} is running text, which {arm.label} does not read; leave it out")
    size = min(config.batch_size, -(-len(windows) // RUNS))
    rows: list[Row] = []

    def report(complete: bool) -> Report:
        return Report(
            task=task,
            split=config.split,
            seed=seed,
            rows=tuple(rows),
            items=tuple(window.id for window in windows),
            settings={**config.model_dump(mode="json"), "scorer": "perplexity", "decoding": "none"},
            device=device_name(device_of(arms[0].method)),
            complete=complete,
        )

    for arm in arms:
        sums: list[tuple[float, float, float]] = []
        measured: dict[str, np.ndarray] = {}
        began = time.perf_counter()
        with in_eval_mode(arm.method), torch.no_grad():
            for first in range(0, len(windows), size):
                if stop():
                    raise Stopped(report(complete=False))
                run = windows[first : first + size]
                found, others = _read(arm, batch(run))
                sums.append(found)
                measured |= {name: measured.get(name, 0) + pair for name, pair in others.items()}
                progress(arm.name, first + len(run), len(windows))
        milliseconds = (time.perf_counter() - began) * 1000 / len(windows)
        about = {"task": task, "split": config.split, "method": arm.label, "seed": seed, "n": len(windows)}
        rows.append(about | _figures(np.array(sums), config.seed) | _costs(milliseconds, size))
        if measured:
            rows[-1]["figures"] = {name: total / count for name, (total, count) in measured.items() if count}
    return report(complete=True)


def _read(arm: Arm, batch: Batch) -> tuple[tuple[float, float, float], dict[str, np.ndarray]]:
    """(summed negative log-likelihood, hits, tokens) of one batch; (sum, count) of what else was measured."""
    batch = batch.to(device_of(arm.method))
    tokens = arm.method.units(batch).get("token", 0)
    output = arm.method(batch)
    if "lm" not in output.terms:
        raise UserError(
            f"{arm.label} was trained with no weight on 'lm', so it predicts no text; leave it out"
        )
    hits, counted = output.metrics["token_accuracy"]
    if int(counted) != tokens:
        raise ValueError(f"{arm.label}: token_accuracy counts {int(counted)} tokens, units {tokens}")
    others = {} if arm.method.answers else output.metrics
    pairs = {name: np.array([float(part) for part in pair]) for name, pair in others.items()}
    pairs.pop("token_accuracy", None)
    return (float(output.terms["lm"].total), float(hits), tokens), pairs


def _figures(sums: np.ndarray, seed: int) -> dict[str, Any]:
    """sums: one (nll, hits, tokens) a run of windows."""
    nll, hits, tokens = sums.T
    accuracy = ratio_bootstrap(hits, tokens, seed=seed)
    loss = ratio_bootstrap(nll, tokens, seed=seed)
    mean = nll.sum() / tokens.sum()
    return {
        "correct": int(hits.sum()),
        "accuracy": float(hits.sum() / tokens.sum()),
        "low": accuracy.low,
        "high": accuracy.high,
        "tokens": int(tokens.sum()),
        "nll": float(mean),
        "perplexity": perplexity(mean),
        "perplexity_low": perplexity(loss.low),
        "perplexity_high": perplexity(loss.high),
    }


def _costs(milliseconds: float, size: int) -> dict[str, Any]:
    """What the other rows say of answers: here nothing is written, nothing thought before the first token."""
    none = dict.fromkeys(("visible_tokens", "passes", "latent_steps"), 0.0)
    about = {"kind": "text", "control": None, "effort": None, "unanswered": 0, "by_steps": {}, "groups": {}}
    return {**about, **none, "ms": None, "ms_batched": milliseconds, "batch": size}


def perplexity(nll: float) -> float:
    return math.exp(min(float(nll), LARGEST))
