"""Two runs side by side, and several as one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bayes_bench import cli, report
from bayes_bench.analysis.changes import compare_runs
from bayes_bench.analysis.merging import merge
from bayes_bench.analysis.records import load_records, load_run, metric_value, published_frame, results_frame
from bayes_bench.errors import UsageError
from synthetic import METHODS, make_job, task_spec, write_job, write_plan

SMALL: dict[str, Any] = {"networks": 10, "examples": 150, "ood": {"ood/letters": 60}}
METRICS = ("accuracy", "nll", "ood_auroc/<set>", "disagreement", "fit_seconds")


def run(
    folder: Path, labels: Sequence[str] = ("hypergan", "map"), seeds: Sequence[int] = (0, 1, 2), **options: Any
) -> Path:
    """A run folder; ``signal`` and ``config`` change the methods, the rest goes to ``make_job``."""
    changes = {name: options.pop(name) for name in ("signal", "config") if name in options}
    records = []
    for label in labels:
        for seed in seeds:
            record, predictions = make_job(replace(METHODS[label], **changes), seed, **(SMALL | options))
            write_job(folder, record, predictions)
            records.append(record)
    write_plan(folder, records)
    return folder


def main(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    return int(stop.value.code or 0)


def compared(before: Path, after: Path, wanted: Sequence[str] = METRICS):
    return compare_runs(load_run(before), load_run(after), wanted)


def test_the_same_run_is_the_same(tmp_path: Path) -> None:
    one = run(tmp_path / "a")
    found = compared(one, one)
    assert {change.verdict for change in found.changes} == {"same"}
    assert {change.metric for change in found.changes} == {
        "accuracy",
        "nll",
        "ood_auroc/letters",
        "disagreement",
        "fit_seconds",
    }
    assert (found.differing, found.only_before, found.only_after, found.problems) == ((), (), (), ())


def test_better_and_worse_have_the_right_sign(tmp_path: Path) -> None:
    weak, strong = run(tmp_path / "weak", signal=2.0), run(tmp_path / "strong", signal=6.0, config={"hidden": [9]})
    up = {(change.method, change.metric): change for change in compared(weak, strong).changes}
    down = {(change.method, change.metric): change for change in compared(strong, weak).changes}
    for metric in ("accuracy", "nll"):
        better, worse = up["map", metric], down["map", metric]
        assert (better.verdict, worse.verdict) == ("better", "worse")
        assert better.low <= better.after - better.before <= better.high
        assert (worse.low, worse.high) == pytest.approx((-better.high, -better.low))
    assert up["hypergan", "disagreement"].verdict in ("higher", "lower", "within noise")
    assert ("map", "disagreement") not in up
    differing = compared(weak, strong).differing
    assert ("digits, hypergan", "setting hidden", "[64, 64]", "[9]") in differing
    assert ("digits, map", "setting hidden", "none", "[9]") in differing


def test_few_seeds_get_no_verdict(tmp_path: Path) -> None:
    found = compared(run(tmp_path / "a", seeds=(0, 1)), run(tmp_path / "b", seeds=(0, 1, 2), signal=3.0))
    assert {change.verdict for change in found.changes if change.metric == "nll"} == {"too few seeds"}
    assert {(change.seeds_before, change.seeds_after) for change in found.changes} == {(2, 3)}


def test_noise_stays_noise(tmp_path: Path) -> None:
    """Other seeds of the same method: of the differences about one in twenty stands out, not most."""
    first = run(tmp_path / "a", ["hypergan", "mcdropout", "ensemble", "map"], seeds=range(5))
    second = run(tmp_path / "b", ["hypergan", "mcdropout", "ensemble", "map"], seeds=range(5, 10))
    verdicts = [change.verdict for change in compared(first, second, ["accuracy", "nll", "brier"]).changes]
    assert len(verdicts) == 12
    assert verdicts.count("within noise") >= 10


def test_other_test_data_resample_seeds_alone(tmp_path: Path) -> None:
    other = task_spec("classification") | {"data": {"source": "digits", "more": 1}}
    found = compared(run(tmp_path / "a"), run(tmp_path / "b", spec=other, examples=90))
    assert ("everything", "data") in {row[:2] for row in found.differing}
    accuracy = next(change for change in found.changes if change.metric == "accuracy")
    means = [
        [metric_value(record, "accuracy") for record in load_records(tmp_path / name)
         if record["label"] == accuracy.method]
        for name in "ab"
    ]  # fmt: skip
    interval = stats.ttest_rel(means[1], means[0]).confidence_interval(0.95)
    assert (accuracy.low, accuracy.high) == pytest.approx(tuple(interval))


def test_what_one_run_alone_has_is_told(tmp_path: Path) -> None:
    found = compared(run(tmp_path / "a", ["map", "ensemble"]), run(tmp_path / "b", ["map", "hypergan"]))
    assert found.only_before == (("digits", "ensemble"),)
    assert found.only_after == (("digits", "hypergan"),)


def test_missing_predictions_leave_the_seeds(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a"), run(tmp_path / "b", signal=3.0)
    for file in second.rglob("predictions.safetensors"):
        file.unlink()
    found = compared(first, second)
    assert len(found.changes) > 5
    assert any("missing" in problem for problem in found.problems)


def test_mistakes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = run(tmp_path / "a", ["map"]), run(tmp_path / "b", ["ensemble"])
    with pytest.raises(UsageError, match="no task with the same method"):
        compared(one, two)
    with pytest.raises(UsageError, match="unknown metric 'acuracy', did you mean 'accuracy'"):
        compared(one, one, ["nll", "acuracy"])
    assert main(["compare", str(one), str(tmp_path / "none")]) == 2
    assert "not a run folder" in capsys.readouterr().err


def test_compare_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strong, weak = run(tmp_path / "strong", signal=6.0), run(tmp_path / "weak", signal=2.0, config={"hidden": [9]})
    csv = tmp_path / "changes.csv"
    arguments = ["compare", str(strong), str(weak), "--metrics", "accuracy,fit_seconds", "--csv", str(csv)]
    assert main([*arguments, "--fail-on-worse"]) == 1
    said = capsys.readouterr().out
    assert "worse" in said
    assert "setting hidden" in said
    frame = pd.read_csv(csv)
    assert set(frame["metric"]) == {"accuracy", "fit_seconds"}
    assert main(arguments) == 0
    assert main(["compare", str(weak), str(strong), "--fail-on-worse", "--metrics", "accuracy"]) == 0


# Several runs as one --------------------------------------------------------------------------------------


def test_methods_of_several_runs_stand_in_one_table(tmp_path: Path) -> None:
    merged = merge([run(tmp_path / "a", ["map"]), run(tmp_path / "b", ["hypergan"])])
    path = report.write(merged, tmp_path / "both")
    frame = pd.read_csv(tmp_path / "both" / "results.csv")
    assert list(frame["method"].unique()) == ["map", "hypergan"]
    html = path.read_text(encoding="utf-8")
    assert "6 of 6 jobs finished" in html
    assert "a, latest command:" in html
    assert 'class="best"' in html  # compared over the stored predictions of both
    separate = results_frame(load_records(tmp_path / "a"))
    both = frame[(frame["method"] == "map") & (frame["metric"] == "nll")]["value"]
    assert both.tolist() == separate[separate["metric"] == "nll"]["value"].tolist()


def test_other_settings_are_called_by_their_run(tmp_path: Path) -> None:
    first = run(tmp_path / "wide", ["map", "ensemble"])
    second = run(tmp_path / "narrow", ["map"], config={"hidden": [9]}, signal=2.0)
    merged = merge([first, second])
    assert sorted({record["label"] for record in merged.records}) == ["ensemble", "map (narrow)", "map (wide)"]
    assert merged.description["methods"] == ["map (wide)", "map (narrow)", "ensemble"]
    for record in merged.records:
        own = load_run(tmp_path / ("narrow" if "narrow" in record["label"] else "wide"))
        same = next(r for r in own.records if r["key"] == record["key"])
        np.testing.assert_array_equal(merged.predictions(record)["test/y"], own.predictions(same)["test/y"])
    assert merged.missing() == []
    assert "map (narrow)" in report.write(merged, tmp_path / "both").read_text(encoding="utf-8")


def test_a_failure_never_replaces_a_result(tmp_path: Path) -> None:
    first = run(tmp_path / "a", ["map"], seeds=(0,))
    second = tmp_path / "b"
    failed, _ = make_job(
        METHODS["map"], 0, **SMALL, status="failed", error="boom", finished="2027-01-01T00:00:00+00:00"
    )
    write_job(second, failed, None)
    write_plan(second, [failed])
    for folders in ([first, second], [second, first]):
        assert [record["status"] for record in merge(folders).records] == ["ok"]


def test_published_numbers_stand_beside_every_variant(tmp_path: Path) -> None:
    folders = [run(tmp_path / "a", ["hypergan"]), run(tmp_path / "b", ["hypergan"], config={"hidden": [9]})]
    frame = published_frame(merge(folders).records)
    ours = frame[frame["seeds"] > 0]
    assert set(ours["method"]) == {"hypergan (a)", "hypergan (b)"}


def test_a_job_that_is_in_both_counts_once(tmp_path: Path) -> None:
    first = run(tmp_path / "a", ["map"])
    second = run(tmp_path / "b", ["map"], seeds=(2, 3), finished="2026-02-02T00:00:00+00:00")
    merged = merge([first, second])
    assert sorted(record["seed"] for record in merged.records) == [0, 1, 2, 3]
    assert {r["finished"][:7] for r in merged.records if r["seed"] == 2} == {"2026-02"}
    assert any("1 jobs (seeds 2) are in several of the runs" in problem for problem in merged.problems)
    assert merge([second, first]).records[0]["finished"][:7] == "2026-02"


def test_labels_that_share_a_key_stay_apart(tmp_path: Path) -> None:
    """Two labels of one method with the same settings have the same key."""
    first, second = tmp_path / "a", run(tmp_path / "b", ["map"])
    made = [make_job(replace(METHODS["ensemble"], label=label), 0, **SMALL) for label in ("one", "two")]
    records = [record | {"key": "0" * 64} for record, _ in made]
    for record, (_, predictions) in zip(records, made, strict=True):
        write_job(first, record, predictions)
    write_plan(first, records)
    merged = merge([first, second])
    assert merged.description["methods"] == ["one", "two", "map"]
    assert len(merged.description["jobs"]) == 5
    assert merged.missing() == []


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [tmp_path / "x" / "run", tmp_path / "y" / "run"]
    for i, folder in enumerate(folders):
        run(folder, ["map"], config={"hidden": [i]})
    assert sorted({record["label"] for record in merge(folders).records}) == ["map (x/run)", "map (y/run)"]


def test_planned_jobs_of_all_runs_are_missed(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a", ["map"]), run(tmp_path / "b", ["hypergan"])
    record, _ = make_job(METHODS["hypergan"], 7, **SMALL)
    plan = json.loads((second / "run.json").read_text(encoding="utf-8"))
    own = [*load_records(second), record]
    write_plan(second, own, command=plan["command"])
    assert merge([first, second]).missing() == ["digits / hypergan / seed 7"]


def test_merging_asks_for_a_folder_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = run(tmp_path / "a", ["map"]), run(tmp_path / "b", ["hypergan"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.html")}
    for arguments, sentence in (
        ([str(first), str(second)], "give --out FOLDER"),
        ([str(first), str(second), "--out", str(second)], "is a run folder"),
        ([str(first), str(second), "--out", str(first)], "is a run folder"),
        ([str(first), str(first), "--out", str(tmp_path / "c")], "given twice"),
        ([str(first), str(tmp_path / "none"), "--out", str(tmp_path / "c")], "not a run folder"),
    ):
        assert main(["report", *arguments]) == 2
        assert sentence in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.html")} == before
    assert not (tmp_path / "c").exists()
    assert main(["report", str(first), str(second), "--out", str(tmp_path / "c")]) == 0
    assert "hypergan" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        "history.csv",
        "published.csv",
        "report.html",
        "results.csv",
        "summary.csv",
    ]


def test_one_run_can_be_rendered_elsewhere(tmp_path: Path) -> None:
    first = run(tmp_path / "a", ["map"])
    assert main(["report", str(first), "--out", str(tmp_path / "c")]) == 0
    assert (tmp_path / "c" / "report.html").is_file()
    assert not (first / "report.html").exists()
