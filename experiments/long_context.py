"""What a compressed key/value cache costs in answers, on a small model that solves the questions without it.

    python experiments/long_context.py --seeds 0 1 2 --out runs/long-context

Task `ruler` in made-up words, prompts of 512 and 1,024 words, 160 test questions: one needle, four needles
that are asked for one after the other, four values of a key, a chain of variables; and one needle at ten
depths of 1,024 words, half as many questions more. Grades are RULER's, the share of the references found.
Every arm answers the same questions; drops are relative to the plain cache, paired by question, their
interval the wider of a bootstrap over questions and Student's t over seeds. Bytes and peaks are those of 32
prompts of 1,024 words with eight tokens written: what the caches' tensors hold, and what resident memory
reached above what it was before the prompts (Linux), while decoding and in the whole; each arm in a process
of its own. Fails where the arm that drops and rounds nothing writes another token than the plain cache.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from arms import arm, trained
from torch import Tensor

from quietreasoning.build import Loaded, open_run
from quietreasoning.data.example import Example
from quietreasoning.data.tasks.ruler import Ruler
from quietreasoning.evaluate.asking import answer_all, answering
from quietreasoning.evaluate.config import EvalConfig
from quietreasoning.evaluate.controls import Arm
from quietreasoning.evaluate.grades import references
from quietreasoning.evaluate.kv_cache import through
from quietreasoning.evaluate.meter import Peak
from quietreasoning.evaluate.statistics import ratio_bootstrap, seed_interval
from quietreasoning.memory.kv_cache.cache import held_bytes
from quietreasoning.memory.kv_cache.settings import KVCacheSettings, PQSettings

KINDS = ("niah_single_2", "niah_multiquery", "niah_multivalue", "vt")
NEEDLE = "niah_single_2"
LENGTHS = (512, 1024)
ARMS: dict[str, KVCacheSettings | None] = {
    "plain": None,
    "full": KVCacheSettings(keep_frac=1, bits="full"),
    "int8": KVCacheSettings(keep_frac=1, bits=8),
    "snapkv .4 + int8": KVCacheSettings(keep_frac=0.4, bits=8),
    "snapkv .3 + int8": KVCacheSettings(keep_frac=0.3, bits=8),
    "snapkv .2 + int8": KVCacheSettings(keep_frac=0.2, bits=8),
    "int4": KVCacheSettings(keep_frac=1, bits=4),
    "snapkv .3 + int4": KVCacheSettings(keep_frac=0.3, bits=4),
    "mixed": KVCacheSettings(keep_frac=1, bits="mixed"),
    "int8 + pq": KVCacheSettings(keep_frac=1, bits=8, pq=PQSettings()),
}


def questions(run: Loaded, n: int, **changes: object) -> Sequence[Example]:
    """Test questions, kinds, lengths and depths in equal parts."""
    options = run.config.stages[-1].data.options
    return Ruler(options.model_copy(update={"kinds": KINDS, "length": LENGTHS} | changes)).split("test", n)


def answered(run: Loaded, examples: Sequence[Example], settings: KVCacheSettings | None) -> dict:
    """What is written to each question, its grade, and how many layers fell back to 8 bits."""
    config = EvalConfig(batch_size=50, max_new_tokens=run.max_new_tokens, timing=0)
    prompts = [run.encoder.encode(example).prompt for example in examples]
    with answering(run.method), through(run.method, settings) as meter:
        it = Arm(run.method, "it")
        said = answer_all(it, prompts, config, lambda: None, lambda *at: None, None, meter)
    texts = map(run.encoder.text, said.answers)
    grades = [references(text, example) for text, example in zip(texts, examples, strict=True)]
    return {"tokens": said.tokens, "grades": grades, "fallback": meter.figures()["fallback_rate"]}


def held(run: Loaded, prompt_BP: Tensor, settings: KVCacheSettings | None) -> dict[str, int]:
    """Bytes of the cache, and the peaks."""
    method, limit = run.method, run.max_new_tokens
    with answering(method), through(method, settings) as meter:
        peak = Peak(run.device)
        before = peak.before
        states = method.prepare(prompt_BP, None, None, limit).states
        reading = peak.above()
        gc.collect()
        peak.begin()
        method.write(states, limit)
        decoding = peak.above() + peak.before - before
        bytes_ = sum(map(held_bytes, meter.made))
    return {"bytes": bytes_, "decoding": decoding, "whole": max(reading, decoding)}


def sizes(run: Loaded, rows: int = 32) -> dict[str, dict[str, int]]:
    """Arm -> what `held` says, in a process forked for it: all begin with the same memory."""
    prompts = run.encoder.prompts(questions(run, rows, length=max(LENGTHS)))
    held(run, prompts, ARMS["int8 + pq"])  # what libraries load at their first use
    gc.collect()
    return {
        name: forked(lambda settings=settings: held(run, prompts, settings))
        for name, settings in ARMS.items()
    }


def forked(work: Callable[[], dict[str, int]]) -> dict[str, int]:
    ours, theirs = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.write(theirs, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as said:
        text = said.read()
    os.waitpid(child, 0)
    return json.loads(text)


def asked(seed: int, out: Path, n: int, overrides: Sequence[str]) -> dict:
    """All arms of a seed on the same questions."""
    run = trained(arm("long_context.yaml", out / f"plain-{seed}", [f"seed={seed}", *overrides]))
    examples = [*questions(run, n), *questions(run, n // 2, kinds=NEEDLE, length=max(LENGTHS))]
    said = {name: answered(run, examples, settings) for name, settings in ARMS.items()}
    same = said["full"]["tokens"] == said["plain"]["tokens"]
    assert same, f"seed {seed}: the arm that drops and rounds nothing writes other tokens"
    about = [{key: example.meta[key] for key in ("kind", "length", "depth")} for example in examples]
    return {
        "seed": seed,
        "about": [one | {"for": "kinds" if i < n else "depths"} for i, one in enumerate(about)],
        "grades": {name: one["grades"] for name, one in said.items()},
        "fallback": {name: one["fallback"] for name, one in said.items()},
    }


def measured_apart(run: Path) -> dict[str, dict[str, int]]:
    """`sizes` in a process of its own, in which large blocks go back to the system when they are freed, so
    that the peak is of what lives; that makes it slow."""
    command = [sys.executable, __file__, "--sizes", str(run)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def drop(rows: Sequence[dict], name: str) -> str:
    """What an arm loses of the plain cache's grades, per cent of them, with its interval."""
    shares, reaches = [], []
    for row in rows:
        chosen = [i for i, about in enumerate(row["about"]) if about["for"] == "kinds"]
        plain, own = (np.array(row["grades"][each])[chosen] for each in ("plain", name))
        shares.append(float((plain - own).sum() / plain.sum()))
        reaches.append(ratio_bootstrap(plain - own, plain, seed=row["seed"]))
    low, high = seed_interval(shares, reaches)
    return f"{100 * statistics.fmean(shares):.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def mean(rows: Sequence[dict], name: str, **wanted: object) -> float:
    """Mean grade, per cent, of the questions of which this is true."""
    return 100 * statistics.fmean(
        grade
        for row in rows
        for about, grade in zip(row["about"], row["grades"][name], strict=True)
        if all(about[key] == value for key, value in wanted.items())
    )


def show(rows: Sequence[dict], size: dict[str, dict[str, int]]) -> None:
    """Tables of all seeds: drops and sizes, kinds by length, the needle by depth."""
    headings = "grade", "drop, % [95 %]", "MB, times fewer", "peak MB: decoding, whole", "fell back, %"
    print(line("arm", *headings))
    for name, own in size.items():
        fell = [row["fallback"][name] for row in rows]
        cells = [name, f"{mean(rows, name, **{'for': 'kinds'}):.1f}", drop(rows, name)]
        cells += [f"{own['bytes'] / 1e6:.2f}, {size['plain']['bytes'] / own['bytes']:.2f}"]
        cells += [f"{own['decoding'] / 1e6:.1f}, {own['whole'] / 1e6:.1f}"]
        print(line(*cells, "-" if None in fell else f"{100 * statistics.fmean(fell):.0f}"))
    print(line("grade", *(f"{kind}, {length}" for kind in KINDS for length in LENGTHS)))
    for name in ARMS:
        wanted = [{"kind": kind, "length": length, "for": "kinds"} for kind in KINDS for length in LENGTHS]
        print(line(name, *(f"{mean(rows, name, **each):.1f}" for each in wanted)))
    print(line("needle found, % by depth", *(f"{depth:.2f}" for depth in depths(rows))))
    for name in ARMS:
        found = (mean(rows, name, **{"for": "depths", "depth": depth}) for depth in depths(rows))
        print(line(name, *(f"{share:.0f}" for share in found)))


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def depths(rows: Sequence[dict]) -> list[float]:
    return sorted({about["depth"] for about in rows[0]["about"]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/long-context"))
    parser.add_argument("--n", type=int, default=160)
    parser.add_argument("--set", nargs="*", default=[], metavar="A.B=C", help="settings of the training")
    parser.add_argument("--sizes", type=Path, metavar="RUN", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.sizes is not None:
        print(json.dumps(sizes(open_run(options.sizes))))
        return
    for seed in options.seeds:
        kept = options.out / f"figures-{seed}.json"
        if not kept.exists():
            kept.write_text(json.dumps(asked(seed, options.out, options.n, options.set)))
    rows = [json.loads((options.out / f"figures-{seed}.json").read_text()) for seed in options.seeds]
    show(rows, measured_apart(options.out / f"plain-{options.seeds[0]}"))


if __name__ == "__main__":
    main()
