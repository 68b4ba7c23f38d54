"""The same jobs in this process and in workers, and everything that can happen to a worker. Real processes."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bayes_bench import report
from bayes_bench.errors import UsageError
from bayes_bench.jobs.job import Conditions, Job, PlacedJob
from bayes_bench.jobs.plan import plan
from bayes_bench.results.folder import read_records
from bayes_bench.results.lock import locked
from bayes_bench.runs.executors import processes
from bayes_bench.runs.executors.base import Workers
from bayes_bench.runs.run import _check_threads, build_tasks, machine, run
from rogue import rogue_plugin
from tiny_suites import CURVE, suite
from worker_runs import Seen, alive, go, log_of, number_in, rogue_entry, until, without_measurements

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals")


@pytest.fixture
def rogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """A suite's entry of a rogue method; no pages."""
    rogue_plugin(tmp_path / "plugin", monkeypatch)
    monkeypatch.setattr(report, "write", lambda run_dir: Path(run_dir) / "report.html")
    return partial(rogue_entry, tmp_path)


def descriptors() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 0


# Results --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_jobs() -> tuple[Job, ...]:
    return plan([suite(CURVE | {"budget": 2000}, methods=["map", "mcdropout"], seeds=[0, 1])])


@pytest.fixture(scope="module")
def serial(real_jobs: tuple[Job, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run_dir = tmp_path_factory.mktemp("serial") / "run"
    run(real_jobs, run_dir, conditions=Conditions("cpu", threads=1))
    return without_measurements(run_dir)


@pytest.mark.parametrize(
    "number", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)]
)
def test_results_do_not_depend_on_the_number_of_workers(
    number: int, real_jobs: tuple[Job, ...], serial: dict[str, Any], tmp_path: Path
) -> None:
    result = run(real_jobs, tmp_path / "run", conditions=Conditions("cpu", threads=1), workers=Workers(jobs=number))
    assert (result.finished, result.exit_code) == (4, 0)
    assert without_measurements(tmp_path / "run") == serial


# Deaths ---------------------------------------------------------------------------------------------------


def test_a_worker_that_dies_costs_only_its_own_job(rogue: Callable[..., Any], tmp_path: Path) -> None:
    before = descriptors()
    entries = [rogue("dies", "dies"), rogue("once", "dies once"), rogue("bad", "crash"), rogue("good"), rogue("good2")]
    result, records, seen = go(entries, tmp_path / "run", jobs=2)
    assert (result.finished, result.failed, result.exit_code, result.interrupted) == (3, 2, 1, False)
    assert {label: record["status"] for label, record in records.items()} == {
        "dies": "failed", "once": "ok", "bad": "failed", "good": "ok", "good2": "ok",
    }  # fmt: skip
    assert records["dies"]["error"] == (
        "WorkerDied: its process was ended by SIGKILL (2 times); mostly it is memory: run fewer jobs at once (--jobs)"
    )
    assert "SIGKILL" in log_of(tmp_path / "run", "dies")
    assert records["bad"]["error"] == "ZeroDivisionError: division by zero"
    assert "Traceback" in log_of(tmp_path / "run", "bad")
    assert sorted(message for message in seen.messages if "runs again" in message) == [
        "curve/dies seed 0: its process was ended by SIGKILL; the job runs again",
        "curve/once seed 0: its process ended with exit code 7; the job runs again",
    ]
    assert seen.started_jobs.count("dies") == seen.started_jobs.count("once") == 2
    assert seen.numbers == [1, 2, 3, 4, 5]
    assert seen.values  # progress came through
    # Records of failures are as complete as others, and nothing is left behind.
    assert records["dies"].keys() == records["good"].keys()
    assert records["dies"]["machine"] == records["good"]["machine"]
    assert multiprocessing.active_children() == []
    assert descriptors() == before
    assert not list(tmp_path.rglob("*.tmp"))


def test_what_a_job_has_started_ends_with_its_worker(rogue: Callable[..., Any], tmp_path: Path) -> None:
    entries = [
        rogue("dies", "leaves a child and dies"),
        rogue("lives", "leaves a child"),
        rogue("ok", "leaves a thread"),
    ]
    started = time.monotonic()
    result, records, _ = go(entries, tmp_path / "run", jobs=1)
    assert time.monotonic() - started < 300  # not as long as what they started
    assert (result.finished, result.failed) == (2, 1)
    assert records["dies"]["error"].startswith("WorkerDied: its process was ended by SIGKILL (2 times)")
    assert not any(alive(number_in(tmp_path / f"{label}.mark")) for label in ("dies", "lives"))


@pytest.mark.slow
def test_a_job_whose_worker_is_killed_goes_on_from_its_snapshot(rogue: Callable[..., Any], tmp_path: Path) -> None:
    def kill() -> None:
        until(lambda: list(tmp_path.glob("run/jobs/curve/map/*/snapshots/*.snapshot")))
        (worker,) = multiprocessing.active_children()
        worker.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    result, records, seen = go(["map"], tmp_path / "run", budget=100_000, snapshot_every=0.2, jobs=1)
    killer.join()
    assert (result.finished, result.exit_code) == (1, 0)
    died, continued = seen.messages
    assert died == "curve/map seed 0: its process was ended by SIGKILL; the job runs again"
    assert continued.startswith("curve/map seed 0 goes on from a snapshot at ")
    assert records["map"]["fit"]["interruptions"] == 1
    go(["map"], tmp_path / "serial", budget=100_000)
    assert without_measurements(tmp_path / "run") == without_measurements(tmp_path / "serial")


def test_a_job_that_takes_too_long_is_a_failed_row(rogue: Callable[..., Any], tmp_path: Path) -> None:
    result, records, _ = go([rogue("slow", "stubborn"), rogue("good")], tmp_path / "run", timeout=1.5)
    assert (result.finished, result.failed) == (1, 1)
    assert records["slow"]["error"] == "TimeoutError: not finished after 1.5 s; raise --timeout"
    assert "its process was ended" in log_of(tmp_path / "run", "slow")
    assert records["good"]["status"] == "ok"
    assert not alive(number_in(tmp_path / "slow.mark"))


def test_data_that_changed_under_a_run_are_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (job,) = plan([suite(methods=["map"], seeds=[0])])
    worker = type("Worker", (), {"tasks": {}})()
    monkeypatch.setattr(processes, "_worker", worker, raising=False)
    order = processes.Order(job, "key", "variant", "another checksum", tmp_path / "job")
    reply = processes._run(order, Conditions("cpu"), stop=None)  # type: ignore[arg-type]
    assert reply.kind == "failed"
    assert reply.error == "DataError: the data of task 'curve' have changed since the run began; run it again"
    assert not (tmp_path / "job").exists()


@pytest.mark.slow
def test_results_that_cannot_be_written_end_the_run(rogue: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "run" / "jobs").mkdir(parents=True)
    (tmp_path / "run" / "jobs" / "curve").write_text("a file where a folder belongs")
    with pytest.raises(UsageError, match="cannot"):
        go([rogue("good")], tmp_path / "run", jobs=1)
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_script_without_a_guard_is_told(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "from pathlib import Path\n"
        "from bayes_bench.runs.run import run\n"
        "from bayes_bench.runs.executors.base import Workers\n"
        "from bayes_bench.jobs.plan import plan\n"
        "from bayes_bench.tasks import load_suite\n"
        'jobs = plan([load_suite("cubic")], methods=["map"], seeds=[0])\n'
        'run(jobs, Path("run"), workers=Workers(jobs=1))\n'
    )
    subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, check=True, timeout=120)
    ((_, record),) = read_records(tmp_path / "run")[0]
    assert "before it began, as in a script without if __name__ == '__main__' (2 times)" in record["error"]


# Signals --------------------------------------------------------------------------------------------------


@contextmanager
def command(tmp_path: Path, *entries: dict[str, Any], jobs: int) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A real run with one rogue worker per entry; yields when all of them are inside their fits."""
    lines = ['name = "s"', "seeds = [0]"]
    for entry in entries:
        settings = ", ".join(f"{name} = {json.dumps(value)}" for name, value in entry["settings"].items())
        lines += ["[[methods]]", f'label = "{entry["label"]}"', 'method = "rogue"', f"settings = {{{settings}}}"]
    lines += [
        "[[tasks]]", 'name = "curve"', "budget = 100", 'data = {source = "cubic"}',
        'network = {name = "mlp", hidden = [5]}', 'likelihood = {name = "gaussian", noise_std = 3.0}',
    ]  # fmt: skip
    (tmp_path / "s.toml").write_text("\n".join(lines))
    arguments = ["run", "s.toml", "--out", "run", "--threads", "1", "--jobs", str(jobs)]
    process = subprocess.Popen(
        [sys.executable, "-m", "bayes_bench", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a signal to its group is what Ctrl-C in a terminal is
    )
    try:
        yield process, [number_in(Path(entry["settings"]["mark"])) for entry in entries]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_workers_end_when_the_driver_is_killed(rogue: Callable[..., Any], tmp_path: Path) -> None:
    with command(tmp_path, rogue("a", "stubborn"), rogue("b", "waits"), jobs=2) as (process, workers):
        assert all(map(alive, workers))
        process.kill()
        process.wait()
        until(lambda: not any(map(alive, workers)), seconds=5)
    assert not list((tmp_path / "run/jobs").glob("*/*/*/record.json"))
    with locked(tmp_path / "run"):
        pass


def test_ctrl_c_reaches_the_workers_once(rogue: Callable[..., Any], tmp_path: Path) -> None:
    with command(tmp_path, rogue("a", "waits"), rogue("b", "waits"), jobs=2) as (process, workers):
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "press Ctrl-C again to stop at once" in err
    assert "Interrupted after 0 of 2 jobs; the same command continues." in err
    assert "Traceback" not in err
    assert not any(map(alive, workers))
    assert not list((tmp_path / "run/jobs").glob("*/*/*/record.json"))


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once(rogue: Callable[..., Any], tmp_path: Path) -> None:
    with command(tmp_path, rogue("a", "stubborn"), jobs=1) as (process, workers):
        process.send_signal(signal.SIGINT)
        assert "again" in process.stderr.readline()  # type: ignore[union-attr]
        time.sleep(1)
        assert process.poll() is None  # it waits for the job, which will not end
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert process.returncode == 130, err
    assert "interrupted; the same command continues" in err
    assert "Traceback" not in err
    assert not any(map(alive, workers))


# Arguments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"jobs": 0}, "--jobs must be at least 1, got 0"),
        ({"timeout": 0.0}, "--timeout must be a positive number of seconds, got 0"),
        ({"address": "here:1"}, "--address is an option of a cluster; add --executor ray"),
        ({"cpus_per_job": 2}, "--cpus-per-job is an option of a cluster; add --executor ray"),
        ({"executor": "ray", "gpus_per_job": 1.5}, "a part of one GPU or a whole number, got 1.5"),
        ({"executor": "ray", "cpus_per_job": 0}, "--cpus-per-job must be at least 1"),
    ],
)
def test_options_that_cannot_be(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Workers(**arguments).check()


def test_more_threads_than_cores_are_said(rogue: Callable[..., Any], tmp_path: Path) -> None:
    cores = machine.physical_cores()
    jobs = plan([suite(methods=[rogue("a"), rogue("b")], seeds=[0])])
    seen = Seen()
    tasks = build_tasks(jobs)
    placed = [PlacedJob(job, task, "", "", tmp_path) for job in jobs for task in tasks.values()]
    _check_threads(placed, cores, Workers(jobs=2), seen)
    _check_threads(placed, 1, Workers(), seen)
    (message,) = seen.messages
    assert f"2 jobs at once with {cores} threads each get in each other's way" in message
