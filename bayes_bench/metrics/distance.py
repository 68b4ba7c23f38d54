"""How far a method's predictions are from those of a reference posterior, a long run of Hamiltonian Monte Carlo.

The reference's arrays are described in ``metrics.references``. Letters as elsewhere; T networks of the reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from bayes_bench.metrics.base import Floats, Metric, NotApplicableError, example_chunks, normalise
from bayes_bench.metrics.job import JobPredictions

GROUP = "reference"
CELLS_PER_STD = 8
REACH = 5.0
"""Standard deviations of a Gaussian within which its mass is counted; 6e-7 of it lies beyond."""
MAX_CELLS = 1024


def total_variation_of_means(probs: Floats, reference: Floats) -> Floats:
    """½ Σ_c |p̄ − p̄_ref| of two tables of probabilities ``[N, C]``: ``[N]``, in [0, 1]."""
    return np.asarray(0.5 * np.abs(probs - reference).sum(axis=-1), dtype=np.float64)


def agreement(probs: Floats, reference: Floats) -> float:
    """Share of examples whose most probable class is the same in both tables ``[N, C]``."""
    return float((probs.argmax(axis=-1) == reference.argmax(axis=-1)).mean())


def class_variance(log_probs: NDArray[Any]) -> Floats:
    """Epistemic variance Σ_c Var_s p_s(c) (divisor S) from log probabilities ``[S, N, C]``: ``[N]``."""
    networks, examples, classes = log_probs.shape
    result = np.empty(examples)
    for part in example_chunks(networks, examples, classes):
        result[part] = np.exp(normalise(log_probs[:, part])).var(axis=0).sum(axis=-1)
    return result


def mixture_total_variation(
    mean: Floats, noise_std: Floats, reference_mean: Floats, reference_noise_std: Floats
) -> Floats:
    """½ ∫ |p − p_ref| dy between two equal mixtures of Gaussians at every point.

    The axis of y is cut into cells of an eighth of the narrowest Gaussian's σ, whose probabilities are exact:
    ½ Σ |P(cell) − P_ref(cell)| is never above the total variation, and falls short only in cells where the
    densities cross, by less than 0.001 for each crossing. Where more than ``MAX_CELLS`` would be needed, they are
    wider: then the value is still a lower bound.

    Args:
        mean, noise_std: ``[S, P]``, σ > 0.
        reference_mean, reference_noise_std: ``[T, P]``, σ > 0.

    Returns:
        ``[P]``, in [0, 1].
    """
    means = np.concatenate([mean, reference_mean]).T
    stds = np.concatenate([noise_std, reference_noise_std]).T
    weights = np.concatenate(
        [np.full(len(mean), 1 / len(mean)), np.full(len(reference_mean), -1 / len(reference_mean))]
    )
    pairs = zip(means, stds, strict=True)
    return np.array([0.5 * np.abs(_cell_masses(*pair, weights)).sum() for pair in pairs]).clip(0.0, 1.0)


def _cell_masses(mean: Floats, std: Floats, weights: Floats) -> Floats:
    """Mass in every cell of Σ_i weights_i N(mean_i, std_i²); each Gaussian is added only where it has any."""
    low, high = (mean - REACH * std).min(), (mean + REACH * std).max()
    width = max(std.min() / CELLS_PER_STD, (high - low) / MAX_CELLS)
    reach = int(np.ceil(REACH * std.max() / width))
    centre = np.floor((mean - low) / width).astype(np.int64)[:, None]
    steps = np.arange(-reach, reach + 2)
    edges = low + width * (centre + steps)
    mass = np.diff(ndtr((edges - mean[:, None]) / std[:, None]), axis=1) * weights[:, None]
    cells = reach + centre + steps[:-1]
    return np.asarray(np.bincount(cells.reshape(-1), weights=mass.reshape(-1)), dtype=np.float64)


def _tv(job: JobPredictions, prefix: str) -> float:
    probs = job.classes_of(prefix).probs
    return float(total_variation_of_means(probs, job.need_reference(f"{prefix}/probs")).mean())


def _class_variance_ratio(job: JobPredictions, prefix: str) -> float:
    expected = job.need_reference(f"{prefix}/epistemic_variance").mean()
    job.classes_of(prefix)  # n/a with its reason where the set is missing or empty
    return _ratio(class_variance(job.need(f"{prefix}/log_probs")).mean(), expected)


def _ratio(value: float, expected: float) -> float:
    if expected == 0:
        raise NotApplicableError("no spread in the reference")
    return float(value / expected)


def _part(job: JobPredictions, region: str) -> tuple[Floats, Floats, str, NDArray[np.bool_]]:
    """Means of both, ``[S, P, D]`` and ``[T, P, D]``, at the inputs of a region, the set's name and their mask."""
    prefix = "test" if region == "test" else "curve"
    mean, expected = np.asarray(job.need(f"{prefix}/mean"), np.float64), job.need_reference(f"{prefix}/mean")
    mask = np.ones(mean.shape[1], np.bool_) if region == "test" else job.curve_regions()[region]
    if not mask.any():
        raise NotApplicableError(f"no points {region} the data")
    return mean[:, mask], expected[:, mask], prefix, mask


def _mixture_tv(job: JobPredictions, region: str) -> float:
    mean, expected, prefix, mask = _part(job, region)
    scales = [np.asarray(job.need(f"{prefix}/noise_std"), np.float64), job.need_reference(f"{prefix}/noise_std")]
    # Stored without the dimensions along which it is constant.
    noise, expected_noise = (
        np.broadcast_to(scale, (len(means), len(mask), means.shape[-1]))[:, mask]
        for scale, means in zip(scales, (mean, expected), strict=True)
    )
    if not ((noise > 0).all() and (expected_noise > 0).all()):
        raise NotApplicableError("a noise scale is 0")
    flat = [values.reshape(len(values), -1) for values in (mean, noise, expected, expected_noise)]
    return float(mixture_total_variation(*flat).mean())


def _mean_distance(job: JobPredictions, region: str) -> float:
    mean, expected, *_ = _part(job, region)
    return float(np.abs(mean.mean(axis=0) - expected.mean(axis=0)).mean())


def _value_variance_ratio(job: JobPredictions, region: str) -> float:
    mean, expected, *_ = _part(job, region)
    return _ratio(mean.var(axis=0).mean(), expected.var(axis=0).mean())


_TEST, _SET, _CURVE = ("test/log_probs",), ("ood/<set>/log_probs",), ("curve/mean", "curve/noise_std")
_WHERE = "averaged over a part of the curve (inside the data, in a gap, outside), without a curve over test data"

CATALOGUE = (
    Metric(
        "reference_tv",
        "",
        False,
        GROUP,
        _TEST,
        "total variation ½ Σ_c |p̄ − p̄_ref| to the reference posterior's mean prediction, mean over test examples, "
        "in [0, 1]",
        lambda job: _tv(job, "test"),
        against_reference=True,
    ),
    Metric(
        "reference_tv_ood/<set>",
        "",
        False,
        GROUP,
        _SET,
        "the same total variation on an out-of-distribution set",
        lambda job, name: _tv(job, f"ood/{name}"),
        over="ood",
        against_reference=True,
    ),
    Metric(
        "reference_agreement",
        "fraction",
        True,
        GROUP,
        _TEST,
        "share of test examples with the same most probable class as the reference posterior's mean prediction",
        lambda job: agreement(job.classes_of("test").probs, job.need_reference("test/probs")),
        against_reference=True,
    ),
    Metric(
        "reference_variance_ratio",
        "",
        None,
        GROUP,
        _TEST,
        "epistemic variance Σ_c Var_s p_s(c), mean over test examples, over that of the reference posterior; "
        "1 is right, below 1 too certain",
        lambda job: _class_variance_ratio(job, "test"),
        against_reference=True,
    ),
    Metric(
        "reference_variance_ratio_ood/<set>",
        "",
        None,
        GROUP,
        _SET,
        "the same ratio on an out-of-distribution set",
        lambda job, name: _class_variance_ratio(job, f"ood/{name}"),
        over="ood",
        against_reference=True,
    ),
    Metric(
        "reference_tv/<region>",
        "",
        False,
        GROUP,
        _CURVE,
        "total variation ½ ∫ |p − p_ref| dy between the predictive density and the reference posterior's, both "
        f"mixtures of Gaussians, in [0, 1], {_WHERE}",
        _mixture_tv,
        kind="regression",
        over="region",
        against_reference=True,
    ),
    Metric(
        "reference_mean_distance/<region>",
        "target units",
        False,
        GROUP,
        _CURVE,
        f"distance |mean_s f_s − mean_ref| between the predictive means, {_WHERE}",
        _mean_distance,
        kind="regression",
        over="region",
        against_reference=True,
    ),
    Metric(
        "reference_variance_ratio/<region>",
        "",
        None,
        GROUP,
        _CURVE,
        f"epistemic variance Var_s f_s, {_WHERE}, over that of the reference posterior; 1 is right",
        _value_variance_ratio,
        kind="regression",
        over="region",
        against_reference=True,
    ),
)
