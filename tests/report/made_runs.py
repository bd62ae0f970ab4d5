"""Run folders with realistic figures, without training anything."""

import json
import math

import numpy as np
import yaml

from quietreasoning.evaluate.compare import compare_all, verdicts
from quietreasoning.evaluate.rows import Report, arm_name, save
from quietreasoning.evaluate.statistics import wilson

HOPS = (1, 2, 3, 4)


def curve(method, effort=None, control=None):
    """Probability of being right at each number of hops."""
    direct = [0.98, 0.62, 0.30, 0.22]
    if method in ("plain", "pause") or control is not None:
        return direct if method in ("plain", "pause") else [0.80, 0.40, 0.20, 0.16]
    if effort is not None:
        return [0.995 if effort >= k else max(0.2, 0.75 - 0.25 * (k - effort)) for k in HOPS]
    return {"cot": [1.0] * 4, "continuous": [1, 0.995, 0.99, 0.985], "slots": [1, 1, 0.995, 0.98]}[method]


def arm(method, kind, items, seed, control=None, effort=None):
    """(row, outcomes) of one arm on items that cycle through HOPS."""
    passes = {"plain": 0, "pause": 0, "cot": 22.5, "continuous": 5, "slots": 4}[method]
    passes = effort if effort is not None else passes
    name = arm_name(method, control, effort)
    generator = np.random.Generator(np.random.Philox([seed, *name.encode()]))
    chances = curve(method, effort, control)
    right = [bool(generator.random() < chances[i % 4]) for i in range(items)]
    by_steps = {str(k): [sum(right[k - 1 :: 4]), len(right[k - 1 :: 4])] for k in HOPS}
    low, high = wilson(sum(right), items)
    row = {
        "task": "pointer", "split": "valid", "method": method, "kind": "control" if control else kind,
        "control": control, "effort": effort, "seed": seed, "n": items, "correct": sum(right),
        "accuracy": sum(right) / items, "low": low, "high": high, "unanswered": 0,
        "visible_tokens": 16.0 if method == "cot" else 0.0, "passes": float(passes),
        "latent_steps": 4.0 if kind in ("quiet", "filler") else 0.0,
        "ms": None if control else 2.1 + 1.3 * passes, "ms_batched": 0.2 + 0.05 * passes, "batch": 64,
        "by_steps": by_steps,
    }  # fmt: skip
    return row, {name: "".join("01"[hit] for hit in right)}


def make_report(
    seed=0, items=400, methods=("plain", "pause", "cot", "continuous", "slots"), efforts=(1, 2, 3, 4, 5)
):
    kinds = {"plain": "direct", "pause": "filler", "cot": "chain"}
    rows, outcomes = [], {}
    for method in methods:
        kind = kinds.get(method, "quiet")
        plan = [(None, None)]
        if kind in ("quiet", "filler"):
            plan += [(control, None) for control in ("zero", "shuffle", "filler")]
        if kind == "quiet":
            plan += [(None, effort) for effort in efforts]
        for control, effort in plan:
            row, bits = arm(method, kind, items, seed, control, effort)
            rows.append(row)
            outcomes |= bits
    hits = [i % 9 == 0 for i in range(items)]
    low, high = wilson(sum(hits), items)
    nothing = dict.fromkeys(
        ("control", "effort", "visible_tokens", "passes", "latent_steps", "ms", "ms_batched", "batch")
    )
    rows.append({
        **rows[0], **nothing, "method": "shortcut: 2-hop", "kind": "shortcut", "correct": sum(hits),
        "accuracy": sum(hits) / items, "low": low, "high": high,
        "by_steps": {str(k): [sum(hits[k - 1 :: 4]), len(hits[k - 1 :: 4])] for k in HOPS},
    })  # fmt: skip
    outcomes["shortcut: 2-hop"] = "".join("01"[hit] for hit in hits)
    samples = [
        {
            "arm": method, "id": f"pointer-valid-0-{i}", "prompt": "q > c , b > q , c > f , f > b ? b 2",
            "written": "b > q\nq > c\n#### c" if method == "cot" else "#### c", "answer": "c", "gold": "c",
            "correct": method != "plain",
        }
        for i in range(2) for method in methods
    ]  # fmt: skip
    return Report(
        task="pointer", split="valid", seed=seed, rows=tuple(rows),
        items=tuple(f"pointer-valid-0-{i}" for i in range(items)), outcomes=outcomes,
        comparisons=tuple(compare_all(rows, outcomes)), verdicts=tuple(verdicts(rows, outcomes)),
        samples=tuple(samples), settings={"n": items}, device="cpu (x86_64, 2 threads)",
    )  # fmt: skip


def make_run(folder, seed=0, name="slots/pointer", report=None, steps=600):
    """A whole run folder."""
    folder.mkdir(parents=True)
    settings = {
        "seed": seed, "backbone": {"path": None, "scratch": {"width": 128, "layers": 2}},
        "stages": [
            {"name": "chain", "method": {"name": "cot"}, "data": {"task": "pointer"}},
            {"name": "quiet", "method": {"name": "slots"}, "data": {"task": "pointer"}},
        ],
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    identity = {
        "recipe": name, "command": f"quiet train {name} seed={seed}", "commit": "0123abc", "device": "cpu",
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(identity))
    generator = np.random.default_rng(seed)
    with (folder / "log.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            noise = math.exp(0.1 * generator.standard_normal())
            stage = "chain" if step <= steps // 2 else "quiet"
            loss = 2.5 * math.exp(-step / 90) * noise + 0.01
            row = {"step": step, "stage": stage, "train/loss": loss, "train/lr": 1e-3}
            row |= (
                {"loss/next_token": loss}
                if stage == "chain"
                else {"loss/step": 30 * loss, "loss/answer": loss}
            )
            if step % 100 == 0:
                row["eval/pointer/accuracy"] = 1 - math.exp(-step / 200)
            file.write(json.dumps(row) + "\n")
    if report is not None:
        save(folder / "eval" / "rows.json", [report])
    return folder


STAGES = ("slots", "memory", "experts")


def make_staged_run(folder, seed=0, steps=60, bins=20):
    """A run of three stages: each logs metrics of its own, the last a histogram of gates."""
    make_run(folder, seed, name="workspace/tiny", steps=1)
    with (folder / "log.jsonl").open("w") as file:
        for step in range(1, 3 * steps + 1):
            stage = STAGES[(step - 1) // steps]
            row = {"step": step, "stage": stage, "train/loss": 1.0, "train/lr": 1e-3, "loss/lm": 3 / step}
            row |= {"train/slot_rank": 4 + 0.01 * step, "cost/seconds": 0.1}
            if stage != "slots":
                row["train/pkm_hit_rate"] = 0.3
            if stage == "experts":
                row["train/ssm_gate"] = 0.4
                row |= {f"train/ssm_gate_bin_{i:02d}": float(i in (7, 8)) / 2 for i in range(bins)}
            file.write(json.dumps(row) + "\n")
    return folder


def make_text_report(seed=0):
    """Two arms that read running text."""
    rows = [
        {
            "task": "text", "split": "test", "method": method, "kind": "text",
            "control": None, "effort": None, "seed": seed, "n": 50,
            "correct": 900, "accuracy": 0.3, "low": 0.28, "high": 0.32,
            "unanswered": 0, "by_steps": {},
            "groups": {}, "tokens": 3000, "nll": math.log(ppl), "perplexity": ppl,
            "perplexity_low": ppl - 1.5, "perplexity_high": ppl + 1.5, "visible_tokens": 0.0, "passes": 0.0,
            "latent_steps": 0.0, "ms": None, "ms_batched": 12.0, "batch": 8,
        }
        for method, ppl in (("trunk", 41.25), ("workspace", 39.75))
    ]  # fmt: skip
    return Report(
        task="text", split="test", seed=seed, rows=tuple(rows), items=tuple(f"text-{i}" for i in range(50)),
        outcomes={}, comparisons=(), verdicts=(), samples=(), settings={"n": 50}, device="cpu",
    )  # fmt: skip
