"""What every data source gives, and what sources share: splits by a fixed seed, a stable random stream."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bayes_bench.data.columns import Preparation
from bayes_bench.data.files import Files
from bayes_bench.data.stored import StoredRows
from bayes_bench.errors import DataError, UsageError
from bayes_bench.host import machine
from bayes_bench.settings import Settings, setting

Kind = Literal["classification", "regression"]
REGRESSION = "give the task a likelihood of a regression: likelihood = { name = 'gaussian' }"


@dataclass(frozen=True)
class Arrays:
    """Inputs ``x [N, ...]`` in raw units; targets ``y``, int64 ``[N]`` or values ``[N, D]``.

    Inputs and values are float32 where that holds all that their source says (grey levels, single precision), else
    float64: they are centred and scaled in float64, and become float32 last. Training inputs may stay in a file: then
    ``x`` is ``StoredRows``.
    """

    x: np.ndarray | StoredRows
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: np.ndarray) -> Arrays:
        return Arrays(self.x[index], self.y[index])

    def inputs(self) -> np.ndarray:
        """All of ``x``, in memory."""
        return self.x if isinstance(self.x, np.ndarray) else self.x[:]


@dataclass(frozen=True)
class Split:
    """Training, validation and test examples; images are ``[N, C, H, W]`` in [0, 1], features ``[N, F]``.

    Attributes:
        classes: names of the classes in the order of their indices; empty for regression.
        notes: what a reader of the report must know about the data.
        features: names of the columns that ``x`` was made of; empty where they have no names.
        preparation: how these columns became ``x``, where they are not taken as they are.
    """

    train: Arrays
    validation: Arrays
    test: Arrays
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    preparation: Preparation | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.train.x.shape[1:])

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the values of an input, where they have names."""
        return self.preparation.names if self.preparation else self.features


@dataclass(frozen=True)
class Inputs:
    """An out-of-distribution set: inputs ``[N, ...]`` of the types of ``Arrays``, in the raw units of the split."""

    x: np.ndarray
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """One data source: what it accepts, and how it is read.

    Attributes:
        kind: what its targets are, or None where options or the likelihood decide.
        split: ``(options, data_root, kind) -> Split``, or None where the source only gives inputs.
        inputs: ``(options, data_root, split) -> Inputs``, or None where it has no out-of-distribution set.
        files: of a benchmark set, what ``bayes-bench data`` looks for, checks and fetches.
    """

    name: str
    summary: str
    kind: Kind | None = None
    SplitOptions: type[Settings] = Settings
    split: Callable[[Any, Path, Kind], Split] | None = None
    InputOptions: type[Settings] = Settings
    inputs: Callable[[Any, Path, Split], Inputs] | None = None
    files: Files | None = None


class FractionOptions(Settings):
    """How a user's own examples are split; the seed belongs to the task, never to the training."""

    validation: float = setting(0.15, "fraction of the examples set apart for validation", gt=0, lt=1)
    test: float = setting(0.2, "fraction set apart for testing, where no test data are named", gt=0, lt=1)
    split_seed: int = setting(0, "seed of the split", ge=0)
    kind: Kind | None = setting(None, "what the targets are; where not given, the likelihood says it")


def check_size(path: Path, size: int) -> None:
    """Refuse data of more bytes in memory than half of the machine has; small files can hold or claim any number.

    Raises:
        DataError: with the sizes.
    """
    there = machine.memory_bytes()
    if there is not None and size > there / 2:
        raise DataError(
            f"{path} needs {machine.size_in_words(min(size, 2**80))} in memory; at most half of this machine's "
            f"{machine.size_in_words(there)} may be used"
        )


# ---------------------------------------------------------------------------------------------------------
# NumPy promises the raw stream of a bit generator for good, but not what Generator's methods make of it.
# Splits and synthetic sets must stay the same for years, so they are drawn from the raw stream.


@dataclass
class Stream:
    """A random stream that gives the same numbers with every version of NumPy.

    Several seeds (numbers or words) name independent streams.
    """

    seeds: Sequence[int | str]
    _bits: np.random.PCG64 = field(init=False, repr=False)

    def __post_init__(self) -> None:
        numbers = [s if isinstance(s, int) else int.from_bytes(s.encode(), "little") for s in self.seeds]
        self._bits = np.random.PCG64(np.random.SeedSequence(numbers))

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """Uniform on [low, high), float64 of the given shape."""
        raw = np.asarray(self._bits.random_raw(int(np.prod(shape, dtype=np.int64))), dtype=np.uint64)
        unit: np.ndarray = (raw >> np.uint64(11)).reshape(shape) * 2.0**-53
        return low + (high - low) * unit

    def normal(self, *shape: int) -> np.ndarray:
        """Standard normal (Box–Muller), float64 of the given shape."""
        radius = np.sqrt(-2.0 * np.log1p(-self.uniform(*shape)))
        values: np.ndarray = radius * np.cos(2.0 * np.pi * self.uniform(*shape))
        return values

    def permutation(self, n: int) -> np.ndarray:
        """A permutation of 0 … n−1, int64."""
        return np.argsort(self._bits.random_raw(n), kind="stable")

    def integers(self, high: int, *shape: int) -> np.ndarray:
        """Uniform on 0 … high−1, int64 of the given shape."""
        return (self.uniform(*shape) * high).astype(np.int64)


def split_indices(
    n: int, sizes: Sequence[int], seeds: Sequence[int | str], y: np.ndarray | None = None
) -> list[np.ndarray]:
    """Disjoint sorted index sets of the given sizes, and last the indices that remain.

    With class indices ``y [N]``, every set has the classes in the proportions of the whole, but for rounding.

    Raises:
        DataError: the sizes leave nothing for the last set.
    """
    if min(sizes) < 1 or sum(sizes) >= n:
        wanted = " + ".join(str(size) for size in sizes)
        raise DataError(f"{n} examples cannot be split into {wanted} and a rest; give more examples")
    order = Stream(seeds).permutation(n)
    if y is not None:
        position = np.empty(n)
        for label in np.unique(y):
            members = np.flatnonzero(y[order] == label)
            position[members] = (np.arange(len(members)) + 0.5) / len(members)
        order = order[np.argsort(position, kind="stable")]
    return [np.sort(part) for part in np.split(order, np.cumsum(sizes))]


def split_by_fractions(
    data: Arrays, options: FractionOptions, name: str, test: Arrays | None = None
) -> tuple[Arrays, Arrays, Arrays]:
    """Training, validation and test examples of a user's data; class labels are kept in proportion.

    With ``test`` given, only validation examples are split off; ``name`` is for error messages.

    Raises:
        DataError: too few examples, or a class has none left for training.
    """
    y = data.y if data.y.ndim == 1 else None
    fractions = (options.validation,) if test is not None else (options.validation, options.test)
    if sum(fractions) >= 1:
        raise DataError(f"{name}: validation and test take {sum(fractions):g} of the data; leave some to train")
    n = len(data)
    sizes = [max(1, round(fraction * n)) for fraction in fractions]
    try:
        parts = split_indices(n, sizes, (options.split_seed, "user-data"), y)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    train, validation = data[parts[-1]], data[parts[0]]
    if y is not None and (lost := set(np.unique(y)) - set(np.unique(train.y))):
        raise DataError(
            f"{name}: class number {min(lost)} has too few examples to keep one for training; give more, leave it out, "
            f"or, where the targets are quantities, {REGRESSION}"
        )
    return train, validation, test if test is not None else data[parts[1]]


def split_per_class(
    members: Mapping[str, np.ndarray], train: int | None, validation: int, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of training and validation examples, equally many validation examples of every class.

    Args:
        members: of every class the indices in a fixed order: training examples come first, validation ones right after
            them, so that a training subset never meets its validation set.
        train: training examples of every class; None: all that validation leaves.
        validation: validation examples of every class.
        name: of the source, for the message.

    Raises:
        UsageError: more examples asked for than a class has.
    """
    chosen, held_out = [], []
    for label, indices in members.items():
        first = len(indices) - validation if train is None else train
        if first < 1 or first + validation > len(indices):
            raise UsageError(
                f"{name}: {train or 1} training and {validation} validation images of the class {label!r} were asked "
                f"for, but the training files have {len(indices):,}"
            )
        chosen.append(indices[:first])
        held_out.append(indices[first : first + validation])
    return np.sort(np.concatenate(chosen)), np.sort(np.concatenate(held_out))


MISSING = frozenset(("", "?", "na", "n/a", "nan", "null", "none"))
"""Cells that say, in whatever case, that there is no value."""
WHOLE = re.compile(r"-?[0-9]{1,4000}")


def is_missing(cell: str) -> bool:
    """Whether a cell of a table says that there is no value."""
    return cell.strip().lower() in MISSING


def encode_labels(labels: Sequence[Any], known: tuple[str, ...] | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class indices int64 ``[N]`` and the names of the classes; labels may be any text.

    Classes are sorted, as numbers where all labels are whole numbers in the digits 0 to 9, else as text. With
    ``known``, the classes of the training data, a label that is none of them gets −1.
    """
    texts = [str(label) for label in labels]
    if known is None:
        names = set(texts)
        numeric = all(WHOLE.fullmatch(name) for name in names)
        known = tuple(sorted(names, key=(lambda name: (int(name), name)) if numeric else None))
    index = {name: i for i, name in enumerate(known)}
    return np.array([index.get(text, -1) for text in texts], dtype=np.int64), known


SINGLE = (np.bool_, np.float16, np.float32, np.int8, np.uint8, np.int16, np.uint16)
"""Types all of whose values float32 holds exactly."""


def as_floats(x: np.ndarray) -> np.ndarray:
    """Numbers of any type as float32 where that holds them exactly, else as float64 (beyond its range infinity)."""
    with np.errstate(over="ignore"):
        return x.astype(np.float32 if x.dtype.newbyteorder("=") in SINGLE else np.float64, copy=False)


def unit_images(x: np.ndarray) -> np.ndarray:
    """Bytes become float32 in [0, 1]; anything else only changes its type, as ``as_floats``."""
    if x.dtype != np.uint8:
        return as_floats(x)
    values = x.astype(np.float32)
    values /= np.float32(255)
    return values
