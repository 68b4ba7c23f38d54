"""What a job is, its key, and how it is computed. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bayes_bench.host.machine import MEMORY_LIMIT_MB
from bayes_bench.results.schema import canonical_hash
from bayes_bench.settings import SNAPSHOT_SECONDS, Settings
from bayes_bench.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from bayes_bench.tasks.task import Task


@dataclass(frozen=True)
class Conditions:
    """How the jobs of a run are computed, the same for all of them.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        precision: of products on a GPU.
        threads: CPU threads of a job; None lets ``default_threads`` choose.
        data_root: folder of the benchmark data, as in ``tasks.build_task``.
        allow_code: Python files that a network may come from.
        snapshot_every: between two snapshots of a fit.
        memory_limit_mb: for the intermediate values of one evaluation of networks.
        parallel_jobs: how many jobs share the machine's memory; changes no result.
        method_files: methods that come from files, as ``registry.add_file`` takes them.
    """

    device: str
    precision: Literal["float32", "tf32"] = "float32"
    threads: int | None = None
    data_root: Path | None = None
    allow_code: tuple[Path, ...] = ()
    snapshot_every: float = SNAPSHOT_SECONDS
    memory_limit_mb: int = MEMORY_LIMIT_MB
    parallel_jobs: int = 1
    method_files: tuple[str, ...] = ()

    @property
    def device_class(self) -> str:
        """What a job's key says of them, beside the memory limit."""
        return device_class(self.device, self.precision)


@dataclass(frozen=True)
class PlacedJob:
    """A job that its data have given a key and a folder."""

    job: Job
    task: Task
    key: str
    variant: str
    folder: Path


# Parts of a task that change no result by themselves: texts, hints, what a job resolves on its own (budget and
# settings), where the data come from and how many are used (the checksum speaks for the data, so a moved file changes
# no key), and what results are only compared with.
NOT_IN_KEY = {
    "title",
    "seconds_per_job",
    "megabytes_per_job",
    "budget",
    "settings",
    "data",
    "ood",
    "validation_ood",
    "reference",
    "published",
    "examples",
    "collapse_threshold",
}


class Job(Settings):
    """One training run: frozen, and all of it is JSON.

    Attributes:
        label: the row's name; several labels may run one ``method`` with different settings.
        settings: those given by the task, the suite and the command line, not the defaults.
        config: all settings of the method, resolved.
        revision: ``MethodConfig.revision`` when the job was planned.
    """

    suite: str
    task: TaskSpec
    label: str
    method: str
    seed: int
    budget: int
    settings: dict[str, Any]
    config: dict[str, Any]
    revision: int

    def variant(self, checksum: str, device: str, memory_limit_mb: int = MEMORY_LIMIT_MB) -> str:
        """Identity of everything but the seed: results with the same variant may be averaged over seeds.

        Args:
            checksum: of the task's data.
            device: its class, ``"cpu"``, ``"cuda"`` or ``"cuda-tf32"``.
            memory_limit_mb: of one evaluation, from which its blocks follow and so the last digits of its results.
        """
        return canonical_hash(
            {
                "format": 1,
                "task": self.task.model_dump(mode="json", exclude=NOT_IN_KEY),
                "data": checksum,
                "method": self.method,
                "revision": self.revision,
                "config": self.config,
                "budget": self.budget,
                "device": device,
                "memory_limit_mb": memory_limit_mb,
            }
        )

    def key(self, checksum: str, device: str, memory_limit_mb: int = MEMORY_LIMIT_MB) -> str:
        """The job's key, 64 hexadecimal digits: a finished job with the same key is not run again."""
        return canonical_hash({"variant": self.variant(checksum, device, memory_limit_mb), "seed": self.seed})

    @property
    def name(self) -> str:
        """For messages: ``task/label seed k``."""
        return f"{self.task.name}/{self.label} seed {self.seed}"


def device_class(device: str, precision: str) -> str:
    """What a job's key says of where and how it was computed; TF32 exists on GPUs alone."""
    return device if precision == "float32" else f"cuda-{precision}"


def expected_seconds(job: Job) -> float | None:
    """What the task's author expects of one job, scaled with its budget; None where the task does not say."""
    hint = job.task.seconds_per_job
    return None if hint is None else hint * job.budget / job.task.budget
