"""New inputs for a fitted posterior, from the kinds of files that users' tasks are made of."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from bayes_bench.data import csv_file, image_folder, npz
from bayes_bench.errors import DataError


def read_inputs(
    path: Path,
    shape: tuple[int, ...],
    features: tuple[str, ...] = (),
    *,
    channels_last: bool = False,
    delimiter: str = ",",
) -> np.ndarray:
    """Inputs float32 ``[N, *shape]`` in raw units from a CSV, NPZ (array ``x``) or NPY file, or from images.

    Args:
        path: the file (its suffix says what it is), or a folder of images.
        shape: of one input; an array or a table with as many values per example is brought into it.
        features: columns that a CSV file must have; empty takes all its columns in their order.
        delimiter: between the cells of a CSV file.
        channels_last: images in an NPZ or NPY file are ``[N, H, W, C]``.

    Raises:
        DataError: missing, unreadable, another shape, or values that are not finite.
    """
    if not re.fullmatch(csv_file.DELIMITER, delimiter):
        raise DataError(f"{delimiter!r} cannot stand between the cells of a CSV file")
    suffix = path.suffix.lower()
    if not path.exists():
        raise DataError(f"cannot read {path}: no such file or folder")
    if suffix == ".csv":
        x = csv_file.read_features(path, shape, features, delimiter)
    elif suffix in (".npz", ".npy"):
        x = npz.read_input_array(path, channels_last=channels_last)
        if x.shape[1:] != shape and math.prod(x.shape[1:]) == math.prod(shape) and x.ndim == 2:
            x = x.reshape(-1, *shape)
    elif path.is_dir() or suffix in image_folder.SUFFIXES:
        x, _ = image_folder.read_image_inputs(path, shape)
    else:
        raise DataError(f"{path}: give a .csv, .npz or .npy file, an image, or a folder of images")
    if tuple(x.shape[1:]) != tuple(shape):
        raise DataError(f"{path} has inputs of shape {tuple(x.shape[1:])}, the task's have {tuple(shape)}")
    if len(x) == 0:
        raise DataError(f"{path} holds no inputs")
    if not np.isfinite(x).all():
        raise DataError(f"{path} contains NaN or infinity; remove or impute these values first")
    return x
