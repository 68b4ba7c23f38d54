"""MNF's layers: Gaussian weights whose means are multiplied by random factors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayes_bench_baselines.variational.config import MNFConfig
from bayes_bench_baselines.variational.flows import Auxiliary, Flow, Multipliers, root

Convolve = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Draw(NamedTuple):
    """Draws z ``[S, D]`` of a layer's factors and their log densities log q(z) ``[S]``."""

    z: Tensor
    log_q: Tensor


class FactorisedGaussian(nn.Module):
    """Independent Gaussians over the entries of one parameter, and their prior N(0, ``prior_std``²)."""

    def __init__(self, mean: Tensor, std: float, prior_std: float):
        super().__init__()
        self.mean = nn.Parameter(mean.detach().clone())
        self.log_std = nn.Parameter(torch.full_like(mean, math.log(std)))
        self.prior_std = prior_std

    @property
    def std(self) -> Tensor:
        return self.log_std.exp()

    @property
    def noise_size(self) -> int:
        return self.mean.numel()

    def sample(self, noise: Tensor, factor: Tensor | float = 1.0) -> Tensor:
        """``[S, *shape]`` from standard normal noise ``[S, noise_size]``; ``factor [S, ...]`` multiplies the mean."""
        return factor * self.mean + self.std * noise.view(-1, *self.mean.shape)

    def kl(self, squared_factor: Tensor | float = 1.0) -> Tensor:
        """KL to the prior, summed, where factors of that (mean) square multiply the mean."""
        squares = (self.std**2 + squared_factor * self.mean**2) / self.prior_std**2
        return (0.5 * squares - 0.5 - self.log_std).sum() + self.mean.numel() * math.log(self.prior_std)

    def entropy(self) -> Tensor:
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum()


class MNFLayer(nn.Module, ABC):
    """Distribution of one layer's weight and bias.

    Args:
        size: D, the entries of z.
        bias: its distribution, or the values of one that is frozen, or None.
        squash: of the summary of W that r(z|W) uses.
    """

    frozen_bias: Tensor | None

    def __init__(
        self,
        size: int,
        weight: FactorisedGaussian,
        bias: FactorisedGaussian | Tensor | None,
        config: MNFConfig,
        squash: Callable[[Tensor], Tensor],
    ):
        super().__init__()
        self.size = size
        self.weight = weight
        self.bias = bias if isinstance(bias, FactorisedGaussian) else None
        self.register_buffer("frozen_bias", bias.detach() if isinstance(bias, Tensor) else None, persistent=False)
        self.multipliers: Multipliers | None = None
        self.auxiliary: Auxiliary | None = None
        if config.multiplicative:
            self.multipliers = Multipliers(size, Flow(size, config.flow_layers, config.flow_hidden))
            flow = Flow(size, config.auxiliary_flow_layers, config.auxiliary_hidden)
            self.auxiliary = Auxiliary(size, flow, squash)

    # What a kind of layer writes

    @abstractmethod
    def _mean_outputs(self, x: Tensor, z: Tensor) -> Tensor:
        """Outputs on x ``[B, ...]`` of the mean weights, multiplied by z ``[B, D]``."""

    @abstractmethod
    def _variances(self, x: Tensor) -> Tensor:
        """Variances of the outputs on x ``[B, ...]`` given z, which does not change them."""

    @abstractmethod
    def _beside_weight(self, z: Tensor) -> Tensor:
        """Give z ``[..., D]`` the shape that multiplies a weight ``[..., *shape]``."""

    @abstractmethod
    def _beside_bias(self, z: Tensor) -> Tensor | float:
        """What multiplies the bias: z ``[..., D]`` or 1."""

    @abstractmethod
    def _rows(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """All that z multiplies as a matrix ``[D, H]``, a row for each entry of z."""

    # What they share

    @property
    def noise_size(self) -> int:
        """Standard normal numbers that one draw of the weights needs."""
        return sum(self._noise_sizes())

    def _noise_sizes(self) -> list[int]:
        return [self.size, self.weight.noise_size, self.bias.noise_size if self.bias else 0]

    def draw_z(self, noise: Tensor) -> Draw:
        """Draw z from standard normal noise ``[S, D]``; without multipliers it is 1 for certain."""
        if self.multipliers is None:
            return Draw(torch.ones_like(noise), noise.new_zeros(len(noise)))
        return Draw(*self.multipliers(noise))

    def sample(self, noise: Tensor) -> dict[str, Tensor]:
        """Draw weight ``[S, *shape]`` and trainable bias ``[S, out]`` from normal ``noise [S, noise_size]``."""
        for_z, for_weight, for_bias = noise.split(self._noise_sizes(), dim=1)
        z = self.draw_z(for_z).z
        drawn = {"weight": self.weight.sample(for_weight, self._beside_weight(z))}
        if self.bias is not None:
            drawn["bias"] = self.bias.sample(for_bias, self._beside_bias(z))
        return drawn

    def sample_outputs(self, x: Tensor, z: Tensor, rng: torch.Generator) -> Tensor:
        """Outputs on x ``[B, ...]``, each example with its own z ``[B, D]`` and weights.

        Local reparameterisation: given z every output is Gaussian, and is drawn as such. Outputs at several
        positions of one example share weights, but are drawn independently.
        """
        mean = self._mean_outputs(x, z)
        return mean + root(self._variances(x)) * normal(mean.shape, mean, rng)

    def kl(self, drawn: Draw, rng: torch.Generator) -> Tensor:
        """Unbiased estimate of E[KL(q(W|z) ‖ p(W)) + log q(z) − log r(z|W)] from these draws of z."""
        z, log_q = drawn
        squares = (z**2).mean(0)
        kl = self.weight.kl(self._beside_weight(squares))
        if self.bias is not None:
            kl = kl + self.bias.kl(self._beside_bias(squares))
        if self.auxiliary is None:
            return kl
        mean = self._rows(self.weight.mean, self.bias.mean if self.bias else None)
        std = self._rows(self.weight.std, self.bias.std if self.bias else None)
        summary = self.auxiliary.summarise(z, mean, std, normal((len(z), mean.shape[1]), mean, rng))
        return kl + (log_q - self.auxiliary.log_prob(z, summary)).mean()


class MNFLinear(MNFLayer):
    """A linear layer on x ``[B, ..., in]``: z ``[in]`` multiplies the inputs, for all positions of a sequence alike."""

    def __init__(self, weight: FactorisedGaussian, bias: FactorisedGaussian | Tensor | None, config: MNFConfig):
        super().__init__(weight.mean.shape[1], weight, bias, config, torch.tanh)

    def _mean_outputs(self, x: Tensor, z: Tensor) -> Tensor:
        z = z.view(len(z), *[1] * (x.dim() - 2), self.size)
        return F.linear(x * z, self.weight.mean, self.bias.mean if self.bias else self.frozen_bias)

    def _variances(self, x: Tensor) -> Tensor:
        return F.linear(x**2, self.weight.std**2, self.bias.std**2 if self.bias else None)

    def _beside_weight(self, z: Tensor) -> Tensor:
        return z.unsqueeze(-2)

    def _beside_bias(self, z: Tensor) -> float:
        return 1.0

    def _rows(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        return weight.T


class MNFConv(MNFLayer):
    """A convolution of x ``[B, in, ...]``: z ``[out]`` multiplies the output channels, a trainable bias included.

    Args:
        convolve: the layer's convolution as a function of x, weight and bias: its stride, padding and groups.
    """

    def __init__(
        self,
        weight: FactorisedGaussian,
        bias: FactorisedGaussian | Tensor | None,
        config: MNFConfig,
        convolve: Convolve,
    ):
        super().__init__(len(weight.mean), weight, bias, config, nn.Identity())
        self.convolve = convolve

    def _mean_outputs(self, x: Tensor, z: Tensor) -> Tensor:
        mean = self.convolve(x, self.weight.mean, self.bias.mean if self.bias else None)
        mean = mean * self._per_channel(z, mean)
        return mean if self.frozen_bias is None else mean + self._per_channel(self.frozen_bias, mean)

    def _variances(self, x: Tensor) -> Tensor:
        return self.convolve(x**2, self.weight.std**2, self.bias.std**2 if self.bias else None)

    def _per_channel(self, values: Tensor, outputs: Tensor) -> Tensor:
        return values.view(-1, self.size, *[1] * (outputs.dim() - 2))

    def _beside_weight(self, z: Tensor) -> Tensor:
        return z.view(*z.shape, *[1] * (self.weight.mean.dim() - 1))

    def _beside_bias(self, z: Tensor) -> Tensor:
        return z

    def _rows(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = weight.flatten(1)
        return rows if bias is None else torch.cat([rows, bias.unsqueeze(1)], dim=1)


def normal(shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
    """Standard normal noise from a CPU generator, on the device of ``like``."""
    return torch.randn(shape, generator=rng, dtype=like.dtype).to(like.device)
