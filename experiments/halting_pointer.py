"""What does halting save, and does the model know when it is wrong? Pointer chains of one to four hops.

    python experiments/halting_pointer.py --seeds 0 1 2 --out runs/halting-pointer

Per seed: the recipe continuous/pointer (a finished run in OUT/trunk-SEED is used again), then `--steps` more
with a halting head and a self-evaluation head, which alone learn. The threshold is the one that
takes the fewest thoughts on validation rows at no more than `--drop` below all thoughts. Test rows, asked
once: all thoughts, halting, and every fixed number of thoughts; thoughts by hops; whether confidences mean
what they say. `--quick` takes a handful of steps everywhere, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from arms import by_group, remade, shown, trained

from quietreasoning.build import Builder, resolve
from quietreasoning.contract import Method
from quietreasoning.data.config import build_task
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.example import Example
from quietreasoning.data.load import load_split
from quietreasoning.evaluate.calibration import Threshold, choose_threshold, trust
from quietreasoning.evaluate.statistics import mcnemar, paired_bootstrap, paired_counts
from quietreasoning.run_config import StageConfig
from quietreasoning.train.loop import train
from quietreasoning.train.rng import seed_all
from quietreasoning.train.state import TrainState

QUICK = ["stages.chain.train.steps=4", "stages.steps.train.steps=2", "stages.answer.train.steps=2"]
CHUNK = 250


def halting_stage(stage: StageConfig, options: argparse.Namespace) -> StageConfig:
    """The recipe's last stage with both heads; they alone learn where nothing they do reaches the model."""
    halt = {
        "cost": options.cost,
        "hidden": options.hidden,
        "early": options.early,
        "detach": not options.attached,
    }
    method = {"halt": halt, "self_evaluation": {"weight": 1.0}}
    faster = dict.fromkeys(method, options.head_lr / options.lr)
    optim = {"name": "adamw", "lr": options.lr, "lr_scale": faster}
    alone = not (options.early or options.attached)
    learns = {"steps": options.steps, "enable": list(method) if alone else []}
    return remade(stage, method=method, optim=optim, train=learns)


def taught(builder: Builder, stage: StageConfig, before: Method, seed: int) -> Method:
    """The method after the halting stage."""
    seed_all(seed, 77, 0)
    method = builder.method(stage, before)
    state = TrainState.create(method.train(), stage.train, stage.optim)
    batches = builder.batches(stage, method.backbone.context, [])
    for record in train(state, batches.batch_at, stage.train, stage.optim):
        if record.step % 20 == 0 or record.step == stage.train.steps:
            figures = {name: round(value, 3) for name, value in {**record.losses, **record.metrics}.items()}
            print("halting", record.step, figures, flush=True)
    return state.finish().eval()


@torch.no_grad()
def chosen(method: Method, encoder: Encoder, examples: Sequence[Example], drop: float) -> Threshold:
    """The threshold, from validation rows alone."""
    chunks = [examples[first : first + CHUNK] for first in range(0, len(examples), CHUNK)]
    found = [method.depths(encoder.batch(chunk)) for chunk in chunks]
    hazard_NK = torch.cat([depths.hazard_BK for depths in found]).cpu().numpy()
    right_NK = torch.cat([depths.right_BK for depths in found]).cpu().numpy()
    return choose_threshold(hazard_NK, right_NK, drop)


def at_threshold(method: Method, threshold: float) -> None:
    halt = method.config.halt.model_copy(update={"threshold": threshold})
    method.config = method.config.model_copy(update={"halt": halt})


def asked(method: Method, encoder: Encoder, examples: Sequence[Example], effort: int | None = None) -> dict:
    """Right or wrong, thoughts and confidence of every row."""
    right, thoughts, confidence = [], [], []
    for first in range(0, len(examples), CHUNK):
        chunk = examples[first : first + CHUNK]
        said = method.generate(encoder.prompts(chunk), max_new_tokens=4, effort=effort)
        texts = map(encoder.text, said.answers)
        right += [text == example.answer for text, example in zip(texts, chunk, strict=True)]
        thoughts += said.latent_steps
        confidence += said.confidence
    return {"right": right, "thoughts": thoughts, "confidence": confidence}


def one_seed(seed: int, options: argparse.Namespace) -> dict:
    quick = QUICK if options.quick else []
    resolved = resolve("continuous/pointer", [*quick, f"seed={seed}"], str(options.out / f"trunk-{seed}"))
    trunk = trained(resolved)
    builder = Builder(resolved.config, trunk.folder / "tokenizer")
    stage = halting_stage(resolved.config.stages[-1], options)
    task, encoder = build_task(stage.data), builder.encoder(stage.data, trunk.method.backbone.context)
    rows = {
        split: load_split(task, split, stage.data, encoder, n=options.n)[0] for split in ("valid", "test")
    }
    latents = stage.method.latents
    method = taught(builder, stage, trunk.method, seed)
    picked = chosen(method, encoder, rows["valid"], options.drop)
    at_threshold(method, picked.threshold)
    answers = {
        "all": asked(method, encoder, rows["test"], latents),
        "halting": asked(method, encoder, rows["test"]),
    }
    fixed = {
        k: float(np.mean(asked(method, encoder, rows["test"], k)["right"])) for k in range(1, latents + 1)
    }
    hops = [str(example.meta["num_steps"]) for example in rows["test"]]
    _, gained, lost, _ = paired_counts(answers["halting"]["right"], answers["all"]["right"])
    change = paired_bootstrap(gained, lost, len(hops))
    return {
        "threshold": asdict(picked),
        "fixed": fixed,
        "change": [*change, mcnemar(gained, lost)],
        **{
            name: {
                "accuracy": float(np.mean(found["right"])),
                "thoughts": float(np.mean(found["thoughts"])),
                "accuracy_by_hops": by_group(found["right"], hops),
                "thoughts_by_hops": by_group(found["thoughts"], hops),
                "trust": trust(found["confidence"], found["right"]),
            }
            for name, found in answers.items()
        },
    }


def show(seed: str, found: dict) -> None:
    print(f"seed {seed}: threshold {found['threshold']['threshold']:.4f} (chosen on validation rows)")
    for name in ("all", "halting"):
        one = found[name]
        hops = ", ".join(
            f"{hop} hops {100 * right:.1f} % in {one['thoughts_by_hops'][hop]:.2f}"
            for hop, right in one["accuracy_by_hops"].items()
        )
        print(f"  {name:8} {100 * one['accuracy']:5.1f} % in {one['thoughts']:.2f} thoughts ({hops})")
        print("           " + ", ".join(f"{key} {value:.4f}" for key, value in one["trust"].items()))
    value, low, high, p = found["change"]
    print(f"  halting less all {100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] points, p={p:.2g}")
    fixed = ", ".join(f"{k}: {100 * right:.1f} %" for k, right in found["fixed"].items())
    print(f"  a fixed number of thoughts: {fixed}", flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--steps", type=int, default=500, help="of the halting stage")
    arguments.add_argument("--lr", type=float, default=5e-4, help="of the halting stage, for the model")
    arguments.add_argument("--head-lr", type=float, default=1e-2, help="of the halting stage, for the heads")
    arguments.add_argument("--cost", type=float, default=0.02, help="of a thought, in probability")
    arguments.add_argument("--hidden", type=int, default=64, help="units inside the halting head; 0: linear")
    arguments.add_argument("--early", type=float, default=0.0, help="weight of practice in answering early")
    arguments.add_argument("--attached", action="store_true", help="let the halting loss reach the model")
    arguments.add_argument("--drop", type=float, default=0.005, help="accuracy that halting may cost")
    arguments.add_argument("--n", type=int, default=2000, help="validation and test rows, each")
    arguments.add_argument("--out", type=Path, default=Path("runs/halting-pointer"))
    arguments.add_argument("--quick", action="store_true", help="a handful of steps")
    options = arguments.parse_args()
    if options.quick:
        options.steps, options.n = 3, 60
    kept = options.out / "found.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    for seed in map(str, options.seeds):
        if seed not in found:
            found[seed] = one_seed(int(seed), options)
            kept.write_text(json.dumps(found))
        show(seed, found[seed])
    for name in ("all", "halting"):
        print(
            f"{name:8} accuracy {shown([100 * one[name]['accuracy'] for one in found.values()])} %, thoughts "
            f"{shown([one[name]['thoughts'] for one in found.values()], 2)}, "
            f"ECE {shown([one[name]['trust']['ece'] for one in found.values()], 3)}, "
            f"Brier {shown([one[name]['trust']['brier'] for one in found.values()], 3)}"
        )


if __name__ == "__main__":
    main()
