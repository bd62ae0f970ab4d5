"""Think, then write: hidden thoughts before the words the model is least certain of.

The text is read once and its cache grows by what is written; a thought is a branch beside it, which serves up
to `talk` written tokens and is then dropped, so nothing of it ever stands in the text. Rows are independent.
Shapes: B rows, G thoughts of a row, L tokens of a thought, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quietreasoning.backbone import States, last_hidden, role_of
from quietreasoning.backbone.sampling import permitted
from quietreasoning.backbone.tree import Branches, sample_thoughts
from quietreasoning.contract import IGNORE, Permit, Role
from quietreasoning.losses.thoughts import entropy
from quietreasoning.methods.sequence import read_prompt
from quietreasoning.methods.thoughts.base import Thinking
from quietreasoning.methods.writing import Ready, find, row_seeds
from quietreasoning.nn.mixing import gather_thoughts, mix
from quietreasoning.nn.thought_tree import Thoughts, keyed_uniforms, thought_cap

NOISE = 0x6E6F69


@dataclass
class Serving:
    """Thoughts that some rows had at one place, and the tokens they have still to say."""

    rows_B: Tensor  # bool
    branches: Branches
    hidden_BGD: Tensor  # what predicts the next token
    weight_BG: Tensor
    left: int


@dataclass(frozen=True)
class Thought:
    """What a row spent on one thought, or on several at once."""

    row: int
    place: int  # of the written token before which it was had
    passes: int  # sequential ones
    steps: int


def speak(
    method: Thinking,
    prompt_BP: Tensor,
    control: str | None,
    effort: int | None,
    limit: int,
    permit: Permit | None = None,
) -> tuple[list[list[int]], Ready]:
    """Greedy answers, and what stood before them. effort: most tokens of a thought; 0: no thoughts."""
    if effort is not None and effort < 0:
        raise ValueError(f"effort={effort}: the most tokens of a thought, at least 0")
    if control == "shuffle" and len(prompt_BP) < 2:
        raise ValueError("control='shuffle' needs at least 2 prompts in the batch")
    states = read_prompt(method.backbone, prompt_BP)
    had: list[Thought] = []
    seeds_B = torch.tensor(row_seeds(prompt_BP), device=prompt_BP.device)
    cap_B = thought_cap((prompt_BP != IGNORE).sum(1), *_lengths(method))
    cap_B = cap_B if effort is None else cap_B.clamp(max=effort)
    rows = _write(method, states, seeds_B, cap_B, control, limit, had, permit)
    # thoughts before the answer's first token are what it waited for
    begins = [_answer_begins(row, method.markers.answer_prefix) for row in rows]
    passes, steps = [0] * len(rows), [0] * len(rows)
    for thought in had:
        steps[thought.row] += thought.steps
        passes[thought.row] += thought.passes * (thought.place <= begins[thought.row])
    return rows, Ready(states, False, passes, steps)


def _answer_begins(row: list[int], prefix: tuple[int, ...]) -> int:
    at = find(row, prefix)
    return len(row) if at is None else at + len(prefix)


def _lengths(method: Thinking) -> tuple[int, int, int]:
    config = method.config
    return config.floor, config.cap, config.divisor


def _write(
    method: Thinking,
    states: States,
    seeds_B: Tensor,
    cap_B: Tensor,
    control: str | None,
    limit: int,
    had: list[Thought],
    permit: Permit | None,
) -> list[list[int]]:
    """Rows of tokens without their end of sequence: answer prefix and answer, after steps if it learned some.
    Thinking tokens are never written."""
    rows: list[list[int]] = [[] for _ in cap_B]
    open_B = torch.ones_like(cap_B, dtype=torch.bool)
    serving: list[Serving] = []
    for place in range(limit):
        base_BD = last_hidden(states)
        served_B = torch.stack([each.rows_B for each in serving]).any(0) if serving else ~open_B & open_B
        uncertain_B = entropy(method.backbone.logits(base_BD)) > method.threshold.nats_1
        asks_B = open_B & ~served_B & uncertain_B & (cap_B > 0)
        if asks_B.any():
            serving.append(_think(method, states, base_BD, asks_B, seeds_B, cap_B, control, place, had))
        hidden_BD = base_BD
        for each in serving:
            thought_BD = gather_thoughts(each.weight_BG, each.hidden_BGD)
            share_B = method.mixer.share(base_BD, thought_BD) * each.rows_B * (control != "zero")
            hidden_BD = torch.where(each.rows_B[:, None], mix(base_BD, thought_BD, share_B), hidden_BD)
        logits_BV = method.backbone.logits(hidden_BD)
        logits_BV[:, list(method.markers.thinking)] = -torch.inf
        if permit is not None:
            logits_BV = permitted(logits_BV, permit, rows, open_B.tolist(), method.markers.eos)
        token_B = logits_BV.argmax(-1)
        open_B = open_B & (token_B != method.markers.eos)
        for row, (token, is_open) in enumerate(zip(token_B.tolist(), open_B.tolist(), strict=True)):
            if is_open:
                rows[row].append(token)
        if place + 1 == limit or not open_B.any():
            break
        ids_B1 = token_B.masked_fill(~open_B, IGNORE)[:, None]
        states = method.backbone(ids_B1, role_of(ids_B1, Role.ANSWER), states.past)
        serving = [_served(each, token_B, open_B) for each in serving if each.left > 1]
    return rows


def _think(
    method: Thinking,
    states: States,
    base_BD: Tensor,
    asks_B: Tensor,
    seeds_B: Tensor,
    cap_B: Tensor,
    control: str | None,
    place: int,
    had: list[Thought],
) -> Serving:
    """A thought, or G drawn ones, of every row that asks."""
    config, past = method.config, states.past
    group = config.thoughts if config.sampled else 1
    anchor_B1 = torch.where(asks_B, past.valid_BS.shape[1] - 1, -1)[:, None]

    def branch() -> Branches:
        # both markers, a thought, its last token where the cap ended it, and what it serves
        room = (config.cap + config.talk + 3) * config.static
        return Branches(method.backbone, past, anchor_B1, group, method.law, method.markers_2D, room)

    branches, uniforms = branch(), None
    if config.sampled:
        thought_G1 = torch.arange(group, device=seeds_B.device)[:, None]
        step_L = torch.arange(config.cap, device=seeds_B.device)
        uniforms = keyed_uniforms(seeds_B[:, None, None, None], place, thought_G1, step_L)
    thoughts = sample_thoughts(branches, cap_B[:, None], uniforms)
    if control in ("shuffle", "noise", "filler"):
        thoughts = corrupted(method, thoughts, control, asks_B, seeds_B)
        branches = branch()
        hidden_BKGD = feed(branches, thoughts)
    else:
        hidden_BKGD = branches.close(thoughts)
    hidden_BGD = hidden_BKGD[:, 0]
    weight_BG = method.mixer.weights(base_BD, hidden_BGD, method.prior_when_writing(base_BD, hidden_BGD))
    length_BG = thoughts.length_BKG[:, 0]
    for row, asks in enumerate(asks_B.tolist()):
        if asks:
            most, total = int(length_BG[row].max()), int(length_BG[row].sum())
            had.append(Thought(row, place, passes=most + 2, steps=total + 2 * group))
    return Serving(asks_B, branches, hidden_BGD, weight_BG, config.talk)


def _served(each: Serving, token_B: Tensor, open_B: Tensor) -> Serving:
    """After a written token, which the branches read too."""
    group = each.hidden_BGD.shape[1]
    open_BG = (each.rows_B & open_B)[:, None].expand(-1, group)
    token_BG = token_B[:, None].expand(-1, group)
    hidden_BGD = each.branches.step(token_BG.masked_fill(~open_BG, IGNORE), open_BG, Role.ANSWER)
    return replace(each, hidden_BGD=hidden_BGD, left=each.left - 1)


def feed(branches: Branches, thoughts: Thoughts) -> Tensor:
    """Given thoughts in place of own ones: the states of their end markers [B, K, G, D]."""
    branches.mark(0)
    ids_BNL, length_BN = thoughts.ids_BKGL.flatten(1, 2), thoughts.length_BKG.flatten(1)
    for step in range(ids_BNL.shape[2]):
        branches.step(ids_BNL[..., step], length_BN > step)
    return branches.mark(1).unflatten(1, branches.shape[1:])


def corrupted(
    method: Thinking, thoughts: Thoughts, control: str, asks_B: Tensor, seeds_B: Tensor
) -> Thoughts:
    """shuffle: the thoughts of the row before that thinks too, an empty one where none does. noise: as many
    random tokens. filler: as often the last token of the answer prefix."""
    ids, length = thoughts.ids_BKGL, thoughts.length_BKG
    if control == "shuffle":
        asking_N = asks_B.nonzero()[:, 0]
        source_B = torch.arange(len(ids), device=ids.device).index_copy(0, asking_N, asking_N.roll(1))
        alone = len(asking_N) < 2
        return replace(
            thoughts,
            ids_BKGL=ids[source_B].masked_fill(torch.tensor(alone, device=ids.device), IGNORE),
            length_BKG=length[source_B] * (not alone),
            ended_BKG=torch.zeros_like(thoughts.ended_BKG),
        )
    if control == "filler":
        words = torch.full_like(ids, method.markers.answer_prefix[-1])
    else:
        at_L = torch.arange(ids.shape[-1], device=ids.device)
        thought_G1 = torch.arange(ids.shape[2], device=ids.device)[:, None]
        drawn = keyed_uniforms(seeds_B[:, None, None, None], NOISE, thought_G1, at_L)
        words = (drawn * method.backbone.vocab_size).long().expand_as(ids)
    return replace(thoughts, ids_BKGL=torch.where(ids == IGNORE, IGNORE, words))
