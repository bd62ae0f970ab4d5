"""Does a frozen model answer from what a recursive reasoner thought? Arms of one recipe, on embedded tasks.

    python experiments/recursion_tasks.py recursion/pointer --seeds 0 1 2 --out runs/recursion-pointer

Arms of a seed: `chain`, the recipe's first stage, frozen from there on; `direct`, a model of that shape
trained as long on answers alone; `recursion`, the recipe's other stages; `constants`, soft tokens that read
nothing, trained for as many steps on the answer; `feed-forward`, as many layers, none of them twice,
evaluated once, trained like recursion, or for a share of its steps, each of which costs several times as
much; `ridge`, from all that recursion reads, at every place, to the state behind the visible chain, and to
the answer. All are asked the same test questions. Without training: fewer supervision steps, soft tokens
zeroed and of another row, rows that halt by themselves.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from arms import by_group, parameters, remade, said, shown, trained
from torch import Tensor

from quietreasoning.build import Loaded, Resolved, resolve
from quietreasoning.contract import Batch
from quietreasoning.data.config import build_task
from quietreasoning.evaluate.statistics import wilson
from quietreasoning.methods.recursion.probe import head_alone
from quietreasoning.run_config import RunConfig, StageConfig

TRAINED = ("chain", "direct", "recursion", "constants", "feed-forward")
CUTS = (0.5, 0.9)  # halting probabilities
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # relative to the mean variance; chosen on validation rows
ROWS = {"train": 4000, "valid": 500}  # of ridge


def stages(config: RunConfig, name: str, share: float) -> list[StageConfig]:
    """What an arm trains, in order; `feed-forward` for a share of the steps."""
    first, *rest = config.stages
    if name == "chain":
        return [first]
    if name == "direct":
        return [remade(first, method={"name": "plain"})]
    if name == "recursion":
        return rest
    if name == "constants":
        steps = sum(stage.train.steps for stage in rest)
        blind = {"blind": True, "weights": rest[-1].method.weights.model_dump() | {"step": 0}}
        return [remade(rest[-1], method=blind, train={"steps": steps})]
    method = rest[0].method
    cell = method.cell
    layers = method.steps * cell.rounds * (cell.latent_steps + 1) * cell.layers
    wide = {"cell": cell.model_dump() | {"layers": layers, "latent_steps": 0, "rounds": 1}, "steps": 1}
    return [
        remade(stage, method=wide, train={"steps": max(1, round(share * stage.train.steps))})
        for stage in rest
    ]


def run_of(resolved: Resolved, name: str, out: Path, seed: int, share: float = 1.0) -> Loaded:
    """The trained run of an arm; all but the first two start from the chain's."""
    quiet = name not in ("chain", "direct")
    chosen = tuple(
        remade(stage, train={"eval_every": 0, "save_every": 0})
        for stage in stages(resolved.config, name, share)
    )
    changes = {"seed": seed, "out": str(out / f"{name}-{seed}"), "stages": chosen}
    changes |= {"init": str(out / f"chain-{seed}")} if quiet else {}
    return trained(replace(resolved, config=resolved.config.model_copy(update=changes)))


@torch.no_grad()
def asked(run: Loaded, n: int, seconds: float) -> dict:
    """Everything the table says of a trained arm."""
    task = build_task(run.config.stages[-1].data)
    examples = list(task.split("test", n))
    groups = [task.group(example) for example in examples]
    right, _ = said(run, examples)
    found = {
        "accuracy": sum(right) / n,
        "interval": wilson(sum(right), n),
        "by group": by_group(right, groups),
        "learned parameters": parameters(run.method),
        "cpu seconds": round(seconds),
        "ms": milliseconds(run, examples[:40]),
    }
    method = run.method
    if not hasattr(method, "reasoner") or method.config.blind or method.config.steps == 1:
        return found
    efforts = range(1, method.config.steps + 3)  # two more than it was trained for
    per_step = {step: said(run, examples, effort=step)[0] for step in efforts}
    found["by step"] = {step: round(sum(own) / n, 4) for step, own in per_step.items()}
    found["by step and group"] = {step: by_group(own, groups) for step, own in per_step.items()}
    for control in ("zero", "shuffle"):
        found[control] = sum(said(run, examples, control=control)[0]) / n
    batch = run.encoder.batch(examples)
    told_B = torch.cat([head_alone(method, prompt_BP) for prompt_BP in batch.prompt_BP.split(500)])
    found["head alone"] = float((told_B == batch.answer_BA[:, 0]).double().mean())
    for cut in CUTS if method.config.weights.halt else ():
        method.config = method.config.model_copy(update={"halt_cut": cut})
        halted, steps = said(run, examples)
        steps = [count / method.config.slots for count in steps]
        found[f"halting at {cut}"] = {
            "accuracy": sum(halted) / n,
            "mean steps": sum(steps) / n,
            "mean steps by group": by_group(steps, groups),
            "ms": milliseconds(run, examples[:40]),
        }
    return found


def milliseconds(run: Loaded, examples: list) -> float:
    """Median CPU milliseconds of an answer at batch 1."""
    taken = []
    for example in examples:
        prompt_BP = run.encoder.prompts([example])
        began = time.process_time()
        run.method.generate(prompt_BP, max_new_tokens=run.max_new_tokens)
        taken.append(1e3 * (time.process_time() - began))
    return round(sorted(taken)[len(taken) // 2], 2)


@torch.no_grad()
def ridge(run: Loaded, n: int) -> dict:
    """Linear maps of all that the reasoner reads; the last places, as many as every prompt has."""
    task, method = build_task(run.config.stages[-1].data), run.method
    splits = {name: list(task.split(name, rows)) for name, rows in (ROWS | {"test": n}).items()}
    batches = {name: run.encoder.batch(examples) for name, examples in splits.items()}
    least = min(int((batch.prompt_BP >= 0).sum(1).min()) for batch in batches.values())
    read = {name: features(run, batch, least) for name, batch in batches.items()}
    gold = {name: batch.answer_BA[:, 0] for name, batch in batches.items()}
    state = {name: torch.cat(list(chain_states(run, batch))) for name, batch in batches.items()}
    one_hot = torch.nn.functional.one_hot(gold["train"], method.backbone.vocab_size).double()
    heads = {
        "to the chain's state": (state["train"].double(), method.backbone.logits),
        "to the answer": (one_hot, lambda x: x),
    }
    found = {}
    for name, (target, head) in heads.items():
        right = {}
        for strength in RIDGES:
            map_of = fitted(read["train"], target, strength)
            right[strength] = {
                split: float((head(map_of(read[split]).float()).argmax(-1) == gold[split]).double().mean())
                for split in ("valid", "test")
            }
        best = max(RIDGES, key=lambda strength: right[strength]["valid"])
        found[name] = {"accuracy": right[best]["test"], "ridge": best}
    told = method.backbone.logits(state["test"]).argmax(-1) == gold["test"]
    return found | {"the chain's state itself": float(told.double().mean())}


def features(run: Loaded, batch: Batch, places: int) -> Tensor:
    """[N, places * W + 1]"""
    parts = []
    for prompt_BP in batch.prompt_BP.split(500):
        prompt = run.method.open(prompt_BP)
        context_BPW = run.method.reader(prompt.layers_LBTD)
        parts.append(context_BPW[:, -places:].flatten(1).double())
    read_NF = torch.cat(parts)
    return torch.cat([read_NF, torch.ones(len(read_NF), 1).double()], 1)


def chain_states(run: Loaded, batch: Batch):
    for first in range(0, len(batch), 500):
        rows = slice(first, first + 500)
        part = {name: getattr(batch, name)[rows] for name in batch.__dataclass_fields__}
        yield run.method._chain_state(Batch(**part))


def fitted(read_NF: Tensor, target_NO: Tensor, strength: float):
    """x -> x B, the ridge solution in its dual form: there are more features than rows."""
    gram_NN = read_NF @ read_NF.T
    gram_NN.diagonal().add_(strength * gram_NN.diagonal().mean())
    map_FO = read_NF.T @ torch.linalg.solve(gram_NN, target_NO)
    return lambda rows_MF: rows_MF @ map_FO


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("recipe")
    arguments.add_argument("overrides", nargs="*", help="settings of the recipe, a.b=c")
    arguments.add_argument("--arms", nargs="+", default=[*TRAINED, "ridge"])
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--out", type=Path, default=Path("runs/recursion-tasks"))
    arguments.add_argument("--n", type=int, default=1000)
    arguments.add_argument("--share", type=float, default=1.0, help="of its steps, for feed-forward")
    options = arguments.parse_args()
    resolved = resolve(options.recipe, options.overrides)
    table: dict[str, list[float]] = {}
    for seed in options.seeds:
        for name in options.arms:
            if name == "ridge":
                found = ridge(run_of(resolved, "recursion", options.out, seed), options.n)
                rows = {f"ridge {key}": value["accuracy"] for key, value in found.items() if "to" in key}
            else:
                run = run_of(resolved, name, options.out, seed, options.share)
                seconds = json.loads((options.out / f"{name}-{seed}/seconds.json").read_text())
                found = asked(run, options.n, seconds)
                rows = {name: found["accuracy"]}
                for key in ("zero", "shuffle"):
                    rows |= {f"{name}, {key}": found[key]} if key in found else {}
                for key in (f"halting at {cut}" for cut in CUTS):
                    rows |= {f"{name}, {key}": found[key]["accuracy"]} if key in found else {}
                rows |= {f"{name}, one step": found["by step"][1]} if "by step" in found else {}
            for key, value in rows.items():
                table.setdefault(key, []).append(100 * value)
            print(json.dumps({"arm": name, "seed": seed, **found}), flush=True)
    for name, values in table.items():
        print(f"{name:<28} {shown(values)}")


if __name__ == "__main__":
    main()
