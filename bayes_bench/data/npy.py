"""A user's own arrays that need not fit into memory: NPY files of inputs and targets.

Training inputs stay in their file, and every minibatch is read from it. Never unpickles.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from pydantic import model_validator

from bayes_bench.data import npz
from bayes_bench.data.base import (
    Arrays,
    FractionOptions,
    Kind,
    Source,
    Split,
    check_size,
    split_by_fractions,
)
from bayes_bench.data.files import check_file
from bayes_bench.data.stored import StoredRows
from bayes_bench.errors import DataError
from bayes_bench.settings import setting


class NpyOptions(FractionOptions):
    path: Path = setting(..., "the NPY file of inputs, larger than memory perhaps; relative to the suite's file")
    target_path: Path = setting(..., "the NPY file of targets")
    test_path: Path | None = setting(None, "an NPY file of test inputs, which must fit into memory")
    test_target_path: Path | None = setting(None, "the NPY file of their targets")
    channels_last: bool = setting(False, "images are [N, H, W, C] rather than [N, C, H, W]")

    @model_validator(mode="after")
    def _test_pair(self) -> NpyOptions:
        if (self.test_path is None) != (self.test_target_path is None):
            raise ValueError("give test_path and test_target_path together")
        return self


def split(options: NpyOptions, data_root: Path, kind: Kind) -> Split:
    """The parts that ``npz`` makes of the same arrays; training inputs are ``StoredRows``, the others in memory."""
    rows = stored(options.path, options.channels_last)
    y, classes = npz.as_targets(_read(options.target_path), kind, None, str(options.target_path))
    if len(rows) != len(y):
        raise DataError(f"{options.path} has {len(rows)} examples, {options.target_path} has {len(y)}")
    test = None
    if options.test_path is not None and options.test_target_path is not None:
        x = npz.read_input_array(options.test_path, channels_last=options.channels_last)
        test_y, _ = npz.as_targets(_read(options.test_target_path), kind, classes, str(options.test_target_path))
        if len(x) != len(test_y):
            raise DataError(f"{options.test_path} has {len(x)} examples, {options.test_target_path} has {len(test_y)}")
        if x.shape[1:] != rows.shape[1:] or test_y.shape[1:] != y.shape[1:]:
            raise DataError(f"{options.test_path} or its targets have another shape than {options.path}")
        test = Arrays(x, test_y)
    # The split is one of the rows' numbers: no row is read for it.
    numbers = Arrays(np.arange(len(y)), y)
    train, validation, held_out = split_by_fractions(numbers, options, str(options.path), test)
    if test is None:
        test = _in_memory(rows, held_out)
    return Split(Arrays(rows.only(train.inputs()), train.y), _in_memory(rows, validation), test, classes)


def stored(path: Path, channels_last: bool) -> StoredRows:
    """All rows of an NPY file as inputs, without reading them.

    Raises:
        DataError: no NPY file of numbers, damaged, or in an order in which a row's values are not together.
    """
    check_file(path)
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            shape, fortran, dtype = npz.read_header(file, size, path)
            offset = file.tell()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if fortran and len(shape) > 1:
        raise DataError(f"{path} is in Fortran order, which scatters every row; save numpy.ascontiguousarray of it")
    rows = shape[0] if shape else 0
    if rows == 0:
        raise DataError(f"{path} holds no examples")
    if size - offset != dtype.itemsize * int(np.prod(shape, dtype=object)):
        raise DataError(f"{path} is damaged: an array has not the size that its header says")
    convert = partial(npz.as_inputs, channels_last=channels_last, what=str(path))
    return StoredRows(path, offset, shape, dtype, convert, np.arange(rows))


def _in_memory(rows: StoredRows, part: Arrays) -> Arrays:
    numbers = part.inputs()
    check_size(rows.path, rows.dtype.itemsize * len(numbers) * int(np.prod(rows.shape[1:], dtype=object)))
    return Arrays(rows[numbers], part.y)


def _read(path: Path) -> np.ndarray:
    arrays = npz.read_arrays(path)
    if "x" not in arrays or len(arrays) > 1:
        raise DataError(f"{path} is not an NPY file of one array")
    return arrays["x"]


SOURCE = Source(
    name="npy",
    summary="your own arrays, larger than memory perhaps: NPY files of x and y, read batch by batch",
    SplitOptions=NpyOptions,
    split=split,
)
