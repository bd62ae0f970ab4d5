"""What `examine` hands out, against naive twins: readouts, continuations, and what thoughts are worth."""

import sys
from pathlib import Path

import pytest
import torch

from quietreasoning.contract import IGNORE, Role
from quietreasoning.methods.thoughts import examining, reading
from quietreasoning.methods.thoughts.text import text_of

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
from contract_cases import MARKERS, batch_of, make
from contract_cases import text_of as running_text

ROWS = [0, 1, 2, 5]
LATENT = ("continuous", "slots", "recursion", "recursion-affine", "pause")


def greedy(backbone, ids, length, closed):
    said = []
    for _ in range(length):
        read = torch.tensor([[*ids, *said]])
        logits_V = backbone.logits(backbone(read, torch.full_like(read, int(Role.STEP))).hidden_BTD[0, -1])
        logits_V[list(closed)] = -torch.inf
        said.append(int(logits_V.argmax()))
    return said


def real(row):
    return row[row != IGNORE].tolist()


@torch.no_grad()
@pytest.mark.parametrize("case", LATENT)
def test_one_thought_a_row_is_worth_the_answers_log_likelihood(case):
    """Teacher forcing token by token: the answer's log p with the thoughts less that with zeros."""
    method, batch = make(case).eval(), batch_of(ROWS)
    found = method.examine(batch)
    assert found.row == list(range(len(ROWS))) and found.plain_score is None
    assert all(
        len(one) == len(other) > 0 for one, other in zip(found.tokens, found.continuation, strict=True)
    )
    assert all(score < 0 for score in found.score) and any(abs(u) > 1e-6 for u in found.utility)
    for b, row in enumerate(ROWS):
        alone = method.examine(batch_of([row]))
        assert alone.tokens[0] == found.tokens[b]
        assert alone.utility[0] == pytest.approx(found.utility[b], abs=1e-4)
        prompt_1P = batch_of([row]).prompt_BP
        closed = (MARKERS.eos,)
        assert found.continuation[b] == greedy(
            method.backbone, real(prompt_1P[0]), len(found.tokens[b]), closed
        )
        worth = [
            answer_log_p(method, prompt_1P, real(batch.answer_BA[b]), control) for control in (None, "zero")
        ]
        assert worth[0] - worth[1] == pytest.approx(found.utility[b], abs=1e-4)


def answer_log_p(method, prompt_1P, answer, control):
    ready = method.prepare(prompt_1P, control, None, 8)  # prompt, thoughts and answer prefix, read
    states, total = ready.states, 0.0
    for token in answer:
        total += float(method.backbone.logits(states.hidden_BTD[0, -1]).log_softmax(-1)[token])
        ids = torch.tensor([[token]])
        states = method.backbone(ids, torch.full_like(ids, int(Role.ANSWER)), states.past)
    return total


@pytest.mark.parametrize("case", ["plain", "cot", "continuous-none", "slots-none", "pause-none", "workspace"])
def test_what_cannot_be_read_says_so(case):
    assert make(case).eval().examine(batch_of(ROWS)) is None


@torch.no_grad()
@pytest.mark.parametrize("made", [batch_of, running_text], ids=["questions", "text"])
def test_hidden_thoughts_are_those_of_training(made):
    method, batch = make("thoughts").double().eval(), made(ROWS)
    for kind in range(4):
        method.running.observe(kind, torch.tensor([0.0, 1.0, 3.0]))
    method.running.settle()
    found = method.examine(batch)
    text = text_of(batch, method.markers, visible=False)
    anchor_BK, thoughts, _ = reading.think(method, text, batch.keys_B)
    read = reading.read(method, text, anchor_BK, thoughts)
    own_BKGM, _ = reading.alone(method, read)
    base_BKM = reading.true_log_probs(method, read.base_BKMD, read.tree.labels_BKM, read.counted_BKM)
    at = read.counted_BKM.any(-1)[..., None].expand(-1, -1, method.config.thoughts).nonzero().tolist()
    assert found.row == [b for b, _, _ in at] and len(set(map(tuple, found.tokens))) > 4
    closed = (MARKERS.eos, *method.markers.thinking)
    for i, (b, k, g) in enumerate(at):
        length = int(thoughts.length_BKG[b, k, g])
        assert found.tokens[i] == thoughts.ids_BKGL[b, k, g, :length].tolist()
        gained = ((own_BKGM[b, k, g] - base_BKM[b, k]) * read.counted_BKM[b, k]).sum()
        assert found.utility[i] == pytest.approx(float(gained), abs=1e-10)
        if i % 5 == 0:
            before = real(text.ids_BT[b, : int(anchor_BK[b, k]) + 1])
            assert found.continuation[i] == greedy(method.backbone, before, length, closed)


@torch.no_grad()
def test_the_score_is_the_composite_and_the_plain_one_leaves_expected_utility_out():
    method, batch = make("thoughts").double().eval(), batch_of(ROWS)
    method.utility[-1].bias.fill_(5.0)
    for kind in range(4):
        method.running.observe(kind, torch.tensor([0.0, 2.0]))
    method.running.settle()  # mean 1, deviation 1
    before = method.examine(batch)
    method.utility[-1].bias.fill_(6.0)
    after = method.examine(batch)
    moved = [b - a for a, b in zip(before.score, after.score, strict=True)]
    assert moved == pytest.approx([method.config.coherence.predictive] * len(moved), abs=1e-6)
    assert before.plain_score == after.plain_score and before.utility == after.utility
    assert examining.examine(method, batch_of([0, 1])).row[0] == 0
