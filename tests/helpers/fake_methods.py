"""Small real methods for the tests of the registry, the runner and the command line."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from bayes_bench import (
    DivergenceError,
    FitData,
    MethodConfig,
    TrainingLoop,
    UnsupportedNetworkError,
    UsageError,
    WeightPosterior,
    WeightSamples,
    setting,
)


class TinyConfig(MethodConfig):
    """Tiny: a Gaussian around the initial weights.

    For tests only.
    """

    scale: float = setting(0.1, "standard deviation of the weights", source="made up", gt=0)
    kind: str | None = setting(None, "anything")
    trouble: str = setting("", "what goes wrong in the fit")


class Tiny(WeightPosterior):
    Config = TinyConfig
    uses_prior = False

    def _check_fit(self, data: FitData, budget: int) -> None:
        match getattr(self.config, "trouble", ""):
            case "refuse":
                raise UnsupportedNetworkError("tiny cannot treat layer '1'; freeze it")
            case "refuse by budget":
                raise UsageError("tiny needs a budget of 7")
            case "check crashes":
                raise ZeroDivisionError("division by zero")

    def _fit(self, data: FitData, loop: TrainingLoop, rng: torch.Generator) -> None:
        loop.charge(loop.budget / 2)
        loop.diagnose(answer=42.0, unknown=float("nan"))
        if loop._monitor:
            loop._monitor.progress(loop.spent, loop.budget, {"loss": 1.0})
        match self.config.trouble:
            case "diverge":
                raise DivergenceError("training diverged: loss is nan after 7 steps")
            case "crash":
                raise ZeroDivisionError("division by zero\nsecond line")
            case "memory":
                raise MemoryError
            case "interrupt":
                raise KeyboardInterrupt
            case "exit":
                sys.exit(0)
            case "settings":
                os.chdir("/")
                torch.set_default_dtype(torch.float64)
                torch.set_grad_enabled(False)
                raise ZeroDivisionError("division by zero")
            case "warn":
                warnings.warn("tiny is too small", UserWarning, stacklevel=2)
        # Something that depends on the fit's seed, as training does.
        self.centre = {name: w + 0.01 * torch.randn(w.shape, generator=rng) for name, w in self.initial.items()}
        loop.note("tiny was here")

    def _sample(self, n: int, rng: torch.Generator) -> WeightSamples:
        # In the order of ``initial``: a loaded state may come in another.
        return {
            name: self.centre[name] + self.config.scale * torch.randn(n, *self.centre[name].shape, generator=rng)
            for name in self.initial
        }

    def _state(self) -> dict[str, Tensor]:
        return self.centre

    def _load_state(self, state: Mapping[str, Tensor]) -> None:
        self.centre = dict(state)


class PairConfig(MethodConfig):
    """Pair: two networks."""


class Pair(Tiny):
    """A method of support 2."""

    Config = PairConfig

    @property
    def support(self) -> int:
        return 2

    def _fit(self, data: FitData, loop: TrainingLoop, rng: torch.Generator) -> None:
        loop.charge(loop.budget)
        self.centre = {
            name: torch.stack([w, w + 0.1 * torch.randn(w.shape, generator=rng)]) for name, w in self.initial.items()
        }

    def _sample(self, n: int, rng: torch.Generator) -> WeightSamples:
        return {name: w[:n] for name, w in self.centre.items()}
