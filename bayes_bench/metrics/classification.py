"""Quality of the mean prediction of a classifier: accuracy, negative log likelihood, Brier score."""

from __future__ import annotations

import numpy as np

from bayes_bench.metrics.base import GROUP_SIZES, Floats, Ints, Metric, NotApplicableError
from bayes_bench.metrics.job import JobPredictions

GROUP = "classification"


def accuracy(probs: Floats, y: Ints) -> float:
    """Share of examples whose most probable class is the true one (of tied classes the lowest index counts).

    Args:
        probs: ``[N, C]``, probabilities or anything increasing in them.
        y: ``[N]``.
    """
    return float((probs.argmax(axis=-1) == y).mean())


def nll(log_probs: Floats, y: Ints) -> float:
    """Mean of −ln p(y), nats, in [0, ∞]. ``log_probs`` are normalised ``[N, C]``."""
    return float(-example_log_likelihood(log_probs, y).mean())


def example_log_likelihood(log_probs: Floats, y: Ints) -> Floats:
    """The log likelihood ln p(y) of every example, ``[N]``."""
    return np.take_along_axis(log_probs, y[:, None], axis=-1)[:, 0]


def brier(probs: Floats, y: Ints) -> float:
    """Mean of Σ_c (p_c − 1[y = c])², in [0, 2]."""
    return float(example_brier(probs, y).mean())


def example_brier(probs: Floats, y: Ints) -> Floats:
    """Σ_c (p_c − 1[y = c])² of every example, ``[N]``."""
    score: Floats = ((probs - np.eye(probs.shape[-1])[y]) ** 2).sum(axis=-1)
    return score


def accuracy_with(job: JobPredictions, k: int) -> float:
    """Accuracy of the mean over k networks, averaged over the draw's disjoint groups of k."""
    job.need_networks(k)
    return float((job.classes_of("test").group_labels[k] == job.labels_of("test")).mean())


def _finite_nll(job: JobPredictions, prefix: str) -> float:
    value = nll(job.classes_of(prefix).log_mean, job.labels_of(prefix))
    if not np.isfinite(value):
        raise NotApplicableError("infinite: a true class has probability 0 in every network")
    return value


CATALOGUE = (
    Metric(
        "accuracy",
        "fraction",
        True,
        GROUP,
        ("test/log_probs", "test/y"),
        "share of test examples that the mean prediction of all drawn networks gets right, in [0, 1]",
        lambda job: accuracy(job.classes_of("test").log_mean, job.labels_of("test")),
    ),
    *(
        Metric(
            f"accuracy@{k}",
            "fraction",
            True,
            GROUP,
            ("test/log_probs", "test/y"),
            "accuracy of one network, averaged over the networks drawn"
            if k == 1
            else f"accuracy of the mean prediction of {k} networks, averaged over the draw's disjoint groups "
            f"of {k}; n/a where there are fewer",
            lambda job, k=k: accuracy_with(job, k),
        )
        for k in GROUP_SIZES
    ),
    Metric(
        "nll",
        "nats",
        False,
        GROUP,
        ("test/log_probs", "test/y"),
        "negative log likelihood of the mean prediction: −ln p̄(y), mean over test examples, in [0, ∞)",
        lambda job: _finite_nll(job, "test"),
    ),
    Metric(
        "brier",
        "",
        False,
        GROUP,
        ("test/log_probs", "test/y"),
        "Brier score of the mean prediction: Σ_c (p̄_c − 1[y = c])², mean over test examples, in [0, 2]",
        lambda job: brier(job.classes_of("test").probs, job.labels_of("test")),
    ),
    Metric(
        "val_nll",
        "nats",
        False,
        "validation",
        ("validation/log_probs", "validation/y"),
        "negative log likelihood of the mean prediction on the validation split, which tuning may use",
        lambda job: _finite_nll(job, "validation"),
    ),
)
