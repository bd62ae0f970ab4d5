"""What methods with latent thoughts share: think in embeddings, corrupt if asked, answer in one last pass."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from quietreasoning.backbone import States
from quietreasoning.contract import Batch, Examined, Role
from quietreasoning.methods.examining import examine_latents
from quietreasoning.methods.judged import Judged
from quietreasoning.methods.sequence import Visible, mixed_inputs, read_prompt, visible_part
from quietreasoning.methods.writing import Ready


class Thoughts(NamedTuple):
    """What was thought about B prompts."""

    content_BKD: Tensor  # as it enters the last pass
    passes: int | Sequence[int]  # spent, the last one included; of all rows or of each
    latent_steps: int | Sequence[int]  # as in a Response, of all rows or of each
    said_BKD: Tensor | None = None  # states that the head reads as what each thought says
    real_BK: Tensor | None = None  # bool, where rows stop apart: which thoughts there are


class LatentMethod(Judged):
    """A method whose thoughts are K embeddings between prompt and answer."""

    visible_steps = False  # True where visible steps follow the thoughts
    mutual = 0  # how many thoughts see each other in both directions

    @abstractmethod
    def think(self, prompt: States, effort: int | None) -> Thoughts:
        """Thoughts about what `open` read, whose cache is kept: fork it. ValueError where `effort` is out of
        range."""

    def think_through(self, prompt: States) -> Thoughts:
        """All thoughts of every row, where `think` may let rows stop apart."""
        return self.think(prompt, None)

    def open(self, prompt_BP: Tensor) -> States:
        """The prompts, read into a fresh cache."""
        return read_prompt(self.backbone, prompt_BP)

    def read(
        self,
        prompt: States,
        thoughts_BKD: Tensor,
        ids_BT: Tensor,
        role_BT: Tensor,
        *,
        layers: bool = False,
        real_BK: Tensor | None = None,
    ) -> States:
        """The last pass: thoughts, then tokens, after the prompt's cache. Thoughts that are not real have no
        place and no reader."""
        inputs, roles = mixed_inputs(self.backbone, None, thoughts_BKD, ids_BT, role_BT)
        if real_BK is not None:
            roles[:, : real_BK.shape[1]].masked_fill_(~real_BK, int(Role.PAD))
        return self.backbone(inputs, roles, prompt.past.fork(), mutual=self.mutual, layers=layers)

    def visible(self, batch: Batch) -> Visible:
        """What is visible behind the thoughts."""
        return visible_part(batch, self.markers, None)

    @torch.no_grad()
    def examine(self, batch: Batch) -> Examined | None:
        prompt = self.open(batch.prompt_BP)
        thoughts = self.think_through(prompt)
        content_BKD, said_BKD = thoughts.content_BKD, thoughts.said_BKD
        if said_BKD is None or not said_BKD.shape[1]:
            return None
        nothing_BKD = self.corrupted(content_BKD, "zero", batch.prompt_BP)
        visible = self.visible(batch)
        ids_BT, role_BT = visible.ids_BT[:, :-1], visible.role_BT[:, :-1]

        def states(thoughts_BKD: Tensor) -> Tensor:
            return self.read(prompt, thoughts_BKD, ids_BT, role_BT).hidden_BTD

        return examine_latents(
            self.backbone, self.markers, prompt, said_BKD, visible, states(content_BKD), states(nothing_BKD)
        )

    def prepare(self, prompt_BP: Tensor, control: str | None, effort: int | None, limit: int) -> Ready:
        states = prompt = self.open(prompt_BP)
        thoughts = self.think(prompt, effort)
        real_BK = thoughts.real_BK
        content_BKD = self.corrupted(thoughts.content_BKD, control, prompt_BP, real_BK)
        if control == "shuffle" and real_BK is not None:  # another row's thoughts bring their number along
            real_BK = real_BK.roll(1, dims=0)
        ids_BM, role_BM = self.prefix(prompt_BP)
        if self.visible_steps:
            ids_BM, role_BM = ids_BM[:, :0], role_BM[:, :0]
        if content_BKD.shape[1] + ids_BM.shape[1]:
            states = self.read(prompt, content_BKD, ids_BM, role_BM, real_BK=real_BK)
        return Ready(states, not self.visible_steps, thoughts.passes, thoughts.latent_steps)
