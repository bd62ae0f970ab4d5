"""A method that adds its prompt's digits, in a thought that it may or may not use; one that reads text."""

import time

import torch
from torch import nn

from quietreasoning.contract import IGNORE, Markers, Method, MethodConfig, Response, StepOutput, Term
from quietreasoning.data.example import Example

DIGITS = 10  # token ids 0..9 are digits
VOCAB = 16


class Body(nn.Module):
    context = 32
    borrowed = ()

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.dropout = nn.Dropout(0.5)


class Adder(Method):
    """uses_thought: answer from the thought; else from the prompt again, so that the thought is inert."""

    def __init__(self, uses_thought=True, takes_effort=True, kind="quiet"):
        super().__init__(Body(), MethodConfig(name="adder"), Markers((11,), 12))
        self.uses_thought = uses_thought
        self.takes_effort = takes_effort
        self.kind = kind
        self.batches = []  # what was asked, for tests

    def units(self, batch, carry=None):
        return {}

    def forward(self, batch, carry=None):
        raise NotImplementedError

    def generate(self, prompt_BP, *, max_new_tokens, control=None, effort=None, permit=None):
        assert not any(module.training for module in self.modules())
        assert torch.is_inference_mode_enabled()
        if effort is not None and not self.takes_effort:
            raise ValueError(f"effort={effort} does not apply to adder")
        started = time.perf_counter()
        self.batches.append(prompt_BP.clone())
        total_B = prompt_BP.masked_fill(prompt_BP == IGNORE, 0).sum(1) % DIGITS
        thought_B = total_B
        if effort is not None:  # a thought of few steps reads only the last `effort` tokens
            tail_BP = prompt_BP[:, -effort:]
            thought_B = tail_BP.masked_fill(tail_BP == IGNORE, 0).sum(1) % DIGITS
        if control == "shuffle":
            assert len(prompt_BP) > 1
            thought_B = thought_B.roll(1)
        elif control is not None:
            thought_B = torch.zeros_like(thought_B)
        said = (thought_B if self.uses_thought else total_B).tolist()
        rows = len(said)
        chain = [3] * rows if self.kind == "chain" else [0] * rows
        latent = [2] * rows if self.kind == "quiet" else [0] * rows
        passes = [0] * rows if self.kind == "direct" else [2] * rows
        tokens = [[11, digit] for digit in said]
        answers = [[digit] for digit in said]
        return Response(tokens, answers, chain, passes, latent, (time.perf_counter() - started) * 1000)


def examples(n, seed=0):
    """Prompts of 1 to 8 digits; the answer is their sum modulo 10."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(n):
        length = int(torch.randint(1, 9, (), generator=generator))
        digits = torch.randint(0, DIGITS, (length,), generator=generator).tolist()
        prompt = " ".join(map(str, digits))
        meta = {"num_steps": length}
        made.append(Example(f"sum-{i}", prompt, (), (), str(sum(digits) % DIGITS), meta))
    return made


def encode_prompt(example):
    return [int(word) for word in example.prompt.split()]


def decode(ids):
    return " ".join({11: "####", 12: ""}.get(i, str(i)) for i in ids).strip()


class Reader(Method):
    """Predicts the next token from the last one alone, by a table; dropout spoils it outside eval mode."""

    reads_text = True

    def __init__(self, seed=0, vocab=VOCAB):
        super().__init__(Body(), MethodConfig(name="reader"), Markers((11,), 12))
        generator = torch.Generator().manual_seed(seed)
        self.table_VV = nn.Parameter(torch.randn(vocab, vocab, generator=generator))
        self.rows = []  # rows of each batch asked, for tests

    def units(self, batch, carry=None):
        return {"token": int((batch.prompt_BP[:, :-1] != IGNORE).sum()), "sequence": len(batch)}

    def forward(self, batch, carry=None):
        assert not torch.is_grad_enabled()
        self.rows.append(len(batch))
        seen_BP = batch.prompt_BP[:, :-1] != IGNORE
        last_N, next_N = batch.prompt_BP[:, :-1][seen_BP], batch.prompt_BP[:, 1:][seen_BP]
        logits_NV = self.backbone.dropout(self.table_VV[last_N])
        total = nn.functional.cross_entropy(logits_NV, next_N, reduction="sum")
        hits = (logits_NV.argmax(-1) == next_N).sum().float()
        terms = {"lm": Term(total, "token"), "other": Term(total * 3, "sequence")}
        return StepOutput(terms, {"token_accuracy": (hits, torch.tensor(len(next_N)))})

    def generate(self, prompt_BP, *, max_new_tokens, control=None, effort=None, permit=None):
        raise NotImplementedError
