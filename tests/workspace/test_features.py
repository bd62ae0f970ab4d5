"""What is on learns, what is off is frozen, silent and free; what the router decides is what happens."""

import pytest
import torch
from made_models import ALL, CHUNK, awake, close, config, fresh, ids_of
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

SETS = [
    (),
    ("workspace",),
    ("ssm",),
    ("pkm",),
    ("adapters",),
    ("workspace", "ssm"),
    ("workspace", "pkm", "adapters"),
]
LEARNED = (*SETS, ("workspace", "pkm", "adapters", "ssm"))
IDS = ids_of(4, 3 * CHUNK)


def parts(model):
    """The modules of each feature that compute something."""
    body = model.model
    return {
        "workspace": [body.workspace, *body.readers.values(), body.router],
        "pkm": list(body.memory.values()),
        "adapters": [bank for block in body.blocks for bank in block.adapters.children()],
        "ssm": list(body.experts.values()),
    }


def called(model, ids=IDS):
    """Features whose modules ran in a forward, by hooks on every one of them."""
    seen, hooks = set(), []
    for feature, modules in parts(model).items():
        for module in modules:
            for inner in module.modules():
                hooks.append(inner.register_forward_hook(lambda *_, f=feature: seen.add(f)))
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    return seen


def flops(model, ids=IDS):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(ids)
    return counter.get_total_flops()


@pytest.mark.parametrize("features", SETS, ids=str)
def test_modules_that_are_off_are_never_called(features):
    model = awake()
    model.model.set_features(features)
    assert called(model) == set(features)


def test_the_trunk_costs_what_a_llama_costs():
    c = config()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    llama = LlamaForCausalLM(
        LlamaConfig(**{n: getattr(c, n) for n in (*names, "num_key_value_heads")})
    ).eval()
    model = awake(features=())
    assert flops(model) == flops(llama)
    costs = [flops(awake(features=f)) for f in (("ssm",), ("pkm",), ("adapters",), ("workspace",))]
    assert min(costs) > flops(model)


def set_head(model, part, bias):
    """Let one output of the router say the same for every chunk."""
    with torch.no_grad():
        model.model.router.heads[part].weight.zero_()
        model.model.router.heads[part].bias.copy_(torch.as_tensor(bias, dtype=torch.float32))


def test_a_gate_that_says_skip_computes_nothing_and_leaves_the_state_alone():
    model = awake(features=("workspace", "ssm", "pkm"))
    for part in ("ssm", "pkm"):
        set_head(model, part, -20.0)
    assert called(model) == {"workspace"}
    with torch.no_grad():
        out = model(IDS)
    assert all(not t.any() for state in out.past_key_values.state.ssm for t in state)
    model.model.set_features(("workspace",))
    with torch.no_grad():
        close(out.logits, model(IDS).logits)
    one = awake(features=("workspace", "ssm", "pkm"))
    set_head(one, "ssm", [20.0, -20.0])
    with torch.no_grad():
        first, second = one(IDS).past_key_values.state.ssm
    assert first.h_RHPN.any() and not second.h_RHPN.any(), "each gate steers its own expert"


@pytest.mark.parametrize(
    ("part", "one", "other"),
    [
        (
            "ssm",
            [
                20.0,
                -20.0,
            ],
            [-20.0, -20.0],
        ),
        ("ssm", [-20.0, 20.0], [-20.0, -20.0]),
        ("ssm", [0.0, 0.0], [2.0, 2.0]),
        ("pkm", 20.0, -20.0),
        ("pkm", 0.0, 2.0),
        ("temperature", 20.0, -20.0),
        ("adapters", [9.0, 8.0, 0.0, 0.0], [0.0, 0.0, 9.0, 8.0]),
        ("adapters", [9.0, 8.0, 0.0, 0.0], [8.0, 9.0, 0.0, 0.0]),
    ],
)
def test_every_output_of_the_router_reaches_the_logits(part, one, other):
    model, logits, plans = awake(), [], []
    if part == "temperature":
        set_head(model, "pkm", 20.0)
    for bias in (one, other):
        set_head(model, part, bias)
        with torch.no_grad():
            out = model(IDS, trace=True)
        logits.append(out.logits)
        plans.append(out.trace.plans[-1])
    assert (logits[0] - logits[1]).abs().amax(-1).min() > 1e-5, "every token hears it"
    field = {"ssm": "ssm_RG", "pkm": "pkm_R", "temperature": "temperature_R"}.get(part)
    if field:
        assert not torch.equal(getattr(plans[0], field), getattr(plans[1], field))


def test_plans_of_the_stores_outside_are_kept_for_who_obeys_them():
    model = awake()
    set_head(model, "episodic", [0.0, 0.0, 9.0, 0.0, 0.0])
    set_head(model, "knn", 0.0)
    with torch.no_grad():
        plan = model(IDS, trace=True).trace.plans[-1]
    assert plan.episodic_R.tolist() == [2] * 4
    close(plan.knn_R, torch.full((4,), 0.25))


# slots


def test_slots_change_later_logits_and_only_through_the_readers():
    model = awake(features=("workspace",))
    with torch.no_grad():
        before = model(IDS).logits
        model.model.workspace.initial.normal_(std=3.0)
        after = model(IDS).logits
        assert (before - after).abs().amax(-1).min() > 1e-4
        for reader in model.model.readers.values():
            reader.gate.zero_()
        silent = model(IDS)
        model.model.workspace.initial.normal_(std=3.0)
        close(model(IDS).logits, silent.logits, 0.0)
        model.model.set_features(())
        close(model(IDS).logits, silent.logits)


def test_the_head_reads_the_stream_alone():
    """The last reader stands before the last block; a slot it does not read never reaches the head."""
    model = awake()
    with torch.no_grad():
        hidden = model.model(IDS).last_hidden_state
        close(model(IDS).logits, hidden @ model.lm_head.weight.T)
        model.model.readers[str(model.config.num_hidden_layers)].gate.zero_()
        states = [model.model(IDS, output_hidden_states=True).hidden_states]
        model.model.router.norm.weight.zero_()  # the plan no longer knows the slots
        for reader in model.model.readers.values():
            reader.gate.zero_()
        one = model(IDS).logits
        model.model.workspace.initial.normal_(std=3.0)
        assert torch.equal(model(IDS).logits, one)
    assert len(states[0]) == model.config.num_hidden_layers + 1


def test_permuted_first_slots_change_nothing_but_their_order():
    model = awake()
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        before = model(IDS, trace=True)
        model.model.workspace.initial.copy_(model.model.workspace.initial[order])
        after = model(IDS, trace=True)
    close(after.logits, before.logits)
    close(after.trace.slots[-1], before.trace.slots[-1][:, order])


# gradients


def heard(p):
    grad = p.grad.coalesce().values() if p.grad is not None and p.grad.is_sparse else p.grad
    return grad is not None and bool(grad.any())


@pytest.mark.parametrize("features", LEARNED, ids=str)
def test_what_is_on_learns_within_three_steps_and_what_is_off_keeps_every_bit(features):
    model = fresh(features=ALL).train()
    model.model.set_features(features)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    values = model.model.table.values
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p is not values], lr=1e-2, weight_decay=0.1
    )
    sparse, reached = torch.optim.SparseAdam([values], lr=1e-2), set()
    for step in range(4):
        loss = model(ids_of(4, 3 * CHUNK, seed=step), labels=ids_of(4, 3 * CHUNK, seed=step)).loss
        optimizer.zero_grad()
        sparse.zero_grad()
        loss.backward()
        reached |= {name for name, p in model.named_parameters() if heard(p)}
        optimizer.step()
        sparse.step()
    assert reached == set(trained), sorted(reached ^ set(trained))[:5]
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (name not in trained), name
