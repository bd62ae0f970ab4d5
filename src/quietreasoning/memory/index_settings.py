"""Settings of the index backends, apart from the backends so that reading a recipe loads none of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from quietreasoning.config import Settings

CODE_CENTRES = 256  # of a code of one byte; it cannot be learnt from fewer vectors
PROBES = 128  # of 4096 lists they hold .975 of the ten nearest of a million in small topics, 16 hold .94
FEW_LISTS, GROWTH = 256, 4  # lists of a growing store's first index; times as many in the next
CODE_BYTES = 32  # of a vector's code, where its width allows them


def codes_of(dim: int, most: int = CODE_BYTES) -> int:
    """Bytes of a code for vectors of this width: as many as divide it, at most so many."""
    return max(m for m in range(1, most + 1) if dim % m == 0)


class IndexSettings(Settings):
    """Settings of an index that takes the place of exact search once there are `flat_until` entries."""

    @property
    def stages(self) -> tuple[IndexSettings, ...]:
        """Settings that follow one another while a store grows, these last; each from its `flat_until` on."""
        return (self,)


class FlatSettings(IndexSettings):
    """Exact search has nothing to set."""

    @property
    def flat_until(self) -> int:
        return 0


class IvfPqSettings(IndexSettings):
    """Inverted lists of product-quantised vectors (FAISS)."""

    nlist: int = Field(4096, ge=1)
    """Lists of a store that is large enough for them; before, a quarter or a sixteenth as many."""
    m: int = Field(CODE_BYTES, ge=1)
    """Bytes of a vector's code; must divide its width."""
    nprobe: int = Field(PROBES, ge=1)
    """Lists a query looks into; where there are fewer lists and it is not set, all of them."""
    train_per_list: int = Field(40, ge=1)
    """Entries for each list: how many there must be, and the sample that lists and codes are learnt from."""

    @model_validator(mode="before")
    @classmethod
    def _no_more_probes_than_lists(cls, values: Any) -> Any:
        lists = values.get("nlist") if isinstance(values, Mapping) else None
        if isinstance(lists, int) and 1 <= lists < PROBES and "nprobe" not in values:
            return {**values, "nprobe": lists}
        return values

    @model_validator(mode="after")
    def _probes_exist(self) -> IvfPqSettings:
        if self.nprobe > self.nlist:
            raise ValueError(f"nprobe={self.nprobe} exceeds nlist={self.nlist}")
        return self

    @property
    def flat_until(self) -> int:
        return max(self.train_per_list * self.nlist, CODE_CENTRES)

    @property
    def stages(self) -> tuple[IvfPqSettings, ...]:
        lists = [self.nlist]
        while lists[-1] // GROWTH >= FEW_LISTS:
            lists.append(lists[-1] // GROWTH)
        return tuple(
            self.model_copy(update={"nlist": count, "nprobe": min(self.nprobe, count)})
            for count in reversed(lists)
        )


class HnswSettings(IndexSettings):
    """A navigable small-world graph (arXiv 1603.09320)."""

    m: int = Field(32, ge=2)
    """Neighbours of a node on each level; twice as many on the lowest."""
    ef: int = Field(128, ge=1)
    """Candidates a search holds."""
    ef_construction: int = Field(200, ge=1)
    """Candidates held while a node is put in."""
    rebuild_share: float = Field(0.25, gt=0, le=1)
    """The graph is built anew when more than this share of its nodes was removed."""
    flat_until: int = Field(10_000, ge=0)
    """Entries before which search is exact."""


class ScannSettings(IndexSettings):
    """Tree and anisotropic codes (arXiv 1908.10396)."""

    leaves_to_search: int = Field(100, ge=1)
    """Leaves a query looks into, of about the square root of all vectors."""
    rebuild_share: float = Field(0.25, gt=0, le=1)
    """Built anew when what was added or removed since exceeds this share of all."""
    flat_until: int = Field(10_000, ge=CODE_CENTRES)
    """Entries before which search is exact."""


INDEX_SETTINGS: dict[str, type[Settings]] = {
    "flat": FlatSettings,
    "faiss_flat": FlatSettings,
    "faiss_ivfpq": IvfPqSettings,
    "faiss_hnsw": HnswSettings,
    "hnswlib": HnswSettings,
    "scann": ScannSettings,
}
