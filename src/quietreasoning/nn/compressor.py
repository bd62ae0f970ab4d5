"""Compressors of states in closed form, from moments: every width from one eigendecomposition.

Shapes: D width of the states, E of what comes back (D but for a regression), K of the code, N positions,
V vocabulary. Solved in float64, held in fp32; codes and reconstructions are fp32 whatever the states are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quietreasoning.nn.moments import Moments
from quietreasoning.nn.row_gather import full_precision


class Compressor(nn.Module):
    """code = encoder (x - mean) / scale and back: target_mean + decoder^T (scale * code).

    Directions stand in the order of what they explain, so the first k of them are the compressor of width k.
    A scale of sqrt(variance + eps) whitens the code: without it one number of it varies a thousand times as
    much as another, and a squared loss on codes sees the first few alone. A squared loss on whitened codes
    weighted by scale^2 is the squared error of the states themselves.
    """

    def __init__(
        self,
        encoder_KD: Tensor,
        decoder_KE: Tensor,
        mean_D: Tensor,
        target_mean_E: Tensor,
        scale_K: Tensor,
        values_K: Tensor,
        gains_K: Tensor,
    ):
        """values_K: variance of each number of the code before scaling. gains_K: share of the target's
        variance that each takes off the error. The names are those of the state dict."""
        super().__init__()
        (code, states), target = encoder_KD.shape, decoder_KE.shape[-1]
        shapes = ((code, states), (code, target), (states,), (target,), (code,), (code,), (code,))
        parts = {
            "encoder_KD": encoder_KD,
            "decoder_KE": decoder_KE,
            "mean_D": mean_D,
            "target_mean_E": target_mean_E,
            "scale_K": scale_K,
            "values_K": values_K,
            "gains_K": gains_K,
        }
        for (name, part), shape in zip(parts.items(), shapes, strict=True):
            if part.shape != shape:
                raise ValueError(f"{name} has shape {tuple(part.shape)}, must have {shape}; solve it anew")
            self.register_buffer(name, part.detach().float().contiguous())

    @property
    def width(self) -> int:
        """Numbers in a code."""
        return len(self.encoder_KD)

    @property
    def hidden_size(self) -> int:
        """Numbers in a state."""
        return self.encoder_KD.shape[1]

    @property
    def ratio(self) -> float:
        """How many times a code is shorter than its state."""
        return self.hidden_size / self.width

    @property
    def matrix_parameters(self) -> int:
        """Numbers in the linear maps; maps that are each other's transpose count once, means not at all."""
        tied = torch.equal(self.encoder_KD, self.decoder_KE)
        return self.encoder_KD.numel() + (0 if tied else self.decoder_KE.numel())

    def compress(self, states: Tensor) -> Tensor:
        """[..., D] -> [..., K] in fp32, also under autocast: the mean is far larger than most directions."""
        _check_width("states", states, self.hidden_size)
        with full_precision(states):
            return (states.float() - self.mean_D.float()) @ self.encoder_KD.float().T / self.scale_K.float()

    def decompress(self, code: Tensor) -> Tensor:
        """[..., K] -> [..., E] in fp32."""
        _check_width("codes", code, self.width)
        with full_precision(code):
            return (
                code.float() * self.scale_K.float()
            ) @ self.decoder_KE.float() + self.target_mean_E.float()

    def forward(self, states: Tensor) -> Tensor:
        """The round trip [..., D] -> [..., E]."""
        return self.decompress(self.compress(states))

    def sliced(self, width: int) -> Compressor:
        """The compressor of the first `width` directions: what a solve for that width alone would give."""
        _check_code(width, self.width)
        state = self.state_dict()
        return Compressor(
            **{k: v if k in ("mean_D", "target_mean_E") else v[:width] for k, v in state.items()}
        )

    def explained_K(self) -> Tensor:
        """Share of the variance of what it was solved from, for every width up to this one, float64.

        The variance is that of the states (uncentred: their mean square; with a metric: in that metric; of a
        regression: of the target). On held-out states it is measured, not read off here.
        """
        return self.gains_K.double().cumsum(0)


def pca(
    moments: Moments,
    width: int | None = None,
    *,
    centred: bool = True,
    whiten: bool = True,
    eps: float = 1e-6,
) -> Compressor:
    """The linear code of least squared error: top eigenvectors of the covariance (Eckart-Young).

    No linear autoencoder, tied or not, reaches a lower one (Baldi & Hornik 1989); it equals the sum of the
    eigenvalues left out. centred=False takes E[x x^T] and no mean: about one direction is spent on the mean.
    width: all D by default, to be sliced. eps: added to variances under the root, relative to their mean.
    """
    matrix_DD = moments.covariance_DD() if centred else moments.second_DD()
    mean_D = moments.mean_D() if centred else torch.zeros_like(moments.mean_D())
    values_K, rows_KD = principal_axes(matrix_DD, _all_or(width, moments.width))
    total = matrix_DD.trace()
    scale_K = _scale(values_K, total / moments.width, whiten, eps)
    gains_K = values_K / total.clamp(min=_LEAST)
    return Compressor(rows_KD, rows_KD, mean_D, mean_D, scale_K, values_K, gains_K)


def metric_pca(
    moments: Moments,
    metric_DD: Tensor,
    width: int | None = None,
    *,
    ridge: float = 1e-3,
    whiten: bool = True,
    eps: float = 1e-6,
) -> Compressor:
    """The linear code of least E|M^(1/2) (x - x_hat)|^2: for errors that matter by how a reader sees them.

    metric_DD: M, symmetric, no negative eigenvalue: E^T E of an unembedding, or `fisher_metric`. ridge: added
    to its diagonal, relative to the diagonal's mean; more of it cares more for directions M does not see.
    encoder U^T M^(1/2), decoder M^(-1/2) U, U the top eigenvectors of M^(1/2) C M^(1/2).
    """
    size = moments.width
    metric_DD = metric_DD.to(moments.sum_D)
    if metric_DD.shape != (size, size) or not torch.allclose(metric_DD, metric_DD.T, rtol=1e-4, atol=1e-6):
        raise ValueError(f"metric {tuple(metric_DD.shape)} must be symmetric, {size} x {size}")
    values_D, vectors_DD = torch.linalg.eigh((metric_DD + metric_DD.T) / 2)
    floor = ridge * values_D.mean()
    if not (ridge > 0 and values_D[0] > -1e-6 * values_D[-1] and floor > 0):
        raise ValueError(
            f"ridge={ridge}, least eigenvalue {float(values_D[0]):.3g}: it must be positive definite; "
            "give one without negative eigenvalues and a ridge above 0, e.g. 1e-3"
        )
    root_D = (values_D.clamp(min=0) + floor).sqrt()
    root_DD, inverse_DD = (vectors_DD * root_D) @ vectors_DD.T, (vectors_DD / root_D) @ vectors_DD.T
    weighted_DD = root_DD @ moments.covariance_DD() @ root_DD
    values_K, rows_KD = principal_axes(weighted_DD, _all_or(width, size))
    mean_D, total = moments.mean_D(), weighted_DD.trace()
    scale_K = _scale(values_K, total / size, whiten, eps)
    gains_K = values_K / total.clamp(min=_LEAST)
    return Compressor(rows_KD @ root_DD, rows_KD @ inverse_DD, mean_D, mean_D, scale_K, values_K, gains_K)


def regression(
    moments: Moments,
    inputs: int,
    width: int | None = None,
    *,
    ridge: float = 1e-6,
    whiten: bool = True,
    eps: float = 1e-6,
) -> Compressor:
    """Reduced-rank regression: the code of x from which another vector y is best told (Izenman 1975).

    moments: of [x; y] side by side, x the first `inputs` numbers. ridge: r, added to the covariance of x,
    relative to its mean variance. B = C_yx (C_xx + r)^(-1), V the top eigenvectors of B C_xx B^T; encoder
    V^T B, decoder V. At full width it is ridge regression, the figure to beat on held-out problems.
    """
    if not 0 < inputs < moments.width:
        raise ValueError(f"inputs={inputs} must leave a target: 1 to {moments.width - 1}")
    joint, mean = moments.covariance_DD(), moments.mean_D()
    xx_DD, yx_ED, yy_EE = joint[:inputs, :inputs], joint[inputs:, :inputs], joint[inputs:, inputs:]
    added_DD = ridge * xx_DD.diagonal().mean() * torch.eye(inputs).to(xx_DD)
    factor_DD, failed = torch.linalg.cholesky_ex(xx_DD + added_DD)
    if failed:
        raise ValueError(f"ridge={ridge}: the inputs depend on each other; give a ridge above 0, e.g. 1e-6")
    map_ED = torch.cholesky_solve(yx_ED.T, factor_DD).T
    told_EE = map_ED @ xx_DD @ map_ED.T
    values_K, rows_KE = principal_axes((told_EE + told_EE.T) / 2, _all_or(width, min(yx_ED.shape)))
    # with a ridge a direction takes 2 v C_yx B^T v - v B C_xx B^T v off the error, not the eigenvalue alone
    gains_K = (2 * (rows_KE @ yx_ED @ map_ED.T * rows_KE).sum(1) - values_K) / yy_EE.trace().clamp(min=_LEAST)
    scale_K = _scale(values_K, values_K.mean(), whiten, eps)
    return Compressor(rows_KE @ map_ED, rows_KE, mean[:inputs], mean[inputs:], scale_K, values_K, gains_K)


def fisher_metric(head_VD: Tensor, probabilities_NV: Tensor) -> Tensor:
    """Mean over positions of E^T (diag p - p p^T) E [D, D], float64: how states move probabilities.

    To second order, half of d^T M d is the mean KL that an error d of the last state causes.
    """
    head_VD, probabilities_NV = head_VD.detach().double(), probabilities_NV.detach().double()
    expected_ND = probabilities_NV @ head_VD
    spread_DD = (head_VD.T * probabilities_NV.mean(0)) @ head_VD
    return spread_DD - expected_ND.T @ expected_ND / len(expected_ND)


def principal_axes(matrix_DD: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Top eigenvalues [K], none below 0, and eigenvectors as rows [K, D], largest entry positive."""
    values_D, vectors_DD = torch.linalg.eigh(matrix_DD)
    rows_KD = vectors_DD.T.flip(0)[:width]
    largest_K1 = rows_KD.gather(1, rows_KD.abs().argmax(1, keepdim=True))
    return values_D.flip(0)[:width].clamp(min=0), rows_KD * torch.where(largest_K1 < 0, -1.0, 1.0)


class TiedLinear(nn.Module):
    """code = W (x - mean), back by W^T: the same compressor trained by gradient, one matrix for both ways.

    Its squared error only ever approaches that of `pca` from above; for objectives that have no closed form.
    """

    def __init__(self, hidden_size: int, width: int, mean_D: Tensor | None = None):
        """mean_D: taken off before and added after; by default none."""
        super().__init__()
        _check_code(width, hidden_size)
        self.weight_KD = nn.Parameter(nn.init.orthogonal_(torch.empty(width, hidden_size)))
        self.register_buffer("mean_D", torch.zeros(hidden_size) if mean_D is None else mean_D.float().clone())

    @classmethod
    def start(cls, compressor: Compressor) -> TiedLinear:
        """From a closed-form solution whose maps are each other's transpose."""
        if not torch.equal(compressor.encoder_KD, compressor.decoder_KE):
            raise ValueError("its encoder is not its decoder transposed; start from pca(), without a metric")
        tied = cls(compressor.hidden_size, compressor.width, compressor.mean_D)
        with torch.no_grad():
            tied.weight_KD.copy_(compressor.encoder_KD)
        return tied

    def compress(self, states: Tensor) -> Tensor:
        """[..., D] -> [..., K]."""
        return (states.to(self.weight_KD.dtype) - self.mean_D) @ self.weight_KD.T

    def decompress(self, code: Tensor) -> Tensor:
        """[..., K] -> [..., D]."""
        return code @ self.weight_KD + self.mean_D

    def forward(self, states: Tensor) -> Tensor:
        """The round trip [..., D] -> [..., D]."""
        return self.decompress(self.compress(states))

    @torch.no_grad()
    def settled(self, moments: Moments, *, whiten: bool = True, eps: float = 1e-6) -> Compressor:
        """The same round trip as a `Compressor`: codes turned to vary apart, most first."""
        weight_KD, mean_D = self.weight_KD.to(moments.sum_D), self.mean_D.to(moments.sum_D)
        covariance_DD, offset_D = moments.covariance_DD(), moments.mean_D() - mean_D
        seen_DD = covariance_DD + torch.outer(offset_D, offset_D)  # around this module's mean
        values_K, turn_KK = principal_axes(weight_KD @ seen_DD @ weight_KD.T, len(weight_KD))
        rows_KD = turn_KK @ weight_KD
        length_K = rows_KD.square().sum(1)  # 1 for orthonormal rows; what is longer or shorter misses by it
        gains_K = values_K * (2 - length_K) / seen_DD.trace().clamp(min=_LEAST)
        scale_K = _scale(values_K, seen_DD.trace() / moments.width, whiten, eps)
        return Compressor(rows_KD, rows_KD, mean_D, mean_D, scale_K, values_K, gains_K)


_LEAST = 1e-30  # in place of a variance of nothing


def _scale(values_K: Tensor, mean: Tensor, whiten: bool, eps: float) -> Tensor:
    return (values_K + (eps * mean).clamp(min=_LEAST)).sqrt() if whiten else torch.ones_like(values_K)


def _all_or(width: int | None, most: int) -> int:
    if width is None:
        return most
    _check_code(width, most)
    return width


def _check_code(width: int, most: int) -> None:
    if not 1 <= width <= most:
        raise ValueError(f"width={width} of the code must lie between 1 and {most}")


def _check_width(what: str, tensor: Tensor, width: int) -> None:
    if tensor.shape[-1] != width:
        raise ValueError(
            f"{what} of width {tensor.shape[-1]}, this compressor takes {width}; "
            "use the compressor of the same layer, model and width"
        )
