"""What continuous and slots share: think in embeddings, corrupt if asked, answer in one last pass."""

from __future__ import annotations

import time
from abc import abstractmethod

import torch
from torch import Tensor

from quietreasoning.backbone import States, last_hidden, role_of
from quietreasoning.contract import Method, Response, Role
from quietreasoning.methods.sequence import (
    filler_embedding,
    greedy,
    mixed_inputs,
    prefix_ids,
    read_prompt,
    refuse_control,
    respond,
    row_seeds,
)
from quietreasoning.nn.corrupt import corrupt


class LatentMethod(Method):
    """A method whose thoughts are K embeddings between prompt and answer."""

    visible_steps = False  # True where visible steps follow the thoughts
    mutual = 0  # how many thoughts see each other in both directions

    @abstractmethod
    def think(self, prompt: States, effort: int | None) -> tuple[Tensor, int]:
        """Thoughts [B, K, D] as they enter the last pass, and the passes spent, the last one included.

        `prompt` keeps its cache: fork it. ValueError where `effort` is out of range.
        """

    def latent_steps(self, thoughts_BKD: Tensor, passes: int) -> int:
        """What the thoughts of `think` count as in a Response."""
        return thoughts_BKD.shape[1]

    def read(
        self, prompt: States, thoughts_BKD: Tensor, ids_BT: Tensor, role_BT: Tensor, *, layers: bool = False
    ) -> States:
        """The last pass: thoughts, then tokens, after the prompt's cache."""
        inputs, roles = mixed_inputs(self.backbone, None, thoughts_BKD, ids_BT, role_BT)
        return self.backbone(inputs, roles, prompt.past.fork(), mutual=self.mutual, layers=layers)

    @torch.no_grad()
    def generate(
        self,
        prompt_BP: Tensor,
        *,
        max_new_tokens: int,
        control: str | None = None,
        effort: int | None = None,
    ) -> Response:
        refuse_control(self.config.name, control, self.controls)
        started = time.perf_counter()
        prompt = read_prompt(self.backbone, prompt_BP)
        thoughts_BKD, passes = self.think(prompt, effort)
        if control is not None:
            filler_D = filler_embedding(self.backbone, self.markers, prompt_BP.device)
            thoughts_BKD = corrupt(thoughts_BKD, control, filler_D, row_seeds(prompt_BP))
        ids_BM = prefix_ids(self.markers, len(prompt_BP), prompt_BP.device)
        if self.visible_steps:
            ids_BM = ids_BM[:, :0]
        states = prompt
        if thoughts_BKD.shape[1] + ids_BM.shape[1]:
            states = self.read(prompt, thoughts_BKD, ids_BM, role_of(ids_BM, Role.MARKER))
        rows = greedy(
            self.backbone,
            states.past,
            last_hidden(states),
            max_new_tokens=max_new_tokens,
            eos=self.markers.eos,
        )
        return respond(
            rows,
            self.markers,
            given=not self.visible_steps,
            passes=passes,
            latent_steps=self.latent_steps(thoughts_BKD, passes),
            started=started,
        )
