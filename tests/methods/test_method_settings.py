"""Settings that cannot be are refused with a reason; modules without a use are not built."""

import pytest

from quietreasoning.contract import Markers
from quietreasoning.methods import METHODS

MARKERS = Markers(answer_prefix=(27,), eos=29)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("plain", {"weights": {"answer": 0}}, "greater than 0"),
        ("cot", {"fillers": 3}, "fillers"),
        ("pause", {"fillers": -1}, "greater than or equal to 0"),
        ("continuous", {"latents": 3, "per_step": 2}, "multiple of"),
        ("continuous", {"latents": 4, "per_step": 2, "lead": 1}, "multiple of"),
        ("continuous", {"latents": 2, "lead": 4, "per_step": 2}, "lead 4 must be at most latents 2"),
        ("continuous", {"weights": {"answer": 0, "step": 0}}, "nothing would be trained"),
        ("continuous", {"latents": 0, "weights": {"answer": 0}}, "nothing would be trained"),
        ("continuous", {"weights": {"match": 1}}, "match needs"),
        ("continuous", {"weights": {"match": 1, "chain": 1}, "visible_from": 1}, "match needs"),
        ("slots", {"loops": 1}, "greater than or equal to 2"),
        ("slots", {"weights": {"answer": 0, "step": 0}}, "nothing would be trained"),
        ("slots", {"blocks": 0, "weights": {"answer": 0}}, "nothing would be trained"),
    ],
)
def test_refused(name, settings, words):
    with pytest.raises(ValueError, match=words):
        METHODS[name].Config.model_validate(settings)


@pytest.mark.parametrize(
    ("name", "settings", "modules"),
    [
        ("plain", {}, set()),
        ("cot", {}, set()),
        ("pause", {}, {"filler_D"}),
        ("pause", {"fillers": 0}, set()),
        ("continuous", {}, {"feedback"}),
        ("continuous", {"latents": 0}, set()),
        ("continuous", {"target": "step"}, {"feedback", "step_decoder"}),
        ("continuous", {"target": "step", "weights": {"step": 0}}, {"feedback"}),
        ("slots", {}, {"feedback", "slot_KD"}),
        ("slots", {"blocks": 0}, set()),
    ],
)
def test_only_what_is_used_is_built(backbone, name, settings, modules):
    method = METHODS[name](backbone, METHODS[name].Config(**settings), MARKERS)
    assert {key.split(".")[0] for key in method.state_dict()} - {"backbone"} == modules
    assert method.config.name == name
