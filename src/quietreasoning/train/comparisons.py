"""What the doctor learns by comparing: the same step with one thing changed, and training with generation.

All comparisons run on slightly jittered weights, so that a part which starts at zero cannot hide.

Shapes: B rows, T positions of one backbone forward, D width, N states.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from quietreasoning.contract import IGNORE, Batch, Role
from quietreasoning.train import probes, scoring
from quietreasoning.train.checks import Exam, touched
from quietreasoning.train.probes import READ_AS, Pass, Reading

ROWS = 3
GIVEN_ROLES = (Role.PROMPT, Role.THOUGHT, Role.MARKER)  # what generate reads before it writes


def compare(exam: Exam) -> None:
    """Every comparison, on the shortest rows; the later ones only if two forwards agree."""
    method, batch = exam.method, probes.shortest(exam.batch, ROWS)
    if not repeats(exam, batch):
        exam.notes.append("causality, padding and generation are compared once two forwards agree")
        return
    with probes.restored(method):
        probes.jitter(method)
        method.backbone.eval()
        with torch.no_grad():
            base = probes.read(method, batch)
            scoring.unread(exam, base, causal(exam, batch, base))
            sums(exam, batch, base)
        unit_changes(exam, batch)
        scoring.labels(exam, batch)
        if not method.answers:
            return
        method.eval()
        with torch.no_grad():
            generation(exam, batch)


@torch.no_grad()
def repeats(exam: Exam, batch: Batch) -> bool:
    """`random`: two forwards agree, whatever the global generators hold; the backbone's dropout is noted."""
    method = exam.method
    with probes.restored(method):
        different = _different(exam, batch)
        if different:
            method.backbone.eval()
            own = _different(exam, batch)
            if not own:
                exam.notes.append("the backbone's dropout is on in training; it was off while comparing")
            method.eval()
            cure = "Seed" if own and _different(exam, batch) else "Set dropout to 0, or seed"
            for name, (one, other) in own.items():
                problem = f"two forwards give {one:g} and {other:g}"
                exam.find("random", f"term {name}", problem, f"{cure} what is sampled by batch.keys_B.")
    return not exam.has("random")


def _different(exam: Exam, batch: Batch) -> dict[str, tuple[float, float]]:
    """Terms whose totals differ under two global seeds."""
    one, other = (probes.read(exam.method, batch, seed).totals() for seed in (0, 1))
    return {name: (one[name], other[name]) for name in one if one[name] != other[name]}


def causal(exam: Exam, batch: Batch, base: Reading) -> list[Reading]:
    """`future-leak` in training: edit gold tokens of each field, compare every state before them. Returns
    the readings of the edited batches."""
    method, tol = exam.method, probes.tolerance(exam.method) / 10
    read = []
    for name, roles in READ_AS.items():
        for which in ("middle", "all"):
            other = probes.edited(batch, name, which, method.backbone.vocab_size)
            if other is None:
                continue
            read.append(probes.read(method, other))
            place = probes.leak(base.passes, read[-1].passes, roles, tol)
            if place:
                _leaks(exam, place, name, "training")
                break
    return read


def _leaks(exam: Exam, place: probes.Place, name: str, when: str) -> None:
    exam.find(
        "future-leak",
        str(place),
        f"in {when}, its state changes with a token of {name} that it must not see",
        "Mask later positions, and feed no gold token into thoughts.",
    )


def sums(exam: Exam, batch: Batch, base: Reading) -> None:
    """`not-a-sum`, `padding-variance`, `batch-variance`: a total is the sum of what its rows give."""
    method, tol, half = exam.method, probes.tolerance(exam.method), len(batch) // 2
    pads = not exam.has("future-leak", "pad-touched")  # these explain what more padding changes
    twice = probes.read(method, probes.doubled(batch))
    wide = probes.read(method, probes.padded(batch))
    halves = (slice(half), slice(half, None)) if half else ()
    parts = [probes.read(method, probes.rows_of(batch, rows)) for rows in halves]
    totals = base.totals()
    for name, total in totals.items():
        where, scale = f"term {name}", max(abs(total), 1e-6)
        double = twice.totals()[name]
        if abs(double - 2 * total) > 0.1 * scale:
            problem = f"twice the rows give {double / (total or 1.0):.2f} times the total, not 2"
            exam.find("not-a-sum", where, problem, "Sum; the loop divides.")
            continue
        if pads and abs(wide.totals()[name] - total) > tol * scale:
            exam.find(
                "padding-variance",
                where,
                f"{total:g} becomes {wide.totals()[name]:g} with more padding",
                "Mask padding.",
            )
        split = sum(part.totals()[name] for part in parts) if parts else total
        for how, other in (("two half batches give", split), ("half of twice the rows gives", double / 2)):
            if abs(other - total) > tol * scale:
                problem = f"{how} {other:g}, the batch {total:g}"
                exam.find("batch-variance", where, problem, "Use no batch statistics.")
                break
    for unit, count in base.counts.items():
        others = {"twice the rows": twice.counts.get(unit, 0) / 2}
        if pads:
            others["more padding"] = wide.counts.get(unit, 0)
        for how, other in others.items():
            if other != count:
                exam.find(
                    "units",
                    f"unit {unit}",
                    f"{count} becomes {other:g} with {how}",
                    "Count what is not padding.",
                )


def unit_changes(exam: Exam, batch: Batch) -> None:
    """`units`: a count moves with the batch exactly when the states that the gradient reaches do."""
    base, base_reached = _reached(exam, batch)
    if not any(base_reached.values()):
        return  # no pass of the backbone to count in
    for lacking, other_batch in probes.shortened(batch).items():
        other, reached = _reached(exam, other_batch)
        for name, term in base.output.terms.items():
            unit = term.unit
            if unit not in base.counts or exam.has("units") or not base_reached[name]:
                continue
            counted = other.counts.get(unit, 0) - base.counts[unit]
            moved = reached[name] - base_reached[name]
            if (counted and not moved) or (moved and not counted and unit.endswith("token")):
                problem = (
                    f"without one {lacking} a row, units() counts {counted:+d} {unit}s, "
                    f"the gradient reaches {moved:+d} states"
                )
                exam.find("units", f"term {name}", problem, "Count what is summed.")


def _reached(exam: Exam, batch: Batch) -> tuple[Reading, dict[str, int]]:
    reading = probes.read(exam.method, batch)
    terms = reading.output.terms
    return reading, {name: sum(int(t.sum()) for t, _ in touched(reading, name)) for name in terms}


def generation(exam: Exam, batch: Batch) -> None:
    """`generate` passes through the states that training computes, sees no later token and no other row."""
    method, tol = exam.method, probes.tolerance(exam.method)
    trained = probes.read(method, batch).passes
    with probes.watch(method) as passes:
        method.generate(batch.prompt_BP, max_new_tokens=1)
    if not exam.has("future-leak"):  # after a leak, of course it differs
        same = [role for role in GIVEN_ROLES if not (method.draws and role == Role.THOUGHT)]
        place = _untrained(passes, trained, len(batch), same, 10 * tol)
        if place:
            cure = "Share the code that thinks between forward and generate."
            exam.find("generation-differs", str(place), "training computes no such state for this row", cure)
        changed = probes.edited(batch, "prompt_BP", "middle", method.backbone.vocab_size)
        with probes.watch(method) as others:
            method.generate(changed.prompt_BP, max_new_tokens=1)
        place = probes.leak(passes, others, READ_AS["prompt_BP"], tol / 10)
        if place:
            _leaks(exam, place, "prompt_BP", "generation")
    _alone(exam, batch.prompt_BP)


def _alone(exam: Exam, prompt_BP: Tensor) -> None:
    """The row with the most padding answers the same alone, and with more padding."""
    method = exam.method
    lengths_B = (prompt_BP != IGNORE).sum(1)
    row = int(lengths_B.argmin())
    together = method.generate(prompt_BP, max_new_tokens=4).tokens[row]
    prompt_1P = prompt_BP[row : row + 1, prompt_BP.shape[1] - int(lengths_B[row]) :]
    alone = method.generate(prompt_1P, max_new_tokens=4).tokens[0]
    wide_1P = F.pad(prompt_1P, (5, 0), value=IGNORE)
    wide = method.generate(wide_1P, max_new_tokens=4).tokens[0]
    if alone != wide:
        exam.find(
            "padding-variance",
            "generate",
            f"row {row} answers {wide} with more padding, {alone} without",
            "Mask padding.",
        )
    elif alone != together:
        exam.find(
            "batch-variance",
            "generate",
            f"row {row} answers {together} in the batch, {alone} alone",
            "Keep rows apart.",
        )


def _untrained(
    passes: list[Pass], trained: list[Pass], rows: int, same: list[Role], tol: float
) -> probes.Place | None:
    """The first state of generation that no training pass computed for the same row under the same role, of
    those roles that should be the `same`.

    A pass that reads what this stage does not train at all, such as the answer prefix, is left out.
    """
    roles = {int(role) for call in trained for role in call.role_BT.unique()} | {int(Role.PAD)}
    for i, call in enumerate(passes):
        if not set(call.role_BT.unique().tolist()) <= roles:
            continue
        for role in same:
            known = [p for p in trained if len(p.role_BT) == rows and (p.role_BT == role).any()]
            if not known or len(call.role_BT) != rows:
                continue
            for row in range(rows):
                here_T = call.role_BT[row] == role
                if not here_T.any():
                    continue
                pool_ND = torch.cat([p.hidden_BTD[row][p.role_BT[row] == role] for p in known])
                state_TD = call.hidden_BTD[row][here_T]
                gap_T = (state_TD[:, None] - pool_ND[None]).abs().amax(-1).amin(1) if len(pool_ND) else None
                if gap_T is None or bool((gap_T > tol * state_TD.abs().mean()).any()):
                    column = int(here_T.nonzero()[0] if gap_T is None else here_T.nonzero()[gap_T.argmax()])
                    return probes.Place(i, row, column, role.name)
    return None
