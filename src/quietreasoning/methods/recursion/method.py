"""Recursion: a small reasoner reads a frozen language model's prompt and hands it soft tokens to answer from.

    prompt -> model -> states of some layers -> reasoner, N steps -> K soft tokens -> model -> answer

The prompt is read once and its cache kept; the soft tokens and the answer prefix are one more pass. Each
supervision step is scored by itself, with y and z cut from the graph between steps (arXiv 2510.04871). Read
`forward` first. Shapes: B rows, P prompt tokens, K slots, D the model's width, T visible tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quietreasoning.backbone import Backbone, States, last_hidden, role_of
from quietreasoning.backbone.states import LAST, watch
from quietreasoning.contract import IGNORE, Batch, Markers, Role, StepOutput, Term
from quietreasoning.losses.hidden_match import hidden_match
from quietreasoning.losses.next_token import next_token
from quietreasoning.losses.recursion import halt_above, halt_by_nearness, halt_when, nearness
from quietreasoning.methods.latent import LatentMethod, Thoughts
from quietreasoning.methods.recursion.per_step import Rows, at_step, carried, entered
from quietreasoning.methods.recursion.reading import Reader, chosen_layers
from quietreasoning.methods.recursion.settings import RecursionSettings
from quietreasoning.methods.recursion.threshold import MovingThreshold
from quietreasoning.methods.sequence import (
    Visible,
    filler_embedding,
    prefix_ids,
    read_prompt,
    visible_part,
)
from quietreasoning.methods.supervision import (
    count_targets,
    due_targets,
    embedding_rms,
    score_slots,
    step_targets,
)
from quietreasoning.nn.injection import SoftTokens
from quietreasoning.nn.recursion import Given, Reasoner, Thought, think


@dataclass(frozen=True)
class Aims:
    """What the steps of one batch are held against."""

    visible: Visible
    slots: list[Tensor]  # gold token [B, K] of each slot after each supervision step
    due: list[Tensor]  # rows [B] whose answer is asked for after each supervision step
    chain_BD: Tensor | None  # the model's own state behind the visible chain
    rows_B: Tensor  # rows that count: all


class Recursion(LatentMethod):
    """A tiny recursive reasoner in place of thinking tokens; the language model stays as it is."""

    Config = RecursionSettings
    config: RecursionSettings

    def __init__(self, backbone: Backbone, config: RecursionSettings, markers: Markers):
        super().__init__(backbone, config, markers)
        backbone.requires_grad_(False)
        layers = chosen_layers(backbone, config.layers)
        self.reader = Reader(backbone, layers, config.compressor, config.d_compressed)
        self.reasoner = Reasoner(config.cell.build(self.reader.width, backbone.width, config.slots))
        rewarded = config.by_reward_alone  # then only what shapes the answer learns, and all of it
        self.reasoner.halt.requires_grad_(config.weights.halt > 0 and not rewarded)
        self.soft = None
        if config.inject == "affine":
            start_D = filler_embedding(backbone, markers, backbone.model.device).detach().float()
            self.soft = SoftTokens(backbone.width, config.slots, embedding_rms(backbone), start_D)
            self.soft.requires_grad_(config.weights.answer > 0 or rewarded)
        moves = config.halting == "above" and config.weights.halt > 0
        self.threshold = MovingThreshold(config.threshold, config.epochs) if moves else None
        self.start_policy()

    def pace(self, progress: float) -> None:
        super().pace(progress)
        if self.threshold is not None:
            self.threshold.pace(progress)

    # reading and thinking

    def open(self, prompt_BP: Tensor) -> States:
        """The prompt's cache, last state, and the states of the layers that the reasoner reads."""
        layers = self.reader.layers
        with watch(self.backbone.model, layers) as seen:
            states = read_prompt(self.backbone, prompt_BP)
        return replace(states, layers_LBTD=torch.stack([seen[layer] for layer in layers]))

    def given(self, prompt: States) -> Given:
        """What the reasoner has of the prompts; padding stands on the left of them."""
        if self.config.blind:
            return self.reasoner.prepare(
                prompt.hidden_BTD.new_ones(len(prompt.hidden_BTD), 1, self.reader.width)
            )
        return self.reasoner.prepare(self.reader(prompt.layers_LBTD), prompt.past.valid_BS)

    def soft_tokens(self, output_BKD: Tensor) -> Tensor:
        """Embeddings [B, K, D] of what the slots say."""
        if self.soft is not None:
            return self.soft(output_BKD)
        return self.backbone.blend(self.backbone.logits(output_BKD).float().softmax(-1))

    def think(self, prompt: States, effort: int | None) -> Thoughts:
        """With gradients on, every row takes all steps, and the last one has a graph."""
        steps, slots = self.config.steps if effort is None else effort, self.config.slots
        if steps < 1:
            raise ValueError(f"effort={effort}: recursion takes 1 supervision step or more")
        given = self.given(prompt)
        if torch.is_grad_enabled():
            carry = self.reasoner.begin(given)
            for _ in range(steps):
                done = self.reasoner(given, carry)
                carry = done.carry
            output_BPO, steps_B = done.output_BPO, torch.full_like(prompt.past.length_B, steps)
        else:
            cut = self.config.halt_cut if effort is None else None
            output_BPO, steps_B, _ = think(self.reasoner, given, steps=steps, cut=cut)
        said_BKD = output_BPO[:, -slots:]
        return Thoughts(self.soft_tokens(said_BKD), 1, (steps_B * slots).tolist(), said_BKD)

    # training

    def supervised_units(self, batch: Batch, carry: Any = None) -> dict[str, int]:
        config, w, counts, step_B = self.config, self.config.weights, {}, None
        times = 1 if config.supervise == "last" else config.steps
        if config.per_step_updates:
            batch, step_B, *_ = entered(batch, carry)
        if w.answer:
            answers_B = (batch.answer_BA != IGNORE).sum(1)
            counts["token"] = int(sum((answers_B * due_B).sum() for due_B in self._due(batch, step_B)))
        if w.step:
            counts["slot"] = sum(map(count_targets, self._slot_targets(batch, step_B)))
        if w.match or w.halt:
            counts["sequence"] = len(batch) if config.per_step_updates else times * len(batch)
        return counts

    def supervised(self, batch: Batch, carry: Any = None) -> StepOutput:
        config, terms = self.config, {}
        if config.per_step_updates:
            return self._one_step(entered(batch, carry))
        prompt = self.open(batch.prompt_BP)
        aims, given = self._aims(batch), self.given(prompt)
        state = self.reasoner.begin(given)
        for step in range(1, config.steps + 1):
            scored = config.supervise != "last" or step == config.steps
            with torch.set_grad_enabled(torch.is_grad_enabled() and scored):
                done = self.reasoner(given, state)
            state = done.carry
            if not scored:
                continue
            found, metrics = self._score(prompt, done, aims, step - 1)
            for name, term in found.items():
                terms[name] = replace(term, total=terms[name].total + term.total) if name in terms else term
        return StepOutput(terms, metrics)  # metrics of the last step

    def _one_step(self, rows: Rows) -> StepOutput:
        """The next supervision step of every row, whichever it is."""
        prompt = self.open(rows.batch.prompt_BP)
        given = self.given(prompt)
        state = self.reasoner.begin(given)
        if rows.state is not None:
            state = rows.state.renew(rows.begins_B, state)
        done = self.reasoner(given, state)
        terms, metrics = self._score(prompt, done, self._aims(rows.batch, rows.step_B), 0)
        learns_to_halt = self.config.weights.halt > 0
        kept = carried(rows, done.carry, done.halt_B.detach(), self.config.steps, learns_to_halt)
        ended_B = kept["done_B"]
        metrics["steps_taken"] = (rows.step_B[ended_B].sum().float(), ended_B.sum())
        return StepOutput(terms, metrics, kept)

    def _score(
        self, prompt: States, done: Thought, aims: Aims, step: int
    ) -> tuple[dict[str, Term], dict[str, tuple[Tensor, Tensor]]]:
        """Terms and metrics of one supervision step."""
        config, w, terms, metrics = self.config, self.config.weights, {}, {}
        output_BKD = done.output_BPO[:, -config.slots :]
        asks = w.halt > 0 and config.halting == "right"
        right_B = None
        if w.answer or asks:
            with torch.set_grad_enabled(torch.is_grad_enabled() and w.answer > 0):
                total, right_B, metrics = self._answer(prompt, output_BKD, aims.visible, aims.due[step])
            if w.answer:
                terms["answer"] = Term(total, "token", w.answer)
        if w.step:
            target_BK1 = aims.slots[step][..., None]
            total, hits, count = score_slots(self.backbone, output_BKD[:, :, None], target_BK1)
            terms["step"] = Term(total, "slot", w.step)
            metrics["step_accuracy"] = (hits.float(), count)
        if aims.chain_BD is not None:
            total, cosine_B = self._compare(output_BKD[:, -1], aims)
            metrics["nearness"] = (cosine_B.sum(), aims.rows_B.sum())
            if w.match:
                terms["match"] = Term(total, "sequence", w.match)
        if w.halt:
            done_B = right_B if asks else cosine_B
            terms["halt"], metrics["done"] = self._halt_term(done.halt_B, done_B, aims.rows_B)
        return terms, metrics

    def _answer(
        self, prompt: States, output_BKD: Tensor, visible: Visible, due_B: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Cross-entropy of the due rows' answers behind the soft tokens, which rows are right, metrics."""
        slots = output_BKD.shape[1]
        states = self.read(
            prompt, self.soft_tokens(output_BKD), visible.ids_BT[:, :-1], visible.role_BT[:, :-1]
        )
        predicting_BTD = torch.cat([prompt.hidden_BTD[:, -1:], states.hidden_BTD], 1)[:, slots:]
        counted_BT = visible.labels_BT != IGNORE
        labels_N = visible.labels_BT[counted_BT]
        logits_NV = self.backbone.logits(predicting_BTD[counted_BT])
        hit_BT = torch.ones_like(counted_BT)
        hit_BT[counted_BT] = logits_NV.detach().argmax(-1) == labels_N
        right_B = hit_BT.all(1)
        due_N = due_B[:, None].expand_as(counted_BT)[counted_BT]
        total, hits, count = next_token(logits_NV, labels_N.masked_fill(~due_N, IGNORE))
        rows = due_B.new_tensor(len(right_B), dtype=torch.long)
        return total, right_B, {"token_accuracy": (hits.float(), count), "right": (right_B.sum(), rows)}

    def _compare(self, said_BD: Tensor, aims: Aims) -> tuple[Tensor, Tensor]:
        """Distance to the chain's state, in whitened codes where there are some; cosine of each row."""
        compressor = self.reader.of(LAST)
        pair = [said_BD, aims.chain_BD]
        if compressor is not None:
            pair = [compressor.compress(state_BD) for state_BD in pair]
        said, aim = pair
        return hidden_match(said[None], aim[None], aims.rows_B), nearness(*pair)

    def _halt_term(
        self, halt_B: Tensor, done_B: Tensor, rows_B: Tensor
    ) -> tuple[Term, tuple[Tensor, Tensor]]:
        """done_B: right or wrong, or a cosine."""
        if self.config.halting == "near":
            total, count = halt_by_nearness(halt_B, done_B, rows_B)
            done = (halt_B.detach().float().sigmoid().sum(), count)
        elif self.config.halting == "above":
            threshold = float(self.threshold.threshold)
            if self.training:
                self.threshold.observe(done_B)
            total, above, count = halt_above(halt_B, done_B, threshold, rows_B)
            done = (above.float(), count)
        else:
            total, right, count = halt_when(halt_B, done_B, rows_B)
            done = (right.float(), count)
        return Term(total, "sequence", self.config.weights.halt), done

    def _due(self, batch: Batch, step_B: Tensor | None = None) -> list[Tensor]:
        """Rows [B] whose answer is asked for after each supervision step: with supervise=reached a row's own
        chain must have ended by then, and what has not is asked for at the end. step_B: only after these."""
        steps, supervise = self.config.steps, self.config.supervise
        count_B = (batch.steps_BKS != IGNORE).any(-1).sum(1)
        every_B = torch.ones_like(count_B, dtype=torch.bool)
        if supervise == "last":
            due = [every_B if step == steps else ~every_B for step in range(1, steps + 1)]
        elif supervise == "all":
            due = [every_B] * steps
        else:
            due = [(count_B <= step) if step < steps else every_B for step in range(1, steps + 1)]
        return due if step_B is None else [at_step(due, step_B)]

    def _slot_targets(self, batch: Batch, step_B: Tensor | None = None) -> list[Tensor]:
        c = self.config
        target_BJW = step_targets(
            batch, c.target, c.blocks, c.width, repeat_last=c.repeat_last, align=c.align
        )
        due = due_targets(batch, target_BJW, c.supervise, c.steps, align=c.align)
        asked = [asked_BJW.flatten(1) for asked_BJW in due]
        return asked if step_B is None else [at_step(asked, step_B)]

    def _aims(self, batch: Batch, step_B: Tensor | None = None) -> Aims:
        config, w = self.config, self.config.weights
        compares = w.match or (w.halt and config.halting != "right")
        return Aims(
            visible_part(batch, self.markers, None),
            self._slot_targets(batch, step_B),
            self._due(batch, step_B),
            self._chain_state(batch) if compares else None,
            torch.ones_like(batch.keys_B, dtype=torch.bool),
        )

    @torch.no_grad()
    def _chain_state(self, batch: Batch) -> Tensor:
        """[B, D]: the model's last state at the end of the answer prefix, after its visible chain, in one
        teacher-forced pass; generation never forwards the last token it wrote."""
        steps_BT = batch.steps_BKS.flatten(1)
        prefix_BM = prefix_ids(self.markers, len(batch), steps_BT.device)
        ids_BT = torch.cat([batch.prompt_BP, steps_BT, prefix_BM], 1)
        role_BT = torch.cat(
            [
                role_of(batch.prompt_BP, Role.PROMPT),
                role_of(steps_BT, Role.STEP),
                role_of(prefix_BM, Role.MARKER),
            ],
            1,
        )
        return last_hidden(self.backbone(ids_BT, role_BT))  # padding between them is masked and has no place
