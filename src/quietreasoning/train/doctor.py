"""`quiet doctor RECIPE`: does every loss term do what it says, on one real batch?

`examine(method, batch)` gives a `Diagnosis`: for each term its value, gradient, share and the positions it
touches, and the findings. A finding is a fault to mend before training, one line that names the term,
parameter or position and the cure. `CHECKS` lists what is looked for; `checks.py` and `comparisons.py` do
the looking. The method, its gradients and every random generator are left exactly as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from quietreasoning.config import UserError
from quietreasoning.contract import Batch, Method, Role
from quietreasoning.optim.settings import OptimConfig
from quietreasoning.train import checks, comparisons, probes, scoring
from quietreasoning.train.state import freeze_others

ROWS = 8

CHECKS = {
    "no-gradient": "a weighted term gives every trainable parameter a zero gradient, or none",
    "prompt-touched": "a term's gradient reaches a state that predicts a prompt token",
    "pad-touched": "a term's gradient reaches a state at a padding position",
    "missing-field": "a weighted term counts nothing, because its batch field is empty",
    "unreached-parameter": "a trainable parameter gets no gradient from any weighted term",
    "disabled-changed": "a parameter that is not enabled changes in one optimizer step",
    "future-leak": "a state before position t, or a thought, changes when gold token t changes",
    "not-finite": "a value, metric or gradient is NaN or infinite",
    "units": "units() disagrees with what forward sums",
    "not-a-sum": "a term does not double when the rows are doubled, or is no scalar",
    "random": "two forwards of one batch differ",
    "padding-variance": "more padding changes a term, or what generate answers",
    "batch-variance": "the rows beside a row change its loss, or what generate answers",
    "label-shift": "a gold token is a label of another state than the one right before it",
    "constant": "a term stays the same whatever the tokens of the batch are",
    "unregistered": "a term learns through what is no parameter of the method, or was created in forward",
    "no-step": "one optimizer step changes no enabled parameter, although there are gradients",
    "stray-gradient": "a metric or a carry holds a graph",
    "weight-ignored": "a weight names a term that forward does not produce, or does not use",
    "generation-differs": "generate passes through states that training never computes",
}


@dataclass(frozen=True)
class Finding:
    """One fault. `check` is a key of CHECKS; `where` a term, parameter or position."""

    check: str
    where: str
    problem: str
    cure: str

    def __str__(self) -> str:
        return f"[{self.check}] {self.where}: {self.problem}. {self.cure}"


@dataclass(frozen=True)
class TermRow:
    """One loss term on the examined rows."""

    name: str
    value: float  # the sum divided by the count: what the log will show
    unit: str
    count: int
    weight: float
    gradient_norm: float  # of weight * sum / count, over all trainable parameters
    share: float  # of the sum of these norms
    positions: dict[str, int]  # role -> how many final states of that role its gradient reaches


@dataclass(frozen=True)
class Diagnosis:
    label: str
    rows: int
    terms: tuple[TermRow, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        return not self.findings

    def as_dict(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return asdict(self) | {"healthy": self.healthy}

    def require_healthy(self) -> None:
        """UserError with the first finding."""
        if self.findings:
            more = f" ({len(self.findings) - 1} more)" if len(self.findings) > 1 else ""
            raise UserError(f"doctor, {self.label}: {self.findings[0]}{more}")

    def show(self, console: Console | None = None) -> None:
        """Print the table, the findings and the verdict."""
        console = console or Console()
        table = Table(title=f"{self.label}: {self.rows} rows", title_justify="left", box=None)
        for heading in ("term", "value", "unit", "count", "weight", "gradient", "share", "positions"):
            table.add_column(heading, justify="left" if heading in ("term", "unit", "positions") else "right")
        for term in self.terms:
            positions = ", ".join(f"{number} {role}" for role, number in term.positions.items())
            table.add_row(
                term.name,
                f"{term.value:.4f}",
                term.unit,
                str(term.count),
                f"{term.weight:g}",
                f"{term.gradient_norm:.3g}",
                f"{term.share:.0%}",
                positions or "inside layers",
            )
        console.print(table)
        for finding in self.findings:
            console.print(f"FAIL {finding}", markup=False, highlight=False, soft_wrap=True)
        for note in self.notes:
            console.print(f"note {note}", markup=False, highlight=False, soft_wrap=True)
        verdict = "healthy" if self.healthy else f"{len(self.findings)} to mend"
        console.print(f"{self.label}: {verdict}", markup=False, highlight=False)


def examine(
    method: Method,
    batch: Batch,
    *,
    label: str = "stage",
    optim: OptimConfig | None = None,
    enable: Sequence[str] = (),
) -> Diagnosis:
    """Look at one method on up to 8 rows of one real batch, and compare on its 3 shortest rows.

    optim: the stage's optimizer, for one throwaway step (default: AdamW with weight decay).
    enable: prefixes of the modules this stage trains, as `train.enable`; empty = all that is trainable.
    """
    device = next(method.parameters()).device
    with probes.restored(method), torch.enable_grad():
        method.train()
        freeze_others(method, tuple(enable))
        flags = {name: p.requires_grad for name, p in method.named_parameters()}
        enabled = {name for name, trains in flags.items() if trains}
        rows = probes.rows_of(batch, slice(ROWS)).to(device)
        exam = checks.Exam(method, rows, enabled, frozenset(flags))
        rows = _look(exam, optim or OptimConfig(weight_decay=0.1))
    found = [Finding(*finding) for finding in exam.findings]
    assert all(finding.check in CHECKS for finding in found)
    return Diagnosis(label, len(exam.batch), tuple(rows), tuple(found), tuple(exam.notes))


def _look(exam: checks.Exam, optim: OptimConfig) -> list[TermRow]:
    reading = probes.read(exam.method, exam.batch)
    checks.weights(exam, reading)
    checks.outputs(exam, reading)
    scoring.strangers(exam, reading)
    if not checks.finite(exam, reading):
        return []
    checks.counts(exam, reading)
    grads = {name: checks.gradient(exam, reading, name) for name in reading.output.terms}
    for name, grad in grads.items():
        checks.positions(exam, reading, name, grad)
    rows = _rows(reading, grads)
    checks.reach(exam, reading, grads)
    checks.optimizer_step(exam, optim)
    comparisons.compare(exam)
    return rows


def _rows(reading: probes.Reading, grads: dict[str, checks.Gradient]) -> list[TermRow]:
    scaled = {}
    for name, term in reading.output.terms.items():
        count = max(reading.counts.get(term.unit, 1), 1)
        scaled[name] = (count, abs(term.weight) / count * grads[name].norm)
    whole = sum(norm for _, norm in scaled.values()) or 1.0
    rows = []
    for name, term in reading.output.terms.items():
        touched = grads[name].touched
        roles = {
            role.name.lower(): sum(int((t & (p.role_BT == role)).sum()) for t, p in touched) for role in Role
        }
        count, norm = scaled[name]
        rows.append(
            TermRow(
                name=name,
                value=float(term.total.detach()) / count,
                unit=term.unit,
                count=reading.counts.get(term.unit, 0),
                weight=term.weight,
                gradient_norm=norm,
                share=norm / whole,
                positions={role: number for role, number in roles.items() if number},
            )
        )
    return rows
