"""What a metric is, and the stored predictions of one job in the form that metrics read.

Letters: S networks drawn, N examples, C classes, D target dimensions, P points of a curve.
Everything is computed in float64. Entropies and log likelihoods are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bayes_bench.errors import DivergenceError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Kind = Literal["classification", "regression", "any"]
Over = Literal["", "ood", "validation_ood", "layer", "region", "ratio", "diagnostic"]

GROUP_SIZES = (1, 5, 10, 100)
"""Numbers of networks whose averages are compared: for k of them, the mean over the disjoint groups of k."""

CHUNK_ELEMENTS = 1 << 19
"""Size of the float64 temporaries (4 MiB): large enough to vectorise, small enough to stay near the cache."""


class NotApplicableError(Exception):
    """A metric has no value for this job; the text is the reason that tables show (``support 5``)."""


@dataclass(frozen=True)
class Metric:
    """One number about a job, with what a reader must know about it.

    Attributes:
        name: as in ``results.csv``; a part in angle brackets stands for what ``over`` enumerates.
        unit: empty where the number is dimensionless.
        higher_is_better: None where neither direction is better (diversity is no target).
        group: heading in lists and tables.
        needs: the stored predictions it reads.
        description: one sentence: definition, range, conventions.
        evaluate: ``(job)``, or ``(job, item)`` with ``over``; raises ``NotApplicableError`` with a reason.
        kind: the kind of task it is defined for.
        over: what it is evaluated for: nothing, every reported or validation OOD set, layer, region, ratio, or
            number that the method reports about its fit.
        against_reference: whether it exists only for tasks that name a reference posterior.
    """

    name: str
    unit: str
    higher_is_better: bool | None
    group: str
    needs: tuple[str, ...]
    description: str
    evaluate: Callable[..., float] = field(repr=False, compare=False)
    kind: Kind = "classification"
    over: Over = ""
    against_reference: bool = False

    def name_for(self, item: str) -> str:
        """The name with its placeholder filled in."""
        return self.name[: self.name.index("<")] + item if "<" in self.name else self.name


@dataclass(frozen=True)
class ClassSummary:
    """What the metrics need of the predictions of S networks on N examples.

    Attributes:
        log_mean: ln p̄ ``[N, C]`` of the mean over all S networks.
        entropy: H(p̄) ``[N]``, in [0, ln C].
        expected_entropy: mean of the networks' entropies ``[N]``.
        labels: the class each network finds most probable ``[S, N]`` (the lowest index where tied).
        group_labels: for every k the labels of the means over disjoint groups of k networks, ``[S//k, N]``.
        group_information: for every k the mutual information within a group of k, mean over groups, ``[N]``.
    """

    log_mean: Floats
    entropy: Floats
    expected_entropy: Floats
    labels: Ints
    group_labels: Mapping[int, Ints]
    group_information: Mapping[int, Floats]

    @property
    def probs(self) -> Floats:
        """p̄ ``[N, C]``."""
        return np.exp(self.log_mean)

    @property
    def networks(self) -> int:
        return len(self.labels)

    @property
    def mutual_information(self) -> Floats:
        """H(p̄) − mean_s H(p_s) ``[N]``, in [0, ln S]; rounding is clamped."""
        return np.clip(self.entropy - self.expected_entropy, 0.0, math.log(self.networks))


def normalise(log_probs: NDArray[Any]) -> Floats:
    """Log probabilities in float64 that sum to one over the last axis (they are stored in half precision).

    Raises:
        DivergenceError: NaN, +infinity, or an example without any possible class.
    """
    values = np.asarray(log_probs, dtype=np.float64)
    if values.size == 0:
        return values
    top = values.max(axis=-1, keepdims=True)
    if not np.isfinite(top).all():
        raise DivergenceError("the stored log probabilities contain NaN or infinity")
    shifted = values - top
    normalised: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised


def entropy(probs: Floats) -> Floats:
    """−Σ p ln p over the last axis, in nats; 0 ln 0 = 0."""
    total: Floats = -(probs * np.log(np.where(probs > 0, probs, 1.0))).sum(axis=-1)
    return total


def example_chunks(networks: int, examples: int, width: int) -> Iterable[slice]:
    """Slices over the examples such that ``[S, chunk, width]`` stays within ``CHUNK_ELEMENTS``."""
    step = max(1, CHUNK_ELEMENTS // max(1, networks * width))
    return (slice(start, start + step) for start in range(0, examples, step))


def summarise(log_probs: NDArray[Any], groups: Iterable[int] = GROUP_SIZES) -> ClassSummary:
    """Reduce log probabilities ``[S, N, C]`` (any float type) to a ``ClassSummary``, in chunks of examples.

    The log of the mean is a logsumexp over networks, so probabilities far below float64's range keep a
    finite log likelihood. ``groups`` larger than S are left out. The last S mod k networks of a draw
    belong to no group of k.
    """
    networks, examples, classes = log_probs.shape
    sizes = [k for k in groups if k <= networks]
    log_mean = np.empty((examples, classes))
    expected = np.empty(examples)
    labels = np.empty((networks, examples), dtype=np.int64)
    group_labels = {k: np.empty((networks // k, examples), dtype=np.int64) for k in sizes}
    group_information = {k: np.empty(examples) for k in sizes}
    for part in example_chunks(networks, examples, classes):
        logs = normalise(log_probs[:, part])
        labels[:, part] = logs.argmax(axis=-1)
        top = logs.max(axis=0)
        top = np.where(np.isfinite(top), top, 0.0)
        scaled = np.exp(logs - top)
        with np.errstate(divide="ignore"):
            log_mean[part] = top + np.log(scaled.mean(axis=0))
        scaled *= np.exp(top)
        # Where p underflows to 0 its logarithm may be −infinity; 0 · (−800) is the 0 that is meant.
        entropies = -np.einsum("snc,snc->sn", scaled, np.maximum(logs, -800.0))
        expected[part] = entropies.mean(axis=0)
        for k in sizes:
            if k == 1:
                group_labels[1][:, part] = labels[:, part]
                group_information[1][part] = 0.0
                continue
            used = networks // k * k
            means = scaled[:used].reshape(networks // k, k, *scaled.shape[1:]).mean(axis=1)
            within = entropies[:used].reshape(networks // k, k, -1).mean(axis=1)
            group_labels[k][:, part] = means.argmax(axis=-1)
            group_information[k][part] = np.clip(entropy(means) - within, 0.0, math.log(k)).mean(axis=0)
    total = entropy(np.exp(log_mean))
    return ClassSummary(log_mean, total, expected, labels, group_labels, group_information)
