"""Pairs of answers: JSONL with `prompt`, `chosen` and `rejected`, as sets of preferences have them.

`tools`, a list of schemas, stands before the prompt as task `teacher-rows` writes it; `prompt_tools` are
those that the prompt declares in its own words. `reasons`, why a program was due, is what
`evaluate/code_mode/pairs.py` writes beside one: `meta["metadata"]["code_mode"]` is then true, calls one by
one were not due.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quietreasoning.config import UserError
from quietreasoning.data.example import Example
from quietreasoning.data.records import Fault, text
from quietreasoning.data.tasks.files import FileConfig, FileTask


class PreferencesConfig(FileConfig):
    spaced: bool = False
    """White space between all marks of declared tools, for a tokenizer of whole words."""


class Preferences(FileTask):
    Config = PreferencesConfig
    name = "preferences"
    describe = "pairs of answers: JSONL with prompt, chosen and rejected"
    scorer = "exact"
    config: PreferencesConfig

    def parse(self, record: Mapping[str, Any], number: int) -> Example:
        chosen, rejected = text(record, "chosen").strip(), text(record, "rejected").strip()
        if chosen == rejected:
            raise Fault("chosen and rejected are the same")
        asked, tools = text(record, "prompt"), _listed(record, "tools", dict)
        shown = _listed(record, "prompt_tools", dict)
        if tools and shown:
            raise Fault("'tools' are written before the prompt, 'prompt_tools' stand in it; give one of them")
        prompt, schemas = self._asked(asked, chosen, tools or shown)
        prompt = asked if shown else prompt
        due = bool(_listed(record, "reasons", str))
        return Example(
            id=f"{self.name}-{number}",
            prompt=prompt,
            steps=(),
            results=(),
            answer=chosen,
            rejected=rejected,
            meta={"tools": schemas, "metadata": {"code_mode": True} if due else {}},
        )

    def _asked(self, prompt: str, chosen: str, tools: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
        """The prompt behind its tools, and their schemas."""
        if not tools:
            return prompt, ()
        from quietreasoning.data.spans.conversation import Conversation, Turn
        from quietreasoning.data.spans.dialects import dialect
        from quietreasoning.data.tasks.rows_turns import context, declared  # brings torch

        try:
            turns = Turn("user", prompt), Turn("assistant", chosen)
            return context(Conversation(turns, tools), 1, dialect("json"), self.config.spaced), declared(
                tools
            )
        except UserError as error:
            raise Fault(f"field 'tools': {error}") from None


def _listed(record: Mapping[str, Any], name: str, kind: type) -> tuple[Any, ...]:
    """A field that may be missing or null."""
    value = record.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(one, kind) for one in value):
        raise Fault(f"field '{name}' is no list of {'objects' if kind is dict else 'texts'}")
    return tuple(value)
