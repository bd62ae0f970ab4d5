"""A declared tool: a name, a JSON schema of its arguments and, if it is known, one of its result."""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quietreasoning.config import UserError
from quietreasoning.evaluate.rules.json_schema import check_schema

RESERVED = frozenset((*dir(builtins), "summary", "tools", "ToolError"))
"""What a program has under its own name: a tool called `print` becomes `print_`."""
_CURE = 'declare {"name": ..., "parameters": {"type": "object", "properties": {...}}}'


@dataclass(frozen=True)
class Tool:
    """name: as it is called outside; identifier: as a program names it."""

    name: str
    identifier: str
    description: str
    parameters: Mapping[str, Any]
    returns: Mapping[str, Any] | None = None

    @property
    def properties(self) -> Mapping[str, Any]:
        return self.parameters.get("properties", {})

    @property
    def required(self) -> tuple[str, ...]:
        return tuple(self.parameters.get("required", ()))

    @property
    def arguments(self) -> dict[str, str]:
        """Identifier of each declared argument -> its name."""
        return dict(zip(identifiers(self.properties), self.properties, strict=True))

    def by_identifier(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The same arguments under the names that Python takes."""
        words = {name: word for word, name in self.arguments.items()}
        return {words.get(name, name): value for name, value in arguments.items()}


def tools_of(declared: Sequence[Mapping[str, Any]]) -> tuple[Tool, ...]:
    """Tools as servers declare them, bare or within {"type": "function", "function": ...}; `returns`, a
    schema of the result, may stand beside `parameters`. UserError names the tool and what is wrong with it:
    no name, a name twice, arguments that are no object, a keyword that is not understood, an empty enum."""
    found = []
    for number, one in enumerate(declared, start=1):
        inner = one.get("function", one) if isinstance(one, Mapping) else None
        name = inner.get("name") if isinstance(inner, Mapping) else None
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"tool {number} of {len(declared)} has no name: {one!r:.60}; {_CURE}")
        found.append((name, inner))
    names = [name for name, _ in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"tool {name!r:.60} is declared twice; keep one")
    return tuple(
        _tool(name, identifier, inner)
        for (name, inner), identifier in zip(found, identifiers(names, RESERVED), strict=True)
    )


def _tool(name: str, identifier: str, inner: Mapping[str, Any]) -> Tool:
    parameters = inner.get("parameters", {"type": "object", "properties": {}})
    returns = inner.get("returns")
    for key, schema in (("parameters", parameters), ("returns", returns)):
        if schema is None and key == "returns":
            continue
        try:
            check_schema(schema, key)
            _no_empty_enum(schema, key)
        except ValueError as error:
            raise UserError(f"tool {name!r:.60}: {error}") from None
    if parameters.get("type", "object") != "object":
        raise UserError(f"tool {name!r:.60}: parameters.type={parameters['type']!r} must be object; {_CURE}")
    return Tool(name, identifier, str(inner.get("description", "")), parameters, returns)


def _no_empty_enum(schema: Mapping[str, Any], path: str) -> None:
    if schema.get("enum") == []:
        raise ValueError(f"{path}.enum is empty, so nothing is allowed; list the values")
    for name, inner in schema.get("properties", {}).items():
        _no_empty_enum(inner, f"{path}.properties.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), Mapping):
            _no_empty_enum(schema[key], f"{path}.{key}")


def identifiers(names: Iterable[str], reserved: Collection[str] = ()) -> list[str]:
    """A Python identifier for each name, all different and none reserved: `get-weather` -> `get_weather`,
    `from` -> `from_`."""
    found: list[str] = []
    for name in names:
        word = re.sub(r"\W", "_", name, flags=re.ASCII) or "_"
        word = f"{word.strip('_')}_" if word.startswith("__") else word  # such names are Python's own
        word = f"_{word}" if word[0].isdigit() else word
        word = f"{word}_" if keyword.iskeyword(word) or word in reserved else word
        plain, number = word, 2
        while word in found:
            word, number = f"{plain}_{number}", number + 1
        found.append(word)
    return found
