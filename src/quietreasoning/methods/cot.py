"""Visible chain of thought: write the gold steps, answer prefix and answer (arXiv 2201.11903)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from quietreasoning.backbone import States, role_of
from quietreasoning.contract import IGNORE, Batch, MethodConfig, Role, StepOutput, Term
from quietreasoning.methods.sequence import (
    AnswerWeights,
    count_labels,
    mixed_inputs,
    read_prompt,
    score_visible,
    visible_part,
)
from quietreasoning.methods.writing import Ready, Writer, find


class ChainOfThought(Writer):
    """One term over steps, answer prefix and answer: the fine-tuning every paper calls CoT-SFT."""

    takes_effort = False

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

    def prepare(self, prompt_BP: Tensor, control: str | None, effort: int | None, limit: int) -> Ready:
        states = read_prompt(self.backbone, prompt_BP)
        if control is None:
            return Ready(states, given=False)
        prefix = self.markers.answer_prefix
        chains = [row[: find(row, prefix)] for row in self.write(states, limit)]
        states = self._read_corrupted(chains, control, prompt_BP)
        return Ready(states, given=False, heads=[[*chain, *prefix] for chain in chains])

    def _read_corrupted(self, chains: list[list[int]], control: str, prompt_BP: Tensor) -> States:
        """Prompt, then the embeddings of the model's own chain after `control`, then the answer prefix."""
        longest = max(map(len, chains))
        ids_BT = torch.tensor([[*c, *[IGNORE] * (longest - len(c))] for c in chains], device=prompt_BP.device)
        ids_BT = ids_BT.reshape(len(chains), longest).long()
        chain_BTD = self.corrupted(self.backbone.embed(ids_BT), control, prompt_BP, ids_BT != IGNORE)
        role_BT = role_of(ids_BT, Role.STEP)
        if control == "shuffle":  # the chain of the row before brings its length along
            role_BT = role_BT.roll(1, dims=0)
        inputs, roles = mixed_inputs(self.backbone, prompt_BP, chain_BTD, *self.prefix(prompt_BP))
        start = prompt_BP.shape[1]
        roles[:, start : start + longest] = role_BT
        # chains differ in length: close the gaps, since a sliding window counts columns
        order_BT = (roles != Role.PAD).to(torch.uint8).argsort(dim=1, stable=True)
        inputs = inputs.gather(1, order_BT[..., None].expand_as(inputs))
        return self.backbone(inputs, roles.gather(1, order_BT), keep=True)
