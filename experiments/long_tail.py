"""`python experiments/long_tail.py [--seeds 0 1 2]`: rare facts, with what lies outside the weights.

The model is that of product_keys_encyclopaedia.py: a trunk, and the same trunk with a product-key memory,
after equal steps. Around the latter, frozen, `recall` learns to read an episodic store and a kNN-LM
datastore. Both hold what training *stated*: a row each of its different statements, laid out as the model
reads them. Questions are never stored. Reading is learned from the validation questions, which ask other
facts than the test: what training told is known by heart, so that nothing would be learned from it. A test
question asks a fact in words in which training never asks it. So a fact's answer stands in the stores, once
for each wording it was stated in, as it stands in an encyclopaedia; what is measured is whether it is found
and said. Controls: the store is empty, or each question gets what another one retrieved.

A seed is one world and one set of weights; the intervals of differences are paired, the wider of Student's t
over seeds and resampled questions.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from arms import arm, asked, over_seeds, trained
from product_keys_encyclopaedia import BINS, alone, difference, groups_of, share
from product_keys_encyclopaedia import RECIPE as MODEL

from quietreasoning.build import Loaded, Resolved, open_run
from quietreasoning.capture import lay_out
from quietreasoning.data.config import build_task
from quietreasoning.data.tasks.encyclopaedia import STATEMENTS
from quietreasoning.evaluate.controls import Arm
from quietreasoning.indices.episodic import vectors_of
from quietreasoning.indices.knn import make_knn, source_of
from quietreasoning.memory.datastore import Size, build_datastore
from quietreasoning.memory.episodic import EpisodicStore
from quietreasoning.memory.episodic_settings import EpisodicSettings
from quietreasoning.memory.journal import Entry
from quietreasoning.memory.made import say_how_made
from quietreasoning.methods.recall.events import encoder_of
from quietreasoning.run_config import changed

RECIPE = "long_tail.yaml"
CLOSED, KEYS, EPISODIC, BOTH = "closed book", "+ product keys", "+ episodic", "+ kNN"
BATCH = 250
HELD = 400  # validation questions that nothing is learned from


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/long_tail"))
    parser.add_argument("--split", choices=("valid", "test"), default="test", help="valid: 400 questions")
    parser.add_argument("--n", type=int, help="the first n questions alone")
    parser.add_argument(
        "--open", action="store_true", help="the trunk without product keys, with stores, too"
    )
    parser.add_argument("--set", nargs="*", default=[], help="further settings of the reading, for exploring")
    args = parser.parse_args()
    found: dict[str, list[str]] = {}
    costs: dict[str, list[float]] = {}
    groups: list[dict[str, list[int]]] = []
    for seed in args.seeds:
        began = time.process_time()
        outcomes, spent, asked_in = one_seed(args.out / f"seed-{seed}", seed, args)
        groups.append(asked_in)
        for name, line in outcomes.items():
            found.setdefault(name, []).append(line)
            costs.setdefault(name, []).append(spent[name])
        print(f"seed {seed}, {time.process_time() - began:.0f} CPU s", flush=True)
        for name, line in outcomes.items():
            print(f"  {name}: {share(line, asked_in['all']):.1%}, {spent[name]:.2f} look-ups", flush=True)
        kept = {
            "split": args.split,
            "seeds": args.seeds,
            "outcomes": found,
            "groups": groups,
            "look-ups": costs,
        }
        (args.out / f"{args.split}-{'-'.join(map(str, args.seeds))}.json").write_text(json.dumps(kept))
    table(found, costs, groups)


def one_seed(
    out: Path, seed: int, args: argparse.Namespace
) -> tuple[dict[str, str], dict[str, float], dict[str, list[int]]]:
    """Arm -> right or wrong for each question, and look-ups an answer; group -> its questions."""
    plain, memory = models(out, seed)
    outcomes, spent = {}, {}
    n = min(args.n or HELD, HELD) if args.split == "valid" else args.n

    def ask(name: str, run: Loaded, control: str | None = None) -> None:
        outcomes[name], spent[name] = answers(run, args.split, n, control)

    ask(CLOSED, trained(plain))
    ask(KEYS, trained(memory))
    for label, base, features in (("", memory, ["pkm"]), ("trunk ", plain, [])):
        if label and not args.open:
            continue
        reading = resolved_reading(out, base, features, args.set, f"{label.strip()}reading")
        both = trained(reading)
        episodic = open_run(reading.out, ["stages.0.method.knn.max_lookups=0"])
        for name, run in ((f"{label}{EPISODIC}", episodic), (f"{label}{BOTH}", both)):
            ask(name, run)
            for control, told in (("shuffle", "shuffled"), ("zero", "empty")) if not label else ():
                ask(f"{name}, {told}", run, control)
        if not label:
            assert outcomes[f"{BOTH}, empty"] == outcomes[KEYS], "without stores it is the model itself"
    groups = groups_of(memory, args.split)
    kept = len(outcomes[CLOSED])
    return outcomes, spent, {name: [at for at in own if at < kept] for name, own in groups.items()}


def models(out: Path, seed: int) -> tuple[Resolved, Resolved]:
    """The trunk, and the trunk with product keys, each after two stages."""
    both = arm(MODEL, out / "memory", [f"seed={seed}", f"data.seed={seed}"])
    first, second = (stage.model_dump(mode="json") for stage in both.config.stages)
    start = alone(both, out / "trunk", first)
    trained(start)
    memory = alone(both, out / "memory", second, start)
    second["method"]["features"], second["optim"]["lr_scale"] = [], {}
    plain = alone(both, out / "plain", second, start)
    for one in (memory, plain):
        trained(one)
    return plain, memory


def resolved_reading(
    out: Path, base: Resolved, features: list[str], more: Sequence[str], name: str
) -> Resolved:
    """The reading stage around a model that was trained, with stores made by it."""
    store, questions = out / f"{name}-stores", out / "questions"
    if not (store / "done").exists():
        fill(open_run(base.out), store)
        (store / "done").touch()
    write_questions(base, questions)
    given = arm(RECIPE, out / name, [f"seed={base.config.seed}", "data.path=rows.jsonl", *more])
    stage = given.config.stages[0].model_dump(mode="json")
    stage["method"]["features"] = features
    stage["method"]["episodic"]["store"] = str(store / "events")
    stage["method"]["knn"] |= {"index": str(store / "knn.index"), "keys": str(store / "keys")}
    stage["data"] |= {
        "path": str(questions / "learn.jsonl"),
        "tokenizer": {"path": str(base.out / "tokenizer")},
    }
    stage["data"]["options"] |= {
        f"{part}_path": str(questions / f"{part}.jsonl") for part in ("valid", "test")
    }
    backbone = base.config.backbone.model_dump(mode="json")
    config = changed(given.config, backbone=backbone, stages=[stage], init=str(base.out), out=str(out / name))
    return replace(given, config=config)


def write_questions(base: Resolved, folder: Path) -> None:
    """Reading is learned from validation questions, all but the first 400."""
    task = build_task(base.config.stages[-1].data)
    valid, test = list(task.split("valid")), list(task.split("test"))
    folder.mkdir(parents=True, exist_ok=True)
    for name, examples in (("learn", valid[HELD:]), ("valid", valid[:HELD]), ("test", test)):
        rows = [{"prompt": e.prompt, "answer": e.answer, "told": e.meta["popularity"]} for e in examples]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def fill(run: Loaded, folder: Path) -> None:
    """An episodic store and a datastore of the different statements that training made."""
    task, backbone = build_task(run.config.stages[-1].data), run.method.backbone
    told = {e.prompt: e for e in task.split("train") if e.meta["template"] in STATEMENTS}
    examples = list(told.values())
    rows = [
        row.ids
        for first in range(0, len(examples), BATCH)
        for row in lay_out(run.encoder, examples[first : first + BATCH], steps=False)
    ]
    settings, encoder = (
        EpisodicSettings(backend="flat", ttl_days=36_500, dedupe_cosine=0.9999),
        encoder_of(backbone),
    )
    dim = backbone.width
    with EpisodicStore(folder / "events", dim=dim, encoder=encoder, settings=settings) as store:
        for first in range(0, len(rows), BATCH):
            some = rows[first : first + BATCH]
            vectors = vectors_of(backbone, some)
            store.write_many(
                [
                    Entry(vector, f"{example.prompt} {example.answer}", tuple(row.tolist()), source="train")
                    for vector, row, example in zip(
                        vectors, some, examples[first : first + BATCH], strict=True
                    )
                ]
            )
        print(f"{len(store)} events of {len(rows)} statements", flush=True)
        say_how_made(folder / "events", encoder=encoder, dim=dim, settings=settings)
    source = source_of(backbone, run.encoder.tokenizer)
    build_datastore(
        backbone.model, rows, folder / "keys", source, size=Size(rows_per_shard=100_000, batch_size=256)
    )
    make_knn(folder / "keys", folder / "keys", folder / "knn.index", dim, "IVF256,Flat", 16)


def answers(run: Loaded, split: str, n: int | None, control: str | None) -> tuple[str, float]:
    """Right or wrong for each question; the mean of look-ups, in the store and in the datastore."""
    spent = getattr(run.method, "spent", None)
    before = (0, 0) if spent is None else (spent.answers, spent.queries + spent.lookups)
    only = Arm(run.method, "asked", control=control)
    line = asked(run, [only], split, BATCH, n).outcomes[only.name]
    if spent is None:
        return line, 0.0
    return line, (spent.queries + spent.lookups - before[1]) / (spent.answers - before[0])


def table(
    found: dict[str, list[str]], costs: dict[str, list[float]], groups: list[dict[str, list[int]]]
) -> None:
    head = f"\n{'per cent right, mean of seeds':<34}"
    print(head + "".join(f"{name:>18}" for name in BINS) + f"{'look-ups':>12}")
    for name, lines in found.items():
        cells = []
        for group in BINS:
            shares = [100 * share(line, g[group]) for line, g in zip(lines, groups, strict=True)]
            cells.append(f"{over_seeds(shares)[0]:>18.1f}")
        print(f"{name:<34}" + "".join(cells) + f"{over_seeds(costs[name])[0]:>12.2f}")
    for base in (CLOSED, KEYS):
        for name in found:
            if name != base:
                cells = [f"{g}: {difference(found[name], found[base], groups, g)}" for g in BINS]
                print(f"{name} - {base}: " + "  ".join(cells))


if __name__ == "__main__":
    main()
