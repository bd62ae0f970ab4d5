"""`method.*` of the workspace family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from quietreasoning.backbone import BackboneConfig
from quietreasoning.config import Settings
from quietreasoning.contract import MethodConfig

Feature = Literal["workspace", "pkm", "adapters", "ssm", "retrieval", "knn"]
APART = 0.05  # weights.orthogonality, unless it is set, where there are slots


class LossWeights(Settings):
    """0 leaves a loss out, and it then costs nothing."""

    lm: float = Field(1.0, ge=0)
    """Cross-entropy of the tokens that `learn` names."""
    next_latent: float = Field(0.0, ge=0)
    """The slots of a chunk predict those of the next; 1 in the plan of the 3b model."""
    spread: float = Field(0.0, ge=0)
    """Anti-collapse: predicted slots differ in every channel (arXiv 2105.04906)."""
    sparsity: float = Field(0.0, ge=0)
    """Each token speaks to few slots: entropy of its claims."""
    orthogonality: float = Field(0.0, ge=0)
    """Anti-collapse: slots point in different directions; 0.05 where `workspace` is on, unless set."""
    contrast: float = Field(0.0, ge=0)
    """InfoNCE between the workspace and the answer, or the chunk that follows."""
    halting: float = Field(0.0, ge=0)
    """KL of the halting distribution to its geometric prior (arXiv 2107.05407)."""
    ponder: float = Field(0.0, ge=0)
    """Each inner step says the answer's first token, weighed by its chance to be the last."""
    router_z: float = Field(0.0, ge=0)
    """Square of the router's log Z (arXiv 2202.08906)."""
    balance: float = Field(0.0, ge=0)
    """Adapters share the chunks (arXiv 2101.03961)."""
    entropy: float = Field(0.0, ge=0)
    """Decisions differ from chunk to chunk: floor under their mean's entropy."""
    gate: float = Field(0.0, ge=0)
    """Gates of the state-space experts keep mean 0.4 and deviation 0.1."""
    budget: float = Field(0.0, ge=0)
    """Expected cost of a plan over its limit."""
    rationale: float = Field(0.0, ge=0)
    """Unlikelihood of rationale words in answers (arXiv 1908.04319); 5 in the plan of the 3b model."""
    step: float = Field(0.0, ge=0)
    """Latent distillation: each slot says the tokens of its gold step."""
    teacher: float = Field(0.0, ge=0)
    """Latent distillation: each slot is like the teacher's states of its step."""
    retrieval: float = Field(0.0, ge=0)
    """Retrieval supervision: memories are asked for where the answer is rare."""


class Workspace(MethodConfig):
    """Settings of one stage."""

    name: Literal["workspace"] = "workspace"
    """A workspace language model; needs `backbone.workspace`, or a backbone.path that holds one."""
    features: tuple[Feature, ...] = ("workspace",)
    """Modules that are on; all others compute nothing and are not trained."""
    learn: Literal["answer", "all"] = "answer"
    """Tokens the language-model loss counts: those of the answer, or the prompt's as well."""
    z_loss: float = Field(1e-4, ge=0)
    """Weight of the square of log Z inside the language-model loss (arXiv 2204.02311)."""
    temperature: tuple[float, float] | None = None
    """Product-key temperature at the start and the end of the stage; null leaves the model's."""
    reseed: int = Field(0, ge=0)
    """How often in the stage half keys that nothing has hit are sown anew; needs `pkm`."""
    negatives: int = Field(31, ge=1)
    """Wrong answers each row's contrast is held against."""
    tau: float = Field(0.1, gt=0)
    """Temperature of the contrast."""
    entropy_floor: float = Field(0.1, ge=0)
    """Nats, see `weights.entropy`."""
    budget: float = Field(1.0, gt=0)
    """Expected memory and expert uses in a chunk, see `weights.budget`."""
    supervise: Literal["slot", "inner"] = "slot"
    """Who says a gold step, see `weights.step`: slot j step j, or the workspace after inner step t step t."""
    target: Literal["result", "step"] = "result"
    """What is said of a step, see `weights.step`."""
    repeat_last: bool = False
    """Slots or inner steps beyond the last gold step say it again; else they are free."""
    step_width: int = Field(1, ge=1)
    """Slots, and tokens, a step has."""
    teacher: BackboneConfig | None = None
    """Frozen language model, of the same tokenizer, whose states of each step the slots come close to."""
    int8: bool = False
    """Hold the product-key values as bytes, for serving; they are no longer trained."""
    weights: LossWeights = LossWeights()
    """Loss weights."""

    @model_validator(mode="before")
    @classmethod
    def _keep_slots_apart(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        features, weights = values.get("features", ("workspace",)), values.get("weights", {})
        if isinstance(weights, LossWeights):
            weights = weights.model_dump(exclude_unset=True)
        readable = isinstance(features, list | tuple) and isinstance(weights, Mapping)
        if not readable or "workspace" not in features:
            return values
        return {**values, "weights": {"orthogonality": APART, **weights}}

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> Workspace:
        weights, on = self.weights, set(self.features)
        if "workspace" not in on:
            for name in _NEED_SLOTS:
                if getattr(weights, name):
                    raise ValueError(f"weights.{name} has no effect without the feature workspace; add it")
        for name, feature in _NEED.items():
            if getattr(weights, name) and feature not in on:
                raise ValueError(f"weights.{name} has no effect without the feature {feature}; add it")
        if (self.temperature or self.reseed or self.int8) and "pkm" not in on:
            raise ValueError("temperature, reseed and int8 have no effect without the feature pkm; add it")
        if self.int8 and self.reseed:
            raise ValueError("int8 values are for serving; set reseed=0")
        if self.teacher is not None and self.teacher.path is None:
            raise ValueError("teacher.path is missing: fresh weights teach nothing; name a model folder")
        if (self.teacher is None) != (not weights.teacher):
            raise ValueError("teacher and weights.teacher belong together; give both or neither")
        if on & {"retrieval", "knn"} and not weights.retrieval:
            raise ValueError(
                "features retrieval and knn need weights.retrieval: their plan is learned from it"
            )
        if (weights.router_z or weights.entropy or weights.budget) and not on - {"workspace"}:
            raise ValueError(
                "the router decides nothing: add a feature beside workspace, or drop its weights"
            )
        if weights.retrieval and not on & {"retrieval", "knn", "pkm"}:
            raise ValueError("weights.retrieval has nothing to teach; add the feature pkm, retrieval or knn")
        return self


_NEED_SLOTS = (
    *("next_latent", "spread", "sparsity", "orthogonality", "contrast", "halting", "ponder"),
    *("balance", "entropy", "gate", "budget", "step", "teacher", "retrieval", "router_z"),
)
_NEED = {"balance": "adapters", "gate": "ssm"}
