"""How far the chains of a sampler agree: shared by the methods that store them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from bayes_bench import Examples, FitData, WeightPosterior, WeightSamples, effective_sample_size, split_rhat

SHORTEST = 4
"""Networks that a chain must have for split R-hat."""

STATES = 100
"""States that are looked at, of all chains together: evaluating many more could take longer than the fit."""

EXAMPLES = 1000
"""Examples, of training and of validation, on which states are looked at, for the same reason."""

LARGEST = 1000.0
"""What an R-hat is called that is larger, or infinite as that of chains that stand still."""

BLOCK = 2**23
"""Outputs that are held at once."""


class StoredChains(WeightPosterior):
    """A posterior that is networks stored along chains: as many as the fit has stored, at most ``config.samples``."""

    uses_prior = True

    _weights: WeightSamples | None = None
    """Name → ``[S, *shape]``, chain after chain, each in the order of its steps."""

    @property
    def support(self) -> int:
        """Stored networks; before a fit, those that a large enough budget gives."""
        if self._weights is None:
            return int(self.config.samples)
        return next(iter(self._weights.values())).shape[0]

    def _sample(self, n: int, rng: torch.Generator) -> WeightSamples:
        # A random choice without repeats, so that a small draw favours no chain.
        weights = self._state()
        chosen = torch.randperm(self.support, generator=rng)[:n].to(self.device)
        return {name: value[chosen] for name, value in weights.items()}

    def _state(self) -> WeightSamples:
        assert self._weights is not None, "fit or load first"
        return self._weights

    def _load_state(self, state: Mapping[str, Tensor]) -> None:
        self._weights = dict(state)


def chain_diagnostics(
    posterior: WeightPosterior, weights: Mapping[str, Tensor], data: FitData, chains: int
) -> dict[str, float]:
    """R-hat and effective sample size of stored chains, in weight space by one number and in function space.

    For readers of the record: it costs no budget. Weights themselves are not compared, since a network's units can
    be exchanged without any change of the function.

    Args:
        weights: name → ``[chains · length, *shape]``, the first chain's networks in their order, then the second's;
            frozen parameters included.

    At most ``STATES`` states and ``EXAMPLES`` examples, both evenly spaced, are looked at.

    Returns:
        ``rhat_log_joint`` and ``ess_log_joint`` of log p(training data, weights), where log p(training data | weights)
        is N times its mean over the examples looked at; ``rhat_predictions``, the 95 % quantile, and
        ``ess_predictions``, the median, over all outputs on the validation inputs (training inputs where there are
        none): probabilities of classes, or means of a regression. Chains shorter than 4 give nothing, nor do values
        that are not finite.
    """
    length = next(iter(weights.values())).shape[0] // chains
    if length < SHORTEST:
        return {}
    kept = min(length, max(SHORTEST, STATES // chains))
    chosen = (torch.arange(chains)[:, None] * length + _evenly(length, kept)).flatten().to(posterior.device)
    weights, length = {name: value[chosen] for name, value in weights.items()}, kept
    found = {}
    seen = _thinned(data.train)
    joint = log_joint(posterior, weights, seen, examples=len(data.train)).view(chains, length).cpu().numpy()
    if np.isfinite(joint).all():
        rhat = min(LARGEST, split_rhat(joint).item())
        found = {"rhat_log_joint": rhat, "ess_log_joint": effective_sample_size(joint).item()}
    rhats, sizes = [], []
    for values, _ in _predictions(posterior, weights, _thinned(data.validation) if data.validation else seen):
        draws = values.reshape(chains, length, -1).cpu().numpy()
        if not np.isfinite(draws).all():
            return found
        rhats.append(split_rhat(draws))
        sizes.append(effective_sample_size(draws))
    # "higher": an infinite value, of chains that stand still, is not interpolated.
    rhat = float(np.quantile(np.concatenate(rhats), 0.95, method="higher"))
    found["rhat_predictions"] = min(LARGEST, rhat)
    found["ess_predictions"] = float(np.median(np.concatenate(sizes)))
    return found


@torch.no_grad()
def log_joint(posterior: WeightPosterior, weights: Mapping[str, Tensor], seen: Examples, *, examples: int) -> Tensor:
    """Log p(targets, weights | inputs) of each network up to a constant, ``[S]`` in float64.

    Args:
        seen: the examples, or some that stand for all.
        examples: how many there are in all.
    """
    nll = sum(nll.double().sum(1) for _, nll in _predictions(posterior, weights, seen))
    own = {name: weights[name] for name in posterior.initial}
    joint: Tensor = -posterior.negative_log_prior(own) - nll * (examples / len(seen))
    return joint


def _thinned(examples: Examples) -> Examples:
    """At most ``EXAMPLES`` of them, evenly spaced, as they are: without augmentation."""
    chosen = _evenly(len(examples), min(EXAMPLES, len(examples))).to(examples.x.device)
    return Examples(examples.x[chosen], examples.y[chosen])


def _evenly(length: int, kept: int) -> Tensor:
    """Of 0 … length − 1 ``kept`` numbers, evenly spaced, the first and the last among them."""
    return torch.linspace(0, length - 1, kept, dtype=torch.float64).round().long()


def _predictions(
    posterior: WeightPosterior, weights: Mapping[str, Tensor], examples: Examples
) -> Iterator[tuple[Tensor, Tensor]]:
    """Probabilities or means ``[S, B, …]`` and NLL ``[S, B]``, in chunks of examples."""
    networks = next(iter(weights.values())).shape[0]
    size = max(1, BLOCK // (networks * posterior.likelihood.output_width))
    for x, y in examples.blocks(size):
        outputs = posterior.outputs(x, weights)
        predicted = posterior.likelihood.predict(outputs, weights)
        values = predicted["log_probs"].exp() if "log_probs" in predicted else predicted["mean"]
        yield values, posterior.likelihood.nll(outputs, y, weights)
