"""Networks, data, devices and draws that are refused."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bayes_bench.errors import UnsupportedNetworkError, UsageError
from bayes_bench.posterior.likelihood import RESERVED


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


def prepare_network(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode, refused where it is not a pure function of (weights, x).

    Raises:
        UnsupportedNetworkError: it has lazy parameters or keeps batch statistics.
    """
    for name, module in network.named_modules():
        where = f"layer {name!r} ({type(module).__name__})"
        if getattr(module, "running_mean", None) is not None:
            raise UnsupportedNetworkError(
                f"{where} keeps running batch statistics, which couple examples; use group or layer norm instead"
            )
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UnsupportedNetworkError(f"{where} normalises over the batch; use group or layer norm instead")
    for name, parameter in network.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise UnsupportedNetworkError(f"parameter {name!r} is lazy; run one batch through the network first")
        if name.startswith(RESERVED):
            raise UnsupportedNetworkError(f"the name {name!r} is reserved for the likelihood; rename the module")
    return copy.deepcopy(network).eval()


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
