"""The visible part of a batch against loops over rows."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from quietreasoning.contract import IGNORE, Batch, Markers, Role
from quietreasoning.methods.sequence import count_labels, visible_part

MARKERS = Markers(answer_prefix=(27, 28), eos=29)
tokens = st.integers(0, 26)
rows_of_steps = st.lists(
    st.tuples(
        st.lists(st.lists(tokens, min_size=1, max_size=4), max_size=4),
        st.lists(tokens, min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=4,
)


def padded(rows, width=None):
    width = max(map(len, rows), default=0) if width is None else width
    return torch.tensor([r + [IGNORE] * (width - len(r)) for r in rows]).long().reshape(len(rows), width)


def batch_of(rows) -> Batch:
    """(steps, answer) rows to a batch; the steps of a row stand anywhere in a block wide enough for all."""
    count = max(len(steps) for steps, _ in rows)
    width = max((len(step) for steps, _ in rows for step in steps), default=0)
    blocks = [padded([*steps, *[[]] * (count - len(steps))], width) for steps, _ in rows]
    steps_BKS = torch.stack(blocks).reshape(len(rows), count, width)
    prompt_BP = torch.ones(len(rows), 2).long()
    answers = padded([[*answer, MARKERS.eos] for _, answer in rows])
    keys_B, unknown_B = torch.arange(len(rows)), torch.full((len(rows),), IGNORE)
    return Batch(keys_B, prompt_BP, steps_BKS, steps_BKS, answers, unknown_B)


@given(rows_of_steps, st.one_of(st.none(), st.integers(0, 4)))
def test_visible_part_equals_a_loop(rows, first_step):
    batch = batch_of(rows)
    visible = visible_part(batch, MARKERS, first_step)
    count = 0
    for row, (steps, answer) in enumerate(rows):
        chain = [] if first_step is None else [t for step in steps[first_step:] for t in step]
        pieces = [(t, Role.STEP) for t in chain]
        pieces += [(t, Role.MARKER) for t in MARKERS.answer_prefix]
        pieces += [(t, Role.ANSWER) for t in [*answer, MARKERS.eos]]
        length = len(pieces)
        assert visible.ids_BT[row, :length].tolist() == [t for t, _ in pieces]
        assert visible.role_BT[row, :length].tolist() == [int(role) for _, role in pieces]
        assert (visible.ids_BT[row, length:] == IGNORE).all()
        assert (visible.role_BT[row, length:] == Role.PAD).all()
        labels = [IGNORE if first_step is None and role == Role.MARKER else t for t, role in pieces]
        assert visible.labels_BT[row, :length].tolist() == labels
        count += sum(label != IGNORE for label in labels)
    assert int((visible.labels_BT != IGNORE).sum()) == count == count_labels(batch, MARKERS, first_step)
    if first_step is not None:
        assert (visible.ids_BT != IGNORE).any(0).all(), "no column of padding alone"
