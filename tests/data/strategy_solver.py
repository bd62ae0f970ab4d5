"""Answers of the task `strategies` from the question alone, family by family."""

import math
import re
from fractions import Fraction


def numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def story(q: str) -> int:
    sentences = q.split(" . ")
    (value,) = numbers(sentences[0])
    for sentence in sentences[1:-1]:
        (n,) = numbers(sentence)
        if "finds" in sentence:
            value += n
        elif "gives" in sentence:
            value -= n
        elif "times as many" in sentence:
            value *= n
        else:
            assert value % n == 0
            value //= n
    return value


def hands(q: str) -> str:
    goes = dict(re.findall(r"(\w+) gives to (\w+)", q))
    at, moves = re.search(r"starts with (\w+) and moves (\d+)", q).groups()
    for _ in range(int(moves)):
        at = goes[at]
    return at


def swaps(q: str) -> int:
    cups = [None, *(i == int(re.search(r"under cup (\d)", q)[1]) for i in (1, 2, 3))]
    for a, b in re.findall(r"swap (\d) and (\d)", q):
        cups[int(a)], cups[int(b)] = cups[int(b)], cups[int(a)]
    return cups.index(True)


def parity(q: str) -> int:
    start, last, above = numbers(q)
    kind = "even" in q
    return sum((n % 2 == 0) == kind or n > above for n in range(start, last + 1))


def claim(q: str) -> str:
    told, wanted = re.search(r"all of (.*) are (.*) \. is", q).groups()
    rule = {"even": lambda n: n % 2 == 0, "odd": lambda n: n % 2, "below 10": lambda n: n < 10}
    holds = rule.get(wanted, lambda n: n > 9)
    return "yes" if all(map(holds, numbers(told))) else "no"


def boxes(q: str) -> Fraction:
    (color,) = re.findall(r"and a (\w+) ball is drawn", q)
    shares = []
    for box in re.findall(r"has (\d+ \w+ and \d+ \w+) balls", q):
        counts = {c: int(n) for n, c in re.findall(r"(\d+) (\w+)", box)}
        shares.append(Fraction(counts[color], sum(counts.values())))
    often = re.search(r"picked (\d+) times as often", q)
    prior = Fraction(int(often[1]), int(often[1]) + 1) if often else Fraction(1, 2)
    return prior * shares[0] / (prior * shares[0] + (1 - prior) * shares[1])


def alarm(q: str) -> Fraction:
    everyone, sick, hit, false = numbers(q)
    prior = Fraction(sick, everyone)
    positive = prior * Fraction(hit, sick)
    return positive / (positive + (1 - prior) * Fraction(false, everyone - sick))


def consultant(q: str) -> Fraction:
    a, b, c = numbers(q)
    return Fraction(a * b, c) if "truck" in q else Fraction(a * b * c)


KINDS = (
    ("how many .* does .* have now", story),
    ("who has it", hands),
    ("swap", swaps),
    ("do not", lambda q: (n := numbers(q))[0] + n[1] - n[2] - n[3]),
    ("or greater than", parity),
    ("claim", claim),
    ("both ends", lambda q: len(range(0, numbers(q)[0] + 1, numbers(q)[1]))),
    ("seats each", lambda q: math.ceil(numbers(q)[0] / numbers(q)[1])),
    ("box one", boxes),
    ("with each of", lambda q: numbers(q)[0] * numbers(q)[1]),
    ("a test marks", alarm),
    ("each other once", lambda q: math.comb(numbers(q)[0], 2)),
    ("until one is left", lambda q: numbers(q)[0] - 1),
    ("rumor", lambda q: numbers(q)[0] * (2 if "twice" in q else 3) ** numbers(q)[1]),
    (r"\. each|\. one truck", consultant),
    ("", lambda q: math.prod(numbers(q))),
)


def solve(prompt: str) -> str:
    question = prompt.rpartition("\n")[2]
    found = next(solver for pattern, solver in KINDS if re.search(pattern, question))(question)
    if isinstance(found, Fraction) and found.denominator > 1:
        return f"{found.numerator} / {found.denominator}"
    if isinstance(found, Fraction) and re.search("chance", question):
        return f"{found.numerator} / 1"
    return str(found)
