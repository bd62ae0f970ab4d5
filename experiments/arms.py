"""What both experiments share: train one arm of a recipe once, ask it, and pool seeds with intervals."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from quietreasoning.build import Builder, Loaded, Resolved, open_run, resolve
from quietreasoning.contract import Method
from quietreasoning.data.example import Example
from quietreasoning.evaluate.config import EvalConfig
from quietreasoning.evaluate.controls import Arm
from quietreasoning.evaluate.rows import Report
from quietreasoning.evaluate.statistics import student_t
from quietreasoning.proof import Exam
from quietreasoning.run import train_run
from quietreasoning.run_config import StageConfig
from quietreasoning.train.rng import seed_all
from quietreasoning.train.signals import StopFlag
from quietreasoning.workspace.sizes import read_flops

HERE = Path(__file__).parent


def arm(recipe: str, folder: Path, overrides: Sequence[str]) -> Resolved:
    return resolve(str(HERE / recipe), overrides, str(folder))


def trained(resolved: Resolved) -> Loaded:
    """The run of an arm; one that has finished is not trained again."""
    seconds = resolved.out / "seconds.json"
    if not seconds.exists():
        began = time.process_time()
        train_run(resolved, doctor=False)
        seconds.write_text(json.dumps(time.process_time() - began))
    return open_run(resolved.out)


def remade(stage: StageConfig, **changes: dict) -> StageConfig:
    """A stage with other settings; another method takes none of the old one's."""
    values = stage.model_dump(mode="json")
    for section, given in changes.items():
        values[section] = given if "name" in given else values[section] | given
    return StageConfig.model_validate(values)


def fresh(resolved: Resolved, stage: int = -1) -> tuple[Method, Builder]:
    """The method of a stage before any training."""
    builder = Builder(resolved.config)
    seed_all(resolved.config.seed, 0, 0)
    return builder.method(resolved.config.stages[stage]), builder


def parameters(method: Method) -> int:
    return sum(p.numel() for p in method.parameters() if p.requires_grad)


def flops_per_step(resolved: Resolved, stage: int = -1, batches: int = 8) -> float:
    """Forward and backward of a stage's training step, mean of its first rows.

    By torch's counter, which sees matrix products; the weighted sums of value rows, once forward and
    twice backward, are added by hand.
    """
    method, builder = fresh(resolved, stage)
    rows = builder.batches(resolved.config.stages[stage], method.backbone.context, [])
    total = 0.0
    for step in range(batches):
        batch = rows.batch_at(step)
        with FlopCounterMode(display=False) as counter:
            sum(term.total for term in method(batch).terms.values()).backward()
        total += counter.get_total_flops() + 3 * read_flops(method.body, int((batch.prompt_BP >= 0).sum()))
    return total / batches


def asked(run: Loaded, arms: list[Arm], split: str, batch_size: int, n: int | None = None) -> Report:
    """Arms on the split of the run's last stage, or on n of its rows."""
    config = EvalConfig(
        split=split, n=n, batch_size=batch_size, max_new_tokens=2, timing=0, samples=0, controls=()
    )
    with torch.no_grad():
        return Exam(run.config.stages[-1].data, config, run.encoder, run.config.seed).ask(arms, StopFlag())


def said(
    run: Loaded, examples: Sequence[Example], batch_size: int = 125, **options: object
) -> tuple[list[bool], list[int]]:
    """Whether each answer is right, and the latent steps it took."""
    right, steps = [], []
    for first in range(0, len(examples), batch_size):
        chunk = examples[first : first + batch_size]
        response = run.method.generate(
            run.encoder.prompts(chunk), max_new_tokens=run.max_new_tokens, **options
        )
        texts = map(run.encoder.text, response.answers)
        right += [text == example.answer for text, example in zip(texts, chunk, strict=True)]
        steps += response.latent_steps
    return right, steps


def by_group(values: Sequence[float], groups: Sequence[str]) -> dict[str, float]:
    """The mean of each group."""
    kinds = sorted(set(groups))
    chosen = {kind: [v for v, g in zip(values, groups, strict=True) if g == kind] for kind in kinds}
    return {kind: round(sum(own) / len(own), 4) for kind, own in chosen.items()}


def over_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and the 95 % interval of Student's t over seeds; of one seed, no interval."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, float("nan"), float("nan")
    reach = student_t(len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - reach, mean + reach


def shown(values: Sequence[float], digits: int = 1) -> str:
    """`mean [low, high]`."""
    mean, low, high = over_seeds(values)
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
