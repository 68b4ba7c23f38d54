"""Reading the idx files of MNIST and its kin, gzipped or not."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bayes_bench.data.base import check_size
from bayes_bench.data.files import check_file
from bayes_bench.errors import DataError


@dataclass(frozen=True)
class IdxFile:
    """One idx file: ``values`` uint8 in the shape its header says, and the SHA-256 of the unzipped file."""

    path: Path
    values: np.ndarray
    sha256: str


def read(path: Path) -> IdxFile:
    """Read an idx file of unsigned bytes.

    Raises:
        DataError: unreadable, not such a file, or not as long as its header says.
    """
    mend = "delete it and fetch it again"
    check_file(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            start = file.read(4)
            rank = start[3] if len(start) == 4 else 0
            header = start + file.read(4 * rank)
            if start[:3] != b"\0\0\x08" or len(header) != 4 + 4 * rank:
                raise DataError(f"{path} is not an idx file of bytes (or is truncated within its header); {mend}")
            shape = struct.unpack(f">{rank}I", header[4:])
            size = math.prod(shape)
            # Of a zipped file never more than its header says, of another never more than there is.
            most = size if path.suffix == ".gz" else min(size, path.stat().st_size)
            check_size(path, most)
            content = header + file.read(most + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged or truncated ({error}); {mend}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    expected = len(header) + size
    if len(content) < expected:
        raise DataError(f"{path} is truncated: {len(content):,} bytes where its header says {expected:,}; {mend}")
    if len(content) > expected:
        raise DataError(f"{path} is too long: its header says {expected:,} bytes; {mend}")
    values = np.frombuffer(content, dtype=np.uint8, offset=len(header)).reshape(shape)
    return IdxFile(path, values, hashlib.sha256(content).hexdigest())
