"""Asking a run to end: who may stop at once, and who finishes a snapshot first. Imports nothing of ours."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """A wish to end, as Ctrl-C expresses it.

    Whoever can end in good order looks at ``requested`` every now and then, inside ``deferred``; everywhere else the
    request is a ``KeyboardInterrupt`` at once, and so is the second one.

    Args:
        elsewhere: asked as well, for a request that comes from another process.

    Attributes:
        insisted: it was asked for twice.
    """

    def __init__(self, elsewhere: Callable[[], bool] = lambda: False):
        self._elsewhere = elsewhere
        self._here = False
        self._deferring = 0
        self.insisted = False

    @property
    def requested(self) -> bool:
        return self._here or self._elsewhere()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it, the first request only sets ``requested``."""
        self._deferring += 1
        try:
            yield
        finally:
            self._deferring -= 1

    def request(self) -> bool:
        """Ask to end; True where that is deferred.

        Raises:
            KeyboardInterrupt: nobody defers it, or it is the second request.
        """
        self.insisted, self._here = self._here, True
        if self.insisted or not self._deferring:
            raise KeyboardInterrupt
        return True


@contextmanager
def on_signals(stop: Stop, deferred: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Within it, Ctrl-C, SIGTERM (what batch systems send first) and a closed terminal are requests to stop.

    Args:
        deferred: called after a request that does not end the run at once, to say so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread gets signals
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.request():
            deferred()

    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
