"""`python benchmarks/kd.py [rounds]`: distillation in chunks of rows, beside the same with all logits held.

Both begin at last hidden states of student and teacher and end at the gradients of the student's states and
head, for forward KL plus the labels' cross-entropy. `torch` is `kl_div` and `cross_entropy` on whole logits;
`chunked` gives each sum its own gradient, `joint` one to both. `sparse` has 64 likely ids in the teacher's
place. Every measurement is a process of its own, in turns: CPU seconds of one thread; and, with an allocator
that gives back what is freed, how far the largest resident memory rises above the inputs (Linux, glibc).
Then what `quiet data teacher` would write: bytes a token beside whole logits in half precision, and its
tokens/s beside a bare forward of the same teacher to log-probabilities, in turns.

Fails where chunks take more than a sixth of the memory or 1.1 times the seconds of `torch`.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from quietreasoning.losses.kd import Divergence
from quietreasoning.losses.kd_chunked import chunked_kd
from quietreasoning.losses.kd_sparse import SparseTeacher
from quietreasoning.losses.kd_targets import StateTeacher

ROWS, WIDTH, IDS, KEPT, CHUNK = 384, 16, 151_936, 64, 24
MEMORY, SECONDS = 1 / 6, 1.1
ARMS = ("torch", "chunked", "joint", "sparse", "sparse chunked", "sparse joint")


def inputs() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    made = {
        name: torch.randn(rows, WIDTH, generator=draw)
        for name, rows in (("hidden", ROWS), ("taught", ROWS), ("weight", IDS), ("head", IDS))
    }
    made["hidden"].requires_grad_()
    made["weight"].requires_grad_()
    made["labels"] = torch.randint(0, IDS, (ROWS,), generator=draw)
    return made


def sparse_teacher(given: dict[str, Tensor]) -> SparseTeacher:
    """Of 8 rows at a time, so that making it does not set the largest memory."""
    parts = [SparseTeacher.of(each @ given["head"].T, KEPT) for each in given["taught"].split(8)]
    ids, logp = (torch.cat([getattr(part, name) for part in parts]) for name in ("ids_NK", "logp_NK"))
    return SparseTeacher(ids, logp, vocabulary=IDS)


def whole(given: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        target_NV = (given["taught"] @ given["head"].T).log_softmax(-1)
    logits_NV = given["hidden"] @ given["weight"].T
    kd = F.kl_div(logits_NV.log_softmax(-1), target_NV, log_target=True, reduction="sum")
    return kd + F.cross_entropy(logits_NV, given["labels"], reduction="sum")


def measure(arm: str) -> dict[str, float]:
    """Seconds of a step after one to warm up, MiB that both rose, and the loss for comparison."""
    torch.set_num_threads(1)
    given = inputs()
    known, weight = [given["weight"]], given["weight"]
    teacher = (
        sparse_teacher(given)
        if "sparse" in arm
        else StateTeacher(given["taught"], lambda h: h @ given["head"].T)
    )
    chunk = ROWS if arm == "sparse" else CHUNK
    joint = arm.endswith("joint")

    def step() -> float:
        if arm == "torch":
            loss = whole(given)
        else:
            found = chunked_kd(
                given["hidden"],
                lambda h: h @ weight.T,
                known,
                teacher,
                given["labels"],
                Divergence(),
                chunk=chunk,
                joint=joint,
            )
            loss = found.total
        torch.autograd.grad(loss, [given["hidden"], weight])
        return loss.item()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loss = step()
    began = time.process_time()
    step()
    seconds = time.process_time() - began
    rose = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": seconds, "memory": rose / 1024, "loss": loss}


def cached(rounds: int = 3) -> dict[str, float]:
    """Bytes a token of a cache of `KEPT` ids, CPU seconds a token of making it and of the forward alone."""
    # here, so that the processes whose memory is measured stay small
    from quietreasoning.backbone import BackboneConfig, ScratchConfig, load_backbone, role_of
    from quietreasoning.contract import Role
    from quietreasoning.data.teacher_cache.forward import Reader
    from quietreasoning.data.teacher_cache.keys import Row, row_key
    from quietreasoning.data.teacher_cache.targets import Keep
    from quietreasoning.data.teacher_cache.work import Work
    from quietreasoning.train.signals import StopFlag

    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = ScratchConfig(layers=2, width=WIDTH, heads=2, mlp=WIDTH, context=64)
    teacher = load_backbone(BackboneConfig(scratch=shape), IDS).eval()
    learned = np.arange(48) < 47  # the last token predicts none
    texts = np.random.default_rng(0).integers(0, IDS, (8, 48)).astype(np.int32)
    rows = [Row(row_key(ids, learned), ids, learned, ids) for ids in texts]
    count, keep = sum(row.positions for row in rows), Keep(KEPT)
    settings = {"keep": keep.told(), "rows_per_shard": len(rows), "vocabulary": IDS}
    seconds: dict[str, list[float]] = {"capture": [], "forward": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as made:
            began = time.process_time()
            Work(Path(made), settings, Reader(teacher, IDS, keep), StopFlag()).through(rows, 4)
            seconds["capture"].append(time.process_time() - began)
            size = sum(file.stat().st_size for file in Path(made).iterdir())
        began = time.process_time()
        with torch.no_grad():
            for row in rows:
                ids_BT = torch.from_numpy(row.ids).long()[None]
                teacher.logits(teacher(ids_BT, role_of(ids_BT, Role.PROMPT)).hidden_BTD).log_softmax(-1)
        seconds["forward"].append(time.process_time() - began)
    return {"bytes": size / count} | {name: statistics.median(own) / count for name, own in seconds.items()}


def main(rounds: int) -> None:
    print(
        f"cpu, 1 thread, torch {torch.__version__}, fp32; {ROWS} rows, {IDS} ids, width {WIDTH}, "
        f"chunks of {CHUNK}, {KEPT} ids kept; one [rows, ids] is {ROWS * IDS * 4 / 2**20:.0f} MiB"
    )
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for _ in range(rounds):
        for arm in ARMS:
            found[arm].append(apart(arm))
    seconds = {arm: statistics.median(each["seconds"] for each in own) for arm, own in found.items()}
    memory = {arm: apart(arm, MALLOC_MMAP_THRESHOLD_="1048576")["memory"] for arm in ARMS}
    for arm, own in found.items():
        spread = [each["seconds"] for each in own]
        print(
            f"{arm:15} {seconds[arm]:.2f} s ({min(spread):.2f} to {max(spread):.2f}), "
            f"{seconds[arm] / seconds['torch']:.2f} x; {memory[arm]:.0f} MiB, "
            f"1/{memory['torch'] / memory[arm]:.1f}; loss {own[0]['loss']:.1f}"
        )
    cache = apart("cached")
    print(
        f"a teacher's cache of {KEPT} ids: {cache['bytes']:.0f} bytes a token, "
        f"1/{2 * IDS / cache['bytes']:.0f} of whole logits; {1 / cache['capture']:.0f} tokens a CPU second, "
        f"{cache['capture'] / cache['forward']:.2f} x the seconds of the forward alone"
    )
    for arm in ("chunked", "joint"):
        assert abs(found[arm][0]["loss"] / found["torch"][0]["loss"] - 1) < 1e-4, f"{arm} is another loss"
        assert memory[arm] <= MEMORY * memory["torch"], f"{arm}: more than {MEMORY:.2f} of the memory"
        assert seconds[arm] <= SECONDS * seconds["torch"], f"{arm}: more than {SECONDS} of the seconds"


def apart(arm: str, **environment: str) -> dict[str, float]:
    """`measure` in a process of its own."""
    words = [sys.executable, __file__, arm]
    said = subprocess.run(words, capture_output=True, text=True, check=True, env=os.environ | environment)
    return json.loads(said.stdout)


if __name__ == "__main__":
    if sys.argv[1:] and not sys.argv[1].isdigit():
        arm = " ".join(sys.argv[1:])
        print(json.dumps(cached() if arm == "cached" else measure(arm)))
    else:
        main(*([int(word) for word in sys.argv[1:]] or [3]))
