"""New inputs for a fitted posterior, from the kinds of files that users' tasks are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bayes_bench.data import csv_file, image_folder, npz
from bayes_bench.data.columns import Preparation
from bayes_bench.data.table import Layout
from bayes_bench.errors import DataError

TABLES = (".csv", ".tsv", ".txt", ".data", ".dat")


@dataclass(frozen=True)
class Reading:
    """How a task's own data were read, which holds for new ones too.

    Attributes:
        features: columns that a table must have; empty takes all its columns in their order.
        layout: of a table.
        preparation: what became of its columns.
        channels_last: images in an NPZ or NPY file are ``[N, H, W, C]``.
        ground: what shows where an image is transparent.
    """

    features: tuple[str, ...] = ()
    layout: Layout = field(default_factory=Layout)
    preparation: Preparation | None = None
    channels_last: bool = False
    ground: image_folder.Ground = "white"


@dataclass(frozen=True)
class NewInputs:
    """Inputs ``[N, *shape]`` in raw units.

    Attributes:
        files: of images the file of each row, by its path within the folder; else empty.
        notes: what whoever reads the predictions must know.
    """

    x: np.ndarray
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_inputs(path: Path, shape: tuple[int, ...], reading: Reading | None = None) -> NewInputs:
    """Inputs from a table (.csv, .tsv, .txt, .data), an NPZ (array ``x``) or NPY file, or from images.

    Args:
        path: the file (its suffix says what it is), or a folder of images.
        shape: of one input; an array or a table with as many values per example is brought into it.

    Raises:
        DataError: missing, unreadable, another shape, or values that are not finite.
    """
    reading = reading or Reading()
    suffix = path.suffix.lower()
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    if not path.exists():
        raise DataError(f"cannot read {path}: no such file or folder")
    if suffix in TABLES and not path.is_dir():
        found = csv_file.read_features(path, shape, reading.features, reading.layout, reading.preparation)
        x, notes = found.x, found.notes
    elif suffix in (".npz", ".npy"):
        if reading.preparation is not None:
            raise DataError(f"{path}: the task's inputs are made of a table's columns; give such a table")
        x = npz.read_input_array(path, channels_last=reading.channels_last)
        if x.shape[1:] != shape and math.prod(x.shape[1:]) == math.prod(shape) and x.ndim == 2:
            x = x.reshape(-1, *shape)
    elif path.is_dir() or suffix in image_folder.SUFFIXES:
        images, files = image_folder.read_image_inputs(path, shape, reading.ground)
        x, notes = images.x, images.notes
    else:
        raise DataError(
            f"{path}: give a .csv, .npz or .npy file, an image, or a folder of images (a table may also end in "
            f"{', '.join(TABLES[1:])})"
        )
    if tuple(x.shape[1:]) != tuple(shape):
        raise DataError(f"{path} has inputs of shape {tuple(x.shape[1:])}, the task's have {tuple(shape)}")
    if len(x) == 0:
        raise DataError(f"{path} holds no inputs")
    if not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(1))[0])
        raise DataError(f"{path} contains NaN or infinity, first in row {row}; remove or impute these values first")
    return NewInputs(x, files, notes)
