"""`quiet index consolidate`: what is asked for often moves from the episodic store into the weights.

Texts of the store become exercises: the words before the last, then the last word, which is the answer (as in
LAMBADA, arXiv 1606.06031). A shadow copy of the table learns them; it is put in force where the questions
are answered better with it and held-out ones are not worse, both by a paired bootstrap over questions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quietreasoning.build import Loaded, open_run
from quietreasoning.config import UserError
from quietreasoning.data.config import build_task
from quietreasoning.data.example import Example
from quietreasoning.data.load import load_split
from quietreasoning.evaluate.config import EvalConfig
from quietreasoning.evaluate.controls import Arm
from quietreasoning.evaluate.harness import evaluate
from quietreasoning.evaluate.statistics import Difference, paired_bootstrap, paired_counts
from quietreasoning.memory.episodic import EpisodicStore
from quietreasoning.memory.generations import Generations, State
from quietreasoning.memory.journal import Entry
from quietreasoning.memory.knn_index import Show, quiet
from quietreasoning.memory.made import open_made
from quietreasoning.nn.product_key_memory import ProductKeyTable
from quietreasoning.workspace.consolidated import TABLE, generations_of, made_of
from quietreasoning.workspace.consolidation import (
    ConsolidationSettings,
    Loss,
    Overlay,
    apply,
    choose_rows,
    teach,
)
from quietreasoning.workspace.table_file import load_table, write_table

BACKGROUND = 8  # batches of other texts that say which rows are read by many
Teacher = Callable[[ProductKeyTable, Tensor, Sequence[Loss], Sequence[Loss], ConsolidationSettings], Overlay]


def consolidate(
    run: str | Path,
    store: Path,
    settings: ConsolidationSettings | None = None,
    *,
    questions: Path | None = None,
    show: Show = quiet,
    teacher: Teacher = teach,
) -> dict[str, Any]:
    """Promote what was hit often into the product-key table of a workspace run; what came of it.

    questions: JSONL of `prompt` and `answer` that the promoted texts should answer; without it the texts ask
    for their own last words. `accepted` is false where the check refused the shadow, and then nothing has
    changed.
    """
    settings = settings or ConsolidationSettings()
    loaded = open_run(run)
    table = _table(loaded)
    generations = generations_of(loaded.folder)
    with generations.alone() as state, open_made(store) as events:
        held = _settle(events, generations, state)
        entries = events.promotable(settings.min_hits, place=state.name)
        lessons = _lessons(loaded, entries)
        told = {"run": str(loaded.folder), "store": str(store), "promotable": len(entries)}
        told |= {"promoted": len(lessons), "left_out": len(entries) - len(lessons)}
        if not lessons:
            why = f"no entry has {settings.min_hits} hits and a last word that can be taught"
            return told | {"accepted": False, "why": why, "generation": state.current}
        asked = _questions(questions) or list(lessons.values())
        exams = {"asked": asked, "held_out": _held_out(loaded, settings.held_out)}
        show("questions before", 0, 1)
        before = {name: answered(loaded, rows) for name, rows in exams.items()}
        show("questions before", 1, 1)
        rows_U = _learn(loaded, table, list(lessons.values()), settings, teacher, show)
        with generations.made(state) as shadow:
            write_table(shadow / TABLE, table.slots, table.value_dim, table, show)
            load_table(loaded.method.backbone.model, shadow / TABLE)  # what would be served, to the byte
            show("questions after", 0, 1)
            after = {name: answered(loaded, rows) for name, rows in exams.items()}
            show("questions after", 1, 1)
            verdict = judge(before, after, settings)
            told |= {"rows": len(rows_U)} | verdict
            if verdict["accepted"]:
                about = made_of(loaded.checkpoint) | {"before": state.current, "figures": verdict}
                about["settings"] = settings.model_dump()
                about["entries"] = _others(generations, state, events) | {
                    events.journal.store: sorted({*held, *lessons})
                }
                state = generations.commit(shadow, state, about)
                _settle(events, generations, state)
    return told | {"generation": state.current}


def roll_back(run: str | Path, store: Path) -> dict[str, Any]:
    """The table before the last consolidation is in force again, and its entries can be promoted anew."""
    folder = Path(run)
    generations = generations_of(folder)
    if not generations.folder.is_dir():
        raise UserError(f"{run}: nothing was consolidated into this run, so nothing can be taken back")
    with generations.alone() as state, open_made(store) as events:
        about = generations.about(state.current)
        if state.current and events.journal.store not in about["entries"]:
            raise UserError(f"--store {store}: another store was consolidated into {run}. Give that one")
        gone = state.current
        state = generations.rollback(state)
        held = _settle(events, generations, state)
    return {
        "run": str(run),
        "taken_back": gone,
        "generation": state.current,
        "consolidated_entries": len(held),
    }


def judge(before: dict[str, str], after: dict[str, str], settings: ConsolidationSettings) -> dict[str, Any]:
    """Whether the shadow may stand: surely better on what it was taught, surely not worse elsewhere.

    before and after: a "1" or "0" a question of "asked" and of "held_out".
    """
    found = {name: compare(before[name], after[name]) for name in ("asked", "held_out")}
    wrong = before["asked"].count("0") / len(before["asked"])
    better = found["asked"].low > 0 and found["asked"].low >= settings.learned * wrong
    kept = found["held_out"].low >= -settings.tolerance
    figures: dict[str, Any] = {"accepted": better and kept, "why": "better where asked, not worse elsewhere"}
    if not kept:
        figures["why"] = f"held-out questions may have lost more than {settings.tolerance:g}"
    elif not better:
        figures["why"] = "what was promoted is not surely answered better"
    for name, gain in found.items():
        figures |= {f"{name}_questions": len(before[name]), f"{name}_before": share(before[name])}
        figures |= {f"{name}_after": share(after[name]), f"{name}_gain": [round(x, 4) for x in gain]}
    return figures


def compare(before: str, after: str) -> Difference:
    _, only_after, only_before, _ = paired_counts([c == "1" for c in after], [c == "1" for c in before])
    return paired_bootstrap(only_after, only_before, len(before))


def share(outcomes: str) -> float:
    return round(outcomes.count("1") / len(outcomes), 4)


def answered(loaded: Loaded, questions: Sequence[Example]) -> str:
    """One "1" or "0" a question: whether the run answers it, greedily, from its weights alone."""
    task = build_task(loaded.config.stages[-1].data)
    longest = max(len(one.answer) for one in loaded.encoder.encode_many(questions))  # more would be wrong
    limit = min(loaded.max_new_tokens, longest)
    config = EvalConfig(n=None, max_new_tokens=limit, controls=(), timing=0, samples=0)
    report = evaluate(
        [Arm(loaded.method, "run")],
        questions,
        task=task.name,
        scorer=task.scorer,
        encode_prompt=lambda example: loaded.encoder.encode(example).prompt,
        decode=loaded.encoder.text,
        config=config,
    )
    return report.outcomes["run"]


def _table(loaded: Loaded) -> ProductKeyTable:
    backbone = loaded.method.backbone
    if not backbone.is_workspace or "pkm" not in getattr(loaded.method.config, "features", ()):
        raise UserError(
            f"{loaded.folder}: has no product-key memory to write to. Give a run of method workspace with "
            "the feature pkm."
        )
    if build_task(loaded.config.stages[-1].data).text:
        raise UserError(
            f"{loaded.folder} learned running text, which asks nothing: no question could check what is "
            "promoted. Give a run that answers questions."
        )
    return backbone.model.model.table


def _settle(events: EpisodicStore, generations: Generations, state: State) -> list[int]:
    """Let the journal say what the table in force says; the entries it holds."""
    held = generations.about(state.current).get("entries", {}).get(events.journal.store, [])
    events.consolidate(state.name, held)
    return held


def _others(generations: Generations, state: State, events: EpisodicStore) -> dict[str, list[int]]:
    entries = generations.about(state.current).get("entries", {})
    return {name: ids for name, ids in entries.items() if name != events.journal.store}


def _lessons(loaded: Loaded, entries: Sequence[Entry]) -> dict[int, Example]:
    """Entry -> its exercise; entries whose last word this run cannot say have none."""
    lessons = {}
    for entry in entries:
        text = entry.text or loaded.encoder.text(list(entry.tokens))
        words = text.strip().rstrip(".").rsplit(maxsplit=1)
        if len(words) == 2:
            lesson = Example(f"entry-{entry.id}", words[0], (), (), words[1])
            try:
                loaded.encoder.encode(lesson)
            except UserError:  # a word that the tokenizer has not, or too long
                continue
            lessons[entry.id] = lesson
    return lessons


def _questions(path: Path | None) -> list[Example]:
    if path is None:
        return []
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        found = [
            Example(f"question-{number}", str(row["prompt"]), (), (), str(row["answer"]))
            for number, row in enumerate(rows)
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--questions {path}: cannot be read ({error!r:.80}). Give JSONL with prompt and answer a row."
        ) from error
    if not found or not all(example.answer for example in found):
        raise UserError(f"--questions {path}: holds no question, or one without an answer. Give both.")
    return found


def _held_out(loaded: Loaded, count: int) -> Sequence[Example]:
    data = loaded.config.stages[-1].data
    found, _ = load_split(build_task(data), "valid", data, loaded.encoder, n=count)
    if not len(found):
        raise UserError(f"{loaded.folder}: its data have no validation rows, so no harm could be seen")
    return found


def _learn(
    loaded: Loaded,
    table: ProductKeyTable,
    lessons: Sequence[Example],
    settings: ConsolidationSettings,
    teacher: Teacher,
    show: Show,
) -> Tensor:
    """Teach the table in memory; the rows that changed."""
    method, stage = loaded.method, loaded.config.stages[-1]
    learning = [p for p in method.parameters() if p.requires_grad]
    method.requires_grad_(False).eval()
    rows = loaded.builder.batches(stage, method.backbone.context, [])
    size = settings.batch_size
    new = [
        _loss(loaded, loaded.encoder.batch(lessons[at : at + size])) for at in range(0, len(lessons), size)
    ]
    others = [_loss(loaded, rows.batch_at(step)) for step in range(max(BACKGROUND, settings.steps))]
    try:
        show("learning", 0, 1)
        with torch.enable_grad():
            rows_U = choose_rows(table, new, others[:BACKGROUND], settings.rows_per_entry * len(lessons))
            overlay = teacher(table, rows_U, new, others, settings)
        apply(table, overlay)
        show("learning", 1, 1)
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
    return overlay.rows_U


def _loss(loaded: Loaded, batch: Any) -> Loss:
    batch, method = batch.to(loaded.device), loaded.method
    tokens = max(method.units(batch).get("token", 0), 1)

    def loss() -> Tensor:
        terms = method(batch).terms
        if "lm" not in terms:
            raise UserError(f"{loaded.folder}: its last stage has weights.lm=0 and predicts no token")
        return terms["lm"].total / tokens

    return loss
