"""The audit against a naive twin, what it leaves alone, and a model that leaks: found out, and held back."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from quietreasoning.backbone import BackboneConfig, ScratchConfig, load_backbone
from quietreasoning.backbone.sampling import permitted
from quietreasoning.config import UserError
from quietreasoning.data.config import Format
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.example import Example
from quietreasoning.data.tokenizers import train_bpe, train_words
from quietreasoning.evaluate.answer_only import AnswerOnly, together
from quietreasoning.evaluate.config import EvalConfig
from quietreasoning.evaluate.controls import Arm
from quietreasoning.evaluate.harness import evaluate
from quietreasoning.evaluate.leakage import Audit, leakage, leakage_lines, repeated, runs, words, working
from quietreasoning.evaluate.rationale import RATIONALE, pattern, straight
from quietreasoning.evaluate.rows import load, pool, save
from quietreasoning.methods import METHODS

STEPS = ("Tom has 3 + 4 = 7 pens", "He gives 2 pens away : 7 - 2 = 5")
ROW = Example("a", "Tom has 3 and 4 pens, gives 2 away?", STEPS, ("7", "5"), "5 pens")
ANSWERS = (
    "5 pens",
    "Because\n3 + 4 = 7,  therefore 5 pens left",
    "First, he gives 2 pens away: 7 - 2 = 5 . So 5 pens",
    "Let’s think step by step. <think>hm</think> 5  pens",
    "<reasoning>3 and 4, never closed",
    "firstborn, thusly",  # words of the lexicon inside others
    "",
)
BPE = train_bpe([*ANSWERS, *STEPS, "Zwölf süße Bärchen … 因为"] * 3, 330)
BPE_TEXT = Encoder(BPE).text


def naive(ids, example, lexicon):
    """Token by token: whether the characters that it adds touch one that leaks."""
    text = straight(BPE_TEXT(ids))
    bad = [False] * len(text)
    for span in [m.span() for m in pattern(lexicon).finditer(text)] + repeated(text, working(example)):
        bad[slice(*span)] = [True] * (span[1] - span[0])
    count = at = 0
    for n in range(1, len(ids) + 1):
        now = len(BPE_TEXT(ids[:n]))
        fresh = [i for i in range(at, now) if not text[i].isspace()]
        # white space inside a span counts where both of its neighbours do
        inside = any(bad[i] for i in fresh) if fresh else 0 < now < len(text) and bad[now - 1] and bad[now]
        count, at = count + inside, now
    return count


def test_shares_are_those_of_a_reading_token_by_token():
    audit = Audit(RATIONALE, BPE_TEXT)
    for answer in (*ANSWERS, "Zwölf süße Bärchen because 因为 3 + 4 = 7 pens …"):
        ids = BPE(answer, add_special_tokens=False).input_ids
        found = audit.read(ids, ROW)
        assert (found.tokens, found.either) == (len(ids), naive(ids, ROW, RATIONALE)), answer
    counts = [audit.read(BPE(a, add_special_tokens=False).input_ids, ROW) for a in ANSWERS]
    assert [bool(c.lexicon) for c in counts] == [False, True, True, True, True, False, False]
    assert [bool(c.steps) for c in counts] == [False, True, True, False, False, False, False]
    thinking = Audit((), BPE_TEXT, thinking=(3, 4, 5)).read([9, 3, 9, 4, 9, 5, 9, 3, 9], ROW)
    assert (thinking.lexicon, thinking.either) == (6, 6)


def test_what_question_results_and_gold_say_is_no_working_unless_gold_tells_a_step():
    assert not runs(words(ROW.prompt)) & working(ROW)
    last = replace(ROW, answer="7 - 2 = 5", results=("7", "7 - 2 = 5"))
    assert ("7", "-", "2", "=") in working(ROW) - working(last)
    leaking = replace(ROW, answer=f"{STEPS[0]} . {STEPS[1]} . 5")
    assert working(leaking) == working(ROW)
    assert working(replace(ROW, steps=("5 pens",), results=("",))) == set()


def test_an_interval_never_ends_below_what_so_few_answers_can_prove():
    assert leakage([]) is None
    audit = Audit(("so",), BPE_TEXT)
    clean, bad = (BPE(text, add_special_tokens=False).input_ids for text in ("5 pens", "so 5 pens"))
    none = leakage([audit.read(clean, ROW)] * 20)
    assert none["share"] == none["low"] == 0 and 0.1 < none["high"] < 0.2
    mixed = leakage([audit.read(ids, ROW) for ids in [clean] * 19 + [bad]])
    assert 0 <= mixed["low"] < mixed["share"] < mixed["high"] < 0.3 and mixed["answers"] == 1


# a model that leaks

NODES = "a b c d".split()
WORDS = train_words(["because therefore so , . : # 0 1 2 " + " ".join(NODES)])
TEXT = Encoder(WORDS, Format(answer_prefix=":", step_suffix="\n"))
LEXICON = ("because", "so , then", ",")


def rows(n, seed):
    """`a b` asks for b; the step says so in four words."""
    draw = torch.Generator().manual_seed(seed)
    for i in range(n):
        first, last = (NODES[j] for j in torch.randint(4, (2,), generator=draw).tolist())
        yield Example(str(i), f"{first} {last}", (f"{first} , {last} 0",), (last,), last)


@cache
def leaker():
    """Two layers that have learned to tell the step in most of their answers."""
    torch.manual_seed(0)
    shape = ScratchConfig(layers=1, width=32, heads=2, mlp=64, context=32)
    backbone = load_backbone(BackboneConfig(scratch=shape), len(WORDS))
    method = METHODS["plain"](backbone, METHODS["plain"].Config(), TEXT.markers())
    told = [
        replace(row, answer=f"because {row.steps[0]} {row.answer}" if i % 4 else row.answer)
        for i, row in enumerate(rows(256, 1))
    ]
    optimizer = torch.optim.AdamW(method.parameters(), 3e-3)
    for step in range(90):
        batch = TEXT.batch(told[step % 4 * 64 : step % 4 * 64 + 64])
        (term,) = method(batch).terms.values()
        optimizer.zero_grad()
        (term.total / method.units(batch)["token"]).backward()
        optimizer.step()
    return method


def ask(**settings):
    config = EvalConfig(n=None, lexicon=LEXICON, **{"timing": 0, "max_new_tokens": 12, **settings})
    method = leaker()
    return evaluate(
        [Arm(method, "plain")],
        list(rows(40, 2)),
        task="pairs",
        scorer="exact",
        encode_prompt=lambda example: TEXT.encode(example).prompt,
        decode=TEXT.text,
        config=config,
        tokenizer=WORDS,
    )


def test_a_model_that_was_trained_to_leak_is_found_out_and_the_bias_holds_it_back(tmp_path):
    free, held = ask(), ask(rationale_bias=30.0)
    row, other = free.row("plain"), held.row("plain")
    assert row["leakage"]["share"] > 0.5 and row["leakage"]["steps"] > 0.4 and row["leakage"]["lexicon"] > 0.2
    assert row["leakage"]["answers"] + row["correct"] == row["n"] and row["accuracy"] < 0.5
    assert other["leakage"]["share"] == 0 and other["accuracy"] > 0.8
    assert leakage_lines(free.rows)[0].startswith("plain: ") and "no leakage" in leakage_lines(held.rows)[0]
    (both,) = pool([row, other | {"seed": 1}])
    tokens = row["leakage"]["tokens"] + other["leakage"]["tokens"]
    assert both["leakage"]["tokens"] == tokens
    assert both["leakage"]["share"] == pytest.approx(
        row["leakage"]["share"] * row["leakage"]["tokens"] / tokens
    )
    save(tmp_path / "rows.json", [free])
    assert load(tmp_path / "rows.json") == [free]
    assert ask(rationale_bias=0.0).rows[0]["leakage"] == row["leakage"]


def test_a_stop_text_ends_an_answer_and_is_cut_off():
    free, stopped = ask(samples=40), ask(samples=40, stop=(" 0",))
    before = free.samples[0]["answer"].partition(" 0")[0]
    assert stopped.samples[0]["answer"] == before and before.startswith("because")
    assert stopped.samples[0]["written"].endswith("0")  # the model wrote no token behind it
    left = sum(len(sample["answer"].split()) for sample in stopped.samples)  # a token a word
    assert stopped.row("plain")["leakage"]["tokens"] == left < free.row("plain")["leakage"]["tokens"]


def test_the_bias_acts_on_what_completes_a_phrase_and_on_nothing_else():
    method, logits_V = leaker(), torch.randn(len(WORDS))
    held = AnswerOnly(WORDS, ("because", "so , .", "unknown words", ","), bias=3.0)
    with_so = AnswerOnly(WORDS, ("so , .",), bias=2.0)
    vocabulary = WORDS.get_vocab()
    for said, ends in (
        ("", "because ,"),
        ("a so", "because ,"),
        ("a so ,", "because , ."),
        ("so a ,", "because ,"),
    ):
        tokens = WORDS(said).input_ids
        after_V = permitted(logits_V[None], held.permit(method), [tokens], [True], 0)[0]
        wanted_V = logits_V.clone()
        wanted_V[[vocabulary[word] for word in ends.split()]] -= 3.0
        assert torch.equal(after_V, wanted_V)
    assert with_so.permit(method)(0, [], logits_V) is None
    only_V = torch.zeros(len(WORDS), dtype=torch.bool)
    only_V[[5, vocabulary[","]]] = True
    both = together([lambda row, tokens, logits_V: only_V, held.permit(method)])(0, [], logits_V)
    assert both.isfinite().nonzero()[:, 0].tolist() == only_V.nonzero()[:, 0].tolist()
    assert both[vocabulary[","]] == -3


def test_a_bias_without_a_token_to_act_on_is_refused():
    with pytest.raises(UserError, match=r"eval\.rationale_bias=1\.0 has nothing to act on"):
        AnswerOnly(WORDS, ("zebra", "so zebra"), bias=1.0)
    with pytest.raises(ValueError, match="lexicon holds an empty text"):
        EvalConfig(lexicon=("so", " "))
