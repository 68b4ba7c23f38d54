"""Training of independent networks in one stacked pass: shared by ``map`` (one) and ``ensemble`` (several)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bayes_bench import Examples, FitData, TensorState, TrainingLoop, WeightPosterior, WeightSamples, cosine_decay

PERTURBATION = 0.1
"""Noise on given weights where members start there, as a share of the standard deviation of each parameter's."""


def fit_members(
    posterior: WeightPosterior,
    data: FitData,
    loop: TrainingLoop,
    rng: torch.Generator,
    *,
    members: int,
    use_prior: bool,
    adversarial_epsilon: float = 0.0,
    leave: float = 0.0,
) -> WeightSamples:
    """Train ``members`` networks, each from its own initialisation on its own batches.

    The losses of the members are summed, not averaged: no member's gradient depends on how many there are,
    so that an ensemble's member is the network that would have been trained alone.

    Args:
        leave: gradient evaluations of the budget that are needed afterwards.

    Returns:
        Name → ``[members, *shape]``.
    """
    config = posterior.config
    weights = TensorState(posterior.initial_weights(members, rng, loop))
    if posterior.start == "given":
        perturb(weights, rng)
    optimizer = torch.optim.Adam([w.requires_grad_() for w in weights.values()], lr=config.learning_rate, fused=True)
    batch_size = min(config.batch_size, len(data.train))
    batches = data.train.minibatches(batch_size, rng, networks=members)
    n = len(data.train)
    epsilon = adversarial_epsilon * _ranges(data.train) if adversarial_epsilon else None

    def losses_and_gradients(x: Tensor, y: Tensor) -> Tensor:
        full = posterior.complete(weights)
        if epsilon is None:
            return posterior.losses_to_grad(full, x, y, own_inputs=True)
        x = x.detach().requires_grad_()
        losses = posterior.losses(full, x, y, own_inputs=True)
        (gradient,) = torch.autograd.grad(losses.sum(), x, retain_graph=True)
        moved = (x + epsilon * gradient.sign()).detach()
        losses = (losses + posterior.losses(full, moved, y, own_inputs=True)) / 2
        optimizer.zero_grad()
        losses.sum().backward()
        return losses.detach()

    def step() -> Mapping[str, Tensor]:
        losses = losses_and_gradients(*next(batches))
        if use_prior:
            (posterior.negative_log_prior(weights) / n).sum().backward()
        optimizer.step()
        return {"loss": losses.mean()}

    loop.run(
        step,
        {"members": weights, "optimizer": optimizer, "batches": batches},
        # With adversarial examples: two forward and backward passes, and one backward pass to the inputs.
        cost=members * batch_size * (7 / 3 if adversarial_epsilon else 1),
        schedule=cosine_decay(optimizer, config.final_learning_rate),
        validate=lambda: posterior.validation_scores(data, posterior.complete(weights)),
        validation_cost=posterior.validation_cost(data, members),
        leave=leave,
        keep_best=config.keep_best,
        patience=config.patience,
    )
    return {name: value.detach() for name, value in weights.items()}


def perturb(weights: WeightSamples, rng: torch.Generator) -> None:
    """Move all networks but the first, in place: members that start at the same weights would stay close together."""
    for value in weights.values():
        spread = value[0].std() if value[0].numel() > 1 else value[0].abs()
        value[1:] += PERTURBATION * spread * torch.randn(value[1:].shape, generator=rng).to(value)


def _ranges(examples: Examples) -> Tensor:
    """Largest minus smallest value of each input, ``[...]``."""
    highest, lowest = zip(*((x.amax(0), x.amin(0)) for x, _ in examples.blocks()), strict=True)
    return torch.stack(highest).amax(0) - torch.stack(lowest).amin(0)
