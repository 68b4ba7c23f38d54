"""Labelled examples: what methods train on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bayes_bench.errors import DataError
from bayes_bench.posterior.augmentation import Augmentation

BLOCK = 2**22
"""Values of inputs that are looked at together."""


@dataclass(frozen=True)
class StoredInputs:
    """Inputs that stay in a file: rows become tensors when they are asked for, and memory follows the rows.

    Attributes:
        shape: ``(N, ...)`` of all.
        read: numbers of rows, int64 ``[n]`` → these rows as networks see them, float32 ``[n, ...]`` on the CPU.
        device: where rows are put.
    """

    shape: torch.Size
    read: Callable[[np.ndarray], Tensor]
    device: torch.device | str = "cpu"

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Rows by a slice, or by their numbers in any shape: int64 ``[...]`` → ``[..., *shape[1:]]``."""
        if isinstance(rows, slice):
            return self.read(np.arange(*rows.indices(len(self)))).to(self.device)
        found = self.read(rows.cpu().numpy().reshape(-1)).to(self.device)
        return found.reshape(*rows.shape, *self.shape[1:])

    def to(self, device: torch.device | str) -> StoredInputs:
        return replace(self, device=device)


@dataclass(frozen=True)
class Examples:
    """Inputs ``x [N, ...]`` and targets ``y``: class indices ``[N]`` (int64) or values ``[N, D]`` (float).

    ``augment`` changes the images of every minibatch at random; ``x`` itself stays as it is.

    Training inputs may be ``StoredInputs``. ``minibatches`` and ``blocks`` serve a method with either; one that needs
    all inputs at once says so in ``_check_fit``, where ``in_memory`` is false.
    """

    x: Tensor | StoredInputs
    y: Tensor
    augment: Augmentation | None = None

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise DataError(f"{len(self.x)} inputs but {len(self.y)} targets; give one target per input")
        if len(self.x) == 0:
            raise DataError("no examples; give at least one")
        if self.augment is not None:
            self.augment.check(tuple(self.x.shape[1:]))
        # What is stored was looked at by its source; in blocks, as a mask of all of them would be large.
        if self.in_memory and not all(torch.isfinite(x).all() for x, _ in self.blocks()):
            raise DataError("the inputs contain NaN or infinity; remove or impute these values first")
        if self.y.is_floating_point() and not torch.isfinite(self.y).all():
            raise DataError("the targets contain NaN or infinity; remove these examples first")

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device | str) -> Examples:
        return replace(self, x=self.x.to(device), y=self.y.to(device))

    @property
    def in_memory(self) -> bool:
        """Whether the inputs are a tensor, not ``StoredInputs``."""
        return isinstance(self.x, Tensor)

    def inputs(self) -> Tensor:
        """All inputs as one tensor; where they are stored, that reads the whole file."""
        return self.x if isinstance(self.x, Tensor) else self.x[:]

    def blocks(self, rows: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The examples in their order as x ``[B, ...]`` and y ``[B, ...]``, ``rows`` at a time (default: some MB)."""
        step = rows or max(1, BLOCK // max(1, math.prod(self.x.shape[1:])))
        for start in range(0, len(self), step):
            yield self.x[start : start + step], self.y[start : start + step]

    def minibatches(
        self, batch_size: int, rng: torch.Generator, networks: int | None = None, *, independent: bool = False
    ) -> Minibatches:
        """Endless shuffled minibatches; with ``networks``, every network has a shuffling of its own.

        Each pass over the data is a fresh permutation, and a batch that reaches the end of one goes on in
        the next, so all batches have ``batch_size`` examples (also where that is more than N). With
        ``independent``, every example of every batch is instead drawn anew, with replacement: then the noise of
        gradients has no memory, as the theory of stochastic-gradient samplers assumes. ``rng`` is a CPU generator,
        so the order is the same on every device.

        Returns:
            An iterator over x ``[B, ...]`` and y ``[B, ...]``, or with ``networks`` x ``[S, B, ...]`` and y
            ``[S, B, ...]``. It belongs into the state that ``TrainingLoop.run`` is given.
        """
        return Minibatches(self, batch_size, rng, networks, independent)


class Minibatches(Iterator[tuple[Tensor, Tensor]]):
    """What ``Examples.minibatches`` gives; its state is the rest of the current permutation."""

    def __init__(
        self, examples: Examples, batch_size: int, rng: torch.Generator, networks: int | None, independent: bool
    ):
        self._examples, self._batch_size, self._rng = examples, batch_size, rng
        self._networks, self._independent = networks, independent
        self._queue = torch.empty(networks or 1, 0, dtype=torch.int64)

    def __next__(self) -> tuple[Tensor, Tensor]:
        rows, n = len(self._queue), len(self._examples)
        if self._independent:
            self._queue = torch.randint(n, (rows, self._batch_size), generator=self._rng)
        while self._queue.shape[1] < self._batch_size:
            order = torch.rand(rows, n, generator=self._rng).argsort(dim=1)
            self._queue = torch.cat([self._queue, order], dim=1)
        index = self._queue[:, : self._batch_size].to(self._examples.x.device)
        self._queue = self._queue[:, self._batch_size :]
        if self._networks is None:
            index = index[0]
        x, y = self._examples.x[index], self._examples.y[index]
        if self._examples.augment is not None:
            x = self._examples.augment(x, self._rng)
        return x, y

    def state_dict(self) -> dict[str, Tensor]:
        return {"queue": self._queue}

    def load_state_dict(self, state: Mapping[str, Tensor], /) -> None:
        self._queue = state["queue"]


@dataclass(frozen=True)
class FitData:
    """What a method may see: training examples, and validation examples for early stopping (or none)."""

    train: Examples
    validation: Examples | None = None

    def to(self, device: torch.device | str) -> FitData:
        return FitData(self.train.to(device), self.validation.to(device) if self.validation else None)
