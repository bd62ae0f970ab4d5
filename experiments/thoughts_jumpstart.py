"""Does a baked instruction give Quiet-STaR a head start?

    python experiments/thoughts_jumpstart.py --seeds 0 1 2 3 4 --out runs/thoughts-jumpstart

Pointer chains. A fresh model learns to write the chain between tags when "think :" stands before the
question, and to answer at once when not (`told`); the instruction is baked (`bake`). Arms of a seed, the
same rows, steps and rates: hidden thoughts from the model before baking (`unbaked`), and from the one after
(`baked`). Every row is new, so the loss of a step is a held-out loss; it is smoothed over 10 steps. Steps
and FLOPs to levels fixed by the unbaked arm: its loss at the end of training, and half-way there from where
it began. One column adds the FLOPs of baking. Beside it, before the first step: the reward, and the
variance of the policy gradient over draws of thoughts for one batch, over the square of its mean. Ratios
are paired by seed, their interval is Student's on logarithms.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from arms import HERE, fresh, over_seeds, remade, said, shown, trained
from torch.utils.flop_counter import FlopCounterMode

from quietreasoning.build import Loaded, Resolved, read_config, resolve
from quietreasoning.data.config import DataConfig, build_task
from quietreasoning.methods.thoughts import reading
from quietreasoning.methods.thoughts.text import text_of

ARMS = {"unbaked": "told", "baked": "bake"}
WINDOW = 10  # steps
DRAWS = 8


def stage_of(name: str, out: Path, seed: int, init: str | None, run: str, steps: int | None) -> Resolved:
    """One stage of the recipe as the run `out/run-seed`, from the run `init` if given."""
    where = f"data.path={told_file(out)}"
    resolved = resolve(str(HERE / "thoughts_jumpstart.yaml"), [f"stages.told.{where}"])
    (stage,) = (stage for stage in resolved.config.stages if stage.name == name)
    data: dict = {"path": stage.data.path if name == "told" else None}
    if init is not None:
        data["tokenizer"] = {"path": str(out / f"told-{seed}" / "tokenizer"), "thinking": True}
    stage = remade(stage, data=data, train={} if steps is None else {"steps": steps})
    changes = {"seed": seed, "out": str(out / f"{run}-{seed}"), "stages": (stage,)}
    changes["init"] = None if init is None else str(out / f"{init}-{seed}")
    return replace(resolved, config=resolved.config.model_copy(update=changes))


def told_file(out: Path) -> Path:
    """Pointer chains: every other one with the instruction and its chain, the rest with the answer alone."""
    path = out / "told.jsonl"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        options = {"nodes": 6, "symbols": 8, "hops": [1, 2, 3, 4]}
        task = build_task(DataConfig.model_validate({"task": "pointer", "options": options}))
        rows = (
            {"prompt": "think : " + e.prompt, "steps": list(e.steps), "answer": e.answer}
            if i % 2
            else {"prompt": e.prompt, "steps": [], "answer": e.answer}
            for i, e in enumerate(task.split("train", 24_000))
        )
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def curves(run: Loaded) -> dict[str, np.ndarray]:
    """The loss with thoughts mixed in and the reward of each step, means of the last `WINDOW`."""
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    steps = {line["step"]: line for line in lines if "loss/mix" in line}
    kernel = np.full(WINDOW, 1 / WINDOW)
    return {
        name: np.convolve([steps[step][key] for step in sorted(steps)], kernel, mode="valid")
        for name, key in (("loss", "loss/mix"), ("reward", "train/reward"))
    }


def first_below(loss_S: np.ndarray, level: float) -> int | None:
    below = np.flatnonzero(loss_S <= level)
    return int(below[0]) + WINDOW if len(below) else None


def start(resolved: Resolved) -> dict[str, float | None]:
    """Before the first step: the reward, and the trace of the policy gradient's covariance over draws of
    thoughts for one batch, over the square of its mean (both without bias)."""
    method, builder = fresh(resolved)
    batch = builder.batches(resolved.config.stages[-1], method.backbone.context, []).batch_at(0)
    method.train()
    gradients, rewards = [], []
    for draw in range(DRAWS):
        output = method(replace(batch, keys_B=batch.keys_B + 1_000_003 * draw))
        method.zero_grad()
        output.terms["policy"].total.backward()
        grads = [p.grad.flatten() for p in method.backbone.parameters() if p.grad is not None]
        gradients.append(torch.cat(grads).double())
        total, count = output.metrics["reward"]
        rewards.append(float(total) / float(count))
    gradient_RP = torch.stack(gradients)
    spread = float(gradient_RP.var(0).sum())
    square = float(gradient_RP.mean(0).square().sum()) - spread / DRAWS
    noise = spread / square if square > 0 else None  # the mean is lost in the noise of so few draws
    return {"reward": float(np.mean(rewards)), "gradient noise": noise}


def asked(name: str, resolved: Resolved, n: int) -> dict:
    run = trained(resolved)
    loss_S, reward_S = (curve.tolist() for curve in curves(run).values())
    examples = list(build_task(run.config.stages[-1].data).split("test", n))
    right = {"thoughts": sum(said(run, examples)[0])} | {
        control: sum(said(run, examples, control=control)[0]) for control in ("zero", "shuffle", "filler")
    }
    return {
        "arm": name,
        "seed": resolved.config.seed,
        "loss": loss_S,
        "reward": reward_S,
        "step FLOPs": flops_of_thinking(resolved),
        "right": {what: count / n for what, count in right.items()},
        "start": start(resolved),
    }


@torch.no_grad()
def flops_of_thinking(resolved: Resolved) -> int:
    """Of a training step: what is drawn and what the model as it was reads once, the rest three times."""
    method, builder = fresh(resolved)
    batch = builder.batches(resolved.config.stages[-1], method.backbone.context, []).batch_at(0)
    text = text_of(batch, method.requires_grad_(False).markers, visible=False)  # its counter hooks gradients
    with FlopCounterMode(display=False) as drawing:
        anchor_BK, thoughts, _ = reading.think(method, text, batch.keys_B)
    with FlopCounterMode(display=False) as once:
        reading.read(method, text, anchor_BK, thoughts)
    with FlopCounterMode(display=False) as whole:
        method(batch)
    forward = [counter.get_total_flops() for counter in (drawing, once, whole)]
    return 3 * forward[2] - 2 * (forward[0] + forward[1])


@torch.no_grad()
def flops_of_baking(folder: Path) -> int:
    """Of the whole stage: the teacher writes and reads once, the student's pass counts three times."""
    config = read_config(folder)
    method, builder = fresh(Resolved("bake", config, {}))
    batch = builder.batches(config.stages[-1], method.requires_grad_(False).backbone.context, []).batch_at(0)
    with FlopCounterMode(display=False) as teacher:
        method.taught(batch)
    with FlopCounterMode(display=False) as whole:
        method(batch)
    step = 3 * whole.get_total_flops() - 2 * teacher.get_total_flops()
    return config.stages[-1].train.steps * step


def compared(unbaked: dict, baked: dict, baking: float) -> dict[str, float | None]:
    """Steps of both arms to each level, and their ratios; `baking`: FLOPs of it."""
    first, last = unbaked["loss"][0], unbaked["loss"][-1]
    found: dict[str, float | None] = {}
    for label, level in (("half-way", (first + last) / 2), ("end", last)):
        steps = {row["arm"]: first_below(np.array(row["loss"]), level) for row in (unbaked, baked)}
        found |= {f"{label}, {name}": count for name, count in steps.items()}
        if all(steps.values()):
            spent = steps["baked"] * baked["step FLOPs"] + baking
            found[f"{label}, ratio of steps"] = steps["baked"] / steps["unbaked"]
            found[f"{label}, ratio of FLOPs with baking"] = spent / (steps["unbaked"] * unbaked["step FLOPs"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("runs/thoughts-jumpstart"))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--n", type=int, default=200)
    options = parser.parse_args()
    rows: list[dict] = []
    for seed in options.seeds:
        trained(stage_of("told", options.out, seed, None, "told", None))
        trained(stage_of("bake", options.out, seed, "told", "bake", None))
        own = [
            asked(name, stage_of("quiet", options.out, seed, init, name, options.steps), options.n)
            for name, init in ARMS.items()
        ]
        rows.append(compared(*own, flops_of_baking(options.out / f"bake-{seed}")))
        for row in own:
            rows[-1] |= {f"{row['arm']}: {what}": value for what, value in row["start"].items()}
            rows[-1] |= {f"{row['arm']}: right, {what}": value for what, value in row["right"].items()}
        for row in own:
            print(json.dumps(row), flush=True)
        print(json.dumps({"seed": seed} | rows[-1]), flush=True)
    for what in dict.fromkeys(key for row in rows for key in row):
        each = [row[what] for row in rows if row.get(what) is not None]
        text = shown(each, 3)
        if "ratio" in what:
            text = "{:.2f} [{:.2f}, {:.2f}]".format(*map(math.exp, over_seeds([math.log(v) for v in each])))
        print(f"{what:<36} {text} of {len(each)} seeds")


if __name__ == "__main__":
    main()
