"""Who is told how one job gets on. Imports no torch.

Three kinds of listeners, and no other: a ``Monitor`` hears of a fit, a ``Watch`` of a job, an ``Observer`` of a run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

PROGRESS_SECONDS = 0.2


class Watch:
    """Whoever is told how a job gets on; the default hears nothing."""

    def started(self) -> None:
        """The job itself begins now, not its worker."""

    def progress(self, fraction: float, values: Mapping[str, float]) -> None:
        """``fraction`` of the job's budget is spent; a few times a second."""

    def message(self, sentence: str) -> None:
        """Something the user should know of the job; its name is to be put before the sentence."""


class FitProgress:
    """The monitor of a job's fit: passes its progress on to the job's watch, a few times a second."""

    def __init__(self, watch: Watch):
        self._watch = watch
        self._next = 0.0

    def progress(self, spent: float, budget: int, values: Mapping[str, float]) -> None:
        now = time.perf_counter()
        if now >= self._next:
            self._next = now + PROGRESS_SECONDS
            self._watch.progress(min(1.0, spent / budget), values)
