"""`evaluate(arms, examples, ...) -> Report`: the only door. The same call in training, shell and notebook.

Every arm answers the same prompts greedily and goes through the same scorer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from quietreasoning.config import UserError
from quietreasoning.data.example import Example
from quietreasoning.evaluate.answer_only import AnswerOnly, together
from quietreasoning.evaluate.asking import (
    Answers,
    Permits,
    Progress,
    Prompt,
    answer_all,
    answering,
    device_name,
    device_of,
    time_alone,
)
from quietreasoning.evaluate.calibration import trust
from quietreasoning.evaluate.call_figures import call_figures, form_figures
from quietreasoning.evaluate.compare import compare_all, verdicts
from quietreasoning.evaluate.config import EvalConfig
from quietreasoning.evaluate.constrained import Constraint
from quietreasoning.evaluate.controls import FROM_OTHER_ROWS, Arm
from quietreasoning.evaluate.grades import GRADES, grade_figures
from quietreasoning.evaluate.kv_cache import check_caches, metered
from quietreasoning.evaluate.leakage import Audit, leakage
from quietreasoning.evaluate.meter import Meter
from quietreasoning.evaluate.rows import COSTS, Report, Row, arm_name
from quietreasoning.evaluate.scorers import SCORERS, number
from quietreasoning.evaluate.statistics import wilson


class Stopped(Exception):
    """`stop()` said so. `report` holds the arms that were finished; the caller saves it and exits 75."""

    def __init__(self, report: Report):
        super().__init__(f"evaluation stopped after {len(report.rows)} finished rows")
        self.report = report


def evaluate(
    arms: Sequence[Arm],
    examples: Sequence[Example],
    *,
    task: str,
    scorer: str,
    encode_prompt: Callable[[Example], Sequence[int]],
    decode: Callable[[list[int]], str],
    config: EvalConfig,
    seed: int = 0,
    shortcuts: Callable[[Example], Mapping[str, str]] | None = None,
    group: Callable[[Example], str | None] = lambda example: None,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress = lambda arm, done, total: None,
    tokenizer: Any = None,
    dialect: str = "json",
) -> Report:
    """Score every arm on every example (the caller has cut them to `config.split` and `config.n`).

    task: its name, for the rows. scorer: a key of SCORERS. encode_prompt: ids of one prompt, without
    padding. decode: text of answer ids. seed: the training seed, for the rows. shortcuts: rule -> answer,
    for rows "shortcut: <rule>". group: the group an example also counts in. stop: asked before every batch.
    progress: (arm, prompts done, prompts). tokenizer: what `encode_prompt` uses, and dialect: of tool
    calls, for `config.constrained`; the tokenizer also for `rationale_bias` and `stop`.

    Raises UserError on prompts that do not fit the context, on an effort that a method does not have, on
    a control that needs a second prompt, on `config.constrained` where no tools are declared or an arm cannot
    be held to a grammar; Stopped when `stop()` turns true.
    """
    if not arms or not examples:
        raise UserError(
            f"task {task}: {len(arms)} arms and {len(examples)} examples leave nothing to evaluate"
        )
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise ValueError(f"arms need different names, got {', '.join(names)}")
    prompts = [np.asarray(encode_prompt(example), dtype=np.int64) for example in examples]
    for arm in arms:
        _check(arm, prompts, config)
    constraint = Constraint(tokenizer, task, examples, dialect) if config.constrained else None
    answer_only = AnswerOnly(tokenizer, config.lexicon, config.rationale_bias, config.stop)
    permits = joint(constraint, answer_only)
    for method in {id(arm.method): arm.method for arm in arms}.values() if constraint else ():
        constraint.check(method)
    check_caches(arms, config)
    device = device_name(device_of(arms[0].method))
    groups = [group(each) for each in examples]
    loose = {} if constraint is None else constraint.loose
    found = _Findings(task, scorer, config, seed, device, examples, groups, loose)

    def check_stop() -> None:
        if stop():
            raise Stopped(found.report(complete=False))

    for arm in arms:
        with answering(arm.method), metered(arm, arms, config) as meter:
            ms = None if arm.control else time_alone(arm, prompts, config, check_stop, permits)
            said = answer_all(arm, prompts, config, check_stop, progress, permits, meter)
        said.answers = [answer_only.cut(answer) for answer in said.answers]
        found.add_arm(arm, said, ms, decode, answer_only.text(decode), meter)
    if shortcuts is not None:
        found.add_shortcuts([shortcuts(example) for example in examples])
    return found.report(complete=True)


@dataclass
class _Findings:
    """What is known so far, arm by arm."""

    task: str
    scorer: str
    config: EvalConfig
    seed: int
    device: str
    examples: Sequence[Example]
    groups: Sequence[str | None]
    loose: Mapping[str, str]  # tools whose schemas say more than a constrained answer is held to
    rows: list[Row] = field(default_factory=list)
    outcomes: dict[str, str] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)

    def add_arm(
        self,
        arm: Arm,
        said: Answers,
        ms: float | None,
        decode: Callable[[list[int]], str],
        read: Callable[[list[int]], str],
        meter: Meter | None = None,
    ) -> None:
        """read: as `decode`, of an answer."""
        texts = [read(answer) for answer in said.answers]
        correct = self._score(texts)
        means = {name: fmean(getattr(said, name)) for name in ("visible_tokens", "passes", "latent_steps")}
        unanswered = sum(not text for text in texts)
        costs = {**means, "ms": ms, "ms_batched": said.ms_batched, "batch": said.batch}
        more = costs | self._figures(texts)
        audit = Audit(self.config.lexicon, read, arm.method.markers.thinking)
        more["leakage"] = leakage(list(map(audit.read, said.answers, self.examples)))
        if said.confidence is not None:
            more["trust"] = trust(said.confidence, correct)
        if meter is not None:
            more["kv"] = meter.figures()
        if arm.cache is not None:
            more["cache"] = arm.cache
        self._add(arm.label, _kind(arm, means), arm.control, arm.effort, correct, unanswered, more)
        if arm.control is None and arm.effort is None:
            for i, example in enumerate(self.examples[: self.config.samples]):
                self.samples.append(
                    {
                        "arm": arm.name,
                        "id": example.id,
                        "prompt": example.prompt,
                        "written": decode(said.tokens[i]),
                        "answer": texts[i],
                        "gold": example.answer,
                        "correct": correct[i],
                    }
                )

    def add_shortcuts(self, guesses: Sequence[Mapping[str, str]]) -> None:
        """A rule that says nothing about an example is wrong there."""
        for rule in dict.fromkeys(name for guess in guesses for name in guess):
            texts = [guess.get(rule, "") for guess in guesses]
            more = dict.fromkeys(COSTS) | self._figures(texts)
            self._add(f"shortcut: {rule}", "shortcut", None, None, self._score(texts), 0, more)

    def report(self, complete: bool) -> Report:
        seed = self.config.seed
        settings = {**self.config.model_dump(mode="json"), "scorer": self.scorer, "decoding": "greedy"}
        return Report(
            task=self.task,
            split=self.config.split,
            seed=self.seed,
            rows=tuple(self.rows),
            items=tuple(example.id for example in self.examples),
            outcomes=dict(self.outcomes),
            comparisons=tuple(compare_all(self.rows, self.outcomes, seed)),
            verdicts=tuple(verdicts(self.rows, self.outcomes, seed)),
            samples=tuple(self.samples),
            settings=settings | ({"loose_schemas": dict(self.loose)} if self.loose else {}),
            device=self.device,
            complete=complete,
        )

    def _score(self, texts: Sequence[str]) -> list[bool]:
        score = SCORERS[self.scorer]
        return [score(text, example) for text, example in zip(texts, self.examples, strict=True)]

    def _figures(self, texts: Sequence[str]) -> dict[str, dict[str, Any]]:
        if self.scorer in GRADES:
            found = grade_figures(self.scorer, texts, self.examples, self.groups)
            return found | {"group_figures": in_order(found["group_figures"])}
        figures = {"call": call_figures, "program": form_figures}.get(self.scorer)
        return {} if figures is None else figures(texts, self.examples)

    def _add(
        self,
        method: str,
        kind: str,
        control: str | None,
        effort: int | None,
        correct: Sequence[bool],
        unanswered: int,
        more: Mapping[str, Any],
    ) -> None:
        by_steps: dict[int, list[int]] = {}
        by_group: dict[str, list[int]] = {}
        for hit, example, group in zip(correct, self.examples, self.groups, strict=True):
            counts = [by_steps.setdefault(example.meta["num_steps"], [0, 0])]
            if group is not None:
                counts.append(by_group.setdefault(group, [0, 0]))
            for count in counts:
                count[0] += hit
                count[1] += 1
        low, high = wilson(sum(correct), len(correct))
        self.outcomes[arm_name(method, control, effort)] = "".join("1" if hit else "0" for hit in correct)
        self.rows.append(
            {
                "task": self.task,
                "split": self.config.split,
                "method": method,
                "kind": kind,
                "control": control,
                "effort": effort,
                "seed": self.seed,
                "n": len(correct),
                "correct": sum(correct),
                "accuracy": sum(correct) / len(correct),
                "low": low,
                "high": high,
                "unanswered": unanswered,
                **more,
                "by_steps": {str(steps): by_steps[steps] for steps in sorted(by_steps)},
                "groups": {name: [hits / n, n] for name, (hits, n) in in_order(by_group).items()},
            }
        )


def joint(constraint: Constraint | None, answer_only: AnswerOnly) -> Permits:
    """Both, where there are both."""
    makers = [each.permit for each in (constraint, answer_only) if each]
    if len(makers) < 2:
        return next(iter(makers), None)
    return lambda method, examples: together([permit(method, examples) for permit in makers])


def in_order(groups: Mapping[str, Any]) -> dict[str, Any]:
    """Groups by the first number in their names."""
    return dict(sorted(groups.items(), key=lambda item: (number(item[0]) or 0, item[0])))


def _check(arm: Arm, prompts: Sequence[Prompt], config: EvalConfig) -> None:
    """UserError for whatever would fail halfway."""
    context = arm.method.backbone.context
    longest = max(len(prompt) for prompt in prompts)
    too_long = sum(len(prompt) + config.max_new_tokens > context for prompt in prompts)
    if too_long:
        raise UserError(
            f"{too_long} of {len(prompts)} prompts do not fit {arm.label}: the longest has {longest} tokens, "
            f"eval.max_new_tokens={config.max_new_tokens}, the model's context is {context}; "
            "lower eval.max_new_tokens, use a longer context, or drop long prompts with data.too_long=drop"
        )
    if arm.control in FROM_OTHER_ROWS and len(prompts) < 2:
        raise UserError(f"control '{arm.control}' needs at least 2 prompts, got 1; set eval.n=2 or more")


def _kind(arm: Arm, costs: Mapping[str, float]) -> str:
    """What an arm is, by what it did rather than by its name."""
    if arm.control is not None:
        return "control"
    if costs["latent_steps"] > 0:
        return "quiet" if costs["passes"] > 0 else "filler"
    return "chain" if costs["visible_tokens"] > 0 or costs["passes"] > 0 else "direct"
