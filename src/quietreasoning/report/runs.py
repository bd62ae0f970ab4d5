"""What run folders hold: settings, identity, log, evaluations. A missing or broken piece stops nothing."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from quietreasoning.config import UserError
from quietreasoning.evaluate.compare import compare_all, verdicts
from quietreasoning.evaluate.rows import Report, arm_name, load

PIECES = {
    "config.yaml": "quiet train RECIPE",
    "run.json": "quiet train RECIPE",
    "log.jsonl": "quiet train RECIPE",
    "eval/rows.json": "quiet eval {run}",
}


@dataclass(frozen=True)
class Run:
    """One run folder. `absent` maps a piece to the command that makes it, `faults` says what is broken."""

    path: Path
    settings: dict[str, Any]
    identity: dict[str, Any]
    log: list[dict[str, Any]]
    reports: list[Report]
    absent: dict[str, str]
    faults: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def group(self) -> str:
        """The recipe, else the folder's name."""
        return str(self.identity.get("recipe") or self.name)

    @property
    def but_seed(self) -> dict[str, Any]:
        """The settings without seed and folders: runs that agree in them share a picture."""
        return {
            key: value for key, value in self.settings.items() if key not in ("seed", "out", "init", "eval")
        }


def read_run(path: Path) -> Run:
    """UserError where `path` is no folder, or holds none of the pieces."""
    if not path.is_dir():
        raise UserError(f"{path} is no run folder; give the folder that `quiet train` wrote")
    absent = {
        piece: command.format(run=path) for piece, command in PIECES.items() if not (path / piece).is_file()
    }
    if len(absent) == len(PIECES):
        raise UserError(f"{path} holds no run: none of {', '.join(PIECES)} is there")
    faults: list[str] = []
    log, broken = read_lines(path / "log.jsonl") if "log.jsonl" not in absent else ([], 0)
    if broken:
        faults.append(f"log.jsonl: {broken} broken line{'s' if broken > 1 else ''} left out")
    reports: list[Report] = []
    if "eval/rows.json" not in absent:
        try:
            reports = load(path / "eval" / "rows.json")
        except UserError as error:
            faults.append(str(error))
    return Run(
        path=path,
        settings=_mapping(path / "config.yaml", yaml.safe_load, faults),
        identity=_mapping(path / "run.json", json.loads, faults),
        log=log,
        reports=reports,
        absent=absent,
        faults=tuple(faults),
    )


def _mapping(path: Path, parse: Any, faults: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError):
        content = None
    if not isinstance(content, dict):
        faults.append(f"{path.name}: cannot be read")
        return {}
    return content


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Records of a log and how many lines were no record."""
    records, broken = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
        else:
            broken += 1
    return records, broken


def merge(runs: Sequence[Run]) -> list[Report]:
    """One report a (task, split, seed, items), with the arms of every run that was asked the same items.

    Arms that say the same under the same name are one arm. Where two runs give one name to arms that
    say different things, the name gets its run in brackets. Tests and verdicts are computed anew, so
    that arms of different runs are compared too.
    """
    named = _told_apart(runs)
    groups: dict[tuple, list[Report]] = defaultdict(list)
    for report in named:
        groups[report.task, report.split, report.seed, report.items].append(report)
    return [_joined(group) for group in groups.values()]


def _told_apart(runs: Sequence[Run]) -> list[Report]:
    said: dict[tuple, set[tuple]] = defaultdict(set)
    for run in runs:
        for report in run.reports:
            for row in report.rows:
                key = (report.task, report.split, report.seed, row["method"])
                arm = arm_name("", row["control"], row["effort"])
                outcome = report.outcomes.get(arm_name(row["method"], row["control"], row["effort"]))
                said[(*key, arm)].add((report.items, outcome, row["correct"]))
    clashes = {key[:4] for key, outcomes in said.items() if len(outcomes) > 1}
    clashes = {(task, split, method) for task, split, _, method in clashes}  # in every seed alike
    found = []
    for run in runs:
        for report in run.reports:
            new = {
                row["method"]: f"{row['method']} ({run.name})"
                for row in report.rows
                if (report.task, report.split, row["method"]) in clashes
            }
            found.append(_renamed(report, new) if new else report)
    return found


def _renamed(report: Report, new: dict[str, str]) -> Report:
    names = {
        arm_name(row["method"], row["control"], row["effort"]): arm_name(
            new.get(row["method"], row["method"]), row["control"], row["effort"]
        )
        for row in report.rows
    }
    return replace(
        report,
        rows=tuple({**row, "method": new.get(row["method"], row["method"])} for row in report.rows),
        outcomes={names.get(name, name): bits for name, bits in report.outcomes.items()},
        samples=tuple(
            {**sample, "arm": names.get(sample["arm"], sample["arm"])} for sample in report.samples
        ),
    )


def _joined(reports: Sequence[Report]) -> Report:
    rows, outcomes, samples = {}, {}, {}
    for report in reports:
        for row in report.rows:
            rows[row["method"], row["control"], row["effort"]] = row
        outcomes |= report.outcomes
        samples |= {(sample["id"], sample["arm"]): sample for sample in report.samples}
    order = {method: i for i, method in enumerate(dict.fromkeys(key[0] for key in rows))}
    kept = sorted(rows.values(), key=lambda row: (row["kind"] == "shortcut", order[row["method"]]))
    return replace(
        reports[0],
        rows=tuple(kept),
        outcomes=outcomes,
        samples=tuple(samples.values()),
        comparisons=tuple(compare_all(kept, outcomes)),
        verdicts=tuple(verdicts(kept, outcomes)),
        complete=all(report.complete for report in reports),
    )
