"""Posteriors leave as plain modules, and come back from a file alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bayes_bench import (
    Categorical,
    DataError,
    Examples,
    FitData,
    Gaussian,
    HeteroscedasticGaussian,
    Likelihood,
    WeightPosterior,
)
from bayes_bench.posterior import base
from bayes_bench_baselines import MAP, SGLD, DeepEnsemble, MCDropout, SGLDConfig

X = torch.randn(20, 2, 6, 6, generator=torch.Generator().manual_seed(1))
Y = torch.randint(3, (20,), generator=torch.Generator().manual_seed(2))


def network(outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, outputs)
    )


def fitted(method: type[WeightPosterior], likelihood: Likelihood, bayesian: str = "all") -> WeightPosterior:
    y = Y if likelihood.kind == "classification" else torch.stack([Y.float()] * likelihood.target_width, 1)
    config = SGLDConfig(samples=8) if method is SGLD else None
    posterior = method(network(likelihood.output_width), likelihood, config=config, start="given", bayesian=bayesian)
    posterior.fit(FitData(Examples(X, y)), budget=20 * 60)
    return posterior


CASES = [
    (MCDropout, Categorical(3), "all"),
    (MCDropout, Categorical(3), "last"),
    (SGLD, Gaussian("learned"), "all"),
    (DeepEnsemble, HeteroscedasticGaussian(2), "last"),
    (MAP, Gaussian(0.3, dimensions=2), "all"),
]
NAMES = [f"{method.__name__}-{likelihood!r}-{bayesian}" for method, likelihood, bayesian in CASES]


@pytest.mark.parametrize(("method", "likelihood", "bayesian"), CASES, ids=NAMES)
def test_an_exported_module_predicts_as_the_posterior(
    method: type[WeightPosterior], likelihood: Likelihood, bayesian: str
) -> None:
    posterior = fitted(method, likelihood, bayesian)
    module = posterior.export(X[:4], 5, seed=3)
    expected = posterior.predict(X, posterior.sample(5, seed=3))
    for name, value in module(X)._asdict().items():
        torch.testing.assert_close(value.double(), getattr(expected, name), rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in module.parameters())
    traced = torch.export.export(module, (X,)).module()(X)
    for found, wanted in zip(traced, module(X), strict=True):
        torch.testing.assert_close(found, wanted)


def test_networks_of_an_export_share_what_they_share() -> None:
    whole = fitted(MCDropout, Categorical(3)).export(X, 10)
    numbers = sum(parameter.numel() for parameter in whole.parameters())
    single = sum(parameter.numel() for parameter in network().parameters())
    masked = 16 * 3
    assert numbers == single + 9 * masked


def test_tied_weights_stay_tied_in_an_export() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.again = nn.Linear(4, 4), nn.Linear(4, 4)
            self.again.weight = self.inner.weight
            self.outer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.outer(self.again(self.inner(x).relu()).relu())  # type: ignore[no-any-return]

    torch.manual_seed(0)
    posterior = DeepEnsemble(Tied(), Categorical(3))
    x = torch.randn(20, 4)
    posterior.fit(FitData(Examples(x, Y)), budget=20 * 60)
    module = posterior.export(x, 5)
    expected = posterior.predict(x, posterior.sample(5, seed=0)).mean
    torch.testing.assert_close(module(x).mean.double(), expected, rtol=1e-4, atol=1e-5)
    assert module.networks[0].inner.weight is module.networks[0].again.weight


def test_an_export_goes_through_onnx(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module = fitted(DeepEnsemble, Categorical(3)).export(X, 5)
    torch.onnx.export(module, (X,), tmp_path / "p.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(tmp_path / "p.onnx")
    found = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    for value, wanted in zip(found, module(X), strict=True):
        torch.testing.assert_close(torch.from_numpy(value), wanted, rtol=1e-4, atol=1e-5)


def test_an_export_that_predicts_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    posterior = fitted(MAP, Categorical(3))

    class Wrong(base.DrawnNetworks):
        def _predicted(self, s: int, outputs: Tensor) -> dict[str, Tensor]:
            return super()._predicted(s, -outputs)

    monkeypatch.setattr(base, "DrawnNetworks", Wrong)
    with pytest.raises(base.PluginError, match="predict otherwise"):
        posterior.export(X, 1)


@pytest.mark.parametrize(("method", "likelihood", "bayesian"), CASES, ids=NAMES)
def test_a_file_and_an_architecture_are_enough(
    method: type[WeightPosterior], likelihood: Likelihood, bayesian: str, tmp_path: Path
) -> None:
    posterior = fitted(method, likelihood, bayesian)
    posterior.save(tmp_path / "p.safetensors")
    loaded = WeightPosterior.load(tmp_path / "p.safetensors", network(likelihood.output_width))
    assert type(loaded) is method
    assert repr(loaded.likelihood) == repr(likelihood)
    weights = loaded.sample(3, seed=0)
    for name, value in posterior.sample(3, seed=0).items():
        assert torch.equal(weights[name], value)


def test_a_file_that_does_not_say_enough_is_told(tmp_path: Path) -> None:
    path = Path(__file__).parent.parent / "fixtures" / "version-0.1"
    old = next(path.rglob("posterior.safetensors"))
    with pytest.raises(DataError, match=r"give load its likelihood|which no installed package has"):
        WeightPosterior.load(old, network())
