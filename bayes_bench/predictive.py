"""From the outputs of many networks to what a user asks: mean, entropy, mutual information, variance.

Probabilities are averaged, never logits. Reductions accumulate in float64. Entropies are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassPrediction:
    """The predictive distribution over classes, averaged over S networks. Float64.

    Attributes:
        mean: p̄, ``[B, C]``: the mean of the networks' softmax.
        entropy: H(p̄) ``[B]``, in [0, ln C]: total uncertainty.
        mutual_information: H(p̄) − mean of the networks' entropies ``[B]``, in [0, ln S]: disagreement
            between networks (epistemic); 0 where S = 1.
        networks: S.
    """

    mean: Tensor
    entropy: Tensor
    mutual_information: Tensor
    networks: int

    @property
    def label(self) -> Tensor:
        """The most probable class, ``[B]``."""
        return self.mean.argmax(-1)


@dataclass(frozen=True)
class ValuePrediction:
    """The predictive mixture of a regression over S networks, per target dimension. Float64.

    Attributes:
        mean: ``[B, D]``.
        epistemic_variance: variance between the networks' means, ``[B, D]`` (divisor S).
        aleatoric_variance: mean of the networks' noise variances, ``[B, D]``.
        networks: S.
    """

    mean: Tensor
    epistemic_variance: Tensor
    aleatoric_variance: Tensor
    networks: int

    @property
    def variance(self) -> Tensor:
        """Variance of the mixture: mean(σ² + μ²) − μ*², computed as the sum of its two parts."""
        return self.epistemic_variance + self.aleatoric_variance


def summarise_classes(log_probs: Tensor) -> ClassPrediction:
    """Summarise normalised log probabilities ``[S, B, C]``."""
    log_probs = log_probs.double()
    networks = log_probs.shape[0]
    probs = log_probs.exp()
    mean = probs.mean(0)
    entropy = torch.special.entr(mean).sum(-1)
    # The logarithms are there already; a probability of 0 must give 0, not 0·∞.
    expected = -(probs * log_probs.clamp(min=-1e4)).sum((0, 2)) / networks
    # Rounding can push the difference a hair below 0 or, at total disagreement, above ln S.
    information = (entropy - expected).clamp(0, math.log(networks))
    return ClassPrediction(mean, entropy, information, networks)


def summarise_values(mean: Tensor, noise_std: Tensor) -> ValuePrediction:
    """Summarise the networks' means and noise standard deviations, both ``[S, B, D]``."""
    mean = mean.double()
    return ValuePrediction(mean.mean(0), mean.var(0, correction=0), (noise_std.double() ** 2).mean(0), mean.shape[0])


def concatenate(
    parts: Sequence[ClassPrediction] | Sequence[ValuePrediction],
) -> ClassPrediction | ValuePrediction:
    """Join the summaries of consecutive chunks of examples."""
    first = parts[0]
    joined = {
        field.name: torch.cat([getattr(part, field.name) for part in parts])
        for field in fields(first)
        if isinstance(getattr(first, field.name), Tensor)
    }
    return replace(first, **joined)  # type: ignore[arg-type]


def log_mixture_nll(nll: Tensor) -> Tensor:
    """NLL of the equal mixture from the networks' own, ``[S, B]`` → ``[B]``: −[logsumexp_s log p_s − ln S]."""
    nll = nll.double()
    return math.log(nll.shape[0]) - torch.logsumexp(-nll, dim=0)
