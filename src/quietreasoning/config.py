"""The base of every settings class, and the one error that users see.

A settings class sits beside the code that reads it; `RunConfig` in run.py only composes them.
`recipe.py` turns a YAML file and `a.b=c` into plain values, `validation.py` turns those into
settings or into one clear line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema


class UserError(ValueError):
    """Bad input. The message is one line: key, value, choices, cure. The command line exits with 2."""


def suggest(name: str, choices: Iterable[str]) -> str:
    """`Did you mean 'slots'? Choices: cot, plain, slots.`, the question only where one is near."""
    names = sorted(str(choice) for choice in choices)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    question = f"Did you mean {near[0]!r}? " if near else ""
    return f"{question}Choices: {', '.join(names) if names else 'none'}."


class Settings(BaseModel):
    """Base of every settings class. Sequences are tuples: frozen is shallow."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_boolean_for_number(cls, value: Any, info: Any) -> Any:
        # pydantic would turn `steps: false` into 0
        if _holds_boolean(value):
            kinds = set(leaf_types(cls.model_fields[info.field_name].annotation))
            if bool not in kinds and kinds & {int, float}:
                raise PydanticCustomError("boolean", "must be a number, not true or false")
        return value

    @classmethod
    def docs(cls) -> dict[str, str]:
        """Field name -> its docstring on one line."""
        return {name: " ".join((f.description or "").split()) for name, f in cls.model_fields.items()}


@dataclass(frozen=True)
class Pick:
    """A field whose class is picked by a name: `method: Annotated[MethodConfig, Pick("method", classes)]`.

    The name is the value's own `name`, or the sibling field `by`, which must be declared before
    this one: `options: Annotated[Settings, Pick("task", classes, by="task")] = {}`.
    """

    kind: str
    classes: Mapping[str, type[Settings]]
    by: str | None = None

    def class_for(self, value: Any, siblings: Mapping[str, Any]) -> type[Settings] | None:
        """The class that `value` must fit; None where the name is missing or unknown."""
        if self.by is not None:
            return self.classes.get(siblings.get(self.by))
        name = value.get("name") if isinstance(value, Mapping) else None
        return self.classes.get(name) if isinstance(name, str) else None

    def _validate(self, value: Any, info: core_schema.ValidationInfo) -> Any:
        if isinstance(value, Settings):
            value = value.model_dump()
        if not isinstance(value, Mapping):
            raise PydanticCustomError("mapping", "must be a mapping of settings")
        if self.by is not None and self.by not in info.data:
            return value  # the name itself was refused; that error is enough
        picked = self.class_for(value, info.data)
        if picked is None:
            name = info.data[self.by] if self.by is not None else value.get("name")
            raise _at(self.by or "name", name, _unknown(self.kind, name, self.classes))
        return picked.model_validate(dict(value))

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(
            self._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda value, info: value.model_dump(mode=info.mode), info_arg=True
            ),
        )

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        options = []
        for name, settings in sorted(self.classes.items()):
            option = handler.resolve_ref_schema(handler(settings.__pydantic_core_schema__)) | {"title": name}
            if self.by is None:
                option["properties"] = option["properties"] | {"name": {"const": name}}
            options.append(option)
        return {"anyOf": options}


@dataclass(frozen=True)
class OneOf:
    """A text field that must be one of `choices`: `task: Annotated[str, OneOf("task", TASKS)]`."""

    kind: str
    choices: Sequence[str] | Mapping[str, Any]

    def _validate(self, value: str) -> str:
        if value not in self.choices:
            raise _unknown(self.kind, value, self.choices)
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._validate, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {"enum": sorted(self.choices)}


def _at(key: str, value: Any, error: PydanticCustomError) -> ValidationError:
    details = InitErrorDetails(type=error, loc=(key,), input=value)
    return ValidationError.from_exception_data("settings", [details])


def _unknown(kind: str, name: Any, choices: Iterable[str]) -> PydanticCustomError:
    what = f"names no {kind}" if name is not None else f"names the {kind} and must be given"
    text = f"{what}. {suggest(name or '', choices)}"
    return PydanticCustomError("unknown_choice", "{text}", {"text": text})


def _holds_boolean(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple):
        value = (value,)
    return any(isinstance(item, bool) for item in value)


def leaf_types(annotation: Any) -> Iterator[type]:
    """The classes inside an annotation: `tuple[int, ...] | None` -> int, NoneType."""
    if get_origin(annotation) is Literal:
        yield from (type(value) for value in get_args(annotation))
    elif get_args(annotation):
        for inner in get_args(annotation):
            yield from leaf_types(inner)
    elif isinstance(annotation, type):
        yield annotation
