"""`quiet eval RUN --gate NAME`: a run passes or it does not.

Here is what a gate measures of a model; statistics and verdicts are in `evaluate.theater` and
`evaluate.baking`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quietreasoning.build import Loaded
from quietreasoning.config import UserError
from quietreasoning.contract import Batch, Examined
from quietreasoning.data.config import build_task
from quietreasoning.data.example import Example
from quietreasoning.data.load import load_split
from quietreasoning.data.tasks import TASKS
from quietreasoning.evaluate import baking, harness, theater
from quietreasoning.evaluate.asking import answering
from quietreasoning.evaluate.compare import compare
from quietreasoning.evaluate.config import EvalConfig
from quietreasoning.evaluate.controls import arms_of
from quietreasoning.evaluate.judging import FAIL, OPEN, Judgement, Measured, Trial
from quietreasoning.evaluate.rows import arm_name
from quietreasoning.methods import METHODS
from quietreasoning.methods.bake import Bake
from quietreasoning.proof import Exam, Ticker, on_what_there_is
from quietreasoning.train.signals import StopFlag, Stopped

ROWS = 8  # examined at a time: a row with all its thoughts is long


def check_gate(name: str) -> None:
    """UserError where there is no such gate."""
    if name not in GATES:
        raise UserError(f"--gate {name}: no such gate; choose one of {', '.join(GATES)}")


def hold(loaded: Loaded, name: str) -> Judgement:
    """Put a run through a gate: table on the terminal, rows in RUN/eval/gate-NAME.json.

    UserError where the gate does not apply; Stopped where a signal came.
    """
    check_gate(name)
    stop = StopFlag()
    config = on_what_there_is(loaded.config)
    if config.kv_cache is not None or config.kv_caches:
        raise UserError(
            f"--gate {name} judges a method by itself; drop eval.kv_cache and eval.kv_caches, or set them to "
            "null and {}"
        )
    with stop.listening():
        trials = GATES[name](loaded, config, stop)
    about = {
        "run": str(loaded.folder),
        "checkpoint": loaded.checkpoint.name,
        "method": loaded.method.config.name,
        "task": loaded.config.stages[-1].data.task,
        "split": config.split,
        "seed": loaded.config.seed,
        "device": str(loaded.device),
    }
    judgement = Judgement(name, tuple(trials), about)
    kept = loaded.folder / "eval" / f"gate-{name}.json"
    save(kept, judgement)
    show(judgement, kept)
    return judgement


# theater


def theater_gate(loaded: Loaded, config: EvalConfig, stop: StopFlag) -> list[Trial]:
    """T1 and T3 on the thoughts of held-out rows, T2 on their worth and on answers under controls."""
    method, seed = loaded.method, config.seed
    if not method.controls:
        able = ", ".join(name for name, kind in METHODS.items() if kind.controls)
        raise UserError(
            f"--gate theater: method {method.config.name} of {loaded.folder} has no thoughts to test; "
            f"give a run whose last stage is one of {able}"
        )
    examples = held_out(loaded, config)
    if len(examples) < 2:
        raise UserError(
            f"--gate theater: {len(examples)} rows cannot be held against each other; set --n to 2 or more"
        )
    table = examine(loaded, examples, stop)
    compared = under_controls(loaded, config, stop)
    if table is None:
        if not compared:
            raise UserError(
                f"--gate theater: the thoughts of method {method.config.name} cannot be read, and task "
                f"{loaded.config.stages[-1].data.task} has no answers; choose a task of questions with --task"
            )
        note = "its thoughts cannot be read: T2 alone decides"
        return [
            Trial("T1 divergence", (), note),
            theater.ablation(None, compared, seed),
            Trial("T3 correlation", (), note),
        ]
    if table.rows < 2:
        raise UserError(
            f"--gate theater: only {table.rows} of {len(examples)} rows have thoughts; set a larger --n"
        )
    return [
        theater.divergence(table, seed),
        theater.ablation(table, compared, seed),
        theater.correlation(table, seed),
    ]


def examine(loaded: Loaded, examples: Sequence[Example], stop: StopFlag) -> theater.ThoughtTable | None:
    """All thoughts about the examples; None where the method's cannot be read."""
    found: list[tuple[int, Examined]] = []
    with answering(loaded.method):
        for first, batch in batches(loaded, examples, stop, "thoughts"):
            examined = loaded.method.examine(batch)
            if examined is None:
                return None
            found.append((first, examined))
    plain = [s for _, each in found for s in each.plain_score or ()]
    return theater.ThoughtTable(
        row_N=np.array([first + row for first, each in found for row in each.row], dtype=np.int64),
        tokens=[tokens for _, each in found for tokens in each.tokens],
        continuation=[tokens for _, each in found for tokens in each.continuation],
        score_N=np.array([s for _, each in found for s in each.score]),
        plain_score_N=np.array(plain) if plain else None,
        utility_N=np.array([u for _, each in found for u in each.utility]),
    )


def under_controls(loaded: Loaded, config: EvalConfig, stop: StopFlag) -> dict[str, dict[str, Any]]:
    """Control -> the method compared with itself under it; empty where the task has no answers."""
    method, data = loaded.method, loaded.config.stages[-1].data
    if TASKS[data.task].text or not method.answers:
        return {}
    quick = config.model_dump() | {"timing": 0, "samples": 0, "efforts": ()}
    exam = Exam(data, EvalConfig.model_validate(quick), loaded.encoder, loaded.config.seed)
    label, controls = method.config.name, (*theater.CONTROLS, "noise")
    arms = arms_of(method, label, controls)
    try:
        report = exam.ask(arms, stop, progress=Ticker())
    except harness.Stopped:
        raise Stopped("stopped while evaluating; the same command asks all again") from None
    return {
        arm.control: compare(label, arm_name(label, arm.control, None), report.outcomes, config.seed)
        for arm in arms
        if arm.control is not None
    }


# baking


def baking_gate(loaded: Loaded, config: EvalConfig, stop: StopFlag) -> list[Trial]:
    """Convergence, unprompted answers where strategies can be judged, and what was forgotten."""
    method, seed = loaded.method, config.seed
    if not isinstance(method, Bake):
        raise UserError(
            f"--gate baking: the last stage of {loaded.folder} is method {method.config.name}; "
            "give a run whose last stage is bake"
        )
    examples = held_out(loaded, config)
    judged = bool(method.markers.thinking) and all("acceptable" in example.meta for example in examples)
    sums: list[list[np.ndarray]] = []
    told: list[str] = []
    untold: list[str] = []
    with answering(method):
        for _, batch in batches(loaded, examples, stop, "questions"):
            numbers = (*method.divergences(batch), *method.gold_log_probs(batch))
            sums.append([each.double().cpu().numpy() for each in numbers])
            if judged:
                limit = config.max_new_tokens
                told += texts(loaded, method.told(batch, limit).tokens)
                untold += texts(loaded, method.generate(batch.prompt_BP, max_new_tokens=limit).tokens)
    before, now, _, gold_before, gold_now, tokens = (np.concatenate(each) for each in zip(*sums, strict=True))
    trials = [baking.convergence(before, now, seed)]
    if judged:
        trials.append(baking.unprompted(baking.rates(untold, examples), baking.rates(told, examples)))
    else:
        note = "no thinking tokens, or a task without strategies: convergence alone decides"
        trials.append(Trial("unprompted answers", (), note))
    return [*trials, baking.forgetting(gold_before, gold_now, tokens, seed)]


def texts(loaded: Loaded, rows: Sequence[Sequence[int]]) -> list[str]:
    return [loaded.encoder.text(row, tags=True) for row in rows]


# rows, file and table

GATES: dict[str, Callable[[Loaded, EvalConfig, StopFlag], list[Trial]]] = {
    "theater": theater_gate,
    "baking": baking_gate,
}


def held_out(loaded: Loaded, config: EvalConfig) -> Sequence[Example]:
    """The rows that the evaluation would ask."""
    data = loaded.config.stages[-1].data
    return load_split(build_task(data), config.split, data, loaded.encoder, n=config.n)[0]


def batches(
    loaded: Loaded, examples: Sequence[Example], stop: StopFlag, what: str
) -> Iterator[tuple[int, Batch]]:
    """(index of the first row, batch) of `ROWS` rows at a time, on the method's device."""
    ticker = Ticker()
    for first in range(0, len(examples), ROWS):
        stop.check()
        yield first, loaded.encoder.batch(examples[first : first + ROWS]).to(loaded.device)
        ticker(what, min(first + ROWS, len(examples)), len(examples))


def save(path: Path, judgement: Judgement) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".tmp-{path.name}")
    content = json.dumps(judgement.as_dict(), indent=1, ensure_ascii=False, allow_nan=False)
    draft.write_text(content, encoding="utf-8")
    os.replace(draft, path)


def show(judgement: Judgement, kept: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    about = judgement.about
    title = f"gate {judgement.gate}: {about['run']}, {about['task']} ({about['split']})"
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    made.add_column("test")
    for heading in ("value [95 %]", "needs", "n"):
        made.add_column(heading, justify="right", no_wrap=True)
    made.add_column("verdict")
    for trial in judgement.trials:
        made.add_row(trial.name, "", "", "", trial.verdict, style="bold")
        for figure in trial.figures:
            sign = ">=" if figure.inclusive else ">"
            needs = "" if figure.needs is None else f"{sign} {figure.needs:g}"
            made.add_row(
                f"  {figure.what}", written(figure.measured), needs, str(figure.n), figure.verdict or ""
            )
        made.add_section()
    console = Console()
    console.print(made)
    for trial in judgement.trials:
        notes = [f"{figure.what}: {figure.note}" for figure in trial.figures if figure.note]
        for note in [*notes, *([trial.note] if trial.note else [])]:
            console.print(f"{trial.name}: {note}", highlight=False)
    console.print(summary(judgement), highlight=False)
    console.print(f"rows: {kept}", highlight=False)


def written(measured: Measured) -> str:
    value, low, high = measured
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def summary(judgement: Judgement) -> str:
    """`gate theater: fail (T2 ablation: fail).`"""
    wrong = [f"{trial.name}: {trial.verdict}" for trial in judgement.trials if trial.verdict in (FAIL, OPEN)]
    why = f" ({'; '.join(wrong)})" if wrong else ""
    more = " A larger --n may settle it." if judgement.verdict == OPEN else ""
    return f"gate {judgement.gate}: {judgement.verdict}{why}.{more}"
