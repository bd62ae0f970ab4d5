"""`python experiments/workspace_wikitext.py --data DIR [--seeds 0 1 2]`: perplexity with a workspace.

DIR holds WikiText-2's valid.txt (divided into training and validation by documents) and test.txt. A
workspace model with slots and state-space experts against a plain trunk of equal trained parameters (a
wider feed-forward layer; within 1 %), the same tokens and code; and against the latter at equal FLOPs where
that means more steps. The interval of the difference is paired by seed: Student's t over seeds.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from arms import arm, asked, flops_per_step, fresh, parameters, shown, trained

from quietreasoning.evaluate.controls import Arm

RECIPE = "workspace_wikitext.yaml"
PLAIN = ["method.features=[]", "method.weights.halting=0"]
SIZES = "backbone.workspace.sizes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/workspace_wikitext"))
    parser.add_argument("--windows", type=int, default=600, help="evenly taken from the split")
    parser.add_argument("--split", choices=("valid", "test"), default="test")
    parser.add_argument("--set", nargs="*", default=[], help="further settings of every arm, for exploring")
    args = parser.parse_args()
    data = [f"data.path={args.data}/valid.txt", f"data.options.test_path={args.data}/test.txt", *args.set]
    shapes = plan(data, args.out)
    print(json.dumps({name: own["note"] for name, own in shapes.items()}, indent=1), flush=True)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in shapes}
    for seed in args.seeds:
        for name, own in shapes.items():
            run = trained(arm(RECIPE, args.out / f"{name}-{seed}", [*data, f"seed={seed}", *own["settings"]]))
            row = asked(run, [Arm(run.method, name)], args.split, 32, args.windows).rows[0]
            found[name].append(row)
            print(f"seed {seed}  {name:<20} {row['perplexity']:.2f}", flush=True)
            (args.out / f"{args.split}.json").write_text(
                json.dumps({"arms": shapes, "rows": found}, indent=1)
            )
    table(found)


def plan(data: list[str], out: Path) -> dict[str, dict[str, Any]]:
    """Arm -> its settings, and what is to be said of it."""
    own = arm(RECIPE, out / "none", data)
    wanted, steps = parameters(fresh(own)[0]), own.config.stages[0].train.steps
    before = own.config.backbone.workspace.sizes["intermediate_size"]
    width, layers = (own.config.backbone.workspace.sizes[k] for k in ("hidden_size", "num_hidden_layers"))
    bare = parameters(fresh(arm(RECIPE, out / "none", [*data, *PLAIN]))[0])
    wider = before + round((wanted - bare) / (3 * width * layers))
    plain = [*PLAIN, f"{SIZES}.intermediate_size={wider}"]
    flat = arm(RECIPE, out / "none", [*data, *plain])
    ratio = flops_per_step(own) / flops_per_step(flat)
    count = parameters(fresh(flat)[0])
    assert abs(count / wanted - 1) < 0.01, (count, wanted)
    about = {"flops_ratio": ratio, "intermediate_size": wider, "parameters": count}
    more = round(steps * ratio)
    found = {
        "workspace": {"settings": [], "note": {"parameters": wanted, "steps": steps}},
        "plain": {"settings": plain, "note": about | {"steps": steps}},
    }
    if ratio > 1:  # else the trunk of equal parameters has had more FLOPs already
        found["plain, equal FLOPs"] = {
            "settings": [*plain, f"stages=[{{train: {{steps: {more}}}}}]"],
            "note": about | {"steps": more},
        }
    return found


def table(found: dict[str, list[dict[str, Any]]]) -> None:
    own = [row["nll"] for row in found["workspace"]]
    print(f"\n{'arm':<20} perplexity, mean of seeds [95 %]; ratio to the workspace model")
    for name, rows in found.items():
        nlls = [row["nll"] for row in rows]
        ratios = [math.exp(a - b) for a, b in zip(nlls, own, strict=True)]
        print(f"{name:<20} {shown([row['perplexity'] for row in rows], 2):<28} {shown(ratios, 3)}")


if __name__ == "__main__":
    main()
