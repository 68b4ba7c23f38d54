"""The adapter of laplace-torch; what every method must keep is in test_conformance."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor, nn

from bayes_bench import Categorical, Examples, FitData, Gaussian, GaussianPrior
from bayes_bench.errors import PluginError, UsageError
from bayes_bench.methods import registry
from bayes_bench.testing import classification
from bayes_bench_baselines.laplace.config import LaplaceConfig

pytest.importorskip("laplace", reason="laplace-torch is optional")

from bayes_bench_baselines.laplace.laplace import Laplace

N, FEATURES, NOISE = 60, 3, 0.5


def line() -> tuple[Tensor, Tensor]:
    x = torch.randn(N, FEATURES, generator=torch.Generator().manual_seed(0))
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]]) + NOISE * torch.randn(N, 1, generator=torch.Generator().manual_seed(1))
    return x, y


def fitted(**settings: object) -> Laplace:
    network = nn.Linear(FEATURES, 1, bias=False)
    posterior = Laplace(
        network,
        Gaussian(NOISE),
        GaussianPrior(2.0),
        LaplaceConfig(learning_rate=0.05, keep_best=False, batch_size=60, **settings),
    )
    posterior.fit(line(), budget=60_000, seed=0)
    return posterior


@pytest.mark.parametrize("weights", ["all", "last_layer"])
def test_of_a_linear_model_it_is_the_posterior(weights: str) -> None:
    """There the Gauss–Newton matrix is xᵀx/σ², and a Kronecker factorisation of it exact."""
    x, y = line()
    precision = x.T @ x / NOISE**2 + torch.eye(FEATURES) / 4
    covariance = torch.linalg.inv(precision)
    mean = (covariance @ x.T @ y / NOISE**2)[:, 0]
    posterior = fitted(weights=weights)
    drawn = posterior.sample(4000, seed=1)["weight"][:, 0]
    assert torch.allclose(drawn.mean(0), mean, atol=4 * float(covariance.diagonal().max().sqrt()) / 4000**0.5 + 2e-3)
    # Standard error of a variance from 4,000 draws: √(2/4000), 2 %.
    assert torch.allclose(torch.cov(drawn.T).diagonal(), covariance.diagonal(), rtol=0.1)
    correlation = torch.corrcoef(drawn.T)
    scale = covariance.diagonal().rsqrt()
    assert torch.allclose(correlation, covariance * scale * scale[:, None], atol=0.07)


def test_a_diagonal_has_the_diagonals_of_the_precision() -> None:
    x, _ = line()
    precision = (x**2).sum(0) / NOISE**2 + 1 / 4
    drawn = fitted(weights="all", curvature="diag").sample(4000, seed=1)["weight"][:, 0]
    assert torch.allclose(drawn.var(0), 1 / precision, rtol=0.1)


def test_the_prior_can_be_fitted() -> None:
    widths = [fitted(prior_precision=way).sample(1000, seed=1)["weight"].std(0) for way in ("task", "marglik")]
    assert not torch.allclose(*widths)


def moons() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    x = torch.randn(80, 2, generator=torch.Generator().manual_seed(0))
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3)), (x, (x[:, 0] > 0).long() + (x[:, 1] > 1).long())


def test_only_the_last_layer_is_uncertain() -> None:
    network, data = moons()
    posterior = Laplace(network, Categorical(3))
    summary = posterior.fit(data, budget=8000, seed=0)
    drawn = posterior.sample(5, seed=0)
    assert all(torch.equal(drawn["0.weight"][0], one) for one in drawn["0.weight"])
    assert not torch.equal(drawn["2.weight"][0], drawn["2.weight"][1])
    # One pass over the 80 training examples (less what validation takes) for each output is paid.
    assert summary.spent <= 8000


def test_too_small_a_budget_and_other_likelihoods_are_refused() -> None:
    network, data = moons()
    with pytest.raises(UsageError, match="needs a budget of at least"):
        Laplace(network, Categorical(3)).fit(data, budget=300, seed=0)


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(registry, "find_spec", lambda name: None if name == "laplace" else real(name))
    with pytest.raises(PluginError, match=r"needs a package that is not installed: pip install 'laplace-torch>=0.2.2'"):
        registry.method_class("laplace")
    assert registry.inspect_methods()["laplace"].needs == "laplace-torch>=0.2.2"
    assert registry.resolve_config("laplace", {"weights": "all"}).weights == "all"


def test_by_default_it_is_no_worse_than_the_network_that_it_is_around() -> None:
    """The task's own prior makes samples that hardly fit; validation finds how wide the Gaussian may be."""
    problem = classification()
    train, rest = problem.data.train, torch.arange(len(problem.data.train)) % 8 != 0
    x, y = train.inputs(), train.y
    data = FitData(Examples(x[~rest], y[~rest]), Examples(x[rest], y[rest]))
    wide = GaussianPrior(100.0)
    scores = {}
    for way in ("validation", "task"):
        posterior = Laplace(problem.network, problem.likelihood, wide, LaplaceConfig(prior_precision=way))
        summary = posterior.fit(data, budget=20_000)
        assert summary.spent <= 20_000
        assert any("by validation" in note for note in summary.notes) == (way == "validation")
        log_probs = posterior.predict(x[rest], posterior.sample(100, seed=0)).mean.log()
        scores[way] = float(-log_probs[torch.arange(len(log_probs)), y[rest]].mean())
        centre = {name: value[None] for name, value in posterior._map.items()}
        best = posterior.predict(x[rest], centre).mean.log()
        scores["map"] = float(-best[torch.arange(len(best)), y[rest]].mean())
    assert scores["validation"] < scores["map"] + 0.02
    assert scores["task"] > scores["validation"] + 0.1


def test_given_weights_need_no_training() -> None:
    problem = classification()
    posterior = Laplace(problem.network, problem.likelihood, start="given")
    summary = posterior.fit(problem.data, budget=20_000)
    assert summary.steps == 0
    for name, value in problem.network.named_parameters():
        assert torch.equal(posterior._map[name], value)


def test_files_of_before_say_fit_prior() -> None:
    assert LaplaceConfig(fit_prior=True).prior_precision == "marglik"
    assert LaplaceConfig(fit_prior=False).prior_precision == "task"
