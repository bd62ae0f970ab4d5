"""A recursive reasoner by itself (TRM, arXiv 2510.04871): no language model, the whole answer at once.

For tasks whose answer has a token for every token of the prompt, such as grids: position i of the answer is
said at position i. The backbone gives the vocabulary, its embeddings and its head, and has no blocks. Read
`forward` first: one supervision step is one optimizer step, and a row that is done makes place for a new one.

Shapes: B rows, P positions, V vocabulary. Rows are padded on the right with IGNORE.
"""

from __future__ import annotations

import time
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from quietreasoning.backbone import Backbone
from quietreasoning.backbone.sampling import permitted
from quietreasoning.config import Settings, UserError
from quietreasoning.contract import (
    IGNORE,
    Batch,
    Markers,
    Method,
    MethodConfig,
    Permit,
    Response,
    StepOutput,
    Term,
)
from quietreasoning.losses.next_token import next_token
from quietreasoning.losses.recursion import exactly_right, halt_when
from quietreasoning.methods.carried_rows import earliest, renewed
from quietreasoning.methods.writing import row_seeds
from quietreasoning.nn.corrupt import corrupt
from quietreasoning.nn.recursion import Carry, Given, Reasoner, RecursionConfig, think


class ReasonerWeights(Settings):
    answer: float = Field(1.0, gt=0)
    """Cross-entropy of every token of the answer, also of those that the prompt gives: to copy them is how
    the states learn what a token is, and with the others alone nothing is learned for long."""
    halt: float = Field(0.5, ge=0)
    """Cross-entropy of halting against the answer being exactly right."""


class RecursiveReasoner(Method):
    """One small network, evaluated again and again on the whole prompt."""

    class Config(MethodConfig):
        name: Literal["reasoner"] = "reasoner"
        """A recursive reasoner without a language model."""
        width: int = Field(128, ge=2)
        """Width of its states."""
        layers: int = Field(2, ge=1)
        """Layers of the network."""
        heads: int = Field(4, ge=1)
        """Attention heads, used with mixer=attention."""
        expansion: float = Field(2.0, gt=0)
        """Width of the feed-forward nets, in widths of what they read."""
        latent_steps: int = Field(2, ge=0)
        """n: evaluations z <- f(z + y + x) in a round, before y <- f(z + y); 0: y <- f(z + y + x) alone."""
        rounds: int = Field(1, ge=1)
        """T: rounds in a supervision step; only the last one has a gradient."""
        supervision_steps: int = Field(8, ge=1)
        """Most steps a row thinks, in training and after."""
        mixer: Literal["mlp", "attention"] = "mlp"
        """How positions hear each other: a net over their fixed number, or attention."""
        cells: int | None = Field(None, ge=1)
        """Longest prompt in tokens; mixer=mlp needs it."""
        style: Literal["plain", "paper"] = "plain"
        """Norm before, GELU and biases, which learns sooner here; or the blocks of the paper."""
        halt_cut: float | None = Field(None, ge=0, lt=1)
        """Answer when the halting probability passes this; null: after all steps."""
        weights: ReasonerWeights = ReasonerWeights()
        """Loss weights."""

        def sizes(self, embedding: int) -> RecursionConfig:
            """Of the reasoner between embeddings and head; ValueError where they do not fit."""
            shared = ("width", "layers", "heads", "expansion", "latent_steps", "rounds", "mixer", "style")
            return RecursionConfig(
                context_width=embedding,
                outputs=embedding,
                slots=0,
                context=self.cells,
                **{name: getattr(self, name) for name in shared},
            )

        @model_validator(mode="after")
        def _fits(self) -> RecursiveReasoner.Config:
            if self.mixer == "mlp" and self.cells is None:
                raise ValueError("mixer=mlp needs cells, the longest prompt in tokens; set method.cells")
            if self.halt_cut is not None and not self.weights.halt:
                raise ValueError("halt_cut has no effect with weights.halt=0, which never learns to halt")
            self.sizes(1)
            return self

    def __init__(self, backbone: Backbone, config: Config, markers: Markers):
        if backbone.num_layers:
            raise UserError(
                f"backbone: method reasoner runs no blocks, this model has {backbone.num_layers}. Set "
                "backbone.path=null backbone.scratch.layers=0"
            )
        super().__init__(backbone, config, markers)
        self.reasoner = Reasoner(config.sizes(backbone.width))
        self.reasoner.halt.requires_grad_(config.weights.halt > 0)
        if config.supervision_steps == 1:
            self.controls = ()  # no thought is carried from one step to the next

    def units(self, batch: Batch, carry: Any = None) -> dict[str, int]:
        rows = join(cells_of(batch), carry)
        return {"token": int((rows["answer_BP"] != IGNORE).sum()), "sequence": len(batch)}

    def forward(self, batch: Batch, carry: Any = None) -> StepOutput:
        """One supervision step of every row; where one was done, the batch's row in its place begins."""
        config = self.config
        rows = join(cells_of(batch), carry)
        given = self.read(rows["prompt_BP"])
        state = self._state(given, carry)
        thought = self.reasoner(given, state)
        answer_BP = rows["answer_BP"]
        logits_BPV = self.backbone.logits(thought.output_BPO[:, : answer_BP.shape[1]])
        total, hits, tokens = next_token(logits_BPV, answer_BP)
        right_B, asked_B = exactly_right(logits_BPV, answer_BP)
        terms = {"answer": Term(total, "token", config.weights.answer)}
        if config.weights.halt:
            lost = halt_when(thought.halt_B, right_B, asked_B)[0]
            terms["halt"] = Term(lost, "sequence", config.weights.halt)

        step_B = rows["step_B"] + 1
        earliest_B = earliest(rows["key_B"], config.supervision_steps)
        sure_B = (thought.halt_B.detach() > 0) & (step_B >= earliest_B)
        done_B = sure_B | (step_B >= config.supervision_steps)
        metrics = {
            "token_accuracy": (hits.float(), tokens),
            "exact": (right_B.sum().float(), asked_B.sum()),
            "steps_taken": (step_B[done_B].sum().float(), done_B.sum()),
        }
        y_BPD, z_BPD = (part.detach() for part in thought.carry)
        kept = rows | {"step_B": step_B, "done_B": done_B, "y_BPD": y_BPD, "z_BPD": z_BPD}
        return StepOutput(terms, metrics, kept)

    def read(self, prompt_BP: Tensor) -> Given:
        """What every step needs of prompts padded on the right; UserError where one is too long."""
        longest, cells = prompt_BP.shape[1], self.config.cells
        if cells is not None and longest > cells:
            raise UserError(
                f"method.cells={cells}, but a prompt has {longest} tokens. Set method.cells={longest}, or "
                "leave long prompts out: data.max_prompt_tokens with data.too_long=drop"
            )
        real_BP = prompt_BP != IGNORE
        context_BPW = self.backbone.embed(prompt_BP).to(self.reasoner.enter.weight.dtype)
        return self.reasoner.prepare(context_BPW, None if real_BP.all() else real_BP)  # no mask is cheaper

    def _state(self, given: Given, carry: Any) -> Carry:
        fresh = self.reasoner.begin(given)
        if carry is None:
            return fresh
        missing = given.x_BPD.shape[1] - carry["y_BPD"].shape[1]
        held = Carry(*(F.pad(carry[name], (0, 0, 0, missing)) for name in ("y_BPD", "z_BPD")))
        return held.renew(carry["done_B"], fresh)

    @torch.no_grad()
    def generate(
        self,
        prompt_BP: Tensor,
        *,
        max_new_tokens: int,
        control: str | None = None,
        effort: int | None = None,
        permit: Permit | None = None,
    ) -> Response:
        """The most likely token at every position, up to the first end of sequence.

        effort: supervision steps. control: corrupts y and z between any two steps, of which then all are
        taken; `filler` puts the states there that every row begins with.
        """
        started = time.perf_counter()
        if control is not None and control not in self.controls:
            choices = ", ".join(self.controls) or "none: it takes one step, between which and no other"
            raise ValueError(f"control={control!r} does not apply to reasoner; it takes {choices}")
        steps = self.config.supervision_steps if effort is None else effort
        if steps < 1:
            raise ValueError(f"effort={effort}: a reasoner needs at least 1 supervision step")
        left_BP = pack(prompt_BP)
        given = self.read(left_BP)
        between, cut = None, self.config.halt_cut
        if control is not None:
            fresh, seeds, cut = self.reasoner.begin(given), row_seeds(prompt_BP), None

            def between(state: Carry) -> Carry:
                kinds = zip(state, fresh, strict=True)
                real_BP = given.valid_BP
                return Carry(*(corrupt(own, control, start[0, 0], seeds, real_BP) for own, start in kinds))

        thought = think(self.reasoner, given, steps=steps, cut=cut, between=between)
        logits_BPV, eos = self.backbone.logits(thought.output_BPO[:, : left_BP.shape[1]]), self.markers.eos
        rows = logits_BPV.argmax(-1).tolist() if permit is None else read_off(logits_BPV, permit, eos)
        lengths_B = (left_BP != IGNORE).sum(1).clamp(max=max_new_tokens)
        answers = [row[:n] for row, n in zip(rows, lengths_B.tolist(), strict=True)]
        answers = [row[: row.index(eos)] if eos in row else row for row in answers]
        taken = thought.steps_B.tolist()
        return Response(
            tokens=[[*self.markers.answer_prefix, *row] for row in answers],
            answers=answers,
            visible_tokens=[0] * len(answers),
            passes=[count * self.reasoner.config.evaluations for count in taken],
            latent_steps=taken,
            milliseconds=(time.perf_counter() - started) * 1000,
        )


def read_off(logits_BPV: Tensor, permit: Permit, eos: int) -> list[list[int]]:
    """Rows of the most likely tokens, from the first place to the last: a permit knows those before."""
    rows: list[list[int]] = [[] for _ in logits_BPV]
    for place in range(logits_BPV.shape[1]):
        is_open = [eos not in row for row in rows]
        token_B = permitted(logits_BPV[:, place], permit, rows, is_open, eos).argmax(-1)
        for row, token in zip(rows, token_B.tolist(), strict=True):
            row.append(token)
    return rows


def pack(ids_BP: Tensor) -> Tensor:
    """Rows padded on the left become rows padded on the right, as wide as the longest."""
    real_BP = ids_BP != IGNORE
    order_BP = (~real_BP).to(torch.uint8).argsort(dim=1, stable=True)
    return ids_BP.gather(1, order_BP)[:, : int(real_BP.sum(1).max())]


def cells_of(batch: Batch) -> dict[str, Tensor]:
    """Prompts and answers of rows that have taken no step; UserError where their lengths differ."""
    prompt_BP, answer_BA = pack(batch.prompt_BP), batch.answer_BA
    length_B = (prompt_BP != IGNORE).sum(1)
    asked_B = (answer_BA != IGNORE).sum(1) - 1  # less the end of sequence
    wrong_B = (asked_B != length_B) & (asked_B >= 0)
    if wrong_B.any():
        row = int(wrong_B.nonzero()[0])
        raise UserError(
            f"method reasoner says the answer position by position, but a prompt of {int(length_B[row])} "
            f"tokens has an answer of {int(asked_B[row])}. Use a grid task (sudoku, maze) with "
            'data.format.prompt_suffix="", or another method'
        )
    answer_BP = F.pad(answer_BA, (0, max(0, prompt_BP.shape[1] - answer_BA.shape[1])), value=IGNORE)
    answer_BP = answer_BP[:, : prompt_BP.shape[1]]
    answer_BP = answer_BP.masked_fill(prompt_BP == IGNORE, IGNORE)
    return {
        "prompt_BP": prompt_BP,
        "answer_BP": answer_BP,
        "key_B": batch.keys_B,
        "step_B": torch.zeros_like(batch.keys_B),
    }


def join(new: dict[str, Tensor], carry: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """Rows still thinking from the carry, the new ones in the places of those that are done."""
    if carry is None:
        return new
    return {name: renewed(carry["done_B"], fresh, carry[name]) for name, fresh in new.items()}
