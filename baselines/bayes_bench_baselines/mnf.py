"""Multiplicative normalizing flows (Louizos & Welling 2017): factorised Gaussians with shared random factors.

Letters: S draws, B batch, D entries of z, H columns of a layer's weights seen as a matrix ``[D, H]``.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayes_bench import (
    FitData,
    Held,
    TrainingLoop,
    UnsupportedNetworkError,
    UsageError,
    WeightPosterior,
    WeightSamples,
    cosine_decay,
)
from bayes_bench_baselines.configs import MNFConfig

TREATED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
GATE_BIAS = 2.0
"""Gates start near 0.88, so that a new flow is close to the identity."""
LEAST_VARIANCE = 1e-16
"""Of an output whose inputs are all zero: the root has no slope at 0."""

Convolve = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class MNF(WeightPosterior):
    """Gaussian weights whose means are multiplied by random factors z, and z is the output of a normalizing flow.

    q(W) = ∫ q(z) Π N(w; z·μ, σ²) dz. Its entropy is bounded from below by an auxiliary r(z|W), so that training
    minimises mean NLL + (1/N) [KL(q(W|z) ‖ p(W)) + log q(z) − log r(z|W)]. In training z is drawn per example and
    outputs are drawn rather than weights (local reparameterisation); a weight sample is z and then W given z.
    """

    Config = MNFConfig
    former_names = ("bayes_bench_baselines.mnf:MNF",)
    uses_prior = True
    config: MNFConfig

    _layers: dict[str, MNFLayer]
    _others: dict[str, FactorisedGaussian]

    # Checks -----------------------------------------------------------------------------------------------

    def _check_fit(self, data: FitData, budget: int) -> None:
        names = self._treated()
        self._check_parameters(names)
        self._check_uses(names, data.train.x[:1])
        least = math.ceil(self._step_cost(data) + self.validation_cost(data, self.config.validation_networks))
        if budget < least:
            raise UsageError(
                f"a budget of {budget:,} pays for no step of mnf; at least {least:,} gradient evaluations are needed: "
                "two for each example of a batch, and the validation at the end"
            )

    def _networks_held(self, drawn: int, data: FitData, budget: int) -> Held:
        # Means and standard deviations; a draw's noise is as large as the draw.
        return Held(2 * self.trained_copies(data), 2, drawn, drawing=2 * drawn)

    def _treated(self) -> list[str]:
        """Names of the layers with trainable weights that are given factors."""
        modules = self.network.named_modules()
        return [name for name, layer in modules if type(layer) in TREATED and _of(name, "weight") in self.initial]

    def _check_parameters(self, names: list[str]) -> None:
        """Every trainable parameter has a treatment, and those of the layers ``names`` belong to one layer alone."""
        weights = {_of(name, "weight") for name in names}
        for name, value in self.initial.items():
            if value.dim() > 1 and name not in weights:
                layer = self.network.get_submodule(name.rpartition(".")[0])
                raise UnsupportedNetworkError(
                    f"mnf cannot treat {name!r} ({type(layer).__name__}): of two or more dimensions it knows the "
                    "weights of Linear and Conv layers only; freeze it with requires_grad_(False)"
                )
        owners = Counter(id(parameter) for _, parameter in self.network.named_parameters(remove_duplicate=False))
        for name in names:
            for own, parameter in self.network.get_submodule(name).named_parameters():
                if owners[id(parameter)] > 1 and parameter.requires_grad:
                    raise UnsupportedNetworkError(
                        f"mnf cannot treat layer {name!r}: its {own} is tied to another layer's; give each its own, or "
                        "freeze it with requires_grad_(False)"
                    )

    def _check_uses(self, names: list[str], x: Tensor) -> None:
        """A layer that is used twice would be given other weights at each use, and no weight sample is that."""
        calls: Counter[str] = Counter()
        handles = [
            self.network.get_submodule(name).register_forward_pre_hook(lambda _, __, name=name: calls.update([name]))
            for name in names
        ]
        try:
            with torch.no_grad():
                self.network(x.to(next(self.network.parameters()).device))
        finally:
            for handle in handles:
                handle.remove()
        for name in names:
            if not calls[name]:
                raise UnsupportedNetworkError(
                    f"mnf cannot treat layer {name!r}, which the network does not call as a module; call it, or freeze "
                    "its weight with requires_grad_(False)"
                )
            if calls[name] > 1:
                raise UnsupportedNetworkError(
                    f"mnf cannot treat layer {name!r}: the network calls it {calls[name]} times in a forward pass, not "
                    "once; give each use a layer of its own, or freeze its weight with requires_grad_(False)"
                )

    # Fit --------------------------------------------------------------------------------------------------

    def _fit(self, data: FitData, loop: TrainingLoop, rng: torch.Generator) -> None:
        config = self.config
        self._build({name: value[0] for name, value in self.initial_weights(1, rng, loop).items()}, rng)
        parts = nn.ModuleList(self._parts().values())
        optimizer = torch.optim.Adam(parts.parameters(), lr=config.learning_rate, fused=True)
        drawn: dict[str, Draw] = {}
        network = self._noisy_network(drawn, rng)
        names = dict(self.network.named_parameters())
        n = len(data.train)
        batches = data.train.minibatches(self._batch_size(data), rng)

        def step() -> Mapping[str, Tensor]:
            x, y = next(batches)
            others = {
                name: part.sample(_normal((1, part.noise_size), part.mean, rng)) for name, part in self._others.items()
            }
            own = {name: value[0] for name, value in others.items() if name in names}
            outputs = torch.func.functional_call(network, own, (x,))
            nll = self.loss(outputs.unsqueeze(0), y, others).mean()
            kl = self._kl(drawn, others, rng) / n
            weight = min(1.0, loop.progress / config.kl_annealing) if config.kl_annealing else 1.0
            optimizer.zero_grad()
            (nll + weight * kl).backward()
            optimizer.step()
            self._limit_stds()
            return {"loss": nll.detach(), "kl": kl.detach()}

        loop.run(
            step,
            {"distribution": parts, "optimizer": optimizer, "batches": batches},
            cost=self._step_cost(data),
            schedule=cosine_decay(optimizer, config.final_learning_rate),
            validate=self.validator(data, config.validation_networks, rng),
            validation_cost=self.validation_cost(data, config.validation_networks),
            keep_best=config.keep_best,
            patience=config.patience,
        )

    def _batch_size(self, data: FitData) -> int:
        return min(self.config.batch_size, len(data.train))

    def _step_cost(self, data: FitData) -> float:
        # Outputs have a mean and a variance: two products as large as the network's.
        return 2 * self._batch_size(data)

    def _build(self, means: Mapping[str, Tensor], rng: torch.Generator) -> None:
        """Set up the distribution over all of ``initial``, with these means."""

        def gaussian(name: str, fan_in: int = 1) -> FactorisedGaussian:
            mean = means[name]
            std = min(self.config.initial_std / math.sqrt(fan_in), self.config.max_std)
            return FactorisedGaussian(mean, std, self.prior.std_of(mean.shape))

        self._layers = {}
        taken = set()
        with self.seeded(rng):
            for name in self._treated():
                layer = cast("nn.Linear | nn.Conv2d", self.network.get_submodule(name))
                fan_in = math.prod(layer.weight.shape[1:])
                weight, bias = _of(name, "weight"), _of(name, "bias")
                own_bias = gaussian(bias, fan_in) if bias in means else layer.bias
                taken |= {weight, bias}
                self._layers[name] = (
                    MNFLinear(gaussian(weight, fan_in), own_bias, self.config)
                    if isinstance(layer, nn.Linear)
                    else MNFConv(gaussian(weight, fan_in), own_bias, self.config, layer._conv_forward)
                )
        self._others = {name: gaussian(name) for name in means if name not in taken}
        for name, part in self._parts().items():
            part.to(self.device, self.initial[_of(name, "weight") if name in self._layers else name].dtype)

    def _parts(self) -> dict[str, MNFLayer | FactorisedGaussian]:
        return {**self._layers, **self._others}

    def _noisy_network(self, drawn: dict[str, Draw], rng: torch.Generator) -> nn.Module:
        """A copy of the network whose layers draw their outputs, with other noise in every call.

        Each call leaves in ``drawn``, layer by layer, the z that it used.
        """

        def forward(x: Tensor, *, name: str) -> Tensor:
            part = self._layers[name]
            drawn[name] = part.draw_z(_normal((len(x), part.size), x, rng))
            return part.sample_outputs(x, drawn[name].z, rng)

        network = copy.deepcopy(self.network)
        for name in self._layers:
            layer = network.get_submodule(name)
            # On the instance, so that whatever else the network asks of its layer is still there.
            layer.forward = partial(forward, name=name)
            # A network that reads the weight by another way than the call must fail, not see values never trained.
            layer.register_parameter("weight", None)
        return network

    def _kl(self, drawn: Mapping[str, Draw], others: Mapping[str, Tensor], rng: torch.Generator) -> Tensor:
        """Estimate of the bound on KL(q ‖ prior).

        Args:
            drawn: values of z by layer: those of a batch serve here too.
            others: one draw ``[1, ...]`` of the parameters that belong to no layer.
        """
        terms = [layer.kl(drawn[name], rng) for name, layer in self._layers.items()]
        reserved = self.likelihood.initial_parameters()
        terms += [-part.entropy() if name in reserved else part.kl() for name, part in self._others.items()]
        return torch.stack(terms).sum() - torch.as_tensor(self.likelihood.log_prior(others)).sum()

    @torch.no_grad()
    def _limit_stds(self) -> None:
        # A projection, not a clamp inside the objective: at the limit there would be no gradient back.
        for part in self._parts().values():
            for module in part.modules():
                if isinstance(module, FactorisedGaussian):
                    module.log_std.clamp_(max=math.log(self.config.max_std))

    # Sample -----------------------------------------------------------------------------------------------

    def _sample(self, n: int, rng: torch.Generator) -> WeightSamples:
        sizes = [part.noise_size for part in self._parts().values()]
        # Network by network, so that a draw of k is the start of a draw of n.
        noise = torch.stack([torch.randn(sum(sizes), generator=rng) for _ in range(n)]).to(self.device)
        own = dict(zip(self._parts(), noise.split(sizes, dim=1), strict=True))
        weights = {name: part.sample(own[name]) for name, part in self._others.items()}
        for layer, part in self._layers.items():
            weights |= {_of(layer, name): value for name, value in part.sample(own[layer]).items()}
        return weights

    # State ------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Tensor]:
        return {
            f"{name}/{key}": value for name, part in self._parts().items() for key, value in part.state_dict().items()
        }

    def _load_state(self, state: Mapping[str, Tensor]) -> None:
        self._build(self.initial, torch.Generator())
        for name, part in self._parts().items():
            part.load_state_dict({key: state[f"{name}/{key}"] for key in part.state_dict()})


class Draw(NamedTuple):
    """Draws z ``[S, D]`` of a layer's factors and their log densities log q(z) ``[S]``."""

    z: Tensor
    log_q: Tensor


# Distributions ------------------------------------------------------------------------------------------------


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


class MaskedFlow(nn.Module):
    """One masked NVP step: z′ = g z + (1 − g) μ, where shift μ and gate g are functions of m z; m is ``mask [D]``.

    Where the mask is 1, z stays: g is 1.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, hidden: int):
        super().__init__()
        self.register_buffer("mask", mask)
        self.hidden = nn.Linear(len(mask), hidden)
        self.shift_and_gate = nn.Linear(hidden, 2 * len(mask))
        with torch.no_grad():
            self.shift_and_gate.bias[len(mask) :] += GATE_BIAS

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Move z ``[S, D]`` to z′ ``[S, D]``; also the log determinant of ∂z′/∂z ``[S]``."""
        shift, log_gate = self._shift_and_log_gate(z)
        return torch.lerp(shift, z, log_gate.exp()), log_gate.sum(-1)

    def inverse(self, moved: Tensor) -> Tensor:
        """The z ``[S, D]`` that ``forward`` moves to z′ ``[S, D]``."""
        shift, log_gate = self._shift_and_log_gate(moved)
        return torch.lerp(shift, moved, torch.exp(-log_gate))

    def _shift_and_log_gate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        shift, gate = self.shift_and_gate(torch.tanh(self.hidden(self.mask * z))).chunk(2, dim=-1)
        # Gates of 1, whatever the shift, where the mask is: there z stays.
        return shift, (1 - self.mask) * F.logsigmoid(gate)


class Flow(nn.Module):
    """Masked NVP steps one after the other; every second has the complement of the mask before it.

    The masks are drawn once, Bernoulli(½), from PyTorch's global generator.
    """

    def __init__(self, size: int, steps: int, hidden: int):
        super().__init__()
        masks: list[Tensor] = []
        for step in range(steps):
            masks.append(1 - masks[-1] if step % 2 else torch.bernoulli(torch.full((size,), 0.5)))
        self.steps = nn.ModuleList(MaskedFlow(mask, hidden) for mask in masks)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Move z ``[S, D]`` to z′ ``[S, D]``; also the log determinant of ∂z′/∂z ``[S]``."""
        log_det = z.new_zeros(len(z))
        for step in self.steps:
            z, own = step(z)
            log_det = log_det + own
        return z, log_det

    def inverse(self, moved: Tensor) -> Tensor:
        """The z ``[S, D]`` that ``forward`` moves to z′ ``[S, D]``."""
        for step in reversed(self.steps):
            moved = cast("MaskedFlow", step).inverse(moved)
        return moved


class Multipliers(nn.Module):
    """q(z): a factorised Gaussian around 1, moved by a flow."""

    def __init__(self, size: int, flow: Flow):
        super().__init__()
        self.mean = nn.Parameter(1 + 0.01 * torch.randn(size))
        self.log_variance = nn.Parameter(torch.full((size,), math.log(0.1)))
        self.flow = flow

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Standard normal noise ``[S, D]`` → z ``[S, D]`` and log q(z) ``[S]``."""
        z, log_det = self.flow(self.mean + (0.5 * self.log_variance).exp() * noise)
        return z, -0.5 * (math.log(2 * math.pi) + self.log_variance + noise**2).sum(-1) - log_det


class Auxiliary(nn.Module):
    """r(z|W): a flow takes z to z′, which is Gaussian with means and precisions from a summary a ``[H]`` of W."""

    def __init__(self, size: int, flow: Flow, squash: Callable[[Tensor], Tensor]):
        super().__init__()
        self.combine = nn.Parameter(torch.randn(size))
        self.to_mean = nn.Parameter(0.1 * torch.randn(size))
        self.to_log_precision = nn.Parameter(0.1 * torch.randn(size))
        self.flow = flow
        self.squash = squash

    def summarise(self, z: Tensor, mean: Tensor, std: Tensor, noise: Tensor) -> Tensor:
        """The summary a ``[S, H]`` of weights drawn given z ``[S, D]``.

        Weights ``[D, H]`` with that mean (before z multiplies it) and std need not be drawn themselves: their sums
        over D, weighted with ``combine``, are independent Gaussians. ``noise [S, H]`` is standard normal.
        """
        centre = (self.combine * z) @ mean
        return self.squash(centre + _root(self.combine**2 @ std**2) * noise)

    def log_prob(self, z: Tensor, summary: Tensor) -> Tensor:
        """Log density r(z|W) ``[S]`` of z ``[S, D]``, where a ``[S, H]`` sums up W."""
        moved, log_det = self.flow(z)
        level = summary.mean(-1, keepdim=True)  # of the outer product of b and a, averaged over a
        log_precision = self.to_log_precision * level
        squares = log_precision.exp() * (moved - self.to_mean * level) ** 2
        log_density: Tensor = 0.5 * (log_precision - squares - math.log(2 * math.pi)).sum(-1) + log_det
        return log_density


# Layers -------------------------------------------------------------------------------------------------------


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
        return mean + _root(self._variances(x)) * _normal(mean.shape, mean, rng)

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
        summary = self.auxiliary.summarise(z, mean, std, _normal((len(z), mean.shape[1]), mean, rng))
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


def _of(layer: str, parameter: str) -> str:
    return f"{layer}.{parameter}" if layer else parameter


def _normal(shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
    """Standard normal noise from a CPU generator, on the device of ``like``."""
    return torch.randn(shape, generator=rng, dtype=like.dtype).to(like.device)


def _root(variance: Tensor) -> Tensor:
    return variance.clamp_min(LEAST_VARIANCE).sqrt()
