"""How different the drawn networks are: as functions (what counts) and as weights (which can mislead)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from bayes_bench.metrics.base import Floats, Metric, NotApplicableError
from bayes_bench.metrics.job import JobPredictions
from bayes_bench.metrics.pairs import disagreement, gaussian_total_variation, norm_spread, pair_cosine, pair_distance
from bayes_bench.settings import COLLAPSE_THRESHOLD

GROUP = "diversity"


def _gram(job: JobPredictions, layer: str) -> Floats:
    name = f"weights/gram/{layer}"
    if name not in job.predictions:
        raise NotApplicableError("no weight samples")
    job.need_networks(2)
    return np.asarray(job.predictions[name], dtype=np.float64)


def _disagreement(job: JobPredictions, prefix: str) -> float:
    job.need_networks(2)
    summary = job.classes_of(prefix)
    return float(disagreement(summary.labels, summary.log_mean.shape[-1]).mean())


def _normalised(job: JobPredictions) -> float:
    value = _disagreement(job, "test")
    wrong = float((job.classes_of("test").labels != job.labels_of("test")).mean())
    if wrong == 0:
        raise NotApplicableError("every network is right on every example")
    return value / wrong


def _information_of(job: JobPredictions, k: int) -> float:
    job.need_networks(k)
    return float(job.classes_of("test").group_information[k].mean())


def _outside_variation(job: JobPredictions) -> float:
    outside = job.curve_regions()["outside"]
    if not outside.any():
        raise NotApplicableError("no points outside the data")
    job.need_networks(2)
    mean = np.asarray(job.need("curve/mean"), dtype=np.float64)
    noise = np.broadcast_to(np.asarray(job.need("curve/noise_std"), dtype=np.float64), mean.shape)
    if not (noise > 0).all():
        raise NotApplicableError("a noise scale is 0")
    return float(gaussian_total_variation(mean[:, outside], noise[:, outside]).mean())


def collapse(job: JobPredictions, threshold: float) -> dict[str, Any] | None:
    """By how much two networks differ away from the data, and below what figure that is a collapse.

    Uses the reported out-of-distribution sets, where there are none the validation ones; for a regression
    the part of its curve outside the data.

    Returns:
        ``threshold``, ``networks`` and ``total_variation`` by set; None where there is nothing to say: for a method
        that draws one network, or without such data.
    """
    if job.networks < 2:
        return None
    found: dict[str, float] = {}
    if job.kind == "regression":
        with suppress(NotApplicableError):
            found["the curve outside the data"] = _outside_variation(job)
    for kind in ("ood", "validation_ood") if job.kind == "classification" else ():
        for name in job.sets(kind):
            with suppress(NotApplicableError):
                found[name] = float(job.variation_of(f"{kind}/{name}").mean())
        if found:
            break
    return {"threshold": threshold, "networks": job.networks, "total_variation": found} if found else None


def alarms(facts: Mapping[str, Any] | None) -> list[str]:
    """Sentences about a collapsed draw, several networks that give (almost) one prediction away from the data.

    Args:
        facts: from ``collapse``.
    """
    return [
        f"collapse: {facts['networks']} networks were drawn, but on {where} two of them differ by a mean total "
        f"variation of {value:.2g} (threshold {facts['threshold']:g})"
        for where, value in (facts["total_variation"].items() if facts else ())
        if facts and value < facts["threshold"]
    ]


_TEST = ("test/log_probs",)
_GRAM = ("weights/gram/<layer>",)
_WARNING = "; misleading alone, never a target"

CATALOGUE = (
    Metric(
        "disagreement",
        "fraction",
        None,
        GROUP,
        _TEST,
        "share of pairs of networks with different labels, 1 − Σ_c C(n_c,2) / C(S,2), mean over test data",
        lambda job: _disagreement(job, "test"),
    ),
    Metric(
        "disagreement_normalised",
        "",
        None,
        GROUP,
        (*_TEST, "test/y"),
        "disagreement / (1 − mean accuracy of one network); n/a where no network errs",
        _normalised,
    ),
    Metric(
        "mutual_information",
        "nats",
        None,
        GROUP,
        _TEST,
        "H(p̄) − mean_s H(p_s), mean over test examples, in [0, ln S]: grows with the number S of networks",
        lambda job: float(job.classes_of("test").mutual_information.mean()),
    ),
    *(
        Metric(
            f"mutual_information@{k}",
            "nats",
            None,
            GROUP,
            _TEST,
            f"mutual information within {k} networks, averaged over the draw's disjoint groups of {k}: "
            "comparable between methods",
            lambda job, k=k: _information_of(job, k),
        )
        for k in (5, 100)
    ),
    Metric(
        "disagreement/<set>",
        "fraction",
        None,
        GROUP,
        ("ood/<set>/log_probs",),
        "share of pairs of networks with different labels on an out-of-distribution set",
        lambda job, name: _disagreement(job, f"ood/{name}"),
        over="ood",
    ),
    Metric(
        "mutual_information/<set>",
        "nats",
        None,
        GROUP,
        ("ood/<set>/log_probs",),
        "mean mutual information on an out-of-distribution set, in [0, ln S]",
        lambda job, name: float(job.classes_of(f"ood/{name}").mutual_information.mean()),
        over="ood",
    ),
    Metric(
        "total_variation/<set>",
        "",
        None,
        GROUP,
        ("ood/<set>/log_probs",),
        f"mean over pairs of networks of ½ Σ_c |p_i − p_j| on an out-of-distribution set; below "
        f"the task's threshold (default {COLLAPSE_THRESHOLD:g}) is a collapse",
        lambda job, name: float(job.variation_of(f"ood/{name}").mean()),
        over="ood",
    ),
    Metric(
        "val_disagreement/<set>",
        "fraction",
        None,
        GROUP,
        ("validation_ood/<set>/log_probs",),
        "share of pairs of networks with different labels on an OOD set for tuning",
        lambda job, name: _disagreement(job, f"validation_ood/{name}"),
        over="validation_ood",
    ),
    Metric(
        "val_total_variation/<set>",
        "",
        None,
        GROUP,
        ("validation_ood/<set>/log_probs",),
        "mean over pairs of networks of ½ Σ_c |p_i − p_j| on an OOD set for tuning",
        lambda job, name: float(job.variation_of(f"validation_ood/{name}").mean()),
        over="validation_ood",
    ),
    Metric(
        "total_variation/outside",
        "",
        None,
        GROUP,
        ("curve/mean", "curve/noise_std"),
        f"mean over pairs of networks of the total variation between their Gaussians on the curve outside "
        f"the data; below the task's threshold (default {COLLAPSE_THRESHOLD:g}) is a collapse",
        _outside_variation,
        kind="regression",
    ),
    Metric(
        "weight_diversity/<layer>",
        "",
        None,
        GROUP,
        _GRAM,
        "std / mean (ddof 0) of the L2 norms of the weight samples of a layer (without biases), or of all "
        f"weights and biases (the paper's diversity){_WARNING}",
        lambda job, layer: norm_spread(_gram(job, layer)),
        kind="any",
        over="layer",
    ),
    Metric(
        "weight_distance/<layer>",
        "",
        None,
        GROUP,
        _GRAM,
        f"mean over pairs of ‖w_i − w_j‖ / √(‖w_i‖ ‖w_j‖); √2 for orthogonal equals{_WARNING}",
        lambda job, layer: pair_distance(_gram(job, layer)),
        kind="any",
        over="layer",
    ),
    Metric(
        "weight_cosine/<layer>",
        "",
        None,
        GROUP,
        _GRAM,
        f"mean over pairs of the cosine between weight samples, in [−1, 1]{_WARNING}",
        lambda job, layer: pair_cosine(_gram(job, layer)),
        kind="any",
        over="layer",
    ),
)
