"""Layers of settings over one another, each value with its source, and stages over the top level.

A layer is a tree: mappings of mappings down to `Leaf`s. Rules: mappings merge, everything else
replaces, an empty mapping changes nothing. `method.name` or `data.task` with a new value starts that
method's or task's settings afresh. What a higher layer says at top level holds in every stage of the
layers below it. Pure functions; nothing here reads a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from quietreasoning.config import UserError, suggest
from quietreasoning.validation import STAGE_MARK

SECTIONS = ("method", "data", "optim", "train")  # what a stage may set
COMMAND_LINE = "command line"
CONFIG = "config "  # how the source of a `--config` file begins


@dataclass(frozen=True)
class Leaf:
    """One written value and where it was written."""

    value: Any
    source: str


Tree = dict[str, Any]  # str -> Tree | Leaf; under "stages": stage name -> Tree


class StageList(dict):
    """Stages written as a list: they replace the stages below. A plain mapping patches them by name."""


@dataclass(frozen=True)
class Resolved:
    """Settings before validation: plain values, and the source of each that was written."""

    tree: Tree

    @cached_property
    def values(self) -> dict[str, Any]:
        return _plain(self.tree)

    @cached_property
    def provenance(self) -> dict[str, str]:
        """Dotted key -> source; stages go by name. What is absent is a class default."""
        return {key: leaf.source for key, leaf in _leaves(self.tree)}


def label(values: Mapping[str, Any], source: str) -> Tree:
    """The tree of one layer; raises UserError where `stages` is malformed."""
    tree: Tree = {str(key): _label(value, source) for key, value in values.items() if key != "stages"}
    stages = values.get("stages") or {}
    if isinstance(stages, list | tuple):
        stages = StageList(_named(stages, source))
    elif not isinstance(stages, Mapping):
        raise UserError(
            f"stages: must be a list of stages, or a mapping from stage name to changes ({source})"
        )
    if stages:
        kind = type(stages) if isinstance(stages, StageList) else dict
        tree["stages"] = kind(
            (str(name), _label_stage(str(name), partial, source)) for name, partial in stages.items()
        )
    return tree


def lay(below: Tree, above: Tree) -> Tree:
    """`above` over `below`."""
    stages = {name: _without(stage, above) for name, stage in below.get("stages", {}).items()}
    given = above.get("stages", {})
    if isinstance(given, StageList):
        stages = given
    else:
        for name, patch in given.items():
            name = stage_name(name, stages or ("main",))
            stages[name] = merge(stages.get(name, {}), patch)
    tree = merge(_top(below), _top(above))
    return tree | {"stages": StageList(stages)} if stages else tree


def merge(below: Any, above: Any, path: tuple[str, ...] = ()) -> Any:
    """`above` over `below`, both of one stage or of the top level."""
    if not isinstance(above, dict):
        keeps = isinstance(above, Leaf) and above.value == {} and isinstance(below, dict)
        return below if keeps else above
    if not isinstance(below, dict):
        return above
    below = _afresh(below, above, path)
    return below | {
        key: merge(below[key], value, (*path, key)) if key in below else value for key, value in above.items()
    }


def stages_of(tree: Tree) -> dict[str, Tree]:
    """Every stage complete: the top level, then each stage over the one before it."""
    complete = {section: tree[section] for section in SECTIONS if section in tree}
    stages = {}
    for name, partial in tree.get("stages", {"main": {}}).items():
        complete = merge(complete, partial)
        stages[name] = complete
    return stages


def resolve_stages(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same on plain values. No stages: one, named main."""
    return _plain(StageList(stages_of(label(values, ""))))


def expand(resolved: Resolved) -> Resolved:
    """With complete stages; method, data, optim and train then stand in the stages alone.

    Raises UserError for a setting of the command line or of a `--config` file that no stage uses.
    """
    stages = stages_of(resolved.tree)
    used = {id(leaf) for stage in stages.values() for _, leaf in _leaves(stage)}
    for section in SECTIONS:
        for key, leaf in _leaves({section: resolved.tree.get(section, {})}):
            if leaf.source.startswith((COMMAND_LINE, CONFIG)) and id(leaf) not in used:
                where = " or ".join(f"stages.{name}.{key}" for name in stages)
                source = "" if leaf.source == COMMAND_LINE else f" (from {leaf.source})"
                raise UserError(
                    f"{key}: has no effect, every stage starts its own {section}. Set {where}.{source}"
                )
    rest = {key: value for key, value in _top(resolved.tree).items() if key not in SECTIONS}
    return Resolved(rest | {"stages": StageList(stages)})


def stage_name(name: str, known: Iterable[str]) -> str:
    """The stage that a name or an index means; UserError where there is none."""
    names = list(known)
    if name.isdecimal() and int(name) < len(names):
        return names[int(name)]
    if name not in names:
        raise UserError(f"stages.{name}: no such stage. {suggest(name, names)}")
    return name


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of plain values; stages go by name, an empty mapping is a value."""
    if isinstance(values, Mapping) and values:
        items = [(str(key), value) for key, value in values.items()]
    elif isinstance(values, list | tuple) and values and all(_has_name(item) for item in values):
        items = [(item["name"], {k: v for k, v in item.items() if k != "name"}) for item in values]
    else:
        return {prefix.removesuffix("."): list(values) if isinstance(values, tuple) else values}
    return {key: leaf for name, item in items for key, leaf in flatten(item, f"{prefix}{name}.").items()}


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line for each key whose value differs: `stages.main.train.steps: 100 -> 200`."""
    before, after = flatten(old), flatten(new)
    lines = []
    for key in before | after:
        left, right = (repr(side[key]) if key in side else "absent" for side in (before, after))
        if left != right:
            lines.append(f"{key}: {left} -> {right}")
    return lines


def _top(tree: Tree) -> Tree:
    return {key: value for key, value in tree.items() if key != "stages"}


def _has_name(item: Any) -> bool:
    return isinstance(item, Mapping) and isinstance(item.get("name"), str)


def _named(stages: Iterable[Any], source: str) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for index, stage in enumerate(stages):
        if not isinstance(stage, Mapping):
            raise UserError(f"stages.{index}: a stage is a mapping of settings, got {stage!r:.60} ({source})")
        name = str(stage.get("name", f"stage{index + 1}"))
        if not re.fullmatch(r"[A-Za-z][\w-]*", name):
            raise UserError(
                f"stages.{index}.name={name!r}: begin with a letter, then letters, digits, _ or - ({source})"
            )
        if name in named:
            raise UserError(f"stages.{index}.name={name!r}: another stage has this name ({source})")
        named[name] = {key: value for key, value in stage.items() if key != "name"}
    return named


def _label_stage(name: str, partial: Any, source: str) -> Tree:
    if not isinstance(partial, Mapping):
        raise UserError(f"stages.{name}: a stage is a mapping of settings, got {partial!r:.60} ({source})")
    return {str(key): _label(value, f"{source}{STAGE_MARK}{name}") for key, value in partial.items()}


def _label(value: Any, source: str) -> Any:
    if isinstance(value, Mapping) and value:
        return {str(key): _label(item, source) for key, item in value.items()}
    return Leaf(value, source)


def _afresh(below: Tree, above: Tree, path: tuple[str, ...]) -> Tree:
    """What of `below` survives when `above` picks another method or task."""
    for section, chooser, dropped in (("method", "name", None), ("data", "task", "options")):
        if path == (section,) and chooser in below and chooser in above:
            if below[chooser].value != above[chooser].value:
                return {} if dropped is None else {k: v for k, v in below.items() if k != dropped}
    return below


def _without(below: Any, above: Any, path: tuple[str, ...] = ()) -> Any:
    """`below` less all that `above` sets."""
    kept = {}
    for key, value in _afresh(below, above, path).items():
        if key not in above:
            kept[key] = value
        elif isinstance(value, dict) and isinstance(above[key], dict):
            inner = _without(value, above[key], (*path, key))
            kept |= {key: inner} if inner else {}
        elif isinstance(above[key], Leaf) and above[key].value == {}:
            kept[key] = value
    return kept


def _plain(tree: Any) -> Any:
    if isinstance(tree, StageList):
        return [{"name": name} | _plain(stage) for name, stage in tree.items()]
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    return tree.value


def _leaves(tree: Any, prefix: str = "") -> Iterable[tuple[str, Leaf]]:
    if isinstance(tree, Leaf):
        yield prefix.removesuffix("."), tree
        return
    for key, value in tree.items():
        yield from _leaves(value, f"{prefix}{key}.")
