"""A tool as one row declares it: its schema, the line that shows the schema, and calls under it.

JSON is written as words between spaces, quotes at the word: `{ "city" : "paris" }`. It stays JSON, so
json.loads reads it as it stands.
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from quietreasoning.data.spans.json_text import words_of
from quietreasoning.data.tasks.tool_pool import Param, Tool, Values


class Wish(NamedTuple):
    """What a call is to do, whatever the schema calls it."""

    tool: Tool
    values: Values

    @property
    def request(self) -> str:
        said = [p.clause(self.values[p.keys[0]]) for p in self.tool.params if p.keys[0] in self.values]
        return " ".join(said)

    @property
    def facts(self) -> str:
        return f"{self.tool.names[0]} {json.dumps(self.values, sort_keys=True)}"


class Declared(NamedTuple):
    """A tool under the spellings of one row."""

    tool: Tool
    name: str
    paths: Mapping[str, tuple[str, ...]]  # of the declared parameters: first spelling -> keys down to it

    @classmethod
    def draw(cls, tool: Tool, needed: Collection[str], depth: int, rng: random.Random) -> Declared:
        """Random spellings; an optional parameter that is not needed is left out half of the time."""
        kept = [p for p in tool.params if p.required or p.keys[0] in needed or rng.random() < 0.5]
        return cls(
            tool, rng.choice(tool.names), {p.keys[0]: _path(p, rng.choice(p.keys), depth) for p in kept}
        )

    @classmethod
    def usual(cls, tool: Tool, depth: int) -> Declared:
        """The first spellings."""
        return cls(tool, tool.names[0], {p.keys[0]: _path(p, p.keys[0], depth) for p in tool.params})

    def schema(self) -> dict[str, Any]:
        """`{"name": ..., "parameters": JSON Schema}`."""
        root = _object()
        for param in self.tool.params:
            path = self.paths.get(param.keys[0], ())
            here = root
            for i, key in enumerate(path, start=1):
                inner = here["properties"].setdefault(key, param.schema() if i == len(path) else _object())
                if param.required and key not in here["required"]:
                    here["required"].append(key)
                here = inner
        return {"name": self.name, "parameters": root}

    def call(self, values: Values) -> dict[str, Any]:
        """`{"name": ..., "arguments": ...}`, arguments in the order of the schema."""
        arguments: dict[str, Any] = {}
        for key, path in self.paths.items():
            if key in values:
                here = arguments
                for box in path[:-1]:
                    here = here.setdefault(box, {})
                here[path[-1]] = values[key]
        return {"name": self.name, "arguments": arguments}


def _path(param: Param, key: str, depth: int) -> tuple[str, ...]:
    return (*param.around[1 - depth :], key) if depth > 1 else (key,)


def _object() -> dict[str, Any]:
    return {"type": "object", "properties": {}, "required": [], "additionalProperties": False}


def written(value: Any) -> str:
    """JSON with a space between its marks and words; strings hold no space in this task."""
    return " ".join(words_of(value, json.dumps))


def one_or_list(values: list[Any]) -> str:
    """One value alone, several as a list."""
    return written(values[0] if len(values) == 1 else values)


def signature(schema: Mapping[str, Any]) -> str:
    """The line of a prompt that declares a tool."""
    return f"tool {written(schema['name'])} ( {_fields(schema['parameters'])} )"


def _fields(schema: Mapping[str, Any]) -> str:
    return " , ".join(
        f"{written(key)} : {'' if key in schema['required'] else 'optional '}{_kind(inner)}"
        for key, inner in schema["properties"].items()
    )


def _kind(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(map(written, schema["enum"]))
    if schema["type"] == "object":
        return f"{{ {_fields(schema)} }}"
    return f"[ {_kind(schema['items'])} ]" if schema["type"] == "array" else schema["type"]


def tool_counts(tools: int | tuple[int, ...], least: int, most: int) -> tuple[int, ...]:
    """How many tools a row may declare, by a setting of one number or several; ValueError beyond the ends."""
    counts = (tools,) if isinstance(tools, int) else tools
    if not counts or min(counts) < least or max(counts) > most:
        raise ValueError(f"tools={tools} must lie between {least} and {most}")
    return counts
