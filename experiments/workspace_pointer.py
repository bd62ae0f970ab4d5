"""Does the workspace compute? Pointer chains: workspace against trunks of equal parameters and equal FLOPs.

    python experiments/workspace_pointer.py --seeds 0 1 2 --out runs/workspace-pointer

Trains `workspace/pointer` and two plain trunks (deeper, until parameters or FLOPs are at least the
workspace's) with the same data, curriculum and number of steps; asks all of them 4-hop questions of the
test split with the workspace's controls, and prints pooled accuracies with Wilson intervals.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from quietreasoning.build import open_run
from quietreasoning.evaluate.rows import load, pool

HERE = Path(__file__).parent
TRUNKS = {"equal-flops": 3, "equal-parameters": 4}  # layers; checked below


def quiet(*words: str) -> None:
    print("quiet", *words, flush=True)
    subprocess.run([sys.executable, "-m", "quietreasoning.cli.main", *words], check=True)


def cost(folder: Path) -> tuple[int, int]:
    """Parameters that answering uses, and FLOPs of a forward over 64 training rows."""
    run = open_run(folder)
    stage = run.config.stages[-1]
    batch = run.builder.batches(stage, run.method.backbone.context, []).batch_at(0)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run.method(batch)
    return sum(p.numel() for p in run.method.parameters() if p.requires_grad), counter.get_total_flops()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--out", type=Path, default=Path("runs/workspace-pointer"))
    arguments.add_argument("--n", type=int, default=500)
    options = arguments.parse_args()
    rows = []
    for seed in options.seeds:
        folders = {"workspace": options.out / f"workspace-{seed}"}
        folders |= {name: options.out / f"{name}-{seed}" for name in TRUNKS}
        for name, folder in folders.items():
            if not list(folder.glob("step-000600")):
                recipe = ["workspace/pointer"]
                if name != "workspace":
                    recipe = [str(HERE / "pointer_trunk.yaml"), f"backbone.scratch.layers={TRUNKS[name]}"]
                quiet("train", *recipe, f"seed={seed}", "--no-doctor", "--out", str(folder))
            asked = ["eval.split=test", f"eval.n={options.n}", "eval.timing=0"]
            quiet("eval", str(folder), *asked)
            report = load(folder / "eval" / "rows.json")[-1]
            own = [row for row in report.rows if row["method"] != "cot" or name == "workspace"]
            rows += [row | {"method": row["method"].replace("plain", name)} for row in own]
            parameters, flops = cost(folder)
            print(f"{name} {seed}: {parameters:,} parameters, {flops:,} FLOPs", flush=True)
    for row in pool(rows):
        print(
            f"{row['method']:18} {row['control'] or '':8} {100 * row['accuracy']:5.1f} "
            f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}] n={row['n']}"
        )


if __name__ == "__main__":
    main()
