"""A run is a list of stages: `run_stages` trains them in order, evaluates, saves and resumes.

It knows a stage only as a `StagePlan`: functions that build the method, the batches and the evaluation.
Optimizer and averages start fresh in each stage; the method is handed on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from quietreasoning.config import UserError
from quietreasoning.contract import Method
from quietreasoning.optim.settings import OptimConfig
from quietreasoning.track import Sinks
from quietreasoning.train import checkpoint
from quietreasoning.train.distributed import Machine
from quietreasoning.train.loop import BadSteps, BatchAt, StepRecord, finished, train
from quietreasoning.train.quantised import follow
from quietreasoning.train.resume import Resume, find_resume, recipe_of
from quietreasoning.train.rng import seed_all
from quietreasoning.train.settings import TrainConfig
from quietreasoning.train.signals import SaveFile, StopFlag, Stopped
from quietreasoning.train.snapshot import estimated_bytes, load_state, load_weights, save_state
from quietreasoning.train.state import TrainState


@dataclass(frozen=True)
class StagePlan:
    """One stage, as functions: whoever builds it knows methods, data and evaluation, the loop does not."""

    name: str
    settings: Mapping[str, Any]  # this stage's resolved recipe: saved, and compared on resume
    train: TrainConfig
    optim: OptimConfig
    make_method: Callable[[Method | None], Method]  # from the method of the stage before
    make_batches: Callable[[], BatchAt]
    evaluate: Callable[[Method, int], list[dict[str, Any]]] | None = None
    """(method, step since the run began) -> rows with at least task, method, control, accuracy. Called on
    every rank. May raise `Stopped` between batches."""


@dataclass
class RunSummary:
    """What a finished run leaves."""

    method: Method  # of the last stage: averaged weights if there are any, in training mode
    checkpoint: Path
    steps: int
    tokens: int
    seconds: float
    files: dict[str, str]  # path in the checkpoint -> SHA-256
    rows: list[dict[str, Any]]  # the last evaluation; empty if nothing was evaluated or trained
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The closing words: where the files are and what their hashes are."""
        head = (
            f"{self.steps} steps, {self.tokens:,} tokens in {self.seconds:.0f} s. Saved in {self.checkpoint}:"
        )
        return [head, *(f"  {name}  sha256 {sha256[:16]}" for name, sha256 in self.files.items())]


def run_stages(
    plans: Sequence[StagePlan],
    run_dir: Path,
    open_sinks: Callable[[int | None], Sinks],
    stop: StopFlag,
    *,
    seed: int = 0,
    machine: Machine | None = None,
    run_info: Mapping[str, Any] | None = None,
) -> RunSummary:
    """Train `plans` in `run_dir`, going on from its newest valid checkpoint if it has one.

    open_sinks: called once with the step the run resumes from, None for a new run.
    run_info: what else belongs in each checkpoint's run.json (backbone identity, versions, commit).
    Raises `Stopped` once a stop was requested and all is saved; UserError where the run cannot go on.
    """
    run = _Run(list(plans), run_dir, stop, seed, machine or Machine(), dict(run_info or {}))
    if stop.save_file is None and run.machine.main:
        stop.save_file = SaveFile(run_dir)
    resume = find_resume(run_dir, recipe_of(plans), run.machine)
    run.sinks = open_sinks(resume.step if resume else None)
    try:
        for note in resume.notes if resume else []:
            run.note(note)
        return run.all_stages(resume)
    finally:
        run.sinks.close()


@dataclass
class _Run:
    plans: list[StagePlan]
    run_dir: Path
    stop: StopFlag
    seed: int
    machine: Machine
    run_info: dict[str, Any]
    sinks: Sinks = field(default_factory=Sinks)
    notes: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0  # of finished stages
    tokens: int = 0
    last: Path = field(default_factory=Path)  # the newest checkpoint

    def all_stages(self, resume: Resume | None) -> RunSummary:
        began = time.monotonic()
        method: Method | None = None
        self.last = resume.path if resume else self.run_dir
        for index, plan in enumerate(self.plans):
            seed_all(self.seed, index, 0)  # the same weights on every rank
            method = plan.make_method(method)
            if resume and resume.is_past(index):
                if resume.handover and resume.handover.index == index:
                    load_weights(resume.handover.path, method, averaged=True)
                    self.steps, self.tokens = resume.handover.steps, resume.handover.tokens
                continue
            if plan.train.steps == 0:
                method = self.untrained_stage(index, plan, method)
                continue
            here = resume if resume and resume.index == index else None
            if here:
                if index and here.handover is None and method.borrowed:
                    raise UserError(
                        f"{self.run_dir} lacks a valid checkpoint of the end of stage {index}, "
                        f"from which stage {plan.name!r} borrows weights."
                    )
                load_weights(here.path, method)
                self.tokens = here.tokens_before
            method = self.one_stage(index, plan, method, here)
        follow(method, plan.train, plan.train.steps or 0, plan.train.tokens or 0)  # its whole budget
        summary = RunSummary(
            method=method,
            checkpoint=self.last,
            steps=self.steps,
            tokens=self.tokens,
            seconds=time.monotonic() - began,
            files={
                name: entry["sha256"]
                for name, entry in checkpoint.read_json(self.last / checkpoint.MANIFEST)["files"].items()
            },
            rows=self.rows,
            notes=self.notes,
        )
        for line in summary.lines():
            self.sinks.note(line)
        return summary

    def one_stage(self, index: int, plan: StagePlan, method: Method, resume: Resume | None) -> Method:
        """Train one stage to its end, or raise `Stopped` with everything saved."""
        batch_at = plan.make_batches()
        state = TrainState.create(method, plan.train, plan.optim, self.machine)
        state.offset = self.steps
        seed_all(self.seed, index, 1 + self.machine.rank)
        if resume:
            for note in load_state(state, resume.path):
                self.note(note)
        else:
            checkpoint.check_space(self.run_dir, estimated_bytes(state))
        config = plan.train
        unit, total = ("step", config.steps) if config.tokens is None else ("token", config.tokens)
        self.sinks.stage(plan.name, unit, total, state.step if unit == "step" else state.tokens)
        saved_at = state.step if resume else 0
        score: float | None = None
        if resume and not resume.evaluated and _due(state, config, config.eval_every):
            score = self.evaluate(index, plan, state)
        for record in self.guarded(
            train(state, batch_at, config, plan.optim, stage=plan.name, stop=self.stop)
        ):
            end = finished(state, config)
            if end or state.step % config.log_every == 0 or not record.updated:
                self.sinks.write(record.row())
            score = self.evaluate(index, plan, state) if _due(state, config, config.eval_every) else None
            if not end and (state.save_wanted or _every(state, config.save_every)):
                self.save(index, plan, state, score)
                saved_at = state.step
        if not finished(state, config):
            if saved_at != state.step:
                self.save(index, plan, state, score)
            raise Stopped(f"stopped at step {state.global_step} and saved; the same command resumes")
        self.save(index, plan, state, score, done=True)
        self.steps, self.tokens = state.global_step, self.tokens + state.tokens
        return state.finish()

    def untrained_stage(self, index: int, plan: StagePlan, method: Method) -> Method:
        """A stage of no steps: what building it made of the method is evaluated and saved.

        It is saved once, when it is done: stopped or killed before that, the next start builds it again
        from the stage before. What it evaluated is logged after that, or a resume would log it twice.
        """
        state = TrainState.create(method, plan.train, plan.optim, self.machine)
        state.offset = self.steps
        seed_all(self.seed, index, 1 + self.machine.rank)
        checkpoint.check_space(self.run_dir, estimated_bytes(state))
        self.sinks.stage(plan.name, "step", 0, 0)
        rows = self.ask(index, plan, state) if plan.train.eval_every and plan.evaluate else []
        self.save(index, plan, state, mean_accuracy(rows), done=True)
        if rows:
            self.tell(plan, state, rows)
        return state.finish()

    def guarded(self, records: Iterator[StepRecord]) -> Iterator[StepRecord]:
        """Puts the batch on disk that made the loop give up."""
        try:
            yield from records
        except BadSteps as error:
            path = self.run_dir / f"bad-batch-rank-{self.machine.rank}.safetensors"
            tensors = {
                f"lane-{lane}/{f.name}": getattr(batch, f.name).cpu().contiguous()
                for lane, batch in enumerate(error.window)
                for f in fields(batch)
            }
            save_file(tensors, path)
            raise UserError(f"{error} The last batch is in {path}.") from error

    def evaluate(self, index: int, plan: StagePlan, state: TrainState) -> float | None:
        """Evaluate and log; returns the score by which the best checkpoint is kept."""
        if plan.evaluate is None:
            return None
        rows = self.ask(index, plan, state)
        self.tell(plan, state, rows)
        return mean_accuracy(rows)

    def ask(self, index: int, plan: StagePlan, state: TrainState) -> list[dict[str, Any]]:
        """The rows of an evaluation. If it was interrupted, saves and raises `Stopped`."""
        rows: list[dict[str, Any]] = []
        interrupted = False
        follow(state.method, plan.train, state.step, state.tokens)
        with state.evaluating() as method:
            try:
                rows = plan.evaluate(method, state.global_step)
            except Stopped:
                interrupted = True
        if self.machine.any(interrupted):
            self.save(index, plan, state, None, evaluated=False)
            raise Stopped(f"stopped while evaluating step {state.global_step}; the same command resumes")
        return rows

    def tell(self, plan: StagePlan, state: TrainState, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self.sinks.write({"step": state.global_step, "stage": plan.name} | flat_rows(rows))

    def save(
        self,
        index: int,
        plan: StagePlan,
        state: TrainState,
        score: float | None,
        *,
        done: bool = False,
        evaluated: bool = True,
    ) -> None:
        if state.step == 0 and not done:
            return  # nothing has happened that a new start would not repeat
        position = {
            "stage": plan.name,
            "stage_index": index,
            "stage_done": done,
            "evaluated": evaluated,
            "score": score,
            "tokens_before": self.tokens,
        }
        run = {"format": checkpoint.FORMAT, "stage": plan.name, "step": state.global_step} | self.run_info
        run |= {"recipe": recipe_of(self.plans)}
        after = untrained_in_a_row(self.plans[: index + 1])
        self.last = save_state(state, self.run_dir, run=run, position=position, after=after)
        if self.machine.main:
            checkpoint.retain(self.run_dir, plan.train.keep)

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.sinks.note(text)


def mean_accuracy(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The score by which the best checkpoint is kept: without controls."""
    accuracies = [row["accuracy"] for row in rows if row["control"] is None]
    return sum(accuracies) / len(accuracies) if accuracies else None


def untrained_in_a_row(plans: Sequence[StagePlan]) -> int:
    """How many of the last stages have no steps."""
    trained = [i for i, plan in enumerate(plans) if plan.train.steps != 0]
    return len(plans) - 1 - trained[-1] if trained else len(plans)


def flat_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Evaluation rows as keys of the log: `eval/<task>/<method>[/<control>][/effort-<n>]/accuracy`."""
    flat = {}
    for row in rows:
        parts = [row["task"], row["method"], row["control"]]
        if row.get("effort") is not None:
            parts.append(f"effort-{row['effort']}")
        key = "/".join(["eval", *(part for part in parts if part)])
        for figure in ("accuracy", "perplexity", "visible_tokens", "passes"):
            if row.get(figure) is not None:
                flat[f"{key}/{figure}"] = row[figure]
        flat |= {f"{key}/{name}": value for name, value in row.get("figures", {}).items()}
    return flat


def _every(state: TrainState, steps: int) -> bool:
    return steps > 0 and state.step > 0 and state.step % steps == 0


def _due(state: TrainState, config: TrainConfig, steps: int) -> bool:
    """Every so many steps and at the end of the stage; never if 0."""
    return steps > 0 and state.step > 0 and (state.step % steps == 0 or finished(state, config))
