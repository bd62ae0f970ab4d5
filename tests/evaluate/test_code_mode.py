"""Programs over tools: stubs parse, records cannot be forged, rewards point at what they punish."""

import ast
import json
import re
from pathlib import Path

import pytest

from quietreasoning.config import UserError
from quietreasoning.data.tasks import TASKS
from quietreasoning.evaluate.call_figures import form_figures
from quietreasoning.evaluate.code_mode.answers import Recorded, Source, Tables
from quietreasoning.evaluate.code_mode.eligible import EligibilityRules, eligible
from quietreasoning.evaluate.code_mode.execute import Execution, Made, call_directly, execute
from quietreasoning.evaluate.code_mode.figures import TaskRow, measure
from quietreasoning.evaluate.code_mode.pairs import pair_of, read_pairs, write_pairs
from quietreasoning.evaluate.code_mode.reward import CodeReward, expects
from quietreasoning.evaluate.code_mode.stubs import python_stubs, typescript_stubs
from quietreasoning.evaluate.code_mode.tool import tools_of
from quietreasoning.evaluate.code_mode.trial import tried
from quietreasoning.evaluate.rules.base import Context
from quietreasoning.evaluate.sandbox import Limits, Verdict
from quietreasoning.evaluate.scorers import SCORERS

SALES = {
    "name": "get-sales",
    "description": 'Sales of a shop """ */ by day.',
    "parameters": {
        "type": "object",
        "properties": {
            "shop": {"type": "string", "pattern": "^(a+)+$"},
            "from": {"type": "integer", "minimum": 1},
            "unit": {"enum": ["euro", "pound"]},
            "where": {"type": "object", "properties": {"a-b": {"type": "number"}}, "required": ["a-b"]},
            "tags": {"type": "array", "items": {"type": ["string", "null"]}},
        },
        "required": ["shop"],
    },
    "returns": {"type": "array", "items": {"type": "object", "properties": {"sold": {"type": "integer"}}}},
}
SHOPS = {"type": "function", "function": {"name": "print"}}
DECLARED = (SALES, SHOPS)
TOOLS = tools_of(DECLARED)
ROWS = [
    {"shop": shop, "from": day, "sold": 100 * day + len(shop)} for shop in ("a", "aa") for day in (1, 2, 3)
]
TABLES = Tables({"get-sales": ROWS, "print": [{"shop": "a"}, {"shop": "aa"}]})
GOOD = """total = 0
for s in print_():
    total += sum(r['sold'] for r in get_sales(shop=s['shop']))
print(total)"""
CALLS = [("print", {}), ("get-sales", {"shop": "a"}), ("get-sales", {"shop": "aa"})]
LINE = "next(c.cell_contents for c in get_sales.__closure__ if hasattr(c.cell_contents, 'ends'))"
PROMPT = "How much did all shops sell together?"


def ran(text, *results):
    """A run as a program that prints this would give."""
    calls = tuple(Made("t", {}, json.dumps(result)) for result in results)
    return Execution(Verdict(True, "passed", text, 0.0), calls)


def test_stubs_are_python_that_parses_and_what_programs_get():
    text = python_stubs(TOOLS)
    space = {}
    exec(compile(ast.parse(text), "stubs.py", "exec"), space)
    assert "def get_sales(*, shop: str, from_: int = ..., unit: Literal['euro', 'pound'] = ...," in text
    assert "tags: list[str | None] = ...) -> list[" in text and space["GetSales_where"].__required_keys__
    assert space["get_sales"].__doc__ == 'Sales of a shop """ */ by day.' and "def print_() -> Any" in text
    script = typescript_stubs(TOOLS)
    assert 'shop: string; from?: number; unit?: "euro" | "pound"; where?: { "a-b": number }' in script
    assert "tags?: Array<string | null> }): Promise<Array<{ sold?: number }>>;" in script
    assert script.count("*/") == 1


def test_names_become_identifiers_that_differ():
    names = ["a b", "a-b", "9", "class", "__x", "é", "sum", "__1a"]
    tools = tools_of([{"name": name} for name in names])
    words = [tool.identifier for tool in tools]
    assert words == ["a_b", "a_b_2", "_9", "class_", "x_", "_", "sum_", "_1a_"]
    ast.parse(python_stubs(tools))


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({}, "tool 1 of 1 has no name"),
        ({"name": "a", "parameters": {"type": "string"}}, "parameters.type='string' must be object"),
        (
            {"name": "a", "parameters": {"properties": {"x": {"$ref": "#"}}}},
            r"'a': parameters.properties.x.\$ref",
        ),
        ({"name": "a", "parameters": {"properties": {"x": {"enum": []}}}}, "x.enum is empty"),
    ],
)
def test_tools_that_cannot_be_read_are_named(declared, words):
    with pytest.raises(UserError, match=words):
        tools_of([declared])
    with pytest.raises(UserError, match="twice"):
        tools_of([SALES, SALES])


def test_a_program_sees_results_and_only_its_print_comes_back():
    run = execute(GOOD, TOOLS, TABLES)
    assert run.passed and run.summary == "1209\n"
    assert [(call.name, call.arguments) for call in run.calls] == CALLS
    assert [call.characters for call in run.calls] == [len(call.result) for call in run.calls]
    assert json.loads(run.calls[1].result) == ROWS[:3]
    assert [call.result for call in call_directly(CALLS, TOOLS, TABLES)] == [c.result for c in run.calls]


def test_arguments_are_checked_inside_and_outside():
    tries = ["shop=1", "", "shop='a', town=2", "shop='a', unit='yen'", "shop={1}", "shop='a', from_=0"]
    tries += ["shop='a', tags=[1]", "shop='a', where={}", "shop='a', tags=[float('nan')]"]
    program = "from tools import get_sales, ToolError\n" + "".join(
        f"try:\n    get_sales({one})\nexcept ToolError as e:\n    print(e)\n" for one in tries
    )
    # past the stub: what it would refuse, the keeper of the record refuses too
    program += f"line = {LINE}\n"
    for raw in ({"name": "get-sales", "arguments": {"shop": 1}}, {"name": "none", "arguments": {}}, [1]):
        program += f"line.send({raw!r}); print(line.receive())\n"
    run = execute(program, TOOLS, TABLES)
    said = run.summary.splitlines()
    assert run.passed, run.verdict
    for line, words in zip(
        said,
        [
            "'shop' must be string, not int", "'shop' is missing", "no argument 'town'", "must be one of",
            "must be string, not set", "'from' must be at least 1", "must be string or null", "lacks 'a-b'",
            "are no JSON values", "'shop' must be string", "there is no tool 'none'", "a name and arguments",
        ],
        strict=True,
    ):  # fmt: skip
        assert words in line, (line, words)
    assert len(run.calls) == 6 and all(call.fault and not call.characters for call in run.calls)


def test_the_record_cannot_be_forged_and_calls_end():
    """What a program can reach in its own process changes nothing that the keeper wrote down."""
    program = (
        "import sys, os\n"
        "get_sales(shop='a')\n"
        "frame, seen = sys._getframe(), []\n"
        "while frame: seen += [frame.f_locals, frame.f_globals]; frame = frame.f_back\n"
        "for names in seen:\n"
        "    for name in ('calls', 'desk', 'answers', 'rows', 'ROWS'):\n"
        "        assert name not in names, name\n"
        "assert str(300 + 2) not in repr(seen)\n"  # a row that it did not ask for
        "for _ in range(5):\n"
        "    try: print_()\n"
        "    except ToolError as e: print(e)\n"
    )
    run = execute(program, TOOLS, TABLES, most_calls=3)
    assert run.passed, run.verdict
    assert [call.name for call in run.calls] == ["get-sales", "print", "print"]
    assert run.summary == "print_: no more calls are answered\n" * 3


SOURCE = (
    "SECRET = 'do not read'\n"
    "def get_sales(shop, from_=1, **more):\n"
    "    if shop == 'boom': raise KeyError(shop)\n"
    "    if shop == 'odd': return {1, 2}\n"
    "    if shop == 'gone': __import__('os')._exit(0)\n"
    "    return [shop, from_]\n"
    "def print_(): return open('/etc/passwd').read()\n"
)


def test_tools_of_source_live_in_a_process_of_their_own():
    program = "print(get_sales(shop='x\\ud800', from_=2)[1])\n" + "".join(
        f"try:\n    {one}\nexcept ToolError as e:\n    print(e)\n"
        for one in (
            "get_sales(shop='boom')",
            "get_sales(shop='odd')",
            "print_()",
            "get_sales(shop='gone')",
        )
    )
    program += "assert not any('SECRET' in repr(vars(m)) for m in [__import__('tools')])"
    run = execute(program, TOOLS, Source(SOURCE, TOOLS))
    lines = run.summary.splitlines()
    assert run.passed and lines[0] == "2", run
    for line, words in zip(
        lines[1:], ["KeyError: 'boom'", "not JSON", "refuses", "did not answer"], strict=True
    ):
        assert words in line
    assert [bool(call.fault) for call in run.calls] == [False, True, True, True, True]


def test_what_answers_must_be_usable():
    for source, words in (("def f(:", "SyntaxError"), ("x = 1", "defines no function 'get_sales'")):
        with pytest.raises(UserError, match=words):
            execute("pass", TOOLS, Source(source, TOOLS))
    with pytest.raises(UserError, match="no JSON"):
        call_directly([("print", {})], TOOLS, Recorded({"print": [({}, {1})]}))
    known = Recorded({"get-sales": [({"shop": "a", "from": 1}, 7)]})
    made = call_directly(
        [("get-sales", {"from": 1, "shop": "a"}), ("get-sales", {"shop": "a"})], TOOLS, known
    )
    assert made[0].result == "7" and "nothing was recorded" in made[1].fault


@pytest.mark.parametrize(
    ("program", "limits", "why"),
    [
        ("while True: pass", Limits(seconds=0.4), "timeout"),
        ("x = []\nwhile True: x.append(bytearray(10 ** 7))", Limits(seconds=20, memory_mb=256), "memory"),
        ("while True: print('x' * 10 ** 5)", Limits(seconds=20, file_mb=1), "File too large"),
        (
            f"import os\nos.write({LINE}.ends[1], b'[' * 70_000 + b'\\n'); print_()",
            Limits(seconds=20),
            "no more",
        ),
    ],
)
def test_what_a_program_may_do_ends(program, limits, why):
    run = execute(program, TOOLS, TABLES, limits=limits)
    assert not run.passed and not run.calls and why in run.verdict.why, run.verdict
    assert len(run.summary) <= 1 << 20


def test_what_a_program_may_not_do_is_refused():
    bad = ("__import__('os').fork()", "open('/etc/passwd')", "__import__('socket').socket()", "sys.exit(3)")
    program = "import sys\n" + "".join(f"try: {one}\nexcept Exception as e: print(e)\n" for one in bad)
    run = execute(program, TOOLS, TABLES)
    for line, words in zip(run.summary.splitlines(), ("os.fork", "/etc/passwd", "socket."), strict=True):
        assert f"refuses {words}" in line
    assert run.verdict.why == "exited"


def test_eligible_for_each_reason_and_for_none():
    def one(*results):
        return eligible([Made("t", {}, json.dumps(result)) for result in results])

    assert not one({"n": 1}) and not eligible([])
    assert "2 calls" in one(1, 2).reasons[0]
    assert "10002 characters" in one("x" * 10_000).reasons[0]
    reasons = one({"to": "ada@mail.org", "at": "+1 202 555 0143", "id": "123-45-6789"}).reasons
    assert [reason.split()[2] for reason in reasons] == ["EMAIL", "PHONE", "SSN"]
    assert "ada" not in str(reasons)
    assert not eligible([Made("t", {}, "1"), Made("t", {}, fault="no")])
    assert not eligible([Made("t", {}, '"ada@mail.org"')], EligibilityRules(pii_patterns=("SSN",)))
    with pytest.raises(ValueError, match="EMIAL"):
        EligibilityRules(pii_patterns=("EMIAL",))


def scored(text, *results, answer="1209", prompt=PROMPT, reference=None):
    return CodeReward().score(ran(text, *results), expects(answer), Context(prompt, reference=reference))


def test_reward_is_success_less_tokens_less_leaks_with_places():
    brief, long = scored("1209"), scored("The total is 1209. " + "It was a long year. " * 30)
    assert brief.total == pytest.approx(0.999) and brief.kept
    assert 0.7 < long.total < 0.9 and long.outcomes[1].score == pytest.approx(long.total)
    leak = scored("The total is 1209. Ask ada@mail.org.")
    assert leak.total == 0 and not leak.holds
    (mark,) = leak.outcomes[2].marks
    assert mark.message == "personal data: email" and (mark.start, mark.end) == (23, 35)
    assert scored("ada@mail.org", answer="ada@mail.org", reference="ada@mail.org").kept  # it was asked for
    assert scored("1210").total == 0 and scored("1210").outcomes[0].marks
    failed = Execution(Verdict(False, "KeyError: 'x'", "1209", 0.0), ())
    score = CodeReward().score(failed, expects("1209"))
    assert score.total == 0 and "KeyError" in score.outcomes[0].marks[0].message


def test_bulk_output_is_found_in_any_form():
    table = [{"id": 1000 + n, "town": f"town{n}"} for n in range(40)]
    text = "The total is 1209.\n"
    for dump in (json.dumps(table), "\n".join(f"{row['town']}: {row['id']:,}" for row in reversed(table))):
        score = scored(text + dump, table)
        assert score.total == 0 and any("values" in mark.message for mark in score.outcomes[2].marks)
    story = " ".join(f"word{n}" for n in range(200))
    score = scored(f"{text}{story[:600]}", {"body": story})
    (mark,) = score.outcomes[2].marks
    assert "in a row" in mark.message and mark.start == len(text)
    assert scored(f"{text}{json.dumps(table[:5])}", table).outcomes[2].score == 1


def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    page = Path(__file__).parents[2] / "docs" / "code-mode.md"
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)[1], {})
    said = capsys.readouterr().out.splitlines()
    assert "9300" in said and said[-1] == "pass" and len(read_pairs("pairs.jsonl")[0]) == 1


def test_pairs_are_made_of_what_ran(tmp_path):
    context = Context(PROMPT)
    tried = pair_of(GOOD, CALLS, DECLARED, TABLES, expects("1209"), context)
    pair = tried.pair
    assert pair.chosen == f"```python\n{GOOD}\n```" and pair.rejected.count("<tool_call>") == 3
    assert pair.chosen_tokens < pair.rejected_tokens and pair.summary == "1209\n" and pair.reasons
    for program, calls, words in (
        ("print(1209)\nprint(get_sales(shop='a'))\nprint('a@b.org')", CALLS, "personal data"),
        (GOOD, CALLS[:1], "not eligible"),
        (f'"""\n```\n"""\n{GOOD}', CALLS, "a fence of its own"),
        (GOOD, [*CALLS, ("none", {})], "there is no tool 'none'"),
    ):
        none = pair_of(program, calls, DECLARED, TABLES, expects("1209"), context)
        assert none.pair is None and words in none.why, none
    with pytest.raises(UserError, match=r"context\.prompt"):
        pair_of(GOOD, CALLS, DECLARED, TABLES, expects("1209"), Context())
    file = tmp_path / "pairs.jsonl"
    write_pairs(file, [pair, pair])
    assert read_pairs(file) == ([pair, pair], [])
    row = json.loads(file.read_text().splitlines()[0])
    broken = [row | {"reward": 0}, row | {"chosen": ""}, row | {"rejected_tokens": True}, row | {"tools": 1}]
    file.write_text("\n".join(map(json.dumps, [row, row, row, row, *broken])) + "\n{")
    pairs, faults = read_pairs(file, 0.6)
    assert len(pairs) == 4 and len(faults) == 5
    assert [re.search(r"pairs.jsonl:(\d)", fault)[1] for fault in faults] == list("56789")
    with pytest.raises(UserError, match=r"pairs.jsonl:5: reward=0.*5 of 9"):
        read_pairs(file, 0.5)
    with pytest.raises(TypeError):
        write_pairs(file, [pair, None])  # the file that was there stays
    assert len(read_pairs(file, 0.6)[0]) == 4 and [path.name for path in tmp_path.iterdir()] == [file.name]


def test_what_was_written_is_carried_out_and_both_forms_of_the_task_find_the_value():
    task, rows = TASKS["programs"](), {}
    for example in task.split("valid", 20):
        rows.setdefault(example.meta["kind"], example)
    for kind, example in rows.items():
        program, plain = example.answers[:: 1 if kind != "one" else -1]
        code, calls = tried(program, example), tried(plain, example)
        assert code.success and calls.success and (code.code, calls.code) == (True, False)
        assert code.tokens < calls.tokens == calls.direct_tokens and code.leaks == 0
        assert bool(calls.leaks) == (kind == "long")  # all of a long result in the context
        made = [(call["name"], call["arguments"]) for call in example.meta["plain"]]
        due = eligible(call_directly(made, tools_of(example.meta["tools"]), Tables(example.meta["tables"])))
        assert bool(due) == example.meta["metadata"]["code_mode"] == code.eligible
        assert form_figures([program], [example])["figures"] == {"adoption" if due else "over_use": 1.0}
    example = rows["several"]
    loose = " ``` \n " + example.answer.splitlines()[1] + " \n ``` "  # as a tokenizer of words decodes it
    assert SCORERS["program"](loose, example)
    first = json.dumps(example.meta["plain"][0])
    for wrong in ("", "no", first, f"[{first}, {first}", "```\nprint(0)\n```", "```\nprint(\n```"):
        assert not tried(wrong, example).success


def test_figures_and_their_gates():
    due = [TaskRow(True, True, True, 100, 1000)] * 30
    plain = [TaskRow(False, False, True, 90, 90)] * 10
    good = measure([*due, *plain])
    figures = {figure.what: figure for figure in good.trials[0].figures}
    assert good.verdict == "pass" and figures["tokens saved"].measured.value == pytest.approx(0.9)
    assert figures["over-use"].measured.value == 0 and figures["over-use"].verdict is None
    assert measure([*due, TaskRow(True, True, True, 100, 1000, leaks=1)]).verdict == "fail"
    assert measure([*due[:10], *[TaskRow(True, False, True, 1000, 1000)] * 30]).verdict == "fail"
    assert measure(due[:5]).verdict == "inconclusive"
    lazy = measure([TaskRow(True, True, False, 0, 1000)] * 30)  # to fail briefly saves nothing
    assert lazy.trials[0].figures[0].measured.value == 0 and lazy.verdict == "fail"
    assert measure(plain).verdict == "inconclusive"
    for rows in ([], [TaskRow(True, True, True, 1, 0)], [TaskRow(True, True, True, -1, 5)]):
        with pytest.raises(UserError):
            measure(rows)
