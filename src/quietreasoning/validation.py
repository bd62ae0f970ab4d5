"""Plain values -> settings, or one line that names key, value, what is allowed, and the source.

Read `validate` first. Nothing here changes a value.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import ValidationError

from quietreasoning.config import Pick, Settings, UserError, leaf_types, suggest

S = TypeVar("S", bound=Settings)
STAGE_MARK = ", stage "  # in a source: the value was written inside a stage


def validate(cls: type[S], values: Mapping[str, Any], provenance: Mapping[str, str] | None = None) -> S:
    """`values` as settings of class `cls`.

    provenance: dotted key -> where its value came from, as `recipe.load_recipe` returns it.
    Raises UserError with one line about the first problem, and the number of others.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(cls, values, provenance or {}, error)) from None


def nested(cls: type[Settings], name: str, values: Mapping[str, Any]) -> type[Settings] | None:
    """The settings class inside field `name` of `cls`, given the raw `values` of its level."""
    field = cls.model_fields.get(name)
    if field is None:
        return None
    for mark in field.metadata:
        if isinstance(mark, Pick):
            defaults = {key: f.default for key, f in cls.model_fields.items()}
            return mark.class_for(values.get(name), defaults | dict(values))
    classes = (kind for kind in leaf_types(field.annotation) if issubclass(kind, Settings))
    return next(classes, None)


def is_sequence(cls: type[Settings], name: str) -> bool:
    """Whether field `name` holds a tuple of settings, as `stages` does."""
    annotation = cls.model_fields[name].annotation
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return any(get_origin(option) is tuple for option in options)


def is_mapping(cls: type[Settings], name: str) -> bool:
    """Whether field `name` holds settings by names of the user's own, as `eval.kv_caches` does."""
    return get_origin(cls.model_fields[name].annotation) is dict


def keys(cls: type[Settings], values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every dotted key that fits `values`; the items of a sequence are named by their `name`."""
    for name in cls.model_fields:
        inner = nested(cls, name, values)
        value = values.get(name)
        if inner is None:
            yield f"{prefix}{name}"
        elif is_sequence(cls, name):
            for index, item in enumerate(value if isinstance(value, list | tuple) else ()):
                if isinstance(item, Mapping):
                    yield from keys(inner, item, f"{prefix}{name}.{item.get('name', index)}.")
        elif is_mapping(cls, name):
            for own, item in value.items() if isinstance(value, Mapping) else ():
                yield from keys(inner, item if isinstance(item, Mapping) else {}, f"{prefix}{name}.{own}.")
        else:
            yield from keys(inner, value if isinstance(value, Mapping) else {}, f"{prefix}{name}.")


def recipe_schema(cls: type[Settings]) -> dict[str, Any]:
    """JSON schema of a recipe file: the settings of `cls`, none required, sections above their stages too."""
    schema = _optional(cls.model_json_schema())
    stage = schema["$defs"][cls.model_fields["stages"].annotation.__args__[0].__name__]
    sections = {name: value for name, value in stage["properties"].items() if name != "name"}
    patches = {"type": "object", "additionalProperties": stage}
    return schema | {
        "title": "Recipe",
        "properties": {
            "base": {
                "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
                "description": "Recipes to inherit from, by name or by path from this file; the last wins.",
            },
            **schema["properties"],
            **sections,
            "stages": {"anyOf": [{"type": "array", "items": stage}, patches]},
        },
    }


def _optional(schema: Any) -> Any:
    """Without `required`: what a recipe leaves out is inherited, or a default."""
    if isinstance(schema, dict):
        return {
            key: _optional(value)
            for key, value in schema.items()
            if not (key == "required" and isinstance(value, list))
        }
    return [_optional(item) for item in schema] if isinstance(schema, list) else schema


_MEANINGS = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text; put quotes around it",
    "tuple_type": "must be a list, such as [1, 2]",
    "dict_type": "must be a mapping, such as {{a: 1}}",
    "model_type": "must be a mapping of settings",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "missing": "must be given",
}


def _explain(
    cls: type[Settings], values: Mapping[str, Any], provenance: Mapping[str, str], error: ValidationError
) -> str:
    problems = _distinct(error.errors(include_url=False))
    # a misspelt key first: the "must be given" that it causes explains nothing
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    key, owner, value = _locate(cls, values, first["loc"])
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, UserError):  # it names its own key
        named = f"{key.rpartition('.')[0]}.{str(cause).split(':')[0]}".strip(".")
        source = _source(provenance, named) or _source(provenance, key)
        return " ".join(f"{cause}{f' (from {source})' if source else ''}".split())
    source = _source(provenance, key)
    if STAGE_MARK not in source:  # written above the stages: name it as it was written
        key = re.sub(r"^stages\.[^.]+\." if source else r"^stages\.main\.", "", key)
    if first["type"] == "extra_forbidden":
        meaning = f"no such setting. {_glued(key, value)}{_nearest(cls, values, key, owner)}"
    elif first["type"] == "missing" and isinstance(first["loc"][-1], int):
        meaning = f"needs at least {first['loc'][-1] + 1} values"
    elif first["type"] == "missing":
        doc = owner.docs().get(key.rpartition(".")[2]) if owner is not None else None
        meaning = f"must be given: {doc}" if doc else "must be given"
    else:
        meaning = _meaning(first, value)
    absent = value is None and first["type"] in ("missing", "unknown_choice")
    shown = "" if absent or isinstance(value, Mapping) else f"={_short(value)}"
    where = f" (from {source})" if source else ""
    more = f" [and {len(problems) - 1} more]" if len(problems) > 1 else ""
    subject = f"{key}{shown}: " if key else ""
    return " ".join(f"{subject}{meaning}{where}{more}".split())


def _distinct(problems: Sequence[Any]) -> list[Any]:
    """Each fault once: stages repeat what they take over, and a list with a bad item is called too short."""
    kept: dict[tuple[Any, ...], Any] = {}
    for problem in problems:
        if problem["type"] == "too_short" and len(problem["input"]) >= problem["ctx"]["min_length"]:
            continue
        where = tuple(part for part in problem["loc"] if not isinstance(part, int))
        kept.setdefault((problem["type"], where, repr(problem["input"])), problem)
    return list(kept.values())


def _meaning(problem: Mapping[str, Any], value: Any) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind in ("literal_error", "enum"):
        choices = context["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        return f"not allowed. {suggest(str(value), choices)}"
    if kind == "value_error":
        return str(context["error"])
    if kind in _MEANINGS:
        return _MEANINGS[kind].format(**context)
    return problem["msg"].replace("Input should", "must")


def _locate(
    cls: type[Settings], values: Mapping[str, Any], loc: Sequence[int | str]
) -> tuple[str, type[Settings] | None, Any]:
    """Dotted key, the class of its level, and the value there."""
    parts: list[str] = []
    inner: type[Settings] | None = cls  # what `value` must fit
    owner, value = inner, values
    named = False  # the next part is a name of the user's own
    for position, part in enumerate(loc):
        if isinstance(value, Mapping) and (part in value or position == len(loc) - 1):
            owner = inner
            if named:
                named = False
            elif owner is not None:
                inner = nested(owner, str(part), value)
                named = inner is not None and is_mapping(owner, str(part))
            value = value.get(part)
            parts.append(str(part))
        elif isinstance(value, list | tuple) and isinstance(part, int) and part < len(value):
            value = value[part]
            parts.append(str(value.get("name", part)) if isinstance(value, Mapping) else str(part))
        # anything else is pydantic's own word for a member of a union
    return ".".join(parts), owner, value


def _glued(key: str, value: Any) -> str:
    """The cure for `{bits:8}`, which YAML reads as one word without a value."""
    name, colon, given = key.rpartition(".")[2].partition(":")
    return f"Write `{name}: {given}`, with a space. " if colon and value is None else ""


def _nearest(cls: type[Settings], values: Mapping[str, Any], key: str, owner: type[Settings] | None) -> str:
    """The cure for an unknown key: a near name at its level, else the same name elsewhere."""
    *parents, name = key.split(".")
    here = list(owner.model_fields) if owner is not None else []
    line = suggest(name, here)
    if not line.startswith("Did you mean"):
        elsewhere = [other for other in keys(cls, values) if other.rpartition(".")[2] == name]
        if elsewhere:
            return f"Did you mean {' or '.join(map(repr, elsewhere[:3]))}? {line}"
    elif parents:
        near = line.split("'")[1]
        return line.replace(f"'{near}'", f"'{'.'.join((*parents, near))}'", 1)
    return line


def _source(provenance: Mapping[str, str], key: str) -> str:
    """Where `key`, or what stands below or above it, came from; empty for a default."""
    below = {source: None for other, source in provenance.items() if other.startswith(f"{key}.")}
    if below and key not in provenance:
        return " and ".join(below)
    while key and key not in provenance:
        key = key.rpartition(".")[0]
    return provenance.get(key, "")


def _short(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).splitlines()[0]
    return text if len(text) <= 60 else f"{text[:57]}..."
