"""The reasoner by itself: rows that halt make place, one step is one update, and what it says and refuses."""

import pytest
import torch
from torch.nn import functional as F

from quietreasoning.backbone import BackboneConfig, ScratchConfig, load_backbone
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Batch, Markers
from quietreasoning.methods.carried_rows import earliest
from quietreasoning.methods.reasoner import RecursiveReasoner
from quietreasoning.nn.recursion import think
from quietreasoning.optim.settings import OptimConfig
from quietreasoning.train.loop import train
from quietreasoning.train.settings import TrainConfig
from quietreasoning.train.snapshot import load_state, load_weights, save_state
from quietreasoning.train.state import TrainState

VOCAB, EOS = 12, 11
MARKERS = Markers(answer_prefix=(10,), eos=EOS)
SIZES = {"width": 16, "heads": 2, "supervision_steps": 4}
KINDS = {"mlp": {"cells": 6}, "attention": {"mixer": "attention", "rounds": 2, "style": "paper"}}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def made(seed=0, *, layers=0, **settings):
    torch.manual_seed(seed)
    shape = ScratchConfig(layers=layers, width=16, heads=2, context=64, init_std=0.5)
    backbone = load_backbone(BackboneConfig(scratch=shape), VOCAB)
    return RecursiveReasoner(backbone, RecursiveReasoner.Config(**SIZES | settings), MARKERS)


def batch_of(keys, lengths=(4, 6, 2, 5, 6, 3, 4, 5)):
    """One row a key: a prompt, and an answer as long that says each token's successor."""
    prompts = []
    for key in keys:
        draw = torch.Generator().manual_seed(key)
        prompts.append(torch.randint(0, 9, (lengths[key % len(lengths)],), generator=draw))
    wide, ends = max(map(len, prompts)), torch.tensor([EOS])
    answers = [F.pad(torch.cat([p + 1, ends]), (0, wide - len(p)), value=IGNORE) for p in prompts]
    none = torch.full((len(keys), 0, 0), IGNORE)
    prompt_BP = torch.stack([F.pad(p, (wide - len(p), 0), value=IGNORE) for p in prompts])
    keys_B = torch.tensor(keys)
    return Batch(keys_B, prompt_BP, none, none, torch.stack(answers), torch.full_like(keys_B, IGNORE))


def stream(rows):
    """batch_at: row i of step s has a key, and a length, of its own."""

    def batch_at(step, lane, lanes, rank, world):
        size = rows // lanes
        first = step * rows + lane * size
        return batch_of(list(range(first, first + size)))

    return batch_at


def state_of(method, *, steps, rows=8, lanes=1, ema=0.0):
    config = TrainConfig(steps=steps, batch_size=rows, accumulate=lanes, precision="fp32")
    optim = OptimConfig(name="sgd", lr=0.05, ema=ema)
    return TrainState.create(method, config, optim), config, optim


def halts_apart(method, batch):
    """Sets the halting head so that about half of the rows are sure after their first step."""
    with torch.no_grad():
        method.reasoner.halt.weight.normal_(generator=torch.Generator().manual_seed(3))
        given = method.read(method(batch).carry["prompt_BP"])
        halt_B = method.reasoner(given, method.reasoner.begin(given)).halt_B
        method.reasoner.halt.bias.sub_(halt_B.median())
    return method


@every_kind
def test_rows_that_are_done_begin_anew_and_the_others_go_on(kind):
    first, second = batch_of(range(8)), batch_of(range(8, 16))
    method = halts_apart(made(**kind), first)
    before = method(first).carry
    done_B = before["done_B"]
    assert done_B.any() and not done_B.all()
    after = method(second, before).carry
    alone = method(second).carry
    for b in range(8):
        source, steps = (alone, 1) if done_B[b] else (before, 2)
        assert int(after["step_B"][b]) == steps and int(after["key_B"][b]) == int(source["key_B"][b])
        for name in ("prompt_BP", "answer_BP"):
            own = source[name][b][source[name][b] != IGNORE]
            assert torch.equal(after[name][b][after[name][b] != IGNORE], own)
        if done_B[b]:
            length = int((second.prompt_BP[b] != IGNORE).sum())
            torch.testing.assert_close(after["y_BPD"][b, :length], alone["y_BPD"][b, :length])
    given = method.read(before["prompt_BP"])
    went_on = method.reasoner(given, method._state(given, before | {"done_B": torch.zeros_like(done_B)}))
    for b in (~done_B).nonzero()[:, 0].tolist():
        length = int((before["prompt_BP"][b] != IGNORE).sum())
        for name, want in zip(("y_BPD", "z_BPD"), went_on.carry, strict=True):
            torch.testing.assert_close(after[name][b, :length], want[b, :length])


@every_kind
def test_units_count_the_rows_that_will_be_thought_about(kind):
    first, second = batch_of(range(8)), batch_of(range(8, 16), lengths=(1,))
    method = halts_apart(made(**kind), first)
    carry = method(first).carry
    out = method(second, carry)
    counts = method.units(second, carry)
    assert counts["token"] == int(out.metrics["token_accuracy"][1]) and counts["sequence"] == 8
    assert counts["token"] == int((out.carry["answer_BP"] != IGNORE).sum())
    assert 8 == method.units(second)["token"] < counts["token"] < method.units(first)["token"]


@every_kind
def test_a_row_stops_when_sure_but_not_before_its_own_step_or_after_the_last(kind):
    keys = list(range(400))
    method = made(**kind)
    with torch.no_grad():
        method.reasoner.halt.bias.fill_(9.0)
    batch = batch_of(keys)
    early_B, carry = earliest(batch.keys_B, 4), None
    for step in range(1, 5):
        frozen = carry and carry | {"done_B": torch.zeros(len(keys), dtype=torch.bool)}
        carry = method(batch, frozen).carry
        assert torch.equal(carry["done_B"], early_B <= step)
    with torch.no_grad():
        method.reasoner.halt.bias.fill_(-9.0)
    carry = None
    for step in range(1, 5):
        carry = method(batch, carry).carry
        assert carry["done_B"].tolist() == [step == 4] * len(keys)


def test_a_tenth_of_the_rows_has_a_least_number_of_steps():
    early_B = earliest(torch.arange(20_000) * 0x9E3779B97F4A7, 5)
    late_B = early_B[early_B > 1]
    assert abs(len(late_B) / 20_000 - 0.1) < 0.01
    assert all(abs(int((late_B == step).sum()) / len(late_B) - 0.25) < 0.05 for step in (2, 3, 4, 5))
    assert torch.equal(earliest(torch.tensor([7, 7]), 5)[:1], earliest(torch.tensor([7]), 5))
    assert earliest(torch.arange(500), 1).eq(1).all()


@every_kind
def test_one_supervision_step_is_one_optimizer_step(kind):
    method = made(**kind)
    evaluations = []
    method.reasoner.network.register_forward_hook(lambda *_: evaluations.append(1))
    state, config, optim = state_of(method, steps=6)
    seen, previous = [], None
    for _ in train(state, stream(8), config, optim):
        (carry,) = state.carries
        seen.append(carry["step_B"].max().item())
        assert not carry["y_BPD"].requires_grad and not carry["z_BPD"].requires_grad
        weight = method.reasoner.enter.weight.detach().clone()
        assert previous is None or not torch.equal(weight, previous)
        previous = weight
    assert len(evaluations) == 6 * method.reasoner.config.evaluations
    assert seen == [1, 2, 3, 4, 1, 2], "nobody is sure: all rows take four steps"


@every_kind
def test_lanes_cut_rows_that_halt_apart(kind):
    def run(lanes):
        method = halts_apart(made(**kind), batch_of(range(8)))
        state, config, optim = state_of(method, steps=5, lanes=lanes)
        records = [
            (r.loss, r.tokens, r.metrics["steps_taken"]) for r in train(state, stream(8), config, optim)
        ]
        return records, torch.cat([carry["step_B"] for carry in state.carries]), method.state_dict()

    (one, steps, weights), (eight, other_steps, other) = run(1), run(8)
    assert len(set(steps.tolist())) > 1, "rows of different age"
    assert torch.equal(steps, other_steps)
    for mine, theirs in zip(one, eight, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    for name, tensor in weights.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-5)


@every_kind
def test_resume_takes_rows_up_where_they_were(kind, tmp_path):
    def run(state, config, optim, until):
        losses = []
        for record in train(state, stream(8), config, optim):
            losses.append(record.loss)
            if state.step == until:
                break
        return losses

    def fresh():
        return state_of(halts_apart(made(**kind), batch_of(range(8))), steps=6, ema=0.9)

    through = run(*fresh(), until=6)
    state, config, optim = fresh()
    half = run(state, config, optim, until=3)
    folder = save_state(state, tmp_path, run={}, position={})
    again, config, optim = state_of(made(seed=5, **kind), steps=6, ema=0.9)
    load_weights(folder, again.method)
    assert load_state(again, folder) == []
    assert half + run(again, config, optim, until=6) == through


@every_kind
def test_evaluation_answers_with_averaged_weights(kind):
    method = made(**kind)
    state, config, optim = state_of(method, steps=3, ema=0.5)
    list(train(state, stream(8), config, optim))
    live = method.reasoner.enter.weight.detach().clone()
    with state.evaluating() as evaluated:
        held = evaluated.reasoner.enter.weight.detach().clone()
    averages = state.ema.averages["reasoner.enter.weight"]
    assert torch.equal(held, averages) and not torch.equal(held, live)
    assert torch.equal(method.reasoner.enter.weight, live)


@every_kind
def test_it_says_what_its_last_step_finds_most_likely(kind):
    method, batch = made(**kind).eval(), batch_of(range(8))
    said = method.generate(batch.prompt_BP, max_new_tokens=9)
    carry = None
    for _ in range(4):
        out = method(batch, carry)
        carry = out.carry | {"done_B": torch.zeros(8, dtype=torch.bool)}
    given = method.read(carry["prompt_BP"])
    answer = think(method.reasoner, given, steps=4, cut=None)
    ids_BP = method.backbone.logits(answer.output_BPO).argmax(-1)
    for row, prompt_P, ids_P in zip(said.answers, carry["prompt_BP"], ids_BP, strict=True):
        want = ids_P[: int((prompt_P != IGNORE).sum())].tolist()
        assert row == (want[: want.index(EOS)] if EOS in want else want)
    want_BPD = method.reasoner(given, method._state(given, carry)).carry.y_BPD
    five = think(method.reasoner, given, steps=5, cut=None)
    real_BP = carry["prompt_BP"] != IGNORE
    want_BPO, found_BPO = method.reasoner.head(want_BPD), five.output_BPO
    torch.testing.assert_close(
        found_BPO[:, : real_BP.shape[1]][real_BP], want_BPO[:, : real_BP.shape[1]][real_BP]
    )


@every_kind
def test_halting_ends_rows_apart_and_a_cut_out_of_reach_changes_nothing(kind):
    batch = batch_of(range(8))
    fixed = halts_apart(made(**kind), batch).eval()
    halting = halts_apart(made(halt_cut=0.5, **kind), batch).eval()
    never = halts_apart(made(halt_cut=1 - 1e-9, **kind), batch).eval()
    said = {
        name: m.generate(batch.prompt_BP, max_new_tokens=9)
        for name, m in {"fixed": fixed, "halting": halting, "never": never}.items()
    }
    assert said["never"].answers == said["fixed"].answers and said["fixed"].latent_steps == [4] * 8
    assert len(set(said["halting"].latent_steps)) > 1
    per_step = fixed.reasoner.config.evaluations
    assert said["halting"].passes == [steps * per_step for steps in said["halting"].latent_steps]
    for b in range(8):
        row_P = batch.prompt_BP[b][batch.prompt_BP[b] != IGNORE]
        alone = halting.generate(row_P[None], max_new_tokens=9)
        assert alone.answers[0] == said["halting"].answers[b]
        assert alone.latent_steps[0] == said["halting"].latent_steps[b]
        steps = said["halting"].latent_steps[b]
        assert fixed.generate(row_P[None], max_new_tokens=9, effort=steps).answers == alone.answers


@every_kind
def test_controls_corrupt_what_is_carried_and_one_step_carries_nothing(kind):
    method, prompt_BP = made(**kind).eval(), batch_of(range(8)).prompt_BP
    begun = method.generate(prompt_BP, max_new_tokens=9, effort=1)
    assert method.generate(prompt_BP, max_new_tokens=9, control="filler").answers == begun.answers
    trained = method.generate(prompt_BP, max_new_tokens=9)
    assert trained.answers != begun.answers
    for control in ("zero", "shuffle", "mean", "noise"):
        corrupted = method.generate(prompt_BP, max_new_tokens=9, control=control)
        assert corrupted.answers != trained.answers and corrupted.latent_steps == [4] * 8
    single = made(supervision_steps=1, **kind)
    assert single.controls == ()
    with pytest.raises(ValueError, match=r"control='zero'.*one step"):
        single.generate(prompt_BP, max_new_tokens=9, control="zero")
    with pytest.raises(ValueError, match="effort=0"):
        method.generate(prompt_BP, max_new_tokens=9, effort=0)


def test_without_a_halting_loss_the_head_rests():
    method = made(weights={"halt": 0}, cells=6)
    out = method(batch_of(range(8)))
    assert list(out.terms) == ["answer"]
    assert not any(p.requires_grad for p in method.reasoner.halt.parameters())


def test_prompts_that_are_too_wide_are_refused_with_the_cure():
    with pytest.raises(UserError, match=r"method.cells=3.*has 6 tokens.*method.cells=6"):
        made(cells=3)(batch_of(range(8)))
    with pytest.raises(UserError, match=r"method.cells=6"):
        made(cells=3).generate(batch_of(range(8)).prompt_BP, max_new_tokens=4)


def test_answers_of_another_length_are_refused_with_the_cure():
    batch = batch_of([0, 4])
    longer = F.pad(batch.prompt_BP, (0, 1), value=3)
    for prompt_BP in (longer, batch.prompt_BP[:, 1:]):
        wrong = Batch(
            batch.keys_B, prompt_BP, batch.steps_BKS, batch.results_BKR, batch.answer_BA, batch.rare_B
        )
        with pytest.raises(UserError, match=r'position by position.*prompt_suffix=""'):
            made(cells=9).units(wrong)


def test_a_backbone_with_blocks_is_refused_with_the_cure():
    with pytest.raises(UserError, match=r"has 1.*backbone.scratch.layers=0"):
        made(layers=1, cells=6)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, r"mixer=mlp needs cells"),
        ({"cells": 6, "halt_cut": 0.5, "weights": {"halt": 0}}, r"halt_cut has no effect"),
        ({"mixer": "attention", "heads": 3}, r"multiple of heads=3"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        RecursiveReasoner.Config(**SIZES | settings)
