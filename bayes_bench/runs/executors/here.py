"""Jobs in this process, one after the other: the default."""

from __future__ import annotations

from collections.abc import Callable

from bayes_bench.host.stopping import Stop
from bayes_bench.jobs.execute import execute
from bayes_bench.jobs.job import Conditions, PlacedJob
from bayes_bench.jobs.watch import Watch
from bayes_bench.runs.executors.base import Executor, Outcome


class Here(Executor):
    """A job is computed while the runner waits for it."""

    slots = 1

    def __init__(self, conditions: Conditions, watch: Callable[[PlacedJob], Watch], stop: Stop):
        super().__init__(conditions, watch, stop)
        self._item: PlacedJob | None = None

    def room(self) -> bool:
        return self._item is None

    def submit(self, item: PlacedJob) -> None:
        self._item = item

    def wait(self) -> list[Outcome]:
        item, self._item = self._item, None
        if item is None:
            return []
        watch = self.watch(item)
        watch.started()
        try:
            return [Outcome(item, "recorded", execute(item, self.conditions, watch, self.stop))]
        except KeyboardInterrupt:
            return [Outcome(item, "interrupted")]

    def close(self) -> None:
        self._item = None
