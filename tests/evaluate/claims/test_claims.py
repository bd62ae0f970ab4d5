"""Statements have true places, the judge tells numbers and negations apart, and length earns nothing."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietreasoning.evaluate.claims.judge import RuleJudge, Ruling, Source
from quietreasoning.evaluate.claims.own_words import own_words
from quietreasoning.evaluate.claims.scorer import ClaimScorer, agreement
from quietreasoning.evaluate.claims.statements import claims_of

EVIDENCE = (
    "Paris is the capital of France and has 2.1 million people. Revenue rose 12 % in 2024, "
    "but profit fell 3 %. "
    "The build did not pass on Windows. Alice beats Bob. Model A reaches an accuracy of 91.5 %. "
    "`load()` returns None when the file is missing. "
    "Costs may rise next year. There were 12 wins and 21 losses. "
    "Ann won a prize in physics in 1903 and a prize in chemistry in 1911. Tickets cost $25. "
    "Only tests on Linux passed. Some users complained. 3 of 12 servers crashed."
)
SOURCES = (Source("report", EVIDENCE),)
YES, NO, UNKNOWN = "supported", "contradicted", "not found"
LABELLED = [
    ("The capital of France is Paris.", YES),
    ("Paris has 2,100,000 people.", YES),
    ("Paris has 2.1 million people.", YES),
    ("Paris has 21 million people.", NO),
    ("Lyon is the capital of France.", UNKNOWN),
    ("Paris may be the capital of France.", UNKNOWN),
    ("Paris or Lyon is the capital of France.", UNKNOWN),
    ("Paris is not the capital of France.", NO),
    ("Revenue rose 12 % in 2024.", YES),
    ("Revenue rose 12 percent in 2024.", YES),
    ("Revenue rose 12% in 2024.", YES),
    ("Revenue rose 21 % in 2024.", NO),
    ("Revenue fell 12 % in 2024.", NO),
    ("Revenue did not rise 12 % in 2024.", NO),
    ("Revenue rose 12 % in Europe.", UNKNOWN),
    ("Profit fell 3 %.", YES),
    ("The build passed on Windows.", NO),
    ("The build did not pass on Windows.", YES),
    ("The build didn't pass on Windows.", YES),
    ("Alice beats Bob.", YES),
    ("Bob beats Alice.", UNKNOWN),
    ("Model A reaches an accuracy of 95.1 %.", NO),
    ("`load()` returns None when the file is missing.", YES),
    ("`load()` raises KeyError when the file is missing.", UNKNOWN),
    ("Costs rise next year.", UNKNOWN),
    ("There were 21 wins and 12 losses.", NO),
    ("The moon is made of cheese.", UNKNOWN),
    ("Tests on Linux passed.", UNKNOWN),
    ("Ann won a prize in chemistry in 1911.", YES),
    ("Ann won a prize in chemistry in 1903.", NO),
    ("Tickets cost 25 dollars.", YES),
    ("Users complained.", UNKNOWN),
    ("Some users complained.", YES),
    ("Servers crashed.", UNKNOWN),
    ("3 of 12 servers crashed.", YES),
]


@pytest.mark.parametrize(("text", "verdict"), LABELLED)
def test_the_judge_and_the_labels(text, verdict):
    (claim,) = claims_of(text)
    ruling = RuleJudge().judge(claim, SOURCES)
    assert ruling.verdict == verdict, ruling
    if verdict != UNKNOWN:
        said = EVIDENCE[ruling.start : ruling.end]
        assert ruling.source == "report" and said and said in EVIDENCE


def test_agreement_counts_the_labelled_set():
    cases = [(text, EVIDENCE, verdict) for text, verdict in LABELLED]
    assert agreement(RuleJudge(), cases) == (len(LABELLED), len(LABELLED))
    assert agreement(RuleJudge(), [("Paris.", EVIDENCE, YES)]) == (0, 1)


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("All tests pass.", "status"),
        ("The server has 12 workers.", "quantity"),
        ("Model A reaches an accuracy of 91 %.", "benchmark"),
        ("It is the fastest parser.", "superlative"),
        ("The function `load()` returns None.", "code fact"),
    ],
)
def test_categories(text, category):
    assert [claim.category for claim in claims_of(text)] == [category]


def test_statements_are_atomic_and_keep_their_subject():
    claims = claims_of("Paris is big and has 2.1 million people. It is old; Lyon is small.")
    assert [claim.statement for claim in claims] == [
        "Paris is big",
        "Paris has 2.1 million people.",
        "Paris is old",
        "Lyon is small.",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Paris.",
        "Is Paris the capital of France?",
        "Run the tests first.",
        "Here is the answer:",
        "```\nx is 3\n```",
        "paris france capital people revenue profit windows build accuracy alice bob model load",
        "is is is is is is is is is is",
    ],
)
def test_what_states_nothing(text):
    assert claims_of(text) == ()
    assert ClaimScorer().reward(text, SOURCES, "Paris is the capital of France.") == 0


def test_the_summary_counts_and_points():
    text = "Paris is the capital of France. Revenue rose 21 % in 2024. The moon is made of cheese."
    report = ClaimScorer().examine(text, SOURCES)
    assert report.summary() == "1 of 3 claims supported, 2 unsupported at characters 32-58, 59-86"
    assert [text[j.claim.start : j.claim.end] for j in report.judged] == [j.claim.text for j in report.judged]
    record = report.judged[1].as_dict()
    assert record["verdict"] == NO and record["evidence_id"] == "report" and record["span"] == [32, 58]
    first, last = record["evidence_span"]
    assert EVIDENCE[first:last] == "Revenue rose 12 % in 2024"


GOLD = "Paris is the capital of France. Paris has 2.1 million people."


def reward(text, prompt=""):
    return ClaimScorer().reward(text, SOURCES, GOLD, prompt)


def test_precision_recall_and_penalties():
    half = "Paris is the capital of France."
    assert reward(GOLD) == 1.0
    assert reward(half) == 0.5
    assert reward(f"{GOLD} The moon is made of cheese.") == pytest.approx(2 / 3 - 0.5 / 3)
    assert reward(f"{GOLD} Revenue rose 21 % in 2024.") == pytest.approx(2 / 3 - 1 / 3)
    assert reward("Paris is not the capital of France.") == 0.0


def test_without_a_reference_all_that_evidence_says_is_asked_for():
    assert ClaimScorer().reward("Alice beats Bob.", SOURCES) < 0.2
    assert ClaimScorer().reward(EVIDENCE, SOURCES) == 1.0


@given(
    repeats=st.integers(1, 20),
    padding=st.sampled_from(["", "\n\n", " Well.", " What else?", " ```\ncode\n```"]),
    order=st.permutations(GOLD.split(". ")),
)
@settings(max_examples=10, deadline=None)
def test_claims_are_length_neutral(repeats, padding, order):
    """The same things said again, in another order, with more around them, earn the same."""
    honest = ". ".join(part.rstrip(".") for part in order) + "."
    text = "\n\n".join([honest + padding] * repeats)
    assert reward(text) == reward(GOLD)


@given(
    st.permutations([Source(name, part) for name, part in zip("abcd", EVIDENCE.split(". "), strict=False)])
)
@settings(max_examples=5, deadline=None)
def test_the_order_of_evidence_decides_nothing(sources):
    report = ClaimScorer().examine(f"{GOLD} Revenue rose 21 %.", sources, GOLD)
    assert report == ClaimScorer().examine(
        f"{GOLD} Revenue rose 21 %.", sorted(sources, key=lambda s: s.id), GOLD
    )


def test_variants_of_one_truth_do_not_outweigh_a_lie():
    lie = "Paris has 21 million people."
    variants = "Revenue rose. Revenue rose 12 %. Revenue rose in 2024. Revenue rose 12 % in 2024."
    plain = reward(f"Revenue rose 12 % in 2024. {GOLD} {lie}")
    assert reward(f"{variants} {GOLD} {lie}") == plain < 0.75
    false = reward(f"{GOLD} {lie}")
    assert reward(f"{GOLD} {lie} {lie} {lie}") == false > 0
    report = ClaimScorer().examine(variants, SOURCES)
    assert [one.repeats for one in report.judged] == [True, True, True, False]


def test_another_judge_may_stand_in():
    class Credulous:
        def judge(self, claim, sources):
            return Ruling(YES, "faith")

    assert ClaimScorer(Credulous()).reward("The moon is made of cheese.", ()) == 1.0


def test_lifted_sentences_are_not_own():
    prompt = "Alice has three apples. How many apples does Alice have in all?"
    text = f"{prompt} Alice has 3 apples in all."
    own = own_words(text, prompt)
    assert len(own) == len(text) and own.strip() == "Alice has 3 apples in all."
    assert own_words(text, prompt, [prompt]) == text
    assert (
        ClaimScorer(judge=RuleJudge()).examine(f"{GOLD} {EVIDENCE}", SOURCES, GOLD, "Ask this.").recall == 1
    )
    assert not ClaimScorer().examine(prompt, (Source("e", "Alice has."),), None, prompt).judged
    assert own_words("The apples that Alice has in all are 3.", prompt) != ""


texts = st.text(max_size=300) | st.lists(
    st.sampled_from(
        ["Paris is", " 12 %", "not ", ". ", "and ", "\n- ", "```\n", "it has ", "٣", "9" * 5000, ";"]
    ),
    max_size=30,
).map("".join)


@given(text=texts, evidence=texts, prompt=texts)
@settings(max_examples=40, deadline=None)
def test_any_text_scores_within_bounds_and_places_lie_inside(text, evidence, prompt):
    report = ClaimScorer().examine(text, (Source("e", evidence),), None, prompt)
    assert 0 <= report.reward <= 1 and 0 <= report.precision <= 1 and 0 <= report.recall <= 1
    for judged in report.judged:
        assert 0 <= judged.claim.start < judged.claim.end <= len(text)
        assert judged.ruling.end <= len(evidence)
    assert report == ClaimScorer().examine(text, (Source("e", evidence),), None, prompt)


def test_rules_and_claims_import_no_torch():
    script = (
        "import sys, quietreasoning.evaluate.rules.load, quietreasoning.evaluate.rules.rows\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
