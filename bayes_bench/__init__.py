"""Bayesian uncertainty for neural networks: HyperGAN and its baselines behind one interface.

Names are imported when first used, so that the command line's help does not wait for PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from bayes_bench.chains import effective_sample_size, split_rhat
    from bayes_bench.errors import (
        BayesBenchError,
        DataError,
        DivergenceError,
        MemoryLimitError,
        PluginError,
        UnsupportedNetworkError,
        UsageError,
    )
    from bayes_bench.examples import Examples, FitData
    from bayes_bench.hypergan.config import HyperGANConfig
    from bayes_bench.hypergan.hypergan import HyperGAN
    from bayes_bench.likelihood import Categorical, Gaussian, HeteroscedasticGaussian, Likelihood
    from bayes_bench.posterior import Held, WeightPosterior, WeightSamples
    from bayes_bench.predictive import ClassPrediction, ValuePrediction, summarise_classes, summarise_values
    from bayes_bench.prior import GaussianPrior
    from bayes_bench.settings import MethodConfig, Range, setting
    from bayes_bench.stacked import InputScaled, StackedNetwork
    from bayes_bench.training import FitSummary, HasState, Monitor, Stateful, TensorState, TrainingLoop, cosine_decay

_HOME = {
    "chains": ("effective_sample_size", "split_rhat"),
    "errors": (
        "BayesBenchError", "DataError", "DivergenceError", "MemoryLimitError", "PluginError",
        "UnsupportedNetworkError", "UsageError",
    ),
    "examples": ("Examples", "FitData"),
    "hypergan.config": ("HyperGANConfig",),
    "hypergan.hypergan": ("HyperGAN",),
    "likelihood": ("Categorical", "Gaussian", "HeteroscedasticGaussian", "Likelihood"),
    "posterior": ("Held", "WeightPosterior", "WeightSamples"),
    "predictive": ("ClassPrediction", "ValuePrediction", "summarise_classes", "summarise_values"),
    "prior": ("GaussianPrior",),
    "settings": ("MethodConfig", "Range", "setting"),
    "stacked": ("InputScaled", "StackedNetwork"),
    "training": ("FitSummary", "HasState", "Monitor", "Stateful", "TensorState", "TrainingLoop", "cosine_decay"),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "BayesBenchError", "Categorical", "ClassPrediction", "DataError", "DivergenceError", "Examples", "FitData",
    "FitSummary", "Gaussian", "GaussianPrior", "HasState", "Held", "HeteroscedasticGaussian", "HyperGAN",
    "HyperGANConfig", "InputScaled", "Likelihood", "MemoryLimitError", "MethodConfig", "Monitor", "PluginError",
    "Range", "StackedNetwork", "Stateful", "TensorState", "TrainingLoop", "UnsupportedNetworkError", "UsageError",
    "ValuePrediction", "WeightPosterior", "WeightSamples", "__version__", "cosine_decay", "effective_sample_size",
    "setting", "split_rhat", "summarise_classes", "summarise_values",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
