"""A posterior as a file: what it says of itself, and reading one that may come from anybody."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from safetensors import safe_open
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bayes_bench.errors import DataError

METADATA = "bayes_bench"
SLACK, GROWTH = 2**30, 64
"""Bytes that a method may create while it takes over a stored state, and how many for each of the state's own."""


def read_note(path: str | os.PathLike[str]) -> Any:
    """The note that ``WeightPosterior.save`` was given for this file, or None.

    Raises:
        DataError: the file is damaged.
    """
    with opened(path) as (about, _):
        return about.get("note")


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[dict[str, Any], Any]]:
    """What a stored posterior says of itself, and its file; whatever fails inside is a damaged file."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            if not (isinstance(about, dict) and isinstance(about.get("config", {}), dict)):
                raise ValueError("it does not say what it is")
            yield about, file
    except Exception as error:  # safetensors raises its own type, OSError or ValueError
        raise DataError(f"cannot read the posterior {path}: {error}") from error


class BoundedMemory(TorchDispatchMode):
    """Refuses to create more than so many bytes of tensors, before anything is written to them."""

    def __init__(self, limit: int):
        super().__init__()  # type: ignore[no-untyped-call]
        self._left = limit

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, tuple | list) else (made,):
            if isinstance(value, Tensor):
                self._left -= value.nbytes
        if self._left < 0:
            raise MemoryError("its settings ask for far more memory than it holds")
        return made
