"""What the parts weigh and compute: the 3b model's bars, and counts that agree with a model that runs."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from quietreasoning.workspace import WorkspaceConfig, WorkspaceForCausalLM, sizes

TINY = {
    **{"num_hidden_layers": 2, "read_block": 1, "ssm_blocks": (1,), "pkm_blocks": (2,)},
    **{"chunk_size": 8, "max_position_embeddings": 64},
}


def tiny(**changes):
    return WorkspaceConfig.preset("tiny", **{**TINY, **changes})


@pytest.fixture(scope="module")
def large():
    return sizes.on_meta(WorkspaceConfig.preset("3b"))


def test_parameters_of_the_3b_model(large):
    parts = sizes.parameters(large)
    dense = sum(parts[name] for name in sizes.DENSE)
    assert dense == pytest.approx(2.03e9, rel=0.01)
    # embedding and head, then 28 blocks of 4 d^2 + 3 d m and two norms, then the last norm
    d, m = 2304, 6144
    assert dense == 2 * 50_000 * d + 28 * (4 * d * d + 3 * d * m + 2 * d) + d
    assert parts["product-key values"] == 4_000_000 * 256 == pytest.approx(1.02e9, rel=0.01)
    assert 3.0e9 <= sum(parts.values()) <= 3.4e9
    assert min(parts.values()) > 0


def test_the_3b_model_computes_little_more_than_its_trunk(large):
    found = sizes.flops(large, 8192)
    assert found.times_dense() <= 1.3
    assert found.times_dense(large.config.mean_steps) < found.times_dense()
    assert found.times_dense(all_pairs=True) <= 1.3
    # 2 a weight; attention reads half the pairs of tokens, and the rest of each one's own chunk
    d, seen = 2304, (8192 + 256) / 2
    weights = sum(sizes.parameters(large)[name] for name in sizes.DENSE) - 50_000 * d - 28 * 2 * d - d
    assert found.dense == pytest.approx(2 * weights + 28 * 4 * d * seen, rel=1e-9)


@pytest.mark.parametrize(
    "changes", [{}, {"tie_word_embeddings": True}, {"pkm_int8": True}, {"adapter_fusion": True}]
)
def test_parts_are_all_there_is(changes):
    model = sizes.on_meta(tiny(**changes))
    values = model.model.table.values_int8.numel() if model.config.pkm_int8 else 0
    assert sum(sizes.parameters(model).values()) == sum(p.numel() for p in model.parameters()) + values


@pytest.mark.parametrize("features", [(), sizes.EVERYTHING])
def test_counts_are_those_of_a_model_that_runs(features):
    """Three columns stand for all, and the meta device for a real forward pass of a fresh model."""
    model, tokens = sizes.on_meta(tiny()), 32
    columns = sizes.column_flops(model, features, tokens, 8)
    assert len(columns) == 4 and sizes.sampled_flops(model, features, tokens) * tokens == sum(columns)
    real = WorkspaceForCausalLM(tiny(features=features)).eval()
    if "workspace" not in features:  # without, a model reads in one chunk
        columns = sizes.column_flops(model, features, tokens, None)
    ids = torch.randint(512, (1, tokens), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        real(ids, trace=True, use_cache=False)
    reads = sizes.read_flops(real.model, tokens)
    assert (reads > 0) == ("pkm" in features)
    # the block after the read block takes all chunks in one attention, masked pairs of tokens included
    pairs = tokens * tokens - 8 * (8 + 16 + 24 + 32) if "workspace" in features else 0
    assert counter.get_total_flops() + reads == sum(columns) + 4 * model.config.hidden_size * pairs


def test_skipped_inner_steps_are_taken_off():
    model = sizes.on_meta(tiny())
    found, tokens = sizes.flops(model, 24), 24
    two = tiny(inner_steps=2)
    assert found.at(2.0) * tokens == pytest.approx(
        sizes.flops(sizes.on_meta(two), tokens).everything * tokens
    )
    assert model.config.features == sizes.EVERYTHING  # counting leaves the model as it was


def test_lengths_that_fill_no_chunk_are_refused():
    with pytest.raises(ValueError, match="multiple of chunk_size=8"):
        sizes.flops(sizes.on_meta(tiny()), 100)


def test_the_tables_name_every_part():
    text = sizes.describe(tiny(), 24)
    for word in (*sizes.PARTS, *sizes.EVERYTHING, "total", "x dense", "inner steps"):
        assert word in text
