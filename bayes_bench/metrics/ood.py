"""Out-of-distribution detection. The positive class is *out*; a higher score means "more likely out".

Per-image scores, never batch means. Scores: predictive entropy H(p̄) (headline), mutual information, −max p̄.
"""

from __future__ import annotations

import math

import numpy as np

from bayes_bench.errors import DivergenceError
from bayes_bench.metrics.base import Floats, Metric, NotApplicableError
from bayes_bench.metrics.job import JobPredictions

GROUP = "out-of-distribution"
TPR = 0.95


def auroc(inside: Floats, outside: Floats) -> float:
    """Probability that an outside example scores above an inside one, ties counting ½; in [0, 1].

    Args:
        inside: scores of in-distribution examples ``[N]``.
        outside: scores of out-of-distribution examples ``[M]``, the positive class.
    """
    inside, outside = _scores(inside, outside)
    ordered = np.sort(inside)
    wins = np.searchsorted(ordered, outside, "left").sum() + np.searchsorted(ordered, outside, "right").sum()
    return float(wins / (2 * len(inside) * len(outside)))


def average_precision(negative: Floats, positive: Floats) -> float:
    """Area under precision-recall as a step function, Σ_t (R_t − R_{t−1}) P_t over thresholds; in (0, 1].

    Args:
        negative: scores of the negative class; a higher score means "more likely positive".
        positive: scores of the positive class.
    """
    negative, positive = _scores(negative, positive)
    scores = np.concatenate([negative, positive])
    truth = np.concatenate([np.zeros(len(negative)), np.ones(len(positive))])
    order = np.argsort(-scores, kind="stable")
    scores, truth = scores[order], truth[order]
    last_of_tie = np.append(scores[1:] != scores[:-1], True)
    hits = np.cumsum(truth)[last_of_tie]
    precision = hits / (np.flatnonzero(last_of_tie) + 1)
    return float((np.diff(hits, prepend=0) * precision).sum() / len(positive))


def fpr_at_tpr(inside: Floats, outside: Floats, tpr: float = TPR) -> float:
    """Share of in-distribution examples flagged by the highest threshold that flags ``tpr`` of the outside.

    An example is flagged when its score is at or above the threshold. In [0, 1].
    """
    inside, outside = _scores(inside, outside)
    # Rounding before the ceiling: 0.95 · 20 is 19.000000000000004 for some counts.
    wanted = max(1, math.ceil(round(tpr * len(outside), 9)))
    threshold = np.sort(outside)[::-1][wanted - 1]
    return float((inside >= threshold).mean())


def _scores(first: Floats, second: Floats) -> tuple[Floats, Floats]:
    """Both in float64, in which nothing wraps around: integers of any width, truth values, half precision."""
    first, second = (np.asarray(values, dtype=np.float64).reshape(-1) for values in (first, second))
    if len(first) == 0 or len(second) == 0:
        raise NotApplicableError("the set is empty")
    if np.isnan(first).any() or np.isnan(second).any():
        raise DivergenceError("a score is NaN, which is neither above nor below any other")
    return first, second


def _entropies(job: JobPredictions, name: str, kind: str = "ood") -> tuple[Floats, Floats]:
    outside = job.classes_of(f"{kind}/{name}").entropy
    return job.classes_of("test" if kind == "ood" else "validation").entropy, outside


def _information_auroc(job: JobPredictions, name: str) -> float:
    job.need_networks(2)
    outside = job.classes_of(f"ood/{name}").mutual_information
    return auroc(job.classes_of("test").mutual_information, outside)


def _confidence_auroc(job: JobPredictions, name: str) -> float:
    outside = -job.classes_of(f"ood/{name}").log_mean.max(axis=-1)
    return auroc(-job.classes_of("test").log_mean.max(axis=-1), outside)


def _precision_in(job: JobPredictions, name: str) -> float:
    inside, outside = _entropies(job, name)
    return average_precision(-outside, -inside)


def _base_rate(job: JobPredictions, name: str) -> float:
    inside, outside = _entropies(job, name)
    return len(outside) / (len(inside) + len(outside))


def _intensity_floor(job: JobPredictions, name: str) -> float:
    inside = job.need("test/mean_intensity")
    if f"ood/{name}/mean_intensity" not in job.predictions:
        raise NotApplicableError("data missing")
    outside = job.need(f"ood/{name}/mean_intensity")
    area = auroc(inside.astype(np.float64), outside.astype(np.float64))
    return max(area, 1 - area)


_NEEDS = ("test/log_probs", "ood/<set>/log_probs")
_POSITIVE = "out is the positive class, ties count ½"

CATALOGUE = (
    Metric(
        "ood_auroc/<set>",
        "",
        True,
        GROUP,
        _NEEDS,
        f"area under the ROC of predictive entropy H(p̄), test against the set; {_POSITIVE}",
        lambda job, name: auroc(*_entropies(job, name)),
        over="ood",
    ),
    Metric(
        "ood_auroc_mi/<set>",
        "",
        True,
        GROUP,
        _NEEDS,
        f"area under the ROC of mutual information; {_POSITIVE}; n/a for one network",
        _information_auroc,
        over="ood",
    ),
    Metric(
        "ood_auroc_maxprob/<set>",
        "",
        True,
        GROUP,
        _NEEDS,
        f"area under the ROC of −max p̄; {_POSITIVE}",
        _confidence_auroc,
        over="ood",
    ),
    Metric(
        "aupr_out/<set>",
        "",
        True,
        GROUP,
        _NEEDS,
        "average precision of predictive entropy with out as the positive class; chance is aupr_base_rate",
        lambda job, name: average_precision(*_entropies(job, name)),
        over="ood",
    ),
    Metric(
        "aupr_in/<set>",
        "",
        True,
        GROUP,
        _NEEDS,
        "average precision of −entropy with in as the positive class; chance is 1 − aupr_base_rate",
        _precision_in,
        over="ood",
    ),
    Metric(
        "aupr_base_rate/<set>",
        "fraction",
        None,
        GROUP,
        _NEEDS,
        "share of out-of-distribution examples in the pool of test and set: what chance reaches in aupr_out",
        _base_rate,
        over="ood",
    ),
    Metric(
        "fpr95/<set>",
        "fraction",
        False,
        GROUP,
        _NEEDS,
        "share of test examples wrongly flagged as out by the entropy threshold that flags 95 % of the set",
        lambda job, name: fpr_at_tpr(*_entropies(job, name)),
        over="ood",
    ),
    Metric(
        "entropy_test",
        "nats",
        None,
        GROUP,
        ("test/log_probs",),
        "predictive entropy H(p̄), mean over test examples, in [0, ln C]",
        lambda job: float(job.classes_of("test").entropy.mean()),
    ),
    Metric(
        "entropy/<set>",
        "nats",
        None,
        GROUP,
        ("ood/<set>/log_probs",),
        "predictive entropy H(p̄), mean over an out-of-distribution set, in [0, ln C]",
        lambda job, name: float(job.classes_of(f"ood/{name}").entropy.mean()),
        over="ood",
    ),
    Metric(
        "mean_intensity_auroc/<set>",
        "",
        None,
        GROUP,
        ("test/mean_intensity", "ood/<set>/mean_intensity"),
        "area under the ROC of the input's mean value alone, in its better direction: a floor",
        _intensity_floor,
        over="ood",
    ),
    Metric(
        "val_ood_auroc/<set>",
        "",
        True,
        "validation",
        ("validation/log_probs", "validation_ood/<set>/log_probs"),
        f"area under the ROC of entropy, validation split against an OOD set for tuning; {_POSITIVE}",
        lambda job, name: auroc(*_entropies(job, name, "validation_ood")),
        over="validation_ood",
    ),
)
