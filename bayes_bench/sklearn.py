"""Any installed method as a scikit-learn classifier or regressor for tables of numbers.

Example::

    from bayes_bench.sklearn import BayesClassifier

    model = BayesClassifier("hypergan", random_state=0).fit(X, y)
    model.predict_proba(X_new)
    model.predict_entropy(X_new)  # nats
"""

from __future__ import annotations

import copy
import json
import math
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import Tags, check_array, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from bayes_bench.errors import DataError, UsageError, named
from bayes_bench.methods import registry
from bayes_bench.posterior.base import WeightPosterior, WeightSamples
from bayes_bench.posterior.checks import resolve_device
from bayes_bench.posterior.examples import Examples, FitData
from bayes_bench.posterior.likelihood import Categorical, Gaussian, HeteroscedasticGaussian, Likelihood
from bayes_bench.posterior.prior import GaussianPrior
from bayes_bench.posterior.stacked.network import StackedNetwork
from bayes_bench.posterior.stored import read_note
from bayes_bench.posterior.surroundings import is_small, limited_threads
from bayes_bench.tasks.network import build_network
from bayes_bench.tasks.spec import MLPSpec
from bayes_bench.tasks.task import Standardiser, farthest, first_row_not_finite, input_units, target_units

__all__ = ["BayesClassifier", "BayesEstimator", "BayesRegressor"]

Network = Callable[[int, int], nn.Module]
"""``(features, outputs) -> network``, which maps ``[B, features]`` to ``[B, outputs]``."""

FLOATS = (np.float64, np.float32)
"""Types that inputs and targets are kept in until they are centred and scaled in float64; others become the first."""
FEWEST_TO_VALIDATE = 20
"""With fewer examples all of them are trained on."""


@dataclass(eq=False, repr=False)
class BayesEstimator(BaseEstimator):  # type: ignore[misc]
    """What classifier and regressor share: the fit, the draw of networks, saving.

    Args:
        method: a name of ``bayes-bench list methods``.
        settings: of the method, as ``bayes-bench show METHOD`` lists them; defaults where left out.
        hidden: widths of the hidden ReLU layers of the network.
        network: a function ``(features, outputs) -> nn.Module`` in place of ``hidden``.
        budget: gradient evaluations: one network, one example, forward and backward is 1.
        samples: networks that predict together; fewer where the method has no more.
        prior_std, prior_scaling: the Gaussian prior over the weights, as ``GaussianPrior``'s; not every method uses it.
        validation_fraction: of the examples, kept back to choose the best moment of training; none below 20 examples.
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``.
        random_state: of all that is random, as scikit-learn's.

    Inputs and regression targets are standardised within.

    Attributes:
        posterior_: the fitted ``WeightPosterior``; its networks take standardised inputs.
        summary_: what the fit has spent and seen.
    """

    method: str = "hypergan"
    _: KW_ONLY
    settings: Mapping[str, Any] | None = None
    hidden: Sequence[int] = (50, 50)
    network: Network | None = None
    budget: int = 200_000
    samples: int = 100
    prior_std: float = 1.0
    prior_scaling: Literal["none", "fan_in"] = "none"
    validation_fraction: float = 0.1
    device: str = "cpu"
    random_state: int | np.random.RandomState | None = None

    # Fit --------------------------------------------------------------------------------------------------

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_fitted")

    def _forget(self) -> None:
        """Remove what an earlier fit has left, so that one that fails leaves nothing that predicts."""
        for name in [name for name in vars(self) if name.endswith("_") and not name.startswith("_")]:
            delattr(self, name)
        self.__dict__.pop("_fitted", None)

    def _plain_parameters(self) -> dict[str, Any]:
        """The parameters, checked, as JSON can hold them; without ``network`` and ``random_state``."""
        if not isinstance(self.method, str):
            raise UsageError(f"method must be the name of a method, such as 'ensemble', got {self.method!r}")
        hidden: Any = self.hidden
        if isinstance(hidden, str) or not np.iterable(hidden):
            raise UsageError(f"hidden must be a list of widths, such as (50, 50), got {hidden!r}")
        fraction = _number("validation_fraction", self.validation_fraction)
        if not 0 <= fraction <= 0.9:
            raise UsageError(f"validation_fraction must lie in [0, 0.9], got {fraction}")
        return {
            "method": self.method,
            "settings": dict(self.settings or {}),
            "hidden": [_whole("a width of hidden", width) for width in hidden],
            "budget": _whole("budget", self.budget),
            "samples": _whole("samples", self.samples),
            "prior_std": _number("prior_std", self.prior_std),
            "prior_scaling": self.prior_scaling,
            "validation_fraction": fraction,
        }

    def _fit_posterior(
        self, x: np.ndarray, y: np.ndarray, likelihood: Likelihood, units: Standardiser, targets: Mapping[str, Any]
    ) -> None:
        """Train on raw inputs x ``[N, F]`` and targets y, and draw the networks that predict.

        Args:
            targets: what ``_likelihood_of`` needs to know of them, as JSON.
        """
        parameters = self._plain_parameters()
        seeds = check_random_state(self.random_state).randint(2**31 - 1, size=4).tolist()
        split_seed, network_seed, fit_seed, sample_seed = seeds
        config = registry.resolve_config(self.method, parameters["settings"])
        prior = GaussianPrior(parameters["prior_std"], parameters["prior_scaling"])
        network = self._build_network(parameters["hidden"], likelihood, network_seed)
        posterior = registry.method_class(self.method)(network, likelihood, prior, config)
        _require_memory(posterior, parameters["samples"])
        inputs, expected = units.inputs(x), units.targets(y)
        labels = y if likelihood.kind == "classification" else None
        train, validation = _split(labels, len(x), parameters["validation_fraction"], split_seed)
        data = FitData(
            Examples(inputs[train], expected[train]),
            Examples(inputs[validation], expected[validation]) if len(validation) else None,
        )
        with limited_threads(1) if is_small(network) else nullcontext():
            summary = posterior.fit(data, budget=parameters["budget"], seed=fit_seed, device=self.device)
        note = {
            "estimator": type(self).__name__,
            "parameters": parameters | {"settings": json.loads(config.model_dump_json())},
            "network": self.network is not None,
            "features": self.n_features_in_,
            "feature_names": self.feature_names_in_.tolist() if hasattr(self, "feature_names_in_") else None,
            "standardiser": {name: value.tolist() for name, value in vars(units).items()},
            "seeds": [network_seed, sample_seed],
            "targets": targets,
        }
        self.summary_ = summary
        self._take(posterior, units, note)

    def _units(self, x: np.ndarray, y: np.ndarray | None = None) -> Standardiser:
        """Mean and standard deviation of every feature, and of every target of a regression; 1 where nothing varies.

        Raises:
            UsageError: one varies by less than its type carries beside its size.
        """
        try:
            inputs, targets = input_units(x, self._columns()), None if y is None else target_units(y)
        except DataError as error:
            raise UsageError(str(error)) from error
        if targets is None:
            return Standardiser(inputs.mean, inputs.std)
        return Standardiser(inputs.mean, inputs.std, targets.mean, targets.std)

    def _build_network(self, hidden: Sequence[int], likelihood: Likelihood, seed: int) -> nn.Module:
        if self.network is None:
            spec = MLPSpec(name="mlp", hidden=tuple(hidden))
            return build_network(spec, (self.n_features_in_,), likelihood.output_width, seed)
        if isinstance(self.network, nn.Module) or not callable(self.network):
            raise UsageError("network must be a function (features, outputs) -> nn.Module, not a network itself")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.network(self.n_features_in_, likelihood.output_width)

    def _take(self, posterior: WeightPosterior, units: Standardiser, note: Mapping[str, Any]) -> None:
        weights = posterior.sample(note["parameters"]["samples"], seed=note["seeds"][1])
        # Predictions are made in float64, so that an answer does not depend on what else was asked in the same call.
        double = copy.copy(posterior)
        double.network = copy.deepcopy(posterior.network).double()
        double.stacked = StackedNetwork(double.network)
        self.posterior_ = posterior
        self._fitted = _Fitted(double, {name: value.double() for name, value in weights.items()}, units, note)

    # Predict ----------------------------------------------------------------------------------------------

    def _predicted(self, X: Any) -> Any:
        check_is_fitted(self)
        x = validate_data(self, X, reset=False, dtype=np.float64)
        fitted = self._fitted
        with np.errstate(over="ignore"):  # looked for in what is predicted
            scaled = (x - fitted.units.x_mean) / fitted.units.x_std
        inputs = torch.from_numpy(scaled)
        with limited_threads(1) if is_small(fitted.posterior.network) else nullcontext():
            found = fitted.posterior.predict(inputs.to(fitted.posterior.device), fitted.weights)
        bad = [first_row_not_finite(value) for value in (inputs, *vars(found).values()) if isinstance(value, Tensor)]
        if rows := [row for row in bad if row is not None]:
            row = min(rows)
            raise UsageError(
                f"no prediction is a number: {farthest(scaled[row], row, self._columns())}; leave the row out"
            )
        return found

    def _columns(self) -> Sequence[str]:
        return [str(name) for name in getattr(self, "feature_names_in_", ())]

    def sample_networks(self, n: int, *, seed: int = 0) -> WeightSamples:
        """Draw networks: name → ``[n, *shape]``, fewer where the method has no more; they take standardised inputs.

        Raises:
            NotFittedError: before ``fit``.
            UsageError: n < 1.
        """
        check_is_fitted(self)
        return self.posterior_.sample(n, seed=seed)

    # Save and load ----------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, which ``load`` reads without running any code of it.

        What is written is what was fitted, whatever parameters were set since. A ``network`` function is not in the
        file, nor is ``summary_``.

        Raises:
            NotFittedError: before ``fit``.
            UsageError: labels of a type that JSON cannot hold.
        """
        check_is_fitted(self)
        try:
            json.dumps(self._fitted.note)
        except TypeError as error:
            raise UsageError(f"this estimator cannot be saved: {error}; use labels that are numbers or text") from error
        self.posterior_.save(path, note=self._fitted.note)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, network: Network | None = None, device: str = "cpu") -> Self:
        """Read what ``save`` wrote.

        Args:
            network: the function that the estimator was given, where it was given one.

        Raises:
            DataError: the file is damaged, of another estimator, or of another network.
            UsageError: there is no such device.
        """
        resolve_device(device)
        note = read_note(path)
        if not isinstance(note, dict) or note.get("estimator") != cls.__name__:
            found = note.get("estimator") if isinstance(note, dict) else None
            raise DataError(f"{path} holds {found or 'no estimator'}, not a {cls.__name__}")
        if note.get("network") and network is None:
            raise DataError(f"{path} was fitted with a network function; give it again: load(path, network=…)")
        try:
            estimator = cls(**note["parameters"], network=network, device=device)
            parameters = estimator._plain_parameters()
            estimator.n_features_in_ = _whole("features", note["features"])
            if note["feature_names"] is not None:
                estimator.feature_names_in_ = np.array([str(name) for name in note["feature_names"]], dtype=object)
            units = Standardiser(**{name: np.array(value, np.float64) for name, value in note["standardiser"].items()})
            if units.x_mean.shape != (estimator.n_features_in_,) or units.x_std.shape != units.x_mean.shape:
                raise ValueError("its standardiser is of other inputs")
            network_seed, _ = (_whole("a seed", seed, least=0) for seed in note["seeds"])
            likelihood = estimator._likelihood_of(note["targets"], units)
            built = estimator._build_network(parameters["hidden"], likelihood, network_seed)
            prior = GaussianPrior(parameters["prior_std"], parameters["prior_scaling"])
            method = registry.method_class(parameters["method"])
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"cannot read the estimator {path}: {named(error)}") from error
        posterior = method.load(path, built, likelihood, prior, device=device)
        _require_memory(posterior, parameters["samples"])
        estimator._take(posterior, units, note)
        return estimator

    def _likelihood_of(self, targets: Mapping[str, Any], units: Standardiser) -> Likelihood:
        """The likelihood, from what is known of the targets, which is taken over."""
        raise NotImplementedError


@dataclass(frozen=True)
class _Fitted:
    """What a fit leaves for predictions and ``save``, whatever parameters are set later.

    Attributes:
        posterior: whose network computes in float64.
        weights: the draw that predicts, in float64.
        note: what ``load`` needs, as JSON.
    """

    posterior: WeightPosterior
    weights: WeightSamples
    units: Standardiser
    note: Mapping[str, Any]


def _whole(name: str, value: Any, least: int = 1) -> int:
    """A number of any integer type, as Python's own."""
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if not least <= number < 2**63:
        raise UsageError(f"{name} must be a {'positive ' * (least == 1)}whole number, got {value!r}")
    return number


def _number(name: str, value: Any) -> float:
    """A number of any type, as Python's own."""
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise UsageError(f"{name} must be a number, got {value!r}")
    return float(value)


def _require_memory(posterior: WeightPosterior, samples: int) -> None:
    drawn = samples if posterior.support is None else min(samples, posterior.support)
    posterior.require_memory(drawn, "lower samples", copies=3)  # in float32, and in float64


def _split(labels: np.ndarray | None, n: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to validate on, classes in proportion where that gives every class to both."""
    rows, held_out = np.arange(n), round(fraction * n)
    if n < FEWEST_TO_VALIDATE or held_out == 0:
        return rows, rows[:0]
    if labels is not None:
        counts = np.bincount(labels)
        if counts.min() < 2 or min(held_out, n - held_out) < len(counts):
            labels = None
    train, validation = train_test_split(rows, test_size=held_out, random_state=seed, stratify=labels)
    return train, validation


class BayesClassifier(ClassifierMixin, BayesEstimator):  # type: ignore[misc]
    """A classifier that averages the predictions of networks drawn from a posterior over weights.

    Args:
        method, settings, …, random_state: as ``BayesEstimator``'s.

    Attributes:
        classes_: the labels, sorted.
    """

    classes_: np.ndarray

    def fit(self, X: Any, y: Any) -> Self:
        """Train on X ``[N, F]`` and labels y ``[N]``: text, whole numbers or booleans.

        Raises:
            ValueError: NaN or infinity, wrong shapes, a single class, wrong parameters.
        """
        self._forget()
        x, y = validate_data(self, X, y, dtype=FLOATS, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise UsageError(f"y has one class alone, {self.classes_[0]}; a classifier needs at least two")
        targets = {"classes": self.classes_.tolist(), "type": self.classes_.dtype.str}
        self._fit_posterior(x, labels, Categorical(len(self.classes_)), self._units(x), targets)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row, ``[N]``."""
        likeliest = self.predict_proba(X).argmax(1)
        labels: np.ndarray = self.classes_[likeliest]
        return labels

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities ``[N, C]``, the mean over the networks, in the order of ``classes_``."""
        return np.asarray(self._predicted(X).mean.cpu())

    def predict_entropy(self, X: Any) -> np.ndarray:
        """Entropy of ``predict_proba`` ``[N]``, in nats, in [0, ln C]: all of the uncertainty."""
        return np.asarray(self._predicted(X).entropy.cpu())

    def predict_mutual_information(self, X: Any) -> np.ndarray:
        """What of the entropy the networks disagree about ``[N]``, in nats, in [0, ln S]: more data would lower it."""
        return np.asarray(self._predicted(X).mutual_information.cpu())

    def _likelihood_of(self, targets: Mapping[str, Any], units: Standardiser) -> Likelihood:
        self.classes_ = np.array(targets["classes"], dtype=np.dtype(targets["type"]))
        if self.classes_.ndim != 1:
            raise ValueError("its classes are no list")
        return Categorical(len(self.classes_))


@dataclass(eq=False, repr=False, kw_only=True)
class BayesRegressor(RegressorMixin, BayesEstimator):  # type: ignore[misc]
    """A regressor that averages the predictions of networks drawn from a posterior over weights.

    Args:
        noise: standard deviation of the one target around a network's output, in its units and the same for all
            inputs; or ``"learned"``, one for all inputs, which starts at half of the targets' own and takes thousands
            of steps to fall far below; or ``"heteroscedastic"``, learned as a function of the input.
        method, settings, …, random_state: as ``BayesEstimator``'s.
    """

    noise: float | Literal["learned", "heteroscedastic"] = "learned"

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.single_output = tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any) -> Self:
        """Train on X ``[N, F]`` and targets y ``[N]`` or ``[N, D]``.

        Raises:
            ValueError: NaN or infinity, wrong shapes, wrong parameters.
        """
        self._forget()
        x, y = validate_data(self, X, y, dtype=FLOATS, ensure_min_samples=2, multi_output=True, y_numeric=True)
        targets = {"flat": y.ndim == 1}
        y = check_array(y.reshape(len(x), -1), dtype=FLOATS)
        units = self._units(x, y)
        self._fit_posterior(x, y, self._likelihood_of(targets, units), units, targets)
        return self

    def _plain_parameters(self) -> dict[str, Any]:
        noise = self.noise if isinstance(self.noise, str) else _number("noise", self.noise)
        if noise not in ("learned", "heteroscedastic") and not (isinstance(noise, float) and 0 < noise < math.inf):
            raise UsageError(f"noise must be a positive number, 'learned' or 'heteroscedastic', got {self.noise!r}")
        return super()._plain_parameters() | {"noise": noise}

    def predict(self, X: Any, return_std: bool = False) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """The predictive mean, ``[N]`` or ``[N, D]``.

        Args:
            return_std: also the standard deviation of the predictive distribution, noise included, of the same shape.
        """
        found = self._predicted(X)
        mean = self._like_targets(found.mean.cpu().numpy() * self._fitted.units.y_std + self._fitted.units.y_mean)
        return (mean, self._in_units(found.variance)) if return_std else mean

    def predict_epistemic_std(self, X: Any) -> np.ndarray:
        """Standard deviation between the networks' means, ``[N]`` or ``[N, D]``: without noise."""
        return self._in_units(self._predicted(X).epistemic_variance)

    def _in_units(self, variance: Tensor) -> np.ndarray:
        """The standard deviation in the units of the targets."""
        return self._like_targets(variance.sqrt().cpu().numpy() * self._fitted.units.y_std)

    def _like_targets(self, values: np.ndarray) -> np.ndarray:
        return values[:, 0] if self._fitted.note["targets"]["flat"] else values

    def _likelihood_of(self, targets: Mapping[str, Any], units: Standardiser) -> Likelihood:
        noise, dimensions = self._plain_parameters()["noise"], len(units.y_std)
        if noise == "heteroscedastic":
            return HeteroscedasticGaussian(dimensions)
        if noise == "learned":
            return Gaussian("learned", dimensions)
        if dimensions > 1:
            raise UsageError("a number for noise is that of one target; for several use 'learned', or a model for each")
        return Gaussian(noise / float(units.y_std[0]))
