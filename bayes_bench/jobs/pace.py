"""How long a job will take on this machine and what it will leave, by a few of its steps instead of a guess."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from bayes_bench.jobs.execute import NETWORKS, build_posterior, check_memory, default_threads
from bayes_bench.jobs.job import Conditions, Job
from bayes_bench.jobs.memory import stored_bytes
from bayes_bench.jobs.predictions import predict
from bayes_bench.jobs.provenance import derived_seed
from bayes_bench.posterior.base import WeightPosterior
from bayes_bench.posterior.checks import SEEDS
from bayes_bench.posterior.snapshots import Snapshots
from bayes_bench.posterior.surroundings import limited_threads, settled, warm_up
from bayes_bench.tasks.task import Task

SECONDS = 0.5
"""Of training that are looked at, once a step has been paid from the budget."""
LONGEST = 5.0
"""After so many seconds without such a step nothing is known."""
COPIES_BYTES = 2**28
"""Memory for copies of a network that are predicted with."""
ROWS = 256
"""Inputs that are predicted to see how long all of them take."""


@dataclass(frozen=True)
class Expectation:
    """What a job will take.

    Attributes:
        seconds: for the fit and all predictions; None where no pace could be seen. Work that the budget does not count,
            such as a generator that is trained on the networks of a chain, comes on top.
        bytes: of its files, but for the log; None where the job will fail.
    """

    seconds: float | None
    bytes: float | None


class _Stopwatch(Snapshots):
    """In place of snapshots: reads the clock and the budget at the first paid step, and ends the fit soon after it.

    Attributes:
        pace: seconds for a gradient evaluation, or None.
        stopped: it was the clock that ended the fit.
    """

    def __init__(self) -> None:
        self.tell = lambda _: None
        self.pace: float | None = None
        self.stopped = False
        self._begun = time.perf_counter()
        self._first: tuple[float, float] | None = None

    def begin(self) -> None:
        """There is no folder."""

    @property
    def stopping(self) -> bool:
        seen = time.perf_counter() - (self._first[0] if self._first else self._begun)
        self.stopped = seen > (SECONDS if self._first else LONGEST)
        return self.stopped

    def due(self) -> bool:
        return True

    def worthwhile(self) -> bool:
        return True

    def deferring(self) -> AbstractContextManager[None]:
        return nullcontext()

    def save(self, part: int, state: Mapping[str, Any]) -> None:
        now, spent = time.perf_counter(), float(state["loop"]["spent"])
        if self._first is None:
            self._first = (now, spent) if spent > 0 else None
        elif spent > self._first[1]:
            self.pace = (now - self._first[0]) / (spent - self._first[1])

    def load(self, part: int) -> None:
        return None


def expectation(job: Job, task: Task, conditions: Conditions) -> Expectation:
    """Try a few steps and predictions of a job; nothing is written. Of a job that will fail nothing is known."""
    try:
        check_memory(job, task, conditions)
        return _expected(job, task, conditions)
    except KeyboardInterrupt:
        raise
    except BaseException:  # whatever a method does, and be it to exit: its job will fail and be a row of the report
        return Expectation(None, None)


def _expected(job: Job, task: Task, conditions: Conditions) -> Expectation:
    device = torch.device(conditions.device)
    posterior = build_posterior(job, task, conditions.memory_limit_mb)
    drawn = NETWORKS if posterior.support is None else min(NETWORKS, posterior.support)
    threads = conditions.threads or default_threads(task)
    with settled(device, conditions.precision), limited_threads(threads):
        warm_up()
        pace = _pace(posterior, job, task, device)
        seconds = None if pace is None else pace * job.budget + _prediction_seconds(posterior, task, drawn)
    return Expectation(seconds, stored_bytes(posterior, task, job.budget, drawn))


def _pace(posterior: WeightPosterior, job: Job, task: Task, device: torch.device) -> float | None:
    watch = _Stopwatch()
    seed = derived_seed(job.seed, "fit") % SEEDS
    try:
        fit = posterior.fit(task.fit_data, budget=job.budget, seed=seed, device=device, snapshots=watch)
    except KeyboardInterrupt:
        if not watch.stopped:
            raise
        return watch.pace
    return fit.seconds / job.budget


def _prediction_seconds(posterior: WeightPosterior, task: Task, drawn: int) -> float:
    """For all sets, by a few inputs of the largest and copies of the starting weights, fewer where these are large."""
    tried = max(1, min(drawn, COPIES_BYTES // posterior.network_bytes))
    weights = posterior.complete({name: torch.stack(tried * [value]) for name, value in posterior.initial.items()})
    x = max(task.sets.values(), key=len).x[:ROWS]
    predict(posterior, weights, x[:1], task.standardiser)
    started = time.perf_counter()
    predict(posterior, weights, x, task.standardiser)
    return (time.perf_counter() - started) * drawn / tried * sum(map(len, task.sets.values())) / len(x)
