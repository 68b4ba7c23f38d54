"""Examples as people have them: arrays, datasets and loaders of PyTorch, made what fits and predictions take."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from bayes_bench.errors import DataError
from bayes_bench.posterior.examples import Examples, FitData, StoredInputs

IN_MEMORY = 2**30
"""Bytes of a dataset's inputs that are held in memory; more of them go into a temporary file."""
READ_TOGETHER = 64
"""Examples of a dataset that are read at once."""
KINDS = "FitData, Examples, a pair (x, y) of tensors or arrays, a torch Dataset of such pairs, or a DataLoader"


def as_fit_data(data: Any, validation: Any = None) -> FitData:
    """What a caller gave as a ``FitData``.

    A dataset is read once, from its first example to its last, and a loader's too: which examples make a batch follows
    from the fit's own seed, so that an interrupted fit goes on bit for bit.

    Args:
        data: one of ``KINDS``.
        validation: the same, or None; a ``FitData`` brings its own.

    Raises:
        DataError: it is none of them, or its examples are not pairs of inputs and targets.
    """
    if isinstance(data, FitData):
        if validation is not None:
            raise DataError("validation examples are given twice: in the FitData and beside it")
        return data
    return FitData(as_examples(data), None if validation is None else as_examples(validation))


def as_examples(data: Any) -> Examples:
    """One of ``KINDS`` but ``FitData`` as ``Examples``."""
    if isinstance(data, Examples):
        return data
    if isinstance(data, DataLoader):
        if isinstance(data.dataset, IterableDataset):
            raise DataError("a loader of an IterableDataset has no order to shuffle; give a map-style dataset")
        return _read(data.dataset, data.collate_fn, data.num_workers)
    if isinstance(data, TensorDataset):
        return _pair(data.tensors)
    if isinstance(data, IterableDataset) or (isinstance(data, Dataset) and not hasattr(data, "__len__")):
        raise DataError("an IterableDataset has no order to shuffle; give a map-style dataset")
    if isinstance(data, Dataset):
        return _read(data, torch.utils.data.default_collate, 0)
    if isinstance(data, tuple | list):
        return _pair(data)
    raise DataError(f"cannot fit to {type(data).__name__}; give {KINDS}")


def as_inputs(x: Any) -> Tensor:
    """Inputs ``[B, ...]``: a tensor or an array, or a dataset or loader, whose targets are passed over."""
    if isinstance(x, DataLoader):
        return torch.cat([_first(batch) for batch in x])
    if isinstance(x, Dataset):
        return torch.cat([_first(batch) for batch in DataLoader(x, READ_TOGETHER)])
    return tensor(x, "inputs")


def tensor(values: Any, what: str) -> Tensor:
    """A tensor of what may be an array or a list of numbers.

    Raises:
        DataError: it is neither.
    """
    if isinstance(values, Tensor):
        return values
    try:
        array = np.asarray(values)
        return torch.from_numpy(np.ascontiguousarray(array.astype(np.float32) if array.dtype == np.float64 else array))
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} must be a tensor or an array of numbers, got {type(values).__name__}") from error


def _pair(values: Any) -> Examples:
    if len(values) != 2:
        raise DataError(f"examples are a pair of inputs and targets, got {len(values)} parts")
    x, y = values
    return Examples(x if isinstance(x, StoredInputs) else tensor(x, "inputs"), _targets(tensor(y, "targets")))


def _targets(y: Tensor) -> Tensor:
    return y if y.is_floating_point() else y.long()


def _first(batch: Any) -> Tensor:
    return tensor(batch[0] if isinstance(batch, tuple | list) else batch, "inputs")


def _read(dataset: Any, collate: Any, workers: int) -> Examples:
    """All examples of a map-style dataset, each read once."""
    number = len(dataset)
    if number == 0:
        raise DataError("the dataset has no examples")
    loader = DataLoader(dataset, READ_TOGETHER, collate_fn=collate, num_workers=workers)
    batches: Iterator[Any] = iter(loader)
    pairs = (_batch(batch) for batch in batches)
    x, y = next(pairs)
    if not torch.equal(x[:1], _batch(collate([dataset[0]]))[0]):
        warnings.warn(
            "the dataset gives other inputs whenever it is read, as random transforms do: each example is taken as "
            "it is read first",
            UserWarning,
            stacklevel=4,
        )
    shape = (number, *x.shape[1:])
    stored = math.prod(shape) * x.element_size() > IN_MEMORY
    values: Any = _file(shape, x.numpy().dtype) if stored else np.empty(shape, x.numpy().dtype)
    targets = [y]
    values[: len(x)] = x.numpy()
    start = len(x)
    for x, y in pairs:
        if x.shape[1:] != shape[1:]:
            raise DataError(f"inputs of the dataset have several shapes: {list(shape[1:])} and {list(x.shape[1:])}")
        values[start : start + len(x)] = x.numpy()
        targets.append(y)
        start += len(x)
    y = _targets(torch.cat(targets))
    if not stored:
        return Examples(torch.from_numpy(values), y)
    return Examples(StoredInputs(torch.Size(shape), lambda rows: torch.from_numpy(np.array(values[rows]))), y)


def _batch(batch: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise DataError(f"the dataset's examples are not pairs of an input and a target, but {_described(batch)}")
    x, y = (tensor(part, what) for part, what in zip(batch, ("inputs", "targets"), strict=True))
    return x, y


def _described(batch: Any) -> str:
    if isinstance(batch, dict):
        return f"tables with {', '.join(map(str, batch))}; give the loader a collate_fn that makes pairs"
    return f"{len(batch)} parts" if isinstance(batch, tuple | list) else type(batch).__name__


def _file(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    # The file has no name by the time that anybody else could look for it; the array holds it open.
    with tempfile.NamedTemporaryFile(suffix=".inputs") as file:
        return np.memmap(Path(file.name), dtype, "w+", shape=shape)
