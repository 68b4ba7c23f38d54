"""A posterior as a file: what it says of itself, and reading one that may come from anybody."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bayes_bench.errors import DataError, UsageError
from bayes_bench.host.files import replacing
from bayes_bench.posterior.likelihood import Categorical, Gaussian, HeteroscedasticGaussian, Likelihood

METADATA = "bayes_bench"
LIKELIHOODS: dict[str, tuple[Any, dict[str, str]]] = {
    "Categorical": (Categorical, {"output_width": "num_classes"}),
    "Gaussian": (
        Gaussian,
        {"noise_std": "noise_std", "target_width": "dimensions", "initial_std": "initial_std"},
    ),
    "HeteroscedasticGaussian": (
        HeteroscedasticGaussian,
        {"dimensions": "dimensions", "scale": "scale", "floor": "floor"},
    ),
}
"""By name: the class, and its attributes with the arguments that they were."""
SLACK, GROWTH = 2**30, 64
"""Bytes that a method may create while it takes over a stored state, and how many for each of the state's own."""


def write_posterior(path: Path, state: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write named tensors and what the file says of itself, as JSON; atomic."""
    # Clones: safetensors refuses tensors that share memory, as the views of a stacked tensor do.
    tensors = {name: value.clone().contiguous() for name, value in state.items()}
    # One metadata entry: safetensors writes several in no fixed order, and equal posteriors must be equal files.
    content = safetensors_bytes(tensors, {METADATA: json.dumps(about, sort_keys=True)})
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def read_posterior(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a stored posterior says of itself, and its tensors.

    Raises:
        DataError: the file is damaged.
    """
    with _opened(path) as (about, file):
        return about, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def read_about(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a stored posterior says of itself: its method, settings, network's fingerprint and note.

    Raises:
        DataError: the file is damaged.
    """
    with _opened(path) as (about, _):
        return about


def read_note(path: str | os.PathLike[str]) -> Any:
    """The note that ``WeightPosterior.save`` was given for this file, or None.

    Raises:
        DataError: the file is damaged.
    """
    return read_about(path).get("note")


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[dict[str, Any], Any]]:
    """Whatever fails inside is a damaged file."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            if not (isinstance(about, dict) and isinstance(about.get("config", {}), dict)):
                raise ValueError("it does not say what it is")
            yield about, file
    except Exception as error:  # safetensors raises its own type, OSError or ValueError
        raise DataError(f"cannot read the posterior {path}: {error}") from error


def likelihood_facts(likelihood: Likelihood) -> dict[str, Any]:
    """What a file says of a likelihood of ours; nothing of another."""
    kind = type(likelihood).__name__
    arguments = {name: getattr(likelihood, name) for name in LIKELIHOODS.get(kind, (None, {}))[1]}
    return {"likelihood": {"kind": kind, **arguments}} if kind in LIKELIHOODS else {}


def likelihood_from(about: Mapping[str, Any], path: str | os.PathLike[str]) -> Likelihood:
    """The likelihood that a file names.

    Raises:
        DataError: it names none, or not one of ours.
    """
    facts: Any = about.get("likelihood")
    try:
        kind, given = LIKELIHOODS[facts["kind"]]
        likelihood: Likelihood = kind(**{argument: facts[name] for name, argument in given.items()})
    except (LookupError, TypeError, UsageError) as error:
        raise DataError(f"{path} does not say what its network's outputs mean; give load its likelihood") from error
    return likelihood


def bounded_memory(held: int) -> TorchDispatchMode:
    """Within it no more tensors can be created than a state of ``held`` bytes may need to be taken over."""
    return _BoundedMemory(SLACK + GROWTH * held)


class _BoundedMemory(TorchDispatchMode):
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
