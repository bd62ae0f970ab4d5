"""`quiet train` and its kin: the main path, top to bottom.

`train_run` trains a resolved recipe, `evaluate_run` proves what it left, `report_runs` shows it.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from quietreasoning.build import Builder, Loaded, Resolved, open_run, read_config, resolve
from quietreasoning.config import UserError
from quietreasoning.contract import Method
from quietreasoning.data.config import build_task
from quietreasoning.data.tokenizers import save_tokenizer
from quietreasoning.equip import coverage_note, equip
from quietreasoning.evaluate.judging import Judgement
from quietreasoning.gates import check_gate, hold
from quietreasoning.layers import SECTIONS, diff
from quietreasoning.methods import METHODS
from quietreasoning.planning import estimate
from quietreasoning.proof import prove, quick_rows
from quietreasoning.report.build import report
from quietreasoning.run_config import RunConfig, StageConfig
from quietreasoning.track import LOG, Sinks
from quietreasoning.train import checkpoint
from quietreasoning.train.distributed import Machine
from quietreasoning.train.doctor import Diagnosis, examine
from quietreasoning.train.resume import FREE_TRAIN
from quietreasoning.train.rng import seed_all
from quietreasoning.train.signals import StopFlag
from quietreasoning.train.stages import StagePlan, run_stages
from quietreasoning.train.state import check_settings
from quietreasoning.versions import versions
from quietreasoning.yaml_text import dump_yaml

__all__ = ["Loaded", "Resolved", "RunConfig", "open_run", "resolve"]  # what commands need from build
ANSWERING = [["eval", name] for name in ("kv_cache", "lexicon", "rationale_bias", "stop", "max_new_tokens")]


def train_run(resolved: Resolved, *, resume: bool = False, dry_run: bool = False, doctor: bool = True) -> int:
    """Train a run to its end, or go on with it; 0, or raises Stopped (exit code 75) once all is saved."""
    config, folder = resolved.config, resolved.out
    machine, stop = Machine.start(), StopFlag()
    with stop.listening():
        check_ranks(config, machine.world)
        refuse_on_all(machine, lambda: check_folder(folder, config, resume))
        builder = Builder(config)
        if doctor or dry_run:
            for diagnosis in diagnose(builder, stop):
                if machine.main:
                    diagnosis.show()
                diagnosis.require_healthy()
        if dry_run:
            return 0
        info = run_info(resolved, builder.tokenizer)
        if machine.main:
            write_folder(folder, config, info, builder.tokenizer)
        plans = [plan_stage(builder, stage, stop, machine) for stage in config.stages]

        def open_sinks(step: int | None) -> Sinks:
            settings = config.model_dump(mode="json")
            return Sinks.open(config.track, folder, resume_step=step, settings=settings, main=machine.main)

        done = run_stages(plans, folder, open_sinks, stop, seed=config.seed, machine=machine, run_info=info)
        if machine.main:
            for path in done.method.export(folder):
                print(f"wrote {path}", file=sys.stderr)
    return 0


def plan_stage(builder: Builder, stage: StageConfig, stop: StopFlag, machine: Machine) -> StagePlan:
    """The stage as functions: the loop knows neither methods nor data nor evaluation."""
    config, method = builder.config, None

    def make_method(before: Method | None) -> Method:
        nonlocal method
        method = builder.method(stage, before)
        return method

    def make_batches():
        notes: list[str] = []
        batches = builder.batches(stage, method.backbone.context, notes, stop.check)
        batches.prepare(stage.train.steps or None, check=stop.check)  # 0 steps: notes tell of all
        equip(method, batches.examples, batches.encoder, build_task(stage.data).scorer)
        notes += coverage_note(batches)
        if machine.main:
            for note in notes:
                print(note, file=sys.stderr)
        return batches.batch_at

    def evaluate(method: Method, step: int) -> list[dict[str, Any]]:
        return quick_rows(builder, stage, method, stop)

    settings = {
        "seed": config.seed,
        "init": config.init,
        "backbone": config.backbone.model_dump(mode="json"),
        **stage.model_dump(mode="json", exclude={"name"}),
        "source": build_task(stage.data).fingerprint(),
    }
    return StagePlan(stage.name, settings, stage.train, stage.optim, make_method, make_batches, evaluate)


def diagnose(builder: Builder, stop: StopFlag | None = None) -> list[Diagnosis]:
    """The doctor's findings, a stage at a time, on one batch of its real data."""
    found: list[Diagnosis] = []
    method: Method | None = None
    for index, stage in enumerate(builder.config.stages):
        seed_all(builder.config.seed, index, 0)
        method = builder.method(stage, method)
        if stage.train.steps == 0:
            continue  # nothing will be trained
        check = stop.check if stop is not None else lambda: None
        batches = builder.batches(stage, method.backbone.context, [], check)
        equip(method, batches.examples, batches.encoder, build_task(stage.data).scorer, probing=True)
        batch = batches.batch_at(0)
        optim = stage.optim if stage.train.steps != 0 else None  # rates of what was frozen name nothing
        diagnosis = examine(method, batch, label=stage.name, optim=optim, enable=stage.train.enable)
        notes = coverage_note(batches, refuse=False)
        found.append(replace(diagnosis, notes=(*diagnosis.notes, *notes)))
        check()
    return found


def doctor(resolved: Resolved) -> list[Diagnosis]:
    """One diagnosis a stage."""
    return diagnose(Builder(resolved.config))


def check_ranks(config: RunConfig, ranks: int) -> None:
    """UserError where a stage cannot be cut for so many ranks."""
    for stage in config.stages:
        check_settings(stage.train, stage.optim, ranks)


def check_folder(folder: Path, config: RunConfig, resume: bool) -> None:
    """UserError where the folder holds something else, or nothing although `resume` was asked for."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"{there} is a file, so {folder} cannot be a run folder; choose another --out")
    log = folder / LOG
    begun = checkpoint.checkpoints(folder) or (log.is_file() and log.stat().st_size > 0)
    if (folder / "config.yaml").exists():
        old, new = read_config(folder), config
        free = {"out", "eval", "track"}
        differences = diff(
            old.model_dump(mode="json", exclude=free), new.model_dump(mode="json", exclude=free)
        )
        differences = [line for line in differences if not _is_free(line)]
        if differences and begun:
            raise UserError(
                f"{folder} holds another run: {'; '.join(differences)}. Choose another --out, or take the "
                "change back to resume."
            )
    elif begun or (folder.is_dir() and foreign(folder)):
        raise UserError(f"{folder} is not empty and holds no run; choose another --out")
    if resume and not checkpoint.checkpoints(folder):
        raise UserError(f"--resume: {folder} holds no checkpoint; leave --resume out to start a new run")


def foreign(folder: Path) -> list[str]:
    """Names in a folder that no start of a run has left there."""
    ours = {"config.yaml", "run.json", "tokenizer", LOG}
    return [
        path.name
        for path in folder.iterdir()
        if path.name not in ours and not path.name.startswith(checkpoint.TEMPORARY)
    ]


def refuse_on_all(machine: Machine, check: Callable[[], None]) -> None:
    """`check` on the first rank alone, before it writes; every rank raises its refusal."""
    refusal = None
    if machine.main:
        try:
            check()
        except UserError as error:
            refusal = str(error)
    refusal = machine.gather(refusal)[0]
    if refusal is not None:
        raise UserError(refusal)


def _is_free(line: str) -> bool:
    key = line.partition(":")[0].rpartition(".")
    return key[0].endswith("train") and key[2] in FREE_TRAIN


def write_folder(folder: Path, config: RunConfig, info: dict[str, Any], tokenizer) -> None:
    """What a run folder holds before its first step; each file is replaced whole or not at all."""
    draft = folder / f"{checkpoint.TEMPORARY}start"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        (draft / "config.yaml").write_text(dump_yaml(config.model_dump(mode="json")), encoding="utf-8")
        (draft / "run.json").write_text(json.dumps(info, indent=1), encoding="utf-8")
        save_tokenizer(tokenizer, draft / "tokenizer")
        if not checkpoint.checkpoints(folder):
            shutil.rmtree(folder / "tokenizer", ignore_errors=True)  # of another start, maybe another kind
        (folder / "tokenizer").mkdir(exist_ok=True)
        for file in [*draft.glob("tokenizer/*"), draft / "run.json", draft / "config.yaml"]:
            file.replace(folder / file.relative_to(draft))
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror}. Free some space, or choose another --out."
        ) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def run_info(resolved: Resolved, tokenizer) -> dict[str, Any]:
    """Where a run comes from: recipe, command, versions, commit, device."""
    device = torch.accelerator.current_accelerator()
    return {
        "recipe": resolved.recipe,
        "command": shlex.join(["quiet", *sys.argv[1:]]),
        "versions": versions(),
        "commit": commit(),
        "device": str(device or f"cpu, {torch.get_num_threads()} threads"),
        "vocabulary": len(tokenizer),
    }


def commit() -> str | None:
    """The commit of the working tree this package stands in; None where there is none."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def next_commands(folder: Path) -> str:
    """What to do with a finished run."""
    name = shlex.quote(str(folder))
    chat = f" ; quiet chat {name}" if METHODS[read_config(folder).stages[-1].method.name].answers else ""
    return f"next: quiet eval {name} ; quiet report {name}{chat}"


def evaluate_run(run: str, overrides: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows of a run, its earlier visible chain and its baselines; also written to RUN/eval/rows.json.

    UserError for a setting that only training reads.
    """
    check_evaluation(overrides)
    return prove(open_run(run, overrides))


def gate_run(run: str, gate: str, overrides: Sequence[str] = (), rules: str | None = None) -> Judgement:
    """Whether a run passes a gate; also written to RUN/eval/gate-NAME.json. rules: the file of gate `rules`.
    UserError as above, and where the gate does not apply."""
    check_gate(gate, rules)
    check_evaluation(overrides)
    return hold(open_run(run, overrides), gate, rules)


def check_evaluation(overrides: Sequence[str]) -> None:
    """UserError for a setting that only training reads."""
    for override in overrides:
        section = override.partition("=")[0].partition(".")[0].strip()
        if section in {*RunConfig.model_fields, *SECTIONS} and section not in ("eval", "data", "stages"):
            raise UserError(f"{override}: has no effect on a trained run; quiet eval takes eval.* and data.*")


def check_answering(overrides: Sequence[str]) -> None:
    """UserError for a setting that a single answer does not read."""
    for override in overrides:
        if override.partition("=")[0].strip().split(".")[:2] not in ANSWERING:
            takes = ", ".join(".".join(key) for key in ANSWERING)
            raise UserError(f"{override}: has no effect on one answer; quiet generate and chat take {takes}")


def report_runs(runs: Sequence[str]) -> Path:
    """Write report.html into the only run, or beside several; returns its path."""
    folder = Path(runs[0]) if len(runs) == 1 else Path(runs[0]).parent
    return report(runs, folder / "report.html")


def plan(resolved: Resolved) -> dict[str, str]:
    """What a recipe will take."""
    return estimate(resolved.config, resolved.absent)
