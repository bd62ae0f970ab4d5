"""`python experiments/consolidation_encyclopaedia.py [--seeds 0 1 2]`: facts that are asked for often become
known by heart.

A workspace model with a product-key memory learns a made-up encyclopaedia and misses most facts that it was
told once. Some of those stand in an episodic store, each told in three wordings, and are asked for until
they have 20 hits. Then `quiet index consolidate`: questions in wordings that neither training nor the store
has, before and after; all other questions of the test split, before and after; and the way back. First a bad
promotion, random values, which must be refused. Control: the same steps on the same rows of the table, with
the run's training rows alone; these tell each of the facts once more.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path

import numpy as np
import torch
from arms import arm, trained
from product_keys_encyclopaedia import RECIPE

from quietreasoning.build import Loaded, open_run
from quietreasoning.data.config import build_task
from quietreasoning.data.example import Example
from quietreasoning.data.tasks.encyclopaedia import STATEMENTS
from quietreasoning.evaluate.statistics import Interval, seed_interval
from quietreasoning.indices.consolidate import answered, compare, consolidate, roll_back, share
from quietreasoning.indices.episodic import make_episodic
from quietreasoning.memory.made import open_made
from quietreasoning.workspace.consolidation import ConsolidationSettings, Overlay, scale_of_values, teach

SIZES = [
    *("data.options.facts=2000", "data.options.mentions=8000", "train.batch_size=128"),
    *("stages.trunk.train.steps=100", "stages.memory.train.steps=100"),
]
FACTS, HITS, WORDINGS = 60, 20, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/consolidation_encyclopaedia"))
    parser.add_argument("--set", nargs="*", default=[], help="settings of consolidation, for exploring")
    parser.add_argument("--split", choices=("valid", "test"), default="test", help="what it is judged by")
    args = parser.parse_args()
    settings = ConsolidationSettings(**{name: json.loads(v) for name, v in (s.split("=") for s in args.set)})
    found: dict[str, list] = {}
    for seed in args.seeds:
        began = time.monotonic()
        for name, (before, after) in one_seed(args.out / f"seed-{seed}", seed, settings, args.split).items():
            gain = compare(before, after)
            found.setdefault(name, []).append((share(before), share(after), gain))
            print(f"  {name}: {share(before):.1%} -> {share(after):.1%} of {len(before)}", flush=True)
        print(f"seed {seed}: {time.monotonic() - began:.0f} s", flush=True)
    for name, rows in found.items():
        befores, afters, gains = zip(*rows, strict=True)
        low, high = seed_interval([g.value for g in gains], [Interval(g.low, g.high) for g in gains])
        mean = [100 * sum(values) / len(values) for values in (befores, afters)]
        print(
            f"{name}: {mean[0]:.1f} -> {mean[1]:.1f}, {mean[1] - mean[0]:+.1f} [{100 * low:+.1f}, "
            f"{100 * high:+.1f}] points"
        )


def one_seed(out: Path, seed: int, settings: ConsolidationSettings, split: str) -> dict[str, tuple[str, str]]:
    """What is asked -> (answers before, answers after)."""
    run = trained(arm(RECIPE, out, [f"seed={seed}", f"data.seed={seed}", *SIZES]))
    folder, store = out / "consolidation", out / "consolidation" / "store"
    folder.mkdir(exist_ok=True)
    if (out / "pkm").exists():
        raise SystemExit(f"{out}/pkm is there already; remove it and {folder} to begin anew")
    questions = list(build_task(run.config.stages[-1].data).split(split))
    rare = [q for q in questions if q.meta["popularity"] == 1]
    missed = [q for q, right in zip(rare, answered(run, rare), strict=True) if right == "0"]
    draw = np.random.default_rng(seed)
    asked = [missed[i] for i in sorted(draw.choice(len(missed), FACTS, replace=False))]
    others = [q for q in questions if q not in asked]
    remember(run, asked, store, draw)

    bad = consolidate(out, store, settings, teacher=random_values)
    assert not bad["accepted"]
    print(f"  random values: refused, {bad['why']}: {bad['asked_gain']}, held out {bad['held_out_gain']}")
    found = {}
    before = {"asked": answered(run, asked), "others": answered(run, others)}
    any_gain = settings.model_copy(update={"learned": 0.0})
    for label, teacher, check in (("", teach, settings), (" (training rows alone)", rehearsed, any_gain)):
        told = consolidate(out, store, check, teacher=teacher)
        print(f"  {label} {json.dumps(told)}", flush=True)
        held = open_run(out)
        for name, rows in (("asked", asked), ("others", others)):
            found[name + label] = (before[name], answered(held, rows))
        if told["accepted"]:
            roll_back(out, store)
    back = open_run(out)
    again = {"asked": answered(back, asked), "others": answered(back, others)}
    assert again == before and digest(back) == digest(run), "the way back leads elsewhere"
    return found


def remember(run: Loaded, asked: list[Example], store: Path, draw: np.random.Generator) -> None:
    """A store of the facts in some wordings, asked until each has its hits."""
    texts = [
        STATEMENTS[i].format(entity=q.meta["entity"], relation=q.meta["relation"]) + " " + q.answer
        for q in asked
        for i in draw.choice(len(STATEMENTS), WORDINGS, replace=False)
    ]
    rows = store.parent / "events.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    np.save(store.parent / "vectors.npy", draw.normal(size=(len(texts), 64)).astype(np.float32))
    make_episodic(rows, store, "random directions", vectors=store.parent / "vectors.npy")
    vectors = np.load(store.parent / "vectors.npy")
    with open_made(store) as events:
        for _ in range(HITS):
            events.query(vectors)


def random_values(table, rows_U, new, others, settings) -> Overlay:
    """A bad promotion: noise as loud as the memory, in rows that were chosen rightly."""
    overlay = Overlay(table, rows_U)
    with torch.no_grad():
        overlay.change_UV.normal_(std=3 * scale_of_values(table), generator=torch.Generator().manual_seed(0))
    return overlay


def rehearsed(table, rows_U, new, others, settings) -> Overlay:
    """The same steps on the same rows, without anything new."""
    return teach(table, rows_U, others, others[1:], settings)


def digest(run: Loaded) -> str:
    values = run.method.backbone.model.model.table.values.detach().numpy()
    return hashlib.sha256(values.tobytes()).hexdigest()


if __name__ == "__main__":
    main()
