"""Thoughts beside a text: which positions think, how long, and how all of it lies in one row of a batch.

A row of a packed pass is the text, then one segment for every anchor and thought:

    text 0 .. T-1 | start, L thought tokens, end, M - 1 true tokens | the next segment | ...

The start row's state predicts the first thought token and so on (`ThoughtTree.policy`); the end row and the
true tokens behind it predict what the text says after the anchor (`ThoughtTree.talks`). A text row sees the
text before it; a segment row sees the text up to its anchor and its own segment up to itself; nothing else,
ever, so that one forward is as many forwards as there are thoughts (Quiet-STaR, arXiv 2403.09629, with
anchors in place of all positions).

Shapes: B rows, T text columns, K anchors, G thoughts an anchor, L steps of a thought, M true tokens that are
predicted after it, S = T + K * G * (L + M + 1) packed columns, X anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from quietreasoning.contract import IGNORE, Role

NONE = -1  # no anchor, no column


class Kind(IntEnum):
    """What stands in a packed column."""

    PAD = 0
    TEXT = 1
    START = 2
    THOUGHT = 3
    END = 4
    TALK = 5  # a true token, repeated after the thought


@dataclass(frozen=True)
class Thoughts:
    """What was thought at each anchor; an anchor of -1 has thoughts of length 0."""

    ids_BKGL: Tensor  # without markers; IGNORE behind the end
    length_BKG: Tensor  # thought tokens
    ended_BKG: Tensor  # the end marker was chosen; else the cap set it
    logp_BKGL: Tensor | None = None  # of every choice, the end marker's included; 0 where none was made

    def choices_BKGL(self, end: int) -> Tensor:
        """What the policy chose at each step: a token, or `end` where it was chosen; else IGNORE."""
        at_L = torch.arange(self.ids_BKGL.shape[-1], device=self.ids_BKGL.device)
        stops_BKGL = (at_L == self.length_BKG[..., None]) & self.ended_BKG[..., None]
        return self.ids_BKGL.masked_fill(stops_BKGL, end)


@dataclass(frozen=True)
class ThoughtTree:
    """Texts and their thoughts, packed for one forward."""

    ids_BS: Tensor  # IGNORE at padding
    kind_BS: Tensor
    role_BS: Tensor  # as the backbone reads them: repeated tokens keep their role, the rest is THOUGHT
    position_BS: Tensor
    seen_BSS: Tensor  # bool: which columns [.., .., S] a column [.., S, ..] attends to
    anchor_BK: Tensor  # text columns; -1 where a row has fewer
    choice_BKGL: Tensor  # what the state of `policy` at step l is to predict; IGNORE: nothing
    target_BKM: Tensor  # text column of the i-th token after the anchor; -1 past the end of the text
    text: int  # T

    def policy(self, rows_BSX: Tensor) -> Tensor:
        """[B, K, G, L, X]: of the start and thought columns; the one at step l predicts choice l."""
        return self._segments(rows_BSX)[:, :, :, : self.choice_BKGL.shape[3]]

    def thoughts(self, rows_BSX: Tensor) -> Tensor:
        """[B, K, G, L, X]: of the thought tokens themselves."""
        return self._segments(rows_BSX)[:, :, :, 1 : self.choice_BKGL.shape[3] + 1]

    def talks(self, rows_BSX: Tensor) -> Tensor:
        """[B, K, G, M, X]: of the end marker and the repeated tokens; the i-th predicts the i-th target."""
        return self._segments(rows_BSX)[:, :, :, self.choice_BKGL.shape[3] + 1 :]

    def bases(self, rows_BSX: Tensor) -> Tensor:
        """[B, K, M, X]: of the text columns that predict the same targets without a thought.

        The first is the anchor itself. What stands where there is no target has no meaning.
        """
        ahead_M = torch.arange(self.target_BKM.shape[-1], device=self.anchor_BK.device)
        column_BKM = (self.anchor_BK[..., None] + ahead_M).clamp(min=0, max=self.text - 1)
        return rows_BSX[torch.arange(len(column_BKM), device=ahead_M.device)[:, None, None], column_BKM]

    @property
    def labels_BKM(self) -> Tensor:
        """The true tokens after each anchor, IGNORE past the end of the text."""
        found_BN = self.ids_BS.gather(1, self.target_BKM.clamp(min=0).flatten(1))
        return found_BN.view_as(self.target_BKM).masked_fill(self.target_BKM == NONE, IGNORE)

    def _segments(self, rows_BSX: Tensor) -> Tensor:
        _, anchors, group, steps = self.choice_BKGL.shape
        return rows_BSX[:, self.text :].unflatten(1, (anchors, group, steps + self.target_BKM.shape[2] + 1))


def grow_tree(
    ids_BT: Tensor, role_BT: Tensor, anchor_BK: Tensor, thoughts: Thoughts, *, talk: int, start: int, end: int
) -> ThoughtTree:
    """Pack texts with their thoughts. ids_BT is padded with IGNORE on either side, never between tokens.

    anchor_BK: text columns, -1 where a row has fewer. talk: M >= 1. start, end: ids of the markers, also
    where learned vectors stand for them. Positions count real columns, so a thought that ends early is
    followed by its end marker as if no padding stood between. ValueError for an anchor at padding, a thought
    longer than its columns, or talk below 1.
    """
    (rows, text), steps = ids_BT.shape, thoughts.ids_BKGL.shape[-1]
    real_BT, exists_BK = ids_BT != IGNORE, anchor_BK >= 0
    at_BK = anchor_BK.clamp(min=0)
    if talk < 1:
        raise ValueError(f"talk={talk}: at least one true token must follow a thought")
    if (exists_BK & ~real_BT.gather(1, at_BK)).any() or (thoughts.length_BKG > steps).any():
        raise ValueError(f"an anchor stands at padding, or a thought is longer than its {steps} columns")
    target_BKM = at_BK[..., None] + 1 + torch.arange(talk, device=ids_BT.device)
    inside_BKM = exists_BK[..., None] & (target_BKM < text)
    inside_BKM &= real_BT.gather(1, target_BKM.clamp(max=text - 1).flatten(1)).view_as(inside_BKM)
    target_BKM = target_BKM.masked_fill(~inside_BKM, NONE)
    kind_BN, ids_BN, role_BN = _segment_columns(ids_BT, role_BT, exists_BK, target_BKM, thoughts, start, end)
    real_BKGC = (kind_BN != Kind.PAD).view(rows, *thoughts.length_BKG.shape[1:], -1)
    text_position_BT = (real_BT.cumsum(1) - 1).clamp(min=0)
    anchored_BK11 = text_position_BT.gather(1, at_BK)[..., None, None]
    position_BN = (anchored_BK11 + real_BKGC.cumsum(-1)).flatten(1)
    kind_BS = torch.cat([real_BT.long() * Kind.TEXT, kind_BN], 1)
    return ThoughtTree(
        ids_BS=torch.cat([ids_BT, ids_BN], 1),
        kind_BS=kind_BS,
        role_BS=torch.cat([role_BT.masked_fill(~real_BT, int(Role.PAD)), role_BN], 1),
        position_BS=torch.cat([text_position_BT, position_BN], 1),
        seen_BSS=_seen(kind_BS != Kind.PAD, anchor_BK, text, real_BKGC.shape[2], real_BKGC.shape[3]),
        anchor_BK=anchor_BK,
        choice_BKGL=thoughts.choices_BKGL(end),
        target_BKM=target_BKM,
        text=text,
    )


def _segment_columns(
    ids_BT: Tensor,
    role_BT: Tensor,
    exists_BK: Tensor,
    target_BKM: Tensor,
    thoughts: Thoughts,
    start: int,
    end: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Kinds, ids and roles [B, K * G * (L + M + 1)] of all segments."""
    group, steps = thoughts.ids_BKGL.shape[2:]
    one_BKG1 = exists_BK[:, :, None, None].expand(-1, -1, group, 1)
    at_L = torch.arange(steps, device=ids_BT.device)
    thinks_BKGL = (at_L < thoughts.length_BKG[..., None]) & one_BKG1
    # true token i is repeated only to predict token i + 1, which must be there
    talks_BKGM = (target_BKM[:, :, None, 1:] != NONE).expand(-1, -1, group, -1)
    repeated_BN = target_BKM[..., :-1].clamp(min=0).flatten(1)
    word_BKGM, as_BKGM = (
        rows_BT.gather(1, repeated_BN).view_as(target_BKM[..., :-1])[:, :, None].expand_as(talks_BKGM)
        for rows_BT in (ids_BT, role_BT)
    )
    like, hidden = torch.ones_like, int(Role.THOUGHT)
    parts = (  # whether it is there, what it is, its id, its role
        (one_BKG1, Kind.START, like(one_BKG1, dtype=torch.long) * start, hidden),
        (thinks_BKGL, Kind.THOUGHT, thoughts.ids_BKGL, hidden),
        (one_BKG1, Kind.END, like(one_BKG1, dtype=torch.long) * end, hidden),
        (talks_BKGM, Kind.TALK, word_BKGM, as_BKGM),
    )
    kind = torch.cat([real.long() * int(kind) for real, kind, _, _ in parts], -1)
    ids = torch.cat([ids.masked_fill(~real, IGNORE) for real, _, ids, _ in parts], -1)
    role = torch.cat([real.long() * role for real, _, _, role in parts], -1)
    return kind.flatten(1), ids.flatten(1), role.flatten(1)


def _seen(real_BS: Tensor, anchor_BK: Tensor, text: int, group: int, width: int) -> Tensor:
    """Who attends to whom [B, S, S]; padding sees itself alone, so that no row is without a key."""
    column_S = torch.arange(real_BS.shape[1], device=real_BS.device)
    limit_BN = anchor_BK.repeat_interleave(group * width, 1)
    limit_BS = torch.cat([column_S[:text].expand(len(anchor_BK), -1), limit_BN], 1)
    to_text_BST = column_S[:text] <= limit_BS[..., None]
    segment_N = (column_S[text:] - text) // width
    own_NN = (segment_N[:, None] == segment_N) & (column_S[text:, None] >= column_S[text:])
    to_own_SN = torch.cat([own_NN.new_zeros(text, own_NN.shape[1]), own_NN])
    seen_BSS = torch.cat([to_text_BST, to_own_SN.expand(len(anchor_BK), -1, -1)], 2)
    seen_BSS = seen_BSS & real_BS[:, None] & real_BS[:, :, None]
    return seen_BSS | torch.eye(len(column_S), dtype=torch.bool, device=real_BS.device)


@dataclass(frozen=True)
class Anchors:
    """Chosen text columns, in their order; -1 where a row has fewer."""

    column_BK: Tensor
    uniform_BK: Tensor  # drawn, not the hardest
    probability_BK: Tensor  # of being drawn, given the draws before; 1 for the hardest, 0 for none


def choose_anchors(
    entropy_BT: Tensor,
    allowed_BT: Tensor,
    anchors: int,
    uniform_share: float,
    spacing: int,
    uniforms_BK: Tensor,
) -> Anchors:
    """At most K = `anchors` columns a row, at least `spacing` apart: a share drawn evenly, then the hardest.

    round(uniform_share * K) columns are drawn first, each from those still free, by a number of [0, 1) of
    `uniforms_BK`, so that they tell of all columns; the rest have the highest entropy of what is left. The
    ranking compares a column with later ones: a budget for training, not a rule for inference.
    Choices depend on the row alone, not on its padding. ValueError for values out of range.
    """
    if anchors < 1 or spacing < 1 or not 0 <= uniform_share <= 1:
        raise ValueError(
            f"anchors={anchors}, spacing={spacing}, uniform_share={uniform_share}: give anchors and spacing "
            "of at least 1 and a share in [0, 1]"
        )
    drawn = round(uniform_share * anchors)
    column_T, open_BT = torch.arange(allowed_BT.shape[1], device=allowed_BT.device), allowed_BT
    picks, chances = [], []
    for k in range(anchors):
        left_B = open_BT.sum(1)
        if k < drawn:
            rank_B = (uniforms_BK[:, k].to(left_B.device) * left_B).long().clamp(max=left_B - 1)
            pick_B = (open_BT & (open_BT.cumsum(1) - 1 == rank_B[:, None])).byte().argmax(1)
            chance_B = 1 / left_B.clamp(min=1)
        else:
            pick_B = entropy_BT.masked_fill(~open_BT, -torch.inf).argmax(1)
            chance_B = torch.ones_like(left_B, dtype=torch.float)
        picks.append(pick_B.masked_fill(left_B == 0, NONE))
        chances.append(chance_B.masked_fill(left_B == 0, 0.0))
        open_BT = open_BT & ((column_T - pick_B[:, None]).abs() >= spacing)
    pick_BK, uniform_K = torch.stack(picks, 1), torch.arange(anchors, device=column_T.device) < drawn
    order_BK = torch.where(pick_BK == NONE, len(column_T), pick_BK).argsort(dim=1, stable=True)
    uniform_BK = (uniform_K & (pick_BK != NONE)).gather(1, order_BK)
    return Anchors(pick_BK.gather(1, order_BK), uniform_BK, torch.stack(chances, 1).gather(1, order_BK))


def thought_cap(lengths: Tensor, floor: int = 10, cap: int = 20, divisor: int = 5) -> Tensor:
    """Most tokens of a thought: min(cap, max(floor, lengths // divisor)).

    lengths: question tokens, or in running text the tokens up to the anchor, never those of the whole
    document, whose length is news from the future.
    """
    return (lengths // divisor).clamp(min=floor).clamp(max=cap)


def keyed_uniforms(*parts: Tensor | int) -> Tensor:
    """Numbers of [0, 1) in float64, one for each element of the broadcast integer `parts`.

    The number is a hash of its parts, in their order (splitmix64, Steele et al. 2014), so that neither
    neighbours nor the order of batches change it, on any device: (example key, position, thought, step).
    """
    first = next(part for part in parts if isinstance(part, Tensor))
    state = torch.zeros((), dtype=torch.long, device=first.device)
    for part in parts:
        state = (state ^ part) + _signed(0x9E3779B97F4A7C15)
        state = (state ^ _shifted(state, 30)) * _signed(0xBF58476D1CE4E5B9)
        state = (state ^ _shifted(state, 27)) * _signed(0x94D049BB133111EB)
        state = state ^ _shifted(state, 31)
    return _shifted(state, 11).double() / 2**53


def _signed(constant: int) -> int:
    return constant - (1 << 64) if constant >= 1 << 63 else constant


def _shifted(state: Tensor, by: int) -> Tensor:
    """Shift right without the sign."""
    return (state >> by) & ((1 << (64 - by)) - 1)
