"""What a rule is: settings with `check(text, context) -> Finding`; and what it may see besides."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from quietreasoning.config import Settings, UserError, suggest
from quietreasoning.evaluate.claims.judge import Judge, RuleJudge, Source
from quietreasoning.evaluate.claims.own_words import own_words

Severity = Literal["minor", "major", "critical"]
WEIGHTS: dict[str, float] = {"minor": 0.5, "major": 1.0, "critical": 2.0}
COUNTS = (
    "tokens",
    "words",
    "characters",
    "steps",
    "tool_calls",
    "files",
    "diff_lines",
    "latent_spans",
    "loops",
)


def as_mapping(value: Any) -> Any:
    """For BeforeValidator: a clear word where something else than a mapping was written."""
    if not isinstance(value, Mapping):
        raise ValueError("must be a mapping, such as {a: 1}")
    return value


Table = Annotated[dict[str, Any], BeforeValidator(as_mapping)]


@dataclass(frozen=True)
class Context:
    """What is known besides the text; everything may be left out.

    results: outcomes of tests, commands or criteria that ran elsewhere: name -> true, false or a figure.
    facts: what happened and the text need not show: a whole number for any of COUNTS, a list of names for
    `tool_calls` and `files`, a text for `diff`. What the text itself shows is counted too; the larger holds.
    tokenize: text -> (start, end) of its tokens; words and marks without one.
    """

    prompt: str = ""
    sources: tuple[Source, ...] = ()
    reference: str | None = None
    results: Mapping[str, bool | float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    tokenize: Callable[[str], Sequence[tuple[int, int]]] | None = None
    judge: Judge = field(default_factory=RuleJudge)

    def __post_init__(self) -> None:
        for name, value in self.results.items():
            if not isinstance(value, bool | int | float):
                raise UserError(f"results.{name}={value!r:.60}: must be true, false or a number")
        for name, value in self.facts.items():
            _check_fact(name, value)

    def own(self, text: str) -> str:
        """The text with spaces in place of sentences that were lifted from the prompt."""
        return own_words(text, self.prompt, (source.text for source in self.sources))

    def fact_count(self, name: str) -> int:
        value = self.facts.get(name, 0)
        return value if isinstance(value, int) else len(value)

    def fact_names(self, name: str) -> tuple[str, ...]:
        value = self.facts.get(name, ())
        return tuple(value) if isinstance(value, list | tuple) else ()


def _check_fact(name: str, value: Any) -> None:
    if name not in (*COUNTS, "diff"):
        raise UserError(f"facts.{name}: no such fact. {suggest(name, (*COUNTS, 'diff'))}")
    if name == "diff":
        if not isinstance(value, str):
            raise UserError(f"facts.diff={value!r:.60}: must be text, a unified diff")
        return
    names = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    if names and name in ("tool_calls", "files"):
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        kinds = "a whole number or a list of names" if name in ("tool_calls", "files") else "a whole number"
        raise UserError(f"facts.{name}={value!r:.60}: must be {kinds}, at least 0")


@dataclass(frozen=True)
class Mark:
    """A place in the text and what is wrong there; what is missing is marked at the text's end."""

    start: int
    end: int
    message: str


@dataclass(frozen=True)
class Finding:
    """What `check` returns. score: within [0, 1]; None where there is nothing to judge. note: for people."""

    score: float | None
    marks: tuple[Mark, ...] = ()
    note: str = ""


class Rule(Settings):
    """What every rule has. A kind adds its own settings and `check`."""

    kind: ClassVar[str]

    id: str = Field(min_length=1)
    """Name of the rule, unique in its file."""
    severity: Severity = "major"
    """How bad a breach is: orders what is shown, and weighs 0.5, 1 or 2 where no weight is given."""
    hard: bool = False
    """A hard rule that fails makes the total 0; a soft one adds its share."""
    weight: float | None = Field(None, ge=0)
    """Share of a soft rule in the total; null goes by severity."""
    needs: float = Field(1.0, gt=0, le=1)
    """Score from which the rule holds."""

    @abstractmethod
    def check(self, text: str, context: Context) -> Finding:
        """Judge a text that is not blank."""

    @property
    def earned(self) -> bool:
        """Whether a text must say something to satisfy it, and not only leave things out."""
        return False

    @property
    def beside(self) -> bool:
        """Whether it fails without something beside the text: evidence, or outcomes of checks elsewhere."""
        return False

    @property
    def share(self) -> float:
        return WEIGHTS[self.severity] if self.weight is None else self.weight


def at_end(text: str, message: str) -> Mark:
    """Where something is missing."""
    return Mark(len(text), len(text), message)


def whole(text: str, message: str) -> Mark:
    """Where a fact that is not in the text breaks a rule."""
    return Mark(0, len(text), message)
