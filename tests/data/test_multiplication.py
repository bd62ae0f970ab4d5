"""The multiplication format equals the public file's, line by line."""

import pytest

from quietreasoning.data.tasks.multiplication import example, line

# in the public format
LINES = [
    "5 6 3 2 * 7 4 3 4||5 5 5 6 1 + 0 0 6 4 9 0 ( 5 5 1 1 1 1 ) + 0 0 5 9 0 7 0 ( 5 5 6 0 2 8 0 ) "
    "+ 0 0 0 0 6 4 9 0 #### 5 5 6 0 8 2 0 1",
]


def operands(text: str) -> tuple[int, int]:
    prompt = text.partition("||")[0]
    a, b = (int("".join(reversed(side.split()))) for side in prompt.split("*"))
    return a, b


@pytest.mark.parametrize("text", LINES)
def test_one_line(text):
    assert line(example(*operands(text), size=4, id="x")) == text


def test_all_public_lines(real):
    lines = real("multiplication/4x4_valid.txt").read_text().splitlines()
    assert len(lines) == 1000
    assert [line(example(*operands(text), size=4, id="x")) for text in lines] == lines


def test_results_are_running_sums():
    made = example(2365, 4347, size=4, id="x")
    values = [int("".join(reversed(result.split()))) for result in made.results]
    assert values[0] == 2365 * 7 and values[1] == 2365 * 47 and values[2] == 2365 * 347
    assert values[3] == 2365 * 4000
