"""HMC against exact posteriors, and the parts of the sampler against what theory says of them."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from bayes_bench import Categorical, Examples, FitData, Gaussian, GaussianPrior, UsageError, effective_sample_size
from bayes_bench.posterior.training import TensorState, TrainingLoop
from bayes_bench.testing import LinearRegression, classification, compare, regression
from bayes_bench_baselines.chains import hmc
from bayes_bench_baselines.chains.config import HMCConfig
from bayes_bench_baselines.chains.hmc import HMC, Chains, StepSize, ThinnedStates
from bayes_bench_baselines.chains.stored import chain_diagnostics, log_joint

# The posterior ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def linear():
    """A fit with 500 stored networks on a design of correlation 0.95, in 25 chains."""
    problem = LinearRegression.make(2, examples=40)
    posterior = problem.build(HMC, HMCConfig(chains=25, samples=500, trajectory_length=1.0))
    return problem, posterior, posterior.fit(problem.data, budget=25 * 40 * 2500)


def test_mean_and_covariance_of_a_linear_regression(linear):
    """Within four standard errors, from the effective sizes of coordinates and of their products."""
    problem, posterior, summary = linear
    vectors = problem.vectors(posterior.state_dict())
    assert len(vectors) == posterior.support == 500
    whitened = (vectors - problem.mean) @ np.linalg.cholesky(problem.precision)
    products = (whitened[:, :, None] * whitened[:, None, :]).reshape(len(vectors), -1)
    for values, expected in ((whitened, np.zeros(3)), (products, np.eye(3).ravel())):
        size = effective_sample_size(values.reshape(25, 20, -1))
        error = values.std(0) / np.sqrt(np.minimum(size, len(values)))
        assert (np.abs(values.mean(0) - expected) < 4 * error).all()
    assert summary.diagnostics["rhat_log_joint"] < 1.1
    assert summary.diagnostics["rhat_predictions"] < 1.1
    assert summary.diagnostics["ess_predictions"] > 80  # of the 100 networks that are looked at
    assert summary.diagnostics["divergences"] == 0


def test_rejections_do_not_bias_what_is_stored():
    """Of states that are each kept through many rejections, those that moved alone would be too wide."""
    problem = LinearRegression.make(2, examples=40, correlation=0.5)
    config = HMCConfig(chains=100, samples=10_000, max_leapfrog=1, target_acceptance=0.5, trajectory_length=2.0)
    posterior = problem.build(HMC, config)
    summary = posterior.fit(problem.data, budget=100 * 40 * 1500)
    found = summary.diagnostics
    assert found["acceptance"] < 0.75
    per_chain = posterior.support / 100
    assert per_chain < 0.35 * found["trajectories"]  # far enough apart to be nearly always distinct
    assert any("far enough apart" in note for note in summary.notes)
    assert compare(problem, problem.vectors(posterior.state_dict())).temperature == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize("target", [0.6, 0.8])
def test_acceptance_is_near_the_target(target):
    problem = classification()
    config = HMCConfig(chains=16, samples=16, target_acceptance=target, trajectory_length=0.5)
    summary = HMC(problem.network, problem.likelihood, config=config).fit(problem.data, budget=16 * 96 * 1500)
    assert summary.diagnostics["acceptance"] == pytest.approx(target, abs=0.1)


def test_learned_noise_is_sampled_from_its_posterior():
    """A bias alone with unknown noise: moments of log σ by quadrature."""

    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.value = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return self.value.expand(len(x), 1)

    rng = torch.Generator().manual_seed(0)
    y = 0.3 * torch.randn(12, 1, generator=rng)
    posterior = HMC(Constant(), Gaussian("learned"), GaussianPrior(1.0), HMCConfig(chains=25, samples=1000))
    posterior.fit((torch.zeros(12, 1), y), budget=25 * 12 * 1500)
    found = posterior.state_dict()["likelihood.log_noise_std"].double().numpy()
    mean, log_std = np.meshgrid(np.linspace(-2, 2, 801), np.linspace(-4, 3, 801), indexing="ij")
    squares = ((y.double().numpy()[:, 0] - mean[..., None]) ** 2).sum(-1)
    log_density = -squares / (2 * np.exp(2 * log_std)) - 12 * log_std - mean**2 / 2 - (log_std - math.log(0.5)) ** 2 / 2
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    expected = (density * log_std).sum()
    spread = math.sqrt((density * (log_std - expected) ** 2).sum())
    assert found.mean() == pytest.approx(expected, abs=4 * spread / math.sqrt(300))
    assert found.std() == pytest.approx(spread, rel=0.15)


def test_a_frozen_parameter_conditions_the_posterior():
    problem = LinearRegression.make(1, examples=30)
    network = nn.Linear(1, 1)
    network.bias.requires_grad_(False).fill_(0.4)
    posterior = HMC(network, Gaussian(problem.noise_std), problem.prior, HMCConfig(chains=20, samples=400))
    posterior.fit(problem.data, budget=20 * 30 * 1200)
    draws = posterior.sample(400, seed=0)["weight"].double()
    x, y = problem.x.double(), problem.y.double()
    precision = float((x**2).sum()) / problem.noise_std**2 + 1
    mean = float((x * (y - 0.4)).sum()) / problem.noise_std**2 / precision
    assert float(draws.mean()) == pytest.approx(mean, abs=4 / math.sqrt(200 * precision))
    assert float(draws.var()) * precision == pytest.approx(1, abs=0.35)


# The integrator -----------------------------------------------------------------------------------------------


def double_chains(chains=3, prior=None):
    """Chains in float64 on a small nonlinear problem, with their generator."""
    problem = regression()
    train = Examples(problem.data.train.x.double(), problem.data.train.y.double())
    posterior = HMC(problem.network.double(), problem.likelihood, prior or GaussianPrior(1.0, "fan_in"))
    rng = torch.Generator().manual_seed(0)
    weights = posterior.initial_weights(chains, rng, TrainingLoop(1))
    state = TensorState({name: value.double().requires_grad_() for name, value in weights.items()})
    return Chains(posterior, state, train), state, rng


def test_the_energy_error_scales_as_the_square_of_the_step():
    chains, _, _ = double_chains()
    errors = []
    for steps in (40, 80, 160):
        chains.refresh(torch.Generator().manual_seed(1))
        for _ in range(steps):
            chains.leapfrog(0.02 / steps)
        errors.append(chains.energy_error())
    torch.testing.assert_close(errors[0] / errors[1], torch.full((3,), 4.0, dtype=torch.float64), rtol=0.02, atol=0)
    torch.testing.assert_close(errors[1] / errors[2], torch.full((3,), 4.0, dtype=torch.float64), rtol=0.02, atol=0)


def test_a_trajectory_with_reversed_momenta_leads_back():
    chains, state, rng = double_chains()
    start = {name: value.detach().clone() for name, value in state.items()}
    chains.refresh(rng)
    for _ in range(30):
        chains.leapfrog(1e-3)
    assert all((state[name] != start[name]).any() for name in start)
    for momentum in chains._momenta.values():
        momentum.neg_()
    for _ in range(30):
        chains.leapfrog(1e-3)
    for name, value in start.items():
        torch.testing.assert_close(state[name].detach(), value, rtol=0, atol=1e-10)


def test_the_mass_is_that_of_the_prior():
    """Without data to speak of, a quarter of a period is π/2: positions become σ times the first momenta."""
    problem = classification()
    prior = GaussianPrior(0.3, "fan_in")
    posterior = HMC(nn.Linear(2, 3), Categorical(3), prior)
    rng = torch.Generator().manual_seed(0)
    weights = {name: torch.zeros(2, *shape, requires_grad=True) for name, shape in posterior.shapes.items()}
    flat = Examples(torch.zeros_like(problem.data.train.x[:1]), problem.data.train.y[:1])
    chains = Chains(posterior, TensorState(weights), flat)
    chains.refresh(rng)
    momenta = chains._momenta["weight"].clone()
    for _ in range(100):
        chains.leapfrog(math.pi / 200)
    expected = prior.std_of((3, 2)) * momenta
    torch.testing.assert_close(weights["weight"].detach(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("step_size", [10.0, 1e20])
def test_divergent_trajectories_are_rejected(step_size):
    """Chains that leave for infinity, and those that become NaN, stay where they were."""
    chains, state, rng = double_chains()
    before = {name: value.clone() for name, value in chains.accepted.items()}
    loss = chains.loss.clone()
    chains.refresh(rng)
    for _ in range(20):
        chains.leapfrog(step_size)
    probability, error = chains.accept(rng)
    assert (probability == 0).all()
    assert (~(error < 1000)).all()
    assert all(torch.equal(value, before[name]) for name, value in chains.accepted.items())
    assert torch.equal(chains.loss, loss)
    chains.refresh(rng)
    assert all(torch.equal(value.detach(), before[name]) for name, value in state.items())
    chains.leapfrog(1e-4)
    assert (chains.accept(rng)[0] > 0.9).all(), "the forces of the accepted positions were lost"


# The parts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_step_size_finds_its_target(scale):
    """Where the acceptance is exp(−step/scale), 0.8 is reached at 0.223 · scale."""
    adaptation = StepSize(1.0, 0.8)
    for i in range(300):
        adaptation.update(math.exp(-adaptation.value / scale), i / 300)
    assert adaptation.final == pytest.approx(-math.log(0.8) * scale, rel=0.1)


@pytest.mark.parametrize("length", [3, 16, 17, 64, 1000])
def test_kept_states_are_evenly_spaced(length):
    kept = ThinnedStates({"w": torch.zeros(2)}, 16)
    for i in range(1, length + 1):
        kept.add({"w": torch.tensor([i, -i])})
    found = kept.evenly(8)["w"]
    assert found.shape == (2, min(8, length))
    assert torch.equal(found[0], -found[1])
    gaps = found[0].diff()
    assert (gaps > 0).all()
    assert gaps.max() <= 2 * max(1, length / 8)
    assert found[0, -1] > length - max(1, length / 8)


def test_log_joint_by_hand():
    problem = LinearRegression.make(2, examples=20)
    posterior = problem.build(HMC)
    vectors = problem.draws(5)
    weights = {
        "weight": torch.from_numpy(vectors[:, None, :2]).float(),
        "bias": torch.from_numpy(vectors[:, 2:]).float(),
    }
    train = problem.data.train
    found = log_joint(posterior, weights, train, examples=20).numpy()
    shift = (vectors - problem.mean) @ np.linalg.cholesky(problem.precision)
    quadratic = -0.5 * (shift**2).sum(1)  # the log joint up to a constant
    np.testing.assert_allclose(found - found[0], quadratic - quadratic[0], atol=1e-3)
    halves = [Examples(train.x[half], train.y[half]) for half in (slice(10), slice(10, 20))]
    estimates = [log_joint(posterior, weights, half, examples=20).numpy() for half in halves]
    np.testing.assert_allclose((estimates[0] + estimates[1]) / 2, found, rtol=1e-5)


def test_diagnostics_look_at_a_thousand_examples(monkeypatch):
    problem = LinearRegression.make(2, examples=5000)
    posterior = problem.build(HMC)
    vectors = torch.from_numpy(problem.draws(40)).float()
    weights = {"weight": vectors[:, None, :2], "bias": vectors[:, 2:]}
    seen = []

    def outputs(x, weights):
        seen.append(len(x))
        return HMC.outputs(posterior, x, weights)

    monkeypatch.setattr(posterior, "outputs", outputs)
    found = chain_diagnostics(posterior, weights, problem.data, 2)
    assert sum(seen) <= 2 * 1000
    assert found["rhat_log_joint"] < 1.2


def test_diagnostics_tell_separated_chains():
    problem = LinearRegression.make(2)
    posterior = problem.build(HMC)
    vectors = torch.from_numpy(problem.draws(40)).float()
    same = {"weight": vectors[:, None, :2], "bias": vectors[:, 2:]}
    apart = same | {"bias": same["bias"] + torch.arange(2).repeat_interleave(20)[:, None]}
    good, bad = (chain_diagnostics(posterior, weights, problem.data, 2) for weights in (same, apart))
    assert good.keys() == {"rhat_log_joint", "ess_log_joint", "rhat_predictions", "ess_predictions"}
    assert good["rhat_predictions"] < 1.2
    assert bad["rhat_predictions"] > 2
    assert bad["ess_predictions"] < 10 < good["ess_predictions"]
    assert chain_diagnostics(posterior, same, problem.data, 20) == {}


# Budget and settings ------------------------------------------------------------------------------------------


def test_the_budget_is_spent_and_kept():
    problem = classification()
    summary = HMC(problem.network, problem.likelihood).fit(problem.data, budget=50_000)
    assert 50_000 - 4 * 96 - 4 * 48 < summary.spent <= 50_000
    assert len(summary.history) >= 10
    assert summary.diagnostics.keys() >= {"acceptance", "step_size", "leapfrog_steps", "divergences"}


def test_a_budget_too_small_is_refused_before_training():
    problem = classification()
    posterior = HMC(problem.network, problem.likelihood)
    with pytest.raises(UsageError, match="at least 6,976 gradient"):
        posterior.check_fit(problem.data, 6975)
    assert posterior.fit(problem.data, budget=6976).spent <= 6976


def test_fewer_networks_than_asked_for_are_noted():
    problem = classification()
    posterior = HMC(problem.network, problem.likelihood)
    assert posterior.support == 100
    summary = posterior.fit(problem.data, budget=30_000)
    assert posterior.support < 100
    assert any(f"{posterior.support} networks are stored, not 100" in note for note in summary.notes)
    assert any("longer ones" in note for note in summary.notes)


def test_without_descent_and_without_validation():
    problem = classification()
    posterior = HMC(problem.network, problem.likelihood, config=HMCConfig(descent=0.0, chains=2, samples=10))
    summary = posterior.fit(FitData(problem.data.train), budget=60_000)
    assert summary.diagnostics["acceptance"] > 0.4
    assert posterior.support <= 10


@pytest.mark.parametrize("settings", [{"descent": 0.6, "burn_in": 0.5}, {"chains": 5, "samples": 4}])
def test_settings_that_leave_nothing_are_refused(settings):
    with pytest.raises(ValidationError, match=r"lower one|multiple of chains"):
        HMCConfig(**settings)


class Funnel(nn.Module):
    """Neal's funnel: the width of nine parameters is the exponential of a tenth, and the data say nothing of any."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(()))
        self.rest = nn.Parameter(torch.zeros(9))

    def reset_parameters(self):
        nn.init.normal_(self.a)
        nn.init.normal_(self.rest)

    def forward(self, x):
        # Of a prior N(0, 1) on all: the likelihood turns it into rest ~ N(0, exp(3a)²).
        width = torch.exp(3 * self.a)
        penalty = 0.5 * (self.rest**2).sum() * (width**-2 - 1) + 9 * 3 * self.a
        return torch.sqrt(2 * (penalty + 200).clamp(min=1e-3)).expand(len(x), 1) + 0 * x


def test_a_funnel_is_told(monkeypatch):
    """Its energies move slowly; that its errors of energy are smaller than Stan's 1,000 is a matter of its size."""
    monkeypatch.setattr(hmc, "DIVERGENT", 1.0)
    monkeypatch.setattr(hmc, "LOW_EBFMI", 0.5)
    posterior = HMC(Funnel(), Gaussian(1.0), GaussianPrior(1.0), HMCConfig(samples=100, chains=4))
    summary = posterior.fit((torch.zeros(1, 1), torch.zeros(1, 1)), budget=40_000)
    assert summary.diagnostics["divergences"] > 0
    assert summary.diagnostics["ebfmi"] < 0.5
    assert any("trajectories diverged" in note for note in summary.notes)
    assert any("slowly between energies" in note for note in summary.notes)


def test_an_easy_posterior_moves_between_energies():
    posterior = HMC(nn.Linear(2, 1), Gaussian(1.0), GaussianPrior(1.0), HMCConfig(samples=100, chains=4))
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    summary = posterior.fit((x, x.sum(1, keepdim=True)), budget=200_000)
    assert 0.5 < summary.diagnostics["ebfmi"] < 1.6
    assert not any("whatever R-hat says" in note for note in summary.notes)
