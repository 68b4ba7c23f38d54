"""Stochastic-gradient Langevin dynamics (Welling & Teh 2011), with preconditioning, momentum and cycles."""

from __future__ import annotations

import torch

from bayes_bench import FitData, Held, TrainingLoop
from bayes_bench_baselines.chains.config import SGLDConfig
from bayes_bench_baselines.chains.langevin import check_chains, sample_chains
from bayes_bench_baselines.chains.stored import StoredChains


class SGLD(StoredChains):
    """Networks stored along stochastic-gradient Markov chains at temperature 1."""

    Config = SGLDConfig
    former_names = ("bayes_bench_baselines.sgld:SGLD",)
    config: SGLDConfig

    def _check_fit(self, data: FitData, budget: int) -> None:
        self.require_memory(self.config.samples, "lower samples", copies=2)
        check_chains(self, self.config, data, budget)

    def _networks_held(self, drawn: int, data: FitData, budget: int) -> Held:
        chains = self.config.chains
        stored = chains * len(check_chains(self, self.config, data, budget).stored)
        return Held(stored + 2 * chains, stored, min(drawn, stored))  # each chain with its gradient

    def _fit(self, data: FitData, loop: TrainingLoop, rng: torch.Generator) -> None:
        self._weights, diagnostics = sample_chains(self, self.config, data, loop, rng)
        loop.diagnose(**diagnostics)
