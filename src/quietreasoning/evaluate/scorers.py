"""Does this text answer that example? `SCORERS[name](text, example) -> bool`; one scorer serves every arm.

`text` is what a method wrote after the answer prefix. A method that wrote no answer has "" and is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from quietreasoning.data.example import Example
from quietreasoning.data.spans.dialects import parse_any
from quietreasoning.evaluate.aliases import alias
from quietreasoning.evaluate.code_mode.trial import tried
from quietreasoning.evaluate.grades import GRADES, whole
from quietreasoning.evaluate.sandbox import Limits, run
from quietreasoning.evaluate.spelling import normalise, strip_fence
from quietreasoning.evaluate.tool_scores import MAX_CHARACTERS, asks_call, exact_call, same_calls, valid_call

NUMBER = re.compile(
    r"""(?P<sign>[-+]?)\s*[$€£]?\s*(?P<sign2>-?)
        (?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]*)
        (?P<decimals>\.[0-9]+)?
        (?P<exponent>[eE][-+]?[0-9]{1,3}(?![0-9]))?
        (?:\s*/\s*(?P<divisor>[0-9]+)(?![.,]?[0-9]))?""",
    re.VERBOSE,
)
MAX_DIGITS = 400
LIMITS = Limits()


def exact(text: str, example: Example) -> bool:
    """Equal up to Unicode form, spacing and one trailing full stop. Case counts.

    `meta["answers"]`, where a task gives it, lists further accepted answers.
    """
    golds = (example.answer, *example.meta.get("answers", ()))
    return normalise(text) != "" and normalise(text) in {normalise(gold) for gold in golds}


def numeric(text: str, example: Example) -> bool:
    """The first number of the text has the gold's value: "$2,125.00 dollars." equals "2125"."""
    said = number(text)
    gold = number(example.answer)
    if gold is None:
        raise ValueError(f"example {example.id}: the gold answer {example.answer!r} holds no number")
    return said is not None and said == gold


def code(text: str, example: Example, limits: Limits = LIMITS) -> bool:
    """Run the written code against the example's tests, in the sandbox. What `meta` may hold:

    `code_prefix`: imports, signature and docstring before the text, which may be the function's body or
    define `entry_point` again (HumanEval).
    `tests`: Python that raises where the candidate is wrong; `check(entry_point)` is called if defined.
    `cases`: pairs (stdin, stdout); the text is a whole program (APPS). Output counts up to spacing.
    """
    meta = example.meta
    source = strip_fence(text)
    if "cases" in meta:
        return all(_prints(source, stdin, stdout, limits) for stdin, stdout in meta["cases"])
    if "tests" not in meta:
        raise ValueError(f"example {example.id} has neither meta['tests'] nor meta['cases']; nothing to run")
    entry = meta.get("entry_point")
    if "code_prefix" in meta:
        source = _complete(meta["code_prefix"], source, entry)
    parts = [source, meta["tests"]]
    if entry is not None and re.search(r"^def check\(", meta["tests"], re.MULTILINE):
        parts.append(f"check({entry})")
    return run("\n\n".join(parts), limits).passed


def call(text: str, example: Example) -> bool:
    """The gold calls, each once and no others, where the row asks for them; else as `exact`."""
    return exact_call(text, example) if asks_call(example) else exact(text, example)


def turn(text: str, example: Example) -> bool:
    """An assistant's turn: where `meta["calls"]` has gold calls, those calls in any dialect, each once and no
    others, under the schemas of `meta["tools"]` if there are any, whatever is said beside them; else as
    `exact`."""
    gold, tools = example.meta.get("calls", ()), example.meta.get("tools", ())
    if not gold:
        return exact(text, example)
    if len(text) > MAX_CHARACTERS:
        return False
    parsed = parse_any(text)
    made = [{"name": call.name, "arguments": dict(call.arguments)} for call in parsed.calls]
    fits = all(valid_call(call, tools) for call in made) if tools else True
    return not parsed.faults and fits and same_calls(made, gold)


def program(text: str, example: Example) -> bool:
    """A program in a fence, run over the tools of the example (task `programs`), says the value asked for;
    plain calls are those that find it."""
    return tried(text, example).success


def _complete(prefix: str, source: str, entry: str | None) -> str:
    """Prefix and text as one program. The prefix stays in any case: it holds the imports."""
    if entry is not None and re.search(rf"^def {re.escape(entry)}\b", source, re.MULTILINE):
        return f"{prefix.rstrip()}\n    pass\n\n{source}"
    first = source.lstrip("\n")
    # decoding strips a text, and with it the first indentation of a body
    return prefix + (first if first[:1].isspace() else f"    {first}")


def _prints(source: str, stdin: str, stdout: str, limits: Limits) -> bool:
    verdict = run(source, limits, stdin=stdin, program=True)
    return verdict.passed and _lines(verdict.stdout) == _lines(stdout)


def _lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.strip().splitlines()]


def number(text: str) -> Fraction | None:
    """The first number in a text, exactly; None where there is none.

    Reads signs, currency before the number, thousands commas, decimals, exponents and fractions.
    """
    text = text.replace("−", "-").replace("–", "-")
    for match in NUMBER.finditer(text):
        whole, decimals = match["whole"].replace(",", ""), match["decimals"] or ""
        if not whole and not decimals:
            continue
        if len(whole) + len(decimals) > MAX_DIGITS:
            return None
        value = Fraction(f"{whole or 0}{decimals}{match['exponent'] or ''}")
        if match["divisor"]:
            if len(match["divisor"]) > MAX_DIGITS or not int(match["divisor"]):
                return None
            value /= int(match["divisor"])
        before = text[match.start() - 1 : match.start()] if match.start() else ""
        # "10-3" is no minus three: a sign right after a digit or letter is an operator or a hyphen
        minus = (match["sign"] == "-" and not before.isalnum()) != (match["sign2"] == "-")
        return -value if minus else value
    return None


SCORERS: dict[str, Callable[[str, Example], bool]] = {
    "exact": exact,
    "numeric": numeric,
    "code": code,
    "call": call,
    "turn": turn,
    "program": program,
    "alias": alias,
    **{name: whole(name) for name in GRADES},
}
