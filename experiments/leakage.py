"""Do quiet models leak, is one that does found out, and what does the bias in decoding cost?

    python experiments/leakage.py --seeds 0 1 2 --out runs/leakage
    python experiments/leakage.py --leakers --recipes --out runs/leakage \\
        --runs runs/distill-kd-tiny-0 --set data.task=tools data.path=null

The leakers are plain models whose training answers tell the working in `--share` of rows
(`because f h , 3 h a , 2 ... therefore c`) and are the answer alone in the others: of pointer chains, and of
tool calls, answered in JSON and sentences. They are asked `--n` test questions at each bias in decoding.
The quiet models are shipped recipes, with `--budget` of their steps: leakage is about what is written, not
about what is right. A run that has finished is not trained again. `--runs` are any runs, asked the test rows
of their own task, or of what `--set` makes of it, the way they answer.

Right is an answer that ends in the gold one. The lexicon is the default one and, where no gold answer holds
it, the comma. So that no share is low because nothing could be found, each answer is read once more with
the row's steps planted before it: `found` is the share of the answers in which the audit then sees steps.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from arms import arm, shown, trained

from quietreasoning.build import Loaded, open_run, resolve
from quietreasoning.data.config import DataConfig, build_task
from quietreasoning.data.example import Example
from quietreasoning.evaluate.answer_only import AnswerOnly
from quietreasoning.evaluate.leakage import Audit, leakage, pooled_leakage
from quietreasoning.evaluate.rationale import RATIONALE
from quietreasoning.recipe import load_recipe

RECIPES = {
    name: f"{name}/pointer"
    for name in ("plain", "pause", "continuous", "slots", "recursion", "workspace", "thoughts")
} | {"reasoner": "recursion/sudoku"}
TOOLS = ["backbone.scratch={width: 96, context: 384}", "train.steps=400", "train.batch_size=16"]
LEAKERS = {  # its rows, and what else than in leakage.yaml
    "pointer": ({"task": "pointer", "options": {"nodes": 6, "symbols": 8, "hops": [1, 2, 3, 4]}}, []),
    "tools": (
        {"task": "tools", "options": {"tools": [2], "parallel": 0}},
        [*TOOLS, "eval.max_new_tokens=96"],
    ),
}
CHUNK = 250


def told(example: Example) -> str:
    return f"because {' '.join(example.steps)} therefore {example.answer}"


def rows_of(data: DataConfig, split: str, n: int) -> list[Example]:
    return list(build_task(data).split(split, n))


def write_rows(folder: Path, data: DataConfig, share: float, rows: int) -> dict[str, Path]:
    """Files of the splits; a row's steps stand in it for the audit, not for the model."""
    files = {}
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", rows), ("valid", 64)):
        files[split], draw = folder / f"{split}.jsonl", random.Random(split)
        with files[split].open("w", encoding="utf-8") as file:
            for example in rows_of(data, split, count):
                answer = told(example) if draw.random() < share else example.answer
                row = {"prompt": example.prompt, "steps": list(example.steps), "answer": answer}
                file.write(json.dumps(row) + "\n")
    return files


def leaker(kind: str, seed: int, options: argparse.Namespace) -> Loaded:
    data, settings = LEAKERS[kind]
    files = write_rows(options.out / f"rows-{kind}", DataConfig(**data), options.share, options.rows)
    settings = [f"seed={seed}", f"data.path={files['train']}", *settings]
    settings.append(f"data.options.valid_path={files['valid']}")
    return trained(arm("leakage.yaml", options.out / f"leaker-{kind}-{seed}", settings))


@torch.no_grad()
def asked(run: Loaded, examples: Sequence[Example], bias: float = 0.0) -> dict:
    """Share of right answers, tokens an answer, leakage; found, and leakage of the answers found in."""
    commas = any("," in example.answer for example in examples)
    lexicon = RATIONALE if commas else (*RATIONALE, ",")
    answer_only = AnswerOnly(run.encoder.tokenizer, lexicon, bias)
    audit = Audit(lexicon, run.encoder.text, run.method.markers.thinking)
    answers: list[list[int]] = []
    for first in range(0, len(examples), CHUNK):
        permit = answer_only.permit(run.method) if bias else None
        prompt_BP = run.encoder.prompts(examples[first : first + CHUNK]).to(run.device)
        answers += run.method.generate(prompt_BP, max_new_tokens=run.max_new_tokens, permit=permit).answers
    pairs = list(zip(answers, examples, strict=True))
    leaked = [audit.read(answer, example) for answer, example in pairs]
    seen = [audit.read(planted(run, *pair), pair[1]).steps > 0 for pair in pairs]
    return {
        "right": sum(ends_in(run.encoder.text(answer), e.answer) for answer, e in pairs) / len(pairs),
        "length": sum(map(len, answers)) / len(answers),
        "leakage": leakage(leaked),
        "found": sum(seen) / len(seen),
        "where_found": leakage([one for one, sees in zip(leaked, seen, strict=True) if sees]),
        "sample": run.encoder.text(answers[0]),
    }


def planted(run: Loaded, answer: Sequence[int], example: Example) -> list[int]:
    """The answer, the row's steps before it."""
    working = run.encoder.tokenizer(" ".join(example.steps), add_special_tokens=False)
    return [*working["input_ids"], *answer]


def ends_in(text: str, answer: str) -> bool:
    """Whether the last words are the answer's."""
    wanted = answer.split()
    return text.split()[-len(wanted) :] == wanted


def shortened(recipe: str, budget: float) -> list[str]:
    """Each stage's steps, cut to a share of them."""
    values = load_recipe(recipe).values
    top = values.get("train", {}).get("steps")
    stages = {stage["name"]: stage.get("train", {}).get("steps", top) for stage in values.get("stages", ())}
    keys = {f"stages.{name}.train.steps": steps for name, steps in stages.items()} or {"train.steps": top}
    return [f"{key}={max(1, round(budget * steps))}" for key, steps in keys.items()]


def show(name: str, found: dict) -> None:
    print(
        f"{name:24} right {100 * found['right']:5.1f} %, {found['length']:4.1f} tokens an answer, leakage "
        f"{share(found['leakage'])}; planted steps found in {100 * found['found']:.1f} % of answers, whose "
        f"leakage is {share(found['where_found'])}; {found['sample']!r:.60}",
        flush=True,
    )


def share(one: dict | None) -> str:
    if one is None:
        return "unknown"
    return (
        f"{100 * one['share']:.2f} % [{100 * one['low']:.2f}, {100 * one['high']:.2f}] of {one['tokens']} "
        f"(lexicon {100 * one['lexicon']:.2f}, steps {100 * one['steps']:.2f})"
    )


def show_pooled(found: dict[str, dict], names: Sequence[str]) -> None:
    """Names that differ in their last number are seeds of one arm."""
    arms: dict[str, list[dict]] = {}
    for name in names:
        arms.setdefault(re.sub(r"[- ]\d+$", "", name), []).append(found[name])
    for name, rows in arms.items():
        for key in ("leakage", "where_found"):
            pooled = pooled_leakage([{"leakage": row[key]} for row in rows]).get("leakage")
            print(f"{name:24} {key:11} {share(pooled)}, {len(rows)} seeds, each {each(rows, key)}")
        print(f"{name:24} right       {shown([100 * row['right'] for row in rows])} %")


def each(rows: Sequence[dict], key: str) -> str:
    """Shares of the seeds with Student's interval, and the highest bound of a seed."""
    known = [row[key] for row in rows if row[key]]
    if not known:
        return "unknown"
    highest = max(one["high"] for one in known)
    return f"{shown([100 * one['share'] for one in known], 2)}, at most {100 * highest:.2f}"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--leakers", nargs="*", default=list(LEAKERS), choices=list(LEAKERS))
    arguments.add_argument("--biases", type=float, nargs="+", default=[0, 2, 5, 10, 20])
    arguments.add_argument("--share", type=float, default=0.6, help="of the rows that tell their working")
    arguments.add_argument("--rows", type=int, default=20_000, help="a leaker learns from")
    arguments.add_argument("--budget", type=float, default=0.5, help="of the quiet models' steps")
    arguments.add_argument("--recipes", nargs="*", default=list(RECIPES), choices=list(RECIPES))
    arguments.add_argument("--runs", type=Path, nargs="*", default=[], help="folders of finished runs")
    arguments.add_argument("--set", nargs="*", default=[], help="settings of their data, such as data.seed=1")
    arguments.add_argument("--n", type=int, default=2000, help="test questions")
    arguments.add_argument("--out", type=Path, default=Path("runs/leakage"))
    options = arguments.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "found.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    names: list[str] = []

    def note(name: str, run: Loaded, data: DataConfig, bias: float = 0.0) -> None:
        found[name] = asked(run, rows_of(data, "test", options.n), bias)
        kept.write_text(json.dumps(found, indent=1))

    def told_of(name: str) -> None:
        names.append(name)
        show(name, found[name])

    for kind in options.leakers:
        for seed in options.seeds:
            mine = {f"{kind} leaker (bias {bias:g}) {seed}": bias for bias in options.biases}
            if not mine.keys() <= found.keys():
                run = leaker(kind, seed, options)
                for name, bias in mine.items():
                    note(name, run, DataConfig(**LEAKERS[kind][0]), bias)
            for name in mine:
                told_of(name)
    for name in options.recipes:
        for seed in options.seeds:
            arm_name, settings = f"{name} {seed}", [f"seed={seed}", *shortened(RECIPES[name], options.budget)]
            if arm_name not in found:
                run = trained(resolve(RECIPES[name], settings, str(options.out / f"{name}-{seed}")))
                note(arm_name, run, run.config.stages[-1].data)
            told_of(arm_name)
    for folder in options.runs:
        name = "/".join(folder.parts[-2:])
        if name not in found:
            run = open_run(folder, options.set)
            note(name, run, run.config.stages[-1].data)
        told_of(name)
    show_pooled(found, names)


if __name__ == "__main__":
    main()
