"""CPU threads for networks of a size. Imported by what runs jobs and by the scikit-learn estimators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits
from torch import nn

SMALL_NETWORK = 10_000
"""Parameters below which one thread is best: more were measured to gain nothing, and on a machine that is busy
otherwise threads that wait for each other at every tiny step made fits ten times slower."""


def is_small(network: nn.Module) -> bool:
    """Whether one thread serves this network best."""
    return sum(p.numel() for p in network.parameters()) < SMALL_NETWORK


@contextmanager
def limited_threads(number: int) -> Iterator[None]:
    """CPU threads of PyTorch and of NumPy's linear algebra; both are put back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        with threadpool_limits(number, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)
