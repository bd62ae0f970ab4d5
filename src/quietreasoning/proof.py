"""A run's evaluation: itself, its controls, its visible chain and its baselines, in one table."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quietreasoning.build import Builder, Loaded, open_checkpoint, open_run
from quietreasoning.config import UserError
from quietreasoning.contract import Method
from quietreasoning.data.config import DataConfig, build_task
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.load import load_split
from quietreasoning.data.tasks import TASKS
from quietreasoning.evaluate import harness
from quietreasoning.evaluate.asking import Progress
from quietreasoning.evaluate.config import EvalConfig
from quietreasoning.evaluate.constrained import refusal
from quietreasoning.evaluate.controls import Arm, arms_of
from quietreasoning.evaluate.kv_table import kv_table
from quietreasoning.evaluate.leakage import leakage_lines
from quietreasoning.evaluate.rows import Report, save, unambiguous
from quietreasoning.evaluate.table import figures_table, is_text, table, trust_lines
from quietreasoning.evaluate.text import evaluate_text
from quietreasoning.run_config import RunConfig, StageConfig
from quietreasoning.train import checkpoint
from quietreasoning.train.signals import StopFlag, Stopped


@dataclass(frozen=True)
class Exam:
    """The questions of one evaluation."""

    data: DataConfig
    config: EvalConfig
    encoder: Encoder
    seed: int
    title: str | None = None  # how the rows name the task; None: its own name

    def ask(
        self,
        arms: list[Arm],
        stop: StopFlag,
        *,
        shortcuts: bool = False,
        progress: Progress = lambda arm, done, total: None,
    ) -> Report:
        """Every arm on the same examples. Raises train's Stopped where a signal came."""
        task = build_task(self.data)
        examples, dropped = load_split(task, self.config.split, self.data, self.encoder, n=self.config.n)
        if dropped:
            print(f"{dropped} {self.config.split} examples are too long and were left out", file=sys.stderr)
        shared = {
            "task": self.title or task.name,
            "config": self.config,
            "seed": self.seed,
            "stop": lambda: stop.requested,
            "progress": progress,
        }
        if task.text or not all(arm.method.answers for arm in arms):
            if self.config.constrained:
                raise UserError(
                    "eval.constrained=true holds answers to a grammar; here is none: set it to false"
                )
            if self.config.rationale_bias or self.config.stop:
                raise UserError(
                    "eval.rationale_bias and eval.stop are for answers; here is only reading: set them to 0 "
                    "and []"
                )
            if self.config.kv_cache is not None or self.config.kv_caches:
                raise UserError(
                    "eval.kv_cache is for what is written; here is only reading: set it to null, and "
                    "eval.kv_caches to {}"
                )
            return evaluate_text(arms, examples, batch=self.encoder.batch, **shared)
        spans, cut = self.encoder.format.spans, self.encoder.prompting.cut
        report = harness.evaluate(
            arms,
            examples,
            scorer=task.scorer,
            encode_prompt=lambda example: self.encoder.encode(example).prompt,
            decode=self.encoder.text,
            shortcuts=task.shortcuts if shortcuts else None,
            group=task.group,
            tokenizer=self.encoder.tokenizer,
            dialect="hermes" if spans is not None and spans.dialect == "hermes" else "json",
            **shared,
        )
        if cut := self.encoder.prompting.cut - cut:
            print(f"{cut} of {len(examples)} prompts lost their middle (too_long=middle)", file=sys.stderr)
            report.settings["cut_prompts"] = cut
        return report


class Ticker:
    """A line on stderr with the first batch, then every few seconds: evaluations can be long."""

    def __init__(self, seconds: float = 5.0):
        self.seconds = seconds
        self.printed = -float("inf")

    def __call__(self, arm: str, done: int, total: int) -> None:
        if time.monotonic() - self.printed >= self.seconds:
            self.printed = time.monotonic()
            print(f"evaluating {arm}: {done}/{total}", file=sys.stderr, flush=True)


def quick_rows(builder: Builder, stage: StageConfig, method: Method, stop: StopFlag) -> list[dict[str, Any]]:
    """During training: the method alone on validation rows, no controls, no grammar, no bias, no other cache,
    no clock."""
    alone = {"controls": (), "efforts": (), "constrained": False, "rationale_bias": 0.0}
    alone |= {"kv_cache": None, "kv_caches": {}, "split": "valid", "timing": 0, "samples": 0}
    alone |= {"stop": ()} if TASKS[stage.data.task].text or not method.answers else {}
    config = EvalConfig.model_validate(builder.config.eval.model_dump() | alone)
    encoder = builder.encoder(stage.data, method.backbone.context)
    exam = Exam(stage.data, config, encoder, builder.config.seed)
    try:
        return list(exam.ask([Arm(method, method.config.name)], stop).rows)
    except harness.Stopped:
        raise Stopped() from None


def prove(loaded: Loaded) -> list[dict[str, Any]]:
    """Evaluate a run, print the table, keep the report in RUN/eval/rows.json; returns the rows."""
    config, stop = loaded.config, StopFlag()
    exam = Exam(config.stages[-1].data, on_what_there_is(config), loaded.encoder, config.seed)
    text, answers = TASKS[exam.data.task].text, loaded.method.answers
    beside = [arm for arm in baselines(loaded) if text or arm.method.answers == answers]
    arms = [*beside, *arms_of_run(loaded)]
    kept = loaded.folder / "eval" / "rows.json"
    with stop.listening():
        try:
            report = exam.ask(arms, stop, shortcuts=True, progress=Ticker())
        except harness.Stopped as stopped:
            if stopped.report.rows:
                save(kept, [stopped.report])
            raise Stopped("stopped while evaluating; the same command asks all again") from None
    save(kept, [report])
    show(report, kept)
    wanted = {"plain", "cot"} if answers and not text else set()
    for missing in sorted(wanted - {arm.label for arm in arms}):
        print(
            f"note: no {missing} arm in this table; train one and add eval.baselines=[RUN]", file=sys.stderr
        )
    return unambiguous(report.rows)


def on_what_there_is(config: RunConfig) -> EvalConfig:
    """The evaluation's settings; a task of a single split, such as HumanEval, is asked on that one."""
    data, asked = config.stages[-1].data, config.eval
    splits = TASKS[data.task].splits
    if asked.split in splits or len(splits) > 1:
        return asked
    print(f"note: {data.task} has no {asked.split} split, only {splits[0]}", file=sys.stderr)
    return EvalConfig.model_validate(asked.model_dump() | {"split": splits[0]})


def arms_of_run(loaded: Loaded) -> list[Arm]:
    method, asked = loaded.method, loaded.config.eval
    return arms_of(method, method.config.name, asked.controls, asked.efforts, asked.kv_caches)


def baselines(loaded: Loaded) -> list[Arm]:
    """The runs that `eval.baselines` names, and this run's own stages of another method."""
    arms = [Arm(run.method, run.method.config.name) for run in map(open_run, loaded.config.eval.baselines)]
    names = {arm.label for arm in arms} | {loaded.method.config.name}
    for path in checkpoint.checkpoints(loaded.folder):
        if checkpoint.verify(path):
            continue  # open_run has named it
        state = checkpoint.read_json(path / "state.json")
        name = loaded.config.stages[state["stage_index"]].method.name
        if state["stage_done"] and name not in names:
            method = open_checkpoint(loaded.folder, path, loaded.config).method
            names.add(name)
            if loaded.config.eval.constrained and (why := refusal(method)) is not None:
                print(f"note: eval.constrained leaves out this run's {name}: {why}", file=sys.stderr)
                continue
            arms.append(Arm(method, name))
    return arms


def show(report: Report, kept: Path) -> None:
    from rich.console import Console

    console = Console()
    console.print(table(report.rows, title=f"{report.task} ({report.split}), n = {report.rows[0]['n']}"))
    for row in report.rows:
        own = row["control"] is None and row["effort"] is None and row["kind"] != "shortcut"
        if own and len(row["groups"]) > 1:
            graded = "group_figures" in row  # answers may be right in part
            shares = row["group_figures"] if graded else row["groups"]
            parts = [f"{name} {100 * share:.1f} % ({n})" for name, (share, n) in shares.items()]
            what = f"{row['method']}, {next(iter(row['figures']))}" if graded else row["method"]
            console.print(f"{what}: {', '.join(parts)}", highlight=False)
    if (calls := figures_table(report.rows)) is not None:
        console.print(calls)
    if (caches := kv_table(report.rows)) is not None:
        console.print(caches)
    for line in (*trust_lines(report.rows), *leakage_lines(report.rows)):
        console.print(line, highlight=False)
    for row in report.rows if is_text(report.rows) else ():
        show_figures(row["method"], row.get("figures", {}))
    for tool, why in report.settings.get("loose_schemas", {}).items():
        print(f"note: {tool} is held to a part of its schema: {why}", file=sys.stderr)
    for verdict in report.verdicts:
        console.print(verdict["text"], highlight=False)
    console.print(f"rows: {kept}", highlight=False)


def show_figures(method: str, figures: Mapping[str, float]) -> None:
    """What a method measured beside its predictions; `last/64/kl` stands in line `last/64`, column `kl`."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    lines: dict[str, dict[str, float]] = {}
    for name, value in figures.items():
        place, _, column = name.rpartition("/")
        lines.setdefault(place, {})[column] = value
    columns = list(dict.fromkeys(column for line in lines.values() for column in line))
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    made.add_column(method)
    for column in columns:
        made.add_column(column, justify="right")
    for place, line in lines.items():
        made.add_row(place, *(f"{line[column]:.4f}" if column in line else "" for column in columns))
    if lines:
        Console().print(made)
