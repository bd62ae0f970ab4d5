"""What YAML 1.1 would have read differently, and round trips."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietreasoning.config import UserError
from quietreasoning.yaml_text import dump_yaml, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("3E5", 3e5),
        (".5", 0.5),
        ("-2.5e+3", -2500.0),
        ("1_000", 1000),
        ("-7", -7),
        ("0", 0),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("1:30", "1:30"),
        ("2026-11-21", "2026-11-21"),
        ("007", "007"),
        ("0x10", "0x10"),
        ("1e", "1e"),
        ("nan-like", "nan-like"),
        ("'1e-4'", "1e-4"),
        ("[1, 2e-1, no]", [1, 0.2, "no"]),
        ("{a: {b: on}}", {"a": {"b": "on"}}),
    ],
)
def test_scalars(text, value):
    read = parse_yaml(text, "test")
    assert read == value and type(read) is type(value)


def test_infinity_and_nan_are_numbers():
    assert parse_yaml(".inf", "test") == math.inf
    assert math.isnan(parse_yaml(".nan", "test"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3", "file.yaml:3: not valid YAML: the key 'a' stands twice"),
        ("a: 1\n\tb: 2", "file.yaml:2: not valid YAML"),
        ("a: [1, 2", "file.yaml:1: not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: &x 1\nb: *x", "aliases (*x) are not used here"),
        ("a: &x [*x]", "aliases"),
        ("? [1, 2]\n: 3", "not valid YAML"),
        ("[" * 5000, "not valid YAML"),
    ],
)
def test_bad_yaml_is_one_line(text, says):
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "file.yaml")
    assert says in str(caught.value) and "\n" not in str(caught.value)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")))
    | st.sampled_from(["1e-4", "no", "007", "1_0", "null", "", "~", ".5", "true", "1:30", "=", "<<"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab.", min_size=1), inner)
)


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_what_is_written_is_read_back(value):
    assert parse_yaml(dump_yaml(value), "test") == value


@settings(max_examples=60, deadline=None)
@given(st.text())
def test_any_text_gives_a_value_or_a_user_error(text):
    try:
        parse_yaml(text, "test")
    except UserError as error:
        assert str(error).startswith("test")


def test_tuples_are_written_as_lists():
    assert parse_yaml(dump_yaml({"a": (1, (2, 3))}), "test") == {"a": [1, [2, 3]]}
