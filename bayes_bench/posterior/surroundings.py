"""Threads, determinism and precision while networks are trained; all are put back afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

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


@contextmanager
def settled(device: torch.device, precision: str = "float32") -> Iterator[None]:
    """Determinism and precision for a job; the caller's settings are put back afterwards.

    So are others that a method may have changed, and that no other job must notice: the current folder, the default
    type of tensors, and whether gradients are recorded.
    """
    folder, dtype = _current_folder(), torch.get_default_dtype()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    backends: Any = torch.backends
    rounding = [backends.cuda.matmul, backends.cudnn.conv] if device.type == "cuda" else []
    before = [place.fp32_precision for place in rounding]
    for place in rounding:
        place.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)
        if folder is not None:
            os.chdir(folder)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        for place, value in zip(rounding, before, strict=True):
            place.fp32_precision = value


def _current_folder() -> Path | None:
    try:
        return Path.cwd()
    except OSError:  # it has been removed; whoever uses absolute paths does not mind
        return None


@cache
def warm_up() -> None:
    """PyTorch imports its compiler at the first optimiser step, a second that no job should pay for."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter])
    parameter.square().sum().backward()
    optimizer.step()
