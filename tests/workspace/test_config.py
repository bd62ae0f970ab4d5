"""Sizes that cannot be are refused in one line, with the cure, before anything is built."""

import pytest
from made_models import config

from quietreasoning.config import UserError
from quietreasoning.workspace import WorkspaceConfig

BAD = [
    ({"num_attention_heads": 5, "num_key_value_heads": None}, r"num_attention_heads=5 .* try 4"),
    ({"num_key_value_heads": 3}, "num_key_value_heads=3 does not divide num_attention_heads=4"),
    ({"num_attention_heads": 0}, "num_attention_heads=0"),
    ({"slots": 0}, "slots=0 must be 1 or more"),
    ({"slot_heads": 3}, "slot_heads=3 does not divide slot_width=16; try [24]"),
    ({"ssm_head_dim": 24}, "ssm_head_dim=24 does not divide ssm_inner=32; try"),
    ({"ssm_blocks": (1, 4)}, "ssm_blocks=4 lies outside the trunk: its blocks are 1 to 3"),
    ({"ssm_blocks": (0,)}, "ssm_blocks=0 lies outside"),
    ({"pkm_blocks": (9,)}, "pkm_blocks=9 lies outside"),
    ({"read_block": 3}, "read_block=3 lies outside the trunk: its blocks are 1 to 2"),
    ({"pkm_slots": 60}, "pkm_slots=60 is no square.*Use 49 or 64"),
    ({"pkm_topk": 9}, "pkm_topk=9 is more than the 8 half keys"),
    ({"pkm_key_dim": 7}, "pkm_key_dim=7 must be even"),
    ({"adapters_active": 5}, "adapters_active=5 is more than adapters=4"),
    ({"adapters": 0, "adapters_active": 0}, "adapters"),
    ({"chunk_size": 0}, "chunk_size=0 must be 1 or more"),
    ({"inner_steps": 0}, "inner_steps=0 must be 1 or more"),
    ({"mean_steps": 4.0}, "mean_steps=4.0 must lie between"),
    ({"mean_steps": 1.0}, "mean_steps"),
    ({"mean_steps": 3.0}, "mean_steps"),
    ({"ssm_conv": 1}, "ssm_conv"),
    ({"skip_threshold": 0.7}, "skip_threshold=0.7"),
    ({"head_dim": 7}, "head_dim=7 must be even"),
    ({"features": ("workspace", "pmk")}, "no module 'pmk'.*pkm"),
    ({"vocab_size": 0}, "vocab_size=0"),
]


@pytest.mark.parametrize(("changes", "says"), BAD, ids=str)
def test_bad_sizes_are_refused_with_the_cure(changes, says):
    with pytest.raises(UserError, match=says) as caught:
        config(**changes)
    assert "\n" not in str(caught.value)


def test_presets():
    assert WorkspaceConfig.preset("3b") == WorkspaceConfig()
    for name in ("tiny", "125m", "1b", "3b"):
        preset = WorkspaceConfig.preset(name, slots=3)
        assert preset.slots == 3 and preset.ssm_blocks and preset.pkm_blocks, "no module vanishes"
    with pytest.raises(UserError, match=r"no preset 'tinny'.*tiny"):
        WorkspaceConfig.preset("tinny")
    with pytest.raises(UserError, match=r"slot=3: .*slots"):
        WorkspaceConfig.preset("tiny", slot=3)


def test_it_stands_at_the_top_of_the_package():
    import quietreasoning

    assert quietreasoning.WorkspaceConfig is WorkspaceConfig
