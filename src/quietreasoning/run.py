"""From a recipe to a run: the main path, top to bottom.

`resolve` reads a recipe, `train_run` trains it, `open_run` loads what it left, `evaluate_run` proves it.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from quietreasoning.backbone import Backbone, BackboneConfig, load_backbone
from quietreasoning.config import Pick, Settings, UserError
from quietreasoning.contract import Method, MethodConfig
from quietreasoning.data.batches import Batches
from quietreasoning.data.config import DataConfig, build_task
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.load import load_split
from quietreasoning.data.tokenizers import build_tokenizer, load_tokenizer, save_tokenizer
from quietreasoning.evaluate.config import EvalConfig
from quietreasoning.layers import diff, expand
from quietreasoning.methods import METHODS
from quietreasoning.optim.settings import OptimConfig
from quietreasoning.recipe import RECIPES, load_recipe
from quietreasoning.track import Sinks, TrackConfig
from quietreasoning.train import checkpoint
from quietreasoning.train.distributed import Machine
from quietreasoning.train.doctor import Diagnosis, examine
from quietreasoning.train.rng import seed_all
from quietreasoning.train.settings import TrainConfig
from quietreasoning.train.signals import StopFlag
from quietreasoning.train.snapshot import load_weights
from quietreasoning.train.stages import StagePlan, run_stages
from quietreasoning.validation import validate
from quietreasoning.yaml_text import dump_yaml

_METHOD_CONFIGS = {name: method.Config for name, method in METHODS.items()}


class StageConfig(Settings):
    """One stage, complete."""

    name: str = "main"
    """How the log calls it."""
    method: Annotated[MethodConfig, Pick("method", _METHOD_CONFIGS)]
    """The method and its settings."""
    data: DataConfig = DataConfig()
    """What it learns from."""
    optim: OptimConfig = OptimConfig()
    """How its weights move."""
    train: TrainConfig = TrainConfig()
    """How long, how wide, how precise."""


class RunConfig(Settings):
    """A whole run."""

    seed: int = Field(0, ge=0)
    """Seed of weights, row order and whatever a method samples."""
    out: str | None = None
    """Run folder; null = runs/<recipe>-<seed>."""
    init: str | None = None
    """A run folder whose backbone this run starts from."""
    backbone: BackboneConfig = BackboneConfig()
    """The language model."""
    eval: EvalConfig = EvalConfig()
    """How it is evaluated."""
    track: TrackConfig = TrackConfig()
    """Who hears about it."""
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    """What is trained, in order."""


@dataclass(frozen=True)
class Resolved:
    """A recipe with all its values, and where each came from."""

    recipe: str
    config: RunConfig
    provenance: dict[str, str]

    @property
    def out(self) -> Path:
        return Path(self.config.out)


def resolve(recipe: str, overrides: Sequence[str] = (), out: str | None = None) -> Resolved:
    """A shipped recipe or a YAML file under `a.b=c` settings. UserError names the first fault."""
    overrides = [*overrides, *([f"out={json.dumps(out)}"] if out is not None else [])]
    layers = expand(load_recipe(recipe, overrides))
    config = validate(RunConfig, layers.values, layers.provenance)
    name = recipe if recipe in RECIPES else Path(recipe).stem
    if config.out is None:
        config = changed(config, out=f"runs/{name.replace('/', '-')}-{config.seed}")
    for stage in config.stages:
        if stage.train.steps is None and stage.train.tokens is None:
            raise UserError(f"stage {stage.name}: no budget. Set train.steps=N or train.tokens=N.")
    return Resolved(name, config, layers.provenance)


def changed(config: RunConfig, **values: Any) -> RunConfig:
    """A copy with other values, validated like the first."""
    return validate(RunConfig, config.model_dump(mode="json") | values)


class Builder:
    """Makes what the stages of a run need, each thing once."""

    def __init__(self, config: RunConfig, tokenizer_folder: Path | None = None):
        self.config = config
        self.tokenizer_folder = tokenizer_folder

    @cached_property
    def tokenizer(self):
        if self.tokenizer_folder is not None:
            return load_tokenizer(str(self.tokenizer_folder))
        first, backbone = self.config.stages[0].data, self.config.backbone
        return build_tokenizer(first, build_task(first), backbone.path, backbone.revision)

    def backbone(self) -> Backbone:
        """Fresh, loaded, or taken from the run that `init` names."""
        if self.config.init is None:
            return load_backbone(self.config.backbone, len(self.tokenizer))
        other = open_run(self.config.init)
        differences = diff(other.config.backbone.model_dump(), self.config.backbone.model_dump())
        if differences:
            raise UserError(f"init={self.config.init} holds another backbone: {'; '.join(differences)}")
        if other.encoder.tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise UserError(
                f"init={self.config.init} was trained with another tokenizer; "
                f"set data.tokenizer.path={self.config.init}/tokenizer"
            )
        return other.method.backbone

    def method(self, stage: StageConfig, before: Method | None = None) -> Method:
        """The stage's method, around the backbone of the stage before; parts of the same name carry over."""
        backbone = self.backbone() if before is None else before.backbone
        encoder = Encoder(self.tokenizer, stage.data.format)
        method = METHODS[stage.method.name](backbone, stage.method, encoder.markers())
        if before is not None:
            own, given = method.state_dict(), before.state_dict()
            with torch.no_grad():
                for name in own.keys() & given.keys():
                    if not name.startswith("backbone.") and own[name].shape == given[name].shape:
                        own[name].copy_(given[name])
        return method

    def encoder(self, data: DataConfig, context: int) -> Encoder:
        return Encoder(self.tokenizer, data.format, max_prompt_tokens=data.max_prompt_tokens, context=context)

    def batches(self, stage: StageConfig, context: int, notes: list[str]) -> Batches:
        """Training rows. What was left out is told in `notes`."""
        task, encoder = build_task(stage.data), self.encoder(stage.data, context)
        examples, dropped = load_split(task, "train", stage.data, encoder)
        if dropped:
            notes.append(f"{dropped} training examples are too long and were left out")
        notes.extend(f"left out: {fault}" for fault in task.faults[:5])
        return Batches(examples, encoder, stage.train.batch_size, self.config.seed)


def train_run(resolved: Resolved, *, resume: bool = False, dry_run: bool = False, doctor: bool = True) -> int:
    """Train a run to its end, or go on with it; 0, or raises Stopped (exit code 75) once all is saved."""
    config, folder = resolved.config, resolved.out
    machine, stop = Machine.start(), StopFlag()
    with stop.listening():
        check_folder(folder, config, resume)
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

        run_stages(plans, folder, open_sinks, stop, seed=config.seed, machine=machine, run_info=info)
    return 0


def plan_stage(builder: Builder, stage: StageConfig, stop: StopFlag, machine: Machine) -> StagePlan:
    """The stage as functions: the loop knows neither methods nor data nor evaluation."""
    config, context = builder.config, 0

    def make_method(before: Method | None) -> Method:
        nonlocal context
        method = builder.method(stage, before)
        context = method.backbone.context
        return method

    def make_batches():
        notes: list[str] = []
        batches = builder.batches(stage, context, notes)
        batches.prepare(check=stop.check)
        if machine.main:
            for note in notes:
                print(note, file=sys.stderr)
        return batches.batch_at

    def evaluate(method: Method, step: int) -> list[dict[str, Any]]:
        from quietreasoning.proof import quick_rows

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
        batch = builder.batches(stage, method.backbone.context, []).batch_at(0)
        found.append(examine(method, batch, label=stage.name, optim=stage.optim, enable=stage.train.enable))
        if stop is not None:
            stop.check()
    return found


def doctor(resolved: Resolved) -> list[Diagnosis]:
    """One diagnosis a stage."""
    return diagnose(Builder(resolved.config))


def check_folder(folder: Path, config: RunConfig, resume: bool) -> None:
    """UserError where the folder holds something else, or nothing although `resume` was asked for."""
    kept = folder / "config.yaml"
    if kept.exists():
        old, new = read_config(folder), config
        free = {"out", "eval", "track"}
        differences = diff(
            old.model_dump(mode="json", exclude=free), new.model_dump(mode="json", exclude=free)
        )
        differences = [line for line in differences if not _is_free(line)]
        if differences:
            raise UserError(
                f"{folder} holds another run: {'; '.join(differences)}. Choose another --out, or take the "
                "change back to resume."
            )
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no run; choose another --out")
    if resume and not checkpoint.checkpoints(folder):
        raise UserError(f"--resume: {folder} holds no checkpoint; leave --resume out to start a new run")


def _is_free(line: str) -> bool:
    from quietreasoning.train.resume import FREE_TRAIN

    key = line.partition(":")[0].rpartition(".")
    return key[0].endswith("train") and key[2] in FREE_TRAIN


def write_folder(folder: Path, config: RunConfig, info: dict[str, Any], tokenizer) -> None:
    """What a run folder holds before its first step."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump_yaml(config.model_dump(mode="json")), encoding="utf-8")
    (folder / "run.json").write_text(json.dumps(info, indent=1), encoding="utf-8")
    save_tokenizer(tokenizer, folder / "tokenizer")


def run_info(resolved: Resolved, tokenizer) -> dict[str, Any]:
    """Where a run comes from: recipe, command, versions, commit, device."""
    from quietreasoning.cli.machine import versions

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


@dataclass(frozen=True)
class Loaded:
    """A trained run, ready to answer."""

    folder: Path
    checkpoint: Path
    config: RunConfig
    method: Method
    encoder: Encoder
    builder: Builder

    @property
    def device(self) -> torch.device:
        return next(self.method.parameters()).device

    @property
    def max_new_tokens(self) -> int:
        return self.config.eval.max_new_tokens


def open_run(path: str | Path, overrides: Sequence[str] = ()) -> Loaded:
    """The newest valid checkpoint of a run folder, or the one named. UserError where there is none."""
    path = Path(path)
    folder = path.parent if (path / "method.safetensors").exists() else path
    config = read_config(folder, overrides)
    if folder != path:
        faults = checkpoint.verify(path)
        if faults:
            raise UserError(f"{path} is damaged: {'; '.join(faults)}. Name another checkpoint, or the run.")
        chosen = path
    else:
        chosen, notes = checkpoint.load_latest_valid(folder)
        for note in notes:
            print(note, file=sys.stderr)
        if chosen is None:
            raise UserError(f"{folder} holds no valid checkpoint; train it first with quiet train")
    return open_checkpoint(folder, chosen, config)


def open_checkpoint(folder: Path, chosen: Path, config: RunConfig) -> Loaded:
    """The method of the stage that the checkpoint belongs to, with its averaged weights if it has any."""
    state = checkpoint.read_json(chosen / "state.json")
    stage = config.stages[state["stage_index"]]
    builder = Builder(changed(config, init=None), folder / "tokenizer")
    method = builder.method(stage)
    load_weights(chosen, method, averaged=True)
    method.to(torch.accelerator.current_accelerator() or torch.device("cpu")).eval()
    encoder = builder.encoder(stage.data, method.backbone.context)
    return Loaded(folder, chosen, config, method, encoder, builder)


def read_config(folder: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """A run folder's settings under overrides."""
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is no run folder: it has no config.yaml. Give a folder quiet train wrote.")
    layers = expand(load_recipe(str(folder / "config.yaml"), overrides))
    return validate(RunConfig, layers.values, layers.provenance)


def evaluate_run(run: str, overrides: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows of a run, its earlier visible chain and its baselines; also written to RUN/eval/rows.json."""
    from quietreasoning.proof import prove

    return prove(open_run(run, overrides))


def report_runs(runs: Sequence[str]) -> Path:
    """Write report.html into the only run, or beside several; returns its path."""
    from quietreasoning.report.build import report

    folder = Path(runs[0]) if len(runs) == 1 else Path(runs[0]).parent
    return report(runs, folder / "report.html")


def plan(resolved: Resolved) -> dict[str, str]:
    """What a recipe will take."""
    from quietreasoning.planning import estimate

    return estimate(resolved.config)
