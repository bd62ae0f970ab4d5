"""Steps until a small transformer that has learnt its examples by heart understands them: four optimizers.

    python experiments/grokking.py --out runs/grokking

(a + b) mod p (arXiv 2201.02177): of the sums with a <= b a share is trained on, the others are asked, so no
mirror of a question was seen. One block of our backbone, from scratch, the whole training set in every step.
Arms: AdamW, Muon (matrices of the block; the rest by AdamW), each with and without Grokfast (arXiv
2405.20233); seeds change weights and split. A run ends at 95 % of the held-out sums. One that does not get
there in time is censored: its length is a lower bound, and a median is given where more than half of the
seeds arrived. A finished run is not trained again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from quietreasoning.backbone import Backbone, BackboneConfig, load_backbone, role_of
from quietreasoning.contract import Role
from quietreasoning.optim.optimizers import build_optimizer
from quietreasoning.optim.settings import OptimConfig
from quietreasoning.train.rng import seed_all

REACHED = 0.95
ASK_EVERY = 10  # steps
SHAPE = {"layers": 1, "width": 64, "heads": 4, "mlp": 128, "context": 8}
SLOW = {"decay": 0.98, "strength": 2.0}  # of the paper; decay 1 - 10 / steps would be 0.99 at most
ARMS: dict[str, dict] = {
    "adamw": {"name": "adamw"},
    "adamw-grokfast": {"name": "adamw", "grokfast": SLOW},
    "muon": {"name": "muon", "muon": {"precision": "fp32"}},
    "muon-grokfast": {"name": "muon", "muon": {"precision": "fp32"}, "grokfast": SLOW},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--modulus", type=int, default=59)
    parser.add_argument("--share", type=float, default=0.5, help="of all sums that is trained on")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--decay", type=float, default=1.0, help="weight decay")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    settings = {name: getattr(given, name) for name in ("modulus", "share", "steps", "lr", "decay")}
    rows = []
    for seed in given.seeds:
        for arm in given.arms:
            path = given.out / f"{arm}-{seed}.json"
            kept = json.loads(path.read_text()) if path.exists() else {}
            if kept.get("settings") != settings:
                kept = run(arm, seed, **settings) | {"arm": arm, "seed": seed, "settings": settings}
                path.write_text(json.dumps(kept))
            print(told(kept), flush=True)
            rows.append(kept)
    print(table(rows, given.arms, given.steps))


def run(
    arm: str, seed: int, *, modulus: int, share: float, steps: int, lr: float, decay: float
) -> dict[str, object]:
    """One run; `reached` is None where it was censored, `learnt` the step at which its own examples were."""
    seed_all(seed, 0, 0)
    backbone = load_backbone(BackboneConfig(scratch=SHAPE), modulus + 1)
    (train_NT, gold_N), (held_MT, truth_M) = sums(modulus, share, seed)
    config = OptimConfig(lr=lr, betas=(0.9, 0.98), weight_decay=decay, warmup_steps=10, **ARMS[arm])
    optimizer = build_optimizer(backbone, dict(backbone.named_parameters()), config, steps)
    learnt, reached, curve, began = None, None, [], time.process_time()
    for step in range(1, steps + 1):
        logits_NV = answers(backbone, train_NT)
        loss = nn.functional.cross_entropy(logits_NV, gold_N)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(backbone.parameters(), config.clip)
        optimizer.set_lr(min(1.0, step / config.warmup_steps))
        optimizer.step()
        optimizer.zero_grad()
        if step % ASK_EVERY == 0:
            with torch.no_grad():
                held = share_right(answers(backbone, held_MT), truth_M)
            own = share_right(logits_NV, gold_N)
            curve.append((step, round(float(loss.detach()), 6), own, held))
            learnt = step if learnt is None and own >= REACHED else learnt
            if held >= REACHED:
                reached = step
                break
    return {
        "reached": reached,
        "learnt": learnt,
        "held out": curve[-1][3],
        "cpu seconds": round(time.process_time() - began, 1),
        "curve": curve,
    }


def sums(modulus: int, share: float, seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Rows (a, b, =) and their sums: those to train on, and the others."""
    a, b = torch.meshgrid(torch.arange(modulus), torch.arange(modulus), indexing="ij")
    rows = torch.stack([a.flatten(), b.flatten(), torch.full_like(a, modulus).flatten()], 1)
    rows = rows[rows[:, 0] <= rows[:, 1]]
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    gold = (rows[:, 0] + rows[:, 1]) % modulus
    cut = round(share * len(rows))
    return (rows[:cut], gold[:cut]), (rows[cut:], gold[cut:])


def answers(backbone: Backbone, ids_NT: Tensor) -> Tensor:
    """Logits [N, V] of what follows each row."""
    hidden_NTD = backbone(ids_NT, role_of(ids_NT, Role.PROMPT)).hidden_BTD
    return backbone.logits(hidden_NTD[:, -1])


def share_right(logits_NV: Tensor, gold_N: Tensor) -> float:
    return float((logits_NV.argmax(-1) == gold_N).double().mean())


def told(row: dict) -> str:
    end = f"{row['reached']} steps" if row["reached"] else f"censored, {row['held out']:.1%} held out"
    return f"{row['arm']:15} seed {row['seed']}: {end}, {row['cpu seconds']:.0f} CPU seconds"


def table(rows: list[dict], arms: list[str], steps: int) -> str:
    """Steps to 95 % by arm, and how many times fewer than AdamW's, seed by seed."""
    lines = [
        f"| optimizer | own examples | held out, {REACHED:.0%} | of seeds | against AdamW |",
        "|---|---|---|---|---|",
    ]
    plain = {row["seed"]: row["reached"] for row in rows if row["arm"] == "adamw"}
    for arm in arms:
        own = [row for row in rows if row["arm"] == arm]
        arrived = [row["reached"] for row in own if row["reached"]]
        median = statistics.median([row["reached"] or float("inf") for row in own])
        each = ", ".join(str(row["reached"] or f"> {steps}") for row in own)
        ratios = [plain[r["seed"]] / r["reached"] for r in own if r["reached"] and plain.get(r["seed"])]
        lines.append(
            f"| {arm} | {statistics.median(row['learnt'] or steps for row in own):.0f} | "
            f"{'none' if median == float('inf') else f'{median:.0f}'} ({each}) | {len(arrived)}/{len(own)} | "
            f"{f'{statistics.median(ratios):.2f}x ({len(ratios)} pairs)' if ratios else '-'} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
