"""Convergence diagnostics against chains whose effective sample size is known."""

import numpy as np
import pytest

from bayes_bench import UsageError, effective_sample_size, split_rhat
from bayes_bench.posterior import chains


def autoregressive(rho, chains, length, quantities=1, seed=0):
    """Stationary chains x_t = ρ x_{t−1} + noise with unit variance, ``[chains, length, quantities]``."""
    rng = np.random.default_rng(seed)
    x = np.empty((chains, length, quantities))
    x[:, 0] = rng.normal(size=(chains, quantities))
    for t in range(1, length):
        x[:, t] = rho * x[:, t - 1] + np.sqrt(1 - rho**2) * rng.normal(size=(chains, quantities))
    return x


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.5, 0.9])
def test_effective_size_of_an_autoregressive_chain(rho):
    """τ = (1 + ρ)/(1 − ρ)."""
    size = effective_sample_size(autoregressive(rho, 4, 4000, quantities=40))
    expected = 16_000 * (1 - rho) / (1 + rho)
    assert abs(size.mean() / expected - 1) < 0.08
    assert (abs(size / expected - 1) < 0.5).all()


def test_effective_size_is_the_precision_of_the_mean():
    x = autoregressive(0.7, 2, 2000, quantities=400)
    claimed = 1 / effective_sample_size(x).mean()
    assert claimed == pytest.approx((x.mean((0, 1)) ** 2).mean(), rel=0.25)


def test_chains_that_agree_have_a_scale_reduction_of_one():
    rhat = split_rhat(np.random.default_rng(0).normal(size=(4, 2000, 50)))
    assert rhat.max() < 1.01
    assert rhat.min() > 0.999


def test_separated_chains_show():
    x = np.random.default_rng(0).normal(size=(4, 500)) + np.array([[0.0], [0.0], [0.0], [5.0]])
    assert split_rhat(x) > 2
    assert effective_sample_size(x) < 10


def test_a_drift_shows_in_one_chain_alone():
    x = np.random.default_rng(0).normal(size=(1, 1000)) + np.linspace(0, 5, 1000)
    assert split_rhat(x) > 1.5
    assert effective_sample_size(x) < 20


def test_scale_reduction_by_hand():
    """Halves (0, 2) and (4, 8): W = (2 + 8)/2 = 5, means 1 and 6 with variance 12.5, V = 5/2 + 12.5 = 15."""
    assert split_rhat([[0, 2, 4, 8]]) == pytest.approx(np.sqrt(15 / 5))
    assert split_rhat([[0, 2, 99, 4, 8]]) == pytest.approx(np.sqrt(15 / 5)), "the middle draw is left out"


def test_effective_size_by_hand():
    """The same halves: autocovariances 5/2 and −5/4, ρ₁ = 1 − (5 + 5/4)/15 = 7/12, τ = −1 + 2(1 + 7/12) = 13/6."""
    assert effective_sample_size([[0, 2, 4, 8]]) == pytest.approx(4 / (13 / 6))


def test_alternating_draws_have_a_least_autocorrelation_time():
    x = np.tile([1.0, -1.0], 500)[None]
    assert effective_sample_size(x) == pytest.approx(1000 * np.log10(1000))


@pytest.mark.parametrize("value", [0.0, 0.1, 1e8 + 0.3])
def test_equal_draws(value):
    x = np.full((3, 7, 2), value)
    assert (split_rhat(x) == 1).all()
    assert (effective_sample_size(x) == 18).all()


def test_chains_that_stand_still_at_different_values():
    x = np.repeat([[0.1], [0.7]], 8, axis=1)
    assert split_rhat(x) == np.inf
    assert 0 < effective_sample_size(x) <= 4


def test_a_large_offset_changes_nothing():
    x = autoregressive(0.5, 2, 400)
    np.testing.assert_allclose(split_rhat(x + 1e6), split_rhat(x), rtol=1e-6)
    np.testing.assert_allclose(effective_sample_size(x + 1e6), effective_sample_size(x), rtol=1e-6)


def test_trailing_dimensions_and_blocks(monkeypatch):
    x = autoregressive(0.5, 3, 51, quantities=12).reshape(3, 51, 4, 3)
    whole = split_rhat(x), effective_sample_size(x)
    assert whole[0].shape == whole[1].shape == (4, 3)
    monkeypatch.setattr(chains, "BLOCK", 2 * 3 * 51)
    for statistic, expected in zip((split_rhat, effective_sample_size), whole, strict=True):
        np.testing.assert_allclose(statistic(x), expected)
        np.testing.assert_allclose(statistic(x[..., 2, 1]), expected[2, 1])
    assert split_rhat(x[..., :0, 0]).shape == (0,)


def test_short_chains_are_finite():
    x = np.random.default_rng(0).normal(size=(1, 4, 200))
    assert np.isfinite(split_rhat(x)).all()
    size = effective_sample_size(x)
    assert ((size > 0) & (size <= 4)).all()


@pytest.mark.parametrize("draws", [np.zeros(9), np.zeros((2, 3)), np.zeros((0, 9)), np.full((2, 9), np.nan)])
def test_what_cannot_be_diagnosed_is_refused(draws):
    with pytest.raises(UsageError, match="draws"):
        split_rhat(draws)
