"""`report(run_dirs, out)` -> one HTML file that needs nothing else; what is missing is named."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quietreasoning.config import UserError
from quietreasoning.evaluate.rows import Report, Row, pool
from quietreasoning.evaluate.table import (
    accuracy,
    caption,
    chain_passes,
    figure,
    is_text,
    label,
    sample_size,
    saving,
    text_columns,
)
from quietreasoning.report import charts, findings
from quietreasoning.report import html as h
from quietreasoning.report.caches import caches_table
from quietreasoning.report.groups import groups_part
from quietreasoning.report.identity import runs_section
from quietreasoning.report.leaks import leakage_not_shown, leakage_shown, leakage_table
from quietreasoning.report.runs import Run, merge, read_run
from quietreasoning.report.style import CSS
from quietreasoning.report.training import training_section

MAX_SAMPLES = 4
MAX_TESTS = 15  # more are folded away


def report(run_dirs: Sequence[Path | str], out: Path | str) -> Path:
    """Write the page for one run or several and return its path; runs of one name are seeds of one recipe.

    Raises UserError where a folder holds no run.
    """
    if not run_dirs:
        raise UserError("quiet report needs at least one run folder")
    runs = [read_run(Path(path)) for path in run_dirs]
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".tmp-{out.name}")
    draft.write_text(page(runs), encoding="utf-8")
    os.replace(draft, out)
    return out


def page(runs: Sequence[Run]) -> str:
    """The whole page."""
    reports = merge(runs)
    by_task: dict[tuple[str, str], list[Report]] = defaultdict(list)
    for found in reports:
        by_task[found.task, found.split].append(found)
    sections = [
        task_section(f"task-{i}", task, split, found, runs, hint=len(by_task) == 1)
        for i, ((task, split), found) in enumerate(by_task.items())
    ]
    links = [
        *((f"task-{i}", f"{task} ({split})") for i, (task, split) in enumerate(by_task)),
        ("training", "Training"),
        ("runs", "Runs"),
    ]
    if not reports:
        command = f"quiet eval {runs[0].path}"
        sections.append(h.section("results", "Results", h.absent("No evaluation yet.", command)))
    title = "Quiet Reasoning: " + ", ".join(dict.fromkeys(run.group for run in runs))
    nav = " ".join(f'<a href="#{anchor}">{h.esc(name)}</a>' for anchor, name in links)
    parts = [
        f"<h1>{h.esc(title)}</h1>",
        f'<p class="soft">{len(runs)} run{"s" if len(runs) > 1 else ""}; greedy decoding, one scorer.</p>',
        f"<nav>{nav}</nav>",
        *sections,
        training_section(runs),
        runs_section(runs),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{h.esc(title)}</title><style>{CSS}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def figure_or_hint(title: str, figure: str, absent: str, hint: bool) -> list[str]:
    """A picture under its heading; else, on a page where no other task has one, how to make it."""
    return [f"<h3>{title}</h3>", figure or absent] if figure or hint else []


def task_section(
    anchor: str, task: str, split: str, reports: Sequence[Report], runs: Sequence[Run], hint: bool = True
) -> str:
    pooled = pool(row for found in reports for row in found.rows)
    kept = [own for run in runs for own in run.reports if (own.task, own.split) == (task, split)]
    asked = next((run for run in runs if any(own.task == task for own in run.reports)), runs[0])
    command = f"quiet eval {asked.path}"
    if is_text(pooled):
        return text_section(anchor, task, split, reports, pooled)
    return h.section(
        anchor,
        f"{task} ({split} split)",
        box(reports, pooled),
        "<h3>Results</h3>",
        results_table(pooled),
        "<h3>Accuracy against cost</h3>",
        h.figure(charts.accuracy_against_cost(pooled), COST) or h.absent("No costs were measured.", command),
        *figure_or_hint(
            "Accuracy by number of steps",
            h.figure(charts.accuracy_by_steps(pooled), STEPS),
            h.absent("All problems need the same number of steps."),
            hint,
        ),
        *groups_part(pooled),
        *figure_or_hint(
            "Depth turning into reasoning steps",
            h.figure(charts.depth_into_steps(pooled), DEPTH),
            no_depth(pooled, command),
            hint,
        ),
        "<h3>Controls</h3>",
        h.figure(charts.controls(pooled), CONTROLS)
        or h.absent("No controls were evaluated.", f"{command} --controls zero,shuffle,filler"),
        *figure_or_hint("Key/value caches", caches_table(kept, pooled), "", hint=False),
        *figure_or_hint("Leakage", leakage_table(pooled), "", hint=False),
        "<h3>Paired comparisons</h3>",
        comparisons_table(reports)
        or h.absent("Fewer than two arms were evaluated.", f"{command} 'eval.baselines=[RUN]'"),
        "<h3>Samples</h3>",
        samples(reports) or h.absent("No samples were kept.", f"{command} eval.samples=3"),
    )


def text_section(anchor: str, task: str, split: str, reports: Sequence[Report], pooled: Sequence[Row]) -> str:
    """Running text has no answers: how well it was predicted, and no more."""
    rows = [
        (
            "own",
            [
                h.esc(row["method"]),
                *(h.esc(cell(row)) for cell in text_columns().values()),
                h.esc(sample_size(row)),
            ],
        )
        for row in pooled
    ]
    headings = ["arm", *(" ".join(name.split()) for name in text_columns()), "windows x seeds"]
    return h.section(
        anchor,
        f"{task} ({split} split)",
        f'<div class="box"><h3>What is shown</h3>{h.bullets(findings.predicted(pooled))}'
        f"<h3>What is not</h3>{h.bullets(findings.about_text(reports))}</div>",
        "<h3>Results</h3>",
        h.table(headings, rows, figures=range(1, len(headings)), caption=caption(pooled)),
    )


def no_depth(pooled: Sequence[Row], command: str) -> str:
    if any(row["kind"] == "quiet" for row in pooled):
        return h.absent("No method was tried at several efforts.", f"{command} 'eval.efforts=[1,2,3,4]'")
    return h.absent("No method here thinks in loops or latents.")


COST = (
    "Up and to the left is better. Bars: the interval of the table. Thin lines: the same method at other "
    "efforts. A pass is one step of the model that cannot start before the last one ended."
)
STEPS = "Bars: Wilson 95 % over the items of all seeds; points are set apart sideways where arms meet."
DEPTH = (
    "One line for each number of steps that a problem needs. Where a line rises at as many loops as the "
    "problem has steps, depth is what turns into reasoning."
)
CONTROLS = (
    "Full colour: the method as trained. Pale: its thoughts corrupted at test time. A control that stays as "
    "high as the method says that the thought is not used."
)


def box(reports: Sequence[Report], pooled: Sequence[Row]) -> str:
    shown = [*findings.shown(reports, pooled), *leakage_shown(pooled)]
    not_shown = [*leakage_not_shown(pooled), *findings.not_shown(reports, pooled)]
    parts = ["<h3>What is shown</h3>", h.bullets(shown)] if shown else []
    parts += ["<h3>What is not</h3>", h.bullets(not_shown)]
    return f'<div class="box">{"".join(parts)}</div>'


def results_table(pooled: Sequence[Row]) -> str:
    chain = chain_passes(pooled)
    direct = next((row for row in charts.as_trained(pooled) if row["kind"] == "direct"), None)
    inner = {True: "faint", False: "own"}
    rows = []
    for row in pooled:
        nested = row["control"] is not None or row["effort"] is not None or row.get("cache") is not None
        cells = [
            h.esc(label(row).strip()),
            h.interval_bar(row, direct),
            h.esc(accuracy(row)),
            h.esc(sample_size(row)),
            *map(h.esc, (figure(row["visible_tokens"]), figure(row["passes"]), saving(row, chain))),
            *map(h.esc, (figure(row["ms"]), figure(row["ms_batched"]), row["batch"] or "-")),
        ]
        rows.append((inner[nested], cells))
    headings = [
        "arm",
        "0 to 100 %",
        "accuracy % [95 %]",
        "n x seeds",
        "visible tokens",
        "passes",
        "vs. chain",
    ]
    headings += ["ms, batch 1", "ms, batched", "batch"]
    note = f"{caption(pooled)} @: effort (loops or latents); +: control; dashed: the direct answer."
    return h.table(headings, rows, figures=range(2, 10), bars=(1,), caption=note)


def comparisons_table(reports: Sequence[Report]) -> str:
    """Methods against each other in the open, tests of the controls folded away."""
    found = findings.comparisons(reports)
    if not found:
        return ""
    mains = [test for test in found if test["about"] in ("methods", "cache")]
    controls = [test for test in found if test["about"] == "control"]
    title = f"<summary>Tests of the controls ({len(controls)})</summary>"
    folded = f"<details>{title}{tests_table(controls)}</details>"
    table = tests_table(mains) if mains else ""
    if len(mains) > MAX_TESTS:
        table = f"<details><summary>Every two methods ({len(mains)})</summary>{table}</details>"
    return table + (folded if controls else "")


def tests_table(tests: Sequence[dict[str, Any]]) -> str:
    several = any(test["seeds"] > 1 for test in tests)
    rows = [
        (
            "",
            [
                h.esc(test["a"]),
                h.esc(test["b"]),
                f"{100 * test['difference']:+.1f} [{100 * test['low']:+.1f}, {100 * test['high']:+.1f}]",
                f"{test['only_a']} / {test['only_b']}",
                h.esc(p_value(max(test["p"]))),
                h.esc(test["reading"]),
            ],
        )
        for test in tests
    ]
    headings = ["a", "b", f"a - b, points [{'range over seeds' if several else '95 %'}]"]
    headings += ["right: only a / only b", "largest p" if several else "p", "reading"]
    how = "mean over seeds" if several else "paired bootstrap"
    note = f"The same items for both arms. Difference: {how}; p: McNemar, mid-p, in each seed."
    return h.table(headings, rows, figures=(2, 3, 4), caption=note, name="tests")


def p_value(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.2f}"


def samples(reports: Sequence[Report]) -> str:
    """The first prompts of the first seed that kept any, with what every arm wrote."""
    kept = next((report.samples for report in reports if report.samples), ())
    by_prompt: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for sample in kept:
        by_prompt[sample["id"]].append(sample)
    blocks = []
    for written in list(by_prompt.values())[:MAX_SAMPLES]:
        rows = [
            (
                "",
                [
                    h.esc(sample["arm"]),
                    f"<pre>{h.esc(h.short(sample['written']))}</pre>",
                    '<span class="right">right</span>'
                    if sample["correct"]
                    else '<span class="wrong">wrong</span>',
                ],
            )
            for sample in written
        ]
        first = written[0]
        blocks.append(
            f"<p class='soft'>{h.esc(first['id'])}</p><pre>{h.esc(h.short(first['prompt']))}</pre>"
            f"{gold(h.short(first['gold'], 600))}"
            + h.table(["arm", "what it wrote", ""], rows, name="samples")
        )
    return "\n".join(blocks)


def gold(text: str) -> str:
    """Lines stay lines: some answers are programs."""
    if "\n" in text:
        return f"<p>Gold:</p><pre>{h.esc(text)}</pre>"
    return f"<p>Gold: <code>{h.esc(text)}</code></p>"
