"""Thoughts on a stock model: branches that grow token by token from a shared prefix, and their packed pass.

    text, keep=True -> Branches -> sample_thoughts -> (inference: `close`, then `step` by emitted token)
                                -> grow_tree -> read_tree: the gradient pass, equal to one forward a thought

Both forms give the mask and the positions of `nn.thought_tree` to `Backbone.forward`, so that taps and the
doctor see them. The model must be in eval mode in both: dropout would make the two laws differ.
Shapes: B rows, K anchors, G thoughts, N = K * G branches, L steps, D width, S columns.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from quietreasoning.backbone.model import Backbone, Past, States, role_of
from quietreasoning.backbone.room import with_room
from quietreasoning.backbone.sampling import draw
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Role
from quietreasoning.losses.thoughts import ThoughtLaw
from quietreasoning.nn.thought_tree import Kind, Thoughts, ThoughtTree, grow_tree


def read_tree(backbone: Backbone, tree: ThoughtTree, markers_2D: Tensor | None = None) -> States:
    """One forward over texts and all their thoughts, without a cache: what gradients are taken through.

    markers_2D: learned vectors that enter in place of the start and end markers' embeddings; the same must
    be given to `Branches`. UserError where attention takes no such mask.
    """
    inputs = tree.ids_BS
    if markers_2D is not None:
        inputs = backbone.embed(tree.ids_BS)
        for kind, marker_D in zip((Kind.START, Kind.END), markers_2D, strict=True):
            inputs = torch.where((tree.kind_BS == kind)[..., None], marker_D, inputs)
    return backbone(inputs, tree.role_BS, seen_BTS=tree.seen_BSS, position_BT=tree.position_BS)


class Branches:
    """N branches of each text, all fed one token a step; the prefix is computed once and never written.

    A branch sees the text up to its anchor and what it was fed itself. Every step adds N columns to a fork
    of the prefix's cache. Branches of anchors that are -1 do not exist and are fed padding.
    """

    def __init__(
        self,
        backbone: Backbone,
        past: Past,
        anchor_BK: Tensor,
        group: int,
        law: ThoughtLaw,
        markers_2D: Tensor | None = None,
        room: int = 0,
    ):
        """past: the texts, read with keep=True; anchors are its columns. UserError as for `read_tree`.

        room: at most so many steps will follow, and every step has the same shapes, which can be compiled; 0:
        the cache grows.
        """
        backbone.refuse_own_mask()
        self.backbone, self.law, self.markers_2D = backbone, law, markers_2D
        self.shape = (*anchor_BK.shape, group)
        anchor_BN = anchor_BK.repeat_interleave(group, 1)
        self.exists_BN = anchor_BN >= 0
        column_S = torch.arange(past.valid_BS.shape[1], device=anchor_BK.device)
        self.seen_BNS = (column_S <= anchor_BN[..., None]) & past.valid_BS[:, None]
        self.next_BN = self.seen_BNS.sum(2)  # position of the next token
        self.room, self.used = room, len(column_S)
        self.past = past.fork()
        if room:
            self.past = with_room(past, room * anchor_BN.shape[1])
            self.seen_BNS = pad(self.seen_BNS, (0, room * anchor_BN.shape[1]))

    def step(self, inputs: Tensor, open_BN: Tensor | None = None, role: Role = Role.THOUGHT) -> Tensor:
        """Feed a token [B, N] or an embedding [B, N, D] to every open branch: their states [B, N, D].

        open_BN: which are fed; all that exist if left out. What a closed one gives has no meaning.
        """
        open_BN = self.exists_BN if open_BN is None else open_BN & self.exists_BN
        own_BNN = torch.eye(open_BN.shape[1], dtype=torch.bool, device=open_BN.device).expand(
            len(open_BN), -1, -1
        )
        role_BN = open_BN.long() * int(role)
        seen_BNS = self._with(own_BNN)
        states = self.backbone(inputs, role_BN, self.past, seen_BTS=seen_BNS, position_BT=self.next_BN)
        self.past = states.past
        self.seen_BNS = self._with(own_BNN & open_BN[:, None])
        self.used += own_BNN.shape[2]
        self.next_BN = self.next_BN + open_BN
        return states.hidden_BTD

    def _with(self, own_BNN: Tensor) -> Tensor:
        """What each branch sees [B, N, S] with a step's own columns at the end of what was used."""
        if not self.room:
            return torch.cat([self.seen_BNS, own_BNN], 2)
        first, columns = self.used, own_BNN.shape[2]
        if first + columns > self.seen_BNS.shape[2]:
            raise ValueError(f"room={self.room}: there is no room for another step")
        seen_BNS = self.seen_BNS.clone()
        seen_BNS[..., first : first + columns] = own_BNN
        return seen_BNS

    def mark(self, which: int, open_BN: Tensor | None = None) -> Tensor:
        """Feed the start (0) or the end (1) marker: states [B, N, D]."""
        rows, branches = self.exists_BN.shape
        if self.markers_2D is not None:
            return self.step(self.markers_2D[which].expand(rows, branches, -1), open_BN)
        marker = (self.law.start, self.law.end)[which]
        return self.step(torch.full_like(self.next_BN, marker), open_BN)

    def close(self, thoughts: Thoughts) -> Tensor:
        """After `sample_thoughts`: the states of the end markers [B, K, G, D], first to predict a true token.

        A thought that the cap ended has its last token still to be read. From here on `step` takes the
        tokens that are emitted, one a step, the same for all branches of an anchor.
        """
        length_BN = thoughts.length_BKG.flatten(1)
        unread_BN = ~thoughts.ended_BKG.flatten(1) & (length_BN > 0)
        if unread_BN.any():
            last_BN1 = (length_BN - 1).clamp(min=0)[..., None]
            self.step(thoughts.ids_BKGL.flatten(1, 2).gather(2, last_BN1)[..., 0], unread_BN)
        return self.mark(1).unflatten(1, self.shape[1:])


@torch.no_grad()
def sample_thoughts(branches: Branches, cap_BK: Tensor, uniforms_BKGL: Tensor | None = None) -> Thoughts:
    """Think at every anchor: draw from the law at temperature 1, or take the likeliest without numbers.

    cap_BK: most tokens at each anchor. uniforms_BKGL: numbers of [0, 1), one a step, at least as many as the
    largest cap (`keyed_uniforms`); None: the true argmax, where all thoughts of an anchor are the same. A
    branch ends when the end marker is chosen or its cap is reached; the marker is no part of the thought.
    L is the steps made; log-probabilities are those of the same renormalised law, in fp32 or wider.
    ValueError for too few numbers. Call on fresh branches.
    """
    (rows, anchors, group), law = branches.shape, branches.law
    cap_BN = cap_BK.repeat_interleave(group, 1) * branches.exists_BN
    limit = int(cap_BN.max()) if cap_BN.numel() else 0
    if uniforms_BKGL is not None and uniforms_BKGL.shape[-1] < limit:
        raise ValueError(f"caps up to {limit} need as many uniform numbers, not {uniforms_BKGL.shape[-1]}")
    open_BN, ended_BN = cap_BN > 0, torch.zeros_like(branches.exists_BN)
    length_BN, written, logps = torch.zeros_like(cap_BN), [], []
    hidden_BND = branches.mark(0)
    for step in range(limit):
        logits_CV = law.logits(branches.backbone.logits(hidden_BND[open_BN]), step)
        if uniforms_BKGL is None:
            token_C = logits_CV.argmax(-1)
        else:
            token_C = draw(logits_CV, 1.0, uniforms_BKGL[..., step].flatten(1).to(open_BN.device)[open_BN])
        logp_C = logits_CV.log_softmax(-1).gather(1, token_C[:, None])[:, 0]
        logps.append(logp_C.new_zeros(open_BN.shape).masked_scatter(open_BN, logp_C))
        token_BN = torch.full_like(cap_BN, IGNORE).masked_scatter(open_BN, token_C)
        ended_BN = ended_BN | (token_BN == law.end)
        token_BN = token_BN.masked_fill(ended_BN, IGNORE)
        written.append(token_BN)
        length_BN = length_BN + (token_BN != IGNORE)
        open_BN = open_BN & ~ended_BN & (length_BN < cap_BN)
        if not open_BN.any():
            break
        hidden_BND = branches.step(token_BN, open_BN)
    shape = (rows, anchors, group)
    empty_BN0 = cap_BN.new_zeros(*cap_BN.shape, 0)
    ids_BNL = torch.stack(written, 2) if written else empty_BN0
    logp_BNL = torch.stack(logps, 2) if logps else empty_BN0.to(hidden_BND)
    return Thoughts(
        ids_BNL.unflatten(1, shape[1:]),
        length_BN.view(shape),
        ended_BN.view(shape),
        logp_BNL.unflatten(1, shape[1:]),
    )


@torch.no_grad()
def check_trees(backbone: Backbone) -> None:
    """Try what this file relies on: UserError for a family or an attention that reads branches differently.

    Two texts, the second padded, with a thought each: packed, token by token, and each thought alone. Models
    without weights (meta) are judged by their configuration only. Call once, when a method is built.
    """
    backbone.refuse_own_mask()
    if any(p.is_meta for p in backbone.parameters()):
        return
    was_training = backbone.training
    backbone.eval()
    try:
        packed, grown, alone = _three_ways(backbone)
    except (TypeError, AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        problem = " ".join(str(error).split())[:200]
    else:
        allowed = 1e-3 if alone.itemsize >= 4 else 3e-2
        wrong = [got for got in (packed, grown) if not (got - alone).norm() <= allowed * alone.norm()]
        problem = "what a thought reads depends on what lies beside it" if wrong else ""
    finally:
        backbone.train(was_training)
    if problem:
        family, name = type(backbone.model).__name__, backbone.identity.get("path", "null")
        raise UserError(
            f"backbone.path={name}: {family} cannot read thoughts that branch off a text ({problem}). Set "
            "backbone.attention=sdpa or eager, or choose a Llama, Qwen3, Mistral or SmolLM3."
        )


def _three_ways(backbone: Backbone) -> tuple[Tensor, Tensor, Tensor]:
    """States of four thoughts' segments [4, 4, D]: packed, grown, and each read alone after its text."""
    device = next(backbone.parameters()).device
    text = torch.tensor([[0, 1, 2, 3, 1], [IGNORE, 3, 1, 2, 0]], device=device)
    words = torch.tensor([[4, 5, 6], [4, 7, 6]], device=device) % backbone.vocab_size  # start, thought, end
    text = torch.where(text == IGNORE, IGNORE, text % backbone.vocab_size)
    anchor_BK, role = torch.tensor([[0, 2], [1, 2]], device=device), role_of(text, Role.PROMPT)
    start, end = int(words[0, 0]), int(words[0, 2])
    length_BKG = torch.ones(2, 2, 1, dtype=torch.long, device=device)
    thoughts = Thoughts(words[None, :, None, 1:2].expand(2, -1, -1, -1), length_BKG, length_BKG > 1)
    tree = grow_tree(text, role, anchor_BK, thoughts, talk=2, start=start, end=end)
    packed = read_tree(backbone, tree).hidden_BTD[:, 5:].unflatten(1, (2, 4)).flatten(0, 1)
    segment_BNL = torch.cat([words.expand(2, -1, -1), tree.labels_BKM[..., :1]], 2)
    past = backbone(text, role, keep=True).past
    branches = Branches(backbone, past, anchor_BK, 1, ThoughtLaw(start, end, (), 0))
    grown = torch.stack([branches.step(token_BN) for token_BN in segment_BNL.unbind(2)], 2).flatten(0, 1)
    alone = []
    for row, thought in ((0, 0), (0, 1), (1, 0), (1, 1)):
        ids = torch.cat([text[row, : anchor_BK[row, thought] + 1], segment_BNL[row, thought]])[None]
        alone.append(backbone(ids, role_of(ids, Role.PROMPT)).hidden_BTD[:, -4:])
    return packed, grown, torch.cat(alone)
