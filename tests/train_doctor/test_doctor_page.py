"""The pages say what the code does: the doctor's tables, and every code line of a method's page."""

import importlib.util
import re
from pathlib import Path

import pytest

import quietreasoning
from quietreasoning.train.doctor import CHECKS

PACKAGE = Path(quietreasoning.__file__).parent
DOCS = Path(__file__).parents[2] / "docs"
ROW = re.compile(r"^\|.*\| `([\w/]+\.py)`: `(.+?)` \|$", re.M)


def test_every_check_has_its_row():
    rows = re.findall(r"^\| `([a-z-]+)` \|", (DOCS / "doctor.md").read_text(encoding="utf-8"), re.M)
    assert rows == list(CHECKS)


def test_the_list_of_planted_faults_is_the_tests_list():
    spec = importlib.util.spec_from_file_location(
        "planted", Path(__file__).with_name("test_planted_faults.py")
    )
    planted = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(planted)
    text = (DOCS / "doctor.md").read_text(encoding="utf-8")
    rows = {
        name: set(re.findall("`([a-z-]+)`", found))
        for name, found in re.findall(r"^\| `(\w+)`: .*? \| (.*) \|$", text, re.M)
    }
    assert rows == {fault.__name__: found for fault, found in planted.FAULTS.items()}


@pytest.mark.parametrize("page", sorted((DOCS / "methods").glob("*.md")), ids=lambda page: page.stem)
def test_code_quoted_on_a_method_page_exists(page):
    quoted = ROW.findall(page.read_text(encoding="utf-8"))
    assert quoted, "no equation is tied to code"
    for file, code in quoted:
        source = " ".join((PACKAGE / file).read_text(encoding="utf-8").split())
        assert code.replace("\\|", "|") in source, f"{file} has no `{code}`"
