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


def faults_of(file: str) -> dict:
    spec = importlib.util.spec_from_file_location("planted", Path(__file__).with_name(file))
    planted = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(planted)
    return planted.FAULTS


def test_the_lists_of_planted_faults_are_the_tests_lists():
    text = (DOCS / "doctor.md").read_text(encoding="utf-8")
    rows = {
        name: set(re.findall("`([a-z-]+)`", found))
        for name, found in re.findall(r"^\| `(\w+)`: .*? \| (.*) \|$", text, re.M)
    }
    students = {fault: {check} for fault, (check, _) in faults_of("test_planted_distill.py").items()}
    both = students | faults_of("test_planted_faults.py")
    assert rows == {fault.__name__: found for fault, found in both.items()}


@pytest.mark.parametrize("page", sorted((DOCS / "methods").glob("*.md")), ids=lambda page: page.stem)
def test_code_quoted_on_a_method_page_exists(page):
    quoted = ROW.findall(page.read_text(encoding="utf-8"))
    assert quoted, "no equation is tied to code"
    for file, code in quoted:
        source = " ".join((PACKAGE / file).read_text(encoding="utf-8").split())
        assert code.replace("\\|", "|") in source, f"{file} has no `{code}`"
