"""The made-up world: exact mentions, Zipf's law, what is held out, what knowing nothing scores."""

from collections import Counter
from functools import cache

import pytest

from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE
from quietreasoning.data.config import DataConfig, build_task
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.example import Example
from quietreasoning.data.tasks import TASKS
from quietreasoning.data.tasks.encyclopaedia import QUESTIONS, STATEMENTS
from quietreasoning.data.tasks.world import zipf
from quietreasoning.data.tokenizers import build_tokenizer, train_words
from quietreasoning.evaluate.scorers import SCORERS
from quietreasoning.validation import validate

SMALL = {"facts": 601, "relations": 4, "values": 20, "mentions": 5000}
CASES = [
    SMALL,
    SMALL | {"exponent": 0.0, "name_words": 1, "words": 400},
    SMALL | {"exponent": 1.5, "questions": 0.9},
]


@cache
def make(case: int = 0, seed: int = 0):
    return TASKS["encyclopaedia"](TASKS["encyclopaedia"].Config(**CASES[case]), seed=seed)


@cache
def rows(case: int = 0, split: str = "train", seed: int = 0):
    return list(make(case, seed).split(split))


def fact_of(example):
    return example.meta["entity"], example.meta["relation"]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_each_fact_is_told_exactly_as_often_as_it_says(case):
    train = rows(case)
    assert len(train) == 5000 and len({example.id for example in train}) == 5000
    told = Counter(map(fact_of, train))
    assert len(told) == 601
    for example in (*train, *rows(case, "valid"), *rows(case, "test")):
        assert told[fact_of(example)] == example.meta["popularity"]
        assert example.meta["rare"] == (example.meta["popularity"] < 5)
        assert example.meta["entity"] in example.prompt and example.meta["relation"] in example.prompt


@pytest.mark.parametrize("case", range(len(CASES)))
def test_no_fact_collides(case):
    world = make(case).world
    assert len(set(world.names)) == len(world.names) == 151
    assert len({(fact.entity, fact.relation) for fact in world.facts}) == len(world.facts) == 601
    pools = [set(pool) for pool in world.values.values()]
    assert all(len(pool) == 20 for pool in pools) and len(set().union(*pools)) == 80
    assert not {word for name in world.names for word in name.split()} & set().union(*pools)
    said = {}
    for split in ("train", "valid", "test"):
        for example in rows(case, split):
            assert said.setdefault(fact_of(example), example.answer) == example.answer
            assert example.answer in world.values[example.meta["relation"]]
            assert example.answer not in example.prompt.split()


@pytest.mark.parametrize("case", range(len(CASES)))
def test_what_is_held_out(case):
    """Every fact is stated, none is asked in training as validation or test asks it, templates all occur."""
    stated, asked = set(), set()
    for example in rows(case):
        template = example.meta["template"]
        (stated if template in STATEMENTS else asked).add((fact_of(example), template))
    assert {fact for fact, _ in stated} == {fact_of(e) for e in rows(case)}
    assert {template for _, template in asked} == set(QUESTIONS)
    prompts = {example.prompt for example in rows(case)}
    facts = {}
    for split in ("valid", "test"):
        facts[split] = [fact_of(example) for example in rows(case, split)]
        for example in rows(case, split):
            assert example.meta["template"] in QUESTIONS
            assert (fact_of(example), example.meta["template"]) not in asked
            assert example.prompt not in prompts
    assert not set(facts["valid"]) & set(facts["test"])
    assert len(facts["valid"]) + len(facts["test"]) == len({*facts["valid"], *facts["test"]}) == 601


def test_mentions_are_statements_and_questions_in_the_share_asked_for():
    for case, share in ((0, 0.5), (2, 0.9)):
        questions = Counter(fact_of(e) for e in rows(case) if e.meta["template"] in QUESTIONS)
        for fact in make(case).world.facts:
            assert questions[fact.entity, fact.relation] == int(fact.mentions * share)
    often = make().world.facts[0]
    templates = Counter(e.meta["template"] for e in rows() if fact_of(e) == (often.entity, often.relation))
    statements = [templates[each] for each in STATEMENTS]
    assert max(statements) - min(statements) <= 1


def test_splits_ask_equally_popular_facts():
    rare = [sum(e.meta["rare"] for e in rows(0, split)) / len(rows(0, split)) for split in ("valid", "test")]
    assert abs(rare[0] - rare[1]) < 0.01 and 0.5 < rare[0] < 0.9


@pytest.mark.parametrize(
    ("facts", "mentions", "exponent"), [(8000, 64_000, 1.0), (500, 20_000, 0.7), (9, 9, 2)]
)
def test_zipf_counts(facts, mentions, exponent):
    counts = zipf(facts, mentions, exponent)
    assert sum(counts) == mentions and len(counts) == facts and min(counts) >= 1
    assert counts == sorted(counts, reverse=True)
    constant = counts[0]
    for rank, count in enumerate(counts, start=1):
        expected = constant / rank**exponent
        assert abs(count - max(1, expected)) <= 1.5, rank


def test_zipf_with_no_exponent_is_even():
    assert zipf(7, 30, 0.0) == [5, 5, 4, 4, 4, 4, 4]


def test_examples_depend_on_seed_and_index_alone():
    task = TASKS["encyclopaedia"](TASKS["encyclopaedia"].Config(**SMALL))
    for split in ("train", "valid", "test"):
        few, whole = task.split(split, 20), rows(0, split)
        assert len(few) == 20 and list(few) == whole[:20]
        assert [few[i] for i in (7, 0, 19)] == [whole[i] for i in (7, 0, 19)]
        other = rows(0, split, 1)
        assert not {e.prompt for e in other[:50]} & {e.prompt for e in whole[:50]}
    assert len(task.split("valid", 10_000)) == len(rows(0, "valid"))


def test_shortcuts_know_the_relation_alone_and_score_like_chance():
    asked = [*rows(0, "valid"), *rows(0, "test")]
    task = make()
    common = {}
    for example in rows():
        common.setdefault(example.meta["relation"], Counter())[example.answer] += 1
    for rule in ("common-value", "random-value"):
        guesses = [task.shortcuts(example)[rule] for example in asked]
        right = sum(SCORERS["exact"](guess, e) for guess, e in zip(guesses, asked, strict=True))
        assert 0.01 < right / len(asked) < 0.12  # one in 20
    for example in asked:
        counts = common[example.meta["relation"]]
        assert counts[task.shortcuts(example)["common-value"]] == max(counts.values())


def test_groups_are_bins_of_popularity():
    task = make()
    bins = {
        1: "told 1",
        2: "told 2-4",
        4: "told 2-4",
        5: "told 5-16",
        17: "told 17-64",
        65: "told 65 or more",
    }
    for popularity, name in bins.items():
        assert task.group(Example("x", "p", (), (), "a", {"popularity": popularity})) == name


@pytest.mark.parametrize("train", ["words", "bpe"])
def test_rows_encode_and_carry_whether_they_are_rare(train):
    data = DataConfig(task="encyclopaedia", options=SMALL, tokenizer={"train": train, "examples": 50})
    task = build_task(data)
    encoder = Encoder(build_tokenizer(data, task), data.format)
    for split in ("train", "test"):
        some = task.split(split, 60)
        batch = encoder.batch(some)
        assert batch.rare_B.tolist() == [example.meta["rare"] for example in some]
        assert {0, 1} == set(batch.rare_B.tolist())
        for row, example in zip(batch.answer_BA.tolist(), some, strict=True):
            assert encoder.text([i for i in row if i != IGNORE]) == example.answer


def test_rows_of_other_tasks_do_not_say_whether_they_are_rare():
    encoder = Encoder(train_words(["a ####"]))
    assert encoder.batch([Example("x", "a", (), (), "a")]).rare_B.tolist() == [IGNORE]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"options": {"mentions": 100}}, "mentions=100 must be at least facts=8000"),
        ({"options": {"relations": 17}}, "relations"),
        ({"options": {"questions": 1.0}}, "questions"),
        ({"options": {"name_words": 0}}, "between 1 and 5"),
        ({"train": 500}, r"train has no effect: task encyclopaedia has data\.options\.mentions"),
        ({"path": "x"}, "data.path has no effect"),
    ],
)
def test_mistakes_are_one_clear_line(given, message):
    with pytest.raises(UserError, match=message) as caught:
        validate(DataConfig, {"task": "encyclopaedia"} | given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name_words": 1, "words": 100}, r"100 words give too few names; raise data\.options\.words"),
        ({"words": 60_000}, r"needs 60,080 different words and has 49,000; lower"),
    ],
)
def test_a_world_that_cannot_be_is_refused(options, message):
    task = TASKS["encyclopaedia"](TASKS["encyclopaedia"].Config(**(SMALL | options)))
    with pytest.raises(UserError, match=message):
        task.split("valid")


def test_asked_rows_are_validation_questions_and_the_test_stays():
    told = make()
    asked = TASKS["encyclopaedia"](TASKS["encyclopaedia"].Config(**SMALL, rows="asked"), seed=0)
    train, valid = (list(asked.split(name)) for name in ("train", "valid"))
    assert len(train) > 8 * len(valid) > 0 and list(asked.split("test")) == list(told.split("test"))
    said = {(e.prompt, e.answer) for e in told.split("valid")}
    assert {(e.prompt, e.answer) for e in (*train, *valid)} == said and len(said) == len(train) + len(valid)
    assert list(asked.vocabulary()) == list(told.vocabulary())
