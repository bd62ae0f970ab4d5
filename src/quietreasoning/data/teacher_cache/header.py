"""`teacher.json`: what every target of a folder was made with, and who may read it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from quietreasoning.config import UserError
from quietreasoning.data.made import Made

FORMAT = 1
HEADER = "teacher.json"
ALIGNMENT = "the target at position t predicts token t+1"
AGAIN = "capture anew with quiet data teacher, into another --out"
CACHE = Made("teacher cache", "quiet data teacher", HEADER, FORMAT, AGAIN)


def tokenizer_facts(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What ids mean: `vocabulary` (one more than the largest id), and the hashes of tokenizer and template.

    A model's table may have rows beyond `vocabulary`, to a round number; they are no tokens.
    """
    body = json.loads(tokenizer.backend_tokenizer.to_str())
    body |= {"truncation": None, "padding": None}  # each call of a tokenizer sets these two anew
    template = tokenizer.chat_template
    template = template if isinstance(template, str | None) else json.dumps(template, sort_keys=True)
    return {
        "vocabulary": max(tokenizer.get_vocab().values()) + 1,
        "tokenizer_sha256": _sha256(json.dumps(body, sort_keys=True)),
        "template_sha256": None if template is None else _sha256(template),
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def check_teacher(model: str, teacher: PreTrainedTokenizerFast, student: PreTrainedTokenizerFast) -> None:
    """UserError where the rows are ids of another tokenizer than the teacher's. Templates may differ."""
    own, other = tokenizer_facts(teacher), tokenizer_facts(student)
    for key in ("vocabulary", "tokenizer_sha256"):
        if own[key] != other[key]:
            raise UserError(
                f"{model}: {key} is {_short(own[key])} of the teacher and {_short(other[key])} of the rows, "
                "and a teacher can only read its own ids. Set data.tokenizer.path to the teacher's tokenizer "
                "(and data.tokenizer.train=null), or give another teacher."
            )


def check_reader(
    folder: Path, settings: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast, temperature: float
) -> None:
    """UserError where ids mean something else to this reader, or the temperature was not captured."""
    cures = {
        "vocabulary": "Read it with the tokenizer it was captured with",
        "tokenizer_sha256": "Read it with the tokenizer it was captured with",
        "template_sha256": "Read it with the chat template it was captured with",
    }
    for key, found in tokenizer_facts(tokenizer).items():
        if found != settings[key]:
            raise UserError(
                f"{folder}: {key} is {_short(settings[key])} in its header and {_short(found)} at hand. "
                f"{cures[key]}, or {AGAIN}."
            )
    listed = settings["keep"]["temperatures"]
    if temperature not in listed:
        told = ", ".join(f"{t:g}" for t in listed)
        raise UserError(
            f"{folder}: temperature is {told} in its header and {temperature:g} was asked for, which cannot "
            f"be had from it. Ask for {told}, or {AGAIN} and --temperature {temperature:g}."
        )


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else "none" if value is None else str(value)
