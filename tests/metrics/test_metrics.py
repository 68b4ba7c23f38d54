"""Classification, calibration and OOD metrics against scikit-learn, torchmetrics and hand-computed values."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as oracle
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    log_loss,
    roc_auc_score,
    roc_curve,
)

from bayes_bench import metrics
from bayes_bench.errors import DivergenceError
from bayes_bench.metrics import ood
from bayes_bench.metrics.calibration import bin_index, scale
from bayes_bench.metrics.job import JobPredictions, regions
from bayes_bench.metrics.pairs import gaussian_total_variation
from bayes_bench.posterior.predictive import summarise_classes
from synthetic import METHODS, make_job


def log_probs(*shape: int, seed: int = 0, scale: float = 2.0) -> np.ndarray:
    logits = scale * np.random.default_rng(seed).normal(size=shape)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.fixture
def mean_prediction() -> tuple[np.ndarray, np.ndarray]:
    y = np.random.default_rng(1).integers(0, 7, 500)
    logits = log_probs(500, 7) + 2.0 * np.eye(7)[y]
    return metrics.normalise(logits), y


# One probability table ------------------------------------------------------------------------------------


def test_classification_metrics_match_scikit_learn_and_torchmetrics(mean_prediction):
    logs, y = mean_prediction
    probs = np.exp(logs)
    tensor, target = torch.from_numpy(probs), torch.from_numpy(y)
    assert metrics.accuracy(probs, y) == pytest.approx(
        float(oracle.multiclass_accuracy(tensor, target, 7, average="micro"))
    )
    assert metrics.nll(logs, y) == pytest.approx(log_loss(y, probs, labels=range(7)), rel=1e-12)
    assert metrics.ece(probs, y) == pytest.approx(
        float(oracle.multiclass_calibration_error(tensor, target, 7, n_bins=15, norm="l1")),
        abs=1e-6,  # it bins in float32
    )
    binary = probs[:, :2] / probs[:, :2].sum(1, keepdims=True)
    # Of two classes both squares are the same, and scikit-learn's binary score counts one.
    assert metrics.brier(binary, y % 2) == pytest.approx(2 * brier_score_loss(y % 2, binary[:, 1]), rel=1e-12)


def test_hand_computed_values():
    probs = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]])
    y = np.array([0, 2])
    assert metrics.accuracy(probs, y) == 0.5
    assert metrics.nll(np.log(probs), y) == pytest.approx(-(math.log(0.7) + math.log(0.3)) / 2)
    assert metrics.brier(probs, y) == pytest.approx((0.09 + 0.04 + 0.01 + 0.01 + 0.36 + 0.49) / 2)
    # Confidences 0.7 and 0.6 lie in different bins: |1 − 0.7| / 2 + |0 − 0.6| / 2.
    assert metrics.ece(probs, y) == pytest.approx(0.45)


def test_brier_is_two_for_certain_errors_and_ties_go_to_the_first_class():
    assert metrics.brier(np.array([[1.0, 0.0]]), np.array([1])) == 2
    tied = np.array([[0.4, 0.4, 0.2]])
    assert metrics.accuracy(tied, np.array([0])) == 1
    assert metrics.accuracy(tied, np.array([1])) == 0


def test_bins_are_open_below_and_closed_above():
    edges = np.linspace(0, 1, 16)
    assert bin_index(np.array([0.0, 1e-12, edges[1], np.nextafter(edges[1], 1), 1.0]), edges).tolist() == [
        0,
        0,
        0,
        1,
        14,
    ]


def test_bins_without_examples_and_a_confidence_of_zero():
    bins = metrics.reliability(np.zeros((2, 3)), np.array([0, 1]))
    assert bins.count.tolist() == [2] + [0] * 14
    assert bins.error == pytest.approx(0.5)  # one of the two labels is the first class
    assert np.isnan(bins.accuracy[1:]).all()


def test_adaptive_bins_hold_equally_many_and_ignore_the_order(mean_prediction):
    logs, y = mean_prediction
    probs = np.exp(logs)
    bins = metrics.reliability(probs, y, adaptive=True)
    assert bins.count.sum() == 500
    assert bins.count.min() >= 33
    assert bins.count.max() <= 34
    order = np.random.default_rng(3).permutation(500)
    assert metrics.ece_adaptive(probs[order], y[order]) == pytest.approx(bins.error, rel=1e-12)
    # By hand: with one example per bin the error is the mean |correct − confidence|.
    three = np.array([[0.5, 0.5 - 1e-9], [0.7, 0.3], [0.9, 0.1]])
    assert metrics.ece_adaptive(three, np.array([0, 1, 0]), bins=3) == pytest.approx((0.5 + 0.7 + 0.1) / 3)


def test_all_confidences_equal_is_one_adaptive_bin():
    probs = np.tile([0.8, 0.2], (10, 1))
    y = np.array([0] * 6 + [1] * 4)
    assert metrics.ece_adaptive(probs, y) == pytest.approx(0.2)


def test_temperature_recovers_the_one_that_was_applied():
    rng = np.random.default_rng(0)
    logs = log_probs(20000, 5)
    y = (np.cumsum(np.exp(logs), axis=1) > rng.random((20000, 1))).argmax(1)
    assert metrics.fit_temperature(logs, y) == pytest.approx(1, abs=0.03)
    assert metrics.fit_temperature(scale(logs, 0.4), y) == pytest.approx(2.5, rel=0.03)


def test_temperature_is_the_minimum(mean_prediction):
    logs, y = mean_prediction
    best = metrics.fit_temperature(logs, y)
    at = [metrics.nll(scale(logs, best * factor), y) for factor in (0.98, 1.0, 1.02)]
    assert at[1] < min(at[0], at[2])


# Many networks --------------------------------------------------------------------------------------------


def test_summary_equals_the_torch_implementation():
    logs = log_probs(9, 40, 6).astype(np.float16)
    ours, theirs = metrics.summarise(logs), summarise_classes(torch.from_numpy(metrics.normalise(logs)))
    np.testing.assert_allclose(ours.probs, theirs.mean, rtol=1e-12)
    np.testing.assert_allclose(ours.entropy, theirs.entropy, rtol=1e-12)
    np.testing.assert_allclose(ours.mutual_information, theirs.mutual_information, atol=1e-12)


def test_chunks_do_not_matter(monkeypatch):
    logs = log_probs(6, 33, 4)
    whole, variation = metrics.summarise(logs), metrics.total_variation(logs)
    monkeypatch.setattr("bayes_bench.metrics.base.CHUNK_ELEMENTS", 100)
    parts = metrics.summarise(logs)
    np.testing.assert_array_equal(whole.log_mean, parts.log_mean)
    np.testing.assert_array_equal(whole.group_labels[5], parts.group_labels[5])
    np.testing.assert_array_equal(variation, metrics.total_variation(logs))


def test_averages_probabilities_not_logits():
    logs = np.log(np.array([[[0.9, 0.1]], [[0.2, 0.8]]]))
    assert metrics.summarise(logs).probs[0] == pytest.approx([0.55, 0.45])


def test_probabilities_of_exactly_zero_and_far_below_float64():
    with np.errstate(divide="ignore"):
        logs = np.log(np.array([[[1.0, 0.0]], [[0.5, 0.5]]]))
    summary = metrics.summarise(logs)
    assert summary.probs[0] == pytest.approx([0.75, 0.25])
    assert summary.expected_entropy[0] == pytest.approx(math.log(2) / 2)
    tiny = np.array([[[0.0, -5000.0]], [[0.0, -5001.0]]])
    assert metrics.nll(metrics.summarise(tiny).log_mean, np.array([1])) == pytest.approx(
        5000 - math.log((1 + math.exp(-1)) / 2)
    )


def test_accuracy_with_k_networks_is_the_mean_over_disjoint_groups():
    logs, y = log_probs(11, 60, 3), np.random.default_rng(2).integers(0, 3, 60)
    summary = metrics.summarise(logs)
    probs = np.exp(logs)
    by_hand = [metrics.accuracy(probs[i : i + 5].mean(0), y) for i in (0, 5)]
    assert (summary.group_labels[5] == y).mean() == pytest.approx(np.mean(by_hand))
    assert (summary.group_labels[1] == y).mean() == pytest.approx(np.mean([metrics.accuracy(p, y) for p in probs]))
    assert 100 not in summary.group_labels


def test_disagreement_by_hand_and_over_all_pairs():
    labels = np.array([[0, 1], [0, 1], [1, 1], [2, 1]])
    assert metrics.disagreement(labels, 3).tolist() == [pytest.approx(5 / 6), 0]
    labels = np.random.default_rng(0).integers(0, 4, (7, 30))
    pairs = [(labels[i] != labels[j]) for i in range(7) for j in range(i)]
    np.testing.assert_allclose(metrics.disagreement(labels, 4), np.mean(pairs, axis=0))
    with pytest.raises(metrics.NotApplicableError, match="one network"):
        metrics.disagreement(labels[:1], 4)


def test_mutual_information_at_its_ends():
    certain = np.log(np.array([[[1 - 1e-12, 1e-12]], [[1e-12, 1 - 1e-12]]]))
    assert metrics.mutual_information(certain)[0] == pytest.approx(math.log(2), abs=1e-9)
    same = np.repeat(log_probs(1, 20, 5), 8, axis=0)
    assert metrics.mutual_information(same).tolist() == pytest.approx([0] * 20, abs=1e-12)
    assert (metrics.mutual_information(same) >= 0).all()


def test_total_variation_over_all_pairs():
    logs = log_probs(8, 25, 5)
    probs = np.exp(logs)
    pairs = [np.abs(probs[i] - probs[j]).sum(-1) / 2 for i in range(8) for j in range(i)]
    np.testing.assert_allclose(metrics.total_variation(logs), np.mean(pairs, axis=0), rtol=1e-12)
    same = np.repeat(logs[:1], 6, axis=0)
    np.testing.assert_allclose(metrics.total_variation(same), 0, atol=1e-15)


def test_total_variation_of_gaussians_by_quadrature():
    mean = np.array([0.0, 1.3, -0.4])[:, None, None]
    std = np.full((3, 1, 1), 0.7)
    x = np.linspace(-10, 10, 200001)
    density = np.exp(-0.5 * ((x - mean[:, 0]) / 0.7) ** 2) / (0.7 * math.sqrt(2 * math.pi))
    pairs = [np.abs(density[i] - density[j]).sum() * (x[1] - x[0]) / 2 for i, j in ((0, 1), (0, 2), (1, 2))]
    assert gaussian_total_variation(mean, std)[0] == pytest.approx(np.mean(pairs), abs=1e-6)


# Weights --------------------------------------------------------------------------------------------------


def test_weight_measures_equal_those_of_the_vectors():
    w = np.random.default_rng(0).normal(0.5, 1, (6, 40))
    gram = w @ w.T
    norms = np.linalg.norm(w, axis=1)
    pairs = [(i, j) for i in range(6) for j in range(i)]
    distance = [np.linalg.norm(w[i] - w[j]) / math.sqrt(norms[i] * norms[j]) for i, j in pairs]
    cosine = [w[i] @ w[j] / (norms[i] * norms[j]) for i, j in pairs]
    assert metrics.norm_spread(gram) == pytest.approx(norms.std() / norms.mean())
    assert metrics.pair_distance(gram) == pytest.approx(np.mean(distance))
    assert metrics.pair_cosine(gram) == pytest.approx(np.mean(cosine))


def test_what_the_norm_spread_misses_its_companions_show():
    rng = np.random.default_rng(1)
    permuted = np.stack([rng.permutation(np.arange(50.0)) for _ in range(20)])
    gram = permuted @ permuted.T
    assert metrics.norm_spread(gram) == pytest.approx(0, abs=1e-12)
    assert metrics.pair_distance(gram) > 0.5
    rescaled = np.outer(rng.uniform(0.5, 1.5, 20), rng.normal(size=50))
    gram = rescaled @ rescaled.T
    assert metrics.norm_spread(gram) > 0.2
    assert metrics.pair_cosine(gram) == pytest.approx(1)
    wide = rng.normal(size=(200, 20000))
    assert metrics.norm_spread(wide @ wide.T) == pytest.approx(1 / math.sqrt(2 * 20000), rel=0.15)


def test_equal_and_zero_weight_vectors():
    same = np.full((4, 4), 9.0)
    assert (metrics.norm_spread(same), metrics.pair_distance(same), metrics.pair_cosine(same)) == (0, 0, 1)
    with pytest.raises(metrics.NotApplicableError, match="zero"):
        metrics.pair_cosine(np.zeros((3, 3)))


# Out of distribution --------------------------------------------------------------------------------------


@pytest.mark.parametrize("decimals", [1, 8], ids=["many ties", "no ties"])
def test_ranking_metrics_match_scikit_learn(decimals):
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(size=180).round(decimals), rng.normal(0.8, 1.2, 130).round(decimals)
    truth = np.r_[np.zeros(180), np.ones(130)]
    scores = np.r_[inside, outside]
    assert metrics.auroc(inside, outside) == pytest.approx(roc_auc_score(truth, scores), rel=1e-12)
    assert metrics.average_precision(inside, outside) == pytest.approx(average_precision_score(truth, scores))
    assert metrics.average_precision(-outside, -inside) == pytest.approx(average_precision_score(1 - truth, -scores))
    false_positives, true_positives, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert metrics.fpr_at_tpr(inside, outside) == pytest.approx(false_positives[true_positives >= 0.95 - 1e-12].min())


def test_out_is_the_positive_class_and_ties_count_half():
    low, high = np.array([0.1, 0.2]), np.array([0.8, 0.9])
    assert metrics.auroc(low, high) == 1
    assert metrics.auroc(high, low) == 0
    assert metrics.auroc(np.ones(3), np.ones(4)) == 0.5
    assert metrics.auroc(np.array([1.0, 2.0]), np.array([2.0])) == 0.75
    assert metrics.fpr_at_tpr(low, high) == 0
    assert metrics.fpr_at_tpr(np.ones(3), np.ones(4)) == 1


def test_fpr_uses_95_percent_of_twenty_exactly():
    outside = np.arange(1.0, 21)  # 19 of 20 score at least 2
    assert metrics.fpr_at_tpr(np.array([1.5, 2.0]), outside) == 0.5


def test_an_empty_set_is_not_applicable():
    for function in (metrics.auroc, metrics.average_precision, metrics.fpr_at_tpr):
        with pytest.raises(metrics.NotApplicableError, match="empty"):
            function(np.ones(3), np.empty(0))


# Whole jobs -----------------------------------------------------------------------------------------------


def rows_of(record, predictions) -> dict[str, dict]:
    rows = metrics.compute(predictions, record)
    assert len({row["name"] for row in rows}) == len(rows)
    return {row["name"]: row for row in rows}


def test_a_classification_job_has_every_metric():
    record, predictions = make_job(METHODS["hypergan"], 0)
    rows = rows_of(record, predictions)
    missing = {name for name, row in rows.items() if row["value"] is None}
    assert missing == set()
    assert {
        "accuracy",
        "accuracy@100",
        "ood_auroc/letters",
        "weight_diversity/conv1",
        "weight_cosine/all",
    } <= rows.keys()
    assert {"val_nll", "val_ood_auroc/letters-kt", "mean_intensity_auroc/letters", "evaluations_unspent"} <= rows.keys()
    same = predictions | {"ood/letters/log_probs": predictions["validation_ood/letters-kt/log_probs"]}
    for name in ("disagreement", "total_variation"):
        assert rows[f"val_{name}/letters-kt"]["value"] == rows_of(record, same)[f"{name}/letters"]["value"] > 0
    assert "rmse" not in rows
    json.dumps(list(rows.values()), allow_nan=False)
    logs = metrics.normalise(predictions["test/log_probs"])
    mean = np.exp(logs).mean(0)
    assert (
        rows["accuracy"]["value"] == rows["accuracy@100"]["value"] == (mean.argmax(1) == predictions["test/y"]).mean()
    )
    inside = -(mean * np.log(mean)).sum(1)
    outside = np.exp(metrics.normalise(predictions["ood/letters/log_probs"])).mean(0)
    scores = np.r_[inside, -(outside * np.log(outside)).sum(1)]
    truth = np.r_[np.zeros(len(inside)), np.ones(len(outside))]
    assert rows["ood_auroc/letters"]["value"] == pytest.approx(roc_auc_score(truth, scores))
    assert rows["aupr_base_rate/letters"]["value"] == pytest.approx(truth.mean())


def test_one_network_has_no_diversity_and_says_why():
    record, predictions = make_job(METHODS["map"], 0)
    rows = rows_of(record, predictions)
    for name in ("disagreement", "disagreement_normalised", "weight_diversity/all", "weight_cosine/conv1"):
        assert rows[name]["reason"] == "one network"
    assert rows["ood_auroc_mi/letters"]["reason"] == "one network"
    assert rows["mutual_information"]["value"] == 0
    assert rows["accuracy@1"]["value"] == rows["accuracy"]["value"]
    assert rows["accuracy@5"]["reason"] == "support 1"


def test_more_networks_than_the_support_are_not_applicable():
    record, predictions = make_job(METHODS["ensemble"], 0)
    rows = rows_of(record, predictions)
    assert rows["accuracy@5"]["value"] == rows["accuracy"]["value"]
    assert (rows["accuracy@10"]["value"], rows["accuracy@10"]["reason"]) == (None, "support 5")
    record, predictions = make_job(METHODS["hypergan"], 0, networks=20)
    assert rows_of(record, predictions)["accuracy@100"]["reason"] == "20 networks drawn"


def test_missing_and_empty_sets_are_rows_with_reasons():
    record, predictions = make_job(METHODS["hypergan"], 0, networks=5)
    del predictions["ood/letters/log_probs"], predictions["ood/letters/mean_intensity"]
    rows = rows_of(record, predictions)
    assert rows["ood_auroc/letters"]["reason"] == "data missing"
    assert rows["mean_intensity_auroc/letters"]["reason"] == "data missing"
    record, predictions = make_job(METHODS["hypergan"], 0, networks=5)
    predictions["ood/letters/log_probs"] = predictions["ood/letters/log_probs"][:, :0]
    assert rows_of(record, predictions)["fpr95/letters"]["reason"] == "the set is empty"


def test_no_validation_and_no_weights():
    record, predictions = make_job(METHODS["hypergan"], 0, networks=5)
    kept = {k: v for k, v in predictions.items() if not k.startswith(("validation/", "weights/"))}
    rows = rows_of(record, kept)
    assert rows["val_nll"]["reason"] == rows["temperature"]["reason"] == "no validation data stored"
    assert rows["weight_diversity/all"]["reason"] == "no weight samples"


def test_all_networks_right_and_one_class_present():
    logs = np.log(np.tile([0.8, 0.2], (3, 4, 1)))
    record = {"kind": "classification", "networks": 3, "support": None}
    rows = rows_of(record, {"test/log_probs": logs, "test/y": np.zeros(4, dtype=np.int64)})
    assert rows["accuracy"]["value"] == 1
    assert rows["disagreement_normalised"]["reason"] == "every network is right on every example"


def test_infinite_and_undefined_values_never_reach_a_record():
    with np.errstate(divide="ignore"):
        logs = np.log(np.tile([1.0, 0.0], (3, 4, 1)))
    record = {"kind": "classification", "networks": 3, "support": None}
    predictions = {"test/log_probs": logs, "test/y": np.ones(4, dtype=np.int64)}
    predictions |= {"validation/log_probs": logs, "validation/y": np.ones(4, dtype=np.int64)}
    rows = rows_of(record, predictions)
    assert "probability 0" in rows["nll"]["reason"]
    assert "probability 0" in rows["temperature"]["reason"]
    predictions["test/log_probs"] = np.full((3, 4, 2), np.nan)
    with pytest.raises(DivergenceError, match="NaN"):
        metrics.compute(predictions, record)


def test_half_precision_is_renormalised():
    stored = log_probs(4, 50, 10, scale=6).astype(np.float16)
    assert np.abs(np.exp(stored.astype(np.float64)).sum(-1) - 1).max() > 1e-5
    np.testing.assert_allclose(np.exp(metrics.normalise(stored)).sum(-1), 1, rtol=1e-14)


# Collapse -------------------------------------------------------------------------------------------------


def test_collapse_alarm():
    record, predictions = make_job(METHODS["hypergan"], 0, networks=10)
    assert metrics.alarms(predictions, record) == []
    same = np.repeat(predictions["ood/letters/log_probs"][:1], 10, axis=0)
    collapsed = predictions | {"ood/letters/log_probs": same}
    (alarm,) = metrics.alarms(collapsed, record)
    assert "10 networks" in alarm
    assert "letters" in alarm
    assert metrics.alarms(collapsed, record, threshold=0) == []


def test_the_threshold_is_the_tasks():
    record, predictions = make_job(METHODS["hypergan"], 0, networks=10)
    facts = metrics.collapse(predictions, record)
    value = facts["total_variation"]["letters"]
    assert facts == {"threshold": 0.01, "networks": 10, "total_variation": {"letters": value}}
    (found,) = [row["value"] for row in record["metrics"] if row["name"] == "total_variation/letters"]
    assert value == found > 0.01
    record["task_spec"] = record["task_spec"] | {"collapse_threshold": 0.99}
    (alarm,) = metrics.alarms(predictions, record)
    assert f"variation of {value:.2g} (threshold 0.99)" in alarm


def test_one_network_never_collapses():
    record, predictions = make_job(METHODS["map"], 0)
    assert metrics.collapse(predictions, record) is None
    assert metrics.alarms(predictions, record) == []


def test_validation_sets_stand_in_where_no_ood_is_reported():
    record, predictions = make_job(METHODS["hypergan"], 0, networks=10)
    del predictions["ood/letters/log_probs"]
    key = "validation_ood/letters-kt/log_probs"
    collapsed = predictions | {key: np.repeat(predictions[key][:1], 10, axis=0)}
    assert "letters-kt" in metrics.alarms(collapsed, record)[0]


def test_collapsed_curves():
    record, predictions = make_job(METHODS["hypergan"], 0, "regression", networks=10)
    assert metrics.alarms(predictions, record) == []
    collapsed = predictions | {"curve/mean": np.repeat(predictions["curve/mean"][:1], 10, axis=0)}
    assert "outside the data" in metrics.alarms(collapsed, record)[0]


# Catalogue ------------------------------------------------------------------------------------------------


def test_catalogue_is_documented_and_consistent():
    seen = set()
    for metric in metrics.CATALOGUE:
        kinds = ("classification", "regression") if metric.kind == "any" else (metric.kind,)
        for kind in kinds:
            assert (metric.name, kind) not in seen
            seen.add((metric.name, kind))
        assert metric.description
        assert metric.group
        assert bool(metric.over) == ("<" in metric.name)


def test_find_gives_the_metric_behind_a_name():
    assert metrics.find("ood_auroc/letters", "classification").name == "ood_auroc/<set>"
    assert metrics.find("nll", "regression").group == "regression"
    assert metrics.find("nll", "classification").group == "classification"
    assert metrics.find("total_variation/outside", "regression").over == ""
    assert metrics.find("rmse", "classification") is None


def test_regions_prefer_inside_and_cover_the_grid():
    x = np.linspace(-6, 6, 25)
    masks = regions(x, {"low": -6, "high": 6, "inside": [[-4, -1], [1.5, 4]], "gap": [[-1, 1.5]]})
    assert (sum(mask.astype(int) for mask in masks.values()) == 1).all()
    assert masks["inside"][x == -1].all()
    assert masks["gap"].sum() == 4
    assert masks["outside"].sum() == 8


def test_layers_keep_the_networks_order():
    record, predictions = make_job(METHODS["ensemble"], 0)
    assert JobPredictions(predictions, record).layers() == ["conv1", "conv2", "linear1", "all"]


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("bayes_bench.metrics", {"torch", "pandas", "matplotlib", "scipy.stats", "scipy.optimize"}),
        ("bayes_bench.analysis", {"torch", "matplotlib"}),
        ("bayes_bench.report.page", {"torch"}),
    ],
)
def test_imports_stay_light(module, forbidden):
    code = f"import sys, {module}; print([name for name in {sorted(forbidden)} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("score", [ood.auroc, ood.average_precision, ood.fpr_at_tpr])
def test_a_score_that_is_no_number_is_refused(score: Callable[..., float]) -> None:
    for bad in (([0.1, np.nan], [0.2]), ([0.1], [0.2, np.nan])):
        with pytest.raises(DivergenceError, match="a score is NaN"):
            score(*map(np.array, bad))
