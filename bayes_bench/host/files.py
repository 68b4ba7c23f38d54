"""Files: writes that replace or leave what was there, and what a refused write says."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bayes_bench.errors import DataError, StorageError

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
"""Names of files that are being written."""
NUMBER = re.compile(r"-?[0-9.]+(e-?[0-9]+)?")
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


def refuse_link(path: Path) -> None:
    """What lies in a folder of ours must lie where its name says.

    Raises:
        DataError: it is a symbolic link.
    """
    if path.is_symlink():
        raise DataError(f"{path} is a symbolic link, which such a folder must not hold; remove it")


def read_bytes(path: Path, most: int) -> bytes:
    """The first bytes of a file in a run folder.

    Raises:
        DataError: it is a symbolic link, or no file: a pipe would be waited for without end.
        OSError: it cannot be read.
    """
    refuse_link(path)
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is not a file; remove it")
    with path.open("rb") as file:
        return file.read(most)


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


def _sync_folder(folder: Path) -> None:
    # The rename is durable only when the folder is flushed; Windows cannot open a folder and needs no such thing.
    if os.name == "posix":
        with suppress(OSError):  # some network file systems refuse; the file itself is complete
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
