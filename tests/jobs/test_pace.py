"""What a dry run expects of a job: by a few of its steps, and near what it then takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bayes_bench.jobs import pace
from bayes_bench.jobs.execute import execute
from bayes_bench.jobs.job import Conditions, Job, PlacedJob
from bayes_bench.jobs.pace import expectation
from bayes_bench.jobs.plan import plan
from bayes_bench.tasks.task import build_task
from tiny_suites import CURVE, DIGITS, register_fakes, suite

CPU = Conditions("cpu", threads=1)


def one(method: str, budget: int, **changes: object) -> Job:
    (job,) = plan(
        [suite((DIGITS if method != "hmc" else CURVE) | {"budget": budget} | changes, methods=[method], seeds=[0])]
    )
    return job


@pytest.mark.parametrize("method", ["map", "mcdropout", "sgld"])
def test_it_is_near_what_a_job_takes(method: str, tmp_path: Path) -> None:
    """Within a factor of four: a busy machine is not as fast from one second to the next."""
    job = one(method, 60_000)
    task = build_task(job.task)
    expected = expectation(job, task, CPU)
    record = execute(PlacedJob(job, task, "ab" * 32, "ab" * 32, tmp_path / "job"), CPU)
    assert expected.seconds is not None
    assert record["fit"]["seconds"] / 4 < expected.seconds < 4 * record["fit"]["seconds"] + 2
    stored = sum(record["files"][f"{name}.safetensors"]["bytes"] for name in ("predictions", "posterior"))
    assert 0.6 * stored < expected.bytes < 1.5 * stored


def test_a_short_fit_is_measured_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    register_fakes(monkeypatch)
    job = one("tiny", 100)
    assert expectation(job, build_task(job.task), CPU).seconds is not None


def test_a_job_without_paid_steps_is_unknown_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "LONGEST", 0.0)
    job = one("hypergan", 1_000_000)  # whose pretraining comes first, and is not paid
    assert expectation(job, build_task(job.task), CPU).seconds is None


@pytest.mark.parametrize("trouble", ["crash", "diverge", "exit", "memory", "refuse", "check crashes"])
def test_of_a_job_that_will_fail_nothing_is_known(monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    register_fakes(monkeypatch)
    job = one("tiny", 100, settings={"tiny": {"trouble": trouble}})
    assert expectation(job, build_task(job.task), CPU) == pace.Expectation(None, None)
