"""`quiet data pairs`: open whoever thinks, draw the problems, write rollouts until there are no more.

The same command goes on where it ended, whatever ended it; so does one with another batch size, another
number of ranks or more problems. Anything that would change a rollout is compared and refused.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from quietreasoning.backbone import BackboneConfig, load_backbone
from quietreasoning.backbone.sampling import sample
from quietreasoning.backbone.states import PRE_NORM, read_states
from quietreasoning.backbone.weights import named_identity, weights_identity
from quietreasoning.build import open_run
from quietreasoning.config import UserError
from quietreasoning.contract import Role
from quietreasoning.data.config import DataConfig
from quietreasoning.data.example import Example
from quietreasoning.data.pairs.folder import PAIRS, write_summary
from quietreasoning.data.pairs.keys import Item, Problem
from quietreasoning.data.pairs.problems import Dataset, draw_problems, open_datasets
from quietreasoning.data.pairs.roll import Roller, RollSettings, Sampler
from quietreasoning.data.pairs.shards import DTYPES, writing
from quietreasoning.data.pairs.sources import ChatSource, RunSource, Source
from quietreasoning.data.pairs.work import Work
from quietreasoning.data.tokenizers import load_tokenizer
from quietreasoning.disk import refuse_file
from quietreasoning.evaluate.scorers import SCORERS
from quietreasoning.train.signals import StopFlag

DATE = "2025-07-01"  # what a template that prints the day is told: the same every day
CHAT_TEMPERATURE = 0.7


@dataclass(frozen=True)
class Request:
    """What the command line asks for; None takes the default of the source."""

    model: str
    out: Path
    dataset: str | None = None
    paths: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    revision: str | None = None
    split: str = "train"
    allow_test: bool = False
    num_samples: int = 1000
    samples_per_problem: int = 1
    batch_size: int = 4
    max_new_tokens: int = 512
    checkpoint_every: int = 100
    temperature: float | None = None
    seed: int = 0
    keep: str = "correct"
    layers: str = "last"
    dtype: str | None = None
    target: str = "close"
    stop_at_close: bool = False
    keep_system_prefix: bool = False
    system: str | None = None
    instruction: str | None = None
    date: str = DATE
    opened: str = "<think>"
    closed: str = "</think>"


@dataclass(frozen=True)
class Opened:
    """A source, where it came from, and the defaults that go with it."""

    source: Source
    path: str
    data: DataConfig | None
    temperature: float
    dtype: str


def harvest(request: Request, *, rank: int = 0, ranks: int = 1, sampler: Sampler = sample) -> dict[str, Any]:
    """Make this rank's rollouts of what is not there yet; the summary of the whole folder.

    sampler: draws tokens, as `backbone.sampling.sample` does.
    """
    check(request)
    stop = StopFlag()
    with stop.listening():
        opened = open_source(request)
        own = opened.data if request.dataset is None else None
        datasets = open_datasets(
            request.dataset or (own.task if own else "gsm8k"),
            paths=request.paths,
            settings=request.settings,
            split=request.split,
            allow_test=request.allow_test,
            own=opened.data,
        )
        settings = roll_settings(request, opened)
        problems = draw_problems(datasets, request.num_samples)
        roll = Roller(opened.source, settings, judge, sampler)
        refuse_too_long(roll, problems)
        identity = weights_identity(opened.source.backbone)
        with writing(request.out, rank, ranks):
            PAIRS.settle(
                request.out,
                recorded(request, opened, datasets, settings, identity),
                {"model": identity | {"path": opened.path}, "num_samples": request.num_samples},
                rank,
                ranks,
            )
            items = [Item(problem, n) for problem in problems for n in range(request.samples_per_problem)]
            work = Work(request.out, roll, stop, rank, ranks)
            work.through(items, request.batch_size, request.checkpoint_every)
            asked = {d.name: sum(i.problem.dataset == d.name for i in items) for d in datasets}
            return write_summary(request.out, asked, rank, ranks)


def judge(answer: str, example: Example, scorer: str) -> bool:
    """As the evaluation judges; UserError where the example cannot be judged."""
    try:
        return SCORERS[scorer](answer, example)
    except ValueError as error:
        raise UserError(f"{error}; mend its file, or score it otherwise (jsonl.scoring=exact)") from None


def check(request: Request) -> None:
    """UserError for wishes that cannot be met together."""
    if request.keep not in ("correct", "all"):
        raise UserError(f"--keep {request.keep}: choices are correct and all")
    if request.target not in ("close", "pre_answer"):
        raise UserError(f"--target {request.target}: choices are close and pre_answer")
    if request.stop_at_close and request.keep != "all":
        raise UserError("--stop-at-close writes no answer, so none can be right: give --keep all with it")
    if request.stop_at_close and request.target != "close":
        raise UserError("--stop-at-close writes no answer: --target pre_answer has no place; drop one")
    if request.dtype is not None and request.dtype not in DTYPES:
        raise UserError(f"--dtype {request.dtype}: choices are {', '.join(DTYPES)}")
    if request.temperature is not None and request.temperature < 0:
        raise UserError(f"--temperature {request.temperature}: must not be negative; 0 is greedy")
    refuse_file(request.out)


def open_source(request: Request) -> Opened:
    """A run folder whose method writes its chain, or a model with a thinking template."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.accelerator.is_available():
        torch.accelerator.set_device_index(local % torch.accelerator.device_count())
    path = Path(request.model)
    if (path / "config.yaml").is_file() or path.name.startswith("step-"):
        return _open_run(request)
    dtype = request.dtype or "bfloat16"
    if dtype == "float16":
        raise UserError("--dtype float16: a model runs in float32 or bfloat16; choose one")
    tokenizer = load_tokenizer(request.model, request.revision)
    config = BackboneConfig(path=request.model, revision=request.revision, tune="frozen", dtype=dtype)
    backbone = load_backbone(config, len(tokenizer)).eval()
    backbone.to(torch.accelerator.current_accelerator() or torch.device("cpu"))
    try:
        today = date.fromisoformat(request.date)
    except ValueError:
        raise UserError(f"--date {request.date}: must be a day, such as {DATE}") from None
    source = ChatSource(
        backbone,
        tokenizer,
        request.model,
        today=today,
        system=request.system,
        instruction=request.instruction,
        opened=request.opened,
        closed=request.closed,
    )
    return Opened(source, request.model, None, CHAT_TEMPERATURE, dtype)


def _open_run(request: Request) -> Opened:
    loaded = open_run(request.model)
    method = loaded.method.config.name
    if method != "cot":
        raise UserError(
            f"run {request.model} is of method {method}, which writes no chain to learn from. Give a run of "
            "method cot; with several stages, name its checkpoint, as in RUN/step-000500."
        )
    for name, value in (("--system", request.system), ("--instruction", request.instruction)):
        if value is not None:
            raise UserError(f"{name} has no effect on a run, which is asked as it was trained; drop it")
    source = RunSource(loaded.method.backbone, loaded.encoder)
    datas = [stage.data for stage in loaded.config.stages if stage.method.name == "cot"]
    return Opened(source, str(loaded.folder), datas[-1], 0.0, "float32")


def roll_settings(request: Request, opened: Opened) -> RollSettings:
    temperature = opened.temperature if request.temperature is None else request.temperature
    if temperature == 0 and request.samples_per_problem > 1:
        raise UserError(
            f"--samples-per-problem {request.samples_per_problem}: without a temperature all samples are the "
            "same. Give --temperature 0.7, or one sample."
        )
    layers = parse_layers(request.layers)
    ids_12 = torch.zeros(1, 2, dtype=torch.long, device=next(opened.source.backbone.parameters()).device)
    read_states(
        opened.source.backbone, ids_12, torch.full_like(ids_12, int(Role.PROMPT)), layers
    )  # or refused
    return RollSettings(
        seed=request.seed,
        temperature=temperature,
        max_new_tokens=request.max_new_tokens,
        layers=layers,
        dtype=request.dtype or opened.dtype,
        target=request.target,
        keep=request.keep,
        stop_at_close=request.stop_at_close,
        keep_system_prefix=request.keep_system_prefix,
    )


def identity_of(model: str) -> dict[str, str]:
    """Identity of a run or a model folder, by its weights; of a hub id, its name alone."""
    path = Path(model)
    if not (path / "config.yaml").is_file() and not path.name.startswith("step-"):
        return named_identity(model)
    loaded = open_run(model)
    return weights_identity(loaded.method.backbone) | {"path": str(loaded.folder)}


def parse_layers(text: str) -> tuple[int | str, ...]:
    """`18,last` -> (18, "last"); what is no number is a name."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    layers = tuple(int(part) if part.lstrip("-").isdecimal() else part.replace("-", "_") for part in parts)
    if not layers or len(set(layers)) < len(layers):
        raise UserError(
            f"--layers {text}: name each once, such as 18,last ({PRE_NORM}: before the final norm)"
        )
    return layers


def recorded(
    request: Request,
    opened: Opened,
    datasets: Sequence[Dataset],
    settings: RollSettings,
    identity: dict[str, str],
) -> dict[str, Any]:
    """All that changes a rollout: what pairs.json compares. Batch size, ranks and paths are not in it."""
    return {
        "model": {"sha256": identity["sha256"]},
        "hidden_size": opened.source.backbone.width,
        **opened.source.settings(),
        **asdict(settings),
        "datasets": {
            d.name: {"split": d.split, "scorer": d.task.scorer} | d.task.fingerprint() for d in datasets
        },
        "allow_test": request.allow_test,
    }


def refuse_too_long(roll: Roller, problems: Sequence[Problem]) -> None:
    """UserError where no problem's prompt leaves room for what may be written."""
    if any(roll.fits(roll.source.prompt(p.example, p.scorer)) for p in problems):
        return
    context = roll.source.backbone.context
    raise UserError(
        f"--max-new-tokens {roll.settings.max_new_tokens}: no problem leaves so much room in the model's "
        f"context of {context}. Give fewer."
    )
