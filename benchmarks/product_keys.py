"""`python benchmarks/product_keys.py [tokens ...]`: product keys against scoring every slot of a large table.

A serving table: 2000 x 2000 slots, 4 heads, keys of 2 x 128, int8 values of 256, top 32. Three ways find the
same slots, and then read them: product keys; all n x n sums of the two halves' scores; and the exhaustive
search that a memory without product keys needs, the query against all 4,000,000 keys of 256, block by block.
They answer the same queries in turns. Peak memory is what a way adds to the table's own while it runs, as
the kernel counts it (Linux alone). Fails if slots or reads differ, or if product keys are not 100 times as
fast as the exhaustive search.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from quietreasoning.nn.product_key_memory import ProductKeyTable

SIDE, HEADS, KEY, VALUE, TOPK, BOUND = 2000, 4, 256, 256, 32, 100
BLOCK = 20  # sub-keys of the first half whose full keys exist at a time: 40,000 keys, 41 MB
ROUNDS, FAST_RUNS = 3, 20
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main(*tokens: int) -> None:
    print(f"cpu, {torch.get_num_threads()} thread(s), torch {torch.__version__}")
    table = serving_table()
    print(f"table: {SIDE**2:,} slots, {table.values_int8.nbytes / 1e9:.2f} GB of int8 values")
    for count in tokens or (1, 32):
        measure(table, count)


def serving_table() -> ProductKeyTable:
    """Random rows; no float table is ever built."""
    torch.manual_seed(0)
    table = ProductKeyTable(SIDE**2, VALUE, HEADS, KEY, TOPK, int8=True).requires_grad_(False).eval()
    table.values_int8.random_(-127, 128)
    table.scale.uniform_(0.0005, 0.002)
    return table


@torch.no_grad()
def measure(table: ProductKeyTable, tokens: int) -> None:
    query_RTHQ = torch.randn(1, tokens, HEADS, KEY, generator=torch.Generator().manual_seed(tokens))
    ways: dict[str, tuple[Callable[..., tuple[Tensor, Tensor]], int]] = {
        "product keys": (product_keys, FAST_RUNS),
        "all n x n sums": (all_sums, 1),
        "exhaustive": (exhaustive, 1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    peaks: dict[str, float] = {}
    wanted = table.gather(*product_keys(table, query_RTHQ))
    for _ in range(ROUNDS):
        for name, (way, runs) in ways.items():
            before = watch_memory()
            began = time.perf_counter()
            for _ in range(runs):
                indices, weights = way(table, query_RTHQ)
                read_RTV = table.gather(indices, weights)
            seconds[name].append((time.perf_counter() - began) / runs)
            peaks[name] = max(peaks.get(name, 0.0), peak_memory() - before)
            torch.testing.assert_close(read_RTV, wanted, rtol=1e-3, atol=1e-4, msg=f"{name} reads otherwise")
            same = indices.sort(-1).values == product_keys(table, query_RTHQ)[0].sort(-1).values
            assert same.float().mean() > 0.999, f"{name} finds other slots"  # rounding may swap near ties
    print(f"{tokens} token(s), {ROUNDS} rounds")
    for name in ways:
        ratios = [slow / fast for slow, fast in zip(seconds[name], seconds["product keys"], strict=True)]
        middle, spread = 1e3 * statistics.median(seconds[name]), f"{min(ratios):,.1f} to {max(ratios):,.1f}"
        print(
            f"  {name}: median {middle:,.2f} ms, peak +{peaks[name]:,.0f} MB, "
            f"{statistics.median(ratios):,.1f} x product keys ({spread})"
        )
    faster = statistics.median(seconds["exhaustive"]) / statistics.median(seconds["product keys"])
    assert faster >= BOUND, f"product keys are only {faster:.0f} times as fast as the exhaustive search"


def unit(table: ProductKeyTable) -> Tensor:
    return torch.nn.functional.normalize(table.keys, dim=-1)


def product_keys(table: ProductKeyTable, query_RTHQ: Tensor) -> tuple[Tensor, Tensor]:
    return table.select(query_RTHQ, 1.0)


def all_sums(table: ProductKeyTable, query_RTHQ: Tensor) -> tuple[Tensor, Tensor]:
    """Every sum of the two halves' scores, for one token and head at a time."""
    scores_RTHCn = torch.einsum("rthcd,hcnd->rthcn", query_RTHQ.unflatten(-1, (2, -1)), unit(table))
    found = [
        (half_Cn[0, :, None] + half_Cn[1]).flatten().topk(TOPK) for half_Cn in scores_RTHCn.flatten(0, 2)
    ]
    best = torch.stack([top.values for top in found]).view(*query_RTHQ.shape[:3], TOPK)
    return torch.stack([top.indices for top in found]).view_as(best), best.softmax(-1)


def exhaustive(table: ProductKeyTable, query_RTHQ: Tensor) -> tuple[Tensor, Tensor]:
    """Each slot's own key against the query, for one head at a time; the best so far pass on."""
    best, at = [], []
    for head, query_TQ in enumerate(query_RTHQ[0].unbind(1)):
        first_nd, second_nd = unit(table)[head]
        scores_TK, slots_TK = query_TQ.new_zeros(len(query_TQ), 0), torch.zeros(len(query_TQ), 0).long()
        for start in range(0, SIDE, BLOCK):
            some_bd = first_nd[start : start + BLOCK]
            shape = (len(some_bd), SIDE, KEY // 2)
            keys_SQ = torch.cat([some_bd[:, None].expand(shape), second_nd.expand(shape)], -1).flatten(0, 1)
            top = (query_TQ @ keys_SQ.T).topk(TOPK)
            scores_TM = torch.cat([scores_TK, top.values], 1)
            slots_TM = torch.cat([slots_TK, top.indices + start * SIDE], 1)
            scores_TK, chosen = scores_TM.topk(TOPK)
            slots_TK = slots_TM.gather(1, chosen)
        best.append(scores_TK)
        at.append(slots_TK)
    return torch.stack(at, 1)[None], torch.stack(best, 1)[None].softmax(-1)


def watch_memory() -> float:
    """Forget the peak so far; the present MB. Zero where the kernel does not tell."""
    if not STATUS.exists():
        return 0.0
    CLEAR.write_text("5")
    return kernel_megabytes("VmRSS")


def peak_memory() -> float:
    return kernel_megabytes("VmHWM") if STATUS.exists() else 0.0


def kernel_megabytes(key: str) -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1e3


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
