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

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from quietreasoning.config import UserError
from quietreasoning.data.made import Made, content_hash, put

FORMAT = 1
CONFIG, SUMMARY = "pairs.json", "summary.json"
CORRECT, WRONG, UNSCORED = "correct", "wrong", "unscored"
TRUNCATED, MALFORMED, OOM = "truncated", "malformed", "oom"
OUTCOMES = (CORRECT, WRONG, UNSCORED, TRUNCATED, MALFORMED, OOM)
WHOLE = (CORRECT, WRONG, UNSCORED)  # outcomes with a chain, its end, and what --keep all keeps
PAIRS = Made("folder of pairs", "quiet data pairs", CONFIG, FORMAT, "make the pairs anew")
Row = dict[str, Any]


def read_settings(folder: Path) -> dict[str, Any]:
    """What every rollout here was made with."""
    return PAIRS.read(folder)["settings"]


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
    PAIRS.read(folder)  # or this is no such folder
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


def unique_by_problem(rows: Iterable[Row]) -> list[Row]:
    """The first row of each problem."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row["id"], row)
    return list(first.values())
