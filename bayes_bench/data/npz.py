"""A user's own arrays: an NPZ file with ``x`` and ``y``, or ``x_train``, ``y_train``, ``x_test``, ``y_test``.

Never unpickles.
"""

from __future__ import annotations

import lzma
import math
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from bayes_bench.data.base import (
    REGRESSION,
    Arrays,
    FractionOptions,
    Inputs,
    Kind,
    Source,
    Split,
    as_floats,
    check_size,
    encode_labels,
    is_missing,
    split_by_fractions,
    unit_images,
)
from bayes_bench.data.files import check_file
from bayes_bench.errors import DataError
from bayes_bench.settings import Settings, setting


class NpzOptions(FractionOptions):
    path: Path = setting(..., "the NPZ file; relative to the suite's file")
    channels_last: bool = setting(False, "images are [N, H, W, C] rather than [N, C, H, W]")


class NpzInputOptions(Settings):
    path: Path = setting(..., "the NPZ or NPY file; relative to the suite's file")
    key: str = setting("x", "name of the array in an NPZ file")
    channels_last: bool = setting(False, "images are [N, H, W, C] rather than [N, C, H, W]")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an NPZ file, or the one of an NPY file under the name ``x``.

    Raises:
        DataError: unreadable, damaged, or holding Python objects.
    """
    check_file(path)
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                return {"x": _read_array(file, path.stat().st_size, path)}
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            # What the directory claims is an upper bound: no more of a member is ever unpacked.
            check_size(path, sum(member.file_size for member in members))
            found = {}
            for member in members:
                with archive.open(member) as file:
                    found[member.filename.removesuffix(".npy")] = _read_array(file, member.file_size, path)
            return found
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    # RuntimeError: it is encrypted; NotImplementedError: a way of packing that Python does not know.
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, NotImplementedError) as error:
        raise DataError(f"{path} is damaged: {error}") from error


def _read_array(file: IO[bytes], size: int, path: Path) -> np.ndarray:
    """An array in NumPy's format from a file of ``size`` bytes, whose header is looked at before anything is read."""
    shape, fortran, dtype = read_header(file, size, path)
    claimed = math.prod(shape) * dtype.itemsize
    check_size(path, claimed)
    content = file.read(claimed)
    if len(content) != claimed or file.read(1):
        raise DataError(f"{path} is damaged: an array has not the size that its header says")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def read_header(file: IO[bytes], size: int, path: Path) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether it is in Fortran order, and type of an array in NumPy's format in a file of ``size`` bytes.

    Raises:
        DataError: no such array, one of Python objects, or one that claims more than there is.
    """
    form = np.lib.format
    try:
        version = form.read_magic(file)
        read = {(1, 0): form.read_array_header_1_0, (2, 0): form.read_array_header_2_0}[version]
        shape, fortran, dtype = read(file)
    except Exception as error:  # the header is a Python literal: whatever its parser raises
        raise DataError(f"{path} is not an NPZ or NPY file of plain arrays") from error
    if dtype.hasobject:
        raise DataError(f"{path} holds Python objects, which are never unpickled; save arrays of numbers or text")
    claimed = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or claimed > size:
        raise DataError(f"{path} is damaged: an array claims {claimed:,} bytes, there are {size:,}")
    return shape, fortran, dtype


def as_inputs(values: np.ndarray, channels_last: bool, what: str) -> np.ndarray:
    """Inputs ``[N, ...]``: images ``[N, C, H, W]``, features ``[N, F]``; grey bytes become [0, 1]. As ``as_floats``."""
    if values.dtype.kind not in "fiub" or values.ndim == 0:
        raise DataError(f"{what}: inputs must be an array of numbers, got {values.dtype} of shape {values.shape}")
    if values.ndim in (1, 3):  # one feature, or one channel
        values = values[:, None]
    elif values.ndim == 4 and channels_last:
        values = values.transpose(0, 3, 1, 2)
    # Small bytes in a table of features are counts; in an array of images they are grey levels.
    return np.ascontiguousarray(unit_images(values) if values.ndim == 4 else as_floats(values))


def split(options: NpzOptions, data_root: Path, kind: Kind) -> Split:
    """One file with everything; parts that are not in it are split off by the fractions."""
    path = options.path
    arrays = read_arrays(path)
    separate = "x_train" in arrays
    parts = {"train": ("x_train", "y_train") if separate else ("x", "y")}
    parts |= {
        part: (f"x_{part}", f"y_{part}") for part in ("validation", "test") if {f"x_{part}", f"y_{part}"} & set(arrays)
    }
    for names in parts.values():
        for name in names:
            if name not in arrays:
                raise DataError(
                    f"{path} has no array {name!r}; it has {', '.join(sorted(arrays)) or 'none'}, and needs "
                    "x and y or x_train and y_train (x_validation, y_validation, x_test, y_test)"
                )
    examples: dict[str, Arrays] = {}
    classes: tuple[str, ...] = ()
    for part, (x_name, y_name) in parts.items():
        x = as_inputs(arrays[x_name], options.channels_last, f"{path}: {x_name}")
        y, classes = as_targets(arrays[y_name], kind, classes if part != "train" else None, f"{path}: {y_name}")
        if len(x) != len(y):
            raise DataError(f"{path}: {x_name} has {len(x)} examples, {y_name} has {len(y)}")
        if part != "train" and x.shape[1:] != examples["train"].x.shape[1:]:
            raise DataError(f"{path}: inputs {x_name} have another shape than {parts['train'][0]}")
        if part != "train" and y.shape[1:] != examples["train"].y.shape[1:]:
            raise DataError(f"{path}: targets {y_name} have another shape than {parts['train'][1]}")
        examples[part] = Arrays(x, y)
    train, validation, test = examples["train"], examples.get("validation"), examples.get("test")
    if validation is None:
        train, validation, test = split_by_fractions(train, options, str(path), test)
    elif test is None:
        # The two parts of a split by one fraction: what is set apart becomes the test set.
        train, test, _ = split_by_fractions(
            train, options.model_copy(update={"validation": options.test}), str(path), validation
        )
    return Split(train, validation, test, classes)


def as_targets(
    values: np.ndarray, kind: Kind, known: tuple[str, ...] | None, what: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class indices int64 ``[N]`` and the classes' names, or values ``[N, D]`` and none; ``known`` classes."""
    if kind == "regression":
        if values.dtype.kind not in "fiub":
            raise DataError(f"{what}: regression targets must be numbers, got {values.dtype}")
        if values.ndim not in (1, 2):
            raise DataError(f"{what}: regression targets must be [N] or [N, D], got {values.shape}")
        return as_floats(values.reshape(len(values), -1)), ()
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    whole = np.issubdtype(values.dtype, np.integer) or values.dtype.kind in "Ub"
    if values.ndim != 1 or not whole:
        raise DataError(
            f"{what}: class labels must be whole numbers or text [N], got {values.dtype} of shape {values.shape}; for "
            f"quantities {REGRESSION}"
        )
    labels = values.tolist()
    if values.dtype.kind == "U" and (missing := [row for row, label in enumerate(labels) if is_missing(label)]):
        raise DataError(
            f"{what}: example {missing[0]} has no label ({labels[missing[0]]!r}), nor have {len(missing) - 1} more; "
            "leave them out, or rename the class where it is one"
        )
    y, classes = encode_labels(labels, known)
    if (y < 0).any():
        row = int(np.argmin(y))
        raise DataError(f"{what}: class {values[row].item()!r} (example {row}) does not occur in the training examples")
    return y, classes


def inputs(options: NpzInputOptions, data_root: Path, split: Split) -> Inputs:
    """One array of an NPZ file, ``[N, ...]``."""
    return Inputs(read_input_array(options.path, options.key, options.channels_last))


def read_input_array(path: Path, key: str = "x", channels_last: bool = False) -> np.ndarray:
    """Inputs ``[N, ...]`` from an NPZ or NPY file."""
    arrays = read_arrays(path)
    if key not in arrays:
        raise DataError(f"{path} has no array {key!r}; it has {', '.join(sorted(arrays)) or 'none'}")
    return as_inputs(arrays[key], channels_last, f"{path}: {key}")


SOURCE = Source(
    name="npz",
    summary="your own arrays: NPZ with x and y, or x_train, y_train, x_test, y_test",
    SplitOptions=NpzOptions,
    split=split,
    InputOptions=NpzInputOptions,
    inputs=inputs,
)
