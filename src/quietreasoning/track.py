"""Where records go: the console, `log.jsonl` (always), TensorBoard, Weights & Biases.

A row is a flat dictionary with `step` and `stage` and any of `loss/<term>`, `train/<x>`, `eval/<x>`,
`cost/<x>`. A sink that raises is named once and switched off; it never stops a run.
"""

from __future__ import annotations

import json
import numbers
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from pydantic import Field

from quietreasoning.config import Settings

LOG = "log.jsonl"
Row = Mapping[str, Any]


class TrackConfig(Settings):
    """`track.*` in a recipe: who hears about the run besides `log.jsonl`."""

    console: bool = True
    """Progress on the terminal."""
    console_seconds: float = Field(default=5.0, ge=0)
    """Least time between lines where the output is no terminal."""
    tensorboard: bool = False
    """Write TensorBoard event files to `tensorboard/` in the run folder."""
    wandb: str | None = None
    """Project name at Weights & Biases; needs the extra `wandb`."""


class Sink(Protocol):
    """What hears about a run."""

    def stage(self, name: str, unit: str, total: int, done: int) -> None:
        """A stage begins or goes on: its budget in `unit` ("step" or "token") and what is spent of it."""

    def write(self, row: Row) -> None: ...

    def note(self, text: str) -> None:
        """A line for people: a checkpoint was saved, one was passed over, a sample."""

    def close(self) -> None: ...


class JsonLines:
    """`log.jsonl`, one row a line. A resume drops rows after that step and a torn last line."""

    def __init__(self, path: Path, resume_step: int | None = None):
        kept = [] if resume_step is None else _rows_until(path, resume_step)
        path.parent.mkdir(parents=True, exist_ok=True)
        rewritten = path.with_name(f".tmp-{path.name}")
        rewritten.write_bytes(b"".join(kept))
        rewritten.replace(path)
        self.file: TextIO = path.open("a", encoding="utf-8")

    def stage(self, name: str, unit: str, total: int, done: int) -> None:
        pass

    def write(self, row: Row) -> None:
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def note(self, text: str) -> None:
        pass

    def close(self) -> None:
        self.file.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a `log.jsonl`, less a torn last line."""
    return [json.loads(line) for line in _whole_lines(path)]


class Console:
    """A progress bar on a terminal; elsewhere a line every few seconds."""

    def __init__(self, seconds: float = 5.0, file: TextIO | None = None):
        from rich.console import Console as Terminal  # slow to import

        self.terminal = Terminal(file=file, highlight=False, soft_wrap=True)
        self.seconds = seconds
        self.bar: Any = None
        self.printed = -float("inf")

    def stage(self, name: str, unit: str, total: int, done: int) -> None:
        self._end_bar()
        self.name, self.unit, self.total, self.done = name, unit, total, done
        self.began, self.first = time.monotonic(), done
        self.printed = -float("inf")
        if self.terminal.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn(f"{{task.completed:.0f}}/{{task.total:.0f}} {unit}s"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
                console=self.terminal,
            )
            self.task = self.bar.add_task(name, total=total, completed=done, text="")
            self.bar.start()

    def write(self, row: Row) -> None:
        if "train/loss" not in row:
            results = {k.removeprefix("eval/"): v for k, v in row.items() if k.startswith("eval/")}
            if results:
                self.note(f"{row['stage']} step {row['step']}  " + "  ".join(_shown(results)))
            return
        self.done = row["train/tokens"] if self.unit == "token" else row["train/steps"]
        text = "  ".join(
            [
                f"loss {row['train/loss']:.4g}",
                f"{row['cost/tokens_per_second']:,.0f} tokens/s",
                *([f"data {row['cost/data_share']:.0%}"] if row["cost/data_share"] > 0.1 else []),
                *([f"{row['train/skipped']} skipped"] if row["train/skipped"] else []),
            ]
        )
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, text=text)
        elif time.monotonic() - self.printed >= self.seconds or self.done >= self.total:
            self.printed = time.monotonic()
            self.terminal.print(
                f"{self.name} {self.unit} {self.done}/{self.total}  {text}  {self._left()}", markup=False
            )

    def note(self, text: str) -> None:
        self.terminal.print(text, markup=False)

    def close(self) -> None:
        self._end_bar()

    def _left(self) -> str:
        spent, done = time.monotonic() - self.began, self.done - self.first
        seconds = spent / done * (self.total - self.done) if done > 0 else 0.0
        minutes, seconds = divmod(round(max(seconds, 0.0)), 60)
        return f"{minutes}:{seconds:02d} left"

    def _end_bar(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


class TensorBoard:
    """Numbers of every row as scalars under their keys."""

    def __init__(self, folder: Path, resume_step: int | None = None):
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        purge = None if resume_step is None else resume_step + 1
        self.writer = SummaryWriter(str(folder), purge_step=purge)

    def stage(self, name: str, unit: str, total: int, done: int) -> None:
        pass

    def write(self, row: Row) -> None:
        for key, value in _numbers(row).items():
            self.writer.add_scalar(key, value, row["step"])

    def note(self, text: str) -> None:
        pass

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """Rows at Weights & Biases, under the run folder's name; a resumed run goes on in the same place."""

    def __init__(self, project: str, run_dir: Path, settings: Mapping[str, Any]):
        import wandb  # an extra

        self.run = wandb.init(
            project=project,
            name=run_dir.name,
            id=run_dir.name,
            dir=run_dir,
            config=dict(settings),
            resume="allow",
        )

    def stage(self, name: str, unit: str, total: int, done: int) -> None:
        pass

    def write(self, row: Row) -> None:
        self.run.log(_numbers(row), step=row["step"])

    def note(self, text: str) -> None:
        pass

    def close(self) -> None:
        self.run.finish()


class Sinks:
    """Several sinks as one. The first failure of a sink is a warning and its last word."""

    def __init__(self, sinks: Sequence[Sink] = ()):
        self.sinks = list(sinks)

    @classmethod
    def open(
        cls,
        config: TrackConfig,
        run_dir: Path,
        *,
        resume_step: int | None = None,
        settings: Mapping[str, Any] | None = None,
        main: bool = True,
    ) -> Sinks:
        """The sinks a recipe asks for. resume_step: the step the run goes on from, None for a new run.
        main: False on all ranks but the first, which stay silent."""
        if not main:
            return cls()
        sinks = cls()
        sinks._add("log.jsonl", lambda: JsonLines(run_dir / LOG, resume_step))
        if config.console:
            sinks._add("console", lambda: Console(config.console_seconds))
        if config.tensorboard:
            sinks._add("tensorboard", lambda: TensorBoard(run_dir / "tensorboard", resume_step))
        if config.wandb is not None:
            sinks._add("wandb", lambda: Wandb(config.wandb, run_dir, settings or {}))
        return sinks

    def stage(self, name: str, unit: str, total: int, done: int) -> None:
        self._each(lambda sink: sink.stage(name, unit, total, done))

    def write(self, row: Row) -> None:
        self._each(lambda sink: sink.write(row))

    def note(self, text: str) -> None:
        self._each(lambda sink: sink.note(text))

    def close(self) -> None:
        self._each(lambda sink: sink.close())
        self.sinks.clear()

    def _each(self, call: Callable[[Sink], None]) -> None:
        for sink in list(self.sinks):
            try:
                call(sink)
            except Exception as error:
                self.sinks.remove(sink)
                _warn(type(sink).__name__, error)

    def _add(self, name: str, build: Callable[[], Sink]) -> None:
        try:
            self.sinks.append(build())
        except Exception as error:
            _warn(name, error)


def _warn(name: str, error: Exception) -> None:
    warnings.warn(f"{name} is switched off for this run: {type(error).__name__}: {error}", stacklevel=3)


def _numbers(row: Row) -> dict[str, float]:
    return {k: float(v) for k, v in row.items() if k != "step" and isinstance(v, numbers.Real)}


def _shown(values: Mapping[str, Any]) -> list[str]:
    return [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()]


def _whole_lines(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _rows_until(path: Path, step: int) -> list[bytes]:
    """Lines up to the first one after `step`, or the first that is no JSON."""
    kept = []
    for line in _whole_lines(path):
        try:
            row = json.loads(line)
        except ValueError:
            break
        if row["step"] > step:
            break
        kept.append(line)
    return kept
