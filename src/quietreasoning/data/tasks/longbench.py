"""LongBench (arXiv 2308.14508): questions, summaries, counts and code over long texts. Test split only.

Reads its JSONL: `input`, `context`, `answers`, `all_classes`, `dataset`, `length`, `_id`. Lines with
`document`, `question` and `answer` or `answers` are read as data set `own`. Prompts are in words of our own,
so figures do not compare with published ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import field_validator

from quietreasoning.config import UserError, suggest
from quietreasoning.data.example import Example
from quietreasoning.data.records import SUFFIXES, Fault, text
from quietreasoning.data.tasks.files import FileConfig, FileTask

OWN = "own"


class Kind(NamedTuple):
    metric: Literal["f1", "rouge-l", "class", "retrieval", "count", "edit"]
    prompt: str  # with {context} and {input}
    asks: bool = True  # False: the text alone is the question, `input` may be empty
    first_line: bool = False  # what is written after the first line does not count


_PASSAGES = (
    "Read the text, then answer the question about it in as few words as you can.\n\n{context}\n\n"
    "Question: {input}\nAnswer in a few words:"
)
_PAPER = (
    "Read the text, then answer the question about it in as few words as you can: yes or no where that is "
    "asked, unanswerable where the text does not tell.\n\n{context}\n\nQuestion: {input}\n"
    "Answer in a few words:"
)
_REPORT = "Here is a long text.\n\n{context}\n\nTell in about one page what it says.\nSummary:"
_MEETING = "Here is what was said in a meeting.\n\n{context}\n\n{input}\nAnswer in a few sentences:"
_LIKE_THESE = "Here are some examples. Go on in the same way with the last one.\n\n{context}\n{input}"
_CODE = "Write the line of code that comes next.\n\n{context}{input}\nNext line:\n"
_COUNT = (
    "Some of these paragraphs stand here more than once.\n\n{context}\n\nHow many different paragraphs are "
    "there? Answer with the number alone:"
)
_FIND = (
    "Here are numbered paragraphs.\n\n{context}\n\nThis is a summary of one of them:\n\n{input}\n\n"
    'Which one is it? Answer in the form "Paragraph 3":'
)
_PASSAGES_ZH = "请阅读下文，用尽量少的字回答问题。\n\n{context}\n\n问题：{input}\n简短回答："
_MEETING_ZH = "下面是一次会议的记录。\n\n{context}\n\n请概括这次会议说了什么。\n概括："
_LIKE_THESE_ZH = "下面是一些例子，请照样判断最后一条新闻的类别。\n\n{context}\n{input}"
_FIND_ZH = (
    "下面是编了号的段落。\n\n{context}\n\n这是其中一段的摘要：\n\n{input}\n\n"
    "是哪一段？请按“段落3”的形式回答："
)

DATASETS = {
    "narrativeqa": Kind("f1", _PASSAGES),
    "qasper": Kind("f1", _PAPER),
    "multifieldqa_en": Kind("f1", _PASSAGES),
    "multifieldqa_zh": Kind("f1", _PASSAGES_ZH),
    "hotpotqa": Kind("f1", _PASSAGES),
    "2wikimqa": Kind("f1", _PASSAGES),
    "musique": Kind("f1", _PASSAGES),
    "dureader": Kind("rouge-l", _PASSAGES_ZH),
    "gov_report": Kind("rouge-l", _REPORT, asks=False),
    "qmsum": Kind("rouge-l", _MEETING),
    "multi_news": Kind("rouge-l", _REPORT, asks=False),
    "vcsum": Kind("rouge-l", _MEETING_ZH, asks=False),
    "trec": Kind("class", _LIKE_THESE, first_line=True),
    "triviaqa": Kind("f1", _LIKE_THESE, first_line=True),
    "samsum": Kind("rouge-l", _LIKE_THESE, first_line=True),
    "lsht": Kind("class", _LIKE_THESE_ZH, first_line=True),
    "passage_count": Kind("count", _COUNT, asks=False),
    "passage_retrieval_en": Kind("retrieval", _FIND),
    "passage_retrieval_zh": Kind("retrieval", _FIND_ZH),
    "lcc": Kind("edit", _CODE, asks=False),
    "repobench-p": Kind("edit", _CODE),
    OWN: Kind("f1", _PASSAGES),
}
LENGTHS = ((4000, "0-4k words"), (8000, "4-8k words"))  # LongBench-E's


class LongBenchConfig(FileConfig):
    datasets: tuple[str, ...] | None = None
    """Names of the data sets to ask; null asks all that are there."""
    groups: Literal["dataset", "length"] = "dataset"
    """What an evaluation counts apart: data sets, or lengths below 4,000 and 8,000 words and above."""

    @field_validator("datasets")
    @classmethod
    def _known(cls, datasets: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in datasets or ():
            if name not in DATASETS:
                raise ValueError(f"there is no data set '{name}'; {suggest(name, DATASETS)}")
        return datasets


class LongBench(FileTask):
    Config = LongBenchConfig
    name = "longbench"
    describe = "long texts: questions, summaries, examples, counts, code; each with its own measure"
    scorer = "longbench"
    splits = ("test",)
    carves = False
    config: LongBenchConfig

    def files(self) -> dict[str, Path]:
        """Name -> file: all of a folder, each of them a data set or a part of one."""
        path = Path(self.path or "").expanduser()
        if not path.is_dir():
            return super().files()
        found = {file.name: file for file in sorted(path.iterdir()) if file.name.endswith(SUFFIXES)}
        if not found:
            raise UserError(f"data.path: {path.resolve()} holds no JSONL file of LongBench's")
        return found

    def split(self, name: str, n: int | None = None) -> Sequence[Example]:
        """The first n examples, the data sets in turn; UserError where there are none."""
        self.check_split(name)
        wanted = self.config.datasets
        by_dataset: dict[str, list[Example]] = {}
        for file in self.files().values():
            for example in self._load(file):
                by_dataset.setdefault(example.meta["dataset"], []).append(example)
        if missing := [each for each in wanted or () if each not in by_dataset]:
            raise UserError(
                f"data.options.datasets: {self.path} holds no {missing[0]}, only {', '.join(by_dataset)}"
            )
        return in_turn([found for each, found in by_dataset.items() if wanted is None or each in wanted])[:n]

    def parse(self, record: Mapping[str, Any], number: int) -> Example:
        name = text(record, "dataset").removesuffix("_e") if "dataset" in record else OWN
        if name not in DATASETS:
            raise Fault(f"field 'dataset' is '{name}'; {suggest(name, DATASETS)}")
        kind, answers = DATASETS[name], gold_answers(record)
        asked = text(record, "input", "question") if kind.asks else str(record.get("input") or "")
        context = text(record, "context", "document")
        classes = record.get("all_classes") or ()
        if not isinstance(classes, list | tuple):
            raise Fault("field 'all_classes' is no list")
        _check_answers(kind.metric, answers, classes)
        return Example(
            id=f"{name}-{text(record, '_id') if '_id' in record else number}",
            prompt=kind.prompt.format(context=context, input=asked),
            steps=(),
            results=(),
            answer=answers[0],
            meta={
                "dataset": name,
                "metric": kind.metric,
                "first_line": kind.first_line,
                "answers": answers,
                "classes": tuple(classes),
                "length": _length(record) if "length" in record else len(context.split()),
            },
        )

    def group(self, example: Example) -> str:
        if self.config.groups == "dataset":
            return example.meta["dataset"]
        length = example.meta["length"]
        return next((name for limit, name in LENGTHS if length < limit), "8k words and more")


def gold_answers(record: Mapping[str, Any]) -> tuple[str, ...]:
    """`answers`, a list, or `answer`. Fault where one is empty or no text: nothing at all would match it."""
    if "answers" not in record:
        return (text(record, "answer").strip(),)
    found = record["answers"]
    if not isinstance(found, list) or not found:
        raise Fault("field 'answers' is no list of at least one text")
    if any(not isinstance(answer, str) or not answer.strip() for answer in found):
        raise Fault("field 'answers' holds an empty answer, or one that is no text")
    return tuple(answer.strip("\n") for answer in found)


def _length(record: Mapping[str, Any]) -> int:
    written = text(record, "length")
    if not written.isdecimal():
        raise Fault(f"field 'length' is no number: {written!r:.40}")
    return int(written)


def _check_answers(metric: str, answers: Sequence[str], classes: Sequence[str]) -> None:
    """Fault where no text could ever score."""
    if metric == "class" and not set(answers) & set(classes):
        raise Fault("field 'all_classes' holds none of the answers")
    if metric in ("retrieval", "count") and not all(re.search(r"\d", answer) for answer in answers):
        raise Fault("field 'answers' holds an answer without a number")
    if metric in ("f1", "rouge-l") and not all(re.search(r"[^\W_]", answer) for answer in answers):
        raise Fault("field 'answers' holds an answer without a word")


def in_turn(lists: Iterable[Sequence[Example]]) -> list[Example]:
    """The first of each, the second of each, ..."""
    return [example for row in zip_longest(*lists) for example in row if example is not None]
