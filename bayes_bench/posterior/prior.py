"""The Gaussian prior over weights: part of every task, so that all methods aim at the same posterior."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bayes_bench.errors import UsageError
from bayes_bench.posterior.likelihood import HALF_LOG_2PI, RESERVED


@dataclass(frozen=True)
class GaussianPrior:
    """Independent zero-mean Gaussians over the network's weights and biases.

    Attributes:
        std: standard deviation, > 0.
        scaling: ``"fan_in"`` divides the std of every weight matrix and convolution kernel (parameters of
            two or more dimensions) by √fan-in, which keeps activations of order ``std``; ``"none"`` does not.
    """

    std: float = 1.0
    scaling: Literal["none", "fan_in"] = "none"

    def __post_init__(self) -> None:
        if not isinstance(self.std, int | float) or not 0 < self.std < math.inf:
            raise UsageError(f"GaussianPrior: std must be a positive number, got {self.std}")
        if self.scaling not in ("none", "fan_in"):
            raise UsageError(f"GaussianPrior: scaling must be 'none' or 'fan_in', got {self.scaling!r}")

    def std_of(self, shape: torch.Size | tuple[int, ...]) -> float:
        """Standard deviation of one parameter, from its shape (without the sample dimension)."""
        if self.scaling == "fan_in" and len(shape) >= 2:
            return self.std / math.sqrt(fan_in(shape))
        return self.std

    def penalty(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Σ w²/(2σ²) per network, ``[S]``: minus the log prior up to a constant; reserved entries excluded."""
        terms = [
            (w**2).reshape(len(w), -1).sum(1) / (2 * self.std_of(w.shape[1:]) ** 2)
            for name, w in weights.items()
            if not name.startswith(RESERVED)
        ]
        # A likelihood's entries alone have no penalty: every network parameter may be frozen.
        return torch.stack(terms).sum(0) if terms else next(iter(weights.values())).new_zeros(())

    def log_prob(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Log density per network, ``[S]``, with its constant; reserved entries belong to the likelihood."""
        constant = sum(
            w[0].numel() * (math.log(self.std_of(w.shape[1:])) + HALF_LOG_2PI)
            for name, w in weights.items()
            if not name.startswith(RESERVED)
        )
        return -self.penalty(weights) - constant


def fan_in(shape: torch.Size | tuple[int, ...]) -> int:
    """Number of inputs that one output of a weight matrix or kernel ``[out, in, ...]`` sums over."""
    return math.prod(shape[1:])
