"""SGLD, pSGLD and SGHMC: what is stored when, and the stationary distribution against its closed form."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from bayes_bench import Examples, FitData, Gaussian, GaussianPrior, TrainingLoop, UsageError
from bayes_bench.testing import LinearRegression, classification, compare, sghmc_covariance, sgld_covariance
from bayes_bench_baselines.chains.config import SGLDConfig
from bayes_bench_baselines.chains.langevin import Chains, _burning_in, plan_chains, step_size_at
from bayes_bench_baselines.chains.sgld import SGLD


def config(**settings):
    return SGLDConfig(**({"chains": 2, "samples": 20, "batch_size": 10} | settings))


# Plans ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["constant", "polynomial", "cyclical"])
@pytest.mark.parametrize("thinning", [None, 3])
@pytest.mark.parametrize("validation_cost", [0.0, 7.0])
def test_the_plan_keeps_the_budget_and_stores_after_burn_in(schedule, thinning, validation_cost):
    settings = config(schedule=schedule, thinning=thinning, burn_in=0.4)
    plan = plan_chains(settings, 5000, 100, validation_cost)
    assert plan.steps * 20 + plan.validations * validation_cost <= 5000
    assert len(plan.stored) == len(set(plan.stored)) == 10
    assert plan.stored == tuple(sorted(plan.stored))
    assert plan.stored[-1] == plan.steps  # the last network is as far from the start as the budget allows
    for step in plan.stored:
        progress = (step - 1) / plan.steps * (settings.cycles if schedule == "cyclical" else 1) % 1
        assert progress >= 0.4
    if thinning and schedule != "cyclical":
        assert {b - a for a, b in zip(plan.stored, plan.stored[1:], strict=False)} == {3}


@pytest.mark.parametrize("settings", [{"thinning": 50}, {"burn_in": 0.99}])
def test_too_short_a_chain_is_refused_before_training(settings):
    data = FitData(Examples(torch.randn(100, 1), torch.randn(100, 1)))
    posterior = SGLD(nn.Linear(1, 1), Gaussian(1.0), GaussianPrior(), config(**settings))
    with pytest.raises(
        UsageError, match=r"5,000 gradient evaluations, less 0 .* 250 steps of 2 chains.*raise the budget"
    ):
        posterior.fit(data, budget=5000)
    assert not posterior.fitted


def test_a_small_budget_stores_fewer_networks_and_says_so():
    data = FitData(Examples(torch.randn(100, 1), torch.randn(100, 1)))
    posterior = SGLD(nn.Linear(1, 1), Gaussian(1.0), GaussianPrior(), config(samples=2000, burn_in=0.4))
    assert posterior.support == 2000
    summary = posterior.fit(data, budget=5000)
    assert posterior.support == len(posterior.sample(5000, seed=0)["weight"]) == 2 * 150
    assert "300 networks are stored, not 2000: the budget gives the chains too few steps" in summary.notes


def test_chains_longer_than_memory_are_refused_before_training():
    posterior = SGLD(nn.Linear(1000, 1000), Gaussian(1.0, 1000), config=config(chains=1, samples=10**9))
    data = FitData(Examples(torch.randn(4, 1000), torch.randn(4, 1000)))
    with pytest.raises(UsageError, match=r"1,000,000,000 networks of 3.82 MB, 2 copies .* GB; .*lower samples"):
        posterior.fit(data, budget=10**12)


def test_cycles_of_a_few_steps_are_refused_before_training():
    posterior = SGLD(nn.Linear(1, 1), Gaussian(1.0), config=config(schedule="cyclical", cycles=30))
    data = FitData(Examples(torch.randn(100, 1), torch.randn(100, 1)))
    with pytest.raises(UsageError, match="250 steps of 2 chains, too few for 30 cycles of at least 10"):
        posterior.fit(data, budget=5000)


def test_a_preconditioner_needs_a_burn_in_to_adapt_in():
    with pytest.raises(ValueError, match="raise burn_in, or set adapt_always"):
        config(algorithm="psgld", burn_in=0.0)
    config(algorithm="psgld", burn_in=0.0, adapt_always=True)


def test_samples_are_shared_evenly_by_the_chains():
    with pytest.raises(ValueError, match="must be a multiple of chains"):
        SGLDConfig(chains=3, samples=100)


def test_step_sizes_follow_the_schedule():
    assert {step_size_at(config(step_size=0.2), p) for p in (0.0, 0.5, 0.99)} == {0.2}
    decaying = config(step_size=0.2, schedule="polynomial", final_step_size=0.1)
    assert step_size_at(decaying, 0.0) == pytest.approx(0.2)
    assert step_size_at(decaying, 1.0) == pytest.approx(0.02)
    cosines = config(step_size=0.2, schedule="cyclical", cycles=2)
    assert step_size_at(cosines, 0.0) == step_size_at(cosines, 0.5) == pytest.approx(0.2)
    assert step_size_at(cosines, 0.25) == pytest.approx(0.1)
    assert step_size_at(cosines, 0.4999) == pytest.approx(0.0, abs=1e-5)


# Stationary distribution ------------------------------------------------------------------------------------

CHAINS = 200
PROBLEM = LinearRegression.make(2, examples=50, correlation=0.5)


def run(*, batch_size, seed=0, steps=400, **settings):
    """Networks that fitted chains have stored, as vectors ``[chains, 10, D]``, and the record of the fit."""
    plan = {"chains": CHAINS, "samples": 10 * CHAINS, "thinning": 20}
    posterior = PROBLEM.build(SGLD, config(batch_size=batch_size, **plan, **settings))
    summary = posterior.fit(PROBLEM.data, budget=CHAINS * batch_size * steps, seed=seed)
    return PROBLEM.vectors(posterior.state_dict()).reshape(CHAINS, 10, -1), summary


def worst(stored, covariance):
    """Largest distance of mean and covariance from what they should be, in standard errors over chains."""
    centred = stored - PROBLEM.mean
    products = (centred[..., :, None] * centred[..., None, :]).mean(1)
    errors = []
    for found, expected in ((centred.mean(1), 0.0), (products, covariance)):
        errors.append(np.abs((found.mean(0) - expected) / (found.std(0, ddof=1) / math.sqrt(CHAINS))).max())
    return max(errors)


def temperature(stored):
    return compare(PROBLEM, stored.reshape(-1, stored.shape[-1])).temperature


@pytest.mark.parametrize("batch_size", [2, 10, 50])
@pytest.mark.parametrize(("algorithm", "step_size"), [("sgld", 0.05), ("sgld", 0.15), ("sghmc", 0.15)])
def test_chains_have_the_covariance_of_the_discretised_process(algorithm, step_size, batch_size):
    stored, _ = run(algorithm=algorithm, step_size=step_size, batch_size=batch_size, batches="independent")
    expected = (
        sgld_covariance(PROBLEM, step_size, batch_size)
        if algorithm == "sgld"
        else sghmc_covariance(PROBLEM, step_size, 0.1, batch_size)
    )
    assert worst(stored, expected) < 4
    # The test could tell: the posterior itself is not what these chains have.
    if batch_size < 50:
        assert worst(stored, PROBLEM.covariance) > 6


@pytest.mark.parametrize(("algorithm", "step_size"), [("sgld", 0.1), ("psgld", 0.1), ("sghmc", 0.1)])
def test_with_full_batches_and_small_steps_chains_have_the_posterior(algorithm, step_size):
    found = [
        run(algorithm=algorithm, step_size=step, batch_size=50, steps=steps)[0]
        for step, steps in ((step_size, 400), (step_size / 8, 1000))
    ]
    assert worst(found[1], PROBLEM.covariance) < 4.5
    if algorithm != "sghmc":  # whose error is of second order, too small to be seen here
        assert abs(temperature(found[1]) - 1) < abs(temperature(found[0]) - 1)


def test_a_frozen_preconditioner_has_its_closed_form():
    """Every chain has a P of its own, and afterwards the covariance that the closed form gives for it."""
    settings = config(algorithm="psgld", chains=100, samples=2000, batch_size=50, thinning=15, step_size=0.1)
    posterior = PROBLEM.build(SGLD, settings)
    loop = TrainingLoop(100 * 50 * 700)
    chains = Chains(posterior, settings, PROBLEM.data, loop, torch.Generator().manual_seed(0))
    stored = []
    chains.run(
        loop,
        plan_chains(settings, loop.budget, 50, 0.0),
        lambda _: stored.append(PROBLEM.vectors({n: w.clone() for n, w in chains.networks().items()})),
    )
    scales = np.hstack([chains._preconditioner(name).reshape(100, -1).numpy() for name in ("weight", "bias")])
    expected = np.stack([sgld_covariance(PROBLEM, 0.1, None, scale) for scale in scales])
    centred = np.stack(stored, axis=1) - PROBLEM.mean
    excess = (centred[..., :, None] * centred[..., None, :]).mean(1) - expected
    assert np.abs(excess.mean(0) / (excess.std(0, ddof=1) / 10)).max() < 4
    # The test could tell: with the preconditioner of its neighbour a chain has another covariance.
    assert np.abs(expected - np.roll(expected, 1, axis=0)).max() > 0


def test_reshuffled_passes_heat_the_chain_less_than_independent_batches():
    hot, cool = (
        temperature(run(step_size=0.03, batch_size=5, batches=batches)[0]) for batches in ("independent", "epochs")
    )
    assert hot > 1.2
    assert abs(cool - 1) < 0.3 * (hot - 1)


def test_the_record_states_how_much_minibatches_heat_the_chain():
    """For a Gaussian mean the gradients' noise is that of the data alone: ε N σ_g²/(4 B)."""
    rng = torch.Generator().manual_seed(0)
    x, y = torch.ones(200, 1), torch.randn(200, 1, generator=rng)
    settings = config(chains=50, samples=500, step_size=0.1, batch_size=8, batches="independent")
    posterior = SGLD(nn.Linear(1, 1, bias=False), Gaussian(1.0), GaussianPrior(1.0), settings)
    summary = posterior.fit((x, y), budget=50 * 8 * 300)
    expected = 0.1 * 200 * float(y.var(correction=0)) / (4 * 8)
    assert summary.diagnostics["temperature_excess"] == pytest.approx(expected, rel=0.15)
    full = SGLD(posterior.network, Gaussian(1.0), GaussianPrior(1.0), config(batch_size=200, batches="epochs"))
    assert full.fit((x, y), budget=2 * 200 * 300).diagnostics["temperature_excess"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("schedule", ["polynomial", "cyclical"])
def test_the_heat_is_that_of_the_steps_that_sample(schedule):
    """Not of the last one, which is far smaller."""
    shared = {"chains": 50, "samples": 500, "step_size": 0.1, "batch_size": 8, "batches": "independent", "burn_in": 0.5}
    excess = []
    for settings in (shared, shared | {"schedule": schedule, "cycles": 2, "final_step_size": 0.2}):
        posterior = PROBLEM.build(SGLD, config(**settings))
        excess.append(posterior.fit(PROBLEM.data, budget=50 * 8 * 400).diagnostics["temperature_excess"])
    sizes = [
        step_size_at(config(**settings), p) for p in np.arange(400) / 400 if not _burning_in(config(**settings), p)
    ]
    assert excess[1] / excess[0] == pytest.approx(np.mean(sizes) / 0.1, rel=0.3)


def test_the_heat_of_a_preconditioned_chain_counts_its_preconditioner():
    settings = {"chains": 50, "samples": 500, "step_size": 0.02, "batch_size": 8, "batches": "independent"}
    posterior = PROBLEM.build(SGLD, config(algorithm="psgld", **settings))
    loop = TrainingLoop(50 * 8 * 300)
    chains = Chains(posterior, posterior.config, PROBLEM.data, loop, torch.Generator().manual_seed(0))
    chains.run(loop, plan_chains(posterior.config, loop.budget, 50, 0.0), lambda _: None)
    scales = np.hstack([chains._preconditioner(name).reshape(50, -1).numpy() for name in ("weight", "bias")])
    curvatures, residuals = PROBLEM.gradient_terms()
    at = PROBLEM.vectors(chains.networks()) - PROBLEM.mean
    variances = np.stack([(curvatures @ delta + residuals).var(0) / 8 for delta in at])
    expected = 0.02 * 50 / 4 * (scales * variances).mean()
    assert chains.diagnostics()["temperature_excess"] == pytest.approx(expected, rel=0.15)


def test_cycles_are_explored_without_noise():
    """All burn-in and no noise is plain descent to the mode, from wherever the chains start."""
    settings = config(
        chains=CHAINS, samples=CHAINS, batch_size=50, schedule="cyclical", cycles=1, burn_in=0.999, step_size=0.2
    )
    posterior = PROBLEM.build(SGLD, settings)
    posterior.fit(PROBLEM.data, budget=CHAINS * 50 * 1000)
    found = compare(PROBLEM, PROBLEM.vectors(posterior.state_dict()))
    assert found.mean_error_max < 0.05
    assert found.temperature < 0.01


# As a method --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["psgld", "sghmc"])
@pytest.mark.parametrize("schedule", ["polynomial", "cyclical"])
def test_every_algorithm_and_schedule_learns(algorithm, schedule):
    problem = classification()
    settings = config(algorithm=algorithm, schedule=schedule, step_size=0.01 if algorithm == "psgld" else 0.05)
    posterior = SGLD(problem.network, problem.likelihood, GaussianPrior(), settings)
    posterior.fit(problem.data, budget=30_000)
    prediction = posterior.predict(problem.data.train.x, posterior.sample(20, seed=0))
    assert (prediction.label == problem.data.train.y).double().mean() > 0.9


def test_a_draw_is_stored_networks_without_repeats_and_the_record_tells_how_far_chains_agree():
    problem = classification()
    posterior = SGLD(problem.network, problem.likelihood, GaussianPrior(), config())
    summary = posterior.fit(problem.data, budget=20_000)
    assert posterior.support == 20
    drawn = posterior.sample(100, seed=0)
    assert len(drawn["1.weight"]) == len(torch.unique(drawn["1.weight"], dim=0)) == 20
    assert {"temperature_excess", "rhat_log_joint", "ess_log_joint", "rhat_predictions", "ess_predictions"} == set(
        summary.diagnostics
    )
    assert summary.spent <= 20_000
    assert summary.history[-1]["val_nll"] < 0.3
