"""SWAG (Maddox et al. 2019) and MultiSWAG (Wilson & Izmailov 2020)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bayes_bench import FitData, Held, Stateful, TensorState, TrainingLoop, WeightPosterior, WeightSamples
from bayes_bench_baselines.ensembles.config import SWAGConfig
from bayes_bench_baselines.ensembles.members import fit_members

MOMENTUM = 0.9


class SWAG(WeightPosterior):
    """A mixture of M Gaussians, each diagonal plus low rank, fitted to the last networks of M trainings."""

    Config = SWAGConfig
    config: SWAGConfig
    uses_prior = True

    _moments: Moments

    def _check_fit(self, data: FitData, budget: int) -> None:
        self.require_memory(self.config.members * (self.config.rank + 2), "lower rank or members")

    def _networks_held(self, drawn: int, data: FitData, budget: int) -> Held:
        members, rank = self.config.members, min(self.config.rank, self.config.collect)
        state = members * (2 + rank)
        return Held(max(members * self.trained_copies(data), 3 * members + state), state, drawn)

    def _fit(self, data: FitData, loop: TrainingLoop, rng: torch.Generator) -> None:
        config, members = self.config, self.config.members
        collecting = config.collect_share * loop.budget
        trained = fit_members(self, data, loop, rng, members=members, use_prior=True, leave=collecting)
        self._moments = Moments(trained, min(config.rank, config.collect))
        weights = TensorState({name: w.clone().requires_grad_() for name, w in trained.items()})
        optimizer = torch.optim.SGD(weights.values(), lr=config.sgd_learning_rate, momentum=MOMENTUM)
        batch_size, n = min(config.batch_size, len(data.train)), len(data.train)
        batches = data.train.minibatches(batch_size, rng, networks=members)
        cost = members * batch_size
        every = max(1, int(collecting / cost / config.collect))
        clock = Clock()

        def step() -> Mapping[str, Tensor]:
            losses = self.losses_to_grad(self.complete(weights), *next(batches), own_inputs=True, stabilised=True)
            (self.negative_log_prior(weights) / n).sum().backward()
            optimizer.step()
            clock.steps += 1
            if clock.steps % every == 0:
                self._moments.collect(weights)
            return {"loss": losses.mean()}

        loop.run(
            step,
            {"networks": weights, "optimizer": optimizer, "batches": batches, "moments": self._moments, "clock": clock},
            cost=cost,
            validate=self.validator(data, config.validation_networks, rng),
            validation_cost=self.validation_cost(data, config.validation_networks),
            validations=5,
        )
        if self._moments.count < config.collect:
            loop.note(f"collected {self._moments.count} networks of {config.collect}: the budget had no more steps")
        loop.diagnose(networks_collected=self._moments.count)

    def _sample(self, n: int, rng: torch.Generator) -> WeightSamples:
        moments, scale = self._moments, math.sqrt(self.config.scale)
        deviations, std = moments.kept, {name: value.sqrt() for name, value in moments.variance().items()}
        # Network by network, so that a draw of k is the start of a draw of n. The low-rank part's noise is one vector
        # for the whole network: drawn anew for every tensor it would lose the covariance between layers.
        draws = []
        for _ in range(n):
            member = int(torch.randint(self.config.members, (), generator=rng))
            common = torch.randn(deviations, generator=rng).to(self.device)
            draw = {}
            for name, initial in self.initial.items():
                noise = torch.randn(initial.shape, generator=rng).to(self.device) * std[name][member]
                shift = torch.tensordot(common.to(initial.dtype), moments.deviations[name][member, :deviations], dims=1)
                shift = shift / math.sqrt(max(1, deviations - 1))
                draw[name] = moments.mean[name][member] + scale * (noise + shift) / math.sqrt(2)
            draws.append(draw)
        return {name: torch.stack([draw[name] for draw in draws]) for name in self.initial}

    def _state(self) -> dict[str, Tensor]:
        moments = self._moments
        parts = {"mean": moments.mean, "deviations": moments.deviations, "variance": moments.variance()}
        named = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
        return named | {"count": torch.tensor(moments.count)}

    def _load_state(self, state: Mapping[str, Tensor]) -> None:
        # Copies: products of what lies elsewhere in memory, as in a file, may round otherwise.
        mean, variance, deviations = (
            {name: state[f"{part}/{name}"].clone() for name in self.initial}
            for part in ("mean", "variance", "deviations")
        )
        self._moments = Moments(mean, next(iter(deviations.values())).shape[1])
        self._moments.squares, self._moments.deviations = variance, deviations
        self._moments.count = int(state["count"])


class Clock(Stateful):
    """Steps since the networks are collected."""

    STATE = ("steps",)

    def __init__(self) -> None:
        self.steps = 0


class Moments:
    """Running mean and squares of networks ``[M, *shape]``, and the last deviations from the mean ``[M, K, *shape]``.

    Where nothing was collected yet it is the network that training ended with, without spread.
    """

    def __init__(self, networks: Mapping[str, Tensor], rank: int):
        self.mean = {name: w.detach().clone() for name, w in networks.items()}
        # Squares around a fixed network: those of the weights themselves would cancel in float32.
        self.origin = {name: w.clone() for name, w in self.mean.items()}
        self.squares = {name: torch.zeros_like(w) for name, w in self.mean.items()}
        self.deviations = {name: w.new_zeros(len(w), rank, *w.shape[1:]) for name, w in self.mean.items()}
        self.rank = rank
        self.count = 0

    @property
    def kept(self) -> int:
        """Deviations that there are."""
        return min(self.rank, self.count)

    @torch.no_grad()
    def collect(self, networks: Mapping[str, Tensor]) -> None:
        """Take in one network of each member."""
        share, place = 1 / (self.count + 1), self.count % self.rank
        for name, w in networks.items():
            if self.count == 0:
                self.mean[name].copy_(w)
            self.mean[name].lerp_(w, share)
            self.squares[name].lerp_((w - self.origin[name]) ** 2, share)
            self.deviations[name][:, place] = w - self.mean[name]
        self.count += 1

    def variance(self) -> dict[str, Tensor]:
        """Of every weight over the networks, name → ``[M, *shape]``."""
        return {name: (self.squares[name] - (w - self.origin[name]) ** 2).clamp(min=0) for name, w in self.mean.items()}

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("mean", "origin", "squares", "deviations", "count")}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        for name, value in state.items():
            setattr(self, name, value)
