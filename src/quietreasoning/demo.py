"""`quiet demo`: the whole story on a laptop, and an exit code that says whether it held.

A tiny model answers k-hop questions directly (and fails), by a visible chain (and succeeds), and by
latent thoughts and slots, without a visible token. Every quiet arm stands beside its controls.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from quietreasoning.build import Loaded, Resolved, open_run, resolve
from quietreasoning.config import UserError
from quietreasoning.data.config import build_task
from quietreasoning.evaluate.config import EvalConfig
from quietreasoning.evaluate.controls import Arm, arms_of
from quietreasoning.evaluate.rows import Report, pool, save, unambiguous
from quietreasoning.evaluate.table import table
from quietreasoning.proof import Exam
from quietreasoning.report.build import report
from quietreasoning.run import train_run
from quietreasoning.run_config import changed
from quietreasoning.train.signals import StopFlag

QUIET = ("continuous", "slots")
HOPS = 4
LONG, MIXED = f"pointer, {HOPS} hops", f"pointer, 1 to {HOPS} hops"


def demo(seeds: Sequence[int] = (0,), out: str = "runs/demo") -> tuple[int, list[dict[str, Any]]]:
    """Train, evaluate, report and talk. Returns 0, or 1 where a claim of `claims` failed, and the rows."""
    console, folder, began = Console(), Path(out), time.monotonic()
    reports: list[Report] = []
    runs: dict[str, Loaded] = {}
    seconds = 0.0
    for seed in seeds:
        started = time.monotonic()
        runs = train_all(folder / f"seed-{seed}", seed, console)
        seconds += time.monotonic() - started
        found = examine_all(runs, seed)
        save(runs["slots"].folder / "eval" / "rows.json", found)
        reports += found
    rows = [row for one in reports for row in one.rows]
    for title in (LONG, MIXED):
        shown = [row for row in rows if row["task"] == title and row["effort"] is None]
        console.print(table([row for row in shown if row["kind"] != "shortcut"], title=title))
    page = report([run for seed in seeds for run in run_folders(folder, seed)], folder / "report.html")
    broken = check(rows, console)
    converse(runs, console)
    console.print(
        f"\nReport with plots: {page}\nTrained for {seconds:.0f} s, all in {time.monotonic() - began:.0f} s. "
        f"Talk to it: quiet chat {runs['slots'].folder}",
        highlight=False,
    )
    return int(broken), unambiguous(rows)


def run_folders(folder: Path, seed: int) -> list[Path]:
    return [folder / f"seed-{seed}" / name for name in ("plain", "cot", *QUIET)]


def train_all(folder: Path, seed: int, console: Console) -> dict[str, Loaded]:
    """Four runs: direct and chain from scratch, the quiet two from the chain. Finished ones are kept."""
    runs = {}
    for name in ("plain", "cot", *QUIET):
        console.rule(f"{name}, seed {seed}", align="left")
        resolved = resolve(f"{name}/pointer", [f"seed={seed}", "train.eval_every=0"], str(folder / name))
        if name in QUIET:
            resolved = after_chain(resolved, folder / "cot")
        train_run(resolved, doctor=True)
        runs[name] = open_run(folder / name)
    return runs


def after_chain(resolved: Resolved, chain: Path) -> Resolved:
    """The same recipe without its first stage, from a run that has trained it already."""
    values = resolved.config.model_dump(mode="json")
    if values["stages"][0]["method"]["name"] != "cot":
        raise UserError(f"recipe {resolved.recipe}: its first stage must be cot, for the demo trains it once")
    return replace(resolved, config=changed(resolved.config, init=str(chain), stages=values["stages"][1:]))


def examine_all(runs: dict[str, Loaded], seed: int) -> list[Report]:
    """Fresh questions: all arms and controls on the longest, every number of loops on mixed ones."""
    slots, stop = runs["slots"], StopFlag()
    data = slots.config.stages[-1].data.model_dump(mode="json")
    config = EvalConfig(split="test", n=500, batch_size=250, max_new_tokens=32)
    arms = [Arm(runs[name].method, name) for name in ("plain", "cot")]
    quiet = {name: runs[name].method for name in QUIET}
    with stop.listening():
        long = Exam(
            type(slots.config.stages[-1].data).model_validate(
                data | {"options": data["options"] | {"hops": HOPS}}
            ),
            config,
            slots.encoder,
            seed,
            LONG,
        )
        corrupted = [arm for name, method in quiet.items() for arm in arms_of(method, name, config.controls)]
        efforts = [Arm(method, name, effort=e) for name, method in quiet.items() for e in range(1, 7)]
        short = EvalConfig(split="test", n=400, batch_size=200, max_new_tokens=32, timing=0, samples=0)
        mixed = Exam(slots.config.stages[-1].data, short, slots.encoder, seed, MIXED)
        return [
            long.ask([*arms, *corrupted], stop, shortcuts=True),
            mixed.ask([*arms, *corrupted, *efforts], stop),
        ]


def claims(rows: Sequence[dict[str, Any]]) -> list[tuple[str, bool]]:
    """What the demo promises, with the figures found, and whether each holds."""
    pooled = {(row["method"], row["control"]): row for row in pool(r for r in rows if r["task"] == LONG)}
    direct, chain = pooled["plain", None], pooled["cot", None]
    found = [
        (f"direct answer {direct['accuracy']:.1%}, at most 60 %", direct["accuracy"] <= 0.6),
        (f"visible chain {chain['accuracy']:.1%}, at least 98 %", chain["accuracy"] >= 0.98),
    ]
    for name, least in zip(QUIET, (3, 4), strict=True):
        row = pooled[name, None]
        times = chain["passes"] / row["passes"]
        found.append((f"{name} {row['accuracy']:.1%}, at least 95 %", row["accuracy"] >= 0.95))
        found.append((f"{name} writes {row['visible_tokens']:g} thinking tokens", row["visible_tokens"] == 0))
        found.append((f"{name} takes {times:.1f}x fewer passes, at least {least}x", times >= least))
        for (method, control), row in pooled.items():
            if method == name and control is not None:
                text = f"{name} with {control} thoughts {row['accuracy']:.1%}, no better than direct"
                found.append((text, row["accuracy"] <= direct["high"]))
    return found


def check(rows: Sequence[dict[str, Any]], console: Console) -> bool:
    """Print every claim; True if one failed."""
    console.rule("claims", align="left")
    results = claims(rows)
    for text, holds in results:
        console.print(f"  {'holds ' if holds else 'FAILED'}  {text}", highlight=False, markup=False)
    return not all(holds for _, holds in results)


def converse(runs: dict[str, Loaded], console: Console) -> None:
    """The same question to every arm."""
    run = runs["slots"]
    data = run.config.stages[-1].data
    example = next(e for e in build_task(data).split("test", 40) if e.meta["num_steps"] == HOPS)
    console.rule("a conversation", align="left")
    console.print(f"you         {example.prompt}", highlight=False, markup=False)
    for name, loaded in runs.items():
        reply = loaded.method.generate(loaded.encoder.prompts([example]).to(loaded.device), max_new_tokens=32)
        spent = reply.visible_tokens[0]
        thought = " ".join(loaded.encoder.text(reply.tokens[0][:spent]).replace("\n", " ; ").split())
        said = f"(thinks: {thought}) " if spent else ""
        verdict = "right" if loaded.encoder.text(reply.answers[0]) == example.answer else "wrong"
        console.print(
            f"{name:<11} {said}{loaded.encoder.text(reply.answers[0])}   "
            f"[{verdict}; {spent} thinking tokens, {reply.passes[0]} passes]",
            highlight=False,
            markup=False,
        )
