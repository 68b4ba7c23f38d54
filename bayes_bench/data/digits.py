"""scikit-learn's 1,797 handwritten digits, 8×8 pixels of 17 grey levels; they come with scikit-learn.

The test set of the UCI "Optical Recognition of Handwritten Digits" data: 32×32 bitmaps, whose black pixels
are counted in blocks of 4×4.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from bayes_bench.data.base import Arrays, Kind, Source, Split, split_indices
from bayes_bench.settings import Settings

SPLIT_SEED = 2019
TEST_SIZE, VALIDATION_SIZE = 797, 200  # 800 are left to train on


class DigitsOptions(Settings):
    """No options: the split is part of the task."""


def split(options: DigitsOptions, data_root: Path, kind: Kind) -> Split:
    """800 training, 200 validation and 797 test digits, ``[N, 1, 8, 8]`` in [0, 1], classes in proportion."""
    everything = load()
    test, validation, train = split_indices(
        len(everything), (TEST_SIZE, VALIDATION_SIZE), (SPLIT_SEED, "digits"), everything.y
    )
    classes = tuple(str(digit) for digit in range(10))
    return Split(everything[train], everything[validation], everything[test], classes)


def load() -> Arrays:
    """All 1,797 digits in scikit-learn's order."""
    package = importlib.util.find_spec("sklearn")
    folder = Path(package.origin).parent if package and package.origin else Path()
    table_file = folder / "datasets" / "data" / "digits.csv.gz"
    if table_file.is_file():  # what load_digits reads; importing scikit-learn takes a second, this does not
        table = np.loadtxt(table_file, delimiter=",", dtype=np.float32)
        pixels, labels = table[:, :-1], table[:, -1]
    else:
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
    return Arrays((pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8), labels.astype(np.int64))


SOURCE = Source(
    name="digits",
    summary="scikit-learn's 1,797 handwritten digits, 8×8; no download",
    kind="classification",
    SplitOptions=DigitsOptions,
    split=split,
)
