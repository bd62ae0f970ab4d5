"""Files and functions stay short enough to read; what is public says what it is."""

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import quietreasoning
from quietreasoning.config import Settings

PACKAGE = Path(quietreasoning.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE_LINES = 320
MAX_FUNCTION_LINES = 70
LONG_FILES: dict[str, int] = {  # file -> lines, with the reason
}
LONG_FUNCTIONS: dict[str, int] = {}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n")
    assert lines <= LONG_FILES.get(name_of(path), MAX_FILE_LINES), f"{name_of(path)} has {lines} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            long = node.end_lineno - node.lineno + 1
            limit = LONG_FUNCTIONS.get(f"{name_of(path)}:{node.name}", MAX_FUNCTION_LINES)
            assert long <= limit, f"{name_of(path)}:{node.name} has {long} lines"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_file_says_what_it_is(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) or not tree.body


def all_settings() -> list[type[Settings]]:
    for module in pkgutil.walk_packages([str(PACKAGE)], "quietreasoning."):
        importlib.import_module(module.name)
    found, open_classes = [], [Settings]
    while open_classes:
        inner = open_classes.pop().__subclasses__()
        open_classes += inner
        found += [cls for cls in inner if cls.__module__.startswith("quietreasoning.")]
    return sorted(set(found), key=lambda cls: f"{cls.__module__}.{cls.__qualname__}")


def test_every_setting_has_a_docstring_and_no_mutable_sequence():
    bad = []
    for cls in all_settings():
        for field, doc in cls.docs().items():
            annotation = cls.model_fields[field].annotation
            nested = isinstance(annotation, type) and issubclass(annotation, Settings)
            if not doc and not (nested and annotation.__doc__) and cls.__name__ != "MethodConfig":
                bad.append(f"{cls.__module__}.{cls.__qualname__}.{field}: no docstring under it")
            if "list[" in str(annotation) or "set[" in str(annotation).replace("frozenset[", ""):
                bad.append(f"{cls.__module__}.{cls.__qualname__}.{field}: frozen is shallow, use a tuple")
    assert not bad, "\n".join(bad)
