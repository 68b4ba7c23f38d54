"""Labelled examples in memory: what methods train on. Imported by every method; imports nothing of ours but errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bayes_bench.errors import DataError


@dataclass(frozen=True)
class Examples:
    """Inputs ``x [N, ...]`` and targets ``y``: class indices ``[N]`` (int64) or values ``[N, D]`` (float)."""

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise DataError(f"{len(self.x)} inputs but {len(self.y)} targets; give one target per input")
        if len(self.x) == 0:
            raise DataError("no examples; give at least one")
        if not torch.isfinite(self.x).all():
            raise DataError("the inputs contain NaN or infinity; remove or impute these values first")
        if self.y.is_floating_point() and not torch.isfinite(self.y).all():
            raise DataError("the targets contain NaN or infinity; remove these examples first")

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device | str) -> Examples:
        return Examples(self.x.to(device), self.y.to(device))

    def minibatches(
        self, batch_size: int, rng: torch.Generator, networks: int | None = None, *, independent: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless shuffled minibatches; with ``networks``, every network has a shuffling of its own.

        Each pass over the data is a fresh permutation, and a batch that reaches the end of one goes on in
        the next, so all batches have ``batch_size`` examples (also where that is more than N). With
        ``independent``, every example of every batch is instead drawn anew, with replacement: then the noise of
        gradients has no memory, as the theory of stochastic-gradient samplers assumes. ``rng`` is a CPU generator,
        so the order is the same on every device.

        Yields:
            x ``[B, ...]`` and y ``[B, ...]``, or with ``networks`` x ``[S, B, ...]`` and y ``[S, B, ...]``.
        """
        rows = networks or 1
        n = len(self)
        queue = torch.empty(rows, 0, dtype=torch.int64)
        while True:
            if independent:
                queue = torch.randint(n, (rows, batch_size), generator=rng)
            while queue.shape[1] < batch_size:
                order = torch.rand(rows, n, generator=rng).argsort(dim=1)
                queue = torch.cat([queue, order], dim=1)
            index, queue = queue[:, :batch_size].to(self.x.device), queue[:, batch_size:]
            if networks is None:
                index = index[0]
            yield self.x[index], self.y[index]


@dataclass(frozen=True)
class FitData:
    """What a method may see: training examples, and validation examples for early stopping (or none)."""

    train: Examples
    validation: Examples | None = None

    def to(self, device: torch.device | str) -> FitData:
        return FitData(self.train.to(device), self.validation.to(device) if self.validation else None)
