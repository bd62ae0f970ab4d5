"""TrainState <-> the files of a checkpoint. Start with `save_state` and `load_state`.

`method.safetensors` (all but borrowed), `ema.safetensors` (averages, if kept), `optimizer.safetensors`
(by parameter name, whole tensors: the same file from one rank, DDP or FSDP2), `rank-<i>.safetensors`
(random state, carries), `state.json` (counters, data position = step), `run.json` (the recipe).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from quietreasoning.config import UserError
from quietreasoning.contract import Method
from quietreasoning.train import checkpoint
from quietreasoning.train.checkpoint import Tensors
from quietreasoning.train.distributed import full_tensor, shard_like
from quietreasoning.train.rng import get_rng, set_rng
from quietreasoning.train.state import TrainState


def save_state(
    state: TrainState,
    run_dir: Path,
    *,
    run: Mapping[str, Any],
    position: Mapping[str, Any],
    after: int = 0,
) -> Path:
    """Write checkpoint `step-<global step>`; every rank must call it, rank 0 writes.

    run: for run.json. position: where in the run this is, joined to the counters in state.json.
    after: the how manieth stage of no steps this is in a row, which the name then says; 0 for any other.
    Raises UserError on every rank if the disk refuses.
    """
    ranks = state.machine.gather(rank_file(state))
    tensors, scalars = optimizer_file(state)
    files: dict[str, Any] = {"method.safetensors": method_file(state.method)}
    if state.ema:
        averages = {name: _plain(average) for name, average in state.ema.averages.items()}
        files["ema.safetensors"] = Tensors(averages)
    files["optimizer.safetensors"] = Tensors(tensors)
    files |= {f"rank-{rank}.safetensors": content for rank, content in enumerate(ranks)}
    files["run.json"] = dict(run)
    files["state.json"] = dict(position) | {
        "step": state.step,
        "offset": state.offset,
        "tokens": state.tokens,
        "skipped": state.skipped,
        "bad_in_a_row": state.bad_in_a_row,
        "history": list(state.history),
        "world": state.machine.world,
        "lanes": len(state.carries),
        "optimizer": scalars,
    }
    refusal = None
    if state.machine.main:
        try:
            checkpoint.save(run_dir, state.global_step, files, after=after)
        except UserError as error:
            refusal = str(error)
    refusal = state.machine.gather(refusal)[0]
    if refusal:
        raise UserError(refusal)
    return run_dir / checkpoint.step_name(state.global_step, after)


def load_state(state: TrainState, path: Path) -> list[str]:
    """Put everything but the method's weights back (`load_weights` comes first, before wrapping).

    Returns notes on what could not be exact. Raises UserError where carries do not fit the ranks.
    """
    held = checkpoint.read_json(path / "state.json")
    for name in ("step", "offset", "tokens", "skipped", "bad_in_a_row"):
        setattr(state, name, held[name])
    state.history.extend(tuple(pair) for pair in held["history"])
    load_optimizer(state, load_file(path / "optimizer.safetensors"), held["optimizer"])
    if state.ema:
        averages = load_file(path / "ema.safetensors")
        with torch.no_grad():
            for name, average in state.ema.averages.items():
                average.copy_(shard_like(averages[name], average))
    rng, carries = read_rank(path / f"rank-{min(state.machine.rank, held['world'] - 1)}.safetensors", state)
    if held["world"] == state.machine.world:
        state.carries = carries
        set_rng(rng)
        return []
    if any(carry is not None for carry in carries):
        raise UserError(
            f"{path.name} holds carries of {held['world']} rank(s), this run has {state.machine.world}. "
            f"Resume on {held['world']}."
        )
    return [
        f"saved on {held['world']} rank(s), resumed on {state.machine.world}: random numbers start afresh"
    ]


def method_file(method: Method) -> Tensors:
    """Every parameter and buffer but the borrowed; of tied ones the first, the others by name."""
    aliases = tied(method)
    borrowed = set(method.borrowed)
    state = {name: t for name, t in method.state_dict().items() if name not in borrowed}
    tensors = {name: _plain(t) for name, t in state.items() if aliases.get(name) not in state}
    return Tensors(tensors, {"tied": json.dumps({a: kept for a, kept in aliases.items() if kept in tensors})})


def read_weights(path: Path, averaged: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A checkpoint's weights by name, and alias -> kept name of the tied ones.

    averaged: take the running averages where the checkpoint holds them, as evaluation does.
    """
    with safe_open(path / "method.safetensors", framework="pt") as file:
        aliases = json.loads(file.metadata()["tied"])
        found = {name: file.get_tensor(name) for name in file.keys()}
    if averaged and (path / "ema.safetensors").exists():
        found |= load_file(path / "ema.safetensors")
    return found, aliases


def load_weights(path: Path, method: Method, averaged: bool = False) -> None:
    """Copy a checkpoint's weights into `method`, in place and strictly; averaged: as `read_weights`.

    Raises UserError that names what either side lacks or holds in another shape.
    """
    found, aliases = read_weights(path, averaged)
    if any("lora_" in name for name in found):
        from quietreasoning.backbone.heads import adopt_scales  # others need no transformers here

        adopt_scales(method, found)
    found |= {alias: found[kept] for alias, kept in aliases.items()}
    borrowed = set(method.borrowed)
    target = {name: t for name, t in method.state_dict().items() if name not in borrowed}
    shared = found.keys() & target.keys()
    other = [
        f"{name} {_form(found[name])} against {_form(target[name])}"
        for name in sorted(shared)
        if _form(found[name]) != _form(target[name])
    ]
    complaints = [
        f"{what}: {_some(names)}"
        for what, names in (
            ("only in the checkpoint", sorted(found.keys() - target.keys())),
            ("only in the method", sorted(target.keys() - found.keys())),
            ("different", other),
        )
        if names
    ]
    if complaints:
        raise UserError(f"{path / 'method.safetensors'} does not fit the method. {'; '.join(complaints)}.")
    with torch.no_grad():
        for name in shared:
            target[name].copy_(found[name])


def optimizer_file(state: TrainState) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Tensors as `<parameter>/<what>` and the rest by parameter."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for name, held in state.optimizer.state().items():
        for what, value in held.items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{what}"] = _plain(value)
            else:
                scalars.setdefault(name, {})[what] = value
    return tensors, scalars


def load_optimizer(
    state: TrainState, tensors: Mapping[str, Tensor], scalars: Mapping[str, dict[str, Any]]
) -> None:
    found: dict[str, dict[str, Any]] = {name: dict(values) for name, values in scalars.items()}
    for key, tensor in tensors.items():
        name, _, what = key.rpartition("/")
        if name in state.params:
            tensor = shard_like(tensor, state.params[name])
        found.setdefault(name, {})[what] = tensor
    unknown = sorted(found.keys() - state.params.keys())
    if unknown:
        raise UserError(
            f"optimizer.safetensors holds state of parameters that do not train: {_some(unknown)}."
        )
    state.optimizer.load_state(found)


def rank_file(state: TrainState) -> Tensors:
    """This rank's random state, and its carries: tensors here, the nest around them in the metadata."""
    tensors = {f"rng/{name}": t for name, t in get_rng().items()}
    nests = [flatten(carry, tensors) for carry in state.carries]
    return Tensors(tensors, {"carries": json.dumps(nests)})


def read_rank(path: Path, state: TrainState) -> tuple[dict[str, Tensor], list[Any]]:
    with safe_open(path, framework="pt") as file:
        nests = json.loads(file.metadata()["carries"])
    tensors = load_file(path)
    rng = {name.removeprefix("rng/"): t for name, t in tensors.items() if name.startswith("rng/")}
    return rng, [unflatten(nest, tensors, state.machine.device) for nest in nests]


def flatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON for a nest of dicts, lists, tuples, numbers, text and None; its tensors go to `tensors`."""
    if isinstance(value, Tensor):
        key = f"carry/{len(tensors)}"
        tensors[key] = _plain(value).clone()
        return {"tensor": key}
    if isinstance(value, dict):
        return {"dict": {key: flatten(item, tensors) for key, item in value.items()}}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [flatten(item, tensors) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise TypeError(
        f"a carry may hold tensors, dicts, lists, tuples, numbers and text, not {type(value).__name__}"
    )


def unflatten(nest: Mapping[str, Any], tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    ((kind, content),) = nest.items()
    if kind == "tensor":
        return tensors[content].to(device)
    if kind == "dict":
        return {key: unflatten(item, tensors, device) for key, item in content.items()}
    if kind in ("list", "tuple"):
        items = [unflatten(item, tensors, device) for item in content]
        return tuple(items) if kind == "tuple" else items
    return content


def estimated_bytes(state: TrainState) -> int:
    """About the size of a checkpoint: weights, averages, two moments a trained weight or row of a table."""
    borrowed = set(state.method.borrowed)
    weights = sum(t.nbytes for name, t in state.method.state_dict().items() if name not in borrowed)
    trained = sum(p.numel() * p.element_size() for p in state.params.values())
    moments = 2 * (trained - sum(p.numel() * p.element_size() for p in state.tables))
    rows = sum(8 * len(p) for p in state.tables)
    copies = bool(state.ema) + bool(state.optimizer.grokfast)
    return weights + moments + rows + copies * trained


def tied(method: nn.Module) -> dict[str, str]:
    """Name -> the first name of the same parameter."""
    first: dict[int, str] = {}
    aliases = {}
    for name, p in method.named_parameters(remove_duplicate=False):
        if first.setdefault(id(p), name) != name:
            aliases[name] = first[id(p)]
    return aliases


def _plain(tensor: Tensor) -> Tensor:
    return full_tensor(tensor.detach()).cpu().contiguous()


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _some(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
