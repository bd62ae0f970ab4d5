"""Names of problems and of their rollouts, and all that follows from a name: split, rank, random numbers.

A problem is the hash of its data set and its normalised text, so the same question in another file, order or
spacing is the same problem, and all of its samples stand in one split.
"""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quietreasoning.data.example import Example

SHARES = {"train": 80, "valid": 10, "test": 10}  # percent of all problems


@dataclass(frozen=True)
class Problem:
    """A question, and who decides whether an answer is right."""

    id: str
    dataset: str
    scorer: str  # "exact", "numeric" or "code"
    example: Example

    @property
    def split(self) -> str:
        return split_of(self.id)


@dataclass(frozen=True)
class Item:
    """One rollout to be made."""

    problem: Problem
    sample: int

    @property
    def key(self) -> str:
        return f"{self.problem.id}-{self.sample:04d}"


def problem_id(dataset: str, text: str) -> str:
    """16 hexadecimal digits; spacing and Unicode form do not count."""
    normal = " ".join(unicodedata.normalize("NFC", text).split())
    return hashlib.blake2b(f"{dataset}\0{normal}".encode(), digest_size=8).hexdigest()


def split_of(id: str) -> str:
    """The split of these pairs that a problem belongs to: 80 train, 10 valid, 10 test in a hundred."""
    point = int(id[:8], 16) % sum(SHARES.values())
    for name, share in SHARES.items():
        if point < share:
            return name
        point -= share
    raise AssertionError("shares cover every point")


def rank_of(id: str, ranks: int) -> int:
    """The rank that makes the rollouts of a problem."""
    return int(id, 16) % ranks


def uniforms(seed: int, item: Item, n: int) -> NDArray[np.float64]:
    """n numbers in [0, 1) that belong to this rollout alone; a longer row begins with the shorter one."""
    key = hashlib.blake2b(f"{seed}/{item.problem.id}/{item.sample}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype=np.uint64))).random(n)
