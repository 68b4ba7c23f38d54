"""MAP, deep ensembles and MC dropout against what can be computed by hand."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

from bayes_bench import (
    Categorical,
    Examples,
    FitData,
    Gaussian,
    GaussianPrior,
    HeteroscedasticGaussian,
    UnsupportedNetworkError,
)
from bayes_bench.networks import convnet, mlp
from bayes_bench.testing import classification, images
from bayes_bench_baselines.dropout.config import MCDropoutConfig
from bayes_bench_baselines.dropout.mcdropout import MCDropout
from bayes_bench_baselines.ensembles.config import DeepEnsembleConfig, MAPConfig
from bayes_bench_baselines.ensembles.ensemble import DeepEnsemble
from bayes_bench_baselines.ensembles.map import MAP


def linear_regression(n=50, noise=0.5):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, generator=rng)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.3 + noise * torch.randn(n, 1, generator=rng)
    return x, y


def ridge(x, y, noise, prior_std):
    """Mode of the conjugate posterior over [weights, bias]."""
    design = torch.cat([x, torch.ones(len(x), 1)], dim=1).double()
    precision = design.T @ design / noise**2 + torch.eye(4).double() / prior_std**2
    return torch.linalg.solve(precision, design.T @ y.double() / noise**2).flatten()


@pytest.mark.parametrize("prior_std", [0.2, 1.0])
def test_map_is_the_mode_of_the_conjugate_posterior(prior_std):
    x, y = linear_regression()
    config = MAPConfig(batch_size=50, learning_rate=0.05, keep_best=False)
    posterior = MAP(nn.Linear(3, 1), Gaussian(0.5), GaussianPrior(prior_std), config)
    posterior.fit((x, y), budget=50 * 1500)
    weights = posterior.sample(1, seed=0)
    found = torch.cat([weights["weight"].flatten(), weights["bias"].flatten()]).double()
    torch.testing.assert_close(found, ridge(x, y, 0.5, prior_std), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("map_members", "prior_std"), [(False, 1e6), (True, 0.2)])
def test_ensemble_members_find_the_mode_with_and_without_prior(map_members, prior_std):
    """On a convex problem every member, whatever its start and its batches, is the same network."""
    x, y = linear_regression()
    config = DeepEnsembleConfig(members=3, batch_size=50, learning_rate=0.05, keep_best=False, map_members=map_members)
    posterior = DeepEnsemble(nn.Linear(3, 1), Gaussian(0.5), GaussianPrior(0.2), config)
    posterior.fit((x, y), budget=3 * 50 * 1500)
    assert posterior.uses_prior == map_members
    weights = posterior.sample(3, seed=0)
    for member in range(3):
        found = torch.cat([weights["weight"][member].flatten(), weights["bias"][member]]).double()
        torch.testing.assert_close(found, ridge(x, y, 0.5, prior_std), rtol=1e-3, atol=1e-3)


def test_a_one_member_ensemble_equals_its_member():
    x, y = linear_regression()
    network, likelihood = mlp(3, [8], 2, "tanh"), HeteroscedasticGaussian()
    posterior = DeepEnsemble(network, likelihood, config=DeepEnsembleConfig(members=1))
    posterior.fit((x, y), budget=5000)
    weights = posterior.sample(1, seed=0)
    prediction = posterior.predict(x, weights)
    with torch.no_grad():
        outputs = functional_call(network, {k: w[0] for k, w in weights.items()}, (x,))
    one = likelihood.predict(outputs[None], {})
    torch.testing.assert_close(prediction.mean, one["mean"][0].double())
    torch.testing.assert_close(prediction.variance, one["noise_std"][0].double() ** 2)


def test_members_differ_and_are_trained_alike():
    problem = classification()
    posterior = problem.fit(DeepEnsemble)
    votes = posterior.outputs(problem.data.train.x, posterior.sample(5, seed=0))
    accuracy = (votes.argmax(-1) == problem.data.train.y).double().mean(1)
    assert (accuracy > 0.9).all()
    assert (votes.flatten(1).std(0) > 1e-3).all()


def test_a_draw_smaller_than_the_ensemble_favours_no_member():
    posterior = classification().fit(DeepEnsemble, budget=3000)
    members = posterior.sample(5, seed=0)["1.bias"]
    counts = torch.zeros(5)
    for seed in range(300):
        drawn = posterior.sample(2, seed=seed)["1.bias"]
        assert not torch.equal(drawn[0], drawn[1])
        counts += (drawn[:, None] == members[None]).all(-1).sum(0)
    expected, error = 300 * 2 / 5, math.sqrt(300 * 0.4 * 0.6)
    assert ((counts - expected).abs() < 4 * error).all()


def test_adversarial_examples_cost_more_and_smooth():
    problem = classification()
    plain = DeepEnsemble(problem.network, problem.likelihood, config=DeepEnsembleConfig(members=2))
    adversarial = DeepEnsemble(
        problem.network, problem.likelihood, config=DeepEnsembleConfig(members=2, adversarial_epsilon=0.1)
    )
    steps = plain.fit(problem.data, budget=30_000, seed=0).steps
    assert adversarial.fit(problem.data, budget=70_000, seed=0).steps == pytest.approx(steps, rel=0.05)

    def worst_loss(posterior):
        """Mean NLL on the fast-gradient-sign examples of the trained members."""
        x, y = problem.data.validation.x.clone().requires_grad_(), problem.data.validation.y
        weights = posterior.sample(2, seed=0)
        nll = posterior.loss(posterior.stacked(weights, x), y, weights).sum()
        (gradient,) = torch.autograd.grad(nll, x)
        spread = problem.data.train.x.amax(0) - problem.data.train.x.amin(0)
        moved = (x + 0.1 * spread * gradient.sign()).detach()
        return float(posterior.loss(posterior.stacked(weights, moved), y, weights).mean())

    assert worst_loss(adversarial) < worst_loss(plain)


# MC dropout ---------------------------------------------------------------------------------------------------


def fitted_dropout(network, data=None, likelihood=None, **settings):
    problem = images()
    posterior = MCDropout(network, likelihood or problem.likelihood, config=MCDropoutConfig(**settings))
    posterior.fit(data or problem.data, budget=2000)
    return posterior


def test_a_sample_scales_columns_by_zero_or_the_inverse_keep_rate():
    posterior = fitted_dropout(
        nn.Sequential(nn.Flatten(), nn.Linear(36, 40), nn.ReLU(), nn.Linear(40, 2)), drop_rate=0.3
    )
    drawn, trained = posterior.sample(400, seed=0)["3.weight"], posterior.state_dict()["3.weight"]
    ratio = drawn / trained
    column = ratio[:, :1]
    torch.testing.assert_close(ratio, column.expand_as(ratio))
    kept = column[column > 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / 0.7))
    rate, n = float((column == 0).double().mean()), column.numel()
    assert abs(rate - 0.3) < 4 * math.sqrt(0.3 * 0.7 / n)


@pytest.mark.parametrize("groups", [1, 2])
def test_weight_samples_are_channel_dropout(groups):
    """Masked weights give what masking the channels of the layer's input gives."""
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=groups), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)
    )
    posterior = fitted_dropout(network, drop_rate=0.5)
    weights, trained = posterior.sample(8, seed=3), posterior.state_dict()
    x = images().data.validation.x
    outputs = posterior.outputs(x, weights)
    for s in range(8):
        # Which input channels were dropped: read off the mask of one output channel of each group.
        ratio = (weights["2.weight"][s] / trained["2.weight"])[:, :, 0, 0]
        channels = ratio.unflatten(0, (groups, -1))[:, 0].flatten()
        units = (weights["5.weight"][s] / trained["5.weight"])[0]
        layers = list(network.children())
        for name, layer in network.named_children():
            for key, parameter in layer.named_parameters():
                parameter.data = trained[f"{name}.{key}"].clone()
        with torch.no_grad():
            hidden = layers[1](layers[0](x)) * channels.view(1, -1, 1, 1)
            hidden = layers[4](layers[3](layers[2](hidden))) * units
            expected = layers[5](hidden)
        torch.testing.assert_close(outputs[s], expected, rtol=1e-4, atol=1e-5)


def test_training_masks_differ_between_examples():
    posterior = fitted_dropout(mlp(36, [30], 2), drop_rate=0.5)
    x = images().data.train.x[:1].expand(40, -1, -1, -1)
    with torch.no_grad(), posterior._masked_inputs(posterior._layers(), torch.Generator().manual_seed(0)):
        outputs = posterior.network(x)
    assert len(torch.unique(outputs, dim=0)) > 30
    assert not posterior.network[3]._forward_pre_hooks, "the masks must be gone after training"


def test_the_mean_of_masked_outputs_is_the_unmasked_output():
    """Inverted dropout on the last layer's input: the mean over masks is the network without masks."""
    posterior = fitted_dropout(mlp(36, [30], 2), drop_rate=0.4, where="last")
    x = images().data.validation.x
    outputs = posterior.outputs(x, posterior.sample(4000, seed=0)).double()
    plain = functional_call(posterior.network, posterior.state_dict(), (x,)).double()
    error = outputs.std(0) / math.sqrt(len(outputs))
    assert ((outputs.mean(0) - plain).abs() < 5 * error + 1e-6).all()


def test_the_penalty_is_the_expected_penalty_of_the_masked_weights():
    """E‖mask·θ‖² = ‖θ‖²/(1 − p), which is what the weight decay of masked weights stands for."""
    posterior = fitted_dropout(mlp(36, [30], 2), drop_rate=0.3)
    norms = (posterior.sample(4000, seed=0)["3.weight"].double() ** 2).sum((1, 2))
    expected = float((posterior.state_dict()["3.weight"].double() ** 2).sum()) / 0.7
    assert abs(float(norms.mean()) - expected) < 4 * float(norms.std()) / math.sqrt(len(norms))


@pytest.mark.parametrize(
    ("where", "masked"),
    [("all", {"3.weight", "7.weight", "9.weight"}), ("linear", {"7.weight", "9.weight"}), ("last", {"9.weight"})],
)
def test_where_decides_which_layers_are_masked(where, masked):
    network = convnet((1, 12, 12), [4, 4], 2, kernel=3, hidden=[8])
    x = torch.randn(20, 1, 12, 12)
    data = FitData(Examples(x, torch.arange(20) % 2))
    weights = fitted_dropout(network, data, where=where).sample(10, seed=0)
    assert {name for name, value in weights.items() if value.stride(0) != 0} == masked


def test_a_network_with_nothing_to_mask_is_refused():
    with pytest.raises(UnsupportedNetworkError, match="finds no layer to mask"):
        fitted_dropout(nn.Sequential(nn.Flatten(), nn.Linear(36, 2)))


def test_a_tied_weight_is_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 36), nn.ReLU(), nn.Linear(36, 36), nn.Linear(36, 2))
    network[3].weight = network[1].weight
    with pytest.raises(UnsupportedNetworkError, match="used more than once"):
        fitted_dropout(network)


def test_the_prior_shrinks_the_weights():
    problem = classification()
    norms = []
    for std in (0.1, 1.0, 10.0):
        posterior = MCDropout(problem.network, Categorical(3), GaussianPrior(std))
        posterior.fit(problem.data, budget=20_000)
        norms.append(sum(float((w**2).sum()) for w in posterior.state_dict().values()))
    assert norms[0] < norms[1] < norms[2]


def test_mc_dropout_finds_the_mode_of_its_own_objective():
    """Dropout before a linear layer is ridge regression: E‖y − (x∘m)w‖² = ‖y − xw‖² + p/(1−p) Σ_j ‖x_j‖² w_j²."""
    rng = torch.Generator().manual_seed(0)
    n, noise, prior_std, rate = 40, 0.5, 0.7, 0.4
    x = torch.randn(n, 3, generator=rng) @ torch.tensor([[1.0, 0.5, 0], [0, 1, 0.5], [0, 0, 1]])
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.3 + noise * torch.randn(n, 1, generator=rng)
    network = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 1))
    network[0].weight.requires_grad_(False).copy_(torch.eye(3))
    config = MCDropoutConfig(drop_rate=rate, batch_size=4000, learning_rate=0.02, keep_best=False)
    posterior = MCDropout(network, Gaussian(noise), GaussianPrior(prior_std), config)
    # Batches of n are all that is used: repeated rows give every example a hundred masks a step.
    repeated = x.repeat(100, 1), y.repeat(100, 1)
    posterior.prior = GaussianPrior(prior_std / 10)  # N is 100 times what it stands for
    posterior.fit(repeated, budget=4000 * 800)
    design = torch.cat([x, torch.ones(n, 1)], dim=1).double()
    penalty = torch.diag(torch.cat([(x.double() ** 2).sum(0) * rate / (1 - rate), torch.zeros(1)])) / noise**2
    penalty += torch.diag(torch.tensor([1 / (1 - rate)] * 3 + [1.0])) / prior_std**2
    expected = torch.linalg.solve(design.T @ design / noise**2 + penalty, design.T @ y.double() / noise**2).flatten()
    state = posterior.state_dict()
    found = torch.cat([state["1.weight"].flatten(), state["1.bias"]]).double()
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_the_data_are_not_masked_whatever_the_order_of_definition():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(8, 2)
            self.body = nn.Linear(36, 8)

        def forward(self, x):
            return self.head(self.body(x.flatten(1)).relu())

    weights = fitted_dropout(Backwards()).sample(5, seed=0)
    assert {name for name, value in weights.items() if value.stride(0) != 0} == {"head.weight"}


def test_a_frozen_layer_is_not_masked():
    network = mlp(36, [8, 8], 2)
    network[3].weight.requires_grad_(False)
    posterior = fitted_dropout(network)
    assert list(posterior._layers()) == ["5"]


def test_a_sequence_has_one_mask_in_training_too():
    network = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2), nn.Flatten(), nn.Linear(14, 2))
    x = torch.randn(20, 7, 4)
    posterior = fitted_dropout(network, FitData(Examples(x, torch.arange(20) % 2)), drop_rate=0.5)
    seen = []
    handle = posterior.network[1].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.no_grad(), posterior._masked_inputs(posterior._layers(), torch.Generator().manual_seed(0)):
        posterior.network(x + 5)
    handle.remove()
    dropped = seen[-1] == 0
    assert dropped.any()
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))


@pytest.mark.parametrize("method", [MAP, DeepEnsemble, MCDropout])
def test_patience_stops_early(method):
    problem = classification()
    posterior = method(problem.network, problem.likelihood, config=method.Config(patience=1, learning_rate=0.05))
    summary = posterior.fit(problem.data, budget=60_000)
    assert summary.stopped == "early"
    assert summary.unspent > 0


def test_members_without_an_initialiser_are_named():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.scale = nn.Linear(2, 3), nn.Parameter(torch.ones(3))

        def forward(self, x):
            return self.layer(x) * self.scale

    summary = DeepEnsemble(Scaled(), Categorical(3)).fit(classification().data, budget=3000)
    assert any("no reset_parameters for scale" in note for note in summary.notes)
