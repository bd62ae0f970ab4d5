"""The workspace method: prompt, slots, answer. `forward` is the training step of every stage.

Shapes: B rows, P prompt tokens, T positions, D width, K slots, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from quietreasoning.backbone import Backbone, States, load_backbone, meta_backbone
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Batch, Markers, Method, Role, StepOutput, Term
from quietreasoning.losses.halting import rate_for_mean
from quietreasoning.losses.language import chunked_next_token, unlikelihood
from quietreasoning.methods.sequence import read_prompt
from quietreasoning.methods.workspace import distill
from quietreasoning.methods.workspace.contrast import answer, next_chunk
from quietreasoning.methods.workspace.reading import Sequence, at_answer, lay_out
from quietreasoning.methods.workspace.settings import Workspace as Settings
from quietreasoning.methods.workspace.terms import figures, retrieval_term, router_terms, slot_terms
from quietreasoning.methods.writing import Ready, Writer, row_seeds
from quietreasoning.nn.corrupt import corrupt
from quietreasoning.workspace import WorkspaceModel


class Workspace(Writer):
    """A Quiet Reasoning language model, with the modules a stage switches on.

    The prompt is read chunk by chunk; where it ends the workspace takes in the last chunk, and the answer is
    written with the slots to read. No thought is ever a token.
    """

    Config = Settings
    reads_text = True
    slack = ("spread", "entropy", "budget")
    config: Settings

    def __init__(self, backbone: Backbone, config: Settings, markers: Markers):
        super().__init__(backbone, config, markers)
        if not backbone.is_workspace:
            raise UserError(
                "method workspace needs a workspace model: set backbone.workspace.preset=tiny, or "
                "backbone.path to a folder that holds one"
            )
        w, shape = config.weights, self.body.config
        self.body.set_features(config.features)
        if backbone.tune == "frozen":
            backbone.requires_grad_(False)
        if config.int8 and not self.body.table.is_int8:
            self.body.table.quantize_()
            shape.pkm_int8 = True
        if config.temperature is not None:
            self.body.temperature.fill_(config.temperature[0])
        if w.rationale and not markers.rationale:
            raise UserError(
                "weights.rationale has nothing to punish: no word of data.format.rationale is one token of "
                "this tokenizer; name words that are, or set weights.rationale=0"
            )
        if (w.step or w.teacher) and config.step_width > shape.slots:
            raise UserError(f"step_width={config.step_width} is more than the {shape.slots} slots; lower it")
        width, slot_width = shape.hidden_size, shape.slot_width
        self.predict = _Mlp(slot_width, slot_width) if w.next_latent or w.spread else None
        self.summary = _Mlp(slot_width, width) if w.contrast else None
        self.speaker = distill.Speaker(slot_width, width) if w.step or w.ponder else None
        self.teacher = None
        if w.teacher:
            load = meta_backbone if backbone.model.device.type == "meta" else load_backbone  # quiet plan
            frozen = config.teacher.model_copy(update={"tune": "frozen"})
            teacher = load(frozen, backbone.vocab_size, key="method.teacher.path")
            self.teacher = distill.Teacher(teacher, slot_width)
        self.register_buffer("sown", torch.zeros((), dtype=torch.long))  # re-seedings done in this stage

    @property
    def body(self) -> WorkspaceModel:
        return self.backbone.model.model

    @property
    def controls(self) -> tuple[str, ...]:  # type: ignore[override]
        return Method.controls if "workspace" in self.config.features else ()

    @property
    def learns_prompt(self) -> bool:
        return self.config.learn == "all"

    @property
    def borrowed(self) -> tuple[str, ...]:
        taught = () if self.teacher is None else self.teacher.backbone.state_dict()
        return (*super().borrowed, *(f"teacher.backbone.{key}" for key in taught))

    def pace(self, progress: float) -> None:
        """Take in what the memory was asked; anneal its temperature geometrically; sow dead half keys anew at
        even distances."""
        for reader in self.body.memory.values():
            reader.whiten.settle()
        if self.config.temperature is not None:
            first, last = self.config.temperature
            self.body.temperature.fill_(first * (last / first) ** progress)
        if self.config.reseed:
            due = math.floor(progress * (self.config.reseed + 1)) if progress else 0
            if due > int(self.sown):
                self.body.table.reseed(due)
            self.sown.fill_(due)

    # training

    def layout(self, batch: Batch) -> Sequence:
        return lay_out(batch, self.markers, everything=self.config.learn == "all")

    def units(self, batch: Batch, carry: Any = None) -> dict[str, int]:
        config, w = self.config, self.config.weights
        counts = {"sequence": len(batch)}
        answers = int((batch.answer_BA != IGNORE).sum())
        if w.lm:
            counts["token"] = int((self.layout(batch).labels_BT != IGNORE).sum())
        if "workspace" in config.features:
            chunk = self.body.config.chunk_size
            updates_B = _chunks((batch.prompt_BP != IGNORE).sum(1), chunk) - 1
            if answers:
                written_B = (batch.answer_BA != IGNORE).sum(1) + len(self.markers.answer_prefix)
                updates_B = updates_B + _chunks(written_B, chunk)
            counts |= {"chunk": int(updates_B.sum()), "pair": int((updates_B - 1).clamp(min=0).sum())}
        if w.rationale:
            counts["answer"] = answers
        if w.step:
            counts["slot"] = distill.count_targets(self._step_targets(batch))
        if w.teacher:
            counts["taught"] = distill.count_taught(batch, self.body.config.slots)
        if w.retrieval:
            counts["question"] = int((batch.rare_B != IGNORE).sum())
        return counts

    def forward(self, batch: Batch, carry: Any = None) -> StepOutput:
        config, w = self.config, self.config.weights
        seq = self.layout(batch)
        states = self.backbone(seq.ids_BT, seq.role_BT, starts_BT=seq.starts_BT, trace=True)
        trace, head_VD = states.trace, self.backbone.model.lm_head.weight
        terms: dict[str, Term] = {}
        metrics: dict[str, tuple[Tensor, Tensor]] = {}
        if w.lm:
            z_weight = (
                config.z_loss if self.training else 0.0
            )  # evaluation reads the term as a plain log-likelihood
            scored = chunked_next_token(states.hidden_BTD, head_VD, seq.labels_BT, z_weight=z_weight)
            terms["lm"] = Term(scored.total, "token", w.lm)
            metrics["token_accuracy"] = (scored.hits.float(), scored.count)
            metrics["nll"] = (scored.nll, scored.count)
        if w.rationale:
            said_BT = seq.labels_BT.masked_fill(seq.role_BT == Role.PROMPT, IGNORE)
            total, _ = unlikelihood(states.hidden_BTD, head_VD, self.markers.rationale, said_BT)
            terms["rationale"] = Term(total, "answer", w.rationale)
        if "workspace" in config.features:
            shape = self.body.config
            rate = rate_for_mean(shape.mean_steps, shape.inner_steps)
            terms |= slot_terms(config, trace, self.predict, rate)
            terms |= router_terms(config, trace)
            if w.contrast:
                terms["contrast"] = self._contrast(batch, states, seq, metrics)
            terms |= self._answer_terms(batch, states, seq, head_VD, metrics)
        metrics |= figures(trace, self.body.config.pkm_slots)
        if "pkm" in config.features:
            metrics["temperature"] = (self.body.temperature.detach().clone(), torch.ones(()))
        return StepOutput(terms, metrics)

    def _answer_terms(
        self, batch: Batch, states: States, seq: Sequence, head_VD: Tensor, metrics: dict
    ) -> dict[str, Term]:
        """What is asked of the slots that the answer reads."""
        w, terms = self.config.weights, {}
        if not (w.step or w.teacher or w.retrieval or w.ponder):
            return terms
        if seq.starts_BT is None:
            raise UserError(
                "weights.step, ponder, teacher and retrieval need answers; this task is text without any"
            )
        at = at_answer(states.trace, batch.prompt_BP.shape[1], seq.ids_BT.shape[1])
        slots_BKD, logits = at.slots_BKD, at.logits
        if w.step:
            inner = self.config.supervise == "inner"
            terms["step"], metrics["step_accuracy"] = distill.step_term(
                self.speaker, head_VD, at.inner_BTD if inner else slots_BKD, self._step_targets(batch), w.step
            )
        if w.ponder:
            inner_BTD, p_BT = at.inner_BTD, at.halting_BT
            terms["ponder"] = distill.ponder_term(
                self.speaker, head_VD, inner_BTD, p_BT, batch.answer_BA[:, 0], w.ponder
            )
        if w.teacher:
            terms["teacher"] = self.teacher.term(batch, slots_BKD, w.teacher)
        if w.retrieval:
            terms["retrieval"] = retrieval_term(self.config, logits, batch.rare_B)
        return terms

    def _contrast(self, batch: Batch, states: States, seq: Sequence, metrics: dict) -> Term:
        """The workspace knows the answer better than drawn tokens, or its next chunk than its others."""
        config = self.config
        if seq.starts_BT is None:
            unit = "chunk"
            scored = next_chunk(self.summary, self.backbone, states.trace, seq.ids_BT, config.tau)
        else:
            at = at_answer(states.trace, batch.prompt_BP.shape[1], seq.ids_BT.shape[1])
            query_BD, eos = self.summary(at.slots_BKD.mean(1)), self.markers.eos
            unit = "sequence"
            scored = answer(query_BD, self.backbone, batch, eos, config.negatives, config.tau)
        total, hits, count, chance = scored
        metrics |= {"contrast_accuracy": (hits, count), "contrast_chance": (chance, count)}
        return Term(total, unit, config.weights.contrast)

    def _step_targets(self, batch: Batch) -> Tensor:
        shape = self.body.config
        places = shape.slots if self.config.supervise == "slot" else shape.inner_steps
        return distill.targets(
            batch, self.config.target, places, self.config.step_width, repeat_last=self.config.repeat_last
        )

    # answering

    def prepare(self, prompt_BP: Tensor, control: str | None, effort: int | None, limit: int) -> Ready:
        """control: corrupts the slots that the answer reads. effort: inner steps of the workspace at the
        prompt's end, in place of the learned number."""
        on = "workspace" in self.config.features
        if effort is not None and (effort < 1 or not on):
            raise ValueError(f"effort={effort}: inner steps of a workspace that is on, 1 or more")
        prompt = read_prompt(self.backbone, prompt_BP)
        ids_BM, role_BM = self.prefix(prompt_BP)
        starts_BM = torch.zeros_like(ids_BM, dtype=torch.bool)
        starts_BM[:, 0] = True
        with self._answering(control, effort, row_seeds(prompt_BP)) as executed:
            states = self.backbone(ids_BM, role_BM, prompt.past, starts_BT=starts_BM)
        steps = [self.body.config.slots * n for n in executed]
        return Ready(states, passes=1, latent_steps=steps if on else 0)

    @contextmanager
    def _answering(self, control: str | None, effort: int | None, seeds: list[int]) -> Iterator[list[int]]:
        """The update at the prompt's end: with `effort` steps, its slots corrupted; its executed steps."""
        workspace, executed = self.body.workspace, []
        kept = workspace.steps, workspace.threshold

        def watch(module: nn.Module, inputs: Any, done: Any) -> Any:
            executed.extend(done.executed_R.tolist())
            if control is None:
                return done
            filler_D = module.start(1)[0].mean(0)
            return done._replace(slots_RKD=corrupt(done.slots_RKD, control, filler_D, seeds))

        hook = workspace.register_forward_hook(watch)
        if effort is not None:
            workspace.steps, workspace.threshold = effort, 2.0  # never halts before
        try:
            yield executed
        finally:
            hook.remove()
            workspace.steps, workspace.threshold = kept


def _chunks(tokens_B: Tensor, chunk: int) -> Tensor:
    return (tokens_B + chunk - 1) // chunk


class _Mlp(nn.Sequential):
    """Its weights stay fp32, whatever the model's are held in."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(nn.Linear(inputs, inputs), nn.GELU(), nn.Linear(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self[0].weight.dtype))
