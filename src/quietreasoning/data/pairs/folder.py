"""A folder of pairs, without its tensors: settings, the list of what was done, the count of it.

    pairs.json                the settings that every rollout in here was made with; written once
    shard-r0of1-<hash>.json   rows of some rollouts, whatever came of them; <hash> is that of its content
    shard-r0of1-<hash>.safetensors   the states of those that were kept
    summary.json              counts, written anew at the end of each run

A rank writes files of its own alone. A shard exists once its JSON has its name, which is its last act; the
tensors come before. So whatever moment a run is killed at, a rollout is in the folder whole or not at all.
Reading merges all shards: one row a key, in the order of the keys, whoever made them and in how many goes.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from quietreasoning.config import UserError
from quietreasoning.layers import diff

FORMAT = 1
CONFIG, SUMMARY = "pairs.json", "summary.json"
TEMPORARY = ".tmp-"
CORRECT, WRONG, UNSCORED = "correct", "wrong", "unscored"
TRUNCATED, MALFORMED, OOM = "truncated", "malformed", "oom"
OUTCOMES = (CORRECT, WRONG, UNSCORED, TRUNCATED, MALFORMED, OOM)
WHOLE = (CORRECT, WRONG, UNSCORED)  # outcomes with a chain, its end, and what --keep all keeps
Row = dict[str, Any]


def settle(
    folder: Path, settings: Mapping[str, Any], about: Mapping[str, Any], rank: int = 0, ranks: int = 1
) -> None:
    """Write pairs.json, or compare with the one that stands there; UserError names what differs.

    about: what may change between runs (paths, sizes); the first is kept for the reader's sake. Ranks may
    call this at once: the same content is renamed over itself.
    """
    settings = json.loads(json.dumps(settings))  # as it will be read back
    path = folder / CONFIG
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.glob("shard-*")):
            raise UserError(f"{folder} holds shards without {CONFIG}. Put it back, or give another --out.")
        put(
            path,
            json.dumps({"format": FORMAT, "settings": settings, "about": about}, indent=1) + "\n",
            rank,
            ranks,
        )
    if changes := diff(read_settings(folder), settings):
        raise UserError(
            f"{folder} was made with other settings: {'; '.join(changes)}. Take those back, give another "
            "--out, or --no-auto-resume, which moves the folder aside and starts anew."
        )


def read_settings(folder: Path) -> dict[str, Any]:
    """What every rollout here was made with."""
    return read_config(folder)["settings"]


def read_config(folder: Path) -> dict[str, Any]:
    """pairs.json: `settings`, and `about`, which may have changed since."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        found = config["format"]
        if found == FORMAT:
            return {"settings": dict(config["settings"]), "about": dict(config["about"])}
    except FileNotFoundError:
        raise UserError(
            f"{folder} is no folder of pairs: it has no {CONFIG}. Give one that quiet data pairs wrote."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged. Take a copy, or make the pairs anew.") from error
    raise UserError(f"{path} has format {found}; it must be {FORMAT}. Make the pairs anew.")


def read_rows(folder: Path) -> list[Row]:
    """One row a key, in their order; where two shards hold a key, the first by name counts."""
    merged: dict[str, Row] = {}
    for path in sorted(folder.glob("shard-*.json")):
        for row in read_shard(path)["rows"]:
            merged.setdefault(row["key"], row | {"shard": path.stem})
    return [merged[key] for key in sorted(merged)]


def read_shard(path: Path) -> dict[str, Any]:
    """A shard's list; UserError where it, or the size of its tensors, is not what was written."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        sound = path.stem.endswith(f"-{content_hash(body)}") and body["format"] == FORMAT
        tensors = path.with_suffix(".safetensors")
        if sound and (not body["tensors"] or tensors.stat().st_size == body["tensors"]["bytes"]):
            return body
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise damaged(path)


def damaged(path: Path) -> UserError:
    shard = path.with_suffix("")
    return UserError(
        f"shard {shard} is damaged: its list or its tensors are not what was written. Delete its two files "
        "and run the same quiet data pairs command: it makes what is missing again."
    )


def kept_rows(folder: Path) -> list[Row]:
    """The rows that have states; UserError where there is none."""
    read_config(folder)  # or this is no such folder
    rows = read_rows(folder)
    kept = [row for row in rows if row["kept"]]
    if not rows:
        raise UserError(f"{folder} holds no rollouts yet. Run quiet data pairs to its end.")
    if not kept:
        counts = ", ".join(f"{n} {name}" for name, n in Counter(row["outcome"] for row in rows).items())
        raise UserError(
            f"{folder}: none of its {len(rows)} rollouts was kept ({counts}). Use a model that solves these "
            "problems aloud, allow more with --max-new-tokens, or keep wrong ones with --keep all, in a new "
            "folder."
        )
    return kept


def content_hash(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def summarise(rows: Sequence[Row], asked: Mapping[str, int]) -> dict[str, Any]:
    """Counts over all rows and for each data set. asked: rollouts asked for, by data set."""
    names = sorted({*asked, *(row["dataset"] for row in rows)})
    by_name = {name: [row for row in rows if row["dataset"] == name] for name in names}
    total = max(sum(asked.values()), len(rows))
    return {
        **_counts(rows, total),
        "datasets": {
            name: _counts(found, max(asked.get(name, 0), len(found))) for name, found in by_name.items()
        },
    }


def _counts(rows: Sequence[Row], asked: int) -> dict[str, Any]:
    outcomes = Counter(row["outcome"] for row in rows)
    lengths = sorted(row["num_thinking_tokens"] for row in rows if row["outcome"] in WHOLE)
    cut = sorted(row["written"] for row in rows if row["outcome"] == TRUNCATED)
    return {
        "asked": asked,
        "processed": len(rows),
        "finished": sum(outcomes[name] for name in (*WHOLE, MALFORMED)),
        **{name: outcomes[name] for name in OUTCOMES},
        "kept": sum(row["kept"] for row in rows),
        "problems_kept": len({row["id"] for row in rows if row["kept"]}),
        "splits": dict(sorted(Counter(row["split"] for row in rows if row["kept"]).items())),
        "truncated_share": round(outcomes[TRUNCATED] / len(rows), 4) if rows else None,
        "longest_truncated": cut[-1] if cut else None,
        "thinking_tokens": {
            "mean": round(statistics.fmean(lengths), 2),
            "median": statistics.median(lengths),
            "least": lengths[0],
            "most": lengths[-1],
        }
        if lengths
        else None,
    }


def write_summary(folder: Path, asked: Mapping[str, int], rank: int = 0, ranks: int = 1) -> dict[str, Any]:
    """Count what the folder holds now; the last rank to end leaves the count of all."""
    summary = summarise(read_rows(folder), asked)
    put(folder / SUMMARY, json.dumps(summary, indent=1) + "\n", rank, ranks)
    return summary


def temporary_name(rank: int, ranks: int) -> str:
    """How the files that this rank has not finished begin."""
    return f"{TEMPORARY}r{rank}of{ranks}-"


def put(path: Path, text: str, rank: int, ranks: int) -> None:
    """Write a file under a temporary name, sync it, rename it; UserError where the disk refuses."""
    temporary = path.with_name(temporary_name(rank, ranks) + path.name)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise refused_by_disk(path, error) from error


def refused_by_disk(path: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or str(error)
    return UserError(
        f"{path} could not be written: {reason}. What was saved before is intact: free some space and run "
        "the same command again."
    )


def move_aside(folder: Path) -> Path | None:
    """Rename a folder that holds anything to `DIR.before-1`, or the next free number; None if it is empty."""
    if not folder.exists() or not any(folder.iterdir()):
        return None
    number = 1
    while (aside := folder.with_name(f"{folder.name}.before-{number}")).exists():
        number += 1
    folder.rename(aside)
    return aside


def unique_by_problem(rows: Iterable[Row]) -> list[Row]:
    """The first row of each problem."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row["id"], row)
    return list(first.values())
