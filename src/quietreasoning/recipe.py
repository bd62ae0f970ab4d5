"""A recipe (YAML), `--config` files and `a.b=c` from the command line -> plain values, each with its source.

Precedence: class default < `base:` < recipe < `--config` files < command line; of several bases or files the
last. How they merge: layers.py; old keys: seed_files.py. A file name in a recipe or config file is meant from
that file's folder, one on the command line from the current folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quietreasoning.config import UserError, suggest
from quietreasoning.layers import COMMAND_LINE, CONFIG, Resolved, Tree, label, lay, stage_name
from quietreasoning.seed_files import SeedFiles, is_old
from quietreasoning.yaml_text import parse_yaml

FOLDER = Path(__file__).parent / "recipes"
RECIPES: dict[str, Path] = {
    path.relative_to(FOLDER).with_suffix("").as_posix(): path
    for path in sorted(FOLDER.glob("*/*.yaml"))
    if path.parent.name != "base"  # fragments, only to be inherited
}
PATH_KEYS = ("path", "init", "trunk", "compressor")  # settings that name a file or folder


def load_recipe(
    name_or_path: str, overrides: Sequence[str] = (), configs: Sequence[str | Path] = ()
) -> Resolved:
    """A shipped recipe or a file, with its bases, files laid over it in order, and overrides; stages as
    written, see `layers.expand`.

    Raises UserError for an unknown recipe, a missing file, bad YAML, a circle of bases, a malformed override,
    or an old key that nothing here stands for.
    """
    tree: Tree = {}
    for layer in _layers(find_recipe(name_or_path)):
        tree = lay(tree, layer)
    tree = _with_configs(tree, [Path(path) for path in configs])
    return Resolved(lay(tree, _override_layer(overrides, tuple(tree.get("stages", ())) or ("main",))))


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """`a.b=c` -> (("a", "b"), value); the value is read as in a recipe."""
    key, separator, value = text.partition("=")
    parts = tuple(key.strip().split("."))
    if not separator or not all(parts):
        raise UserError(f"{text!r} is not a setting. Write key=value, such as train.steps=100.")
    return parts, parse_yaml(value, f"{key.strip()}={value}")


def describe(name: str) -> str:
    """The first comment line of a shipped recipe."""
    first = RECIPES[name].read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").rstrip() if first.startswith("#") else ""


def find_recipe(name: str, beside: Path | None = None) -> Path:
    """The file of a shipped recipe or of a path, relative to `beside`; UserError where there is none."""
    folder = Path() if beside is None else beside
    shipped = FOLDER / f"{name}.yaml"
    candidates = [folder / name, folder / f"{name}.yaml"]
    candidates.insert(0 if name in RECIPES else 2, shipped)
    for path in candidates:
        if path.is_file():
            return path
    if name.endswith((".yaml", ".yml")):
        raise UserError(f"no recipe file {(folder / name).absolute()}")
    raise UserError(f"no recipe {name!r}. {suggest(name, RECIPES)}")


def _with_configs(tree: Tree, paths: Sequence[Path]) -> Tree:
    """The files over the tree, in order."""
    old = SeedFiles()
    for path in paths:
        if not path.is_file():
            raise UserError(f"--config: {path.absolute()} does not exist")
        values = _anchor(_read_mapping(path), path.parent)
        if is_old(values, str(path)):
            old.read(values, str(path))
    old.check()
    for path in paths:
        mine = str(path) in old.files
        for layer in old.layers(str(path), tree) if mine else _layers(path, kind=CONFIG.strip()):
            tree = lay(tree, layer)
    return tree


def _layers(path: Path, above: tuple[Path, ...] = (), kind: str = "recipe") -> list[Tree]:
    """The labelled contents of a recipe or config file and its bases, the deepest base first."""
    chain = (*above, path.resolve())
    if path.resolve() in above:
        raise UserError(f"recipes inherit in a circle: {' -> '.join(map(_title, chain))}")
    values = _anchor(_read_mapping(path), path.parent)
    bases = values.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: base must name a recipe, or several as [a, b], got {bases!r:.60}")
    layers = [layer for base in bases for layer in _layers(find_recipe(base, path.parent), chain)]
    return [*layers, label(values, f"{'base' if above else kind} {_title(path)}")]


def _title(path: Path) -> str:
    shipped = FOLDER in path.parents
    return path.relative_to(FOLDER).with_suffix("").as_posix() if shipped else str(path)


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping of settings, got {values!r:.60}")
    return values


def _anchor(values: Any, folder: Path, key: str = "") -> Any:
    """Make the file names among `values` absolute; a hub id that is no folder here stays as it is."""
    if isinstance(values, Mapping):
        return {name: _anchor(value, folder, str(name)) for name, value in values.items()}
    if isinstance(values, list):
        return [_anchor(value, folder) for value in values]
    if isinstance(values, str) and key in PATH_KEYS and values:
        path = folder / Path(values).expanduser()
        if values.startswith(("./", "../", "~")) or path.exists():
            return str(path.resolve())
    return values


def _override_layer(overrides: Sequence[str], stages: Sequence[str]) -> Tree:
    """One layer of all overrides, so that their order matters only where they set the same key."""
    values: dict[str, Any] = {}
    for text in overrides:
        parts, value = parse_override(text)
        value = _anchor(value, Path.cwd(), parts[-1])
        if parts[0] == "stages" and len(parts) > 1:
            parts = ("stages", stage_name(parts[1], stages), *parts[2:])
        level = values
        for part in parts[:-1]:
            if not isinstance(level.get(part), dict):
                level[part] = {}
            level = level[part]
        level[parts[-1]] = value
    return label(values, COMMAND_LINE)
