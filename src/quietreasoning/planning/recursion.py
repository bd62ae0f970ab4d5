"""What a stage of recursion does to a row: what the frozen model reads, what keeps a graph, what is thought.

A frozen model has no gradient of its weights and no optimizer state. It reads a prompt once and keeps no
graph of it; after each supervised step it reads soft tokens, answer prefix and answer, with the graph that
the reasoner learns through: forward and as much again backward. Of the reasoner the last round has one.
Its FLOPs are few, but one evaluation waits for another: on a fast device N_sup * T * (n + 1) of them take
longer than they count for here.
"""

from __future__ import annotations

from dataclasses import dataclass

from quietreasoning.contract import IGNORE, Batch, MethodConfig
from quietreasoning.data.batches import count_tokens
from quietreasoning.methods.recursion import Recursion
from quietreasoning.methods.recursion.settings import RecursionSettings

KEPT = 34  # numbers a token, layer and width that backward needs, as of any transformer here


@dataclass(frozen=True)
class RowWork:
    """Of one row, on the average."""

    flops: float
    learned: float  # positions of the model that keep a graph
    thought_bytes: float  # that the reasoner keeps for backward


def needs_weights(config: MethodConfig) -> bool:
    """Whether the method is refused for other weights than those it was prepared with."""
    return isinstance(config, RecursionSettings) and config.compressor is not None


def row_work(method: Recursion, batch: Batch) -> RowWork:
    """Work on a row of this batch in one optimizer step."""
    config, backbone, cell = method.config, method.backbone, method.reasoner.config
    table = backbone.width * backbone.vocab_size
    blocks = sum(p.numel() for p in backbone.model.get_decoder().parameters()) - table
    read, learned, said = positions(method, batch)
    flops = 2 * blocks * (read + 2 * learned) + 6 * table * said

    own = sum(p.numel() for p in method.reasoner.network.parameters())
    prompt = float((batch.prompt_BP != IGNORE).sum()) / len(batch)
    thinking = config.slots + (prompt if cell.mode == "full" else 0)  # positions that are updated
    graph = cell.latent_steps + 1  # evaluations of the last round
    rewarded, golden = config.reward is not None, not config.by_reward_alone
    thinks = golden + rewarded * (2 if rewarded and config.reward.kl else 1)  # the reference thinks as well
    each = 2 * own * thinking * (thinks * cell.evaluations + (golden + rewarded) * 2 * graph)
    kept = 4 * KEPT * graph * cell.layers * cell.width * thinking
    steps = 1 if config.per_step_updates else config.steps
    held = golden * scored(config) + rewarded  # an answer is sampled after the last step
    return RowWork(flops + steps * each, learned, held * kept)


def scored(config: RecursionSettings) -> int:
    """Supervision steps of an optimizer step that have a loss."""
    return 1 if config.supervise == "last" or config.per_step_updates else config.steps


def positions(method: Recursion, batch: Batch) -> tuple[float, float, float]:
    """Positions of a row that the model reads without a graph, with one, and at which its head speaks."""
    config = method.config
    parts = [(0.0, 0.0, 0.0) if config.by_reward_alone else positions_of_gold(method, batch)]
    if config.reward is not None:
        parts.append(positions_of_answers(method, batch))
    read, learned, said = (sum(part) for part in zip(*parts, strict=True))
    return read, learned, said


def positions_of_answers(method: Recursion, batch: Batch) -> tuple[float, float, float]:
    """The same, of sampled answers, each as long as the gold one."""
    config = method.config
    prompt, answer, prefix, mixed = lengths(method, batch)
    written, before = config.reward.group * answer, config.slots + prefix
    reference = before + written if config.reward.kl else 0
    return prompt + written + reference, before + written, mixed + 3 * written


def positions_of_gold(method: Recursion, batch: Batch) -> tuple[float, float, float]:
    """The same, of the supervised step."""
    config, w = method.config, method.config.weights
    prompt, answer, prefix, mixed = lengths(method, batch)
    times = scored(config)
    tail = times * (config.slots + prefix + answer - 1)
    read, learned, said = prompt, 0.0, 0.0
    if w.match or (w.halt and config.halting != "right"):
        read += count_tokens(batch) / len(batch) - answer + prefix  # the model's own state behind the chain
    if w.answer:
        learned, said = tail, times * (answer + mixed)
    elif w.halt and config.halting == "right":
        read, said = read + tail, times * (answer + mixed)
    if w.step:
        said += times * config.slots
    return read, learned, said


def lengths(method: Recursion, batch: Batch) -> tuple[float, float, int, int]:
    """Tokens of a row's prompt, answer, answer prefix, and slots that are said."""
    prompt, answer = (float((ids != IGNORE).sum()) / len(batch) for ids in (batch.prompt_BP, batch.answer_BA))
    mixed = method.config.slots if method.config.inject == "mixture" else 0
    return prompt, answer, len(method.markers.answer_prefix), mixed
