"""How one layer is evaluated for S networks in one call.

A value is shared by the networks, ``[B, ...]``, or stacked, ``[S, B, ...]``. Stacked images are kept in
memory as one channels-last batch ``[B, S·C, H, W]`` of which ``[S, B, C, H, W]`` is a view: grouped
convolutions and pooling run on the former without copies, and on a CPU channels-last is several times
faster for both.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayes_bench.posterior.stacked.scaled import InputScaled


class NotStackableError(Exception):
    """The module, or this input to it, has no stacked evaluation; the message says why."""


@dataclass(frozen=True)
class Value:
    """An intermediate result: ``[B, ...]`` where shared, ``[S, B, ...]`` where stacked."""

    tensor: Tensor
    stacked: bool

    @property
    def shape(self) -> torch.Size:
        """The shape that one network sees."""
        return self.tensor.shape[1:] if self.stacked else self.tensor.shape

    def as_stacked(self, networks: int) -> Tensor:
        return self.tensor if self.stacked else self.tensor.expand(networks, *self.tensor.shape)


Weights = Mapping[str, Tensor]
"""A layer's own parameters, ``[S, ...]``; those that all networks share have S = 1."""
ModuleRule = Callable[[Any, Value, Weights], Value]


def _networks(weights: Weights) -> int:
    return max(w.shape[0] for w in weights.values())


def _merge_channels(x: Tensor) -> Tensor:
    """``[S, B, C, *space]`` → ``[B, S·C, *space]``; channels-last in memory for images."""
    s, b, c = x.shape[:3]
    if x.dim() == 5:
        rows = x.permute(1, 3, 4, 0, 2)  # a view of what is already channels-last stays a view
        return rows.reshape(b, x.shape[3], x.shape[4], s * c).permute(0, 3, 1, 2)
    return x.transpose(0, 1).reshape(b, s * c, *x.shape[3:])


def _split_channels(x: Tensor, networks: int) -> Tensor:
    """The inverse view: ``[B, S·C, *space]`` → ``[S, B, C, *space]``."""
    split: Tensor = x.unflatten(1, (networks, -1)).transpose(0, 1)
    return split


def _channels_last(x: Tensor) -> Tensor:
    """Images in channels-last memory, by their strides too: one channel is in both formats, and PyTorch would
    take it for channels-first and give such a result, on which a CPU pools twenty times slower.
    """
    if x.dim() != 4:
        return x
    if x.shape[1] == 1:
        return x.squeeze(1).contiguous().unsqueeze(-1).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)


def per_example(function: Callable[[Tensor], Tensor], value: Value) -> Value:
    """Apply a weightless function of a batch that treats examples independently."""
    if not value.stacked:
        return Value(function(value.tensor), stacked=False)
    s, b = value.tensor.shape[:2]
    return Value(function(value.tensor.flatten(0, 1)).unflatten(0, (s, b)), stacked=True)


def per_channel(function: Callable[[Tensor], Tensor], value: Value, space: int) -> Value:
    """Apply a weightless function that treats examples and channels independently, such as pooling.

    Args:
        space: number of dimensions behind batch and channels that the function works on.
    """
    if not value.stacked:
        return Value(function(value.tensor), stacked=False)
    if len(value.shape) != 2 + space:  # PyTorch would take the batch for channels
        raise NotStackableError(f"pooling over {space} dimensions of a value of shape {list(value.shape)}")
    if value.tensor.stride(0) == value.tensor.stride(1) * value.tensor.shape[1]:  # examples one after the other
        return per_example(function, value)
    merged = function(_merge_channels(value.tensor))
    return Value(_split_channels(merged, value.tensor.shape[0]), stacked=True)


def elementwise(function: Callable[[Tensor], Tensor], value: Value) -> Value:
    return Value(function(value.tensor), value.stacked)


SMALL_IMAGES = 2**16
"""Elements below which the number of operations counts, not their speed."""


def _pair(size: Any) -> tuple[int, int]:
    """A size for both dimensions, as PyTorch takes it: a number, or a sequence of one or two."""
    sizes = tuple(size) if isinstance(size, list | tuple) else (size,)
    return sizes[0], sizes[-1]


def max_pool2d(
    value: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Value:
    """``F.max_pool2d``. Without gradients on a CPU as maxima of shifted images, rows before columns: PyTorch's own
    also finds indices, which nobody needs then, and takes three times as long.
    """

    def pool(x: Tensor) -> Tensor:
        plain = _pair(padding) == (0, 0) and _pair(dilation) == (1, 1) and not ceil_mode
        worth = (
            x.device.type == "cpu" and x.numel() >= SMALL_IMAGES and not (torch.is_grad_enabled() and x.requires_grad)
        )
        if not (plain and worth):
            return F.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode)
        kernel, steps = _pair(kernel_size), _pair(stride or kernel_size)
        if x.shape[2] < kernel[0] or x.shape[3] < kernel[1]:
            return F.max_pool2d(x, kernel_size, stride)  # raises
        for dim in (2, 3):
            places = (x.shape[dim] - kernel[dim - 2]) // steps[dim - 2]
            shifted = [
                x[(*[slice(None)] * dim, slice(start, start + places * steps[dim - 2] + 1, steps[dim - 2]))]
                for start in range(kernel[dim - 2])
            ]
            x = functools.reduce(torch.maximum, shifted)
        return x

    return per_channel(pool, value, 2)


def _scale_inputs(value: Value, weight: InputScaled) -> Value:
    """The inputs ``[…, B, in, …]`` of a layer, each network's scaled as its weights are."""
    space = weight.base.dim() - 2
    if len(weight.scale) == 1 and not value.stacked:
        return Value(value.tensor * weight.scale.view(-1, *[1] * space), stacked=False)
    x = value.tensor if value.stacked else value.tensor.unsqueeze(0)
    # A linear layer's inputs come last, a convolution's channels before its space.
    between = [1] * (x.dim() - 2 - space)
    return Value(x * weight.scale.view(len(weight.scale), *between, -1, *[1] * space), stacked=True)


def linear(layer: nn.Linear, value: Value, weights: Weights) -> Value:
    networks, weight, bias = _networks(weights), weights["weight"], weights.get("bias")
    x = value.tensor
    if isinstance(weight, InputScaled):
        scaled = _scale_inputs(value, weight)
        if bias is None or len(bias) == 1:
            return Value(
                F.linear(scaled.tensor, weight.base, None if bias is None else bias.squeeze(0)), scaled.stacked
            )
        out = F.linear(scaled.tensor, weight.base)
        return Value(out + bias.view(networks, *[1] * (out.dim() - 2), -1), stacked=True)
    if networks == 1:  # also for stacked x: the same weights serve all networks
        return Value(F.linear(x, weight.squeeze(0), None if bias is None else bias.squeeze(0)), value.stacked)
    # A batched product also for shared inputs: one long product for all networks was measured to be slower.
    rows = value.as_stacked(networks).flatten(1, -2)
    matrix = weight.expand(networks, -1, -1).transpose(1, 2)
    out = torch.bmm(rows, matrix) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, matrix)
    return Value(out.unflatten(1, value.shape[:-1]), stacked=True)


def convolution(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, value: Value, weights: Weights) -> Value:
    networks, weight, bias = _networks(weights), weights["weight"], weights.get("bias")
    if len(value.shape) != weight.dim() - 1:
        raise NotStackableError(f"a convolution of a value of shape {list(value.shape)}, which has no batch dimension")
    convolve: Callable[..., Tensor] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[weight.dim() - 3]
    if isinstance(weight, InputScaled) and layer.groups > 1:
        return convolution(layer, value, {**weights, "weight": weight.product()})
    if isinstance(weight, InputScaled):
        scaled = _scale_inputs(value, weight)
        unscaled = {"weight": weight.base.unsqueeze(0)} | ({} if bias is None else {"bias": bias[:1]})
        if bias is None or len(bias) == 1:
            return convolution(layer, scaled, unscaled)
        without = convolution(layer, scaled, {"weight": unscaled["weight"]})
        return Value(without.tensor + bias.view(networks, 1, -1, *[1] * (weight.dim() - 3)), stacked=True)
    options = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    if networks == 1:
        single_bias = None if bias is None else bias.squeeze(0)
        return per_example(
            lambda x: _channels_last(
                convolve(_channels_last(x), weight.squeeze(0), single_bias, groups=layer.groups, **options)
            ),
            value,
        )
    kernel = weight.expand(networks, *weight.shape[1:]).flatten(0, 1)
    flat_bias = None if bias is None else bias.expand(networks, -1).flatten()
    if not value.stacked and layer.groups == 1:
        x, groups = _channels_last(value.tensor), 1
    else:
        x, groups = _merge_channels(value.as_stacked(networks)), networks * layer.groups
    out = _channels_last(convolve(x, kernel, flat_bias, groups=groups, **options))
    return Value(_split_channels(out, networks), stacked=True)


def _affine(normalised: Value, weights: Weights, feature_dims: int) -> Value:
    """Scale and shift by parameters that act on ``feature_dims`` dimensions after those of ``[S, B]``."""
    if not weights:
        return normalised
    networks = _networks(weights)
    stacked = normalised.stacked or networks > 1
    x = normalised.tensor if normalised.stacked or not stacked else normalised.tensor.unsqueeze(0)
    for name, combine in (("weight", torch.mul), ("bias", torch.add)):
        if name in weights:
            parameter = weights[name]
            own, missing = parameter.shape[1:], x.dim() - stacked - feature_dims
            shaped = parameter.view(-1, *[1] * missing, *own) if stacked else parameter.squeeze(0)
            x = combine(x, shaped)
    return Value(x, stacked)


def layer_norm(layer: nn.LayerNorm, value: Value, weights: Weights) -> Value:
    normalised = elementwise(lambda x: F.layer_norm(x, layer.normalized_shape, eps=layer.eps), value)
    return _affine(normalised, weights, len(layer.normalized_shape))


def group_norm(layer: nn.GroupNorm, value: Value, weights: Weights) -> Value:
    networks = _networks(weights) if weights else 1
    if not value.stacked and networks == 1:
        own = {name: w.squeeze(0) for name, w in weights.items()}
        return Value(F.group_norm(value.tensor, layer.num_groups, **own, eps=layer.eps), stacked=False)
    if value.stacked:
        networks = value.tensor.shape[0]
    # The networks' channels side by side are S times as many groups, with gains and shifts of their own.
    merged = {name: w.expand(networks, -1).flatten() for name, w in weights.items()}
    x = _merge_channels(value.as_stacked(networks))
    return Value(_split_channels(F.group_norm(x, networks * layer.num_groups, **merged, eps=layer.eps), networks), True)


def batch_norm(layer: Any, value: Value, weights: Weights) -> Value:
    """By running statistics, which the networks share: an affine map of every channel."""
    stored = {name: b.unsqueeze(0) for name in ("weight", "bias") if (b := layer._buffers.get(name)) is not None}
    weights = {**stored, **weights}  # torchvision's FrozenBatchNorm2d keeps gain and shift as buffers
    networks = value.tensor.shape[0] if value.stacked else _networks(weights) if weights else 1
    mean, var = layer.running_mean, layer.running_var
    if not value.stacked and networks == 1:
        own = {name: w.squeeze(0) for name, w in weights.items()}
        single = F.batch_norm(value.tensor, mean, var, own.get("weight"), own.get("bias"), eps=layer.eps)
        return Value(single, stacked=False)
    merged = {name: w.expand(networks, -1).flatten() for name, w in weights.items()}
    x = _merge_channels(value.as_stacked(networks))
    normalised = F.batch_norm(
        x, mean.repeat(networks), var.repeat(networks), merged.get("weight"), merged.get("bias"), eps=layer.eps
    )
    return Value(_split_channels(normalised, networks), stacked=True)


def is_frozen_norm(module: nn.Module) -> bool:
    """Whether a module is torchvision's ``FrozenBatchNorm2d``, without importing that."""
    return type(module).__name__ == "FrozenBatchNorm2d" and type(module).__module__.startswith("torchvision.")


ELEMENTWISE_MODULES: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid,
    nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Tanhshrink, nn.Identity,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,  # identities in evaluation mode
)  # fmt: skip
POOLING_MODULES: tuple[type[nn.Module], ...] = (
    nn.MaxPool1d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
)  # fmt: skip


def _in_place(module: nn.Module) -> bool:
    return bool(getattr(module, "inplace", False))


def module_rule(module: nn.Module) -> ModuleRule | None:
    """The rule for exactly this type of layer, or None. A subclass may compute anything, so it has none."""
    kind = type(module)
    if kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        return convolution if getattr(module, "padding_mode", "") == "zeros" else None
    if kind in ELEMENTWISE_MODULES:
        # In place would overwrite a value that another branch, or the caller, still needs.
        return None if _in_place(module) else lambda layer, value, _: elementwise(layer, value)
    if kind is nn.MaxPool2d and not getattr(module, "return_indices", False):
        return lambda layer, value, _: max_pool2d(
            value, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode
        )
    if kind in POOLING_MODULES:
        if getattr(module, "return_indices", False):
            return None
        return lambda layer, value, _: per_channel(layer, value, int(kind.__name__[-2]))
    if kind is nn.Flatten:
        batchwise = int(getattr(module, "start_dim", 0)) >= 1  # flattening the batch away mixes examples
        return (lambda layer, value, _: per_example(layer, value)) if batchwise else None
    if (kind in BATCH_NORM and module.running_mean is not None) or is_frozen_norm(module):
        return batch_norm
    rules: dict[type[nn.Module], ModuleRule] = {nn.Linear: linear, nn.LayerNorm: layer_norm, nn.GroupNorm: group_norm}
    return rules.get(kind)


ELEMENTWISE_FUNCTIONS: dict[Any, Callable[..., Tensor]] = {
    function: function
    for function in (
        F.relu, F.leaky_relu, F.elu, F.gelu, F.silu, F.softplus, F.mish, F.hardtanh, F.relu6, F.selu, F.celu,
        torch.relu, torch.tanh, torch.sigmoid, torch.sin, torch.cos, torch.exp, torch.abs, torch.square,
        F.tanh, F.sigmoid, operator.neg,
    )
} | {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "contiguous": lambda x: x}  # fmt: skip
POOLING_FUNCTIONS: dict[Any, int] = {
    F.max_pool1d: 1, F.avg_pool1d: 1, F.avg_pool2d: 2,
    F.adaptive_avg_pool1d: 1, F.adaptive_avg_pool2d: 2,
}  # fmt: skip
"""The function → the number of dimensions it pools over."""
BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
FRESH_MODULES: tuple[type[nn.Module], ...] = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.LayerNorm, nn.GroupNorm, nn.MaxPool2d, *POOLING_MODULES, *BATCH_NORM,
    *(kind for kind in ELEMENTWISE_MODULES if "Dropout" not in kind.__name__ and kind is not nn.Identity),
)  # fmt: skip
"""Layers whose output shares no memory with their input, unless they work in place."""
MAX_POOLING: tuple[Any, ...] = (
    nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, F.max_pool1d, F.max_pool2d,
)  # fmt: skip
INCREASING: dict[Any, str] = {
    nn.ReLU: "", nn.ReLU6: "", nn.SELU: "", nn.Tanh: "", nn.Sigmoid: "", nn.Softsign: "",
    nn.Hardtanh: "", nn.Hardsigmoid: "", nn.LogSigmoid: "",
    nn.LeakyReLU: "negative_slope", nn.ELU: "alpha", nn.CELU: "alpha",
    F.relu: "", F.relu6: "", F.tanh: "", F.sigmoid: "", F.leaky_relu: "negative_slope",
    torch.relu: "", torch.tanh: "", torch.sigmoid: "", "relu": "", "tanh": "", "sigmoid": "",
}  # fmt: skip
"""Functions that never decrease (softplus does, at its threshold) → a parameter that must not be negative for it."""
BINARY_FUNCTIONS: dict[Any, Callable[[Any, Any], Any]] = {
    operator.add: torch.add, torch.add: torch.add, "add": torch.add,
    operator.sub: torch.sub, torch.sub: torch.sub,
    operator.mul: torch.mul, torch.mul: torch.mul, "mul": torch.mul,
    operator.truediv: torch.true_divide, torch.div: torch.true_divide,
}  # fmt: skip


def binary(function: Callable[[Any, Any], Any], left: Any, right: Any) -> Value:
    """Elementwise arithmetic of two values of the same shape, or of a value and a number."""
    stacked = any(isinstance(side, Value) and side.stacked for side in (left, right))

    def tensor(side: Any) -> Any:
        if not isinstance(side, Value):
            return side
        return side.tensor if side.stacked or not stacked else side.tensor.unsqueeze(0)

    return Value(function(tensor(left), tensor(right)), stacked)


def concatenate(values: list[Value], dim: int) -> Value:
    """``torch.cat`` along a dimension as one network counts it (not the batch)."""
    networks = max((value.tensor.shape[0] for value in values if value.stacked), default=0)
    if not networks:
        return Value(torch.cat([value.tensor for value in values], dim), stacked=False)
    tensors = [value.as_stacked(networks) for value in values]
    return Value(torch.cat(tensors, dim + 1 if dim >= 0 else dim), stacked=True)


def reshape(value: Value, shape: tuple[int, ...]) -> Value:
    """``view`` and ``reshape`` to a shape as one network counts it; its first entry is the batch."""
    if value.stacked:
        return Value(value.tensor.reshape(value.tensor.shape[0], *shape), stacked=True)
    return Value(value.tensor.reshape(shape), stacked=False)
