"""Where chunks begin, against a loop over single tokens; padding, documents, marks and caches included."""

import itertools

import pytest
import torch

from quietreasoning.workspace.layout import lay_out


def naive(tokens, chunk, marks, length=0, filled=0):
    """Of one stream: chunks as lists of (flat index, position), whether each is new; the end."""
    chunks = []
    for index in tokens:
        begins = length > 0 and chunk is not None and (filled == chunk or filled == 0 or index in marks)
        if begins or not chunks:
            chunks.append((begins, []))
        filled = 1 if begins else filled + 1
        chunks[-1][1].append((index, length))
        length += 1
    return chunks, length, filled


def found(layout, stream):
    chunks = []
    for column in layout.columns:
        if stream < len(column.valid_RN) and column.valid_RN[stream].any():
            valid = column.valid_RN[stream]
            places = list(
                zip(
                    column.index_RN[stream, valid].tolist(),
                    column.position_RN[stream, valid].tolist(),
                    strict=True,
                )
            )
            chunks.append((bool(column.fresh_R[stream]), places))
    return chunks


def check_columns(layout):
    for column in layout.columns:
        assert column.full == bool(column.valid_RN.all())
        count_R = column.valid_RN.sum(1, keepdim=True)
        first_N = torch.arange(column.valid_RN.shape[1])
        assert torch.equal(column.valid_RN, first_N < count_R), "real tokens come first"
        assert column.valid_RN.any(0).all(), "no column is wider than its longest chunk"
    held = [len(column.fresh_R) for column in layout.columns]
    assert held == sorted(held, reverse=True)


def draw(seed, rows=4, width=21):
    """Random padding anywhere, marks, documents; a row may be all padding."""
    generator = torch.Generator().manual_seed(seed)

    def coin(p):
        return torch.rand(rows, width, generator=generator) < p

    valid = ~coin((0.0, 0.2, 0.6)[seed % 3])
    if seed % 4 == 3:
        valid[0] = False
    return valid, coin(0.1), coin(0.12).long().cumsum(1)


@pytest.mark.parametrize("chunk", [1, 3, 8, None])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_columns_equal_a_loop_over_tokens(chunk, packed, seed):
    valid_BT, starts_BT, documents_BT = draw(seed)
    rows, width = valid_BT.shape
    layout = lay_out(valid_BT, chunk, starts_BT=starts_BT, documents_BT=documents_BT if packed else None)
    marks = set(starts_BT.flatten().nonzero()[:, 0].tolist())
    wanted = {}
    for row in range(rows):
        streams = {}
        for t in range(width):
            if valid_BT[row, t]:
                streams.setdefault(int(documents_BT[row, t]) if packed else 0, []).append(row * width + t)
        for document, tokens in streams.items():
            wanted[row, document] = naive(tokens, chunk, marks)
        if not packed and not streams:
            wanted[row, 0] = ([], 0, 0)
    check_columns(layout)
    assert len(layout.row_R) == len(wanted)
    got = {}
    for stream, row in enumerate(layout.row_R.tolist()):
        chunks = found(layout, stream)
        document = int(documents_BT.flatten()[chunks[0][1][0][0]]) if packed else 0
        got[row, document] = (chunks, int(layout.length_R[stream]), int(layout.filled_R[stream]))
    assert got == wanted


@pytest.mark.parametrize("chunk", [1, 4, 8, None])
@pytest.mark.parametrize("seed", range(6))
def test_a_continued_layout_equals_the_whole(chunk, seed):
    """Cut at random places: the same boundaries and positions, and the cache's figures at the end."""
    valid_BT, starts_BT, _ = draw(seed, width=26)
    rows, width = valid_BT.shape
    marks = set(starts_BT.flatten().nonzero()[:, 0].tolist())
    wanted = [
        naive([row * width + t for t in range(width) if valid_BT[row, t]], chunk, marks)
        for row in range(rows)
    ]
    length = filled = torch.zeros(rows, dtype=torch.long)
    got = [[] for _ in range(rows)]
    cuts = [0, 1, 2, 9, 10, 20, width]
    for low, high in itertools.pairwise(cuts):
        layout = lay_out(
            valid_BT[:, low:high], chunk, starts_BT=starts_BT[:, low:high], length_B=length, filled_B=filled
        )
        assert layout.row_R.tolist() == list(range(rows)), "a cache keeps the order of its rows"
        assert all(len(column.fresh_R) == rows for column in layout.columns)
        for row in range(rows):
            for begins, places in found(layout, row):
                moved = [(i // (high - low) * width + i % (high - low) + low, at) for i, at in places]
                if begins or not got[row]:
                    got[row].append((begins, moved))
                else:
                    got[row][-1][1].extend(moved)
        length, filled = layout.length_R, layout.filled_R
    for row, (chunks, whole, open_tokens) in enumerate(wanted):
        assert (got[row], int(length[row]), int(filled[row])) == (chunks, whole, open_tokens)


def test_padding_moves_no_boundary():
    """Left padding, right padding and gaps: a row's chunks hold the same tokens at the same positions."""
    plain = found(lay_out(torch.ones(1, 11, dtype=torch.bool), 4), 0)
    assert [len(places) for _, places in plain] == [4, 4, 3] and [new for new, _ in plain] == [
        False,
        True,
        True,
    ]
    for gaps in ([5], [0, 0, 0], [11, 11], [4], [1, 6, 9]):
        valid, place = [True] * 11, list(range(11))
        for gap in gaps:
            valid.insert(gap, False)
            place.insert(gap, None)
        got = found(lay_out(torch.tensor([valid]), 4), 0)
        assert [[(place[i], at) for i, at in places] for _, places in got] == [places for _, places in plain]


def test_the_end_of_a_prompt_is_a_boundary_and_the_count_starts_anew():
    starts = torch.zeros(1, 12, dtype=torch.bool)
    starts[0, 5] = True
    sizes = [int(c.valid_RN.sum()) for c in lay_out(torch.ones_like(starts), 4, starts_BT=starts).columns]
    assert sizes == [4, 1, 4, 3]
    starts[0, 5], starts[0, 4] = False, True  # where a chunk begins anyway nothing is cut twice
    sizes = [int(c.valid_RN.sum()) for c in lay_out(torch.ones_like(starts), 4, starts_BT=starts).columns]
    assert sizes == [4, 4, 4]


def test_no_token_at_all():
    layout = lay_out(torch.zeros(3, 5, dtype=torch.bool), 4)
    assert layout.columns == [] and layout.length_R.tolist() == layout.filled_R.tolist() == [0, 0, 0]
