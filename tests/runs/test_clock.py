from __future__ import annotations

import pytest

from bayes_bench.jobs.plan import plan
from bayes_bench.runs import clock as clocks
from bayes_bench.runs.clock import Clock
from tiny_suites import CURVE, DIGITS, register_fakes, suite


class Time:
    now = 0.0


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    register_fakes(monkeypatch)
    time = Time()
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: time.now)
    return time


def test_time_left_is_learnt_from_jobs_of_the_same_kind(time: Time) -> None:
    jobs = plan([suite(CURVE, methods=["tiny", "pair"], seeds=[0, 1])])
    clock = Clock(jobs)
    clock.begin(jobs[0])
    assert clock.left() is None  # nothing is known yet
    time.now = 2.0
    clock.progress(jobs[0], 0.5)
    assert clock.left() == pytest.approx(2.0 + 3 * 4.0)  # four seconds a job
    time.now = 4.0
    assert clock.end(jobs[0]) == 4.0
    clock.begin(jobs[1])
    assert clock.left() == pytest.approx(4.0 + 2 * 4.0)
    time.now = 14.0
    assert clock.end(jobs[1]) == 10.0
    assert clock.left() == pytest.approx(4.0 + 10.0)
    clock.skip(jobs[2])
    assert clock.left() == pytest.approx(10.0)


def test_jobs_that_run_at_once_share_the_time(time: Time) -> None:
    jobs = plan([suite(DIGITS, methods=["tiny"], seeds=[0, 1, 2, 3])])
    clock = Clock(jobs, slots=2)
    assert clock.left() is None
    clock.begin(jobs[0])
    time.now = 8.0
    clock.end(jobs[0])
    clock.begin(jobs[1])
    clock.begin(jobs[2])
    assert clock.left() == pytest.approx(12.0)
    time.now = 14.0
    clock.end(jobs[1], counts=False)  # it failed early: that says nothing of the others
    assert clock.left() == pytest.approx(8.0)  # the one that waits alone takes longer than half of both


def test_a_job_that_is_tried_again_is_no_other_job(time: Time) -> None:
    jobs = plan([suite(DIGITS, methods=["tiny"], seeds=[0, 1])])
    clock = Clock(jobs)
    clock.begin(jobs[0])
    time.now = 8.0
    clock.end(jobs[0])
    clock.begin(jobs[1])
    clock.end(jobs[1], counts=False)
    clock.begin(jobs[1])
    time.now = 11.0
    assert clock.left() == pytest.approx(5.0)


def test_of_another_task_nothing_is_known_until_a_job_of_it_runs(time: Time) -> None:
    jobs = plan([suite(CURVE, DIGITS, methods=["tiny"], seeds=[0])])
    clock = Clock(jobs)
    clock.begin(jobs[0])
    time.now = 8.0
    clock.end(jobs[0])
    assert clock.left() is None
    clock.begin(jobs[1])
    time.now = 10.0
    clock.progress(jobs[1], 0.5)
    assert clock.left() == pytest.approx(2.0)
