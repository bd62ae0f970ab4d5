"""Old `*_ids` fields: a span's text encoded alone. Its ids say nothing of places; its text may.

The ids are decoded and the text is looked for in the row. Where it stands once, that is the span; everywhere
else the field is lost, and the reason is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quietreasoning.data.spans.calls import NotACall, Parsed, argument_spans, found_in
from quietreasoning.data.spans.integration import integration_spans
from quietreasoning.data.spans.json_text import JsonError, container_at, parse_json
from quietreasoning.data.spans.span import Kind, Span, filled

ALIGNED = 0.9  # confidence of a place found by text


class Lost(ValueError):
    """A field that cannot be used: why."""


def texts_of(tokenizer: Any, value: Any, mask: Any = None) -> list[str]:
    """The texts of a list of ids, or of several; Lost where they cannot be decoded.

    mask: 0 or 1 for each id; where it is 0 the id is padding. Negative ids and special tokens are padding
    too.
    """
    lists = value if value and all(isinstance(item, list) for item in value) else [value]
    if mask is not None and len(lists) > 1:
        raise Lost("a mask over several lists of ids")
    return [_decoded(tokenizer, ids, mask) for ids in lists]


def _decoded(tokenizer: Any, ids: list[int], mask: Any) -> str:
    if tokenizer is None:
        raise Lost("no tokenizer was given to decode its ids; give the one that made them")
    if mask is not None:
        if len(mask) != len(ids):
            raise Lost(f"its mask has {len(mask)} entries for {len(ids)} ids")
        ids = [id for id, keep in zip(ids, mask, strict=True) if keep]
    ids = [id for id in ids if id >= 0]
    beyond = [id for id in ids if id >= len(tokenizer)]
    if beyond:
        raise Lost(
            f"id {beyond[0]} is none of this tokenizer's {len(tokenizer)}; give the one that made them"
        )
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
    if not text:
        raise Lost("its ids decode to nothing")
    return text


def places(wanted: str, text: str) -> list[tuple[int, int]]:
    """Where `wanted` stands in `text`, not inside a longer word: as it is, else with other white space."""
    found = _occurrences(wanted, text, range(len(text)), text)
    if found:
        return found
    kept = [index for index, char in enumerate(text) if not char.isspace()]
    return _occurrences("".join(wanted.split()), "".join(text[i] for i in kept), kept, text)


def _occurrences(wanted: str, squeezed: str, where: Sequence[int], text: str) -> list[tuple[int, int]]:
    """where: the place in `text` of each character of `squeezed`."""
    found, at = [], squeezed.find(wanted)
    while at >= 0:
        start, end = where[at], where[at + len(wanted) - 1] + 1
        inside = (start and _joined(text[start - 1], text[start])) or (
            end < len(text) and _joined(text[end - 1], text[end])
        )
        if not inside:
            found.append((start, end))
        at = squeezed.find(wanted, at + 1)
    return found


def _joined(left: str, right: str) -> bool:
    return (left.isalnum() or left == "_") and (right.isalnum() or right == "_")


def _once(wanted: str, text: str) -> tuple[int, int]:
    found = places(wanted, text)
    if len(found) != 1:
        raise Lost(f"{wanted!r:.60} stands {len(found) or 'no'} times in the text, not once")
    return found[0]


def name_span(wanted: str, text: str, parsed: Parsed) -> tuple[Span, ...]:
    """Where a tool's name stands: at the only call of that name, else at its only place. Nothing where the
    parsed calls hold it already; Lost where there is no such place, or several."""
    called = [call for call in parsed.calls if call.name == wanted]
    if len(called) == 1:
        return ()
    if called:
        raise Lost(f"{wanted!r:.60} is called {len(called)} times in the text, not once")
    return (Span(*_once(wanted, text), Kind.TOOL_NAME, "tool_name_ids, by text", ALIGNED),)


def json_spans(wanted: str, text: str, parsed: Parsed) -> tuple[Span, ...]:
    """Keys, values and syntax where a call's JSON stands: the one place with its text, else the one call with
    its value. Nothing where the parsed calls hold it already; Lost as above, or where it is no JSON."""
    try:
        value = parse_json(wanted).close()
    except JsonError as error:
        raise Lost(f"its ids decode to {wanted!r:.60}, which is no JSON ({error})") from None
    if not isinstance(value, dict | list):
        raise Lost(f"its ids decode to {wanted!r:.60}, no object or list")
    equal = [c for c in parsed.calls if value in (c.arguments, {"name": c.name, "arguments": c.arguments})]
    if len(equal) == 1:
        return ()
    if equal:
        raise Lost(f"{len(equal)} calls in the text hold {wanted!r:.60}, not one")
    start, end = _once(wanted, text)
    if any(start < until and end > since for since, until in parsed.blocks):
        return ()
    try:
        parser = container_at(text, start)
        found = found_in(text, parser, start, end, "gold_json_text_ids, by text")
    except (JsonError, NotACall) as error:
        raise Lost(f"what stands at its place reads otherwise ({error})") from None
    if found:
        return tuple(span for one in found for span in one.spans)
    spans = argument_spans(parser.nodes, (), "gold_json_text_ids, by text")
    return filled(start, end, spans, "gold_json_text_ids, by text")


def integration_span(wanted: str, text: str) -> tuple[Span, ...]:
    """The only place of an integration text; Lost where there is none, or several."""
    return (Span(*_once(wanted, text), Kind.INTEGRATION, "integration ids, by text", ALIGNED),)


def value_spans(values: Any, text: str) -> tuple[Span, ...]:
    """Every place where the text repeats one of the given values; Lost where it repeats none."""
    found = integration_spans(text, [values], hints=False)
    if not found:
        raise Lost("the text repeats none of its values")
    return found
