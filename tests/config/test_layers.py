"""Merging, stages, sources and differences, on plain values."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietreasoning.config import UserError
from quietreasoning.layers import Resolved, diff, expand, flatten, label, lay, resolve_stages


def over(*layers):
    tree = {}
    for number, layer in enumerate(layers):
        tree = lay(tree, label(layer, f"layer {number}"))
    return Resolved(tree)


TREES = st.recursive(
    st.integers() | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3),
    max_leaves=8,
)
LAYERS = st.dictionaries(st.sampled_from(["seed", "optim", "train"]), TREES, max_size=3)


@settings(max_examples=40, deadline=None)
@given(LAYERS)
def test_a_layer_over_itself_or_over_nothing_is_itself(layer):
    assert over(layer).values == over(layer, layer).values == over({}, layer, {}).values == layer


@settings(max_examples=40, deadline=None)
@given(LAYERS, LAYERS, LAYERS)
def test_a_merged_recipe_is_a_recipe(a, b, c):
    assert over(over(a, b).values, c).values == over(a, b, c).values


@settings(max_examples=40, deadline=None)
@given(LAYERS, LAYERS)
def test_every_value_has_the_source_of_the_layer_that_wrote_it(a, b):
    both = over(a, b)
    values = flatten(both.values) if both.values else {}
    assert set(values) == set(both.provenance)
    for key, value in values.items():
        source = both.provenance[key]
        assert flatten({"layer 0": a, "layer 1": b}[source])[key] == value


def test_a_new_method_name_starts_afresh_and_the_same_name_does_not():
    below = {"method": {"name": "cot", "weights": {"answer": 2}}}
    assert over(below, {"method": {"name": "cot", "x": 1}}).values["method"]["weights"] == {"answer": 2}
    assert over(below, {"method": {"name": "slots", "loops": 4}}).values["method"] == {
        "name": "slots",
        "loops": 4,
    }


def test_a_new_task_drops_the_options_of_the_old_one_only():
    below = {"data": {"task": "pointer", "batch": 8, "options": {"hops": 4}}}
    assert over(below, {"data": {"task": "words"}}).values["data"] == {"task": "words", "batch": 8}
    assert over(below, {"data": {"task": "pointer"}}).values == below


def test_null_replaces_a_mapping_and_an_empty_mapping_changes_nothing():
    below = {"backbone": {"scratch": {"width": 8}}}
    assert over(below, {"backbone": {"scratch": None}}).values == {"backbone": {"scratch": None}}
    assert over(below, {"backbone": {"scratch": {}}}).values == below


def test_lists_replace():
    assert over({"eval": {"tasks": [1, 2]}}, {"eval": {"tasks": [3]}}).values["eval"]["tasks"] == [3]


def test_no_stages_is_one_named_main():
    values = {"seed": 1, "method": {"name": "plain"}, "train": {"steps": 5}}
    assert resolve_stages(values) == [{"name": "main", "method": {"name": "plain"}, "train": {"steps": 5}}]


def test_stages_are_cumulative_and_a_method_restarts_when_its_name_changes():
    stages = resolve_stages(
        {
            "method": {"name": "cot", "weights": {"answer": 2.0}},
            "optim": {"lr": 1.0},
            "train": {"steps": 100, "clip": 1.0},
            "stages": [
                {"name": "chain", "train": {"steps": 10}},
                {"name": "quiet", "method": {"name": "slots", "loops": 4}, "optim": {"lr": 0.5}},
                {"name": "more", "method": {"slots": 6}},
                {"name": "back", "method": {"name": "cot"}},
            ],
        }
    )
    assert [stage["name"] for stage in stages] == ["chain", "quiet", "more", "back"]
    assert [stage["method"] for stage in stages] == [
        {"name": "cot", "weights": {"answer": 2.0}},
        {"name": "slots", "loops": 4},
        {"name": "slots", "loops": 4, "slots": 6},
        {"name": "cot"},
    ]
    assert [stage["optim"]["lr"] for stage in stages] == [1.0, 0.5, 0.5, 0.5]
    assert all(stage["train"] == {"steps": 10, "clip": 1.0} for stage in stages)


def test_nothing_switches_itself_on():
    """A stage holds no key that neither it, nor an earlier stage, nor the top level wrote."""
    stages = resolve_stages({"train": {"a": 1}, "stages": [{"name": "x"}, {"name": "y", "optim": {"b": 2}}]})
    assert stages == [
        {"name": "x", "train": {"a": 1}},
        {"name": "y", "train": {"a": 1}, "optim": {"b": 2}},
    ]


TWO_STAGES = {
    "train": {"steps": 100},
    "stages": [
        {"name": "chain", "method": {"name": "cot"}, "train": {"steps": 50}},
        {"name": "quiet", "method": {"name": "slots", "loops": 4}, "train": {"steps": 70}},
    ],
}


def test_the_top_level_of_a_higher_layer_holds_in_every_stage():
    stages = expand(over(TWO_STAGES, {"train": {"steps": 3}})).values["stages"]
    assert [stage["train"]["steps"] for stage in stages] == [3, 3]
    assert stages[1]["method"] == {"name": "slots", "loops": 4}


def test_a_method_named_above_takes_every_stage():
    stages = expand(over(TWO_STAGES, {"method": {"name": "plain"}})).values["stages"]
    assert [stage["method"] for stage in stages] == [{"name": "plain"}] * 2


def test_a_mapping_patches_stages_by_name_or_index_and_a_list_replaces_them():
    patched = over(TWO_STAGES, {"stages": {"quiet": {"method": {"loops": 6}}, "0": {"train": {"steps": 9}}}})
    assert patched.values["stages"][1]["method"] == {"name": "slots", "loops": 6}
    assert patched.values["stages"][0]["train"] == {"steps": 9}
    assert patched.provenance["stages.quiet.method.loops"] == "layer 1, stage quiet"
    replaced = over(TWO_STAGES, {"stages": [{"name": "only"}]})
    assert [stage["name"] for stage in replaced.values["stages"]] == ["only"]


def test_a_recipe_without_stages_can_be_patched_as_main():
    patched = over({"train": {"steps": 5}}, {"stages": {"main": {"train": {"steps": 6}}}})
    assert expand(patched).values["stages"] == [{"name": "main", "train": {"steps": 6}}]


def test_sources_follow_values_into_the_stages():
    expanded = expand(over(TWO_STAGES, {"optim": {"lr": 1}}))
    assert expanded.provenance["stages.chain.train.steps"] == "layer 0, stage chain"
    assert expanded.provenance["stages.quiet.optim.lr"] == "layer 1"
    assert set(expanded.values) == {"stages"}


def test_expanding_twice_is_expanding_once():
    once = expand(over(TWO_STAGES)).values
    assert expand(Resolved(label(once, "again"))).values == once


def test_a_command_line_setting_that_no_stage_uses_is_refused():
    tree = lay(label(TWO_STAGES, "recipe"), label({"method": {"slots": 3}}, "command line"))
    for stage in tree["stages"].values():
        stage["method"]["name"] = label({"n": "other"}, "recipe")["n"]
    tree["method"]["name"] = label({"n": "cot"}, "recipe")["n"]
    with pytest.raises(UserError, match=r"method\.slots: has no effect.*stages\.quiet\.method\.slots"):
        expand(Resolved(tree))


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        (5, "must be a list of stages"),
        ([5], "a stage is a mapping"),
        ([{"name": "a"}, {"name": "a"}], "another stage has this name"),
        ([{"name": "3x"}], "begin with a letter"),
        ([{"name": "a.b"}], "begin with a letter"),
        ({"nope": {"train": {"steps": 1}}}, "no such stage"),
        ({"main": 3}, "a stage is a mapping"),
    ],
)
def test_malformed_stages_are_refused(stages, says):
    with pytest.raises(UserError, match=says):
        expand(over({"train": {"steps": 1}}, {"stages": stages}))


def test_unnamed_stages_are_numbered():
    assert [stage["name"] for stage in resolve_stages({"stages": [{}, {"name": "b"}, {}]})] == [
        "stage1",
        "b",
        "stage3",
    ]


def test_diff_names_what_changed_came_and_went():
    old = {"a": {"b": 1, "gone": 2}, "stages": [{"name": "s", "x": 1}], "t": [1, 2]}
    new = {"a": {"b": 5, "new": None}, "stages": [{"name": "s", "x": 2}], "t": (1, 2)}
    assert diff(old, new) == [
        "a.b: 1 -> 5",
        "a.gone: 2 -> absent",
        "stages.s.x: 1 -> 2",
        "a.new: absent -> None",
    ]
    assert diff(old, old) == []
    assert diff({"a": 1}, {"a": True}) != []
