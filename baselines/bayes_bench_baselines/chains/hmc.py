"""Full-batch Hamiltonian Monte Carlo (Neal 2011; for networks, Izmailov et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from bayes_bench import (
    Examples,
    FitData,
    HasState,
    Held,
    Stateful,
    TensorState,
    TrainingLoop,
    UsageError,
    WeightSamples,
    cosine_decay,
)
from bayes_bench_baselines.chains.config import HMCConfig
from bayes_bench_baselines.chains.stored import StoredChains, chain_diagnostics

DIVERGENT = 1000.0
"""Energy error from which a trajectory counts as divergent, as in Stan."""

LOW_EBFMI = 0.3
"""Below it Stan warns."""
REPEATED = 0.01
"""A state that fills two neighbouring places, as all that was proposed in between was rejected, is stored once; places
are so far apart that this is less probable than this for each, or what is stored would not be the posterior."""

TRAJECTORIES = 8
"""Trajectories that must follow the burn-in: longer ones are cut."""

GROWTH = 10
"""In the burn-in, a trajectory takes at most one step in so many that were taken before it."""


class HMC(StoredChains):
    """Chains that leave the posterior at temperature 1 invariant.

    The potential is U(θ) = N · mean NLL + penalty − log prior of the likelihood's own entries, over all training
    examples. The mass matrix is diagonal, 1/σ_w² with the prior's standard deviation σ_w: in units of the prior it is
    the identity, and so are step size and length of trajectories. All chains take the same number of steps, so that
    they are evaluated together.
    """

    Config = HMCConfig
    former_names = ("bayes_bench_baselines.hmc:HMC",)
    config: HMCConfig

    @property
    def _per_chain(self) -> int:
        return self.config.samples // self.config.chains

    # Fit --------------------------------------------------------------------------------------------------

    def _check_fit(self, data: FitData, budget: int) -> None:
        config = self.config
        if not data.train.in_memory:
            raise UsageError(
                "hmc takes all training inputs at every step, which must be in memory; give it fewer examples in an "
                "NPZ file (source npz), or leave it out"
            )
        # Twice as many are kept while their number is unknown; choosing among them takes copies.
        self.require_memory(config.chains * (self._per_chain + 3), "lower samples", copies=4)
        each, reserve = self._costs(data)
        least = math.ceil((TRAJECTORIES + 1) / (1 - config.descent - config.burn_in)) * each + math.ceil(reserve)
        if budget < least:
            raise UsageError(
                f"hmc needs a budget of at least {least:,} gradient evaluations: every leapfrog step of its "
                f"{config.chains} chains takes all {len(data.train):,} training examples; lower chains or raise the "
                "budget"
            )

    def _networks_held(self, drawn: int, data: FitData, budget: int) -> Held:
        # How many states will be far enough apart to be stored is known in the end alone.
        chains = self.config.chains
        return Held(5 * chains, chains, min(drawn, chains))

    def _costs(self, data: FitData) -> tuple[int, float]:
        """Gradient evaluations of one leapfrog step and of one validation."""
        return self.config.chains * len(data.train), self.validation_cost(data, self.config.chains)

    def _fit(self, data: FitData, loop: TrainingLoop, rng: torch.Generator) -> None:
        config = self.config
        cost, reserve = self._costs(data)
        steps = int((loop.budget - reserve) / cost)
        descent, burn_in = int(config.descent * steps), max(1, int(config.burn_in * steps))
        weights = self._start(rng, loop)
        if data.train.augment is not None:
            loop.note("the training images are not augmented: every leapfrog step takes the whole set as it is")
        if descent:
            self._descend(weights, data.train, loop, descent)

        loop.charge(cost)
        chains = Chains(self, weights, data.train)
        adaptation = StepSize(1 / math.sqrt(len(data.train)), config.target_acceptance)
        sampler = Sampler(chains, config, rng)

        def state(**others: Stateful) -> dict[str, HasState]:
            return {"weights": weights, "chains": chains, "sampler": sampler, **others}

        def adapt() -> Mapping[str, Tensor]:
            most = 1 if adaptation.searching else max(1, sampler.leapfrog_steps // GROWTH)
            acceptance = sampler.step(adaptation.value, most)
            if acceptance is not None:
                adaptation.update(float(acceptance.mean()), sampler.leapfrog_steps / burn_in)
            return {"loss": chains.loss.mean()}

        loop.run(adapt, state(adaptation=adaptation), cost=cost, steps=burn_in)

        step_size, most = adaptation.final, max(1, (steps - 1 - descent - burn_in) // TRAJECTORIES)
        states = ThinnedStates(chains.accepted, 2 * self._per_chain)
        sampler = Sampler(chains, config, rng)

        def sample() -> Mapping[str, Tensor]:
            if sampler.step(step_size, most) is not None:
                states.add(chains.accepted)
            return {"loss": chains.loss.mean()}

        loop.run(
            sample,
            state(states=states),
            cost=cost,
            validate=lambda: self.validation_scores(data, self.complete(chains.accepted)),
            validation_cost=reserve,
        )
        found = sampler.diagnostics()
        apart = math.ceil(math.log(REPEATED) / math.log(max(REPEATED, 1 - found["acceptance"]) - 1e-9))
        length = max(1, min(self._per_chain, int(found["trajectories"]) // apart))
        self._weights = self._store(states.evenly(length), data, loop)
        loop.diagnose(step_size=step_size, **found)
        if found["divergences"] > 0:
            loop.note(
                f"{found['divergences']:.1%} of the trajectories diverged: where the posterior is narrow, draws miss "
                "it, whatever R-hat says; raise target_acceptance"
            )
        if found["ebfmi"] < LOW_EBFMI:
            loop.note(
                f"the chains move slowly between energies (E-BFMI {found['ebfmi']:.2f}, below {LOW_EBFMI}): they may "
                "miss the posterior's tails, whatever R-hat says"
            )
        longest = min(most, config.max_leapfrog) / (1 + config.jitter)
        if longest * step_size < 0.9 * config.trajectory_length:
            loop.note(
                f"trajectories are {longest * step_size:.2g} standard deviations of the prior long, not "
                f"{config.trajectory_length:.2g}: a larger budget or max_leapfrog gives longer ones"
            )

    def _start(self, rng: torch.Generator, loop: TrainingLoop) -> TensorState:
        """An initialisation for each chain, shrunk where it is wider than the prior."""
        weights = self.initial_weights(self.config.chains, rng, loop)
        for name, value in weights.items():
            width = float(value.double().square().mean().sqrt())
            scale = self._scale(name)
            if name not in self.likelihood.initial_parameters() and width > scale:
                value *= scale / width
        return TensorState({name: value.requires_grad_() for name, value in weights.items()})

    def _scale(self, name: str) -> float:
        """The prior's standard deviation; 1 for the likelihood's entries."""
        return 1.0 if name in self.likelihood.initial_parameters() else self.prior.std_of(self.shapes[name])

    def _descend(self, weights: TensorState, train: Examples, loop: TrainingLoop, steps: int) -> None:
        """Towards a mode of the posterior: far from it, energies are so high that a trajectory needs tiny steps."""
        optimizer = torch.optim.Adam(weights.values(), lr=self.config.learning_rate)
        full = self.complete(weights)

        def step() -> Mapping[str, Tensor]:
            losses = self.losses_to_grad(full, train.inputs(), train.y)
            (self.negative_log_prior(weights) / len(train)).sum().backward()
            optimizer.step()
            return {"loss": losses.mean()}

        cost = self.config.chains * len(train)
        loop.run(
            step, {"chains": weights, "optimizer": optimizer}, cost=cost, steps=steps, schedule=cosine_decay(optimizer)
        )

    def _store(self, states: WeightSamples, data: FitData, loop: TrainingLoop) -> WeightSamples:
        """Diagnose the states ``[chains, length, ...]`` and keep those that are distinct, ``[S, ...]``."""
        chains, length = next(iter(states.values())).shape[:2]
        flat = {name: value.flatten(0, 1) for name, value in states.items()}
        loop.diagnose(**chain_diagnostics(self, self.complete(flat), data, chains))
        moved = torch.ones(chains, length, dtype=torch.bool, device=self.device)
        moved[:, 1:] = False
        for value in states.values():
            vectors = value.reshape(chains, length, -1)
            moved[:, 1:] |= (vectors[:, 1:] != vectors[:, :-1]).any(2)
        if (stored := int(moved.sum())) < chains * self._per_chain:
            loop.note(
                f"{stored} networks are stored, not {chains * self._per_chain}: the budget gave {length} states of "
                f"each chain that are far enough apart, {chains * length - stored} of them the same as the one before"
            )
        return {name: value[moved.flatten()] for name, value in flat.items()}


class Chains(Stateful):
    """Positions, momenta and energies of all chains, with the leapfrog integrator and the Metropolis test.

    Args:
        weights: where the chains start, name → leaf ``[chains, *shape]``; moved in place.

    Attributes:
        accepted: where the chains are, name → ``[chains, *shape]``; ``weights`` are on the way from there.
        loss: their mean NLL, ``[chains]``.
        start_energy: potential and kinetic energy at the start of the trajectory, ``[chains]``.
    """

    STATE = (
        "loss",
        "accepted",
        "_accepted_forces",
        "_forces",
        "_momenta",
        "_potential",
        "start_energy",
        "_proposed_loss",
    )

    def __init__(self, posterior: HMC, weights: TensorState, train: Examples):
        self._posterior, self._train = posterior, train
        self._weights, self._full = weights, posterior.complete(weights)
        self._scales = {name: posterior._scale(name) for name in weights}
        self._momenta = {name: torch.zeros_like(value) for name, value in weights.items()}
        self._proposed_loss = self._evaluate()
        self.loss = self._proposed_loss
        self.accepted = {name: value.detach().clone() for name, value in weights.items()}
        self._accepted_forces = {name: value.clone() for name, value in self._forces.items()}
        self._potential = self._energy_of_position()
        self.start_energy = self._potential

    def refresh(self, rng: torch.Generator) -> None:
        """Go back to the accepted positions, with momenta drawn anew from N(0, 1)."""
        with torch.no_grad():
            for name, value in self._weights.items():
                value.copy_(self.accepted[name])
                self._forces[name] = self._accepted_forces[name].clone()
                self._momenta[name] = torch.randn(value.shape, generator=rng, dtype=value.dtype).to(value.device)
        self.start_energy = self._potential + self._kinetic()

    def leapfrog(self, step_size: float) -> None:
        """Half a step of the momenta, a step of the positions, half a step of the momenta: one gradient."""
        self._kick(step_size / 2)
        with torch.no_grad():
            for name, value in self._weights.items():
                value.add_(self._momenta[name], alpha=step_size * self._scales[name])
        self._proposed_loss = self._evaluate()
        self._kick(step_size / 2)

    def energy_error(self) -> Tensor:
        """Total energy now minus that at the start of the trajectory, ``[chains]`` in float64."""
        return self._energy_of_position() + self._kinetic() - self.start_energy

    def accept(self, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """The Metropolis test at the end of a trajectory; an energy that is not finite is a rejection.

        Returns:
            The probabilities of acceptance and the energy errors, ``[chains]``.
        """
        error = self.energy_error()
        probability = torch.exp(-error).clamp(max=1).nan_to_num(nan=0.0)
        taken = torch.rand(len(error), generator=rng, dtype=torch.float64).to(error.device) < probability

        def choose(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(taken.view(-1, *[1] * (new.dim() - 1)), new, old)

        # New tensors, as energies are kept as what they were when a trajectory began.
        self._potential = choose(self._energy_of_position(), self._potential)
        self.loss = choose(self._proposed_loss, self.loss)
        self.accepted = {name: choose(value.detach(), self.accepted[name]) for name, value in self._weights.items()}
        self._accepted_forces = {
            name: choose(force, self._accepted_forces[name]) for name, force in self._forces.items()
        }
        return probability, error

    def _evaluate(self) -> Tensor:
        """Set the forces −σ_w ∇U at the current positions; returns the mean NLL, ``[chains]``."""
        posterior, n = self._posterior, len(self._train)
        losses = posterior.losses_to_grad(self._full, self._train.inputs(), self._train.y)
        (posterior.negative_log_prior(self._weights) / n).sum().backward()
        self._forces = {
            name: -n * self._scales[name] * value.grad
            for name, value in self._weights.items()
            if value.grad is not None
        }
        return losses

    def _kick(self, time: float) -> None:
        for name, momentum in self._momenta.items():
            momentum.add_(self._forces[name], alpha=time)

    def _energy_of_position(self) -> Tensor:
        posterior = self._posterior
        weights = {name: value.detach().double() for name, value in self._weights.items()}
        return len(self._train) * self._proposed_loss.double() + posterior.negative_log_prior(weights)

    def _kinetic(self) -> Tensor:
        energies = [momentum.double().square().reshape(len(momentum), -1).sum(1) for momentum in self._momenta.values()]
        return torch.stack(energies).sum(0) / 2


class Sampler(Stateful):
    """Trajectories, one leapfrog step at a time, and how they went."""

    STATE = ("_left", "_trajectories", "leapfrog_steps", "_acceptance", "_divergent", "_energies")

    def __init__(self, chains: Chains, config: HMCConfig, rng: torch.Generator):
        self._chains, self._config, self._rng = chains, config, rng
        self._left = 0
        self._trajectories, self.leapfrog_steps = 0, 0
        self._acceptance, self._divergent = 0.0, 0.0
        self._energies: list[Tensor] = []

    def step(self, step_size: float, most: int) -> Tensor | None:
        """One leapfrog step of a trajectory of at most ``most``; at its end, the acceptance probabilities."""
        if not self._left:
            self._left = self._steps(step_size, most)
            self._chains.refresh(self._rng)
            self._energies.append(self._chains.start_energy.detach().double().cpu())
        self._chains.leapfrog(step_size)
        self._left -= 1
        self.leapfrog_steps += 1
        if self._left:
            return None
        probability, error = self._chains.accept(self._rng)
        self._trajectories += 1
        self._acceptance += float(probability.mean())
        self._divergent += float((~(error < DIVERGENT)).double().mean())
        return probability

    def diagnostics(self) -> dict[str, float]:
        """Means over all trajectories and chains."""
        n = max(1, self._trajectories)
        return {
            "acceptance": self._acceptance / n,
            "divergences": self._divergent / n,
            "ebfmi": self._ebfmi(),
            "leapfrog_steps": self.leapfrog_steps / n,
            "trajectories": self._trajectories,
        }

    def _ebfmi(self) -> float:
        """Estimated Bayesian fraction of missing information (Betancourt 2016, arXiv:1604.00695), of the worst chain.

        How far the energy moves from one trajectory to the next against how far it moves in all; NaN for fewer than
        three trajectories.
        """
        if len(self._energies) < 3:
            return math.nan
        energies = torch.stack(self._energies)
        return float((energies.diff(dim=0) ** 2).mean(0).div(energies.var(0)).min())

    def _steps(self, step_size: float, most: int) -> int:
        """Steps of the next trajectory, which do not depend on where the chains are."""
        jitter = self._config.jitter
        factor = 1 + jitter * (2 * float(torch.rand((), generator=self._rng, dtype=torch.float64)) - 1)
        longest = min(most, self._config.max_leapfrog)
        usual = min(self._config.trajectory_length / step_size, longest / (1 + jitter))
        return min(longest, max(1, math.ceil(factor * usual)))


class StepSize(Stateful):
    """Step size for a target acceptance: doubled or halved until that is crossed, then dual averaging.

    Hoffman & Gelman 2014, algorithms 4 and 5, with their constants, but shrunk towards the step size that was found
    and not ten times it: a rejected trajectory costs as much as an accepted one. It begins anew when the burn-in has
    reached each of ``WINDOWS``, so that what was right near a mode has no weight in the end.
    """

    STATE = ("value", "searching", "_centre", "_error", "_average", "_updates", "_direction", "_windows")
    SHRINKAGE, DELAY, DECAY = 0.05, 10, 0.75
    WINDOWS = (1 / 8, 1 / 4, 1 / 2)

    def __init__(self, start: float, target: float):
        self.value = start
        self.searching = True
        self._target = target
        self._centre, self._error, self._average = math.log(start), 0.0, math.log(start)
        self._updates = 0
        self._direction = 0
        self._windows = list(self.WINDOWS)

    @property
    def final(self) -> float:
        """The averaged step size."""
        return math.exp(self._average)

    def update(self, acceptance: float, progress: float) -> None:
        """Take in the mean acceptance of a trajectory with ``value``, and the share of the burn-in that is done."""
        if self.searching:
            direction = 1 if acceptance > self._target else -1
            self.searching = self._direction in (0, direction)
            if self.searching or direction < 0:  # ends with a step size that reaches the target
                self.value *= 2.0**direction
            self._direction = direction
            self._centre = self._average = math.log(self.value)
            return
        self._updates += 1
        t = self._updates
        rate = 1 / (t + self.DELAY)
        self._error += rate * (self._target - acceptance - self._error)
        logarithm = self._centre - math.sqrt(t) / self.SHRINKAGE * self._error
        self._average += t**-self.DECAY * (logarithm - self._average)
        self.value = math.exp(logarithm)
        if self._windows and progress >= self._windows[0]:
            self._windows = [end for end in self._windows if end > progress]
            self._centre, self._error, self._updates = self._average, 0.0, 0


class ThinnedStates(Stateful):
    """States of chains of unknown length, evenly spaced, in bounded memory.

    Every k-th state is kept. Where ``capacity`` of them are held, every other one is dropped and k doubles.
    """

    STATE = ("_kept", "_every", "_seen", "_length")

    def __init__(self, like: Mapping[str, Tensor], capacity: int):
        self._kept = {name: value.new_zeros(capacity, *value.shape) for name, value in like.items()}
        self._capacity, self._every, self._seen, self._length = capacity, 1, 0, 0

    def add(self, states: Mapping[str, Tensor]) -> None:
        """Take in the next state of every chain, name → ``[chains, *shape]``."""
        self._seen += 1
        if self._seen % self._every:
            return
        if self._length == self._capacity:
            self._every *= 2
            self._length = self._capacity // 2
            for kept in self._kept.values():
                kept[: self._length] = kept[1::2].clone()
            if self._seen % self._every:
                return
        for name, kept in self._kept.items():
            kept[self._length] = states[name]
        self._length += 1

    def evenly(self, length: int) -> WeightSamples:
        """At most ``length`` states of each chain, name → ``[chains, length, *shape]``; the last one is among them."""
        length = min(length, self._length)
        chosen = torch.linspace(self._length / length - 1, self._length - 1, length, dtype=torch.float64).round().long()
        return {name: kept[chosen.to(kept.device)].transpose(0, 1).contiguous() for name, kept in self._kept.items()}
