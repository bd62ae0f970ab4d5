"""Where each run comes from: recipe, command, device, settings, and what its folder lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quietreasoning.report import html as h
from quietreasoning.report.runs import Run


def runs_section(runs: Sequence[Run]) -> str:
    rows, parts = [], []
    for run in runs:
        facts = identity(run)
        rows.append(("own", [h.esc(run.name), *(h.esc(facts[key]) for key in FACTS)]))
        for fault in run.faults:
            parts.append(f'<p class="absent">{h.esc(run.name)}: {h.esc(fault)}</p>')
        for piece, command in run.absent.items():
            parts.append(h.absent(f"{run.name}: {piece} is absent.", command))
    table = h.table(["run", *FACTS], rows)
    details = [
        f"<details><summary>{h.esc(run.name)}: all settings and versions</summary>"
        f"<pre>{h.esc(lines(run.settings) or '(no config.yaml)')}</pre>"
        f"<pre>{h.esc(lines(run.identity) or '(no run.json)')}</pre></details>"
        for run in runs
    ]
    return h.section("runs", "Runs", table, *parts, *details)


FACTS = ("recipe", "method", "seed", "backbone", "task", "steps", "device", "commit", "command")


def identity(run: Run) -> dict[str, str]:
    """The figures of `FACTS`, "-" where a run does not say."""
    settings, said = run.settings, run.identity

    def inside(*keys: str) -> Any:
        value: Any = settings
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    last = (settings.get("stages") or [{}])[-1]
    workspace = inside("backbone", "workspace", "preset")
    backbone = inside("backbone", "path") or (f"workspace {workspace}" if workspace else None)
    backbone = backbone or ("from scratch" if inside("backbone", "scratch") else None)
    device = said.get("device") or next((report.device for report in run.reports if report.device), None)
    found = {
        "recipe": said.get("recipe"),
        "method": last.get("method", {}).get("name"),
        "seed": settings.get("seed"),
        "backbone": backbone,
        "task": last.get("data", {}).get("task"),
        "steps": run.log[-1]["step"] if run.log else None,
        "device": device,
        "commit": said.get("commit") or said.get("git_commit"),
        "command": said.get("command"),
    }
    return {key: "-" if value in (None, "") else words(value) for key, value in found.items()}


def words(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return str(value)


def lines(content: Any, path: str = "") -> str:
    """Nested settings as `a.b = c` lines."""
    if isinstance(content, dict):
        return "\n".join(
            filter(None, (lines(v, f"{path}.{k}" if path else str(k)) for k, v in content.items()))
        )
    return f"{path} = {content}"
