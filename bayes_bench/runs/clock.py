"""How long a run still takes: by the jobs of the same kind that have finished, and the pace of those that run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bayes_bench.jobs.job import Job

TRUSTED_FROM = 0.02
"""Share of a job from which its own pace says something."""


@dataclass
class _Running:
    started: float
    fraction: float = 0.0


class Clock:
    """Time left of a run.

    Args:
        jobs: all of them.
        slots: how many run at once.
    """

    def __init__(self, jobs: Sequence[Job], slots: int = 1):
        self._waiting = list(jobs)
        self.slots = max(1, slots)
        self._running: dict[int, tuple[Job, _Running]] = {}  # by the job's identity: names need not be unique
        self._seen: dict[tuple[str, str], list[float]] = {}

    def begin(self, job: Job) -> None:
        if job in self._waiting:  # a job that is tried again is in there no more
            self._waiting.remove(job)
        self._running[id(job)] = job, _Running(time.perf_counter())

    def skip(self, job: Job) -> None:
        if job in self._waiting:
            self._waiting.remove(job)

    def progress(self, job: Job, fraction: float) -> None:
        self._running[id(job)][1].fraction = fraction

    def end(self, job: Job, *, counts: bool = True) -> float:
        """Seconds that the job took; ``counts``: others of its kind are expected to take as long."""
        _, running = self._running.pop(id(job))
        seconds = time.perf_counter() - running.started
        if counts:
            self._seen.setdefault((job.task.name, job.label), []).append(seconds)
        return seconds

    def left(self) -> float | None:
        """Seconds, or None while any job's duration is unknown."""
        waiting = [self._expected(job) for job in self._waiting]
        current = []
        total: float | None = None
        for job, running in self._running.values():
            elapsed = time.perf_counter() - running.started
            expected = self._expected(job)
            # Early in a job its own pace says little: trust it as far as the job has got.
            pace = elapsed / running.fraction if running.fraction > TRUSTED_FROM else None
            if expected is None and pace is None:
                return None
            share = running.fraction
            total = pace if expected is None else expected if pace is None else share * pace + (1 - share) * expected
            current.append(max(0.0, (total or 0.0) - elapsed))
        # A kind of job that nothing is known of: like the one that runs.
        known = [total if seconds is None else seconds for seconds in waiting]
        ahead = [seconds for seconds in known if seconds is not None]
        if len(ahead) < len(known):
            return None
        together = [*current, *ahead]
        return max([0.0, *together, sum(together) / self.slots])

    def _expected(self, job: Job) -> float | None:
        seen = self._seen.get((job.task.name, job.label))
        if seen:
            return statistics.fmean(seen)
        same_task = [statistics.fmean(all_) for (task, _), all_ in self._seen.items() if task == job.task.name]
        return statistics.fmean(same_task) if same_task else None
