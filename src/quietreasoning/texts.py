"""`quiet data texts`: what a teacher writes, as rows to learn from (sequence-level distillation, arXiv
1606.07947; with `--keep right`, samples that are right), or as pairs to prefer by (`text_pairs`).

What was written is kept in `FILE.jsonl.work`, a line for each sample, in a log that only grows; FILE.jsonl is
chosen from it. So the same command goes on where it ended, also with another batch size, more prompts, more
samples, or another choice. Anything that would change a sample is compared and refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from quietreasoning.backbone.weights import weights_identity
from quietreasoning.capture import SPLITS, open_teacher, stage_of
from quietreasoning.config import UserError
from quietreasoning.data.config import DataConfig, build_task
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.load import load_split
from quietreasoning.data.made import Made, put
from quietreasoning.data.pairs.keys import Item, Problem, problem_id
from quietreasoning.data.spans.integration import integration_spans
from quietreasoning.data.spans.rows import HEADER
from quietreasoning.data.tasks.rows_header import SHA256
from quietreasoning.data.teacher_cache.header import tokenizer_facts
from quietreasoning.evaluate.rewards import reward_of
from quietreasoning.evaluate.rules.base import Context
from quietreasoning.evaluate.rules.load import load_rules
from quietreasoning.evaluate.scorers import SCORERS
from quietreasoning.scribe import CUT, MALFORMED, WHOLE, Draws, Line, Scribe
from quietreasoning.text_pairs import PAIRS, paired
from quietreasoning.train.signals import StopFlag

AGAIN = "write anew with quiet data texts, to another --out"
TEXTS = Made("log of a teacher's texts", "quiet data texts", "texts.json", 1, AGAIN)
LOG = "samples.jsonl"
KEEP = ("right", "all", "best", PAIRS)


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    model: str
    out: Path
    recipe: str
    settings: tuple[str, ...] = ()
    stage: str | None = None
    revision: str | None = None
    split: str = "train"
    n: int | None = None
    draws: Draws = field(default_factory=Draws)
    samples: int = 1
    steps: bool = True  # false: the teacher begins behind the answer prefix
    keep: str = "right"
    rules: str | None = None
    dtype: str | None = None
    batch_size: int = 8


class Stop(Protocol):
    """`check` raises once someone has asked for an end."""

    def check(self) -> None: ...


def write_texts(request: Request) -> dict[str, Any]:
    """Sample what is not there yet, then write the rows that are kept; figures of all. UserError for wishes
    that cannot be met, a log that was made otherwise, and where no row is left."""
    check(request)
    work = request.out.with_name(request.out.name + ".work")
    if request.out.exists() and not (work / TEXTS.file).exists():
        raise UserError(f"{request.out} is there and was not begun by this command; give another --out")
    stop = StopFlag()
    with stop.listening():
        _, stage = stage_of(request.recipe, request.settings, request.stage)
        teacher = open_teacher(request.model, request.revision, request.dtype)
        writer = Scribe(teacher, stage.data, request.draws, request.steps)
        items, dropped = open_items(stage.data, writer.encoder, request)
        writer.check(items)
        identity = weights_identity(teacher.backbone)
        with TEXTS.alone(work, 0, 1):
            about = {"teacher": identity | {"path": request.model, "revision": request.revision}}
            settings = TEXTS.settle(work, recorded(request, writer, stage.data, identity), about)
            lines = through(work / LOG, items, writer, request.batch_size, stop)
            rows, figures = choose(items, lines, request, build_task(stage.data).scorer)
            figures |= {"out": str(request.out), "dropped": dropped}
            if not rows:
                raise UserError(
                    f"{request.out}: no row is left of {told(figures)}. {cure(request, figures)}."
                )
            head = {"made_by": "quiet data texts", **settings, **about, "choice": chosen_by(request)}
            text = document(head | {"rows": len(rows)}, rows)
            if request.keep == PAIRS:  # its readers know no header
                first, _, text = text.partition("\n")
                put(work / "pairs.json", f"{first}\n", 0, 1)
            put(request.out, text, 0, 1)
            return figures


def check(request: Request) -> None:
    """UserError for wishes that cannot be met."""
    if request.split not in SPLITS:
        raise UserError(
            f"--split {request.split}: choices are {' and '.join(SPLITS)}; no one learns from test"
        )
    if request.keep not in KEEP:
        raise UserError(f"--keep {request.keep}: choices are {', '.join(KEEP)}")
    if request.draws.temperature < 0:
        raise UserError(f"--temperature {request.draws.temperature:g}: must not be negative; 0 is greedy")
    if request.draws.temperature == 0 and request.samples > 1:
        raise UserError(
            f"--samples {request.samples}: without a temperature all samples are the same. Give "
            "--temperature 0.7, or one sample."
        )
    if request.keep == PAIRS and request.samples == 1:
        raise UserError(
            "--keep pairs holds samples of a prompt against each other: give --samples 4 --temperature 0.7"
        )
    if request.out.suffix != ".jsonl":
        reader = "preferences" if request.keep == PAIRS else "teacher-rows"
        raise UserError(f"--out {request.out}: must end in .jsonl, which task {reader} reads")
    if request.rules is not None:
        load_rules(request.rules)  # or refused before any work


def recorded(request: Request, writer: Scribe, data: DataConfig, identity: dict[str, str]) -> dict[str, Any]:
    """All that changes a sample. Batch size, number of prompts and samples, and what is kept do not."""
    source = build_task(data).fingerprint()
    return {
        "teacher_sha256": identity["sha256"],
        "dtype": writer.teacher.dtype,
        **tokenizer_facts(writer.teacher.tokenizer),
        "format": writer.encoder.format.model_dump(mode="json", exclude={"rationale"}),
        "source": {"split": request.split} | source,
        "steps": writer.steps,
        "sampling": asdict(request.draws),
    }


def open_items(data: DataConfig, encoder: Encoder, request: Request) -> tuple[list[Item], int]:
    """Each prompt once with the number of each sample, and how many examples were too long."""
    task = build_task(data)
    if task.text:
        raise UserError(
            f"data.task={data.task} is running text, which asks nothing; give a task with questions"
        )
    examples, dropped = load_split(task, request.split, data, encoder, n=request.n)
    problems: dict[str, Problem] = {}
    for example in examples:
        id = problem_id(task.name, example.prompt)
        problems.setdefault(id, Problem(id, task.name, task.scorer, example))
    return [Item(problem, k) for problem in problems.values() for k in range(request.samples)], dropped


def through(log: Path, items: Sequence[Item], writer: Scribe, batch_size: int, stop: Stop) -> dict[str, Line]:
    """Append a line for each item that has none; all lines by their keys. A line that was cut off by a kill
    is taken away first, and written again, the same."""
    if log.exists():
        os.truncate(log, log.read_bytes().rfind(b"\n") + 1)
    lines = {line["key"]: line for line in read_log(log)}
    todo = [item for item in items if item.key not in lines]
    if len(todo) < len(items):
        say(f"going on: {len(items) - len(todo)} of {len(items)} samples are there")
    todo.sort(key=lambda item: (len(item.problem.example.prompt), item.key))  # less padding
    began = shown = time.monotonic()
    with log.open("a", encoding="utf-8") as file:
        for first in range(0, len(todo), batch_size):
            stop.check()
            made = writer(todo[first : first + batch_size])
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in made)
            file.flush()
            os.fsync(file.fileno())
            lines |= {line["key"]: line for line in made}
            done, now = min(first + batch_size, len(todo)), time.monotonic()
            if now - shown > 5 or done == len(todo):
                shown, rate = now, done / max(now - began, 1e-9)
                say(f"{done}/{len(todo)} samples, {rate:.1f}/s, {(len(todo) - done) / rate:.0f} s left")
    return lines


def read_log(log: Path) -> Iterator[Line]:
    try:
        with log.open(encoding="utf-8") as file:
            yield from map(json.loads, file)
    except FileNotFoundError:
        return
    except ValueError as error:
        raise UserError(f"{log} is damaged. Take a copy, or {AGAIN}.") from error


def choose(
    items: Sequence[Item], lines: dict[str, Line], request: Request, scorer: str
) -> tuple[list[Line], dict[str, Any]]:
    """The rows that are kept, in the order of the prompts, and how many fell out where."""
    rules = None if request.rules is None else load_rules(request.rules)
    whole = {"prompts": len({item.problem.id for item in items}), "samples": len(items)}
    if request.keep == PAIRS:
        rows, counts = paired(items, lines, scorer, rules)
        return rows, whole | counts | {"rows": len(rows)}
    right, worth = SCORERS[scorer], reward_of(scorer)
    counts = dict.fromkeys((WHOLE, CUT, MALFORMED, "right", "refused_by_rules", "twice"), 0)
    kept: dict[str, list[Line]] = {}
    for item in items:
        line, example = lines[item.key], item.problem.example
        counts[line["outcome"]] += 1
        if line["outcome"] != WHOLE:
            continue
        is_right = right(line["answer"], example)
        counts["right"] += is_right
        row = row_of(item, line, is_right, worth(line["answer"], example))
        group = kept.setdefault(item.problem.id, [])
        if rules is not None and not rules.keep(row["teacher_text"], Context(prompt=example.prompt)):
            counts["refused_by_rules"] += 1
        elif any(row["teacher_text"] == other["teacher_text"] for other in group):
            counts["twice"] += 1
        elif is_right or request.keep != "right":
            group.append(row)
    if request.keep == "best":  # max takes the first of equals
        kept = {id: [max(group, key=_quality)] for id, group in kept.items() if group}
    rows = [row for group in kept.values() for row in group]
    return rows, whole | counts | {"rows": len(rows)}


def _quality(row: Line) -> float:
    return row["teacher_quality_score"]


def row_of(item: Item, line: Line, right: bool, worth: float) -> Line:
    """A row as task `teacher-rows` reads it. The prompt is the task's own text, tools that it declares
    included, so that a student reads the same ids; the steps stand in the text too, before the answer."""
    example = item.problem.example
    facts = {"source": example.id, "sample": item.sample, "right": right, "gold": example.answer}
    row = {"prompt": example.prompt, "teacher_text": "\n".join([*line["steps"], line["answer"]])}
    if example.meta.get("tools"):
        row["prompt_tools"] = list(example.meta["tools"])
    told = list(example.meta["result"]) if example.meta.get("kind") == "answer" else []  # in the prompt
    if integration_spans(row["teacher_text"], told, hints=False):
        row["tool_result_fields"] = told
    if line["steps"]:
        row["cot_steps"] = line["steps"]
    return row | {"teacher_quality_score": worth, "metadata": facts}


def chosen_by(request: Request) -> dict[str, Any]:
    rules = None if request.rules is None else hashlib.sha256(Path(request.rules).read_bytes()).hexdigest()
    return {"keep": request.keep, "n": request.n, "samples": request.samples, "rules_sha256": rules}


def document(head: dict[str, Any], rows: Sequence[Line]) -> str:
    """The rows behind a header that holds their SHA-256."""
    body = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    first = {HEADER: head, SHA256: hashlib.sha256(body.encode()).hexdigest()}
    return json.dumps(first, ensure_ascii=False) + "\n" + body


def told(figures: dict[str, Any]) -> str:
    """`16 samples (4 whole, ...)`."""
    inner = [name for name in figures if name not in ("prompts", "samples", "rows", "out", "dropped")]
    parts = ", ".join(f"{figures[name]} {name.replace('_', ' ')}" for name in inner)
    return f"{figures['samples']} samples ({parts})"


def cure(request: Request, figures: dict[str, Any]) -> str:
    """What may leave a row the next time."""
    if figures[CUT] == figures["samples"]:
        return "All were cut: allow more with --max-new-tokens, to another --out"
    more = ["look into the log beside it", "draw more --samples"]
    if figures.get("refused_by_rules"):
        more.append("ease --rules")
    if request.keep not in ("all", PAIRS):
        more.append("give --keep all")
    return f"{', '.join(more[:-1])}, or {more[-1]}".capitalize()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
