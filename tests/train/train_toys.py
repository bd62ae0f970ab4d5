"""A tiny method with everything the loop promises to carry: several terms and units, dropout, a carry."""

from __future__ import annotations

import torch
from torch import nn

from quietreasoning.contract import IGNORE, Batch, Markers, Method, MethodConfig, StepOutput, Term
from quietreasoning.nn.product_key_memory import ProductKeyReader, ProductKeyTable
from quietreasoning.optim.settings import OptimConfig
from quietreasoning.track import Sinks, TrackConfig, read_log
from quietreasoning.train.checkpoint import read_json
from quietreasoning.train.settings import TrainConfig
from quietreasoning.train.signals import StopFlag
from quietreasoning.train.stages import StagePlan, run_stages

VOCAB = 17
WIDTH = 8
# settings under which everything a checkpoint holds matters
FULL = {
    "toy": {"dropout": 0.3, "carries": True},
    "optim": {"name": "adamw", "ema": 0.8, "schedule": "cosine", "warmup_steps": 3},
}


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


class MemoryBackbone(ToyBackbone):
    """The toy's backbone and a product-key memory that it reads twice."""

    def __init__(self, sparse=True, int8=False):
        super().__init__()
        self.table = ProductKeyTable(64, 4, 2, 6, 3, sparse_grad=sparse, int8=int8)
        self.reader = ProductKeyReader(WIDTH, 2, 6, 4)
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, ids_BT):
        hidden = super().forward(ids_BT)
        for _ in range(2):
            read = self.reader(hidden[:, None], self.table, self.temperature)
            self.table.count(read.indices_RTHK)
            hidden = hidden + read.out_RTD[:, 0]
        return hidden


class Remembering(Toy):
    """The toy with a memory; its temperature and the re-seeding of dead keys follow the budget."""

    def __init__(self, sparse=True, int8=False, **settings):
        super().__init__(**settings)
        self.backbone = MemoryBackbone(sparse, int8)
        self.register_buffer("reseedings", torch.zeros((), dtype=torch.long))
        self.paces = []

    def pace(self, progress):
        self.paces.append(progress)
        self.backbone.temperature.fill_(2.0 - 1.3 * progress)
        if int(3 * progress) > int(self.reseedings):
            self.reseedings.fill_(int(3 * progress))
            self.backbone.table.reseed(int(self.reseedings))


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
    unknown_B = torch.full((len(rows),), IGNORE)
    return Batch(torch.tensor(rows), torch.stack(prompts), nothing, nothing, torch.stack(answers), unknown_B)


def toy_batches(batch_size: int):
    """batch_at of the contract: lanes and ranks only cut the rows of a step."""

    def batch_at(step, lane, lanes, rank, world):
        size = batch_size // (lanes * world)
        first = step * batch_size + (rank * lanes + lane) * size
        return toy_batch(list(range(first, first + size)))

    return batch_at


def toy_plan(
    name="main", *, steps=8, toy=None, optim=None, evaluate=None, batch_at=None, **train
) -> StagePlan:
    """A stage of the toy: batches of eight, saved and logged every step unless told otherwise."""
    config = TrainConfig(**{"steps": steps, "batch_size": 8, "save_every": 1, "log_every": 1} | train)
    optim = OptimConfig(**{"name": "sgd", "lr": 0.05} | (optim or {}))
    return StagePlan(
        name=name,
        settings={"train": config.model_dump(), "optim": optim.model_dump(), "method": toy or {}},
        train=config,
        optim=optim,
        make_method=lambda previous: previous or Toy(**(toy or {})),
        make_batches=lambda: batch_at or toy_batches(config.batch_size),
        evaluate=evaluate,
    )


def run_toy(run_dir, *plans, stop=None, machine=None, sinks=(), seed=3):
    """run_stages with `log.jsonl` and the given sinks."""

    def open_sinks(step):
        opened = Sinks.open(
            TrackConfig(console=False), run_dir, resume_step=step, main=machine is None or machine.main
        )
        return Sinks([*opened.sinks, *sinks])

    return run_stages(plans, run_dir, open_sinks, stop or StopFlag(), seed=seed, machine=machine)


def logged(run_dir, key="train/loss"):
    """(step, value) of every log record that has `key`."""
    return [(row["step"], row[key]) for row in read_log(run_dir / "log.jsonl") if key in row]


def weights_hash(path) -> str:
    return read_json(path / "manifest.json")["files"]["method.safetensors"]["sha256"]


def rows(accuracy):
    """What an evaluation returns."""
    return [
        {"task": "t", "method": "toy", "control": None, "effort": None, "accuracy": accuracy, "passes": 3.0},
        {"task": "t", "method": "toy", "control": "zero", "effort": 2, "accuracy": 0.0},
    ]
