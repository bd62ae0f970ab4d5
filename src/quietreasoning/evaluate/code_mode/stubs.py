"""Tools as typed declarations that a model reads: Python and TypeScript, from JSON schemas.

The Python text parses, and what it declares is what `execute` gives a program under the same names. The
TypeScript text is for models that write it; nothing here runs it.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Mapping, Sequence
from typing import Any

from quietreasoning.evaluate.code_mode.tool import Tool

_PLAIN = {
    "string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None",
    "array": "list", "object": "dict",
}  # fmt: skip
_SCRIPT = {
    "string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null",
    "array": "unknown[]", "object": "Record<string, unknown>",
}  # fmt: skip
_WORD = re.compile(r"[A-Za-z_$][\w$]*", re.ASCII)
_RESERVED = frozenset(
    "break case catch class const continue debugger default delete do else enum export extends false finally "
    "for function if import in instanceof new null return super switch this throw true try typeof var void "
    "while with let static yield await implements interface package private protected public".split()
)


def python_stubs(tools: Sequence[Tool]) -> str:
    """`def get_weather(*, city: str, day: int = ...) -> dict: ...` for each tool; objects with declared keys
    as TypedDict, enums as Literal. Names that Python does not allow are changed as in `Tool.identifier`."""
    classes: list[str] = []
    functions = [_function(tool, classes) for tool in tools]
    head = "from typing import Any, Literal, NotRequired, TypedDict"
    return "\n\n".join([head, *classes, *functions]) + "\n"


def _function(tool: Tool, classes: list[str]) -> str:
    title = _title(tool.identifier)
    given = []
    for word, name in tool.arguments.items():
        kind = _python(tool.properties[name], f"{title}_{word}", classes)
        given.append(f"{word}: {kind}" if name in tool.required else f"{word}: {kind} = ...")
    result = "Any" if tool.returns is None else _python(tool.returns, f"{title}Result", classes)
    arguments = ", ".join(["*", *given]) if given else ""
    head = f"def {tool.identifier}({arguments}) -> {result}:"
    about = " ".join(tool.description.split())
    # repr: a description cannot end its own quotes
    return f"{head}\n    {about!r}\n    ..." if about else f"{head} ..."


def _python(schema: Mapping[str, Any], name: str, classes: list[str]) -> str:
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if values is not None and all(value is None or isinstance(value, str | int) for value in values):
        return f"Literal[{', '.join(map(repr, values))}]"
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    words = [_python_kind(kind, schema, name, classes) for kind in kinds]
    return " | ".join(dict.fromkeys(words)) or "Any"


def _python_kind(kind: str, schema: Mapping[str, Any], name: str, classes: list[str]) -> str:
    if kind == "array" and "items" in schema:
        return f"list[{_python(schema['items'], f'{name}_item', classes)}]"
    if kind != "object":
        return _PLAIN[kind]
    if not schema.get("properties"):
        others = schema.get("additionalProperties")
        known = isinstance(others, Mapping)
        return f"dict[str, {_python(others, f'{name}_value', classes)}]" if known else "dict"
    keys = {}
    for key, inner in schema["properties"].items():
        word = _python(inner, f"{name}_{_title(key)}", classes)
        keys[key] = word if key in schema.get("required", ()) else f"NotRequired[{word}]"
    taken = sum(f'("{name}"' in one or f"class {name}(" in one for one in classes)
    name = f"{name}_{taken + 1}" if taken else name
    if all(key.isidentifier() and not keyword.iskeyword(key) and key[:2] != "__" for key in keys):
        lines = "\n".join(f"    {key}: {word}" for key, word in keys.items())
        classes.append(f"class {name}(TypedDict):\n{lines}")
    else:
        inside = ", ".join(f"{key!r}: {word}" for key, word in keys.items())
        classes.append(f'{name} = TypedDict("{name}", {{{inside}}})')
    return name


def _title(word: str) -> str:
    """`get-weather` -> `GetWeather`."""
    parts = re.findall(r"[A-Za-z0-9]+", word)
    title = "".join(part[:1].upper() + part[1:] for part in parts)
    return title if title and not title[0].isdigit() else f"T{title}"


def typescript_stubs(tools: Sequence[Tool]) -> str:
    """`declare function get_weather(args: { city: string; day?: number }): Promise<unknown>;` for each tool,
    with its description as a comment."""
    return "\n".join(_declared(tool) for tool in tools)


def _declared(tool: Tool) -> str:
    name = f"{tool.identifier}_" if tool.identifier in _RESERVED else tool.identifier
    given = _script({**tool.parameters, "type": "object"}) if tool.properties else "{}"
    result = "unknown" if tool.returns is None else _script(tool.returns)
    about = " ".join(tool.description.split()).replace("*/", "* /")
    comment = f"/** {about} */\n" if about else ""
    return f"{comment}declare function {name}(args: {given}): Promise<{result}>;\n"


def _script(schema: Mapping[str, Any]) -> str:
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if values is not None and not any(isinstance(value, list | dict) for value in values):
        return " | ".join(map(json.dumps, values))
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return " | ".join(dict.fromkeys(_script_kind(kind, schema) for kind in kinds)) or "unknown"


def _script_kind(kind: str, schema: Mapping[str, Any]) -> str:
    if kind == "array" and "items" in schema:
        return f"Array<{_script(schema['items'])}>"
    if kind == "object" and schema.get("properties"):
        required = schema.get("required", ())
        words = {key: key if _WORD.fullmatch(key) else json.dumps(key) for key in schema["properties"]}
        parts = [
            f"{words[key]}{'' if key in required else '?'}: {_script(inner)}"
            for key, inner in schema["properties"].items()
        ]
        return f"{{ {'; '.join(parts)} }}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"Record<string, {_script(schema['additionalProperties'])}>"
    return _SCRIPT[kind]
