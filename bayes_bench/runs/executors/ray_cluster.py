"""Jobs on a Ray cluster: what they need travels with them, and what they make comes back, so no file system is shared.

A job is a Ray task that yields: it computes in a thread and in a temporary folder of its machine, while Ray brings its
progress and snapshots to the driver. So a job whose machine is lost goes on elsewhere from the last snapshot that
arrived. Imports no torch.
"""

from __future__ import annotations

import io
import logging
import math
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TextIO, cast

import filelock
import ray
from ray import exceptions as trouble
from ray.util.queue import Queue

from bayes_bench.errors import UsageError, named
from bayes_bench.host.files import write_bytes
from bayes_bench.host.stopping import Stop
from bayes_bench.jobs.job import Job
from bayes_bench.results.folder import RECORD, SNAPSHOTS, write_files
from bayes_bench.runs.executors.base import Executor, Outcome, Workers
from bayes_bench.runs.executors.worker import Told
from bayes_bench.tasks.spec import CustomNetworkSpec

if TYPE_CHECKING:
    from bayes_bench.jobs.job import Conditions, PlacedJob
    from bayes_bench.jobs.watch import Watch
    from bayes_bench.tasks.task import Task

POLL_SECONDS = 0.5
"""Between two looks at what there is to tell or to hear."""
ANSWER_SECONDS = 60.0
"""For the head of the cluster to answer."""
FOLDERS = "bayes-bench-job-"
"""How the names of temporary folders on the cluster's machines begin."""
LOCK = "lock"
"""A file in them, locked while the job runs."""
OLD_SECONDS = 60.0
"""From which age on such a folder may be one that nobody has any more, rather than one that is just being made."""

Files = dict[str, bytes]
"""Contents by path within a job's folder."""
Letter = tuple[Any, ...]
"""What a job tells: the name of a method of its watch or ``"snapshot"``, and the arguments."""
RESULTS, KEPT = "[!.]*", f"{SNAPSHOTS}/[!.]*"
"""Files of a job that are not just being written."""


@dataclass(frozen=True)
class Parcel:
    """A job as it travels, but for its task, which many jobs share.

    Attributes:
        conditions: of the driver.
        code: what ``provenance.code_of`` is where the run was started.
        network: the file of ``conditions.allow_code`` that the network comes from, counted from 0, and its function.
        modules: contents of these files.
        snapshots: of the attempt before this one.
        workers: as the user wants them, for what the job reserves.
        request: there is an answer to this once the job shall stop.
    """

    job: Job
    key: str
    variant: str
    conditions: Conditions
    code: dict[str, str]
    network: tuple[int, str] | None
    modules: tuple[bytes, ...]
    snapshots: Files
    workers: Workers
    request: ray.ObjectRef


@dataclass(frozen=True)
class Delivery:
    """What comes back at last, of a job that has a record or was asked to stop."""

    recorded: bool
    files: Files


# In the driver --------------------------------------------------------------------------------------------


@dataclass
class _Sent:
    """A job that is under way, or waits in the cluster for its turn.

    Attributes:
        deadline: on the clock ``time.perf_counter``, once it has started.
    """

    item: PlacedJob
    started: bool = False
    deadline: float = math.inf


class RayCluster(Executor):
    """Every job is a Ray task that reserves cores and GPUs.

    Raises:
        UsageError: there is no such cluster, or none of its machines has what a job needs.
    """

    def __init__(self, workers: Workers, conditions: Conditions, watch: Callable[[PlacedJob], Watch], stop: Stop):
        super().__init__(conditions, watch, stop)
        self._workers = workers
        self._cpus, self._gpus = workers.cpus_per_job or 1, workers.gpus_per_job or 0.0
        self._sent: dict[ray.ObjectRefGenerator, _Sent] = {}
        self._tasks: dict[int, ray.ObjectRef] = {}
        with ExitStack() as opening:
            opening.enter_context(_quietly())
            opening.enter_context(_connected(workers.address))
            if not self._places():
                gpus = f", GPUs: {self._gpus:g}" if self._gpus else ""
                raise UsageError(
                    f"no machine of the Ray cluster has what a job reserves (cores: {self._cpus}{gpus}); lower "
                    "--cpus-per-job or --gpus-per-job, or add machines"
                )
            self._requests = Queue(actor_options={"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1})
            self._request = self._requests.actor.get.remote()
            self._run = ray.remote(run_parcel).options(
                num_cpus=self._cpus, num_gpus=self._gpus, max_retries=0, num_returns="streaming"
            )
            opening.enter_context(stop.deferred())
            self._open = opening.pop_all()

    @property
    def slots(self) -> int:
        places = self._places()
        return max(1, min(places, self._workers.jobs or places))

    def _places(self) -> int:
        """How many jobs the machines that the cluster has now can hold at once."""
        places = 0
        for node in ray.nodes():
            if node["Alive"]:
                has = node["Resources"]
                cores = int(has.get("CPU", 0) // self._cpus)
                places += min(cores, int(has.get("GPU", 0) / self._gpus)) if self._gpus else cores
        return places

    def room(self) -> bool:
        return len(self._sent) < self.slots

    def submit(self, item: PlacedJob) -> None:
        from bayes_bench.jobs.provenance import code_of

        if id(item.task) not in self._tasks:
            self._tasks[id(item.task)] = ray.put(item.task)
        parcel = Parcel(
            item.job,
            item.key,
            item.variant,
            self.conditions,
            code_of(item.job, self.conditions.allow_code),
            _module_of_network(item.job, self.conditions.allow_code),
            tuple(path.read_bytes() for path in self.conditions.allow_code),
            _contents(item.folder, KEPT),
            self._workers,
            self._request,
        )
        self._sent[self._run.remote(parcel, self._tasks[id(item.task)])] = _Sent(item)

    def wait(self) -> list[Outcome]:
        if self.stop.requested:
            self._requests.actor.put_nowait.remote(None)
            for stream, sent in self._sent.items():
                if not sent.started:
                    _cancel(stream)
        ray.wait(list(self._sent), timeout=POLL_SECONDS)
        spoken, _ = ray.wait(list(self._sent), num_returns=len(self._sent), timeout=0)
        outcomes = [outcome for stream in spoken if (outcome := self._hear(stream))]
        for stream, sent in list(self._sent.items()):
            if time.perf_counter() > sent.deadline:
                del self._sent[stream]
                _cancel(stream)
                sentence = f"not finished after {self._workers.timeout:g} s"
                error = f"TimeoutError: {sentence}; raise --timeout"
                outcomes.append(Outcome(sent.item, "failed", error=error, log=f"{sentence}; its process was ended"))
        return outcomes

    def _hear(self, stream: ray.ObjectRefGenerator) -> Outcome | None:
        """What a job has told last; what became of it, if that is known."""
        sent = self._sent[stream]
        news = self._next(stream, sent.item)
        if isinstance(news, Outcome):
            del self._sent[stream]
            return news
        for what, *content in news:
            match what:
                case "started":
                    sent.started, sent.deadline = True, time.perf_counter() + (self._workers.timeout or math.inf)
                    self.watch(sent.item).started()
                case "progress":
                    self.watch(sent.item).progress(*content)
                case "message":
                    self.watch(sent.item).message(*content)
                case "snapshot":
                    self._keep(sent.item, *content)
        return None

    def _next(self, stream: ray.ObjectRefGenerator, item: PlacedJob) -> list[Letter] | Outcome:
        """The letters that Ray has brought, or what became of the job."""
        try:
            news: list[Letter] | Delivery = ray.get(next(stream))
        except (StopIteration, trouble.TaskCancelledError):
            return Outcome(item, "interrupted")
        except (trouble.NodeDiedError, trouble.ObjectLostError) as error:
            return Outcome(item, "lost", error="its machine was lost", log=str(error))
        except trouble.OutOfMemoryError as error:
            return Outcome(item, "crashed", error="its machine ran out of memory", log=str(error))
        except trouble.WorkerCrashedError as error:
            return Outcome(item, "crashed", error="its process died", log=str(error))
        except trouble.RayError as error:
            # Most of all: a machine with other code, without this package, or with another Python.
            cause, uncoloured = getattr(error, "cause", None) or error, re.sub(r"\x1b\[\d+m", "", str(error))
            return Outcome(item, "failed", error=named(cause), log=uncoloured)
        if not isinstance(news, Delivery):
            return news
        if news.recorded:
            return Outcome(item, "recorded", write_files(item.folder, news.files))
        self._keep(item, news.files)
        _cancel(stream)  # it may still compute
        return Outcome(item, "interrupted")

    def _keep(self, item: PlacedJob, snapshots: Files) -> None:
        try:
            for name, content in snapshots.items():
                write_bytes(item.folder / name, content)
        except (OSError, UsageError) as error:
            self.watch(item).message(f"has a snapshot that cannot be kept here ({error})")

    def close(self) -> None:
        for stream in self._sent:
            _cancel(stream)
        self._sent.clear()
        with suppress(trouble.RayError):
            self._requests.shutdown(force=True)  # no error where it has ended before


def _cancel(stream: ray.ObjectRefGenerator) -> None:
    """Take a job back that waits, and end the process of one that runs."""
    with suppress(trouble.RayError, TypeError):  # Ray 2.9 has the latter for a task that it no longer knows
        ray.cancel(stream, force=True)


def _module_of_network(job: Job, allow_code: tuple[Path, ...]) -> tuple[int, str] | None:
    network = job.task.network
    if not isinstance(network, CustomNetworkSpec) or ".py:" not in network.entry:
        return None
    file, _, function = network.entry.rpartition(":")
    return [path.resolve() for path in allow_code].index(Path(file).resolve()), function


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Within it this process is the cluster's driver.

    Raises:
        UsageError: the cluster does not answer.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # what a user runs is not reported to anybody
    address = address or os.environ.get("RAY_ADDRESS")
    host, _, port = (address or "").rpartition(":")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    before = signal.getsignal(signal.SIGTERM)
    try:
        if port.isdecimal() and "/" not in host:  # Ray itself would try for many minutes
            socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
        try:
            ray.init(address=address or "auto", **options)
        except ConnectionError:
            if address:
                raise
            ray.init(include_dashboard=False, **options)  # this machine belongs to no cluster: one of its own
    except (ConnectionError, OSError, RuntimeError, ValueError, trouble.RayError) as error:
        raise UsageError(
            f"cannot reach the Ray cluster{f' at {address}' if address else ''} ({named(error)}); start one with: "
            "ray start --head"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray takes it
    try:
        yield
    finally:
        with redirect_stdout(io.StringIO()):  # it prints what is left of its log
            ray.shutdown()


@contextmanager
def _quietly() -> Iterator[None]:
    """Within it what Ray's threads print to standard output is left out; it is in the log of Ray's session as well."""
    with redirect_stdout(cast("Any", _WithoutRay(sys.stdout))):
        yield


class _WithoutRay:
    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        return len(text) if threading.current_thread().name.startswith("ray_") else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _contents(folder: Path, *patterns: str) -> Files:
    paths = [path for pattern in patterns for path in folder.glob(pattern) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


# In a worker ----------------------------------------------------------------------------------------------


def run_parcel(parcel: Parcel, task: Task) -> Iterator[list[Letter] | Delivery]:
    """Run a job on a machine of the cluster: what it tells, and at last what it delivers."""
    _sweep()
    with (
        tempfile.TemporaryDirectory(prefix=FOLDERS, ignore_cleanup_errors=True) as temporary,
        filelock.FileLock(Path(temporary) / LOCK),
    ):
        folder = Path(temporary) / "job"
        for name, content in parcel.snapshots.items():
            write_bytes(folder / name, content)
        news, stop = _News(folder), Stop()
        job = ThreadPoolExecutor(1).submit(_run, parcel, task, folder, Path(temporary) / "code", news.watch, stop)
        try:
            yield from _told(job, news, stop, parcel.request.future())
            recorded = True
        except KeyboardInterrupt:
            recorded = (folder / RECORD).is_file()
        delivery = Delivery(recorded, _contents(folder, *[RESULTS, KEPT] if recorded else [KEPT]))
    yield delivery
    wait([job])  # one that was not waited for ends with this process, which the driver ends


def _told(job: Future[None], news: _News, stop: Stop, request: Future[None]) -> Iterator[list[Letter]]:
    """All that a job tells until it ends.

    Raises:
        KeyboardInterrupt: it was asked to stop, and has ended or had no snapshot to finish.
    """
    while not job.done():
        wait([job], POLL_SECONDS)
        if letters := news.letters():
            yield letters
        if request.done() and not request.exception() and not stop.requested:
            stop.request()
    if letters := news.letters():  # what was said since it was last looked for
        yield letters
    job.result()


class _News:
    """What there is to tell of a job.

    Args:
        folder: of the job; snapshots that it holds already are no news.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._told: SimpleQueue[Letter] = SimpleQueue()
        self._seen: set[tuple[str, int, int]] = set()
        self.watch = Told(lambda *letter: self._told.put(letter))
        self.letters()

    def letters(self) -> list[Letter]:
        """Those since the last time, of progress only the latest, and new snapshots."""
        told = [self._told.get() for _ in range(self._told.qsize())]
        letters = [letter for letter in told if letter[0] != "progress"]
        letters += [letter for letter in told if letter[0] == "progress"][-1:]
        for path in self._folder.glob(KEPT):
            with suppress(OSError):  # it has just been replaced or removed
                status = path.stat()
                version = path.name, status.st_mtime_ns, status.st_size
                if version not in self._seen:
                    letters.append(("snapshot", {f"{SNAPSHOTS}/{path.name}": path.read_bytes()}))
                    self._seen.add(version)
        return letters


def _run(parcel: Parcel, task: Task, folder: Path, code: Path, watch: Watch, stop: Stop) -> None:
    from bayes_bench.jobs.execute import default_threads, execute
    from bayes_bench.jobs.job import PlacedJob
    from bayes_bench.jobs.provenance import code_of
    from bayes_bench.posterior.surroundings import warm_up
    from bayes_bench.tasks.network import build_network

    modules = []
    for number, (path, content) in enumerate(zip(parcel.conditions.allow_code, parcel.modules, strict=True)):
        modules.append(code / str(number) / path.name)
        write_bytes(modules[-1], content)
    if code_of(parcel.job, modules) != parcel.code:
        raise UsageError(
            f"{socket.gethostname()} has other code of bayes-bench or of the method than the machine on which the run "
            "was started; install the same versions on all"
        )
    if parcel.network is not None:
        number, function = parcel.network
        spec = task.spec.network.model_copy(update={"entry": f"{modules[number]}:{function}"})
        shape, width = task.input_shape, task.likelihood.output_width
        task = replace(task, build_network=partial(build_network, spec, shape, width, allow_code=tuple(modules)))
    # The driver compares with the reference: its file need not be here.
    here = {"reference": None}
    task = replace(task, spec=task.spec.model_copy(update=here))
    job = parcel.job.model_copy(update={"task": parcel.job.task.model_copy(update=here)})
    item = PlacedJob(job, task, parcel.key, parcel.variant, folder)
    threads = parcel.conditions.threads or min(default_threads(task), parcel.workers.cpus_per_job or 1)
    conditions = replace(
        parcel.conditions, threads=threads, allow_code=tuple(modules), parallel_jobs=_neighbours(parcel.workers)
    )
    warm_up()
    watch.started()
    execute(item, conditions, watch, stop)


def _neighbours(workers: Workers) -> int:
    """How many jobs may share this machine's memory, or a GPU's where a job has a part of one."""
    if workers.gpus_per_job:
        return max(1, int(1 / workers.gpus_per_job))
    here = ray.get_runtime_context().get_node_id()
    cores = next((node["Resources"].get("CPU", 1) for node in ray.nodes() if node["NodeID"] == here), 1)
    places = max(1, int(cores // (workers.cpus_per_job or 1)))
    return min(places, workers.jobs or places)


def _sweep() -> None:
    """Remove the folders of processes that were killed: nobody holds their locks any more."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDERS}*"):
        with suppress(OSError, filelock.Timeout):
            if time.time() - folder.stat().st_mtime > OLD_SECONDS:
                with filelock.FileLock(folder / LOCK, timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)
