"""Does recursion solve what one evaluation does not? Grids, by the reasoner and by the same net once.

    python experiments/reasoner_grids.py recursion/sudoku-6 --seeds 0 1 2 --out runs/grids-6

Arms: `recursion`, the recipe as it is; `once`, the same net with one evaluation and one supervision step,
trained for more CPU seconds, in which it takes more steps; CPU seconds are those of the whole
training process, with drawing the puzzles. All are asked the same test puzzles: accuracy with its interval,
after every supervision step, by group of difficulty, and the steps taken with halting on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from arms import by_group, parameters, said, trained

from quietreasoning.build import Loaded, resolve
from quietreasoning.data.config import build_task
from quietreasoning.evaluate.statistics import wilson


def settings(name: str, steps: int) -> list[str]:
    """What an arm changes in the recipe."""
    shared = [f"train.steps={steps}", "train.eval_every=0", "train.save_every=0"]
    if name == "recursion":
        return shared
    once = {"latent_steps": 0, "rounds": 1, "supervision_steps": 1}
    return shared + [f"stages.think.method.{key}={value}" for key, value in once.items()]


@torch.no_grad()
def asked(run: Loaded, n: int) -> dict:
    """Everything the table says of one trained arm."""
    task = build_task(run.config.stages[-1].data)
    examples = list(task.split("test", n))
    groups = [task.group(example) for example in examples]

    right, _ = said(run, examples)
    found = {
        "n": n,
        "accuracy": sum(right) / n,
        "interval": wilson(sum(right), n),
        "by group": by_group(right, groups),
        "parameters": parameters(run.method),
    }
    most = getattr(run.method.config, "supervision_steps", 1)
    if most > 1:
        per_step = [said(run, examples, effort=step)[0] for step in range(1, most + 1)]
        found["by step"] = [round(sum(each) / n, 4) for each in per_step]
        run.method.config = run.method.config.model_copy(update={"halt_cut": 0.5})
        halted, steps = said(run, examples)
        found |= {"halted accuracy": sum(halted) / n, "mean steps": sum(steps) / n}
        found["mean steps by group"] = by_group(steps, groups)
        run.method.config = run.method.config.model_copy(update={"halt_cut": None})
        for control in ("zero", "shuffle"):
            found[f"accuracy, {control}"] = sum(said(run, examples, control=control)[0]) / n
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("recipe")
    arguments.add_argument("--arms", nargs="+", default=["recursion", "once"], choices=["recursion", "once"])
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--out", type=Path, default=Path("runs/grids"))
    arguments.add_argument("--n", type=int, default=1000)
    arguments.add_argument("--steps", type=int, help="of recursion; the recipe's own number if left out")
    arguments.add_argument("--once-steps", type=int, help="of once; the table says what CPU time they took")
    options = arguments.parse_args()
    if "once" in options.arms and not options.once_steps:
        arguments.error("the arm once needs --once-steps: as many as take at least recursion's CPU seconds")
    own = options.steps or resolve(options.recipe).config.stages[-1].train.steps
    for name in options.arms:
        steps = own if name == "recursion" else options.once_steps
        for seed in options.seeds:
            folder = options.out / f"{name}-{seed}"
            run = trained(resolve(options.recipe, [*settings(name, steps), f"seed={seed}"], str(folder)))
            spent = json.loads((folder / "seconds.json").read_text())
            found = {
                "arm": name,
                "seed": seed,
                "steps": steps,
                "cpu seconds": round(spent),
                **asked(run, options.n),
            }
            (folder / "grids.json").write_text(json.dumps(found, indent=1))
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
