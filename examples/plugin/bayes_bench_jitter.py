"""Jitter: one trained network, and Gaussian noise around it: the smallest complete method, not a good one."""

import torch

from bayes_bench import MethodConfig, Range, TensorState, WeightPosterior, cosine_decay, setting


class JitterConfig(MethodConfig):
    """Jitter: one trained network, and independent Gaussian noise on every weight."""

    scale: float = setting(
        0.02, "standard deviation of the noise, as a share of the prior's", tune=Range(0.005, 0.2, log=True), gt=0
    )
    batch_size: int = setting(96, "examples per step", tune=(32, 96), gt=0)
    learning_rate: float = setting(3e-3, "Adam", gt=0)


class Jitter(WeightPosterior):
    """One network, trained as `map` is; a weight sample is its weights plus noise."""

    Config = JitterConfig
    uses_prior = True

    def _fit(self, data, loop, rng):
        config, n = self.config, len(data.train)
        weights = TensorState(self.initial_weights(1, rng, loop))  # name → [1, *shape]
        optimizer = torch.optim.Adam([w.requires_grad_() for w in weights.values()], lr=config.learning_rate)
        batches = data.train.minibatches(config.batch_size, rng)

        def step():
            x, y = next(batches)
            nll = self.losses(self.complete(weights), x, y).mean()
            penalty = self.prior.penalty(weights) - self.likelihood.log_prior(weights)
            optimizer.zero_grad()
            (nll + penalty.mean() / n).backward()
            optimizer.step()
            return {"loss": nll.detach()}

        loop.run(
            step,
            {"weights": weights, "optimizer": optimizer, "batches": batches},
            cost=config.batch_size,
            schedule=cosine_decay(optimizer),
            validate=lambda: self.validation_scores(data, self.complete(weights)),
            validation_cost=self.validation_cost(data, networks=1),
            keep_best=True,
        )
        self.centre = {name: w[0].detach() for name, w in weights.items()}

    def _sample(self, n, rng):
        # Network by network, so that a draw of k is the start of a draw of n.
        noise = [{name: torch.randn(w.shape, generator=rng) for name, w in self.initial.items()} for _ in range(n)]
        return {
            name: self.centre[name]
            + self.config.scale * self.prior.std_of(w.shape) * torch.stack([one[name] for one in noise]).to(self.device)
            for name, w in self.initial.items()
        }

    def _state(self):
        return self.centre

    def _load_state(self, state):
        self.centre = dict(state)
