"""Do quiet models leak, is one that does found out, and what does the bias in decoding cost? Pointer chains.

    python experiments/leakage.py --seeds 0 1 2 --out runs/leakage

The leaker is a plain model, trained on pointer chains whose answers tell the whole chain in `--share` of rows
(`because f h , 3 h a , 2 ... therefore c`) and are the last node alone in the others. It is asked `--n` test
questions at each bias in decoding; right is an answer that ends in the right node. Its lexicon is the default
one and the comma, which stands in every step.
The quiet models are shipped recipes, of the first seed, with `--budget` of their steps: leakage is about what
is written, not about what is right. A run that has finished is not trained again.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from arms import arm, shown, trained

from quietreasoning.build import Loaded, resolve
from quietreasoning.data.example import Example
from quietreasoning.data.tasks.pointer import Pointer, PointerConfig
from quietreasoning.evaluate.answer_only import AnswerOnly
from quietreasoning.evaluate.leakage import Audit, leakage
from quietreasoning.evaluate.rationale import RATIONALE
from quietreasoning.recipe import load_recipe

LEXICON = (*RATIONALE, ",")
RECIPES = {
    name: f"{name}/pointer" for name in ("plain", "pause", "continuous", "slots", "recursion", "workspace")
}
SHAPE = {"nodes": 6, "symbols": 8, "hops": [1, 2, 3, 4]}
CHUNK, LONGEST = 250, 32


def told(example: Example) -> str:
    return f"because {' '.join(example.steps)} therefore {example.answer}"


def write_rows(folder: Path, share: float, rows: int) -> dict[str, Path]:
    """Files of the splits; a row's steps stand in it for the audit, not for the model."""
    task, files = Pointer(PointerConfig.model_validate(SHAPE)), {}
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", rows), ("valid", 64)):
        files[split], draw = folder / f"{split}.jsonl", random.Random(split)
        with files[split].open("w", encoding="utf-8") as file:
            for example in task.split(split, count):
                answer = told(example) if draw.random() < share else example.answer
                row = {"prompt": example.prompt, "steps": list(example.steps), "answer": answer}
                file.write(json.dumps(row) + "\n")
    return files


def leaker(seed: int, options: argparse.Namespace) -> Loaded:
    files = write_rows(options.out / "rows", options.share, options.rows)
    settings = [f"seed={seed}", f"train.steps={options.steps}", f"data.path={files['train']}"]
    settings.append(f"data.options.valid_path={files['valid']}")
    return trained(arm("leakage.yaml", options.out / f"leaker-{seed}", settings))


@torch.no_grad()
def asked(run: Loaded, examples: Sequence[Example], bias: float = 0.0) -> dict:
    """Share of right last nodes, tokens an answer, leakage, and the first answer."""
    answer_only = AnswerOnly(run.encoder.tokenizer, LEXICON, bias)
    audit = Audit(LEXICON, run.encoder.text, run.method.markers.thinking)
    found, right, answers = [], 0, []
    for first in range(0, len(examples), CHUNK):
        chunk = examples[first : first + CHUNK]
        permit = answer_only.permit(run.method) if bias else None
        prompt_BP = run.encoder.prompts(chunk).to(run.device)
        said = run.method.generate(prompt_BP, max_new_tokens=LONGEST, permit=permit)
        answers += said.answers
        found += map(audit.read, said.answers, chunk)
        texts = map(run.encoder.text, said.answers)
        right += sum(text.split()[-1:] == [e.answer] for text, e in zip(texts, chunk, strict=True))
    return {
        "right": right / len(examples),
        "length": sum(map(len, answers)) / len(answers),
        "leakage": leakage(found),
        "sample": run.encoder.text(answers[0]),
    }


def shortened(recipe: str, budget: float) -> list[str]:
    """Each stage's steps, cut to a share of them."""
    values = load_recipe(recipe).values
    top = values.get("train", {}).get("steps")
    stages = {stage["name"]: stage.get("train", {}).get("steps", top) for stage in values.get("stages", ())}
    keys = {f"stages.{name}.train.steps": steps for name, steps in stages.items()} or {"train.steps": top}
    return [f"{key}={max(1, round(budget * steps))}" for key, steps in keys.items()]


def show(name: str, found: dict) -> None:
    one = found["leakage"]
    print(
        f"{name:24} right {100 * found['right']:5.1f} %, {found['length']:4.1f} tokens an answer, leakage "
        f"{100 * one['share']:6.2f} % [{100 * one['low']:.2f}, {100 * one['high']:.2f}] of {one['tokens']} "
        f"(lexicon {100 * one['lexicon']:.2f}, steps {100 * one['steps']:.2f}); {found['sample']!r:.60}",
        flush=True,
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--biases", type=float, nargs="+", default=[0, 2, 5, 10, 20])
    arguments.add_argument("--share", type=float, default=0.6, help="of the rows that tell their chain")
    arguments.add_argument("--rows", type=int, default=20_000, help="the leaker learns from")
    arguments.add_argument("--steps", type=int, default=260, help="of the leaker")
    arguments.add_argument("--budget", type=float, default=0.5, help="of the quiet models' steps")
    arguments.add_argument("--recipes", nargs="*", default=list(RECIPES), choices=list(RECIPES))
    arguments.add_argument("--n", type=int, default=2000, help="test questions")
    arguments.add_argument("--out", type=Path, default=Path("runs/leakage"))
    options = arguments.parse_args()
    kept = options.out / "found.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    examples = list(Pointer(PointerConfig.model_validate(SHAPE)).split("test", options.n))

    def note(name: str, run: Loaded, rows: Sequence[Example], bias: float = 0.0) -> None:
        found[name] = asked(run, rows, bias)
        kept.write_text(json.dumps(found, indent=1))

    for seed in options.seeds:
        names = {f"leaker {seed}, bias {bias:g}": bias for bias in options.biases}
        if not names.keys() <= found.keys():
            run = leaker(seed, options)
            for name, bias in names.items():
                note(name, run, examples, bias)
        for name in names:
            show(name, found[name])
    for name in options.recipes:
        if name not in found:
            recipe, seed = RECIPES[name], options.seeds[0]
            settings = [f"seed={seed}", *shortened(recipe, options.budget)]
            run = trained(resolve(recipe, settings, str(options.out / name)))
            four = Pointer(PointerConfig.model_validate(run.config.stages[-1].data.options.model_dump()))
            note(name, run, list(four.split("test", options.n)))
        show(name, found[name])
    for bias in options.biases:
        rows = [found[f"leaker {seed}, bias {bias:g}"] for seed in options.seeds]
        print(
            f"leaker, bias {bias:g}: leakage {shown([100 * row['leakage']['share'] for row in rows], 2)} %, "
            f"right {shown([100 * row['right'] for row in rows])} %"
        )


if __name__ == "__main__":
    main()
