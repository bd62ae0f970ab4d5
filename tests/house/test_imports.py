"""Who may import whom, read from the source: in-function and annotation-only imports count too."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

import quietreasoning

PACKAGE = Path(quietreasoning.__file__).parent
FLOORS = (
    {
        *("config", "disk", "yaml_text", "layers", "recipe", "validation", "contract", "kinds", "versions"),
        *("seed_seen", "seed_code_mode", "seed_keys", "seed_absent", "seed_files"),
    },
    {"nn", "losses", "optim", "memory"},
    {"workspace"},
    {"backbone"},
    {"methods", "data", "track"},
    {"train", "evaluate"},
    {"report"},
    {"run_config"},
    {"build", "equip"},
    {"proof", "planning", "harvest", "capture", "push", "export", "migrate"},
    {"gates", "scribe", "indices"},
    {"text_pairs"},
    {"run", "texts"},
    {"demo"},
    {"cli"},
    {"training", "tools"},
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
)


def source(module: str) -> ast.Module:
    path = PACKAGE.parent.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(module: str) -> frozenset[str]:
    """Full names of the modules that `module` imports anywhere in its text."""
    found = set()
    for node in ast.walk(source(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports hide who imports whom"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            inner = {name for name in names if name in MODULES}
            found |= inner or {node.module}
    return frozenset(found)


def room(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]


def outside(module: str) -> set[str]:
    """Top-level packages that are neither ours nor the standard library's."""
    tops = {name.partition(".")[0] for name in imports(module)}
    return {top for top in tops if top not in sys.stdlib_module_names and top != "quietreasoning"}


def ours(module: str) -> set[str]:
    return {name for name in imports(module) if name.startswith("quietreasoning.")}


INNER = [module for module in MODULES if room(module)]


@pytest.mark.parametrize("module", INNER)
def test_every_module_has_a_floor_and_imports_only_go_down(module):
    assert room(module) in FLOOR_OF, f"give {room(module)} a floor in this test"
    for other in ours(module):
        if room(other) != room(module):
            assert FLOOR_OF[room(other)] < FLOOR_OF[room(module)] or (
                FLOOR_OF[room(other)] == FLOOR_OF[room(module)] == 0
            ), f"{module} must not import {other}"


@pytest.mark.parametrize("module", [m for m in INNER if room(m) in ("nn", "losses")])
def test_blocks_and_losses_import_torch_alone(module):
    assert outside(module) <= {"torch"}
    assert {room(other) for other in ours(module)} <= {room(module), "contract"}


@pytest.mark.parametrize("module", [m for m in INNER if m.startswith("quietreasoning.methods.")])
def test_a_method_knows_no_other_method(module):
    """It may use the helpers of its room, never a file that holds another entry of METHODS."""
    entries = {name for name in imports("quietreasoning.methods") if room(name) == "methods"}
    assert not (ours(module) & entries) - {module}


@pytest.mark.parametrize("module", [m for m in INNER if room(m) == "train"])
def test_the_loop_knows_no_method(module):
    assert not {room(other) for other in ours(module)} & {"methods", "data", "evaluate", "report"}


@pytest.mark.parametrize(
    ("library", "rooms"),
    [
        ("transformers", {"workspace", "backbone", "data", "memory"}),
        ("faiss", {"memory"}),
        ("peft", {"backbone"}),
        ("wandb", {"track"}),
        ("tensorboard", {"track"}),
        ("accelerate", {"train", "build", "run"}),
        ("typer", {"cli"}),
        ("matplotlib", {"report"}),
        ("pickle", set()),
        ("dill", set()),
        ("hydra", set()),
    ],
)
def test_a_library_stays_in_its_room(library, rooms):
    users = {room(m) for m in INNER if library in {name.partition(".")[0] for name in imports(m)}}
    assert users <= rooms


def test_nothing_imports_run_but_the_command_line_and_the_demo():
    users = {room(m) for m in INNER if "quietreasoning.run" in imports(m)}
    assert users <= {"cli", "demo"}


def test_no_circles():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for other in imports(module) & set(MODULES):
                visit(other, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def loads_no_objects(call: ast.Call) -> bool:
    """`weights_only=True`, written out: tensors, numbers, texts and their containers, and no code."""
    return any(
        word.arg == "weights_only" and isinstance(word.value, ast.Constant) and word.value.value is True
        for word in call.keywords
    )


@pytest.mark.parametrize("module", MODULES)
def test_nothing_unpickles_or_runs_remote_code(module):
    tree = source(module)
    safe = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call) and loads_no_objects(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and id(node) not in safe:
            assert (node.value.id, node.attr) != ("torch", "load"), f"{module}:{node.lineno} torch.load"
        if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle", "shell"):
            refused = isinstance(node.value, ast.Constant) and node.value.value is False
            assert refused, f"{module}:{node.value.lineno} {node.arg}"
        if isinstance(node, ast.arg):
            assert node.arg != "trust_remote_code", f"{module}:{node.lineno}"


@pytest.mark.parametrize("module", MODULES)
def test_no_optional_import_in_disguise(module):
    for node in ast.walk(source(module)):
        if isinstance(node, ast.ExceptHandler) and node.type is not None:
            names = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)}
            assert not names & {"ImportError", "ModuleNotFoundError"}, f"{module}:{node.lineno}"
