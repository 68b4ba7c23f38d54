import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bayes_bench import (
    Categorical,
    DataError,
    DivergenceError,
    Examples,
    FitData,
    Gaussian,
    HeteroscedasticGaussian,
    HyperGAN,
    HyperGANConfig,
    UnsupportedNetworkError,
    UsageError,
)
from bayes_bench.errors import StorageError
from bayes_bench.jobs.predictions import gram_matrices
from bayes_bench.metrics import mutual_information, norm_spread
from bayes_bench.posterior.checks import resolve_device
from bayes_bench.testing import classification, regression
from bayes_bench_baselines.dropout.mcdropout import MCDropout
from bayes_bench_baselines.ensembles.config import MAPConfig
from bayes_bench_baselines.ensembles.ensemble import DeepEnsemble
from bayes_bench_baselines.ensembles.map import MAP


@pytest.fixture(scope="module")
def fitted():
    return classification().fit(MAP, budget=4000)


def test_a_network_without_weights_is_refused():
    with pytest.raises(UnsupportedNetworkError, match="no trainable parameter"):
        MAP(nn.Flatten(), Categorical(3))
    with pytest.raises(UnsupportedNetworkError, match="lazy"):
        MAP(nn.LazyLinear(3), Categorical(3))


def test_a_random_network_is_refused_before_training():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 3)

        def forward(self, x):
            return nn.functional.dropout(self.layer(x), 0.5)

    with pytest.raises(UnsupportedNetworkError, match="draws random numbers"):
        MAP(Noisy(), Categorical(3)).fit(classification().data, budget=1000)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64)), r"cannot take inputs of shape \[5\]"),
        ((torch.zeros(4, 2), torch.full((4,), 3)), r"must lie in 0…2, got 3…3"),
        ((torch.zeros(4, 2), torch.zeros(4)), "class indices"),
        ((torch.zeros(4, 2), torch.zeros(3, dtype=torch.int64)), "4 inputs but 3 targets"),
    ],
)
def test_data_that_do_not_fit_are_refused(data, message):
    problem = classification()
    with pytest.raises(DataError, match=message):
        MAP(problem.network, problem.likelihood).fit(data, budget=1000)


def test_the_validation_set_is_checked_too():
    problem = classification()
    data = FitData(problem.data.train, Examples(torch.zeros(2, 2), torch.tensor([0, 9])))
    with pytest.raises(DataError, match="validation targets"):
        MAP(problem.network, problem.likelihood).fit(data, budget=1000)


def test_regression_targets_need_a_dimension():
    problem = regression()
    data = problem.data.train.x, problem.data.train.y[:, 0]
    with pytest.raises(DataError, match=r"floats of shape \[N, 1\]"):
        MAP(problem.network, problem.likelihood).fit(data, budget=1000)


def test_outputs_must_have_the_likelihoods_width():
    with pytest.raises(
        DataError, match=r"Categorical\(4\) needs outputs of shape \[4, 4\], the network gives \[4, 3\]"
    ):
        MAP(classification().network, Categorical(4)).fit(classification().data, budget=1000)


def test_small_mistakes_of_a_caller(fitted):
    problem = classification()
    with pytest.raises(UsageError, match="no weights yet"):
        MAP(problem.network, problem.likelihood).sample(1, seed=0)
    with pytest.raises(UsageError, match="cannot sample 0"):
        fitted.sample(0, seed=0)
    with pytest.raises(UsageError, match="budget must be at least 1"):
        MAP(problem.network, problem.likelihood).fit(problem.data, budget=0)
    with pytest.raises(UsageError, match="needs a MAPConfig, got HyperGANConfig"):
        MAP(problem.network, problem.likelihood, config=HyperGANConfig())
    with pytest.raises(UsageError, match="unknown device 'tpu9000'"):
        resolve_device("tpu9000")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_is_one_sentence():
    with pytest.raises(UsageError, match="finds no GPU"):
        resolve_device("cuda")
    assert resolve_device("auto") == torch.device("cpu")


def test_divergence_is_an_error_not_a_result():
    problem = classification()
    posterior = MAP(problem.network, problem.likelihood, config=MAPConfig(learning_rate=1e30, keep_best=False))
    with pytest.raises(DivergenceError):
        posterior.fit(problem.data, budget=20_000)


def test_load_refuses_what_it_was_not_made_for(fitted, tmp_path):
    problem = classification()
    path = tmp_path / "posterior.safetensors"
    fitted.save(path)
    with pytest.raises(DataError, match="another network"):
        MAP.load(path, nn.Sequential(nn.Linear(2, 3)), problem.likelihood)
    with pytest.raises(DataError, match=r"posterior of map, not hypergan"):
        HyperGAN.load(path, problem.network, problem.likelihood)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match="cannot read the posterior"):
        MAP.load(path, problem.network, problem.likelihood)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(DataError, match="no known method"):
        MAP.load(path, problem.network, problem.likelihood)


def test_save_leaves_the_old_file_when_writing_fails(fitted, tmp_path, monkeypatch):
    path = tmp_path / "posterior.safetensors"
    fitted.save(path)
    before = path.read_bytes()
    monkeypatch.setattr("bayes_bench.host.files.os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(StorageError, match="disk full"):
        fitted.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_disagreement_is_the_share_of_differing_pairs():
    problem = classification()
    posterior = MAP(problem.network, problem.likelihood)
    rng = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(6, *p.shape, generator=rng) for name, p in problem.network.named_parameters()}
    votes = posterior.outputs(problem.data.validation.x, weights).argmax(-1)
    pairs = [(votes[i] != votes[j]).double().mean() for i in range(6) for j in range(i)]
    found = posterior.validation_scores(problem.data, weights)["disagreement"]
    assert found == pytest.approx(float(torch.stack(pairs).mean()))


def test_spreads_of_layers_and_mutual_information_are_those_of_the_metrics():
    problem = classification()
    posterior = MAP(problem.network, problem.likelihood)
    rng = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(6, *p.shape, generator=rng) for name, p in problem.network.named_parameters()}
    scores = posterior.validation_scores(problem.data, weights)
    grams, sizes = gram_matrices(posterior.network, weights)
    assert len(sizes) > 1
    for layer in sizes:
        assert scores[f"weight_spread/{layer}"] == pytest.approx(norm_spread(grams[layer]), rel=1e-4)
    assert scores["weight_spread"] == pytest.approx(norm_spread(grams["all"]), rel=1e-4)
    log_probs = posterior.outputs(problem.data.validation.x, weights).log_softmax(-1)
    assert scores["mutual_information"] == pytest.approx(mutual_information(log_probs.numpy()).mean(), rel=1e-5)


def test_one_network_has_no_spread():
    problem = classification()
    posterior = MAP(problem.network, problem.likelihood)
    weights = {name: p.detach()[None] for name, p in problem.network.named_parameters()}
    assert posterior.validation_scores(problem.data, weights).keys() == {"val_nll", "val_accuracy"}


def test_targets_of_the_wrong_width_do_not_broadcast():
    x, y = torch.randn(40, 3), torch.randn(40, 2)
    for likelihood, outputs in ((Gaussian(0.5, dimensions=1), 1), (HeteroscedasticGaussian(1), 2)):
        with pytest.raises(DataError, match=r"shape \[N, 1\], got .* of \[40, 2\]"):
            MAP(nn.Linear(3, outputs), likelihood).fit((x, y), budget=1000)


def test_the_validation_nll_is_the_mixtures():
    problem = classification()
    posterior = MAP(problem.network, problem.likelihood)
    rng = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(6, *p.shape, generator=rng) for name, p in problem.network.named_parameters()}
    x, y = problem.data.validation.x, problem.data.validation.y
    probs = posterior.outputs(x, weights).double().softmax(-1).mean(0)
    expected = -probs[torch.arange(len(y)), y].log().mean()
    assert posterior.validation_scores(problem.data, weights)["val_nll"] == pytest.approx(float(expected))


def test_a_failed_refit_leaves_no_posterior():
    problem = classification()
    posterior = problem.fit(MAP, budget=3000)
    with pytest.raises(UsageError, match="too small"):
        posterior.fit(problem.data, budget=10)
    with pytest.raises(UsageError, match="no weights yet"):
        posterior.sample(1, seed=0)


def test_another_likelihood_or_frozen_value_is_another_posterior(tmp_path):
    problem = regression()
    posterior = MAP(problem.network, Gaussian(0.1))
    posterior.fit(problem.data, budget=3000)
    path = tmp_path / "posterior.safetensors"
    posterior.save(path)
    with pytest.raises(DataError, match="another network or likelihood"):
        MAP.load(path, problem.network, Gaussian(0.2))


def test_equal_posteriors_are_equal_files(fitted, tmp_path):
    fitted.save(tmp_path / "a")
    fitted.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_inputs_of_another_precision_are_named():
    problem = classification()
    data = problem.data.train.x.double(), problem.data.train.y
    with pytest.raises(DataError, match=r"torch.float64 and the network's weights torch.float32"):
        MAP(problem.network, problem.likelihood).fit(data, budget=1000)


def test_many_examples_are_predicted_in_chunks_alike():
    problem = classification()
    posterior = problem.fit(MAP, budget=3000)
    weights = posterior.sample(1, seed=0)
    x = problem.data.train.x
    whole, chunked = posterior.predict(x, weights), posterior.predict(x, weights, memory_limit=64 * 3 * 10)
    torch.testing.assert_close(whole.mean, chunked.mean)
    torch.testing.assert_close(whole.entropy, chunked.entropy)
    assert chunked.networks == 1


def test_gaussian_targets_of_several_dimensions():
    x, y = torch.randn(40, 3), torch.randn(40, 2)
    posterior = MAP(nn.Linear(3, 2), Gaussian(0.5, dimensions=2))
    posterior.fit((x, y), budget=2000)
    assert posterior.predict(x, posterior.sample(1, seed=0)).mean.shape == (40, 2)


@pytest.mark.parametrize("problem", [classification, regression])
@pytest.mark.parametrize("method", [HyperGAN, MCDropout, DeepEnsemble, MAP])
def test_predicting_draw_by_draw_is_predicting_with_all(method, problem):
    posterior, x = problem().fit(method, budget=4000), problem().data.train.x
    whole = posterior.predict(x, posterior.sample(23, seed=1))
    streamed = posterior.predict(x, posterior.iter_samples(23, seed=1, chunk=4), memory_limit=20_000)
    assert streamed.networks == whole.networks
    for name, value in vars(whole).items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(getattr(streamed, name), value, rtol=1e-4, atol=1e-6)


def test_streaming_holds_one_chunk_of_networks(fitted, monkeypatch):
    sizes = []
    draw = HyperGAN._sample
    monkeypatch.setattr(HyperGAN, "_sample", lambda self, n, rng: sizes.append(n) or draw(self, n, rng))
    posterior = classification().fit(HyperGAN, budget=4000)
    sizes.clear()
    draws = posterior.iter_samples(20, seed=0, chunk=8)
    assert sizes == [], "nothing is drawn before it is asked for"
    assert [len(next(iter(part.values()))) for part in draws] == sizes == [8, 8, 4]


def test_streaming_refuses_before_it_draws(fitted):
    problem = classification()
    with pytest.raises(UsageError, match="at least 1"):
        fitted.iter_samples(0, seed=0)
    with pytest.raises(UsageError, match="at least 1"):
        fitted.iter_samples(3, seed=0, chunk=0)
    with pytest.raises(UsageError, match="call fit or load first"):
        HyperGAN(problem.network, problem.likelihood).iter_samples(3, seed=0)
    with pytest.raises(UsageError, match="no networks"):
        fitted.predict(problem.data.train.x, [])


def test_streaming_leaves_gradients_on():
    posterior = classification().fit(HyperGAN, budget=4000)
    pair = [posterior.iter_samples(5, seed=seed, chunk=2) for seed in (0, 1)]
    for _ in zip(*pair, strict=True):
        assert torch.is_grad_enabled()
    part = posterior.iter_samples(5, seed=0, chunk=2)
    next(part)
    assert torch.is_grad_enabled()


def test_draws_of_any_size_are_held_to_the_first_ones(fitted):
    posterior, x = classification().fit(HyperGAN, budget=4000), classification().data.train.x
    sizes = []
    outputs = posterior.stacked.__call__
    first, second = posterior.sample(2, seed=0), posterior.sample(9, seed=1)
    whole = {name: torch.cat([first[name], second[name]]) for name in first}
    expected = posterior.predict(x, whole)

    class Watch(type(posterior.stacked)):
        def __call__(self, weights, *rest, **options):
            sizes.append(len(next(iter(weights.values()))))
            return outputs(weights, *rest, **options)

    posterior.stacked.__class__ = Watch
    found = posterior.predict(x, [first, second])
    assert max(sizes) == 2
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-4, atol=1e-6)
