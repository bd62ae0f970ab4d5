"""The part of the page about training: losses, what the method measured of itself, stage by stage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from quietreasoning.report import curves
from quietreasoning.report import html as h
from quietreasoning.report.runs import Run

CURVES = "Means of neighbouring steps. Dotted: a new stage begins; the numbers above are the stages'."
METRICS = "What the method reports of itself, a mean over each step's batch."
HISTOGRAMS = (
    "Share of the values in each of the equal bins from 0 to 1, over the later half of a stage. Dashed: mean."
)


def stage_names(run: Run) -> str:
    """The stages of a run by number; "" where there is one."""
    names = curves.stages_of([run])
    said = ", ".join(f"{number} {name}" for number, name in enumerate(names, 1))
    return f'<p class="soft">Stages: {h.esc(said)}.</p>' if len(names) > 1 else ""


def training_section(runs: Sequence[Run]) -> str:
    parts = []
    by_recipe: dict[str, list[list[Run]]] = defaultdict(list)  # recipe -> runs that differ by seed alone
    for run in sorted(runs, key=lambda run: run.group):
        alike = next((own for own in by_recipe[run.group] if own[0].but_seed == run.but_seed), None)
        if alike is None:
            by_recipe[run.group].append(alike := [])
        alike.append(run)
    for own in (own for groups in by_recipe.values() for own in groups):
        name = own[0].group
        if len(by_recipe[name]) > 1:
            name += f" ({', '.join(run.name for run in own)})"
        parts.append(f"<h3>{h.esc(name)}</h3>")
        parts.append(stage_names(own[0]))
        picture = curves.training_curves(own)
        parts.append(
            h.figure(picture, CURVES) or h.absent("No training log.", f"quiet train RECIPE out={own[0].path}")
        )
        parts.append(h.figure(curves.metrics(own), METRICS))
        parts.append(h.figure(curves.histograms(own), HISTOGRAMS))
    return h.section("training", "Training", *parts)
