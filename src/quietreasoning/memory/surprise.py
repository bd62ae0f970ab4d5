"""Where one event ends and the next begins: tokens that surprise the model more than its recent past did.

Human-like Episodic Memory for Infinite Context LLMs (EM-LLM, arXiv 2407.09450): token t begins an event where
s_t > mu + gamma sigma, with s_t = -log p(x_t | x_<t), mu and sigma those of the tokens before it. Each stream
has statistics of its own. They are read before they take in s_t, and a boundary is followed by a cooldown
counted in tokens.

Shapes: R streams, T tokens, V vocabulary, W tokens of a window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from quietreasoning.config import Settings, UserError

SPAN = 256  # tokens that are remembered, where statistics forget and none is set


class SurpriseSettings(Settings):
    """What counts as a surprise."""

    kind: Literal["token", "bayes"] = "token"
    """token: -log p of the token. bayes: KL of the prediction after the token from the one before it."""
    statistics: Literal["window", "ema", "welford"] = "window"
    """Over the last `span` tokens; over all with weights that fade over `span` tokens; over all alike."""
    span: int | None = Field(None, ge=2)
    """Tokens that window or ema remember, 256 where null; not for welford, which forgets none."""
    gamma: float = 1.0
    """Standard deviations above the mean that make a boundary."""
    cooldown: int = Field(64, ge=0)
    """Tokens an event has at least, the first of a stream too."""

    @model_validator(mode="after")
    def _welford_has_no_span(self) -> SurpriseSettings:
        if self.statistics == "welford" and self.span is not None:
            raise ValueError(f"span={self.span} has no meaning with statistics=welford; leave it out")
        return self

    @property
    def tokens(self) -> int:
        return SPAN if self.span is None else self.span


def token_surprise(logits_RTV: Tensor, tokens_RT: Tensor, before_RV: Tensor | None = None) -> Tensor:
    """s_t = -log p(x_t | x_<t) in nats, [R, T] float32.

    logits at t predict the token at t + 1; before_RV: logits at the token before these, where there was one.
    Without it the first column is NaN, which is no surprise and enters no statistics.
    """
    prior_RTV, surprise_RT = _priors(logits_RTV, before_RV)
    log_p_RTV = prior_RTV.float().log_softmax(-1)
    first = tokens_RT.shape[1] - prior_RTV.shape[1]
    surprise_RT[:, first:] = -log_p_RTV.gather(-1, tokens_RT[:, first:, None]).squeeze(-1)
    return surprise_RT


def bayesian_surprise(logits_RTV: Tensor, before_RV: Tensor | None = None) -> Tensor:
    """KL(posterior || prior) in nats, [R, T] float32; arguments and first column as in `token_surprise`.

    Itti & Baldi (NeurIPS 2005) measure how far data move beliefs about models. Departure: a language model
    states no beliefs about models, so that its prediction after token t stands for the posterior and the one
    before it for the prior, although they are about different tokens.
    """
    prior_RTV, surprise_RT = _priors(logits_RTV, before_RV)
    prior = prior_RTV.float().log_softmax(-1)
    posterior = logits_RTV[:, logits_RTV.shape[1] - prior.shape[1] :].float().log_softmax(-1)
    ratio = torch.where(posterior > -math.inf, posterior - prior, 0.0)  # 0 log 0 = 0
    surprise_RT[:, logits_RTV.shape[1] - prior.shape[1] :] = (posterior.exp() * ratio).sum(-1)
    return surprise_RT


def _priors(logits_RTV: Tensor, before_RV: Tensor | None) -> tuple[Tensor, Tensor]:
    """The prediction before each token but perhaps the first, and a NaN for each token."""
    prior_RTV = logits_RTV[:, :-1]
    if before_RV is not None:
        prior_RTV = torch.cat([before_RV[:, None], prior_RTV], 1)
    return prior_RTV, logits_RTV.new_full(logits_RTV.shape[:2], math.nan, dtype=torch.float32)


class SurpriseBoundaries:
    """Finds the boundaries of R streams as their tokens come; chunks of any size give the same boundaries.

    All is kept on the CPU in float64: a number a token is all that comes in. An infinite surprise makes a
    boundary, one that is NaN does not; neither enters the statistics.
    """

    def __init__(self, streams: int, settings: SurpriseSettings | None = None):
        self.settings = settings or SurpriseSettings()
        width = self.settings.tokens if self.settings.statistics == "window" else 0
        self._state = {
            "count_R": torch.zeros(streams, dtype=torch.long),  # surprises taken in
            "since_R": torch.zeros(streams, dtype=torch.long),  # tokens of the present event
            "mean_R": torch.zeros(streams, dtype=torch.float64),
            "variance_R": torch.zeros(streams, dtype=torch.float64),
            "window_RW": torch.zeros(streams, width, dtype=torch.float64),
        }

    @property
    def streams(self) -> int:
        return len(self._state["count_R"])

    @torch.no_grad()
    def observe(self, surprise_RT: Tensor, valid_RT: Tensor | None = None) -> Tensor:
        """[R, T] bool on the CPU: the token begins a new event. Tokens that are not valid do not exist."""
        surprise_RT = surprise_RT.detach().cpu().double()
        valid_RT = (
            torch.ones_like(surprise_RT, dtype=torch.bool) if valid_RT is None else valid_RT.cpu().bool()
        )
        if surprise_RT.shape != valid_RT.shape or len(surprise_RT) != self.streams:
            raise ValueError(f"surprise {tuple(surprise_RT.shape)}, {self.streams} streams")
        steps = zip(surprise_RT.unbind(1), valid_RT.unbind(1), strict=True)
        found = [self._step(surprise_R, valid_R) for surprise_R, valid_R in steps]
        return torch.stack(found, 1) if found else valid_RT

    def _step(self, surprise_R: Tensor, valid_R: Tensor) -> Tensor:
        """The test first, then the statistics take in the token."""
        s, c = self._state, self.settings
        bound_R = s["mean_R"] + c.gamma * s["variance_R"].sqrt()
        begins_R = valid_R & (surprise_R > bound_R) & (s["count_R"] >= 2) & (s["since_R"] >= c.cooldown)
        s["since_R"] = torch.where(begins_R, 0, s["since_R"]) + valid_R
        taken_R = valid_R & surprise_R.isfinite()
        if c.statistics == "window":
            self._into_window(surprise_R, taken_R)
        else:
            share_R = 1.0 / (s["count_R"] + 1)  # the mean of all so far, until those are more than `span`
            if c.statistics == "ema":
                share_R = share_R.clamp(min=1.0 / c.tokens)
            away_R = torch.where(taken_R, surprise_R - s["mean_R"], 0.0)
            spread_R = (1 - share_R) * (s["variance_R"] + share_R * away_R**2)
            s["mean_R"] = s["mean_R"] + share_R * away_R
            s["variance_R"] = torch.where(taken_R, spread_R, s["variance_R"])
        s["count_R"] = s["count_R"] + taken_R
        return begins_R

    def _into_window(self, surprise_R: Tensor, taken_R: Tensor) -> None:
        """Over the oldest of the last W; mean and variance anew each time, so that no rounding adds up."""
        s, width = self._state, self.settings.tokens
        rows_Q = taken_R.nonzero()[:, 0]
        s["window_RW"][rows_Q, s["count_R"][rows_Q] % width] = surprise_R[rows_Q]
        held_R = (s["count_R"] + taken_R).clamp(max=width)
        mean_R = s["window_RW"].sum(1) / held_R.clamp(min=1)
        held_RW = torch.arange(width) < held_R[:, None]
        away_RW = torch.where(held_RW, s["window_RW"] - mean_R[:, None], 0.0)
        s["mean_R"], s["variance_R"] = mean_R, away_RW.square().sum(1) / held_R.clamp(min=1)

    def reset(self, rows: Tensor | slice) -> None:
        """Begin these streams anew."""
        for value in self._state.values():
            value[rows] = 0

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors from which `load_state_dict` goes on as if nothing had happened."""
        return {name: value.clone() for name, value in self._state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """UserError where the state is of other settings or of another number of streams."""
        for name, value in self._state.items():
            if name not in state or state[name].shape != value.shape or state[name].dtype != value.dtype:
                raise UserError(
                    f"surprise state: {name} does not fit statistics={self.settings.statistics}, "
                    f"span={self.settings.span} and {len(value)} streams. Give the settings it was saved with"
                )
        self._state = {name: state[name].clone() for name in self._state}


def boundaries_numpy(surprise_T: np.ndarray, settings: SurpriseSettings) -> np.ndarray:
    """The same for one stream from its start, each token by the definitions: the readable truth, [T] bool."""
    seen: list[float] = []
    begins_T, since = np.zeros(len(surprise_T), bool), 0
    for t, surprise in enumerate(np.asarray(surprise_T, np.float64)):
        if len(seen) >= 2 and since >= settings.cooldown:
            mean, deviation = _statistics(np.array(seen), settings)
            begins_T[t] = surprise > mean + settings.gamma * deviation
        since = 1 if begins_T[t] else since + 1
        if np.isfinite(surprise):
            seen.append(float(surprise))
    return begins_T


def _statistics(seen_N: np.ndarray, settings: SurpriseSettings) -> tuple[float, float]:
    """Mean and standard deviation of the surprises so far."""
    if settings.statistics == "window":
        seen_N = seen_N[-settings.tokens :]
    weight_N = np.full(len(seen_N), 1.0 / len(seen_N))
    if settings.statistics == "ema":
        shares_N = np.maximum(1.0 / np.arange(1, len(seen_N) + 1), 1.0 / settings.tokens)
        left_N = np.append(
            np.cumprod((1 - shares_N)[:0:-1])[::-1], 1.0
        )  # what later ones leave of each share
        weight_N = shares_N * left_N
    mean = float(weight_N @ seen_N)
    return mean, float(np.sqrt(weight_N @ (seen_N - mean) ** 2))
