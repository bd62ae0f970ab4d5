"""The strategies data set: shares, vocabulary, prompts; validators that pass their own and fail the rest."""

import functools
import json
from collections import Counter

import pytest

from quietreasoning.config import UserError
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.strategies.forms import STRATEGIES, pieces_of, response
from quietreasoning.data.strategies.overlap import overlapping
from quietreasoning.data.strategies.prompts import COMPOSITE_PROMPT, SHORT_PROMPT
from quietreasoning.data.strategies.validators import appropriate, strategy_of, usage, validate, verified
from quietreasoning.data.tags import THINKING, untagged
from quietreasoning.data.tasks import TASKS
from quietreasoning.data.thinking import with_thinking
from quietreasoning.data.tokenizers import train_words


def task(**options):
    return TASKS["strategies"](TASKS["strategies"].Config.model_validate(options))


@functools.cache
def examples(split="train", n=360):
    return tuple(task().split(split, n))


def written(example) -> str:
    return response(example.steps, example.answer)


def test_any_number_keeps_the_shares():
    whole = task().split("train")
    assert len(whole) == 1800 and len({e.prompt for e in whole}) >= 1600
    counts = Counter(e.meta["strategy"] for e in examples())
    assert counts.pop("chain-of-thought") == 80 and set(counts.values()) == {40} and len(counts) == 7
    assert all(e.meta["strategy"] in e.meta["acceptable"] for e in examples())


def test_every_thought_passes_its_own_validator_and_no_other():
    for example in (*examples(), *examples("test", 90)):
        text, own = written(example), example.meta["strategy"]
        assert [s for s in STRATEGIES if validate(text, s)] == [own], text
        assert strategy_of(text) == own and verified("\n".join(example.steps), example.answer)
        assert pieces_of("\n".join(example.steps)) == example.steps


BREAKS = {
    "no close": lambda t: t.replace("</think>", ""),
    "no open": lambda t: t.replace("<think>", ""),
    "two opens": lambda t: "<think> " + t,
    "swapped": lambda t: t.replace("<think>", "@").replace("</think>", "<think>").replace("@", "</think>"),
    "words before": lambda t: f"sure . {t}",
    "no answer": lambda t: t.partition("####")[0],
    "no tag within": lambda t: f"<think> {untagged(t.partition('####')[0])} </think> #### 1",
    "empty": lambda t: "<think> </think> #### 1",
    "empty section": lambda t: t.replace("</think>", "<step> </think>"),
    "strange tag": lambda t: t.replace("</think>", "<plan> a </think>"),
    "tag after": lambda t: f"{t} <step> more",
    "nothing": lambda t: "",
}


@pytest.mark.parametrize("name", BREAKS)
def test_broken_tags_pass_as_nothing(name):
    for example in examples(n=9):
        verdict = validate(BREAKS[name](written(example)))
        assert not verdict and verdict.reason


STRUCTURE = {  # strategy -> what its structure hangs on, and what takes it away
    "chain-of-thought": ("<step>", " "),
    "mece": ("missing", "there"),
    "falsification": ("fails if", "holds when"),
    "expert": (" : ", " "),
    "orthogonal-wisdom": ("mapped back to", "about"),
    "self-doubt": ("error", "word"),
    "bayesian": ("updated", "then"),
    "multidomain": ("both together", "well"),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_tag_alone_is_not_enough(strategy):
    gone, instead = STRUCTURE[strategy]
    for example in (e for e in examples(n=90) if e.meta["strategy"] == strategy):
        text = written(example)
        first, found, rest = text.partition(gone)  # the first <step> of a chain stays
        broken = (
            first + found + rest.replace(gone, instead) if gone == "<step>" else text.replace(gone, instead)
        )
        assert found and not validate(broken, strategy), broken


def test_overlapping_branches_and_a_field_that_says_nothing_of_its_own_fail():
    end = "nothing is missing , so 5 </think> #### 5"
    assert validate(f"<think> <mece> case girls : 3 .\ncase boys : 2 .\n{end}", "mece")
    assert not validate(f"<think> <mece> case girls : 3 .\ncase girls with hats : 2 .\n{end}", "mece")
    assert validate("<think> <expert> physics : distance is time times speed , 6 </think> 6", "expert")
    assert not validate("<think> <expert> physics : so i add the eggs , 6 </think> 6", "expert")
    assert validate("<think> <expert> as a plumber : pipes add up , so 6 </think> 6", "expert")
    both = "<think> <expert> physics : the speed is 2 here .\n<expert> {} .\n<reason> together 6 </think> 6"
    assert validate(both.format("finance : the cost is 3 here"), "multidomain")
    assert not validate(both.format("physics : the distance is 3 here"), "multidomain")


def test_appropriate_needs_choice_and_form_and_knows_its_chance():
    held = examples("test", 180)
    texts = [written(e) for e in held]
    good = appropriate(texts, held)
    assert good.share == 1 and good.n == 180 and 0.1 < good.chance < 0.25
    turned = appropriate(texts[1:] + texts[:1], held)  # the same responses to other questions
    assert turned.share < 0.4 and turned.chance == pytest.approx(good.chance)
    assert appropriate([BREAKS["no close"](t) for t in texts], held).share == 0
    always = [texts[0]] * 180  # one strategy for all is worth what chance is
    assert appropriate(always, held).share == pytest.approx(appropriate(always, held).chance)
    assert usage(texts) == 1 and usage([untagged(t) for t in texts]) == 0 and usage([texts[0], "5"]) == 0.5


def test_a_tiny_vocabulary_holds_every_word():
    words = set(task().vocabulary())
    assert len(words) < 450
    for seed in (0, 1):
        for example in TASKS["strategies"](seed=seed).split("test", 300):
            text = " ".join([example.prompt, *example.steps, example.answer])
            assert set(untagged(text).split()) <= words
            assert len(example.prompt.split()) < 60 and len(" ".join(example.steps).split()) < 60
    assert 15 <= len(SHORT_PROMPT.split()) <= 32 and set(SHORT_PROMPT.split()) <= words
    tokenizer = with_thinking(train_words(["####", *words]))
    encoder = Encoder(tokenizer)
    batch = encoder.batch(examples(n=18))
    assert tokenizer.unk_token_id not in batch.steps_BKS.unique().tolist() + batch.prompt_BP.unique().tolist()


def test_the_prompts_name_all_tags_and_their_demonstrations_are_valid():
    assert all(token in COMPOSITE_PROMPT for token in THINKING)
    shown = [part.partition("\n\n")[0] for part in COMPOSITE_PROMPT.split("?\n")[1:]]
    assert [strategy_of(text) for text in shown] == ["chain-of-thought", "falsification"]
    assert all(validate(text) for text in shown)


@pytest.mark.parametrize("plain", ["direct", "steps"])
def test_an_instructed_share_thinks_and_the_rest_is_plain(plain):
    made = list(task(instructed=0.4, plain=plain).split("train", 360))
    told = [e for e in made if e.prompt.startswith(SHORT_PROMPT)]
    assert len(told) == 144 and all(
        validate(written(e), e.meta["strategy"]) and e.meta["instructed"] for e in told
    )
    assert set(Counter(e.meta["strategy"] for e in told).values()) == {16, 32}
    for example in (e for e in made if e not in told):
        assert len(example.steps) == (plain == "steps") and usage([written(example)]) == 0
        assert SHORT_PROMPT not in example.prompt and not example.meta["instructed"]
    assert not any(e.steps for e in task(tags=False).split("valid", 20))


@pytest.mark.parametrize(
    "options", [{"plain": "steps"}, {"tags": False, "instructed": 0.5}, {"instructed": 2}]
)
def test_options_without_effect_are_refused(options):
    with pytest.raises(ValueError):
        task(**options)


def test_no_evaluation_question_stands_in_training():
    train = [e.prompt for e in task().split("train")]
    for split in ("valid", "test"):
        questions = [e.prompt for e in task().split(split, 200)]
        assert overlapping(train, questions, n=60) == []
    assert overlapping(train, [questions[0], f"so : {train[7]} indeed"], n=9)[-1] == 1


def test_the_content_is_part_of_what_a_resume_compares():
    assert task().fingerprint() == task().fingerprint() and len(task().fingerprint()["content"]) == 16


GOOD = {
    "question": "2 + 3 + 4 ?",
    "strategy": "chain-of-thought",
    "thought": "<step> 2+3=5 <step> 5+4=9",
    "answer": 9,
}


def file_of(tmp_path, records, **options):
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    own = TASKS["strategies-file"]
    return own(own.Config.model_validate(options), path=str(path))


def test_a_users_file_is_cut_into_steps(tmp_path):
    enclosed = GOOD | {"thought": "<think> <step> 2+3=5\n<step> 5+4=9 </think>", "acceptable": ["self-doubt"]}
    listed = {key: value for key, value in GOOD.items() if key not in ("thought", "strategy")}
    listed["steps"] = ["<step> 2+3=5", "<step> 5+4=9"]
    found = list(file_of(tmp_path, [GOOD, enclosed, listed] * 20).split("train"))
    assert {e.steps for e in found} == {("<think> <step> 2+3=5", "<step> 5+4=9 </think>")}
    assert {e.meta["acceptable"] for e in found} == {
        ("chain-of-thought",),
        ("chain-of-thought", "self-doubt"),
    }
    assert all(validate(written(e), e.meta["strategy"]) for e in found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answer": 8}, "the answer is '8', but the thought ends with '9'"),
        ({"answer": " "}, "field 'answer' is empty"),
        ({"answer": "no"}, "ends with 'neither yes nor no'"),
        ({"answer": "Ada"}, "the answer is 'ada'"),
        ({"strategy": "mece"}, "its tags are those of chain-of-thought, not of mece"),
        ({"strategy": "mese"}, "Did you mean 'mece'"),
        ({"thought": "<step> 2+3+4=9"}, "fewer than two different steps"),
        ({"thought": "<think> <step> 2+3=5 <step> 5+4=9"}, "1 <think> and 0 </think>"),
        ({"thought": "2+3=5 , 5+4=9"}, "does not open with a tag"),
    ],
)
def test_a_line_that_cannot_be_verified_is_named_and_counted_or_refused(tmp_path, change, said):
    with pytest.raises(UserError, match=r"own.jsonl:2: .*1 of 40 records are broken") as caught:
        file_of(tmp_path, [GOOD, GOOD | change, *[GOOD] * 38]).split("train")
    assert said in str(caught.value)
    allowed = file_of(tmp_path, [GOOD, GOOD | change, *[GOOD] * 38], max_bad_fraction=0.05)
    assert len(allowed.split("train")) == 39 and said in allowed.faults[0]
    answer = allowed.split("train")[0]
    assert verified("\n".join(answer.steps), answer.answer)


@pytest.mark.parametrize(
    ("thought", "answer", "ok"),
    [
        ("updated : 3 to 1 , so 3 / 4", "3/4", True),
        ("updated : 3 to 1 , so 3 / 4", "0.75", True),
        ("updated : 3 to 1 , so 3 / 4", "4 / 3", False),
        ("so yes . but 8 is even , so no", "no", True),
        ("so no . look again , so yes", "no", False),
        ("the claim is true", "yes", True),
        ("Ada gives to Ben .", "ben", True),
        ("Ben gives to Ada . so Ada", "Ben", False),
        ("thus the benefit", "Ben", False),
        ("", "3", False),
    ],
)
def test_the_last_statement_bears_the_answer_out(thought, answer, ok):
    assert bool(verified(thought, answer)) == ok
