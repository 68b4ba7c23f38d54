"""Distances to a reference against hand computations and independent numerical integration."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import ndtr
from scipy.stats import norm

from bayes_bench import metrics
from bayes_bench.metrics import distance
from bayes_bench.metrics.references import reduce
from synthetic import METHODS, make_job, task_spec

ERROR = 0.001  # what the docstring of mixture_total_variation promises


def job(kind: str, label: str = "hypergan", seed: int = 0, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    spec = task_spec(kind) | {"reference": "any"} | changes
    return make_job(METHODS[label], seed, kind, networks=20, examples=60, spec=spec)


def values(record, predictions, arrays) -> dict[str, float]:
    rows = metrics.compute(predictions, record, distance.CATALOGUE, arrays)
    assert all(row["group"] == "reference" for row in rows)
    return {row["name"]: row["value"] for row in rows}


# Classification -------------------------------------------------------------------------------------------


def test_by_hand() -> None:
    ours = np.array([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0]])
    theirs = np.array([[0.1, 0.8, 0.1], [0.5, 0.3, 0.2]])
    np.testing.assert_allclose(distance.total_variation_of_means(ours, theirs), [0.6, 0.2])
    assert distance.agreement(ours, theirs) == 0.5


def test_class_variance_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    probs = np.array([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]])
    with np.errstate(divide="ignore"):
        logs = np.log(probs)
    np.testing.assert_allclose(distance.class_variance(logs), [0.25 + 0.25, 0.0])
    monkeypatch.setattr("bayes_bench.metrics.base.CHUNK_ELEMENTS", 4)
    np.testing.assert_allclose(distance.class_variance(logs), [0.5, 0.0])


def test_of_a_classification_job() -> None:
    record, predictions = job("classification", "mcdropout")
    _, other = job("classification", "hypergan", 1)
    found = values(record, predictions, reduce(other))
    probs, expected = ({name: np.exp(p[f"{name}/log_probs"].astype(float)) for name in ("test", "ood/letters")}
                       for p in (predictions, other))  # fmt: skip
    for part, tv, ratio in (
        ("test", "reference_tv", "reference_variance_ratio"),
        ("ood/letters", "reference_tv_ood/letters", "reference_variance_ratio_ood/letters"),
    ):
        gap = np.abs(probs[part].mean(0) - expected[part].mean(0)).sum(-1) / 2
        assert found[tv] == pytest.approx(gap.mean(), abs=1e-3)
        spread = probs[part].var(0).sum(-1).mean() / expected[part].var(0).sum(-1).mean()
        assert found[ratio] == pytest.approx(spread, rel=1e-3)
    same = probs["test"].mean(0).argmax(-1) == expected["test"].mean(0).argmax(-1)
    assert found["reference_agreement"] == same.mean()


# Regression -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gap", [0.0, 0.3, 2.0, 9.0, 40.0])
def test_two_gaussians_in_closed_form(gap: float) -> None:
    found = distance.mixture_total_variation(*(np.full((1, 1), v) for v in (5.0, 1.5, 5.0 + 1.5 * gap, 1.5)))
    assert found[0] == pytest.approx(2 * ndtr(gap / 2) - 1, abs=ERROR)
    assert found[0] <= 2 * ndtr(gap / 2) - 1 + 1e-12


@pytest.mark.parametrize(("ours", "theirs"), [(1, 8), (5, 30)])
def test_mixtures_by_adaptive_quadrature(ours: int, theirs: int) -> None:
    rng = np.random.default_rng(ours)
    mean, expected = 6 * rng.normal(size=(ours, 4)), 6 * rng.normal(size=(theirs, 4)) + 2
    std, expected_std = rng.uniform(1, 4, mean.shape), rng.uniform(1, 4, expected.shape)
    found = distance.mixture_total_variation(mean, std, expected, expected_std)
    for p in range(4):
        both = np.concatenate([mean[:, p], expected[:, p]])

        def gap(y: float, p: int = p) -> float:
            first = norm.pdf(y, mean[:, p], std[:, p]).mean()
            return abs(first - norm.pdf(y, expected[:, p], expected_std[:, p]).mean()) / 2

        cuts = np.linspace(both.min() - 40, both.max() + 40, 30)
        by_hand = sum(quad(gap, low, high, limit=200)[0] for low, high in pairwise(cuts))
        assert by_hand - ERROR <= found[p] <= by_hand + 1e-5


def test_a_noise_far_below_the_spread_gives_a_lower_bound() -> None:
    mean = np.array([[0.0], [1e6]])
    found = distance.mixture_total_variation(mean, np.full((2, 1), 0.01), mean[:1], np.full((1, 1), 0.01))
    assert found[0] == pytest.approx(0.5)


def test_the_quadrature_is_fast() -> None:
    rng = np.random.default_rng(0)
    mean, expected = 30 * rng.normal(size=(100, 241)), 30 * rng.normal(size=(500, 241))
    started = time.perf_counter()
    distance.mixture_total_variation(mean, np.full_like(mean, 3.0), expected, np.full_like(expected, 3.0))
    assert time.perf_counter() - started < 3  # about 0.5 s on an idle machine


def test_of_a_regression_job() -> None:
    record, predictions = job("regression", "mcdropout")
    _, other = job("regression", "hypergan", 1)
    found = values(record, predictions, reduce(other))
    x = predictions["curve/x"]
    slack = 1e-5
    masks = {
        "gap": (x > -1 + slack) & (x < 1.5 - slack),
        "outside": np.abs(x) > 4 + slack,
    }
    masks["inside"] = ~(masks["gap"] | masks["outside"])
    mean, expected = (p["curve/mean"][..., 0].astype(float) for p in (predictions, other))
    y = np.linspace(-500, 500, 20001)
    for region, mask in masks.items():
        gap = np.abs(mean.mean(0) - expected.mean(0))[mask].mean()
        assert found[f"reference_mean_distance/{region}"] == pytest.approx(gap, rel=1e-6)
        ratio = mean.var(0)[mask].mean() / expected.var(0)[mask].mean()
        assert found[f"reference_variance_ratio/{region}"] == pytest.approx(ratio, rel=1e-6)
        first, second = (norm.pdf(y[:, None, None], m[:, mask][:, ::8], 3.0).mean(1) for m in (mean, expected))
        tv = np.abs(first - second).sum(0) * (y[1] - y[0]) / 2
        assert found[f"reference_tv/{region}"] == pytest.approx(tv.mean(), abs=0.05)  # every eighth point
    assert set(found) == {
        f"reference_{what}/{region}" for what in ("tv", "mean_distance", "variance_ratio") for region in masks
    }


def test_without_a_curve_over_test_data() -> None:
    record, predictions = job("regression", curve=task_spec("regression")["curve"])
    record["task_spec"]["curve"] = None
    found = values(record, predictions, reduce(predictions))
    assert set(found) == {f"reference_{what}/test" for what in ("tv", "mean_distance", "variance_ratio")}


# Both -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_a_jobs_own_predictions_are_at_distance_0(kind: str) -> None:
    record, predictions = job(kind)
    for name, value in values(record, predictions, reduce(predictions)).items():
        one = "agreement" in name or "ratio" in name
        assert value == pytest.approx(float(one), abs=1e-6), name


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_one_network_has_no_variance(kind: str) -> None:
    record, predictions = job(kind, "map")
    _, other = job(kind)
    found = values(record, predictions, reduce(other))
    assert {value for name, value in found.items() if "ratio" in name} == {0.0}
    rows = metrics.compute(*reversed(job(kind)), distance.CATALOGUE, reduce(predictions))
    assert {row.get("reason") for row in rows if "ratio" in row["name"]} == {"no spread in the reference"}


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_only_tasks_with_a_reference_have_the_metrics(kind: str) -> None:
    record, predictions = job(kind, reference=None)
    assert values(record, predictions, reduce(predictions)) == {}
    record, predictions = job(kind)
    rows = metrics.compute(predictions, record, distance.CATALOGUE, "it is gone")
    assert rows
    assert {row["reason"] for row in rows} == {"it is gone"}


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_names_lead_to_their_metric(kind: str) -> None:
    record, predictions = job(kind)
    for row in metrics.compute(predictions, record, distance.CATALOGUE):
        found = metrics.find(row["name"], kind)
        assert found in distance.CATALOGUE
        assert found.kind == kind
