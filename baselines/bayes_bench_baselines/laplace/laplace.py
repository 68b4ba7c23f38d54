"""Laplace approximation, computed by laplace-torch (MIT): an optional dependency."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bayes_bench import (
    Categorical,
    FitData,
    Gaussian,
    Held,
    TrainingLoop,
    UsageError,
    WeightPosterior,
    WeightSamples,
)
from bayes_bench_baselines.ensembles.members import fit_members
from bayes_bench_baselines.laplace.config import LaplaceConfig

STEP = 10.0
"""Between two prior precisions that are tried."""
SHARE_TRIED = 0.05
"""Of the budget that is kept for them, at most."""
MOST_TRIED = 9
"""From the task's own precision to 10^8 times as much: then nothing is left of the Gaussian's width."""
BATCH = 256
"""Examples at once where the curvature is computed."""


class Laplace(WeightPosterior):
    """N(w_MAP, (GGN + prior precision)⁻¹) over the last layer's weights or all of them."""

    Config = LaplaceConfig
    former_names = ("bayes_bench_baselines.laplace_torch:Laplace",)
    uses_prior = True

    _map: dict[str, Tensor]
    _factors: dict[str, Tensor]
    """The precision: ``diag``, or eigenvalues and eigenvectors of every factor, ``values/I/J`` and ``vectors/I/J``."""

    def _check_fit(self, data: FitData, budget: int) -> None:
        if not isinstance(self.likelihood, Categorical | Gaussian):
            raise UsageError(
                f"laplace takes classes, or a Gaussian of one noise for all inputs, not {self.likelihood!r}"
            )
        if not data.train.in_memory:
            raise UsageError("laplace takes all training inputs at once, which must be in memory; give it fewer")
        if budget < 2 * self._curvature_cost(data):
            raise UsageError(
                f"laplace needs a budget of at least {2 * self._curvature_cost(data):,} gradient evaluations: half of "
                f"that is one pass over the {len(data.train):,} training examples for each of "
                f"{self.likelihood.output_width} outputs"
            )

    def _networks_held(self, drawn: int, data: FitData, budget: int) -> Held:
        return Held(self.trained_copies(data), 1, drawn if self.config.weights == "all" else 1)

    def _curvature_cost(self, data: FitData) -> int:
        """One backward pass per output and training example."""
        return len(data.train) * self.likelihood.output_width

    def _fit(self, data: FitData, loop: TrainingLoop, rng: torch.Generator) -> None:
        cost, trial = self._curvature_cost(data), self._trial_cost(data)
        if self.start == "given":
            self._map = {name: value.clone() for name, value in self.initial.items()}
        else:
            leave = cost + min(MOST_TRIED * trial, SHARE_TRIED * loop.budget)
            weights = fit_members(self, data, loop, rng, members=1, use_prior=True, leave=leave)
            self._map = {name: value[0] for name, value in weights.items()}
        loop.charge(cost)
        with self.seeded(rng):  # the library looks for the last layer with a shuffled batch
            approximation = self._curvature(data)
        task = approximation.prior_precision
        if self.config.prior_precision == "marglik":
            approximation.optimize_prior_precision(method="marglik")
        elif trial:
            seed = int(torch.randint(2**62, (), generator=rng))
            power = self._best_power(approximation, task, data, loop, trial, seed)
            approximation.prior_precision = task * STEP**power
            loop.note(f"prior precision: {STEP**power:.3g} times the task's, by validation")
        precision = approximation.posterior_precision
        self._factors = {"diag": precision} if self.config.curvature == "diag" else _tensors_of(precision)

    def _trial_cost(self, data: FitData) -> float:
        """Of one prior precision; 0 where none is chosen."""
        chosen = self.config.prior_precision == "validation"
        return self.validation_cost(data, self.config.validation_networks) if chosen else 0.0

    def _best_power(
        self, approximation: Any, task: Tensor, data: FitData, loop: TrainingLoop, trial: float, seed: int
    ) -> int:
        """How often the task's precision is multiplied by ``STEP``: as long as that helps, as far as the budget goes.

        The draws are those that predictions are made of, with the same noise for every precision.
        """

        def score(power: int) -> float:
            loop.charge(trial)
            approximation.prior_precision = task * STEP**power
            precision = approximation.posterior_precision
            self._factors = {"diag": precision} if self.config.curvature == "diag" else _tensors_of(precision)
            weights = self._sample(self.config.validation_networks, torch.Generator().manual_seed(seed))
            return float(self.validation_scores(data, self.complete(weights))["val_nll"])

        best, lowest = 0, math.inf
        for power in range(MOST_TRIED):
            if loop.spent + trial > loop.budget or power > best + 2:
                break
            if (found := score(power)) < lowest:
                best, lowest = power, found
        return best

    def _curvature(self, data: FitData) -> Any:
        """The library's approximation, with the task's prior precision for every weight."""
        import laplace
        from laplace.curvature import CurvlinopsGGN

        network = self._trained_network()
        # Of a network of one module the library does not find the last one.
        alone = sum(not list(module.children()) for module in network.modules()) == 1
        subset = "all" if alone else self.config.weights
        x, y = data.train.inputs(), data.train.y
        approximation: Any = laplace.Laplace(
            network,
            "classification" if isinstance(self.likelihood, Categorical) else "regression",
            subset_of_weights=subset,
            hessian_structure=self.config.curvature,
            backend=CurvlinopsGGN,
            sigma_noise=self._noise_std(),
        )
        approximation.fit(DataLoader(TensorDataset(x.to(self.device), y.to(self.device)), batch_size=BATCH))
        model = approximation.model
        if subset == "last_layer":  # a wrapper around a copy of the network
            parameters, model = list(model.last_layer.parameters()), model.model
        else:
            parameters = approximation.params
        places = {id(parameter): name for name, parameter in model.named_parameters()}
        self._uncertain = [places[id(parameter)] for parameter in parameters]
        shapes = [parameter.shape for parameter in parameters]
        # Of a parameter each, or of a weight each.
        sizes = [shape.numel() if self.config.curvature == "diag" else 1 for shape in shapes]
        precisions = [
            torch.full((size,), self.prior.std_of(shape) ** -2) for size, shape in zip(sizes, shapes, strict=True)
        ]
        approximation.prior_precision = torch.cat(precisions).to(self.device)
        return approximation

    def _noise_std(self) -> float:
        """Known, or as it was learned with the network; the library needs 1 for classes."""
        if isinstance(self.likelihood, Categorical):
            return 1.0
        one = {name: value[None] for name, value in self._map.items()}
        outputs = torch.zeros(1, 1, self.likelihood.output_width, device=self.device)
        return float(self.likelihood.predict(outputs, one)["noise_std"].flatten()[0])

    def _trained_network(self) -> nn.Module:
        network = copy.deepcopy(self.network).to(self.device)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if name in self._map:
                    parameter.copy_(self._map[name])
        return network.eval()

    def _sample(self, n: int, rng: torch.Generator) -> WeightSamples:
        mean = torch.cat([self._map[name].flatten() for name in self._uncertain])
        # Network by network, so that a draw of k is the start of a draw of n.
        noise = torch.stack([torch.randn(len(mean), generator=rng) for _ in range(n)]).to(mean.device)
        flat = mean + self._scaled(noise.to(mean.dtype))
        drawn: dict[str, Tensor] = {name: value.clone().expand(n, *value.shape) for name, value in self._map.items()}
        start = 0
        for name in self._uncertain:
            shape = self._map[name].shape
            drawn[name] = flat[:, start : start + shape.numel()].reshape(n, *shape)
            start += shape.numel()
        return drawn

    def _scaled(self, noise: Tensor) -> Tensor:
        """Noise of the Gaussian's covariance from standard normal noise ``[n, P]``."""
        if "diag" in self._factors:
            return noise * self._factors["diag"] ** -0.5
        scaled: Tensor = _precision_from(self._factors).bmm(noise, exponent=-0.5)
        return scaled.reshape(noise.shape)

    def _state(self) -> dict[str, Tensor]:
        order = torch.tensor([sorted(self._map).index(name) for name in self._uncertain])
        return {f"map/{name}": value for name, value in self._map.items()} | self._factors | {"uncertain": order}

    def _load_state(self, state: Mapping[str, Tensor]) -> None:
        self._map = {name.removeprefix("map/"): value for name, value in state.items() if name.startswith("map/")}
        names = sorted(self._map)
        self._uncertain = [names[int(i)] for i in state["uncertain"]]
        self._factors = {n: v for n, v in state.items() if not n.startswith("map/") and n != "uncertain"}


def _tensors_of(precision: Any) -> dict[str, Tensor]:
    """A ``KronDecomposed`` as tensors with names."""
    found = {"deltas": precision.deltas}
    for i, (values, vectors) in enumerate(zip(precision.eigenvalues, precision.eigenvectors, strict=True)):
        for j, (value, vector) in enumerate(zip(values, vectors, strict=True)):
            found |= {f"values/{i}/{j}": value, f"vectors/{i}/{j}": vector}
    return {name: value.detach().contiguous() for name, value in found.items()}


def _precision_from(factors: Mapping[str, Tensor]) -> Any:
    from laplace.utils.matrix import KronDecomposed

    def lists(kind: str) -> Any:
        blocks = 1 + max(int(name.split("/")[1]) for name in factors if name.startswith(kind))
        return [[factors[n] for n in sorted(factors) if n.startswith(f"{kind}/{i}/")] for i in range(blocks)]

    return KronDecomposed(lists("vectors"), lists("values"), factors["deltas"])
