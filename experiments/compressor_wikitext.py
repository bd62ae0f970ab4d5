"""`python experiments/compressor_wikitext.py --data DIR [--seeds 0 1 2]`: closed form against gradient.

DIR holds WikiText-2's valid.txt, of which a small language model is made, and test.txt, of whose documents
20 % are held out. Compressors of its last states, 1/48 to 1/6 of their width: PCA and its metric form from
sums over a few rows, against the tied linear map trained by gradient (Adam 1e-3, 8 texts a step, up to 10
epochs, early stop on validation loss, the best epoch kept).

Tokens are those the language model would read: the procedure trains one map a width and reads each text anew
in each epoch. Here its states are kept instead, and the maps of all widths are trained side by side, which
changes neither. All arms leave out padding and each row's first token. The closed forms get `--fewer` times
fewer tokens than the trained map of fewest, once for all widths.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from arms import arm, shown, trained
from torch import Tensor, nn

from quietreasoning.backbone import Backbone
from quietreasoning.backbone.states import LAST, read_states
from quietreasoning.build import Loaded
from quietreasoning.contract import IGNORE
from quietreasoning.data.config import DataConfig, build_task
from quietreasoning.data.load import load_split
from quietreasoning.methods.compressor_figures import next_token_kl
from quietreasoning.methods.whole import whole
from quietreasoning.nn.compressor import TiedLinear, metric_pca, pca
from quietreasoning.nn.moment_buffers import FisherBuffers
from quietreasoning.nn.moments import Moments
from quietreasoning.nn.round_trip import round_trip

RECIPE = "compressor_wikitext.yaml"
RATIOS = (48, 24, 12, 6)
BATCH, EPOCHS, RATE = 8, 10, 1e-3  # of the trained map
MEASURES = {"cosine": 1, "centred_r2": 1, "kl": -1}  # -> whether more is better
Rows = list[Tensor]  # states of each row but its first token
Found = dict[int, dict[str, float]]  # width -> measure -> value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/compressor_wikitext"))
    parser.add_argument("--fewer", type=int, default=100)
    parser.add_argument("--windows", type=int, default=300, help="held out, evenly taken")
    parser.add_argument("--ridge", type=float, nargs="+", default=[1e-2, 10.0], help="of the metric")
    args = parser.parse_args()
    texts = {name: args.data / f"{name}.txt" for name in ("valid", "test")}
    missing = [str(path) for path in texts.values() if not path.is_file()]
    if missing:
        raise SystemExit(f"skipped: {', '.join(missing)} not there; give --data a folder with WikiText-2")
    settings = [f"data.path={texts['valid']}", f"data.options.test_path={texts['test']}"]
    run = trained(arm(RECIPE, args.out / "model", settings))
    pool, valid, held = read_all(run, texts["test"], args.windows)
    widths = [run.method.backbone.width // ratio for ratio in RATIOS]
    mean_D = torch.cat(pool).double().mean(0)
    found: dict[str, list[Found]] = {}
    tokens: dict[str, list[int]] = {}
    judge = Judge(run.method.backbone, torch.cat(held), mean_D)
    for centred in (False, True):
        name = f"trained{', centred' if centred else ''}"
        for seed in args.seeds:
            maps, read = descend(pool, valid, widths, mean_D if centred else None, seed)
            found.setdefault(name, []).append({width: judge(maps[width]) for width in widths})
            tokens.setdefault(name, []).extend(read.values())
            print(name, seed, read, found[name][-1], flush=True)
    fewest = min(min(read) for read in tokens.values())
    for seed in args.seeds:
        part = some(pool, fewest // args.fewer, seed)
        for name, values in closed_forms(judge, part, widths, args.ridge).items():
            found.setdefault(name, []).append(values)
            tokens.setdefault(name, []).append(read_tokens(part))
            print(name, seed, values, flush=True)
    for name, values in closed_forms(judge, pool, widths, args.ridge).items():
        found[f"{name}, all texts once"] = [values]
        tokens[f"{name}, all texts once"] = [read_tokens(pool)]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "figures.json").write_text(json.dumps({"tokens": tokens, "figures": found}, indent=1))
    table(found, tokens, widths)


@torch.no_grad()
def read_all(run: Loaded, test: Path, windows: int) -> tuple[Rows, Rows, Rows]:
    """States of the rows to learn from, to stop by, and held out; no document is in two of them."""
    data = run.config.stages[-1].data
    other = {
        "path": str(test),
        "options": data.options.model_dump() | {"test_path": None, "shares": (75, 5, 20)},
    }
    other = DataConfig.model_validate(data.model_dump() | other)

    def rows(config: DataConfig, split: str, n: int | None = None) -> Rows:
        examples, _ = load_split(build_task(config), split, config, run.encoder, n=n)
        made: Rows = []
        for first in range(0, len(examples), 32):
            batch = run.encoder.batch(examples[first : first + 32])
            ids_BT, role_BT = whole(batch, run.method.markers)
            states_BTD = read_states(run.method.backbone, ids_BT, role_BT, (LAST,))[LAST]
            made += [row[ids != IGNORE][1:] for row, ids in zip(states_BTD, ids_BT, strict=True)]
        return [row for row in made if len(row)]

    run.method.eval()
    return rows(data, "train") + rows(other, "train"), rows(other, "valid"), rows(other, "test", windows)


def read_tokens(rows: Rows) -> int:
    """What the language model reads for these rows, their first tokens too."""
    return sum(len(row) + 1 for row in rows)


def some(pool: Rows, tokens: int, seed: int) -> Rows:
    """Rows drawn without return, as many as fit so many tokens."""
    drawn: Rows = []
    for index in torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed)).tolist():
        if read_tokens(drawn) + len(pool[index]) + 1 > tokens:
            break
        drawn.append(pool[index])
    return drawn


def descend(
    pool: Rows, valid: Rows, widths: Sequence[int], mean_D: Tensor | None, seed: int
) -> tuple[dict[int, nn.Module], dict[int, int]]:
    """Width -> the trained map of its best epoch, and the tokens read until it was known to be the best."""
    torch.manual_seed(seed)
    maps = {width: TiedLinear(pool[0].shape[1], width, mean_D) for width in widths}
    optimizer = torch.optim.Adam(
        [p for tied in maps.values() for p in tied.parameters()], lr=RATE, fused=True
    )
    best = dict.fromkeys(widths, float("inf"))
    kept: dict[int, dict[str, Tensor]] = {}
    read: dict[int, int] = {}
    seen_ND = torch.cat(valid)
    for epoch in range(1, EPOCHS + 1):
        order = torch.randperm(len(pool)).tolist()
        for first in range(0, len(order), BATCH):
            states_ND = torch.cat([pool[index] for index in order[first : first + BATCH]])
            optimizer.zero_grad()
            sum((tied(states_ND) - states_ND).square().mean() for tied in maps.values()).backward()
            optimizer.step()
        for width, tied in maps.items():
            if width in read:
                continue
            with torch.no_grad():
                loss = float((tied(seen_ND) - seen_ND).square().mean())
            if loss < best[width]:
                best[width], kept[width] = loss, {k: v.clone() for k, v in tied.state_dict().items()}
            if loss > best[width] or epoch == EPOCHS:
                read[width] = epoch * read_tokens(pool)
        if len(read) == len(widths):
            break
    for width, tied in maps.items():
        tied.load_state_dict(kept[width])
    return maps, read


class Judge:
    """Figures of a round trip on held-out states."""

    def __init__(self, backbone: Backbone, held_ND: Tensor, mean_D: Tensor):
        self.backbone, self.held_ND, self.mean_D = backbone, held_ND, mean_D

    @torch.no_grad()
    def __call__(self, compressor: nn.Module) -> dict[str, float]:
        told_ND = compressor(self.held_ND)
        figures = round_trip(self.held_ND, told_ND, self.mean_D).figures()
        kl = float(next_token_kl(self.backbone, self.held_ND, told_ND)) / len(self.held_ND)
        return {"cosine": figures["cosine"], "centred_r2": figures["centred_r2"], "kl": kl}


@torch.no_grad()
def closed_forms(
    judge: Judge, rows: Rows, widths: Sequence[int], ridges: Sequence[float]
) -> dict[str, Found]:
    """Name -> figures of every width, all from one reading of these rows."""
    backbone, states_ND = judge.backbone, torch.cat(rows)
    moments = Moments(states_ND.shape[1])
    moments.update(states_ND)
    head_VD = backbone.model.get_output_embeddings().weight
    fisher = FisherBuffers(*head_VD.shape)
    fisher.observe(backbone.logits, head_VD, states_ND[::8])
    metrics = {"fisher": fisher.metric_DD(head_VD), "unembedding": head_VD.double().T @ head_VD.double()}
    found = {"pca": pca(moments, centred=False), "pca, centred": pca(moments)}
    for name, metric_DD in metrics.items():
        for ridge in ridges:
            found[f"{name}, ridge {ridge:g}"] = metric_pca(moments, metric_DD, ridge=ridge)
    return {name: {k: judge(widest.sliced(k)) for k in widths} for name, widest in found.items()}


def table(found: dict[str, list[Found]], tokens: dict[str, list[int]], widths: Sequence[int]) -> None:
    """Mean over seeds with Student's interval, and whether it is better than the trained map without and with
    a mean: `+`, `-` or `=` for each."""
    for name, read in tokens.items():
        print(
            f"{name:<30} {min(read):,} tokens"
            + (f" to {max(read):,} a width" if max(read) > min(read) else "")
        )
    for measure, sign in MEASURES.items():
        print(f"\n{measure:<30} " + " ".join(f"{f'{width} numbers':>28}" for width in widths))
        for name, seeds in found.items():
            cells = []
            for width in widths:
                values = [seed[width][measure] for seed in seeds]
                marks = ""
                for rival in ("trained", "trained, centred"):
                    theirs = [seed[width][measure] for seed in found[rival]]
                    gain = sign * (sum(values) / len(values) - sum(theirs) / len(theirs))
                    marks += "+" if gain > 0 else "-" if gain < 0 else "="
                cells.append(f"{shown(values, 4)} {marks}")
            print(f"{name:<30} " + " ".join(f"{cell:>28}" for cell in cells))


if __name__ == "__main__":
    main()
