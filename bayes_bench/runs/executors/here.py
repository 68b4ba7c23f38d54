"""Jobs in this process, one after the other: the default."""

from __future__ import annotations

from bayes_bench.host.stopping import Stop
from bayes_bench.jobs.execute import execute
from bayes_bench.jobs.job import Conditions, Keyed
from bayes_bench.runs.executors.base import Executor, Outcome
from bayes_bench.runs.executors.worker import Reporter
from bayes_bench.runs.observer import Watch


class Here(Executor):
    """A job is computed while the runner waits for it."""

    slots = 1

    def __init__(self, conditions: Conditions, watch: Watch, stop: Stop):
        super().__init__(conditions, watch, stop)
        self._item: Keyed | None = None

    def room(self) -> bool:
        return self._item is None

    def submit(self, item: Keyed) -> None:
        self._item = item

    def wait(self) -> list[Outcome]:
        item, self._item = self._item, None
        if item is None:
            return []
        self.watch.started(item)
        reporter = Reporter(
            lambda fraction, values: self.watch.progress(item, fraction, values),
            lambda sentence: self.watch.message(item, sentence),
        )
        try:
            return [Outcome(item, "recorded", execute(item, self.conditions, reporter, self.stop))]
        except KeyboardInterrupt:
            return [Outcome(item, "interrupted")]

    def close(self) -> None:
        self._item = None
