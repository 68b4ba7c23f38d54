"""Deep ensembles (Lakshminarayanan et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bayes_bench import FitData, Held, TrainingLoop, WeightPosterior, WeightSamples
from bayes_bench_baselines.ensembles.config import DeepEnsembleConfig
from bayes_bench_baselines.ensembles.members import fit_members


class DeepEnsemble(WeightPosterior):
    """M networks that differ by initialisation and order of the data; a draw gives M at the most."""

    Config = DeepEnsembleConfig
    former_names = ("bayes_bench_baselines.ensemble:DeepEnsemble",)
    config: DeepEnsembleConfig

    _weights: WeightSamples

    @property
    def uses_prior(self) -> bool:  # type: ignore[override]
        return self.config.map_members

    @property
    def support(self) -> int:
        return self.config.members

    def _networks_held(self, drawn: int, data: FitData, budget: int) -> Held:
        members = self.config.members
        return Held(self.trained_copies(data) * members, members, min(drawn, members))

    def _fit(self, data: FitData, loop: TrainingLoop, rng: torch.Generator) -> None:
        self._weights = fit_members(
            self,
            data,
            loop,
            rng,
            members=self.config.members,
            use_prior=self.config.map_members,
            adversarial_epsilon=self.config.adversarial_epsilon,
        )

    def _sample(self, n: int, rng: torch.Generator) -> WeightSamples:
        # Which members: a random choice without repeats, so that a small draw favours no member.
        chosen = torch.randperm(self.config.members, generator=rng)[:n].to(self.device)
        return {name: value[chosen] for name, value in self._weights.items()}

    def _state(self) -> dict[str, Tensor]:
        return self._weights

    def _load_state(self, state: Mapping[str, Tensor]) -> None:
        self._weights = dict(state)
