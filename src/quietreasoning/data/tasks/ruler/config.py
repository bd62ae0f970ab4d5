"""Settings of the task `ruler`, and which of them each kind of problem reads."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, model_validator

from quietreasoning.config import Settings

Kind = Literal[
    "niah_single_1",
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "niah_multivalue",
    "niah_multiquery",
    "vt",
    "cwe",
    "fwe",
    "qa_1",
    "qa_2",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
READ_BY = {  # a setting that only some kinds read
    "keys": ("niah_multikey_1",),
    "values": ("niah_multivalue",),
    "queries": ("niah_multiquery",),
    "hops": ("vt",),
    "chains": ("vt",),
    "common": ("cwe",),
    "common_times": ("cwe",),
    "rare_times": ("cwe",),
    "frequent": ("fwe",),
    "alpha": ("fwe",),
}
NO_DEPTH = ("cwe", "fwe")  # what is asked for stands everywhere


class RulerConfig(Settings):
    kinds: Kind | tuple[Kind, ...] = KINDS
    """Kinds of problems; example i is of kind i modulo their number."""
    length: int | tuple[int, ...] = 1024
    """Words of a prompt, between white space; several lengths mix evenly. A prompt is at most so long and
    short of it by less than a sentence or paragraph."""
    depth: float | None = Field(None, ge=0, le=1)
    """Where the first needle asked for stands, as a share of the text; null takes ten depths evenly."""
    words: int | None = Field(None, ge=16, le=4000)
    """Made-up words that keys, values and fillers consist of: a quarter, a quarter and half of them. null
    writes English sentences, numbers of seven digits and UUIDs."""
    key_words: int = Field(1, ge=1, le=4)
    """Words in a key, where `words` are made up."""
    keys: int = Field(4, ge=1)
    """niah_multikey_1: keys, of which one is asked for."""
    values: int = Field(4, ge=2)
    """niah_multivalue: values of the one key."""
    queries: int = Field(4, ge=2)
    """niah_multiquery: keys that are asked for."""
    hops: int = Field(4, ge=1)
    """vt: assignments of one variable to another, after the first."""
    chains: int = Field(1, ge=1)
    """vt: chains of variables, of which one is asked for."""
    common: int = Field(10, ge=1)
    """cwe: common words."""
    common_times: int = Field(30, ge=2)
    """cwe: how often each common word stands there."""
    rare_times: int = Field(3, ge=1)
    """cwe: how often each other word stands there."""
    frequent: int = Field(3, ge=1)
    """fwe: most frequent words that are asked for."""
    alpha: float = Field(2.0, gt=1, le=4)
    """fwe: exponent of the frequencies; the smaller, the less they differ."""
    groups: Literal["kind", "depth"] = "kind"
    """What an evaluation counts apart beside the length: kinds of problems, or depths."""

    @property
    def all_kinds(self) -> tuple[Kind, ...]:
        return (self.kinds,) if isinstance(self.kinds, str) else self.kinds

    @property
    def lengths(self) -> tuple[int, ...]:
        return (self.length,) if isinstance(self.length, int) else self.length

    @model_validator(mode="after")
    def _fits(self) -> RulerConfig:
        if not self.all_kinds or not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"kinds={self.kinds} and length={self.length}: give at least one, above zero")
        for name, kinds in READ_BY.items():
            if getattr(self, name) != type(self).model_fields[name].default and not set(kinds) & set(
                self.all_kinds
            ):
                raise ValueError(f"{name} has no effect without kinds={kinds[0]}; drop it")
        if self.key_words > 1 and self.words is None:
            raise ValueError("key_words has no effect without words; give words, such as words=256")
        if set(self.all_kinds) <= set(NO_DEPTH) and (self.depth is not None or self.groups == "depth"):
            raise ValueError(f"kinds={self.kinds} have no needle, so depth has no effect; drop it")
        if self.common_times <= self.rare_times:
            raise ValueError(
                f"common_times={self.common_times} must be more than rare_times={self.rare_times}"
            )
        return self
