"""Heads: the last layer of a generator, from its hidden units to all weights of one layer of the target network.

Every head takes ``[S, width]`` whose rows have length √width and gives ``[S, size]``
that starts with mean 0: what differs between codes has the standard deviation ``scale``, and ``shared_std`` is that of
one random network for all.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseHead(nn.Linear):
    """Every weight has a column of its own: ``width`` · ``size`` parameters, the paper's."""

    def __init__(self, width: int, size: int, *, scale: float, shared_std: float):
        super().__init__(width, size)
        nn.init.normal_(self.weight, std=width**-0.5)
        with torch.no_grad():
            self.weight.mul_(scale)
        if shared_std:
            nn.init.normal_(self.bias, std=shared_std)
        else:
            nn.init.zeros_(self.bias)


class ChunkedHead(nn.Module):
    """Writes a layer in chunks: one small head for all of them, told by a learned embedding which chunk it writes.

    Ha, Dai & Le, HyperNetworks, arXiv:1609.09106; von Oswald et al., arXiv:1906.00695. Beside it, one learned network
    for all codes.
    """

    def __init__(self, width: int, size: int, chunk: int, *, scale: float, shared_std: float):
        super().__init__()
        self.size, self.scale = size, scale
        self.embeddings = nn.Parameter(torch.randn(math.ceil(size / chunk), width))
        self.head = DenseHead(width, chunk, scale=1.0, shared_std=0.0)
        self.shared = nn.Parameter(torch.randn(size) * shared_std)

    def forward(self, hidden: Tensor) -> Tensor:
        # Multiplied, not added: else what differs between codes would be nearly the same in every chunk.
        told = hidden.unsqueeze(1) * self.embeddings
        chunks = self.head(F.layer_norm(told, told.shape[-1:]))
        return torch.add(self.shared, chunks.flatten(1)[:, : self.size], alpha=self.scale)


def make_head(kind: str, width: int, size: int, *, scale: float, shared_std: float, chunk: int) -> nn.Module:
    """The head of that kind, or a dense one where that has fewer parameters."""
    if kind == "chunked" and width * (chunk + math.ceil(size / chunk)) + size < width * size:
        return ChunkedHead(width, size, chunk, scale=scale, shared_std=shared_std)
    return DenseHead(width, size, scale=scale, shared_std=shared_std)
