"""How a run or a search gets on: live on a terminal, a line a job elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from bayes_bench.cli.console import TUNING_HEADLINES, duration, number, outcome
from bayes_bench.errors import printable
from bayes_bench.jobs.job import Job
from bayes_bench.runs.observer import Observer
from bayes_bench.tuning.plan import Result, Trial


class PlainProgress(Observer):
    """A line per job on stderr: for logs, pipes and CI."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    def message(self, sentence: str) -> None:
        self._say(printable(sentence))

    def _say(self, line: str) -> None:
        with suppress(OSError):  # the reader has gone, or a log's disk is full: no reason to end a run
            print(line, file=sys.stderr, flush=True)

    def finished(
        self,
        job: Job,
        number: int,
        total: int,
        record: Mapping[str, Any],
        seconds: float | None,
        seconds_left: float | None,
    ) -> None:
        took = "already finished" if seconds is None else duration(seconds)
        left = f" ({duration(seconds_left)} left)" if seconds is not None and seconds_left else ""
        self._say(f"[{number}/{total}] {job.name}: {took}; {outcome(record)}{left}")


class FailuresOnly(PlainProgress):
    """``--quiet``: only what went wrong."""

    def finished(
        self,
        job: Job,
        number: int,
        total: int,
        record: Mapping[str, Any],
        seconds: float | None,
        seconds_left: float | None,
    ) -> None:
        if record["status"] != "ok":
            super().finished(job, number, total, record, seconds, None)


class LiveProgress(PlainProgress):
    """Bars on stderr, of the run and of every job that runs, under the lines of the finished jobs."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("{task.fields[left]}"),
            console=Console(stderr=True, highlight=False, emoji=False),
            transient=True,
        )
        self._all: TaskID = self._progress.add_task("preparing", total=1.0, left="")
        self._bars: dict[int, TaskID] = {}
        self._fractions: dict[int, float] = {}
        self._total, self._done = 1, 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def message(self, sentence: str) -> None:
        self._say(f"[yellow]{escape(printable(sentence))}[/]")

    def _say(self, line: str) -> None:
        with suppress(OSError):  # the terminal has gone
            self._progress.console.print(line)

    def started(self, job: Job, number: int, total: int, seconds_left: float | None) -> None:
        self._total = total
        self._remove(job)  # of an attempt before this one
        self._bars[id(job)] = self._progress.add_task(escape(job.name), total=1.0, left="")
        self._fractions[id(job)] = 0.0
        self._advance(seconds_left)

    def progress(self, job: Job, fraction: float, values: Mapping[str, float], seconds_left: float | None) -> None:
        shown = "  ".join(f"{name} {value:.3g}" for name, value in list(values.items())[:3])
        self._progress.update(self._bars[id(job)], completed=fraction, left=escape(shown))
        self._fractions[id(job)] = fraction
        self._advance(seconds_left)

    def finished(
        self,
        job: Job,
        number: int,
        total: int,
        record: Mapping[str, Any],
        seconds: float | None,
        seconds_left: float | None,
    ) -> None:
        self._total, self._done = total, number
        mark = "[green]✓[/]" if record["status"] == "ok" else "[red]✗[/]"
        took = "already finished" if seconds is None else duration(seconds)
        self._say(f"{mark} {escape(f'{job.name}: {took}; {outcome(record)}')}")
        self._remove(job)
        if number == total:
            self._progress.update(self._all, description="writing the report", completed=1.0, left="")
        else:
            self._advance(seconds_left)

    def _remove(self, job: Job) -> None:
        if (bar := self._bars.pop(id(job), None)) is not None:
            self._progress.remove_task(bar)
            del self._fractions[id(job)]

    def _advance(self, seconds_left: float | None) -> None:
        left = "" if seconds_left is None else f"about {duration(seconds_left)} left"
        self._progress.update(
            self._all,
            description=f"{self._done} of {self._total} jobs",
            completed=(self._done + sum(self._fractions.values())) / self._total,
            left=left,
        )


def progress(quiet: bool) -> PlainProgress:
    """The kind of progress that suits where stderr goes."""
    if quiet:
        return FailuresOnly()
    return LiveProgress() if sys.stderr.isatty() else PlainProgress()


def trial_line(result: Result, trial: Trial, seconds_left: float) -> None:
    """A line on stderr for a trial that has just finished."""
    shown = trial.error or ", ".join(
        f"{header} {number(trial.scores[name], factor, decimals)}"
        for name, header, factor, decimals in TUNING_HEADLINES
        if name in trial.scores
    )
    ranked = result.rule.ranked(result.trials)
    best = f"; best: trial {ranked[0].number}" if ranked else ""
    left = f" ({duration(seconds_left)} left)" if seconds_left else ""
    what = f"trial {trial.number}" + " (current settings)" * (trial.number == 0)
    print(f"[{len(result.trials)}/{result.wanted}] {what}: {shown}{best}{left}", file=sys.stderr, flush=True)


def failed_trial_line(result: Result, trial: Trial, seconds_left: float) -> None:
    """``--quiet``: only what went wrong."""
    if trial.error:
        trial_line(result, trial, 0.0)
