"""What a job's surroundings need in a worker: passing progress on, and being asked to stop by the driver.

The driver is the process in which the user started the run. Imports no torch.
"""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from bayes_bench.host.stopping import Stop
from bayes_bench.jobs.watch import Watch


class Told(Watch):
    """Passes all that a job tells on to the driver, by the names of the watch's methods."""

    def __init__(self, say: Callable[..., None]):
        self._say = say

    def started(self) -> None:
        self._say("started")

    def progress(self, fraction: float, values: Mapping[str, float]) -> None:
        self._say("progress", fraction, dict(values))

    def message(self, sentence: str) -> None:
        self._say("message", sentence)


class StopRequest:
    """A request to stop that comes from the driver, through a thread of the worker.

    A terminal sends Ctrl-C to all processes of a run. What it means is for the driver to decide, so the worker's own
    SIGINT counts only after ``ask``, and once.
    """

    def __init__(self) -> None:
        self._asked = False
        self._stop: Stop | None = None

    def ask(self) -> None:
        """Ask the job to stop; from another thread than the main one."""
        self._asked = True
        if hasattr(signal, "pthread_kill"):  # a real signal also wakes a job that sleeps
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        else:
            _thread.interrupt_main()

    @contextmanager
    def heard(self) -> Iterator[Stop]:
        """Within it, in the main thread, a request reaches the job; yields the job's ``Stop``.

        Raises:
            KeyboardInterrupt: the request came before the job, or was not deferred by it.
        """
        self._stop = stop = Stop()
        before = signal.signal(signal.SIGINT, self._handle)
        try:
            if self._asked:
                stop.request()
            yield stop
        finally:
            self._stop = None
            signal.signal(signal.SIGINT, before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked and (stop := self._stop):
            self._stop = None
            stop.request()
