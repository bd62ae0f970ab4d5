"""`python benchmarks/workspace_step.py [rows] [tokens] [rounds]`: a training step with all modules on.

The `tiny` preset through the same method, loop, optimizer and rows: with the modules and losses of the later
stages of workspace/tiny, and with features=(), the bare trunk, which reads each row in one piece. They take
turns, so that whatever else the machine does hits both; between them, one module more at a time. One thread;
CPU seconds are counted.
`--profile` names the operations that all modules spend their time in. Fails over 1.5 times the trunk.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator

import torch

from quietreasoning.backbone import BackboneConfig, load_backbone
from quietreasoning.contract import IGNORE, Batch, Markers
from quietreasoning.methods.workspace import Workspace
from quietreasoning.optim.settings import OptimConfig
from quietreasoning.train.loop import train
from quietreasoning.train.settings import TrainConfig
from quietreasoning.train.state import TrainState

BOUND, VOCAB = 1.5, 512
SLOTS = {
    "next_latent": 1,
    "spread": 1,
    "sparsity": 0.1,
    "orthogonality": 0.05,
    "contrast": 0.2,
    "halting": 0.01,
}
ROUTER = {"router_z": 1e-4, "balance": 0.01, "entropy": 0.01}
ARMS = {  # features, weights
    "trunk": ((), {}),
    "+ workspace": (("workspace",), SLOTS),
    "+ pkm, adapters": (("workspace", "pkm", "adapters"), SLOTS | ROUTER),
    "+ ssm: all": (("workspace", "pkm", "adapters", "ssm"), SLOTS | ROUTER | {"gate": 0.01}),
}


def main(rows: int = 8, tokens: int = 512, rounds: int = 8) -> None:
    torch.set_num_threads(1)
    print(
        f"cpu, {torch.get_num_threads()} thread(s), torch {torch.__version__}; {rows} rows of {tokens} tokens"
    )
    loops = {name: steps(arm, rows, tokens) for name, arm in ARMS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(rounds + 1):  # the first warms up
        for name, loop in loops.items():
            began = time.process_time()
            next(loop)
            if turn:
                seconds[name].append(time.process_time() - began)
    for name in loops:
        ratios = [own / trunk for own, trunk in zip(seconds[name], seconds["trunk"], strict=True)]
        print(
            f"{name:<16} median {1e3 * statistics.median(seconds[name]):7.1f} ms, "
            f"{statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    ratio = statistics.median(seconds["+ ssm: all"]) / statistics.median(seconds["trunk"])
    assert ratio <= BOUND, f"all modules take {ratio:.2f} times the trunk's step, over {BOUND}"


def steps(arm: tuple[tuple[str, ...], dict[str, float]], rows: int, tokens: int) -> Iterator[float]:
    """The loss of one training step after another."""
    features, weights = arm
    torch.manual_seed(0)
    backbone = load_backbone(BackboneConfig.model_validate({"workspace": {"preset": "tiny"}}), VOCAB)
    settings = {"features": features, "learn": "all", "weights": weights}
    if "pkm" in features:
        settings["temperature"] = (2.0, 0.7)
    method = Workspace(
        backbone, Workspace.Config.model_validate(settings), Markers(eos=1, answer_prefix=(2,))
    )
    config, optim = (
        TrainConfig(steps=1 << 30, batch_size=rows, precision="fp32"),
        OptimConfig(lr=1e-3, clip=1.0),
    )
    state, batch = TrainState.create(method, config, optim), text(rows, tokens)
    for record in train(state, lambda *place: batch, config, optim):
        yield record.loss


def text(rows: int, tokens: int) -> Batch:
    """Windows of running text, as the task `text` gives them."""
    ids_BT = torch.randint(3, VOCAB, (rows, tokens), generator=torch.Generator().manual_seed(0))
    none = torch.full((rows, 0), IGNORE)
    return Batch(
        keys_B=torch.arange(rows),
        prompt_BP=ids_BT,
        steps_BKS=none[..., None],
        results_BKR=none[..., None],
        answer_BA=none,
        rare_B=torch.full((rows,), IGNORE),
    )


def profile(rows: int = 8, tokens: int = 512) -> None:
    loop = steps(ARMS["+ ssm: all"], rows, tokens)
    next(loop)
    with torch.profiler.profile() as found:
        next(loop)
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=60))


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    profile(*numbers[:2]) if "--profile" in sys.argv else main(*numbers)
