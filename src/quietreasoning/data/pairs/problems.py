"""From `gsm8k,mbpp` to problems: tasks by name, files as JSONL, each with its folder, split and settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quietreasoning.config import UserError, suggest
from quietreasoning.data.config import DataConfig, build_task
from quietreasoning.data.pairs.keys import Problem, problem_id
from quietreasoning.data.records import SUFFIXES
from quietreasoning.data.tasks import TASKS, Task
from quietreasoning.recipe import parse_override
from quietreasoning.validation import validate


@dataclass(frozen=True)
class Dataset:
    """One of the data sets that are mixed."""

    name: str
    task: Task
    split: str  # of the task; pairs have splits of their own


def open_datasets(
    names: str,
    *,
    paths: Sequence[str] = (),
    settings: Sequence[str] = (),
    split: str = "train",
    allow_test: bool = False,
    own: DataConfig | None = None,
) -> list[Dataset]:
    """The data sets of a comma list. UserError for an unknown one, or an official test split.

    paths: `NAME=FOLDER`, or a FOLDER alone for the only data set that reads files.
    settings: `NAME.KEY=VALUE`. own: the data that the model was trained on,
    whose settings hold for the task of that name.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted or len(set(wanted)) < len(wanted):
        raise UserError(f"--dataset {names}: name each data set once, with commas. {suggest('', _names())}")
    given = _paths(wanted, paths)
    options = _options(wanted, settings)
    return [_open(name, given.get(name), options.get(name, {}), split, allow_test, own) for name in wanted]


def _open(
    name: str, path: str | None, options: dict[str, Any], split: str, allow_test: bool, own: DataConfig | None
) -> Dataset:
    task_name, path = ("jsonl", path or name) if name.endswith(SUFFIXES) else (name, path)
    if task_name not in _names():
        raise UserError(f"--dataset {name}: no such data set. {suggest(name, _names())}")
    base: dict[str, Any] = {"task": task_name}
    if own is not None and own.task == task_name:
        base |= {"options": own.options.model_dump(mode="json"), "seed": own.seed, "path": own.path}
    if TASKS[task_name].needs_path and path is None and base.get("path") is None:
        raise UserError(f"--dataset {name} reads files: give --path {name}=FOLDER")
    if path is not None:
        base["path"] = path
    base["options"] = base.get("options", {}) | options
    task = build_task(validate(DataConfig, base))
    chosen = split if split in task.splits or len(task.splits) > 1 else task.splits[0]
    task.check_split(chosen)
    if chosen == "test" and not allow_test:
        others = ", ".join(other for other in task.splits if other != "test")
        raise UserError(
            f"--dataset {name}: its split 'test' is for evaluation alone. "
            + (f"Take --split {others.partition(',')[0]}" if others else "It has no other; leave it out")
            + ", or say --allow-test, which is written into the output."
        )
    return Dataset(Path(name).name if name.endswith(SUFFIXES) else name, task, chosen)


def _names() -> list[str]:
    return [name for name, task in TASKS.items() if not task.text and name != "pairs"]


def _paths(wanted: Sequence[str], paths: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in paths:
        name, equals, path = text.partition("=")
        if equals and name in wanted:
            found[name] = path
            continue
        readers = [one for one in wanted if one in TASKS and TASKS[one].needs_path]
        if len(readers) != 1:
            raise UserError(f"--path {text}: say whose it is, as NAME=FOLDER. Names: {', '.join(wanted)}")
        found[readers[0]] = text
    return found


def _options(wanted: Sequence[str], settings: Iterable[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for text in settings:
        (name, *keys), value = parse_override(text)
        if name not in wanted or not keys:
            raise UserError(f"{text}: settings are NAME.KEY=VALUE; names of --dataset: {','.join(wanted)}")
        at = found.setdefault(name, {})
        for key in keys[:-1]:
            at = at.setdefault(key, {})
        at[keys[-1]] = value
    return found


def draw_problems(datasets: Sequence[Dataset], n: int) -> list[Problem]:
    """n problems in all, in equal parts, in the order of their data sets; fewer where a data set has fewer.

    The same question twice in a data set counts once.
    """
    problems: dict[str, Problem] = {}
    for index, dataset in enumerate(datasets):
        share = n // len(datasets) + (index < n % len(datasets))
        found: dict[str, Problem] = {}
        for example in dataset.task.split(dataset.split, None if dataset.task.needs_path else share):
            if len(found) == share:
                break
            id = problem_id(dataset.name, example.prompt)
            found.setdefault(id, Problem(id, dataset.name, dataset.task.scorer, example))
        problems |= found
    return list(problems.values())
