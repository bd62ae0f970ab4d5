"""Files of old keys, over a recipe: read together, so that a sum or a switch may stand in two of them.

Nothing is passed over: a key that no table names, or that nothing reads, is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from quietreasoning.config import UserError, suggest
from quietreasoning.layers import CONFIG, Tree, label, stages_of
from quietreasoning.seed_absent import ABSENT, FIXED, taken
from quietreasoning.seed_keys import HOLDERS, MAPPINGS, NOTHING, OFF, SPELLINGS, TABLE
from quietreasoning.seed_seen import Found, Seen

OURS = ("seed", "out", "init", "backbone", "eval", "track", "data", "optim", "train")
MARKS = ("base", "stages", "method")  # a file that has one of these is no old one
KNOWN = tuple(
    dict.fromkeys(
        [
            *(key for line in TABLE for key in line.old),
            *FIXED,
            *(key for absent in ABSENT for key in (*absent.keys, *absent.switches)),
        ]
    )
)
TOPS = {key.partition(".")[0] for key in (*KNOWN, *SPELLINGS)} | {*HOLDERS} - {"train"}


def name_of(written: str) -> str | None:
    """What the tables call an old key, within a holder or not; None where they do not know it."""
    head, _, rest = written.partition(".")
    for key in (written, rest if head in HOLDERS else ""):
        key = SPELLINGS.get(key, key)
        if key in KNOWN or any(absent.holds(key) for absent in ABSENT):
            return key
    return None


def is_old(values: Mapping[str, Any], file: str) -> bool:
    """Whether a file has old keys; UserError where it has some of ours that no old file has besides."""
    train = values.get("train")
    inner = [f"train.{key}" for key in train] if isinstance(train, Mapping) else []
    old = [key for key in values if key in TOPS] + [key for key in inner if name_of(key) is not None]
    marks = [key for key in MARKS if key in values]
    if old and marks:
        raise UserError(
            f"{file}: has '{old[0]}', an old key, and '{marks[0]}'; write two files of one style each"
        )
    return bool(old)


@dataclass
class SeedFiles:
    """The old files of one command: `read` each, then `check`, then take the `layers` of each in turn."""

    files: dict[str, Seen] = field(default_factory=dict)
    ours: dict[str, dict[str, Any]] = field(default_factory=dict)  # what a file says in our keys

    def read(self, values: Mapping[str, Any], file: str) -> None:
        """UserError for an unknown key, or one that stands twice with two values."""
        seen, ours = self.files[file], self.ours[file] = Seen(), {}
        for written, key, value in _leaves(values, file):
            if key is None:
                _put(ours, written, value)
            elif key in seen and seen[key].value != value:
                raise UserError(
                    f"{file}: {seen[key].written}={seen[key].value!r:.40} and {written}={value!r:.40} are "
                    "two names of one setting; keep one"
                )
            else:
                seen[key] = Found(value, written, file)

    def check(self) -> None:
        """UserError for what has no counterpart, and for a key that nothing reads."""
        seen = self._until()
        read = taken(seen)
        for line in TABLE:
            if line.value(seen) is not NOTHING:
                read.update(line.old)
        for key in seen.keys() - read:
            others = {other: None for line in TABLE if key in line.old for other in line.old if other != key}
            raise UserError(
                f"{seen[key].written}: is read only beside {' or '.join(others)} (from {seen[key]})"
            )

    def layers(self, file: str, tree: Tree) -> Iterator[Tree]:
        """What one file says, in our keys, each with its source.

        tree: what lies below. Where it has stages of other methods, what distillation reads of `method` and
        `data` goes to its own stages.
        """
        yield label(self.ours[file], f"{CONFIG}{file}")
        seen, whole = self._until(file), self._until()
        for line in TABLE:
            value = line.value(seen)
            off = OFF in (value, line.value(whole))
            if value is NOTHING or off or self.files[file].keys().isdisjoint(line.old):
                continue
            source = " + ".join(str(seen[key]) for key in line.old if key in seen)
            values: dict[str, Any] = {}
            _put(values, line.new, value)
            if line.method not in ("distill", *_methods(tree).values()):
                raise UserError(
                    f"{source}: a preference for code is learned by method {line.method}, which no stage "
                    "has; lay the file over recipe distill/code-mode"
                )
            yield label(_staged(values, tree, line.method), source.replace(f" + {CONFIG}{file}: ", " + "))

    def _until(self, file: str | None = None) -> Seen:
        seen = Seen()
        for name, found in self.files.items():
            seen.update(found)
            if name == file:
                break
        return seen


def _leaves(values: Mapping[str, Any], file: str, above: str = "") -> Iterator[tuple[str, str | None, Any]]:
    """(as written, name in the tables or None for one of ours, value); UserError for an unknown key."""
    for name, value in values.items():
        written = f"{above}{name}"
        key = name_of(written)
        if isinstance(value, Mapping) and value and key not in MAPPINGS:
            yield from _leaves(value, file, f"{written}.")
        elif key is not None or written.partition(".")[0] in OURS:
            yield written, key, value
        elif value is not None or written not in TOPS:
            near = suggest(written.rpartition(".")[2], [*KNOWN, *SPELLINGS])
            raise UserError(f"{written}={value!r:.40}: no such old key (from {CONFIG}{file}). {near}")


def _methods(tree: Tree) -> dict[str, str | None]:
    """Stage -> its method."""
    leaves = {name: stage.get("method", {}).get("name") for name, stage in stages_of(tree).items()}
    return {name: None if leaf is None else leaf.value for name, leaf in leaves.items()}


def _staged(values: dict[str, Any], tree: Tree, method: str) -> dict[str, Any]:
    if not {"method", "data"} & values.keys():
        return values
    names = _methods(tree)
    ours = [name for name, found in names.items() if found == method]
    if not ours or len(ours) == len(names):
        return values
    return {"stages": dict.fromkeys(ours, values)}


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *above, last = key.split(".")
    for part in above:
        values = values.setdefault(part, {})
    values[last] = value
