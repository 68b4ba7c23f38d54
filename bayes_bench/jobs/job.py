"""What a job is, its key, and how it is computed. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bayes_bench.errors import UsageError
from bayes_bench.host.machine import MEMORY_LIMIT_MB
from bayes_bench.results.schema import canonical_hash
from bayes_bench.settings import SNAPSHOT_SECONDS, Settings
from bayes_bench.tasks.spec import ADDED, NOT_IN_KEY, TaskSpec

if TYPE_CHECKING:
    from bayes_bench.tasks.task import Task


@dataclass(frozen=True)
class Conditions:
    """The settings of a run: how its jobs are computed, the same for all of them. Made once, and handed on as one.

    Attributes:
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        precision: of products on a GPU. PyTorch's own default for convolutions there is ``"tf32"``; ours is not.
        threads: CPU threads of a job; None: the physical cores this process may use, but one for small networks.
        data_root: folder of the benchmark data, as in ``tasks.build_task``.
        allow_code: Python files that a network may come from.
        snapshot_every: seconds between two snapshots of a fit; changes no result.
        memory_limit_mb: for the intermediate values of one evaluation of networks; part of a job's key.
        parallel_jobs: how many jobs share the machine's memory; changes no result.
        method_files: methods that come from files, as ``registry.add_file`` takes them.
    """

    device: str = "auto"
    precision: Literal["float32", "tf32"] = "float32"
    threads: int | None = None
    data_root: Path | None = None
    allow_code: tuple[Path, ...] = ()
    snapshot_every: float = SNAPSHOT_SECONDS
    memory_limit_mb: int = MEMORY_LIMIT_MB
    parallel_jobs: int = 1
    method_files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.snapshot_every > 0:
            raise UsageError(f"--snapshot-every must be a positive number of seconds, got {self.snapshot_every:g}")

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
                "task": self.task.model_dump(mode="json", exclude=NOT_IN_KEY | self._at_defaults()),
                "data": checksum,
                "method": self.method,
                "revision": self.revision,
                "config": self.config,
                "budget": self.budget,
                "device": device,
                "memory_limit_mb": memory_limit_mb,
            }
        )

    def _at_defaults(self) -> set[str]:
        """Keys of the task that earlier versions had not, where they say what these did."""
        return {name for name in ADDED if getattr(self.task, name) == TaskSpec.model_fields[name].default}

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
