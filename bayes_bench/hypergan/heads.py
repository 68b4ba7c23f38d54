"""Heads: the last layer of a generator, from its hidden units to all weights of one layer of the target network.

Imported by ``generators`` alone. Every head takes ``[S, width]`` whose rows have length √width and gives ``[S, size]``
that starts with mean 0 and standard deviation 1, of which the share ``diversity`` differs between codes and the rest
is one random network for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

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


class LowRankHead(nn.Module):
    """A matrix ``[out, in]`` = one learned for all codes + Σ_r u_r v_rᵀ / √rank, with u and v from the code.

    A convolution's kernel is the matrix ``[out, in·k·k]``. Vectors are written densely. The generated networks differ
    by matrices of that rank, whereas what they have in common is free.
    """

    def __init__(self, width: int, shapes: Mapping[str, torch.Size], rank: int, *, diversity: float):
        super().__init__()
        self.rank, self.diversity = rank, diversity
        self.matrices = [(shape[0], math.prod(shape[1:])) if len(shape) >= 2 else None for shape in shapes.values()]
        self.sizes = [shape.numel() for shape in shapes.values()]
        factors = sum(
            rank * sum(matrix) if matrix else size for matrix, size in zip(self.matrices, self.sizes, strict=True)
        )
        self.factors = DenseHead(width, factors, scale=1.0, shared_std=0.0)
        self.shared = nn.Parameter(torch.randn(sum(self.sizes)) * math.sqrt(1 - diversity**2))

    def forward(self, hidden: Tensor) -> Tensor:
        rest, pieces = self.factors(hidden), []
        for matrix, size in zip(self.matrices, self.sizes, strict=True):
            if matrix is None:
                own, rest = rest.split([size, rest.shape[1] - size], dim=1)
            else:
                rows, columns = matrix
                u, v, rest = rest.split(
                    [self.rank * rows, self.rank * columns, rest.shape[1] - self.rank * sum(matrix)], 1
                )
                u, v = u.unflatten(1, (rows, self.rank)), v.unflatten(1, (self.rank, columns))
                own = torch.bmm(u, v).flatten(1) / math.sqrt(self.rank)
            pieces.append(own)
        return torch.add(self.shared, torch.cat(pieces, 1), alpha=self.diversity)


class ChunkedHead(nn.Module):
    """Writes a layer in chunks: one small head for all of them, told by a learned embedding which chunk it writes.

    Ha, Dai & Le, HyperNetworks, arXiv:1609.09106; von Oswald et al., arXiv:1906.00695. Beside it, one learned network
    for all codes.
    """

    def __init__(self, width: int, size: int, chunk: int, *, diversity: float):
        super().__init__()
        self.size, self.diversity = size, diversity
        self.embeddings = nn.Parameter(torch.randn(math.ceil(size / chunk), width))
        self.head = DenseHead(width, chunk, scale=1.0, shared_std=0.0)
        self.shared = nn.Parameter(torch.randn(size) * math.sqrt(1 - diversity**2))

    def forward(self, hidden: Tensor) -> Tensor:
        told = F.leaky_relu(hidden.unsqueeze(1) + self.embeddings, 0.2)
        chunks = self.head(F.layer_norm(told, told.shape[-1:]))
        return torch.add(self.shared, chunks.flatten(1)[:, : self.size], alpha=self.diversity)


def make_head(
    kind: str, width: int, shapes: Mapping[str, torch.Size], *, diversity: float, rank: int, chunk: int
) -> nn.Module:
    """The head of that kind, or a dense one where that has fewer parameters."""
    size = sum(shape.numel() for shape in shapes.values())
    dense = width * size
    if kind == "low_rank":
        factors = sum(rank * (s[0] + math.prod(s[1:])) if len(s) >= 2 else s.numel() for s in shapes.values())
        if width * factors + size < dense:
            return LowRankHead(width, shapes, rank, diversity=diversity)
    if kind == "chunked" and width * (chunk + math.ceil(size / chunk)) + size < dense:
        return ChunkedHead(width, size, chunk, diversity=diversity)
    return DenseHead(width, size, scale=diversity, shared_std=math.sqrt(1 - diversity**2))
