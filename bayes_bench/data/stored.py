"""Inputs that stay in a file, and passes over inputs in blocks: memory follows the block, not the set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bayes_bench.errors import DataError

BLOCK = 2**22
"""Values of a block."""


@dataclass(frozen=True, eq=False)
class StoredRows:
    """The rows of an array in a file, as far as ``numbers`` names them; what is asked for is read, nothing is kept.

    The file is mapped anew for every look at it: pages that stayed mapped would count as memory of the process.

    Attributes:
        offset: bytes before the array, whose rows follow each other (C order).
        stored_shape, stored_dtype: of the whole array.
        convert: of rows as they are stored → float32 or float64 in raw units; row by row the same in any company.
        numbers: int64 ``[N]``, the rows of the array that these are.
    """

    path: Path
    offset: int
    stored_shape: tuple[int, ...]
    stored_dtype: np.dtype
    convert: Callable[[np.ndarray], np.ndarray]
    numbers: np.ndarray
    shape: tuple[int, ...] = field(init=False)
    dtype: np.dtype = field(init=False)

    def __post_init__(self) -> None:
        one = self.convert(np.zeros((1, *self.stored_shape[1:]), self.stored_dtype))
        object.__setattr__(self, "shape", (len(self.numbers), *one.shape[1:]))
        object.__setattr__(self, "dtype", one.dtype)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Rows ``[n, ...]`` of type ``dtype``, read now.

        Raises:
            DataError: the file cannot be read any more, or has become shorter.
        """
        try:
            stored = np.memmap(self.path, self.stored_dtype, "r", self.offset, self.stored_shape)
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {self.path} any more: {error}") from error
        return self.convert(np.asarray(stored[self.numbers[rows]]))

    def only(self, rows: np.ndarray) -> StoredRows:
        """Some of the rows, not read yet."""
        return StoredRows(
            self.path, self.offset, self.stored_shape, self.stored_dtype, self.convert, self.numbers[rows]
        )


def blocks(x: np.ndarray | StoredRows) -> Iterator[np.ndarray]:
    """The rows in their order, some at a time; a set of at most ``BLOCK`` values is one block."""
    step = max(1, BLOCK // max(1, math.prod(x.shape[1:])))
    for start in range(0, len(x), step):
        yield x[start : start + step]
