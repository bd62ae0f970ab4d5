"""`python experiments/product_keys_encyclopaedia.py [--seeds 0 1 2]`: recall of rare facts with a memory.

Three arms go on from one trunk: with a product-key memory; without it, the same number of steps; and without
it at equal FLOPs, which is more steps. Questions are those of the test split, in templates in which training
never asks the fact. Control: the memory's values dealt out to other slots. A seed is one world and one set of
weights; the intervals of differences are paired, the wider of Student's t over seeds and resampled questions.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from arms import arm, asked, flops_per_step, fresh, over_seeds, parameters, trained

from quietreasoning.build import Loaded, Resolved
from quietreasoning.data.config import build_task
from quietreasoning.evaluate.controls import Arm
from quietreasoning.evaluate.statistics import Interval, paired_bootstrap, seed_interval
from quietreasoning.run_config import changed

RECIPE = "product_keys_encyclopaedia.yaml"
BINS = ("rare: told 1-4", "told 1", "told 2-4", "told 5-16", "all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/product_keys_encyclopaedia"))
    parser.add_argument("--split", choices=("valid", "test"), default="test")
    parser.add_argument("--set", nargs="*", default=[], help="further settings of every arm, for exploring")
    args = parser.parse_args()
    found: dict[str, list[str]] = {}
    groups: list[dict[str, list[int]]] = []
    for seed in args.seeds:
        began = time.monotonic()
        outcomes, said, asked_in = one_seed(args.out / f"seed-{seed}", seed, args.split, args.set)
        groups.append(asked_in)
        for name, line in outcomes.items():
            found.setdefault(name, []).append(line)
        print(f"seed {seed}, {time.monotonic() - began:.0f} s: {json.dumps(said)}", flush=True)
        rare = {name: share(line, asked_in[BINS[0]]) for name, line in outcomes.items()}
        print(f"  {BINS[0]}: " + ", ".join(f"{name} {value:.1%}" for name, value in rare.items()), flush=True)
        kept = {"split": args.split, "seeds": args.seeds, "outcomes": found, "groups": groups, "last": said}
        (args.out / f"{args.split}.json").write_text(json.dumps(kept))
    table(found, groups)


def one_seed(
    out: Path, seed: int, split: str, more: Sequence[str]
) -> tuple[dict[str, str], dict[str, Any], dict[str, list[int]]]:
    """Arm -> right or wrong for each question; what the arms cost; group -> its questions."""
    both = arm(RECIPE, out / "memory", [f"seed={seed}", f"data.seed={seed}", *more])
    first, second = (stage.model_dump(mode="json") for stage in both.config.stages)
    start = alone(both, out / "trunk", first)
    trained(start)
    memory = alone(both, out / "memory", second, start)
    second["method"]["features"], second["optim"]["lr_scale"] = [], {}
    plain = alone(both, out / "plain", second, start)
    costs = {"memory": flops_per_step(memory), "plain": flops_per_step(plain)}
    steps = second["train"]["steps"]
    second["train"]["steps"] = round(steps * costs["memory"] / costs["plain"])
    longer = alone(both, out / "longer", second, start)

    run = trained(memory)
    outcomes = {"memory": answers(run, "memory", split)}
    outcomes["memory, values dealt anew"] = answers(dealt_anew(run), "memory", split)
    outcomes["plain, equal steps"] = answers(trained(plain), "plain", split)
    outcomes["plain, equal FLOPs"] = answers(trained(longer), "plain", split)
    said = {
        "GFLOP a step": {name: round(value / 1e9, 3) for name, value in costs.items()},
        "steps": [first["train"]["steps"], steps, second["train"]["steps"]],
        "parameters": {"memory": parameters(fresh(memory)[0]), "plain": parameters(fresh(plain)[0])},
    }
    return outcomes, said, groups_of(memory, split)


def alone(both: Resolved, out: Path, stage: dict[str, Any], start: Resolved | None = None) -> Resolved:
    """One stage as a run, from the trunk that `start` left."""
    init = None if start is None else str(start.out)
    return replace(both, config=changed(both.config, stages=[stage], init=init, out=str(out)))


def answers(run: Loaded, label: str, split: str) -> str:
    return asked(run, [Arm(run.method, label)], split, 256).outcomes[label]


def dealt_anew(run: Loaded) -> Loaded:
    with torch.no_grad():
        values = run.method.body.table.values
        values.copy_(values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0))])
    return run


def groups_of(resolved: Resolved, split: str) -> dict[str, list[int]]:
    task = build_task(resolved.config.stages[-1].data)
    found: dict[str, list[int]] = {name: [] for name in BINS}
    for at, example in enumerate(task.split(split)):
        names = ["all", task.group(example), *([BINS[0]] if example.meta["rare"] else [])]
        for name in names:
            if name in found:
                found[name].append(at)
    return found


def share(line: str, items: list[int]) -> float:
    return sum(line[i] == "1" for i in items) / len(items)


def table(found: dict[str, list[str]], groups: list[dict[str, list[int]]]) -> None:
    print(f"\n{'per cent right, mean of seeds':<28}" + "".join(f"{name:>18}" for name in BINS))
    for name, lines in found.items():
        cells = []
        for group in BINS:
            shares = [100 * share(line, g[group]) for line, g in zip(lines, groups, strict=True)]
            cells.append(f"{over_seeds(shares)[0]:>18.1f}")
        print(f"{name:<28}" + "".join(cells))
    for name in found:
        if name != "memory":
            cells = [difference(found["memory"], found[name], groups, group) for group in BINS]
            print(
                f"{'memory - ' + name:<36}" + "  ".join(f"{g}: {c}" for g, c in zip(BINS, cells, strict=True))
            )


def difference(a: list[str], b: list[str], groups: list[dict[str, list[int]]], group: str) -> str:
    """Points, with an interval."""
    found = []
    for one, other, places in zip(a, b, groups, strict=True):
        pairs = [(one[i], other[i]) for i in places[group]]
        found.append(paired_bootstrap(pairs.count(("1", "0")), pairs.count(("0", "1")), len(pairs)))
    low, high = seed_interval([d.value for d in found], [Interval(d.low, d.high) for d in found])
    mean = sum(d.value for d in found) / len(found)
    return f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


if __name__ == "__main__":
    main()
