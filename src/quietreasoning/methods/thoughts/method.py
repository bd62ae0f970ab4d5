"""Quiet-STaR: before hard words the model thinks in tokens that nobody reads (arXiv 2403.09629).

    text -> uncertain positions (anchors) -> G thoughts each, drawn without a gradient from one shared prefix
         -> one packed pass over text and thoughts -> the tokens that follow, with each thought and without
         -> r = log p with - log p without -> REINFORCE; all thoughts of an anchor mixed in -> cross-entropy

Departures from the paper: anchors in place of all positions, leave-one-out baselines with an arm that does
not think in place of clamped rewards, a gate that is a share and starts near nothing, start and end markers
that learn at the rate of everything else. Read `Thinker.forward` first.
Shapes: B rows, T text columns, K anchors, G thoughts, L steps, M true tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from quietreasoning.backbone.tree import read_tree
from quietreasoning.contract import Batch, Examined, Permit, StepOutput, Term
from quietreasoning.losses import thoughts as losses
from quietreasoning.methods.grpo import still
from quietreasoning.methods.thoughts import examining, reading
from quietreasoning.methods.thoughts.base import ADVANTAGE, Thinking
from quietreasoning.methods.thoughts.reading import Reading
from quietreasoning.methods.thoughts.settings import ThinkerConfig
from quietreasoning.methods.thoughts.speaking import speak
from quietreasoning.methods.thoughts.text import Text, count_labels, text_of
from quietreasoning.methods.writing import Ready, behind


class Thinker(Thinking):
    """Hidden thoughts before hard words."""

    Config = ThinkerConfig
    controls = ("zero", "shuffle", "noise", "filler")
    reads_text = True
    draws = True
    slack = ("policy", "kl")  # no thought helped more than its baseline; the policy is where it began

    def units(self, batch: Batch, carry: Any = None) -> dict[str, int]:
        """Anchors and thoughts are all that a batch may have; a row with fewer adds nothing for the rest."""
        anchors, found = len(batch) * self.config.anchors, {}
        weights = self.config.weights
        if weights.text:
            found["token"] = count_labels(batch, self.markers, visible=self.config.visible)
        if weights.mix:
            found["anchor"] = anchors
        if weights.policy or weights.kl or weights.utility:
            found["thought"] = anchors * self.config.thoughts
        return found

    def forward(self, batch: Batch, carry: Any = None) -> StepOutput:
        text, watches = text_of(batch, self.markers, visible=self.config.visible), self.training
        with still(self):  # the law that draws and the law that learns must be one
            anchor_BK, thoughts, entropy_BT = reading.think(self, text, batch.keys_B)
            found = reading.read(self, text, anchor_BK, thoughts)
            known = self.as_it_was(lambda: read_tree(self.backbone, found.tree, self.markers_2D))
            known_BSD = known.hidden_BTD
            if watches:
                self.threshold.observe(entropy_BT[text.anchors_BT])
                self.centre.observe(known_BSD[:, : found.tree.text][text.ids_BT >= 0])
            return self.learn(text, found, known_BSD, watches)

    def learn(self, text: Text, found: Reading, known_BSD: Tensor, watches: bool) -> StepOutput:
        """Terms and metrics of one packed pass. watches: keep running figures of it."""
        config, weights = self.config, self.config.weights
        logp_BKGLs = reading.choices(self, found, found.tree.policy(known_BSD)[found.chosen_BKGL])
        logp_BKGL, known_BKGL, kl_BKGL = logp_BKGLs
        told_BK = found.counted_BKM.any(-1)
        thought_BKG = told_BK[..., None].expand(-1, -1, config.thoughts)
        base_BKM = reading.true_log_probs(self, found.base_BKMD, found.tree.labels_BKM, found.counted_BKM)
        with torch.set_grad_enabled(torch.is_grad_enabled() and config.objective == "bound"):
            own_BKGM, share_BKGM = reading.alone(self, found)
        reward_BKG = losses.thought_rewards(own_BKGM, base_BKM, found.counted_BKM)
        utility_BKG = self.expected_utility(found.base_BKMD[:, :, 0], found.thought_BKGMD[:, :, :, 0])
        scores_BKG3 = reading.coherence(self, found, known_BSD, known_BKGL, utility_BKG.detach())
        mixed_BKM, _ = reading.together(self, found, self.prior(scores_BKG3))

        bound = None
        if config.objective == "bound":
            bound = losses.multi_sample_bound(own_BKGM, found.counted_BKM)
            advantage_BKG = bound.weight_BKG - 1 / config.thoughts
        else:
            advantage_BKG = losses.thought_advantages(reward_BKG, config.baseline)
        scale = self.running.std_C()[ADVANTAGE]
        policy, _ = losses.policy_loss(
            logp_BKGL.flatten(0, 2),
            (advantage_BKG * thought_BKG).flatten(),
            found.chosen_BKGL.flatten(0, 2),
            config.cap,
            torch.where(scale > 0, scale, 1.0).to(logp_BKGL.dtype),
        )
        if watches:
            self.running.observe(ADVANTAGE, advantage_BKG[thought_BKG])
            for kind in range(3):
                self.running.observe(1 + kind, scores_BKG3[..., kind][thought_BKG])

        terms = {}
        if weights.text:
            text_C = reading.true_log_probs(self, found.text_BTD, text.label_BT, text.anchors_BT)
            terms["text"] = Term(-text_C.sum(), "token", weights.text)
        if weights.mix:
            terms["mix"] = Term(-mixed_BKM.sum(), "anchor", weights.mix)
        if weights.mix and bound is not None:
            terms["bound"] = Term(bound.total, "anchor", weights.mix)
        if weights.policy:
            terms["policy"] = Term(policy, "thought", weights.policy)
        if weights.kl:
            terms["kl"] = Term(kl_BKGL.sum() / config.cap, "thought", weights.kl)
        if weights.utility:
            # Huber's error: a square would rule the global clip as long as rewards are nats apart
            error_BKG = huber_loss(utility_BKG, reward_BKG, reduction="none") * thought_BKG
            terms["utility"] = Term(error_BKG.sum(), "thought", weights.utility)
        count, tokens = thought_BKG.sum(), found.counted_BKM.sum()
        metrics = {
            "reward": ((reward_BKG * thought_BKG).sum(), count),
            "gain": ((mixed_BKM - base_BKM).detach().sum(), tokens),  # nats a token
            "share": ((share_BKGM.detach() * found.counted_BKM[:, :, None]).sum(), tokens * config.thoughts),
            "helped": (((reward_BKG > 0) & thought_BKG).sum(), count),
            "thought_length": (found.chosen_BKGL.sum(), count),
            "surprise": ((-logp_BKGL.detach()).sum(), found.chosen_BKGL.sum()),
        }
        return StepOutput(terms, metrics)

    def examine(self, batch: Batch) -> Examined:
        return examining.examine(self, batch)

    def say(
        self,
        prompt_BP: Tensor,
        control: str | None,
        effort: int | None,
        limit: int,
        permit: Permit | None = None,
    ) -> tuple[list[list[int]], Ready]:
        return speak(self, prompt_BP, control, effort, limit, behind(permit, self.markers.answer_prefix))
