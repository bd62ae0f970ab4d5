"""Rollouts that `quiet data pairs` wrote, as examples: the problem, the model's own chain, the answer.

Splits are those of the problems' hashes, so no problem stands in two. Training sees every kept sample of a
problem, validation and test the first. This reads lists alone, no tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from quietreasoning.config import Settings, UserError, suggest
from quietreasoning.data.example import Example
from quietreasoning.data.pairs.folder import CONFIG, PAIRS, Row, kept_rows, unique_by_problem
from quietreasoning.data.tasks.base import Task


class PairsConfig(Settings):
    dataset: str | None = None
    """Only the rollouts of this data set; needed where several that are scored differently are mixed."""


class Pairs(Task):
    Config = PairsConfig
    name = "pairs"
    describe = "rollouts of quiet data pairs: a model's own chains"
    scorer = "exact"  # of an instance: that of the data set its rollouts come from
    needs_path = True
    config: PairsConfig

    def __init__(self, config: Settings | None = None, *, path: str | None = None, seed: int = 0):
        super().__init__(config, path=path, seed=seed)
        if path is None:
            raise UserError("task pairs reads a folder of quiet data pairs; give data.path=FOLDER")
        self._rows: list[Row] | None = None
        if (self.folder / CONFIG).exists():
            made = PAIRS.read(self.folder)["settings"].get("datasets", {})
            self.scorer = made.get(self.config.dataset, {}).get("scorer") or _only(made)

    @property
    def identity(self) -> dict[str, str]:
        """Of the model that wrote the chains: `path`, where it stood then, and `sha256` of its weights."""
        config = PAIRS.read(self.folder)
        return dict(config["about"]["model"]) | dict(config["settings"]["model"])

    @property
    def folder(self) -> Path:
        return Path(self.path or "").expanduser()

    @property
    def rows(self) -> list[Row]:
        """Kept rollouts; UserError where there is none, or they are no chains."""
        if self._rows is None:
            rows = kept_rows(self.folder)
            names = sorted({row["dataset"] for row in rows})
            wanted = self.config.dataset
            if wanted is not None and wanted not in names:
                raise UserError(
                    f"data.options.dataset={wanted}: not in {self.folder}. {suggest(wanted, names)}"
                )
            rows = [row for row in rows if wanted in (None, row["dataset"])]
            if any(row["scorer"] == "none" for row in rows):
                raise UserError(
                    f"{self.folder} was imported from a dictionary of states, which holds no chains to train "
                    "on. Make pairs with quiet data pairs."
                )
            if len({row["scorer"] for row in rows}) > 1:
                raise UserError(
                    f"{self.folder} mixes data sets that are scored differently: choose one with "
                    f"data.options.dataset. {suggest('', names)}"
                )
            self._rows = rows
        return self._rows

    def split(self, name: str, n: int | None = None) -> Sequence[Example]:
        """The first n examples in the order of their keys; UserError where the split is empty."""
        self.check_split(name)
        rows = [row for row in self.rows if row["split"] == name]
        if name != "train":
            rows = unique_by_problem(rows)
        if not rows:
            raise UserError(
                f"task pairs: {self.folder} has no kept rollout in its {name} split. Ask for more problems: "
                "quiet data pairs with a larger --num-samples goes on where it ended."
            )
        return [_example(row, learn=name == "train") for row in rows[:n]]

    def fingerprint(self) -> dict[str, str]:
        """As every task's, with the names of the shards, which are hashes of what they hold."""
        shards = ",".join(sorted({row["shard"] for row in self.rows}))
        return super().fingerprint() | {"shards": shards}


def _only(datasets: Mapping[str, Mapping[str, str]]) -> str:
    """The scorer of all data sets; a mix is refused when its rows are read."""
    return next((dataset["scorer"] for dataset in datasets.values()), Pairs.scorer)


def _example(row: Row, learn: bool) -> Example:
    """learn: a wrong chain (--keep all) leads to what the model answered, not to the gold answer."""
    own = row["scorer"] == "code" or (learn and row["outcome"] == "wrong")
    return Example(
        id=f"{row['dataset']}-{row['key']}",
        prompt=row["problem"],
        steps=tuple(row["steps"]),
        results=tuple(row["results"]),
        answer=(own and row["answer"]) or row["gold"],
        meta=row["meta"] | {"key": row["key"], "outcome": row["outcome"]},
    )
