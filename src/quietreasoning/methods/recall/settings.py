"""`method.*` of recall."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from quietreasoning.config import Settings
from quietreasoning.contract import MethodConfig
from quietreasoning.memory.knn_lm import KNNSettings


class Episodic(Settings):
    """Events that an answer reads; one query of the store an answer."""

    store: str
    """Folder that `quiet index episodic` made."""
    encoder: str | None = None
    """What made the store's vectors, as `--encoder` named it; null = the SHA-256 of this model's weights, so
    that the store of another model is refused. A name is taken at its word."""
    reading: Literal["attend", "prepend"] = "attend"
    """attend: gated cross-attention over the events' tokens before the head. prepend: their tokens stand
    before the prompt."""
    events: int = Field(4, ge=1)
    """Events read, nearest first."""
    candidates: int = Field(16, ge=1)
    """Events fetched for a training row, some of which it may not read; at least `events`."""
    heads: int = Field(1, ge=1)
    """Attention heads of attend."""
    project: bool = True
    """Learn a linear map of the query; the identity at first."""
    corrupt: float = Field(0.2, ge=0, lt=1)
    """Share of training rows that read foreign events, to learn to leave them alone."""

    @model_validator(mode="after")
    def _enough(self) -> Episodic:
        if self.candidates < self.events:
            raise ValueError(f"candidates={self.candidates} must be at least events={self.events}")
        if self.reading == "prepend" and self.heads != 1:
            raise ValueError("heads has no effect with reading=prepend")
        return self


class Neighbours(KNNSettings):
    """A kNN-LM datastore, mixed in at the head."""

    index: str
    """Index that `quiet index knn` made of a datastore of this model."""
    keys: str | None = None
    """The datastore: with it candidates are ranked exactly, and a row can be kept from its own keys."""
    corrupt: float = Field(0.2, ge=0, lt=1)
    """Share of training rows that get the neighbours of stored states drawn at random, so that lambda learns
    what far ones are worth."""


class RecallWeights(Settings):
    """0 leaves a loss out, and it then costs nothing."""

    answer: float = Field(0.0, ge=0)
    """Cross-entropy of the answer, written with the events read."""
    retrieve: float = Field(0.0, ge=0)
    """The candidates that hold the answer are nearest to the query (as in arXiv 2004.04906)."""
    mixture: float = Field(0.0, ge=0)
    """Cross-entropy of the answer under the kNN-LM mixture: how much the neighbours count."""
    rare: float = Field(0.0, ge=0)
    """Whether a rare fact is asked for, which is when neighbours are looked up."""


class RecallSettings(MethodConfig):
    """Settings of one stage."""

    name: Literal["recall"] = "recall"
    """Reads an episodic store, a kNN-LM datastore, or both, around a model that stays as it is."""
    features: tuple[str, ...] | None = None
    """Modules of a workspace model that are on; null leaves those that are. Must be null for other models."""
    episodic: Episodic | None = None
    """Events to read; null = none."""
    knn: Neighbours | None = None
    """Neighbours to mix in; null = none."""
    weights: RecallWeights = RecallWeights()
    """Loss weights."""

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> RecallSettings:
        w = self.weights
        if self.episodic is None and self.knn is None:
            raise ValueError("recall reads nothing: give episodic.store or knn.index, or take method plain")
        if w.answer and self.episodic is None:
            raise ValueError("weights.answer has no effect without episodic; set it to 0")
        if w.retrieve and (self.episodic is None or not self.episodic.project):
            raise ValueError("weights.retrieve has no effect without episodic.project; set it to 0")
        for name in ("mixture", "rare"):
            if getattr(w, name) and self.knn is None:
                raise ValueError(f"weights.{name} has no effect without knn; set it to 0")
        if w.mixture and self.knn.keys is None:
            raise ValueError(
                "weights.mixture needs knn.keys: a row's own key is told by its distance, which no index "
                "gives exactly"
            )
        usual = Neighbours.model_fields["corrupt"].default
        if self.knn is not None and not w.mixture and self.knn.corrupt != usual:
            raise ValueError(
                f"knn.corrupt={self.knn.corrupt:g} has no effect with weights.mixture=0: lambda alone learns "
                f"from foreign neighbours; set it to {usual:g}, or drop it"
            )
        return self
