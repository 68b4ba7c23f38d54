"""Frames, variants, differences with their intervals, marks and ranks."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from scipy import stats

from bayes_bench import metrics
from bayes_bench.analysis.evidence import evidence
from bayes_bench.analysis.records import (
    HISTORY_COLUMNS,
    RESULT_COLUMNS,
    SUMMARY_COLUMNS,
    alarms,
    comparison_of,
    display_labels,
    display_tasks,
    history_frame,
    load_records,
    load_run,
    metric_value,
    published_frame,
    results_frame,
    summary_frame,
    variant_of,
    wide_frame,
)
from bayes_bench.analysis.statistics import (
    BinnedGap,
    ExampleMean,
    Interval,
    RankArea,
    SeedMean,
    bootstrap,
    compare,
    difference,
    mark_best,
    statistic,
)
from bayes_bench.errors import DataError, UsageError
from bayes_bench.report.tables import share_in_words
from synthetic import METHODS, make_job, write_job, write_plan, write_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, labels=["hypergan", "ensemble", "map"], networks=12, examples=120, ood={"ood/letters": 90})
    return folder


@pytest.fixture(scope="module")
def records(run_dir):
    return load_records(run_dir)


# Frames ---------------------------------------------------------------------------------------------------


def test_results_have_one_row_per_job_and_metric(records):
    frame = results_frame(records)
    assert list(frame.columns) == list(RESULT_COLUMNS)
    assert len(frame) == sum(len(record["metrics"]) for record in records)
    assert not frame.duplicated(["suite", "task", "method", "seed", "metric"]).any()
    not_applicable = frame[frame["value"].isna()]
    assert len(not_applicable) > 0
    assert not_applicable["reason"].notna().all()
    assert frame[frame["value"].notna()]["reason"].isna().all()


def test_summary_is_mean_and_spread_over_seeds(records):
    results = results_frame(records)
    summary = summary_frame(results)
    assert list(summary.columns) == list(SUMMARY_COLUMNS)
    row = summary[(summary["method"] == "hypergan") & (summary["metric"] == "accuracy")].iloc[0]
    values = results[(results["method"] == "hypergan") & (results["metric"] == "accuracy")]["value"]
    assert row["seeds"] == len(values) == 3
    assert row["mean"] == pytest.approx(values.mean())
    assert row["std"] == pytest.approx(values.std(ddof=1))
    assert row["sem"] == pytest.approx(values.std(ddof=1) / math.sqrt(3))


def test_one_seed_has_no_spread():
    record, _ = make_job(METHODS["map"], 0, examples=40)
    summary = summary_frame(results_frame([record]))
    assert set(summary[summary["mean"].notna()]["seeds"]) == {1}
    assert summary["std"].isna().all()
    assert summary["sem"].isna().all()


def test_failed_jobs_are_rows(records):
    failed, _ = make_job(METHODS["mcdropout"], 0, status="failed", error="the loss became NaN", networks=5)
    results = results_frame([*records, failed])
    row = results[results["status"] == "failed"]
    assert row[["method", "error"]].to_numpy().tolist() == [["mcdropout", "the loss became NaN"]]
    summary = summary_frame(results)
    row = summary[summary["method"] == "mcdropout"].iloc[0]
    assert row["seeds"] == 0
    assert row["metric"] is None


def test_one_failed_seed_lowers_the_count():
    made = [make_job(METHODS["map"], seed, examples=40)[0] for seed in (0, 1)]
    made.append(make_job(METHODS["map"], 2, examples=40, status="failed", error="NaN")[0])
    summary = summary_frame(results_frame(made))
    assert summary["metric"].notna().all()
    assert summary[summary["metric"] == "nll"]["seeds"].tolist() == [2]


def test_wide_frame_has_one_row_per_task_and_method(records):
    summary = summary_frame(results_frame(records))
    wide = wide_frame(summary)
    assert len(wide) == 6
    expected = summary[(summary["method"] == "map") & (summary["metric"] == "rmse")]["mean"].iloc[0]
    assert wide[(wide["method"] == "map") & (wide["task"] == "cubic")]["rmse"].iloc[0] == expected


def test_nothing_gives_empty_frames():
    results = results_frame([])
    assert results.empty
    assert summary_frame(results).empty


# Variants -------------------------------------------------------------------------------------------------


def test_other_settings_are_another_variant_of_the_same_comparison():
    first, _ = make_job(METHODS["hypergan"], 0, networks=5, examples=40)
    changed = replace(METHODS["hypergan"], config={"adversarial_weight": 0.0})
    second, _ = make_job(changed, 0, networks=5, examples=40)
    assert variant_of(first) != variant_of(second)
    assert comparison_of(first) == comparison_of(second)
    labels = display_labels([first, second])
    assert len(set(labels.values())) == 2
    assert all(label.startswith("hypergan~") for label in labels.values())
    summary = summary_frame(results_frame([first, second]))
    assert set(summary["seeds"]) <= {0, 1}


def test_another_budget_is_another_comparison():
    first, _ = make_job(METHODS["map"], 0, examples=40)
    second, _ = make_job(METHODS["map"], 0, examples=40, budget_scale=0.1)
    assert comparison_of(first) != comparison_of(second)
    assert set(display_tasks([first, second]).values()) == {
        "digits (budget 400,000)",
        "digits (budget 40,000)",
    }
    assert set(display_labels([first, second]).values()) == {"map"}


def test_a_task_of_several_suites_is_named_with_its_suite():
    full, _ = make_job(METHODS["map"], 0, examples=40)
    quick = full | {"suite": "digits-quick"}
    names = display_tasks([full, quick])
    assert names[comparison_of(full)] == "digits (digits)"
    assert names[comparison_of(quick)] == "digits (digits-quick)"
    alarmed = alarms([full, quick | {"alarms": ["collapse"]}])
    assert alarmed == [("digits (digits-quick), map, seed 0", "collapse")]


def test_seeds_titles_and_hints_make_no_variant():
    first, _ = make_job(METHODS["map"], 0, examples=40)
    second, _ = make_job(METHODS["map"], 1, examples=40)
    assert variant_of(first) == variant_of(second)
    spec = first["task_spec"] | {"title": "other", "seconds_per_job": 9, "settings": {"map": {}}}
    assert comparison_of(first | {"task_spec": spec}) == comparison_of(first)


def test_of_two_records_of_one_seed_the_last_counts(tmp_path):
    old, predictions = make_job(METHODS["map"], 0, examples=40)
    new = old | {"key": "f" * 64, "finished": "2026-05-05T00:00:00+00:00"}
    for record in (old, new):
        write_job(tmp_path, record, predictions)
    write_plan(tmp_path, [new])
    assert [record["key"] for record in load_records(tmp_path)] == ["f" * 64]


def test_missing_jobs_and_damaged_records(tmp_path):
    made = [make_job(METHODS["map"], seed, examples=40) for seed in (0, 1)]
    folder = write_job(tmp_path, *made[0])
    write_plan(tmp_path, [record for record, _ in made])
    assert load_run(tmp_path).missing() == ["digits / map / seed 1"]
    (folder / "record.json").write_text("{", encoding="utf-8")
    run = load_run(tmp_path)
    assert len(run.records) == 0
    assert len(run.problems) == 1


def test_not_a_run_folder(tmp_path):
    with pytest.raises(UsageError, match="not a run folder"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match="damaged"):
        load_run(tmp_path)


# Statistics -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metric",
    [
        "accuracy",
        "accuracy@5",
        "nll",
        "brier",
        "ece",
        "ece_adaptive",
        "nll_temperature_scaled",
        "ece_temperature_scaled",
        "ood_auroc/letters",
        "ood_auroc_mi/letters",
        "ood_auroc_maxprob/letters",
        "fpr95/letters",
    ],
)
def test_statistics_of_a_job_equal_its_metrics(metric):
    made = [make_job(METHODS["ensemble"], seed, examples=400) for seed in (0, 1)]
    jobs = [evidence(predictions, record) for record, predictions in made]
    found = statistic(jobs, metric)
    expected = [metric_value(record, metric) for record, _ in made]
    np.testing.assert_allclose(found.per_seed(), expected, rtol=1e-10)
    assert isinstance(found, SeedMean) == metric.startswith("fpr95")


@pytest.mark.parametrize("metric", ["rmse", "nll", "crps", "coverage95"])
def test_statistics_of_a_regression_equal_its_metrics(metric):
    made = [make_job(METHODS["ensemble"], seed, "regression") for seed in (0, 1)]
    jobs = [evidence(predictions, record) for record, predictions in made]
    expected = [metric_value(record, metric) for record, _ in made]
    np.testing.assert_allclose(statistic(jobs, metric).per_seed(), expected, rtol=1e-10)


def test_not_applicable_metrics_have_no_statistic():
    record, predictions = make_job(METHODS["map"], 0, examples=40)
    job = evidence(predictions, record)
    assert statistic([job], "accuracy@100") is None
    assert statistic([job], "nonsense") is None


def test_weights_are_repetitions_of_examples():
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(size=(1, 30)).round(1), rng.normal(0.5, 1, (1, 20)).round(1)
    u = np.bincount(rng.integers(0, 30, 30), minlength=30)
    v = np.bincount(rng.integers(0, 20, 20), minlength=20)
    area = RankArea((0,), inside, outside).per_seed([u[None].astype(float), v[None].astype(float)])
    assert area[0, 0] == pytest.approx(metrics.auroc(np.repeat(inside[0], u), np.repeat(outside[0], v)))
    gap, index = rng.normal(size=(1, 30)), rng.integers(0, 5, (1, 30))
    again = BinnedGap((0,), np.repeat(gap, u, axis=1), np.repeat(index, u, axis=1))
    assert BinnedGap((0,), gap, index).per_seed([u[None].astype(float)])[0, 0] == pytest.approx(again.per_seed()[0])


# Bootstrap ------------------------------------------------------------------------------------------------


def test_bootstrap_error_of_a_mean_is_the_standard_error():
    values = np.random.default_rng(0).normal(size=(1, 400))
    drawn = bootstrap({"a": ExampleMean((0,), values)}, replicates=4000)["a"]
    expected = values.std() / math.sqrt(400)
    # The standard deviation of R replicates has relative error 1/√(2R).
    assert drawn.std() == pytest.approx(expected, rel=4 / math.sqrt(2 * 4000))
    assert drawn.mean() == pytest.approx(values.mean(), abs=4 * expected / math.sqrt(4000))


def test_bootstrap_keeps_seeds_as_they_are():
    values = np.repeat([[0.0], [1.0], [5.0]], 50, axis=1)
    assert (bootstrap({"a": ExampleMean((0, 1, 2), values)})["a"] == 2).all()


def test_pairing_removes_what_methods_share():
    shared = np.random.default_rng(0).normal(size=200)[None].repeat(3, axis=0)
    a, b = ExampleMean((0, 1, 2), shared + 0.01), ExampleMean((0, 1, 2), shared)
    found = difference("nll", ("a", a), ("b", b))
    assert found.value == pytest.approx(0.01)
    assert (found.low, found.high) == (pytest.approx(0.01), pytest.approx(0.01))
    assert found.distinguishable


@pytest.mark.parametrize("paired", [True, False])
def test_over_seeds_alone_the_interval_is_students(paired):
    before, after = SeedMean((0, 1, 2), np.array([1.0, 2.0, 4.0])), SeedMean((0, 1, 2), np.array([1.5, 2.7, 4.1]))
    found = difference("m", ("after", after), ("before", before), paired=paired)
    made = stats.ttest_rel if paired else partial(stats.ttest_ind, equal_var=False)
    expected = made(after.values, before.values).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(expected))


def test_for_several_methods_the_quantile_is_that_of_games_and_howell():
    values = {name: np.random.default_rng(i).normal(size=5 + i) for i, name in enumerate("abcd")}
    marks = mark_best("m", {n: SeedMean(tuple(range(len(v))), v) for n, v in values.items()}, True)
    parts = {name: v.var(ddof=1) / len(v) for name, v in values.items()}
    for name, found in marks.differences.items():
        two = [parts[name], parts[marks.best]]
        freedom = sum(two) ** 2 / sum(p**2 / (len(values[n]) - 1) for p, n in zip(two, (name, marks.best), strict=True))
        half = stats.studentized_range.ppf(0.95, 4, freedom) / math.sqrt(2) * math.sqrt(sum(two))
        assert found.high - found.value == pytest.approx(half, rel=0.01)  # quantiles are interpolated


@pytest.mark.parametrize(("methods", "seed_noise"), [(2, 0.006), (7, 0.006), (7, 0.05)])
def test_of_equal_methods_few_are_called_worse(methods, seed_noise):
    """In 5 % of 200 columns, by a seed's own noise and examples' together; the standard error is 1.5 %."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(200):
        difficulty = rng.gamma(0.2, 0.35, 150)
        statistics = {
            str(i): ExampleMean(
                (0, 1, 2), difficulty * np.exp(0.5 * rng.normal(size=(3, 150))) + seed_noise * rng.normal(size=(3, 1))
            )
            for i in range(methods)
        }
        marks = mark_best("nll", statistics, higher_is_better=False, replicates=100)
        wrong += len(marks.tied) < methods - 1
    assert wrong / 200 <= 0.05 + 3 * 0.015


def test_missing_predictions_of_one_method_leave_the_seeds():
    known = ExampleMean((0, 1, 2), np.random.default_rng(0).normal(size=(3, 50)))
    bare = SeedMean((0, 1, 2), np.array([5.0, 5.1, 5.2]))
    marks = mark_best("nll", {"known": known, "bare": bare}, higher_is_better=False)
    assert marks.best == "known"
    alone = difference("nll", ("bare", bare), ("known", SeedMean((0, 1, 2), known.per_seed())))
    assert (marks.differences["bare"].low, marks.differences["bare"].high) == (alone.low, alone.high)


def test_bootstrap_is_seeded():
    rng = np.random.default_rng(0)
    statistics = {"a": ExampleMean((0, 1), rng.normal(size=(2, 50)))}
    first = bootstrap(statistics, replicates=100, seed=3)["a"]
    assert (first == bootstrap(statistics, replicates=100, seed=3)["a"]).all()
    assert (first != bootstrap(statistics, replicates=100, seed=4)["a"]).any()


def test_interval_covers_the_true_difference():
    covered = 0
    for repetition in range(200):
        rng = np.random.default_rng(repetition)
        difficulty = rng.normal(size=150)
        a = ExampleMean((0,), (difficulty + 0.3 + 0.5 * rng.normal(size=150))[None])
        b = ExampleMean((0,), (difficulty + 0.5 * rng.normal(size=150))[None])
        found = difference("m", ("a", a), ("b", b), replicates=400, seed=repetition)
        covered += found.low <= 0.3 <= found.high
    assert covered / 200 == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 200))


def test_statistics_over_other_examples_cannot_be_paired():
    with pytest.raises(UsageError, match="same examples"):
        bootstrap({"a": ExampleMean((0,), np.zeros((1, 5))), "b": ExampleMean((0,), np.zeros((1, 6)))})


def test_no_worse_names_its_margin():
    found = Interval("accuracy", "a", "b", -0.002, -0.008, 0.003, 3)
    assert found.no_worse(0.01)
    assert not found.no_worse(0.005)
    assert found.no_worse(0.005, higher_is_better=False)


def test_compare_reads_a_run(run_dir):
    found = compare(run_dir, "digits", "accuracy", "hypergan", "ensemble", replicates=500)
    summary = summary_frame(results_frame(load_records(run_dir)))
    means = summary[(summary["metric"] == "accuracy")].set_index("method")["mean"]
    assert found.value == pytest.approx(means["hypergan"] - means["ensemble"])
    assert found.low <= found.value <= found.high
    with pytest.raises(UsageError, match="unknown method 'hypergam', did you mean 'hypergan'"):
        compare(run_dir, "digits", "accuracy", "hypergam", "map")
    with pytest.raises(UsageError, match="unknown task"):
        compare(run_dir, "digit", "accuracy", "hypergan", "map")
    with pytest.raises(UsageError, match="not applicable to map"):
        compare(run_dir, "digits", "accuracy@10", "hypergan", "map")


# Marks and ranks ------------------------------------------------------------------------------------------


def test_best_tied_and_behind():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(3, 300))
    noise = 0.2 * rng.normal(size=(3, 300))
    statistics = {
        "good": ExampleMean((0, 1, 2), base + 1),
        "same": ExampleMean((0, 1, 2), base + 1 + noise - noise.mean() - 1e-3),
        "bad": ExampleMean((0, 1, 2), base),
    }
    marks = mark_best("accuracy", statistics, higher_is_better=True)
    assert (marks.best, marks.tied, marks.declined) == ("good", frozenset({"same"}), "")
    assert marks.differences["bad"].value == pytest.approx(-1)
    assert mark_best("nll", statistics, higher_is_better=False).best == "bad"


def test_no_ranking_with_fewer_than_three_seeds():
    two = {name: SeedMean((0, 1), np.array([1.0, 2.0])) for name in "ab"}
    marks = mark_best("nll", two, higher_is_better=False)
    assert marks.best is None
    assert "2 seeds" in marks.declined
    one_method = {"a": SeedMean((0, 1, 2), np.ones(3))}
    assert mark_best("nll", one_method, higher_is_better=False).best is None


def test_a_method_with_too_few_seeds_is_left_out():
    statistics = {
        "a": SeedMean((0, 1, 2), np.array([3.0, 3.1, 3.2])),
        "b": SeedMean((0, 1, 2), np.array([2.0, 2.1, 2.2])),
        "c": SeedMean((0,), np.array([9.0])),
    }
    marks = mark_best("accuracy", statistics, higher_is_better=True)
    assert marks.best == "a"
    assert "c" not in marks.differences


# Published numbers and history ----------------------------------------------------------------------------


def small(label: str, seed: int, **options: Any) -> dict[str, Any]:
    method = replace(METHODS["hypergan"], label=label, **options)
    return make_job(method, seed, networks=5, examples=40, ood={"ood/letters": 20})[0]


def test_published_numbers_have_a_row_per_variant_and_stay_without_ours() -> None:
    records = [small("hypergan", seed) for seed in (0, 1)]
    records.append(small("hypergan", 0, config={"mixer": False}))
    frame = published_frame(records)
    ours = frame[frame["method"].str.startswith("hypergan")]
    assert sorted(ours["seeds"]) == [1, 2]
    both = ours[ours["seeds"] == 2].iloc[0]
    values = [metric_value(record, "accuracy") for record in records[:2]]
    assert both["mean"] == pytest.approx(np.mean(values))
    assert both["std"] == pytest.approx(np.std(values, ddof=1))
    assert both["difference"] == pytest.approx(np.mean(values) - 0.9931)
    assert (both["budget"], both["full_budget"], both["unit"]) == (400_000, 400_000, "fraction")
    absent = frame[frame["method"] == "apd"].iloc[0]
    assert (absent["seeds"], absent["published"], absent["note"]) == (0, 0.9861, "from memory")
    assert np.isnan(absent["mean"])


def test_history_has_a_row_per_validation_and_all_columns() -> None:
    several, one = small("hypergan", 1), small("map", 0)
    one["fit"]["history"] = [{"evaluations": 5.0, "val_nll": 0.5, "seed": 9.0}]
    frame = history_frame([several, one])
    assert list(frame.columns[:6]) == list(HISTORY_COLUMNS)
    assert {"val_nll", "mutual_information", "weight_spread/conv1"} <= set(frame.columns)
    assert len(frame) == 11
    last = frame.iloc[-1]
    assert (last["method"], last["seed"], last["evaluations"], last["val_nll"]) == ("map", 0, 5, 0.5)
    assert np.isnan(last["mutual_information"])


def test_a_key_that_says_nothing_makes_no_other_comparison() -> None:
    record = small("hypergan", 0)
    later = {**record, "task_spec": {**record["task_spec"], "examples": None, "collapse_threshold": 0.5}}
    assert comparison_of(later) == comparison_of(record)
    fewer = {**record, "task_spec": {**record["task_spec"], "examples": 10}}
    assert comparison_of(fewer) != comparison_of(record)


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (None, ""),
        (1.0, ""),
        (0.25, "a quarter of"),
        (0.3333, "a third of"),
        (0.37, "37 % of"),
        (2, "twice"),
        (4, "4 times"),
    ],
)
def test_shares_of_a_budget_in_words(share: float | None, words: str) -> None:
    assert share_in_words(share) == words


def test_rounding_is_no_difference() -> None:
    """Three seeds that agree to the last digit but one: the interval of no width once left out 0."""
    first, second = (SeedMean((0, 1, 2), np.full(3, 0.9) + shift) for shift in (0.0, 1e-15))
    found = difference("accuracy", ("a", first), ("b", second))
    assert found.value != 0
    assert not found.distinguishable
    marks = mark_best("accuracy", {"a": first, "b": second}, True)
    assert marks.tied == {"a", "b"} - {marks.best}
    apart = difference("accuracy", ("a", first), ("b", SeedMean((0, 1, 2), np.full(3, 0.91))))
    assert apart.distinguishable
