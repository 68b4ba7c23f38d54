"""Regression: the equal mixture of the networks' Gaussians against the targets, in the targets' own units."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import logsumexp, ndtr, ndtri

from bayes_bench.metrics.base import Floats, Metric, NotApplicableError, example_chunks
from bayes_bench.metrics.job import JobPredictions, ValueSet

GROUP = "regression"
LEVEL = 0.95


def rmse(mean: Floats, y: Floats) -> float:
    """Root mean squared error of the mixture's mean, over examples and dimensions.

    Args:
        mean: ``[S, N, D]``.
        y: ``[N, D]``.
    """
    return float(np.sqrt(((mean.mean(axis=0) - y) ** 2).mean()))


def nll(mean: Floats, noise_std: Floats, y: Floats) -> float:
    """Mean over examples of −ln (1/S) Σ_s Π_d N(y_d; μ_sd, σ_sd²), nats (of a density: may be negative)."""
    return float(example_nll(mean, noise_std, y).mean())


def example_nll(mean: Floats, noise_std: Floats, y: Floats) -> Floats:
    """Negative log predictive density of every example, ``[N]``; arguments as in :func:`nll`, σ > 0."""
    log_density = -0.5 * ((y - mean) / noise_std) ** 2 - np.log(noise_std) - 0.5 * math.log(2 * math.pi)
    return np.asarray(math.log(len(mean)) - logsumexp(log_density.sum(axis=-1), axis=0), dtype=np.float64)


def crps(mean: Floats, noise_std: Floats, y: Floats) -> float:
    """Continuous ranked probability score of the mixture, mean over examples and dimensions; ≥ 0."""
    return float(example_crps(mean, noise_std, y).mean())


def example_crps(mean: Floats, noise_std: Floats, y: Floats) -> Floats:
    """Closed form for an equal mixture of Gaussians (Grimit et al. 2006), ``[N, D]``.

    CRPS = (1/S) Σ_i A(y − μ_i, σ_i²) − 1/(2S²) Σ_ij A(μ_i − μ_j, σ_i² + σ_j²), with
    A(m, s²) = E|N(m, s²)| = 2sφ(m/s) + m(2Φ(m/s) − 1). Cost S²·N·D, in chunks of examples.
    """
    networks, examples, dimensions = mean.shape
    result = np.empty((examples, dimensions))
    first, second = np.triu_indices(networks, k=1)
    for part in example_chunks(max(1, len(first)), examples, dimensions):
        m, variance = mean[:, part], noise_std[:, part] ** 2
        to_target = _absolute_moment(y[part] - m, variance).mean(axis=0)
        # Every pair counts twice; a network with itself gives 2σ/√π.
        between = 2 * _absolute_moment(m[first] - m[second], variance[first] + variance[second]).sum(axis=0)
        between += (2 * noise_std[:, part] / math.sqrt(math.pi)).sum(axis=0)
        result[part] = to_target - between / (2 * networks**2)
    return result


def _absolute_moment(mean: Floats, variance: Floats) -> Floats:
    """E|X| for X ~ N(mean, variance); |mean| where the variance is 0."""
    std = np.sqrt(variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = mean / std
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    return np.where(std > 0, 2 * std * density + mean * (2 * ndtr(z) - 1), np.abs(mean))


def mixture_cdf(mean: Floats, noise_std: Floats, y: Floats) -> Floats:
    """P(Y ≤ y) under the mixture, ``[N, D]``."""
    return np.asarray(ndtr((y - mean) / noise_std).mean(axis=0), dtype=np.float64)


def mixture_quantile(mean: Floats, noise_std: Floats, probability: float) -> Floats:
    """The quantile of the mixture for one probability in (0, 1), ``[N, D]``, by bisection on its CDF.

    The quantile lies between the smallest and the largest of the components' own; 60 halvings reach float64.
    """
    if not 0 < probability < 1:
        raise ValueError(f"the probability must lie between 0 and 1, got {probability}")
    components = mean + noise_std * ndtri(probability)
    low, high = components.min(axis=0), components.max(axis=0)
    for _ in range(60):
        middle = 0.5 * (low + high)
        below = mixture_cdf(mean, noise_std, middle) < probability
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.asarray(0.5 * (low + high), dtype=np.float64)


def coverage(mean: Floats, noise_std: Floats, y: Floats, level: float = LEVEL) -> float:
    """Share of targets within the mixture's central band, over examples and dimensions; ideally ``level``.

    A target lies between two quantiles exactly when its CDF value lies between their probabilities.
    """
    position = mixture_cdf(mean, noise_std, y)
    tail = (1 - level) / 2
    return float(((position >= tail) & (position <= 1 - tail)).mean())


def band_width(mean: Floats, noise_std: Floats, level: float = LEVEL) -> float:
    """Mean width of the central band between the mixture's quantiles, in target units."""
    tail = (1 - level) / 2
    width = mixture_quantile(mean, noise_std, 1 - tail) - mixture_quantile(mean, noise_std, tail)
    return float(width.mean())


def epistemic_variance(mean: Floats) -> Floats:
    """Variance between the networks' means (divisor S), averaged over dimensions: ``[S, P, D]`` → ``[P]``."""
    return np.asarray(mean.var(axis=0).mean(axis=-1), dtype=np.float64)


def _epistemic(job: JobPredictions, region: str, power: int) -> float:
    """Mean over a region of the epistemic standard deviation (power 1) or variance (power 2)."""
    mask = job.curve_regions()[region]
    if not mask.any():
        raise NotApplicableError(f"no {region} region" if region == "gap" else f"no points {region} the data")
    mean = np.asarray(job.need("curve/mean"), dtype=np.float64)
    if power == 2:
        return float(epistemic_variance(mean)[mask].mean())
    return float(mean.std(axis=0).mean(axis=-1)[mask].mean())


def _ratio(job: JobPredictions, ratio: str, power: int) -> float:
    job.need_networks(2)
    above, below = ratio.split("_")
    denominator = _epistemic(job, below, power)
    if denominator == 0:
        raise NotApplicableError(f"no spread {below} the data")
    return _epistemic(job, above, power) / denominator


def _with_noise(job: JobPredictions, prefix: str = "test") -> ValueSet:
    values = job.values_of(prefix)
    if not (values.noise_std > 0).all():
        raise NotApplicableError("a noise scale is 0")
    return values


def _nll(job: JobPredictions, prefix: str) -> float:
    values = _with_noise(job, prefix)
    return nll(values.mean, values.noise_std, values.y)


def _crps(job: JobPredictions) -> float:
    values = job.values_of("test")
    return crps(values.mean, values.noise_std, values.y)


def _coverage(job: JobPredictions) -> float:
    values = _with_noise(job)
    return coverage(values.mean, values.noise_std, values.y)


def _width(job: JobPredictions) -> float:
    values = _with_noise(job)
    return band_width(values.mean, values.noise_std)


_TEST = ("test/mean", "test/noise_std", "test/y")
_CURVE = ("curve/x", "curve/mean")

CATALOGUE = (
    Metric(
        "rmse",
        "target units",
        False,
        GROUP,
        ("test/mean", "test/y"),
        "root mean squared error of the mean over networks, on test data",
        lambda job: rmse(job.values_of("test").mean, job.values_of("test").y),
        kind="regression",
    ),
    Metric(
        "nll",
        "nats",
        False,
        GROUP,
        _TEST,
        "negative log predictive density −ln mean_s N(y; f_s, σ_s²), mean over test examples",
        lambda job: _nll(job, "test"),
        kind="regression",
    ),
    Metric(
        "crps",
        "target units",
        False,
        GROUP,
        _TEST,
        "continuous ranked probability score of the mixture, in closed form, mean over test examples; ≥ 0",
        _crps,
        kind="regression",
    ),
    Metric(
        "coverage95",
        "fraction",
        None,
        GROUP,
        _TEST,
        "share of test targets within the central 95 % band of the mixture; ideally 0.95",
        _coverage,
        kind="regression",
    ),
    Metric(
        "width95",
        "target units",
        None,
        GROUP,
        ("test/mean", "test/noise_std"),
        "mean width of the mixture's central 95 % band on test data; smaller is sharper at equal coverage",
        _width,
        kind="regression",
    ),
    Metric(
        "epistemic_std/<region>",
        "target units",
        None,
        GROUP,
        _CURVE,
        "standard deviation between the networks' means f_s(x), averaged over the part of the curve that "
        "lies inside the data, in a gap, or outside",
        lambda job, region: _epistemic(job, region, 1),
        kind="regression",
        over="region",
    ),
    Metric(
        "epistemic_variance/<region>",
        "target units²",
        None,
        GROUP,
        _CURVE,
        "variance between the networks' means f_s(x), averaged over the part of the curve that lies inside "
        "the data, in a gap, or outside",
        lambda job, region: _epistemic(job, region, 2),
        kind="regression",
        over="region",
    ),
    Metric(
        "epistemic_std_ratio/<ratio>",
        "",
        None,
        GROUP,
        _CURVE,
        "ratio of the epistemic standard deviations of two regions; above 1: less certain away from the data",
        lambda job, ratio: _ratio(job, ratio, 1),
        kind="regression",
        over="ratio",
    ),
    Metric(
        "epistemic_variance_ratio/<ratio>",
        "",
        None,
        GROUP,
        _CURVE,
        "ratio of the epistemic variances of two regions",
        lambda job, ratio: _ratio(job, ratio, 2),
        kind="regression",
        over="ratio",
    ),
    Metric(
        "val_nll",
        "nats",
        False,
        "validation",
        ("validation/mean", "validation/noise_std", "validation/y"),
        "negative log predictive density on the validation split, which tuning may use",
        lambda job: _nll(job, "validation"),
        kind="regression",
    ),
)
