"""Reading events: a naive twin, place by place; what is not real has no say."""

import math

import torch
from torch.nn.functional import rms_norm

from quietreasoning.nn.event_reader import EventReader, log_shares

B, T, S, D, H = 2, 3, 5, 8, 2


def test_it_equals_a_loop_over_places_and_hears_nothing_that_is_not_real():
    torch.manual_seed(0)
    reader = EventReader(D, H).requires_grad_(False)
    for p in reader.parameters():
        p.add_(0.5 * torch.randn_like(p))
    hidden, before, token = torch.randn(B, T, D), torch.randn(B, S, D), torch.randn(B, S, D)
    score, real = torch.randn(B, S), torch.ones(B, S, dtype=torch.bool)
    real[0, 3:] = False
    real[1] = False
    before[0, 4], token[0, 4] = math.inf, 1e9
    fused = reader(hidden, before, token, score, real)
    assert torch.equal(fused[1], hidden[1]), "nothing was found for this row"
    unit = [rms_norm(x, (D,), eps=1e-6) for x in (hidden, before, token)]
    query, key, value = (
        layer(x) for layer, x in zip((reader.query, reader.key, reader.value), unit, strict=True)
    )
    for t in range(T):
        read = torch.zeros(D)
        for h in range(H):
            part = slice(h * D // H, (h + 1) * D // H)
            q = query[0, t, part]
            logits = [float(q @ key[0, s, part]) / math.sqrt(D / H) + float(score[0, s]) for s in range(3)]
            logits.append(float(q @ reader.null_HC[h]) / math.sqrt(D / H))
            shares = torch.tensor(logits).softmax(0)
            read[part] = sum(shares[s] * value[0, s, part] for s in range(3))
        torch.testing.assert_close(fused[0, t], hidden[0, t] + torch.tanh(reader.gate) * reader.out(read))


def test_shares_add_up_over_what_is_real():
    torch.manual_seed(0)
    real = torch.tensor([[True, True, False], [False, False, False]])
    shares = log_shares(3.0, torch.randn(2, D), torch.randn(2, 3, D), real).exp()
    torch.testing.assert_close(shares.sum(1), torch.tensor([1.0, 0.0]))
    assert not shares[~real].any()
