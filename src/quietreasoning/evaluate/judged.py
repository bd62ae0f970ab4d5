"""How a judgement is kept as JSON and told on the terminal."""

from __future__ import annotations

import json
import os
from pathlib import Path

from quietreasoning.evaluate.judging import FAIL, OPEN, Judgement, Measured


def save(path: Path, judgement: Judgement) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".tmp-{path.name}")
    content = json.dumps(judgement.as_dict(), indent=1, ensure_ascii=False, allow_nan=False)
    draft.write_text(content, encoding="utf-8")
    os.replace(draft, path)


def show(judgement: Judgement, kept: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    about = judgement.about
    title = f"gate {judgement.gate}: {about['run']}, {about['task']} ({about['split']})"
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    made.add_column("test")
    for heading in ("value [95 %]", "needs", "n"):
        made.add_column(heading, justify="right", no_wrap=True)
    made.add_column("verdict")
    for trial in judgement.trials:
        made.add_row(trial.name, "", "", "", trial.verdict, style="bold")
        for figure in trial.figures:
            sign = ">=" if figure.inclusive else ">"
            needs = "" if figure.needs is None else f"{sign} {figure.needs:g}"
            made.add_row(
                f"  {figure.what}", written(figure.measured), needs, str(figure.n), figure.verdict or ""
            )
        made.add_section()
    console = Console()
    console.print(made)
    for trial in judgement.trials:
        notes = [f"{figure.what}: {figure.note}" for figure in trial.figures if figure.note]
        for note in [*notes, *([trial.note] if trial.note else [])]:
            console.print(f"{trial.name}: {note}", highlight=False)
    console.print(summary(judgement), highlight=False)
    console.print(f"rows: {kept}", highlight=False)


def written(measured: Measured) -> str:
    value, low, high = measured
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def summary(judgement: Judgement) -> str:
    """`gate theater: fail (T2 ablation: fail).`"""
    wrong = [f"{trial.name}: {trial.verdict}" for trial in judgement.trials if trial.verdict in (FAIL, OPEN)]
    why = f" ({'; '.join(wrong)})" if wrong else ""
    more = " A larger --n may settle it." if judgement.verdict == OPEN else ""
    return f"gate {judgement.gate}: {judgement.verdict}{why}.{more}"
