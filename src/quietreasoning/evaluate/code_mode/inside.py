"""What runs in the sandbox beside a program or beside a tool's source. Its text is sent there: it imports the
standard library alone.

The program has stubs; a call goes out through a pipe as one line of JSON and its answer comes back the same
way. Whoever keeps the record sits at the other end, in another process.
"""

from __future__ import annotations

import json
import os
import sys
import types

_KINDS = {
    "string": str, "integer": int, "number": (int, float), "boolean": bool, "array": (list, tuple),
    "object": dict, "null": type(None),
}  # fmt: skip


class ToolError(RuntimeError):
    """A call that failed: wrong arguments, or the tool itself."""


class Line:
    """One line of JSON out, one in. read: from where; write: to where."""

    def __init__(self, read: int, write: int):
        self.ends, self.rest = (read, write), b""

    def send(self, value) -> None:
        data = json.dumps(value, allow_nan=False).encode() + b"\n"
        while data:
            data = data[os.write(self.ends[1], data) :]

    def receive(self):
        """The next value; None where the other side has closed."""
        pieces = [self.rest]
        while b"\n" not in pieces[-1]:
            piece = os.read(self.ends[0], 1 << 16)
            if not piece:
                return None
            pieces.append(piece)
        line, _, self.rest = b"".join(pieces).partition(b"\n")
        return json.loads(line)


def fault(given: dict, tool: dict) -> str | None:
    """What is wrong with the arguments at first sight; the other side looks at everything."""
    for name in tool["required"]:
        if name not in given:
            return f"argument {name!r} is missing"
    for name, value in given.items():
        schema = tool["properties"].get(name)
        if schema is None:
            if tool["closed"]:
                return f"no argument {name!r}; there are {', '.join(tool['properties']) or 'none'}"
            continue
        kinds = schema.get("type", [])
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if kinds and not any(_is(value, kind) for kind in kinds):
            return f"argument {name!r} must be {' or '.join(kinds)}, not {type(value).__name__}"
        if "enum" in schema and value not in schema["enum"]:
            return f"argument {name!r} must be one of {', '.join(map(repr, schema['enum']))}"
    return None


def _is(value, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    whole = kind == "integer" and isinstance(value, float) and value.is_integer()
    return whole or isinstance(value, _KINDS[kind])


def stub(tool: dict, line: Line):
    """The function that a program calls: keyword arguments only."""

    def call(**given):
        arguments = {tool["arguments"].get(word, word): value for word, value in given.items()}
        if wrong := fault(arguments, tool):
            raise ToolError(f"{tool['identifier']}: {wrong}")
        try:
            line.send({"name": tool["name"], "arguments": arguments})
        except (TypeError, ValueError):
            raise ToolError(f"{tool['identifier']}: the arguments are no JSON values") from None
        except OSError:
            raise ToolError(f"{tool['identifier']}: no more calls are answered") from None
        answer = line.receive()
        if answer is None:
            raise ToolError(f"{tool['identifier']}: no more calls are answered")
        if "fault" in answer:
            raise ToolError(f"{tool['identifier']}: {answer['fault']}")
        return answer["result"]

    call.__name__ = call.__qualname__ = tool["identifier"]
    return call


def run_program(job: dict) -> None:
    """Run the program over its stubs; also `from tools import ...`. `summary`, if it sets it, is printed."""
    line = Line(*job["ends"])
    names = {tool["identifier"]: stub(tool, line) for tool in job["tools"]} | {"ToolError": ToolError}
    sys.modules["tools"] = types.ModuleType("tools")
    vars(sys.modules["tools"]).update(names)
    space = {"__name__": "__main__", **names}
    try:
        exec(compile(job["source"], "program.py", "exec"), space)
    finally:
        summary = space.get("summary")
        if summary is not None:
            print(summary if isinstance(summary, str) else json.dumps(summary, default=str))


def run_tools(job: dict) -> None:
    """Define the tools' functions, then answer calls until nobody asks."""
    line, space = Line(*job["ends"]), {"__name__": "tools"}
    exec(compile(job["source"], "tools.py", "exec"), space)
    line.send({"ready": [name for name in job["names"] if callable(space.get(name))]})
    while (asked := line.receive()) is not None:
        try:
            answer = {"result": space[asked["name"]](**asked["arguments"])}
            json.dumps(answer, allow_nan=False)
        except Exception as error:
            answer = {"fault": f"{type(error).__name__}: {error}"[:300]}
        line.send(answer)
