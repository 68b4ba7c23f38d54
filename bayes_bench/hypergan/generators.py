"""The parallel generators G_1 … G_L: each turns its layer's code into all weights and biases of that layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import repeat

import torch
from torch import Tensor, nn

from bayes_bench.hypergan.layers import unit_scale_mlp
from bayes_bench.prior import fan_in

OTHER_STD = 0.1
"""Initial spread of parameters without a fan-in (gains of norm layers, noise scales) around their initial value."""


def layer_of(name: str) -> str:
    """The module that owns a parameter: parameters of one module share a generator."""
    return name.rpartition(".")[0]


class LayerGenerator(nn.Module):
    """Code ``[S, d]`` → this layer's parameters, name → ``[S, *shape]``.

    Outputs are scaled so that generated weights *and* biases start with standard deviation gain/√fan-in,
    around the initial value for parameters without a fan-in, and differ between codes.

    Args:
        initial: the layer's parameters by full name, with their starting values.
        gain, fixed_scale, noise_scale: see ``HyperGANConfig``: ``weight_gain``, ``fixed_generator_scale`` (0
            leaves the frozen random part out) and ``weight_noise``.
    """

    base: Tensor
    scale: Tensor
    fixed: Tensor | None

    def __init__(
        self,
        initial: Mapping[str, Tensor],
        code_dim: int,
        hidden: Sequence[int],
        *,
        gain: float,
        fixed_scale: float,
        noise_scale: float,
    ):
        super().__init__()
        self.shapes = {name: value.shape for name, value in initial.items()}
        values = torch.cat([value.detach().flatten().cpu() for value in initial.values()])
        size = len(values)
        self.body = unit_scale_mlp(code_dim, hidden, size)
        matrices = [shape for shape in self.shapes.values() if len(shape) >= 2]
        if matrices:
            self.register_buffer("base", torch.zeros(size))
            self.register_buffer("scale", torch.full((size,), gain / math.sqrt(fan_in(matrices[0]))))
        else:
            # A narrow start rather than a small scale, which would slow down learning as well.
            self.register_buffer("base", values)
            self.register_buffer("scale", torch.ones(size))
            with torch.no_grad():
                self.body[-1].weight.mul_(OTHER_STD)  # type: ignore[operator]
            fixed_scale, noise_scale = fixed_scale * OTHER_STD, noise_scale * OTHER_STD
        self.noise_scale = noise_scale
        fixed = torch.randn(code_dim, size) * (fixed_scale / math.sqrt(code_dim)) if fixed_scale else None
        self.register_buffer("fixed", fixed)

    @property
    def size(self) -> int:
        """Number of parameters generated."""
        return len(self.base)

    def forward(self, code: Tensor, noise: Tensor | None = None) -> dict[str, Tensor]:
        unit = self.body(code)
        if self.fixed is not None:
            unit = torch.addmm(unit, code, self.fixed)
        if noise is not None:
            unit = torch.add(unit, noise, alpha=self.noise_scale)
        return self._split(torch.addcmul(self.base, self.scale, unit))

    def anchors(self, code: Tensor) -> dict[str, Tensor]:
        """What the frozen part alone gives: the parameters that each code would have started from."""
        if self.fixed is None:
            return self._split(self.base.expand(len(code), -1))
        return self._split(torch.addcmul(self.base, self.scale, code @ self.fixed))

    def _split(self, flat: Tensor) -> dict[str, Tensor]:
        """``[S, size]`` → name → ``[S, *shape]``."""
        pieces = flat.split([shape.numel() for shape in self.shapes.values()], dim=1)
        return {
            name: piece.unflatten(1, shape) if shape else piece.squeeze(1)
            for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }


class Generators(nn.Module):
    """Mixed code ``[S, L·d]`` → whole networks, name → ``[S, *shape]``."""

    def __init__(
        self,
        initial: Mapping[str, Tensor],
        code_dim: int,
        hidden: Sequence[int],
        *,
        gain: float,
        fixed_scale: float,
        noise_scale: float,
    ):
        super().__init__()
        layers: dict[str, dict[str, Tensor]] = {}
        for name, value in initial.items():
            layers.setdefault(layer_of(name), {})[name] = value
        self.code_dim = code_dim
        generators = [
            LayerGenerator(parameters, code_dim, hidden, gain=gain, fixed_scale=fixed_scale, noise_scale=noise_scale)
            for parameters in layers.values()
        ]
        self.layers: Sequence[LayerGenerator] = nn.ModuleList(generators)  # type: ignore[assignment]

    @property
    def code_size(self) -> int:
        return len(self.layers) * self.code_dim

    @property
    def size(self) -> int:
        """P, the number of parameters generated for one network."""
        return sum(layer.size for layer in self.layers)

    def forward(self, codes: Tensor, noise: Tensor | None = None) -> dict[str, Tensor]:
        """With ``noise`` ``[S, P]`` from N(0, 1), every weight gets its own on top of what its code says."""
        weights: dict[str, Tensor] = {}
        parts = noise.split([layer.size for layer in self.layers], dim=1) if noise is not None else repeat(None)
        for layer, code, part in zip(self.layers, codes.split(self.code_dim, dim=1), parts, strict=False):
            weights.update(layer(code, part))
        return weights

    @torch.no_grad()
    def anchors(self, codes: Tensor) -> dict[str, Tensor]:
        """The frozen parts' weights, name → ``[S, *shape]``: what the prior is centred at."""
        weights: dict[str, Tensor] = {}
        for layer, code in zip(self.layers, codes.split(self.code_dim, dim=1), strict=True):
            weights.update(layer.anchors(code))
        return weights
