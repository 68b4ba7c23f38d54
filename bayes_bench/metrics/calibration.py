"""Calibration of the mean prediction: expected calibration error, and what one temperature repairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bayes_bench.metrics.base import Floats, Ints, Metric, NotApplicableError, normalise
from bayes_bench.metrics.classification import example_log_likelihood, nll
from bayes_bench.metrics.job import JobPredictions

GROUP = "calibration"
BINS = 15
TEMPERATURES = (0.05, 20.0)
WORSE = 1.05
"""By so much the NLL of examples may rise under a temperature that was fitted without them: chance does that."""
FOLDS = 5
"""Parts of the validation examples by which it is seen whether a temperature serves others than its own."""


@dataclass(frozen=True)
class ReliabilityBins:
    """Examples binned by confidence. Per bin ``count``, mean ``confidence``, ``accuracy``; NaN where empty.

    ``edges`` has one entry more than there are bins; bin b is (edges[b], edges[b+1]], the first one closed.
    """

    edges: Floats
    count: Ints
    confidence: Floats
    accuracy: Floats

    @property
    def error(self) -> float:
        """Σ_b (count_b / N) |accuracy_b − confidence_b|: the expected calibration error, in [0, 1]."""
        full = self.count > 0
        gap = np.abs(self.accuracy[full] - self.confidence[full])
        return float((self.count[full] * gap).sum() / self.count.sum())


def bin_index(confidence: Floats, edges: Floats) -> Ints:
    """Bin of every confidence: (lo, hi], and what lies at or below the lowest edge in the first bin."""
    return np.searchsorted(edges[1:-1], confidence, side="left").astype(np.int64)


def reliability(probs: Floats, y: Ints, bins: int = BINS, adaptive: bool = False) -> ReliabilityBins:
    """Bin test examples by the confidence max_c p_c.

    Args:
        probs: ``[N, C]``.
        y: ``[N]``.
        bins: number of bins.
        adaptive: edges at the quantiles of the confidences (equally many examples in every bin) instead of
            equal widths on [0, 1]; equal confidences share a bin, so the order of examples is irrelevant.
    """
    confidence = probs.max(axis=-1)
    correct = (probs.argmax(axis=-1) == y).astype(np.float64)
    edges = np.quantile(confidence, np.linspace(0, 1, bins + 1)) if adaptive else np.linspace(0, 1, bins + 1)
    index = bin_index(confidence, edges)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(index, confidence, minlength=bins) / count
        mean_accuracy = np.bincount(index, correct, minlength=bins) / count
    return ReliabilityBins(edges, count, mean_confidence, mean_accuracy)


def ece(probs: Floats, y: Ints, bins: int = BINS) -> float:
    """Expected calibration error with equal-width bins (lo, hi], in [0, 1]."""
    return reliability(probs, y, bins).error


def ece_adaptive(probs: Floats, y: Ints, bins: int = BINS) -> float:
    """Expected calibration error with bins of equally many examples, in [0, 1]."""
    return reliability(probs, y, bins, adaptive=True).error


def fit_temperature(log_probs: Floats, y: Ints) -> float:
    """The temperature T in [0.05, 20] that minimises the NLL of softmax(ln p / T) on (validation) examples.

    Args:
        log_probs: ``[N, C]`` of the mean prediction.
        y: ``[N]``.
    """
    from scipy.optimize import minimize_scalar  # slow to import, and only this needs it

    def loss(log_temperature: float) -> float:
        return nll(normalise(log_probs / np.exp(log_temperature)), y)

    found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def scale(log_probs: Floats, temperature: float) -> Floats:
    """Normalised log probabilities of softmax(ln p / T)."""
    return normalise(log_probs / temperature)


def temperature_of(job: JobPredictions) -> float:
    """The job's temperature, fitted on its validation split."""
    if job._temperature is None:
        log_mean, y = job.classes_of("validation").log_mean, job.labels_of("validation")
        if not np.isfinite(example_log_likelihood(log_mean, y)).all():
            raise NotApplicableError("a validation example has probability 0 in every network")
        if (log_mean.argmax(axis=-1) == y).all():
            raise NotApplicableError("every validation example is classified right: the lower, the better, without end")
        if _held_out_nll(log_mean, y) > WORSE * nll(log_mean, y):
            raise NotApplicableError(
                "a temperature of some validation examples makes the others worse: they are too few"
            )
        job._temperature = fit_temperature(log_mean, y)
    return job._temperature


def _held_out_nll(log_probs: Floats, y: Ints) -> float:
    """NLL of every fifth of the examples, scaled by the temperature of the others."""
    fold = np.arange(len(y)) % FOLDS
    total = 0.0
    for k in range(min(FOLDS, len(y))):
        held = fold == k
        total += held.sum() * nll(scale(log_probs[held], fit_temperature(log_probs[~held], y[~held])), y[held])
    return float(total / len(y))


def _scaled_nll(job: JobPredictions) -> float:
    value = nll(scale(job.classes_of("test").log_mean, temperature_of(job)), job.labels_of("test"))
    if not np.isfinite(value):
        raise NotApplicableError("infinite: a true class has probability 0 in every network")
    return value


_TEST = ("test/log_probs", "test/y")
_BOTH = (*_TEST, "validation/log_probs", "validation/y")

CATALOGUE = (
    Metric(
        "ece",
        "fraction",
        False,
        GROUP,
        _TEST,
        f"expected calibration error of the mean prediction: {BINS} bins (lo, hi] of equal width on max p̄",
        lambda job: ece(job.classes_of("test").probs, job.labels_of("test")),
    ),
    Metric(
        "ece_adaptive",
        "fraction",
        False,
        GROUP,
        _TEST,
        f"expected calibration error with {BINS} bins that hold equally many examples; 0 to 1",
        lambda job: ece_adaptive(job.classes_of("test").probs, job.labels_of("test")),
    ),
    Metric(
        "temperature",
        "",
        None,
        GROUP,
        ("validation/log_probs", "validation/y"),
        "the temperature T of softmax(ln p̄ / T) with the lowest validation NLL; above 1: overconfident",
        temperature_of,
    ),
    Metric(
        "nll_temperature_scaled",
        "nats",
        False,
        GROUP,
        _BOTH,
        "test NLL after dividing ln p̄ by the temperature fitted on validation data",
        _scaled_nll,
    ),
    Metric(
        "ece_temperature_scaled",
        "fraction",
        False,
        GROUP,
        _BOTH,
        f"test ECE ({BINS} equal-width bins) after dividing ln p̄ by the temperature fitted on validation",
        lambda job: ece(np.exp(scale(job.classes_of("test").log_mean, temperature_of(job))), job.labels_of("test")),
    ),
)
