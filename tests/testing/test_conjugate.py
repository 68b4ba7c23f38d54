"""The test bed's exact posterior and closed forms, against autograd and brute-force simulation."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from bayes_bench import GaussianPrior, UsageError
from bayes_bench.testing import LinearRegression, compare, compare_moments, sghmc_covariance, sgld_covariance
from bayes_bench_baselines.ensembles.ensemble import DeepEnsemble
from bayes_bench_baselines.ensembles.map import MAP, MAPConfig

SMALL = LinearRegression.make(2, examples=30, correlation=0.8, bias=False)


# The exact posterior ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("prior", [GaussianPrior(0.7), GaussianPrior(1.3, "fan_in")])
def test_the_posterior_is_that_of_the_library(bias, prior):
    """Mean and precision: zero and Hessian of the gradient of N · mean NLL + penalty as methods compute them."""
    made = LinearRegression.make(3, bias=bias)
    problem = LinearRegression(made.x, made.y, made.noise_std, prior, bias)
    posterior = problem.build(MAP)
    x, y = problem.x.double(), problem.y.double()

    def potential(vector):
        weights = {"weight": vector[None, None, :3], "bias": vector[None, 3:]}
        weights = {name: weights[name] for name in posterior.initial}
        outputs = (x @ weights["weight"].mT) + (weights["bias"][:, None] if bias else 0)
        return (len(x) * posterior.loss(outputs, y, weights) + posterior.prior.penalty(weights)).sum()

    mean = torch.from_numpy(problem.mean)
    gradient = torch.autograd.functional.jacobian(potential, mean)
    hessian = torch.autograd.functional.hessian(potential, mean)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-8)
    torch.testing.assert_close(hessian, torch.from_numpy(problem.precision), rtol=1e-8, atol=1e-8)


def test_the_design_has_the_correlation_asked_for():
    x = LinearRegression.make(4, examples=20_000, correlation=0.95).x
    correlations = np.corrcoef(x.numpy(), rowvar=False)[np.triu_indices(4, 1)]
    assert abs(correlations - 0.95).max() < 0.01


def test_draws_of_a_method_become_vectors():
    problem = LinearRegression.make(3)
    config = MAPConfig(batch_size=100, learning_rate=0.05)
    posterior = problem.build(MAP, config)
    posterior.fit(problem.data, budget=100 * 1000)
    vectors = problem.vectors(posterior.sample(1, seed=0))
    assert vectors.shape == (1, 4)
    found = compare(problem, vectors)
    assert found.mean_error_max < 0.05
    assert (found.temperature, found.covariance_error, found.kl) == (0, 1, math.inf)


# MomentErrors ---------------------------------------------------------------------------------------------------


def test_exact_draws_differ_as_much_as_chance_allows():
    problem = LinearRegression.make(5)
    draws, d = 4000, 6
    found = compare(problem, problem.draws(draws))
    assert found.mean_error_rms < 3 / math.sqrt(draws)
    assert found.covariance_error == pytest.approx(math.sqrt((d + 1) / draws), rel=0.4)
    assert abs(found.temperature - 1) < 4 * math.sqrt(2 / (draws * d))
    assert found.kl == pytest.approx((d * (d + 1) / 4 + d / 2) / draws, rel=0.6)


def test_comparison_against_torch():
    problem = LinearRegression.make(3)
    rng = np.random.default_rng(0)
    mean = problem.mean + 0.1 * rng.normal(size=4)
    covariance = np.cov(rng.normal(size=(4, 9))) / 50
    found = compare_moments(problem, mean, covariance)
    exact = MultivariateNormal(torch.from_numpy(problem.mean), torch.from_numpy(problem.covariance))
    other = MultivariateNormal(torch.from_numpy(mean), torch.from_numpy(covariance))
    assert found.kl == pytest.approx(float(kl_divergence(other, exact)), rel=1e-6)
    assert found.temperature == pytest.approx(np.trace(problem.precision @ covariance) / 4)


def test_a_tempered_posterior_shows_its_temperature():
    found = compare_moments(SMALL, SMALL.mean, 2.5 * SMALL.covariance)
    assert found.temperature == pytest.approx(2.5)
    assert found.covariance_error == pytest.approx(1.5)


def test_the_best_factorised_gaussian():
    problem = LinearRegression.make(3)
    best = compare_moments(problem, problem.mean, problem.factorised_covariance)
    precision = problem.precision
    expected = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    assert best.kl == pytest.approx(expected)
    for factor in (0.9, 1.1):
        assert compare_moments(problem, problem.mean, factor * problem.factorised_covariance).kl > best.kl


def test_draws_that_do_not_span_the_space_have_infinite_divergence():
    problem = LinearRegression.make(5)
    posterior = problem.build(DeepEnsemble)
    posterior.fit(problem.data, budget=5000)
    vectors = problem.vectors(posterior.sample(5, seed=0))
    assert compare(problem, vectors).kl == math.inf


# Closed forms -------------------------------------------------------------------------------------------------


def simulate(problem, step_size, batch_size, friction=1.0, preconditioner=1.0, chains=3000, steps=250):
    """Final positions of independent chains that start at the posterior mean, ``[chains, D]``."""
    rng = np.random.default_rng(1)
    n, d = problem.design.shape
    y = problem.y.double().numpy()[:, 0]
    theta = np.tile(problem.mean, (chains, 1))
    velocity = np.zeros_like(theta)
    rate = friction * step_size / 2
    for _ in range(steps):
        index = rng.integers(0, n, (chains, batch_size))
        rows = problem.design[index]
        errors = (rows @ theta[:, :, None])[..., 0] - y[index]
        gradient = (rows * errors[..., None]).mean(1) / problem.noise_std**2 + problem.prior_precision * theta / n
        noise = rng.normal(size=(chains, d)) * np.sqrt(2 * friction * rate * preconditioner / n)
        velocity = (1 - friction) * velocity - rate * preconditioner * gradient + noise
        theta = theta + velocity
    return theta


def test_sgld_covariance_is_that_of_all_batches_enumerated():
    """The second moments, iterated with every batch of two examples in turn: no simulation, no Kronecker product."""
    n, step_size = len(SMALL.x), 0.1
    curvatures, residuals = SMALL.gradient_terms()
    left, right = (index.ravel() for index in np.meshgrid(range(n), range(n)))
    steps = np.eye(2) - step_size / 2 * (curvatures[left] + curvatures[right]) / 2
    shifts = step_size / 2 * (residuals[left] + residuals[right]) / 2
    added = shifts.T @ shifts / n**2 + step_size / n * np.eye(2)
    covariance = np.zeros((2, 2))
    for _ in range(600):
        covariance = (steps @ covariance @ steps.transpose(0, 2, 1)).mean(0) + added
    np.testing.assert_allclose(sgld_covariance(SMALL, step_size, 2), covariance, rtol=1e-8)


def assert_same_covariance(draws, expected):
    """Within four standard errors, which are those of the products of centred coordinates."""
    centred = draws - draws.mean(0)
    products = centred[:, :, None] * centred[:, None, :]
    error = products.std(0) / math.sqrt(len(draws))
    assert (np.abs(products.mean(0) - expected) < 4 * error).all()


@pytest.mark.parametrize("batch_size", [1, 5, 30])
def test_sgld_covariance_is_that_of_a_simulation(batch_size):
    step_size = 0.08 if batch_size == 1 else 0.15
    expected = sgld_covariance(SMALL, step_size, batch_size)
    assert_same_covariance(simulate(SMALL, step_size, batch_size), expected)
    assert compare_moments(SMALL, SMALL.mean, expected).temperature > 1.15, "the bias is what is tested"


def test_preconditioned_sgld_covariance_is_that_of_a_simulation():
    preconditioner = np.array([0.4, 1.5])
    expected = sgld_covariance(SMALL, 0.1, 3, preconditioner)
    assert_same_covariance(simulate(SMALL, 0.1, 3, preconditioner=preconditioner), expected)


@pytest.mark.parametrize(("friction", "batch_size"), [(0.1, 1), (0.1, 10), (0.5, 5)])
def test_sghmc_covariance_is_that_of_a_simulation(friction, batch_size):
    expected = sghmc_covariance(SMALL, 0.1, friction, batch_size)
    assert_same_covariance(simulate(SMALL, 0.1, batch_size, friction), expected)


def test_the_multiplicative_noise_is_needed():
    """With the noise at the posterior mean alone, the covariance of single-example batches would be too small."""
    _, residuals = SMALL.gradient_terms()
    step, h = np.eye(2) - 0.04 * SMALL.precision / 30, 0.04
    added = h**2 * residuals.T @ residuals / 30 + 0.08 / 30 * np.eye(2)
    additive = np.linalg.solve(np.eye(4) - np.kron(step, step), added.ravel()).reshape(2, 2)
    assert np.trace(sgld_covariance(SMALL, 0.08, 1)) > 1.05 * np.trace(additive)


def test_small_full_batch_steps_give_the_posterior():
    problem = LinearRegression.make(2)
    errors = [
        compare_moments(problem, problem.mean, covariance).covariance_error
        for step_size in (0.02, 0.01)
        for covariance in (
            sgld_covariance(problem, step_size, None),
            sghmc_covariance(problem, step_size, 0.2, None),
            sgld_covariance(problem, step_size, None, np.array([1.0, 0.5, 2.0])),
        )
    ]
    assert max(errors[3:]) < 0.05
    np.testing.assert_allclose(np.divide(errors[:3], errors[3:]), 2, rtol=0.1)


@pytest.mark.parametrize("batch_size", [4, None])
def test_full_friction_is_sgld(batch_size):
    left = sghmc_covariance(SMALL, 0.1, 1.0, batch_size)
    np.testing.assert_allclose(left, sgld_covariance(SMALL, 0.1, batch_size), rtol=1e-10)


def test_the_mean_of_a_gaussian():
    """Noise that does not depend on θ: variance · N · h = (1 + εNσ_g²/4B)/(1 − εh/4), σ_g² of the gradients."""
    rng = torch.Generator().manual_seed(0)
    problem = LinearRegression(torch.ones(50, 1), torch.randn(50, 1, generator=rng), 1.0, bias=False)
    n, step_size, batch_size = 50, 0.3, 8
    h = problem.precision.item() / n
    noise = problem.gradient_terms()[1].var()
    expected = (1 + step_size * n * noise / (4 * batch_size)) / (1 - step_size * h / 4) / (n * h)
    assert sgld_covariance(problem, step_size, batch_size).item() == pytest.approx(expected)


def test_a_step_that_is_too_large_is_refused():
    with pytest.raises(UsageError, match="lower step_size"):
        sgld_covariance(SMALL, 5.0, None)
    with pytest.raises(UsageError, match="lower step_size"):
        sgld_covariance(SMALL, 0.5, 1)
