"""What methods with latent thoughts share: think in embeddings, corrupt if asked, answer in one last pass."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from quietreasoning.backbone import States
from quietreasoning.methods.rewarded import Rewarded
from quietreasoning.methods.sequence import mixed_inputs, read_prompt
from quietreasoning.methods.writing import Ready


class Thoughts(NamedTuple):
    """What was thought about B prompts."""

    content_BKD: Tensor  # as it enters the last pass
    passes: int  # spent, the last one included
    latent_steps: int | Sequence[int]  # as in a Response, of all rows or of each


class LatentMethod(Rewarded):
    """A method whose thoughts are K embeddings between prompt and answer."""

    visible_steps = False  # True where visible steps follow the thoughts
    mutual = 0  # how many thoughts see each other in both directions

    @abstractmethod
    def think(self, prompt: States, effort: int | None) -> Thoughts:
        """Thoughts about what `open` read, whose cache is kept: fork it. ValueError where `effort` is out of
        range."""

    def open(self, prompt_BP: Tensor) -> States:
        """The prompts, read into a fresh cache."""
        return read_prompt(self.backbone, prompt_BP)

    def read(
        self, prompt: States, thoughts_BKD: Tensor, ids_BT: Tensor, role_BT: Tensor, *, layers: bool = False
    ) -> States:
        """The last pass: thoughts, then tokens, after the prompt's cache."""
        inputs, roles = mixed_inputs(self.backbone, None, thoughts_BKD, ids_BT, role_BT)
        return self.backbone(inputs, roles, prompt.past.fork(), mutual=self.mutual, layers=layers)

    def prepare(self, prompt_BP: Tensor, control: str | None, effort: int | None, limit: int) -> Ready:
        states = prompt = self.open(prompt_BP)
        thoughts_BKD, passes, latent_steps = self.think(prompt, effort)
        thoughts_BKD = self.corrupted(thoughts_BKD, control, prompt_BP)
        ids_BM, role_BM = self.prefix(prompt_BP)
        if self.visible_steps:
            ids_BM, role_BM = ids_BM[:, :0], role_BM[:, :0]
        if thoughts_BKD.shape[1] + ids_BM.shape[1]:
            states = self.read(prompt, thoughts_BKD, ids_BM, role_BM)
        return Ready(states, not self.visible_steps, passes, latent_steps)
