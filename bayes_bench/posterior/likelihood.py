"""Likelihoods: what a network's outputs mean. They own the output width and any noise parameter.

Letters: S weight samples, B batch, K outputs, C classes, D target dimensions.
A learned noise scale is a *reserved* weight entry (its name starts with ``likelihood.``): methods treat it
like any other parameter, so every weight sample carries its own noise.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bayes_bench.errors import UsageError

RESERVED = "likelihood."
LOG_NOISE = RESERVED + "log_noise_std"
NOISE_FLOOR = 1e-3
"""Smallest σ of a heteroscedastic Gaussian, in the units of its targets."""
AT_ONE = math.log(math.expm1(1.0))
"""softplus of it is 1."""
BETA = 0.5
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Likelihood(ABC):
    """p(y | outputs of the network)."""

    kind: Literal["classification", "regression"]
    output_width: int
    """K, the width of the network's output."""
    target_width: int
    """D, the dimensions of a regression target; 0 for classification."""

    def initial_parameters(self) -> dict[str, Tensor]:
        """Starting values of the reserved entries; empty where nothing is learned."""
        return {}

    def log_prior(self, weights: Mapping[str, Tensor]) -> Tensor | float:
        """Normalised log prior density of the reserved entries, ``[S]``; 0 where there are none."""
        return 0.0

    @abstractmethod
    def nll(self, outputs: Tensor, y: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """Negative log likelihood per network and example, in nats.

        Args:
            outputs: ``[S, B, K]``.
            y: targets shared by the networks (``[B]`` or ``[B, D]``) or one set for each (``[S, B]``, ``[S, B, D]``).
            weights: the weight samples that gave the outputs; only reserved entries are read.

        Returns:
            ``[S, B]``.
        """

    def training_nll(self, outputs: Tensor, y: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """``nll`` with gradients that train better, where there are such; for methods that sample nothing by them."""
        return self.nll(outputs, y, weights)

    @abstractmethod
    def predict(self, outputs: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The predictive distribution of each network, as the arrays that are stored and measured.

        Classification: ``log_probs [S, B, C]``. Regression: ``mean [S, B, D]`` and ``noise_std [S, B, D]``.
        """


class Categorical(Likelihood):
    """Classes 0 … C−1; the network gives C logits."""

    kind = "classification"

    def __init__(self, num_classes: int):
        if num_classes < 2:
            raise UsageError(f"Categorical needs at least 2 classes, got {num_classes}")
        self.output_width = num_classes
        self.target_width = 0

    def nll(self, outputs: Tensor, y: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        y = y.expand(outputs.shape[:-1])
        flat = F.cross_entropy(outputs.reshape(-1, self.output_width), y.reshape(-1), reduction="none")
        return flat.view(y.shape)

    def predict(self, outputs: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"log_probs": F.log_softmax(outputs, dim=-1)}

    def __repr__(self) -> str:
        return f"Categorical({self.output_width})"


class Gaussian(Likelihood):
    """y ~ N(output, σ²): σ known, or one learned global σ with prior log σ ~ N(log ``initial_std``, 1)."""

    kind = "regression"

    def __init__(
        self, noise_std: float | Literal["learned"] = "learned", dimensions: int = 1, initial_std: float = 0.5
    ):
        known = isinstance(noise_std, int | float) and 0 < noise_std < math.inf
        if not known and noise_std != "learned":
            raise UsageError(f"Gaussian: noise_std must be a positive number or 'learned', got {noise_std!r}")
        if not 0 < initial_std < math.inf:
            raise UsageError(f"Gaussian: initial_std must be a positive number, got {initial_std!r}")
        _check_dimensions(self, dimensions)
        self.noise_std = noise_std
        self.output_width = self.target_width = dimensions
        self.initial_std = initial_std

    def initial_parameters(self) -> dict[str, Tensor]:
        return {LOG_NOISE: torch.tensor(math.log(self.initial_std))} if self.noise_std == "learned" else {}

    def log_prior(self, weights: Mapping[str, Tensor]) -> Tensor | float:
        if LOG_NOISE not in weights:
            return 0.0
        return -0.5 * (weights[LOG_NOISE] - math.log(self.initial_std)) ** 2 - HALF_LOG_2PI

    def _log_std(self, weights: Mapping[str, Tensor]) -> Tensor | float:
        """``[S, 1, 1]`` where learned, else a number."""
        return weights[LOG_NOISE][:, None, None] if self.noise_std == "learned" else math.log(self.noise_std)

    def nll(self, outputs: Tensor, y: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        return _gaussian_nll(y, outputs, self._log_std(weights)).sum(-1)

    def predict(self, outputs: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        log_std = torch.as_tensor(self._log_std(weights), dtype=outputs.dtype, device=outputs.device)
        return {"mean": outputs, "noise_std": log_std.exp().expand(outputs.shape)}

    def __repr__(self) -> str:
        start = f", initial_std={self.initial_std!r}" if self.noise_std == "learned" else ""
        return f"Gaussian(noise_std={self.noise_std!r}, dimensions={self.output_width}{start})"


class HeteroscedasticGaussian(Likelihood):
    """y ~ N(μ, σ²) with both from the network: K = 2D outputs, first the means, then what σ is made of.

    σ = ``floor`` + softplus(output + c), 1 + ``floor`` at an output of 0: it grows linearly, so that an output of 10 is
    a σ of 10 and not of 22,000. With ``scale="exp"`` it is exp(output), as version 0.1 had it.

    Args:
        floor: of σ, in the targets' units; targets are best standardised.
    """

    kind = "regression"

    def __init__(self, dimensions: int = 1, scale: Literal["softplus", "exp"] = "softplus", floor: float = NOISE_FLOOR):
        _check_dimensions(self, dimensions)
        if scale not in ("softplus", "exp"):
            raise UsageError(f"HeteroscedasticGaussian: scale must be 'softplus' or 'exp', got {scale!r}")
        if not 0 < floor < math.inf:
            raise UsageError(f"HeteroscedasticGaussian: floor must be a positive number, got {floor!r}")
        self.dimensions = self.target_width = dimensions
        self.output_width = 2 * dimensions
        self.scale, self.floor = scale, floor

    def _split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log σ."""
        mean, other = outputs.split(self.dimensions, dim=-1)
        return mean, other if self.scale == "exp" else (F.softplus(other + AT_ONE) + self.floor).log()

    def nll(self, outputs: Tensor, y: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        return _gaussian_nll(y, *self._split(outputs)).sum(-1)

    def training_nll(self, outputs: Tensor, y: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """The NLL, with gradients of which each example's is multiplied by σ^2β, β = ½.

        The gradient of the mean is else divided by σ², so that a mean that is wrong is best mended by a larger σ, and
        then not at all (Seitzer et al., ICLR 2022, arXiv:2203.09168, equation 5).
        """
        mean, log_std = self._split(outputs)
        each = _gaussian_nll(y, mean, log_std)
        weighted = (2 * BETA * log_std.detach()).exp() * each
        return (each.detach() + weighted - weighted.detach()).sum(-1)

    def predict(self, outputs: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        mean, log_std = self._split(outputs)
        return {"mean": mean, "noise_std": log_std.exp()}

    def __repr__(self) -> str:
        made = "" if self.scale == "exp" else f", floor={self.floor!r}"
        return f"HeteroscedasticGaussian({self.dimensions}{made})"


def _check_dimensions(likelihood: Likelihood, dimensions: int) -> None:
    if dimensions < 1:
        raise UsageError(f"{type(likelihood).__name__}: a target needs at least 1 dimension, got {dimensions}")


def _gaussian_nll(y: Tensor, mean: Tensor, log_std: Tensor | float) -> Tensor:
    scaled = (y - mean) * (torch.exp(-log_std) if isinstance(log_std, Tensor) else math.exp(-log_std))
    return 0.5 * scaled**2 + log_std + HALF_LOG_2PI
