"""Adversarial posterior distillation (Wang et al. 2018): a WGAN-GP trained on the networks of Langevin chains."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from scipy.stats import ks_2samp
from torch import Tensor, nn

from bayes_bench import (
    FitData,
    HasState,
    Held,
    Stateful,
    TrainingLoop,
    UsageError,
    WeightPosterior,
    WeightSamples,
    cosine_decay,
)
from bayes_bench_baselines.chains.langevin import Chains, check_chains, plan_chains, sample_chains
from bayes_bench_baselines.distillation.config import APDConfig

VALIDATIONS = 5
"""Validations of the student, offline."""
COMPARED = 100
"""Networks of teacher and student whose predictions are compared."""
PROJECTIONS = 100
"""Random directions along which the weights of teacher and student are compared."""
PROJECTED = 1000
"""Networks of each that are projected, at most."""
INITIAL_DRAWS = 1000
"""Draws of the untrained student from which its spread is measured."""


class APD(WeightPosterior):
    """A generator of whole weight vectors that a critic cannot tell from the networks of the teacher's chains."""

    Config = APDConfig
    former_names = ("bayes_bench_baselines.apd:APD",)
    uses_prior = True
    config: APDConfig

    _student: Student

    def _check_fit(self, data: FitData, budget: int) -> None:
        config = self.config
        online = config.training == "online"
        if online and config.buffer > config.samples:
            raise UsageError(
                f"a buffer of {config.buffer:,} networks is larger than the chain of {config.samples:,}; "
                "lower buffer or raise samples"
            )
        # Parameters, gradients, averages and two moments of Adam, each as large as one network per unit.
        units = config.student_hidden[-1] + config.critic_hidden[0]
        self.require_memory(
            units, "lower student_hidden or critic_hidden", copies=5, what="units of student and critic"
        )
        stored, setting = (config.buffer, "buffer") if online else (config.samples, "samples")
        self.require_memory(stored, f"lower {setting}", copies=5)
        plan = check_chains(self, config, data, budget, self._student_validations(data))
        if online and config.buffer > config.chains * len(plan.stored):
            raise UsageError(
                f"a buffer of {config.buffer:,} networks is larger than the {config.chains * len(plan.stored):,} that "
                f"{budget:,} gradient evaluations let the chains store; lower buffer or raise the budget"
            )

    def _networks_held(self, drawn: int, data: FitData, budget: int) -> Held:
        config = self.config
        stored = config.buffer
        if config.training == "offline":
            plan = check_chains(self, config, data, budget, self._student_validations(data))
            stored = config.chains * len(plan.stored)
        return Held(stored + 2 * config.chains, config.student_hidden[-1], drawn)

    def _student_validations(self, data: FitData) -> float:
        """Gradient evaluations that validations of the student need; online it is looked at in the end alone."""
        if self.config.training == "online":
            return 0.0
        return VALIDATIONS * self.validation_cost(data, self.config.validation_networks)

    # Fit --------------------------------------------------------------------------------------------------

    def _fit(self, data: FitData, loop: TrainingLoop, rng: torch.Generator) -> None:
        fit = self._fit_offline if self.config.training == "offline" else self._fit_online
        teacher, diagnostics = fit(data, loop, rng)
        loop.diagnose(**diagnostics)
        self._report_gap(teacher, data, loop, rng)

    def _fit_offline(self, data: FitData, loop: TrainingLoop, rng: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """First the chains, then the student. Returns the teacher's networks ``[samples, P]``, and about its chains."""
        config = self.config
        weights, diagnostics = sample_chains(self, config, data, loop, rng, leave=self._student_validations(data))
        teacher = self._flatten(weights)
        del weights  # as large as the teacher
        view = View.of(teacher)
        pool = view.coordinates(teacher)
        distillation = self._start_distillation(pool, rng)
        scores = self.validator(data, config.validation_networks, rng)

        def validate() -> dict[str, float]:
            self._student = distillation.student(view)
            return scores()

        loop.run(
            lambda: distillation.step(pool),
            distillation.state(),
            cost=0,
            steps=config.student_steps,
            schedule=distillation.schedule,
            validate=validate,
            validation_cost=self.validation_cost(data, config.validation_networks),
            validations=VALIDATIONS,
        )
        self._student = distillation.student(view)
        return teacher, diagnostics

    def _fit_online(self, data: FitData, loop: TrainingLoop, rng: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Both together: once the buffer is full, steps of the student are spread evenly over the chains' steps.

        Returns the teacher's latest networks ``[buffer, P]``, and about its chains.
        """
        config = self.config
        plan = plan_chains(config, loop.budget, len(data.train), self.validation_cost(data, config.chains))
        chains = Chains(self, config, data, loop, rng)
        size = sum(value.numel() for value in self.initial.values())
        buffer = next(iter(self.initial.values())).new_zeros(config.buffer, size)
        full_at = plan.stored[-(-config.buffer // config.chains) - 1]
        follower = Follower(config, buffer, lambda pool: self._start_distillation(pool, rng))

        def train_student(done: int) -> Mapping[str, Tensor]:
            if done < full_at:
                return {}
            return follower.train(config.student_steps * (done - full_at + 1) // (plan.steps - full_at + 1))

        chains.run(
            loop,
            plan,
            lambda _: follower.push(self._flatten(chains.networks())),
            kept={"student": follower},
            after_step=train_student,
        )
        self._student = follower.student()
        return buffer, chains.diagnostics()

    def _start_distillation(self, pool: Tensor, rng: torch.Generator) -> Distillation:
        with self.seeded(rng):
            return Distillation(self.config, pool, rng)

    def _report_gap(self, teacher: Tensor, data: FitData, loop: TrainingLoop, rng: torch.Generator) -> None:
        """Scores of teacher and student on the same examples, and the mean Kolmogorov–Smirnov statistic of their
        standardised weights along random directions.
        """
        seen = FitData(data.train, data.validation or data.train)
        chosen = torch.randperm(len(teacher), generator=rng)[:COMPARED].to(self.device)
        draws = {"teacher": self._unflatten(teacher[chosen]), "student": self._sample(COMPARED, rng)}
        for name, weights in draws.items():
            weights = self.complete(weights)
            scores = self.validation_scores(seen, weights)
            whole = {key.removeprefix("val_"): value for key, value in scores.items() if "/" not in key}
            loop.diagnose(**{f"{name}_{key}": value for key, value in whole.items()})
            if self.likelihood.kind == "classification":
                entropy = self.predict(seen.validation.inputs(), weights).entropy  # type: ignore[union-attr]
                loop.diagnose(**{f"{name}_entropy": float(entropy.mean())})
        chosen = torch.randperm(len(teacher), generator=rng)[:PROJECTED].to(self.device)
        ours = self._flatten(self._sample(len(chosen), rng))
        directions = torch.randn(teacher.shape[1], PROJECTIONS, generator=rng).to(teacher)
        view = View.of(teacher, rotate=False)
        projected = [(view.coordinates(networks) @ directions).cpu().numpy() for networks in (teacher[chosen], ours)]
        statistics = [ks_2samp(*columns).statistic for columns in zip(*(p.T for p in projected), strict=True)]
        loop.diagnose(projected_ks=sum(statistics) / PROJECTIONS)

    # Weight vectors ---------------------------------------------------------------------------------------

    def _flatten(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Name → ``[n, *shape]`` as vectors ``[n, P]``."""
        return torch.cat(
            [weights[name].flatten(1) if weights[name].dim() > 1 else weights[name][:, None] for name in self.initial],
            dim=1,
        )

    def _unflatten(self, vectors: Tensor) -> WeightSamples:
        parts = vectors.split([value.numel() for value in self.initial.values()], dim=1)
        return {
            name: part.reshape(len(vectors), *value.shape)
            for (name, value), part in zip(self.initial.items(), parts, strict=True)
        }

    @torch.no_grad()
    def _sample(self, n: int, rng: torch.Generator) -> WeightSamples:
        # Network by network, so that a draw of k is the start of a draw of n.
        noise = torch.stack([torch.randn(self.config.noise_dim, generator=rng) for _ in range(n)])
        return self._unflatten(self._student(noise.to(self._student.mean)))

    # State ------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Tensor]:
        return self._student.state_dict()

    def _load_state(self, state: Mapping[str, Tensor]) -> None:
        size = sum(value.numel() for value in self.initial.values())
        with self.seeded(torch.Generator()):
            self._student = Student(self.config.noise_dim, self.config.student_hidden, size).to(state["mean"])
        self._student.load_state_dict(dict(state))


def relu_network(widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Student(nn.Module):
    """Noise ``[n, noise_dim]`` → weight vectors ``[n, P]``."""

    mean: Tensor
    std: Tensor

    def __init__(self, noise_dim: int, hidden: tuple[int, ...], size: int):
        super().__init__()
        self.body = relu_network((noise_dim, *hidden, size))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def forward(self, noise: Tensor) -> Tensor:
        out: Tensor = self.mean + self.std * self.body(noise)
        return out


@dataclass(frozen=True)
class View:
    """Weight vectors as student and critic see them: standardised, each weight minus its mean over the teacher's
    networks and divided by its standard deviation there, and rotated.

    n standardised networks span at most n dimensions of P. What leaves this span the critic would punish, and its
    objective knows distances alone; so both work on coordinates in the span, which for large networks is many times
    faster.

    Attributes:
        mean, std: ``[P]``.
        basis: the axes of the span, ``[R, P]``, principal ones first; None where there is no rotation.
    """

    mean: Tensor
    std: Tensor
    basis: Tensor | None

    @classmethod
    def of(cls, teacher: Tensor, *, rotate: bool = True) -> View:
        """The view for the teacher's networks ``[n, P]``; not rotated where that would save nothing."""
        spread = teacher.std(0)
        # What the teacher never moves stays where it is.
        view = cls(teacher.mean(0), torch.where(spread > 0, spread, torch.ones_like(spread)), None)
        if not rotate or len(teacher) >= teacher.shape[1]:
            return view
        vectors = view.coordinates(teacher)
        squared, axes = torch.linalg.eigh((vectors @ vectors.T).double())
        kept = squared > squared[-1] * 1e-6
        basis = (axes[:, kept] / squared[kept].sqrt()).T.flip(0).to(vectors.dtype) @ vectors
        return cls(view.mean, view.std, basis)

    def coordinates(self, networks: Tensor) -> Tensor:
        """Weight vectors ``[n, P]`` → ``[n, R]``."""
        vectors = (networks - self.mean) / self.std
        return vectors if self.basis is None else vectors @ self.basis.T


class Critic(nn.Module):
    """Standardised weight vectors ``[n, P]`` → scores ``[n]``."""

    def __init__(self, size: int, hidden: tuple[int, ...]):
        super().__init__()
        self.first = nn.Linear(size, hidden[0])
        self.rest = nn.Sequential(nn.ReLU(), relu_network((*hidden, 1)))

    def forward(self, vectors: Tensor) -> Tensor:
        out: Tensor = self.rest(self.first(vectors)).squeeze(1)
        return out

    def loss(self, real: Tensor, fake: Tensor, between: Tensor, penalty: float) -> Tensor:
        """E[critic(fake)] − E[critic(real)] + penalty · E[(‖∇critic‖ − 1)²], the gradients taken at ``between`` of the
        way from fake to real.

        The first layer is linear, so that it need not be applied to the points in between; and with g the gradient
        with respect to its outputs, ‖∇critic‖² = g W Wᵀ gᵀ. Both save products of the weights' size.
        """
        ends = self.first(torch.cat([real, fake]))
        on_real, on_fake = ends.chunk(2)
        middle = torch.lerp(on_fake, on_real, between)
        (g,) = torch.autograd.grad(self.rest(middle).sum(), middle, create_graph=True)
        squared = ((g @ (self.first.weight @ self.first.weight.T)) * g).sum(1)
        norm = (squared + 1e-12).sqrt()  # the root's own gradient is infinite at 0
        score_real, score_fake = self.rest(ends).chunk(2)
        wasserstein = score_fake.mean() - score_real.mean()
        total: Tensor = wasserstein + penalty * ((norm - 1) ** 2).mean()
        return total


class Distillation(Stateful):
    """Student and critic in training (Gulrajani et al. 2017, algorithm 1), on coordinates of a ``View``.

    The student starts with the spread of the teacher's networks along every coordinate.

    Args:
        pool: coordinates of networks of the teacher ``[n, R]``.
    """

    STATE = ("_steps",)

    def __init__(self, config: APDConfig, pool: Tensor, rng: torch.Generator):
        self._config, self._rng = config, rng
        size = pool.shape[1]
        self._body = relu_network((config.noise_dim, *config.student_hidden, size)).to(pool)
        self._critic = Critic(size, config.critic_hidden).to(pool)
        last: Any = self._body[-1]
        with torch.no_grad():
            start = self._body(torch.randn(INITIAL_DRAWS, config.noise_dim, generator=rng).to(pool))
            gain = pool.std(0) / start.std(0)
            last.weight.mul_(gain[:, None])
            last.bias.copy_(-(start.mean(0) - last.bias) * gain)
        self._average = copy.deepcopy(self._body)
        self._steps = 0
        self._optimizers = [
            torch.optim.Adam(part.parameters(), lr=config.student_learning_rate, betas=(0.5, 0.9), fused=True)
            for part in (self._body, self._critic)
        ]
        self._decays = [cosine_decay(optimizer) for optimizer in self._optimizers]

    def schedule(self, progress: float) -> None:
        """Set the learning rates for the share of the steps that is done."""
        for decay in self._decays:
            decay(progress)

    def state(self) -> dict[str, HasState]:
        """All that a snapshot must hold."""
        parts: dict[str, HasState] = {"student": self._body, "critic": self._critic, "average": self._average}
        optimizers = {"student_optimizer": self._optimizers[0], "critic_optimizer": self._optimizers[1]}
        return {**parts, **optimizers, "steps": self}

    @torch.no_grad()
    def student(self, view: View) -> Student:
        """The student as it is now, with the running mean of its parameters, for weight vectors."""
        state = self._average.state_dict()
        if view.basis is not None:  # folded into the last layer
            last = len(self._average) - 1
            state[f"{last}.weight"] = view.basis.T @ state[f"{last}.weight"]
            state[f"{last}.bias"] = state[f"{last}.bias"] @ view.basis
        with torch.random.fork_rng(devices=[]):  # initialisers draw from the global generator; all is overwritten
            student = Student(self._config.noise_dim, self._config.student_hidden, len(view.mean)).to(view.mean)
        student.mean, student.std = view.mean, view.std
        student.body.load_state_dict(state)
        return student

    def step(self, pool: Tensor) -> Mapping[str, Tensor]:
        """Steps of the critic, each on networks and noise of its own, and one of the student.

        Args:
            pool: coordinates of networks of the teacher ``[n, R]``.
        """
        config = self._config
        of_student, of_critic = self._optimizers
        # Drawn together for all steps of the critic, during which the student stays as it is.
        size = config.critic_steps * config.student_batch
        chosen = torch.randint(len(pool), (size,), generator=self._rng).to(pool.device)
        between = torch.rand(size, 1, generator=self._rng).to(pool)
        with torch.no_grad():
            fakes = self._body(self._noise(size, pool))
        parts = (part.split(config.student_batch) for part in (pool[chosen], fakes, between))
        for real, fake, share in zip(*parts, strict=True):
            distance = self._critic.loss(real, fake, share, config.gradient_penalty)
            of_critic.zero_grad()
            distance.backward()
            of_critic.step()
        loss = -self._critic(self._body(self._noise(config.student_batch, pool))).mean()
        of_student.zero_grad()
        loss.backward()
        of_student.step()
        self._update_average()
        return {"loss": loss.detach(), "critic_loss": distance.detach()}

    @torch.no_grad()
    def _update_average(self) -> None:
        self._steps += 1
        # Shorter at first, so that nothing of the untrained student is kept.
        decay = min(self._config.student_average, (self._steps - 1) / (self._steps + 9))
        for average, parameter in zip(self._average.parameters(), self._body.parameters(), strict=True):
            average.lerp_(parameter, 1 - decay)

    def _noise(self, n: int, like: Tensor) -> Tensor:
        return torch.randn(n, self._config.noise_dim, generator=self._rng).to(like)


class Follower:
    """A student that is trained while its teacher still runs, on the latest networks of the chains.

    Args:
        buffer: room for these networks, ``[n, P]``.
        start: from coordinates of the first n networks to student and critic.
    """

    def __init__(self, config: APDConfig, buffer: Tensor, start: Callable[[Tensor], Distillation]):
        self._config, self._buffer, self._start = config, buffer, start
        self._pushed = self._trained = 0
        self._view: View | None = None
        self._distillation: Distillation | None = None

    def push(self, networks: Tensor) -> None:
        """Take in networks ``[chains, P]``, each in the place of the oldest."""
        for network in networks:
            self._buffer[self._pushed % len(self._buffer)] = network
            self._pushed += 1

    def train(self, due: int) -> Mapping[str, Tensor]:
        """Bring the student to ``due`` steps in all; what the last one reports, but for the loss."""
        view, distillation = self._begun()
        report: Mapping[str, Tensor] = {}
        pool = view.coordinates(self._buffer) if self._trained < due else self._buffer
        while self._trained < due:
            distillation.schedule(self._trained / self._config.student_steps)
            report = distillation.step(pool)
            self._trained += 1
        return {name: value for name, value in report.items() if name != "loss"}

    def student(self) -> Student:
        view, distillation = self._begun()
        return distillation.student(view)

    def _begun(self) -> tuple[View, Distillation]:
        # Networks still to come are not in the span of these: their coordinates are all of their weights.
        self._view = self._view or View.of(self._buffer, rotate=False)
        self._distillation = self._distillation or self._start(self._view.coordinates(self._buffer))
        return self._view, self._distillation

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"buffer": self._buffer, "pushed": self._pushed, "trained": self._trained}
        if self._view is None or self._distillation is None:
            return state
        parts = {name: part.state_dict() for name, part in self._distillation.state().items()}
        return state | {"mean": self._view.mean, "std": self._view.std, "parts": parts}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        self._buffer.copy_(state["buffer"])
        self._pushed, self._trained = state["pushed"], state["trained"]
        if "parts" in state:
            self._view = View(state["mean"].to(self._buffer), state["std"].to(self._buffer), None)
            self._distillation = self._start(self._view.coordinates(self._buffer))
            for name, part in self._distillation.state().items():
                part.load_state_dict(state["parts"][name])
