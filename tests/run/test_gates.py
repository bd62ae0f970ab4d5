"""Gates on real runs: what they print, keep and return, and that planted theater fails in the same place."""

import json
import re
from dataclasses import replace
from functools import cache

import pytest
import torch
from typer.testing import CliRunner

from quietreasoning import gates
from quietreasoning.build import Loaded, open_run
from quietreasoning.cli.main import app
from quietreasoning.contract import IGNORE, Examined, Method, MethodConfig, Response

SMALL = [
    "backbone.scratch={layers: 1, width: 16, heads: 2, mlp: 16, context: 96}", "backbone.path=null",
    "train={steps: 1, batch_size: 4, save_every: 0, eval_every: 0}", "optim.warmup_steps=0",
    "data={train: 16, valid: 40, test: 16}", "eval={n: 12, max_new_tokens: 8}",
]  # fmt: skip
THOUGHTS = "method={name: thoughts, anchors: 2, spacing: 1, thoughts: 2, talk: 2, floor: 2, cap: 3}"
THINKING = "data.tokenizer={train: words, thinking: true}"
BAKE = [
    "method={name: bake, max_tokens: 4}", "data.task=strategies", THINKING,
    'data.format={prompt_suffix: "", instruction: "think first : "}', "data.options={tags: false}",
]  # fmt: skip


def quiet(*arguments):
    """Run in this process: (exit code, stdout, stderr)."""
    done = CliRunner().invoke(app, list(arguments))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function that trains a recipe once and gives its folder."""

    @cache
    def trained(recipe, *settings):
        folder = tmp_path_factory.mktemp("runs") / "run"
        code, _, err = quiet("train", recipe, *SMALL, *settings, "--no-doctor", "--out", str(folder))
        assert code == 0, err
        return folder

    return trained


def through(folder, gate, *settings):
    """(exit code, stdout, the judgement as kept)."""
    code, out, err = quiet("eval", str(folder), "--gate", gate, *settings)
    assert code in (0, 1), err
    return code, " ".join(out.split()), json.loads((folder / "eval" / f"gate-{gate}.json").read_text())


def test_an_untrained_thinker_does_not_pass(run, tmp_path):
    folder, file = run("plain/pointer", THOUGHTS, THINKING), tmp_path / "gate.json"
    code, out, kept = through(folder, "theater", "--json", str(file))
    assert code == 1 and kept["verdict"] in ("fail", "inconclusive") and json.loads(file.read_text()) == kept
    assert [kept[key] for key in ("method", "task", "split")] == ["thoughts", "pointer", "valid"]
    assert f"gate theater: {kept['verdict']}" in out and "T3 correlation: only" in out
    tests = {row["test"]: row["test_verdict"] for row in kept["rows"]}
    assert list(tests) == ["T1 divergence", "T2 ablation", "T3 correlation"]
    assert tests["T2 ablation"] != "pass" and tests["T3 correlation"] != "pass"


def test_one_thought_a_row_is_permuted_over_rows(run):
    _, out, kept = through(run("slots/pointer"), "theater")
    assert "permutations over all rows" in out and len(kept["rows"]) == 9


def test_an_unbaked_run_fails_and_its_teacher_stands_beside(run):
    code, out, kept = through(run("plain/pointer", *BAKE), "baking")
    assert code == 1 and kept["verdict"] == "fail"
    rows = {row["what"]: row for row in kept["rows"]}
    assert rows["convergence"]["verdict"] != "pass" and rows["convergence"]["value"] < 0.85
    assert rows["valid thoughts"]["verdict"] == "fail" and rows["valid thoughts"]["n"] == 12
    assert rows["  the teacher, told"]["needs"] is None and "by chance" in out
    assert rows["gold text, rise"]["verdict"] is None


def test_a_baked_run_passes_with_exit_code_0(run):
    instruction, more = 'data.format.instruction="a -> "', "train={steps: 110, batch_size: 32}"
    schedule = "optim={schedule: cosine, lr: 1e-2}"
    folder = run("plain/pointer", BAKE[0].replace("4", "1"), instruction, more, schedule, "data.train=2048",
                 "backbone.scratch.init_std=0.5")  # fmt: skip
    code, out, kept = through(folder, "baking", "eval.n=40")
    assert (code, kept["verdict"]) == (0, "pass") and kept["rows"][0]["low"] >= 0.85
    assert "convergence alone decides" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gate", "nonsense"], "--gate nonsense: no such gate; choose one of theater, baking, rules"),
        (
            ["--gate", "theater"],
            "has no thoughts to test; give a run whose last stage is one of cot, pause, ",
        ),
        (["--gate", "baking"], "is method plain; give a run whose last stage is bake"),
        (["--gate", "theater", "--controls", "zero"], "--controls zero has no effect with --gate theater"),
        (["--gate", "theater", "train.steps=3"], "has no effect on a trained run"),
        (["--gate", "rules"], "--gate rules needs the file of rules: give --rules FILE"),
        (["--rules", "r.yaml"], "--rules r.yaml has no effect without --gate rules"),
        (["--gate", "theater", "--rules", "r.yaml"], "--rules r.yaml has no effect with --gate theater"),
        (
            ["--gate", "rules", "--rules", "r.yaml"],
            "rule 'true' is met by evidence or outcomes beside a text",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text("rules: [{id: 'true', kind: claims}]")
    code, out, err = quiet("eval", str(run("plain/pointer")), *arguments)
    assert code == 2 and says in err and err.count("\n") == 1 and not out


class Planted(Method):
    """Answers right from its thoughts, which say what a test plants."""

    def __init__(self, loaded: Loaded, kind: str):
        super().__init__(loaded.method.backbone, MethodConfig(name="planted"), loaded.method.markers)
        self.kind, self.answers_of = kind, {}
        for example in gates.held_out(loaded, loaded.config.eval):
            encoded = loaded.encoder.encode(example)
            self.answers_of[tuple(encoded.prompt.tolist())] = encoded.answer[:-1].tolist()

    def units(self, batch, carry=None):
        return {}

    def forward(self, batch, carry=None):
        raise NotImplementedError

    def generate(self, prompt_BP, *, max_new_tokens, control=None, effort=None, permit=None):
        said = [self.answers_of[tuple(row[row != IGNORE].tolist())] for row in prompt_BP]
        if control is not None:
            said = [[] for _ in said]
        count = len(said)
        return Response(said, said, [0] * count, [1] * count, [1] * count, 1.0)

    def examine(self, batch):
        if self.kind == "unreadable":
            return None
        each = 5
        draws = [torch.Generator().manual_seed(int(key) % 2**31) for key in batch.keys_B]
        tokens, plain = (
            [torch.randint(9, (6,), generator=draw).tolist() for draw in draws for _ in range(each)]
            for _ in range(2)
        )
        score = [float(torch.randn((), generator=draw)) for draw in draws for _ in range(each)]
        noise = [float(torch.randn((), generator=draw)) for draw in draws for _ in range(each)]
        utility = [0.5 + 0.5 * s + 0.1 * n for s, n in zip(score, noise, strict=True)]
        row = [b for b in range(len(draws)) for _ in range(each)]
        return Examined(
            row,
            tokens,
            plain,
            score,
            [0.0] * len(row) if self.kind == "worthless" else utility,
        )


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("helpful", "pass pass pass"),
        ("worthless", "pass fail fail"),
        ("unreadable", "not applicable pass not applicable"),
    ],
)
def test_planted_thoughts_through_the_gate(run, kind, wanted, capsys):
    loaded = open_run(run("plain/pointer"), ["eval.n=40"])
    judgement = gates.hold(replace(loaded, method=Planted(loaded, kind)), "theater")
    assert " ".join(trial.verdict for trial in judgement.trials) == wanted
    assert judgement.verdict == ("fail" if kind == "worthless" else "pass")
    out = capsys.readouterr().out
    assert f"gate theater: {judgement.verdict}" in out
    assert ("T2 alone decides" in out) == (kind == "unreadable")


def test_answers_are_held_to_a_file_of_rules(run, tmp_path):
    """The share is that of the gold answers, which are planted; an untrained model keeps no rule."""
    rules, folder = tmp_path / "rules.yaml", run("plain/pointer")
    loaded = open_run(folder, ["eval.n=40"])
    planted = replace(loaded, method=Planted(loaded, "helpful"))
    gold = [example.answer for example in gates.held_out(loaded, loaded.config.eval)]
    for least, pattern, verdict in ((0.9, r"^\w+$", "pass"), (0.9, gold[0], "fail"), (0.01, gold[0], "pass")):
        rules.write_text(f"share: {least}\nrules: [{{id: a, kind: format, pattern: '{pattern}'}}]")
        judgement = gates.hold(planted, "rules", str(rules))
        kept, rule = judgement.trials[0].figures
        share = sum(re.search(pattern, answer) is not None for answer in gold) / len(gold)
        assert (judgement.verdict, kept.measured.value, kept.n, kept.needs) == (verdict, share, 40, least)
        assert rule.measured == kept.measured and 0 < share
        said = judgement.about["answers"]
        assert [one["answer"] for one in said] == gold
        assert all(one["broken"] == ([] if one["kept"] else ["a"]) for one in said)
    rules.write_text(f"rules: [{{id: a, kind: format, pattern: '{gold[0]}$', hard: true}}]")
    code, out, kept = through(folder, "rules", "--rules", str(rules))
    assert code == 1 and kept["verdict"] == "fail" and "kept 0.000" in out and len(kept["answers"]) == 12
