"""One process for each run folder."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from bayes_bench.errors import DataError, UsageError
from bayes_bench.host.files import read_bytes
from bayes_bench.results.schema import write_json

LOCK = ".lock"
HOLDER = ".lock.json"
"""Who holds the lock, for whoever finds it taken."""
LONGEST_HOLDER = 20_000
"""Bytes of that file."""


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
