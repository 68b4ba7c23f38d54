"""Data, devices and draws that are refused."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from bayes_bench.errors import DataError, DivergenceError, PluginError, UnsupportedNetworkError, UsageError
from bayes_bench.posterior.examples import FitData
from bayes_bench.posterior.likelihood import Likelihood
from bayes_bench.posterior.stacked.network import examples_apart
from bayes_bench.posterior.stacked.scaled import InputScaled

SEEDS = 2**32
"""Seeds that differ: of larger ones PyTorch takes the last 32 bits."""


def digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of types, shapes and values."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def finite(value: Tensor) -> bool:
    # An infinity or NaN anywhere makes the sum not finite, without a mask of the tensor's size.
    return math.isfinite(float(value.sum())) or bool(torch.isfinite(value).all())


def resolve_device(device: str | torch.device) -> torch.device:
    """The device of that name (``"auto"``: a GPU where there is one).

    Raises:
        UsageError: CUDA was asked for and is not available, or the name means nothing.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"unknown device {device!r}; use 'auto', 'cpu' or 'cuda'") from error
    if resolved.type not in ("cpu", "cuda"):
        raise UsageError(f"device {str(device)!r} is not supported; use 'auto', 'cpu' or 'cuda'")
    if resolved.type == "cuda" and torch.cuda.is_available() and (resolved.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device {str(device)!r} asked for, but there are {torch.cuda.device_count()} GPUs")
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("device 'cuda' asked for, but PyTorch finds no GPU; use --device cpu or auto")
    return resolved


PROBED = 4
"""Examples that a network is tried on."""


def generator(seed: int) -> torch.Generator:
    """A CPU generator of that seed.

    Raises:
        UsageError: PyTorch would take it for another one.
    """
    if not 0 <= seed < SEEDS:
        raise UsageError(f"seed {seed} is not in 0…{SEEDS - 1}: others would repeat, as PyTorch takes 32 bits of them")
    return torch.Generator().manual_seed(seed)


def check_data(network: nn.Module, likelihood: Likelihood, data: FitData) -> None:
    """Do the data go with the network and the likelihood? One forward pass of one network, before training starts.

    Raises:
        DataError: targets of another kind or shape, or inputs that the network cannot take.
        UnsupportedNetworkError: two evaluations of the same inputs differ.
    """
    parts = [("training", data.train), *([("validation", data.validation)] if data.validation else [])]
    for label, part in parts:
        y, classes = part.y, likelihood.output_width
        if likelihood.kind == "classification":
            if y.dtype != torch.int64 or y.dim() != 1:
                raise DataError(
                    f"{label} targets must be class indices: int64 of shape [N], got {y.dtype} of {list(y.shape)}"
                )
            if int(y.min()) < 0 or int(y.max()) >= classes:
                raise DataError(f"{label} targets must lie in 0…{classes - 1}, got {int(y.min())}…{int(y.max())}")
        elif not y.is_floating_point() or y.dim() != 2 or y.shape[1] != likelihood.target_width:
            given = y.shape[1] if y.dim() == 2 else 0
            remedy = ""
            if given > likelihood.target_width:
                remedy = f"; say dimensions={given} to {type(likelihood).__name__}"
            raise DataError(
                f"{label} targets must be floats of shape [N, {likelihood.target_width}], got {y.dtype} of "
                f"{list(y.shape)}{remedy}"
            )
    parameter = next(network.parameters())
    # A copy: a network may work in place on what it is given, and this is the caller's.
    probe = data.train.x[:PROBED].to(parameter.device).clone()
    if probe.is_floating_point() and probe.dtype != parameter.dtype:
        raise DataError(
            f"the inputs are {probe.dtype} and the network's weights {parameter.dtype}; convert one of them, "
            "e.g. x.float()"
        )
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            outputs, again = network(probe.clone()), network(probe.clone())
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise DataError(f"the network cannot take inputs of shape {list(data.train.x.shape[1:])}: {error}") from error
    expected = (len(probe), likelihood.output_width)
    if not isinstance(outputs, Tensor) or tuple(outputs.shape) != expected:
        found = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise DataError(f"{likelihood!r} needs outputs of shape {list(expected)}, the network gives {found}")
    if not torch.equal(outputs, again) and bool(torch.isfinite(outputs).all()):
        raise UnsupportedNetworkError(
            "two evaluations of the same inputs differ: the network draws random numbers (functional dropout "
            "without training=self.training?); make it a pure function of (weights, x)"
        )
    if not examples_apart(network, probe):
        raise UnsupportedNetworkError(
            "the outputs of an example depend on the other examples of its batch (statistics over the batch?); make "
            "the network a function of single examples"
        )


def writes_to_inputs(network: nn.Module, x: Tensor) -> bool:
    """Whether a network changes the inputs x ``[B, …]`` that it is given; it is given a copy here."""
    x = x.to(next(network.parameters()).device)
    given = x.clone()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        network(given)
    return not torch.equal(given, x)


def check_draw(method: str, shapes: Mapping[str, torch.Size], weights: Mapping[str, Tensor], size: int) -> None:
    """Are these ``size`` networks of the given names and shapes, and finite?

    Raises:
        PluginError: the method returned wrong names or shapes.
        DivergenceError: a weight is not finite.
    """
    missing, extra = shapes.keys() - weights.keys(), weights.keys() - shapes.keys()
    if missing or extra:
        raise PluginError(f"{method}._sample gave wrong names: missing {sorted(missing)}, unknown {sorted(extra)}")
    for name, shape in shapes.items():
        value = weights[name]
        if value.shape != (size, *shape):
            raise PluginError(f"{method}._sample gave {name!r} the shape {list(value.shape)}, not {[size, *shape]}")
        # What the networks share is looked at once, and a product's factors instead of it.
        kept = [value.base, value.scale] if isinstance(value, InputScaled) and value.factored else [value]
        if not all(finite(part[:1] if part.stride(0) == 0 else part) for part in kept):
            raise DivergenceError(f"{method} drew weights that are not finite (in {name!r})")
