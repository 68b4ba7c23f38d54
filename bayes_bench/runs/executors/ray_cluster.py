"""Jobs on a Ray cluster: what they need travels with them, and what they make comes back, so no file system is shared.

A job computes in a temporary folder of its machine. On its way, progress and snapshots go to a mailbox on the head
node, which the driver empties; so a job whose machine is lost goes on elsewhere from the last snapshot that arrived.
Imports no torch.
"""

from __future__ import annotations

import io
import logging
import math
import os
import pickle
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TextIO, cast

import filelock
import ray
from ray import exceptions as trouble

from bayes_bench.errors import UsageError, named
from bayes_bench.host.files import write_bytes
from bayes_bench.host.stopping import Stop
from bayes_bench.jobs.job import Job
from bayes_bench.results.folder import RECORD, SNAPSHOTS, write_files
from bayes_bench.runs.executors.base import Executor, Outcome, Workers
from bayes_bench.runs.executors.worker import StopRequest, Told
from bayes_bench.tasks.spec import CustomNetworkSpec

if TYPE_CHECKING:
    from types import TracebackType

    from bayes_bench.jobs.job import Conditions, PlacedJob
    from bayes_bench.jobs.watch import Watch
    from bayes_bench.tasks.task import Task

POLL_SECONDS = 0.5
"""Between two looks into the mailbox, on either side."""
ANSWER_SECONDS = 60.0
"""For the mailbox to answer."""
CAPACITY_SECONDS = 5.0
"""Between two looks at how large the cluster is."""
FOLDERS = "bayes-bench-job-"
"""How the names of temporary folders on the cluster's machines begin."""
LOCK = "lock"
"""A file in them, locked while the job runs."""
OLD_SECONDS = 60.0
"""From which age on such a folder may be one that nobody has any more, rather than one that is just being made."""
HEAD = "node:__internal_head__"
"""The resource by which Ray names its head node."""

Files = dict[str, bytes]
"""Contents by path within a job's folder."""


@dataclass(frozen=True)
class Parcel:
    """A job as it travels, but for its task, which many jobs share.

    Attributes:
        attempt: distinguishes this attempt from any other.
        conditions: of the driver.
        code: what ``execution.code_of`` is where the run was started.
        network: the file of ``conditions.allow_code`` that the network comes from, counted from 0, and its function.
        modules: contents of these files.
        snapshots: of the attempt before this one.
        workers: as the user wants them, for what the job reserves.
    """

    attempt: str
    job: Job
    key: str
    variant: str
    conditions: Conditions
    code: dict[str, str]
    network: tuple[int, str] | None
    modules: tuple[bytes, ...]
    snapshots: Files
    workers: Workers

    @property
    def cpus(self) -> int:
        """Cores that it reserves."""
        return self.workers.cpus_per_job or 1


@dataclass(frozen=True)
class Delivery:
    """What comes back; ``error`` and ``log`` of a job that could not be run."""

    kind: Literal["recorded", "failed", "interrupted"]
    files: Files
    error: str = ""
    log: str = ""


# In the driver --------------------------------------------------------------------------------------------


@dataclass
class _Sent:
    """A job that is under way, or waits in the cluster for its turn.

    Attributes:
        node: where it runs, once it has started.
        deadline: on the clock ``time.perf_counter``, once it has started.
    """

    item: PlacedJob
    answer: ray.ObjectRef
    node: str = ""
    deadline: float | None = None


class RayCluster(Executor):
    """Every job is a Ray task that reserves cores and GPUs.

    Raises:
        UsageError: there is no such cluster, or none of its machines has what a job needs.
    """

    def __init__(self, workers: Workers, conditions: Conditions, watch: Callable[[PlacedJob], Watch], stop: Stop):
        super().__init__(conditions, watch, stop)
        self._workers = workers
        self._cpus, self._gpus = workers.cpus_per_job or 1, workers.gpus_per_job or 0.0
        self._sent: dict[str, _Sent] = {}
        self._tasks: dict[int, ray.ObjectRef] = {}
        self._number = 0
        self._capacity = 0, -math.inf
        with ExitStack() as opening:
            opening.enter_context(_quietly())
            opening.enter_context(_connected(workers.address))
            if not self._places():
                gpus = f", GPUs: {self._gpus:g}" if self._gpus else ""
                raise UsageError(
                    f"no machine of the Ray cluster has what a job reserves (cores: {self._cpus}{gpus}); lower "
                    "--cpus-per-job or --gpus-per-job, or add machines"
                )
            self._mailbox = ray.remote(Mailbox).options(num_cpus=0, max_restarts=-1, resources={HEAD: 0.001}).remote()
            self._run = ray.remote(run_parcel).options(num_cpus=self._cpus, num_gpus=self._gpus, max_retries=0)
            opening.enter_context(stop.deferred())
            self._open = opening.pop_all()

    @property
    def slots(self) -> int:
        places, looked = self._capacity
        if time.perf_counter() - looked > CAPACITY_SECONDS:
            places = self._places()
            self._capacity = places, time.perf_counter()
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
            self._tasks[id(item.task)] = ray.put(pickle.dumps(item.task))
        self._number += 1
        attempt = f"{item.key}-{self._number}"
        parcel = Parcel(
            attempt,
            item.job,
            item.key,
            item.variant,
            self.conditions,
            code_of(item.job, self.conditions.allow_code),
            _module_of_network(item.job, self.conditions.allow_code),
            tuple(path.read_bytes() for path in self.conditions.allow_code),
            _contents(item.folder, f"{SNAPSHOTS}/*"),
            self._workers,
        )
        answer = self._run.remote(parcel, self._tasks[id(item.task)], self._mailbox)
        self._sent[attempt] = _Sent(item, answer)

    def wait(self) -> list[Outcome]:
        if self.stop.requested:
            self._mailbox.stop.remote()
            for sent in self._sent.values():
                if not sent.node:
                    ray.cancel(sent.answer, force=True)
        answers = {sent.answer: attempt for attempt, sent in self._sent.items()}
        done, _ = ray.wait(list(answers), timeout=POLL_SECONDS)
        self._read_mail()  # a job's last letter comes before its answer
        outcomes = [self._outcome(self._sent.pop(answers[answer])) for answer in done]
        for attempt, sent in list(self._sent.items()):
            if sent.deadline is not None and time.perf_counter() > sent.deadline:
                del self._sent[attempt]
                ray.cancel(sent.answer, force=True)
                sentence = f"not finished after {self._workers.timeout:g} s"
                error = f"TimeoutError: {sentence}; raise --timeout"
                outcomes.append(Outcome(sent.item, "failed", error=error, log=f"{sentence}; its process was ended"))
        return outcomes

    def _read_mail(self) -> None:
        try:
            letters = ray.get(self._mailbox.empty.remote(), timeout=ANSWER_SECONDS)
        except (trouble.RayActorError, trouble.GetTimeoutError):
            return  # it is being restarted; what it held is lost, and the next letters say more than those
        for attempt, what, content in letters:
            sent = self._sent.get(attempt)
            if sent is None:
                continue
            match what:
                case "started":
                    (sent.node,) = content
                    timeout = self._workers.timeout
                    sent.deadline = None if timeout is None else time.perf_counter() + timeout
                    self.watch(sent.item).started()
                case "progress":
                    self.watch(sent.item).progress(*content)
                case "message":
                    self.watch(sent.item).message(*content)
                case "snapshot":
                    name, data = content
                    self._keep(sent.item, {name: data})

    def _outcome(self, sent: _Sent) -> Outcome:
        item = sent.item
        try:
            delivery: Delivery = ray.get(sent.answer)
        except trouble.TaskCancelledError:
            return Outcome(item, "interrupted")
        except (trouble.NodeDiedError, trouble.ObjectLostError) as error:
            return Outcome(item, "lost", error="its machine was lost", log=str(error))
        except trouble.OutOfMemoryError as error:
            return Outcome(item, "crashed", error="its machine ran out of memory", log=str(error))
        except trouble.WorkerCrashedError as error:
            if sent.node and not any(node["Alive"] and node["NodeID"] == sent.node for node in ray.nodes()):
                return Outcome(item, "lost", error="its machine was lost", log=str(error))
            return Outcome(item, "crashed", error="its process died", log=str(error))
        except trouble.RayError as error:
            # Most of all: a machine without this package, or with another Python.
            return Outcome(item, "failed", error=named(error), log=str(error))
        if delivery.kind == "recorded":
            return Outcome(item, "recorded", write_files(item.folder, delivery.files))
        self._keep(item, delivery.files)
        return Outcome(item, delivery.kind, error=delivery.error, log=delivery.log)

    def _keep(self, item: PlacedJob, snapshots: Files) -> None:
        try:
            for name, content in snapshots.items():
                write_bytes(item.folder / name, content)
        except (OSError, UsageError) as error:
            self.watch(item).message(f"has a snapshot that cannot be kept here ({error})")

    def close(self) -> None:
        for sent in self._sent.values():
            with suppress(trouble.RayError):
                ray.cancel(sent.answer, force=True)
        self._sent.clear()
        with suppress(trouble.RayError):
            ray.kill(self._mailbox)  # no error where it has ended before


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


# Between them ---------------------------------------------------------------------------------------------


class Mailbox:
    """A Ray actor: letters of the jobs to the driver, and the driver's request to stop."""

    def __init__(self) -> None:
        self._letters: list[tuple[str, str, tuple[Any, ...]]] = []
        self._stop = False

    def post(self, attempt: str, letters: list[tuple[str, tuple[Any, ...]]]) -> bool:
        """Leave letters; is the job asked to stop?"""
        self._letters += [(attempt, *letter) for letter in letters]
        return self._stop

    def empty(self) -> list[tuple[str, str, tuple[Any, ...]]]:
        """All letters since the last time: attempt, kind and content of each."""
        letters, self._letters = self._letters, []
        return letters

    def stop(self) -> None:
        """Ask all jobs to stop."""
        self._stop = True


class Courier:
    """Takes a job's letters to the mailbox, and every now and then its progress and new snapshots, in its own thread.

    Args:
        folder: of the job.
        request: told when the driver asks the job to stop.
    """

    def __init__(self, mailbox: Any, attempt: str, folder: Path, request: StopRequest):
        self._mailbox, self._attempt, self._folder, self._request = mailbox, attempt, folder, request
        self._lock = threading.Lock()
        self._letters: list[tuple[str, tuple[Any, ...]]] = []
        self._progress: tuple[Any, ...] | None = None
        self._seen: dict[Path, tuple[int, int]] = {path: _version(path) for path in self._snapshots()}
        self._wake, self._closing = threading.Event(), False
        self._thread = threading.Thread(target=self._rounds, daemon=True)

    def say(self, what: str, *content: Any) -> None:
        """Of progress only the latest counts."""
        if what == "progress":
            self._progress = content
            return
        with self._lock:
            self._letters.append((what, content))
        self._wake.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closing = True
        self._wake.set()
        self._thread.join()
        with suppress(trouble.RayError):
            self._deliver()

    def _rounds(self) -> None:
        asked = False
        while not self._closing:
            with suppress(trouble.RayError):  # the mailbox is being restarted
                if self._deliver() and not asked and not self._closing:
                    asked = True
                    self._request.ask()
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()

    def _deliver(self) -> bool:
        with self._lock:
            letters, self._letters = self._letters, []
        if (progress := self._progress) is not None:
            letters.append(("progress", progress))
            self._progress = None
        for path in self._snapshots():
            with suppress(OSError):  # it has just been replaced or removed
                version = _version(path)
                if self._seen.get(path) != version:
                    letters.append(("snapshot", (f"{SNAPSHOTS}/{path.name}", path.read_bytes())))
                    self._seen[path] = version
        # Not ray.get, which may give a job's cores away while it waits.
        return bool(self._mailbox.post.remote(self._attempt, letters).future().result(ANSWER_SECONDS))

    def _snapshots(self) -> list[Path]:
        return [path for path in self._folder.glob(f"{SNAPSHOTS}/*") if not path.name.startswith(".")]


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _contents(folder: Path, *patterns: str) -> Files:
    paths = [path for pattern in patterns for path in folder.glob(pattern)]
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in paths
        if path.is_file() and not path.name.startswith(".")
    }


# In a worker ----------------------------------------------------------------------------------------------


def run_parcel(parcel: Parcel, task: bytes, mailbox: Any) -> Delivery:
    """Run a job on a machine of the cluster."""
    _sweep()
    with (
        tempfile.TemporaryDirectory(prefix=FOLDERS, ignore_cleanup_errors=True) as temporary,
        filelock.FileLock(Path(temporary) / LOCK),
    ):
        folder = Path(temporary) / "job"
        try:
            _run(parcel, pickle.loads(task), mailbox, folder, Path(temporary) / "code")
        except KeyboardInterrupt:
            if not (folder / RECORD).is_file():
                return Delivery("interrupted", _contents(folder, f"{SNAPSHOTS}/*"))
        except Exception as error:
            return Delivery("failed", {}, named(error), traceback.format_exc())
        return Delivery("recorded", _contents(folder, "*", f"{SNAPSHOTS}/*"))


def _run(parcel: Parcel, task: Task, mailbox: Any, folder: Path, code: Path) -> None:
    from bayes_bench.jobs.execute import default_threads, execute
    from bayes_bench.jobs.job import PlacedJob
    from bayes_bench.jobs.provenance import code_of
    from bayes_bench.posterior.surroundings import warm_up
    from bayes_bench.tasks.network import build_network

    for name, content in parcel.snapshots.items():
        write_bytes(folder / name, content)
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
    threads = parcel.conditions.threads or min(default_threads(task), parcel.cpus)
    conditions = replace(
        parcel.conditions, threads=threads, allow_code=tuple(modules), parallel_jobs=_neighbours(parcel.workers)
    )
    request = StopRequest()
    with request.heard() as stop, Courier(mailbox, parcel.attempt, folder, request) as courier:
        warm_up()
        courier.say("started", ray.get_runtime_context().get_node_id())
        execute(item, conditions, Told(courier.say), stop)


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
