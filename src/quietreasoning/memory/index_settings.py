"""Settings of the index backends, apart from the backends so that reading a recipe loads none of them."""

from __future__ import annotations

from pydantic import Field, model_validator

from quietreasoning.config import Settings

CODE_CENTRES = 256  # of a code of one byte; it cannot be learnt from fewer vectors


class FlatSettings(Settings):
    """Exact search has nothing to set."""

    @property
    def flat_until(self) -> int:
        return 0


class IvfPqSettings(Settings):
    """Inverted lists of product-quantised vectors (FAISS)."""

    nlist: int = Field(4096, ge=1)
    """Lists."""
    m: int = Field(32, ge=1)
    """Bytes of a vector's code; must divide its width."""
    nprobe: int = Field(16, ge=1)
    """Lists a query looks into."""
    train_per_list: int = Field(40, ge=1)
    """Entries for each list: before there are so many, search is exact; the sample codes are learnt from."""

    @model_validator(mode="after")
    def _probes_exist(self) -> IvfPqSettings:
        if self.nprobe > self.nlist:
            raise ValueError(f"nprobe={self.nprobe} exceeds nlist={self.nlist}")
        return self

    @property
    def flat_until(self) -> int:
        return max(self.train_per_list * self.nlist, CODE_CENTRES)


class HnswSettings(Settings):
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


class ScannSettings(Settings):
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
