"""Recipe files: inheritance, overrides, file names, and every way they can be wrong."""

import pytest

from quietreasoning import recipe
from quietreasoning.config import UserError
from quietreasoning.recipe import RECIPES, find_recipe, load_recipe, parse_override


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_precedence_and_sources(folder):
    write(folder / "base.yaml", "seed: 1\ntrain: {steps: 10, lr: 1e-3}\nbackbone: {width: 8}")
    write(folder / "sub" / "child.yaml", "base: ../base\ntrain:\n  lr: 2e-3\n")
    resolved = load_recipe("sub/child.yaml", ["backbone.width=16"])
    assert resolved.values == {
        "seed": 1,
        "train": {"steps": 10, "lr": 2e-3},
        "backbone": {"width": 16},
    }
    assert resolved.provenance["train.lr"] == "recipe sub/child.yaml"
    assert resolved.provenance["seed"].startswith("base ") and "base.yaml" in resolved.provenance["seed"]
    assert resolved.provenance["backbone.width"] == "command line"


def test_a_circle_of_bases_names_the_chain(folder):
    write(folder / "a.yaml", "base: b")
    write(folder / "b.yaml", "base: sub/c")
    write(folder / "sub" / "c.yaml", "base: ../a.yaml")
    with pytest.raises(UserError, match=r"circle: .*a\.yaml -> .*b\.yaml -> .*c\.yaml -> .*a\.yaml"):
        load_recipe("a.yaml")


def test_of_several_bases_the_last_wins(folder):
    write(folder / "a.yaml", "seed: 1\ntrain: {steps: 1}")
    write(folder / "b.yaml", "seed: 2")
    write(folder / "c.yaml", "base: [a, b]")
    assert load_recipe("c.yaml").values == {"seed": 2, "train": {"steps": 1}}
    write(folder / "d.yaml", "base: [c, c]")  # the same base twice is no circle
    assert load_recipe("d.yaml").values == load_recipe("c.yaml").values


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("base: nowhere", "no recipe 'nowhere'"),
        ("base: nowhere.yaml", "no recipe file"),
        ("base: 3", "base must name a recipe"),
        ("base: [a, [b]]", "base must name a recipe"),
        ("- 1", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
        ("a: 1\na: 2", r"r\.yaml:2: .* stands twice"),
    ],
)
def test_bad_files(folder, text, says):
    with pytest.raises(UserError, match=says):
        load_recipe(write(folder / "r.yaml", text))


def test_bytes_that_are_no_text(folder):
    (folder / "r.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(UserError, match="cannot read"):
        load_recipe("r.yaml")


def test_an_unknown_recipe_gets_a_suggestion():
    name = next(iter(RECIPES))
    with pytest.raises(UserError, match=f"Did you mean '{name}'"):
        find_recipe(name[:-1])


def test_a_shipped_name_wins_over_a_file_of_the_same_name(folder):
    name = next(iter(RECIPES))
    (folder / name).parent.mkdir(parents=True)
    write(folder / name, "seed: 1")
    assert find_recipe(name) == RECIPES[name]


@pytest.mark.parametrize(
    ("text", "parts", "value"),
    [
        ("a.b=1e-4", ("a", "b"), 1e-4),
        ("a=no", ("a",), "no"),
        ("a=x=y", ("a",), "x=y"),
        ("a=[1, 2]", ("a",), [1, 2]),
        ("a={b: true}", ("a",), {"b": True}),
        ("a=", ("a",), None),
        ("a=''", ("a",), ""),
        ("stages.0.train.steps=5", ("stages", "0", "train", "steps"), 5),
    ],
)
def test_overrides(text, parts, value):
    assert parse_override(text) == (parts, value)


@pytest.mark.parametrize("text", ["a", "=1", "a..b=1", ".a=1", "", "a.=1"])
def test_malformed_overrides(text):
    with pytest.raises(UserError, match="Write key=value"):
        parse_override(text)


def test_an_override_that_is_bad_yaml_names_itself():
    with pytest.raises(UserError, match=r"a\.b=\[1"):
        parse_override("a.b=[1")


def test_overrides_of_stages_by_name_and_index(folder):
    write(folder / "r.yaml", "stages:\n- {name: a, train: {steps: 1}}\n- {name: b}")
    resolved = load_recipe("r.yaml", ["stages.1.train.steps=7", "stages.a.train.steps=5"])
    assert [stage["train"]["steps"] for stage in resolved.values["stages"]] == [5, 7]
    assert resolved.provenance["stages.a.train.steps"] == "command line, stage a"
    with pytest.raises(UserError, match=r"stages\.c: no such stage\. .*Choices: a, b"):
        load_recipe("r.yaml", ["stages.c.train.steps=7"])


def test_the_order_of_overrides_matters_only_for_the_same_key(folder):
    write(folder / "r.yaml", "method: {name: cot}\nstages:\n- {name: a, train: {steps: 1}}")
    one = ["method.loops=4", "method.name=slots", "stages.a.train.steps=5", "train.steps=9"]
    assert load_recipe("r.yaml", one).values == load_recipe("r.yaml", one[::-1]).values
    assert load_recipe("r.yaml", ["train.steps=1", "train.steps=2"]).values["train"] == {"steps": 2}


def test_file_names_are_meant_from_where_they_are_written(folder):
    (folder / "sub" / "model").mkdir()
    write(folder / "here.jsonl", "")
    text = "data: {path: ./rows.jsonl}\nbackbone: {path: model}\ntokenizer: {path: org/name}"
    values = load_recipe(
        write(folder / "sub" / "r.yaml", text), ["eval.path=here.jsonl", "init=org/x"]
    ).values
    assert values["data"]["path"] == str(folder / "sub" / "rows.jsonl")
    assert values["backbone"]["path"] == str(folder / "sub" / "model")
    assert values["tokenizer"]["path"] == "org/name"
    assert values["eval"]["path"] == str(folder / "here.jsonl")
    assert values["init"] == "org/x"


def test_every_shipped_recipe_says_what_it_is():
    for name in RECIPES:
        assert len(recipe.describe(name)) > 10, name
