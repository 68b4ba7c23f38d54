"""Networks as people have them: trained, with batch normalisation, of which a part is random."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bayes_bench import (
    Categorical,
    DataError,
    Examples,
    FitData,
    HyperGAN,
    HyperGANConfig,
    MemoryLimitError,
    StackedNetwork,
    UnsupportedNetworkError,
    UsageError,
    WeightPosterior,
)
from bayes_bench.posterior import backbone, base
from bayes_bench.posterior.preparation import prepare_network
from bayes_bench_baselines import (
    APD,
    HMC,
    MAP,
    MNF,
    SGLD,
    SWAG,
    VI,
    APDConfig,
    DeepEnsemble,
    DeepEnsembleConfig,
    HMCConfig,
    Laplace,
    MAPConfig,
    MCDropout,
    SGLDConfig,
    SWAGConfig,
)

X = torch.randn(24, 2, 6, 6, generator=torch.Generator().manual_seed(1))
Y = torch.randint(3, (24,), generator=torch.Generator().manual_seed(2))
DATA = FitData(Examples(X, Y))


class Net(nn.Module):
    """A small residual network with batch normalisation, as torchvision writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.hidden = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = nn.functional.adaptive_avg_pool2d(torch.relu(x + self.block(x)), 1).flatten(1)
        return self.fc(torch.relu(self.norm(self.hidden(x))))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A network whose statistics and weights are not those that it began with."""
    torch.manual_seed(0)
    network = Net()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(X), Y).backward()
        optimizer.step()
    return network.eval()


def outputs(network: nn.Module, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        return network(x)  # type: ignore[no-any-return]


# Batch normalisation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(6), nn.BatchNorm1d(6, affine=False), nn.BatchNorm2d(6)])
@pytest.mark.parametrize("own_inputs", [False, True])
def test_batch_normalisation_by_running_statistics_is_stacked(norm: nn.Module, own_inputs: bool) -> None:
    torch.manual_seed(0)
    space = [4, 4] if isinstance(norm, nn.BatchNorm2d) else []
    layer = nn.Conv2d(6, 6, 1) if space else nn.Linear(6, 6)
    network = nn.Sequential(copy.deepcopy(norm), layer, copy.deepcopy(norm), nn.ReLU())
    network.train()(torch.randn(32, 6, *space) * 3 + 1)
    network.eval()
    stacked = StackedNetwork(network)
    weights = {name: torch.randn(3, *p.shape) for name, p in network.named_parameters()}
    x = torch.randn(*([3] if own_inputs else []), 5, 6, *space)
    found = stacked(weights, x, own_inputs=own_inputs)
    assert stacked.method == "plan", stacked.reason
    for s in range(3):
        one = torch.func.functional_call(
            network, {name: w[s] for name, w in weights.items()}, (x[s] if own_inputs else x,)
        )
        torch.testing.assert_close(found[s], one, rtol=1e-5, atol=1e-5)


def test_frozen_batch_normalisation_of_torchvision_is_stacked() -> None:
    ops = pytest.importorskip("torchvision.ops")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 6, 3), ops.FrozenBatchNorm2d(6), nn.ReLU())
    for buffer in network[1].buffers():
        buffer.copy_(torch.rand_like(buffer) + 0.5)
    posterior = MAP(network, Categorical(6))
    assert posterior.stacked.method == "plan", posterior.stacked.reason
    weights = {name: torch.randn(3, *p.shape) for name, p in network.named_parameters()}
    found = posterior.stacked(weights, X)
    for s in range(3):
        one = torch.func.functional_call(network, {name: w[s] for name, w in weights.items()}, (X,))
        torch.testing.assert_close(found[s], one, rtol=1e-5, atol=1e-5)


def test_given_statistics_are_kept_and_a_fresh_start_has_group_normalisation(trained: nn.Module) -> None:
    kept = prepare_network(trained, start="given")
    assert torch.equal(outputs(kept), outputs(trained))
    fresh = prepare_network(trained, start="fresh")
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in fresh.modules())
    assert sum(isinstance(module, nn.GroupNorm) for module in fresh.modules()) == 3
    assert any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in trained.modules())  # the user's own


def test_group_normalisation_never_normalises_single_values() -> None:
    for channels in (1, 3, 8, 12, 16, 30, 64, 512):
        network = prepare_network(nn.Sequential(nn.Linear(2, channels), nn.BatchNorm1d(channels)))
        (norm,) = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
        assert channels // norm.num_groups >= min(channels, 8)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"start": "old"}, "start must be 'fresh' or 'given', got 'old'"),
        ({"batch_norm": "none"}, "batch_norm must be 'frozen' or 'group'"),
        ({"start": "given", "batch_norm": "group"}, "makes another function of given weights"),
        ({"bayesian": ["layer4.*"]}, "no parameter of the network is called 'layer4.*'"),
        ({"bayesian": "blok"}, "did you mean 'block'?"),
    ],
)
def test_an_option_that_cannot_be_is_one_sentence(trained: nn.Module, options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("*", r"\*").replace("?", r"\?")):
        MAP(trained, Categorical(3), **options)  # type: ignore[arg-type]


def test_batch_normalisation_without_statistics_is_refused() -> None:
    network = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4, track_running_stats=False))
    with pytest.raises(UnsupportedNetworkError, match="keeps no running statistics"):
        MAP(network, Categorical(4), start="given")
    MAP(network, Categorical(4))  # a fresh start replaces it


# Given weights -----------------------------------------------------------------------------------------------

TINY = HyperGANConfig(networks=2, batch_size=8, pretrain_steps=5, learning_rate=1e-5)
METHODS: list[tuple[type[WeightPosterior], object, int]] = [
    (MAP, MAPConfig(learning_rate=1e-6), 24),
    (DeepEnsemble, None, 24 * 10),
    (MCDropout, None, 24 * 2),
    (SWAG, SWAGConfig(collect=3, rank=2, sgd_learning_rate=1e-5, learning_rate=1e-6), 24 * 20),
    (VI, None, 24 * 4),
    (MNF, None, 24 * 4),
    (SGLD, SGLDConfig(samples=4, step_size=1e-6), 24 * 40),
    (HyperGAN, TINY, 24 * 4),
]


@pytest.mark.parametrize(("method", "config", "budget"), METHODS, ids=[row[0].__name__ for row in METHODS])
@pytest.mark.parametrize("bayesian", ["all", "last", ["hidden", "fc.weight"]], ids=str)
def test_a_method_begins_at_given_weights(
    trained: nn.Module, method: type[WeightPosterior], config: object, budget: int, bayesian: str | list[str]
) -> None:
    posterior = method(trained, Categorical(3), config=config, start="given", bayesian=bayesian)  # type: ignore[arg-type]
    summary = posterior.fit(DATA, budget=budget)
    assert any("starts at the weights of the given network" in note for note in summary.notes)
    weights = posterior.sample(40, seed=0)
    assert weights.keys() == dict(trained.named_parameters()).keys()
    mean = posterior.outputs(X, weights).mean(0)
    fresh = method(trained, Categorical(3), config=config, bayesian=bayesian)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="was trained") if bayesian == "all" else nullcontext():
        fresh.fit(DATA, budget=budget)
    away = fresh.outputs(X, fresh.sample(40, seed=0)).mean(0)
    assert (mean - outputs(trained)).norm() < 0.8 * (away - outputs(trained)).norm()


def test_a_network_that_was_not_trained_is_not_said_to_be() -> None:
    torch.manual_seed(0)
    summary = MAP(Net(), Categorical(3)).fit(DATA, budget=100)
    assert not any("trained" in note for note in summary.notes)
    assert any("3 layers of batch normalisation were replaced" in note for note in summary.notes)


# The last layer ----------------------------------------------------------------------------------------------

LAST: list[tuple[type[WeightPosterior], object, int]] = [
    *METHODS,
    (HMC, HMCConfig(samples=8, chains=2), 24 * 400),
    (Laplace, None, 24 * 20),
    (APD, APDConfig(samples=20, buffer=5), 24 * 200),
]


@pytest.mark.parametrize(("method", "config", "budget"), LAST, ids=[row[0].__name__ for row in LAST])
def test_what_comes_before_the_last_layer_is_computed_once(
    trained: nn.Module, method: type[WeightPosterior], config: object, budget: int, tmp_path: Path
) -> None:
    posterior = method(trained, Categorical(3), config=config, start="given", bayesian="last")  # type: ignore[arg-type]
    assert posterior.backbone is not None
    seen: list[int] = []
    posterior.backbone.network.get_submodule("hidden").register_forward_hook(lambda _, x, __: seen.append(len(x[0])))
    posterior.fit(DATA, budget=budget)
    assert sum(seen) <= len(X) + 1, "the training examples, and one to look at"
    weights = posterior.sample(5, seed=0)
    for name, value in weights.items():
        if not name.startswith("fc"):
            assert torch.equal(value[0], dict(trained.named_parameters())[name])
    found = posterior.outputs(X, weights)
    for s in range(len(found)):
        one = torch.func.functional_call(trained, {name: w[s] for name, w in weights.items()}, (X,))
        torch.testing.assert_close(found[s], one, rtol=1e-4, atol=1e-4)
    posterior.save(tmp_path / "p.safetensors")
    torch.manual_seed(5)
    loaded = method.load(tmp_path / "p.safetensors", Net(), Categorical(3))  # the file has all of the network
    assert (loaded.start, loaded.bayesian) == ("given", "last")
    assert torch.equal(loaded.outputs(X, loaded.sample(5, seed=0)), found)
    with pytest.raises(DataError, match="another network"):
        method.load(tmp_path / "p.safetensors", nn.Sequential(nn.Flatten(), nn.Linear(72, 3)), Categorical(3))


def test_many_features_go_into_a_file(trained: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn() -> Tensor:
        posterior = MAP(trained, Categorical(3), start="given", bayesian="last")
        posterior.fit(DATA, budget=240)
        return posterior.sample(1, seed=0)["fc.weight"]

    held = drawn()
    monkeypatch.setattr(backbone, "FEATURE_BYTES", 0)
    assert torch.equal(drawn(), held)


def test_a_network_that_goes_on_after_its_last_layer_is_refused() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(72, 3), nn.Tanh())
    posterior = MAP(network, Categorical(3), start="given", bayesian="last")
    with pytest.raises(UnsupportedNetworkError, match="does not end with its last layer '1'"):
        posterior.fit(DATA, budget=100)
    posterior = MAP(network, Categorical(3), start="given", bayesian=["1"])
    posterior.fit(DATA, budget=100)


def test_a_fit_that_cannot_fit_into_memory_is_refused_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Linear(2_000, 3_000)  # 6 million weights, of which dense heads hold 64 columns and their moments
    x, y = torch.randn(4, 2_000), torch.zeros(4, dtype=torch.int64)
    monkeypatch.setattr(base, "memory_bytes", lambda: 2**32)
    with pytest.raises(MemoryLimitError, match=r"HyperGAN would hold .* set head='chunked'"):
        HyperGAN(network, Categorical(3_000)).fit((x, y), budget=1000)
    HyperGAN(network, Categorical(3_000), config=HyperGANConfig(head="chunked")).check_fit(
        FitData(Examples(x, y)), budget=1000
    )
    with pytest.raises(MemoryLimitError, match=r"lower members or batch_size, or choose a smaller network"):
        DeepEnsemble(network, Categorical(3_000), config=DeepEnsembleConfig(members=100)).fit((x, y), budget=10**6)
