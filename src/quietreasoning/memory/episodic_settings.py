"""Settings of the episodic store."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from quietreasoning.config import OneOf, Pick, Settings
from quietreasoning.memory.index_settings import INDEX_SETTINGS


class EpisodicSettings(Settings):
    """How long events are remembered, what counts as the same event, and how they are searched."""

    backend: Annotated[str, OneOf("backend", INDEX_SETTINGS)] = "faiss_ivfpq"
    """The index of a large store; a small one is searched exactly, whatever stands here."""
    index: Annotated[Settings, Pick("backend", INDEX_SETTINGS, by="backend")] = Field({})
    """Settings of the backend."""
    dedupe_cosine: float = Field(0.92, gt=0, le=1)
    """An event nearer than this to a remembered one renews that one and is not added."""
    ttl_days: float = Field(30.0, gt=0)
    """Days after which an event that was not renewed is forgotten."""
    rerank: int = Field(32, ge=1)
    """Candidates that are fetched for each neighbour asked for, and ranked by their stored vectors."""
    save_every: int = Field(10_000, ge=1)
    """New entries after which the index is saved; what a saved index lacks is read from the journal."""
    hits_every: int = Field(1000, ge=1)
    """Hits that are counted in memory before they are written down together."""
