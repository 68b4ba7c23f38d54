"""Target networks: plain ``nn.Sequential`` models.

Without dropout, and but for ``resnet20`` without batch normalisation: pure functions of (weights, x).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from bayes_bench.errors import UsageError, unknown_name

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


def _activation(name: str) -> nn.Module:
    if name not in ACTIVATIONS:
        raise UsageError(unknown_name("activation", name, ACTIVATIONS))
    return ACTIVATIONS[name]()


def mlp(inputs: int, hidden: Sequence[int], outputs: int, activation: str = "relu") -> nn.Sequential:
    """A multilayer perceptron: x ``[B, ...]`` with ``inputs`` features in all → ``[B, outputs]``."""
    widths = [inputs, *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), _activation(activation)]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))


def convnet(
    input_shape: tuple[int, int, int],
    channels: Sequence[int],
    outputs: int,
    *,
    kernel: int = 5,
    padding: int = 0,
    pool: int = 2,
    hidden: Sequence[int] = (),
    activation: str = "leaky_relu",
) -> nn.Sequential:
    """Convolution, activation, max-pooling per entry of ``channels``, then linear layers.

    ``[B, C, H, W]`` → ``[B, outputs]``.

    Raises:
        UsageError: the image is too small for that many convolutions.
    """
    in_channels, height, width = input_shape
    layers: list[nn.Module] = []
    for out_channels in channels:
        layers += [
            nn.Conv2d(in_channels, out_channels, kernel, padding=padding),
            _activation(activation),
            nn.MaxPool2d(pool),
        ]
        height, width = ((side + 2 * padding - kernel + 1) // pool for side in (height, width))
        if min(height, width) < 1:
            raise UsageError(
                f"convnet: a {input_shape[1]}×{input_shape[2]} image is too small for {len(channels)} convolutions of "
                f"kernel {kernel} with pooling {pool}; use fewer channels entries, a smaller kernel, or padding"
            )
        in_channels = out_channels
    head = mlp(in_channels * height * width, hidden, outputs, activation)
    return nn.Sequential(*layers, *head)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with group normalisation and a shortcut: ``[B, C, H, W]`` → ``[B, C', H', W']``."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1),
            nn.GroupNorm(groups, outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.GroupNorm(groups, outputs),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride=stride)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.body(x) + self.shortcut(x))
        return out


def resnet(
    input_shape: tuple[int, int, int],
    outputs: int,
    *,
    width: int = 16,
    blocks: int = 1,
    stages: int = 3,
    groups: int = 4,
) -> nn.Sequential:
    """A small residual network: ``[B, C, H, W]`` → ``[B, outputs]``; batch statistics are replaced by group norm."""
    if width % groups:
        raise UsageError(f"resnet: width ({width}) must be a multiple of groups ({groups})")
    layers: list[nn.Module] = [
        nn.Conv2d(input_shape[0], width, 3, padding=1),
        nn.GroupNorm(groups, width),
        nn.ReLU(),
    ]
    channels = width
    for stage in range(stages):
        for block in range(blocks):
            out_channels = width * 2**stage
            layers.append(ResidualBlock(channels, out_channels, 2 if stage and not block else 1, groups))
            channels = out_channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, outputs))


class _BatchNormBlock(nn.Module):
    """Two 3×3 convolutions with batch normalisation and a shortcut, as He et al. (2016) have them on CIFAR-10."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm1(self.conv1(x)).relu()
        out = self.norm2(self.conv2(out)) + self.shortcut(x)
        return torch.relu(out)


def resnet20(input_shape: tuple[int, int, int], outputs: int) -> nn.Sequential:
    """ResNet-20 with batch normalisation (He et al. 2016, section 4.2): ``[B, C, H, W]`` → ``[B, outputs]``.

    0.27 million weights. Shortcuts that change the shape are 1×1 convolutions. For suites that start at given weights:
    the entry point ``resnet20`` of the group ``bayes_bench.networks``.
    """
    layers: list[nn.Module] = [nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    channels = 16
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        for block in range(3):
            layers.append(_BatchNormBlock(channels, width, stride if block == 0 else 1))
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, outputs))


def layer_names(network: nn.Module) -> dict[str, str]:
    """Parameters of two or more dimensions → how tables call their layer.

    A layer with a name keeps it (``encoder.first``); one that only has a number in an ``nn.Sequential`` is called
    by its kind and its place among these (``conv1``, ``conv2``, ``linear1``).
    """
    kinds: dict[str, int] = {}
    names: dict[str, str] = {}
    parameters = [name for name, p in network.named_parameters() if p.dim() >= 2]
    for parameter in parameters:
        path, _, last = parameter.rpartition(".")
        module = network.get_submodule(path)
        kind = type(module).__name__.lower().rstrip("0123456789d") or "layer"
        kind = "conv" if kind.startswith("conv") else kind
        kinds[kind] = kinds.get(kind, 0) + 1
        numbered = all(part.isdigit() for part in path.split("."))
        name = f"{kind}{kinds[kind]}" if path and numbered else path
        names[parameter] = name if last == "weight" and name else parameter
    # A user's module may itself be called "conv1": then every layer goes by its parameter's name.
    return names if len({*names.values(), "all"}) == len(names) + 1 else {name: name for name in parameters}
