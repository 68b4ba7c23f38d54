"""How much two networks of a draw differ, in what they say and in their weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from bayes_bench.metrics.base import Floats, Ints, NotApplicableError, example_chunks, normalise, summarise


def disagreement(labels: Ints, classes: int) -> Floats:
    """Share of the pairs of networks that give an example different labels: 1 − Σ_c C(n_c, 2) / C(S, 2).

    A mean over pairs, so its expectation does not depend on S.

    Args:
        labels: ``[S, N]``, S ≥ 2.
        classes: C.

    Returns:
        ``[N]``, in [0, 1].
    """
    networks, examples = labels.shape
    if networks < 2:
        raise NotApplicableError("one network")
    flat = labels + classes * np.arange(examples)
    counts = np.bincount(flat.reshape(-1), minlength=classes * examples).reshape(examples, classes)
    agreeing = (counts * (counts - 1)).sum(axis=-1)
    return np.asarray(1 - agreeing / (networks * (networks - 1)), dtype=np.float64)


def mutual_information(log_probs: NDArray[Any]) -> Floats:
    """H(mean_s p_s) − mean_s H(p_s) of every example from log probabilities ``[S, N, C]``: ``[N]``."""
    return summarise(log_probs, ()).mutual_information


def total_variation(log_probs: NDArray[Any]) -> Floats:
    """Mean over pairs of networks of ½ Σ_c |p_i − p_j|: log probabilities ``[S, N, C]`` → ``[N]``.

    With sorted values Σ_{i<j} |p_i − p_j| = Σ_k (2k − S − 1) p_(k), so all pairs cost one sort.
    """
    networks, examples, classes = log_probs.shape
    if networks < 2:
        raise NotApplicableError("one network")
    rank_weights = (2.0 * np.arange(1, networks + 1) - networks - 1) / (networks * (networks - 1))
    result = np.empty(examples)
    for part in example_chunks(networks, examples, classes):
        probs = np.ascontiguousarray(np.exp(normalise(log_probs[:, part])).transpose(1, 2, 0))
        probs.sort(axis=-1)
        result[part] = (probs @ rank_weights).sum(axis=-1)
    return np.clip(result, 0.0, 1.0)


def gaussian_total_variation(mean: Floats, noise_std: Floats) -> Floats:
    """Mean over pairs of networks of the total variation between their Gaussians, averaged over D: ``[P]``.

    Exact: 2Φ(|μ_i − μ_j| / 2σ) − 1 where both have one noise σ, else by the two points where the densities cross.

    Args:
        mean: ``[S, P, D]``, S ≥ 2.
        noise_std: ``[S, P, D]``, positive.
    """
    networks = len(mean)
    if networks < 2:
        raise NotApplicableError("one network")
    total = np.zeros(mean.shape[1])
    for i in range(networks - 1):
        apart = _two_gaussians(mean[i] - mean[i + 1 :], noise_std[i], noise_std[i + 1 :])
        total += apart.mean(axis=-1).sum(axis=0)
    return np.asarray(total / (networks * (networks - 1) / 2), dtype=np.float64)


SAME_NOISE = 1e-6
"""Relative difference of two noises that is none: the formula for equal ones is then off by less than this."""


def _two_gaussians(shift: Floats, first: Floats, second: Floats) -> Floats:
    """Total variation between N(0, first²) and N(shift, second²), elementwise.

    In units of the narrower, N(0, 1) against N(δ, r²) with r > 1, the densities cross where
    (r² − 1) u² + 2δu − δ² − 2r² ln r = 0; between these points the narrower one is the higher.
    """
    narrow, wide = np.minimum(first, second), np.maximum(first, second)
    ratio, delta = wide / narrow, np.abs(shift) / narrow
    pooled = np.sqrt((first**2 + second**2) / 2)
    equal: Floats = 2 * ndtr(np.abs(shift) / (2 * pooled)) - 1
    different = ratio > 1 + SAME_NOISE
    r, d = np.where(different, ratio, 2.0), np.where(different, delta, 0.0)
    with np.errstate(over="ignore", invalid="ignore"):  # of Gaussians so far apart, or so unequal, that it is 1
        root = r * np.sqrt(d**2 + 2 * (r**2 - 1) * np.log(r))
        low, high = -(d + root) / (r**2 - 1), (d**2 + 2 * r**2 * np.log(r)) / (d + root)  # without cancellation
        found = (ndtr(high) - ndtr(low)) - (ndtr((high - d) / r) - ndtr((low - d) / r))
    return np.where(different, np.clip(np.nan_to_num(found, nan=1.0), 0.0, 1.0), equal)


def norm_spread(gram: Floats) -> float:
    """Spread (std / mean, ddof 0) of weight vectors' L2 norms, from their Gram matrix ``[S, S]``; ≥ 0."""
    norms = _norms(gram)
    return float(norms.std() / norms.mean())


def pair_distance(gram: Floats) -> float:
    """Mean over pairs of ‖w_i − w_j‖ / √(‖w_i‖ ‖w_j‖), from the Gram matrix; ≥ 0, √2 for orthogonal."""
    norms = _norms(gram)
    first, second = np.triu_indices(len(gram), k=1)
    squared = norms[first] ** 2 + norms[second] ** 2 - 2 * gram[first, second]
    return float((np.sqrt(np.maximum(squared, 0)) / np.sqrt(norms[first] * norms[second])).mean())


def pair_cosine(gram: Floats) -> float:
    """Mean over pairs of the cosine between weight vectors, from the Gram matrix ``[S, S]``; in [−1, 1]."""
    norms = _norms(gram)
    first, second = np.triu_indices(len(gram), k=1)
    return float(np.clip(gram[first, second] / (norms[first] * norms[second]), -1, 1).mean())


def _norms(gram: Floats) -> Floats:
    if len(gram) < 2:
        raise NotApplicableError("one network")
    norms = np.sqrt(np.maximum(np.diag(gram), 0))
    if not (norms > 0).all():
        raise NotApplicableError("a weight vector is zero")
    return np.asarray(norms, dtype=np.float64)
