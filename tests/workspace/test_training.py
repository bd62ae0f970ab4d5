"""What training shows: noise stays noise, a shifted copy is learned, slots stay apart."""

import math

import pytest
import torch
from made_models import config

from quietreasoning.backbone import Backbone, BackboneConfig
from quietreasoning.contract import IGNORE, Batch, Markers
from quietreasoning.losses.latent import slot_health
from quietreasoning.methods.workspace import Workspace
from quietreasoning.workspace import WorkspaceForCausalLM

SMALL = {
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{
        "num_key_value_heads": 2,
        "initializer_range": 0.1,
        "ssm_blocks": (1,),
        "ssm_inner": 16,
        "pkm_blocks": (2,),
    },
    **{"slots": 4, "slot_width": 16, "adapter_fusion": False},
}


def trained(text_of, features, steps, *, vocab=16, chunk=8, weights=None, lr=5e-3, seed=0, **sizes):
    """Nats a token by step, and the method, trained on running text [rows, length] that `text_of` draws."""
    torch.manual_seed(seed)
    model = WorkspaceForCausalLM(
        config(**(SMALL | sizes), vocab_size=vocab, chunk_size=chunk, features=features)
    )
    settings = Workspace.Config(features=features, learn="all", weights=weights or {})
    method = Workspace(Backbone(model, BackboneConfig(), {}), settings, Markers((1,), 0)).train()
    values = model.model.table.values
    dense = [p for p in method.parameters() if p.requires_grad and p is not values]
    optimizer = torch.optim.AdamW(dense, lr=lr, weight_decay=0.05, fused=True)
    table = torch.optim.SparseAdam([values], lr=lr)
    generator, nats = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        ids = text_of(generator)
        nothing = torch.full((len(ids), 0), IGNORE)
        batch = Batch(
            torch.arange(len(ids)),
            ids,
            nothing[..., None],
            nothing[..., None],
            nothing,
            torch.full((len(ids),), IGNORE),
        )
        out, units = method(batch), method.units(batch)
        loss = sum(t.weight * t.total / max(units[t.unit], 1) for t in out.terms.values())
        nll, count = out.metrics["nll"]
        nats.append(float(nll.detach() / count))
        for each in (optimizer, table):
            each.zero_grad()
        loss.backward()
        for each in (optimizer, table):
            each.step()
    return torch.tensor(nats), method


ON = ("workspace", "pkm", "adapters", "ssm")


def test_a_copy_is_learned_and_noise_stays_noise():
    """Every second token repeats the one before it. The others are fresh and uniform: whoever sees no answer
    cannot go below ln V there but by chance, and what leaks is learned as fast as the copy."""
    vocab = 16

    def doubled(generator, rows=8):
        return torch.randint(vocab, (rows, 9), generator=generator).repeat_interleave(2, 1)[:, :17]

    _, method = trained(doubled, ON, 160, lr=1e-2)
    ids = doubled(torch.Generator().manual_seed(9), 64)
    with torch.no_grad():
        logits = method.eval().backbone.model(ids).logits[:, :-1]
    nats = torch.nn.functional.cross_entropy(logits.mT, ids[:, 1:], reduction="none")
    floor, copies, noise = math.log(vocab), nats[:, ::2].mean(), nats[:, 1::2].mean()
    assert (logits[:, ::2].argmax(-1) == ids[:, 1::2]).float().mean() > 0.95, (
        "the next token, not the one after"
    )
    assert copies < 0.3 and floor - 0.02 < noise < floor + 0.12, (copies, noise)


@pytest.mark.parametrize(
    ("steps", "weights"), [(400, {}), (250, {"orthogonality": 0})], ids=["default", "none"]
)
def test_slots_do_not_collapse(steps, weights):
    """400 steps with the weights that nobody set; without the term that keeps slots apart 250 make four slots
    one."""

    def text(generator):
        half = torch.randint(16, (4, 4), generator=generator)
        return torch.cat([half, half], 1)

    one = {"inner_steps": 1, "mean_steps": 1}
    nats, method = trained(text, ("workspace",), steps, weights=weights, chunk=4, lr=1e-2, seed=1, **one)
    with torch.no_grad():
        trace = method.backbone.model(text(torch.Generator().manual_seed(1)), trace=True).trace
    cosine, rank = (figure_R.mean() for figure_R in slot_health(trace.slots[-1]))
    if weights:
        assert cosine > 0.9 and rank < 1.5, (cosine, rank)
    else:
        assert nats[-50:].mean() < nats[:50].mean() - 0.3, (
            "the task must be learned for this to mean anything"
        )
        assert cosine < 0.3 and rank > 3.5, (cosine, rank)
