"""Recall: answer at once, from events and neighbours that lie outside a model's weights.

    attend:   prompt -> model -> one query of the store -> events -> model -> cross-attention before the head
    prepend:  prompt -> model -> one query of the store -> events, prompt -> model
    knn:      at the head, p = lambda p_kNN + (1 - lambda) p_LM, where the answer is likely to be rare

The model is frozen: what is in the stores was made by these very weights, and would not fit others. Read
`forward` first. Shapes: B rows, P prompt tokens, T tokens, A answer tokens, N of all rows, D width.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quietreasoning.backbone import Backbone, States, adapters_off, last_hidden, role_of
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Batch, Markers, Permit, Role, StepOutput, Term
from quietreasoning.losses.next_token import next_token
from quietreasoning.methods.recall.asking import Asker, Fuse, Retrieved
from quietreasoning.methods.recall.events import prepended
from quietreasoning.methods.recall.mixture import Mixture, rare_loss
from quietreasoning.methods.recall.neighbours import Queries, queries
from quietreasoning.methods.recall.settings import RecallSettings
from quietreasoning.methods.recall.speaking import Lookups, Voice
from quietreasoning.methods.sequence import count_labels, prefix_ids, read_given, visible_part
from quietreasoning.methods.writing import Ready, Speaker, greedy


@dataclass
class Spent:
    """What answers have cost, since whoever counts last set it to nothing."""

    answers: int = 0
    queries: int = 0  # of the store
    lookups: int = 0  # in the datastore


@dataclass(frozen=True)
class Reading:
    """What training reads of a batch."""

    answer_BAD: Tensor  # what the head reads before each answer token
    query_BAD: Tensor  # what the datastore is asked by there
    end_BD: Tensor  # the state at the end of the prompt
    retrieved: Retrieved | None


@dataclass(frozen=True)
class Opened:
    """What stands before the first written token."""

    states: States
    ids_BT: Tensor  # all that was read
    end_BD: Tensor  # the state at the end of the prompt
    fuse: Fuse | None
    passes: int


class Recall(Speaker):
    """A model that looks up what it does not know, and says at once what it found."""

    Config = RecallSettings
    controls = ("zero", "shuffle")
    slack = ("retrieve",)  # zero where no candidate holds the answer
    config: RecallSettings

    def __init__(self, backbone: Backbone, config: RecallSettings, markers: Markers):
        super().__init__(backbone, config, markers)
        w = config.weights
        self._settle_backbone()
        self.store = None if config.episodic is None else Asker(config.episodic, backbone)
        if self.store is not None:
            shapes = w.answer > 0 and self.store.reader is not None
            for part, learns in (
                (self.store.query_map, shapes or w.retrieve > 0),
                (self.store.reader, shapes),
            ):
                if part is not None:
                    part.requires_grad_(learns)
        self.mixture = None if config.knn is None else Mixture(config.knn, backbone)
        if self.mixture is not None:
            self.mixture.weight.requires_grad_(w.mixture > 0)
            self.mixture.router.requires_grad_(w.rare > 0)
        self.spent = Spent()

    def _settle_backbone(self) -> None:
        """Frozen, but for adapters that only read prepended text: queries are then made without them."""
        backbone, config = self.backbone, self.config
        if backbone.is_workspace != (config.features is not None):
            told = "name those that are on" if backbone.is_workspace else "this model has none; leave it null"
            raise UserError(f"method.features={config.features}: modules of a workspace model; {told}")
        if backbone.is_workspace:
            backbone.model.model.set_features(config.features)
        prepends = config.episodic is not None and config.episodic.reading == "prepend"
        self.tunes = backbone.tune == "lora"
        if self.tunes and (config.knn is not None or not prepends):
            raise UserError(
                "backbone.tune=lora: adapters change the states that keys and queries are made of, so what "
                "is stored would go stale. Train them before, and make the stores anew; or take "
                "method.episodic.reading=prepend without knn"
            )
        if not self.tunes:
            backbone.requires_grad_(False)
        if config.weights.answer and prepends and not self.tunes:
            raise UserError(
                "method.weights.answer: the model is frozen, and with reading=prepend nothing else shapes "
                "the answer. Set it to 0, or backbone.tune=lora"
            )

    @property
    def takes_effort(self) -> bool:  # type: ignore[override]
        return self.store is not None

    @property
    def attends(self) -> bool:
        return self.store is not None and self.store.reader is not None

    def train(self, mode: bool = True) -> Recall:
        """A frozen model reads as it did when the stores were made, without dropout."""
        super().train(mode)
        if not self.tunes:
            self.backbone.eval()
        return self

    def open_stores(self) -> None:
        """Open what is to be read and hold it against the model, which the first batch would do."""
        if self.store is not None:
            _ = self.store.events.store
        if self.mixture is not None:
            _ = self.mixture.datastore.knn

    # training

    def units(self, batch: Batch, carry: Any = None) -> dict[str, int]:
        w, counts = self.config.weights, {}
        if w.answer:
            counts["token"] = count_labels(batch, self.markers, None)
        if w.retrieve:
            counts["sequence"] = len(batch)
        if w.mixture:
            counts["lookup"] = int(self.mixture.learns(batch).sum())
        if w.rare:
            counts["question"] = int((batch.rare_B != IGNORE).sum())
        return counts

    def forward(self, batch: Batch, carry: Any = None) -> StepOutput:
        w, terms = self.config.weights, {}
        read = self._read(batch)
        counted_BA = batch.answer_BA != IGNORE
        labels_N, logits_NV = batch.answer_BA[counted_BA], self.backbone.logits(read.answer_BAD[counted_BA])
        total, hits, count = next_token(logits_NV, labels_N)
        rows, lookups = count.new_tensor(len(batch)), count.new_tensor(0)
        metrics: dict[str, tuple[Tensor, Tensor]] = {}
        if w.answer:
            if self.attends and not total.requires_grad:  # nothing was found for any row
                total = total + 0.0 * self.store.reader.gate.sum()
            terms["answer"] = Term(total, "token", w.answer)
        if read.retrieved is not None:
            eos = self.markers.eos
            if w.retrieve:
                loss = self.store.retrieve_loss(read.retrieved, batch.answer_BA, eos)
                terms["retrieve"] = Term(loss, "sequence", w.retrieve)
            held = [any(row[: read.retrieved.events]) for row in read.retrieved.holding(batch.answer_BA, eos)]
            metrics["held"] = (rows.new_tensor(sum(held)).float(), rows)
            lookups = lookups + rows * bool(len(self.store.events.store))
        if self.mixture is not None:
            rare_B = self.mixture.rare(read.end_BD)
            loss, metrics["rare_right"] = rare_loss(rare_B, batch)
            if w.rare:
                terms["rare"] = Term(loss, "question", w.rare)
            loss, written_NV, cost = self.mixture.loss(
                read.query_BAD[counted_BA], logits_NV, batch, self.mixture.fires(rare_B.detach())
            )
            if w.mixture:
                terms["mixture"] = Term(loss, "lookup", w.mixture)
            hits, lookups = (written_NV.argmax(-1) == labels_N).sum(), lookups + cost
        metrics |= {"token_accuracy": (hits.float(), count), "lookups": (lookups.float(), rows)}
        return StepOutput(terms, metrics)

    def _read(self, batch: Batch) -> Reading:
        """One teacher-forced pass, and what was retrieved for each row."""
        prompt_BP, retrieved = batch.prompt_BP, None
        if self.store is not None and not self.attends:
            retrieved, read = self._ask_for(batch, self._first_reading(prompt_BP))
            prompt_BP = prepended(read.read, prompt_BP, self._room(batch.answer_BA.shape[1]))
        visible = visible_part(batch, self.markers, None)
        ids_BT = torch.cat([prompt_BP, visible.ids_BT[:, :-1]], 1)
        role_BT = torch.cat([role_of(prompt_BP, Role.PROMPT), visible.role_BT[:, :-1]], 1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.tunes), self._queries() as watched:
            hidden_BTD = self.backbone(ids_BT, role_BT).hidden_BTD
            query_BTD = hidden_BTD if watched is None else watched.of(ids_BT)
        end = prompt_BP.shape[1]
        first = end - 1 + len(self.markers.answer_prefix)  # what predicts the first answer token
        answer_BAD = hidden_BTD[:, first:]
        if self.attends:
            retrieved, read = self._ask_for(batch, hidden_BTD[:, :end])
            fuse = self.store.fuse(self.backbone, read)
            answer_BAD = answer_BAD if fuse is None else fuse(answer_BAD)
        return Reading(answer_BAD, query_BTD[:, first:], hidden_BTD[:, end - 1], retrieved)

    def _ask_for(self, batch: Batch, hidden_BPD: Tensor) -> tuple[Retrieved, Retrieved]:
        """What is found for training rows, and what of it they read: some of them foreign events."""
        events, prompt_BP = self.config.episodic.events, batch.prompt_BP
        found = self.store.find(hidden_BPD, prompt_BP, events, training=self.training)
        return found, self.store.corrupted(found, prompt_BP, batch.keys_B) if self.training else found

    def _first_reading(self, prompt_BP: Tensor) -> Tensor:
        """States [B, P, D] of the prompts alone, by which the store is asked."""
        with torch.no_grad(), adapters_off(self.backbone.model) if self.tunes else nullcontext():
            return self.backbone(prompt_BP, role_of(prompt_BP, Role.PROMPT)).hidden_BTD

    def _room(self, more: int) -> int | None:
        """Tokens that events and prompt may have, before the answer prefix and so many tokens."""
        context = self.backbone.context
        return None if context is None else context - len(self.markers.answer_prefix) - more

    def _queries(self) -> AbstractContextManager[Queries | None]:
        return nullcontext() if self.mixture is None else queries(self.backbone)

    # answering

    def say(
        self,
        prompt_BP: Tensor,
        control: str | None,
        effort: int | None,
        limit: int,
        permit: Permit | None = None,
    ) -> tuple[list[list[int]], Ready]:
        """effort: events that are read; 0 is the closed book, without neighbours too."""
        if effort is not None and not 0 <= effort <= self.config.episodic.candidates:
            most = self.config.episodic.candidates
            raise ValueError(f"effort={effort}: events that are read, 0 to candidates={most}")
        if control == "shuffle" and len(prompt_BP) < 2:
            raise ValueError("control='shuffle' needs at least 2 prompts in the batch")
        closed = control == "zero" or effort == 0
        with self._queries() as watched:
            opened = self._open(prompt_BP, control, 0 if closed else effort, limit, watched)
            lookups = None
            if self.mixture is not None and not closed:
                rare_B = self.mixture.fires(self.mixture.rare(opened.end_BD))
                datastore, shuffled = self.mixture.datastore, control == "shuffle"
                lookups = Lookups(datastore, watched, opened.ids_BT, rare_B, shuffled)
            rows = greedy(
                Voice(self.backbone, opened.fuse, lookups),
                opened.states.past,
                last_hidden(opened.states),
                max_new_tokens=limit,
                eos=self.markers.eos,
                permit=permit,
            )
        self.spent.answers += len(rows)
        self.spent.lookups += 0 if lookups is None else sum(lookups.spent)
        return rows, Ready(opened.states, passes=opened.passes)

    def _open(
        self, prompt_BP: Tensor, control: str | None, effort: int | None, limit: int, watched: Queries | None
    ) -> Opened:
        """Everything before the first written token."""
        fuse, passes, reads = None, 0, self.store is not None and effort != 0
        if reads and not self.attends:
            found = self._find(self._first_reading(prompt_BP), prompt_BP, effort, control)
            prompt_BP, passes = prepended(found.read, prompt_BP, self._room(limit)), 1
            if watched is not None:
                watched.forget()
        states = read_given(self.backbone, prompt_BP, self.markers)
        end_BD = states.hidden_BTD[:, prompt_BP.shape[1] - 1]
        if reads and self.attends:
            found = self._find(states.hidden_BTD[:, : prompt_BP.shape[1]], prompt_BP, effort, control)
            with nullcontext() if watched is None else watched.aside():
                fuse = self.store.fuse(self.backbone, found)
            passes = int(fuse is not None)
        ids_BM = prefix_ids(self.markers, len(prompt_BP), prompt_BP.device)
        return Opened(states, torch.cat([prompt_BP, ids_BM], 1), end_BD, fuse, passes)

    def _find(
        self, hidden_BPD: Tensor, prompt_BP: Tensor, effort: int | None, control: str | None
    ) -> Retrieved:
        """The one query of each answer."""
        events = self.config.episodic.events if effort is None else effort
        found = self.store.find(hidden_BPD, prompt_BP, events, training=False, count=control is None)
        self.spent.queries += len(prompt_BP) * bool(len(self.store.events.store))
        return found.shuffled() if control == "shuffle" else found
