"""Ids and back: results found inside their steps, limits refused, padding where the contract says."""

import pytest
import torch
from tokenizers import processors

from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE
from quietreasoning.data.config import DataConfig, Format, build_task
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.example import Example
from quietreasoning.data.load import load_split
from quietreasoning.data.results import find_result
from quietreasoning.data.thinking import with_thinking
from quietreasoning.data.tokenizers import build_tokenizer, train_bpe, train_words

SYMBOLS = ("pointer", "reachability", "multiplication", "permutation")
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def example(**changes) -> Example:
    given = {
        "id": "one",
        "prompt": "a > b , b > c ? a 2",
        "steps": ("a > b", "b > c"),
        "results": ("b", "c"),
        "answer": "c",
        "meta": {},
    }
    return Example(**(given | changes))


@pytest.fixture(scope="module")
def words() -> Encoder:
    return Encoder(train_words(["a b c d > , ? 1 2 ####"]))


@pytest.fixture(scope="module")
def bpe():
    return train_bpe(["She makes 9 * 2 = $<<9*2=18>>18 a day.\n#### 18"] * 3, vocab=300)


@pytest.mark.parametrize(
    ("task", "kind"),
    [(task, kind) for task in SYMBOLS for kind in ("words", "bpe")] + [("arithmetic", "bpe")],
)
def test_parts_decode_to_their_texts(task, kind):
    config = DataConfig(task=task, tokenizer={"train": kind, "examples": 50, "vocab": 400}, train=50)
    built = build_task(config)
    encoder = Encoder(build_tokenizer(config, built))
    examples = built.split("train", 20)
    batch = encoder.collate(encoder.encode_many(examples), range(20))
    for row, made in enumerate(examples):

        def words_of(ids: torch.Tensor) -> list[str]:
            return encoder.text(ids[ids != IGNORE].tolist()).split()

        assert words_of(batch.prompt_BP[row]) == made.prompt.split()
        assert words_of(batch.answer_BA[row]) == made.answer.split()
        for i, (step, result) in enumerate(zip(made.steps, made.results, strict=True)):
            assert words_of(batch.steps_BKS[row, i]) == step.split()
            assert words_of(batch.results_BKR[row, i]) == result.split()
        for i in range(len(made.steps), batch.steps_BKS.shape[1]):
            assert (batch.steps_BKS[row, i] == IGNORE).all() and (batch.results_BKR[row, i] == IGNORE).all()


def test_padding_sides_and_endings(words):
    long = example(
        id="two", prompt="a > b , b > c , c > d ? a 1", steps=("a > b",), results=("b",), answer="b"
    )
    batch = words.collate(words.encode_many([example(), long]), [5, 7])
    assert batch.keys_B.tolist() == [5, 7]
    assert batch.prompt_BP[0, 0] == IGNORE and (batch.prompt_BP[:, -1] != IGNORE).all()
    assert batch.prompt_BP.dtype == torch.int64
    eos = words.markers().eos
    assert (batch.answer_BA == eos).sum(dim=1).tolist() == [1, 1]
    assert torch.equal(words.prompts([example(), long]), batch.prompt_BP)


def test_a_batch_without_steps_has_no_step_rows(words):
    bare = example(steps=(), results=())
    batch = words.collate([words.encode(bare)], [0])
    assert batch.steps_BKS.shape == (1, 0, 0) and batch.results_BKR.shape == (1, 0, 0)


@pytest.mark.parametrize(
    ("step", "result", "where"),
    [
        ("a > c", "c", 4),
        ("She makes 9 * 2 = $<<9*2=18>>18 every day", "18", 29),
        ("1+11=12", "1", 0),
        ("118+1=119", "19", 7),
        ("a > b", "z", -1),
        ("a > b", "", -1),
        ("80,000+50,000=$130,000", "130,000", 15),
    ],
)
def test_result_is_the_last_whole_occurrence(step, result, where):
    assert find_result(step, result) == where


def test_result_tokens_of_text(bpe):
    encoder = Encoder(bpe)
    step = "She makes 9 * 2 = $<<9*2=18>>18 a day."
    encoded = encoder.encode(example(steps=(step, "none"), results=("18", ""), answer="18"))
    assert encoder.text(encoded.results.tolist()) == "18"
    assert encoded.result_lengths.tolist() == [2, 0]


def test_a_cut_prompt_keeps_both_ends_and_is_counted(words):
    whole = Encoder(words.tokenizer).encode(example()).prompt.tolist()
    for limit, ends in ((5, (3, 2)), (6, (3, 3)), (11, (11, 0))):
        encoder = Encoder(words.tokenizer, max_prompt_tokens=limit, cut_middle=True)
        kept = encoder.encode(example()).prompt.tolist()
        assert kept == whole[: ends[0]] + whole[11 - ends[1] :] == encoder.prompts([example()])[0].tolist()
        assert encoder.prompting.cut == 2 * (limit < 11)
        assert encoder.prompt_ids([example().prompt])[0].tolist() == whole  # who asks for all gets all


def test_memoised_parts_do_not_change_the_ids(words):
    fresh = Encoder(words.tokenizer)
    fresh.encode_many([example(id=str(i)) for i in range(3)])
    again, first = fresh.encode(example()), Encoder(words.tokenizer).encode(example())
    for part in ("prompt", "steps", "step_lengths", "results", "result_lengths", "answer"):
        assert getattr(again, part).tolist() == getattr(first, part).tolist()


def test_text_keeps_inner_lines_and_indentation(bpe):
    encoder = Encoder(bpe)
    code = "def f(x):\n    if x:\n        return 1"
    ids = encoder.encode(example(answer=code)).answer.tolist()
    assert encoder.text(ids) == code


def test_long_prompts_are_refused_never_cut(words):
    tight = Encoder(words.tokenizer, max_prompt_tokens=5)
    with pytest.raises(UserError, match=r"one: its prompt has 11 tokens.*max_prompt_tokens=5.*too_long=drop"):
        tight.encode(example())
    with pytest.raises(UserError, match="max_prompt_tokens=5"):
        tight.prompts([example()])
    with pytest.raises(UserError, match=r"prompt has 11 tokens, the model's context is 11"):
        Encoder(words.tokenizer, context=11).encode(example())
    # prompt 11, steps 8, prefix 1, answer 1, end 1
    with pytest.raises(UserError, match=r"prompt, steps and answer have 22 tokens.*context is 21"):
        Encoder(words.tokenizer, context=21).encode(example())
    assert Encoder(words.tokenizer, context=22).encode(example())


def test_long_examples_are_dropped_and_counted_within_a_budget():
    settings = {"train": 40, "options": {"hops": [1, 4]}, "tokenizer": {"train": "words"}, "too_long": "drop"}
    config = DataConfig(**settings, max_dropped_fraction=0.9)
    task = build_task(config)
    tokenizer = build_tokenizer(config, task)
    # 35 prompt tokens, then 4 a step, one prefix, one answer, one end
    encoder = Encoder(tokenizer, config.format, context=42)
    kept, dropped = load_split(task, "train", config, encoder)
    assert dropped == sum(e.meta["hops"] == 4 for e in task.split("train", 40)) > 0
    assert {e.meta["hops"] for e in kept} == {1} and len(kept) + dropped == 40
    with pytest.raises(UserError, match=r"of 40 train examples are too long.*max_dropped_fraction=0.05"):
        load_split(task, "train", DataConfig(**settings), encoder)


def test_unknown_answers_and_empty_answers_are_refused(words):
    with pytest.raises(UserError, match="'zebra' holds words that the tokenizer does not know"):
        words.encode(example(answer="zebra"))
    with pytest.raises(UserError, match="empty answer"):
        words.encode(example(answer=" "))


def test_a_suffix_that_vanishes_is_refused(words):
    with pytest.raises(UserError, match="step_suffix=' ' vanishes"):
        Encoder(words.tokenizer, Format(step_suffix=" "))
    with pytest.raises(UserError, match="answer_prefix='=>' is unknown"):
        Encoder(words.tokenizer, Format(answer_prefix="=>"))


def test_chat_template(bpe):
    with pytest.raises(UserError, match=r"no chat template.*format.chat=false"):
        Encoder(bpe, Format(chat=True))
    bpe.chat_template = TEMPLATE
    ids = Encoder(bpe, Format(chat=True, system="Be brief.")).encode(example(prompt="Hi")).prompt
    assert bpe.decode(ids) == "<system>Be brief.<user>Hi<assistant>"
    with pytest.raises(ValueError, match=r"format.system has no effect without format.chat"):
        Format(system="x")


def test_a_start_token_stands_before_prompts_alone():
    tokenizer = train_words(["a b c , > ? 2 ####"])
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    plain = Encoder(tokenizer).encode(example(prompt="a > b ? a 2"))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    started = Encoder(tokenizer).encode(example(prompt="a > b ? a 2"))
    assert started.prompt.tolist() == [tokenizer.bos_token_id, *plain.prompt.tolist()]
    assert started.steps.tolist() == plain.steps.tolist() and started.answer.tolist() == plain.answer.tolist()


def test_results_must_match_steps():
    with pytest.raises(ValueError, match="1 results for 2 steps"):
        example(results=("b",))


def test_rationale_words_count_where_they_are_one_known_token():
    form = Format(rationale=("thus", "so", "absent", "two words", "####"), answer_prefix="####")
    encoder = Encoder(train_words(["thus so x ####"]), form)
    ids = encoder.tokenizer.get_vocab()
    assert encoder.markers().rationale == tuple(sorted([ids["thus"], ids["so"]]))
    trained = train_bpe(["x thus thus thus so, thus\n"] * 50, 400)
    found = Encoder(trained, Format(rationale=("thus", "zebra"))).markers().rationale
    assert trained.convert_ids_to_tokens(list(found)) == ["Ġthus"]
    assert Encoder(trained, Format(rationale=())).markers().rationale == ()


def test_an_instruction_is_read_by_a_teacher_alone(bpe):
    rows = [example(), example(id="other", prompt="How many eggs are left in the basket?")]
    bare, told = (Encoder(bpe, Format(instruction=text)) for text in (None, "Think step by step. "))
    unchanged, batch = bare.batch(rows), told.batch(rows)
    assert unchanged.instructed_BP.shape == (2, 0)
    for name in ("prompt_BP", "steps_BKS", "answer_BA"):
        assert torch.equal(getattr(unchanged, name), getattr(batch, name))
    for row, ids_P in zip(rows, batch.instructed_BP, strict=True):
        assert told.text(ids_P[ids_P != IGNORE].tolist()) == "Think step by step. " + row.prompt
    longest = int((batch.instructed_BP != IGNORE).sum(1).max())
    tight = Encoder(bpe, told.format, context=longest)
    assert tight.fit(rows[1:]) == [False]
    with pytest.raises(UserError, match=r"under format\.instruction"):
        tight.encode(rows[1])


def test_steps_stand_between_tags_where_asked_for():
    tokenizer = with_thinking(train_words(["a b c d > , ? 1 2 ####"]))
    plain, tagged = Encoder(tokenizer), Encoder(tokenizer, Format(tags=True))
    open_, close = tagged.markers().thinking[:2]
    before, after = plain.encode(example()), tagged.encode(example())
    assert after.steps.tolist() == [open_, *before.steps.tolist(), close]
    assert (after.step_lengths - before.step_lengths).tolist() == [1, 1]
    assert (
        after.answer.tolist() == before.answer.tolist() and after.results.tolist() == before.results.tolist()
    )
    bare = example(steps=(), results=())
    assert tagged.encode(bare).steps.tolist() == []
    with pytest.raises(UserError, match=r"data\.tokenizer\.thinking=true"):
        Encoder(train_words(["a b c d > , ? 1 2 ####"]), Format(tags=True))
