"""The run directory: a folder per job, every file written atomically, the record last. Imports no torch.

    RUN/run.json                                       the latest invocation: its command, suites and jobs
    RUN/jobs/<task>/<label>/seed-<k>-<key8>/
        predictions.safetensors  posterior.safetensors  log.txt  record.json
        snapshots/               of a job that has not finished

A job's folder without a valid record is unfinished. A file is written under a temporary name in the same
folder, flushed to the disk and renamed, so a reader sees the old file or the new one and nothing else.

``record.json`` and ``run.json`` end with a checksum of all their bytes. Whoever gives a run folder away can make it
match anything, so what they hold is checked as well (``bayes_bench.records``), and symbolic links are refused: names
and links must not lead a reader or a writer out of the folder.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shlex
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bayes_bench import records
from bayes_bench.errors import DataError, StorageError, UsageError, printable
from bayes_bench.settings import check_values

FORMAT = 2
RECORD = "record.json"
PREDICTIONS = "predictions.safetensors"
POSTERIOR = "posterior.safetensors"
LOG = "log.txt"
RUN = "run.json"
LOCK = ".lock"
HOLDER = ".lock.json"
"""Who holds the lock, for whoever finds it taken."""
LONGEST_HOLDER = 20_000
"""Bytes of that file."""
SNAPSHOTS = "snapshots"
"""The folder of an unfinished job's snapshots."""
JOB_FILES = (PREDICTIONS, POSTERIOR, LOG)
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
"""Names of files that are being written."""
WINDOWS_DEVICES = {
    "CON",
    "PRN",
    "AUX",
    "NUL",
    *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10)),
}
CHECKSUM = re.compile(rb',\n "checksum": "([0-9a-f]{64})"\n}\n\Z')
"""The end of a file that carries a checksum of its bytes, taken with zeros in the checksum's place."""
NUMBER = re.compile(r"-?[0-9.]+(e-?[0-9]+)?")
LARGEST_JSON = 64 * 2**20
"""Bytes of ``record.json`` or ``run.json``; no job comes near."""
REMEDIES = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
        "free space there, then the same command continues",
    ),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS),
        "make it writable or choose another folder, then the same command continues",
    ),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), "make the folder first"),
    errno.EISDIR: "remove the folder that is in its place, then the same command continues",
}


# Files ----------------------------------------------------------------------------------------------------


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever the system refuses while ``path`` is written becomes one sentence.

    Raises:
        StorageError: with the remedy.
    """
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "see to the disk, then the same command continues")
        raise StorageError(f"cannot write {path}: {error.strerror or error}; {remedy}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` to write to; on success it replaces ``path``, else it vanishes.

    Raises:
        StorageError: the system refuses; what was at ``path`` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with writing(path):
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where there is none.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {folder}: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically, with the same line ends on every system."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically, and its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; numbers that are not finite become null, which JSON can hold."""
    write_text(path, _json(content))


def write_checked(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, its last key a checksum of the file's bytes, for ``read_checked``."""
    rest = {key: value for key, value in records.cleaned(_plain(content)).items() if key != "checksum"}
    text = _json({**rest, "checksum": 64 * "0"})
    digest = hashlib.sha256(text.encode()).hexdigest()
    write_text(path, text.removesuffix(f'{64 * "0"}"\n}}\n') + f'{digest}"\n}}\n')


def read_checked(path: Path) -> dict[str, Any]:
    """What ``write_checked`` wrote, without the checksum; every changed byte is noticed.

    A file of format 1 has no checksum.

    Raises:
        DataError: unreadable, damaged, or of a newer format.
    """
    try:
        raw = read_bytes(path, LARGEST_JSON + 1)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if len(raw) > LARGEST_JSON:
        raise DataError(f"{path} is damaged: it has more than {LARGEST_JSON:,} bytes")
    try:
        return _checked(raw)
    except _NewerError as error:
        raise DataError(f"{path} has {error}; update bayes-bench") from None
    except (DataError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}") from error


def read_bytes(path: Path, most: int) -> bytes:
    """The first bytes of a file in a run folder.

    Raises:
        DataError: it is a symbolic link, or no file: a pipe would be waited for without end.
        OSError: it cannot be read.
    """
    if path.is_symlink():
        raise DataError(f"{path} is a symbolic link, which a run folder must not hold; remove it")
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is not a file; remove it")
    with path.open("rb") as file:
        return file.read(most)


class _NewerError(Exception):
    """A file of a format that a later version introduced."""


def _checked(raw: bytes) -> dict[str, Any]:
    end = CHECKSUM.search(raw, max(0, len(raw) - 100))
    if end is not None:
        digest = hashlib.sha256(raw[: end.start(1)] + 64 * b"0" + raw[end.end(1) :]).hexdigest()
        if digest.encode() != end[1]:
            raise DataError("its checksum differs")
    content = json.loads(raw.decode("utf-8"))
    written = content.get("format") if isinstance(content, dict) else None
    if not isinstance(written, int) or isinstance(written, bool):
        raise DataError("it names no format")
    if written > FORMAT:
        raise _NewerError(f"format {written}, this version reads up to {FORMAT}")
    if end is None and written > 1:
        raise DataError("its checksum is missing")
    check_values(content)
    return {key: value for key, value in content.items() if key != "checksum"}


def spreadsheet_safe(text: str) -> str:
    """A cell of a CSV file; one that a spreadsheet would take for a formula gets an apostrophe before it."""
    if text.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r")) and not NUMBER.fullmatch(text):
        return f"'{text}"
    return text


def file_facts(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, as records list them."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size}


def canonical_hash(content: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of its keys."""
    text = json.dumps(_plain(content), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _json(content: Any) -> str:
    return json.dumps(_plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _sync_folder(folder: Path) -> None:
    # The rename is durable only when the folder is flushed; Windows cannot open a folder and needs no such thing.
    if os.name == "posix":
        with suppress(OSError):  # some network file systems refuse; the file itself is complete
            handle = os.open(folder, os.O_RDONLY)
            try:
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
        if path.is_symlink():
            raise DataError(f"{path} is a symbolic link, which a run folder must not hold; remove it")


def check_file(path: Path, facts: Mapping[str, Any]) -> None:
    """Is a file the one that a record speaks of?

    Raises:
        DataError: it is missing, unreadable, a symbolic link, or has another size or checksum.
    """
    try:
        if path.is_symlink():
            raise DataError(f"{path} is a symbolic link, which a run folder must not hold; remove it")
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
    records.check_record(records.cleaned(_plain({**record, "files": {}})))


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


def read_record(path: Path) -> dict[str, Any]:
    """A record, checked as far as every reader relies on it.

    Raises:
        DataError: unreadable, damaged, or of a newer format.
    """
    record = read_checked(path)
    try:
        records.check_record(record)
    except DataError as error:
        raise DataError(f"{path} is damaged: {error}") from error
    return record


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
        records.check_predictions(arrays, record)
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
        records.check_run(content)
    except DataError as error:
        raise DataError(f"{path} is damaged: {error}") from error
    return content


def _refuse_links_in(folder: Path, *names: str) -> None:
    for path in (folder / name for name in (RUN, LOCK, "jobs", *names)):
        if path.is_symlink():
            raise DataError(f"{path} is a symbolic link, which such a folder must not hold; remove it")


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


def check_not_in_use(run_dir: Path) -> None:
    """Does no other process write there now? Asked early, before work that would be for nothing.

    Raises:
        UsageError: as ``locked``.
    """
    if (run_dir / LOCK).exists():
        with locked(run_dir):
            pass


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Make the run folder and hold it for this process.

    The lock is the operating system's and ends with the process, however that ends.

    Raises:
        UsageError: another process writes there (the sentence says which), the folder cannot be made, or its file
            system has no locks.
    """
    from filelock import FileLock, Timeout

    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {run_dir}: {error.strerror or error}") from error
    lock = FileLock(str(run_dir / LOCK), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UsageError(
            f"another bayes-bench run is writing to {run_dir}{_holder(run_dir)}; wait for it or choose another --out"
        ) from error
    except PermissionError as error:
        raise UsageError(f"cannot write to {run_dir}: {error.strerror or error}") from error
    except (OSError, NotImplementedError) as error:
        raise UsageError(
            f"cannot lock {run_dir} ({getattr(error, 'strerror', None) or error}); "
            "choose an --out on a file system that has locks"
        ) from error
    try:
        _write_holder(run_dir)
        yield
    finally:
        with suppress(OSError):
            (run_dir / HOLDER).unlink()
        lock.release()


def _write_holder(run_dir: Path) -> None:
    about = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
    with suppress(OSError):  # only a courtesy; whatever refuses it will refuse the results in better words
        write_json(run_dir / HOLDER, about)


def _holder(run_dir: Path) -> str:
    """In words what the holder of the lock has said of itself; empty where it has not yet."""
    try:
        about = json.loads(read_bytes(run_dir / HOLDER, LONGEST_HOLDER))
        text = f": process {about['process']} on {about['host']} since {about['since']} ({about['command']})"
    except (OSError, DataError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    # Whoever can write there must not be able to send a terminal control characters.
    return "".join(c if c.isprintable() else "?" for c in text)
