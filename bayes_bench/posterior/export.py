"""Drawn networks as one plain module, for deployment: no posterior, no stacking, only what exporters understand."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bayes_bench.posterior.likelihood import RESERVED, Likelihood
from bayes_bench.posterior.stacked.scaled import take

FRACTION = 1e-30
"""Probabilities below it count as it in entropies."""


class ClassOutputs(NamedTuple):
    """Of a classification: mean probabilities ``[B, C]``; entropy and mutual information ``[B]`` in nats."""

    mean: Tensor
    entropy: Tensor
    mutual_information: Tensor


class ValueOutputs(NamedTuple):
    """Of a regression, ``[B, D]`` each: mean, variance between the networks, mean variance of the noise."""

    mean: Tensor
    epistemic_variance: Tensor
    aleatoric_variance: Tensor


class DrawnNetworks(nn.Module):
    """S networks of a posterior as copies side by side, and what a prediction says of their mixture.

    The float32 twin of ``posterior.predict``: the same numbers to about 1e-6. Parameters that the networks share are
    one tensor.

    Args:
        network: the architecture, in evaluation mode.
        before: what all networks share and begin with, or None.
        likelihood: what the outputs mean.
        weights: name → ``[S, *shape]``.
    """

    def __init__(
        self, network: nn.Module, before: nn.Module | None, likelihood: Likelihood, weights: Mapping[str, Tensor]
    ):
        super().__init__()
        size = len(next(iter(weights.values())))
        self.before = before
        self.classes = likelihood.kind == "classification"
        own = {name: weights[name] for name, _ in network.named_parameters()}
        shared = {name: _parameter(value[0]) for name, value in own.items() if value.stride(0) == 0}
        self.networks = nn.ModuleList(_filled(network, own, shared, s) for s in range(size))
        self._likelihood = likelihood
        self._own: list[list[str]] = []
        for s in range(size):
            self._own.append([name for name in weights if name.startswith(RESERVED)])
            for name in self._own[-1]:
                self.register_buffer(f"reserved_{s}_{name.removeprefix(RESERVED)}", weights[name][s].detach().clone())

    def forward(self, x: Tensor) -> ClassOutputs | ValueOutputs:
        """Of inputs ``[B, …]``, as the posterior takes them."""
        seen = x if self.before is None else self.before(x)
        predicted = [self._predicted(s, network(seen.clone())) for s, network in enumerate(self.networks)]
        if self.classes:
            probs = torch.stack([one["log_probs"] for one in predicted]).exp()
            mean = probs.mean(0)
            entropy = _entropy(mean)
            return ClassOutputs(mean, entropy, (entropy - _entropy(probs).mean(0)).clamp(min=0))
        means = torch.stack([one["mean"] for one in predicted])
        noise = torch.stack([one["noise_std"] for one in predicted])
        mean = means.mean(0)
        return ValueOutputs(mean, ((means - mean) ** 2).mean(0), (noise**2).mean(0))

    def _predicted(self, s: int, outputs: Tensor) -> dict[str, Tensor]:
        own = {name: self.get_buffer(f"reserved_{s}_{name.removeprefix(RESERVED)}")[None] for name in self._own[s]}
        predicted = self._likelihood.predict(outputs[None], own)
        return {name: value[0] for name, value in predicted.items()}


def _filled(network: nn.Module, weights: Mapping[str, Tensor], shared: Mapping[str, nn.Parameter], s: int) -> nn.Module:
    """A copy of the network with the weights of sample s, of which the shared ones are not copied."""
    made = copy.deepcopy(network)
    filled = dict(shared)
    for name in weights.keys() - shared.keys():
        filled[name] = _parameter(take(weights[name], s, s + 1)[0])
    first = {id(parameter): name for name, parameter in network.named_parameters()}
    for name, parameter in network.named_parameters(remove_duplicate=False):  # tied ones stay tied
        folder, _, last = name.rpartition(".")
        setattr(made.get_submodule(folder), last, filled[first[id(parameter)]])
    return made


def _parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=False)


def _entropy(probs: Tensor) -> Tensor:
    return -(probs * probs.clamp(min=FRACTION).log()).sum(-1)
