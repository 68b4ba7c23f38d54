"""Metrics of what callers have: any type of number, unequal noises, validation sets that say little."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from bayes_bench import metrics
from bayes_bench.errors import DivergenceError
from bayes_bench.metrics import calibration
from bayes_bench.metrics.base import NotApplicableError
from bayes_bench.metrics.calibration import temperature_of
from bayes_bench.metrics.classification import nll
from bayes_bench.metrics.diversity import alarms, collapse
from bayes_bench.metrics.job import JobPredictions
from bayes_bench.metrics.ood import average_precision, fpr_at_tpr
from bayes_bench.metrics.pairs import gaussian_total_variation

RNG = np.random.default_rng(0)
INSIDE, OUTSIDE = RNG.integers(0, 100, 300), RNG.integers(60, 200, 200)
TYPES = ["uint8", "int8", "uint16", "int16", "int32", "int64", "uint64", "float16", "float32", "float64", "bool"]
SCORES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "auroc": metrics.auroc,
    "average_precision": average_precision,
    "fpr_at_tpr": fpr_at_tpr,
}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", SCORES)
def test_a_metric_gives_the_same_number_for_every_type(name: str, dtype: str) -> None:
    inside, outside = (values % 100 if dtype == "int8" else values for values in (INSIDE, OUTSIDE))
    if dtype == "bool":
        inside, outside = inside > 50, outside > 50
    expected = SCORES[name](inside.astype(np.float64), outside.astype(np.float64))
    assert SCORES[name](inside.astype(dtype), outside.astype(dtype)) == expected
    truth, scores = np.repeat([0, 1], [len(inside), len(outside)]), np.concatenate([inside, outside]).astype(float)
    if name == "auroc":
        assert expected == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    if name == "average_precision":
        assert expected == pytest.approx(average_precision_score(truth, scores), abs=1e-12)


@pytest.mark.parametrize("name", SCORES)
def test_a_score_that_is_no_number_gives_none(name: str) -> None:
    with pytest.raises(DivergenceError, match="NaN"):
        SCORES[name](np.array([0.0, np.nan]), np.array([1.0]))


# Unequal noises ----------------------------------------------------------------------------------------------


def exact(first: tuple[float, float], second: tuple[float, float]) -> float:
    """½ ∫ |p − q| by quadrature."""
    places = sorted(m + k * s for m, s in (first, second) for k in np.linspace(-12, 12, 97))
    return sum(
        quad(lambda x: abs(norm.pdf(x, *first) - norm.pdf(x, *second)), a, b, limit=200)[0]
        for a, b in itertools.pairwise(places)
    ) / 2  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second", "known"),
    [
        ((0.0, 1.0), (0.0, 5.0), 0.647),  # one mean, another noise: it was 0
        ((0.0, 1.0), (0.0, 1.0), 0.0),
        ((0.0, 1.0), (2.0, 1.0), 0.683),
        ((0.0, 1.0), (2.0, 1.0001), None),
        ((0.0, 1.0), (0.0, 1.000001), None),
        ((-1.0, 0.3), (1.0, 2.0), None),
        ((3.0, 2.0), (1.0, 0.01), None),
        ((0.0, 1.0), (1e6, 2.0), 1.0),
        ((0.0, 1e-9), (0.0, 1e9), 1.0),
    ],
)
def test_total_variation_of_two_gaussians(
    first: tuple[float, float], second: tuple[float, float], known: float | None
) -> None:
    mean, noise = (np.array([[[a]], [[b]]]) for a, b in zip(first, second, strict=True))
    (found,) = gaussian_total_variation(mean, noise)
    assert found == pytest.approx(gaussian_total_variation(mean[::-1], noise[::-1])[0], abs=1e-12)
    assert found == pytest.approx(exact(first, second) if known is None else known, abs=5e-4 if known else 1e-6)


def curve_job(mean: np.ndarray, noise: np.ndarray) -> JobPredictions:
    """Networks ``[S, P, 1]`` on a curve, most of which lies outside of the data."""
    points = mean.shape[1]
    predictions = {"curve/mean": mean, "curve/noise_std": noise, "curve/x": np.linspace(-6, 6, points)}
    curve = {"low": -6.0, "high": 6.0, "points": points, "inside": [[-1.0, 1.0]], "gap": []}
    record = {"kind": "regression", "networks": len(mean), "task_spec": {"curve": curve}, "support": None}
    return JobPredictions(predictions, record)


@pytest.mark.parametrize("case", ["learned", "heteroscedastic"])
def test_networks_that_differ_in_their_noise_alone_are_no_collapse(case: str) -> None:
    points = 25
    same = np.zeros((4, points, 1))
    scale = np.array([0.1, 0.3, 1.0, 3.0])[:, None, None]
    noise = scale * np.ones((4, points, 1)) if case == "learned" else scale ** np.linspace(0, 1, points)[None, :, None]
    apart = collapse(curve_job(same, noise), 0.01)
    assert apart is not None
    assert apart["total_variation"]["the curve outside the data"] > 0.2
    assert alarms(apart) == []
    level = collapse(curve_job(same, np.full((4, points, 1), 0.3)), 0.01)
    assert level is not None
    assert level["total_variation"]["the curve outside the data"] == 0
    assert len(alarms(level)) == 1


# Temperatures ------------------------------------------------------------------------------------------------


def class_job(validation: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> JobPredictions:
    predictions = {
        f"{name}/{key}": value
        for name, (log_probs, y) in (("validation", validation), ("test", test))
        for key, value in (("log_probs", log_probs[None]), ("y", y))
    }
    record = {"kind": "classification", "networks": 1, "support": 1, "task_spec": {}}
    return JobPredictions(predictions, record)


def predictions(n: int, wrong: int, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """Ten classes, of which the right one leads by ``margin`` nats but for ``wrong`` examples."""
    y = np.arange(n) % 10
    logits = RNG.normal(0, 0.3, (n, 10))
    said = np.where(np.arange(n) < wrong, (y + 1) % 10, y)
    logits[np.arange(n), said] += margin
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True)), y


@pytest.mark.parametrize(("wrong", "said"), [(0, "every validation example"), (1, "makes the others worse")])
def test_a_validation_set_that_says_little_gives_no_temperature(wrong: int, said: str) -> None:
    validation, test = predictions(200, wrong, 6.0), predictions(2000, 40, 6.0)
    before = nll(calibration.scale(test[0], calibration.fit_temperature(*predictions(200, 0, 6.0))), test[1])
    assert before > 5 * nll(*test), "what was reported: far worse than the raw predictions"
    job = class_job(validation, test)
    with pytest.raises(NotApplicableError, match=said):
        temperature_of(job)


def test_a_validation_set_that_says_enough_gives_one() -> None:
    validation, test = predictions(2000, 200, 8.0), predictions(2000, 200, 8.0)
    job = class_job(validation, test)
    assert 1.5 < temperature_of(job) < 4
    assert nll(calibration.scale(test[0], temperature_of(job)), test[1]) < nll(*test)
