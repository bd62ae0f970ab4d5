"""Do rewards teach more than they start with? Pointer chains: latents half trained on gold, then GRPO.

    python experiments/grpo_pointer.py --seeds 0 1 2 --out runs/grpo-pointer.json

Visible chain, then latents that each say a step, then answers from gold until half of the validation
questions are right. From there, the same number of steps, rows and the same rates three times: GRPO with its
reward, GRPO with a coin in the reward's place, and gold steps and answers. Test questions are asked before
and after, greedily; McNemar and the bootstrap are paired.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from unittest.mock import patch

import torch
from arms import shown
from torch import Tensor

from quietreasoning.build import Builder, resolve
from quietreasoning.contract import Method
from quietreasoning.evaluate.config import EvalConfig
from quietreasoning.evaluate.controls import Arm
from quietreasoning.evaluate.statistics import mcnemar, paired_bootstrap, paired_counts, wilson
from quietreasoning.methods import grpo
from quietreasoning.proof import Exam
from quietreasoning.run_config import StageConfig
from quietreasoning.train.loop import train
from quietreasoning.train.rng import seed_all
from quietreasoning.train.signals import StopFlag
from quietreasoning.train.state import TrainState

ARMS = ("reward", "coin", "gold")
SETTINGS = ["data.options.nodes=5", "data.options.hops=[1,2,3]", "stages.chain.train.steps=140"]
STEPS_ALONE = 80  # of the latents, before any answer
HALF = 0.5


def stage(builder: Builder, name: str, **changes: dict) -> StageConfig:
    """A stage of the recipe with other settings."""
    found = next(stage for stage in builder.config.stages if stage.name == name)
    values = found.model_dump(mode="json")
    for section, given in changes.items():
        values[section] |= given
    return StageConfig.model_validate(values)


def taught(builder: Builder, stage: StageConfig, before: Method | None, until: float | None = None) -> Method:
    """The method after a stage, or once so many validation answers are right."""
    seed_all(builder.config.seed, len(stage.name), 0)
    method = builder.method(stage, before)
    state = TrainState.create(method, stage.train, stage.optim)
    batches = builder.batches(stage, method.backbone.context, [])
    for record in train(state, batches.batch_at, stage.train, stage.optim):
        if record.step % 10 == 0:
            figures = {name: round(value, 3) for name, value in {**record.losses, **record.metrics}.items()}
            print(stage.name, record.step, figures, flush=True)
        if until is not None and record.step % 2 == 0:
            with state.evaluating() as asked:
                right = outcomes(builder, stage, asked, "valid", 300)
            if sum(right) / len(right) >= until:
                print(stage.name, "stops after step", record.step, flush=True)
                break
    return state.finish()


def outcomes(builder: Builder, stage: StageConfig, method: Method, split: str, n: int) -> list[bool]:
    """Whether each of n questions is answered right, greedily."""
    config = EvalConfig(split=split, n=n, batch_size=250, max_new_tokens=2, timing=0, samples=0, controls=())
    encoder = builder.encoder(stage.data, method.backbone.context)
    with torch.no_grad():
        report = Exam(stage.data, config, encoder, builder.config.seed).ask([Arm(method, "it")], StopFlag())
    return [mark == "1" for mark in report.outcomes["it"]]


def coin(tokens_NT: Tensor, answer_NA: Tensor) -> Tensor:
    """Right or wrong by the answer's place in the batch alone, half of the time."""
    generator = torch.Generator().manual_seed(int(answer_NA.clamp(min=0).sum()))
    return torch.rand(len(tokens_NT), generator=generator) < HALF


def one_seed(seed: int, steps: int, n: int) -> dict:
    resolved = resolve("continuous/grpo-tiny", [*SETTINGS, f"seed={seed}"])
    builder = Builder(resolved.config)
    method = taught(builder, stage(builder, "chain"), None)
    saying = {"weights": {"step": 1.0, "answer": 0.0}}
    method = taught(builder, stage(builder, "quiet", method=saying, train={"steps": STEPS_ALONE}), method)
    answering = {"optim": {"lr": 1e-3, "warmup_steps": 0}, "train": {"steps": 60}}
    start = taught(builder, stage(builder, "quiet", **answering), method, until=HALF)
    last = stage(builder, "reward", train={"steps": steps, "batch_size": 32})
    weights = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    found = {"start": outcomes(builder, last, start, "test", n)}
    gold = last.model_copy(update={"method": last.method.model_copy(update={"reward": None})})
    for arm in ARMS:
        start.load_state_dict(weights)
        began = time.process_time()
        if arm == "coin":
            with patch.object(grpo, "exactly", coin):
                after = taught(builder, last, start)
        else:
            after = taught(builder, gold if arm == "gold" else last, start)
        print(arm, f"{time.process_time() - began:.0f} CPU seconds")
        found[arm] = outcomes(builder, last, after, "test", n)
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--steps", type=int, default=60)
    arguments.add_argument("--n", type=int, default=1000)
    arguments.add_argument("--out", type=Path, default=Path("runs/grpo-pointer.json"))
    options = arguments.parse_args()
    kept = json.loads(options.out.read_text()) if options.out.exists() else {}
    for seed in options.seeds:
        if str(seed) not in kept:
            kept[str(seed)] = one_seed(seed, options.steps, options.n)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(kept))
        for arm, right in kept[str(seed)].items():
            low, high = wilson(sum(right), len(right))
            print(f"seed {seed} {arm:7} {sum(right) / len(right):.3f} [{low:.3f}, {high:.3f}] n={len(right)}")
        for arm in ARMS:
            _, gained, lost, _ = paired_counts(kept[str(seed)][arm], kept[str(seed)]["start"])
            gain = paired_bootstrap(gained, lost, len(kept[str(seed)][arm]))
            print(
                f"seed {seed} {arm:7} less start {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] "
                f"p={mcnemar(gained, lost):.2g}",
                flush=True,
            )
    for arm in ("start", *ARMS):
        print(f"{arm:7} {shown([100 * sum(kept[s][arm]) / len(kept[s][arm]) for s in kept])}")


if __name__ == "__main__":
    main()
