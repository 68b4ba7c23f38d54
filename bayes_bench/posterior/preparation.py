"""A network as a posterior takes it: a copy in evaluation mode, without batch statistics, its random part chosen."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Literal

import torch
from torch import Tensor, nn

from bayes_bench.errors import UnsupportedNetworkError, UsageError
from bayes_bench.posterior.likelihood import RESERVED

Start = Literal["fresh", "given"]
"""Whether a fit begins at new initial weights, or at those that the network has."""
BatchNorm = Literal["frozen", "group"]
"""What batch normalisation becomes: an affine map by the running statistics, or group normalisation."""
Bayesian = str | Sequence[str]
"""Which parameters are random: all, those of the ``"last"`` layer, or patterns of names, ``["layer4.*", "fc"]``."""

CHANNELS_PER_GROUP = 8
OUTSIDE = 1.5
"""Weights of a fresh initialisation are not this much larger, or more widely spread, than those of another one."""
ENOUGH = 64
"""Numbers of a parameter by which its spread is known."""


def prepare_network(
    network: nn.Module, *, start: Start = "fresh", batch_norm: BatchNorm | None = None, bayesian: Bayesian = "all"
) -> nn.Module:
    """A copy in evaluation mode that is a pure function of (weights, x), and of whose parameters the random ones
    require gradients.

    Args:
        batch_norm: what batch normalisation becomes; by default ``"frozen"`` where the weights are given, else
            ``"group"``: statistics that were never estimated normalise nothing.

    Raises:
        UnsupportedNetworkError: it has lazy parameters, batch normalisation without statistics, or nothing to train.
        UsageError: an option has no such value, or no parameter is called so.
    """
    for value, known, what in ((start, Start, "start"), (batch_norm or "frozen", BatchNorm, "batch_norm")):
        if value not in known.__args__:  # type: ignore[attr-defined]
            raise UsageError(f"{what} must be {' or '.join(map(repr, known.__args__))}, got {value!r}")  # type: ignore[attr-defined]
    for name, parameter in network.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise UnsupportedNetworkError(f"parameter {name!r} is lazy; run one batch through the network first")
        if name.startswith(RESERVED):
            raise UnsupportedNetworkError(f"the name {name!r} is reserved for the likelihood; rename the module")
        if parameter.dtype not in (torch.float32, torch.float64):
            raise UnsupportedNetworkError(
                f"parameter {name!r} is {str(parameter.dtype).removeprefix('torch.')}; posteriors are computed in "
                "float32 or float64: give network.float()"
            )
    prepared = _copied(network).eval()
    for name, module in prepared.named_modules():
        if getattr(module, "max_norm", None) is not None:
            raise UnsupportedNetworkError(f"layer {name!r} (max_norm) writes to its weights; leave max_norm out")
    if (batch_norm or ("frozen" if start == "given" else "group")) == "group":
        if start == "given" and any(map(is_batch_norm, prepared.modules())):
            raise UsageError("batch_norm='group' makes another function of given weights; it goes with start='fresh'")
        prepared = _with_group_norm(prepared)
    for name, module in prepared.named_modules():
        if is_batch_norm(module) and module.running_mean is None:
            raise UnsupportedNetworkError(
                f"layer {name!r} ({type(module).__name__}) keeps no running statistics and so normalises over the "
                "batch; make it with track_running_stats=True, or use group or layer norm"
            )
    _choose(prepared, bayesian)
    return prepared


def _copied(network: nn.Module) -> nn.Module:
    """A copy that shares nothing.

    Raises:
        UnsupportedNetworkError: it cannot be copied.
    """
    try:
        return copy.deepcopy(network)
    except Exception as error:  # whatever its parts say to it
        raise UnsupportedNetworkError(
            f"the network cannot be copied ({' '.join(str(error).split())[:200]}); torch.nn.utils.weight_norm and its "
            "like have successors in torch.nn.utils.parametrizations that can"
        ) from error


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a module normalises by batch statistics in training."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def reset(network: nn.Module) -> set[str]:
    """Give every layer new initial weights that can make them; returns the names of these parameters."""
    made = set()
    for name, module in network.named_modules():
        initialise = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
        if callable(initialise):
            initialise()
            made |= {f"{name}.{own}".lstrip(".") for own, _ in module.named_parameters(recurse=False)}
    return made


def looks_trained(network: nn.Module, fresh: nn.Module) -> list[str]:
    """Parameters whose values no initialisation would give: farther out, or otherwise spread, than ``fresh`` ones."""

    def differs(own: Tensor, other: Tensor) -> bool:
        if own.numel() < ENOUGH or torch.equal(own, other):
            return False
        if float(other.std()) == 0:  # ones and zeros, as norm layers and biases begin
            return True
        ratio = float(own.std() / other.std())
        return not 1 / OUTSIDE < ratio < OUTSIDE or bool(own.abs().max() > OUTSIDE * other.abs().max())

    others = dict(fresh.named_parameters())
    return [
        name
        for name, parameter in network.named_parameters()
        if differs(parameter.detach().cpu().float(), others[name].detach().float())
    ]


def _with_group_norm(module: nn.Module) -> nn.Module:
    """The module with every batch normalisation replaced by group normalisation, itself if it is one."""
    if is_batch_norm(module):
        return _group_norm(module)
    for name, child in module.named_children():
        setattr(module, name, _with_group_norm(child))
    return module


def _group_norm(norm: nn.Module) -> nn.GroupNorm:
    channels = int(norm.num_features)  # type: ignore[arg-type]
    wanted = max(1, channels // CHANNELS_PER_GROUP)
    groups = next(number for number in range(wanted, 0, -1) if channels % number == 0)
    return nn.GroupNorm(groups, channels, eps=float(norm.eps), affine=bool(norm.affine))  # type: ignore[arg-type]


def last_layer(network: nn.Module) -> str:
    """Name of the last module that has a weight matrix of its own, in the order of ``named_modules``."""
    names: list[str] = [
        name for name, module in network.named_modules() if any(p.dim() >= 2 for p in module.parameters(recurse=False))
    ]
    if not names:
        raise UnsupportedNetworkError("the network has no layer with a weight matrix, so no last layer")
    return names[-1]


def _choose(network: nn.Module, bayesian: Bayesian) -> None:
    """Leave gradients to the parameters that are random alone."""
    if bayesian == "all":
        return
    patterns = (
        [f"{last_layer(network)}.*"] if bayesian == "last" else [bayesian] if isinstance(bayesian, str) else bayesian
    )
    names = [name for name, _ in network.named_parameters()]
    chosen = {name for name in names for pattern in patterns if _matches(name, pattern)}
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, [*names, *(name for name, _ in network.named_modules())], 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"no parameter of the network is called {pattern!r}{hint}")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name in chosen)


def _matches(name: str, pattern: str) -> bool:
    """A parameter's name by its own or its module's pattern: ``"fc"`` is all of ``fc``."""
    return any(fnmatch(name, wanted) for wanted in (pattern, f"{pattern}.*"))
