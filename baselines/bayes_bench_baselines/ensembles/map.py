"""MAP: one ordinary network, the reference row."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bayes_bench import FitData, Held, TrainingLoop, WeightPosterior, WeightSamples
from bayes_bench_baselines.ensembles.config import MAPConfig
from bayes_bench_baselines.ensembles.members import fit_members


class MAP(WeightPosterior):
    """A point estimate: argmin of mean NLL − log prior / N."""

    Config = MAPConfig
    former_names = ("bayes_bench_baselines.map:MAP",)
    uses_prior = True
    support = 1

    _weights: WeightSamples

    def _networks_held(self, drawn: int, data: FitData, budget: int) -> Held:
        return Held(self.trained_copies(data), 1, 1)

    def _fit(self, data: FitData, loop: TrainingLoop, rng: torch.Generator) -> None:
        self._weights = fit_members(self, data, loop, rng, members=1, use_prior=True)

    def _sample(self, n: int, rng: torch.Generator) -> WeightSamples:
        return {name: value.clone() for name, value in self._weights.items()}

    def _state(self) -> dict[str, Tensor]:
        return self._weights

    def _load_state(self, state: Mapping[str, Tensor]) -> None:
        self._weights = dict(state)
