"""Beside the accuracy of tool calls: how they parse, whether they are valid, which tool, which arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from quietreasoning.data.example import Example
from quietreasoning.evaluate.tool_scores import read_calls, tool_rates

NAMES = ("parses", "valid", "tool", "argument_f1", "exact", "over_calling", "declined")
Figures = dict[str, list[float]]  # name -> [mean over the rows it counts, their number]


def call_figures(texts: Sequence[str], examples: Sequence[Example]) -> Figures:
    """The figures of `tool_rates` over one text a row, those that count at least one row.

    Rows that declare no tools (`meta["tools"]`) are left out; of the others those whose answer is a call ask
    for it.
    """
    pairs = [(text, _told(row)) for text, row in zip(texts, examples, strict=True) if row.meta.get("tools")]
    rates = tool_rates([text for text, _ in pairs], [row for _, row in pairs])
    return {name: [rates[name][0] / rates[name][1], rates[name][1]] for name in NAMES if rates[name][1]}


def pooled_figures(rows: Sequence[Mapping]) -> Figures:
    """Those of several seeds: means over all the rows they counted; rows without figures count none."""
    found: Figures = {}
    for row in rows:
        for name, (mean, n) in row.get("figures", {}).items():
            before, counted = found.get(name, (0.0, 0))
            found[name] = [(before * counted + mean * n) / (counted + n), counted + n]
    return found


def _told(example: Example) -> Example:
    """With what the task `tools` says of a row, for rows of other tasks read off the answer."""
    calls = read_calls(example.answer)
    read = {"kind": "call" if calls else "other", "needs_tool": calls is not None, "calls": calls or ()}
    tools = [{"parameters": {}, **tool.get("function", tool)} for tool in example.meta["tools"]]
    return replace(example, meta={**read, **example.meta, "tools": tools})
