"""Square grids written row after row: names of their cells, and the same grid seen from other sides."""

from __future__ import annotations

from collections.abc import Iterator


def name(size: int, cell: int) -> str:
    """`r2c3`: second row, third column."""
    return f"r{cell // size + 1}c{cell % size + 1}"


def views(cells: tuple[int, ...], *, turn: bool = True) -> Iterator[tuple[int, ...]]:
    """The grid as it is, mirrored both ways and, with `turn`, about its diagonal: 4 or 8 of them."""
    size = round(len(cells) ** 0.5)
    grids = [[cells[r * size : (r + 1) * size] for r in range(size)]]
    if turn:
        grids.append(list(zip(*grids[0], strict=True)))
    for grid in grids:
        for upright in (grid, grid[::-1]):
            yield tuple(cell for row in upright for cell in row)
            yield tuple(cell for row in upright for cell in row[::-1])
