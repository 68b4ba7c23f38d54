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

from bayes_bench.errors import DataError, DivergenceError

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


@dataclass(frozen=True)
class ValueSet:
    """Predictions of S networks for the N targets of a regression, in the targets' own units.

    ``mean`` and ``noise_std`` are ``[S, N, D]``; ``y`` is ``[N, D]``.
    """

    mean: Floats
    noise_std: Floats
    y: Floats


class JobPredictions:
    """The stored predictions and the record of one job; what is derived from them is computed once.

    ``reference`` holds the arrays of the task's reference posterior, or says why there are none.
    """

    def __init__(
        self,
        predictions: Mapping[str, NDArray[Any]],
        record: Mapping[str, Any],
        reference: Mapping[str, NDArray[Any]] | str = "the reference was not read",
    ):
        self.predictions = predictions
        self.record = record
        self.reference = reference
        self._summaries: dict[str, ClassSummary] = {}
        self._variation: dict[str, Floats] = {}
        self._temperature: float | None = None

    @property
    def kind(self) -> str:
        return str(self.record["kind"])

    @property
    def networks(self) -> int:
        """S, the networks that were drawn."""
        for name in ("test/log_probs", "test/mean"):
            if name in self.predictions:
                return len(self.predictions[name])
        return int(self.record["networks"])

    def diagnostics(self) -> dict[str, float]:
        """What the method reported about its own fit."""
        return dict((self.record.get("fit") or {}).get("diagnostics") or {})

    def need(self, name: str) -> NDArray[Any]:
        """One stored array; its absence is a reason for n/a."""
        if name not in self.predictions:
            raise NotApplicableError(f"no {name.split('/')[0].replace('_', ' ')} data stored")
        return self.predictions[name]

    @property
    def has_reference(self) -> bool:
        """Whether the task names a reference, be it usable or not."""
        return (self.record.get("task_spec") or {}).get("reference") is not None

    def need_reference(self, name: str) -> Floats:
        """One array of the reference; its absence is a reason for n/a."""
        if isinstance(self.reference, str):
            raise NotApplicableError(self.reference)
        if name not in self.reference:
            raise NotApplicableError(f"the reference has no {name}")
        group, _, what = name.rpartition("/")
        own = self.predictions.get(f"{group}/{'mean' if what in ('mean', 'noise_std') else 'log_probs'}")
        found = np.asarray(self.reference[name], dtype=np.float64)
        if own is not None and not _goes_with(found, what, own.shape):
            raise NotApplicableError(f"the reference's {name} has another shape, {list(found.shape)}")
        return found

    def need_networks(self, k: int) -> None:
        """At least ``k`` networks, else n/a with the reason."""
        support = self.record.get("support")
        if support is not None and k > support:
            raise NotApplicableError("one network" if support == 1 and k == 2 else f"support {support}")
        if self.networks < k:
            drawn = "one network" if self.networks == 1 else f"{self.networks} networks drawn"
            raise NotApplicableError(drawn)

    def classes_of(self, prefix: str) -> ClassSummary:
        """Summary of one set: ``test``, ``validation``, ``ood/NAME``, ``validation_ood/NAME``."""
        if prefix not in self._summaries:
            stored = self._stored(prefix, "log_probs")
            groups = GROUP_SIZES if prefix == "test" else ()
            self._summaries[prefix] = summarise(stored, groups)
        return self._summaries[prefix]

    def variation_of(self, prefix: str) -> Floats:
        """Mean total variation between two networks on every example of a set, ``[N]``."""
        from bayes_bench.metrics.diversity import total_variation

        if prefix not in self._variation:
            self.need_networks(2)
            self._variation[prefix] = total_variation(self._stored(prefix, "log_probs"))
        return self._variation[prefix]

    def labels_of(self, prefix: str) -> Ints:
        """True classes of a set, ``[N]``."""
        return np.asarray(self.need(f"{prefix}/y"), dtype=np.int64)

    def values_of(self, prefix: str) -> ValueSet:
        """Regression predictions of ``test`` or ``validation``."""
        mean = np.asarray(self._stored(prefix, "mean"), dtype=np.float64)
        noise = np.broadcast_to(np.asarray(self.need(f"{prefix}/noise_std"), dtype=np.float64), mean.shape)
        if not (np.isfinite(mean).all() and np.isfinite(noise).all()):
            raise DivergenceError("the stored predictions contain NaN or infinity")
        y = np.asarray(self.need(f"{prefix}/y"), dtype=np.float64).reshape(mean.shape[1:])
        return ValueSet(mean, noise, y)

    def curve_regions(self) -> dict[str, NDArray[np.bool_]]:
        """Which points of the curve's grid lie inside the data, in a gap, outside: name → ``[P]``."""
        return regions(np.asarray(self.need("curve/x"), dtype=np.float64).reshape(-1), self.curve_spec())

    def curve_spec(self) -> Mapping[str, Any]:
        spec: Mapping[str, Any] | None = (self.record.get("task_spec") or {}).get("curve")
        if spec is None:
            raise NotApplicableError("no curve in the task")
        return spec

    def sets(self, kind: Literal["ood", "validation_ood"]) -> list[str]:
        """Names of the task's out-of-distribution sets, with those that were declared but are missing."""
        declared = [spec["name"] for spec in (self.record.get("task_spec") or {}).get(kind) or ()]
        stored = {name.split("/")[1] for name in self.predictions if name.startswith(f"{kind}/")}
        return declared + sorted(stored - set(declared))

    def layers(self) -> list[str]:
        """Layers with stored Gram matrices in network order, then ``all``."""
        stored = [n.removeprefix("weights/gram/") for n in self.predictions if n.startswith("weights/gram/")]
        order = [name for name in self.record.get("weight_layers") or sorted(stored) if name in stored]
        return [name for name in order if name != "all"] + ["all"]

    def _stored(self, prefix: str, name: str) -> NDArray[Any]:
        if f"{prefix}/{name}" not in self.predictions and prefix.startswith(("ood/", "validation_ood/")):
            raise NotApplicableError("data missing")
        stored = self.need(f"{prefix}/{name}")
        if stored.ndim != 3:
            raise DataError(f"{prefix}/{name} has shape {stored.shape}, not [S, N, K]")
        if stored.shape[1] == 0:
            raise NotApplicableError("the set is empty")
        return stored


def _goes_with(reference: Floats, what: str, own: tuple[int, ...]) -> bool:
    """Can an array of a reference be compared with predictions of shape ``own`` = [S, N, K]?"""
    if what == "noise_std":  # size 1 along dimensions that do not change it
        return len(own) == reference.ndim == 3 and all(
            size in (1, wanted) for size, wanted in zip(reference.shape[1:], own[1:], strict=True)
        )
    return reference.shape == own[1:2] if what == "epistemic_variance" else reference.shape[-2:] == own[1:]


def regions(x: Floats, curve: Mapping[str, Any]) -> dict[str, NDArray[np.bool_]]:
    """Masks over positions ``x [P]``: closed intervals, ``inside`` before ``gap``, the rest ``outside``."""
    masks: dict[str, NDArray[np.bool_]] = {}
    taken = np.zeros(x.shape, dtype=np.bool_)
    # Float32 grids miss interval ends by rounding.
    slack = 1e-6 * (float(curve["high"]) - float(curve["low"]))
    for name in ("inside", "gap"):
        mask = np.zeros(x.shape, dtype=np.bool_)
        for low, high in curve.get(name) or ():
            mask |= (x >= low - slack) & (x <= high + slack)
        masks[name] = mask & ~taken
        taken |= mask
    masks["outside"] = ~taken
    return masks
