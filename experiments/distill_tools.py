"""What a teacher, spans, rewards and its own text add to a tiny student that calls tools.

    quiet train distill/teacher-tiny && quiet export runs/distill-teacher-tiny-0 runs/teacher
    python experiments/distill_tools.py --teacher runs/teacher --seeds 0 1 2 --out runs/distill-tools

Few questions have gold answers (`--labelled`), the teacher answers many (`--rows`, `quiet data texts --keep
all --no-steps`: nobody checks them). Arms of a seed, from nothing, for the same steps: `sft`, the gold rows
alone; `text`, what the teacher wrote; `kd`, that and what it expected at every token; `spans`, and what
tokens are. Then from `spans`: `rewards` on the gold questions that take a call, `rewards-all` on all of
them; `longer`, as many further steps of the same kind, and `beside`, these with a reward for answers that say
what the teacher said. From `kd`: `own`, the student's own text; `kd-longer`; `kd-spans`, the same steps with
the terms of `spans`. From `spans` as integers: `int8`, rounded, and `qat`, the float student teaching its
rounded self. `sft-all` has gold answers to every question. Rows of `--split` are asked by real generation:
`answers` are right where call and result are given, `served` where the student's own call is run and told. KL
is per token in nats: of the student from the teacher on gold text, and the reverse on text of its own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from arms import over_seeds, trained

from quietreasoning.build import Loaded, resolve
from quietreasoning.data.config import build_task
from quietreasoning.data.example import Example
from quietreasoning.data.tasks.tools import Tools
from quietreasoning.evaluate.call_figures import call_figures
from quietreasoning.evaluate.tool_scores import read_calls, valid_call
from quietreasoning.export import export
from quietreasoning.methods import METHODS
from quietreasoning.scribe import Draws
from quietreasoning.texts import Request, write_texts

SPANS = {"tool_name": 0.2, "arg_key": 0.3, "arg_value": 0.3, "grammar": 0.1, "tool_choice": 0.2}
LEARNED = {
    "sft": {"kd": 0, "answer": 1},
    "text": {"kd": 0, "answer": 1},
    "kd": {"kd": 0.5, "answer": 0.5},
    "spans": {"kd": 0.5, "answer": 0.5} | SPANS,
    "sft-all": {"kd": 0, "answer": 1},
}
FROM = {
    "rewards": "spans",
    "rewards-all": "spans",
    "beside": "spans",
    "longer": "spans",
    "own": "kd",
    "kd-longer": "kd",
    "kd-spans": "kd",
    "int8": "spans",
    "qat": "spans",
}
RATES = ("exact", "tool", "argument_f1", "parses", "valid", "over_calling", "declined")
TASK = "data.options={tools: [2], parallel: 0}"
GOLD = {"sft", "rewards", "rewards-all", "sft-all"}  # arms that read gold rows
LONGEST = 48


def settings(name: str, seed: int, args: argparse.Namespace) -> tuple[str, list[str]]:
    """Recipe and settings of an arm."""
    if name in GOLD:
        data = [TASK, f"data.train={args.rows if name == 'sft-all' else args.labelled}"]
    else:
        data = [
            "data.task=teacher-rows",
            f"data.path={taught_rows(seed, args)}",
            "data.options={spaced: true, max_bad_fraction: 0.05}",
        ]
    shared = [
        *data,
        f"data.tokenizer={{path: {args.teacher}, train: null}}",
        "train.save_every=0",
        "train.batch_size=16",
        f"data.format.spans.grammar={str(name in ('spans', 'longer', 'beside', 'kd-spans')).lower()}",
    ]
    teacher = f"method.teacher.path={args.teacher}"
    if name in LEARNED:
        heard = teacher if LEARNED[name]["kd"] else "method.teacher=null"
        return "distill/kd-tiny", [*shared, heard, *weighed(LEARNED[name]), f"train.steps={args.steps}"]
    after = [*shared, "optim.lr=1e-3", "optim.warmup_steps=5"]
    if name in ("rewards", "rewards-all"):
        asked = "call" if name == "rewards" else "both"
        return "distill/rewards-tiny", [*after, f"train.steps={args.after}", f"data.options.rows={asked}"]
    if name == "beside":
        drawn = f"by: task, group: 8, kl: 0.05, max_answer_tokens: {LONGEST}, beside: {args.beside}"
        after += [f"method.reward={{{drawn}}}"]
    if name == "own":
        return "distill/own-tiny", [*after, teacher, f"train.steps={args.after}"]
    if name in ("int8", "qat"):
        rounded = [*weighed({"kd": 1, "answer": 0}), "train.quant={start: 0}", "optim.lr=5e-4"]
        steps = args.after if name == "qat" else 0
        float_teacher = f"method.teacher.path={float_student(seed, args)}"
        return "distill/kd-tiny", [*after, *rounded, float_teacher, f"train.steps={steps}"]
    learned = LEARNED["spans" if name == "kd-spans" else FROM[name]]
    return "distill/kd-tiny", [*after, teacher, *weighed(learned), f"train.steps={args.after}"]


def weighed(weights: dict[str, float]) -> list[str]:
    return [f"method.weights.{key}={value}" for key, value in weights.items()]


def taught_rows(seed: int, args: argparse.Namespace) -> Path:
    """What the teacher answers to the training questions of a seed, right or wrong."""
    rows = args.out / f"rows-{seed}.jsonl"
    if not rows.exists():
        recipe = (
            "distill/kd-tiny",
            (f"seed={seed}", TASK, f"data.tokenizer={{path: {args.teacher}, train: null}}"),
        )
        draws = Draws(max_new_tokens=LONGEST)
        chosen = {"n": args.rows, "draws": draws, "steps": False, "keep": "all", "batch_size": 250}
        print(json.dumps(write_texts(Request(str(args.teacher), rows, *recipe, dtype="float32", **chosen))))
    return rows


def run_of(name: str, seed: int, args: argparse.Namespace) -> Loaded:
    recipe, chosen = settings(name, seed, args)
    start = f'"{args.out / f"{FROM[name]}-{seed}"}"' if name in FROM else "null"
    return trained(
        resolve(recipe, [*chosen, f"seed={seed}", f"init={start}"], str(args.out / f"{name}-{seed}"))
    )


def float_student(seed: int, args: argparse.Namespace) -> Path:
    folder = args.out / f"spans-{seed}-folder"
    if not folder.exists():
        export(str(args.out / f"spans-{seed}"), str(folder))
    return folder


@torch.no_grad()
def measured(run: Loaded, args: argparse.Namespace) -> dict[str, float]:
    """Rates of real generation and nats per token, over test rows of both kinds."""
    asked = resolve("distill/kd-tiny", [f"seed={run.config.seed}", TASK])
    task = build_task(asked.config.stages[-1].data)
    examples = list(task.split(args.split, args.n))
    texts = written(run, examples)
    found = call_figures(texts, examples)["figures"]
    told = [
        text.split() == e.answer.split()
        for text, e in zip(texts, examples, strict=True)
        if not e.meta["calls"]
    ]
    answers = [
        text.split() == e.answer.split()
        for text, e in zip(texts, examples, strict=True)
        if e.meta["kind"] == "answer"
    ]
    return {
        **{name: found[name] for name in RATES if name in found},
        "answers": sum(answers) / len(answers),
        "no_call": sum(told) / max(1, len(told)),
        "served": served(run, task, examples, texts),
        **nats(run, examples[: args.n // 2], args),
    }


@torch.no_grad()
def written(run: Loaded, examples: Sequence[Example]) -> list[str]:
    texts = []
    for first in range(0, len(examples), 125):
        prompts = run.encoder.prompts(examples[first : first + 125])
        texts += map(run.encoder.text, run.method.generate(prompts, max_new_tokens=LONGEST).answers)
    return texts


def served(run: Loaded, task: Tools, examples: Sequence[Example], texts: Sequence[str]) -> float:
    """Requests that take a call and end in the right words: the student calls, the tool runs, the student
    tells. A call that does not keep its schema is refused, and nothing is served."""
    asked = [
        (e, read_calls(text)) for e, text in zip(examples, texts, strict=True) if e.meta["kind"] == "call"
    ]
    next_rows = [
        task.after(e, list(calls))
        for e, calls in asked
        if calls and all(valid_call(call, e.meta["tools"]) for call in calls)
    ]
    told = written(run, next_rows)
    return sum(text.split() == e.answer.split() for text, e in zip(told, next_rows, strict=True)) / len(asked)


def nats(run: Loaded, examples, args: argparse.Namespace) -> dict[str, float]:
    """KL of the student from the teacher on gold text; reverse KL on the student's own."""
    found = {}
    for name, extra in (("kl_gold", {}), ("kl_own", {"own": {"share": 1, "max_tokens": LONGEST}})):
        weights = {"kd": 0, "answer": 0, "own": 1} if extra else {"kd": 1, "answer": 0}
        config = METHODS["distill"].Config(
            teacher={"path": str(args.teacher)}, steps=False, weights=weights, **extra
        )
        probe = METHODS["distill"](run.method.backbone, config, run.method.markers).eval()
        total = count = 0.0
        for first in range(0, len(examples), 50):
            batch = run.encoder.batch([examples[i] for i in range(first, min(first + 50, len(examples)))])
            (term,) = probe(batch).terms.values()
            total, count = total + float(term.total), count + probe.units(batch)[term.unit]
        found[name] = total / count
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=[*LEARNED, *FROM])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--after", type=int, default=100)
    parser.add_argument("--labelled", type=int, default=300, help="questions with gold answers")
    parser.add_argument("--rows", type=int, default=4000, help="questions that the teacher answers")
    parser.add_argument("--beside", type=float, default=1.0, help="weight of the loss beside the reward")
    parser.add_argument("--split", default="test")
    parser.add_argument("--n", type=int, default=500)
    args = parser.parse_args()
    table: dict[str, list[dict[str, float]]] = {}
    for seed in args.seeds:
        for name in args.arms:
            row = measured(run_of(name, seed, args), args)
            table.setdefault(name, []).append(row)
            print(name, seed, json.dumps({key: round(value, 4) for key, value in row.items()}), flush=True)
    for name, rows in table.items():
        pooled = {key: [round(v, 4) for v in over_seeds([row[key] for row in rows])] for key in rows[0]}
        print(name, json.dumps(pooled))


if __name__ == "__main__":
    main()
