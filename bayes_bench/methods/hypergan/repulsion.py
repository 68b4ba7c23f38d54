"""Repulsion: keeps the predictions of generated networks apart away from the data.

In the spirit of Jain, Liu, Mueller & Gifford, *Maximizing Overall Diversity for Improved Uncertainty Estimates in Deep
Ensembles*, AAAI 2020, arXiv:1906.07380, whose diversity is another one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def away_from_data(x: Tensor, n: int, rng: torch.Generator) -> Tensor:
    """``n`` inputs a + b − c of three examples each, drawn from x ``[N, ...]``: ``[n, ...]``.

    They are made of the data's own features and are no examples of any class: of two images and the negative of a
    third laid over each other, or a point as far beyond the data as these are from each other.
    """
    a, b, c = x[torch.randint(len(x), (3, n), generator=rng).to(x.device)].unbind()
    return a + b - c


def overlap(predicted: Mapping[str, Tensor]) -> Tensor:
    """Mean over pairs of networks of the Bhattacharyya coefficient of their predictive distributions, ``[B]``.

    In [0, 1]; 1 where all networks predict the same. 1 minus it is the squared Hellinger distance.

    Args:
        predicted: of S ≥ 2 networks, as ``Likelihood.predict`` gives it.
    """
    if "log_probs" in predicted:
        roots = (predicted["log_probs"] / 2).exp()
        networks = len(roots)
        every_pair: Tensor = roots.sum(0).square().sum(-1)  # each pair twice, and each network with itself: 1
        return (every_pair - networks) / (networks * (networks - 1))
    mean, variance = predicted["mean"], predicted["noise_std"].square()
    first, second = torch.triu_indices(len(mean), len(mean), offset=1, device=mean.device)
    both = variance[first] + variance[second]
    widths = (4 * variance[first] * variance[second] / both.square()).log() / 4
    exponents = widths - (mean[first] - mean[second]).square() / (4 * both)
    coefficients: Tensor = exponents.sum(-1).exp()
    return coefficients.mean(0)
