"""A teacher that writes: prompts in, lines of its steps and answers out, a sample by numbers of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from quietreasoning.backbone import last_hidden, role_of
from quietreasoning.backbone.sampling import sample
from quietreasoning.capture import Teacher
from quietreasoning.config import UserError
from quietreasoning.contract import Role
from quietreasoning.data.config import DataConfig
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.padding import Ids, pad_left
from quietreasoning.data.pairs.keys import Item, uniforms
from quietreasoning.data.tags import CLOSE, OPEN
from quietreasoning.methods.writing import find

WRITERS = ("cot", "plain", "distill", "cross", "prefer")  # methods that write with their backbone alone
WHOLE, CUT, MALFORMED = "whole", "cut", "malformed"
Line = dict[str, Any]
_THOUGHT = re.compile(rf"\s*{re.escape(OPEN)}(.*?){re.escape(CLOSE)}(.*)", re.DOTALL)


@dataclass(frozen=True)
class Draws:
    """How samples are drawn; temperature 0 is greedy."""

    temperature: float = 0.0
    seed: int = 0
    max_new_tokens: int = 256


class Scribe:
    """A teacher that answers prompts: `scribe(items)` gives a line for each, whatever stands beside it.

    A run is asked in its own format, a model in that of the recipe with the model's own tokenizer and
    template; with `format.instruction` it reads that before the prompt.
    """

    def __init__(self, teacher: Teacher, data: DataConfig, draws: Draws, steps: bool = True):
        self.teacher, self.draws, self.steps = teacher, draws, steps
        limits = {"max_prompt_tokens": data.max_prompt_tokens, "context": teacher.backbone.context}
        self.encoder = Encoder(teacher.tokenizer, data.format, **limits)
        if teacher.run is not None:
            method = teacher.run.method.config
            if method.name not in WRITERS:
                raise UserError(
                    f"run {teacher.run.folder} is of method {method.name}, which does not write with "
                    f"its backbone alone; choices: {', '.join(WRITERS)}"
                )
            self.encoder = Encoder(teacher.tokenizer, teacher.run.encoder.format, **limits)
            self.steps = steps and method.name != "plain" and getattr(method, "steps", True)
        self.markers = self.encoder.markers()

    def check(self, items: Sequence[Item]) -> None:
        """UserError for a prompt that leaves no room for what may be written."""
        limit, context = self.draws.max_new_tokens, self.teacher.backbone.context
        for item, ids in zip(items, self._prompts(items), strict=True):
            id = item.problem.example.id
            self.encoder.check_prompt(id, len(ids))
            if len(ids) + len(self.markers.answer_prefix) + limit > context:
                raise UserError(
                    f"--max-new-tokens {limit}: example {id} has a prompt of {len(ids)} tokens, and the "
                    f"teacher's context is {context}. Give fewer, or drop long prompts with "
                    "data.max_prompt_tokens and data.too_long=drop."
                )

    def __call__(self, items: Sequence[Item]) -> list[Line]:
        written = self._write(self._prompts(items), items)
        return [self._line(item, ids) for item, ids in zip(items, written, strict=True)]

    def _prompts(self, items: Sequence[Item]) -> list[Ids]:
        texts = [item.problem.example.prompt for item in items]
        return self.encoder.prompt_ids(texts, self.encoder.format.instruction)

    @torch.no_grad()
    def _write(self, prompts: Sequence[Ids], items: Sequence[Item]) -> list[list[int]]:
        draws, backbone = self.draws, self.teacher.backbone
        before = () if self.steps else self.markers.answer_prefix
        device = next(backbone.parameters()).device
        ids_BP = pad_left([[*ids.tolist(), *before] for ids in prompts]).to(device)
        states = backbone(ids_BP, role_of(ids_BP, Role.PROMPT), keep=True)
        limit, uniforms_BN = draws.max_new_tokens, None
        if draws.temperature > 0:
            numbers = [torch.from_numpy(uniforms(draws.seed, item, limit)) for item in items]
            uniforms_BN = torch.stack(numbers).to(device)
        return sample(
            backbone,
            states.past,
            last_hidden(states),
            max_new_tokens=limit,
            eos=self.markers.eos,
            temperature=draws.temperature,
            uniforms_BN=uniforms_BN,
        )

    def _line(self, item: Item, ids: list[int]) -> Line:
        line: Line = {"key": item.key, "tokens": len(ids)}
        if ids[-1:] != [self.markers.eos]:
            return line | {"outcome": CUT, "text": self.encoder.text(ids)}
        parts = self.parts(ids[:-1])
        if parts is None:
            return line | {"outcome": MALFORMED, "text": self.encoder.text(ids[:-1])}
        steps, answer = parts
        return line | {"outcome": WHOLE, "steps": steps, "answer": answer}

    def parts(self, ids: list[int]) -> tuple[list[str], str] | None:
        """Steps and answer: cut at the answer prefix, by ids, else by `<think>` tags, else at a line that
        begins with the prefix; a model that writes none of these answers at once. None where no answer is."""
        prefix, suffix = self.encoder.format.answer_prefix.strip(), self.encoder.format.step_suffix.strip()
        at = find(ids, self.markers.answer_prefix) if self.steps else None
        text = self.encoder.text(ids)
        if not self.steps:
            chain, answer = "", text
        elif at is not None:
            chain, answer = (
                self.encoder.text(p) for p in (ids[:at], ids[at + len(self.markers.answer_prefix) :])
            )
        elif self.teacher.run is not None:
            return None
        elif found := _THOUGHT.match(text):
            chain, answer = found[1], found[2]
        elif found := re.match(rf"(.*?)^\s*{re.escape(prefix)}(.*)", text, re.DOTALL | re.MULTILINE):
            chain, answer = found[1], found[2]
        else:
            chain, answer = "", text
        chain = chain.replace(OPEN, " ").replace(CLOSE, " ")
        steps = [
            step.strip() for line in chain.splitlines() for step in (line.split(suffix) if suffix else [line])
        ]
        answer = answer.strip()
        return None if not answer or answer.startswith(OPEN) else ([step for step in steps if step], answer)
