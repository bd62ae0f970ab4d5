"""One dictionary in a `.pt` file, as other tools trade pairs: to it, and from it.

    hidden_pre            list of N tensors [L_i, D]: the prompt's states before the chain
    hidden_post           tensor [N, D]: the state after it
    seq_lengths           list of N: L_i
    num_thinking_tokens   list of N
    problems              list of N texts
    hidden_size           D

It is read with `weights_only=True` alone: tensors, numbers, texts and lists of them; a pickled object of any
other kind is refused. It says neither model nor layer, so whoever brings one in must say both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quietreasoning.config import UserError
from quietreasoning.data.made import TEMPORARY, refused_by_disk
from quietreasoning.data.pairs.folder import PAIRS, UNSCORED, read_rows, write_summary
from quietreasoning.data.pairs.keys import problem_id, split_of
from quietreasoning.data.pairs.shards import PairStates, Rollout, write_shard, writing

KEYS = ("hidden_pre", "hidden_post", "seq_lengths", "num_thinking_tokens", "problems", "hidden_size")
SHARD = 1000  # rollouts a shard of what is brought in


def as_dictionary(states: PairStates, layer: int | str) -> dict[str, Any]:
    """The states of one layer, in the order of their keys."""
    keys = [row["key"] for row in states.rows]
    return {
        "hidden_pre": [states.pre(key, layer) for key in keys],
        "hidden_post": torch.stack([states.post(key, layer) for key in keys]),
        "seq_lengths": [row["seq_length"] for row in states.rows],
        "num_thinking_tokens": [row["num_thinking_tokens"] for row in states.rows],
        "problems": [row["problem"] for row in states.rows],
        "hidden_size": states.hidden_size,
    }


def export_pairs(folder: Path, file: Path, layer: int | str, split: str | None = None) -> int:
    """Write the dictionary of one layer; how many rollouts it holds."""
    states = PairStates(folder, layers=(layer,), split=split)
    temporary = file.with_name(f"{TEMPORARY}{file.name}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(as_dictionary(states, layer), temporary)
        temporary.replace(file)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        temporary.unlink(missing_ok=True)
        raise refused_by_disk(file, error) from error
    return len(states)


def import_pairs(file: Path, folder: Path, layer: int | str, model: Mapping[str, str]) -> int:
    """Bring a dictionary in as a new folder of pairs; how many rollouts.

    model: identity of the model whose states they are. The rollouts have no chain and no answer: they serve
    analyses of states and hidden matching, not the task `pairs`. UserError for a file of another layout.
    """
    held = read_dictionary(file)
    if read_rows(folder):
        raise UserError(f"{folder} holds pairs already. Give another --out.")
    dtype = str(held["hidden_post"].dtype).removeprefix("torch.")
    settings = {
        "model": {"sha256": model["sha256"]} if model.get("sha256") else dict(model),
        "source": "dictionary",
        "hidden_size": held["hidden_size"],
        "layers": [layer],
        "dtype": dtype,
        "target": "as it came",
    }
    PAIRS.settle(folder, settings, {"model": dict(model), "file": str(file)})
    rollouts = _rollouts(held, layer)
    with writing(folder, 0, 1):
        for start in range(0, len(rollouts), SHARD):
            write_shard(folder, rollouts[start : start + SHARD], 0, 1)
    write_summary(folder, {"import": len(rollouts)})
    return len(rollouts)


def _rollouts(held: Mapping[str, Any], layer: int | str) -> list[Rollout]:
    samples: dict[str, int] = {}
    rollouts = []
    columns = [held[name] for name in KEYS[:-1]]
    for pre_LD, post_D, length, thought, problem in zip(*columns, strict=True):
        id = problem_id("import", problem)
        sample = samples[id] = samples.get(id, -1) + 1
        row = {
            "key": f"{id}-{sample:04d}",
            "id": id,
            "sample": sample,
            "dataset": "import",
            "split": split_of(id),
            "outcome": UNSCORED,
            "kept": True,
            "problem": problem,
            "scorer": "none",
            "seq_length": length,
            "num_thinking_tokens": thought,
            "written": 0,
        }
        states = {f"pre/{layer}": pre_LD.clone(), f"post/{layer}": post_D.clone()}
        rollouts.append(Rollout(row, states))
    return rollouts


def read_dictionary(file: Path) -> dict[str, Any]:
    """The dictionary, checked; UserError where the file is no such thing."""
    try:
        held = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{file} does not exist. Give a .pt file.") from None
    except Exception as error:  # a file of any other kind raises whatever its bytes lead to
        raise UserError(
            f"{file} cannot be read: it is damaged, no .pt file, or holds pickled objects, which could run "
            f"code and are never loaded. Save a dictionary of tensors, numbers and texts ({', '.join(KEYS)})."
        ) from error
    if faults := _faults(held):
        raise UserError(
            f"{file} has another layout: {'; '.join(faults)}. It must hold {', '.join(KEYS)}, of N rows each."
        )
    return held


def _faults(held: Any) -> list[str]:
    if not isinstance(held, dict):
        return [f"it is a {type(held).__name__}, no dictionary"]
    if missing := [name for name in KEYS if name not in held]:
        return [f"no {', '.join(missing)}"]
    pre, post, width = held["hidden_pre"], held["hidden_post"], held["hidden_size"]
    if not isinstance(post, Tensor) or post.ndim != 2 or post.shape[1] != width or not len(post):
        return [f"hidden_post is not of shape [N, {width}]"]
    lists = {name: held[name] for name in KEYS if name not in ("hidden_post", "hidden_size")}
    if wrong := [
        name for name, rows in lists.items() if not isinstance(rows, list) or len(rows) != len(post)
    ]:
        return [f"{', '.join(wrong)}: not a list of {len(post)}"]
    if any(not isinstance(x, Tensor) or x.ndim != 2 or x.shape[1] != width for x in pre):
        return [f"an item of hidden_pre is not of shape [L, {width}]"]
    if [len(x) for x in pre] != list(held["seq_lengths"]):
        return ["seq_lengths are not those of hidden_pre"]
    if not all(isinstance(text, str) for text in held["problems"]):
        return ["problems holds something that is no text"]
    return []
