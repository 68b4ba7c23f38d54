"""One job again, from what its record says, and what came out otherwise. Imports no torch before a job is repeated.

A record may come from anywhere: its task is validated as a suite's is, it names no file that is written, and it runs no
code but that of installed methods and of the files that ``allow_code`` names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from bayes_bench.errors import DataError, UsageError
from bayes_bench.host import machine
from bayes_bench.jobs.job import Conditions, Job, PlacedJob
from bayes_bench.methods import registry
from bayes_bench.metrics.cost import MEASURED
from bayes_bench.results.folder import POSTERIOR, PREDICTIONS, RECORD, check_file
from bayes_bench.results.schema import read_record
from bayes_bench.runs.verify import Mismatch, compare_metrics
from bayes_bench.settings import explain


class Surroundings(BaseModel):
    """What a record's ``machine`` says of how the job was computed; of the rest nothing is needed to repeat it."""

    device: str
    device_class: Literal["", "cpu", "cuda", "cuda-tf32"] = ""
    precision: Literal["float32", "tf32"] = "float32"
    threads: Annotated[int, Field(ge=1, le=machine.MOST_THREADS)]
    memory_limit_mb: Annotated[int, Field(ge=1, le=2**30)] = machine.MEMORY_LIMIT_MB

    @property
    def place(self) -> Literal["cpu", "cuda"]:
        """The device's type; records of older versions give its name alone."""
        return "cpu" if (self.device_class or self.device) == "cpu" else "cuda"


@dataclass(frozen=True)
class Recorded:
    """A record that was read and checked, with the job that it is of."""

    folder: Path
    record: Mapping[str, Any]
    job: Job
    surroundings: Surroundings


@dataclass(frozen=True)
class ArrayMismatch:
    """Of one stored array: how many of its values differ and by how much at most, or why they cannot be compared."""

    name: str
    differing: int = 0
    size: int = 0
    largest: float = 0.0
    problem: str = ""


@dataclass(frozen=True)
class Repetition:
    """What came out.

    Attributes:
        record: of the repeated job.
        same: stored predictions and posterior are the same bit for bit, and so is all that the records say of
            results; of a job that failed: it failed in the same way.
        arrays, differences: what differs, of stored arrays and of what the records say.
        notes: what could not be compared.
    """

    record: Mapping[str, Any]
    same: bool
    arrays: tuple[ArrayMismatch, ...] = ()
    differences: tuple[Mismatch, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def exit_code(self) -> int:
        return int(not self.same)


def read(path: Path) -> Recorded:
    """Read and check a job's folder, or its ``record.json``.

    Raises:
        UsageError: neither of the two, or the record asks for what does not exist.
        DataError: the record is damaged, or is not of a job that can be run.
        PluginError: the method is broken.
    """
    file = path / RECORD if path.is_dir() else path
    if file.name != RECORD or not file.is_file():
        raise UsageError(
            f"{path} is not a job; give the folder of one, RUN/jobs/TASK/METHOD/seed-…, or its record.json"
        )
    record = read_record(file)
    try:
        surroundings = Surroundings.model_validate(record.get("machine"))
        job = Job.model_validate(
            {name: record.get(name) for name in ("suite", "label", "method", "seed", "settings", "config")}
            | {"task": _task_of(record), "budget": (record.get("budget") or {}).get("total")}
            | {"revision": record.get("revision", 1)}
        )
    except ValidationError as error:
        raise DataError(f"{file} is not the record of a job: {explain(error, 'its content')}") from error
    try:
        registry.resolve_config(job.method, job.config)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error
    return Recorded(file.parent, record, job, surroundings)


def repeat(
    recorded: Recorded,
    out: Path,
    *,
    conditions: Conditions | None = None,
    tell: Any = lambda differences: None,
) -> Repetition:
    """Run the job again, into the folder ``out``, and compare.

    Args:
        conditions: where data and code are, and threads other than the record's; the rest is as the record says.
        tell: called before training with what is not as it was when the record was made: a list of ``Mismatch``.

    Raises:
        UsageError: a GPU is needed and there is none, ``out`` cannot be written, or the task cannot be built.
        DataError: data are missing or damaged, or the record's own files are.
        PluginError: the method is broken.
    """
    from bayes_bench.jobs.execute import execute
    from bayes_bench.jobs.provenance import code_of, machine_facts, task_fields
    from bayes_bench.posterior.checks import resolve_device
    from bayes_bench.tasks.task import build_task

    before = {name: _stored(recorded, name) for name in (PREDICTIONS, POSTERIOR)}
    job, how = recorded.job, recorded.surroundings
    resolve_device(how.place)
    registry.method_class(job.method)
    given = conditions or Conditions()
    conditions = replace(
        given,
        device=how.place,
        precision=how.precision,
        threads=given.threads or how.threads,
        memory_limit_mb=how.memory_limit_mb,
    )
    try:
        task = build_task(job.task, conditions.data_root, conditions.allow_code)
    except (MemoryError, RuntimeError) as error:
        raise DataError(f"the task {job.task.name!r} of {recorded.folder} cannot be built: {error}") from error
    place = (task.checksum, conditions.device_class, conditions.memory_limit_mb)
    item = PlacedJob(job, task, job.key(*place), job.variant(*place), out)
    now = {
        "key": item.key,
        "code": code_of(job, conditions.allow_code),
        "checkout": machine.checkout(),
        "versions": machine.versions(registry.methods()[job.method].owner),
        "machine": machine_facts(conditions) | {"threads": conditions.threads},
        "data": task_fields(task)["data"],
    }
    tell(list(_before(recorded.record, now)))
    record = execute(item, conditions)
    return _compare(recorded, record, out, before)


def _before(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Mismatch]:
    """What a record says before training: code, versions, machine, data, and so the key."""
    for part in ("code", "checkout", "versions", "machine", "data"):
        old, new = (record.get(part) for record in (then, now))
        if not (isinstance(old, dict) and isinstance(new, dict)):
            if old != new:
                yield Mismatch("version", part, part, str(old), str(new))
            continue
        for name in {**old, **new}:
            if old.get(name) != new.get(name) and (part, name) != ("machine", "memory_gb"):
                yield Mismatch("version", part, name, str(old.get(name)), str(new.get(name)))
    if then["key"] != now["key"]:
        yield Mismatch("version", "the job", "key", str(then["key"])[:8], now["key"][:8])


def _task_of(record: Mapping[str, Any]) -> Any:
    """The task as a suite would have it now."""
    task: Any = record.get("task_spec")
    likelihood = task.get("likelihood") if isinstance(task, dict) else None
    if isinstance(likelihood, dict) and likelihood.get("name") == "heteroscedastic":
        return {**task, "likelihood": {"scale": "exp", **likelihood}}  # version 0.1 knew no other
    return task


def _compare(recorded: Recorded, new: Mapping[str, Any], out: Path, before: Mapping[str, Any]) -> Repetition:
    old, where = recorded.record, recorded.job.name
    if "failed" in (old["status"], new["status"]):
        ends = ["ok" if record["status"] == "ok" else f"failed: {record.get('error')}" for record in (old, new)]
        same = ends[0] == ends[1]
        return Repetition(new, same, differences=() if same else (Mismatch("value", where, "result", *ends),))
    notes = [problem for problem in before.values() if isinstance(problem, str)]
    arrays: list[ArrayMismatch] = []
    for name, stored in before.items():
        if old["files"].get(name, {}).get("sha256") != new["files"][name]["sha256"]:
            if isinstance(stored, str):
                arrays.append(ArrayMismatch(name, problem="the file's checksum differs"))
            elif apart := _arrays(stored, _load(out / name)):
                arrays += apart
            elif name != POSTERIOR or not _same_posterior(recorded, out):
                arrays.append(ArrayMismatch(name, problem="the metadata differ"))
    differences = tuple(_differences(where, old, new))
    return Repetition(new, not arrays and not differences, tuple(arrays), differences, tuple(notes))


def _differences(where: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Mismatch]:
    """What two records say of results; timings and memory aside, and how often the fit was interrupted."""
    yield from (one for one in compare_metrics(where, old, new) if one.what not in MEASURED)
    for part in ("budget", "networks", "support", "uses_prior"):
        if old.get(part) != new[part]:
            yield Mismatch("value", where, part, str(old.get(part)), str(new[part]))
    left, right = old.get("fit") or {}, new["fit"]
    for name in {**left, **right}:
        if name not in ("seconds", "interruptions", "tables") and left.get(name) != right.get(name):
            yield Mismatch("value", where, f"fit: {name}", _brief(left.get(name)), _brief(right.get(name)))


def _arrays(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[ArrayMismatch]:
    """Arrays that differ in any bit."""
    found = []
    for name in {**old, **new}:
        if name not in old or name not in new:
            which = "only in the record" if name in old else "not in the record"
            found.append(ArrayMismatch(name, problem=which))
            continue
        left, right = np.asarray(old[name]), np.asarray(new[name])
        if (left.shape, left.dtype) != (right.shape, right.dtype):
            kinds = [f"{array.dtype} {list(array.shape)}" for array in (left, right)]
            found.append(ArrayMismatch(name, problem=f"{kinds[0]} in the record, now {kinds[1]}"))
        elif left.tobytes() != right.tobytes():
            with np.errstate(invalid="ignore"):
                apart = np.abs(left.astype(np.float64) - right.astype(np.float64))
            differing = int((left != right).sum())
            found.append(ArrayMismatch(name, differing, left.size, float(apart.max(initial=0.0))))
    return found


def _same_posterior(recorded: Recorded, out: Path) -> bool:
    """Whether two files say the same of themselves, as far as both speak of it.

    Older versions called methods by their modules, and said nothing of the likelihood.
    """
    method = registry.method_class(recorded.job.method)
    old, new = (method.read_about(folder / POSTERIOR) for folder in (recorded.folder, out))
    return {name: value for name, value in new.items() if name in old or name != "likelihood"} == old


def _stored(recorded: Recorded, name: str) -> Mapping[str, Any] | str:
    """The arrays of one of the record's own files, or that it is not there.

    Raises:
        DataError: it is not the file that the record speaks of.
    """
    path = recorded.folder / name
    facts = recorded.record["files"].get(name)
    if recorded.record["status"] != "ok":
        return ""
    if not path.is_file() or facts is None:
        return f"{path} is missing: compared by its checksum alone"
    try:
        check_file(path, facts)
    except DataError as error:
        raise DataError(f"{error}, so there is nothing to compare with") from error
    return _load(path)


def _load(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        # Types and attributes: arrays of a type that NumPy does not have.
        raise DataError(f"{path} is damaged: {error}") from error


def _brief(value: Any) -> str:
    return f"{len(value)} rows" if isinstance(value, list) and value and isinstance(value[0], dict) else str(value)
