"""`quiet eval RUN --gate NAME`: a run passes or it does not.

Here is what a gate measures of a model; statistics and verdicts are in `evaluate.theater`, `evaluate.baking`
and, of rules, `evaluate.rules.scorer`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
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
from quietreasoning.evaluate.controls import Arm, arms_of
from quietreasoning.evaluate.judged import save, show
from quietreasoning.evaluate.judging import Judgement, Trial
from quietreasoning.evaluate.rows import Report, arm_name
from quietreasoning.evaluate.rules.base import Context
from quietreasoning.evaluate.rules.load import load_rules
from quietreasoning.evaluate.rules.scorer import RuleScorer
from quietreasoning.methods import METHODS
from quietreasoning.methods.bake import Bake
from quietreasoning.proof import Exam, Ticker, on_what_there_is
from quietreasoning.train.signals import StopFlag, Stopped

ROWS = 8  # examined at a time: a row with all its thoughts is long


def check_gate(name: str, rules: str | None = None) -> None:
    """UserError where there is no such gate, and for a rule file that it lacks or has no use for."""
    if name not in (*GATES, RULES):
        raise UserError(f"--gate {name}: no such gate; choose one of {', '.join((*GATES, RULES))}")
    if name != RULES and rules is not None:
        raise UserError(f"--rules {rules} has no effect with --gate {name}; drop it, or give --gate {RULES}")
    if name == RULES and rules is None:
        raise UserError(f"--gate {RULES} needs the file of rules: give --rules FILE")
    if rules is not None:
        answer_scorer(rules)


def hold(loaded: Loaded, name: str, rules: str | None = None) -> Judgement:
    """Put a run through a gate: table on the terminal, rows in RUN/eval/gate-NAME.json.

    rules: the file of gate `rules`. UserError where the gate does not apply; Stopped where a signal came.
    """
    check_gate(name, rules)
    stop = StopFlag()
    config = on_what_there_is(loaded.config)
    if config.kv_cache is not None or config.kv_caches:
        raise UserError(
            f"--gate {name} judges a method by itself; drop eval.kv_cache and eval.kv_caches, or set them to "
            "null and {}"
        )
    with stop.listening():
        if rules is not None:
            found = rules_gate(loaded, config, stop, rules)
        else:
            found = Judgement(name, tuple(GATES[name](loaded, config, stop)))
    about = {
        "run": str(loaded.folder),
        "checkpoint": loaded.checkpoint.name,
        "method": loaded.method.config.name,
        "task": loaded.config.stages[-1].data.task,
        "split": config.split,
        "seed": loaded.config.seed,
        "device": str(loaded.device),
    }
    judgement = replace(found, about=about | found.about)
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
    method = loaded.method
    if not answers(loaded):
        return {}
    label, controls = method.config.name, (*theater.CONTROLS, "noise")
    arms = arms_of(method, label, controls)
    report = ask(loaded, config, arms, stop)
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


# rules


def rules_gate(loaded: Loaded, config: EvalConfig, stop: StopFlag, rules: str) -> Judgement:
    """How many answers to held-out rows a file of rules keeps, each judged with its prompt as context."""
    if not answers(loaded):
        raise UserError(
            f"--gate {RULES}: task {loaded.config.stages[-1].data.task} with method "
            f"{loaded.method.config.name} has no answers to judge; choose a task of questions with --task"
        )
    scorer = answer_scorer(rules)
    for note in scorer.notes():
        print(f"quiet: note: {note}", file=sys.stderr)
    report = ask(loaded, config, [Arm(loaded.method, loaded.method.config.name)], stop, kept=sys.maxsize)
    scores = [scorer.score(one["answer"], Context(prompt=one["prompt"])) for one in report.samples]
    about = {
        "rules": rules,
        "rules_sha256": hashlib.sha256(Path(rules).read_bytes()).hexdigest(),
        "threshold": scorer.threshold,
        "mean_total": fmean(score.total for score in scores),
        "answers": [
            {"id": one["id"], "answer": one["answer"], "total": score.total, "kept": score.kept}
            | {"broken": [outcome.rule for outcome in score.failed()]}
            for one, score in zip(report.samples, scores, strict=True)
        ],
    }
    found = scorer.gate(scores, name=RULES)
    return replace(found, about=about | ({"about": found.about} if found.about else {}))


def answer_scorer(rules: str) -> RuleScorer:
    """UserError for a file that cannot be read, or that asks what no answer comes with."""
    scorer = load_rules(rules)
    blind = [rule.id for rule in scorer.rules if rule.beside and rule.id not in scorer.waived]
    if blind:
        raise UserError(
            f"--rules {rules}: rule {blind[0]!r} is met by evidence or outcomes beside a text, and an answer "
            "of a run comes with its prompt alone; waive the rule, or take it out"
        )
    return scorer


# rows

RULES = "rules"
# beside RULES, which reads a file
GATES: dict[str, Callable[[Loaded, EvalConfig, StopFlag], list[Trial]]] = {
    "theater": theater_gate,
    "baking": baking_gate,
}


def answers(loaded: Loaded) -> bool:
    """Whether the run answers questions."""
    return loaded.method.answers and not TASKS[loaded.config.stages[-1].data.task].text


def ask(loaded: Loaded, config: EvalConfig, arms: list[Arm], stop: StopFlag, kept: int = 0) -> Report:
    """The evaluation's questions, without a clock. kept: how many answers the report holds as text. Raises
    train's Stopped where a signal came."""
    quick = config.model_dump() | {"timing": 0, "samples": kept, "efforts": ()}
    quick = EvalConfig.model_validate(quick)
    exam = Exam(loaded.config.stages[-1].data, quick, loaded.encoder, loaded.config.seed)
    try:
        return exam.ask(arms, stop, progress=Ticker())
    except harness.Stopped:
        raise Stopped("stopped while evaluating; the same command asks all again") from None


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
