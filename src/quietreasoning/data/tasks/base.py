"""What a task is, and how generated problems fall into disjoint splits.

A generated problem belongs to the split that the hash of its canonical form names, whatever the
seed. Example i of a split draws problems from a stream keyed by (task, seed, split, i) until one
belongs there, so it depends on (seed, i) alone and no problem stands in two splits.
"""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from quietreasoning.config import Settings, UserError, suggest
from quietreasoning.data.example import Example

SPLITS = ("train", "valid", "test")
SHARES = {"train": 80, "valid": 10, "test": 10}  # percent of all problems
_MAX_DRAWS = 5000


class Task(ABC):
    """A named source of examples with a split each for training, selection and the final figure."""

    Config: ClassVar[type[Settings]]
    name: ClassVar[str]
    describe: ClassVar[str]  # one line for lists and reports
    scorer: ClassVar[str]  # a key of evaluate.scorers.SCORERS
    splits: ClassVar[tuple[str, ...]] = SPLITS
    needs_path: ClassVar[bool] = False  # True where examples come from files
    generated: ClassVar[bool] = False
    text: ClassVar[bool] = False  # True: documents without questions, read as windows of tokens
    whole_train: ClassVar[bool] = False  # True: the training split has one size, set by the task's options

    def __init__(self, config: Settings | None = None, *, path: str | None = None, seed: int = 0):
        self.config = self.Config() if config is None else config
        self.path = path
        self.seed = seed
        self.faults: list[str] = []  # broken records that were tolerated, as "file:line: fault"

    @abstractmethod
    def split(self, name: str, n: int | None = None) -> Sequence[Example]:
        """The first n examples of a split; n=None gives all, or the default size of a generator."""

    def shortcuts(self, example: Example) -> Mapping[str, str]:
        """Answers of named rules that do not reason; their accuracy stands in the table."""
        return {}

    def group(self, example: Example) -> str | None:
        """The group in which an evaluation counts an example beside the whole; None where there is none."""
        return None

    def vocabulary(self) -> Iterable[str]:
        """Words that examples may hold, so that a tokenizer of whole words knows them all."""
        return ()

    def fingerprint(self) -> dict[str, str]:
        """What the examples depend on; a run refuses to resume where it has changed."""
        return {"task": self.name, "seed": str(self.seed), "options": self.config.model_dump_json()}

    def check_split(self, name: str) -> None:
        if name not in self.splits:
            one = f"set eval.split={self.splits[0]}" if len(self.splits) == 1 else suggest(name, self.splits)
            raise UserError(f"task {self.name} has no split '{name}'; {one}")


class Lazy(Sequence[Example]):
    """n examples, each made when asked for. Nothing is kept: batches memoise the encoded form."""

    def __init__(self, n: int, make: Callable[[int], Example]):
        self._n = n
        self._make = make

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._make(i) for i in range(*index.indices(self._n))]
        if index < 0:
            index += self._n
        if not 0 <= index < self._n:
            raise IndexError(index)
        return self._make(index)


class GeneratedTask(Task):
    """A task that draws its problems: subclasses give `draw`, `canonical` and `render`."""

    generated = True
    sizes: ClassVar[Mapping[str, int]] = {"train": 20_000, "valid": 500, "test": 1000}
    shares: ClassVar[Mapping[str, int]] = (
        SHARES  # even ones where drawing is slow: fewer draws are thrown away
    )

    @abstractmethod
    def draw(self, rng: random.Random) -> Any:
        """One random problem."""

    def draw_at(self, i: int, rng: random.Random) -> Any:
        """A problem for example i, where its kind depends on i."""
        return self.draw(rng)

    @abstractmethod
    def canonical(self, problem: Any) -> str:
        """The same text for every problem that must not stand in two splits."""

    @abstractmethod
    def render(self, problem: Any, id: str, rng: random.Random) -> Example:
        """The problem in words, with steps, results and answer."""

    def split(self, name: str, n: int | None = None) -> Sequence[Example]:
        self.check_split(name)
        return Lazy(self.sizes[name] if n is None else n, lambda i: self.example(name, i))

    def example(self, split: str, i: int) -> Example:
        rng = stream(self.name, self.seed, split, i)
        for _ in range(_MAX_DRAWS):
            problem = self.draw_at(i, rng)
            if split_of(self.canonical(problem), self.shares) == split:
                return self.render(problem, f"{self.name}-{split}-{self.seed}-{i}", rng)
        raise UserError(
            f"task {self.name} found no problem for split '{split}' in {_MAX_DRAWS} draws: "
            "these settings allow too few different problems; make data.options larger"
        )


def digest(text: str) -> int:
    """A stable 63-bit number for a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def split_of(canonical: str, shares: Mapping[str, int] = SHARES) -> str:
    """The split that owns a problem; shares are percents in order."""
    point = digest(canonical) % sum(shares.values())
    for name, share in shares.items():
        if point < share:
            return name
        point -= share
    raise AssertionError("shares cover every point")


def stream(*key: Any) -> random.Random:
    """A random stream for one key, the same on every machine and Python."""
    return random.Random(digest("/".join(map(str, key))))
