"""PopQA (arXiv 2212.10511): questions about one fact each, with the popularity of the subject (`s_pop`).

Reads its TSV, or JSONL with the same fields. Splits are by subject: what asks about one stands in one split.
The prompt is the paper's: `shots` lines `Q: ... A: ...` of other relations, then `Q: ...`; what follows
comes from `data.format`, in the paper `answer_prefix: " A:"` with an empty `prompt_suffix`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain, zip_longest
from typing import Any

from pydantic import Field

from quietreasoning.config import UserError
from quietreasoning.data.example import Example
from quietreasoning.data.records import Fault, text
from quietreasoning.data.tasks.base import Lazy, split_of, stream
from quietreasoning.data.tasks.files import FileConfig, FileTask

SPARE = 8  # shots drawn beyond those needed: some may be about the subject that is asked about


class PopQAConfig(FileConfig):
    shots: int = Field(15, ge=0)
    """Questions with answers before the one that is asked: of the training split and of other subjects, one
    of each other relation in turn."""
    rare_below: float = Field(1000, gt=0)
    """A question about a subject with a smaller `s_pop` is long tail: Batch.rare_B is 1, else 0."""


class PopQA(FileTask):
    Config = PopQAConfig
    name = "popqa"
    describe = "one fact a question, by how popular its subject is; any alias counts"
    scorer = "alias"
    config: PopQAConfig

    def split(self, name: str, n: int | None = None) -> Sequence[Example]:
        """The first n examples of a split in file order, with their shots. UserError where files of two
        splits ask about one subject, or where shots are wanted and there is no training file."""
        found = super().split(name, n)
        self._refuse_shared_subjects()
        return Lazy(len(found), lambda i: self._with_shots(found[i])) if self.config.shots else found

    def part(self, examples: Sequence[Example], shares: Mapping[str, int], name: str) -> list[Example]:
        """By the subject, however it is spelled."""
        return [one for one in examples if split_of(_entity(one), shares) == name]

    def parse(self, record: Mapping[str, Any], number: int) -> Example:
        answers = _aliases(record)
        popularity = _popularity(record)
        given = str(record.get("obj") or "").strip()
        return Example(
            id=f"popqa-{text(record, 'id') if 'id' in record else number}",
            prompt=f"Q: {text(record, 'question').strip()}",
            steps=(),
            results=(),
            answer=given if given in answers else answers[0],
            meta={
                "answers": answers,
                "popularity": popularity,
                "rare": int(popularity < self.config.rare_below),
                "relation": text(record, "prop", "relation").strip(),
                "entity": text(record, "subj", "subject").strip(),
            },
        )

    def group(self, example: Example) -> str:
        """The power of ten of its popularity."""
        popularity = example.meta["popularity"]
        if popularity < 1:
            return "s_pop below 1"
        low = 10 ** math.floor(math.log10(popularity))
        return f"s_pop {low:,} to {10 * low - 1:,}"

    def shortcuts(self, example: Example) -> Mapping[str, str]:
        """What knows the relation alone: the answer that it has most often in training."""
        return {"common-answer": self._common.get(example.meta["relation"], "")}

    @cached_property
    def _common(self) -> dict[str, str]:
        told: dict[str, Counter[str]] = {}
        for one in self._training:
            told.setdefault(one.meta["relation"], Counter())[one.answer] += 1
        return {relation: max(sorted(counts), key=counts.__getitem__) for relation, counts in told.items()}

    @cached_property
    def _training(self) -> list[Example]:
        """The training split, without shots."""
        if "train" not in self.files():
            raise UserError(
                f"task popqa: {self.path} holds no train split, which shots are taken from; give one, or set "
                "data.options.shots=0"
            )
        return list(super().split("train"))

    @cached_property
    def _by_relation(self) -> dict[str, list[Example]]:
        found: dict[str, list[Example]] = {}
        for one in self._training:
            found.setdefault(one.meta["relation"], []).append(one)
        return found

    def _with_shots(self, example: Example) -> Example:
        """Of the relations in turn, the asked one only where there is no other; then shuffled."""
        wanted, about = self.config.shots, _entity(example)
        rng = stream(self.name, self.seed, "shots", example.id)
        named = sorted(self._by_relation.items())
        pools = [pool for name, pool in named if name != example.meta["relation"]] or [self._training]
        drawn = [rng.sample(pool, min(len(pool), wanted + SPARE)) for pool in pools]
        others = [[one for one in pool if _entity(one) != about] for pool in drawn]
        turns = chain.from_iterable(zip_longest(*others))
        shown = [one for one in turns if one is not None][:wanted]
        if len(shown) < wanted:
            raise UserError(
                f"task popqa: data.options.shots={wanted}, and only {len(shown)} training "
                f"questions are about other subjects than {example.id}; lower it"
            )
        rng.shuffle(shown)
        lines = [f"{one.prompt} A: {one.answer}" for one in shown]
        return replace(example, prompt="\n\n".join([*lines, example.prompt]))

    def _refuse_shared_subjects(self) -> None:
        """UserError where files of two splits ask about one subject."""
        files, owner = self.files(), {}
        for split, file in files.items() if len(files) > 1 else ():
            for one in self._load(file):
                if owner.setdefault(_entity(one), split) != split:
                    raise UserError(
                        f"task popqa: {files[owner[_entity(one)]]} and {file} both ask about "
                        f"'{one.meta['entity']}'; give one file, which is then divided by subjects"
                    )


def _entity(example: Example) -> str:
    return " ".join(example.meta["entity"].casefold().split())


def _aliases(record: Mapping[str, Any]) -> tuple[str, ...]:
    """`possible_answers`, a JSON list as text or as it is. Fault where it is empty or holds an empty one,
    which would occur in every text."""
    if "possible_answers" not in record:
        raise Fault(f"no field 'possible_answers' among {', '.join(sorted(record)) or 'none'}")
    found = record["possible_answers"]
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except (json.JSONDecodeError, RecursionError):
            raise Fault(f"field 'possible_answers' is no JSON list: {found!r:.40}") from None
    if not isinstance(found, list) or not found:
        raise Fault("field 'possible_answers' is no list of at least one answer")
    if any(not isinstance(answer, str) or not answer.strip() for answer in found):
        raise Fault("field 'possible_answers' holds an empty answer, or one that is no text")
    return tuple(dict.fromkeys(answer.strip() for answer in found))


def _popularity(record: Mapping[str, Any]) -> float:
    written = text(record, "s_pop")
    try:
        found = float(written)
    except ValueError:
        raise Fault(f"field 's_pop' is no number: {written!r:.40}") from None
    if not 0 <= found < math.inf:
        raise Fault(f"field 's_pop' is {written}, no count")
    return found
