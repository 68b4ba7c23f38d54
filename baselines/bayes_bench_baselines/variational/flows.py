"""Normalizing flows of MNF: random multipliers and their auxiliary distribution."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GATE_BIAS = 2.0
"""Gates start near 0.88, so that a new flow is close to the identity."""
LEAST_VARIANCE = 1e-16
"""Of an output whose inputs are all zero: the root has no slope at 0."""


class MaskedFlow(nn.Module):
    """One masked NVP step: z′ = g z + (1 − g) μ, where shift μ and gate g are functions of m z; m is ``mask [D]``.

    Where the mask is 1, z stays: g is 1.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, hidden: int):
        super().__init__()
        self.register_buffer("mask", mask)
        self.hidden = nn.Linear(len(mask), hidden)
        self.shift_and_gate = nn.Linear(hidden, 2 * len(mask))
        with torch.no_grad():
            self.shift_and_gate.bias[len(mask) :] += GATE_BIAS

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Move z ``[S, D]`` to z′ ``[S, D]``; also the log determinant of ∂z′/∂z ``[S]``."""
        shift, log_gate = self._shift_and_log_gate(z)
        return torch.lerp(shift, z, log_gate.exp()), log_gate.sum(-1)

    def inverse(self, moved: Tensor) -> Tensor:
        """The z ``[S, D]`` that ``forward`` moves to z′ ``[S, D]``."""
        shift, log_gate = self._shift_and_log_gate(moved)
        return torch.lerp(shift, moved, torch.exp(-log_gate))

    def _shift_and_log_gate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        shift, gate = self.shift_and_gate(torch.tanh(self.hidden(self.mask * z))).chunk(2, dim=-1)
        # Gates of 1, whatever the shift, where the mask is: there z stays.
        return shift, (1 - self.mask) * F.logsigmoid(gate)


class Flow(nn.Module):
    """Masked NVP steps one after the other; every second has the complement of the mask before it.

    The masks are drawn once, Bernoulli(½), from PyTorch's global generator.
    """

    def __init__(self, size: int, steps: int, hidden: int):
        super().__init__()
        masks: list[Tensor] = []
        for step in range(steps):
            masks.append(1 - masks[-1] if step % 2 else torch.bernoulli(torch.full((size,), 0.5)))
        self.steps = nn.ModuleList(MaskedFlow(mask, hidden) for mask in masks)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Move z ``[S, D]`` to z′ ``[S, D]``; also the log determinant of ∂z′/∂z ``[S]``."""
        log_det = z.new_zeros(len(z))
        for step in self.steps:
            z, own = step(z)
            log_det = log_det + own
        return z, log_det

    def inverse(self, moved: Tensor) -> Tensor:
        """The z ``[S, D]`` that ``forward`` moves to z′ ``[S, D]``."""
        for step in reversed(self.steps):
            moved = cast("MaskedFlow", step).inverse(moved)
        return moved


class Multipliers(nn.Module):
    """q(z): a factorised Gaussian around 1, moved by a flow."""

    def __init__(self, size: int, flow: Flow):
        super().__init__()
        self.mean = nn.Parameter(1 + 0.01 * torch.randn(size))
        self.log_variance = nn.Parameter(torch.full((size,), math.log(0.1)))
        self.flow = flow

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Standard normal noise ``[S, D]`` → z ``[S, D]`` and log q(z) ``[S]``."""
        z, log_det = self.flow(self.mean + (0.5 * self.log_variance).exp() * noise)
        return z, -0.5 * (math.log(2 * math.pi) + self.log_variance + noise**2).sum(-1) - log_det


class Auxiliary(nn.Module):
    """r(z|W): a flow takes z to z′, which is Gaussian with means and precisions from a summary a ``[H]`` of W."""

    def __init__(self, size: int, flow: Flow, squash: Callable[[Tensor], Tensor]):
        super().__init__()
        self.combine = nn.Parameter(torch.randn(size))
        self.to_mean = nn.Parameter(0.1 * torch.randn(size))
        self.to_log_precision = nn.Parameter(0.1 * torch.randn(size))
        self.flow = flow
        self.squash = squash

    def summarise(self, z: Tensor, mean: Tensor, std: Tensor, noise: Tensor) -> Tensor:
        """The summary a ``[S, H]`` of weights drawn given z ``[S, D]``.

        Weights ``[D, H]`` with that mean (before z multiplies it) and std need not be drawn themselves: their sums
        over D, weighted with ``combine``, are independent Gaussians. ``noise [S, H]`` is standard normal.
        """
        centre = (self.combine * z) @ mean
        return self.squash(centre + root(self.combine**2 @ std**2) * noise)

    def log_prob(self, z: Tensor, summary: Tensor) -> Tensor:
        """Log density r(z|W) ``[S]`` of z ``[S, D]``, where a ``[S, H]`` sums up W."""
        moved, log_det = self.flow(z)
        level = summary.mean(-1, keepdim=True)  # of the outer product of b and a, averaged over a
        log_precision = self.to_log_precision * level
        squares = log_precision.exp() * (moved - self.to_mean * level) ** 2
        log_density: Tensor = 0.5 * (log_precision - squares - math.log(2 * math.pi)).sum(-1) + log_det
        return log_density


def root(variance: Tensor) -> Tensor:
    return variance.clamp_min(LEAST_VARIANCE).sqrt()
