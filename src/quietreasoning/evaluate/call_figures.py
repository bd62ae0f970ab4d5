"""Beside the accuracy of tool calls: how they parse, whether they are valid, which tool, which arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from quietreasoning.data.example import Example
from quietreasoning.evaluate.tool_scores import read_calls, tool_rates

NAMES = ("parses", "valid", "tool", "argument_f1", "exact", "over_calling", "declined")


def call_figures(texts: Sequence[str], examples: Sequence[Example]) -> dict[str, dict[str, float]]:
    """Of `tool_rates` over one text a row those that count at least one: `figures`, name -> mean, and
    `figure_rows`, name -> rows counted; nothing where none does.

    Rows that declare no tools (`meta["tools"]`) are left out; of the others those whose answer is a call ask
    for it.
    """
    pairs = [(text, _told(row)) for text, row in zip(texts, examples, strict=True) if row.meta.get("tools")]
    rates = tool_rates([text for text, _ in pairs], [row for _, row in pairs])
    counted = [name for name in NAMES if rates[name][1]]
    if not counted:
        return {}
    return {
        "figures": {name: rates[name][0] / rates[name][1] for name in counted},
        "figure_rows": {name: rates[name][1] for name in counted},
    }


def pooled_figures(rows: Sequence[Mapping]) -> dict[str, dict[str, float]]:
    """Those of several seeds: means over all the rows they counted; rows without figures count none."""
    totals: dict[str, float] = {}
    counts: dict[str, int] = {}
    for row in rows:
        for name, n in row.get("figure_rows", {}).items():
            totals[name] = totals.get(name, 0.0) + row["figures"][name] * n
            counts[name] = counts.get(name, 0) + n
    return {"figures": {name: totals[name] / n for name, n in counts.items()}, "figure_rows": counts}


def _told(example: Example) -> Example:
    """With what the task `tools` says of a row, for rows of other tasks read off the answer."""
    calls = read_calls(example.answer)
    read = {"kind": "call" if calls else "other", "needs_tool": calls is not None, "calls": calls or ()}
    tools = [{"parameters": {}, **tool.get("function", tool)} for tool in example.meta["tools"]]
    return replace(example, meta={**read, **example.meta, "tools": tools})
