"""GRPO with a task's own reward: the judge sees the right rows, unfinished answers earn nothing."""

from functools import cache
from itertools import islice

import pytest
import torch
from test_grpo import state_of

from quietreasoning.backbone import BackboneConfig, ScratchConfig, load_backbone
from quietreasoning.contract import IGNORE
from quietreasoning.data.batches import Batches
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.example import Example
from quietreasoning.data.tokenizers import train_words
from quietreasoning.equip import equip, judge
from quietreasoning.methods import METHODS
from quietreasoning.train.loop import train
from quietreasoning.train.snapshot import load_state, load_weights, save_state

WORDS = "a b c d"
EXAMPLES = [
    Example(str(i), " ".join(WORDS.split()[: 1 + i % 4]), (), (), WORDS.split()[i % 4], {}) for i in range(6)
]


@cache
def encoder():
    return Encoder(train_words([f"{WORDS} ####"]))


def method_of(seed=0, by="task", **reward):
    coder = encoder()
    torch.manual_seed(seed)
    shape = ScratchConfig(layers=1, width=16, heads=2, mlp=16, context=32, init_std=0.3)
    backbone = load_backbone(BackboneConfig(scratch=shape), len(coder.tokenizer))
    reward = {"by": by, "group": 4, "max_answer_tokens": 3, "kl": 0.1, "temperature": 1.5} | reward
    return METHODS["plain"](backbone, METHODS["plain"].Config(reward=reward), coder.markers()).train()


@cache
def batches():
    return Batches(EXAMPLES, encoder(), batch_size=6, seed=3)


def run(method, lanes=1, steps=3, upto=None, state=None):
    """(state, records) of a training on all rows, with a judge that keeps what it was asked."""
    equip(method, EXAMPLES, encoder(), "exact")
    given, asked = method.judge, []

    def keeping(row_N, tokens_NT):
        asked.append((row_N.tolist(), tokens_NT.tolist()))
        return given(row_N, tokens_NT)

    method.judge = keeping
    state, config, optim = state or state_of(method, steps, lanes)
    records = islice(train(state, batches().batch_at, config, optim), upto)
    return state, [{"loss": r.loss, **r.losses, **r.metrics} for r in records], asked


def test_what_ends_with_the_gold_words_earns_and_what_does_not_end_earns_nothing():
    ids = {word: encoder().tokenizer(f" {word}").input_ids[0] for word in WORDS.split()}
    eos = encoder().tokenizer.eos_token_id
    said = judge(EXAMPLES, encoder(), lambda text, example: float(text == example.answer))
    tokens_NT = torch.tensor([[ids["a"], eos], [ids["a"], ids["a"]], [ids["b"], eos], [eos, IGNORE]])
    assert said(torch.tensor([0, 0, 0, 0]), tokens_NT).tolist() == [1, 0, 0, 0]
    assert said(torch.tensor([1, 4, 1, IGNORE]), tokens_NT).tolist() == [0, 0, 1, 0]


def test_each_answer_is_judged_by_its_own_row_however_the_rows_are_cut():
    seen = []
    for lanes in (1, 3):
        _, records, asked = run(method_of(least_visits=1.0), lanes, steps=2)
        # what a row's answers were, step by step; padding depends on the neighbours
        pairs = [
            (row, [id for id in answer if id != IGNORE])
            for rows, answers in asked
            for row, answer in zip(rows, answers, strict=True)
        ]
        assert sorted(row for row, _ in pairs) == sorted(list(range(6)) * 2 * 4)
        seen.append((pairs[: 6 * 4], records))
    assert seen[0][0] == seen[1][0]
    for one, other in zip(seen[0][1], seen[1][1], strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)


def test_a_resume_is_exact(tmp_path):
    through, records, _ = run(method_of())
    first, half, _ = run(method_of(), upto=1)
    folder = save_state(first, tmp_path, run={}, position={})
    method = method_of(seed=9)
    load_weights(folder, method)
    again = state_of(method, 3)
    assert load_state(again[0], folder) == []
    assert half + run(method, state=again)[1] == records
    for name, tensor in through.method.state_dict().items():
        assert torch.equal(tensor, method.state_dict()[name]), name


def test_a_file_of_rules_is_a_reward(tmp_path):
    file = tmp_path / "rules.yaml"
    file.write_text("rules:\n  - {id: said, kind: acceptance, expect: [b]}\n")
    method = method_of(by="rules", rules=str(file))
    equip(method, EXAMPLES, encoder(), "exact")
    ids = [encoder().tokenizer(f" {word}").input_ids[0] for word in "bc"]
    eos = encoder().tokenizer.eos_token_id
    worth = method.judge(torch.tensor([0, 0, 0]), torch.tensor([[ids[0], eos], [ids[1], eos], [ids[0]] * 2]))
    assert worth.tolist() == [1, 0, 0]
    with pytest.raises(ValueError, match=r"reward\.by=rules and reward\.rules=FILE belong together"):
        method_of(by="rules")
