"""Jobs in worker processes of this machine, as many at once as the user says.

Every worker is a pool of one process, with a pipe of its own for progress and for the request to stop: whatever a
method does to its process, and at whatever moment the process is killed, no other worker notices. The end of the pipe
also tells a worker that the driver is gone, and then it ends at once, so that nobody writes into the folder of a run
that was killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bayes_bench.errors import BayesBenchError, DataError, named
from bayes_bench.host.stopping import Stop
from bayes_bench.jobs.job import Job
from bayes_bench.jobs.watch import Watch
from bayes_bench.runs.executors.base import Executor, Outcome
from bayes_bench.runs.executors.worker import StopRequest, Told

if TYPE_CHECKING:
    from bayes_bench.jobs.job import Conditions, PlacedJob
    from bayes_bench.tasks.task import Task

POLL_SECONDS = 0.5
"""Between two looks at the workers where they say nothing."""
GONE_SECONDS = 10.0
"""For the pool to notice that its process has ended."""
LEAVING_SECONDS = 5.0
"""For an idle worker to end by itself; a method may have left threads in it that never do."""


@dataclass(frozen=True)
class Order:
    """A job as it travels to a worker, which reads the task's data itself.

    Attributes:
        checksum: of the data that the driver has seen.
    """

    job: Job
    key: str
    variant: str
    checksum: str
    folder: Path


@dataclass(frozen=True)
class Reply:
    """What a worker answers: an outcome without its job, or an error that ends the run."""

    kind: Literal["recorded", "failed", "interrupted"]
    record: dict[str, Any] | None = None
    error: str = ""
    log: str = ""
    fatal: BayesBenchError | None = None


# In the driver --------------------------------------------------------------------------------------------


class Processes(Executor):
    """A worker process per job that runs at once.

    Args:
        number: of workers.
        timeout: seconds that a job may take.
    """

    def __init__(
        self,
        number: int,
        timeout: float | None,
        conditions: Conditions,
        watch: Callable[[PlacedJob], Watch],
        stop: Stop,
    ):
        super().__init__(conditions, watch, stop)
        self._slots = [_Slot(conditions, timeout, watch) for _ in range(number)]
        self._open.enter_context(stop.deferred())

    @property
    def slots(self) -> int:
        return len(self._slots)

    def room(self) -> bool:
        return any(slot.item is None for slot in self._slots)

    def submit(self, item: PlacedJob) -> None:
        free = [slot for slot in self._slots if slot.item is None]
        max(free, key=lambda slot: slot.alive).give(item)  # better one that has already started

    def wait(self) -> list[Outcome]:
        busy = [slot for slot in self._slots if slot.item is not None]
        if self.stop.requested:
            for slot in busy:
                slot.ask()
        wait_for_any([slot.pipe for slot in busy], POLL_SECONDS)
        return [outcome for slot in busy if (outcome := slot.look())]

    def close(self) -> None:
        for slot in self._slots:
            slot.close()


class _Slot:
    """A place for one job at a time: a worker process, started with the first job and replaced when it dies."""

    def __init__(self, conditions: Conditions, timeout: float | None, watch: Callable[[PlacedJob], Watch]):
        self.item: PlacedJob | None = None
        self.alive = False
        self.pipe: Connection
        self._conditions, self._timeout, self._watch_of = conditions, timeout, watch
        self._watch = Watch()
        self._pool: ProcessPoolExecutor
        self._future: Future[Reply]
        self._process: multiprocessing.process.BaseProcess | None = None
        self._deadline: float | None = None
        self._asked = False

    def give(self, item: PlacedJob) -> None:
        self.item, self._deadline, self._asked = item, None, False
        self._watch = self._watch_of(item)
        order = Order(item.job, item.key, item.variant, item.task.checksum, item.folder)
        if self.alive:
            try:
                self._future = self._pool.submit(run_order, order, self._conditions)
                return
            except BrokenProcessPool:  # it died between two jobs
                self.close()
        context = multiprocessing.get_context("spawn")  # a forked process would inherit threads and devices
        self.pipe, theirs = context.Pipe()
        self._pool = ProcessPoolExecutor(1, context, initializer=begin, initargs=(theirs,))
        self.alive = True
        self._future = self._pool.submit(run_order, order, self._conditions)
        theirs.close()  # the worker has it by now, and must be the only one, or nobody would see its end

    def ask(self) -> None:
        """Pass on that the job shall stop."""
        if not self._asked:
            self._asked = True
            with suppress(OSError):  # it has just died, which ``look`` will see
                self.pipe.send("stop")

    def look(self) -> Outcome | None:
        """Read what the worker has said; what became of its job, if that is known."""
        assert self.item is not None
        ended = False
        try:
            while self.pipe.poll():
                ended |= self._hear(*self.pipe.recv())
        except (EOFError, OSError):
            ended = True
        if self._process is not None and not self._process.is_alive():
            _kill(self._process)  # what the job has started still holds the pipes, and nobody would see its end
        if ended or self._future.done():
            return self._outcome()
        if self._deadline is not None and time.perf_counter() > self._deadline:
            item = self._released()
            self.close()
            sentence = f"not finished after {self._timeout:g} s"
            log = f"{sentence}; its process was ended"
            return Outcome(item, "failed", error=f"TimeoutError: {sentence}; raise --timeout", log=log)
        return None

    def _hear(self, what: str, *content: Any) -> bool:
        match what:
            case "here":
                (number,) = content
                self._process = next((p for p in multiprocessing.active_children() if p.pid == number), None)
            case "started":
                self._deadline = None if self._timeout is None else time.perf_counter() + self._timeout
                self._watch.started()
            case "progress":
                self._watch.progress(*content)
            case "message":
                self._watch.message(*content)
        return what == "ended"

    def _outcome(self) -> Outcome:
        item = self._released()
        try:
            error = self._future.exception(GONE_SECONDS)
        except TimeoutError:  # it lives, but nobody hears of it
            error = BrokenProcessPool()
        if isinstance(error, BrokenProcessPool):
            process = self._process
            self.close()
            return Outcome(item, "crashed", error=_cause_of_death(process.exitcode if process else None))
        if isinstance(error, KeyboardInterrupt):
            return Outcome(item, "interrupted")
        reply = self._future.result()
        if reply.fatal:
            raise reply.fatal
        return Outcome(item, reply.kind, reply.record, reply.error, reply.log)

    def _released(self) -> PlacedJob:
        item, self.item = self.item, None
        assert item is not None
        return item

    def close(self) -> None:
        """End the worker, in good order where it has nothing to do."""
        if not self.alive:
            return
        self.alive = False
        idle = self._future.done()
        if not idle:
            _kill(self._process)
            self.pipe.close()  # and if it has not even said its number yet, this ends it
        impatience = threading.Timer(LEAVING_SECONDS, _kill, [self._process])
        impatience.start()
        self._pool.shutdown(cancel_futures=True)
        impatience.cancel()
        impatience.join()
        _kill(self._process)  # what is left of its group
        self.pipe.close()
        self.item = self._process = None


def _kill(process: multiprocessing.process.BaseProcess | None) -> None:
    """End a worker, and with it all that its jobs have started."""
    if process is None or process.pid is None:
        return
    if hasattr(os, "killpg"):
        with suppress(OSError):  # nobody is left
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def _cause_of_death(code: int | None) -> str:
    if code is None:
        return "its process ended before it began, as in a script without if __name__ == '__main__'"
    if code >= 0:
        return f"its process ended with exit code {code}"
    try:
        return f"its process was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"its process was ended by signal {-code}"


# In the worker --------------------------------------------------------------------------------------------


class _Worker:
    """What lives as long as the process."""

    def __init__(self, pipe: Connection):
        self.pipe = pipe
        self.request = StopRequest()
        self.tasks: dict[str, Task] = {}

    def say(self, *what: Any) -> None:
        try:
            self.pipe.send(what)
        except OSError:
            os._exit(1)

    def listen(self) -> None:
        while True:
            try:
                self.pipe.recv()
            except (EOFError, OSError):
                _end()  # the driver is gone; at once, before anything else is written
            self.request.ask()


_worker: _Worker


def begin(pipe: Connection) -> None:
    """The first thing a worker does."""
    global _worker
    # A batch system sends SIGTERM to all processes, a terminal SIGINT; the driver decides what they mean.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # a group of its own, so that processes that a job starts end with it
    _worker = _Worker(pipe)
    _worker.say("here", os.getpid())
    threading.Thread(target=_worker.listen, daemon=True).start()


def _end() -> None:
    """End this process, and with it all that its jobs have started."""
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def run_order(order: Order, conditions: Conditions) -> Reply:
    """Run a job in a worker."""
    try:
        with _worker.request.heard() as stop:
            return _run(order, conditions, stop)
    except KeyboardInterrupt:
        return Reply("interrupted")
    finally:
        _worker.say("ended")


def _run(order: Order, conditions: Conditions, stop: Stop) -> Reply:
    from bayes_bench.jobs.execute import execute
    from bayes_bench.jobs.job import PlacedJob
    from bayes_bench.methods import registry
    from bayes_bench.posterior.surroundings import warm_up
    from bayes_bench.tasks.task import build_task

    name = order.job.task.model_dump_json()
    try:
        for file in conditions.method_files:
            registry.add_file(file)
        if name not in _worker.tasks:
            _worker.tasks[name] = build_task(order.job.task, conditions.data_root, conditions.allow_code)
        task = _worker.tasks[name]
        if task.checksum != order.checksum:
            raise DataError(f"the data of task {order.job.task.name!r} have changed since the run began; run it again")
    except BayesBenchError as error:
        return Reply("failed", error=named(error), log=traceback.format_exc())
    warm_up()
    told = Told(_worker.say)
    told.started()
    item = PlacedJob(order.job, task, order.key, order.variant, order.folder)
    try:
        return Reply("recorded", execute(item, conditions, told, stop))
    except BayesBenchError as error:
        return Reply("failed", fatal=error)
