"""Answers right in part, by hand: recall, LongBench's measures, PopQA's aliases; their way into a row."""

import importlib.util
import random
from dataclasses import replace
from pathlib import Path

import pytest

from quietreasoning.data.example import Example
from quietreasoning.evaluate.aliases import alias, recall_at
from quietreasoning.evaluate.config import EvalConfig
from quietreasoning.evaluate.controls import Arm
from quietreasoning.evaluate.grades import references
from quietreasoning.evaluate.harness import evaluate
from quietreasoning.evaluate.long_texts import class_share, code_line, longbench, number_share
from quietreasoning.evaluate.overlap import (
    common_subsequence,
    edit_similarity,
    exact_match,
    normal_words,
    rouge_l,
    token_f1,
)
from quietreasoning.evaluate.rows import load, pool, save
from quietreasoning.evaluate.scorers import SCORERS
from quietreasoning.evaluate.table import figures_table

_spec = importlib.util.spec_from_file_location("toy_method", Path(__file__).with_name("toy_method.py"))
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)


def gold(answer="x", **meta):
    return Example("e", "?", (), (), answer, meta)


@pytest.mark.parametrize(
    ("text", "answer", "f1"),
    [
        ("the red house", "A red House!", 1),
        ("red red red", "red house", 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2)),  # red counts once
        ("red", "red red", 2 / 3),
        ("a red house by a lake", "red boat", 2 / 6),
        ("blue", "red", 0),
        ("", "red", 0),
        ("", "the", 0),
        ("The", "the", 1),
        ("北京市", "北京", 2 * (2 / 3) * 1 / (2 / 3 + 1)),
    ],
)
def test_token_f1_by_hand(text, answer, f1):
    assert token_f1(text, answer) == pytest.approx(f1)
    assert exact_match(text, answer) == (f1 == 1)


@pytest.mark.parametrize(
    ("text", "answer", "rouge"),
    [
        ("police killed the gunman", "police kill the gunman", 3 / 4),  # Lin 2004, section 3.1
        ("the gunman kill police", "police kill the gunman", 2 / 4),
        ("Rain, and snow.", "rain and snow", 1),
        ("rain", "rain and snow", 2 * 1 * (1 / 3) / (1 + 1 / 3)),
        ("", "rain", 0),
    ],
)
def test_rouge_l_by_hand(text, answer, rouge):
    assert rouge_l(text, answer) == pytest.approx(rouge)


def test_subsequences_equal_the_table_and_no_measure_leaves_its_bounds():
    rng = random.Random(0)
    for _ in range(150):
        a, b = (rng.choices("abcd ", k=rng.randrange(0, 40)) for _ in range(2))
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
        assert common_subsequence(a, b) == table[-1][-1]
        one, other = "".join(a), "".join(b)
        for measure in (token_f1, rouge_l, edit_similarity):
            assert 0 <= measure(one, other) <= 1 and measure(one, other) == measure(other, one)
            assert measure(one, one) == bool(normal_words(one)) or measure is edit_similarity


def test_classes_numbers_and_code():
    classes = ("Disease", "Disease and medicine", "Food")
    assert class_share("It is Disease and medicine", "Disease and medicine", classes) == 1
    assert class_share("Disease and medicine", "Disease", classes) == 0.5  # names the other one, too
    assert class_share("Food or Disease", "Food", classes) == 0.5
    assert class_share("nothing", "Food", classes) == 0
    assert number_share("Paragraph 12", "Paragraph 12") == 1 == number_share("段落12", "段落12")
    assert number_share("12 or 1 or 12 or 2", "12") == 0.5 and number_share("none", "12") == 0
    assert number_share("112", "12") == 0
    assert code_line("```python\n# add\nreturn a + b\nx", "return a + b") == 1
    assert code_line("return a", "return b") == 2 * 7 / 16
    assert code_line("", "return b") == 0


def test_longbench_takes_the_best_answer_and_of_some_sets_the_first_line():
    asked = gold(metric="f1", first_line=False, classes=(), answers=("red", "red house"))
    assert longbench("red house", asked) == 1 and longbench("red\nblue", asked) == 2 / 3
    first = replace(asked, meta={**asked.meta, "first_line": True})
    assert longbench("\nred\nblue", first) == 1


def test_an_empty_gold_is_an_error_wherever_it_would_be_part_of_every_text():
    with pytest.raises(ValueError, match="empty"):
        references("anything", gold(references=("a", " ")))
    for answers in ((), ("",), ("a", "")):
        with pytest.raises(ValueError, match="empty"):
            alias("anything", gold(answers=answers))
        with pytest.raises(ValueError, match="empty"):
            longbench("anything", gold(metric="f1", first_line=False, classes=(), answers=answers))
    assert not alias("", gold(answers=("a",)))  # what was said is no part of the gold
    assert not alias("an", gold(answers=("piano",)))


def test_aliases_in_the_first_line_as_the_paper_spells_them():
    one = gold(answers=("Politician", "MP"))
    for text, right in {
        "politician": True,
        "\n\na Politician.\nQ: x": True,
        "none\npolitician": False,
        "mp": True,
        "POLITICIAN": False,
        "": False,
    }.items():
        assert alias(text, one) is right, text
    spans = [["x", "an MP", "y"], ["x"], None, [], ["1", "2", "3", "4", "5", "MP"]]
    assert recall_at(spans, [one] * 5) == (1, 4)
    assert recall_at(spans, [one] * 5, k=6) == (2, 4)


def test_grades_reach_rows_groups_pools_tables_and_the_file(tmp_path):
    """The toy says one digit: half of two references; as one of any it is right."""
    examples = [
        replace(e, meta={**e.meta, "references": (e.answer,) if i % 2 else (e.answer, "none"), "i": i})
        for i, e in enumerate(toy.examples(12))
    ]

    def ask(seed):
        return evaluate(
            [Arm(toy.Adder(), "adder")],
            examples,
            task="sums",
            scorer="references",
            encode_prompt=toy.encode_prompt,
            decode=toy.decode,
            config=EvalConfig(batch_size=8, timing=0, max_new_tokens=4, controls=()),
            seed=seed,
            shortcuts=lambda example: {"none": ""},
            group=lambda example: "two" if example.meta["i"] % 2 == 0 else "one",
        )

    reports = [ask(0), ask(1)]
    row = reports[0].row("adder")
    assert (row["accuracy"], row["figures"], row["figure_rows"]) == (0.5, {"recall": 0.75}, {"recall": 12})
    assert row["groups"] == {"one": [1.0, 6], "two": [0.0, 6]}
    assert row["group_figures"] == {"one": [1.0, 6], "two": [0.5, 6]}
    assert reports[0].row("shortcut: none")["figures"] == {"recall": 0}
    (pooled, _) = pool([row for report in reports for row in report.rows])
    assert pooled["figures"] == {"recall": 0.75} and pooled["group_figures"]["two"] == [0.5, 12]
    made = figures_table(reports[0].rows)
    cells = {column.header: list(column.cells) for column in made.columns}
    assert cells["recall\nn = 12"] == ["75.0", "0.0"] and "in part, %" in cells
    save(tmp_path / "rows.json", reports)
    assert load(tmp_path / "rows.json")[0].row("adder")["group_figures"] == row["group_figures"]
    either = gold(references=("7", "8"), match="any")
    assert SCORERS["references"]("it is 8", either) and not SCORERS["references"]("9", either)
