"""Teachers that know less than all logits: the most likely ids with a rule for the tail, or ids drawn from p.

Both are rows of what `kd_targets.Teacher` asks for.
Shapes: N positions, V the student's vocabulary, K kept ids, S drawn ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from quietreasoning.losses.kd import FLOOR, Divergence, cooled, entropy, heat, measure
from quietreasoning.losses.rows import statistic

TAILS = ("bucket", "zero", "renorm", "uniform")


@dataclass(frozen=True, eq=False)
class SparseTeacher:
    """The K most likely ids [N, K] and their log-probabilities [N, K] over the whole vocabulary.

    ids: each once a row; negative ones are padding, and what they hold is not read. Every row keeps at least
    one.
    tail: what becomes of the rest R, with p_R = 1 - sum of the kept p:
        bucket   one more outcome: sum_S p log(p/q) + p_R log(p_R/q_R). Its gradient by a logit is q - p on S,
                 and q (1 - p_R/q_R) elsewhere; for every divergence here a lower bound of the whole one.
        zero     sum_S p log(p/q), the rest left out: the gradient is (1 - p_R) q - p on S, the optimum
                 p / (1 - p_R), so the student becomes over-confident. Forward KL alone.
        renorm   p / (1 - p_R) on S and 0 elsewhere; q stays what it is. Every divergence but reverse KL,
                 which is infinite there.
        uniform  p_R / (V - K) on each id of R; costs as much as all logits.
    vocabulary: how many ids the teacher has, so that a student with more is cut; None: the student's V. Kept
    ids that the student lacks are taken out, and p is divided by what remains, as with whole tables.
    temperature: that of the log-probabilities. Kept ids alone say nothing of another, since the tail's share
    changes with T, unless log_z does.
    log_z: {T: [N]}, logsumexp over the whole vocabulary of log p / T, for log-probabilities at T = 1.
    """

    ids_NK: Tensor
    logp_NK: Tensor
    tail: str = "bucket"
    vocabulary: int | None = None
    temperature: float = 1.0
    log_z: Mapping[float, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.tail not in TAILS:
            raise ValueError(f"tail={self.tail!r} is no rule; give one of {', '.join(TAILS)}")
        if self.ids_NK.dim() != 2 or self.ids_NK.shape != self.logp_NK.shape or not self.ids_NK.shape[1]:
            raise ValueError(
                f"ids {tuple(self.ids_NK.shape)} and log-probabilities {tuple(self.logp_NK.shape)} "
                "do not fit; give [N, K] twice, K at least 1"
            )
        if self.log_z and self.temperature != 1:
            raise ValueError(
                f"log_z belongs to log-probabilities at temperature 1, not {self.temperature}; drop one"
            )
        if self.vocabulary is not None and self.vocabulary < 1:
            raise ValueError(f"vocabulary={self.vocabulary} has no ids in common with any student")

    @classmethod
    def of(
        cls, logits_NV: Tensor, kept: int, tail: str = "bucket", temperatures: tuple[float, ...] = ()
    ) -> SparseTeacher:
        """What a cache would hold of these logits: `kept` ids, and log_z of the temperatures other than 1."""
        logp_NV = cooled(logits_NV.detach(), 1.0).log_softmax(-1)
        logp_NK, ids_NK = logp_NV.topk(kept, dim=-1)
        log_z = {each: (logp_NV / each).logsumexp(-1) for each in temperatures if each != 1}
        return cls(ids_NK, logp_NK, tail, logits_NV.shape[-1], log_z=log_z)

    def __len__(self) -> int:
        return len(self.ids_NK)

    def check(self, choice: Divergence, temperature_N: Tensor | None = None) -> None:
        if temperature_N is not None:
            raise ValueError(
                "a sparse teacher knows p only at the temperatures it was stored for, "
                "so it takes no temperature for each position"
            )
        known = (self.temperature, *sorted(self.log_z))
        if choice.temperature not in known:
            raise ValueError(
                f"temperature={choice.temperature}, and this sparse teacher was stored for {known}; "
                "give one of these, or store its log-sum-exp (log_z) for this one"
            )
        if self.tail == "zero" and not choice.forward:
            raise ValueError(f"tail='zero' fits forward KL alone, not {choice}; give tail='bucket'")
        if self.tail == "renorm" and choice.reverse:
            raise ValueError("reverse KL is infinite where tail='renorm' gives p = 0; give tail='bucket'")

    def rows(self, rows_C: Tensor | slice) -> SparseTeacher:
        return replace(
            self,
            ids_NK=self.ids_NK[rows_C],
            logp_NK=self.logp_NK[rows_C],
            log_z={each: log_z_N[rows_C] for each, log_z_N in self.log_z.items()},
        )

    def against(self, student_NV: Tensor, choice: Divergence, temperature_N: Tensor | None = None) -> Tensor:
        self.check(choice, temperature_N)
        student_NV = cooled(student_NV[:, : self.vocabulary], choice.temperature)
        ids_NK, inside_NK, logp_NK, rest_N = self._kept(student_NV, choice.temperature)
        log_kept_N = logp_NK.logsumexp(-1)
        if self.tail == "uniform":
            each_N = (log_tail(log_kept_N) - rest_N.clamp(min=1).to(log_kept_N).log()).clamp(min=FLOOR)
            teacher_NV = each_N[:, None].expand_as(student_NV)
            # the largest of what is written to one id: padding writes FLOOR
            teacher_NV = teacher_NV.scatter_reduce(1, ids_NK, logp_NK, "amax", include_self=False)
            return measure(choice)(teacher_NV, student_NV) * heat(choice, choice.temperature)
        # S and the rest as one more outcome; the rest by its own logits, since 1 - sum q loses all its digits
        kept_NK = student_NV.gather(1, ids_NK).masked_fill(~inside_NK, FLOOR)
        other_N = student_NV.scatter(1, ids_NK, FLOOR).logsumexp(-1)
        tail_N = log_tail(log_kept_N) if self.tail == "bucket" else torch.full_like(log_kept_N, FLOOR)
        apart_N = measure(choice)(
            torch.cat([logp_NK, tail_N[:, None]], 1), torch.cat([kept_NK, other_N[:, None]], 1)
        )
        if self.tail == "zero":  # sum_S p log(p/q), from the same with p made whole
            apart_N = log_kept_N.exp() * (apart_N + log_kept_N)
        return apart_N * heat(choice, choice.temperature)

    def _kept(self, student_NV: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(ids, is it one, log p at T, how many ids are not kept [N]); padding repeats a kept id."""
        ids_NK, known_NK = self.ids_NK.long(), self.ids_NK >= 0
        logp_NK = statistic(self.logp_NK.detach()).to(student_NV.dtype)
        if temperature != self.temperature:
            logp_NK = logp_NK / temperature - self.log_z[temperature].to(logp_NK)[:, None]
        inside_NK = known_NK & (ids_NK < student_NV.shape[1])
        p_NK = logp_NK.exp()
        logp_NK = logp_NK.masked_fill(~inside_NK, FLOOR).clamp(min=FLOOR)
        lost_N = p_NK.masked_fill(inside_NK | ~known_NK, 0).sum(-1)
        rest_N = student_NV.shape[1] - inside_NK.sum(-1)
        log_kept_N = logp_NK.logsumexp(-1)
        # without what the student lacks; rounded p may add up to more than 1, and must to 1 if all are kept
        whole_N = torch.maximum(torch.log1p(-lost_N.clamp(max=1)), log_kept_N)
        whole_N = torch.where(rest_N == 0, log_kept_N, whole_N)
        first_N1 = ids_NK.gather(1, inside_NK.long().argmax(-1, keepdim=True))
        ids_NK = torch.where(inside_NK, ids_NK, first_N1.clamp(0, student_NV.shape[1] - 1))
        return ids_NK, inside_NK, (logp_NK - whole_N[:, None]).clamp(min=FLOOR), rest_N

    def top(self) -> Tensor:
        best_N1 = self.logp_NK.masked_fill(self.ids_NK < 0, -torch.inf).argmax(-1, keepdim=True)
        return self.ids_NK.gather(1, best_N1)[:, 0]

    def entropy(self) -> Tensor:
        """At the temperature stored, of the kept ids and one bucket for the rest: a lower bound."""
        logp_NK = statistic(self.logp_NK.detach()).masked_fill(self.ids_NK < 0, FLOOR)
        tail_N = log_tail(logp_NK.logsumexp(-1))
        return entropy(torch.cat([logp_NK, tail_N[:, None]], 1))


@dataclass(frozen=True, eq=False)
class SampledTeacher:
    """Ids [N, S] drawn from the teacher at `temperature`: id v is counted as the target n_v / S.

    Forward KL alone, since it alone is linear in p up to a constant: its gradient is unbiased, that of the
    kept top K is not (arXiv 2503.16870). The value is that of the counts: above the teacher's KL by H(p) -
    H(counts) in the mean, which no student changes. Negative ids, and those that the student lacks, are not
    counted.
    """

    ids_NS: Tensor
    temperature: float = 1.0
    vocabulary: int | None = None

    def __post_init__(self) -> None:
        if self.ids_NS.dim() != 2 or not self.ids_NS.shape[1]:
            raise ValueError(
                f"ids {tuple(self.ids_NS.shape)}: give [N, S], at least one draw for each position"
            )

    def __len__(self) -> int:
        return len(self.ids_NS)

    def check(self, choice: Divergence, temperature_N: Tensor | None = None) -> None:
        if temperature_N is not None or choice.temperature != self.temperature:
            raise ValueError(
                f"these ids were drawn at temperature {self.temperature} and say nothing of another; "
                f"give {self.temperature}, or draw again"
            )
        if not choice.forward:
            raise ValueError(f"drawn ids fit forward KL alone, not {choice}; give beta=0, or another teacher")

    def rows(self, rows_C: Tensor | slice) -> SampledTeacher:
        return replace(self, ids_NS=self.ids_NS[rows_C])

    def against(self, student_NV: Tensor, choice: Divergence, temperature_N: Tensor | None = None) -> Tensor:
        self.check(choice, temperature_N)
        student_NV = cooled(student_NV[:, : self.vocabulary], self.temperature)
        ids_NS = self.ids_NS.long()
        inside_NS = (ids_NS >= 0) & (ids_NS < student_NV.shape[1])
        logq_NS = student_NV.gather(1, ids_NS.clamp(0, student_NV.shape[1] - 1))
        logq_NS = logq_NS - student_NV.logsumexp(-1, keepdim=True)
        drawn_N1 = inside_NS.sum(-1, keepdim=True).clamp(min=1)
        times_NS = ((ids_NS[:, :, None] == ids_NS[:, None]) & inside_NS[:, None]).sum(-1).clamp(min=1)
        logp_NS = (times_NS.to(logq_NS) / drawn_N1).log()
        apart_N = ((logp_NS - logq_NS).masked_fill(~inside_NS, 0) / drawn_N1).sum(-1)
        return apart_N * heat(choice, self.temperature)

    def top(self) -> Tensor:
        """The id drawn most often."""
        return self.ids_NS.mode(-1).values

    def entropy(self) -> Tensor:
        raise ValueError("a few draws do not tell the teacher's entropy; store it when they are drawn")


def log_tail(log_kept_N: Tensor) -> Tensor:
    """log(1 - p) from log p <= 0, FLOOR where nothing is left."""
    return torch.log(-torch.expm1(log_kept_N.clamp(max=0))).clamp(min=FLOOR)
