"""Multiplicative normalizing flows (Louizos & Welling 2017): factorised Gaussians with shared random factors.

Letters: S draws, B batch, D entries of z, H columns of a layer's weights seen as a matrix ``[D, H]``.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import cast

import torch
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
from bayes_bench_baselines.variational.config import MNFConfig
from bayes_bench_baselines.variational.mnf_layers import Draw, FactorisedGaussian, MNFConv, MNFLayer, MNFLinear, normal

TREATED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


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
                name: part.sample(normal((1, part.noise_size), part.mean, rng)) for name, part in self._others.items()
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
            drawn[name] = part.draw_z(normal((len(x), part.size), x, rng))
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


# Layers -------------------------------------------------------------------------------------------------------


def _of(layer: str, parameter: str) -> str:
    return f"{layer}.{parameter}" if layer else parameter
