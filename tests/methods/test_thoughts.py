"""Hidden thoughts: rewards, gates, controls and costs against the plain model and naive twins."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Role
from quietreasoning.methods.thoughts import Thinker, reading
from quietreasoning.methods.thoughts.running import Threshold
from quietreasoning.methods.thoughts.settings import ThinkerConfig
from quietreasoning.methods.thoughts.text import text_of

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
from contract_cases import MARKERS, batch_of, make, scratch
from contract_cases import text_of as running_text

ROWS = [0, 1, 2, 5]


@pytest.fixture(scope="module")
def method() -> Thinker:
    made = make("thoughts").double().eval()
    made.threshold.nats_1.fill_(0.0)  # think before every token
    return made


def drawn(method: Thinker, batch):
    text = text_of(batch, method.markers, visible=False)
    anchor_BK, thoughts, _ = reading.think(method, text, batch.keys_B)
    return text, anchor_BK, thoughts


@torch.no_grad()
def test_rewards_are_what_each_thought_adds_when_read_alone(method):
    """log p of the true tokens with the thought and without, one forward a thought, nothing packed."""
    batch = batch_of(ROWS)
    text, anchor_BK, thoughts = drawn(method, batch)
    found = reading.read(method, text, anchor_BK, thoughts)
    own_BKGM, _ = reading.alone(method, found)
    base_BKM = reading.true_log_probs(method, found.base_BKMD, found.tree.labels_BKM, found.counted_BKM)
    start_D, end_D = method.markers_2D
    asked = 0
    for b, k, g in [(0, 0, 0), (0, 1, 1), (2, 0, 1), (3, 1, 0)]:
        anchor, own = int(anchor_BK[b, k]), text.ids_BT[b]
        if anchor < 0:
            continue
        before = own[: anchor + 1][own[: anchor + 1] != IGNORE]
        after = own[anchor + 1 : anchor + 1 + method.config.talk]
        after = after[after != IGNORE]
        thought = thoughts.ids_BKGL[b, k, g, : int(thoughts.length_BKG[b, k, g])]
        embed = method.backbone.embed
        inputs = torch.cat([embed(before), start_D[None], embed(thought), end_D[None], embed(after[:-1])])
        roles = torch.full((1, len(inputs)), int(Role.STEP))
        hidden_TD = method.backbone(inputs[None], roles).hidden_BTD[0, -len(after) :]
        bare = torch.cat([before, after[:-1]])[None]
        base_TD = method.backbone(bare, torch.full_like(bare, int(Role.STEP))).hidden_BTD[0, -len(after) :]
        share_T = method.mixer.share(base_TD, hidden_TD)[:, None]
        for states, got_M in (
            ((1 - share_T) * base_TD + share_T * hidden_TD, own_BKGM[b, k, g]),
            (base_TD, base_BKM[b, k]),
        ):
            logp_T = method.backbone.logits(states).log_softmax(-1).gather(1, after[:, None])[:, 0]
            torch.testing.assert_close(got_M[: len(after)], logp_T, rtol=0, atol=1e-10)
            asked += len(after)
    assert asked > 8


@torch.no_grad()
def test_what_comes_after_an_anchor_changes_no_thought(method):
    batch = batch_of(ROWS)
    text, anchor_BK, _ = drawn(method, batch)
    first_B1 = anchor_BK[:, :1]
    changed = text.ids_BT.clone()
    behind = torch.arange(changed.shape[1]) > first_B1
    changed[behind & (changed != IGNORE)] = 11

    def at_first(ids_BT):
        own = replace_text(text, ids_BT)
        states = method.backbone(ids_BT, own.role_BT, keep=True)
        branches = reading.Branches(
            method.backbone, states.past, first_B1, method.config.thoughts, method.law, method.markers_2D
        )
        made = reading.draw(method, branches, own, first_B1, batch.keys_B)
        return made.ids_BKGL, branches.close(made)

    for one, other in zip(at_first(text.ids_BT), at_first(changed), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert not torch.equal(text.ids_BT, changed)


def replace_text(text, ids_BT):
    return text._replace(ids_BT=ids_BT)


def written(method, control=None, **options):
    prompt_BP = batch_of(ROWS).prompt_BP
    return method.generate(prompt_BP, max_new_tokens=5, control=control, **options)


def test_without_thoughts_it_writes_what_the_model_writes(method):
    """w = 0 and no thought at all: the same tokens as greedy decoding, thinking tokens apart."""
    prompt_BP = batch_of(ROWS).prompt_BP
    zero, none = written(method, "zero"), written(method, effort=0)
    assert zero.tokens == none.tokens and sum(none.latent_steps) == 0 < sum(zero.latent_steps)
    for row, said in zip(prompt_BP, none.tokens, strict=True):
        ids = row[row != IGNORE].tolist()
        for token in said:
            states = method.backbone(torch.tensor([ids]), torch.full((1, len(ids)), int(Role.PROMPT)))
            logits_V = method.backbone.logits(states.hidden_BTD[0, -1])
            logits_V[list(method.markers.thinking)] = -torch.inf
            assert int(logits_V.argmax()) == token
            ids.append(token)


def test_controls_feed_other_thoughts_of_the_same_length(method):
    fed = {}
    for control in (None, "shuffle", "noise", "filler"):
        with method.backbone.tap() as calls:
            response = written(method, control)
        thoughts = [c.ids_BT for c in calls if c.ids_BT is not None and (c.role_BT == Role.THOUGHT).any()]
        fed[control] = torch.cat(thoughts[len(thoughts) // 2 :] if control else thoughts, 1)
        assert not {36, 35} & {token for row in response.tokens for token in row}
    filler = fed["filler"][fed["filler"] != IGNORE]
    assert (filler == MARKERS.answer_prefix[-1]).sum() >= len(filler) // 2
    assert len({str(ids.tolist()) for ids in fed.values()}) == 4
    with pytest.raises(ValueError, match="at least 2 prompts"):
        method.generate(batch_of([0]).prompt_BP, max_new_tokens=1, control="shuffle")


def test_costs_are_those_of_the_thoughts_before_the_answer(method):
    response = method.generate(batch_of([1]).prompt_BP, max_new_tokens=1)
    with method.backbone.tap() as calls:
        method.generate(batch_of([1]).prompt_BP, max_new_tokens=1)
    thinking = [call for call in calls if (call.role_BT == Role.THOUGHT).any()]
    assert response.latent_steps == [len(thinking)]  # one greedy thought: a token a pass
    assert response.passes == [len(thinking) + 1]  # and the token that was written


def test_only_uncertain_places_think(method):
    other = make("thoughts").double().eval()
    other.threshold.nats_1.fill_(100.0)
    assert sum(written(other).latent_steps) == 0
    assert written(other).tokens == written(method, effort=0).tokens


def test_the_threshold_finds_the_share_it_was_given():
    threshold, draw = Threshold(0.2), torch.Generator().manual_seed(0)
    for _ in range(400):
        threshold.observe(torch.rand(200, generator=draw))
        threshold.settle()
    assert abs(float(threshold.nats_1) - 0.8) < 0.05


def test_training_keeps_figures_of_what_it_saw():
    made = make("thoughts")
    before = {name: buffer.clone() for name, buffer in made.named_buffers()}
    made.eval()(batch_of(ROWS))
    made.pace(0.5)
    assert all(torch.equal(before[name], buffer) for name, buffer in made.named_buffers())
    made.train()(batch_of(ROWS))
    made.pace(0.5)
    assert (made.running.std_C() > 0).all() and made.centre.mean_D().any()
    assert float(made.threshold.nats_1) > 0


def test_running_text_thinks_too(method):
    batch = running_text(ROWS)
    text = text_of(batch, method.markers, visible=False)
    assert int((text.label_BT != IGNORE).sum()) == int((batch.prompt_BP != IGNORE).sum()) - len(ROWS)
    _, anchor_BK, thoughts = drawn(method, batch)
    assert (anchor_BK >= 0).any(1).all() and thoughts.length_BKG[anchor_BK >= 0].any()


def test_refusals_name_the_cure():
    with pytest.raises(UserError, match=r"data\.tokenizer\.thinking=true"):
        Thinker(scratch(), ThinkerConfig(), MARKERS)
    with pytest.raises(ValueError, match="thoughts=2"):
        ThinkerConfig(thoughts=1)
    with pytest.raises(ValueError, match="floor=12, cap=8"):
        ThinkerConfig(floor=12, cap=8)
    for key in ("floor", "cap", "divisor"):
        with pytest.raises(ValueError, match="greater than or equal to 1"):
            ThinkerConfig(**{key: 0})
    with pytest.raises(ValueError, match="nothing would be learned"):
        ThinkerConfig(weights={"text": 0, "mix": 0, "policy": 0})
    assert replace(MARKERS, thinking=(36, 35)).thinking


@pytest.mark.parametrize("control", [None, "shuffle", "noise", "filler"])
def test_room_made_beforehand_writes_the_same(method, control):
    prompt_BP = batch_of(ROWS).prompt_BP
    found = []
    for static in (False, True):
        made = Thinker(method.backbone, method.config.model_copy(update={"static": static}), method.markers)
        made.load_state_dict(method.state_dict())
        made.double().eval()
        found.append(made.generate(prompt_BP, max_new_tokens=6, control=control))
    assert found[0].tokens == found[1].tokens and found[0].passes == found[1].passes
