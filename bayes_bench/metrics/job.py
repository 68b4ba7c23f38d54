"""The stored predictions of one job, as metrics read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayes_bench.errors import DataError, DivergenceError
from bayes_bench.metrics.base import GROUP_SIZES, ClassSummary, Floats, Ints, NotApplicableError, summarise
from bayes_bench.results.sets import KINDS, kind_of


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
        from bayes_bench.metrics.pairs import total_variation

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

    def sets(self, kind: str) -> list[str]:
        """Names of the task's sets of a kind, e.g. ``ood``, with those that were declared but are missing."""
        declared = [spec["name"] for spec in (self.record.get("task_spec") or {}).get(kind) or ()]
        stored = {name.split("/")[1] for name in self.predictions if name.startswith(f"{kind}/")}
        return declared + sorted(stored - set(declared))

    def layers(self) -> list[str]:
        """Layers with stored Gram matrices in network order, then ``all``."""
        stored = [n.removeprefix("weights/gram/") for n in self.predictions if n.startswith("weights/gram/")]
        order = [name for name in self.record.get("weight_layers") or sorted(stored) if name in stored]
        return [name for name in order if name != "all"] + ["all"]

    def _stored(self, prefix: str, name: str) -> NDArray[Any]:
        if f"{prefix}/{name}" not in self.predictions and KINDS[kind_of(prefix)].several:
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
