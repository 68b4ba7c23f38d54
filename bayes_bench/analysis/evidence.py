"""What intervals and figures need of a job's stored predictions: a value for every example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayes_bench.analysis.records import metric_value
from bayes_bench.metrics import calibration, classification, regression
from bayes_bench.metrics.base import GROUP_SIZES, Floats, Ints, summarise
from bayes_bench.metrics.job import JobPredictions

CURVE_SIZES = (1, 2, 3, 5, 10, 20, 50, 100)
"""Numbers of networks on the curve of accuracy against number of networks."""


@dataclass(frozen=True)
class Images:
    """The images of one set that a job found least (the first half) and most uncertain, by rising entropy.

    Attributes:
        pixels: uint8 ``[n, 1 or 3, h, w]``.
        index: where they are in the set, ``[n]``.
        predicted: class of the highest p̄, ``[n]``.
        entropy: H(p̄) in nats, ``[n]``.
        truth: true class, ``[n]``; None for data from outside.
    """

    pixels: NDArray[np.uint8]
    index: Ints
    predicted: Ints
    entropy: Floats
    truth: Ints | None


@dataclass(frozen=True)
class Evidence:
    """What one job says about every single example, reduced over its networks.

    Attributes:
        record: the job's record.
        examples: named arrays. Classification, ``[N]``: ``correct`` (all networks), ``correct@k`` (mean over
            groups of k, for the k of ``CURVE_SIZES`` and the metrics), ``nll``, ``brier``, ``confidence``,
            ``entropy``, ``information``, ``doubt`` (−max p̄), ``y``, ``nll_scaled``, ``confidence_scaled``;
            the scores also as ``entropy/SET`` etc. ``[M]``. Regression: ``squared_error``, ``nll``, ``crps``.
        curve: for 1-D regressions ``x``, ``mean``, ``epistemic_std``, ``noise_std`` ``[P]``, and the training
            data ``train_x``, ``train_y`` where stored.
        images: of ``test`` and every ``ood/SET`` of images, where stored.
    """

    record: Mapping[str, Any]
    examples: Mapping[str, Floats]
    curve: Mapping[str, Floats] = field(default_factory=dict)
    images: Mapping[str, Images] = field(default_factory=dict)


def evidence(predictions: Mapping[str, NDArray[Any]], record: Mapping[str, Any]) -> Evidence:
    """Reduce stored predictions; what a job did not store is left out."""
    job = JobPredictions(predictions, record)
    if job.kind == "classification":
        return Evidence(record, _class_examples(job), images=_images(job))
    return Evidence(record, _value_examples(job), _curve(predictions))


def _class_examples(job: JobPredictions) -> dict[str, Floats]:
    found: dict[str, Floats] = {}
    if "test/log_probs" in job.predictions and job.predictions["test/log_probs"].shape[1]:
        sizes = sorted({*CURVE_SIZES, *GROUP_SIZES})
        summary, y = summarise(job.predictions["test/log_probs"], sizes), job.labels_of("test")
        found["y"] = y.astype(np.float64)
        found["correct"] = (summary.log_mean.argmax(axis=-1) == y).astype(np.float64)
        for k, labels in summary.group_labels.items():
            found[f"correct@{k}"] = (labels == y).mean(axis=0)
        found["nll"] = -classification.example_log_likelihood(summary.log_mean, y)
        found["brier"] = classification.example_brier(summary.probs, y)
        found["confidence"] = summary.probs.max(axis=-1)
        found |= _scores(summary.entropy, summary.mutual_information, summary.log_mean, "")
        temperature = metric_value(job.record, "temperature")
        if temperature:
            scaled = calibration.scale(summary.log_mean, temperature)
            found["nll_scaled"] = -classification.example_log_likelihood(scaled, y)
            found["confidence_scaled"] = np.exp(scaled.max(axis=-1))
    for name in job.sets("ood"):
        stored = job.predictions.get(f"ood/{name}/log_probs")
        if stored is not None and stored.shape[1]:
            outside = summarise(stored, ())
            found |= _scores(outside.entropy, outside.mutual_information, outside.log_mean, f"/{name}")
    return found


def _scores(entropy: Floats, information: Floats, log_mean: Floats, suffix: str) -> dict[str, Floats]:
    doubt = -np.exp(log_mean.max(axis=-1))
    return {f"entropy{suffix}": entropy, f"information{suffix}": information, f"doubt{suffix}": doubt}


def _images(job: JobPredictions) -> dict[str, Images]:
    stored, found = job.predictions, {}
    for name in ("test", *(f"ood/{ood}" for ood in job.sets("ood"))):
        if f"{name}/images" in stored and f"{name}/log_probs" in stored:
            index = np.asarray(stored[f"{name}/image_index"])
            summary = summarise(stored[f"{name}/log_probs"][:, index], ())
            truth = job.labels_of(name)[index] if f"{name}/y" in stored else None
            found[name] = Images(
                stored[f"{name}/images"], index, summary.log_mean.argmax(axis=-1), summary.entropy, truth
            )
    return found


def _value_examples(job: JobPredictions) -> dict[str, Floats]:
    if "test/mean" not in job.predictions or not job.predictions["test/mean"].shape[1]:
        return {}
    values = job.values_of("test")
    error = ((values.mean.mean(axis=0) - values.y) ** 2).mean(axis=-1)
    found = {"squared_error": error}
    found["crps"] = regression.example_crps(values.mean, values.noise_std, values.y).mean(axis=-1)
    if (values.noise_std > 0).all():
        found["nll"] = regression.example_nll(values.mean, values.noise_std, values.y)
    return found


def _curve(predictions: Mapping[str, NDArray[Any]]) -> dict[str, Floats]:
    """The curve of the first target dimension."""
    if "curve/mean" not in predictions or "curve/x" not in predictions:
        return {}
    mean = np.asarray(predictions["curve/mean"], dtype=np.float64)[..., 0]
    found = {
        "x": np.asarray(predictions["curve/x"], dtype=np.float64).reshape(-1),
        "mean": mean.mean(axis=0),
        "epistemic_std": mean.std(axis=0),
    }
    if "curve/noise_std" in predictions:
        noise = np.asarray(predictions["curve/noise_std"], dtype=np.float64)[..., 0]
        found["noise_std"] = np.sqrt((np.broadcast_to(noise, mean.shape) ** 2).mean(axis=0))
    if {"train/x", "train/y"} <= predictions.keys():
        found["train_x"] = np.asarray(predictions["train/x"], dtype=np.float64).reshape(-1)
        found["train_y"] = np.asarray(predictions["train/y"], dtype=np.float64).reshape(len(found["train_x"]), -1)[:, 0]
    return found
