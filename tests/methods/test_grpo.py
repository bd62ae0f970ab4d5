"""GRPO: the gradient is the policy's, the reference is held, what is drawn is scored, a reward is learned."""

import itertools
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from quietreasoning.backbone import Backbone, BackboneConfig, ScratchConfig, load_backbone, role_of
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Batch, Markers, Role
from quietreasoning.losses.policy import clipped_objective, group_advantages
from quietreasoning.methods import METHODS
from quietreasoning.methods.grpo import condition, draw, exactly, log_probs, uniforms
from quietreasoning.methods.grpo_levels import LEVELS, Levels
from quietreasoning.optim.settings import OptimConfig
from quietreasoning.train.doctor import examine
from quietreasoning.train.loop import train
from quietreasoning.train.settings import TrainConfig
from quietreasoning.train.snapshot import load_state, load_weights, save_state
from quietreasoning.train.state import TrainState

VOCAB = 6
MARKERS = Markers(answer_prefix=(4,), eos=5)
KINDS = {"continuous": {"latents": 2}, "slots": {"blocks": 2, "loops": 2}, "pause": {"fillers": 2}}
PROMPTS = ([0, 1, 2, 3], [3, 1], [2, 2, 0])
ANSWERS = ([2, 5], [5], [1, 5])


def tiny(*, tie=False, layers=1, seed=0, dtype="float32"):
    torch.manual_seed(seed)
    shape = ScratchConfig(layers=layers, width=16, heads=2, mlp=16, context=64, init_std=0.4, tie=tie)
    return load_backbone(BackboneConfig(scratch=shape, dtype=dtype), VOCAB)


def make(kind="continuous", backbone=None, **reward):
    reward = {"group": 16, "max_answer_tokens": 2, "kl": 0.0, "least_visits": 1.0} | reward
    backbone = backbone or tiny()
    torch.manual_seed(1)
    method = METHODS[kind](backbone, METHODS[kind].Config(**KINDS[kind], reward=reward), MARKERS)
    with torch.no_grad():
        for name, p in method.named_parameters():
            if name.startswith("feedback.down"):
                p.normal_(std=0.3)  # it starts at zero, which would hide what is behind it
    return method.train()


def pad(rows, left=False):
    width = max(map(len, rows))
    return torch.tensor(
        [[IGNORE] * (width - len(r)) + r if left else r + [IGNORE] * (width - len(r)) for r in rows]
    )


def batch_of(rows=range(3), keys=None):
    """Rows of the table above; every row has as many gold steps as its number says."""
    rows = list(rows)
    steps_BKS = torch.full((len(rows), 3, 1), IGNORE)
    for at, row in enumerate(rows):
        steps_BKS[at, : row % 3] = 1
    return Batch(
        torch.tensor(keys or rows),
        pad([PROMPTS[row % 3] for row in rows], left=True),
        steps_BKS,
        steps_BKS,
        pad([ANSWERS[row % 3] for row in rows]),
        torch.full((len(rows),), IGNORE),
    )


def gradients(method, total):
    params = {name: p for name, p in method.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(total, list(params.values()), allow_unused=True, retain_graph=True)
    return {
        n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(params.items(), found, strict=True)
    }


def every_answer():
    """All answers of up to two tokens: the end alone, or a token and whatever follows."""
    rows = [[5], *([a, b] for a, b in itertools.product(range(5), range(6)))]
    return pad(rows)


def naive(method, row, tokens, temperature=1.0):
    """log p of one answer, a token at a time, prompt and thoughts anew for each: no cache is shared."""
    states = method.prepare(torch.tensor([PROMPTS[row]]), None, None, 2).states
    past, hidden_BD, total = states.past, states.hidden_BTD[:, -1], 0.0
    for at, token in enumerate(tokens):
        logp_V = (method.backbone.logits(hidden_BD)[0].float() / temperature).log_softmax(-1)
        total = total + logp_V[token]
        if at + 1 < len(tokens):
            ids_BT = torch.tensor([[token]])
            states = method.backbone(ids_BT, role_of(ids_BT, Role.ANSWER), past)
            past, hidden_BD = states.past, states.hidden_BTD[:, -1]
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_exact_enumeration(kind):
    """All 31 answers, and all 961 groups of two of them, each weighted by how likely it is drawn."""
    method, tokens_NT = make(kind), every_answer()
    config, counted_NT = method.config.reward, every_answer() != IGNORE
    states = condition(method, torch.tensor([PROMPTS[0]]), config)
    logp_NT = log_probs(method, states, tokens_NT, counted_NT, config)
    p_N = logp_NT.sum(1).exp()
    assert float(p_N.detach().sum()) == pytest.approx(1.0, abs=1e-5)
    reward_N = exactly(tokens_NT, torch.tensor([ANSWERS[0]])).float() + 0.5 * (tokens_NT[:, 0] == 3)
    wanted = gradients(method, (p_N * reward_N).sum())

    pairs_M2 = torch.tensor(list(itertools.product(range(len(tokens_NT)), repeat=2)))
    advantage_M2, _ = group_advantages(reward_N[pairs_M2], standardise=False)
    share_M2 = advantage_M2 * p_N.detach()[pairs_M2].prod(1, keepdim=True)
    flat_M = pairs_M2.flatten()
    out = clipped_objective(logp_NT[flat_M], logp_NT[flat_M], share_M2.flatten(), counted_NT[flat_M])
    found = gradients(method, out.total)
    assert any(name.startswith(("feedback", "slot_KD", "filler_D")) and g.any() for name, g in wanted.items())
    for name, gradient in wanted.items():  # two answers against their mean: (G - 1) times the gradient
        torch.testing.assert_close(found[name], -gradient, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_forward_is_the_sum_over_what_it_drew(kind, temperature):
    """A step against answers scored one by one: the gradients of a group meet in its thoughts."""
    method = make(kind, temperature=temperature, updates=2)
    out = method(batch_of())
    carry, total = out.carry, 0.0
    assert carry["told"].any() and set(carry["advantage"].sign().tolist()) > {-1.0, 1.0}
    for n, (tokens, advantage) in enumerate(
        zip(carry["tokens"].tolist(), carry["advantage"].tolist(), strict=True)
    ):
        tokens = [token for token in tokens if token != IGNORE]
        if advantage:
            total = total - advantage * naive(method, n // 16, tokens, temperature)
    wanted, found = gradients(method, total), gradients(method, out.terms["policy"].total)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_what_is_drawn_is_what_is_scored(temperature):
    """Evenly spread numbers draw each first token as often as its scored probability says, to within one."""
    method = make(group=1000, temperature=temperature, max_answer_tokens=1)
    config, count = method.config.reward, 1000
    states = condition(method, torch.tensor([PROMPTS[0]]), config)
    even_N1 = (torch.arange(count, dtype=torch.float64)[:, None] + 0.5) / count
    drawn_N = draw(method, states, even_N1, config)[:, 0]
    ids_V1 = torch.arange(VOCAB)[:, None]
    with torch.no_grad():
        logp_V = log_probs(method, states, ids_V1, torch.ones_like(ids_V1).bool(), config)[:, 0]
    assert (drawn_N.bincount(minlength=VOCAB) - count * logp_V.exp()).abs().max() <= 1.01


def test_the_first_pass_has_ratio_one_and_later_ones_keep_the_old():
    method = make(updates=3)
    first = method(batch_of())
    counted_NT = (first.carry["tokens"] != IGNORE) & first.carry["told"][:, None]
    wanted = -(first.carry["advantage"][:, None] * counted_NT).sum()
    torch.testing.assert_close(first.terms["policy"].total, wanted)
    assert not first.metrics["clipped"][0]
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(5)))
    second = method(batch_of([1, 0, 2], keys=[7, 8, 9]), first.carry)
    for kept in ("tokens", "old", "advantage", "prompt"):
        assert torch.equal(second.carry[kept], first.carry[kept]), "the new batch is passed over"
    assert int(second.metrics["clipped"][0]) > 0 and "reward" not in second.metrics
    third = method(batch_of(), second.carry)
    assert third.carry is None and method.units(batch_of(), first.carry) == {"sample": 3 * 16}


@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_groups_without_news_change_nothing(kl):
    """No answer is ever right: the terms are zero and so is every gradient, also of the distance."""
    method = make(kl=kl)
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.05)  # away from the reference
    never = replace(batch_of(), answer_BA=torch.full((3, 3), 1))  # longer than the limit
    out = method(never)
    for term in out.terms.values():
        assert float(term.total.detach()) == 0
        assert not any(g.any() for g in gradients(method, term.total).values())
    dropped, groups = out.metrics["dropped_groups"]
    assert int(dropped) == int(groups) == 3 and int(out.metrics["right"][0]) == 0


@pytest.mark.parametrize("tie", [False, True])
def test_the_distance_to_the_reference(tie):
    method = make(kl=0.2, group=64, temperature=3.0, backbone=tiny(tie=tie))
    with torch.no_grad():
        for p in method.parameters():
            p.mul_(1.1)  # as weights that were carried over after construction
    method.pace(0.0)
    start = method(batch_of())
    assert float(start.terms["kl"].total.detach()) == 0 and start.terms["kl"].weight == 0.2
    held = {name: t.clone() for name, t in method.policy.reference.named_buffers()}
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    assert {name.replace(".", "/") for name in before} == set(held)
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(6)))
    moved = {name: p.detach().clone() for name, p in method.named_parameters()}
    method.pace(0.5)
    later = method(batch_of())
    assert float(later.terms["kl"].total.detach()) > 0
    assert any(g.any() for g in gradients(method, later.terms["kl"].total).values())
    for name, p in method.named_parameters():
        assert torch.equal(p, moved[name]) and p.grad is None
        assert torch.equal(held[name.replace(".", "/")], before[name])
    embeddings = method.backbone.model.get_input_embeddings().weight
    assert (method.backbone.model.get_output_embeddings().weight is embeddings) == tie
    method.pace(0.0)
    assert float(method(batch_of()).terms["kl"].total.detach()) == 0, (
        "a stage that begins holds what it finds"
    )


def test_the_distance_is_against_the_old_weights_themselves():
    """d = log p_reference - log p, with both log-probabilities taken one answer at a time."""
    method = make(kl=0.2, updates=2)
    method.pace(0.0)
    old = {name: p.detach().clone() for name, p in method.named_parameters()}
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(6)))
    out = method(batch_of())
    tokens_NT = out.carry["tokens"]
    counted_NT = (tokens_NT != IGNORE) & out.carry["told"][:, None]
    assert counted_NT.any()

    def logp_NT():
        with torch.no_grad():
            states = condition(method, batch_of().prompt_BP, method.config.reward)
            return log_probs(method, states, tokens_NT, counted_NT, method.config.reward)

    new_NT = logp_NT()
    with torch.no_grad():
        for name, p in method.named_parameters():
            p.copy_(old[name])
    d_NT = logp_NT() - new_NT
    torch.testing.assert_close(out.terms["kl"].total.detach(), (d_NT.exp() - d_NT - 1).sum())
    assert float(out.terms["kl"].total.detach()) > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_model_has_no_gradient_and_no_copy(kind):
    backbone = tiny().requires_grad_(False)
    method = make(kind, backbone=backbone, kl=0.1)
    names = {name for name, p in method.named_parameters() if p.requires_grad}
    assert names == {n for n, _ in method.named_parameters() if not n.startswith("backbone.")}
    assert set(method.policy.reference.names) == names
    method.pace(0.0)
    method(batch_of()).terms["policy"].total.backward()
    assert all(p.grad is None for p in backbone.parameters())
    assert any(p.grad is not None and p.grad.any() for p in method.parameters())


def test_weights_cast_while_drawing_still_learn():
    """Autocast keeps casts; one taken without gradients must not stand in for one that needs them."""
    method = make(kl=0.1)
    method.pace(0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = method(batch_of()).terms["policy"].total
    assert all(g.any() for name, g in gradients(method, total).items() if name != "feedback.up.bias")


def test_dropout_is_off_while_drawing_and_scoring():
    """With half of everything dropped, the weights of the reference would still seem far from themselves."""
    torch.manual_seed(0)
    rates = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
    shape = GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=1, n_head=2, n_positions=32, **rates)
    model = AutoModelForCausalLM.from_config(shape)
    method = make(kl=0.1, temperature=3.0, backbone=Backbone(model, BackboneConfig(), {}))
    method.pace(0.0)
    one, other = method(batch_of()), method(batch_of())
    assert one.metrics["kl_of_told"][1] and float(one.terms["kl"].total.detach()) == 0
    assert torch.equal(one.terms["policy"].total, other.terms["policy"].total)


def test_drawing_leaves_the_mode_and_the_generators_alone():
    method = make(kl=0.1)
    method.backbone.eval()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    method(batch_of())
    assert torch.equal(torch.get_rng_state(), state)
    assert method.training and method.feedback.training and not method.backbone.training


def test_a_row_draws_by_its_key_alone():
    alone = [uniforms(torch.tensor([key]), 5)[0] for key in (0, 1, 2**62 + 1, 2**32)]
    together = uniforms(torch.tensor([2**32, 2**62 + 1, 1, 0]), 5)
    assert torch.equal(torch.stack(alone[::-1]), together)
    assert len({tuple(row.tolist()) for row in alone}) == 4, "high bits of a key count too"
    method = make(updates=2)
    whole = method(batch_of()).carry["tokens"].view(3, 16, -1)
    for row in range(3):
        part = method(batch_of([row])).carry["tokens"]
        assert torch.equal(whole[row][:, : part.shape[1]], part)


def test_levels_that_tell_little_are_visited_rarely():
    levels = Levels(group=8, least=0.1)
    level_B = torch.tensor([0, 1, 2])
    assert levels.shares().eq(1).all(), "nothing is known yet"
    right_BG = torch.tensor([[True] * 8, [True] * 4 + [False] * 4, [False] * 8])
    for _ in range(3):
        levels.observe(level_B, right_BG)
        assert (levels.shares()[:3] == 1).all() or _ > 0, "sums wait for the next step"
        levels.settle()
    share_L = levels.shares()
    assert share_L[:4].tolist() == pytest.approx([0.1, 1 - 2 / 2**8, 0.1, 1.0])
    assert len(share_L) == LEVELS
    uniform_B = torch.tensor([0.05, 0.5, 0.5])
    assert levels.visited(level_B, uniform_B).tolist() == [True, True, False]
    before = levels.seen_L.clone()
    levels.settle()
    assert torch.equal(before, levels.seen_L), "what is not visited forgets nothing"


def test_rows_that_are_not_visited_add_nothing_and_cost_nothing():
    method = make(least_visits=0.01, updates=2)
    levels = method.policy.levels
    levels.right_L[1:], levels.seen_L[1:] = 100.0, 100.0  # rows 1 and 2 are always right
    out = method(batch_of())
    assert [int(part) for part in out.metrics["visited_rows"]] == [1, 3]
    assert out.carry["tokens"].shape[0] == 16 and method.units(batch_of()) == {"sample": 48}
    alone = method(batch_of([0]))
    torch.testing.assert_close(out.terms["policy"].total, alone.terms["policy"].total)
    levels.right_L[0], levels.seen_L[0] = 100.0, 100.0
    none = method(batch_of())
    assert float(none.terms["policy"].total.detach()) == 0 and none.terms["policy"].total.requires_grad
    assert int(none.metrics["right"][1]) == 0 and int(none.metrics["visited_rows"][0]) == 0


def rows_at(step, lane, lanes, rank, world):
    size = 6 // lanes
    first = 6 * step + lane * size
    return batch_of([row % 3 for row in range(first, first + size)], keys=list(range(first, first + size)))


def state_of(method, steps, lanes=1, enable=(), lr=0.02):
    config = TrainConfig(steps=steps, batch_size=6, accumulate=lanes, precision="fp32", enable=enable)
    optim = OptimConfig(name="adamw", lr=lr, warmup_steps=0, weight_decay=0.0)
    return TrainState.create(method, config, optim), config, optim


def go(state, config, optim):
    return [{"loss": r.loss, **r.losses, **r.metrics} for r in train(state, rows_at, config, optim)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_reward_is_learned(kind):
    """Three questions, hot draws: one in fifteen answers is right at first."""
    method = make(kind, kl=0.02, group=32, temperature=2.5)
    state, *settings = state_of(method, steps=45, lr=0.01)
    records = go(state, *settings)
    assert records[0]["right"] < 0.15 and min(r["right"] for r in records[-5:]) > 0.9
    assert records[0]["kl"] == 0 and all(r["kl"] >= 0 for r in records)
    said = method.eval().generate(batch_of().prompt_BP, max_new_tokens=2).answers
    assert [[*answer, 5] for answer in said] == [list(answer) for answer in ANSWERS]


def test_only_what_is_enabled_is_rewarded():
    method = make("slots", kl=0.1)
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    state, *settings = state_of(method, steps=3, enable=("feedback", "slot_KD"))
    go(state, *settings)
    changed = {name for name, p in state.finish().named_parameters() if not torch.equal(p, before[name])}
    assert changed and all(name.startswith(("feedback.", "slot_KD")) for name in changed)


@pytest.mark.parametrize(("updates", "beside"), [(1, 0), (3, 0.5)])
def test_lanes_only_cut_the_rows(updates, beside):
    """Also the curriculum's: what a lane sees is taken in after the step."""
    runs = []
    for lanes in (1, 3):
        method = make(kl=0.1, updates=updates, beside=beside, least_visits=0.2)
        state, *settings = state_of(method, steps=4, lanes=lanes)
        runs.append((go(state, *settings), method.state_dict()))
    (one, weights), (other, others) = runs
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_resume_is_exact_with_reference_answers_and_levels(tmp_path):
    """Stopped in the middle of three updates on the same answers."""
    settings = {"kl": 0.1, "updates": 3, "least_visits": 0.2}
    through, config, optim = state_of(make(**settings), steps=6)
    records = go(through, config, optim)
    first, _, _ = state_of(make(**settings), steps=6)
    half = go(first, config.model_copy(update={"steps": 4}), optim)
    folder = save_state(first, tmp_path, run={}, position={})
    method = make(backbone=tiny(seed=9), **settings)
    load_weights(folder, method)
    second, _, _ = state_of(method, steps=6)
    assert load_state(second, folder) == []
    assert half + go(second, config, optim) == records
    for name, tensor in through.method.state_dict().items():
        assert torch.equal(tensor, method.state_dict()[name]), name


@pytest.mark.parametrize("updates", [1, 2])
def test_the_loss_stands_beside_the_reward(updates):
    """Every sum is that of the reward alone or of the loss alone; the loss reads every batch."""
    settings = {"kl": 0.1, "updates": updates, "group": 32, "temperature": 2.5}
    both, alone = make(beside=0.5, **settings), make(**settings)
    loss = METHODS["continuous"](tiny(), METHODS["continuous"].Config(latents=2), MARKERS)
    loss.load_state_dict(both.state_dict(), strict=False)
    half = {name: 0.5 * weight for name, weight in loss.term_weights.items()}
    assert both.term_weights == half | {"policy": 1, "kl": 0.1}
    carry = None
    for rows in ([0, 1, 2], [2, 1]):
        batch, out = batch_of(rows), both(batch_of(rows), carry)
        drawn, gold = alone(batch, carry), loss(batch)
        assert out.terms.keys() == gold.terms.keys() | drawn.terms.keys() and "answer" in gold.terms
        for name, term in (drawn.terms | gold.terms).items():
            torch.testing.assert_close(out.terms[name].total, term.total)
            weight = 0.5 * term.weight if name in gold.terms else term.weight
            assert (out.terms[name].unit, out.terms[name].weight) == (term.unit, weight)
        assert both.units(batch) == alone.units(batch) | loss.units(batch)
        carry = out.carry
        assert (carry is None) == (drawn.carry is None)


def test_what_cannot_be_rewarded_is_refused():
    with pytest.raises(ValueError, match="reward needs visible_from=null"):
        METHODS["continuous"].Config(reward={}, visible_from=1)
    workspace = load_backbone(BackboneConfig(workspace={"preset": "tiny"}), VOCAB)
    with pytest.raises(UserError, match=r"set method\.reward=null"):
        make("pause", backbone=workspace)
    for beside in (0, 1):
        decoder = METHODS["continuous"].Config(latents=2, target="step", reward={"beside": beside})
        assert (METHODS["continuous"](tiny(), decoder, MARKERS).step_decoder is not None) == bool(beside)
    with pytest.raises(ValueError, match=r"take method\.name=plain for rewards alone"):
        METHODS["distill"].Config(steps=False, weights={"kd": 0}, reward={})
    with pytest.raises(ValueError, match=r"set method\.steps=false"):
        METHODS["distill"].Config(weights={"kd": 0}, reward={"beside": 1})


def test_without_a_reward_nothing_is_built():
    for kind, settings in KINDS.items():
        method = METHODS[kind](tiny(), METHODS[kind].Config(**settings), MARKERS)
        assert method.policy is None and not any("policy" in name for name in method.state_dict())
        assert method.term_weights == method.config.weights.model_dump()


@pytest.mark.parametrize("kind", KINDS)
def test_the_doctor_finds_nothing(kind):
    """Where some answers are right; where none is, the terms are slack."""
    method = make(kind, kl=0.1)
    told = examine(method, batch_of())
    assert told.healthy and told.terms[0].gradient_norm > 0, [str(finding) for finding in told.findings]
    never = examine(method, replace(batch_of(), answer_BA=torch.full((3, 3), 1)))
    assert never.healthy and any("slack" in note for note in never.notes)
