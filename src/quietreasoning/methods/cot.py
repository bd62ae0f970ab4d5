"""Visible chain of thought: write the gold steps, answer prefix and answer (arXiv 2201.11903)."""

from __future__ import annotations

import time
from typing import Any, Literal

import torch
from torch import Tensor

from quietreasoning.backbone import States, last_hidden, role_of
from quietreasoning.contract import IGNORE, Batch, Method, MethodConfig, Response, Role, StepOutput, Term
from quietreasoning.methods.sequence import (
    AnswerWeights,
    count_labels,
    filler_embedding,
    find,
    greedy,
    mixed_inputs,
    prefix_ids,
    read_prompt,
    refuse_control,
    refuse_effort,
    respond,
    row_seeds,
    score_visible,
    visible_part,
)
from quietreasoning.nn.corrupt import corrupt


class ChainOfThought(Method):
    """One term over steps, answer prefix and answer: the fine-tuning every paper calls CoT-SFT."""

    class Config(MethodConfig):
        name: Literal["cot"] = "cot"
        """Visible chain of thought."""
        weights: AnswerWeights = AnswerWeights()
        """Loss weights; `answer` covers the chain too."""

    def units(self, batch: Batch, carry: Any = None) -> dict[str, int]:
        return {"token": count_labels(batch, self.markers, 0)}

    def forward(self, batch: Batch, carry: Any = None) -> StepOutput:
        visible = visible_part(batch, self.markers, 0)
        ids_BT = torch.cat([batch.prompt_BP, visible.ids_BT[:, :-1]], 1)
        role_BT = torch.cat([role_of(batch.prompt_BP, Role.PROMPT), visible.role_BT[:, :-1]], 1)
        hidden_BTD = self.backbone(ids_BT, role_BT).hidden_BTD[:, batch.prompt_BP.shape[1] - 1 :]
        total, metrics = score_visible(self.backbone, hidden_BTD, visible)
        return StepOutput({"answer": Term(total, "token", self.config.weights.answer)}, metrics)

    @torch.no_grad()
    def generate(
        self,
        prompt_BP: Tensor,
        *,
        max_new_tokens: int,
        control: str | None = None,
        effort: int | None = None,
    ) -> Response:
        refuse_control("cot", control, self.controls)
        refuse_effort("cot", effort)
        started = time.perf_counter()
        prompt = read_prompt(self.backbone, prompt_BP)
        prefix, eos = self.markers.answer_prefix, self.markers.eos
        rows = greedy(self.backbone, prompt.past, last_hidden(prompt), max_new_tokens=max_new_tokens, eos=eos)
        if control is None:
            return respond(rows, self.markers, given=False, passes=0, latent_steps=0, started=started)
        chains = [row if (at := find(row, prefix)) is None else row[:at] for row in rows]
        states = self._read_corrupted(chains, control, prompt_BP)
        answers = greedy(
            self.backbone, states.past, last_hidden(states), max_new_tokens=max_new_tokens, eos=eos
        )
        rows = [[*chain, *prefix, *answer] for chain, answer in zip(chains, answers, strict=True)]
        return respond(rows, self.markers, given=False, passes=0, latent_steps=0, started=started)

    def _read_corrupted(self, chains: list[list[int]], control: str, prompt_BP: Tensor) -> States:
        """Prompt, then the embeddings of the model's own chain after `control`, then the answer prefix."""
        device, longest = prompt_BP.device, max(map(len, chains))
        ids_BT = torch.tensor([[*c, *[IGNORE] * (longest - len(c))] for c in chains], device=device)
        ids_BT = ids_BT.reshape(len(chains), longest).long()
        filler_D = filler_embedding(self.backbone, self.markers, device)
        seeds, real_BT = row_seeds(prompt_BP), ids_BT != IGNORE
        chain_BTD = corrupt(self.backbone.embed(ids_BT), control, filler_D, seeds, real_BT)
        role_BT = role_of(ids_BT, Role.STEP)
        if control == "shuffle":  # the chain of the row before brings its length along
            role_BT = role_BT.roll(1, dims=0)
        prefix_BM = prefix_ids(self.markers, len(chains), device)
        inputs, roles = mixed_inputs(
            self.backbone, prompt_BP, chain_BTD, prefix_BM, role_of(prefix_BM, Role.MARKER)
        )
        start = prompt_BP.shape[1]
        roles[:, start : start + longest] = role_BT
        # chains differ in length: close the gaps, since a sliding window counts columns
        order_BT = (roles != Role.PAD).to(torch.uint8).argsort(dim=1, stable=True)
        inputs = inputs.gather(1, order_BT[..., None].expand_as(inputs))
        return self.backbone(inputs, roles.gather(1, order_BT), keep=True)
