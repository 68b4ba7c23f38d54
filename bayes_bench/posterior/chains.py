"""Convergence of Markov chains: split R-hat and effective sample size.

Vehtari, Gelman, Simpson, Carpenter & Bürkner, *Rank-normalization, folding, and localization: an improved R-hat for
assessing convergence of MCMC*, Bayesian Analysis 16 (2021), arXiv:1903.08008: sections 2 and 3, without the ranks.
Every chain is cut into two halves first, so that a drift within a chain shows as a difference between chains. Letters:
M half chains of L draws. NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from bayes_bench.errors import UsageError

Array = npt.NDArray[np.float64]

SHORTEST = 4
"""Draws that a chain must have: two for each half."""

BLOCK = 2**22
"""Draws that are looked at together, so that memory does not grow with the number of quantities."""


def split_rhat(draws: npt.ArrayLike) -> Array:
    """Potential scale reduction √(V/W): 1 where the half chains agree, larger where they do not (1.01 is strict).

    W is the mean variance within the half chains, V = (L − 1)/L · W + (variance between their means).

    Args:
        draws: ``[chains, length]`` or ``[chains, length, ...]``; of an odd length the middle draw is left out.

    Returns:
        ``[...]``, the trailing dimensions. Draws that are all equal give 1; half chains that are each constant, at
        different values, give infinity.

    Raises:
        UsageError: fewer than two dimensions, chains shorter than 4, or draws that are not finite.
    """

    def rhat(halves: Array) -> Array:
        within, total = _variances(halves)
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Array = np.where(total > 0, np.sqrt(total / within), 1.0)
        return found

    return _per_quantity(draws, rhat)


def effective_sample_size(draws: npt.ArrayLike) -> Array:
    """Number of independent draws that give the mean as precisely: ML/τ, τ = −1 + 2 Σ_k (ρ_2k + ρ_2k+1).

    ρ_t is the autocorrelation at lag t, estimated from all half chains with the variance between them; the sum of
    pairs ends before the first that is not positive and is made monotone (Geyer 1992). Chains that disagree have
    few effective draws however little they are correlated each by itself. Draws that alternate can be worth more
    than independent ones; τ is kept above 1/log₁₀(ML), as in Stan.

    Args:
        draws: as for ``split_rhat``.

    Returns:
        ``[...]``, the trailing dimensions. Draws that are all equal count in full: their mean has no error.

    Raises:
        UsageError: as ``split_rhat``.
    """

    def size(halves: Array) -> Array:
        chains, length = halves.shape[:2]
        within, total = _variances(halves)
        centred = halves - halves.mean(1, keepdims=True)
        spectrum = np.fft.rfft(centred, 2 * length, axis=1)
        covariance = np.fft.irfft((np.abs(spectrum) ** 2).mean(0), 2 * length, axis=0)[:length] / length
        with np.errstate(divide="ignore", invalid="ignore"):
            correlation = 1 - (within - covariance) / total
        correlation[0] = 1
        pairs = correlation[: length - length % 2].reshape(length // 2, 2, -1).sum(1)
        positive = np.logical_and.accumulate(pairs > 0, axis=0)
        monotone = np.minimum.accumulate(np.where(positive, pairs, 0.0), axis=0)
        number = chains * length
        time = np.maximum(2 * monotone.sum(0) - 1, 1 / max(1.0, math.log10(number)))
        found: Array = np.where(total > 0, number / time, number)
        return found

    return _per_quantity(draws, size)


def _per_quantity(draws: npt.ArrayLike, statistic: Callable[[Array], Array]) -> Array:
    """Apply ``statistic``, half chains ``[M, L, quantities]`` → ``[quantities]``, to blocks of trailing dimensions."""
    values: npt.NDArray[Any] = np.asarray(draws)
    if values.ndim < 2 or values.shape[0] < 1 or values.shape[1] < SHORTEST:
        raise UsageError(f"draws must be [chains, length, ...] with a length of at least 4, got {list(values.shape)}")
    if not np.isfinite(values).all():
        raise UsageError("the draws contain NaN or infinity; diagnose finite quantities")
    flat = values.reshape(*values.shape[:2], -1)
    columns = max(1, BLOCK // (values.shape[0] * values.shape[1]))
    parts = [statistic(_halves(flat[..., i : i + columns])) for i in range(0, flat.shape[2], columns)]
    found: Array = np.concatenate(parts) if parts else np.zeros(0)
    return found.reshape(values.shape[2:])


def _halves(draws: npt.NDArray[Any]) -> Array:
    """``[chains, length, quantities]`` → ``[2·chains, length // 2, quantities]``, shifted towards 0."""
    length = draws.shape[1] // 2
    # Differences from one draw: equal draws become exact zeros, and large offsets lose no digits.
    shifted = draws.astype(np.float64) - draws[:1, :1]
    return np.concatenate([shifted[:, :length], shifted[:, -length:]])


def _variances(halves: Array) -> tuple[Array, Array]:
    """W, the mean variance within half chains, and V, the estimate of the variance of all; both ``[quantities]``."""
    length = halves.shape[1]
    first = halves[:, :1]
    rest = halves - first  # exact zeros where a half chain stands still
    within = rest.var(1, ddof=1).mean(0)
    between = (first[:, 0] + rest.mean(1)).var(0, ddof=1)
    return within, (length - 1) / length * within + between
