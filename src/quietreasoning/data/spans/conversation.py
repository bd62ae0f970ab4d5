"""A conversation with tools: what was said, called and returned, and which turns are to be learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quietreasoning.config import UserError, suggest
from quietreasoning.data.spans.calls import Call, written
from quietreasoning.data.spans.json_text import JsonError, parse_json

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Turn:
    """One message. Calls and `learn` belong to an assistant's turn alone."""

    role: str
    content: str = ""
    calls: tuple[Call, ...] = ()
    name: str | None = None  # of the tool whose result this is
    learn: bool = True  # an assistant's turn that is context only has False
    call_id: str | None = None  # of the call that a result answers


@dataclass(frozen=True)
class Conversation:
    """Turns in order and the declared tools, each a JSON schema as chat templates take it."""

    turns: tuple[Turn, ...]
    tools: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        """UserError where nothing is there to learn, or a call names a tool that is not declared."""
        if not any(turn.role == "assistant" and turn.learn for turn in self.turns):
            raise UserError("the conversation has no assistant turn to learn; give one")
        for turn in self.turns:
            if turn.role not in ROLES:
                raise UserError(f"role={turn.role!r:.40} is no role. {suggest(turn.role, ROLES)}")
            if turn.calls and turn.role != "assistant":
                raise UserError(
                    f"a turn of role {turn.role} holds tool calls; only the assistant calls tools"
                )
            if turn.role == "assistant" and not turn.content.strip() and not turn.calls:
                raise UserError("an assistant turn is empty; give it content or tool calls")
        names = set(self.tool_names)
        for call in (call for turn in self.turns for call in turn.calls):
            if names and call.name not in names:
                raise UserError(
                    f"a call of '{call.name:.40}', a tool that is not declared. {suggest(call.name, names)}"
                )

    @property
    def tool_names(self) -> tuple[str, ...]:
        """Of the declared tools; UserError where one has no name."""
        names = []
        for tool in self.tools:
            inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
            name = inner.get("name") if isinstance(inner, Mapping) else None
            if not isinstance(name, str) or not name:
                raise UserError(f"a tool without a name: {tool!r:.60}; give it name and parameters")
            names.append(name)
        return tuple(names)

    def results_before(self, index: int) -> tuple[str, ...]:
        """The tool results that the turn at `index` has seen."""
        return tuple(turn.content for turn in self.turns[:index] if turn.role == "tool")

    def messages(self) -> list[dict[str, Any]]:
        """The turns as chat templates take them, arguments as objects."""
        return [_message(turn) for turn in self.turns]

    @classmethod
    def from_messages(
        cls, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> Conversation:
        """From messages as servers write them: role, content, tool_calls, name; UserError on a wrong type."""
        if not isinstance(messages, list | tuple) or not isinstance(tools or (), list | tuple):
            raise UserError("messages and tools must be lists")
        if any(not isinstance(tool, Mapping) for tool in tools or ()):
            raise UserError("a tool must be an object with name and parameters")
        return cls(tuple(turn_of(message) for message in messages), tuple(tools or ()))


def _message(turn: Turn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.calls:
        message["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
            for call in turn.calls
        ]
    if turn.name is not None:
        message["name"] = turn.name
    if turn.call_id is not None:
        message["tool_call_id"] = turn.call_id
    return message


_MESSAGE = ("role", "content", "tool_calls", "name", "tool_call_id", "learn")


def turn_of(message: Any) -> Turn:
    """One message to a turn; UserError names the field that is wrong."""
    if not isinstance(message, Mapping):
        raise UserError(f"a message is {type(message).__name__}, not an object with role and content")
    unknown = [key for key in message if key not in _MESSAGE and message[key] is not None]
    if unknown:
        raise UserError(f"a message has an unknown field '{unknown[0]}'. {suggest(unknown[0], _MESSAGE)}")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise UserError(f"role={role!r:.40} is no role. {suggest(str(role), ROLES)}")
    if not isinstance(content, str | None) and role != "tool":
        raise UserError(f"content of a {role} message is {type(content).__name__}, not text")
    if not isinstance(message.get("learn", True), bool):
        raise UserError(f"learn={message['learn']!r:.40} of a message must be true or false")
    calls = message.get("tool_calls") or ()
    if not isinstance(calls, list | tuple):
        raise UserError(f"tool_calls is {type(calls).__name__}, not a list")
    return Turn(
        role=role,
        content=as_text(content),
        calls=tuple(_call(call) for call in calls),
        name=message.get("name"),
        learn=message.get("learn", True),
        call_id=message.get("tool_call_id"),
    )


def as_text(value: Any) -> str:
    """Text as it is, nothing as no text, any other value as JSON."""
    return "" if value is None else value if isinstance(value, str) else written(value, False)


def _call(given: Any) -> Call:
    inner = given.get("function", given) if isinstance(given, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str) or not inner["name"]:
        raise UserError(f"a tool call without a name: {given!r:.60}; give it name and arguments")
    arguments = inner.get("arguments", {})
    if isinstance(arguments, str):
        try:
            parser = parse_json(arguments if arguments.strip() else "{}")
        except JsonError as error:
            raise UserError(
                f"arguments of the call of '{inner['name']:.40}' are broken JSON: {error}"
            ) from None
        if parser.duplicates:
            again = parser.duplicates[0].value
            raise UserError(
                f"arguments of the call of '{inner['name']:.40}' hold '{again:.40}' twice; keep one"
            )
        arguments = parser.close()
    if not isinstance(arguments, Mapping):
        raise UserError(f"arguments of '{inner['name']:.40}' are {type(arguments).__name__}, not an object")
    return Call(inner["name"], dict(arguments))
