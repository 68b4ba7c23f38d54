"""The conjugate test bed: Bayesian linear regression, where posterior and sampling errors are known exactly.

A plug-in is tried on it in a few lines::

    from bayes_bench.testing import LinearRegression, compare

    problem = LinearRegression.make(dimensions=5)
    posterior = problem.build(MyPosterior)
    posterior.fit(problem.data, budget=1_000_000)
    print(compare(problem, problem.vectors(posterior.sample(1000, seed=0))))

Letters: N examples, D parameters (the weights, then the bias), S draws, B batch, φ_i a row of the design, σ the noise.
Everything exact is NumPy in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bayes_bench.errors import UsageError
from bayes_bench.posterior.base import WeightPosterior
from bayes_bench.posterior.examples import Examples, FitData
from bayes_bench.posterior.likelihood import Gaussian
from bayes_bench.posterior.prior import GaussianPrior
from bayes_bench.settings import MethodConfig

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class LinearRegression:
    """y ~ N(Φθ, σ²) with θ ~ N(0, prior): the network is one linear layer, the posterior a Gaussian.

    Attributes:
        x: inputs ``[N, d]``, y: targets ``[N, 1]``.
        noise_std: σ, known.
        bias: whether a column of ones ends the design ``[N, D]``.
    """

    x: Tensor
    y: Tensor
    noise_std: float = 0.5
    prior: GaussianPrior = field(default_factory=GaussianPrior)
    bias: bool = True

    @classmethod
    def make(
        cls,
        dimensions: int = 2,
        *,
        examples: int = 100,
        correlation: float = 0.95,
        noise_std: float = 0.5,
        prior_std: float = 1.0,
        bias: bool = True,
        seed: int = 0,
    ) -> LinearRegression:
        """Gaussian inputs of unit variance, any two of them with ``correlation``; weights drawn from the prior."""
        rng = torch.Generator().manual_seed(seed)
        shared = torch.randn(examples, 1, generator=rng)
        own = torch.randn(examples, dimensions, generator=rng)
        x = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own
        weights = prior_std * torch.randn(dimensions + 1, 1, generator=rng)
        noise = noise_std * torch.randn(examples, 1, generator=rng)
        y = x @ weights[:-1] + (weights[-1] if bias else 0) + noise
        return cls(x, y, noise_std, GaussianPrior(prior_std), bias)

    # As a task ----------------------------------------------------------------------------------------------

    @property
    def data(self) -> FitData:
        """All examples are for training: nothing is selected on validation data."""
        return FitData(Examples(self.x, self.y))

    def build(self, method: type[WeightPosterior], config: MethodConfig | None = None) -> WeightPosterior:
        """The method on this problem, not yet fitted."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            network = nn.Linear(self.x.shape[1], 1, self.bias)
        return method(network, Gaussian(self.noise_std), self.prior, config)

    def vectors(self, weights: Mapping[str, Tensor]) -> Array:
        """A draw of a ``WeightPosterior`` as vectors θ, ``[S, D]``."""
        names = ["weight", "bias"] if self.bias else ["weight"]
        parts = [weights[name].detach().cpu().double().reshape(len(weights[name]), -1) for name in names]
        found: Array = torch.cat(parts, dim=1).numpy()
        return found

    # The exact posterior ------------------------------------------------------------------------------------

    @cached_property
    def design(self) -> Array:
        """Φ, ``[N, D]``."""
        x: Array = self.x.double().numpy()
        return np.column_stack([x, np.ones(len(x))]) if self.bias else x

    @cached_property
    def prior_precision(self) -> Array:
        """Of each parameter, ``[D]``."""
        d = self.x.shape[1]
        stds = [self.prior.std_of((1, d))] * d + [self.prior.std_of((1,))] * self.bias
        return 1 / np.array(stds) ** 2

    @cached_property
    def precision(self) -> Array:
        """ΦᵀΦ/σ² + prior precision, ``[D, D]``."""
        found: Array = self.design.T @ self.design / self.noise_std**2 + np.diag(self.prior_precision)
        return found

    @cached_property
    def covariance(self) -> Array:
        """``[D, D]``."""
        return np.linalg.inv(self.precision)

    @cached_property
    def mean(self) -> Array:
        """``[D]``."""
        y: Array = self.y.double().numpy()[:, 0]
        return np.linalg.solve(self.precision, self.design.T @ y / self.noise_std**2)

    @cached_property
    def factorised_covariance(self) -> Array:
        """Of the best factorised Gaussian, which minimises KL(q ‖ posterior): diagonal, 1/precision_jj."""
        return np.diag(1 / np.diag(self.precision))

    def draws(self, n: int, seed: int = 0) -> Array:
        """Independent draws from the exact posterior, ``[n, D]``: what a perfect method would give."""
        return np.random.default_rng(seed).multivariate_normal(self.mean, self.covariance, size=n, method="cholesky")

    # Minibatch gradients ------------------------------------------------------------------------------------

    def gradient_terms(self) -> tuple[Array, Array]:
        """A_i ``[N, D, D]`` and r_i ``[N, D]``, of which the gradient of U/N = mean NLL + penalty/N is made.

        It is the mean over i of A_i(θ − posterior mean) + r_i, with A_i = φ_i φ_iᵀ/σ² + prior precision/N: the prior's
        part is the same for all examples. The r_i sum to 0.
        """
        outer = self.design[:, :, None] * self.design[:, None, :] / self.noise_std**2
        curvatures = outer + np.diag(self.prior_precision) / len(self.x)
        targets = self.design * self.y.double().numpy() / self.noise_std**2
        return curvatures, curvatures @ self.mean - targets


# Comparison ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MomentErrors:
    """How far a Gaussian with the moments of the draws is from the posterior.

    Coordinates are whitened by the posterior: its own covariance C is the identity there.

    Attributes:
        mean_error_max, mean_error_rms: over coordinates of θ, in posterior standard deviations of each.
        covariance_error: ‖C − I‖_F / √D.
        temperature: mean eigenvalue of C; 1 is right, below it the draws are too narrow.
        kl: KL(N(moments) ‖ posterior) in nats; infinite where the draws do not span the space.
    """

    mean_error_max: float
    mean_error_rms: float
    covariance_error: float
    temperature: float
    kl: float


def compare(problem: LinearRegression, vectors: Array) -> MomentErrors:
    """The sample moments of draws ``[S, D]`` against the posterior; one draw has no covariance.

    S independent draws from the posterior itself have a ``mean_error_rms`` of about 1/√S and a ``covariance_error``
    of about √((D + 1)/S): smaller differences cannot be told from chance.
    """
    covariance = np.cov(vectors, rowvar=False).reshape(vectors.shape[1], -1) if len(vectors) > 1 else None
    return compare_moments(problem, vectors.mean(0), covariance)


def compare_moments(problem: LinearRegression, mean: Array, covariance: Array | None) -> MomentErrors:
    """A Gaussian of ``mean`` ``[D]`` and ``covariance`` ``[D, D]`` (None: a point) against the posterior."""
    d = len(problem.mean)
    error = (mean - problem.mean) / np.sqrt(np.diag(problem.covariance))
    root = np.linalg.cholesky(problem.precision)  # of the precision: rootᵀ(θ − mean) is whitened
    whitened = root.T @ (np.zeros((d, d)) if covariance is None else covariance) @ root
    shift = root.T @ (mean - problem.mean)
    eigenvalues = np.linalg.eigvalsh(whitened)
    # Draws that do not span the space have eigenvalues of rounding errors.
    spans = eigenvalues.min() > 1e-12 * max(1.0, eigenvalues.max())
    divergence = 0.5 * float((eigenvalues - 1 - np.log(eigenvalues)).sum() + shift @ shift) if spans else math.inf
    return MomentErrors(
        mean_error_max=float(np.abs(error).max()),
        mean_error_rms=float(np.sqrt((error**2).mean())),
        covariance_error=float(np.linalg.norm(whitened - np.eye(d)) / math.sqrt(d)),
        temperature=float(eigenvalues.mean()),
        kl=divergence,
    )


# Closed forms of discretised chains ---------------------------------------------------------------------------


def sgld_covariance(
    problem: LinearRegression, step_size: float, batch_size: int | None, preconditioner: Array | None = None
) -> Array:
    """Stationary covariance ``[D, D]`` of SGLD with a constant step, minibatch noise and discretisation included.

    θ ← θ − (ε/2) P ĝ + N(0, Pε/N), where ĝ estimates ∇(U/N) from B examples drawn anew for every step, with
    replacement (the prior's part is exact), and P is diagonal. With δ = θ − posterior mean, h = ε/2 and
    ĝ = Âδ + r̂ the second moments obey

        S = E[(I − hPÂ) S (I − hPÂ)ᵀ] + h² P E[r̂r̂ᵀ] P + Pε/N,
        E[Â ⊗ Â] = mean_i(A_i ⊗ A_i)/B + (1 − 1/B) Ā ⊗ Ā,   E[r̂r̂ᵀ] = mean_i(r_i r_iᵀ)/B,

    which is linear in S and is solved as such; terms with Â and r̂ together vanish, as δ has mean 0.

    Args:
        step_size: ε.
        batch_size: B; None: full-batch gradients, without noise.
        preconditioner: diagonal of P ``[D]``, constant; None: the identity.

    Raises:
        UsageError: the chain has no stationary covariance; lower the step size.
    """
    d, half = len(problem.mean), step_size / 2
    mean, excess, noise = _gradient_moments(problem, batch_size)
    scale = np.diag(np.ones(d) if preconditioner is None else preconditioner)
    step = np.eye(d) - half * scale @ mean
    multiplicative = half**2 * np.kron(scale, scale) @ excess
    added = half**2 * scale @ noise @ scale + scale * step_size / len(problem.x)
    return _stationary(np.kron(step, step) + multiplicative, added)


def sghmc_covariance(problem: LinearRegression, step_size: float, friction: float, batch_size: int | None) -> Array:
    """Stationary covariance ``[D, D]`` of the positions of SGHMC with a constant step.

    v ← (1 − a)v − ℓĝ(θ) + N(0, 2aℓ/N), θ ← θ + v, with ℓ = aε/2: friction a = 1 is SGLD. The equation is that of
    ``sgld_covariance`` for the pair (δ, v), which is mapped by [[I − ℓÂ, (1 − a)I], [−ℓÂ, (1 − a)I]].

    Args:
        step_size: ε; as the friction varies it stays the step of the SGLD with the same noise per step.
        friction: a in (0, 1].
        batch_size: B; None: full-batch gradients, without noise.

    Raises:
        UsageError: the chain has no stationary covariance; lower the step size.
    """
    d, rate = len(problem.mean), friction * step_size / 2
    mean, excess, noise = _gradient_moments(problem, batch_size)
    identity = np.eye(d)
    both, position = np.vstack([identity, identity]), np.hstack([identity, np.zeros((d, d))])
    keep = np.block([[identity, (1 - friction) * identity], [np.zeros((d, d)), (1 - friction) * identity]])
    step = keep - rate * both @ mean @ position
    multiplicative = rate**2 * np.kron(both, both) @ excess @ np.kron(position, position)
    added = both @ (rate**2 * noise + 2 * friction * rate / len(problem.x) * identity) @ both.T
    return _stationary(np.kron(step, step) + multiplicative, added)[:d, :d]


def _gradient_moments(problem: LinearRegression, batch_size: int | None) -> tuple[Array, Array, Array]:
    """Ā ``[D, D]``, E[Â ⊗ Â] − Ā ⊗ Ā ``[D², D²]`` and E[r̂r̂ᵀ] ``[D, D]``."""
    curvatures, residuals = problem.gradient_terms()
    n, d = residuals.shape
    mean: Array = curvatures.mean(0)
    if batch_size is None:
        return mean, np.zeros((d * d, d * d)), np.zeros((d, d))
    centred = curvatures - mean
    excess = np.einsum("nij,nkl->ikjl", centred, centred).reshape(d * d, d * d) / (n * batch_size)
    return mean, excess, residuals.T @ residuals / (n * batch_size)


def _stationary(transition: Array, added: Array) -> Array:
    """S with vec(S) = transition · vec(S) + vec(added)."""
    radius = float(np.abs(np.linalg.eigvals(transition)).max())
    if radius >= 1:
        raise UsageError(
            f"the chain's variance grows by a factor of {radius:.3g} a step and has no limit; lower step_size"
        )
    solved: Array = np.linalg.solve(np.eye(len(transition)) - transition, added.reshape(-1)).reshape(added.shape)
    return solved
