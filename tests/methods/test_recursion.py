"""Recursion on a frozen model: who learns, what is read, what is asked when, when rows stop, what is kept."""

import pytest
import torch
from torch.nn import functional as F

from quietreasoning.backbone import BackboneConfig, ScratchConfig, load_backbone, role_of
from quietreasoning.contract import IGNORE, Batch, Markers, Role
from quietreasoning.losses.recursion import NearEnough
from quietreasoning.methods.recursion import Recursion
from quietreasoning.methods.recursion.probe import head_alone
from quietreasoning.methods.recursion.threshold import MovingThreshold

VOCAB, EOS, PREFIX = 24, 23, 22
MARKERS = Markers(answer_prefix=(PREFIX,), eos=EOS)
CELL = {"cell": {"width": 16, "heads": 2, "latent_steps": 1, "rounds": 2}}
BOTH = pytest.mark.parametrize("inject", ["mixture", "affine"])


def model(seed=0, std=0.4):
    torch.manual_seed(seed)
    shape = ScratchConfig(layers=2, width=16, heads=2, mlp=16, context=64, init_std=std)
    return load_backbone(BackboneConfig(scratch=shape), VOCAB)


def made(backbone=None, **settings):
    backbone = backbone or model()
    torch.manual_seed(1)
    method = Recursion(backbone, Recursion.Config(**{"blocks": 3, "steps": 3} | CELL | settings), MARKERS)
    with torch.no_grad():
        method.reasoner.halt.bias.zero_()
        method.reasoner.halt.weight.normal_(generator=torch.Generator().manual_seed(7))
    return method


@torch.no_grad()
def halting_apart(method, rows):
    """Sets the halting head so that half of the rows are sure after their first step."""
    given = method.given(method.open(rows.prompt_BP))
    halt_B = method.reasoner(given, method.reasoner.begin(given)).halt_B
    method.reasoner.halt.bias.sub_(halt_B.median())
    return method


def padded(rows, left=False):
    wide = max(map(len, rows))
    return torch.tensor(
        [[IGNORE] * (wide - len(r)) + r if left else r + [IGNORE] * (wide - len(r)) for r in rows]
    )


def batch(rows=5):
    """Rows of 1, 2, 3, 1, 2 ... steps of one token each."""
    draw = torch.Generator().manual_seed(0)
    prompts = [torch.randint(0, 20, (3 + b % 3,), generator=draw).tolist() for b in range(rows)]
    steps_BKS = torch.full((rows, 3, 1), IGNORE)
    for b in range(rows):
        for k in range(1 + b % 3):
            steps_BKS[b, k] = (b + k) % 20
    answers = [[(b * 3) % 20, EOS] for b in range(rows)]
    keys_B = torch.arange(rows)
    return Batch(
        keys_B,
        padded(prompts, left=True),
        steps_BKS,
        steps_BKS,
        padded(answers),
        torch.full_like(keys_B, IGNORE),
    )


def total(method, rows):
    return sum(term.total * term.weight for term in method(rows).terms.values())


@BOTH
def test_the_language_model_stays_and_all_else_learns(inject):
    method = made(inject=inject, weights={"step": 1, "halt": 1, "match": 1})
    total(method, batch()).backward()
    for name, p in method.named_parameters():
        if name.startswith("backbone."):
            assert p.grad is None and not p.requires_grad, name
        else:
            assert p.grad is not None and p.grad.any(), name


@BOTH
def test_weights_speak_alike_in_a_method_built_on_another_model(inject):
    """A run is opened on fresh weights: nothing that was measured on the model may live outside its state."""
    method, rows = made(inject=inject).eval(), batch()
    other = made(model(seed=5, std=0.01), inject=inject).eval()
    other.load_state_dict(method.state_dict())
    with torch.no_grad():
        for made_of in ("soft", "answers"):
            pair = [
                m.think(m.open(rows.prompt_BP), None).content_BKD
                if made_of == "soft"
                else m.generate(rows.prompt_BP, max_new_tokens=3).answers
                for m in (method, other)
            ]
            assert torch.equal(*pair) if made_of == "soft" else pair[0] == pair[1]


def test_a_sure_mixture_is_the_embedding():
    backbone, ids_BT = model(), torch.tensor([[3, 0, 7]])
    sure_BTV = F.one_hot(ids_BT, VOCAB).float()
    torch.testing.assert_close(backbone.blend(sure_BTV), backbone.embed(ids_BT))


@BOTH
def test_the_answer_is_that_of_one_pass_over_embeddings_without_a_cache(inject):
    method, rows = made(inject=inject, supervise="last").eval(), batch(1)
    with torch.no_grad():
        backbone, prompt = method.backbone, method.open(rows.prompt_BP)
        soft_BKD = method.think(prompt, None).content_BKD
        said_BT = torch.tensor([[PREFIX, *rows.answer_BA[0].tolist()]])
        whole = torch.cat([backbone.embed(rows.prompt_BP), soft_BKD, backbone.embed(said_BT)], 1)
        logits = backbone.logits(backbone(whole, torch.full(whole.shape[:2], int(Role.PROMPT))).hidden_BTD)
        answers = said_BT.shape[1] - 1
        want = F.cross_entropy(logits[0, -answers - 1 : -1], said_BT[0, 1:], reduction="sum")
        torch.testing.assert_close(method(rows).terms["answer"].total, want, rtol=1e-4, atol=1e-5)


def test_what_is_asked_for_after_each_step():
    rows = batch()
    sums = {}
    for supervise in ("all", "last", "reached"):
        method = made(supervise=supervise, weights={"step": 1}).eval()
        out = method(rows)
        sums[supervise] = {name: float(term.total.detach()) for name, term in out.terms.items()}
        counts = method.units(rows)
        answers, slots = 2 * len(rows), 3 * len(rows)
        steps = [1 + b % 3 for b in range(len(rows))]
        assert (
            counts["token"]
            == {
                "all": 3 * answers,
                "last": answers,
                "reached": sum(2 * (4 - count) for count in steps),
            }[supervise]
        )
        # a slot that repeats the last step is asked for with its block
        assert counts["slot"] == {"all": 3 * slots, "last": slots, "reached": 6 * len(rows)}[supervise]
    assert sums["last"]["answer"] < sums["reached"]["answer"] < sums["all"]["answer"]
    assert sums["last"]["step"] < sums["reached"]["step"] < sums["all"]["step"]


def test_constants_read_nothing():
    method, rows = made(blind=True).eval(), batch()
    with torch.no_grad():
        soft_BKD = method.think(method.open(rows.prompt_BP), None).content_BKD
        seeing = made().eval()
        others_BKD = seeing.think(seeing.open(rows.prompt_BP), None).content_BKD
    assert torch.equal(soft_BKD, soft_BKD[:1].expand_as(soft_BKD))
    assert not torch.allclose(others_BKD[0], others_BKD[1])


@BOTH
def test_rows_stop_by_themselves_and_say_what_so_many_steps_say(inject):
    rows = batch(12)
    fixed = made(inject=inject, steps=6).eval()
    halting = halting_apart(made(inject=inject, steps=6, halt_cut=0.5).eval(), rows)
    said = halting.generate(rows.prompt_BP, max_new_tokens=3)
    taken = [count // 3 for count in said.latent_steps]
    assert len(set(taken)) > 1
    for b, steps in enumerate(taken):
        alone = fixed.generate(rows.prompt_BP[b : b + 1], max_new_tokens=3, effort=steps)
        assert alone.answers[0] == said.answers[b]
    never = made(inject=inject, steps=6, halt_cut=1 - 1e-9).eval()
    assert never.generate(rows.prompt_BP, max_new_tokens=3).latent_steps == [18] * 12
    with pytest.raises(ValueError, match="effort=0"):
        fixed.generate(rows.prompt_BP, max_new_tokens=3, effort=0)


def test_the_threshold_follows_the_mean_and_is_kept():
    moving, plain = MovingThreshold(0.7, epochs=4), NearEnough(0.7)
    draw = torch.Generator().manual_seed(0)
    for step in range(8):
        moving.pace(step / 8)
        if step and step % 2 == 0:
            plain = plain.next_epoch()
        assert float(moving.threshold) == pytest.approx(plain.threshold)
        cosine_B = torch.rand(5, generator=draw)
        plain = plain.saw(cosine_B.double().sum(), 5)
        moving.observe(cosine_B)
        again = MovingThreshold(0.1, epochs=4)
        again.load_state_dict(moving.state_dict())
        moving = again
    assert float(moving.threshold) != 0.7


def test_a_chain_state_is_that_of_the_model_reading_its_chain():
    method, rows = made(weights={"match": 1, "answer": 0}).eval(), batch(3)
    for b in range(3):
        prompt_P = rows.prompt_BP[b][rows.prompt_BP[b] != IGNORE]
        chain = [*prompt_P.tolist(), *rows.steps_BKS[b][rows.steps_BKS[b] != IGNORE].tolist(), PREFIX]
        ids_1T = torch.tensor([chain])
        with torch.no_grad():
            want_D = method.backbone(ids_1T, role_of(ids_1T, Role.PROMPT)).hidden_BTD[0, -1]
            torch.testing.assert_close(method._chain_state(rows)[b], want_D, rtol=1e-4, atol=1e-5)


PER_STEP = {"per_step_updates": True, "supervise": "reached", "weights": {"step": 1, "halt": 1}}


def test_row_by_row_a_carried_step_is_the_step_of_the_whole():
    """Without halting, N carried steps of one batch lose what all N steps lose at once."""
    rows = batch()
    weights = {"weights": {"step": 1, "match": 1}}
    whole = made(supervise="reached", **weights).eval()
    single = made(**PER_STEP | weights).eval()
    want, found, carry = whole(rows), {}, None
    counts = dict.fromkeys(whole.units(rows), 0)
    for step in range(1, 4):
        for unit, count in single.units(rows, carry).items():
            counts[unit] += count
        out = single(rows, carry)
        carry = out.carry
        assert carry["step_B"].tolist() == [step] * len(rows)
        for name, term in out.terms.items():
            found[name] = found.get(name, 0) + term.total.detach()
    assert carry["done_B"].all() and counts == whole.units(rows)
    for name, term in want.terms.items():
        torch.testing.assert_close(found[name], term.total.detach(), rtol=1e-4, atol=1e-4)


def test_rows_that_are_done_make_place_and_the_others_go_on():
    rows, others = batch(6), batch(6)
    others.keys_B.add_(100)
    others.prompt_BP.clamp_(max=4)
    method = halting_apart(made(**PER_STEP).eval(), rows)
    carry = method(rows).carry
    done_B = carry["done_B"]
    assert done_B.any() and not done_B.all()
    after = method(others, carry).carry
    fresh = method(others).carry
    for b in range(6):
        new = bool(done_B[b])
        assert after["keys_B"][b] == b + 100 * new and after["step_B"][b] == (1 if new else 2)
        if new:
            torch.testing.assert_close(after["y_BKD"][b], fresh["y_BKD"][b])
    steps_B = torch.tensor([1 + b % 3 for b in range(6)])  # gold steps, by which an answer can be asked for
    due_B = steps_B <= after["step_B"]
    assert method.units(others, carry)["token"] == 2 * int(due_B.sum())


def test_carried_steps_refuse_what_they_cannot_do():
    for wrong in ({"supervise": "last"}, {"cell": {"mode": "full"}}):
        with pytest.raises(ValueError, match="per_step_updates"):
            Recursion.Config(**PER_STEP | wrong)


def test_the_probe_reads_the_last_slot_that_training_reads():
    """Told its own words as gold, every slot that repeats the only step is right where the last one is."""
    rows, method = batch(), made(blocks=1, weights={"step": 1, "answer": 0}, supervise="last").eval()
    said_B = head_alone(method, rows.prompt_BP)
    rows.results_BKR[:, 0, 0] = said_B
    hits, count = method(rows).metrics["step_accuracy"]
    assert int(hits) == int(count) == len(rows)
    assert torch.equal(said_B, head_alone(method, rows.prompt_BP, effort=3))
    rows.results_BKR[:, 0, 0] = head_alone(method, rows.prompt_BP, effort=1)
    assert int(method(rows).metrics["step_accuracy"][0]) < len(rows)


def test_with_a_reward_all_that_shapes_the_answer_learns_and_nothing_else():
    reward = {"group": 2, "max_answer_tokens": 2}
    method = made(inject="affine", reward=reward, weights={"answer": 0, "halt": 1})
    assert not any(p.requires_grad for p in method.reasoner.halt.parameters())
    assert all(p.requires_grad for p in method.soft.parameters())


@pytest.mark.parametrize("read", [{"layers": (1,)}, {"compressor": "a folder"}])
def test_constants_take_no_setting_of_what_is_read(read):
    with pytest.raises(ValueError, match=r"has no effect with blind=true"):
        Recursion.Config(blind=True, **read)
