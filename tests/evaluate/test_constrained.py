"""Answers held to the declared tools, and the figures beside the accuracy of calls."""

from functools import cache

import pytest
import torch
from torch import nn

from quietreasoning.backbone import BackboneConfig, ScratchConfig, load_backbone
from quietreasoning.backbone.sampling import permitted
from quietreasoning.config import UserError
from quietreasoning.contract import Markers, Method, MethodConfig, Response
from quietreasoning.data.config import DataConfig, build_task
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.spans.call_grammar import CallGrammar
from quietreasoning.data.tokenizers import build_tokenizer
from quietreasoning.evaluate.call_figures import NAMES, call_figures
from quietreasoning.evaluate.config import EvalConfig
from quietreasoning.evaluate.controls import Arm
from quietreasoning.evaluate.harness import evaluate
from quietreasoning.evaluate.rows import load, pool, save
from quietreasoning.evaluate.table import figures_table, text
from quietreasoning.evaluate.tool_scores import tool_rates
from quietreasoning.methods import METHODS
from quietreasoning.proof import Exam
from quietreasoning.train.signals import StopFlag

DATA = DataConfig(task="tools", options={"rows": "call"}, tokenizer={"train": "words", "examples": 200})
TASK = build_task(DATA)
TOKENIZER = build_tokenizer(DATA, TASK)
EXAMPLES = TASK.split("valid")[:16]


class Body(nn.Module):
    context, borrowed, vocab_size = 999, (), len(TOKENIZER)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class Scribbler(Method):
    """Writes words by chance, from its prompt's last words on; a bracket first, closing ones and the end most
    gladly."""

    def __init__(self, name="scribbler"):
        markers = Markers((TOKENIZER.convert_tokens_to_ids(":"),), TOKENIZER.eos_token_id)
        super().__init__(Body(), MethodConfig(name=name), markers)
        self.likes_V = torch.zeros(len(TOKENIZER))
        for word, gain in (("}", 4), ("]", 4), ("\n", -9), ("[", -2)):
            self.likes_V[TOKENIZER.convert_tokens_to_ids(word)] = gain

    def units(self, batch, carry=None):
        return {}

    def forward(self, batch, carry=None):
        raise NotImplementedError

    def generate(self, prompt_BP, *, max_new_tokens, control=None, effort=None, permit=None):
        if self.config.name != "scribbler" and permit is not None:
            raise ValueError(f"permit does not apply to {self.config.name}")
        rows = []
        for row, prompt_P in enumerate(prompt_BP.tolist()):
            source, tokens = torch.Generator().manual_seed(sum(prompt_P[-6:])), []
            while len(tokens) < max_new_tokens and tokens[-1:] != [self.markers.eos]:
                logits_V = self.likes_V + torch.rand(len(self.likes_V), generator=source)
                logits_V[self.markers.eos] = 9.0 if tokens else -9.0
                if not tokens:
                    logits_V[TOKENIZER.convert_tokens_to_ids("{")] = 9.0
                if permit is not None:
                    past = [[]] * row + [tokens]
                    is_open = [False] * row + [True]
                    stacked = logits_V.expand(row + 1, -1)
                    logits_V = permitted(stacked, permit, past, is_open, self.markers.eos)[row]
                tokens.append(int(logits_V.argmax()))
            rows.append(tokens[:-1] if tokens[-1:] == [self.markers.eos] else tokens)
        none = [0] * len(rows)
        return Response([[*self.markers.answer_prefix, *row] for row in rows], rows, none, none, none, 1.0)


def ask(examples=EXAMPLES, arms=None, **settings):
    config = EvalConfig(**{"batch_size": 5, "timing": 2, "max_new_tokens": 60, **settings})
    return evaluate(
        arms or [Arm(Scribbler(), "scribbler")],
        examples,
        task="tools",
        scorer="call",
        encode_prompt=lambda example: TOKENIZER(example.prompt).input_ids,
        decode=lambda ids: TOKENIZER.decode(ids),
        config=config,
        shortcuts=TASK.shortcuts,
        tokenizer=TOKENIZER,
    )


@cache
def held():
    return ask(constrained=True)


def test_a_call_that_is_held_to_the_tools_is_valid_whatever_the_model_likes(tmp_path):
    free, report = ask(), held()
    asked = sum(bool(example.meta["calls"]) for example in EXAMPLES)
    before, after = free.row("scribbler"), report.row("scribbler")
    assert list(after["figures"]) == [name for name in NAMES if name in after["figures"]]
    for name in ("parses", "valid"):
        assert (before["figures"][name], after["figures"][name]) == (0, 1)
        assert before["figure_rows"][name] == after["figure_rows"][name] == asked
    assert 0 < after["figures"]["tool"] < 1
    assert report.settings["constrained"] and "loose_schemas" not in report.settings
    one = ask(constrained=True, batch_size=1, timing=0)
    assert one.outcomes == report.outcomes and one.row("scribbler")["figures"] == after["figures"]
    save(tmp_path / "rows.json", [report])
    assert load(tmp_path / "rows.json") == [report]


def test_figures_stand_under_the_table_pooled_over_seeds_and_old_rows_have_none():
    row = held().row("scribbler")
    asked = row["figure_rows"]["valid"]
    again = row | {"seed": 1, "figures": row["figures"] | {"valid": 0.0}}
    (pooled,) = pool([row, again])
    assert (pooled["figures"]["valid"], pooled["figure_rows"]["valid"]) == (0.5, 2 * asked)
    made = figures_table([row, again])
    cells = {str(column.header): list(column.cells) for column in made.columns}
    assert cells["calls, %"] == ["scribbler"] and cells[f"valid\nn = {2 * asked}"] == ["50.0"]
    old = {name: value for name, value in row.items() if not name.startswith("figure")}
    assert figures_table([old]) is None and "scribbler" in text([old])
    (mixed,) = pool([old, again])
    assert (mixed["figures"], mixed["figure_rows"]) == (again["figures"], row["figure_rows"])


def test_figures_are_the_rates_of_the_rows_and_other_rows_are_read_off_their_answer():
    texts = [example.answer for example in EXAMPLES]
    found = call_figures(texts, EXAMPLES)
    rates = tool_rates(texts, EXAMPLES)
    assert found["figures"] == {name: rates[name][0] / rates[name][1] for name in found["figure_rows"]}
    assert found["figure_rows"] == {name: n for name, (_, n) in rates.items() if n}
    assert found["figures"]["exact"] == 1 and found["figures"]["over_calling"] == 0
    call = next(example for example in EXAMPLES if example.meta["calls"])
    wrapped = [{"type": "function", "function": tool} for tool in call.meta["tools"]]
    bare = [
        type(call)("a", "p", (), (), call.answer, {"tools": wrapped}),
        type(call)("b", "p", (), (), "so", {"tools": wrapped}),
        type(call)("c", "p", (), (), call.answer, {}),
    ]
    assert call_figures([call.answer, "{}", ""], bare) == {
        "figures": dict.fromkeys((*NAMES[:5], "over_calling"), 1.0),
        "figure_rows": dict.fromkeys((*NAMES[:5], "over_calling"), 1),
    }
    assert call_figures([call.answer], bare[2:]) == {}


def test_what_cannot_be_constrained_is_refused():
    plain = [type(e)(e.id, e.prompt, e.steps, e.results, e.answer, {}) for e in EXAMPLES]
    with pytest.raises(UserError, match=r"task tools declares no tools; set eval\.constrained=false"):
        ask(plain, constrained=True)
    arms = [Arm(Scribbler(), "scribbler"), Arm(Scribbler("mute"), "mute")]
    with pytest.raises(UserError, match=r"eval\.constrained=true: permit does not apply to mute; set it to"):
        ask(arms=arms, constrained=True)
    with pytest.raises(UserError, match=r"eval\.constrained=true holds answers to a grammar"):
        text = DataConfig(task="pointer")
        method = Scribbler()
        method.answers = False
        exam = Exam(text, EvalConfig(constrained=True, n=2), Encoder(TOKENIZER), 0)
        exam.ask([Arm(method, "scribbler")], StopFlag())


def test_a_models_answers_that_begin_a_call_are_held_to_it():
    """A real model whose head likes nothing but the bracket that opens a call."""
    torch.manual_seed(0)
    shape = ScratchConfig(layers=1, width=16, heads=2, mlp=16, context=256, init_std=0.3, tie=False)
    backbone = load_backbone(BackboneConfig(scratch=shape), len(TOKENIZER))
    encoder = Encoder(TOKENIZER)
    method = METHODS["plain"](backbone, METHODS["plain"].Config(), encoder.markers())
    bias_V = torch.zeros(len(TOKENIZER))
    bias_V[TOKENIZER.convert_tokens_to_ids("{")] = 99.0
    backbone.model.get_output_embeddings().register_forward_hook(lambda head, args, out: out + bias_V)
    for constrained in (False, True):
        config = EvalConfig(constrained=constrained, n=6, samples=6, timing=0, max_new_tokens=12)
        report = Exam(DATA, config, encoder, 0).ask([Arm(method, "plain")], StopFlag())
        tools = {example.id: example.meta["tools"] for example in EXAMPLES}
        for sample in report.samples:
            state = CallGrammar.start(tools[sample["id"]]).feed(sample["answer"])
            assert state.inside if constrained else state is None
        assert "figures" in report.row("plain")
