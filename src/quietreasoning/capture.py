"""`quiet data teacher`: open a teacher, lay out the rows a student will train on, keep what it says of them.

The same command goes on where it ended, whatever ended it; so does one with another batch size or another
number of ranks. Anything that would change a target is compared and refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quietreasoning.backbone import Backbone, BackboneConfig, load_backbone
from quietreasoning.backbone.weights import weights_identity
from quietreasoning.build import Builder, Loaded, open_run, resolve
from quietreasoning.config import UserError, suggest
from quietreasoning.contract import IGNORE
from quietreasoning.data.config import DataConfig, build_task
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.example import Example
from quietreasoning.data.load import load_split
from quietreasoning.data.records import SUFFIXES
from quietreasoning.data.tasks import TASKS
from quietreasoning.data.teacher_cache.forward import Reader
from quietreasoning.data.teacher_cache.header import ALIGNMENT, CACHE, check_teacher, tokenizer_facts
from quietreasoning.data.teacher_cache.keys import Row, fingerprint, predicting, row_key
from quietreasoning.data.teacher_cache.shards import read_index, writing
from quietreasoning.data.teacher_cache.targets import Keep
from quietreasoning.data.teacher_cache.work import Work
from quietreasoning.data.tokenizers import load_tokenizer
from quietreasoning.disk import refuse_file
from quietreasoning.methods.sequence import visible_part
from quietreasoning.recipe import parse_override
from quietreasoning.run_config import RunConfig, StageConfig
from quietreasoning.train.signals import StopFlag
from quietreasoning.validation import validate

_ROWS = 256  # laid out at once
SPLITS = ("train", "valid")  # what a student learns from, and what it is chosen by


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    model: str
    out: Path
    recipe: str | None = None
    dataset: str | None = None
    settings: tuple[str, ...] = ()
    stage: str | None = None
    revision: str | None = None
    split: str = "train"
    steps: bool = True  # false: the answer alone is learned, behind its prefix
    keep: Keep = field(default_factory=Keep)
    batch_size: int = 8
    rows_per_shard: int = 256
    dtype: str | None = None


@dataclass(frozen=True)
class Teacher:
    """A model that is read, with its tokenizer; `run` is where it comes from, if from one of this toolkit."""

    backbone: Backbone
    tokenizer: Any  # a fast one
    dtype: str
    run: Loaded | None = None

    @property
    def data(self) -> DataConfig | None:
        return None if self.run is None else self.run.config.stages[-1].data


def capture(request: Request, *, rank: int = 0, ranks: int = 1) -> dict[str, Any]:
    """Make this rank's shards of what is not there yet; figures of the whole folder.

    UserError for wishes that cannot be met and for a folder that was made otherwise, with what differs.
    """
    check(request)
    stop = StopFlag()
    with stop.listening():
        teacher = open_teacher(request.model, request.revision, request.dtype)
        data, encoder = open_data(request, teacher)
        check_teacher(request.model, teacher.tokenizer, encoder.tokenizer)
        rows, dropped = load_rows(data, encoder, request.split, stop.check, steps=request.steps)
        identity = weights_identity(teacher.backbone)
        with writing(request.out, rank, ranks):
            settings = CACHE.settle(
                request.out,
                recorded(request, teacher, encoder, rows, identity),
                {
                    "teacher": identity | {"path": request.model, "revision": request.revision},
                    "data": {"task": data.task, "path": data.path, "split": request.split},
                },
                rank,
                ranks,
            )
            reader = Reader(teacher.backbone, settings["vocabulary"], request.keep)
            work = Work(request.out, settings, reader, stop, rank, ranks)
            pace = work.through(rows, request.batch_size)
            return figures(request.out, settings) | {"dropped": dropped, "tokens_per_second": round(pace, 1)}


def check(request: Request) -> None:
    """UserError for wishes that cannot be met."""
    if request.recipe is not None and request.dataset is not None:
        raise UserError("--recipe and --dataset both name the rows; drop one")
    if request.stage is not None and request.recipe is None:
        raise UserError(f"--stage {request.stage} has no effect without --recipe; drop it")
    if request.split not in SPLITS:
        raise UserError(
            f"--split {request.split}: choices are {' and '.join(SPLITS)}; no one learns from test"
        )
    if request.dtype not in (None, "float32", "bfloat16"):
        raise UserError(f"--dtype {request.dtype}: choices are float32 and bfloat16")
    refuse_file(request.out)


def open_teacher(model: str, revision: str | None, dtype: str | None) -> Teacher:
    """A model folder, a hub id, or a run of this toolkit, whose backbone is read."""
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    if torch.accelerator.is_available():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        torch.accelerator.set_device_index(local % torch.accelerator.device_count())
    path = Path(model)
    if (path / "config.yaml").is_file() or path.name.startswith("step-"):
        loaded = open_run(path)
        held = loaded.config.backbone.dtype
        if dtype not in (None, held):
            raise UserError(f"--dtype {dtype}: run {path} holds {held} and is read so; leave it out")
        return Teacher(loaded.method.backbone, loaded.encoder.tokenizer, held, loaded)
    dtype = dtype or "bfloat16"
    tokenizer = load_tokenizer(model, revision)
    config = BackboneConfig(path=model, revision=revision, tune="frozen", dtype=dtype)
    return Teacher(load_backbone(config, len(tokenizer)).eval().to(device), tokenizer, dtype)


def open_data(request: Request, teacher: Teacher) -> tuple[DataConfig, Encoder]:
    """Which examples, and the encoder of who will train on them, within the teacher's context."""
    if request.recipe is None:
        data, tokenizer = _dataset(request, teacher.data), teacher.tokenizer
    else:
        data, tokenizer = _recipe(request)
    if TASKS[data.task].text and not request.steps:
        raise UserError(f"--no-steps: data.task={data.task} is running text, which has no steps; drop it")
    context = teacher.backbone.context
    return data, Encoder(tokenizer, data.format, **data.prompt_limits, context=context)


def _recipe(request: Request) -> tuple[DataConfig, Any]:
    """Data of a stage, and the tokenizer of its run."""
    config, stage = stage_of(request.recipe, request.settings, request.stage)
    learns = getattr(stage.method, "steps", request.steps)
    if learns is not request.steps:
        cure = "leave --no-steps out" if learns else "give --no-steps"
        raise UserError(
            f"{request.recipe} has method.steps={str(learns).lower()}: its student learns other positions; "
            f"{cure}, or set method.steps={str(request.steps).lower()}"
        )
    return stage.data, Builder(config).tokenizer


def stage_of(recipe: str, settings: Sequence[str], name: str | None) -> tuple[RunConfig, StageConfig]:
    """A recipe, and its stage of this name; its last where none is named."""
    config = resolve(recipe, settings).config
    names = [stage.name for stage in config.stages]
    if name is not None and name not in names:
        raise UserError(f"--stage {name}: no such stage. {suggest(name, names)}")
    return config, config.stages[-1 if name is None else names.index(name)]


def _dataset(request: Request, own: DataConfig | None) -> DataConfig:
    """A data section of a task or file alone; of the run's own task its settings hold."""
    name = request.dataset or (own.task if own else None)
    if name is None:
        raise UserError(f"{request.model}: whose rows shall it read? Give --recipe RECIPE or --dataset NAME.")
    base: dict[str, Any] = {"task": name}
    if name.endswith(SUFFIXES):
        base = {"task": "jsonl", "path": name}
    elif name not in TASKS:
        raise UserError(f"--dataset {name}: no such data set. {suggest(name, TASKS)}")
    elif own is not None and own.task == name:
        base = own.model_dump(mode="json") | {"options": own.options.model_dump(mode="json")}
    for text in request.settings:
        parts, value = parse_override(text)
        parts = parts[1:] if parts[0] == "data" and len(parts) > 1 else parts  # as a recipe has them
        if parts[0] not in DataConfig.model_fields:
            raise UserError(
                f"{text}: no such setting of data, and without --recipe there are no others. "
                f"{suggest(parts[0], DataConfig.model_fields)}"
            )
        at = base
        for key in parts[:-1]:
            at[key] = dict(at[key]) if isinstance(at.get(key), Mapping) else {}
            at = at[key]
        at[parts[-1]] = value
    return validate(DataConfig, base)


def load_rows(
    data: DataConfig, encoder: Encoder, split: str, check: Callable[[], None], *, steps: bool = True
) -> tuple[list[Row], int]:
    """The rows of a split, each once, and how many examples were dropped for their length."""
    task = build_task(data)
    examples, dropped = load_split(task, split, data, encoder, check=check)
    rows: dict[bytes, Row] = {}
    for first in range(0, len(examples), _ROWS):
        check()
        some = [examples[i] for i in range(first, min(first + _ROWS, len(examples)))]
        for row in lay_out(encoder, some, text=task.text, steps=steps):
            rows.setdefault(row.key, row)
    if not rows:
        raise UserError(f"data.task={data.task}: its split {split} holds no rows to read; check its settings")
    return list(rows.values()), dropped


def lay_out(
    encoder: Encoder, examples: Sequence[Example], *, text: bool = False, steps: bool = True
) -> list[Row]:
    """Question, visible chain, answer prefix, answer and end of sequence, as a visible chain is trained.

    Learned are the positions that predict chain, prefix, answer and end. Without `steps` there is no chain,
    and the prefix is given: learned are the positions that predict answer and end. text: windows of running
    text, all of whose tokens but the first are predicted. With `format.instruction` the teacher reads the
    instructed prompt, while the row is what the student reads.
    """
    batch = encoder.batch(examples)
    if text:
        given_BP = read_BP = batch.prompt_BP[:, :0]
        ids_BT = batch.prompt_BP
        labels_BT = torch.where((ids_BT != IGNORE).cumsum(1) == 1, IGNORE, ids_BT)
    else:
        given_BP = batch.prompt_BP
        read_BP = batch.instructed_BP if batch.instructed_BP.shape[1] else given_BP
        visible = visible_part(batch, encoder.markers(), 0 if steps else None)
        ids_BT, labels_BT = visible.ids_BT, visible.labels_BT
    blank_BP = torch.full_like(given_BP, IGNORE)
    learned_BT = predicting(torch.cat([blank_BP, labels_BT], 1) != IGNORE).numpy()
    whole_BT, read_BT = torch.cat([given_BP, ids_BT], 1).numpy(), torch.cat([read_BP, ids_BT], 1).numpy()
    rows = []
    for whole, learned, read in zip(whole_BT, learned_BT, read_BT, strict=True):
        ids, learned = whole[whole != IGNORE].astype(np.int32), learned[whole != IGNORE]
        if learned.any():  # a text of one token predicts nothing
            rows.append(Row(row_key(ids, learned), ids, learned, read[read != IGNORE].astype(np.int32)))
    return rows


def recorded(
    request: Request,
    teacher: Teacher,
    encoder: Encoder,
    rows: Sequence[Row],
    identity: dict[str, str],
) -> dict[str, Any]:
    """All that changes a target or its place: what the header compares. Batch size and ranks do not."""
    return {
        "teacher": {"sha256": identity["sha256"]},
        "dtype": teacher.dtype,
        **tokenizer_facts(encoder.tokenizer),
        "alignment": ALIGNMENT,
        "keep": request.keep.told(),
        "data": {
            "format": encoder.format.model_dump(mode="json", exclude={"rationale"}),
            **({} if request.steps else {"steps": False}),  # absent: with them, as before there was a choice
            "rows": len(rows),
            "positions": sum(row.positions for row in rows),
            "fingerprint": fingerprint(rows),
        },
        "rows_per_shard": request.rows_per_shard,
    }


def figures(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Of the shards that are closed: size and, a position, bytes, kept entries, kept mass and the teacher's
    cost of the true next token in nats. That cost is high where rows are not what the teacher knows."""
    lines = read_index(folder).values()
    names = ("rows", "positions", "bytes", "entries", "mass", "nll")
    total = {name: sum(line[name] for line in lines) for name in names}
    positions = max(total["positions"], 1)
    drawn = settings["keep"]["draws"] is not None
    return {
        "rows": total["rows"],
        "rows_asked": settings["data"]["rows"],
        "positions": total["positions"],
        "bytes": total["bytes"],
        "bytes_per_position": round(total["bytes"] / positions, 1),
        "kept_per_position": round(total["entries"] / positions, 2),
        "kept_mass": None if drawn else round(total["mass"] / positions, 6),
        "nats_per_token": round(total["nll"] / positions, 4),
    }
