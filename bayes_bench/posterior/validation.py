"""Scores of a draw on validation examples: what early stopping goes by, and what the log of a fit tells."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bayes_bench.networks import layer_names
from bayes_bench.posterior.examples import Examples
from bayes_bench.posterior.likelihood import RESERVED, Likelihood
from bayes_bench.posterior.predictive import log_mixture_nll, summarise_classes, summarise_values
from bayes_bench.posterior.stacked.network import StackedNetwork


@torch.no_grad()
def prediction_scores(
    stacked: StackedNetwork, likelihood: Likelihood, examples: Examples, weights: Mapping[str, Tensor]
) -> dict[str, float]:
    """How good and how diverse the predictions of the networks ``weights [S, ...]`` are."""
    x, y = examples.inputs(), examples.y
    outputs = stacked(weights, x)
    scores = {"val_nll": float(log_mixture_nll(likelihood.nll(outputs, y, weights)).mean())}
    predicted = likelihood.predict(outputs, weights)
    if likelihood.kind == "classification":
        return scores | _class_scores(predicted["log_probs"], y)
    values = summarise_values(**predicted)
    return scores | {
        "val_rmse": float(((values.mean - y) ** 2).mean().sqrt()),
        "epistemic_std": float(values.epistemic_variance.mean().sqrt()),
    }


def _class_scores(log_probs: Tensor, y: Tensor) -> dict[str, float]:
    """Of log probabilities ``[S, N, C]``."""
    summary = summarise_classes(log_probs)
    scores = {"val_accuracy": float((summary.label == y).double().mean())}
    if summary.networks < 2:
        return scores
    labels = log_probs.argmax(-1)
    counts = nn.functional.one_hot(labels, summary.mean.shape[1]).sum(0).double()
    agreeing = (counts * (counts - 1)).sum(-1) / (summary.networks * (summary.networks - 1))
    scores["disagreement"] = float(1 - agreeing.mean())
    errors = float((labels != y).double().mean())
    if errors > 0:
        scores["disagreement_normalised"] = scores["disagreement"] / errors
    scores["mutual_information"] = float(summary.mutual_information.mean())
    return scores


@torch.no_grad()
def weight_spreads(network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, float]:
    """Std/mean of the networks' L2 norms: ``weight_spread`` of all weights, ``weight_spread/LAYER`` of a layer's."""
    norms = {name: w.reshape(len(w), -1).norm(dim=1) for name, w in weights.items() if not name.startswith(RESERVED)}
    layers = {f"weight_spread/{layer}": norms[name] for name, layer in layer_names(network).items()}
    rows = torch.stack([torch.stack(list(norms.values())).norm(dim=0), *layers.values()])
    if rows.shape[1] < 2:
        return {}
    spreads = (rows.std(dim=1, correction=0) / rows.mean(dim=1)).tolist()  # one wait for a GPU
    named = zip(["weight_spread", *layers], spreads, strict=True)
    # A frozen layer of zeros has no spread.
    return {name: spread for name, spread in named if math.isfinite(spread)}
