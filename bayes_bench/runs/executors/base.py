"""What an executor is: takes jobs while it has room and tells what became of them. Imports no torch."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from bayes_bench.errors import UsageError
from bayes_bench.host.stopping import Stop

if TYPE_CHECKING:
    from types import TracebackType

    from bayes_bench.jobs.job import Conditions, PlacedJob
    from bayes_bench.jobs.watch import Watch

NO_RAY = "--executor ray needs Ray: pip install 'ray>=2.9'"


@dataclass(frozen=True)
class Workers:
    """Who computes the jobs of a run.

    Attributes:
        executor: ``"local"`` or ``"ray"``.
        jobs: how many run at once, in processes of their own; None: one, in this process, or on a cluster as many as
            it has room for.
        timeout: seconds after which a job is given up; it needs a process of its own.
        address: of a Ray cluster; None: the one that this machine belongs to, else one on this machine alone.
        cpus_per_job, gpus_per_job: what a job reserves on a Ray cluster; parts of a GPU are possible.
    """

    executor: Literal["local", "ray"] = "local"
    jobs: int | None = None
    timeout: float | None = None
    address: str | None = None
    cpus_per_job: int | None = None
    gpus_per_job: float | None = None

    def check(self) -> None:
        """Can there be such workers?

        Raises:
            UsageError: options that do not go together, or Ray is not installed.
        """
        if self.jobs is not None and self.jobs < 1:
            raise UsageError(f"--jobs must be at least 1, got {self.jobs}")
        if self.timeout is not None and not 0 < self.timeout < float("inf"):
            raise UsageError(f"--timeout must be a positive number of seconds, got {self.timeout:g}")
        if self.executor == "ray":
            if self.cpus_per_job is not None and self.cpus_per_job < 1:
                raise UsageError(f"--cpus-per-job must be at least 1, got {self.cpus_per_job}")
            gpus = self.gpus_per_job
            if gpus is not None and not (0 <= gpus <= 1 or (gpus < float("inf") and gpus == int(gpus))):
                raise UsageError(f"--gpus-per-job must be a part of one GPU or a whole number, got {gpus:g}")
            if importlib.util.find_spec("ray") is None:
                raise UsageError(NO_RAY)
            return
        for name in ("address", "cpus_per_job", "gpus_per_job"):
            if getattr(self, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')} is an option of a cluster; add --executor ray")

    def device(self, asked: str) -> str:
        """``"cpu"`` or ``"cuda"``, for what ``--device`` says.

        Raises:
            UsageError: there is no such device, or a job on the cluster reserves none.
        """
        if self.executor == "local":
            from bayes_bench.posterior.checks import resolve_device

            return resolve_device(asked).type
        reserved = "cuda" if self.gpus_per_job else "cpu"
        if asked not in ("auto", reserved):
            remedy = "add --gpus-per-job 1" if asked == "cuda" else "leave out --gpus-per-job"
            raise UsageError(f"--device {asked} does not go with what a job reserves on the cluster; {remedy}")
        return reserved


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        kind: ``"recorded"``: it has a record, ok or failed. ``"failed"``: it has none, and gets one of a failure.
            ``"interrupted"``: it was asked to stop. ``"crashed"``: its process died. ``"lost"``: its machine did.
        record: of a job that has one.
        error: what happened to any other, in one line.
        log: more of it, for the job's log.
    """

    item: PlacedJob
    kind: Literal["recorded", "failed", "interrupted", "crashed", "lost"]
    record: dict[str, Any] | None = None
    error: str = ""
    log: str = ""


class Executor(ABC):
    """Takes jobs and tells what became of them. A context manager: at its end nothing of it is left, on no machine.

    ``watch`` gives the listener of a job. A first Ctrl-C is passed on to the jobs, which then end as ``interrupted``; a
    second one ends them at once.
    """

    def __init__(self, conditions: Conditions, watch: Callable[[PlacedJob], Watch], stop: Stop):
        self.conditions, self.watch, self.stop = conditions, watch, stop
        self._open = ExitStack()

    @property
    @abstractmethod
    def slots(self) -> int:
        """How many jobs run at once."""

    @abstractmethod
    def room(self) -> bool:
        """Whether it takes another job now."""

    @abstractmethod
    def submit(self, item: PlacedJob) -> None:
        """Take a job. Only where there is room."""

    @abstractmethod
    def wait(self) -> list[Outcome]:
        """Wait until something has happened, at most about a second; tell their watches, and return which jobs ended.

        Raises:
            BayesBenchError: results cannot be written.
        """

    @abstractmethod
    def close(self) -> None:
        """End all jobs at once, and whatever computes them."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.close()
        finally:
            self._open.close()
