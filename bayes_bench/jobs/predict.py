"""A finished job back to life: the posterior of a run folder, its networks, and predictions in raw units.

Example::

    fitted = load("reports/runs/digits", "hypergan")
    fitted.predict(images).entropy
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from bayes_bench.data import Layout, Preparation, Reading
from bayes_bench.data.image_folder import Ground
from bayes_bench.errors import DataError, named
from bayes_bench.host.machine import MEMORY_LIMIT_MB
from bayes_bench.methods import registry
from bayes_bench.posterior.base import WeightPosterior, WeightSamples
from bayes_bench.posterior.checks import SEEDS
from bayes_bench.posterior.likelihood import Categorical, Gaussian, HeteroscedasticGaussian, Likelihood
from bayes_bench.posterior.predictive import ClassPrediction, ValuePrediction, summarise_classes, summarise_values
from bayes_bench.posterior.prior import GaussianPrior
from bayes_bench.results.folder import POSTERIOR, RECORD, check_file, finished_jobs, read_run
from bayes_bench.settings import explain
from bayes_bench.tasks.network import build_network
from bayes_bench.tasks.spec import GaussianSpec, HeteroscedasticSpec, LikelihoodSpec, NetworkSpec
from bayes_bench.tasks.task import Standardiser, farthest, first_row_not_finite

OUTPUT_BYTES = 64 * 2**20


@dataclass(frozen=True)
class FittedJob:
    """One job of a run folder, ready to predict with the very networks that its metrics speak of.

    Attributes:
        weights: the draw, name → ``[S, *shape]``.
        input_shape: of one input.
        classes: names of the classes, empty for regression.
        features: names of the columns of a table, else empty.
        preparation: what became of these columns, where they are not taken as they are.
        ranges: lowest and highest training value of every feature, raw ``[F]``, of a table or an array; None where the
            record does not say it.
    """

    record: Mapping[str, Any]
    posterior: WeightPosterior
    weights: WeightSamples
    standardiser: Standardiser
    input_shape: tuple[int, ...]
    classes: tuple[str, ...]
    features: tuple[str, ...]
    preparation: Preparation | None = None
    ranges: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def reading(self) -> Reading:
        """How the task's own data were read."""
        told = self.record["task_spec"].get("data") or {}
        layout = Layout(
            str(told.get("delimiter", "auto")),
            bool(told.get("header", True)),
            tuple(map(str, told.get("names") or ())),
            "," if told.get("decimal") == "," else ".",
        )
        ground: Ground = "black" if told.get("ground") == "black" else "white"
        return Reading(self.features, layout, self.preparation, bool(told.get("channels_last", False)), ground)

    def outside(self, x: np.ndarray) -> np.ndarray | None:
        """Share of the features of raw inputs x ``[N, F]`` outside their training range ``[N]``; None if unknown."""
        if self.ranges is None or x.ndim != 2:
            return None
        low, high = self.ranges
        return np.asarray(((x < low) | (x > high)).mean(1))

    def predict(self, x: np.ndarray) -> ClassPrediction | ValuePrediction:
        """The predictive distribution for raw inputs x ``[N, *input_shape]``; values are in raw units.

        Raises:
            DataError: another shape, or an input so far from the training ones that no prediction is a number.
        """
        if tuple(x.shape[1:]) != self.input_shape or len(x) == 0:
            raise DataError(f"inputs have shape {list(x.shape)}, the task's are [N, {str(list(self.input_shape))[1:]}")
        networks = len(next(iter(self.weights.values())))
        rows = max(1, OUTPUT_BYTES // (8 * networks * self.posterior.likelihood.output_width))
        inputs = self.standardiser.inputs(x, "the inputs", self.columns)
        pieces = [self._predict(inputs[start : start + rows]) for start in range(0, len(x), rows)]
        parts = {
            name: torch.cat([getattr(piece, name) for piece in pieces])
            for name in vars(pieces[0])
            if name != "networks"
        }
        found = type(pieces[0])(**parts, networks=networks)
        self._check_finite(parts, x)
        if isinstance(found, ClassPrediction):
            return found
        # Summarised in standard deviations: beside a large mean their squares would lose digits.
        scale, shift = torch.from_numpy(self.standardiser.y_std), torch.from_numpy(self.standardiser.y_mean)
        return replace(
            found,
            mean=found.mean * scale + shift,
            epistemic_variance=found.epistemic_variance * scale**2,
            aleatoric_variance=found.aleatoric_variance * scale**2,
        )

    def _check_finite(self, parts: Mapping[str, Tensor], x: np.ndarray) -> None:
        rows = [row for values in parts.values() if (row := first_row_not_finite(values)) is not None]
        if rows:
            row = min(rows)
            scaled = (x[row].astype(np.float64) - self.standardiser.x_mean) / self.standardiser.x_std
            raise DataError(f"no prediction is a number: {farthest(scaled, row, self.columns)}; remove the row")

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the values of an input, where they have names."""
        return self.preparation.names if self.preparation else self.features

    def _predict(self, inputs: Tensor) -> ClassPrediction | ValuePrediction:
        """Of standardised inputs, in standardised units."""
        outputs = self.posterior.outputs(inputs, self.weights)
        predicted = {
            name: value.cpu() for name, value in self.posterior.likelihood.predict(outputs, self.weights).items()
        }
        if "log_probs" in predicted:
            return summarise_classes(predicted["log_probs"])
        return summarise_values(predicted["mean"].double(), predicted["noise_std"].double())


def load(
    run_dir: Path | str,
    label: str,
    *,
    task: str | None = None,
    seed: int | None = None,
    allow_code: Sequence[Path] = (),
) -> FittedJob:
    """Load the posterior of one finished job and draw its networks.

    Args:
        run_dir: the run folder.
        label: the method's row in the tables.
        task: may be left out where the run has the method for one task only.
        seed: default: the lowest there is. Of several variants of a job the latest invocation's counts.
        allow_code: Python files that the network may come from.

    Raises:
        UsageError: no such job, or several tasks to choose from.
        DataError: its files are damaged or missing.
    """
    run_dir = Path(run_dir)
    folder, record = _find(run_dir, label, task, seed)
    path = folder / POSTERIOR
    facts = record["files"].get(POSTERIOR)
    if facts is None:
        raise DataError(f"{path} is missing; run the job again to make it anew")
    try:
        check_file(path, facts)
    except DataError as error:
        raise DataError(f"{error}; run the job again with --fresh") from error
    try:
        units = _standardiser(record)
        likelihood, prior = _likelihood(record, units), GaussianPrior(**record["prior"])
        spec: NetworkSpec = TypeAdapter(NetworkSpec).validate_python(record["network"]["spec"])
        seeds = record["seeds"]["network"], record["seeds"]["sample"]
        told = record["data"].get("preparation")
        preparation = Preparation.from_json(told) if told else None
        ranges = _ranges(record, units)
        memory_limit = max(1, int(record["machine"].get("memory_limit_mb", MEMORY_LIMIT_MB)))
        if likelihood.output_width != record["network"]["outputs"]:
            raise ValueError("its network has another number of outputs than its likelihood")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = str(explain(error, "network")) if isinstance(error, ValidationError) else named(error)
        raise DataError(f"{folder / RECORD} is damaged: {reason}") from error
    shape = tuple(record["network"]["input_shape"])
    network = build_network(spec, shape, likelihood.output_width, seeds[0], tuple(allow_code))
    posterior = registry.method_class(record["method"]).load(path, network, likelihood, prior)
    posterior.memory_limit = memory_limit * 2**20
    weights = posterior.sample(record["networks"], seed=seeds[1] % SEEDS)
    classes, features = record["data"]["classes"], record["data"].get("features") or ()
    return FittedJob(record, posterior, weights, units, shape, tuple(classes), tuple(features), preparation, ranges)


def _find(run_dir: Path, label: str, task: str | None, seed: int | None) -> tuple[Path, dict[str, Any]]:
    planned = {job["key"] for job in read_run(run_dir)["jobs"]}
    found = finished_jobs(run_dir, label, task, seed)
    lowest = min(record["seed"] for _, record in found)
    same_seed = [item for item in found if item[1]["seed"] == lowest]
    return max(same_seed, key=lambda item: (item[1]["key"] in planned, item[1].get("finished") or ""))


def _standardiser(record: Mapping[str, Any]) -> Standardiser:
    """As the task made it, from what the record says.

    Raises:
        ValueError, TypeError: the record has no such numbers.
    """
    units = Standardiser(**{k: np.asarray(v, dtype=np.float64) for k, v in record["data"]["standardiser"].items()})
    shape = tuple(record["network"]["input_shape"])
    if np.broadcast_shapes(units.x_mean.shape, units.x_std.shape, shape) != shape:
        raise ValueError("the units of the inputs do not go with their shape")
    if units.y_mean.ndim != 1 or units.y_std.shape != units.y_mean.shape:
        raise ValueError("the units of the targets do not go together")
    if not ((units.x_std > 0).all() and (units.y_std > 0).all()):
        raise ValueError("a standard deviation is not positive")
    return units


def _ranges(record: Mapping[str, Any], units: Standardiser) -> tuple[np.ndarray, np.ndarray] | None:
    """Lowest and highest training value of every feature, where inputs are features and the record says it.

    Raises:
        ValueError, LookupError, TypeError: it says something else.
    """
    told = record["data"].get("ranges")
    if told is None or len(record["network"]["input_shape"]) != 1:
        return None
    low, high = (np.asarray(told[name], dtype=np.float64) for name in ("low", "high"))
    if not low.shape == high.shape == units.x_mean.shape:
        raise ValueError("the ranges of the inputs do not go with their shape")
    return low, high


def _likelihood(record: Mapping[str, Any], units: Standardiser) -> Likelihood:
    """As the task made it, from what the record says."""
    if record["kind"] == "classification":
        return Categorical(len(record["data"]["classes"]))
    spec: LikelihoodSpec = TypeAdapter(LikelihoodSpec).validate_python(record["task_spec"]["likelihood"])
    dimensions = len(units.y_mean)
    if isinstance(spec, HeteroscedasticSpec):
        return HeteroscedasticGaussian(dimensions, spec.scale)
    if not isinstance(spec, GaussianSpec):
        raise ValueError("its likelihood is for classes")
    noise = spec.noise_std
    return Gaussian(noise if isinstance(noise, str) else noise / float(units.y_std[0]), dimensions)
