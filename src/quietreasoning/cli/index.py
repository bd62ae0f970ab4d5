"""`quiet index pkm | keys | knn | episodic | verify-knn | consolidate`: what is read beyond the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from quietreasoning.cli.guard import guarded
from quietreasoning.cli.teacher import WORDS
from quietreasoning.cli.train import JSON

app = typer.Typer(help="Make and check what a model reads beyond its weights.", no_args_is_help=True)
MODEL = typer.Argument(..., metavar="MODEL_OR_RUN", help="A model folder, a hub id or a run.")


@app.command("pkm")
@guarded
def pkm(
    path: str = typer.Option(..., "--path", metavar="FILE.npy", help="Where the int8 values go."),
    slots: int = typer.Option(4_000_000, "--slots", min=1, metavar="N", help="Rows; a perfect square."),
    value_dim: int = typer.Option(256, "--value-dim", min=1, metavar="V", help="Width of a row."),
    run: str = typer.Option(
        None, "--run", metavar="RUN", help="Take the values of this workspace run; default: zeros, silent."
    ),
    json: str = JSON,
) -> None:
    """Write the values of a product-key memory as a model serves them, scales beside them."""

    def work(show: Any) -> dict[str, Any]:
        from quietreasoning.indices.pkm import make_pkm

        return make_pkm(Path(path), slots, value_dim, run, show)

    _told(work, json)


@app.command("keys")
@guarded
def keys(
    model: str = MODEL,
    settings: list[str] = WORDS,
    recipe: str = typer.Option(None, "--recipe", help="Whose rows are read."),
    dataset: str = typer.Option(
        None, "--dataset", metavar="NAME", help="A task or JSONL file; default: the run's own task."
    ),
    split: str = typer.Option("train", "--split", help="train or valid."),
    no_steps: bool = typer.Option(False, "--no-steps", help="Rows without their visible chain."),
    out: str = typer.Option(
        ..., "--out", metavar="DIR", help="The datastore; what is there is gone on with."
    ),
    batch_size: int = typer.Option(8, "--batch-size", min=1, metavar="B", help="Rows read at once."),
    rows_per_shard: int = typer.Option(
        256, "--rows-per-shard", min=1, metavar="N", help="Rows in a file; one is closed at a time."
    ),
    dtype: str = typer.Option(
        None, "--dtype", help="float32 or bfloat16 (default) for a model; a run has its own."
    ),
    revision: str = typer.Option(None, "--revision", help="Commit or tag of a hub id."),
    json: str = JSON,
) -> None:
    """Let a model read rows; keep its state at every token and the token after it, for an index."""

    def work(show: Any) -> dict[str, Any]:
        from quietreasoning.capture import Request
        from quietreasoning.indices.knn import make_keys
        from quietreasoning.memory.datastore import Size

        request = Request(
            model=model,
            out=Path(out),
            recipe=recipe,
            dataset=dataset,
            settings=tuple(settings or ()),
            split=split,
            steps=not no_steps,
            dtype=dtype,
            revision=revision,
        )
        return make_keys(request, Size(rows_per_shard, batch_size), show)

    _told(work, json)


@app.command("knn")
@guarded
def knn(
    keys: str = typer.Option(
        ..., "--keys", metavar="FILE.npy", help="float32 (N, dim), or the folder of a datastore."
    ),
    values: str = typer.Option(
        ..., "--values", metavar="FILE.npy", help="The next token of each, (N,), or the same folder."
    ),
    output: str = typer.Option(..., "--output", metavar="FILE", help="The index; values stand beside it."),
    dim: int = typer.Option(
        ..., "--dim", min=1, metavar="D", help="Width of the keys; 2304 of the 3b model."
    ),
    factory: str = typer.Option("IVF4096,PQ32", "--factory", help="What kind of index, as faiss writes it."),
    nprobe: int = typer.Option(
        None, "--nprobe", min=1, metavar="N", help="Cells of IVF that a search looks into; default: 256."
    ),
    json: str = JSON,
) -> None:
    """Build the index of a kNN-LM from keys and next tokens."""

    def work(show: Any) -> dict[str, Any]:
        from quietreasoning.indices.knn import make_knn

        done = make_knn(Path(keys), Path(values), Path(output), dim, factory, nprobe, show)
        if done["factory"] != done["asked"]:
            _note(f"{done['entries']} keys cannot train {done['asked']}; built {done['factory']}")
        return done

    _told(work, json)


@app.command("episodic")
@guarded
def episodic(
    input: str = typer.Option(None, "--input", metavar="FILE.jsonl", help="Events, a row each."),
    run: str = typer.Option(
        None, "--run", metavar="RUN", help="In its place: what this run was trained on, as it reads it."
    ),
    text: str = typer.Option(
        None, "--text", metavar="FILE", help="With --run: a text, cut where it surprises the run's model."
    ),
    surprise: str = typer.Option(None, "--surprise", help="Of --text: token (default) or bayes."),
    cooldown: int = typer.Option(
        None, "--cooldown", min=0, metavar="N", help="Of --text: tokens an event has at least; default: 64."
    ),
    output: str = typer.Option(..., "--output", metavar="DIR", help="The store; what is there is renewed."),
    encoder: str = typer.Option(
        None, "--encoder", metavar="NAME", help="What made the vectors, such as NAME@REVISION:last."
    ),
    vectors: str = typer.Option(
        None, "--vectors", metavar="FILE.npy", help="float32 (N, dim), a row each; default: in the rows."
    ),
    backend: str = typer.Option(
        "faiss_ivfpq", "--backend", help="Or flat, faiss_flat, faiss_hnsw, hnswlib, scann."
    ),
    ttl_days: float = typer.Option(30.0, "--ttl-days", metavar="DAYS", help="After which events expire."),
    json: str = JSON,
) -> None:
    """Write an episodic store from curated events, the training rows of a run, or what surprises it."""

    def work(show: Any) -> dict[str, Any]:
        from quietreasoning.indices import episodic
        from quietreasoning.memory.index_settings import CODE_BYTES

        cut = {"kind": surprise, "cooldown": cooldown}
        cut = {name: value for name, value in cut.items() if value is not None}
        _refuse_apart(input, run, text, cut, encoder, vectors)
        out, kept = Path(output), {"backend": backend, "ttl_days": ttl_days}
        if text is not None:
            done = episodic.make_episodic_of_text(run, Path(text), out, cut, **kept)
        elif run is not None:
            done = episodic.make_episodic_of_run(run, out, **kept, show=show)
        else:
            given = None if vectors is None else Path(vectors)
            done = episodic.make_episodic(Path(input), out, encoder, vectors=given, **kept, show=show)
        if "m" in done:
            _note(f"codes of {CODE_BYTES} bytes do not fit width {done['dim']}; made with m={done['m']}")
        if old := done.get("expired_on_arrival"):
            _note(f"{old} of {done['events']} events had expired already; --ttl-days is {ttl_days:g}")
        return done

    _told(work, json)


@app.command("verify-knn")
@guarded
def verify_knn(
    index: str = typer.Option(..., "--index", metavar="FILE", help="An index of quiet index knn."),
    queries: str = typer.Option(..., "--queries", metavar="FILE.npy", help="float32 (M, dim)."),
    k: int = typer.Option(10, "--k", min=1, help="Neighbours."),
    keys: str = typer.Option(
        None, "--keys", metavar="FILE.npy", help="Where the keys it was made of are now; default: as then."
    ),
    candidates: int = typer.Option(
        8, "--candidates", min=1, metavar="N", help="Keys ranked exactly for each neighbour."
    ),
    json: str = JSON,
) -> None:
    """Check an index, and tell its recall@k against exact search."""

    def work(show: Any) -> dict[str, Any]:
        from quietreasoning.indices.knn import verify_knn

        held = None if keys is None else Path(keys)
        done = verify_knn(Path(index), Path(queries), k, held, candidates, show)
        if done["k"] < k:
            _note(f"--k {k}: the index holds {done['entries']} keys, so k is {done['k']}")
        return done

    _told(work, json)


@app.command("consolidate")
@guarded
def consolidate(
    run: str = typer.Argument(..., help="A run of method workspace with a product-key memory."),
    store: str = typer.Option(..., "--store", metavar="DIR", help="A store of quiet index episodic."),
    min_hits: int = typer.Option(20, "--min-hits", min=1, metavar="N", help="Hits worth promoting."),
    questions: str = typer.Option(
        None, "--questions", metavar="FILE.jsonl", help="Prompts and answers; default: the texts' last words."
    ),
    held_out: int = typer.Option(
        1000, "--held-out", min=1, metavar="N", help="Validation questions that must not suffer."
    ),
    tolerance: float = typer.Option(
        0.02, "--tolerance", min=0.0, max=0.99, help="Loss on them that the 95 % interval must exclude."
    ),
    rollback: bool = typer.Option(False, "--rollback", help="Take the last consolidation back instead."),
    json: str = JSON,
) -> int:
    """Move what is asked for often into a model's memory, if a check finds that it helps and does no harm."""

    def work(show: Any) -> dict[str, Any]:
        from quietreasoning.indices.consolidate import consolidate, roll_back
        from quietreasoning.workspace.consolidation import ConsolidationSettings

        if rollback:
            return roll_back(run, Path(store))
        settings = ConsolidationSettings(min_hits=min_hits, held_out=held_out, tolerance=tolerance)
        asked = None if questions is None else Path(questions)
        return consolidate(run, Path(store), settings, questions=asked, show=show)

    return 0 if _told(work, json).get("accepted", True) else 1


def _refuse_apart(
    input: str | None,
    run: str | None,
    text: str | None,
    cut: dict[str, Any],
    encoder: str | None,
    vectors: str | None,
) -> None:
    """UserError for flags of `episodic` that do not go together."""
    from quietreasoning.config import UserError

    if text is None and cut:
        raise UserError("--surprise and --cooldown say where --text is cut; give it, or drop them")
    if text is not None and run is None:
        raise UserError(f"--text {text}: needs --run RUN, whose model reads it")
    if (input is None) == (run is None):
        raise UserError("quiet index episodic takes its events from --input or from --run; give one")
    if input is not None and encoder is None:
        raise UserError("--input needs --encoder NAME, what made the vectors")
    for name, value in (("encoder", encoder), ("vectors", vectors)):
        if run is not None and value is not None:
            raise UserError(f"--{name} {value}: the run itself makes the vectors; drop it")


def _note(text: str) -> None:
    typer.echo(f"quiet: note: {text}", err=True)


def _told(work: Callable[[Any], dict[str, Any]], json: str | None) -> dict[str, Any]:
    """Do it under a progress bar, then tell the figures and return them."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from quietreasoning.cli.output import json_alone, print_table, write_json

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar, tasks = Progress(*columns, console=Console(stderr=True)), {}

    def show(what: str, done: int, total: int) -> None:
        if what not in tasks:
            bar.start()  # not before: a refusal comes without a bar
            tasks[what] = bar.add_task(what, total=total)
        bar.update(tasks[what], completed=done, total=total)

    with json_alone(json):
        try:
            figures = work(show)
        finally:
            if tasks:
                bar.stop()
    write_json(json, figures)
    if json != "-":
        print_table(("", ""), [(name.replace("_", " "), value) for name, value in figures.items()])
    return figures
