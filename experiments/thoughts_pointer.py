"""Do hidden thoughts help where hidden steps matter, and not where they do not?

    python experiments/thoughts_pointer.py --seeds 0 1 2 --out runs/thoughts-pointer

Two texts, question and answer: pointer chains of 1 to 4 hops (`chains`), and of one hop (`control`), where
there is nothing to think about. Arms of a seed, from one model that has learned to think aloud between tags:
`thoughts`, the recipe's quiet stage, and `fine-tune`, the same rows, steps and rates without thoughts. All
are asked the same test questions: accuracy of greedy answers, also with thoughts removed, of another row, of
random words and of filler; nats of the answer, over all questions and over the tenth in which the model that
thinks aloud is least certain of it when it must answer at once. Differences are paired and bootstrapped.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from arms import by_group, remade, said, shown, trained
from torch import Tensor

from quietreasoning.backbone import role_of
from quietreasoning.backbone.tree import Branches
from quietreasoning.build import Loaded, Resolved, resolve
from quietreasoning.contract import IGNORE, Batch, Role
from quietreasoning.data.config import build_task
from quietreasoning.data.example import Example
from quietreasoning.evaluate.statistics import paired_bootstrap, paired_counts, ratio_bootstrap, wilson
from quietreasoning.losses.thoughts import entropy
from quietreasoning.methods.thoughts import reading
from quietreasoning.methods.thoughts.examining import worth
from quietreasoning.methods.thoughts.text import text_of

RECIPE = "thoughts/pointer"
ARMS = ("aloud", "thoughts", "fine-tune")
TEXTS = {"chains": [], "control": ["data.options.hops=[1]"]}
CONTROLS = ("zero", "shuffle", "noise", "filler")
ROWS = 125


def run_of(text: str, name: str, out: Path, seed: int) -> Loaded:
    """The trained run of an arm: `aloud`, or one that starts from it."""
    resolved = resolve(RECIPE, TEXTS[text])
    aloud, quiet = resolved.config.stages
    stages = {
        "aloud": [aloud],
        "thoughts": [quiet],
        "fine-tune": [remade(quiet, method={"name": "plain"}, optim={"lr_scale": {}})],
    }[name]
    chosen = tuple(remade(stage, train={"eval_every": 0, "save_every": 0}) for stage in stages)
    changes = {"seed": seed, "out": str(out / f"{text}-{name}-{seed}"), "stages": chosen}
    changes |= {} if name == "aloud" else {"init": str(out / f"{text}-aloud-{seed}")}
    return trained(replace_config(resolved, changes))


def replace_config(resolved: Resolved, changes: dict) -> Resolved:
    return replace(resolved, config=resolved.config.model_copy(update=changes))


def batches(run: Loaded, examples: list[Example]):
    for first in range(0, len(examples), ROWS):
        yield run.encoder.batch(examples[first : first + ROWS])


@torch.no_grad()
def at_once(run: Loaded, batch: Batch) -> tuple[Tensor, Tensor]:
    """Without thoughts, behind the answer prefix: nats of the answer and its end, and entropy before [B]."""
    backbone, markers = run.method.backbone, run.method.markers
    prefix_BM = torch.tensor(markers.answer_prefix).expand(len(batch), -1)
    ids_BT = torch.cat([batch.prompt_BP, prefix_BM, batch.answer_BA], 1)
    hidden_BTD = backbone(ids_BT, role_of(ids_BT, Role.PROMPT)).hidden_BTD
    before = ids_BT.shape[1] - batch.answer_BA.shape[1] - 1
    logp_BAV = backbone.logits(hidden_BTD[:, before:-1]).log_softmax(-1)
    logp_BA = logp_BAV.gather(2, batch.answer_BA.clamp(min=0)[..., None])[..., 0]
    counted_BA = batch.answer_BA != IGNORE
    return -logp_BA.masked_fill(~counted_BA, 0).sum(1), entropy(backbone.logits(hidden_BTD[:, before]))


@torch.no_grad()
def thinking(run: Loaded, batch: Batch) -> Tensor:
    """Nats of the answer and its end [B], behind the thoughts that are drawn at the end of the question."""
    method = run.method
    text = text_of(batch, method.markers, visible=False)
    anchor_B1 = torch.full((len(batch), 1), batch.prompt_BP.shape[1] - 1)
    past = method.backbone(text.ids_BT, text.role_BT, keep=True).past
    branches = Branches(
        method.backbone, past, anchor_B1, method.config.thoughts, method.law, method.markers_2D
    )
    thoughts = reading.draw(method, branches, text, anchor_B1, batch.keys_B)
    found = reading.read(method, text, anchor_B1, thoughts)
    _, scores_BKG3 = worth(method, found)
    logp_BKM, _ = reading.together(method, found, method.prior(scores_BKG3))
    return -logp_BKM[:, 0, len(method.markers.answer_prefix) :].sum(1)


@torch.no_grad()
def asked(text: str, runs: dict[str, Loaded], seed: int, n: int) -> dict:
    """Everything the table says of one seed on one text."""
    task = build_task(runs["thoughts"].config.stages[-1].data)
    examples = list(task.split("test", n))
    groups = [task.group(example) for example in examples]
    right = {name: said(run, examples)[0] for name, run in runs.items()}
    right |= {f"thoughts, {c}": said(runs["thoughts"], examples, control=c)[0] for c in CONTROLS}
    found: dict = {"text": text, "seed": seed, "n": n}
    for name, own in right.items():
        found[name] = {
            "accuracy": sum(own) / n,
            "interval": wilson(sum(own), n),
            "by group": by_group(own, groups),
        }
        if name not in ("thoughts", "aloud"):
            _, only_a, only_b, _ = paired_counts(right["thoughts"], own)
            found[name]["thoughts gain"] = paired_bootstrap(only_a, only_b, n, seed=seed)
    hard_N = torch.cat([at_once(runs["aloud"], batch)[1] for batch in batches(runs["aloud"], examples)])
    tenth_N = (hard_N >= hard_N.quantile(0.9)).numpy()
    without_N = torch.cat([at_once(runs["fine-tune"], b)[0] for b in batches(runs["fine-tune"], examples)])
    with_N = torch.cat([thinking(runs["thoughts"], b) for b in batches(runs["thoughts"], examples)])
    saved_N = (without_N - with_N).double().numpy()
    for name, chosen_N in (("all", np.ones(n, dtype=bool)), ("hard decile", tenth_N)):
        count = int(chosen_N.sum())
        found[f"nats, {name}"] = {
            "n": count,
            "fine-tune": float(without_N[torch.from_numpy(chosen_N)].mean()),
            "thoughts": float(with_N[torch.from_numpy(chosen_N)].mean()),
            "saved": float(saved_N[chosen_N].mean()),
            "interval": ratio_bootstrap(saved_N[chosen_N], np.ones(count), seed=seed),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--texts", nargs="+", default=list(TEXTS), choices=TEXTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/thoughts-pointer"))
    parser.add_argument("--n", type=int, default=1000)
    options = parser.parse_args()
    for text in options.texts:
        rows = []
        for seed in options.seeds:
            runs = {
                name: run_of(text, name, options.out, seed) for name in ("aloud", "thoughts", "fine-tune")
            }
            rows.append(asked(text, runs, seed, options.n))
            print(json.dumps(rows[-1]), flush=True)
        arms = [name for name, value in rows[0].items() if isinstance(value, dict) and "accuracy" in value]
        for name in arms:
            print(f"{text}: {name:<18} {shown([100 * row[name]['accuracy'] for row in rows])} %")
        for name in ("nats, all", "nats, hard decile"):
            print(f"{text}: {name:<18} saved {shown([row[name]['saved'] for row in rows], 3)}")


if __name__ == "__main__":
    main()
