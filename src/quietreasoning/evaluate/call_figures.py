"""Beside the accuracy of tool calls: how they parse, whether they are valid, which tool, which arguments;
and whether a program was written where one was due."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from quietreasoning.data.example import Example
from quietreasoning.data.spans.code import code_spans
from quietreasoning.evaluate.tool_scores import read_calls, tool_rates

FORMS = ("adoption", "over_use")
NAMES = ("parses", "valid", "tool", "argument_f1", "exact", "over_calling", "declined")


def call_figures(texts: Sequence[str], examples: Sequence[Example]) -> dict[str, dict[str, float]]:
    """Of `tool_rates` over one text a row those that count at least one: `figures`, name -> mean, and
    `figure_rows`, name -> rows counted; nothing where none does.

    Rows that declare no tools (`meta["tools"]`) are left out; of the others those whose answer is a call ask
    for it.
    """
    pairs = [(text, _told(row)) for text, row in zip(texts, examples, strict=True) if row.meta.get("tools")]
    rates = tool_rates([text for text, _ in pairs], [row for _, row in pairs])
    return _counted({name: rates[name] for name in NAMES})


def form_figures(texts: Sequence[str], examples: Sequence[Example]) -> dict[str, dict[str, float]]:
    """As `call_figures`, of rows of task `programs`: adoption, the share of texts with a program in a fence
    where one was due; over_use, the share where none was."""
    found: dict[str, list[bool]] = {name: [] for name in FORMS}
    for text, row in zip(texts, examples, strict=True):
        found[FORMS[not row.meta["metadata"]["code_mode"]]].append(bool(code_spans(text)))
    return _counted({name: (sum(each), len(each)) for name, each in found.items()})


def _counted(rates: Mapping[str, tuple[float, int]]) -> dict[str, dict[str, float]]:
    known = {name: rate for name, rate in rates.items() if rate[1]}
    if not known:
        return {}
    return {
        "figures": {name: total / rows for name, (total, rows) in known.items()},
        "figure_rows": {name: rows for name, (_, rows) in known.items()},
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
