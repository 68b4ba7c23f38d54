"""MNF against densities, Jacobians and posteriors that can be computed otherwise."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence
from torch.func import functional_call, vmap

from bayes_bench import (
    Categorical,
    Examples,
    FitData,
    Gaussian,
    GaussianPrior,
    UnsupportedNetworkError,
    UsageError,
)
from bayes_bench.networks import resnet
from bayes_bench.testing import classification, images, regression
from bayes_bench_baselines.variational.config import MNFConfig
from bayes_bench_baselines.variational.flows import Auxiliary, Flow, MaskedFlow, Multipliers
from bayes_bench_baselines.variational.mnf import MNF
from bayes_bench_baselines.variational.mnf_layers import FactorisedGaussian, MNFConv, MNFLinear


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def shaken(module):
    """The module in double precision, with parameters far from where they start."""
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return module


# Flows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_a_flow_is_undone_by_its_inverse(steps):
    flow = shaken(Flow(5, steps, hidden=7))
    z = torch.randn(11, 5).double()
    moved, _ = flow(z)
    torch.testing.assert_close(flow.inverse(moved), z)
    assert torch.equal(moved, z) == (steps == 0)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_log_determinant_is_that_of_the_jacobian(steps):
    flow = shaken(Flow(4, steps, hidden=6))
    z = torch.randn(8, 4).double()
    _, log_det = flow(z)
    for row, found in zip(z, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda one: flow(one[None])[0][0], row)
        torch.testing.assert_close(found, torch.linalg.slogdet(jacobian).logabsdet)


def test_a_pair_of_steps_moves_every_entry_once():
    first, second = Flow(50, 2, hidden=3).steps
    assert torch.equal(first.mask + second.mask, torch.ones(50))
    assert 10 < first.mask.sum() < 40
    z = torch.randn(2, 50)
    moved, _ = first(z)
    assert torch.equal(moved[:, first.mask == 1], z[:, first.mask == 1])
    assert (moved != z)[:, first.mask == 0].all()


def test_a_step_follows_the_paper():
    """z' = m z + (1 − m)(z g + (1 − g) μ) with h = tanh(W(m z) + b)."""
    step = shaken(MaskedFlow(torch.tensor([1.0, 0.0, 0.0]), hidden=4))
    z = torch.randn(6, 3).double()
    shift, gate = step.shift_and_gate(torch.tanh(step.hidden(step.mask * z))).chunk(2, dim=1)
    gate = torch.sigmoid(gate)
    expected = step.mask * z + (1 - step.mask) * (z * gate + (1 - gate) * shift)
    moved, log_det = step(z)
    torch.testing.assert_close(moved, expected)
    torch.testing.assert_close(log_det, ((1 - step.mask) * gate.log()).sum(1))


# Densities ----------------------------------------------------------------------------------------------------


def test_the_density_of_factors_is_that_of_the_transformed_gaussian():
    factors = shaken(Multipliers(4, Flow(4, 2, hidden=5)))
    z, log_q = factors(torch.randn(9, 4).double())
    start = factors.flow.inverse(z)
    base = Independent(Normal(factors.mean, (0.5 * factors.log_variance).exp()), 1)
    torch.testing.assert_close(log_q, base.log_prob(start) - factors.flow(start)[1])


def test_factors_start_around_one_with_variance_a_tenth():
    factors = Multipliers(2000, Flow(2000, 0, hidden=1))
    z = factors(torch.randn(200, 2000))[0].detach()
    assert float(z.mean()) == pytest.approx(1, abs=0.01)
    assert float(z.var(0).mean()) == pytest.approx(0.1, rel=0.02)


def test_the_auxiliary_density_is_a_gaussian_behind_a_flow():
    auxiliary = shaken(Auxiliary(4, Flow(4, 2, hidden=5), torch.tanh))
    z, summary = torch.randn(9, 4).double(), torch.randn(9, 6).double()
    moved, log_det = auxiliary.flow(z)
    mean = (auxiliary.to_mean[:, None] * summary[:, None]).mean(-1)
    precision = (auxiliary.to_log_precision[:, None] * summary[:, None]).mean(-1).exp()
    expected = Normal(mean, precision**-0.5).log_prob(moved).sum(1) + log_det
    torch.testing.assert_close(auxiliary.log_prob(z, summary), expected)


def test_the_summary_of_weights_is_distributed_as_that_of_drawn_weights():
    auxiliary = shaken(Auxiliary(5, Flow(5, 0, hidden=1), nn.Identity()))
    z, mean, std = torch.randn(1, 5).double(), torch.randn(5, 3).double(), 0.1 + torch.rand(5, 3).double()
    size = 100_000
    direct = auxiliary.summarise(z.expand(size, 5), mean, std, torch.randn(size, 3).double())
    weights = z[:, :, None] * mean + std * torch.randn(size, 5, 3).double()
    assert_same_moments(direct, (auxiliary.combine[:, None] * weights).sum(1))


def test_the_kl_of_a_gaussian_is_the_textbook_one():
    gaussian = FactorisedGaussian(torch.randn(4, 3), 0.3, prior_std=0.7)
    factor = torch.randn(3)
    expected = kl_divergence(Normal(factor * gaussian.mean, gaussian.std), Normal(torch.tensor(0.0), 0.7)).sum()
    torch.testing.assert_close(gaussian.kl(factor**2), expected)
    torch.testing.assert_close(gaussian.entropy(), Normal(gaussian.mean, gaussian.std).entropy().sum())


# Layers -------------------------------------------------------------------------------------------------------


def make_layer(layer, *, bias="trained", **settings):
    """The distribution of a layer's weights, with stds and factors that differ from entry to entry."""
    weight = FactorisedGaussian(layer.weight, 0.2, prior_std=0.8)
    own = None if layer.bias is None else layer.bias.detach()
    if own is not None and bias == "trained":
        own = FactorisedGaussian(own, 0.2, prior_std=1.3)
    config = MNFConfig(**settings)
    if isinstance(layer, nn.Linear):
        return shaken(MNFLinear(weight, own, config))
    return shaken(MNFConv(weight, own, config, layer._conv_forward))


LAYERS = {
    "linear": lambda: nn.Linear(4, 3),
    "linear without bias": lambda: nn.Linear(4, 3, bias=False),
    "conv1d": lambda: nn.Conv1d(2, 3, 2),
    "conv2d strided, dilated, in groups": lambda: nn.Conv2d(4, 6, 2, stride=2, padding=1, dilation=2, groups=2),
    "conv2d padded by reflection": lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect", bias=False),
}


def inputs_for(layer):
    if isinstance(layer, nn.Linear):
        return torch.randn(2, layer.in_features)
    return torch.randn(2, layer.in_channels, *[5] * (layer.weight.dim() - 2))


def assert_same_moments(left, right):
    """Means and variances ``[...]`` of two samples ``[S, ...]`` agree within five standard errors."""
    for power in (1, 2):
        a, b = left - left.mean(0) if power == 2 else left, right - right.mean(0) if power == 2 else right
        a, b = a**power, b**power
        error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() < 5 * error + 1e-12).all()


def draw_outputs(part, layer, x, size):
    """Outputs ``[S, ...]`` on one example x ``[1, ...]``: drawn directly, and with drawn weights."""
    repeated = x.double().expand(size, *x.shape[1:])
    z = part.draw_z(torch.randn(size, part.size).double()).z
    direct = part.sample_outputs(repeated, z, generator())
    weights = part.sample(torch.randn(size, part.noise_size).double())
    if layer.bias is not None and "bias" not in weights:
        weights["bias"] = part.frozen_bias.expand(size, -1)
    explicit = vmap(lambda own: functional_call(layer.double(), own, (x.double(),)))(weights).squeeze(1)
    return direct, explicit


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_drawn_outputs_are_distributed_as_outputs_of_drawn_weights(make):
    layer = make()
    part = make_layer(layer)
    assert_same_moments(*draw_outputs(part, layer, inputs_for(layer)[:1], 10_000))


@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.Conv2d(4, 3, 2)], ids=["linear", "conv2d"])
def test_a_frozen_bias_is_neither_noisy_nor_multiplied(layer):
    part = make_layer(layer, bias="frozen")
    assert_same_moments(*draw_outputs(part, layer, inputs_for(layer)[:1], 10_000))
    zero = part.sample_outputs(
        torch.zeros_like(inputs_for(layer)).double(), torch.full((2, part.size), 3.0), generator()
    )
    bias = layer.bias.double().view(-1, *[1] * (zero.dim() - 2)).expand_as(zero)
    torch.testing.assert_close(zero, bias, atol=1e-7, rtol=0)


def test_a_sequence_has_one_z_for_all_positions():
    layer = nn.Linear(4, 3)
    part = make_layer(layer)
    x, z = torch.randn(2, 7, 4).double(), torch.randn(2, 4).double()
    expected = torch.stack([part._mean_outputs(x[:, position], z) for position in range(7)], dim=1)
    torch.testing.assert_close(part._mean_outputs(x, z), expected)


def test_inputs_of_zero_have_finite_gradients():
    part = make_layer(nn.Linear(4, 3, bias=False))
    part.sample_outputs(torch.zeros(2, 4).double(), torch.ones(2, 4).double(), generator()).sum().backward()
    assert torch.isfinite(part.weight.log_std.grad).all()


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_the_kl_is_the_mean_log_ratio_of_drawn_weights(make):
    """E[log q(W|z) − log p(W) + log q(z) − log r(z|W)] with every density from torch.distributions."""
    layer = make()
    part = make_layer(layer)
    size = 20_000
    drawn = part.draw_z(torch.randn(size, part.size).double())
    noise = torch.randn(size, part.noise_size).double()[:, part.size :]
    ratios = drawn.log_q.clone()
    explicit = {}
    for (name, gaussian), own in zip(
        [(name, getattr(part, name)) for name in ("weight", "bias") if getattr(part, name) is not None],
        noise.split(part._noise_sizes()[1:], dim=1),
        strict=False,
    ):
        factor = part._beside_weight(drawn.z) if name == "weight" else part._beside_bias(drawn.z)
        value = explicit[name] = gaussian.sample(own, factor)
        ratio = Normal(factor * gaussian.mean, gaussian.std).log_prob(value)
        ratio = ratio - Normal(0.0, gaussian.prior_std).log_prob(value)
        ratios += ratio.flatten(1).sum(1)
    matrices = vmap(part._rows, in_dims=(0, 0 if "bias" in explicit else None))(
        explicit["weight"], explicit.get("bias")
    )
    summary = part.auxiliary.squash((part.auxiliary.combine[:, None] * matrices).sum(1))
    ratios -= part.auxiliary.log_prob(drawn.z, summary)
    found = torch.stack([part.kl(part.draw_z(torch.randn(50, part.size).double()), generator(k)) for k in range(100)])
    error = (found.var() / len(found) + ratios.var() / size).sqrt()
    assert (found.mean() - ratios.mean()).abs() < 5 * error


# Fits ---------------------------------------------------------------------------------------------------------


NOISE = 0.5


def conjugate(x):
    """Targets for y = x·(1, 1, 1) + noise, and the exact posterior's mean ``[3]`` and precision ``[3, 3]``."""
    y = x.sum(1, keepdim=True) + NOISE * torch.randn(len(x), 1, generator=generator(2))
    design = x.double()
    precision = design.T @ design / NOISE**2 + torch.eye(3).double()
    return y, torch.linalg.solve(precision, design.T @ y.double() / NOISE**2).flatten(), precision


def fit_conjugate(network, x, y, *, steps, **settings):
    config = MNFConfig(batch_size=len(x), learning_rate=0.02, initial_std=0.1, keep_best=False, **settings)
    posterior = MNF(network, Gaussian(NOISE), GaussianPrior(1.0), config)
    posterior.fit((x, y), budget=2 * len(x) * steps)
    return posterior


def test_without_factors_it_is_the_best_factorised_gaussian():
    x = torch.randn(40, 3, generator=generator(1)) @ torch.tensor([[1.0, 0.6, 0.0], [0.0, 0.8, 0.0], [0.0, 0.0, 0.5]])
    y, mean, precision = conjugate(x)
    posterior = fit_conjugate(nn.Linear(3, 1, bias=False), x, y, steps=800, multiplicative=False)
    weight = posterior._layers[""].weight
    std = torch.diag(precision) ** -0.5
    assert ((weight.mean.flatten().double() - mean).abs() < 0.2 * std).all()
    torch.testing.assert_close(weight.std.flatten().double(), std, rtol=0.05, atol=0)


def test_factors_follow_a_correlated_posterior_that_no_factorised_gaussian_can():
    """The data say little about the sum of the weights, which is what the factor of a channel scales."""
    x = torch.randn(40, 3, generator=generator(1))
    x -= 0.9 * x.mean(1, keepdim=True)
    y, mean, precision = conjugate(x)
    network = nn.Sequential(nn.Conv1d(3, 1, 1, bias=False), nn.Flatten())
    posterior = fit_conjugate(network, x[:, :, None], y, steps=400)
    samples = posterior.sample(5000, seed=0)["0.weight"].flatten(1).double()
    covariance, shift = torch.cov(samples.T), samples.mean(0) - mean
    # Kullback-Leibler divergences to the exact posterior: of a Gaussian with the samples' moments, of the best
    # factorised Gaussian.
    found = torch.trace(precision @ covariance) + shift @ precision @ shift - 3 - torch.logdet(precision @ covariance)
    factorised = torch.diag(precision).log().sum() - torch.logdet(precision)
    assert found < 0.6 * factorised
    assert (torch.corrcoef(samples.T) > 0.5).all()


@pytest.mark.parametrize("multiplicative", [True, False])
def test_a_residual_network_is_fitted_drawn_saved_and_loaded(tmp_path, multiplicative):
    network, problem = resnet((1, 6, 6), 2, width=4, stages=2, groups=2), images()
    posterior = MNF(network, Categorical(2), config=MNFConfig(multiplicative=multiplicative, validation_networks=2))
    summary = posterior.fit(problem.data, budget=1000)
    assert summary.spent <= 1000
    weights = posterior.sample(3, seed=0)
    assert all(len(torch.unique(value.flatten(1), dim=0)) == 3 for value in weights.values())
    posterior.save(tmp_path / "posterior.safetensors")
    loaded = MNF.load(tmp_path / "posterior.safetensors", network, Categorical(2))
    assert all(torch.equal(value, weights[name]) for name, value in loaded.sample(3, seed=0).items())


def test_a_step_costs_two_evaluations_an_example():
    problem = classification()
    posterior = MNF(problem.network, Categorical(3), config=MNFConfig(batch_size=10))
    summary = posterior.fit((problem.data.train.x, problem.data.train.y), budget=207)
    assert (summary.steps, summary.spent) == (10, 200)


def test_a_budget_for_no_step_is_refused_with_the_least_one():
    problem = classification()
    posterior = MNF(problem.network, Categorical(3), config=MNFConfig(batch_size=10))
    with pytest.raises(UsageError, match="at least 180 gradient evaluations"):
        posterior.check_fit(problem.data, 179)  # 2 × 10 for the step, 10 networks × 48 examples / 3 for validation
    assert posterior.fit(problem.data, budget=180).steps == 1


def test_stds_stay_at_most_the_limit_and_come_back_from_it():
    problem = classification()
    config = MNFConfig(max_std=0.3, initial_std=100.0, learning_rate=0.05, multiplicative=False, keep_best=False)
    posterior = MNF(problem.network, Categorical(3), GaussianPrior(0.2), config)
    posterior.fit(problem.data, budget=5000)
    stds = torch.cat([value.exp().flatten() for key, value in posterior.state_dict().items() if "log_std" in key])
    assert stds.max() <= 0.3 + 1e-6
    assert stds.median() < 0.27  # the prior's is 0.2


def test_the_weight_of_the_kl_rises_to_one():
    """With no weight on the KL there is nothing to keep the noise up."""
    problem = classification()
    noise = []
    for share in (0.0, 1.0):
        posterior = MNF(problem.network, Categorical(3), config=MNFConfig(kl_annealing=share, keep_best=False))
        noise.append(float(posterior.fit(problem.data, budget=3000).history[-1]["kl"]))
    assert noise[0] < noise[1]


def test_a_learned_noise_has_a_posterior_of_its_own():
    problem = regression()
    noise = problem.fit(MNF, budget=5000).sample(500, seed=0)["likelihood.log_noise_std"]
    assert float(noise.std()) > 0.01


def test_a_learned_noise_is_held_by_its_prior():
    """Of two targets that are met exactly the likelihood alone would let the noise vanish."""
    data = FitData(Examples(torch.zeros(2, 1), torch.zeros(2, 1)))
    posterior = MNF(nn.Linear(1, 1, bias=False), Gaussian("learned"), config=MNFConfig(learning_rate=0.02))
    posterior.fit(data, budget=4 * 600)
    noise = posterior.sample(500, seed=0)["likelihood.log_noise_std"]
    # argmin of 2 log σ + (log σ − log ½)²/2
    assert float(noise.mean()) == pytest.approx(math.log(0.5) - 2, abs=0.35)


def test_frozen_parameters_leave_their_layer_as_it_is():
    problem = classification()
    problem.network[1].weight.requires_grad_(False)
    problem.network[3].bias.requires_grad_(False)
    posterior = problem.fit(MNF, budget=2000)
    assert list(posterior._layers) == ["3"]
    assert list(posterior._others) == ["1.bias"]
    weights = posterior.sample(4, seed=0)
    assert torch.equal(weights["3.bias"], problem.network[3].bias.expand(4, -1))
    assert len(torch.unique(weights["1.bias"], dim=0)) == 4


def test_a_network_in_double_precision_stays_so():
    problem = classification()
    data = FitData(*(Examples(part.x.double(), part.y) for part in (problem.data.train, problem.data.validation)))
    posterior = MNF(problem.network.double(), Categorical(3))
    posterior.fit(data, budget=1000)
    assert {value.dtype for value in posterior.sample(2, seed=0).values()} == {torch.float64}


# Refusals -----------------------------------------------------------------------------------------------------


class Doubled(nn.Sequential):
    """The last layer is applied twice."""

    def forward(self, x):
        return self[-1](super().forward(x))


class Functional(nn.Sequential):
    """The last layer's weight is used without calling the layer."""

    def forward(self, x):
        return nn.functional.linear(self[0](x), self[1].weight)


def tied():
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    network[2].bias = network[1].bias
    return network


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (
            nn.Sequential(nn.Linear(2, 6), nn.Unflatten(1, (3, 2)), nn.ConvTranspose1d(3, 1, 2), nn.Flatten()),
            "'2.weight' .ConvTranspose1d",
        ),
        (tied(), "layer '1': its bias is tied"),
        (Doubled(nn.Linear(2, 3), nn.Linear(3, 3)), "layer '1': the network calls it 2 times"),
        (Functional(nn.Linear(2, 3), nn.Linear(3, 3)), "layer '1', which the network does not call"),
    ],
)
def test_what_it_cannot_treat_is_refused_before_training(network, sentence):
    problem = classification()
    posterior = MNF(network, Categorical(3))
    with pytest.raises(UnsupportedNetworkError, match=sentence):
        posterior.check_fit(problem.data, 10_000)
