"""Regression metrics against quadrature, simulation and hand-computed values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from bayes_bench import metrics
from bayes_bench.errors import DivergenceError
from bayes_bench.metrics import regression
from synthetic import METHODS, make_job


@pytest.fixture
def mixture() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(7, 12, 2)), rng.uniform(0.2, 1.5, (7, 12, 2)), 1.5 * rng.normal(size=(12, 2))


def test_rmse_is_of_the_mixtures_mean():
    mean = np.array([[[0.0], [2.0]], [[2.0], [4.0]]])
    assert metrics.rmse(mean, np.array([[1.0], [0.0]])) == pytest.approx(math.sqrt((0 + 9) / 2))


def test_nll_is_of_the_mixture_jointly_over_dimensions(mixture):
    mean, std, y = mixture
    density = norm.pdf(y, mean, std).prod(axis=-1).mean(axis=0)
    assert regression.nll(mean, std, y) == pytest.approx(-np.log(density).mean())
    assert regression.nll(mean[:1], std[:1], y) == pytest.approx(-norm.logpdf(y, mean[0], std[0]).sum(-1).mean())


def test_nll_far_from_all_networks_is_finite():
    value = regression.nll(np.zeros((3, 1, 1)), np.full((3, 1, 1), 0.01), np.array([[50.0]]))
    assert value == pytest.approx(0.5 * 5000**2 + math.log(0.01) + 0.5 * math.log(2 * math.pi))


def test_crps_by_quadrature(mixture):
    mean, std, y = mixture
    grid = np.linspace(-15, 15, 60001)
    for n, d in ((0, 0), (5, 1), (11, 0)):
        cdf = norm.cdf(grid[:, None], mean[:, n, d], std[:, n, d]).mean(axis=1)
        by_hand = ((cdf - (grid >= y[n, d])) ** 2).sum() * (grid[1] - grid[0])
        assert regression.example_crps(mean, std, y)[n, d] == pytest.approx(by_hand, abs=1e-3)


def test_crps_of_one_gaussian_in_closed_form():
    z, sigma = 0.7, 2.0
    expected = sigma * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / math.sqrt(math.pi))
    value = metrics.crps(np.zeros((1, 1, 1)), np.full((1, 1, 1), sigma), np.array([[z * sigma]]))
    assert value == pytest.approx(expected, rel=1e-12)


def test_crps_without_noise_is_the_ensemble_formula():
    members = np.array([0.0, 1.0, 3.0])
    y = 0.5
    expected = np.abs(members - y).mean() - np.abs(members[:, None] - members).mean() / 2
    value = metrics.crps(members[:, None, None], np.zeros((3, 1, 1)), np.array([[y]]))
    assert value == pytest.approx(expected)


def test_crps_chunks_do_not_matter(mixture, monkeypatch):
    mean, std, y = mixture
    whole = regression.example_crps(mean, std, y)
    monkeypatch.setattr("bayes_bench.metrics.base.CHUNK_ELEMENTS", 60)
    np.testing.assert_allclose(regression.example_crps(mean, std, y), whole, rtol=1e-12)


def test_quantiles_invert_the_cdf(mixture):
    mean, std, _ = mixture
    for probability in (0.025, 0.5, 0.975):
        quantile = regression.mixture_quantile(mean, std, probability)
        np.testing.assert_allclose(regression.mixture_cdf(mean, std, quantile), probability, atol=1e-12)


def test_coverage_is_that_of_the_quantiles(mixture):
    mean, std, y = mixture
    low, high = (regression.mixture_quantile(mean, std, p) for p in (0.025, 0.975))
    assert metrics.coverage(mean, std, y) == ((y >= low) & (y <= high)).mean()
    assert regression.band_width(mean, std) == pytest.approx((high - low).mean())


def test_coverage_of_a_right_model_is_its_level():
    rng = np.random.default_rng(1)
    mean = rng.normal(size=(4, 4000, 1))
    drawn = rng.integers(0, 4, 4000)
    y = mean[drawn, np.arange(4000)] + 0.5 * rng.normal(size=(4000, 1))
    standard_error = math.sqrt(0.95 * 0.05 / 4000)
    assert metrics.coverage(mean, np.full_like(mean, 0.5), y) == pytest.approx(0.95, abs=4 * standard_error)


def rows_of(record, predictions) -> dict[str, dict]:
    return {row["name"]: row for row in metrics.compute(predictions, record)}


def test_a_regression_job_has_every_metric():
    record, predictions = make_job(METHODS["hypergan"], 0, "regression", networks=20)
    rows = rows_of(record, predictions)
    assert {name for name, row in rows.items() if row["value"] is None} == set()
    x, std = predictions["curve/x"], predictions["curve/mean"][..., 0].astype(float).std(0)
    outside = (np.abs(x) > 4 + 1e-5).nonzero()
    inside = ((np.abs(x) <= 4 + 1e-5) & ((x <= -1 + 1e-5) | (x >= 1.5 - 1e-5))).nonzero()
    assert rows["epistemic_std/outside"]["value"] == pytest.approx(std[outside].mean())
    assert rows["epistemic_std_ratio/outside_inside"]["value"] == pytest.approx(
        std[outside].mean() / std[inside].mean()
    )
    assert rows["epistemic_variance_ratio/outside_inside"]["value"] == pytest.approx(
        (std[outside] ** 2).mean() / (std[inside] ** 2).mean()
    )
    assert {"epistemic_std_ratio/gap_inside", "crps", "coverage95", "val_nll", "total_variation/outside"} <= rows.keys()
    assert "accuracy" not in rows


def test_one_network_has_no_ratio():
    record, predictions = make_job(METHODS["map"], 0, "regression")
    rows = rows_of(record, predictions)
    assert rows["epistemic_std_ratio/outside_inside"]["reason"] == "one network"
    assert rows["epistemic_std/outside"]["value"] == 0


def test_no_spread_inside_and_no_gap():
    record, predictions = make_job(METHODS["hypergan"], 0, "regression", networks=5)
    curve = predictions["curve/mean"].copy()
    curve[:, np.abs(predictions["curve/x"]) <= 4.01] = 1.0
    record["task_spec"] = record["task_spec"] | {
        "curve": record["task_spec"]["curve"] | {"gap": [], "inside": [[-4, 4]]}
    }
    rows = rows_of(record, predictions | {"curve/mean": curve})
    assert rows["epistemic_std_ratio/outside_inside"]["reason"] == "no spread inside the data"
    assert "epistemic_std/gap" not in rows


def test_a_regression_without_a_curve():
    record, predictions = make_job(METHODS["hypergan"], 0, "regression", networks=5)
    record["task_spec"] = record["task_spec"] | {"curve": None}
    kept = {name: array for name, array in predictions.items() if not name.startswith("curve/")}
    rows = rows_of(record, kept)
    assert rows["rmse"]["value"] > 0
    assert not any(name.startswith("epistemic") for name in rows)
    assert metrics.alarms(kept, record) == []


def test_diverged_predictions_are_an_error():
    record, predictions = make_job(METHODS["hypergan"], 0, "regression", networks=5)
    predictions["test/mean"][0, 0] = np.inf
    with pytest.raises(DivergenceError, match="infinity"):
        metrics.compute(predictions, record)
