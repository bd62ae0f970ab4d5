"""README and docs: every method has its page, every command parses, every recipe named exists."""

import re
import shlex
from pathlib import Path

import pytest

from quietreasoning.methods import METHODS
from quietreasoning.recipe import RECIPES

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```[a-z]*\n(.*?)^```", re.S | re.M)


def commands() -> list[tuple[str, str]]:
    """(page, line) of each `quiet ...` line in a fenced block."""
    found = []
    for page in PAGES:
        for block in FENCE.findall(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                for part in line.partition("#")[0].split(" ; "):
                    if part.strip().removeprefix("$ ").startswith("quiet "):
                        found.append((page.name, part.strip().removeprefix("$ ")))
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_in_the_docs_parse(page, line):
    import typer

    from quietreasoning.cli.main import app

    words = shlex.split(line)[1:]
    root = typer.main.get_command(app)
    if words[0].startswith("-"):
        return
    assert words[0] in root.commands, f"{page}: no command {words[0]}"
    command, words = root.commands[words[0]], list(words)
    if hasattr(command, "commands"):
        words.pop(0)
        assert words[0] in command.commands, f"{page}: no command {words[0]}"
        command = command.commands[words[0]]
    arguments = [word for word in words[1:] if word not in ("...", "[...]")]
    context = command.make_context(words[0], arguments, resilient_parsing=False)
    recipe = context.params.get("recipe")
    if recipe and "/" in recipe and not recipe.endswith(".yaml") and not recipe.startswith("."):
        assert recipe in RECIPES, f"{page}: no recipe {recipe}"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_page(name):
    assert (ROOT / "docs" / "methods" / f"{name}.md").is_file()


def test_links_between_pages_lead_somewhere():
    dead = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not target.startswith("mailto:"):
                if not (page.parent / target).exists():
                    dead.append(f"{page.name}: {target}")
    assert not dead, dead
