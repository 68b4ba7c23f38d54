"""The run directory: a folder per job, every file written atomically, the record last. Imports no torch.

    RUN/run.json                                       the latest invocation: its command, suites and jobs
    RUN/jobs/<task>/<label>/seed-<k>-<key8>/
        predictions.safetensors  posterior.safetensors  log.txt  record.json

A job's folder without a valid record is unfinished. A file is written under a temporary name in the same
folder, flushed to the disk and renamed, so a reader sees the old file or the new one and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bayes_bench.errors import DataError, UsageError

FORMAT = 1
RECORD = "record.json"
PREDICTIONS = "predictions.safetensors"
POSTERIOR = "posterior.safetensors"
LOG = "log.txt"
RUN = "run.json"
LOCK = ".lock"
JOB_FILES = (PREDICTIONS, POSTERIOR, LOG)
WINDOWS_DEVICES = {
    "CON",
    "PRN",
    "AUX",
    "NUL",
    *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10)),
}


# Files ----------------------------------------------------------------------------------------------------


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` to write to; on success it replaces ``path``, else it vanishes."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically, with the same line ends on every system."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; numbers that are not finite become null, which JSON can hold."""
    write_text(path, json.dumps(_plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def file_facts(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, as records list them."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size}


def canonical_hash(content: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of its keys."""
    text = json.dumps(_plain(content), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _sync_folder(folder: Path) -> None:
    # The rename is durable only when the folder is flushed; Windows cannot open a folder and needs no such thing.
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network file systems refuse
                os.fsync(handle)
        finally:
            os.close(handle)


def _plain(value: Any) -> Any:
    """Numpy numbers and arrays, tuples and paths as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


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
    """A name of the pattern of ``suite.NAME_PATTERN`` as a file name that every system takes."""
    if name.split(".")[0].upper() in WINDOWS_DEVICES:
        return "_" + name
    return name + "_" if name.endswith(".") else name


def job_state(folder: Path, key: str) -> JobState:
    """Is the job with this key finished? Reads the record and the sizes of its files, not their contents."""
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
        file = folder / name
        size = file.stat().st_size if file.is_file() else None
        if size != facts["bytes"]:
            found = "is missing" if size is None else f"has {size:,} bytes instead of {facts['bytes']:,}"
            return JobState("damaged", record, f"{file} {found}")
    return JobState("finished", record)


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

    Raises:
        UsageError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORD).unlink(missing_ok=True)
        for stale in (*(folder / name for name in JOB_FILES), *folder.glob("*.tmp"), *folder.glob(".*.tmp")):
            stale.unlink(missing_ok=True)
        if predictions is not None:
            save_predictions(folder / PREDICTIONS, predictions)
        if save_posterior is not None:
            save_posterior(folder / POSTERIOR)
        write_text(folder / LOG, log)
        present = [name for name in JOB_FILES if (folder / name).is_file()]
        complete = {
            **record,
            "format": FORMAT,
            "files": {name: file_facts(folder / name) for name in present},
        }
        write_json(folder / RECORD, complete)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror or error}") from error
    return read_record(folder / RECORD)


def read_record(path: Path) -> dict[str, Any]:
    """A record, checked as far as every reader relies on it.

    Raises:
        DataError: unreadable, damaged, or of a newer format.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("format"), int):
        raise DataError(f"{path} is damaged: not a record")
    if record["format"] > FORMAT:
        raise DataError(f"{path} has format {record['format']}, this version reads up to {FORMAT}; update bayes-bench")
    missing = {"key", "status", "suite", "task", "label", "method", "seed", "files"} - record.keys()
    if missing:
        raise DataError(f"{path} is damaged: it has no {', '.join(sorted(missing))}")
    return record


def read_records(run_dir: Path) -> tuple[list[tuple[Path, dict[str, Any]]], list[str]]:
    """All records of a run with their folders, in the order of their paths, and a sentence for each damaged one."""
    records, problems = [], []
    for path in sorted((run_dir / "jobs").glob("*/*/*/" + RECORD)):
        try:
            records.append((path.parent, read_record(path)))
        except DataError as error:
            problems.append(str(error))
    return records, problems


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

    path = folder / PREDICTIONS
    facts = read_record(folder / RECORD)["files"].get(PREDICTIONS)
    if facts is None:
        raise DataError(f"{folder} has no predictions: its job failed")
    if not path.is_file():
        raise DataError(f"{path} is missing; run the same command again to make it anew")
    if file_facts(path)["sha256"] != facts["sha256"]:
        raise DataError(f"{path} is damaged (its checksum differs); run the same command again with --fresh")
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise DataError(f"{path} is damaged: {error}") from error


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
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("jobs"), list):
        raise DataError(f"{path} is damaged: not the description of a run")
    return content


def check_run_dir(run_dir: Path, marker: str = RUN, kind: str = "run") -> None:
    """Is ``run_dir`` a run folder, or can one be made there? Creates nothing.

    Args:
        marker: the file that tells such a folder from others.
        kind: what the folder is of, for the sentence.

    Raises:
        UsageError: it is a file, another kind of folder that is not empty, or not writable.
    """
    existing = next(path for path in (run_dir.absolute(), *run_dir.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UsageError(f"cannot write to {run_dir}: {existing} is a file; choose another --out")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write to {run_dir}: no permission for {existing}; choose another --out")
    if existing == run_dir.absolute() and not (run_dir / marker).exists():
        foreign = [path.name for path in run_dir.iterdir() if path.name not in (LOCK, "jobs")]
        if foreign:
            raise UsageError(
                f"{run_dir} is not empty and not a {kind} folder (it holds {sorted(foreign)[0]!r}); "
                "choose another --out"
            )


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Make the run folder and hold it for this process.

    Raises:
        UsageError: another process writes there, or the folder cannot be made.
    """
    from filelock import FileLock, Timeout

    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(run_dir / LOCK), timeout=0)
        lock.acquire()
    except Timeout as error:
        raise UsageError(
            f"another bayes-bench run is writing to {run_dir}; wait for it or choose another --out"
        ) from error
    except OSError as error:
        raise UsageError(f"cannot write to {run_dir}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()
