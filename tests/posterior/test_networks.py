"""Networks of all kinds: what the caller owns stays as it is, and outputs are those of the network itself."""

from __future__ import annotations

import types
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayes_bench import (
    Categorical,
    Examples,
    FitData,
    Gaussian,
    HyperGAN,
    HyperGANConfig,
    PluginError,
    StackedNetwork,
    TrainingLoop,
    UnsupportedNetworkError,
    UsageError,
    WeightPosterior,
)
from bayes_bench.posterior.stacked.network import without_fast_path
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
    HMCConfig,
    Laplace,
    MCDropout,
    SGLDConfig,
    SWAGConfig,
)

EVERY: dict[str, tuple[type[WeightPosterior], Any, int]] = {
    "map": (MAP, None, 24 * 6),
    "ensemble": (DeepEnsemble, None, 24 * 10),
    "swag": (SWAG, SWAGConfig(collect=3, rank=2), 24 * 20),
    "mcdropout": (MCDropout, None, 24 * 6),
    "vi": (VI, None, 24 * 6),
    "mnf": (MNF, None, 24 * 6),
    "sgld": (SGLD, SGLDConfig(samples=4), 24 * 40),
    "hmc": (HMC, HMCConfig(samples=8, chains=2), 24 * 100),
    "laplace": (Laplace, None, 24 * 20),
    "apd": (APD, APDConfig(samples=20, buffer=5), 24 * 200),
    "hypergan": (HyperGAN, HyperGANConfig(networks=2, pretrain_steps=5), 24 * 10),
}
X = torch.randn(24, 6, generator=torch.Generator().manual_seed(1))
Y = torch.randint(3, (24,), generator=torch.Generator().manual_seed(2))


def looped(network: nn.Module, weights: dict[str, Tensor], x: Tensor, own_inputs: bool = False) -> Tensor:
    """Outputs of each network as PyTorch has them, on copies of the inputs."""
    size = len(next(iter(weights.values())))
    with torch.no_grad():
        return torch.stack(
            [
                torch.func.functional_call(
                    network, {n: w[s] for n, w in weights.items()}, ((x[s] if own_inputs else x).clone(),)
                )
                for s in range(size)
            ]
        )


def drawn(network: nn.Module, size: int = 3) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return {name: torch.randn(size, *p.shape, generator=rng, dtype=p.dtype) for name, p in network.named_parameters()}


def fitted(name: str, network: nn.Module, x: Tensor = X, y: Tensor = Y, **options: Any) -> WeightPosterior:
    method, config, budget = EVERY[name]
    posterior = method(network, Categorical(3), config=config, **options)
    posterior.fit(FitData(Examples(x, y)), budget=budget)
    return posterior


# Working in place --------------------------------------------------------------------------------------------


class AddsInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2).add_(1)
        view = x[:, :3]
        view.zero_()
        return self.last(self.first(x).relu_())  # type: ignore[no-any-return]


IN_PLACE = {
    "module": lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)),
    "functions": AddsInPlace,
}


@pytest.mark.parametrize("kind", IN_PLACE)
@pytest.mark.parametrize("name", EVERY)
def test_no_network_writes_to_what_the_caller_owns(name: str, kind: str) -> None:
    torch.manual_seed(0)
    network = IN_PLACE[kind]()
    x, new = X.clone(), X[:5].clone()
    posterior = fitted(name, network, x)
    weights = posterior.sample(3, seed=0)
    found = posterior.outputs(new, weights)
    posterior.predict(new, weights)
    assert torch.equal(x, X)
    assert torch.equal(new, X[:5])
    torch.testing.assert_close(found, looped(network, weights, X[:5]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("own_inputs", [False, True])
@pytest.mark.parametrize("kind", IN_PLACE)
def test_every_network_of_a_stack_sees_the_inputs_as_they_are(kind: str, own_inputs: bool) -> None:
    network = IN_PLACE[kind]().eval()
    weights = drawn(network)
    x = torch.randn(3, 5, 6) if own_inputs else torch.randn(5, 6)
    before = x.clone()
    found = StackedNetwork(network)(weights, x, own_inputs=own_inputs)
    assert torch.equal(x, before)
    torch.testing.assert_close(found, looped(network, weights, x, own_inputs))


def test_a_refused_fit_leaves_the_data_alone() -> None:
    x = X.clone()
    with pytest.raises(Exception, match="outputs of shape"):
        MAP(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 4)), Categorical(3)).fit((x, Y), budget=100)
    assert torch.equal(x, X)


# What a plan cannot see --------------------------------------------------------------------------------------


def test_a_replaced_forward_is_seen() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    network[0].forward = types.MethodType(lambda self, x: F.linear(x, self.weight, self.bias) * 3, network[0])
    stacked, weights = StackedNetwork(network), drawn(network)
    torch.testing.assert_close(stacked(weights, X), looped(network, weights, X))
    posterior = fitted("map", network)
    one = posterior.sample(1, seed=0)
    torch.testing.assert_close(posterior.outputs(X, one), looped(network, one, X), rtol=1e-4, atol=1e-4)


def test_a_plan_that_computes_something_else_is_given_up() -> None:
    class Layer(nn.Linear):
        pass

    network = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    stacked, weights = StackedNetwork(network), drawn(network)
    assert stacked.method == "plan"
    network[0].register_forward_hook(lambda module, inputs, output: output + 1)  # after the plan was made
    torch.testing.assert_close(stacked(weights, X), looped(network, weights, X))
    assert stacked.reason == "the plan's outputs are not the network's"


@pytest.mark.parametrize(
    "centre", [lambda x: (x - x.mean(0)) / x.std(0), lambda x: x * x.max(), lambda x: x[torch.arange(len(x)).flip(0)]]
)
def test_a_network_that_joins_examples_is_refused(centre: Any) -> None:
    class Joined(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(centre(x))

    with pytest.raises(UnsupportedNetworkError, match="depend on the other examples of its batch"):
        MAP(Joined(6, 3), Categorical(3)).fit((X, Y), budget=100)
    network = Joined(6, 3).eval()
    stacked, weights = StackedNetwork(network, memory_limit=1), drawn(network)
    torch.testing.assert_close(stacked(weights, X), looped(network, weights, X))  # whole batches, whatever it takes


@pytest.mark.parametrize("own_inputs", [False, True])
def test_the_row_of_a_padding_gets_no_gradient(own_inputs: bool) -> None:
    network = nn.Sequential(nn.Embedding(5, 4, padding_idx=0), nn.Flatten(), nn.Linear(12, 3)).eval()
    weights = {name: value.requires_grad_() for name, value in drawn(network).items()}
    tokens = torch.randint(5, (3, 7, 3) if own_inputs else (7, 3), generator=torch.Generator().manual_seed(0))
    y = torch.zeros(3, 7, dtype=torch.int64) if own_inputs else torch.zeros(7, dtype=torch.int64)
    stacked = StackedNetwork(network)
    stacked.mean_loss(weights, tokens, y, Categorical(3).nll, own_inputs=own_inputs).sum().backward()
    gradient = weights["0.weight"].grad
    assert gradient is not None
    assert torch.equal(gradient[:, 0], torch.zeros(3, 4))
    assert all(gradient[s, 1:].abs().sum() > 0 for s in range(3))
    torch.testing.assert_close(
        stacked({n: w.detach() for n, w in weights.items()}, tokens, own_inputs=own_inputs),
        looped(network, {n: w.detach() for n, w in weights.items()}, tokens, own_inputs),
    )


# Attention, recurrence, tokens -------------------------------------------------------------------------------


class Tokens(nn.Module):
    """A Transformer encoder over tokens ``[B, T]``."""

    def __init__(self, layers: int = 1):
        super().__init__()
        self.embedding = nn.Embedding(11, 8, padding_idx=0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(tokens)).mean(1))  # type: ignore[no-any-return]


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]):
        super().__init__()
        self.cell = kind(4, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])  # type: ignore[no-any-return]


SEQUENCES = torch.randn(24, 5, 4, generator=torch.Generator().manual_seed(3))
TOKENS = torch.randint(11, (24, 5), generator=torch.Generator().manual_seed(4))
READERS = {
    "tokens": (Tokens, TOKENS),
    "attention": (Attends, SEQUENCES),
    "gru": (lambda: Recurrent(nn.GRU), SEQUENCES),
    "lstm": (lambda: Recurrent(nn.LSTM), SEQUENCES),
}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("name", ["map", "ensemble", "mcdropout", "sgld", "hypergan", "vi"])
def test_attention_and_recurrence(name: str, kind: str) -> None:
    make, x = READERS[kind]
    torch.manual_seed(0)
    network = make()
    before = torch.backends.mha.get_fastpath_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        posterior = fitted(name, network, x, Y)
    weights = posterior.sample(3, seed=0)
    found = posterior.outputs(x, weights)
    with without_fast_path():
        torch.testing.assert_close(found, looped(network.eval(), weights, x), rtol=1e-4, atol=1e-4)
    assert torch.backends.mha.get_fastpath_enabled() is before


@pytest.mark.parametrize("kind", READERS)
def test_layers_that_a_method_does_not_know_are_refused(kind: str) -> None:
    make, x = READERS[kind]
    with pytest.raises(UnsupportedNetworkError, match="mnf cannot treat"):
        fitted("mnf", make(), x, Y)


@pytest.mark.parametrize("kind", READERS)
def test_examples_are_cut_also_without_a_plan(kind: str) -> None:
    make, x = READERS[kind]
    network = make().eval()
    stacked, weights = StackedNetwork(network, memory_limit=20_000), drawn(network, 2)
    many = x.repeat(20, *[1] * (x.dim() - 1))
    seen: list[int] = []
    network.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[0]))
    found = stacked(weights, many)
    assert max(seen) < len(many)
    with without_fast_path():
        torch.testing.assert_close(found, looped(network, weights, many), rtol=1e-4, atol=1e-4)


# Types -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_every_method_takes_a_type_or_refuses_it_before_a_fit(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)
    if dtype != torch.float64:
        with pytest.raises(UnsupportedNetworkError, match=r"posteriors are computed in float32 or float64"):
            fitted(name, network, X.to(dtype))
        return
    posterior = fitted(name, network, X.to(dtype))
    weights = posterior.sample(3, seed=0)
    assert {value.dtype for value in weights.values()} == {dtype}
    found = posterior.outputs(X.to(dtype), weights)
    assert found.dtype == dtype
    torch.testing.assert_close(found, looped(network, weights, X.to(dtype)))


def test_weight_norm_is_taken_or_refused() -> None:
    torch.manual_seed(0)
    parametrised = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3))
    posterior = fitted("map", parametrised)
    weights = posterior.sample(1, seed=0)
    torch.testing.assert_close(posterior.outputs(X, weights), looped(parametrised, weights, X), rtol=1e-4, atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3))
    old(X).sum().backward()
    with pytest.raises(UnsupportedNetworkError, match=r"cannot be copied .*parametrizations"):
        fitted("map", old)


def test_an_embedding_that_writes_to_its_weights_is_refused() -> None:
    with pytest.raises(UnsupportedNetworkError, match="max_norm"):
        MAP(nn.Sequential(nn.Embedding(5, 4, max_norm=1.0), nn.Flatten(), nn.Linear(12, 3)), Categorical(3))


# Seeds and libraries -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63])
def test_seeds_that_would_repeat_others_are_refused(seed: int) -> None:
    posterior = MAP(nn.Linear(6, 3), Categorical(3))
    with pytest.raises(UsageError, match=r"seed .* is not in 0…4294967295"):
        posterior.fit((X, Y), budget=100, seed=seed)
    posterior.fit((X, Y), budget=100, seed=2**32 - 1)
    for draw in (lambda: posterior.sample(1, seed=seed), lambda: list(posterior.iter_samples(1, seed=seed))):
        with pytest.raises(UsageError, match="others would repeat"):
            draw()


def test_a_library_that_ends_the_process_is_an_error_of_the_method() -> None:
    class Ends(MAP):
        where = "fit"

        def _fit(self, data: Any, loop: Any, rng: Any) -> None:
            if self.where == "fit":
                raise SystemExit(0)
            super()._fit(data, loop, rng)

        def _sample(self, n: int, rng: Any) -> Any:
            if self.where == "sample":
                raise SystemExit(3)
            return super()._sample(n, rng)

    with pytest.raises(PluginError, match="end the process"):
        Ends(nn.Linear(6, 3), Categorical(3)).fit((X, Y), budget=100)
    posterior = Ends(nn.Linear(6, 3), Categorical(3))
    posterior.where = ""
    posterior.fit((X, Y), budget=100)
    posterior.where = "sample"
    with pytest.raises(PluginError, match="end the process"):
        posterior.sample(1, seed=0)


def test_dimensions_are_named_where_they_are_the_remedy() -> None:
    with pytest.raises(Exception, match="say dimensions=2 to Gaussian"):
        MAP(nn.Linear(6, 1), Gaussian(0.1)).fit((X, torch.randn(24, 2)), budget=100)


class Scaled(nn.Module):
    """A layer of parameters that nothing gives new initial values."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)))
        self.gain = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.matrix) * self.gain


def test_chains_and_members_never_start_at_one_point() -> None:
    posterior = DeepEnsemble(Scaled(), Categorical(3))
    loop = TrainingLoop(100)
    weights = posterior.initial_weights(3, torch.Generator().manual_seed(0), loop)
    for name, value in posterior.initial.items():
        assert torch.equal(weights[name][0], value)
        assert (weights[name][1] - weights[name][2]).abs().min() > 0
    apart = (weights["matrix"][1:] - weights["matrix"][0]).std()
    assert 0.5 < apart / posterior.initial["matrix"].std() < 2
    assert any("no reset_parameters for gain, matrix" in note for note in loop.notes)
    again = posterior.initial_weights(3, torch.Generator().manual_seed(0), TrainingLoop(100))
    assert all(torch.equal(again[name], value) for name, value in weights.items())
