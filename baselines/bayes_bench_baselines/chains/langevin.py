"""Stochastic-gradient Markov chains in one stacked pass: the samplers behind ``sgld`` and the teacher of ``apd``.

U(θ) = Σ NLL − log prior is the potential of the posterior, ĝ an estimate of ∇U/N from a minibatch (the prior's part
is exact). At temperature 1, with step size ε:

    sgld    θ ← θ − ε/2 ĝ + N(0, ε/N)
    psgld   θ ← θ − ε/2 P ĝ + N(0, P ε/N),  P = 1/(damping + √V), V the running mean of ĝ²
    sghmc   v ← (1 − a) v − ℓ ĝ + N(0, 2aℓ/N),  θ ← θ + v,  ℓ = a ε/2

so that ε means the same for all of them, and sghmc with friction a = 1 is sgld. N(0, v): v is the variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayes_bench import (
    FitData,
    HasState,
    Stateful,
    TensorState,
    TrainingLoop,
    UsageError,
    WeightPosterior,
    WeightSamples,
)
from bayes_bench_baselines.chains.config import ChainConfig
from bayes_bench_baselines.chains.stored import SHORTEST, chain_diagnostics

VALIDATIONS = 20
VALIDATION_SHARE = 0.2
DECAY_POWER = 0.55
SHORTEST_CYCLE = 10
"""Steps of a cycle, at least."""
NOISE_BATCHES = 16
"""Minibatches per chain from which the noise of its gradients is estimated."""


@dataclass(frozen=True)
class ChainPlan:
    """What the budget pays for.

    Attributes:
        steps: of every chain.
        stored: the steps, counted from 1, after which every chain stores its network; fewer of them than the
            settings ask for where the budget is small.
        validations: how often the chains' networks are validated on the way.
    """

    steps: int
    stored: tuple[int, ...]
    validations: int


def plan_chains(
    config: ChainConfig, budget: float, examples: int, validation_cost: float, leave: float = 0.0
) -> ChainPlan:
    """Steps and storage of the chains within ``budget`` gradient evaluations.

    Args:
        examples: training examples, N.
        validation_cost: gradient evaluations of one validation of the chains' networks.
        leave: of the budget, for later parts of the fit.

    Raises:
        UsageError: what follows the burn-in is too short for so many stored networks, or a cycle is.
    """
    cost = config.chains * min(config.batch_size, examples)
    own = budget - leave
    validations = max(1, min(VALIDATIONS, int(VALIDATION_SHARE * own / validation_cost))) if validation_cost else 1
    steps = max(0, int((own - validations * validation_cost) // cost))
    if config.schedule == "cyclical" and steps < config.cycles * SHORTEST_CYCLE:
        raise UsageError(
            f"{budget:,.0f} gradient evaluations pay for {steps:,} steps of {config.chains} chains, too few for "
            f"{config.cycles:,} cycles of at least {SHORTEST_CYCLE}: raise the budget, or lower cycles"
        )
    candidates = np.flatnonzero(~_burning_in(config, np.arange(steps) / max(1, steps))) + 1
    wanted = min(config.samples // config.chains, len(candidates) // (config.thinning or 1))
    if wanted < min(SHORTEST, config.samples // config.chains):
        reserved = leave + validations * validation_cost
        raise UsageError(
            f"{budget:,.0f} gradient evaluations, less {reserved:,.0f} for validations, pay for {steps:,} steps of "
            f"{config.chains} chains, of which {len(candidates):,} follow the burn-in; that is too few to store "
            f"{SHORTEST} networks of each chain: raise the budget, or lower chains, thinning or burn_in"
        )
    if config.thinning:
        chosen = candidates[::-1][: wanted * config.thinning : config.thinning][::-1]
    else:
        chosen = candidates[np.arange(1, wanted + 1) * len(candidates) // wanted - 1]
    return ChainPlan(steps, tuple(chosen.tolist()), validations)


def _burning_in(config: ChainConfig, progress: Any) -> Any:
    """Whether a step belongs to the burn-in that begins when the share ``progress`` (a number or an array) is done."""
    return (progress * config.cycles % 1 if config.schedule == "cyclical" else progress) < config.burn_in


def step_size_at(config: ChainConfig, progress: float) -> float:
    """ε when the share ``progress`` of the steps is done."""
    match config.schedule:
        case "polynomial":
            stretch = config.final_step_size ** (-1 / DECAY_POWER) - 1
            return float(config.step_size * (1 + stretch * progress) ** -DECAY_POWER)
        case "cyclical":
            within = progress * config.cycles % 1
            return config.step_size * 0.5 * (1 + math.cos(math.pi * within))
        case _:
            return config.step_size


class Chains(Stateful):
    """Chains of networks of one posterior, all in one stacked pass."""

    STATE = ("_steps", "_step_size", "_burning_in", "_sampled", "_sampled_time", "_averaged")

    def __init__(
        self, posterior: WeightPosterior, config: ChainConfig, data: FitData, loop: TrainingLoop, rng: torch.Generator
    ):
        self._posterior, self._config, self._data, self._rng = posterior, config, data, rng
        self._weights = TensorState(posterior.initial_weights(config.chains, rng, loop))
        for weight in self._weights.values():
            weight.requires_grad_()
        self._full = posterior.complete(self._weights)
        self._squares = TensorState({name: torch.zeros_like(w) for name, w in self.networks().items()})
        self._momentum = TensorState({name: torch.zeros_like(w) for name, w in self.networks().items()})
        self._steps = 0
        self._step_size = config.step_size
        self._burning_in = True
        self._sampled, self._sampled_time = 0, 0.0  # steps after the burn-in, and the sum of their sizes
        self._averaged = 0  # gradients in the running mean of squares
        self._batches = data.train.minibatches(
            min(config.batch_size, len(data.train)),
            rng,
            networks=config.chains,
            independent=config.batches == "independent",
        )

    def run(
        self,
        loop: TrainingLoop,
        plan: ChainPlan,
        store: Callable[[int], None],
        *,
        kept: Mapping[str, HasState] | None = None,
        leave: float = 0.0,
        after_step: Callable[[int], Mapping[str, Tensor]] = lambda _: {},
    ) -> None:
        """All steps of the plan, on the way of which the chains' networks are validated.

        Args:
            store: called with 0, 1, … whenever the networks are to be stored.
            kept: what ``store`` and ``after_step`` change, by name, for snapshots.
            leave: gradient evaluations of the budget that later parts of the fit need.
            after_step: called with the number of steps done; what it returns is reported.
        """
        posterior, config, data = self._posterior, self._config, self._data
        due = {step: position for position, step in enumerate(plan.stored)}

        def step() -> Mapping[str, Tensor]:
            loss = self._step()
            self._steps += 1
            if self._steps in due:
                store(due[self._steps])
            return {"loss": loss, **after_step(self._steps)}

        def schedule(progress: float) -> None:
            self._step_size = step_size_at(config, progress)
            self._burning_in = _burning_in(config, progress)

        loop.run(
            step,
            {
                "weights": self._weights,
                "squares": self._squares,
                "momentum": self._momentum,
                "batches": self._batches,
                "chains": self,
                **(kept or {}),
            },
            cost=config.chains * min(config.batch_size, len(data.train)),
            steps=plan.steps,
            leave=leave,
            schedule=schedule,
            validate=lambda: posterior.validation_scores(data, posterior.complete(self.networks())),
            validation_cost=posterior.validation_cost(data, config.chains),
            validations=plan.validations,
        )

    def networks(self) -> WeightSamples:
        """The present networks, name → ``[chains, *shape]``; they go on changing in place."""
        return {name: weight.detach() for name, weight in self._weights.items()}

    def _gradients(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The chains' losses ``[chains]`` and ĝ, on each chain's next minibatch."""
        posterior = self._posterior
        losses = posterior.losses_to_grad(self._full, *next(self._batches), own_inputs=True)
        (posterior.negative_log_prior(self._weights) / len(self._data.train)).sum().backward()
        gradients = {}
        for name, weight in self._weights.items():
            assert weight.grad is not None
            gradients[name] = weight.grad
        return losses, gradients

    @torch.no_grad()
    def _step(self) -> Tensor:
        """One step of every chain; the mean loss of their minibatches."""
        config, n = self._config, len(self._data.train)
        with torch.enable_grad():
            losses, gradients = self._gradients()
        # A cycle's exploration is plain descent (Zhang et al. 2020, algorithm 1).
        temperature = 0.0 if config.schedule == "cyclical" and self._burning_in else 1.0
        epsilon = self._step_size
        if not self._burning_in:
            self._sampled += 1
            self._sampled_time += epsilon
        if config.algorithm == "psgld" and (self._burning_in or config.adapt_always):
            self._adapt(gradients)
        for name, weight in self._weights.items():
            gradient = gradients[name]
            noise = torch.randn(weight.shape, generator=self._rng).to(weight)
            match config.algorithm:
                case "sgld":
                    weight.sub_(gradient, alpha=epsilon / 2).add_(noise, alpha=math.sqrt(temperature * epsilon / n))
                case "psgld":
                    scale = self._preconditioner(name)
                    weight.sub_(scale * gradient, alpha=epsilon / 2)
                    weight.addcmul_(scale.sqrt(), noise, value=math.sqrt(temperature * epsilon / n))
                case "sghmc":
                    rate = config.friction * epsilon / 2
                    momentum = self._momentum[name].mul_(1 - config.friction).sub_(gradient, alpha=rate)
                    momentum.add_(noise, alpha=math.sqrt(2 * temperature * config.friction * rate / n))
                    weight.add_(momentum)
        return losses.mean()

    def _adapt(self, gradients: Mapping[str, Tensor]) -> None:
        self._averaged += 1
        for name, gradient in gradients.items():
            self._squares[name].lerp_(gradient**2, 1 - self._config.preconditioner_decay)

    def _preconditioner(self, name: str) -> Tensor:
        # The running mean starts at 0; divided by the sum of its weights it is a mean from the first step on.
        mean = self._squares[name] / (1 - self._config.preconditioner_decay**self._averaged)
        return 1 / (self._config.preconditioner_damping + mean.sqrt())

    def diagnostics(self) -> dict[str, float]:
        """``temperature_excess``: by how much the noise of minibatches heats the chains where they are now.

        The mean over coordinates of (noise that the gradients add) / (noise that the sampler adds) =
        ε N P Var(ĝ)/4, for independent batches: 0 for the full data, 0.6 where the chain's temperature is 1.6. For
        epochs it is an upper bound. ε is the mean over the steps after the burn-in.
        """
        config, n = self._config, len(self._data.train)
        sums = {name: torch.zeros_like(w) for name, w in self.networks().items()}
        squares = {name: torch.zeros_like(w) for name, w in self.networks().items()}
        for _ in range(NOISE_BATCHES):
            for name, gradient in self._gradients()[1].items():
                sums[name] += gradient
                squares[name] += gradient**2
        total, count = 0.0, 0
        for name, squared in squares.items():
            variance = (squared - sums[name] ** 2 / NOISE_BATCHES) / (NOISE_BATCHES - 1)
            if config.algorithm == "psgld":
                variance *= self._preconditioner(name)
            total += float(variance.double().sum())
            count += variance.numel()
        step_size = self._sampled_time / max(1, self._sampled)
        return {"temperature_excess": step_size * n / 4 * total / count}


def check_chains(
    posterior: WeightPosterior, config: ChainConfig, data: FitData, budget: float, leave: float = 0.0
) -> ChainPlan:
    """For ``_check_fit``: refuse chains that the budget does not pay for.

    Raises:
        UsageError: with the sizes and the remedy.
    """
    return plan_chains(config, budget, len(data.train), posterior.validation_cost(data, config.chains), leave)


def sample_chains(
    posterior: WeightPosterior,
    config: ChainConfig,
    data: FitData,
    loop: TrainingLoop,
    rng: torch.Generator,
    *,
    leave: float = 0.0,
) -> tuple[WeightSamples, dict[str, float]]:
    """Run chains and keep ``config.samples`` of their networks, or as many as the budget gives.

    Args:
        leave: gradient evaluations of the budget that later parts of the fit need.

    Returns:
        Name → ``[samples, *shape]``, chain after chain, each in the order of its steps; and what there is to say
        about the chains.
    """
    plan = plan_chains(config, loop.budget, len(data.train), posterior.validation_cost(data, config.chains), leave)
    if (count := config.chains * len(plan.stored)) < config.samples:
        loop.note(f"{count} networks are stored, not {config.samples}: the budget gives the chains too few steps")
    chains = Chains(posterior, config, data, loop, rng)
    stored = TensorState(
        {
            name: weight.new_zeros(config.chains, len(plan.stored), *weight.shape[1:])
            for name, weight in chains.networks().items()
        }
    )

    def store(position: int) -> None:
        for name, weight in chains.networks().items():
            stored[name][:, position] = weight

    chains.run(loop, plan, store, kept={"stored": stored}, leave=leave)
    weights = {name: weight.flatten(0, 1) for name, weight in stored.items()}
    return weights, chains.diagnostics() | chain_diagnostics(
        posterior, posterior.complete(weights), data, config.chains
    )
