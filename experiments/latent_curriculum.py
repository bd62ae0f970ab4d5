"""What accuracy costs in visible tokens while latents take the place of a teacher's steps, stage by stage.

    python experiments/latent_curriculum.py --seeds 0 1 2 --out runs/latent-curriculum

Per seed: a teacher learns chains of one to four hops (recipe cot/pointer), `quiet data texts` keeps what it
writes where it is right, and a student of its own size or less learns from these rows alone. Arms:
`replaced`, as in Coconut (arXiv 2412.06769), the loss of what is still visible; `said`, each latent besides
says its step; `fine-tune`, the same stages and steps without a latent: steps go, and nothing takes their
place. Every stage is asked 1,000 test questions by real generation; thoughts of the last stage are also
zeroed, and those of another question.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from arms import HERE, by_group, shown, trained

from quietreasoning.build import Loaded, open_run, resolve
from quietreasoning.data.config import build_task
from quietreasoning.data.example import Example
from quietreasoning.scribe import Draws
from quietreasoning.texts import Request, write_texts
from quietreasoning.train import checkpoint

ARMS = {
    "replaced": [],
    "said": ["stages.one.method.weights.step=1"],
    "fine-tune": [f"stages.{name}.method.latents=0" for name in ("one", "two", "three", "quiet")]
    + ["stages.one.method.lead=0"],
}
CHUNK, LONGEST = 250, 40


def rows_of(seed: int, args: argparse.Namespace) -> tuple[Loaded, Path]:
    """The teacher and what it wrote."""
    folder, rows = args.out / f"teacher-{seed}", args.out / f"rows-{seed}.jsonl"
    teacher = trained(resolve("cot/pointer", [f"seed={seed}", "train.precision=fp32"], str(folder)))
    if not rows.exists():
        draws, recipe = Draws(max_new_tokens=LONGEST), ("cot/pointer", (f"seed={seed}",))
        write_texts(Request(str(folder), rows, *recipe, n=args.rows, draws=draws, batch_size=CHUNK))
    return teacher, rows


def student(arm: str, seed: int, teacher: Loaded, rows: Path, args: argparse.Namespace) -> Path:
    """Folder of a student's run, which keeps a checkpoint of every stage."""
    given = [f"data.path={rows}", f"data.tokenizer.path={teacher.folder / 'tokenizer'}", f"seed={seed}"]
    given += ARMS[arm]
    return trained(
        resolve(str(HERE / "latent_curriculum.yaml"), given, str(args.out / f"{arm}-{seed}"))
    ).folder


def stages(folder: Path) -> dict[str, Loaded]:
    """Stage -> the method at its end."""
    found = {}
    for path in checkpoint.checkpoints(folder):
        run = open_run(path)
        index = checkpoint.read_json(path / "state.json")["stage_index"]
        found[run.config.stages[index].name] = run
    return found


@torch.no_grad()
def asked(run: Loaded, examples: Sequence[Example], control: str | None = None) -> dict:
    right, visible, passes = [], [], []
    for first in range(0, len(examples), CHUNK):
        some = examples[first : first + CHUNK]
        said = run.method.generate(run.encoder.prompts(some), max_new_tokens=LONGEST, control=control)
        texts = map(run.encoder.text, said.answers)
        right += [text == example.answer for text, example in zip(texts, some, strict=True)]
        visible += said.visible_tokens
        passes += said.passes
    hops = [str(example.meta["num_steps"]) for example in examples]
    return {
        "accuracy": statistics.fmean(right),
        "visible": statistics.fmean(visible),
        "passes": statistics.fmean(passes),
        "by_hops": by_group(right, hops),
    }


def one_seed(seed: int, args: argparse.Namespace) -> dict[str, dict]:
    teacher, rows = rows_of(seed, args)
    examples = build_task(teacher.config.stages[-1].data).split("test", args.n)
    examples = [examples[i] for i in range(len(examples))]
    found = {"teacher": asked(teacher, examples)}
    for arm in args.arms:
        runs = stages(student(arm, seed, teacher, rows, args))
        for name, run in runs.items():
            found[f"{arm} {name}"] = asked(run, examples)
        if arm != "fine-tune":
            for control in ("zero", "shuffle"):
                found[f"{arm} quiet, {control}"] = asked(runs["quiet"], examples, control)
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--out", type=Path, default=Path("runs/latent-curriculum"))
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--arms", nargs="+", choices=[*ARMS], default=[*ARMS])
    arguments.add_argument("--rows", type=int, default=8000, help="questions the teacher answers")
    arguments.add_argument("--n", type=int, default=1000, help="test questions")
    args = arguments.parse_args()
    table: dict[str, list[dict]] = {}
    for seed in args.seeds:
        for name, row in one_seed(seed, args).items():
            print(seed, name, json.dumps(row), flush=True)
            table.setdefault(name, []).append(row)
    for name, rows in table.items():
        right = shown([100 * row["accuracy"] for row in rows])
        visible, passes = (statistics.fmean(row[key] for row in rows) for key in ("visible", "passes"))
        print(f"{name:24} {right} % right, {visible:.1f} visible tokens, {passes:.1f} passes")


if __name__ == "__main__":
    main()
