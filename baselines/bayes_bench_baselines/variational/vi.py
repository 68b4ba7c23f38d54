"""Mean-field variational inference, computed by posteriors (Apache-2.0): an optional dependency."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from bayes_bench import FitData, Held, TrainingLoop, WeightPosterior, WeightSamples
from bayes_bench_baselines.variational.config import VIConfig


class VI(WeightPosterior):
    """q(w) = Π N(μ_i, σ_i²), by the evidence lower bound."""

    Config = VIConfig
    former_names = ("bayes_bench_baselines.posteriors_vi:VI",)
    uses_prior = True

    _mean: dict[str, Tensor]
    _log_std: dict[str, Tensor]

    def _networks_held(self, drawn: int, data: FitData, budget: int) -> Held:
        return Held(self.trained_copies(data) + 3, 2, drawn, drawn)

    def _fit(self, data: FitData, loop: TrainingLoop, rng: torch.Generator) -> None:
        config, n = self.config, len(data.train)
        start = {name: value[0] for name, value in self.initial_weights(1, rng, loop).items()}
        bound = Bound(self, start, n)
        batch_size = min(config.batch_size, n)
        batches = data.train.minibatches(batch_size, rng)

        def step() -> Mapping[str, Tensor]:
            with self.seeded(rng):  # the library draws from the global generator
                return {"loss": bound.step(next(batches))}

        score = self.validator(data, config.validation_networks, rng)

        def validate() -> Mapping[str, float]:
            self._take(bound)
            return score()

        loop.run(
            step,
            {"bound": bound, "batches": batches},
            cost=config.samples * batch_size,
            validate=validate,
            validation_cost=self.validation_cost(data, config.validation_networks),
            keep_best=config.keep_best,
            patience=config.patience,
        )
        self._take(bound)

    def _take(self, bound: Bound) -> None:
        self._mean = {name: value.detach().clone() for name, value in bound.mean.items()}
        self._log_std = {name: value.detach().clone() for name, value in bound.log_std.items()}

    def _sample(self, n: int, rng: torch.Generator) -> WeightSamples:
        # Network by network, so that a draw of k is the start of a draw of n; in the order of the network, which a
        # loaded state need not have.
        names = [name for name in self.initial if name in self._mean]
        noise = [{name: torch.randn(self._mean[name].shape, generator=rng) for name in names} for _ in range(n)]
        return {
            name: self._mean[name]
            + self._log_std[name].exp() * torch.stack([one[name] for one in noise]).to(self.device)
            for name in names
        }

    def _state(self) -> dict[str, Tensor]:
        return {f"mean/{name}": value for name, value in self._mean.items()} | {
            f"log_std/{name}": value for name, value in self._log_std.items()
        }

    def _load_state(self, state: Mapping[str, Tensor]) -> None:
        self._mean, self._log_std = (
            {name.removeprefix(part): value for name, value in state.items() if name.startswith(part)}
            for part in ("mean/", "log_std/")
        )


class Bound:
    """The variational parameters and the library's optimiser of them."""

    def __init__(self, posterior: VI, start: dict[str, Tensor], examples: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries that it imports
            import torchopt
            from posteriors.vi import diag

        config = posterior.config
        self._examples = examples
        self._posterior = posterior
        self._own = {name for name, _ in posterior.network.named_parameters()}  # the others belong to the likelihood
        self._transform = diag.build(
            self._log_posterior,
            torchopt.adam(lr=config.learning_rate),
            temperature=1 / examples,
            n_samples=config.samples,
            stl=config.stick_the_landing,
            init_log_sds=float(torch.tensor(config.initial_std).log()),
        )
        self._state: Any = self._transform.init(start)

    @property
    def mean(self) -> dict[str, Tensor]:
        return dict(self._state.params)

    @property
    def log_std(self) -> dict[str, Tensor]:
        return dict(self._state.log_sd_diag)

    def step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """One update; the negative bound per example."""
        self._state, _ = self._transform.update(self._state, batch, inplace=False)
        loss: Tensor = self._state.nelbo
        return loss

    def _log_posterior(self, weights: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Of one example on average, up to a constant: mean log likelihood + log prior / N."""
        x, y = batch
        posterior = self._posterior
        one = {name: value[None] for name, value in weights.items()}
        own = {name: value for name, value in weights.items() if name in self._own}
        outputs = functional_call(posterior.network, {**posterior.frozen, **own}, (x,))
        nll = posterior.likelihood.nll(outputs[None], y, one).mean()
        return -nll - posterior.negative_log_prior(one)[0] / self._examples, outputs

    def state_dict(self) -> dict[str, Any]:
        leaves, _ = _flatten(self._state.opt_state)
        return {"mean": self.mean, "log_std": self.log_std, "optimiser": leaves}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        _, structure = _flatten(self._state.opt_state)
        fresh = type(self._state)
        self._state = fresh(state["mean"], state["log_std"], structure.unflatten(state["optimiser"]))


def _flatten(tree: Any) -> Any:
    import optree

    return optree.tree_flatten(tree)
