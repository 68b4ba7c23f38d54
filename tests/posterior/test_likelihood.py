import math

import pytest
import torch
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Normal

from bayes_bench import Categorical, Gaussian, GaussianPrior, HeteroscedasticGaussian, UsageError
from bayes_bench.posterior.likelihood import LOG_NOISE

S, B = 4, 7


def test_categorical_nll_is_cross_entropy_per_network():
    outputs, y = torch.randn(S, B, 3), torch.randint(3, (B,))
    found = Categorical(3).nll(outputs, y, {})
    torch.testing.assert_close(found, -TorchCategorical(logits=outputs).log_prob(y.expand(S, B)))


def test_targets_can_differ_between_networks():
    outputs, y = torch.randn(S, B, 3), torch.randint(3, (S, B))
    found = Categorical(3).nll(outputs, y, {})
    torch.testing.assert_close(found, -TorchCategorical(logits=outputs).log_prob(y))


def test_known_gaussian_noise():
    outputs, y = torch.randn(S, B, 2), torch.randn(B, 2)
    found = Gaussian(0.3, dimensions=2).nll(outputs, y, {})
    torch.testing.assert_close(found, -Normal(outputs, 0.3).log_prob(y).sum(-1))


def test_learned_gaussian_noise_is_each_networks_own():
    likelihood = Gaussian("learned")
    outputs, y = torch.randn(S, B, 1), torch.randn(B, 1)
    log_std = torch.randn(S)
    found = likelihood.nll(outputs, y, {LOG_NOISE: log_std})
    torch.testing.assert_close(found, -Normal(outputs, log_std.exp()[:, None, None]).log_prob(y).sum(-1))
    predicted = likelihood.predict(outputs, {LOG_NOISE: log_std})
    torch.testing.assert_close(predicted["noise_std"][:, 0, 0], log_std.exp())
    start = likelihood.initial_parameters()[LOG_NOISE]
    torch.testing.assert_close(likelihood.log_prior({LOG_NOISE: log_std}), Normal(start, 1.0).log_prob(log_std))


@pytest.mark.parametrize("scale", ["softplus", "exp"])
def test_heteroscedastic_gaussian(scale):
    outputs, y = torch.randn(S, B, 4), torch.randn(B, 2)
    likelihood = HeteroscedasticGaussian(2, scale)
    made = torch.nn.functional.softplus(outputs[..., 2:] + math.log(math.e - 1)) + 1e-3
    std = outputs[..., 2:].exp() if scale == "exp" else made
    expected = -Normal(outputs[..., :2], std).log_prob(y).sum(-1)
    torch.testing.assert_close(likelihood.nll(outputs, y, {}), expected)
    torch.testing.assert_close(likelihood.training_nll(outputs, y, {}), expected)
    torch.testing.assert_close(likelihood.predict(outputs, {})["noise_std"], std)


def test_heteroscedastic_noise_neither_vanishes_nor_explodes():
    far = HeteroscedasticGaussian().predict(torch.tensor([[[0.0, -1e4], [0.0, 0.0], [0.0, 10.0], [0.0, 1e4]]]), {})
    expected = torch.tensor([1e-3, 1.001, 10.5424, 10000.5])
    torch.testing.assert_close(far["noise_std"][0, :, 0], expected, atol=1e-4, rtol=1e-5)


def test_training_gradients_of_a_heteroscedastic_gaussian_are_weighted():
    outputs = torch.randn(S, B, 2, requires_grad=True)
    y = torch.randn(B, 1)
    likelihood = HeteroscedasticGaussian()
    (plain,) = torch.autograd.grad(likelihood.nll(outputs, y, {}).sum(), outputs)
    (weighted,) = torch.autograd.grad(likelihood.training_nll(outputs, y, {}).sum(), outputs)
    std = likelihood.predict(outputs, {})["noise_std"].detach()
    torch.testing.assert_close(weighted, plain * std)  # σ^2β with β = ½


@pytest.mark.parametrize(
    "build",
    [lambda: Categorical(1), lambda: Gaussian(0.0), lambda: Gaussian(-1.0), lambda: GaussianPrior(0.0)],
)
def test_impossible_arguments_are_refused(build):
    with pytest.raises(UsageError):
        build()


@pytest.mark.parametrize("scaling", ["none", "fan_in"])
def test_prior_density(scaling):
    prior = GaussianPrior(0.7, scaling)
    weights = {
        "layer.weight": torch.randn(S, 5, 4),
        "layer.bias": torch.randn(S, 5),
        LOG_NOISE: torch.randn(S),
    }
    matrix_std = 0.7 / math.sqrt(4) if scaling == "fan_in" else 0.7
    expected = Normal(0, matrix_std).log_prob(weights["layer.weight"]).sum((1, 2))
    expected += Normal(0, 0.7).log_prob(weights["layer.bias"]).sum(1)
    torch.testing.assert_close(prior.log_prob(weights), expected)
    difference = prior.log_prob(weights)[0] - prior.log_prob(weights)[1]
    torch.testing.assert_close(prior.penalty(weights)[1] - prior.penalty(weights)[0], difference)
