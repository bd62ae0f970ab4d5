"""Lambda sees what was found: the figures it reads, what it learns of them, and whose distances they are."""

import math

import numpy as np
import pytest
import torch

from quietreasoning.indices.knn import make_knn
from quietreasoning.memory.knn_index import KNNIndex, own_keys, search_for_others
from quietreasoning.memory.knn_lm import knn_log_probs, mix
from quietreasoning.memory.knn_weight import Evidence, Lambda

WIDTH, VOCAB = 8, 12


def evidence_of(query, distances, tokens):
    return Evidence(query, distances, tokens, knn_log_probs(distances, tokens, 2.0, VOCAB))


def by_hand(query, distances, tokens):
    """The four figures of one row, in plain Python."""
    size = sum(float(x) ** 2 for x in query)
    found = sorted((float(d) / size, int(t)) for d, t in zip(distances, tokens, strict=True) if t >= 0)
    other = [d for d, t in found if t != found[0][1]]
    e = 1e-4
    gap = math.log((other or [found[-1][0]])[0] + e) - math.log(found[0][0] + e)
    heavy = {t: sum(math.exp(-d * size / 2.0) for d, own in found if own == t) for _, t in found}
    return [math.log(found[0][0] + e), gap, max(heavy.values()) / sum(heavy.values()), math.log(len(heavy))]


def test_the_figures_are_those_of_a_naive_twin():
    draw = torch.Generator().manual_seed(0)
    query, distances = torch.randn(40, WIDTH, generator=draw), 9 * torch.rand(40, 6, generator=draw)
    tokens = torch.randint(0, 4, (40, 6), generator=draw).masked_fill(
        torch.rand(40, 6, generator=draw) < 0.4, -1
    )
    tokens[0], tokens[1], distances[2, 0] = -1, 7, 0.0
    tokens[3] = torch.tensor([5, -1, -1, -1, -1, -1])
    evidence = evidence_of(query, distances, tokens)
    some = evidence.some_B
    assert not some[0] and some[1:].sum() > 35
    want = torch.tensor(
        [by_hand(*row) for row in zip(query[some], distances[some], tokens[some], strict=True)]
    )
    torch.testing.assert_close(evidence.features_B4[some], want, rtol=1e-4, atol=1e-5)
    assert evidence.features_B4.isfinite().all()
    order = torch.randperm(6, generator=draw)
    turned = evidence_of(3 * query, 9 * distances[:, order], tokens[:, order])
    assert torch.allclose(turned.features_B4[:, [0, 1, 3]], evidence.features_B4[:, [0, 1, 3]], atol=1e-5)


def test_lambda_begins_at_a_quarter_and_never_passes_one_half():
    torch.manual_seed(0)
    evidence = evidence_of(torch.randn(50, WIDTH), 9 * torch.rand(50, 6), torch.randint(-1, 4, (50, 6)))
    part = Lambda(WIDTH)
    torch.testing.assert_close(part(evidence), torch.full((50,), 0.25))
    for weights in part.parameters():
        weights.data.normal_(std=99)
    assert part(evidence).ge(0).all() and part(evidence).le(0.5).all()
    log_lm = torch.randn(50, VOCAB).log_softmax(-1)
    mix(log_lm, evidence.log_knn_BV, part(evidence)[:, None])[:, 7].sum().backward()
    assert all(weights.grad.isfinite().all() for weights in part.parameters())


def test_far_neighbours_get_less_weight_after_some_steps():
    """Near neighbours are right and far ones are not, and the query does not tell which is which."""
    torch.manual_seed(0)
    part = Lambda(WIDTH)
    optimizer = torch.optim.Adam(part.parameters(), lr=0.03)

    def drawn(rows=64):
        query, right = torch.randn(rows, WIDTH), torch.randint(0, VOCAB, (rows,))
        near = torch.rand(rows) < 0.5
        tokens = torch.where(near, right, (right + 1) % VOCAB)[:, None].repeat(1, 4)
        scale = torch.where(near, 0.05, 1.5) * query.pow(2).sum(1)
        evidence = evidence_of(query, scale[:, None] * (1 + torch.rand(rows, 4)), tokens)
        return evidence, right[:, None], near

    for _ in range(40):
        evidence, right, _ = drawn()
        log_lm = torch.full((len(right), VOCAB), -math.log(VOCAB))
        weight = part(evidence)[:, None]
        loss = -mix(log_lm.gather(1, right), evidence.log_knn_BV.gather(1, right), weight).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    evidence, _, near = drawn()
    weight = part(evidence).detach()
    assert weight[near].mean() > 0.4 and weight[~near].mean() < 0.1


@pytest.mark.parametrize("factory", ["Flat", "SQ4", "IVF2,Flat"])
def test_what_another_finds_keeps_its_distance_to_the_row(factory, tmp_path):
    draw = np.random.default_rng(0)
    np.save(tmp_path / "keys.npy", draw.normal(size=(90, WIDTH)).astype(np.float32))
    np.save(tmp_path / "values.npy", np.arange(90) % VOCAB)
    make_knn(tmp_path / "keys.npy", tmp_path / "values.npy", tmp_path / "i", WIDTH, factory)
    index = KNNIndex.open(tmp_path / "i")
    queries, asked = draw.normal(size=(2, 5, WIDTH)).astype(np.float32)
    for keys in (None, own_keys(index, tmp_path / "keys.npy", "")):
        distances, ids = search_for_others(index, keys, queries, asked, 7, 3)
        if keys is None:
            held = np.stack([index.search(asked, 90)[1]])  # every key has a place
            vectors = index.index.search_and_reconstruct(asked, 90)[2]
            spots = [
                {int(i): v for i, v in zip(*row, strict=True)} for row in zip(held[0], vectors, strict=True)
            ]
            chosen = index.search(asked, 7)[1]
        else:
            spots = [dict(enumerate(keys.take(np.arange(90))))] * 5
            chosen = [sorted(range(90), key=lambda i, a=a: ((spots[0][i] - a) ** 2).sum())[:7] for a in asked]
        for row in range(5):
            assert set(ids[row]) == {int(i) for i in chosen[row]}
            want = [((spots[row][int(i)] - queries[row]) ** 2).sum() for i in ids[row]]
            np.testing.assert_allclose(distances[row], want, rtol=1e-4)
            assert (np.diff(distances[row]) >= 0).all()
