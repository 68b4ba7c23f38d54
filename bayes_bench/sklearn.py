"""Any method as a scikit-learn classifier or regressor for tables of numbers; imported by users alone.

Example::

    from bayes_bench.sklearn import BayesClassifier

    model = BayesClassifier("hypergan", random_state=0).fit(X, y)
    model.predict_proba(X_new)
    model.predict_entropy(X_new)  # nats: high where the model does not know
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from sklearn.utils import Tags, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from bayes_bench import registry
from bayes_bench.errors import DataError, UsageError, named
from bayes_bench.examples import Examples, FitData
from bayes_bench.likelihood import Categorical, Gaussian, HeteroscedasticGaussian, Likelihood
from bayes_bench.networks import mlp
from bayes_bench.posterior import WeightPosterior, WeightSamples, read_note
from bayes_bench.prior import GaussianPrior
from bayes_bench.tasks import Standardiser
from bayes_bench.training import FitSummary

__all__ = ["BayesClassifier", "BayesEstimator", "BayesRegressor"]

Network = Callable[[int, int], nn.Module]
"""``(features, outputs) -> network``, which maps ``[B, features]`` to ``[B, outputs]``."""

FEWEST_TO_VALIDATE = 20
"""With fewer examples all of them are trained on."""


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

    posterior_: WeightPosterior
    summary_: FitSummary
    n_features_in_: int
    feature_names_in_: np.ndarray
    _weights: WeightSamples
    _standardiser: Standardiser
    _seeds: tuple[int, int]

    def __init__(
        self,
        method: str = "hypergan",
        *,
        settings: Mapping[str, Any] | None = None,
        hidden: Sequence[int] = (50, 50),
        network: Network | None = None,
        budget: int = 200_000,
        samples: int = 100,
        prior_std: float = 1.0,
        prior_scaling: Literal["none", "fan_in"] = "none",
        validation_fraction: float = 0.1,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ):
        self.method = method
        self.settings = settings
        self.hidden = hidden
        self.network = network
        self.budget = budget
        self.samples = samples
        self.prior_std = prior_std
        self.prior_scaling = prior_scaling
        self.validation_fraction = validation_fraction
        self.device = device
        self.random_state = random_state

    # Fit --------------------------------------------------------------------------------------------------

    def _fit_posterior(self, x: np.ndarray, y: np.ndarray, likelihood: Likelihood, units: Standardiser) -> None:
        """Train on raw inputs x ``[N, F]`` and targets y, and draw the networks that predict."""
        if self.samples < 1:
            raise UsageError(f"samples must be at least 1, got {self.samples}")
        if not 0 <= self.validation_fraction < 1:
            raise UsageError(f"validation_fraction must lie in [0, 1), got {self.validation_fraction}")
        seeds = check_random_state(self.random_state).randint(2**31 - 1, size=4).tolist()
        split_seed, network_seed, fit_seed, sample_seed = seeds
        config = registry.resolve_config(self.method, self.settings or {})
        prior = GaussianPrior(self.prior_std, self.prior_scaling)
        network = self._build_network(likelihood, network_seed)
        posterior = registry.method_class(self.method)(network, likelihood, prior, config)
        inputs, targets = units.inputs(x), units.targets(y)
        train, validation = self._split(y if likelihood.kind == "classification" else None, len(x), split_seed)
        data = FitData(
            Examples(inputs[train], targets[train]),
            Examples(inputs[validation], targets[validation]) if len(validation) else None,
        )
        self.summary_ = posterior.fit(data, budget=self.budget, seed=fit_seed, device=self.device)
        self._take(posterior, units, (network_seed, sample_seed))

    def _build_network(self, likelihood: Likelihood, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            if self.network is not None:
                return self.network(self.n_features_in_, likelihood.output_width)
            return mlp(self.n_features_in_, self.hidden, likelihood.output_width)

    def _split(self, labels: np.ndarray | None, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train on and rows to validate on."""
        rows, held_out = np.arange(n), round(self.validation_fraction * n)
        if n < FEWEST_TO_VALIDATE or held_out == 0:
            return rows, rows[:0]
        if labels is not None:
            counts = np.bincount(labels)
            if counts.min() < 2 or min(held_out, n - held_out) < len(counts):
                labels = None  # too few to have every class on both sides
        train, validation = train_test_split(rows, test_size=held_out, random_state=seed, stratify=labels)
        return train, validation

    def _take(self, posterior: WeightPosterior, units: Standardiser, seeds: tuple[int, int]) -> None:
        self.posterior_ = posterior
        self._standardiser = units
        self._seeds = seeds
        self._weights = posterior.sample(self.samples, seed=seeds[1])

    # Predict ----------------------------------------------------------------------------------------------

    def _predicted(self, X: Any) -> Any:
        check_is_fitted(self)
        x = validate_data(self, X, reset=False, dtype=np.float64)
        inputs = torch.from_numpy((x - self._standardiser.x_mean) / self._standardiser.x_std)
        # In float64, so that an answer does not depend on what else was asked in the same call.
        weights = {name: value.double() for name, value in self._weights.items()}
        return self.posterior_.predict(inputs.to(self.posterior_.device), weights)

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

        A ``network`` function is not in the file.

        Raises:
            NotFittedError: before ``fit``.
        """
        check_is_fitted(self)
        parameters = self.get_params(deep=False)
        settings = json.loads(self.posterior_.config.model_dump_json())
        kept = {name: parameters[name] for name in parameters if name not in ("network", "random_state", "settings")}
        units = self._standardiser
        note = {
            "estimator": type(self).__name__,
            "parameters": kept | {"hidden": list(self.hidden), "settings": settings},
            "features": self.n_features_in_,
            "feature_names": self.feature_names_in_.tolist() if hasattr(self, "feature_names_in_") else None,
            "standardiser": {name: np.asarray(value).tolist() for name, value in vars(units).items()},
            "seeds": list(self._seeds),
            "targets": self._about_targets(),
        }
        self.posterior_.save(path, note=note)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, network: Network | None = None, device: str = "cpu") -> Self:
        """Read what ``save`` wrote.

        Args:
            network: the function that the estimator was given, where it was given one.

        Raises:
            DataError: the file is damaged, of another estimator, or of another network.
        """
        note = read_note(path)
        if not isinstance(note, dict) or note.get("estimator") != cls.__name__:
            found = note.get("estimator") if isinstance(note, dict) else None
            raise DataError(f"{path} holds {found or 'no estimator'}, not a {cls.__name__}")
        try:
            estimator = cls(**note["parameters"] | {"network": network, "device": device})
            estimator.n_features_in_ = int(note["features"])
            if note["feature_names"] is not None:
                estimator.feature_names_in_ = np.array(note["feature_names"], dtype=object)
            units = Standardiser(**{name: np.asarray(v, np.float64) for name, v in note["standardiser"].items()})
            network_seed, sample_seed = (int(seed) for seed in note["seeds"])
            likelihood = estimator._targets_from(note["targets"], units)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"cannot read the estimator {path}: {named(error)}") from error
        built = estimator._build_network(likelihood, network_seed)
        prior = GaussianPrior(estimator.prior_std, estimator.prior_scaling)
        method = registry.method_class(estimator.method)
        posterior = method.load(path, built, likelihood, prior, device=device)
        estimator._take(posterior, units, (network_seed, sample_seed))
        return estimator

    def _about_targets(self) -> Any:
        """What ``_targets_from`` needs, as JSON."""
        raise NotImplementedError

    def _targets_from(self, about: Any, units: Standardiser) -> Likelihood:
        """Take over what is known of the targets; the likelihood."""
        raise NotImplementedError


class BayesClassifier(ClassifierMixin, BayesEstimator):  # type: ignore[misc]
    """A classifier that averages the predictions of networks drawn from a posterior over weights.

    Args:
        method, settings, …, random_state: as ``BayesEstimator``'s.

    Attributes:
        classes_: the labels, sorted.
    """

    classes_: np.ndarray

    def fit(self, X: Any, y: Any) -> Self:
        """Train on X ``[N, F]`` and labels y ``[N]`` of any type.

        Raises:
            ValueError: NaN or infinity, wrong shapes, a single class, wrong parameters.
        """
        x, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise UsageError(f"y has one class alone, {self.classes_[0]}; a classifier needs at least two")
        self._fit_posterior(x, labels, Categorical(len(self.classes_)), _units(x))
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

    def _about_targets(self) -> Any:
        return {"classes": self.classes_.tolist(), "type": self.classes_.dtype.str}

    def _targets_from(self, about: Any, units: Standardiser) -> Likelihood:
        self.classes_ = np.array(about["classes"], dtype=np.dtype(about["type"]))
        return Categorical(len(self.classes_))


class BayesRegressor(RegressorMixin, BayesEstimator):  # type: ignore[misc]
    """A regressor that averages the predictions of networks drawn from a posterior over weights.

    Args:
        noise: standard deviation of the targets around a network's output, in the targets' units and the same for all
            inputs; or ``"learned"``, one for all inputs, which starts at half of the targets' own and takes thousands
            of steps to fall far below; or ``"heteroscedastic"``, learned as a function of the input.
        method, settings, …, random_state: as ``BayesEstimator``'s.
    """

    _flat: bool
    """Whether targets came as ``[N]``, and so predictions are."""

    def __init__(
        self,
        method: str = "hypergan",
        *,
        noise: float | Literal["learned", "heteroscedastic"] = "learned",
        settings: Mapping[str, Any] | None = None,
        hidden: Sequence[int] = (50, 50),
        network: Network | None = None,
        budget: int = 200_000,
        samples: int = 100,
        prior_std: float = 1.0,
        prior_scaling: Literal["none", "fan_in"] = "none",
        validation_fraction: float = 0.1,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ):
        super().__init__(
            method,
            settings=settings,
            hidden=hidden,
            network=network,
            budget=budget,
            samples=samples,
            prior_std=prior_std,
            prior_scaling=prior_scaling,
            validation_fraction=validation_fraction,
            device=device,
            random_state=random_state,
        )
        self.noise = noise

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.single_output = tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any) -> Self:
        """Train on X ``[N, F]`` and targets y ``[N]`` or ``[N, D]``.

        Raises:
            ValueError: NaN or infinity, wrong shapes, wrong parameters.
        """
        x, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2, multi_output=True, y_numeric=True)
        self._flat = y.ndim == 1
        y = np.asarray(y, dtype=np.float64).reshape(len(x), -1)
        units = _units(x, y)
        if not isinstance(self.noise, str):
            # One known noise for all targets stays one only if all are divided by the same number.
            units = replace(units, y_std=np.full(y.shape[1], np.sqrt(np.mean(units.y_std**2))))
        self._fit_posterior(x, y, self._likelihood(units), units)
        return self

    def predict(self, X: Any, return_std: bool = False) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """The predictive mean, ``[N]`` or ``[N, D]``.

        Args:
            return_std: also the standard deviation of the predictive distribution, noise included, of the same shape.
        """
        found = self._predicted(X)
        mean = self._like_targets(found.mean.cpu().numpy() * self._standardiser.y_std + self._standardiser.y_mean)
        return (mean, self._in_units(found.variance)) if return_std else mean

    def predict_epistemic_std(self, X: Any) -> np.ndarray:
        """Standard deviation between the networks' means, ``[N]`` or ``[N, D]``: without noise."""
        return self._in_units(self._predicted(X).epistemic_variance)

    def _in_units(self, variance: Tensor) -> np.ndarray:
        """The standard deviation in the units of the targets."""
        return self._like_targets(variance.sqrt().cpu().numpy() * self._standardiser.y_std)

    def _like_targets(self, values: np.ndarray) -> np.ndarray:
        return values[:, 0] if self._flat else values

    def _likelihood(self, units: Standardiser) -> Likelihood:
        dimensions = len(units.y_std)
        if self.noise == "heteroscedastic":
            return HeteroscedasticGaussian(dimensions)
        if isinstance(self.noise, str):
            return Gaussian(self.noise, dimensions)
        return Gaussian(self.noise / float(units.y_std[0]), dimensions)

    def _about_targets(self) -> Any:
        return {"flat": self._flat}

    def _targets_from(self, about: Any, units: Standardiser) -> Likelihood:
        self._flat = bool(about["flat"])
        return self._likelihood(units)


def _units(x: np.ndarray, y: np.ndarray | None = None) -> Standardiser:
    """Mean and standard deviation of every feature, and of every target of a regression; 1 where nothing varies."""
    scalers = [StandardScaler().fit(values) for values in (x, y) if values is not None]
    return Standardiser(*(part for scaler in scalers for part in (scaler.mean_, scaler.scale_)))
