"""MNIST in torchvision's layout: ``MNIST/raw`` below the data root, idx files, gzipped or not.

Missing files are downloaded through torchvision, which is imported only then.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import field_validator

from bayes_bench.data import idx
from bayes_bench.data.base import Arrays, Kind, Source, Split, Stream, unit_images
from bayes_bench.errors import DataError, UsageError
from bayes_bench.settings import Settings, setting

SUBSET_SEED = 5000
FOLDER = Path("MNIST") / "raw"
# SHA-256 of the unzipped files.
FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


class MnistOptions(Settings):
    train_per_class: int | None = setting(
        None,
        "a fixed class-balanced training subset of so many images per class; not given: all that remain",
        ge=1,
    )
    validation: int = setting(5000, "validation images, equally many per class, taken from the training file", ge=10)

    @field_validator("validation")
    @classmethod
    def _balanced(cls, value: int) -> int:
        if value % 10:
            raise ValueError("must be a multiple of 10, so that every class gets the same number")
        return value


def split(options: MnistOptions, data_root: Path, kind: Kind) -> Split:
    """Images ``[N, 1, 28, 28]`` in [0, 1]; the test set is MNIST's own 10,000.

    The training subset comes first in the fixed order, validation images right after it, so a subset never
    meets its validation set.

    Raises:
        DataError: files are missing and cannot be downloaded, are damaged, or are not MNIST's.
        UsageError: more images asked for than a class has.
    """
    files = load_files(data_root)
    images, labels = files["train-images-idx3-ubyte"], files["train-labels-idx1-ubyte"]
    train, validation = _balanced_subset(labels, options)

    def arrays(x: np.ndarray, y: np.ndarray) -> Arrays:
        return Arrays(unit_images(x)[:, None], y.astype(np.int64))

    return Split(
        arrays(images[train], labels[train]),
        arrays(images[validation], labels[validation]),
        arrays(files["t10k-images-idx3-ubyte"], files["t10k-labels-idx1-ubyte"]),
        tuple(str(digit) for digit in range(10)),
    )


def _balanced_subset(labels: np.ndarray, options: MnistOptions) -> tuple[np.ndarray, np.ndarray]:
    order = Stream((SUBSET_SEED, "mnist")).permutation(len(labels))
    held_out = options.validation // 10
    train, validation = [], []
    for digit in range(10):
        members = order[labels[order] == digit]
        first = len(members) - held_out if options.train_per_class is None else options.train_per_class
        if first < 1 or first + held_out > len(members):
            raise UsageError(
                f"mnist: {options.train_per_class or 1} training and {held_out} validation images "
                f"of the digit {digit} were asked for, but the training file has {len(members)}"
            )
        train.append(members[:first])
        validation.append(members[first : first + held_out])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(validation))


def load_files(data_root: Path) -> dict[str, np.ndarray]:
    """MNIST's four files by name: images uint8 ``[N, 28, 28]``, labels uint8 ``[N]``; checked."""
    folder = data_root / FOLDER
    missing = [name for name in FILES if idx.find(folder, name) is None]
    if missing:
        looked = f"MNIST is missing: {', '.join(missing)} not found in {folder} (nor as .gz)"
        get = (
            "get the four idx files where there is internet ("
            "python -c \"import torchvision; torchvision.datasets.MNIST('DIR', download=True)\") "
            "and point --data-root or BAYES_BENCH_DATA to DIR"
        )
        try:
            download(data_root)
        except (OSError, RuntimeError) as error:  # RuntimeError is torchvision's for all mirrors failing
            reason = str(error).strip().splitlines()
            raise DataError(
                f"{looked}; the download failed ({reason[-1] if reason else 'no reason'}); {get}"
            ) from error
        if still := [name for name in FILES if idx.find(folder, name) is None]:
            raise DataError(f"{looked}; the download left {', '.join(still)} missing; {get}")
    contents = {}
    for name, sha256 in FILES.items():
        path = idx.find(folder, name)
        assert path is not None
        file = idx.read(path)
        if file.sha256 != sha256:
            raise DataError(f"{path} is not MNIST's file (SHA-256 {file.sha256[:12]}…, expected {sha256[:12]}…)")
        contents[name] = file.values
    return contents


def download(data_root: Path) -> None:
    """Fetch MNIST with torchvision, one process at a time; what is there already is not fetched again.

    Raises:
        OSError: no network, or the folder cannot be written.
        RuntimeError: every mirror failed.
    """
    from filelock import FileLock
    from torchvision.datasets import MNIST

    data_root.mkdir(parents=True, exist_ok=True)
    with FileLock(data_root / ".mnist.lock"):
        MNIST(str(data_root), download=True)


SOURCE = Source(
    name="mnist",
    summary="MNIST, 28×28 digits, or a fixed class-balanced subset; downloaded where missing",
    kind="classification",
    SplitOptions=MnistOptions,
    split=split,
)
