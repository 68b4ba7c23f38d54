"""How far the networks of a job have gone from the network that its fit started at."""

from __future__ import annotations

import torch
from torch import Tensor

from bayes_bench.posterior.base import WeightPosterior, WeightSamples
from bayes_bench.posterior.stacked.scaled import take
from bayes_bench.settings import Diagnostic, DiagnosticTable
from bayes_bench.tasks.task import Task

ROWS = 1024
"""Test examples that are looked at together."""
TABLE = DiagnosticTable(
    "The given network",
    (
        Diagnostic("given_accuracy", "accuracy", "Given network"),
        Diagnostic("given_nll", "NLL", "Given network"),
        Diagnostic("mean_network_accuracy", "accuracy", "Network of mean weights"),
        Diagnostic("mean_network_nll", "NLL", "Network of mean weights"),
        Diagnostic("given_difference", "largest difference of outputs"),
    ),
    ("Fits started at given weights; NLL in the units the network is trained in.",),
)


def against_given(posterior: WeightPosterior, weights: WeightSamples, task: Task) -> dict[str, float]:
    """The given network and the network of mean weights, on the test examples: the numbers of ``TABLE``."""
    networks = {"given": posterior.complete({name: value[None] for name, value in posterior.initial.items()})}
    networks["mean_network"] = {name: _mean(weights[name]) for name in networks["given"]}
    sums = {name: {"nll": 0.0, "accuracy": 0.0} for name in networks}
    largest, y = 0.0, task.test.y
    assert y is not None
    for start in range(0, len(y), ROWS):
        x, targets = task.test.x[start : start + ROWS], y[start : start + ROWS].to(posterior.device)
        seen = {name: posterior.outputs(x, network) for name, network in networks.items()}
        for name, network in networks.items():
            sums[name]["nll"] += float(posterior.likelihood.nll(seen[name], targets, network).sum())
            if task.likelihood.kind == "classification":
                sums[name]["accuracy"] += float((seen[name][0].argmax(-1) == targets).sum())
        largest = max(largest, float((seen["mean_network"] - seen["given"]).abs().max()))
    kept = ("nll", "accuracy") if task.likelihood.kind == "classification" else ("nll",)
    found = {f"{name}_{what}": sums[name][what] / len(y) for name in networks for what in kept}
    return found | {"given_difference": largest}


def _mean(value: Tensor) -> Tensor:
    """Of one parameter over the networks, ``[1, *shape]``."""
    if value.stride(0) == 0:
        return value[:1]
    return torch.as_tensor(take(value, 0, len(value))).mean(0, keepdim=True)
