"""Who is told how a run gets on. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bayes_bench.jobs.job import Job


class Observer:
    """Whoever watches a run; the default sees nothing."""

    def message(self, sentence: str) -> None:
        """Something the user should know (a damaged record, changed code)."""

    def started(self, job: Job, number: int, total: int, seconds_left: float | None) -> None:
        """Job ``number`` (from 1) of ``total`` begins, perhaps beside others, perhaps not for the first time.

        ``seconds_left`` is for the whole run, None while unknown.
        """

    def progress(self, job: Job, fraction: float, values: Mapping[str, float], seconds_left: float | None) -> None:
        """``fraction`` of the job's budget is spent; at most a few times a second."""

    def finished(
        self,
        job: Job,
        number: int,
        total: int,
        record: Mapping[str, Any],
        seconds: float | None,
        seconds_left: float | None,
    ) -> None:
        """The job has a record, made in ``seconds``, or found finished (None); with it ``number`` of ``total`` have."""
