"""A conversation as one text, and where in it the assistant wrote: the plain format.

Each turn is a header, its content, and for the assistant the end of sequence. All parts are separated by
white space, so that a tokenizer of whole words reads them as its own words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from quietreasoning.config import UserError
from quietreasoning.data.spans.calls import Dialect, written
from quietreasoning.data.spans.conversation import ROLES, Conversation, Turn
from quietreasoning.data.spans.dialects import dialect
from quietreasoning.data.spans.offsets import Offsets
from quietreasoning.data.tags import THINKING

HEADERS = {"system": "system :", "user": "user :", "assistant": "assistant :", "tool": "tool :"}


@dataclass(frozen=True)
class Written:
    """What the assistant wrote in one turn: characters, with the mark that ends its turn."""

    index: int  # of the conversation's turn
    start: int
    end: int


@dataclass(frozen=True)
class Rendered:
    """The whole text and the assistant's turns that are to be learned."""

    text: str
    written: tuple[Written, ...]
    ends: bool  # whether the last one holds its end mark; else the end of sequence must follow the text
    tokens: tuple[list[int], Offsets] | None = None  # where rendering had to tokenise already


class Format(Protocol):
    """One way to write a conversation as text."""

    dialect: Dialect | None  # of its tool calls; None: whichever it speaks

    def render(self, conversation: Conversation) -> Rendered:
        """UserError where the assistant's turns cannot be told apart from the rest."""


def control_tokens(tokenizer: Any, allow: Sequence[str] = ()) -> tuple[str, ...]:
    """Special tokens as text, longest first, without what a turn may hold: thinking tokens and `allow`."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    found = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
    return tuple(sorted(found - {*THINKING, *allow, ""}, key=len, reverse=True))


def check_plain_text(conversation: Conversation, controls: tuple[str, ...]) -> None:
    """UserError where a turn or tool holds a control token as text: it could end a turn, or feign one."""
    held = {"the declaration of tools": written(list(conversation.tools), False)}
    for index, turn in enumerate(conversation.turns):
        calls = [[call.name, dict(call.arguments)] for call in turn.calls]
        held[f"turn {index} ({turn.role})"] = turn.content + written(calls, False)
    for place, text in held.items():
        for token in controls:
            if token in text:
                raise UserError(
                    f"{place} holds {token!r}, a control token of this tokenizer, as text; remove it or "
                    "write it in another way"
                )


class Plain:
    """Headers, contents and ends of sequence, for tokenizers without a chat template."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        dialect_name: str = "pythonic",
        spaced: bool = True,
        headers: Mapping[str, str] = HEADERS,
        allow: Sequence[str] = (),
    ):
        """spaced: white space between all tokens of calls; headers: role -> what stands before its turns;
        allow: special tokens that a turn may hold as text."""
        if set(headers) != set(ROLES):
            raise UserError(f"headers={dict(headers)} must name {', '.join(ROLES)}, and nothing else")
        self.dialect = dialect(dialect_name)
        self.spaced, self.headers = spaced, headers
        self._eos = tokenizer.eos_token
        if self._eos is None:
            raise UserError("the tokenizer has no end-of-sequence token; set eos_token in its settings")
        start = tokenizer("", add_special_tokens=True)["input_ids"][:1]
        self._start = tokenizer.bos_token if start and start == [tokenizer.bos_token_id] else ""
        self._controls = control_tokens(tokenizer, allow)

    def render(self, conversation: Conversation) -> Rendered:
        """The text; an assistant's turn is what follows its header, to its end of sequence."""
        check_plain_text(conversation, self._controls)
        text, turns = self._start, []
        between = "\n" if conversation.tools else ""
        if conversation.tools:
            text += f"tools : {written(list(conversation.tools), self.spaced)}"
        for index, turn in enumerate(conversation.turns):
            text += between + self.headers[turn.role]
            between = "\n"
            start = len(text)
            text += self._body(turn)
            if turn.role == "assistant":
                text += f" {self._eos}" if self.spaced else self._eos
                if turn.learn:
                    turns.append(Written(index, start, len(text)))
        return Rendered(text, tuple(turns), ends=True)

    def _body(self, turn: Turn) -> str:
        calls = self.dialect.write(turn.calls, spaced=self.spaced) if turn.calls else ""
        body = "\n".join(part for part in (turn.content, calls) if part)
        return f" {body}" if self.headers[turn.role] else body
