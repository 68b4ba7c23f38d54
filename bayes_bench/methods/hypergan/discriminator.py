"""The discriminator D: tells mixed codes from samples of the prior; raw logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from bayes_bench.methods.hypernetworks.layers import unit_scale_mlp


class Discriminator(nn.Module):
    """Codes ``[S, L·d]`` → logits ``[S, V]`` of V views: 1 for the joint code, L where D sees each code alone.

    The joint one is the paper's definition. The official code applies one shared network to each layer's
    code, which cannot see that the codes of two layers depend on each other.
    """

    def __init__(self, code_size: int, views: int, hidden: Sequence[int]):
        super().__init__()
        self.views = views
        self.body = unit_scale_mlp(code_size // views, hidden, 1)

    def forward(self, codes: Tensor) -> Tensor:
        logits: Tensor = self.body(codes.unflatten(1, (self.views, -1)))
        return logits.squeeze(-1)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """−E log D(real) − E log(1 − D(fake)), from logits."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """The non-saturating −E log D(fake), from logits: falls as the codes look more like the prior."""
    return F.softplus(-fake).mean()


def accuracy(real: Tensor, fake: Tensor) -> Tensor:
    """Share of codes and prior samples that D tells right; ½ means it cannot."""
    return ((real > 0).double().mean() + (fake <= 0).double().mean()) / 2
