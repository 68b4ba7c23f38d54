"""From the outputs of many networks to what a user asks: mean, entropy, mutual information, variance.

Probabilities are averaged, never logits. Reductions accumulate in float64. Entropies are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from bayes_bench.errors import UsageError


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


class ClassReducer:
    """Streaming: takes networks in any number of parts and keeps sums alone, so that memory does not grow with S."""

    def __init__(self) -> None:
        self._networks = 0
        self._probs: Tensor | None = None
        self._entropies: Tensor | None = None

    def add(self, log_probs: Tensor) -> None:
        """Take in normalised log probabilities of more networks on the same examples, ``[S, B, C]``."""
        log_probs = log_probs.double()
        probs = log_probs.exp()
        # The logarithms are there already; a probability of 0 must give 0, not 0·∞.
        entropies = -(probs * log_probs.clamp(min=-1e4)).sum((0, 2))
        self._networks += len(log_probs)
        self._probs = probs.sum(0) if self._probs is None else self._probs + probs.sum(0)
        self._entropies = entropies if self._entropies is None else self._entropies + entropies

    def result(self) -> ClassPrediction:
        """Of all networks so far.

        Raises:
            UsageError: there were none.
        """
        if not self._networks or self._probs is None or self._entropies is None:
            raise UsageError("no networks to summarise; draw at least one")
        mean = self._probs / self._networks
        entropy = torch.special.entr(mean).sum(-1)
        # Rounding can push the difference a hair below 0 or, at total disagreement, above ln S.
        information = (entropy - self._entropies / self._networks).clamp(0, math.log(self._networks))
        return ClassPrediction(mean, entropy, information, self._networks)


class ValueReducer:
    """The same for a regression; means and variances are merged without cancellation (Chan et al. 1983)."""

    def __init__(self) -> None:
        self._networks = 0
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None
        self._noise: Tensor | None = None

    def add(self, mean: Tensor, noise_std: Tensor) -> None:
        """Take in means and noise standard deviations of more networks on the same examples, both ``[S, B, D]``."""
        mean, own = mean.double(), len(mean)
        part, noise = mean.mean(0), (noise_std.double() ** 2).sum(0)
        squares = ((mean - part) ** 2).sum(0)
        total = self._networks + own
        if self._mean is None or self._squares is None or self._noise is None:
            self._mean, self._squares, self._noise = part, squares, noise
        else:
            shift = part - self._mean
            self._squares = self._squares + squares + shift**2 * (self._networks * own / total)
            self._mean = self._mean + shift * (own / total)
            self._noise = self._noise + noise
        self._networks = total

    def result(self) -> ValuePrediction:
        """Of all networks so far.

        Raises:
            UsageError: there were none.
        """
        if not self._networks or self._mean is None or self._squares is None or self._noise is None:
            raise UsageError("no networks to summarise; draw at least one")
        return ValuePrediction(self._mean, self._squares / self._networks, self._noise / self._networks, self._networks)


def summarise_classes(log_probs: Tensor) -> ClassPrediction:
    """Summarise normalised log probabilities ``[S, B, C]``."""
    reducer = ClassReducer()
    reducer.add(log_probs)
    return reducer.result()


def summarise_values(mean: Tensor, noise_std: Tensor) -> ValuePrediction:
    """Summarise the networks' means and noise standard deviations, both ``[S, B, D]``."""
    reducer = ValueReducer()
    reducer.add(mean, noise_std)
    return reducer.result()


def concatenate(
    parts: Sequence[ClassPrediction] | Sequence[ValuePrediction],
) -> ClassPrediction | ValuePrediction:
    """Join the summaries of consecutive chunks of examples."""
    first = parts[0]
    if len(parts) == 1:
        return first
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
