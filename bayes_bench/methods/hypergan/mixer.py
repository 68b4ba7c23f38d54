"""The mixer Q: noise → one code per layer, pre-trained so that the codes follow the prior P = N(0, I)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from bayes_bench.methods.hypernetworks.layers import unit_scale_mlp


class Mixer(nn.Module):
    """Noise ``[S, noise_dim]`` → mixed code ``[S, L·d]``: the codes of the L layers, side by side."""

    def __init__(self, noise_dim: int, hidden: Sequence[int], code_size: int):
        super().__init__()
        self.noise_dim = noise_dim
        self.code_size = code_size
        # A last hidden layer narrower than the code (and one more, which layer norm takes) could not give it a
        # covariance of full rank.
        widths = [*hidden[:-1], max(hidden[-1], code_size + 1)] if hidden else [code_size + 1]
        self.body = unit_scale_mlp(noise_dim, widths, code_size)

    def forward(self, noise: Tensor) -> Tensor:
        codes: Tensor = self.body(noise)
        return codes


def pretrain(
    mixer: Mixer, rng: torch.Generator, *, tolerance: float, max_steps: int, device: torch.device
) -> tuple[int, float]:
    """Match mean and full covariance of the concatenated code to N(0, I).

    The loss is the unbiased estimate of ‖mean‖² + ‖covariance − I‖²_F from two half batches; one batch
    would be biased, and would take codes that are too small for good ones. Training stops when the estimate
    on a fresh batch, divided by the code's size, is at most ``tolerance``: an all-zero code has distance 1,
    codes of standard deviation 0.9 have 0.036. It starts from a whitened last layer, which is close to the
    solution and makes long training rare.

    Returns:
        The number of steps, and the last distance per dimension of the code.
    """
    size = mixer.code_size
    half = max(128, 2 * size)
    eye = torch.eye(size, device=device)

    def distance() -> Tensor:
        noise = torch.randn(2 * half, mixer.noise_dim, generator=rng).to(device)
        (mean, error), (other_mean, other_error) = (_moments(codes, eye) for codes in mixer(noise).chunk(2))
        return ((mean * other_mean).sum() + (error * other_error).sum()) / size

    _whiten(mixer, rng, device)
    optimizer = torch.optim.Adam(mixer.parameters(), lr=2e-3)
    for step in range(max_steps + 1):
        loss = distance()
        if loss <= tolerance or step == max_steps:
            # Confirmed on more data: one lucky batch does not end the training.
            with torch.no_grad():
                confirmed = float(torch.stack([distance() for _ in range(4)]).mean())
            if confirmed <= tolerance or step == max_steps:
                return step, confirmed
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise AssertionError("unreachable: the loop returns at max_steps")


@torch.no_grad()
def _whiten(mixer: Mixer, rng: torch.Generator, device: torch.device) -> None:
    """Set the last layer so that the codes have mean 0 and covariance I, as far as a large sample tells."""
    *hidden, last = mixer.body
    head = cast("nn.Linear", last)
    sample = min(65_536, 128 * head.in_features)
    activations = torch.randn(sample, mixer.noise_dim, generator=rng).to(device)
    for layer in hidden:
        activations = layer(activations)
    mean = activations.mean(0)
    variances, directions = torch.linalg.eigh((activations - mean).T.cov())
    top, axes = variances[-mixer.code_size :], directions[:, -mixer.code_size :]
    # A random rotation, so that no code is left with the weakest direction alone.
    rotation = torch.linalg.qr(torch.randn(mixer.code_size, mixer.code_size, generator=rng))[0].to(device)
    head.weight.copy_(rotation @ (axes / top.sqrt()).T)
    head.bias.copy_(-head.weight @ mean)


def _moments(codes: Tensor, eye: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``[D]`` and covariance − I ``[D, D]``."""
    mean = codes.mean(0)
    centred = codes - mean
    return mean, centred.T @ centred / (len(codes) - 1) - eye
