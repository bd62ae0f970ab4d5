"""An instruction baked into the weights, beside plain fine-tuning on the same questions.

    python experiments/thoughts_bake.py --seeds 0 1 2 --out runs/thoughts-bake

From one tiny model that thinks when told to and answers at once when not (`told`, the first stage of
`thoughts/tiny`): `bake`, its second stage, and `fine-tune`, the same questions, steps, batches and rates, but
on the gold thoughts and without the instruction. Both are put through the baking gate on the same test
questions: divergence from the told model on its own trajectories, valid thoughts, usage, fitting strategies.
Beside it right answers, and nats a token of three texts that were not trained on: gold thoughts without the
instruction, gold thoughts behind it, and answers given at once.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from arms import remade, said, shown, trained

from quietreasoning.build import Loaded, resolve
from quietreasoning.data.config import DataConfig, build_task
from quietreasoning.data.example import Example
from quietreasoning.evaluate.config import EvalConfig
from quietreasoning.evaluate.statistics import wilson
from quietreasoning.gates import baking_gate
from quietreasoning.train.signals import StopFlag

RECIPE = "thoughts/tiny"
TEXTS = {"untold": {"instructed": 0}, "told": {"instructed": 1}, "at once": {"tags": False}}


def run_of(name: str, out: Path, seed: int) -> Loaded:
    """The trained run of an arm: `told`, or one that starts from it."""
    resolved = resolve(RECIPE)
    told, bake = resolved.config.stages
    plain = remade(bake, method={"name": "cot"}, data={"format": {"prompt_suffix": ""}})
    stage = {"told": told, "bake": bake, "fine-tune": plain}[name]
    changes = {"seed": seed, "out": str(out / f"{name}-{seed}"), "stages": (stage,)}
    changes |= {} if name == "told" else {"init": str(out / f"told-{seed}")}
    return trained(replace(resolved, config=resolved.config.model_copy(update=changes)))


def test_rows(run: Loaded, options: dict, n: int) -> list[Example]:
    data = run.config.stages[-1].data.model_dump(mode="json") | {"options": options}
    return list(build_task(DataConfig.model_validate(data)).split("test", n))


@torch.no_grad()
def nats(run: Loaded, options: dict, n: int) -> dict[str, float]:
    """Nats a token of gold steps and answers, of the model the stage began with and now."""
    total_3 = torch.zeros(3, dtype=torch.float64)
    examples = test_rows(run, options, n)
    for first in range(0, n, 100):
        found = run.method.gold_log_probs(run.encoder.batch(examples[first : first + 100]))
        total_3 += torch.stack([each.double().sum() for each in found])
    before, now, tokens = total_3.tolist()
    return {"before": round(-before / tokens, 4), "now": round(-now / tokens, 4)}


def judged(run: Loaded, n: int) -> dict:
    """The gate's figures of a run whose last stage is bake, and what is beside them."""
    run.method.eval()
    config = EvalConfig(split="test", n=n, max_new_tokens=run.max_new_tokens, controls=())
    figures = {
        figure.what.strip() if figure.needs is not None else f"{last}, teacher": figure
        for trial in baking_gate(run, config, StopFlag())[:2]
        for last, figure in zip(["", *[f.what for f in trial.figures]], trial.figures, strict=False)
    }
    found = {what: [*figure.measured, figure.verdict] for what, figure in figures.items()}
    right = sum(said(run, test_rows(run, TEXTS["untold"], n))[0])
    found["right answers"] = [right / n, *wilson(right, n)]
    return found | {f"nats, {name}": nats(run, options, n) for name, options in TEXTS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/thoughts-bake"))
    parser.add_argument("--n", type=int, default=500)
    options = parser.parse_args()
    rows: dict[str, list[dict]] = {"bake": [], "fine-tune": []}
    for seed in options.seeds:
        told = run_of("told", options.out, seed)
        right = {name: sum(said(told, test_rows(told, TEXTS[name], options.n))[0]) for name in TEXTS}
        print(json.dumps({"seed": seed, "right answers of the told model": right}), flush=True)
        tuned = run_of("fine-tune", options.out, seed)
        for name in rows:
            run = run_of("bake", options.out, seed)
            if name == "fine-tune":
                run.method.backbone.load_state_dict(tuned.method.backbone.state_dict())
            rows[name].append(judged(run, options.n))
            print(json.dumps({"seed": seed, "arm": name} | rows[name][-1]), flush=True)
    for name, found in rows.items():
        for what, value in found[0].items():
            each = [row[what]["now"] if isinstance(value, dict) else row[what][0] for row in found]
            print(f"{name:<10} {what:<36} {shown(each, 3)}")


if __name__ == "__main__":
    main()
