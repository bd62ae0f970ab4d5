"""Whether confidences mean what they say, and what halting may save: on arrays, without a model.

N items, each with a confidence in [0, 1] that its answer is right, and whether it is. Items are never
reordered across rows: everything here is a function of the set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 15
Array = np.ndarray


@dataclass(frozen=True)
class Brier:
    """score = reliability - resolution + uncertainty + within, exactly.

    The first three are Murphy's (1973), over bins; `within` is what binning leaves out (Stephenson et al.
    2008): the variance of the confidences in their bins less twice their covariance with being right. It is
    zero where all confidences of a bin are one number.
    """

    score: float  # mean (confidence - right)^2
    reliability: float  # how far a bin's confidence is from its accuracy; 0 is best
    resolution: float  # how far the bins' accuracies are from the mean one
    uncertainty: float  # accuracy (1 - accuracy)
    within: float


@dataclass(frozen=True)
class Risk:
    """Errors among the surest items: risk_N[i] is their share of the i + 1 surest, those of coverage_N[i]."""

    coverage_N: Array
    risk_N: Array
    area: (
        float  # mean risk over coverages (AURC, Geifman & El-Yaniv 2017); the base error if it knows nothing
    )


@dataclass(frozen=True)
class Threshold:
    """A halting threshold and what it does on the rows it was chosen on."""

    threshold: float
    accuracy: float
    steps: float  # mean
    full_accuracy: float  # without halting
    full_steps: int


def expected_calibration_error(
    confidence_N: Array, right_N: Array, *, bins: int = BINS, equal_mass: bool = False
) -> float:
    """sum over bins of (items / N) |accuracy - mean confidence| (Guo et al. 2017).

    Bins of equal width, the last one closed; or of about equally many items, where those of one confidence
    stay in one bin. ValueError for confidences out of [0, 1] or no items.
    """
    confidence_N, right_N = _checked(confidence_N, right_N)
    which_N = _binned(confidence_N, bins, equal_mass)
    total = 0.0
    for own_N in (which_N == one for one in np.unique(which_N)):
        total += own_N.sum() * abs(right_N[own_N].mean() - confidence_N[own_N].mean())
    return float(total / len(right_N))


def brier(confidence_N: Array, right_N: Array, *, bins: int = BINS) -> Brier:
    """The Brier score and its parts over bins of equal width. ValueError as above."""
    confidence_N, right_N = _checked(confidence_N, right_N)
    which_N = _binned(confidence_N, bins, equal_mass=False)
    base = right_N.mean()
    reliability = resolution = within = 0.0
    for own_N in (which_N == one for one in np.unique(which_N)):
        said_n, found_n = confidence_N[own_N], right_N[own_N]
        share = len(said_n) / len(right_N)
        reliability += share * (said_n.mean() - found_n.mean()) ** 2
        resolution += share * (found_n.mean() - base) ** 2
        off_n = said_n - said_n.mean()
        within += share * ((off_n**2).mean() - 2 * (off_n * (found_n - found_n.mean())).mean())
    score = ((confidence_N - right_N) ** 2).mean()
    uncertainty = base * (1 - base)
    return Brier(*(float(part) for part in (score, reliability, resolution, uncertainty, within)))


def risk_coverage(confidence_N: Array, right_N: Array) -> Risk:
    """Errors among the surest items. Items of one confidence share their errors evenly, as if their order
    were drawn, so that the curve does not depend on the order of the rows. ValueError as above."""
    confidence_N, right_N = _checked(confidence_N, right_N)
    _, group_N, count_G = np.unique(-confidence_N, return_inverse=True, return_counts=True)
    wrong_G = np.bincount(group_N, weights=1 - right_N)
    wrong_N = np.repeat(wrong_G / count_G, count_G)  # surest first
    number_N = np.arange(1, len(right_N) + 1)
    risk_N = wrong_N.cumsum() / number_N
    return Risk(number_N / len(right_N), risk_N, float(risk_N.mean()))


def trust(confidence_N: Array, right_N: Array) -> dict[str, float]:
    """How far confidences can be trusted, as an evaluation tells it.

    ece and ece_mass (bins of equal width and of equal mass); brier, and what it would be for the mean
    accuracy as every confidence; risk_area, and the error, which it would be for confidences that know
    nothing. ValueError as above.
    """
    confidence_N, right_N = _checked(confidence_N, right_N)
    accuracy = float(right_N.mean())
    return {
        "ece": expected_calibration_error(confidence_N, right_N),
        "ece_mass": expected_calibration_error(confidence_N, right_N, equal_mass=True),
        "brier": brier(confidence_N, right_N).score,
        "brier_of_the_mean": accuracy * (1 - accuracy),
        "risk_area": risk_coverage(confidence_N, right_N).area,
        "error": 1 - accuracy,
    }


def halting_steps(hazard_NT: Array, threshold: float) -> Array:
    """The step [N], from 1, at which each row halts: the first whose hazard is above, else the last."""
    above_NT = np.array(hazard_NT) > threshold
    above_NT[:, -1] = True
    return above_NT.argmax(1) + 1


def choose_threshold(
    hazard_NT: Array, right_NT: Array, allowed_drop: float, *, candidates: int = 200
) -> Threshold:
    """The threshold with the fewest steps whose accuracy is at most `allowed_drop` below that of all steps.

    Give it calibration rows and never the rows that will be reported. hazard_NT: probability of halting
    after each step; right_NT: whether the answer after each step is right. Candidates are quantiles of the
    hazards before the last step, 0, which halts at once, and 1, which never does; of two that save the same,
    the higher. ValueError for arrays that do not fit or a negative drop.
    """
    hazard_NT, right_NT = np.asarray(hazard_NT, dtype=float), np.asarray(right_NT, dtype=float)
    if hazard_NT.ndim != 2 or hazard_NT.shape != right_NT.shape or not hazard_NT.size:
        raise ValueError(
            f"hazards {hazard_NT.shape} and hits {right_NT.shape} must be one shape [rows, steps]"
        )
    if not allowed_drop >= 0:
        raise ValueError(f"allowed_drop={allowed_drop} must not be negative")
    full, steps = right_NT[:, -1].mean(), hazard_NT.shape[1]
    best = Threshold(1.0, float(full), float(steps), float(full), steps)
    if steps == 1:
        return best
    tried = np.quantile(hazard_NT[:, :-1], np.linspace(0, 1, candidates), method="lower")
    tried = np.unique(np.append(tried, 0.0))
    rows_N = np.arange(len(hazard_NT))
    for threshold in tried[::-1]:
        taken_N = halting_steps(hazard_NT, threshold)
        accuracy, mean = float(right_NT[rows_N, taken_N - 1].mean()), float(taken_N.mean())
        if accuracy >= full - allowed_drop - 1e-12 and mean < best.steps:
            best = Threshold(float(threshold), accuracy, mean, float(full), steps)
    return best


def _checked(confidence_N: Array, right_N: Array) -> tuple[Array, Array]:
    confidence_N, right_N = np.asarray(confidence_N, dtype=float), np.asarray(right_N, dtype=float)
    if confidence_N.ndim != 1 or confidence_N.shape != right_N.shape or not len(right_N):
        raise ValueError(
            f"confidences {confidence_N.shape} and outcomes {right_N.shape} must be as many, and some"
        )
    if not ((confidence_N >= 0) & (confidence_N <= 1)).all():
        raise ValueError("a confidence is not in [0, 1]")
    return confidence_N, right_N


def _binned(confidence_N: Array, bins: int, equal_mass: bool) -> Array:
    """The bin of each item."""
    if bins < 1:
        raise ValueError(f"bins={bins} must be at least 1")
    if not equal_mass:
        return np.minimum((confidence_N * bins).astype(int), bins - 1)
    ranked_N = np.sort(confidence_N)
    first_N = np.searchsorted(ranked_N, confidence_N)  # equal confidences share the first one's place
    return first_N * bins // len(confidence_N)
