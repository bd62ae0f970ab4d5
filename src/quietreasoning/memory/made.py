"""A store of events that a command made, opened again as it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quietreasoning.config import UserError
from quietreasoning.memory.episodic import EpisodicStore
from quietreasoning.memory.episodic_settings import EpisodicSettings
from quietreasoning.memory.sidecar import replacing

SETTINGS = "episodic.json"  # how a store was meant to be opened


def say_how_made(folder: Path, *, encoder: str, dim: int, settings: EpisodicSettings) -> dict[str, Any]:
    """Write beside a store what `open_made` needs; that."""
    about = {"encoder": encoder, "dim": dim, "backend": settings.backend, "ttl_days": settings.ttl_days}
    about["dedupe_cosine"] = settings.dedupe_cosine
    about["index"] = settings.index.model_dump(mode="json", exclude_defaults=True)
    with replacing(folder / SETTINGS) as temporary:
        temporary.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return about


def open_made(folder: Path, **wanted: Any) -> EpisodicStore:
    """A store that was made by a command, with the backend and time of life that it was made with.

    wanted: `encoder` and `dim` of whoever asks; UserError where the store has others.
    """
    path = folder / SETTINGS
    if not path.exists():
        raise UserError(
            f"{folder}: there is no store here that a command made. Make it with quiet index episodic "
            f"--output {folder} --run RUN, or --input FILE.jsonl"
        )
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        index = about.get("index", {})  # absent: as it was before widths had codes of their own
        kept = {name: about[name] for name in ("backend", "ttl_days", "dedupe_cosine") if name in about}
        settings = EpisodicSettings(**kept, index=index)
        dim, encoder = int(about["dim"]), str(about["encoder"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not say how this store was made ({error}). Run quiet index episodic on it again."
        ) from error
    _refuse_others(folder, {"encoder": encoder, "dim": dim}, wanted)
    return EpisodicStore(folder, dim=dim, encoder=encoder, settings=settings)


def _refuse_others(folder: Path, said: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name, value in wanted.items():
        if said[name] != value:
            raise UserError(
                f"{folder} was made for {name}={said[name]}, and {name}={value} is asked for: such "
                "vectors cannot be compared. Make the store anew with this model, or name the one it has"
            )
