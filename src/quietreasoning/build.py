"""From a recipe to what it names: tokenizer, backbone, methods, batches; and back from a run folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from quietreasoning.backbone import Backbone, load_backbone
from quietreasoning.backbone.quant import prepare
from quietreasoning.config import UserError
from quietreasoning.contract import Method
from quietreasoning.data.absent import ABSENT, assumed_tokenizer, mark_absent
from quietreasoning.data.batches import Batches
from quietreasoning.data.config import DataConfig, build_task
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.load import load_split
from quietreasoning.data.thinking import new_rows
from quietreasoning.data.tokenizers import build_tokenizer, load_tokenizer
from quietreasoning.layers import diff, expand
from quietreasoning.methods import METHODS
from quietreasoning.nn.fake_quant import Bits, restore
from quietreasoning.recipe import RECIPES, load_recipe
from quietreasoning.run_config import RunConfig, StageConfig, changed
from quietreasoning.train import checkpoint
from quietreasoning.train.quantised import follow
from quietreasoning.train.snapshot import load_weights
from quietreasoning.validation import validate
from quietreasoning.workspace.consolidated import melt, serve

_TOLD = 5  # broken records that are told one by one


@dataclass(frozen=True)
class Resolved:
    """A recipe with all its values, and where each came from."""

    recipe: str
    config: RunConfig
    provenance: dict[str, str]
    absent: tuple[str, ...] = ()  # settings that must name a file before training

    @property
    def out(self) -> Path:
        return Path(self.config.out)


def resolve(
    recipe: str,
    overrides: Sequence[str] = (),
    out: str | None = None,
    *,
    need_files: bool = True,
    configs: Sequence[str] = (),
) -> Resolved:
    """A shipped recipe or a YAML file under `a.b=c` settings. UserError names the first fault.

    configs: files laid over the recipe, in order, before the settings. need_files: refuse a recipe that reads
    files and names none; else they are listed, for a plan.
    """
    overrides = [*overrides, *([f"out={json.dumps(out)}"] if out is not None else [])]
    layers = expand(load_recipe(recipe, overrides, configs))
    values, absent = mark_absent(layers.values, layers.provenance)
    config = validate(RunConfig, values, layers.provenance)
    if absent and need_files:
        tasks = dict.fromkeys(stage.data.task for stage in config.stages if stage.data.path == ABSENT)
        settings = " ".join(f"{key}=FILE" for key in absent)
        raise UserError(f"examples of {', '.join(tasks)} come from files: set {settings} (or a folder each)")
    name = recipe if recipe in RECIPES else Path(recipe).stem
    if config.out is None:
        config = changed(config, out=f"runs/{name.replace('/', '-')}-{config.seed}")
    for stage in config.stages:
        if stage.train.steps is None and stage.train.tokens is None:
            raise UserError(f"stage {stage.name}: no budget. Set train.steps=N or train.tokens=N.")
    return Resolved(name, config, layers.provenance, absent)


class Builder:
    """Makes what the stages of a run need, each thing once."""

    def __init__(self, config: RunConfig, tokenizer_folder: Path | None = None):
        self.config = config
        self.tokenizer_folder = tokenizer_folder

    @cached_property
    def tokenizer(self):
        if self.tokenizer_folder is not None:
            try:
                return load_tokenizer(str(self.tokenizer_folder))
            except UserError as error:
                raise UserError(f"{error}. The quiet train command of this run writes it anew.") from None
        datas = [stage.data for stage in self.config.stages]
        backbone, own = self.config.backbone, self.config.backbone.workspace
        path, revision = backbone.path, backbone.revision
        if own is not None:
            path, revision = own.trunk, own.revision
        if any(data.path == ABSENT for data in datas):
            return assumed_tokenizer(datas, path, revision)
        return build_tokenizer(datas[0], build_task(datas[0]), path, revision, datas[1:])

    def backbone(self) -> Backbone:
        """Fresh, loaded, or taken from the run that `init` names."""
        if self.config.init is None:
            opened = self.tokenizer_folder is not None  # then a checkpoint's weights follow
            return load_backbone(
                self.config.backbone,
                len(self.tokenizer),
                replaced=opened,
                starts=new_rows(self.tokenizer),
            )
        try:
            other = open_run(self.config.init)
        except UserError as error:
            raise UserError(f"init={self.config.init}: {error}") from None
        differences = diff(other.config.backbone.model_dump(), self.config.backbone.model_dump())
        if differences:
            raise UserError(f"init={self.config.init} holds another backbone: {'; '.join(differences)}")
        if other.encoder.tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise UserError(
                f"init={self.config.init} was trained with another tokenizer; "
                f"set data.tokenizer.path={self.config.init}/tokenizer"
            )
        if other.method.backbone.is_workspace:
            melt(other.method.backbone.model, other.folder)  # what consolidation wrote is learned on from
        return other.method.backbone

    def method(self, stage: StageConfig, before: Method | None = None) -> Method:
        """The stage's method, around the backbone of the stage before; parts of the same name carry over."""
        backbone = self.backbone() if before is None else before.backbone
        backbone.thaw()
        restore(backbone.model)
        encoder = Encoder(self.tokenizer, stage.data.format)
        method = METHODS[stage.method.name](backbone, stage.method, encoder.markers())
        if before is not None:
            own, given = method.state_dict(), before.state_dict()
            with torch.no_grad():
                for name in own.keys() & given.keys():
                    if not name.startswith("backbone.") and own[name].shape == given[name].shape:
                        own[name].copy_(given[name])
        quant = stage.train.quant
        if quant is not None:
            prepare(backbone, Bits(quant.weight_bits, quant.activation_bits, quant.group), quant.exclude)
        return method

    def encoder(self, data: DataConfig, context: int) -> Encoder:
        return Encoder(self.tokenizer, data.format, **data.prompt_limits, context=context)

    def batches(
        self,
        stage: StageConfig,
        context: int,
        notes: list[str],
        check: Callable[[], None] = lambda: None,
    ) -> Batches:
        """Training rows. What was left out is told in `notes`; `check` may raise to stop."""
        task, encoder = build_task(stage.data), self.encoder(stage.data, context)
        examples, dropped = load_split(task, "train", stage.data, encoder, check=check)
        if dropped:
            notes.append(f"{dropped} training examples are too long and were left out")
        notes.extend(f"left out: {fault}" for fault in task.faults[:_TOLD])
        if len(task.faults) > _TOLD:
            notes.append(f"and {len(task.faults) - _TOLD} more were left out")
        return Batches(examples, encoder, stage.train.batch_size, self.config.seed)


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
    config = read_config(folder_of(path), overrides)
    return open_checkpoint(folder_of(path), find_checkpoint(path), config)


def folder_of(path: Path) -> Path:
    """The run folder of a run folder or one of its checkpoints."""
    return path.parent if path.name.startswith("step-") else path


def find_checkpoint(path: Path) -> Path:
    """The newest valid checkpoint of a run folder, or the one named. UserError where there is none."""
    folder = folder_of(path)
    if folder != path:
        if not path.is_dir():
            names = ", ".join(found.name for found in checkpoint.checkpoints(folder)) or "none"
            raise UserError(f"{path} is not there; checkpoints of {folder}: {names}")
        faults = checkpoint.verify(path)
        if faults:
            raise UserError(f"{path} is damaged: {'; '.join(faults)}. Name another checkpoint, or the run.")
        return path
    chosen, notes = checkpoint.load_latest_valid(folder)
    for note in notes:
        print(note, file=sys.stderr)
    if chosen is None:
        raise UserError(f"{folder} holds no valid checkpoint; train it first with quiet train")
    return chosen


def open_checkpoint(folder: Path, chosen: Path, config: RunConfig) -> Loaded:
    """The method of the stage that the checkpoint belongs to, with its averaged weights if it has any."""
    state = checkpoint.read_json(chosen / "state.json")
    stage = config.stages[state["stage_index"]]
    builder = Builder(changed(config, init=None), folder / "tokenizer")
    method = builder.method(stage)
    load_weights(chosen, method, averaged=True)
    if method.backbone.is_workspace and (note := serve(method.backbone.model, folder, chosen)):
        print(note, file=sys.stderr)
    follow(method, stage.train, state["step"], state["tokens"])
    method.to(torch.accelerator.current_accelerator() or torch.device("cpu")).eval()
    encoder = builder.encoder(stage.data, method.backbone.context)
    return Loaded(folder, chosen, config, method, encoder, builder)


def how_to_make(folder: Path) -> str:
    """The command that leaves a run where a shipped recipe puts it, where that is the folder."""
    names = {name.replace("/", "-"): name for name in RECIPES}
    name, _, seed = folder.name.rpartition("-")
    if folder.parent != Path("runs") or folder.exists() or name not in names:
        return "Give a folder quiet train wrote."
    return f"Train it: quiet train {names[name]}{'' if seed == '0' else f' seed={seed}'}"


def read_config(folder: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """A run folder's settings under overrides."""
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is no run folder: it has no config.yaml. {how_to_make(folder)}")
    try:
        layers = expand(load_recipe(str(folder / "config.yaml"), overrides))
        return validate(RunConfig, layers.values, layers.provenance)
    except UserError as error:
        if overrides:
            read_config(folder)  # whose fault it is
            raise
        raise UserError(f"{folder}/config.yaml is damaged, or of another version: {error}") from None
