"""Small pieces of the page. Whatever comes from a run passes `esc`."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from quietreasoning.evaluate.rows import Row


def esc(value: Any) -> str:
    return html.escape(str(value), quote=True)


def section(anchor: str, title: str, *parts: str) -> str:
    return (
        f'<section id="{esc(anchor)}"><h2>{esc(title)}</h2>\n'
        + "\n".join(filter(None, parts))
        + "\n</section>"
    )


def figure(picture: str, caption: str) -> str:
    """A picture with its words; "" where there is no picture."""
    return f"<figure>{picture}<figcaption>{esc(caption)}</figcaption></figure>" if picture else ""


def absent(what: str, command: str = "") -> str:
    """What is not there, and the command that makes it, if one does."""
    made = f" Make it with <code>{esc(command)}</code>" if command else ""
    return f'<p class="absent">{esc(what)}{made}</p>'


def bullets(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{esc(line)}</li>" for line in lines) + "</ul>"


def table(
    headings: Sequence[str],
    rows: Iterable[tuple[str, Sequence[str]]],
    *,
    figures: Sequence[int] = (),
    bars: Sequence[int] = (),
    caption: str = "",
    name: str = "",
) -> str:
    """rows: (class, cells). Cells are HTML already; columns in `figures` are set as numbers."""
    kind = {**dict.fromkeys(figures, ' class="figure"'), **dict.fromkeys(bars, ' class="bar"')}
    head = "".join(f'<th scope="col"{kind.get(i, "")}>{esc(name)}</th>' for i, name in enumerate(headings))
    body = "\n".join(
        f'<tr class="{esc(look)}">'
        + "".join(f"<td{kind.get(i, '')}>{cell}</td>" for i, cell in enumerate(cells))
        + "</tr>"
        for look, cells in rows
    )
    below = f"<caption>{esc(caption)}</caption>" if caption else ""
    inner = f"{below}<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody>"
    return f'<div class="wide"><table class="{esc(name)}">{inner}</table></div>'


def interval_bar(row: Row, direct: Row | None) -> str:
    """Accuracy as a dot on its interval, 0 to 100, with the direct answer as a dashed line."""
    words = f"{100 * row['accuracy']:.1f} %, interval {100 * row['low']:.1f} to {100 * row['high']:.1f}"
    faint = row["kind"] in ("control", "shortcut")
    colour = "#8c959f" if faint else "#0072b2"

    def place(share: float) -> float:
        return round(4 + 192 * share, 2)

    low, high, line = place(row["low"]), place(row["high"]), ""
    if direct is not None:
        x = place(direct["accuracy"])
        line = f'<line x1="{x}" x2="{x}" y1="0" y2="14" stroke="#666" stroke-dasharray="2 2"/>'
    return (
        f'<svg viewBox="0 0 200 14" role="img" aria-label="{esc(words)}">'
        f'<line x1="4" x2="196" y1="7" y2="7" stroke="#e3e7eb"/>{line}'
        f'<line x1="{low}" x2="{high}" y1="7" y2="7" stroke="{colour}" stroke-width="4"/>'
        f'<circle cx="{place(row["accuracy"])}" cy="7" r="3.6" fill="{colour}"/></svg>'
    )


def short(text: str, limit: int = 1200) -> str:
    """Long texts are cut, and say so."""
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text) - limit} more characters)"
