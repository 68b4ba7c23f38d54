"""The adapter of posteriors' variational inference; what every method must keep is in test_conformance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bayes_bench import Gaussian, GaussianPrior
from bayes_bench_baselines.variational.config import VIConfig

pytest.importorskip("posteriors", reason="posteriors is optional")

from bayes_bench_baselines.variational.vi import VI

N, FEATURES, NOISE = 60, 3, 0.5


def line() -> tuple[Tensor, Tensor]:
    x = torch.randn(N, FEATURES, generator=torch.Generator().manual_seed(0))
    x[:, 1] += 0.8 * x[:, 0]  # correlated, so that mean field is not the posterior
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]]) + NOISE * torch.randn(N, 1, generator=torch.Generator().manual_seed(1))
    return x, y


def test_of_a_linear_model_it_is_the_best_mean_field() -> None:
    """Its mean is the posterior's, its precisions are the diagonal of the posterior's precision (closed form)."""
    x, y = line()
    precision = x.T @ x / NOISE**2 + torch.eye(FEATURES) / 4
    mean = torch.linalg.solve(precision, x.T @ y / NOISE**2)[:, 0]
    config = VIConfig(batch_size=N, learning_rate=0.01, samples=4, initial_std=0.1, keep_best=False)
    posterior = VI(nn.Linear(FEATURES, 1, bias=False), Gaussian(NOISE), GaussianPrior(2.0), config)
    posterior.fit((x, y), budget=4 * N * 1500, seed=0)
    drawn = posterior.sample(4000, seed=1)["weight"][:, 0]
    std = precision.diagonal().rsqrt()
    # The standard error of the draws is a 63rd of std; the last steps of Adam move the mean by a part of it.
    assert torch.allclose(drawn.mean(0), mean, atol=0.3 * float(std.max()))
    assert torch.allclose(drawn.std(0), std, rtol=0.15)
    assert float(torch.corrcoef(drawn.T)[0, 1]) == pytest.approx(0, abs=0.08)


def test_the_same_seed_gives_the_same_fit() -> None:
    def fitted() -> Tensor:
        posterior = VI(nn.Linear(FEATURES, 1), Gaussian("learned"), None, VIConfig(samples=2))
        posterior.fit(line(), budget=5000, seed=3)
        return posterior.sample(2, seed=0)["weight"]

    assert torch.equal(fitted(), fitted())
