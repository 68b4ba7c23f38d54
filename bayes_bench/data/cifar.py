"""CIFAR-10 in torchvision's layout: ``cifar-10-batches-py`` below the data root; all classes or some of them.

The set is published as pickled batches, which may hold any code. They are read, by torchvision, only after their
SHA-256 is that of the published files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, field_validator

from bayes_bench.data.base import Arrays, Inputs, Kind, Source, Split, Stream, split_per_class, unit_images
from bayes_bench.data.files import Files, Found, check_digest, download, located, torchvision_remedy
from bayes_bench.errors import DataError
from bayes_bench.settings import Settings, setting

SPLIT_SEED = 5000
FOLDER = Path("cifar-10-batches-py")
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FILES = {
    "batches.meta": "f962466ef690d46b226450fb9aadc74ba4bc64a76aa526b5827fe4bc5c7125cb",
    "data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
    "data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
    "data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
    "data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
    "data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
    "test_batch": "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
}

Class = Annotated[int, Field(ge=0, le=9)]


class CifarInputOptions(Settings):
    classes: tuple[Class, ...] | None = setting(
        None, "numbers of the classes, 0 airplane to 9 truck, in the order of the labels; not given: all ten"
    )

    @field_validator("classes")
    @classmethod
    def _distinct(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and len(set(value)) < max(1, len(value)):
            raise ValueError("give every class once, and at least one")
        return value


class CifarOptions(CifarInputOptions):
    train_per_class: int | None = setting(
        None, "a fixed training subset of so many images per class; not given: all that remain", ge=1
    )
    validation_per_class: int = setting(500, "validation images per class, taken from the training files", ge=1)


def split(options: CifarOptions, data_root: Path, kind: Kind) -> Split:
    """Images ``[N, 3, 32, 32]`` in [0, 1] of the chosen classes; the test set is CIFAR-10's own.

    A class has the same validation images whichever classes are beside it.

    Raises:
        DataError: files are missing and cannot be downloaded, or are not CIFAR-10's.
        UsageError: more images asked for than a class has.
    """
    classes = tuple(range(10)) if options.classes is None else options.classes
    _provide(data_root)
    images, labels = _read(data_root, train=True)
    test_images, test_labels = _read(data_root, train=False)

    def members(number: int) -> np.ndarray:
        found: np.ndarray = np.flatnonzero(labels == number)
        order = Stream((SPLIT_SEED, "cifar10", number)).permutation(len(found))
        return found.take(order)

    train, validation = split_per_class(
        {CLASSES[number]: members(number) for number in classes},
        options.train_per_class,
        options.validation_per_class,
        "cifar10",
    )
    new_label = np.full(10, -1)
    new_label[list(classes)] = np.arange(len(classes))

    def arrays(x: np.ndarray, y: np.ndarray, index: np.ndarray) -> Arrays:
        return Arrays(unit_images(x[index]), new_label[y[index]].astype(np.int64))

    return Split(
        arrays(images, labels, train),
        arrays(images, labels, validation),
        arrays(test_images, test_labels, np.flatnonzero(np.isin(test_labels, classes))),
        tuple(CLASSES[number] for number in classes),
    )


def inputs(options: CifarInputOptions, data_root: Path, split: Split) -> Inputs:
    """The test images ``[N, 3, 32, 32]`` of the chosen classes, in [0, 1].

    Raises:
        DataError: as ``split``.
    """
    _provide(data_root)
    images, labels = _read(data_root, train=False)
    chosen = slice(None) if options.classes is None else np.isin(labels, options.classes)
    return Inputs(unit_images(images[chosen]))


def _provide(data_root: Path) -> None:
    """See to it that all files are there, and are the published ones."""
    DATA_FILES.provide(data_root)
    check_all(data_root)


def _read(data_root: Path, *, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 ``[N, 3, 32, 32]`` and labels ``[N]`` of the training or the test files, after ``_provide``."""
    from torchvision.datasets import CIFAR10

    try:
        batches = CIFAR10(str(data_root), train=train)
    except RuntimeError as error:  # its own checksums
        raise DataError(f"torchvision refuses the files in {data_root / FOLDER}: {error}") from error
    return batches.data.transpose(0, 3, 1, 2), np.asarray(batches.targets)


def check_all(data_root: Path) -> str:
    """Read what there is, as ``Files.check``."""
    for path in _look(data_root).present:
        check_digest(path, "CIFAR-10", FILES[path.name])
    return "SHA-256 as published"


def _look(data_root: Path) -> Found:
    paths = {name: data_root / FOLDER / name for name in FILES}
    return located({name: path if path.exists() else None for name, path in paths.items()})


DATA_FILES = Files(
    title="CIFAR-10",
    folder=FOLDER,
    look=_look,
    check=check_all,
    fetch=lambda data_root: download("CIFAR10", "cifar10", data_root),
    remedy=torchvision_remedy("CIFAR10('DIR', download=True)"),
    licence="Krizhevsky, from the 80 Million Tiny Images; no licence is stated",
)
SOURCE = Source(
    name="cifar10",
    summary="CIFAR-10, colour images of 32×32 in ten classes, or some of its classes; downloaded where missing",
    kind="classification",
    SplitOptions=CifarOptions,
    split=split,
    InputOptions=CifarInputOptions,
    inputs=inputs,
    files=DATA_FILES,
)
