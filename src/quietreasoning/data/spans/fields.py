"""The fields of one row by name and type; whatever nobody read is known at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from quietreasoning.config import suggest
from quietreasoning.data.records import Fault
from quietreasoning.data.spans.conversation import Conversation, Turn, as_text, turn_of

ALIASES = {  # older name -> name
    "meta": "metadata",
    "teacher_targets": "teacher_text",
    "integration_token_ids": "tool_result_fields",
}
NOT_FROM_JSON = {
    "teacher_logits": "logits are trained from the logit cache, never from JSON; import them there",
    "teacher_hidden_states": "hidden states are trained from files of tensors, never from JSON",
}
KNOWN = (
    *("prompt", "teacher_text", "prompt_tools", "messages", "tools", "input", "target", "id"),
    *("tool_name_ids", "tool_name_mask", "gold_json_text_ids", "mask_valid_json_tokens"),
    *("tool_result_fields", "integration_mask", "teacher_prefix_ids", "teacher_quality_score"),
    *("cot_steps", "answer", "metadata", *NOT_FROM_JSON),
)
_INPUT = ("system", "tools", "history", "tool_result")


class Fields:
    """Values by name, None where a field is absent or null; Fault where one has the wrong type.

    Fault too where a field stands under two of its names with two values.
    """

    def __init__(self, record: Mapping[str, Any]):
        self._values: dict[str, Any] = {}
        self._written: dict[str, str] = {}  # name -> as the row spells it
        for name, value in record.items():
            known = ALIASES.get(name, name)
            if known in self._values and self._values[known] != value:
                raise Fault(
                    f"'{self._written[known]}' and '{name}' are two names of one field and differ; keep one"
                )
            self._values[known], self._written[known] = value, name
        self._read = {"id"}

    def get(self, name: str) -> Any:
        self._read.add(name)
        return self._values.get(name)

    def unread(self) -> list[str]:
        """Names that hold something which nobody asked for."""
        return [name for name, value in self._values.items() if name not in self._read and value is not None]

    def unknown(self, name: str) -> str:
        """Why an unread field is dropped."""
        if name in KNOWN:
            return "it does not belong to a row of this form"
        return f"no field of this name is known. {suggest(name, KNOWN)}"

    def _typed(self, name: str, kind: type | tuple[type, ...], what: str) -> Any:
        value = self.get(name)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise Fault(f"field '{self._written[name]}' is {type(value).__name__}, not {what}")
        return value

    def text(self, name: str) -> str | None:
        return self._typed(name, str, "text")

    def needed(self, name: str) -> str:
        """Text that is not empty."""
        text = self.text(name)
        if text is None or not text.strip():
            raise Fault(f"field '{name}' is {'absent' if text is None else 'empty'}")
        return text

    def mapping(self, name: str) -> Mapping[str, Any]:
        return self._typed(name, dict, "an object") or {}

    def listed(self, name: str) -> list[Any]:
        return self._typed(name, list, "a list") or []

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts."""
        found = self.listed(name)
        if any(not isinstance(item, str) for item in found):
            raise Fault(f"field '{name}' holds an item that is no text")
        return tuple(found)

    def number(self, name: str) -> float | None:
        """A finite number."""
        value = self._typed(name, (int, float), "a number")
        if value is not None and not math.isfinite(value):
            raise Fault(f"field '{name}' is {value}, not a finite number")
        return value

    def ids(self, name: str) -> list[Any] | None:
        """A list of ids or of such lists, None where it is absent or empty; masks may hold true and false."""
        value = self._typed(name, list, "a list of ids")
        if not value:
            return None
        nested = all(isinstance(item, list) for item in value)
        if any(not isinstance(id, int) for item in value for id in (item if nested else [item])):
            raise Fault(f"field '{self._written[name]}' holds an item that is no id")
        return value

    def ids_or_values(self, name: str) -> tuple[str, Any]:
        """(name, None) where it holds ids or nothing, else (the name as it is spelled, its values)."""
        value = self.get(name)
        ids = isinstance(value, list) and all(isinstance(item, int | list) for item in value)
        if value is None or ids:
            return name, None
        if not isinstance(value, dict | list | str):
            raise Fault(
                f"field '{self._written[name]}' is {type(value).__name__}, not ids, text or an object"
            )
        return self._written[name], value


def conversation_of(fields: Fields) -> Conversation:
    """The conversation of a row in any of its three forms; Fault where it has none or several of them."""
    forms = {"prompt": "teacher_text", "messages": "messages", "input": "target"}
    given = [
        form for form, other in forms.items() if fields.get(form) is not None or fields.get(other) is not None
    ]
    if len(given) != 1:
        has = " and ".join(f"'{form}'" for form in given) or "none of them"
        raise Fault(
            f"a row holds prompt and teacher_text, or messages, or input and target; this one has {has}"
        )
    if given == ["input"]:
        return _answer(fields)
    tools = fields.listed("tools")
    if given == ["messages"]:
        return Conversation.from_messages(fields.listed("messages"), tools)
    turns = (Turn("user", fields.needed("prompt")), Turn("assistant", fields.needed("teacher_text")))
    return Conversation(turns, tuple(tools))


def _answer(fields: Fields) -> Conversation:
    """input and target; what the assistant said before is context."""
    given, target = fields.mapping("input"), Fields(fields.mapping("target"))
    unknown = [name for name in given if name not in _INPUT]
    if unknown:
        raise Fault(f"input holds an unknown field '{unknown[0]}'. {suggest(unknown[0], _INPUT)}")
    inner = Fields(given)
    turns = [Turn("system", text)] if (text := inner.text("system")) else []
    history = inner.get("history") or []
    for message in [{"role": "user", "content": history}] if isinstance(history, str) else history:
        turn = turn_of(message)
        turns.append(Turn(turn.role, turn.content, turn.calls, turn.name, False, turn.call_id))
    if (result := inner.get("tool_result")) is not None:
        turns.append(Turn("tool", as_text(result)))
    if not turns:
        raise Fault("input is empty; give history, system or tool_result")
    turns.append(Turn("assistant", target.needed("text")))
    if target.unread():
        raise Fault(f"target holds an unknown field '{target.unread()[0]}'; it has text alone")
    return Conversation(tuple(turns), tuple(inner.listed("tools")))
