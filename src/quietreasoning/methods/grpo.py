"""Group-relative policy optimisation of a method's own answers (GRPO, arXiv 2402.03300).

    prompt -> thoughts -> cache, once, with its graph -> G answers drawn without one -> right or wrong
           -> the answers read after the same cache -> clipped ratio * advantage, distance to the reference

The policy is the sampling of an answer given the thoughts, which no random number touches: its gradient in
the thoughts is exact. Read `GroupPolicy.forward` first. Shapes: B prompts, G answers a prompt, N = B * G,
T tokens of an answer with its end of sequence, P prompt tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from quietreasoning.backbone import Past, States, last_hidden, role_of
from quietreasoning.backbone.sampling import sample
from quietreasoning.config import Settings, UserError
from quietreasoning.contract import IGNORE, Batch, Role, StepOutput, Term
from quietreasoning.losses import policy as losses
from quietreasoning.methods.grpo_levels import Levels
from quietreasoning.methods.grpo_reference import Reference
from quietreasoning.methods.sequence import padded

if TYPE_CHECKING:
    from quietreasoning.methods.writing import Writer

MASK63 = (1 << 63) - 1


class GroupReward(Settings):
    """Reinforcement from the reward of sampled answers."""

    group: int = Field(8, ge=2)
    """G: answers drawn for each prompt; they are compared with each other."""
    temperature: float = Field(1.0, gt=0)
    """Of the draws and of the log-probabilities alike; nothing is cut off the distribution."""
    max_answer_tokens: int = Field(16, ge=1)
    """Longest answer, end of sequence included; one that is cut is wrong."""
    clip: float = Field(0.2, gt=0, lt=1)
    """How far the ratio of new to old probability may leave 1."""
    kl: float = Field(0.1, ge=0)
    """Weight of the distance to the model as this stage found it; 0 keeps no copy of it."""
    beside: float = Field(0.0, ge=0)
    """Weight of the method's own loss on the gold of the same rows, beside the reward, so that what no reward
    asks for is not forgotten (arXiv 2203.02155, equation 2); 0: the reward alone."""
    standardise: bool = True
    """Divide advantages by the group's standard deviation (GRPO); false: do not (Dr. GRPO)."""
    per_token: bool = False
    """Divide an answer's share by its length (GRPO); false: do not (Dr. GRPO)."""
    updates: int = Field(1, ge=1)
    """Optimizer steps on the same answers; batches that come meanwhile are passed over."""
    by: Literal["exact", "task", "rules"] = "exact"
    """What an answer is worth. exact: 1 if it is the gold one, token for token; task: the task's own measure
    in [0, 1]; rules: a rule file's."""
    rules: str | None = None
    """The rule file of `by: rules`."""
    length: float = Field(0.0, ge=0, le=1)
    """What an answer of `max_answer_tokens` loses against an empty one, in groups that have a right one."""
    least_visits: float = Field(0.2, gt=0, le=1)
    """Curriculum: share of the rows of a difficulty that is visited even where nearly all or no answers are
    right; 1 visits all rows. Difficulty is the number of gold steps."""

    @model_validator(mode="after")
    def _rules_have_a_file(self) -> GroupReward:
        if (self.by == "rules") != (self.rules is not None):
            raise ValueError("reward.by=rules and reward.rules=FILE belong together; give both or neither")
        return self


class GroupPolicy(nn.Module):
    """The training step of a method whose answers are rewarded. It keeps no hold of the method."""

    def __init__(self, method: Writer, config: GroupReward):
        """UserError for a model whose cache cannot be shared out over a group."""
        super().__init__()
        if method.backbone.is_workspace:
            raise UserError(
                f"method.reward needs a transformer's cache, which {method.config.name} on a workspace model "
                "lacks; set method.reward=null, or name a backbone.path or backbone.scratch"
            )
        self.config = config
        self.levels = Levels(config.group, config.least_visits)
        self.reference = Reference(method) if config.kl else None

    @property
    def weights(self) -> dict[str, float]:
        return {"policy": 1.0, "kl": self.config.kl}

    def units(self, batch: Batch) -> dict[str, int]:
        """All answers a batch may have: rows that are not visited and groups that tell nothing add zero."""
        return {"sample": len(batch) * self.config.group}

    def pace(self, method: Writer, progress: float) -> None:
        """Take in what was right in the last step; before the first, remember the weights."""
        self.levels.settle()
        if progress == 0 and self.reference is not None:
            self.reference.hold(method)

    def forward(self, method: Writer, batch: Batch, carry: dict[str, Any] | None = None) -> StepOutput:
        """The carry holds drawn answers that have updates left."""
        config, learns = self.config, method.training
        with still(method):
            if carry is None:
                drawn, metrics, states = self.roll_out(method, batch, learns)
            else:
                drawn, metrics, states = carry, {}, condition(method, carry["prompt"], config)
            tokens_NT = drawn["tokens"]
            counted_NT = (tokens_NT != IGNORE) & drawn["told"][:, None]
            reference_NT = None
            if self.reference is not None:

                def before() -> Tensor:
                    known = condition(method, drawn["prompt"], config)
                    return log_probs(method, known, tokens_NT, counted_NT, config)

                reference_NT = self.reference.call(method, before)
            logp_NT = log_probs(method, states, tokens_NT, counted_NT, config)
        old_NT = drawn.get("old", logp_NT.detach())
        clipped = losses.clipped_objective(
            logp_NT, old_NT, drawn["advantage"], counted_NT, config.clip, per_token=config.per_token
        )
        terms = {"policy": Term(clipped.total, "sample", 1.0)}
        metrics["clipped"] = (clipped.clipped, clipped.count)
        if reference_NT is not None:
            total = losses.reference_kl(logp_NT, reference_NT, counted_NT, per_token=config.per_token)
            terms["kl"] = Term(total, "sample", config.kl)
            metrics["kl_of_told"] = (total.detach(), drawn["told"].sum())
        used = drawn.get("used", 0) + 1
        left = used < config.updates
        return StepOutput(terms, metrics, {**drawn, "old": old_NT, "used": used} if left else None)

    def roll_out(
        self, method: Writer, batch: Batch, learns: bool
    ) -> tuple[dict[str, Any], dict[str, tuple[Tensor, Tensor]], States]:
        """Answers to the visited rows, what they are worth, and the states they follow, with their graph."""
        config, eos = self.config, method.markers.eos
        uniforms_BU = uniforms(batch.keys_B, 1 + config.group * config.max_answer_tokens)
        level_B = self.levels.of(batch)
        visited_B = self.levels.visited(level_B, uniforms_BU[:, 0])
        rows_B = visited_B.nonzero()[:, 0] if visited_B.any() else visited_B.new_zeros(1, dtype=torch.long)
        counts_B = visited_B[rows_B]  # false only where no row was visited and the first stands in
        prompt_BP, level_B = batch.prompt_BP[rows_B], level_B[rows_B]
        states = condition(method, prompt_BP, config)
        tokens_NT = draw(
            method, states, uniforms_BU[rows_B.cpu(), 1:].reshape(-1, config.max_answer_tokens), config
        )
        if config.by == "exact":
            worth_N = exactly(tokens_NT, batch.answer_BA[rows_B].repeat_interleave(config.group, 0)).float()
        else:
            worth_N = method.judge(batch.row_B[rows_B].repeat_interleave(config.group), tokens_NT)
        worth_BG = worth_N.to(tokens_NT.device).view(-1, config.group)
        right_BG = worth_BG >= 1
        length_BG = (tokens_NT != IGNORE).sum(1).view(-1, config.group)
        reward_BG = losses.rewards(worth_BG, length_BG, config.max_answer_tokens, config.length)
        advantage_BG, told_B = losses.group_advantages(reward_BG, standardise=config.standardise)
        if learns:
            self.levels.observe(level_B[counts_B], right_BG[counts_B])
        ended_N = (tokens_NT == eos).any(1)
        of_answers = counts_B.sum() * config.group
        metrics = {
            "reward": ((reward_BG * counts_B[:, None]).sum(), of_answers),
            "worth": ((worth_BG * counts_B[:, None]).sum(), of_answers),
            "right": ((right_BG & counts_B[:, None]).sum(), of_answers),
            "answer_length": ((length_BG * counts_B[:, None]).sum(), of_answers),
            "unfinished": ((~ended_N.view_as(right_BG) & counts_B[:, None]).sum(), of_answers),
            "dropped_groups": ((~told_B & counts_B).sum(), counts_B.sum()),
            "visited_rows": (visited_B.sum(), torch.tensor(len(visited_B), device=visited_B.device)),
            **self.levels.pass_rates(level_B[counts_B], right_BG[counts_B]),
        }
        drawn = {
            "prompt": prompt_BP,
            "tokens": tokens_NT,
            "advantage": (advantage_BG * counts_B[:, None]).flatten(),
            "told": (told_B & counts_B).repeat_interleave(config.group),
        }
        return drawn, metrics, states


def condition(method: Writer, prompt_BP: Tensor, config: GroupReward) -> States:
    """What the policy samples from: everything before the answer, with its graph where gradients are on."""
    ready = method.prepare(prompt_BP, None, None, config.max_answer_tokens)
    if not ready.given:
        raise UserError(
            "method.reward rewards answers after a given answer prefix; this method writes the prefix "
            "itself. Train the stage without visible steps (visible_from=null), or set method.reward=null"
        )
    return ready.states


@torch.no_grad()
def draw(method: Writer, states: States, uniforms_NT: Tensor, config: GroupReward) -> Tensor:
    """Answers [N, T] with their end of sequence, padded with IGNORE, a uniform number a token."""
    hidden_ND, past = shared_out(states, config.group)
    rows = sample(
        method.backbone,
        past,
        hidden_ND,
        max_new_tokens=config.max_answer_tokens,
        eos=method.markers.eos,
        temperature=config.temperature,
        uniforms_BN=uniforms_NT.to(hidden_ND.device),
    )
    return padded(rows, hidden_ND.device)


def log_probs(
    method: Writer, states: States, tokens_NT: Tensor, counted_NT: Tensor, config: GroupReward
) -> Tensor:
    """log p(token | prompt, thoughts, tokens before) [N, T], 0 where not counted."""
    hidden_ND, past = shared_out(states, len(tokens_NT) // len(states.hidden_BTD))
    hidden_NTD = hidden_ND[:, None]
    if tokens_NT.shape[1] > 1:
        ids_NT = tokens_NT[:, :-1]
        read = method.backbone(ids_NT, role_of(ids_NT, Role.ANSWER), past)
        hidden_NTD = torch.cat([hidden_NTD, read.hidden_BTD], 1)
    logits_CV = method.backbone.logits(hidden_NTD[counted_NT])
    logp_C = losses.token_log_probs(logits_CV, tokens_NT[counted_NT], config.temperature)
    return logp_C.new_zeros(tokens_NT.shape).masked_scatter(counted_NT, logp_C)


def shared_out(states: States, group: int) -> tuple[Tensor, Past]:
    """The last state [N, D] and the cache of each prompt, for each of its answers; `states` is kept.

    Gradients of a group add up in the one cache that was computed.
    """
    past = states.past.fork()
    past.cache.batch_repeat_interleave(group)
    valid_NS = past.valid_BS.repeat_interleave(group, 0)
    length_N = past.length_B.repeat_interleave(group, 0)
    return last_hidden(states).repeat_interleave(group, 0), Past(past.cache, valid_NS, length_N)


def exactly(tokens_NT: Tensor, answer_NA: Tensor) -> Tensor:
    """Whether each answer is the gold one, token for token, end of sequence included [N]."""
    width = max(tokens_NT.shape[1], answer_NA.shape[1])
    said, gold = (
        nn.functional.pad(ids, (0, width - ids.shape[1]), value=IGNORE) for ids in (tokens_NT, answer_NA)
    )
    return (said == gold).all(1)


def uniforms(keys_B: Tensor, count: int) -> Tensor:
    """Numbers in [0, 1) of each row [B, count], on the CPU, from its key alone: lanes and ranks cut rows.

    A row's key differs from epoch to epoch, so the same question draws anew each time it returns.
    """
    drawn = []
    for key in keys_B.tolist():
        # the CPU's generator looks at 32 bits of its seed
        generator = torch.Generator().manual_seed((key ^ (key >> 31) ^ 0x67727030) & MASK63)
        drawn.append(torch.rand(count, generator=generator, dtype=torch.float64))
    return torch.stack(drawn)


@contextmanager
def still(method: nn.Module) -> Iterator[None]:
    """No dropout: what draws, what is scored and what it is held against must be the same network."""
    modes = [(module, module.training) for module in method.modules()]
    method.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
