"""The real public files, read whole, where they stand."""

import re

from quietreasoning.data.tasks import TASKS


def test_whole_gsm8k(real):
    task = TASKS["gsm8k"](path=str(real("gsm8k")))
    splits = {name: task.split(name) for name in task.splits}
    assert len(splits["train"]) + len(splits["valid"]) == 7473 and len(splits["test"]) == 1319
    assert 600 < len(splits["valid"]) < 900 and not task.faults
    golds = [e.meta["gold"] for e in splits["test"]]
    assert sum("," in gold for gold in golds) == 14
    everything = [e for split in splits.values() for e in split]
    assert all(re.fullmatch(r"-?\d+", e.answer) for e in everything)
    assert sum(e.answer != e.meta["gold"] for e in everything) == 14 + 79
    assert sum(not e.steps for e in splits["test"]) == 18
    right = total = 0
    for example in everything:
        for step, result in zip(example.steps, example.results, strict=True):
            assert result and step.endswith("=" + result)
            left = step.rpartition("=")[0]
            if (
                re.fullmatch(r"[\d.+\-*/()=]+", step)
                and not re.search(r"(^|\D)0\d", left)
                and "//" not in left
            ):
                total += 1
                right += abs(eval(left) - eval(result)) < 0.51
    assert total > 20_000 and right / total > 0.99


def test_whole_gsm8k_as_sentences(real):
    task = TASKS["gsm8k"](TASKS["gsm8k"].Config(style="sentences"), path=str(real("gsm8k")))
    examples = task.split("test")
    assert all(result in step for e in examples for step, result in zip(e.steps, e.results, strict=True))
    assert not any("<<" in step for e in examples for step in e.steps)
    known = sum(bool(result) for e in examples for result in e.results)
    assert known / sum(len(e.steps) for e in examples) > 0.8


def test_whole_humaneval(real):
    examples = TASKS["humaneval"](path=str(real("humaneval"))).split("test")
    assert len(examples) == 164 and examples[0].id == "HumanEval/0"
    for example in examples[:10]:
        scope: dict = {}
        exec(example.answer + "\n\n" + example.meta["tests"], scope)
        scope["check"](scope[example.meta["entry_point"]])
