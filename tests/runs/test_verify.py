from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from bayes_bench import metrics, report
from bayes_bench.analysis.records import load_run
from bayes_bench.errors import DataError, UsageError
from bayes_bench.host.files import write_text
from bayes_bench.jobs.job import Conditions
from bayes_bench.jobs.plan import Override, plan
from bayes_bench.metrics.base import Metric
from bayes_bench.results.folder import LOG, POSTERIOR, PREDICTIONS, RECORD, RUN, read_records
from bayes_bench.results.schema import read_record, write_checked
from bayes_bench.runs.run import run
from bayes_bench.runs.verify import Mismatch, verify
from tiny_suites import CURVE, DIGITS, register_fakes, suite


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three jobs, one of which failed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    broken = {"label": "broken", "method": "tiny", "settings": {"trouble": "crash"}}
    suites = [suite(CURVE, methods=["tiny", broken], seeds=[0]), suite(DIGITS, name="b", methods=["pair"], seeds=[0])]
    with pytest.MonkeyPatch.context() as patch:
        register_fakes(patch)
        patch.setattr(report, "write", write_tables)
        run(plan(suites), folder, conditions=Conditions("cpu", threads=1))
    return folder


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to be damaged."""
    register_fakes(monkeypatch)
    monkeypatch.setattr(report, "write", write_tables)
    return Path(shutil.copytree(finished, tmp_path / "run"))


def write_tables(folder: Path) -> Path:
    """What the report writes, without the page."""
    for name, text in report.csv_tables(load_run(folder)).items():
        write_text(folder / name, text)
    return folder / "report.html"


def job(run_dir: Path, label: str) -> Path:
    (folder,) = run_dir.glob(f"jobs/*/{label}/*")
    return folder


def change(run_dir: Path, label: str, **changes: Any) -> None:
    """Alter a record as somebody who writes it anew would; the tables are made of it."""
    folder = job(run_dir, label)
    write_checked(folder / RECORD, read_record(folder / RECORD) | changes)
    write_tables(run_dir)


def contents(run_dir: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


def test_a_run_as_it_was_left_agrees_and_nothing_is_written(run_dir: Path) -> None:
    before = contents(run_dir)
    found = verify(run_dir)
    assert (found.jobs, found.differences, found.missing, found.versions, found.exit_code) == (3, (), (), (), 0)
    assert found.values == sum(len(record["metrics"]) for _, record in read_records(run_dir)[0])
    assert contents(run_dir) == before


@pytest.mark.parametrize("name", [PREDICTIONS, POSTERIOR, LOG])
def test_a_flipped_byte_in_any_file_is_found(run_dir: Path, name: str) -> None:
    path = job(run_dir, "tiny") / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (difference,) = verify(run_dir).differences
    assert (difference.kind, difference.where, difference.what) == ("damaged", "curve/tiny seed 0", name)
    assert difference.recorded != difference.found


def test_a_missing_file_and_a_damaged_record_are_found(run_dir: Path) -> None:
    (job(run_dir, "tiny") / POSTERIOR).unlink()
    (job(run_dir, "pair") / RECORD).write_text("{")
    write_tables(run_dir)
    damaged, missing = verify(run_dir).differences
    assert (damaged.kind, damaged.where) == ("damaged", "a record")
    assert str(job(run_dir, "pair")) in damaged.found
    assert (missing.what, missing.found) == (POSTERIOR, "missing")


def test_an_altered_metric_is_found_although_every_file_is_valid(run_dir: Path) -> None:
    rows = read_record(job(run_dir, "pair") / RECORD)["metrics"]
    (old,) = [row["value"] for row in rows if row["name"] == "accuracy"]
    altered = [row | {"value": row["value"] + 1e-9} if row["name"] == "accuracy" else row for row in rows]
    change(run_dir, "pair", metrics=altered, alarms=["made up"])
    found = verify(run_dir)
    accuracy, alarms = found.differences
    assert accuracy == Mismatch("value", "digits/pair seed 0", "accuracy", repr(old + 1e-9), f"{old!r} (by 1e-09)")
    assert (alarms.kind, alarms.what, alarms.recorded) == ("value", "alarms", "['made up']")
    assert found.exit_code == 1


def test_what_another_version_measured_is_a_kind_of_its_own(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = read_record(job(run_dir, "tiny") / RECORD)
    rows = [row | {"unit": "furlongs"} if row["name"] == "rmse" else row for row in record["metrics"]]
    rows = [row for row in rows if row["name"] != "crps"] + [rows[0] | {"name": "old_metric", "value": 0.5}]
    change(run_dir, "tiny", metrics=rows, versions=record["versions"] | {"numpy": "1.0"})
    new = Metric("new_metric", "", None, "new", (), "always 1", lambda job: 1.0, kind="regression")
    monkeypatch.setattr(metrics.compute, "__defaults__", ((*metrics.CATALOGUE, new), "none"))
    found = verify(run_dir)
    assert {one.kind for one in found.differences} == {"version"}
    shown = {one.what: (one.recorded, one.found) for one in found.differences}
    assert shown.pop("crps")[0] == "not measured"
    assert shown == {
        "unit of rmse": ("furlongs", "target units"),
        "old_metric": ("0.5", "not measured"),
        "new_metric": ("not measured", "1.0"),
    }
    (sentence,) = found.versions
    assert sentence.startswith("numpy is ")
    assert sentence.endswith("here and was 1.0: last digits may differ")


def test_tables_that_are_not_of_these_records_are_found(run_dir: Path) -> None:
    path = run_dir / report.RESULTS
    text = path.read_text()
    line = 1 + text[: text.index(",tiny,")].count("\n")
    path.write_text(text.replace(",tiny,", ",tony,", 1))
    (run_dir / report.SUMMARY).unlink()
    results, summary = verify(run_dir).differences
    assert (results.kind, results.where, results.what) == ("table", "results.csv", f"line {line}")
    assert "tony" in results.recorded
    assert "tiny" in results.found
    assert "bayes-bench report makes it anew" in summary.what


@pytest.mark.parametrize("what", ["link", "pipe"])
def test_a_table_that_is_no_file_is_not_read(run_dir: Path, tmp_path: Path, what: str) -> None:
    path = run_dir / report.RESULTS
    path.unlink()
    if what == "link":
        (tmp_path / "secret").write_text("secret")
        path.symlink_to(tmp_path / "secret")
    else:
        os.mkfifo(path)
    (difference,) = verify(run_dir).differences
    assert (difference.kind, difference.where, difference.recorded) == ("table", "results.csv", "")
    assert difference.what.startswith("cannot be read")


def test_a_job_in_another_jobs_folder_is_found(run_dir: Path) -> None:
    change(run_dir, "tiny", seed=5)
    found = verify(run_dir).differences
    assert [one.kind for one in found] == ["damaged"]
    assert "it is the record of another job" in found[0].found


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {"../../../run.json": {"bytes": 1, "sha256": "0"}}},
        {"metrics": [{"value": 1}]},
        {"kind": ["regression"]},
        {"task_spec": 7},
        {"task_spec": {"name": "t", "collapse_threshold": None}},
        {"fit": {"diagnostics": {"answer": "x"}}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_record_that_holds_nonsense_is_found_and_the_others_are_compared(
    run_dir: Path, changes: dict[str, Any]
) -> None:
    folder = job(run_dir, "tiny")
    write_checked(folder / RECORD, read_record(folder / RECORD) | changes)
    write_tables(run_dir)
    found = verify(run_dir)
    assert found.jobs == 2
    (difference,) = found.differences
    assert (difference.kind, difference.where) == ("damaged", "a record")
    assert str(folder) in difference.found


def test_jobs_that_were_not_run_yet_are_named(run_dir: Path) -> None:
    (job(run_dir, "broken") / RECORD).unlink()
    write_tables(run_dir)
    found = verify(run_dir)
    assert found.missing == ("curve / broken / seed 0",)
    assert found.exit_code == 0


def test_other_folders_are_refused(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run folder"):
        verify(tmp_path)
    (run_dir / RUN).write_text("[]")
    with pytest.raises(DataError, match="damaged"):
        verify(run_dir)


def test_a_reference_is_measured_against_as_in_the_run(run_dir: Path) -> None:
    record = read_record(job(run_dir, "tiny") / RECORD)
    change(run_dir, "tiny", task_spec=record["task_spec"] | {"reference": "gone.safetensors"})
    found = verify(run_dir).differences
    assert found
    assert all(one.what.startswith("reference_") and "gone.safetensors" in one.found for one in found)


def test_overrides_of_a_run_change_nothing_here(run_dir: Path) -> None:
    jobs = plan([suite(methods=["tiny"], seeds=[0])], overrides=[Override("tiny", "scale", 0.5)])
    run(jobs, run_dir, conditions=Conditions("cpu", threads=1))
    found = verify(run_dir)
    assert (found.jobs, found.differences) == (4, ())
