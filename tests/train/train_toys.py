"""A tiny method with everything the loop promises to carry: several terms and units, dropout, a carry."""

from __future__ import annotations

import torch
from torch import nn

from quietreasoning.contract import IGNORE, Batch, Markers, Method, MethodConfig, StepOutput, Term

VOCAB = 17
WIDTH = 8


class ToyBackbone(nn.Module):
    borrowed = ()

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids_BT):
        hidden = self.embed(ids_BT).mean(1)
        for _ in range(2):  # methods call inner layers several times
            hidden = hidden + torch.tanh(self.mix(hidden))
        return hidden


class Toy(Method):
    """Predicts an answer token from a prompt; the carry is a per-lane running mean."""

    class Config(MethodConfig):
        name: str = "toy"
        dropout: float = 0.0
        carries: bool = False

    def __init__(self, **settings):
        torch.manual_seed(0)
        super().__init__(ToyBackbone(), self.Config(**settings), Markers(answer_prefix=(1,), eos=2))
        self.halt = nn.Linear(WIDTH, 1)
        self.register_buffer("scale", torch.ones(()))

    def units(self, batch, carry=None):
        return {"token": int((batch.answer_BA != IGNORE).sum()), "sequence": len(batch)}

    def forward(self, batch, carry=None):
        hidden_BD = self.backbone(batch.prompt_BP)
        hidden_BD = nn.functional.dropout(hidden_BD, self.config.dropout, self.training)
        if self.config.carries:
            carry = {"mean": torch.zeros(WIDTH), "turns": 0} if carry is None else carry
            hidden_BD = hidden_BD + carry["mean"]
            carry = {"mean": 0.9 * carry["mean"] + 0.1 * hidden_BD.mean(0), "turns": carry["turns"] + 1}
        logits_BV = self.backbone.head(hidden_BD) * self.scale
        labels_BA = batch.answer_BA
        logits_BAV = logits_BV[:, None].expand(-1, labels_BA.shape[1], -1)
        tokens = nn.functional.cross_entropy(
            logits_BAV.flatten(0, 1), labels_BA.flatten(), ignore_index=IGNORE, reduction="sum"
        )
        halt = nn.functional.softplus(self.halt(hidden_BD)).sum()
        right = (logits_BV.argmax(-1) == labels_BA[:, 0]).sum()
        return StepOutput(
            terms={"answer": Term(tokens, "token"), "halt": Term(halt, "sequence", 0.1)},
            metrics={"right": (right, torch.tensor(len(batch)))},
            carry=carry,
        )

    def generate(self, prompt_BP, *, max_new_tokens, control=None, effort=None):
        raise NotImplementedError


def toy_batch(rows: list[int]) -> Batch:
    """Rows by number: prompts, and answers of one to three tokens."""
    prompts, answers = [], []
    for row in rows:
        generator = torch.Generator().manual_seed(row)
        prompts.append(torch.randint(3, VOCAB, (5,), generator=generator))
        answer = torch.full((3,), IGNORE)
        answer[: 1 + row % 3] = prompts[-1][0]
        answers.append(answer)
    nothing = torch.full((len(rows), 0, 0), IGNORE)
    return Batch(torch.tensor(rows), torch.stack(prompts), nothing, nothing, torch.stack(answers))


def toy_batches(batch_size: int):
    """batch_at of the contract: lanes and ranks only cut the rows of a step."""

    def batch_at(step, lane, lanes, rank, world):
        size = batch_size // (lanes * world)
        first = step * batch_size + (rank * lanes + lane) * size
        return toy_batch(list(range(first, first + size)))

    return batch_at
