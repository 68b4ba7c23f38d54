"""What a job's surroundings need in every kind of worker: passing progress on, and being asked to stop by the driver.

The driver is the process in which the user started the run. Imports no torch.
"""

from __future__ import annotations

import _thread
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from bayes_bench.host.stopping import Stop

PROGRESS_SECONDS = 0.2


class Reporter:
    """The monitor of a job: passes its progress on, a few times a second, and all of its messages."""

    def __init__(self, progress: Callable[[float, Mapping[str, float]], None], message: Callable[[str], None]):
        self._progress, self.message = progress, message
        self._next = 0.0

    def progress(self, spent: float, budget: int, values: Mapping[str, float]) -> None:
        now = time.perf_counter()
        if now >= self._next:
            self._next = now + PROGRESS_SECONDS
            self._progress(min(1.0, spent / budget), values)


class DriversWish:
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
            with _unblocked(signal.SIGINT):
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


@contextmanager
def _unblocked(number: signal.Signals) -> Iterator[None]:
    """Within it this thread gets the signal, which Ray keeps from its workers."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
