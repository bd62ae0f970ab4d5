"""`python benchmarks/quant.py [seeds] [threads]`: what integers cost a model, rounded or trained for.

A two-layer Llama learns a random second-order Markov source, then becomes integers in three ways: ptq rounds
it; qat trains on with the labels, qad with its own float copy as the teacher, both with layers that count
(`train.quant` with start 0) and the same steps and rate. Per arm, medians over seeds: bytes of the file, loss
and KL to the float model in nats a held-out token, tokens/s of a forward in turns beside the float one.

Asserts what must hold: the stored integers say what training said, 4-bit qad is nearer to the float model
than 4-bit ptq. Speed is printed, not judged.
"""

from __future__ import annotations

import copy
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from quietreasoning.backbone import int_folder
from quietreasoning.backbone.quant import prepare_model
from quietreasoning.nn.fake_quant import Bits, switch

IDS, LENGTH, ROWS, WIDTH = 12, 32, 16, 48
FLOAT_STEPS, MORE_STEPS, RATE, MORE_RATE = 500, 60, 4e-3, 5e-4
KINDS = {"w8a8": Bits(), "w4a8": Bits(4, 8), "w4a8 in groups of 16": Bits(4, 8, 16)}


def source(seed: int) -> Tensor:
    """Probabilities of the next id after two, [IDS, IDS, IDS]."""
    draw = torch.Generator().manual_seed(seed)
    return (3.0 * torch.randn(IDS, IDS, IDS, generator=draw)).softmax(-1)


def text(law: Tensor, rows: int, seed: int) -> Tensor:
    """Sequences [rows, LENGTH] of the source."""
    draw = torch.Generator().manual_seed(seed)
    ids = [torch.randint(IDS, (rows,), generator=draw) for _ in range(2)]
    while len(ids) < LENGTH:
        ids.append(torch.multinomial(law[ids[-2], ids[-1]], 1, generator=draw)[:, 0])
    return torch.stack(ids, 1)


def loss_of(model: nn.Module, ids_BT: Tensor, teacher: nn.Module | None) -> Tensor:
    """Nats a token: of the labels, or of the teacher's law."""
    logits_BTV = model(input_ids=ids_BT).logits[:, :-1]
    if teacher is None:
        return F.cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten())
    with torch.no_grad():
        taught_BTV = teacher(input_ids=ids_BT).logits[:, :-1]
    kl = F.kl_div(logits_BTV.log_softmax(-1), taught_BTV.log_softmax(-1), log_target=True, reduction="sum")
    return kl / logits_BTV[..., 0].numel()


def trained(model: nn.Module, law: Tensor, steps: int, rate: float, teacher: nn.Module | None = None):
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        loss_of(model, text(law, ROWS, 1000 + step), teacher).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def counting(model: nn.Module, bits: Bits) -> nn.Module:
    """A copy whose layers count."""
    model = copy.deepcopy(model)
    prepare_model(model, bits)
    switch(model, True)
    return model


@torch.no_grad()
def figures(model: nn.Module, plain: nn.Module, held_BT: Tensor) -> dict[str, float]:
    """Of a float model, or of one whose layers count: it is stored, and must say the same."""
    stored = model
    if model is not plain:
        stored = int_folder.convert(copy.deepcopy(model))
        here, there = (each(input_ids=held_BT).logits for each in (model, stored))
        assert (here - there).norm() <= 1e-5 * here.norm(), "the stored integers say something else"
    with tempfile.TemporaryDirectory() as folder:
        stored.save_pretrained(folder)
        size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    rates = []
    for _ in range(3):
        seconds = []
        for each in (stored, plain):
            began = time.perf_counter()
            each(input_ids=held_BT)
            seconds.append(time.perf_counter() - began)
        rates.append(seconds[1] / seconds[0])
    return {
        "bytes": size,
        "loss": float(loss_of(stored, held_BT, None)),
        "kl": float(loss_of(stored, held_BT, plain)),
        "speed": statistics.median(rates),
        "tokens/s": held_BT.numel() / seconds[0],
    }


def arms(seed: int) -> dict[str, dict[str, float]]:
    """Every arm of one seed."""
    torch.manual_seed(seed)
    law = source(seed)
    shape = LlamaConfig(
        vocab_size=IDS, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=LENGTH, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    plain = trained(LlamaForCausalLM(shape), law, FLOAT_STEPS, RATE)
    held_BT = text(law, 64, 1)
    found = {"float": figures(plain, plain, held_BT)}
    for name, bits in KINDS.items():
        found[f"{name}, ptq"] = figures(counting(plain, bits), plain, held_BT)
        for how, teacher in (("qat", None), ("qad", plain)):
            model = trained(counting(plain, bits), law, MORE_STEPS, MORE_RATE, teacher)
            found[f"{name}, {how}"] = figures(model, plain, held_BT)
        if bits.weight == 4:
            near, far = (found[f"{name}, {how}"]["kl"] for how in ("qad", "ptq"))
            assert near < far, f"seed {seed}, {name}: KL {near:.4f} after qad, {far:.4f} without"
    return found


def table(found: list[dict[str, dict[str, float]]]) -> list[str]:
    """One line an arm: medians, and the smallest and largest KL."""
    lines = [
        f"{'arm':26} {'bytes':>8} {'loss':>7} {'KL':>8} {'(from':>8} {'to)':>8} {'x float':>8} {'tok/s':>9}"
    ]
    for arm in found[0]:
        own = {name: [each[arm][name] for each in found] for name in found[0][arm]}
        mid = {name: statistics.median(values) for name, values in own.items()}
        lines.append(
            f"{arm:26} {mid['bytes']:8.0f} {mid['loss']:7.4f} {mid['kl']:8.5f} {min(own['kl']):8.5f} "
            f"{max(own['kl']):8.5f} {mid['speed']:8.2f} {mid['tokens/s']:8.0f}"
        )
    return lines


def main(seeds: int = 3, threads: int = 1) -> None:
    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    print(f"cpu, {threads} thread(s), torch {torch.__version__}, fp32; seeds 0 to {seeds - 1}")
    print("\n".join(table([arms(seed) for seed in range(seeds)])))


if __name__ == "__main__":
    main(*[int(word) for word in sys.argv[1:]])
