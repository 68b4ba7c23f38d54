from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fake_methods
from bayes_bench import report
from bayes_bench.errors import BayesBenchError, DataError, UsageError
from bayes_bench.jobs.job import Conditions
from bayes_bench.jobs.plan import Override, plan
from bayes_bench.results.folder import POSTERIOR, PREDICTIONS, RECORD, load_predictions
from bayes_bench.results.schema import read_record, write_checked
from bayes_bench.runs import rerun
from bayes_bench.runs.run import run
from tiny_suites import CURVE, DIGITS, register_fakes, suite


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    register_fakes(monkeypatch)
    monkeypatch.setattr(report, "write", lambda run_dir: Path(run_dir) / "report.html")


def run_one(folder: Path, task: dict[str, Any] = CURVE, method: str = "tiny", trouble: str = "") -> Path:
    overrides = [Override(method, "trouble", trouble)] if trouble else []
    jobs = plan([suite(task, methods=[method], seeds=[3])], overrides=overrides)
    run(jobs, folder / "run", conditions=Conditions("cpu", threads=1, memory_limit_mb=7))
    (job,) = (folder / "run/jobs").glob("*/*/*")
    return job


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return run_one(tmp_path)


def again(job: Path, out: Path, **options: Any) -> tuple[rerun.Repetition, list[Any]]:
    told: list[Any] = []
    return rerun.repeat(rerun.read(job), out, tell=told.extend, **options), told


def change(job: Path, **changes: Any) -> None:
    write_checked(job / RECORD, read_record(job / RECORD) | changes)


@pytest.mark.parametrize(("task", "method"), [(CURVE, "tiny"), (DIGITS, "pair"), (CURVE, "map")])
def test_a_job_again_is_the_same_bit_for_bit(tmp_path: Path, task: dict[str, Any], method: str) -> None:
    job = run_one(tmp_path, task, method)
    before = {path: path.read_bytes() for path in job.iterdir()}
    found, told = again(job, tmp_path / "again")
    assert (found.same, found.arrays, found.differences, found.notes, told) == (True, (), (), (), [])
    assert found.exit_code == 0
    old, new = read_record(job / RECORD), read_record(tmp_path / "again" / RECORD)
    assert new["key"] == old["key"]
    assert new["files"][PREDICTIONS] == old["files"][PREDICTIONS]
    assert new["machine"] == old["machine"]
    assert {path: path.read_bytes() for path in job.iterdir()} == before


def test_the_record_itself_names_the_job_as_well(job: Path) -> None:
    assert rerun.read(job / RECORD) == rerun.read(job)


def test_other_results_are_told_array_by_array(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = fake_methods.Tiny._sample

    def shifted(self: Any, n: int, rng: torch.Generator) -> Any:
        weights = draw(self, n, rng)
        last = list(weights)[-1]
        return weights | {last: weights[last] + 0.25}

    monkeypatch.setattr(fake_methods.Tiny, "_sample", shifted)
    found, _ = again(job, tmp_path / "again")
    assert not found.same
    assert found.exit_code == 1
    arrays = {one.name: one for one in found.arrays}
    moved = arrays["test/mean"]
    assert moved.differing == moved.size
    stored = [load_predictions(folder)["test/mean"] for folder in (job, tmp_path / "again")]
    assert moved.largest == np.abs(stored[0].astype(np.float64) - stored[1].astype(np.float64)).max() > 0
    assert "test/y" not in arrays
    assert "rmse" in {one.what for one in found.differences}
    assert not {"fit_seconds", "peak_memory_mb"} & {one.what for one in found.differences}


def test_what_is_not_as_it_was_is_told_before(job: Path, tmp_path: Path) -> None:
    record = read_record(job / RECORD)
    change(job, versions=record["versions"] | {"numpy": "1.0"}, data=record["data"] | {"checksum": "0" * 64})
    found, told = again(job, tmp_path / "again", conditions=Conditions(threads=2))
    assert [(one.where, one.what, one.recorded) for one in told] == [
        ("versions", "numpy", "1.0"),
        ("machine", "threads", "1"),
        ("data", "checksum", "0" * 64),
    ]
    assert found.record["machine"]["threads"] == 2
    assert found.record["machine"]["memory_limit_mb"] == 7


def test_a_job_that_failed_is_expected_to_fail_alike(tmp_path: Path) -> None:
    job = run_one(tmp_path, trouble="crash")
    found, _ = again(job, tmp_path / "again")
    assert found.same
    assert found.record["error"] == "ZeroDivisionError: division by zero"
    change(job, error="another")
    found, _ = again(job, tmp_path / "third")
    assert not found.same
    (difference,) = found.differences
    assert (difference.recorded, difference.found) == (
        "failed: another",
        "failed: ZeroDivisionError: division by zero",
    )


def test_a_job_that_fails_now_is_not_the_same(job: Path, tmp_path: Path) -> None:
    change(job, config=read_record(job / RECORD)["config"] | {"trouble": "diverge"})
    found, _ = again(job, tmp_path / "again")
    assert not found.same
    assert found.differences[0].recorded == "ok"


def test_without_its_arrays_a_record_is_compared_by_checksums(job: Path, tmp_path: Path) -> None:
    for name in (PREDICTIONS, POSTERIOR):
        (job / name).unlink()
    found, _ = again(job, tmp_path / "again")
    assert found.same
    assert [note.endswith("compared by its checksum alone") for note in found.notes] == [True, True]
    files = read_record(job / RECORD)["files"]
    change(job, files=files | {PREDICTIONS: files[PREDICTIONS] | {"sha256": "0" * 64}})
    found, _ = again(job, tmp_path / "third")
    assert [(one.name, one.problem) for one in found.arrays] == [(PREDICTIONS, "the file's checksum differs")]


def test_damaged_arrays_are_nothing_to_compare_with(job: Path, tmp_path: Path) -> None:
    path = job / PREDICTIONS
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="damaged"):
        again(job, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_gpu_that_is_not_there_is_said(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    machine = read_record(job / RECORD)["machine"]
    change(job, machine=machine | {"device": "NVIDIA Something", "device_class": "cuda"})
    with pytest.raises(UsageError, match="finds no GPU"):
        again(job, tmp_path / "again")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"machine": None}, "not the record of a job"),
        ({"machine": {"device": "cpu", "threads": 10**9}}, "threads"),
        ({"machine": {"device": "cpu", "threads": 1, "memory_limit_mb": -1}}, "memory_limit_mb"),
        ({"budget": None}, "budget"),
        ({"budget": {"total": 0}}, "budget.total is wrong"),
        ({"budget": {"total": 10**400}}, "an integer beyond 64 bits"),
        ({"seed": -1}, "seed is wrong"),
        ({"label": "../../etc"}, "label is wrong"),
        ({"suite": "<script>"}, "suite is wrong"),
        ({"method": "os.system"}, "unknown method 'os.system'"),
        ({"method": ["tiny"]}, "method"),
        ({"config": {"scale": "x"}}, "scale"),
        ({"config": {"rm": 1}}, "unknown setting of method 'tiny': 'rm'"),
        ({"task_spec": {"name": "../x"}}, "name"),
        ({"task_spec": 7}, "task"),
        ({"metrics": [{"value": 1}]}, "metrics.0.name"),
        ({"files": {"x": 3}}, "files.x"),
        ({"status": "fine"}, "status"),
        ({"fit": [1]}, "fit"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_a_hostile_record_is_refused_with_a_sentence(job: Path, changes: dict[str, Any], sentence: str) -> None:
    change(job, **changes)
    with pytest.raises(BayesBenchError) as refused:
        rerun.read(job)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2


def test_code_of_a_network_needs_permission(job: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("raise SystemExit('executed')")
    spec = read_record(job / RECORD)["task_spec"]
    network = {"name": "custom", "entry": f"{tmp_path / 'net.py'}:make", "options": {}}
    change(job, task_spec=spec | {"network": network})
    with pytest.raises(UsageError, match="--allow-code"):
        again(job, tmp_path / "again")


def test_records_of_older_versions_can_be_repeated(job: Path, tmp_path: Path) -> None:
    record = read_record(job / RECORD)
    older = {name: value for name, value in record.items() if name not in ("revision", "checkout")}
    older["machine"] = {"device": "cpu", "threads": 1, "precision": "float32"}
    write_checked(job / RECORD, older)
    found, told = again(job, tmp_path / "again")
    assert found.same
    assert ("machine", "memory_limit_mb", "None", "512") in {(o.where, o.what, o.recorded, o.found) for o in told}


def test_a_job_that_was_interrupted_is_still_the_same(job: Path, tmp_path: Path) -> None:
    change(job, fit=read_record(job / RECORD)["fit"] | {"interruptions": 2})
    found, _ = again(job, tmp_path / "again")
    assert (found.same, found.differences) == (True, ())


def test_arrays_are_not_read_through_a_link(job: Path, tmp_path: Path) -> None:
    (job / PREDICTIONS).rename(tmp_path / "elsewhere")
    (job / PREDICTIONS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="is a symbolic link"):
        again(job, tmp_path / "again")
