"""HyperGAN's parts and the objective that joins them."""

import itertools
import math

import pytest
import torch
from torch import nn

from bayes_bench import Categorical, HyperGAN, HyperGANConfig
from bayes_bench.methods.hypergan.discriminator import Discriminator, accuracy, discriminator_loss, generator_loss
from bayes_bench.methods.hypergan.mixer import Mixer, pretrain
from bayes_bench.methods.hypergan.repulsion import away_from_data, overlap
from bayes_bench.methods.hypernetworks.generators import OTHER_STD, Generators
from bayes_bench.methods.hypernetworks.heads import DenseHead
from bayes_bench.networks import convnet, mlp, resnet
from bayes_bench.testing import classification, images, regression

CPU = torch.device("cpu")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def generators_for(network, seed=0, *, code_dim=32, hidden=(48, 48), **options):
    options = {"gain": 1.0, "diversity": 1.0, "fixed_scale": 0.0, "noise_scale": 0.0} | options
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        initial = {name: p.detach() for name, p in network.named_parameters()}
        return Generators(initial, code_dim, hidden, **options)


NETWORKS = {
    "mlp": lambda: mlp(20, [30, 25], 3),
    "convnet": lambda: convnet((1, 28, 28), [16, 16], 10),
    "resnet": lambda: resnet((3, 8, 8), 5, width=8, stages=2),
}


HEADS = {"dense": {}, "chunked": {"head": "chunked", "head_chunk": 64}}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("fixed_scale", [0.0, 1.0])
@pytest.mark.parametrize(("gain", "diversity"), [(0.5, 1.0), (1.0, 1.0), (1.0, 0.3)])
@pytest.mark.parametrize("name", NETWORKS)
def test_generated_weights_start_at_the_fan_in_scale_and_differ_between_draws(name, gain, diversity, fixed_scale, head):
    network = NETWORKS[name]()
    generators = generators_for(network, gain=gain, diversity=diversity, fixed_scale=fixed_scale, **HEADS[head])
    codes = torch.randn(24, generators.code_size, generator=seeded(1))
    with torch.no_grad():
        weights = generators(codes, torch.zeros(24, 0))
    parameters = dict(network.named_parameters())
    assert weights.keys() == parameters.keys()
    scale = gain * math.sqrt(1 + fixed_scale**2)
    for key, value in weights.items():
        assert value.shape == (24, *parameters[key].shape)
        layer = key.rpartition(".")[0]
        kernel = parameters[f"{layer}.weight"]
        if kernel.dim() < 2:  # a norm layer stays near its initial value
            assert float((value - parameters[key].detach()).std()) < 2 * OTHER_STD * math.sqrt(1 + fixed_scale**2)
            continue
        target = scale / math.sqrt(kernel[0].numel())
        if value[0].numel() >= 100:
            per_draw = value.flatten(1).std(1) / target
            assert ((per_draw > 0.75) & (per_draw < 1.25)).all()
            distance = torch.pdist(value.flatten(1)).mean() / value.flatten(1).norm(dim=1).mean()
            assert distance > 0.8 * diversity, "draws must vary visibly from the start"
        assert float(value.std(0).mean()) > 0.3 * diversity * target, "biases vary too"


def generated(generators, n, seed=1):
    with torch.no_grad():
        return generators(torch.randn(n, generators.code_size, generator=seeded(seed)), torch.zeros(n, 0))


def test_chunked_heads_have_fewer_parameters_and_small_layers_stay_dense():
    network = nn.Sequential(nn.Linear(200, 300), nn.ReLU(), nn.Linear(300, 2))
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in generators_for(network).layers]
    found = generators_for(network, head="chunked", head_chunk=5000).layers
    assert sum(p.numel() for p in found[0].parameters()) < sizes[0] / 5
    assert isinstance(found[1].head, DenseHead), "a head that saves nothing is not used"
    assert sum(p.numel() for p in found[1].parameters()) == sizes[1]


def test_chunked_heads_vary_each_chunk_in_a_way_of_its_own():
    generators = generators_for(nn.Linear(50, 70), diversity=0.3, head="chunked", head_chunk=500)
    flat = generated(generators, 400)["weight"].flatten(1)[:, :3500]
    flat = flat * 50**0.5  # unit scale
    deviations = flat - flat.mean(0)
    assert float(deviations.square().mean().sqrt()) == pytest.approx(0.3, rel=0.1), "as `diversity` says"
    chunks = deviations.view(400, 7, 500)
    for other in range(1, 7):
        correlation = (chunks[:, 0] * chunks[:, other]).mean() / (
            chunks[:, 0].norm() * chunks[:, other].norm() / 200_000
        )
        assert abs(float(correlation)) < 0.5


def test_chunked_heads_train_save_and_load(tmp_path):
    problem = images()
    config = HyperGANConfig(head="chunked", head_chunk=16, keep_best=False)
    posterior = HyperGAN(problem.network, problem.likelihood, config=config)
    posterior.fit(problem.data, budget=20_000, seed=0)
    assert any(not isinstance(layer.head, DenseHead) for layer in posterior.generators.layers)
    weights = posterior.sample(5, seed=1)
    label = posterior.predict(problem.data.train.x, weights).label
    assert float((label == problem.data.train.y).double().mean()) > 0.8
    posterior.save(tmp_path / "posterior.safetensors")
    loaded = HyperGAN.load(tmp_path / "posterior.safetensors", problem.network, problem.likelihood)
    for name, value in loaded.sample(5, seed=1).items():
        assert torch.equal(value, weights[name])


def test_a_draw_does_not_depend_on_the_others_drawn_with_it():
    generators = generators_for(mlp(5, [8], 2))
    codes = torch.randn(6, generators.code_size, generator=seeded())
    none = torch.zeros(6, 0)
    together, alone = generators(codes, none), generators(codes[:1], none[:1])
    for name, value in alone.items():
        torch.testing.assert_close(value[0], together[name][0])


def test_layers_have_codes_of_their_own():
    generators = generators_for(mlp(5, [8], 2))
    codes = torch.randn(2, generators.code_size, generator=seeded())
    codes[1, : generators.code_dim] = codes[0, : generators.code_dim]
    weights = generators(codes, torch.zeros(2, 0))
    assert torch.equal(weights["1.weight"][0], weights["1.weight"][1])
    assert not torch.equal(weights["3.weight"][0], weights["3.weight"][1])


# Mixer --------------------------------------------------------------------------------------------------------


def make_mixer(size, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Mixer(32, (96, 96), size)


def pretrained(mixer, tolerance=0.02, max_steps=500):
    return pretrain(mixer, seeded(), tolerance=tolerance, max_steps=max_steps, device=CPU)


def no_whitening(monkeypatch):
    monkeypatch.setattr("bayes_bench.methods.hypergan.mixer._whiten", lambda *_: None)


@pytest.mark.parametrize("whitened", [True, False])
def test_pre_training_brings_mean_and_covariance_to_the_prior(whitened, monkeypatch):
    if not whitened:
        no_whitening(monkeypatch)
    mixer = make_mixer(40)
    tolerance = 0.02 if whitened else 0.05
    steps, distance = pretrained(mixer, tolerance=tolerance, max_steps=2000)
    assert distance <= tolerance
    assert (steps < 20) if whitened else (0 < steps < 2000)
    with torch.no_grad():
        codes = mixer(torch.randn(40_000, 32, generator=seeded(9)))
    error = codes.T.cov() - torch.eye(40)
    assert float((codes.mean(0) ** 2).sum() + (error**2).sum()) / 40 < 2 * tolerance


def test_a_code_wider_than_the_hidden_layers_can_be_matched():
    steps, distance = pretrained(make_mixer(150))
    assert steps < 100
    assert distance <= 0.02


class Fixed(Mixer):
    """Codes that are the noise itself, times something."""

    def __init__(self, size, factor):
        super().__init__(size, (8,), size)
        self.factor = factor

    def forward(self, noise):
        return noise * self.factor + 0 * sum(p.sum() for p in self.parameters())


def test_a_sample_of_the_prior_meets_the_stopping_rule():
    steps, distance = pretrained(Fixed(40, 1.0))
    assert steps <= 2
    assert abs(distance) < 0.02


@pytest.mark.parametrize("size", [40, 128])
@pytest.mark.parametrize("fault", ["zero", "small", "dead dimensions"])
def test_wrong_codes_miss_the_stopping_rule(size, fault):
    factor = torch.ones(size)
    if fault == "dead dimensions":
        factor[: size // 10] = 0
    else:
        factor *= 0 if fault == "zero" else 0.8
    _, distance = pretrained(Fixed(size, factor), max_steps=3)
    expected = float(((factor**2 - 1) ** 2).mean())
    assert distance > 0.02
    assert distance == pytest.approx(expected, rel=0.2)


# Adversarial term ---------------------------------------------------------------------------------------------


def test_losses_from_logits_are_the_papers():
    real, fake = torch.randn(50), torch.randn(50)
    d_real, d_fake = torch.sigmoid(real), torch.sigmoid(fake)
    torch.testing.assert_close(discriminator_loss(real, fake), -d_real.log().mean() - (1 - d_fake).log().mean())
    torch.testing.assert_close(generator_loss(fake), -d_fake.log().mean())


def test_the_adversarial_term_has_the_right_sign():
    """Less loss for the mixer where D takes its codes for the prior's, and D's own update makes it better."""
    logits = torch.zeros(10, requires_grad=True)
    (gradient,) = torch.autograd.grad(generator_loss(logits), logits)
    assert (gradient < 0).all(), "the mixer must raise D's logit of its codes"
    real, fake = torch.zeros(10, requires_grad=True), torch.zeros(10, requires_grad=True)
    of_real, of_fake = torch.autograd.grad(discriminator_loss(real, fake), [real, fake])
    assert (of_real < 0).all()
    assert (of_fake > 0).all()


def train_discriminator(discriminator, fake, steps=300):
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-3)
    rng = seeded(5)
    for _ in range(steps):
        real_codes = torch.randn(256, fake(1).shape[1], generator=rng)
        real, wrong = discriminator(real_codes), discriminator(fake(256))
        optimizer.zero_grad()
        discriminator_loss(real, wrong).backward()
        optimizer.step()
    real_codes = torch.randn(4000, fake(1).shape[1], generator=rng)
    with torch.no_grad():
        return float(accuracy(discriminator(real_codes), discriminator(fake(4000))))


def test_only_the_joint_discriminator_sees_dependence_between_layers():
    rng = seeded(3)

    def copied(n):
        """Each layer's code alone is N(0, I); together they are the same code twice."""
        code = torch.randn(n, 4, generator=rng)
        return torch.cat([code, code], dim=1)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        joint, per_layer = Discriminator(8, 1, (64,)), Discriminator(8, 2, (64,))
    error = 0.5 / math.sqrt(4000)  # standard error of an accuracy of ½, at least
    assert train_discriminator(joint, copied) > 0.8
    assert train_discriminator(per_layer, copied) < 0.5 + 5 * error


def test_the_adversarial_game_brings_displaced_codes_back():
    """Alternating updates move a mixer whose codes start two standard deviations off towards the prior."""
    mixer = make_mixer(6)
    with torch.no_grad():
        mixer.body[-1].bias.fill_(2.0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        discriminator = Discriminator(6, 1, (64,))
    d_optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.999))
    m_optimizer = torch.optim.Adam(mixer.parameters(), lr=1e-3)
    rng = seeded(2)
    for _ in range(300):
        with torch.no_grad():
            codes = mixer(torch.randn(64, 32, generator=rng))
        loss = discriminator_loss(discriminator(torch.randn(64, 6, generator=rng)), discriminator(codes))
        d_optimizer.zero_grad()
        loss.backward()
        d_optimizer.step()
        m_optimizer.zero_grad()
        generator_loss(discriminator(mixer(torch.randn(64, 32, generator=rng)))).backward()
        m_optimizer.step()
    with torch.no_grad():
        assert mixer(torch.randn(2000, 32, generator=rng)).mean(0).norm() < 0.5 * 2 * math.sqrt(6)


# The method ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    return classification().fit(HyperGAN)


def test_single_generated_networks_classify(trained):
    problem = classification()
    votes = trained.outputs(problem.data.train.x, trained.sample(30, seed=0)).argmax(-1)
    accuracy = (votes == problem.data.train.y).double().mean(1)
    assert accuracy.mean() > 0.9


def test_generated_networks_stay_different(trained):
    weights = trained.sample(50, seed=0)
    flat = torch.cat([value.flatten(1) for value in weights.values()], dim=1)
    relative = torch.pdist(flat).mean() / flat.norm(dim=1).mean()
    assert relative > 0.05


def test_every_generated_network_trains_on_its_own_images(monkeypatch):
    problem = classification()
    posterior = HyperGAN(problem.network, problem.likelihood, config=HyperGANConfig(networks=4, batch_size=8))
    seen = []
    evaluate = posterior.stacked.mean_loss

    def watch(weights, x, *rest, **options):
        if options.get("own_inputs"):
            seen.append(x.clone())
        return evaluate(weights, x, *rest, **options)

    monkeypatch.setattr(posterior.stacked, "mean_loss", watch)
    posterior.fit(problem.data, budget=4 * 8 * 10 + 200)
    assert seen
    assert all(x.shape == (4, 8, 2) for x in seen)
    assert all(not torch.equal(a, b) for x in seen for a, b in itertools.combinations(x, 2))


@pytest.mark.parametrize(
    ("settings", "mixer", "discriminator"),
    [
        ({}, True, True),
        ({"discriminator": "per_layer"}, True, True),
        ({"discriminator": "none"}, True, False),
        ({"adversarial_weight": 0.0}, True, False),
        ({"mixer": False}, False, False),
    ],
)
def test_ablations(settings, mixer, discriminator):
    problem = images()
    config = HyperGANConfig(noise_dim=16, code_dim=8, **settings)
    posterior = HyperGAN(problem.network, problem.likelihood, config=config)
    summary = posterior.fit(problem.data, budget=6000)
    assert (posterior.mixer is not None) == mixer
    assert (posterior.discriminator is not None) == discriminator
    assert any("pre-trained" in note for note in summary.notes) == mixer
    assert ("discriminator_accuracy" in summary.history[-1]) == discriminator
    assert torch.isfinite(posterior.outputs(problem.data.train.x, posterior.sample(3, seed=0))).all()


def test_the_discriminator_holds_the_codes_near_the_prior():
    """With the adversarial term the codes end closer to N(0, I) than without it, at the same budget."""
    problem = classification()
    distance = {}
    for weight in (0.0, 5.0):
        config = HyperGANConfig(
            noise_dim=16,
            code_dim=4,
            adversarial_weight=weight,
            learning_rate=1e-2,
            mixer_learning_rate=1e-2,
            discriminator_learning_rate=1e-3,
            keep_best=False,
        )
        posterior = HyperGAN(problem.network, problem.likelihood, config=config)
        posterior.fit(problem.data, budget=60_000)
        with torch.no_grad():
            codes = posterior._codes(torch.randn(3000, 16, generator=seeded(1)))
        error = codes.T.cov() - torch.eye(codes.shape[1])
        distance[weight] = float((codes.mean(0) ** 2).sum() + (error**2).sum())
    assert distance[5.0] < distance[0.0]


def test_the_state_holds_no_discriminator(trained):
    assert not [name for name in trained.state_dict() if name.startswith("discriminator")]


def test_the_prior_is_used_only_when_asked():
    network = mlp(2, [4], 3)
    assert not HyperGAN(network, Categorical(3), config=HyperGANConfig(prior_weight=0)).uses_prior
    assert HyperGAN(network, Categorical(3), config=HyperGANConfig(prior_weight=1)).uses_prior


def test_anchors_are_the_frozen_part_alone():
    generators = generators_for(mlp(5, [8], 2), fixed_scale=0.7)
    codes = torch.randn(3, generators.code_size, generator=seeded())
    with torch.no_grad():
        for layer in generators.layers:
            layer.body[-1].weight.zero_()
            layer.body[-1].bias.zero_()
        weights = generators(codes, torch.zeros(3, 0))
    for name, anchor in generators.anchors(codes).items():
        torch.testing.assert_close(weights[name], anchor)


def test_weight_noise_multiplies_all_weights_but_the_first_layers():
    generators = generators_for(convnet((1, 12, 12), [4, 8], 3, kernel=3), noise_scale=0.4)
    n = 200
    codes = torch.randn(n, generators.code_size, generator=seeded())
    noise = torch.randn(n, generators.noise_size, generator=seeded(1))
    with torch.no_grad():
        quiet, loud = generators(codes, torch.zeros_like(noise)), generators(codes, noise)
    for name, value in quiet.items():
        if name.endswith("bias") or name == "0.weight":
            assert torch.equal(loud[name], value)
            continue
        factor = (loud[name] / value).flatten()
        usable = factor[value.flatten().abs() > 1e-3]
        assert abs(float(usable.mean()) - 1) < 5 * 0.4 / math.sqrt(len(usable))
        assert abs(float(usable.std()) - 0.4) < 5 * 0.4 / math.sqrt(2 * len(usable))


def test_draws_with_weight_noise_are_nested():
    problem = classification()
    posterior = HyperGAN(problem.network, problem.likelihood, config=HyperGANConfig(weight_noise=0.3))
    posterior.fit(problem.data, budget=4000)
    few, many = posterior.sample(3, seed=5), posterior.sample(7, seed=5)
    for name, value in few.items():
        torch.testing.assert_close(value, many[name][:3])


def test_a_drawn_network_carries_the_weight_noise():
    problem = classification()
    posterior = HyperGAN(problem.network, problem.likelihood, config=HyperGANConfig(weight_noise=0.5))
    posterior.fit(problem.data, budget=4000)
    rng = seeded(3)
    noise, weight_noise = posterior._noise(4, rng)
    with torch.no_grad():
        quiet = posterior.generators(posterior._codes(noise), torch.zeros_like(weight_noise))
    ratio = posterior.sample(4, seed=3)["3.weight"] / quiet["3.weight"]
    assert float(ratio.std()) == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(2 * ratio.numel()))


def test_the_prior_shrinks_generated_weights():
    problem = classification()
    norms = []
    for weight in (0.0, 1.0, 100.0):
        config = HyperGANConfig(prior_weight=weight, weight_noise=0.0, keep_best=False)
        posterior = HyperGAN(problem.network, problem.likelihood, config=config)
        posterior.fit(problem.data, budget=30_000)
        norms.append(sum(float((w**2).sum()) for w in posterior.sample(10, seed=0).values()))
    assert norms[0] > norms[1] > 2 * norms[2]


def test_a_float64_network_gets_float64_weights():
    x = torch.randn(60, 2, dtype=torch.float64)
    posterior = HyperGAN(mlp(2, [8], 2).double(), Categorical(2))
    posterior.fit((x, (x[:, 0] > 0).long()), budget=2000)
    assert posterior.sample(2, seed=0)["1.weight"].dtype == torch.float64
    assert posterior.predict(x, posterior.sample(2, seed=0)).mean.shape == (60, 2)


# Repulsion ------------------------------------------------------------------------------------------------


def test_overlap_of_classes_is_the_mean_bhattacharyya_coefficient_over_pairs():
    probs = torch.softmax(torch.randn(4, 5, 3, generator=seeded(), dtype=torch.float64), -1)
    pairs = list(itertools.combinations(range(4), 2))
    expected = torch.stack([(probs[i] * probs[j]).sqrt().sum(-1) for i, j in pairs]).mean(0)
    torch.testing.assert_close(overlap({"log_probs": probs.log()}), expected)


def test_overlap_of_gaussians_is_the_integral_of_the_root_of_their_product():
    mean = torch.tensor([[[0.0]], [[1.5]], [[-0.3]]], dtype=torch.float64)
    std = torch.tensor([[[1.0]], [[0.5]], [[2.0]]], dtype=torch.float64)
    grid = torch.linspace(-40, 40, 80_001, dtype=torch.float64)
    density = torch.distributions.Normal(mean[:, 0], std[:, 0]).log_prob(grid).exp()
    pairs = [(density[i] * density[j]).sqrt().sum() * 1e-3 for i, j in itertools.combinations(range(3), 2)]
    torch.testing.assert_close(overlap({"mean": mean, "noise_std": std}), torch.stack(pairs).mean()[None])
    both = {"mean": mean.repeat(1, 1, 2), "noise_std": std.repeat(1, 1, 2)}
    squares = torch.stack([pair**2 for pair in pairs])  # two independent dimensions
    torch.testing.assert_close(overlap(both), squares.mean()[None])


def test_inputs_away_from_the_data_are_made_of_three_examples():
    x = torch.eye(6)  # sums of three rows tell which they were
    away = away_from_data(x, 200, seeded())
    assert away.shape == (200, 6)
    assert torch.equal(away.sum(1), torch.ones(200))
    assert (away.abs().sum(1) <= 3).all()
    assert (away.abs().sum(1) == 3).any()


def test_repulsion_drives_predictions_apart_away_from_the_data_and_is_paid_for():
    problem = classification()
    found, steps = {}, {}
    for weight in (0.0, 1.0):
        config = HyperGANConfig(weight_noise=0.0, repulsion_weight=weight, repulsion_batch=8)
        posterior = HyperGAN(problem.network, problem.likelihood, config=config)
        summary = posterior.fit(problem.data, budget=30_000, seed=0)
        away = away_from_data(problem.data.train.x, 300, seeded(1))
        weights = posterior.sample(20, seed=0)
        predicted = problem.likelihood.predict(posterior.outputs(away, weights), weights)
        found[weight], steps[weight] = float(overlap(predicted).mean()), summary.steps
    assert found[1.0] < found[0.0] - 0.1
    assert steps[1.0] == pytest.approx(steps[0.0] * 16 / 24, rel=0.02)


def test_repulsion_widens_a_regression_outside_the_data():
    problem = regression()
    spread = {}
    for weight in (0.0, 0.3):
        config = HyperGANConfig(weight_noise=0.0, repulsion_weight=weight)
        posterior = HyperGAN(problem.network, problem.likelihood, config=config)
        posterior.fit(problem.data, budget=20_000, seed=0)
        outside = problem.data.train.x * 3
        spread[weight] = float(posterior.predict(outside, posterior.sample(20, seed=0)).epistemic_variance.mean())
    assert spread[0.3] > 1.5 * spread[0.0]
