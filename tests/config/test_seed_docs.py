"""The page lists every old key, as the tables have it."""

from pathlib import Path

from quietreasoning.seed_absent import ABSENT, FIXED
from quietreasoning.seed_keys import SPELLINGS, TABLE
from quietreasoning.training._shim import ENVIRONMENT

PAGE = Path(__file__).parents[2] / "docs" / "distillation.md"


def code(names) -> str:
    return ", ".join(f"`{name}`" for name in names)


def rows() -> list[str]:
    """Lines of the page's tables of old keys."""
    found = [f"| {code(line.old)} | `{line.new}` | {line.why} |".replace("|  |", "| |") for line in TABLE]
    found += [f"| `{key}` | {code(map(repr, allowed))} | {why} |" for key, (allowed, why) in FIXED.items()]
    found += [f"| {code(one.keys)} | {one.what} | {one.cure} |" for one in ABSENT]
    found += [f"| `{old}` | `{new}` |" for old, new in SPELLINGS.items()]
    found += [f"| `{name}` | {cure} |" for name, cure in ENVIRONMENT.items()]
    return found


def test_the_page_has_every_line_of_the_tables():
    page = PAGE.read_text(encoding="utf-8").splitlines()
    assert [line for line in rows() if line not in page] == []
