"""The files of a benchmark set: what a source says of them, for ``bayes-bench data`` and for its own errors."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bayes_bench.errors import DataError

SILENCE = 30.0
"""Seconds without an answer after which a download has failed."""


@dataclass(frozen=True)
class Found:
    """What of a set's files is there; nothing has been read.

    Attributes:
        missing: names of files.
        folder: where it lies below the data root, if not in the set's own.
        problem: why it cannot be told.
    """

    present: tuple[Path, ...]
    missing: tuple[str, ...] = ()
    folder: Path | None = None
    problem: str = ""

    @property
    def state(self) -> str:
        """``present``, ``missing``, ``partly there`` or ``unreadable``."""
        if self.problem:
            return "unreadable"
        if not self.present:
            return "missing"
        return "partly there" if self.missing else "present"


@dataclass(frozen=True)
class Files:
    """A benchmark set that lies in files below the data root.

    Attributes:
        title: what people call the set.
        folder: where it is looked for, below the data root.
        look: ``data_root -> Found``; reads nothing; ``found`` is what others call.
        check: ``data_root -> sentence``: reads all that is there, refuses what is damaged or foreign with a
            ``DataError``, and says what was checked.
        fetch: ``data_root``: downloads what is missing; whatever it raises beside a ``DataError`` is a failed download.
        remedy: how to get the files where the download does not work.
        licence: in words, with where the set comes from.
    """

    title: str
    folder: Path
    look: Callable[[Path], Found]
    check: Callable[[Path], str]
    fetch: Callable[[Path], None]
    remedy: str
    licence: str

    def found(self, data_root: Path) -> Found:
        """What ``look`` finds; a folder that may not be read is a problem of this set alone."""
        try:
            return self.look(data_root)
        except OSError as error:
            place = error.filename or data_root / self.folder
            return Found(
                (), problem=f"cannot read {place}: {error.strerror or error}; allow it, or use another data root"
            )

    def place(self, found: Found, data_root: Path) -> Path:
        """The folder that was looked into."""
        return data_root / (found.folder or self.folder)

    def provide(self, data_root: Path) -> None:
        """Download what is missing.

        Raises:
            DataError: it cannot be had; the sentence says what, where and what to do.
        """
        found = self.found(data_root)
        if found.problem:
            raise DataError(found.problem)
        if not found.missing:
            return
        looked = f"{self.title} is missing: {', '.join(found.missing)} not found in {self.place(found, data_root)}"
        try:
            with _impatient():
                self.fetch(data_root)
        except DataError:
            raise
        except Exception as error:  # servers and proxies answer what they like, and torchvision raises it
            reason = str(error).strip().splitlines()
            raise DataError(
                f"{looked}; the download failed ({reason[-1] if reason else 'no reason'}); {self.remedy}"
            ) from error
        if still := self.found(data_root).missing:
            raise DataError(f"{looked}; the download left {', '.join(still)} missing; {self.remedy}")


@contextmanager
def _impatient() -> Iterator[None]:
    """Torchvision waits without end for a server, or a firewall, that says nothing."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def check_file(path: Path) -> None:
    """Refuse what is no file of its own: a missing one, a folder, a device or a pipe that would never end.

    Raises:
        DataError: says what it is.
    """
    try:
        if not path.exists():
            raise DataError(f"cannot read {path}: No such file or directory")
        if not path.is_file():
            raise DataError(f"cannot read {path}: it is not a file")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def check_digest(path: Path, title: str, expected: str) -> None:
    """Refuse a file that is not the published one, byte by byte; reading another might run whatever it holds.

    Args:
        expected: its SHA-256, or its MD5 where no better is published, in hexadecimal digits.

    Raises:
        DataError: unreadable, or another file.
    """
    check_file(path)
    name, algorithm = ("SHA-256", "sha256") if len(expected) == 64 else ("MD5", "md5")
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, algorithm).hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if found != expected:
        raise DataError(
            f"{path} is not {title}'s file ({name} {found[:12]}…, expected {expected[:12]}…), truncated perhaps; "
            "delete it and fetch it again"
        )


def download(torchvision_class: str, name: str, data_root: Path) -> None:
    """Fetch a set with torchvision, one process at a time; what is there already is not fetched again.

    Raises:
        OSError: no network, or the folder cannot be written.
        RuntimeError: every mirror failed.
    """
    from filelock import FileLock
    from torchvision import datasets

    data_root.mkdir(parents=True, exist_ok=True)
    with FileLock(data_root / f".{name}.lock"):
        getattr(datasets, torchvision_class)(str(data_root), download=True)


def torchvision_remedy(*calls: str) -> str:
    """The remedy where torchvision has the set; ``calls`` such as ``MNIST('DIR', download=True)``."""
    code = "; ".join(["import torchvision", *(f"torchvision.datasets.{call}" for call in calls)])
    return f'get it where there is internet (python -c "{code}") and point --data-root or BAYES_BENCH_DATA to DIR'


def find(folder: Path, name: str) -> Path | None:
    """The file, or its gzipped form, or None."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def located(paths: Mapping[str, Path | None]) -> Found:
    """Of files by name, those that have a path and those that have none."""
    return Found(
        tuple(path for path in paths.values() if path), tuple(name for name, path in paths.items() if not path)
    )
