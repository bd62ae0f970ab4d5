"""The settings of a run and of each of its stages, and what they may not say together."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from quietreasoning.backbone import BackboneConfig
from quietreasoning.config import Pick, Settings
from quietreasoning.contract import MethodConfig
from quietreasoning.data.config import DataConfig
from quietreasoning.data.tasks import TASKS
from quietreasoning.evaluate.config import EvalConfig
from quietreasoning.methods import METHODS
from quietreasoning.optim.settings import OptimConfig
from quietreasoning.track import TrackConfig
from quietreasoning.train.settings import TrainConfig
from quietreasoning.validation import validate

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

    @model_validator(mode="after")
    def _method_reads_the_task(self) -> StageConfig:
        if TASKS[self.data.task].text and not METHODS[self.method.name].reads_text:
            able = ", ".join(name for name, method in METHODS.items() if method.reads_text) or "none here"
            raise ValueError(
                f"data.task={self.data.task} is running text without questions, and method "
                f"{self.method.name} learns from answers; methods that read text: {able}"
            )
        return self

    @model_validator(mode="after")
    def _another_tokenizer_has_a_reader(self) -> StageConfig:
        name, taught = self.method.name, self.data.format.taught is not None
        able = ", ".join(name for name, method in METHODS.items() if method.crosses)
        if taught and not METHODS[name].crosses:
            raise ValueError(
                f"data.format.taught has no effect on method {name}; set it to null, or use {able}"
            )
        if METHODS[name].crosses and not taught:
            raise ValueError(
                f"method {name} has a teacher of another tokenizer: set data.format.taught.tokenizer to its "
                "folder or hub id"
            )
        return self

    @model_validator(mode="after")
    def _where_to_stop_has_a_reader(self) -> StageConfig:
        halt = getattr(self.method, "halt", None)
        if self.data.format.halt is not None and (halt is None or halt.target != "rows"):
            raise ValueError(
                "data.format.halt has no effect: a method reads it with method.halt.target=rows; set that, "
                "or data.format.halt=null"
            )
        return self


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


def changed(config: RunConfig, **values: Any) -> RunConfig:
    """A copy with other values, validated like the first."""
    return validate(RunConfig, config.model_dump(mode="json") | values)
