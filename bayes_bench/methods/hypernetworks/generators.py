"""The parallel generators G_1 … G_L: each turns its layer's code into all weights and biases of that layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bayes_bench.methods.hypernetworks.heads import DenseHead, make_head
from bayes_bench.methods.hypernetworks.layers import hidden_layers
from bayes_bench.posterior.prior import fan_in

OTHER_STD = 0.1
"""Initial spread of parameters without a fan-in (gains of norm layers, noise scales) around their initial value."""


def layer_of(name: str) -> str:
    """The module that owns a parameter: parameters of one module share a generator."""
    return name.rpartition(".")[0]


class LayerGenerator(nn.Module):
    """Code ``[S, d]`` → this layer's parameters, name → ``[S, *shape]``.

    Outputs are scaled so that generated weights *and* biases start with standard deviation gain/√fan-in,
    around the initial value for parameters without a fan-in, and differ between codes. Where the weights are given,
    all start narrowly around them.

    Args:
        initial: the layer's parameters by full name, with their starting values.
        gain, diversity, fixed_scale: see ``HyperGANConfig``: ``weight_gain``, ``initial_diversity`` and
            ``fixed_generator_scale``.
        head, head_chunk: see there too.
        given: whether the initial values are those of a network to start from.
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
        diversity: float,
        fixed_scale: float,
        head: str,
        head_chunk: int,
        given: bool,
    ):
        super().__init__()
        self.shapes = {name: value.shape for name, value in initial.items()}
        self.dtypes = {name: value.dtype for name, value in initial.items()}
        values = torch.cat([value.detach().flatten().cpu().float() for value in initial.values()])
        size = len(values)
        self.body = hidden_layers(code_dim, hidden)
        width = [code_dim, *hidden][-1]
        matrices = [shape for shape in self.shapes.values() if len(shape) >= 2]
        if matrices:
            # Partly the same network for all codes, which trains from the first step; partly each code's own.
            own = OTHER_STD * diversity if given else diversity
            shared_std = 0.0 if given else math.sqrt(1 - diversity**2)
            self.head = make_head(head, width, size, scale=own, shared_std=shared_std, chunk=head_chunk)
            self.register_buffer("base", values if given else torch.zeros(size))
            self.register_buffer("scale", torch.full((size,), gain / math.sqrt(fan_in(matrices[0]))))
        else:
            # A narrow start rather than a small scale, which would slow down learning as well.
            self.head = DenseHead(width, size, scale=OTHER_STD, shared_std=0.0)
            self.register_buffer("base", values)
            self.register_buffer("scale", torch.ones(size))
        if given or not matrices:
            fixed_scale *= OTHER_STD
        fixed = torch.randn(code_dim, size) * (fixed_scale / math.sqrt(code_dim)) if fixed_scale else None
        self.register_buffer("fixed", fixed)

    def forward(self, code: Tensor) -> dict[str, Tensor]:
        unit = self.head(self.body(code))
        if self.fixed is not None:
            unit = torch.addmm(unit, code, self.fixed)
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
            name: (piece.unflatten(1, shape) if shape else piece.squeeze(1)).to(self.dtypes[name])
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
        diversity: float,
        fixed_scale: float,
        noise_scale: float,
        head: str = "dense",
        head_chunk: int = 1,
        given: bool = False,
    ):
        super().__init__()
        layers: dict[str, dict[str, Tensor]] = {}
        for name, value in initial.items():
            layers.setdefault(layer_of(name), {})[name] = value
        self.code_dim = code_dim
        generators = [
            LayerGenerator(
                parameters,
                code_dim,
                hidden,
                gain=gain,
                diversity=diversity,
                fixed_scale=fixed_scale,
                head=head,
                head_chunk=head_chunk,
                given=given,
            )
            for parameters in layers.values()
        ]
        self.layers: Sequence[LayerGenerator] = nn.ModuleList(generators)  # type: ignore[assignment]
        self.noise_scale = noise_scale
        matrices = {
            name: value.shape
            for parameters in layers.values()
            for name, value in parameters.items()
            if value.dim() >= 2
        }
        first = layer_of(next(iter(matrices), ""))  # its noise would be noise on the data
        self._noisy = {name: shape for name, shape in matrices.items() if noise_scale and layer_of(name) != first}

    @property
    def code_size(self) -> int:
        """Length of a mixed code, L·d."""
        return len(self.layers) * self.code_dim

    @property
    def noise_size(self) -> int:
        """Length Z of the weight noise of one network; 0 where it is switched off."""
        return sum(shape.numel() for shape in self._noisy.values())

    def forward(self, codes: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Generate. ``noise`` ``[S, Z]`` from N(0, 1) multiplies weights by 1 + ``noise_scale``·noise."""
        weights: dict[str, Tensor] = {}
        for layer, code in zip(self.layers, codes.split(self.code_dim, dim=1), strict=True):
            weights.update(layer(code))
        pieces = noise.split([shape.numel() for shape in self._noisy.values()], dim=1)
        for (name, shape), piece in zip(self._noisy.items(), pieces, strict=True):
            weights[name] = torch.addcmul(
                weights[name], weights[name], piece.unflatten(1, shape), value=self.noise_scale
            )
        return weights

    def anchors(self, codes: Tensor) -> dict[str, Tensor]:
        """The frozen parts' weights, name → ``[S, *shape]``: what the prior is centred at."""
        weights: dict[str, Tensor] = {}
        for layer, code in zip(self.layers, codes.split(self.code_dim, dim=1), strict=True):
            weights.update(layer.anchors(code))
        return weights
