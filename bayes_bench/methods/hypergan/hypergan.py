"""HyperGAN as a ``WeightPosterior``: what it is, its state, fit, sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from bayes_bench.methods.hypergan.config import HyperGANConfig
from bayes_bench.methods.hypergan.discriminator import Discriminator, accuracy, discriminator_loss, generator_loss
from bayes_bench.methods.hypergan.mixer import Mixer, pretrain
from bayes_bench.methods.hypergan.repulsion import away_from_data, overlap
from bayes_bench.methods.hypernetworks.generators import Generators
from bayes_bench.posterior.base import Held, WeightPosterior, WeightSamples
from bayes_bench.posterior.examples import FitData
from bayes_bench.posterior.training import HasState, TrainingLoop, cosine_decay


class HyperGAN(WeightPosterior):
    """Noise → mixer → one code per layer → generators → weights of a whole network.

    Minimises E[mean NLL of generated networks] − λ E[log D(codes)] over mixer and generators, against a
    discriminator D that tells codes from samples of N(0, I), as in the paper. D is updated on
    detached codes, and the mixer against the updated D.
    """

    Config = HyperGANConfig
    former_names = ("bayes_bench.hypergan.hypergan:HyperGAN",)
    config: HyperGANConfig

    @property
    def uses_prior(self) -> bool:  # type: ignore[override]
        return self.config.prior_weight > 0

    @property
    def _memory_remedy(self) -> str:  # type: ignore[override]
        chunked = self.config.head == "chunked"
        return "" if chunked else "set head='chunked', or lower the last of generator_hidden"

    def _networks_held(self, drawn: int, data: FitData, budget: int) -> Held:
        # A dense head has a column of its width for every weight, a chunked one at least what all codes share.
        config = self.config
        width = [config.code_dim, *config.generator_hidden][-1]
        each = 1 if config.head == "chunked" else width
        return Held(self.trained_copies(data) * each + config.networks, each, drawn)

    def _build(self) -> None:
        """The parts, with random weights; the caller seeds."""
        config = self.config
        self.generators = Generators(
            self.initial,
            config.code_dim,
            config.generator_hidden,
            gain=config.weight_gain,
            diversity=config.initial_diversity,
            fixed_scale=config.fixed_generator_scale,
            noise_scale=config.weight_noise,
            head=config.head,
            head_chunk=config.head_chunk,
            given=self.start == "given",
        )
        size = self.generators.code_size
        self.mixer = Mixer(config.noise_dim, config.mixer_hidden, size) if config.mixer else None
        self.discriminator = None
        if self.mixer and config.discriminator != "none" and config.adversarial_weight > 0:
            views = 1 if config.discriminator == "joint" else len(self.generators.layers)
            self.discriminator = Discriminator(size, views, config.discriminator_hidden)
        for part in self._parts().values():
            part.to(self.device)

    def _parts(self) -> dict[str, nn.Module]:
        parts = {"generators": self.generators, "mixer": self.mixer, "discriminator": self.discriminator}
        return {name: part for name, part in parts.items() if part is not None}

    # Fit --------------------------------------------------------------------------------------------------

    def _fit(self, data: FitData, loop: TrainingLoop, rng: torch.Generator) -> None:
        config = self.config
        with self.seeded(rng):
            self._build()
        mixer, discriminator = self.mixer, self.discriminator
        if mixer is not None:
            steps, distance = pretrain(
                mixer,
                rng,
                tolerance=config.pretrain_tolerance,
                max_steps=config.pretrain_steps,
                device=self.device,
            )
            loop.note(f"mixer pre-trained for {steps} steps, to a distance of {distance:.3f} per dimension of the code")
            if distance > config.pretrain_tolerance:
                loop.note("the mixer's pre-training did not reach its tolerance: raise pretrain_steps or noise_dim")
        groups = [{"params": list(self.generators.parameters()), "lr": config.learning_rate}]
        if mixer is not None:
            groups.append({"params": list(mixer.parameters()), "lr": config.mixer_learning_rate})
        optimizer = torch.optim.Adam(groups, fused=True)
        # More examples per network than there are would only repeat them.
        batch_size = min(config.batch_size, len(data.train))
        batches = data.train.minibatches(batch_size, rng, networks=config.networks)
        state: dict[str, HasState] = {**self._parts(), "optimizer": optimizer, "batches": batches}
        decays = [cosine_decay(optimizer, config.final_learning_rate)]
        train_discriminator: Callable[[], dict[str, Tensor]] = dict
        if discriminator is not None:
            adversary = torch.optim.Adam(
                discriminator.parameters(),
                lr=config.discriminator_learning_rate,
                betas=(0.5, 0.999),
                fused=True,
            )
            state["adversary"] = adversary
            decays.append(cosine_decay(adversary, config.final_learning_rate))

            def train_discriminator() -> dict[str, Tensor]:
                size, noise_dim = config.discriminator_batch, config.noise_dim
                with torch.no_grad():
                    codes = self._codes(torch.randn(size, noise_dim, generator=rng).to(self.device))
                prior = torch.randn(codes.shape, generator=rng).to(self.device)
                real, fake = discriminator(prior), discriminator(codes)
                adversary.zero_grad()
                discriminator_loss(real, fake).backward()
                adversary.step()
                return {"discriminator_accuracy": accuracy(real, fake)}

        def step() -> Mapping[str, Tensor]:
            report = train_discriminator()
            noise, weight_noise = self._noise(config.networks, rng)
            codes = self._codes(noise)
            weights = self.complete(self.generators(codes, weight_noise))
            x, y = next(batches)
            nll = self.losses(weights, x, y, own_inputs=True, stabilised=True).mean()
            objective = nll
            if config.prior_weight > 0:
                anchors = self.generators.anchors(codes)
                penalty = self.prior.penalty({name: weights[name] - anchor for name, anchor in anchors.items()})
                penalty = penalty - self.likelihood.log_prior(weights)
                objective = objective + config.prior_weight * penalty.mean() / len(data.train)
            if discriminator is not None:
                objective = objective + config.adversarial_weight * generator_loss(discriminator(codes))
            if config.repulsion_weight > 0:
                away = away_from_data(x.flatten(0, 1), config.repulsion_batch, rng)
                shared = overlap(self.likelihood.predict(self.stacked(weights, away), weights)).mean()
                objective = objective - config.repulsion_weight * (1 - shared)
                report["overlap"] = shared.detach()
            optimizer.zero_grad()
            objective.backward()
            optimizer.step()
            return {"loss": nll.detach(), **report}

        def schedule(progress: float) -> None:
            for decay in decays:
                decay(progress)

        loop.run(
            step,
            state,
            cost=config.networks * (batch_size + (config.repulsion_batch if config.repulsion_weight > 0 else 0)),
            schedule=schedule,
            validate=self.validator(data, config.validation_networks, rng),
            validation_cost=self.validation_cost(data, config.validation_networks),
            keep_best=config.keep_best,
            patience=config.patience,
            diversity_fall=config.diversity_fall,
        )

    def _noise(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Input noise ``[n, noise_dim]`` and weight noise ``[n, Z]``, network by network: draws are nested."""
        sizes = [self.mixer.noise_dim if self.mixer else self.generators.code_size, self.generators.noise_size]
        rows = torch.stack([torch.randn(sum(sizes), generator=rng) for _ in range(n)]).to(self.device)
        inputs, weight_noise = rows.split(sizes, dim=1)
        return inputs, weight_noise

    def _codes(self, noise: Tensor) -> Tensor:
        """Mixed codes ``[n, L·d]``."""
        return self.mixer(noise) if self.mixer else noise

    # Sample -----------------------------------------------------------------------------------------------

    def _sample(self, n: int, rng: torch.Generator) -> WeightSamples:
        noise, weight_noise = self._noise(n, rng)
        weights: WeightSamples = self.generators(self._codes(noise), weight_noise)
        return weights

    # State ------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Tensor]:
        parts = {name: part for name, part in self._parts().items() if name != "discriminator"}
        return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}

    def _load_state(self, state: Mapping[str, Tensor]) -> None:
        with self.seeded(torch.Generator()):
            self._build()
        self.discriminator = None  # only training needs it
        for name, part in self._parts().items():
            prefix = f"{name}."
            part.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
