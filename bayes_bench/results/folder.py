"""The run directory: a folder per job, every file written atomically, the record last. Imports no torch.

    RUN/run.json                                       the latest invocation: its command, suites and jobs
    RUN/jobs/<task>/<label>/seed-<k>-<key8>/
        predictions.safetensors  posterior.safetensors  log.txt  record.json
        snapshots/               of a job that has not finished

A job's folder without a valid record is unfinished. A file is written under a temporary name in the same
folder, flushed to the disk and renamed, so a reader sees the old file or the new one and nothing else.

``record.json`` and ``run.json`` end with a checksum of all their bytes. Whoever gives a run folder away can make it
match anything, so what they hold is checked as well (``schema``), and symbolic links are refused: names
and links must not lead a reader or a writer out of the folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bayes_bench.errors import DataError, UsageError, printable, unknown_name
from bayes_bench.host.files import TEMPORARY, file_facts, refuse_link, replacing, write_bytes, write_text, writing
from bayes_bench.results.lock import HOLDER, LOCK
from bayes_bench.results.schema import (
    FORMAT,
    check_predictions,
    check_record,
    check_run,
    cleaned,
    plain,
    read_checked,
    read_record,
    write_checked,
)

RECORD = "record.json"
PREDICTIONS = "predictions.safetensors"
POSTERIOR = "posterior.safetensors"
LOG = "log.txt"
RUN = "run.json"
SNAPSHOTS = "snapshots"
"""The folder of an unfinished job's snapshots."""
JOB_FILES = (PREDICTIONS, POSTERIOR, LOG)
WINDOWS_DEVICES = {
    "CON",
    "PRN",
    "AUX",
    "NUL",
    *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10)),
}


# Jobs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JobState:
    """What a job's folder holds.

    Attributes:
        kind: ``"finished"`` (a valid record with status ok and all its files), ``"failed"`` (a valid record of
            a failure), ``"damaged"`` (a record or one of its files is not what it should be), ``"none"``.
        record: where it is readable.
        problem: what is damaged, in words.
    """

    kind: Literal["finished", "failed", "damaged", "none"]
    record: dict[str, Any] | None = None
    problem: str = ""


def job_folder(run_dir: Path, task: str, label: str, seed: int, key: str) -> Path:
    """The folder of a job. Names that Windows reserves get an underscore."""
    return run_dir / "jobs" / safe_name(task) / safe_name(label) / f"seed-{seed}-{key[:8]}"


def safe_name(name: str) -> str:
    """A name of the pattern of ``settings.NAME_PATTERN`` as a file name that every system takes."""
    if name.split(".")[0].upper() in WINDOWS_DEVICES:
        return "_" + name
    return name + "_" if name.endswith(".") else name


def job_state(folder: Path, key: str) -> JobState:
    """Is the job with this key finished? Reads the record and the checksums of its files.

    Raises:
        DataError: the folder is, or holds, a symbolic link.
    """
    refuse_links(folder)
    path = folder / RECORD
    if not path.is_file():
        return JobState("none")
    try:
        record = read_record(path)
    except DataError as error:
        return JobState("damaged", problem=str(error))
    if record["key"] != key:
        # Eight characters of two keys can agree; the whole key decides.
        return JobState("none")
    if record["status"] != "ok":
        return JobState("failed", record)
    for name, facts in record["files"].items():
        try:
            check_file(folder / name, facts)
        except DataError as error:
            return JobState("damaged", record, str(error))
    return JobState("finished", record)


def refuse_links(folder: Path) -> None:
    """A job's folder and what it holds must lie where their names say.

    Raises:
        DataError: one of them, or a folder between them and the run folder, is a symbolic link.
    """
    held = (folder / name for name in (*JOB_FILES, RECORD, SNAPSHOTS))
    for path in (*list(folder.parents)[2::-1], folder, *held):
        refuse_link(path)


def check_file(path: Path, facts: Mapping[str, Any]) -> None:
    """Is a file the one that a record speaks of?

    Raises:
        DataError: it is missing, unreadable, a symbolic link, or has another size or checksum.
    """
    try:
        refuse_link(path)
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            raise DataError(f"{path} is missing")
        if size != facts["bytes"]:
            raise DataError(f"{path} is damaged: it has {size:,} bytes instead of {facts['bytes']:,}")
        if file_facts(path)["sha256"] != facts["sha256"]:
            raise DataError(f"{path} is damaged: its checksum differs")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def write_job(
    folder: Path,
    record: Mapping[str, Any],
    *,
    predictions: Mapping[str, np.ndarray] | None = None,
    save_posterior: Callable[[Path], None] | None = None,
    log: str = "",
) -> dict[str, Any]:
    """Write one job's results, the record last; returns the record as written, with its ``files``.

    What the folder held before is invalidated first, so that no record ever speaks of another job's files.
    Snapshots go when the job has succeeded.

    Raises:
        StorageError: the folder cannot be written.
        DataError: the folder is, or holds, a symbolic link.
    """
    refuse_links(folder)
    with writing(folder):
        _invalidate(folder)
        if predictions is not None:
            save_predictions(folder / PREDICTIONS, predictions)
        if save_posterior is not None:
            save_posterior(folder / POSTERIOR)
        write_text(folder / LOG, log)
        present = [name for name in JOB_FILES if (folder / name).is_file()]
        written = write_record(folder, {**record, "files": {name: file_facts(folder / name) for name in present}})
    clear_snapshots(folder, keep=written["status"] != "ok")
    return written


def check_new_record(record: Mapping[str, Any]) -> None:
    """Will a record be one for its readers when it is written?

    Raises:
        DataError: says which key is wrong.
    """
    check_record(cleaned(plain({**record, "files": {}})))


def write_record(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Write a job's record, in the current format; returns it as it is read again.

    Raises:
        StorageError: the folder cannot be written.
    """
    write_checked(folder / RECORD, {**record, "format": FORMAT})
    return read_record(folder / RECORD)


def write_files(folder: Path, files: Mapping[str, bytes]) -> dict[str, Any]:
    """Write one job's results as another machine has made them, the record last; returns the record.

    Args:
        files: contents by path within the folder. Where no snapshot is among them, those that are there are removed.

    Raises:
        StorageError: the folder cannot be written.
        DataError: there is no valid record among them, or the folder is, or holds, a symbolic link.
    """
    refuse_links(folder)
    with writing(folder):
        _invalidate(folder)
        for name in sorted(files, key=lambda name: name == RECORD):
            write_bytes(folder / name, files[name])
    if not any(name.startswith(SNAPSHOTS) for name in files):
        clear_snapshots(folder)
    return read_record(folder / RECORD)


def _invalidate(folder: Path) -> None:
    """Make the folder, and remove what an earlier attempt at the job has left, the record first."""
    folder.mkdir(parents=True, exist_ok=True)
    own = [folder / name for name in (RECORD, *JOB_FILES)]
    for stale in (*own, *folder.glob("*.tmp"), *folder.glob(".*.tmp")):
        with writing(stale):
            stale.unlink(missing_ok=True)


def clear_snapshots(folder: Path, *, keep: bool = False) -> None:
    """Remove the snapshots of a job's fit; with ``keep`` only their folder, where it is empty."""
    snapshots = folder / SNAPSHOTS
    if not keep:
        shutil.rmtree(snapshots, ignore_errors=True)
    with suppress(OSError):
        snapshots.rmdir()


def read_records(run_dir: Path) -> tuple[list[tuple[Path, dict[str, Any]]], list[str]]:
    """All records of a run with their folders, in the order of their paths, and a sentence for each damaged one.

    A folder that cannot be read is one more sentence: the jobs in it are not missing.
    """
    found = []
    paths, problems = _record_paths(run_dir / "jobs")
    for path in paths:
        try:
            refuse_links(path.parent)
            record = read_record(path)
            place = (record["task"], record["label"], record["seed"], record["key"])
            if job_folder(run_dir, *place) != path.parent:
                raise DataError(f"{path} is damaged: it is the record of another job ({'/'.join(map(str, place[:3]))})")
        except DataError as error:
            problems.append(printable(str(error)))  # folders may be called anything
        else:
            found.append((path.parent, record))
    return found, problems


def finished_jobs(
    run_dir: Path, label: str, task: str | None = None, seed: int | None = None
) -> list[tuple[Path, dict[str, Any]]]:
    """The finished jobs of a method's row with their folders, of one task; of one seed where that is named.

    Raises:
        UsageError: there is none, or there are several tasks to choose from.
    """
    found = [(folder, record) for folder, record in read_records(run_dir)[0] if record["status"] == "ok"]
    if not found:
        raise UsageError(f"{run_dir} has no finished job")
    for kind, key, wanted in (("method", "label", label), ("task", "task", task), ("seed", "seed", seed)):
        known = {str(record[key]) for _, record in found}
        if wanted is not None and str(wanted) not in known:
            raise UsageError(f"{run_dir}: {unknown_name(f'finished {kind}', str(wanted), known)}")
        found = [item for item in found if wanted is None or item[1][key] == wanted]
        if kind == "task" and len({record["task"] for _, record in found}) > 1:
            raise UsageError(
                f"{run_dir} has {label!r} for several tasks; choose one with --task: {', '.join(sorted(known))}"
            )
    return found


def _record_paths(jobs: Path) -> tuple[list[Path], list[str]]:
    """What is called a record in a job's folder, and a sentence for each folder that cannot be read."""
    folders, problems = [jobs] if jobs.is_dir() else [], []
    for _ in ("task", "label", "seed"):
        inner: list[Path] = []
        for folder in folders:
            try:
                inner += sorted(path for path in folder.iterdir() if path.is_dir())
            except OSError as error:
                problems.append(printable(f"cannot read {folder}: {error.strerror or error}"))
        folders = inner
    return [folder / RECORD for folder in folders if os.path.lexists(folder / RECORD)], problems


# Predictions ----------------------------------------------------------------------------------------------


def save_predictions(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as safetensors, atomically."""
    from safetensors.numpy import save

    # Written by us: the library's own save_file gives the file permissions that no one else can read with.
    content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def load_predictions(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a finished job, after comparing the file with the record's checksum.

    Log probabilities are stored as float16: renormalise them in float64 before computing with them.

    Raises:
        DataError: the file is missing, damaged, or not the one that the record speaks of.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    refuse_links(folder)
    path = folder / PREDICTIONS
    record = read_record(folder / RECORD)
    facts = record["files"].get(PREDICTIONS)
    if facts is None:
        raise DataError(f"{folder} has no predictions: its job failed")
    try:
        check_file(path, facts)
    except DataError as error:
        raise DataError(f"{error}; the same command again runs the job anew") from error
    try:
        arrays = dict(load_file(path))
        check_predictions(arrays, record)
    except (SafetensorError, DataError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        # Types and attributes: arrays of a type that NumPy does not have.
        raise DataError(f"{path} is damaged: {error}") from error
    return arrays


# The run --------------------------------------------------------------------------------------------------


def read_run(run_dir: Path) -> dict[str, Any]:
    """The description of the latest invocation, ``run.json``.

    Raises:
        UsageError: ``run_dir`` is not a run folder.
        DataError: the file is damaged.
    """
    path = run_dir / RUN
    if not path.is_file():
        raise UsageError(f"{run_dir} is not a run folder (it has no {RUN}); give the --out of a bayes-bench run")
    _refuse_links_in(run_dir)
    content = read_checked(path)
    try:
        check_run(content)
    except DataError as error:
        raise DataError(f"{path} is damaged: {error}") from error
    return content


def _refuse_links_in(folder: Path, *names: str) -> None:
    for path in (folder / name for name in (RUN, LOCK, "jobs", *names)):
        refuse_link(path)


def check_run_dir(run_dir: Path, marker: str = RUN, kind: str = "run") -> None:
    """Is ``run_dir`` a run folder, or can one be made there? Creates nothing.

    Args:
        marker: the file that tells such a folder from others.
        kind: what the folder is of, for the sentence.

    Raises:
        UsageError: it is a file, another kind of folder that is not empty, or not writable.
        DataError: it holds a symbolic link where one could lead a writer out of it.
    """
    existing = next(path for path in (run_dir.absolute(), *run_dir.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UsageError(f"cannot write to {run_dir}: {existing} is a file; choose another --out")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write to {run_dir}: no permission for {existing}; choose another --out")
    if existing == run_dir.absolute() and not (run_dir / marker).exists():
        own = (LOCK, HOLDER, "jobs")  # a run that was killed early may have left no more, and temporary files
        foreign = [p.name for p in run_dir.iterdir() if p.name not in own and not TEMPORARY.fullmatch(p.name)]
        if foreign:
            raise UsageError(
                f"{run_dir} is not empty and not a {kind} folder (it holds {sorted(foreign)[0]!r}); "
                "choose another --out"
            )
    _refuse_links_in(run_dir, marker)
