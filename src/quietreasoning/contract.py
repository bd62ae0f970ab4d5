"""What a method and everything around it promise each other. Read this file first.

A method is an `nn.Module` whose `forward` *is* the training step: it returns named sums, never a
mean, and never logs, prints, saves or divides. The loop divides once, over accumulation lanes and
ranks. `generate` answers prompts and says what the answer cost.

Shapes: B rows, P prompt tokens, K steps, S tokens in a step, R tokens in a step's result,
A answer tokens, T positions, C chunks of text, D width, V vocabulary. Padding is `IGNORE` everywhere:
prompts are padded on the left, everything else on the right.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quietreasoning.config import Settings

IGNORE = -100
Permit = Callable[[int, Sequence[int], Tensor], Tensor | None]
"""(row of the prompts, tokens it has written after the answer prefix, its logits [V]) -> which ids may come
next: bool [V], or numbers [V] added to the logits, -inf where one may not; on any device. None: all may.
Where none may, end of sequence follows."""
CONTROLS = ("zero", "shuffle", "mean", "noise", "filler")


class Role(IntEnum):
    """What stands at a position. The backbone masks PAD; the doctor audits the rest."""

    PAD = 0
    PROMPT = 1
    THOUGHT = 2  # a latent: an embedding that is no token
    STEP = 3  # a visible reasoning token
    MARKER = 4  # the answer prefix
    ANSWER = 5


@dataclass(frozen=True)
class Markers:
    """The token ids every method shares."""

    answer_prefix: tuple[int, ...]
    eos: int
    rationale: tuple[int, ...] = ()  # tokens that betray a visible chain where only answers may stand
    thinking: tuple[int, ...] = ()  # the eight thinking tokens, <think> and </think> first; or none
    openers: tuple[int, ...] = ()  # tokens that begin a tool call, where the rows speak one dialect of them


@dataclass(frozen=True)
class Batch:
    """One microbatch of token ids; every integer tensor but the packed bits is padded with `IGNORE`."""

    keys_B: Tensor  # example key; whatever a method samples is seeded by it
    prompt_BP: Tensor  # padded on the left, so that all prompts end in the same column
    steps_BKS: Tensor  # gold visible steps, one row a step
    results_BKR: Tensor  # the tokens of each step's result alone
    answer_BA: Tensor  # answer, then end of sequence; without the answer prefix; text has none
    rare_B: Tensor  # 1: the answer is a long-tail fact, 0: a popular one, IGNORE: unknown
    instructed_BP: Tensor | None = None  # the prompt as a teacher alone reads it; none: [B, 0]
    row_B: Tensor | None = None  # the example's place in its split; IGNORE: unknown
    classes_BA: Tensor | None = None  # Kind (kinds.py) of each answer token; none: [B, 0]
    allowed_BAW: Tensor | None = None  # ids that a call's grammar allows in the place of each answer token:
    # packed bits, uint8, the first id highest; all 0 where it says nothing; none: [B, 0, 0]
    rejected_BA: Tensor | None = None  # an answer that is not wanted, end of sequence included; none: [B, 0]
    rejected_classes_BA: Tensor | None = None  # Kind of each of its tokens; none: [B, 0]
    taught_BT: Tensor | None = (
        None  # the whole row as a teacher with another tokenizer reads it; none: [B, 0]
    )
    taught_role_BT: Tensor | None = None  # Role of each of these
    halt_B2: Tensor | None = None  # a thought, from 1, and whether thinking should stop after it (1) or went
    # on (0); IGNORE: unknown; none: [B, 0]
    chunks_BC4: Tensor | None = None  # stretches of text that are whole tokens of both: [first, end) in the
    # teacher's row, [first, end) in the student's tokens behind the prompt (steps, answer prefix, answer)

    def __post_init__(self) -> None:
        empty = {
            "instructed_BP": self.prompt_BP[:, :0],
            "row_B": torch.full_like(self.keys_B, IGNORE),
            "classes_BA": self.answer_BA[:, :0],
            "allowed_BAW": self.answer_BA[:, :0, None].to(torch.uint8)[..., :0],
            "rejected_BA": self.answer_BA[:, :0],
            "rejected_classes_BA": self.answer_BA[:, :0],
            "taught_BT": self.prompt_BP[:, :0],
            "taught_role_BT": self.prompt_BP[:, :0],
            "halt_B2": self.prompt_BP[:, :0],
            "chunks_BC4": self.prompt_BP[:, :0, None].expand(-1, -1, 4),
        }
        for name, value in empty.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def to(self, device: torch.device | str) -> Batch:
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def __len__(self) -> int:
        return len(self.keys_B)


@dataclass(frozen=True)
class Term:
    """One named loss: a sum over `unit`s in this microbatch. The loop divides, once, globally."""

    total: Tensor
    unit: str  # "token", "step", "sequence", "slot", "thought"
    weight: float = 1.0


@dataclass(frozen=True)
class StepOutput:
    terms: dict[str, Term]
    metrics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # name -> (sum, count)
    carry: Any = None  # handed back to the same lane at the next step


@dataclass(frozen=True)
class Response:
    """Answers to B prompts and what they cost. Lists have one entry a prompt."""

    tokens: list[list[int]]  # all that was written: chain, answer prefix, answer; no end of sequence
    answers: list[list[int]]  # what follows the answer prefix
    visible_tokens: list[int]  # thinking tokens written before the answer
    passes: list[int]  # sequential model passes between the prompt's prefill and the first answer token
    latent_steps: list[int]  # thoughts that are no tokens: latents, or slots times loops
    milliseconds: float  # wall time of the whole call
    confidence: list[float] | None = None  # its own probability that the answer is right; None: it has none


@dataclass(frozen=True)
class Examined:
    """What is known of the thoughts that a method had about a batch. Lists have one entry a thought."""

    row: list[int]  # of the batch
    tokens: list[list[int]]  # what it reads as
    continuation: list[list[int]]  # as many tokens that the model says there, greedily, without thinking
    score: list[float]  # how well it looks to one who does not know the text to come
    utility: list[float]  # nats it adds to the log-likelihood of the true tokens after it
    plain_score: list[float] | None = None  # the score without any part that was trained on utility


class MethodConfig(Settings):
    """Base of every method's settings; `name` picks the class from METHODS."""

    name: str


class Method(nn.Module, ABC):
    """One way to reason. Knows its backbone and its settings, nothing of loop, data or evaluation."""

    Config: ClassVar[type[MethodConfig]]
    controls: ClassVar[tuple[str, ...]] = CONTROLS  # which corruptions of its thoughts apply
    reads_text: ClassVar[bool] = False  # trains on running text too: batches whose rows are prompts alone
    answers: ClassVar[bool] = True  # else it is judged by what forward measures, and generate refuses
    draws: ClassVar[bool] = False  # thoughts are drawn: those of generation are not those of training
    crosses: ClassVar[bool] = False  # its teacher has another tokenizer, which `shared` holds against its own
    slack: ClassVar[tuple[str, ...]] = ()  # terms that are zero, without gradient, while a limit is kept

    def __init__(self, backbone: nn.Module, config: MethodConfig, markers: Markers):
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.markers = markers

    @property
    def borrowed(self) -> tuple[str, ...]:
        """State-dict keys recorded by name and revision, never saved in a checkpoint."""
        return tuple(f"backbone.{key}" for key in self.backbone.borrowed)

    @property
    def learns_prompt(self) -> bool:
        """Whether tokens of the prompt are labels too, on purpose."""
        return False

    @property
    def counts(self) -> bool:
        """Whether it learns by counting: in training mode `forward` adds what it saw to buffers, over all
        ranks, and no term has a gradient. Then there is neither backward nor optimizer."""
        return False

    @property
    def term_weights(self) -> dict[str, float]:
        """Term -> its weight, as configured; a term of weight 0 is not there."""
        return self.config.model_dump().get("weights", {})

    @abstractmethod
    def units(self, batch: Batch, carry: Any = None) -> dict[str, int]:
        """How many of each unit `forward` will sum over; counted before any forward."""

    @abstractmethod
    def forward(self, batch: Batch, carry: Any = None) -> StepOutput:
        """The training step."""

    def pace(self, progress: float) -> None:
        """Whatever follows the stage's budget: temperatures, schedules, re-seeding. Does nothing by default.

        progress: share of the stage's budget that is spent, in [0, 1]; 0 before the first step. The loop
        calls it once before the forwards of each optimizer step, on every rank, and the same way after a
        resume. What it sets must be a buffer: checkpoints and evaluation know nothing else of it. Random
        numbers must be seeded by something that is the same on every rank.
        """

    def export(self, folder: Path) -> list[Path]:
        """Write what others load of this method into `folder`, once the run has ended; the files written.

        Called on the main rank with the method as evaluation sees it. Writes nothing by default. A run that
        had ended writes them again, so the same method must give the same files.
        """
        return []

    def examine(self, batch: Batch) -> Examined | None:
        """Its thoughts about rows with their true tokens, to be held against each other; None where they
        cannot be read. Called in eval mode without gradients; no row may depend on another."""
        return None

    @abstractmethod
    def generate(
        self,
        prompt_BP: Tensor,
        *,
        max_new_tokens: int,
        control: str | None = None,
        effort: int | None = None,
        permit: Permit | None = None,
    ) -> Response:
        """Answer greedily. `prompt_BP` is padded on the left with IGNORE.

        control: one of `CONTROLS`, corrupts the method's own thoughts; ValueError where it has none.
        effort: latent steps, loops or fillers in place of the trained number; ValueError where
        the method has no such dial.
        permit: which tokens each row may write next behind the answer prefix; what it writes before that, a
        chain or thoughts, is its own. ValueError where a method cannot be held.
        """
