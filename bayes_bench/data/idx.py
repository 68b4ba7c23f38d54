"""Reading the idx files of MNIST and its kin, gzipped or not."""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bayes_bench.errors import DataError


@dataclass(frozen=True)
class IdxFile:
    """One idx file: ``values`` uint8 in the shape its header says, and the SHA-256 of the unzipped file."""

    path: Path
    values: np.ndarray
    sha256: str


def find(folder: Path, name: str) -> Path | None:
    """The file, or its gzipped form, or None."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def read(path: Path) -> IdxFile:
    """Read an idx file of unsigned bytes.

    Raises:
        DataError: unreadable, not such a file, or not as long as its header says.
    """
    mend = "delete it and fetch it again"
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged or truncated ({error}); {mend}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise DataError(f"{path} is not an idx file of bytes (or is truncated within its header); {mend}")
    rank = content[3]
    shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    expected = 4 + 4 * rank + int(np.prod(shape, dtype=np.int64))
    if len(content) != expected:
        state = "is truncated" if len(content) < expected else "is too long"
        raise DataError(f"{path} {state}: {len(content):,} bytes where its header says {expected:,}; {mend}")
    values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * rank).reshape(shape)
    return IdxFile(path, values, hashlib.sha256(content).hexdigest())
