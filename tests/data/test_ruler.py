"""RULER: lengths, depths, words that a tokenizer of whole words knows, and what is refused."""

import json
from collections import Counter

import pytest
from pydantic import ValidationError

from quietreasoning.config import UserError
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.tasks.ruler import KINDS, Ruler, RulerConfig
from quietreasoning.data.tokenizers import train_words
from quietreasoning.evaluate.scorers import SCORERS

TINY = {"words": 160, "key_words": 2, "common": 3, "common_times": 9}


def make(seed=0, **options):
    return Ruler(RulerConfig(**options), seed=seed)


@pytest.mark.parametrize("options", [{"length": [120, 200], **TINY}, {"length": [500, 900]}])
def test_a_prompt_is_as_long_as_asked_and_needles_stand_at_their_depths(options):
    """Short by less than a sentence or paragraph; only the needles before one move it off its depth."""
    task = make(**options)
    for example in task.split("train", 26 * 5):
        meta, words = example.meta, example.prompt.split()
        assert meta["words"] == len(words) <= meta["length"]
        longest = 22 if meta["kind"].startswith("qa") else 13
        assert meta["length"] - len(words) < longest, example.id
        if meta["kind"] in ("cwe", "fwe"):
            assert meta["depth"] is None
            continue
        needle = meta["needles"][-1 if meta["kind"] == "qa_2" else 0]
        at = len(example.prompt.partition(needle)[0].split()) / len(words)
        assert example.prompt.count(needle) == 1
        assert abs(at - meta["depth"]) < 60 / len(words), example.id
    groups = Counter(task.group(example) for example in task.split("train", 52))
    assert groups == {f"{n} words: {kind}": 2 for n in options["length"] for kind in KINDS}


def test_every_reference_stands_in_the_prompt_once_asked_for_and_scores():
    """The gold answer scores 1, nothing scores 0, and references never hide in each other."""
    score = SCORERS["references"]
    for example in [*make(length=160, **TINY).split("test", 52), *make(length=600).split("test", 26)]:
        references = example.meta["references"]
        assert all(reference in example.prompt for reference in references)
        assert score(example.answer, example) and not score("", example)
        assert not any(a in b for a in references for b in references if a != b)
        if len(references) > 1:
            assert not score(example.answer.rpartition(references[-1])[0], example)


def test_a_tokenizer_of_whole_words_knows_all_and_counts_the_same():
    task = make(length=160, **TINY)
    encoder = Encoder(train_words([*task.vocabulary(), "####"]))
    for example in task.split("valid", 26):
        encoded = encoder.encode(example)  # refuses unknown words in the answer
        assert len(encoded.prompt) == example.meta["words"] + 1  # the suffix
        assert not encoder.unknown_words(example.prompt)


def test_depth_is_fixed_where_it_is_set_and_counted_apart():
    task = make(length=200, depth=0.5, kinds="niah_single_2", words=64)
    assert {e.meta["depth"] for e in task.split("train", 12)} == {0.5}
    task = make(length=200, groups="depth", kinds="niah_single_2", words=64)
    found = [task.group(e) for e in task.split("train", 20)]
    assert len(set(found)) == 10 and found[:2] == ["depth 0.00", "depth 0.11"] and found[9] == "depth 1.00"


@pytest.mark.parametrize(
    ("kind", "options", "references", "told"),
    [
        ("niah_multivalue", {"values": 3}, 3, 3),
        ("niah_multiquery", {"queries": 2}, 2, 2),
        ("niah_multikey_1", {"keys": 6}, 1, 6),
        ("vt", {"hops": 2, "chains": 3}, 3, 9),
    ],
)
def test_numbers_of_needles_hops_and_chains(kind, options, references, told):
    for example in make(length=300, words=160, kinds=kind, **options).split("train", 12):
        needle = "let " if kind == "vt" else "the number of "
        assert len(example.meta["references"]) == references
        assert example.prompt.rpartition(" wh")[0].count(needle) == told
        assert len(example.steps) == (references if kind == "vt" else 0)


@pytest.mark.parametrize("alpha", [1.5, 2.0])
def test_words_to_count_stand_there_just_as_often_as_said(alpha):
    """No word has two ranks: asked ones are not among the filling, though that has few words to draw from."""
    task = make(length=150, words=96, kinds=["fwe", "cwe"], alpha=alpha, common=3, common_times=9)
    for example in task.split("train", 12):
        intro, _, rest = example.prompt.partition(" : ")
        text, _, question = rest.rpartition(" which ")
        times, asked = Counter(text.split()), example.meta["references"]
        told = [times.pop(word) for word in asked]
        if example.meta["kind"] == "cwe":
            assert told == [9] * 3 and set(times.values()) == {3}
            continue
        room = 150 - len(f"{intro} : which {question}".split())
        found = [times.pop("..."), *told, *sorted(times.values(), reverse=True)]
        every = sorted({n * rank**alpha for rank in range(1, 40) for n in range(1, room + 1)}, reverse=True)
        by_rank = ([int(c / rank**alpha + 1e-9) for rank in range(1, 40)] for c in every)
        assert found == next([n for n in counts if n] for counts in by_rank if sum(counts) <= room)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"kinds": "vt", "keys": 5}, "keys has no effect without kinds=niah_multikey_1"),
        ({"key_words": 2}, "key_words has no effect without words"),
        ({"kinds": "cwe", "depth": 0.5}, "no needle, so depth has no effect"),
        ({"common_times": 3}, "must be more than rare_times"),
        ({"kinds": []}, "give at least one"),
    ],
)
def test_settings_without_effect_are_refused(options, fault):
    with pytest.raises(ValidationError, match=fault):
        make(**options)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (
            {"kinds": "niah_single_1", "length": 12, "words": 16},
            r"niah_single_1 needs \d+ words or more.*raise it",
        ),
        ({"kinds": "niah_multikey_2", "length": 400, "words": 32}, r"different names and found 7: raise"),
        ({"kinds": "cwe", "length": 2000, "words": 64}, r"counts \d+ different words here and has 32: raise"),
        ({"kinds": "fwe", "length": 30, "words": 64}, "no more frequent than the next; raise"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(options, fault):
    with pytest.raises(UserError, match=fault) as caught:
        make(**options).split("train", 1)[0]
    assert "\n" not in str(caught.value)


def test_first_words_never_change_when_more_are_asked_for():
    few, many = (set(make(length=64, kinds="vt", words=n).vocabulary()) for n in (64, 128))
    assert few < many and len(few) - 64 == len(many) - 128
    json.dumps(make(length=64, kinds="vt").example("train", 0).meta["guesses"])
