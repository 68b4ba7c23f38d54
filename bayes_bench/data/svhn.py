"""SVHN: 32×32 colour photographs of house numbers, one digit in the middle of each; MATLAB files.

``svhn/test_32x32.mat`` (and ``train_32x32.mat``) below the data root, or directly in it, where torchvision puts them.
A file is decoded only after its checksum is the published one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from bayes_bench.data.base import Arrays, Inputs, Kind, Source, Split, split_indices, unit_images
from bayes_bench.data.files import Files, Found, check_digest, located, torchvision_remedy
from bayes_bench.errors import DataError
from bayes_bench.settings import Settings, setting

SPLIT_SEED = 5000
FOLDER = Path("svhn")
# MD5 of the files, as torchvision has them.
FILES = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}
Part = Literal["train", "test"]


class SvhnOptions(Settings):
    validation: int = setting(
        5000, "validation images, classes in proportion, taken from the training file", ge=10, le=50_000
    )


class SvhnInputOptions(Settings):
    """No options: all test images."""


def split(options: SvhnOptions, data_root: Path, kind: Kind) -> Split:
    """Images ``[N, 3, 32, 32]`` in [0, 1]; the test set is the published one of 26,032.

    Raises:
        DataError: files are missing and cannot be downloaded, or are not SVHN's.
    """
    images, labels = load(data_root, "train")
    validation, train = split_indices(len(labels), (options.validation,), (SPLIT_SEED, "svhn"), labels)
    test_images, test_labels = load(data_root, "test")
    return Split(
        Arrays(unit_images(images[train]), labels[train]),
        Arrays(unit_images(images[validation]), labels[validation]),
        Arrays(unit_images(test_images), test_labels),
        tuple(str(digit) for digit in range(10)),
    )


def inputs(options: SvhnInputOptions, data_root: Path, split: Split) -> Inputs:
    """The test images ``[N, 3, 32, 32]`` in [0, 1].

    Raises:
        DataError: as ``split``.
    """
    return Inputs(unit_images(load(data_root, "test")[0]))


def load(data_root: Path, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 ``[N, 3, 32, 32]`` and labels int64 ``[N]`` of one file; downloaded where it is missing."""
    name = f"{part}_32x32.mat"
    if _find(data_root, name) is None:
        _files(name).provide(data_root)
    path = _find(data_root, name)
    assert path is not None
    return read(path)


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a file, once its checksum is the published one; the label 10 stands for the digit 0.

    Raises:
        DataError: unreadable, or another file.
    """
    check_digest(path, "SVHN", FILES[path.name])
    from scipy.io import loadmat

    try:
        content = loadmat(path)
        images, labels = content["X"].transpose(3, 2, 0, 1), content["y"].astype(np.int64).reshape(-1) % 10
    except Exception as error:  # decoders raise what they like
        raise DataError(f"cannot read {path}: {error}") from error
    return images, labels


def _find(data_root: Path, name: str) -> Path | None:
    for path in (data_root / FOLDER / name, data_root / name):
        if path.is_file():
            return path
    return None


def _look(data_root: Path, names: tuple[str, ...]) -> Found:
    return located({name: _find(data_root, name) for name in names})


def check(data_root: Path) -> str:
    """Read what there is, as ``Files.check``."""
    for path in _look(data_root, tuple(FILES)).present:
        check_digest(path, "SVHN", FILES[path.name])
    return "MD5 as published"


def _fetch(data_root: Path, names: tuple[str, ...]) -> None:
    """Download with torchvision, one process at a time, as ``Files.fetch``."""
    from filelock import FileLock
    from torchvision.datasets import SVHN

    folder = data_root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(data_root / ".svhn.lock"):
        for name in names:
            if _find(data_root, name) is None:
                SVHN(str(folder), split=name.partition("_")[0], download=True)


def _files(*names: str) -> Files:
    return Files(
        title="SVHN",
        folder=FOLDER,
        look=lambda data_root: _look(data_root, names),
        check=check,
        fetch=lambda data_root: _fetch(data_root, names),
        remedy=torchvision_remedy(
            *(f"SVHN('DIR/svhn', '{name.partition('_')[0]}', download=True)" for name in names),
        ),
        licence="Netzer and others, from Google Street View, for non-commercial use only",
    )


SOURCE = Source(
    name="svhn",
    summary="SVHN, colour photographs of house numbers, 32×32; downloaded where missing",
    kind="classification",
    SplitOptions=SvhnOptions,
    split=split,
    InputOptions=SvhnInputOptions,
    inputs=inputs,
    files=_files(*FILES),
)
