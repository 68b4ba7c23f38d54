"""The mixer Q: noise → one code per layer, pre-trained so that the codes follow the prior P = N(0, I)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bayes_bench.hypergan.layers import unit_scale_mlp


class Mixer(nn.Module):
    """Noise ``[S, noise_dim]`` → mixed code ``[S, L·d]``: the codes of the L layers, side by side."""

    def __init__(self, noise_dim: int, hidden: Sequence[int], code_size: int):
        super().__init__()
        self.noise_dim = noise_dim
        self.code_size = code_size
        self.body = unit_scale_mlp(noise_dim, hidden, code_size)

    def forward(self, noise: Tensor) -> Tensor:
        codes: Tensor = self.body(noise)
        return codes


def pretrain(
    mixer: Mixer, rng: torch.Generator, *, tolerance: float, max_steps: int, device: torch.device
) -> tuple[int, float]:
    """Match mean and full covariance of the concatenated code to N(0, I).

    The loss is the unbiased estimate of ‖mean‖² + ‖covariance − I‖²_F from two half batches (one batch
    would be biased towards codes that are too small). Training stops when that distance, measured on a
    fresh batch, is at most (1 + tolerance) times its expectation for a sample of the prior of the same
    size, D/N + D(D+1)/N: no more can be asked of a batch of N. An all-zero code, for one, misses it.

    Returns:
        The number of steps, and the last distance as a multiple of that expectation.
    """
    size = mixer.code_size
    batch = 2 * max(128, 2 * size)
    expected = (size + size * (size + 1)) / batch
    eye = torch.eye(size, device=device)
    optimizer = torch.optim.Adam(mixer.parameters(), lr=2e-3)
    for step in range(max_steps + 1):
        codes = mixer(torch.randn(batch, mixer.noise_dim, generator=rng).to(device))
        means, errors = zip(*(_moments(half, eye) for half in codes.chunk(2)), strict=True)
        with torch.no_grad():
            pooled_mean, pooled_error = _moments(codes, eye)
            excess = float((pooled_mean**2).sum() + (pooled_error**2).sum()) / expected
        if excess <= 1 + tolerance or step == max_steps:
            return step, excess
        loss = ((means[0] * means[1]).sum() + (errors[0] * errors[1]).sum()) / size
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise AssertionError("unreachable: the loop returns at max_steps")


def _moments(codes: Tensor, eye: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``[D]`` and covariance − I ``[D, D]``."""
    mean = codes.mean(0)
    centred = codes - mean
    return mean, centred.T @ centred / (len(codes) - 1) - eye
