"""The conformance kit: what every ``WeightPosterior`` promises, as checks that a plug-in author runs.

From the command line: ``bayes-bench check NAME``. In a test suite::

    from bayes_bench.testing import CHECKS

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_conformance(check):
        check(MyPosterior)

A check raises ``AssertionError`` with a sentence that tells the author what to do.
"""

from __future__ import annotations

import math
import random
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from bayes_bench.errors import PluginError, UnsupportedNetworkError
from bayes_bench.host.stopping import Stop
from bayes_bench.networks import convnet, mlp
from bayes_bench.posterior.base import WeightPosterior, WeightSamples
from bayes_bench.posterior.examples import Examples, FitData
from bayes_bench.posterior.likelihood import LOG_NOISE, Categorical, Gaussian, Likelihood
from bayes_bench.posterior.prior import GaussianPrior
from bayes_bench.posterior.snapshots import Snapshots
from bayes_bench.posterior.stacked.scaled import InputScaled
from bayes_bench.posterior.training import FitSummary
from bayes_bench.settings import MethodConfig

Method = type[WeightPosterior]
BUDGET = 30_000


@dataclass(frozen=True)
class CheckResult:
    name: str
    passed: bool
    message: str


@dataclass(frozen=True)
class Problem:
    """A small task on which a method is tried."""

    network: nn.Module
    likelihood: Likelihood
    data: FitData

    def fit(
        self, method: Method, *, seed: int = 0, prior: GaussianPrior | None = None, budget: int = BUDGET
    ) -> WeightPosterior:
        posterior = _made(method, self, prior)
        posterior.fit(self.data, budget=budget, seed=seed)
        return posterior


def _made(method: Method, problem: Problem, prior: GaussianPrior | None = None) -> WeightPosterior:
    _need_defaults(method)
    own = method.__init__ is not WeightPosterior.__init__
    try:
        return method(problem.network, problem.likelihood, prior or GaussianPrior())
    except TypeError as error:
        if own:
            raise AssertionError(
                f"do not write an __init__ of your own; build in _fit what you need ({error})"
            ) from error
        raise


def _need_defaults(method: Method) -> None:
    bare = [name for name, field in method.Config.model_fields.items() if field.is_required()]
    assert not bare, f"give every setting a default; these have none: {', '.join(bare)}"


def _seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return build()


def classification() -> Problem:
    """Three well separated clouds in the plane: 96 training, 48 validation examples."""
    rng = torch.Generator().manual_seed(0)
    centres = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
    y = torch.arange(144) % 3
    x = centres[y] + 0.4 * torch.randn(144, 2, generator=rng)
    data = FitData(Examples(x[:96], y[:96]), Examples(x[96:], y[96:]))
    return Problem(_seeded(lambda: mlp(2, [16], 3)), Categorical(3), data)


def regression() -> Problem:
    """A noisy line with the noise to be learned: 64 training, 32 validation examples."""
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(96, 1, generator=rng) * 2 - 1
    y = 0.8 * x + 0.1 * torch.randn(96, 1, generator=rng)
    data = FitData(Examples(x[:64], y[:64]), Examples(x[64:], y[64:]))
    return Problem(_seeded(lambda: mlp(1, [16], 1, "tanh")), Gaussian("learned"), data)


def images() -> Problem:
    """Bright left half against bright right half, 6×6 pixels: 64 training, 32 validation examples."""
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(96) % 2
    x = 0.3 * torch.randn(96, 1, 6, 6, generator=rng)
    x[y == 0, :, :, :3] += 1
    x[y == 1, :, :, 3:] += 1
    data = FitData(Examples(x[:64], y[:64]), Examples(x[64:], y[64:]))
    return Problem(_seeded(lambda: convnet((1, 6, 6), [4], 2, kernel=3)), Categorical(2), data)


@lru_cache(maxsize=3)
def _fitted(method: Method, make_problem: Callable[[], Problem]) -> WeightPosterior:
    """One fit for all checks that only look at the result."""
    return make_problem().fit(method)


def check_settings_are_documented(method: Method) -> None:
    config = getattr(method, "Config", None)
    assert isinstance(config, type), "set the class attribute Config to a subclass of bayes_bench.MethodConfig"
    assert issubclass(config, MethodConfig), "set the class attribute Config to a subclass of bayes_bench.MethodConfig"
    assert (config.__doc__ or "").strip(), "give the Config class a docstring: `bayes-bench show` prints it"
    missing = [name for name, field in config.model_fields.items() if not field.description]
    assert not missing, f"say what these settings mean (the second argument of `setting`): {', '.join(missing)}"
    _need_defaults(method)
    config()


def check_uses_prior_is_honest(method: Method) -> None:
    problem = classification()
    priors = GaussianPrior(0.05), GaussianPrior(5.0)
    tight, loose = (problem.fit(method, prior=prior) for prior in priors)
    assert isinstance(tight.uses_prior, bool), "set uses_prior to True or False"
    differ = not _equal(tight.sample(1, seed=0), loose.sample(1, seed=0))
    if tight.uses_prior:
        assert differ, "uses_prior is True, but a prior of std 0.05 and one of 5 give the same weights: use self.prior"
    else:
        assert not differ, "uses_prior is False, but the weights depend on the prior: set it to True"


def check_names_and_shapes(method: Method) -> None:
    for make_problem in (classification, regression, images):
        problem, posterior = make_problem(), _fitted(method, make_problem)
        weights = posterior.sample(3, seed=0)
        size = 3 if posterior.support is None else min(3, posterior.support)
        expected = {name: (size, *p.shape) for name, p in problem.network.named_parameters()}
        if isinstance(problem.likelihood, Gaussian):
            expected[LOG_NOISE] = (size,)
        found = {name: tuple(value.shape) for name, value in weights.items()}
        assert found == expected, f"sample must give {expected}, gave {found}"


def check_fit_learns(method: Method) -> None:
    for make_problem in (classification, images):
        problem, posterior = make_problem(), _fitted(method, make_problem)
        prediction = posterior.predict(problem.data.train.inputs(), posterior.sample(20, seed=0))
        assert hasattr(prediction, "label")
        accuracy = float((prediction.label == problem.data.train.y).double().mean())
        assert accuracy >= 0.9, f"training accuracy is {accuracy:.2f} on separable classes; does the fit train?"


def check_fit_learns_regression(method: Method) -> None:
    problem, posterior = regression(), _fitted(method, regression)
    weights = posterior.sample(20, seed=0)
    prediction = posterior.predict(problem.data.train.inputs(), weights)
    error = float(((prediction.mean - problem.data.train.y) ** 2).mean().sqrt())
    assert error < 0.25, f"training RMSE is {error:.2f} where the noise is 0.1; does the fit train?"
    noise = float(weights[LOG_NOISE].exp().mean())
    assert 0.03 < noise < 0.4, f"the learned noise is {noise:.3f} where it is 0.1; is {LOG_NOISE!r} trained?"


def check_budget_is_kept(method: Method) -> None:
    problem = classification()
    posterior = _made(method, problem)
    summary = posterior.fit(problem.data, budget=BUDGET, seed=0)
    assert 0 < summary.spent <= BUDGET, (
        f"spent {summary.spent:g} of {BUDGET} gradient evaluations; train through loop.run or loop.charge"
    )
    half = _made(method, problem).fit(problem.data, budget=BUDGET // 2, seed=0)
    assert half.spent <= BUDGET // 2, "half the budget was exceeded"


def check_network_is_left_alone(method: Method) -> None:
    problem = classification()
    problem.network.train()
    before = {name: p.detach().clone() for name, p in problem.network.named_parameters()}
    problem.fit(method).sample(2, seed=0)
    after = dict(problem.network.named_parameters())
    assert problem.network.training, "the user's network was switched to evaluation mode: work on self.network"
    assert all(torch.equal(before[name], after[name]) for name in before), (
        "the user's network was changed: work on self.network"
    )


def check_sampling_is_seeded(method: Method) -> None:
    posterior = _fitted(method, classification)
    first, again, other = (posterior.sample(4, seed=seed) for seed in (7, 7, 8))
    assert _equal(first, again), "the same seed gave other networks: draw all noise from the rng given to _sample"
    if posterior.support is None:
        assert not _equal(first, other), "another seed gave the same networks: use the rng given to _sample"


def check_sampling_leaves_the_posterior(method: Method) -> None:
    posterior = _fitted(method, classification)
    before = {name: value.clone() for name, value in posterior.state_dict().items()}
    first = posterior.sample(3, seed=0)
    for value in first.values():
        value.zero_()
    after = posterior.state_dict()
    assert _equal(before, after), "overwriting a sample changed the posterior: _sample must return copies"


def check_draws_are_nested(method: Method) -> None:
    posterior = _fitted(method, classification)
    if posterior.support is not None:
        return
    few, many = posterior.sample(3, seed=5), posterior.sample(7, seed=5)
    assert all(torch.allclose(few[name], many[name][:3], atol=1e-6) for name in few), (
        "sample(3) is not the start of sample(7) for the same seed: draw the noise network by network"
    )


def check_draws_continue(method: Method) -> None:
    posterior = _fitted(method, classification)
    whole = posterior.sample(7, seed=5)
    parts = list(posterior.iter_samples(7, seed=5, chunk=3))
    assert all(torch.allclose(torch.cat([part[name] for part in parts]), whole[name], atol=1e-6) for name in whole), (
        "networks drawn 3 at a time are not those of sample(7): draw noise network by network, and nothing before it"
    )


def check_support_is_honoured(method: Method) -> None:
    posterior = _fitted(method, classification)
    support = posterior.support
    assert support is None or support >= 1, "support is the number of distinct networks, or None for unlimited"
    size = 6 if support is None else support + 3
    vectors = _flat(posterior.sample(size, seed=0))
    if support is not None:
        assert len(vectors) == support, f"support is {support}, but sample({size}) gave {len(vectors)} networks"
    distinct = len(torch.unique(vectors, dim=0))
    # A discrete posterior of unlimited support, such as dropout on few units, may repeat a network by chance.
    least = size // 2 if support is None else support
    assert distinct >= least, f"only {distinct} of {len(vectors)} drawn networks are distinct"


def check_fit_is_seeded(method: Method) -> None:
    problem = classification()
    draws = [problem.fit(method, seed=seed, budget=BUDGET // 4).sample(2, seed=0) for seed in (3, 3, 4)]
    assert _equal(draws[0], draws[1]), "two fits with the same seed differ: draw everything from the rng given to _fit"
    assert not _equal(draws[0], draws[2]), "fits with different seeds are the same: use the rng given to _fit"


def check_global_random_state_is_untouched(method: Method) -> None:
    problem = classification()
    posterior = _made(method, problem)

    def state() -> tuple[Any, ...]:
        generator: Any = np.random.get_state(legacy=True)  # noqa: NPY002 (the legacy state is what must not move)
        return torch.random.get_rng_state().tolist(), generator[1].tolist(), generator[2], random.getstate()

    # A state that no method sets: one that sets seed 0 anew each time would else be found where it left it.
    with _global_seed(982_451_653):
        before = state()
        posterior.fit(problem.data, budget=BUDGET // 4, seed=0)
        assert state() == before, "fit changed a global random state: use rng, and `with self.seeded(rng):` for modules"
        posterior.sample(3, seed=0)
        assert state() == before, "sample changed a global random state: use rng"


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """The global random states set by a seed, and back as they were afterwards."""
    legacy, own = np.random.get_state(legacy=True), random.getstate()  # noqa: NPY002 (methods may use it)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(legacy)  # noqa: NPY002
            random.setstate(own)


def check_fit_ignores_global_random_state(method: Method) -> None:
    problem = classification()
    draws = []
    for global_seed in (0, 1):
        with _global_seed(global_seed):
            draws.append(problem.fit(method, budget=BUDGET // 4).sample(2, seed=0))
    assert _equal(*draws), "the global random state changes the fit or the draw: draw everything from rng"


def check_save_and_load(method: Method) -> None:
    for make_problem in (classification, regression):
        problem, posterior = make_problem(), _fitted(method, make_problem)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "posterior.safetensors"
            posterior.save(path)
            loaded = method.load(path, problem.network, problem.likelihood)
        assert _equal(posterior.sample(4, seed=1), loaded.sample(4, seed=1)), (
            "after save and load the same seed gives other networks: _state must hold all that _sample needs"
        )


class _StopAfter(Stop):
    """Asks a fit to stop when it has looked ``looks`` times whether it should."""

    def __init__(self, looks: float):
        super().__init__()
        self.limit, self.looks = looks, 0

    @property
    def requested(self) -> bool:
        self.looks += 1
        return self.looks > self.limit


def check_interrupted_fit_goes_on(method: Method) -> str:
    problem = classification()

    def fit(folder: str, looks: float = math.inf) -> tuple[WeightPosterior, FitSummary, int]:
        stop = _StopAfter(looks)
        kept = Snapshots(Path(folder), {"method": method.__qualname__}, every=math.inf, stop=stop)
        posterior = _made(method, problem)
        summary = posterior.fit(problem.data, budget=BUDGET // 3, seed=3, snapshots=kept)
        return posterior, summary, stop.looks

    with tempfile.TemporaryDirectory() as folder:
        expected, _, looks = fit(folder)
    found, went_on = expected, False
    with tempfile.TemporaryDirectory() as folder:
        for part in (looks // 3, looks // 4, looks):
            with suppress(KeyboardInterrupt):
                found, summary, _ = fit(folder, part)
                went_on = summary.interruptions > 0
    assert _equal(expected.sample(4, seed=1), found.sample(4, seed=1)), (
        "a fit that went on from a snapshot ends with other networks: give loop.run everything that a step changes "
        "as its state: weights, optimisers, minibatches, counters (Stateful)"
    )
    return "" if went_on else "keeps no snapshots: an interrupted job starts again; see the argument state of loop.run"


def check_stacked_equals_loop(method: Method) -> None:
    for make_problem in (classification, images):
        problem, posterior = make_problem(), _fitted(method, make_problem)
        weights = posterior.sample(5, seed=0)
        x = problem.data.train.inputs()
        stacked = posterior.outputs(x, weights)
        names = dict(problem.network.named_parameters())
        looped = torch.stack(
            [
                functional_call(problem.network, {name: weights[name][s] for name in names}, (x,))
                for s in range(len(stacked))
            ]
        )
        assert torch.allclose(stacked, looped, rtol=1e-4, atol=1e-4), (
            "the sampled networks evaluated together differ from one at a time: are they weights of the target network?"
        )


def check_frozen_parameters_stay(method: Method) -> None:
    problem = classification()
    first = next(iter(problem.network.parameters()))
    first.requires_grad_(False)
    name = next(iter(dict(problem.network.named_parameters())))
    weights = problem.fit(method).sample(3, seed=0)
    assert all(torch.equal(value, first) for value in weights[name]), (
        "a parameter with requires_grad=False was changed: treat the entries of self.initial only"
    )


def check_tied_parameters(method: Method) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inputs = nn.Linear(2, 8)
            self.first = nn.Linear(8, 8)
            self.second = nn.Linear(8, 8)
            self.second.weight = self.first.weight
            self.outputs = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.outputs(self.second(self.first(self.inputs(x).relu()).relu()).relu())
            return out

    problem = Problem(_seeded(Tied), Categorical(3), classification().data)
    try:
        weights = problem.fit(method).sample(2, seed=0)
    except UnsupportedNetworkError:
        return  # to refuse is honest
    assert "second.weight" not in weights, "a tied weight appears twice: use the names of named_parameters()"


def check_memory_is_not_overstated(method: Method) -> None:
    problem = classification()
    posterior = problem.fit(method)
    drawn = 50
    weights = posterior.sample(drawn, seed=0)
    # What all networks share is held once; of factors also their product, which is made for the Gram matrices.
    copies = {name: len(w) + isinstance(w, InputScaled) if w.stride(0) else 1 for name, w in weights.items()}
    sizes = [copies[name] * w.element_size() * w[0].numel() for name, w in weights.items()]
    state = sum(value.element_size() * value.numel() for value in posterior.state_dict().values())
    held = posterior._networks_held(drawn, problem.data, BUDGET)
    for what, count, size in (("a draw", held.draw, sum(sizes)), ("the state", held.state, state)):
        assert count * posterior.network_bytes <= size, (
            f"_networks_held says that {what} holds {count:g} networks, but it holds "
            f"{size / posterior.network_bytes:g}: jobs that fit would be refused; override it"
        )


def _flat(weights: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([value.reshape(len(value), -1) for value in weights.values()], dim=1)


def _equal(left: WeightSamples, right: WeightSamples) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


Check = Callable[[Method], str | None]
"""A check of a method; a sentence that it returns is told though it passed."""

CHECKS: tuple[Check, ...] = tuple(value for name, value in list(globals().items()) if name.startswith("check_"))
"""Every check, in the order of this file."""


def check(method: Method, checks: Sequence[Check] = CHECKS) -> list[CheckResult]:
    """Run the checks; an exception that is no assertion is a failure with its place in the method's own code.

    What makes several checks fail is said once.
    """
    results: list[CheckResult] = []
    said: dict[str, str] = {}
    for run in checks:
        name = run.__name__.removeprefix("check_").replace("_", " ")
        try:
            results.append(CheckResult(name, True, run(method) or ""))
            continue
        except (AssertionError, PluginError) as error:
            message = str(error)
        except Exception as error:
            message = f"{type(error).__name__}: {str(error).partition(chr(10))[0]} ({_place(error, method)})"
        results.append(CheckResult(name, False, f"as for “{said[message]}”" if message in said else message))
        said.setdefault(message, name)
    return results


def _place(error: Exception, method: Method) -> str:
    """The last line of the method's own file that led to an error, else where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == method._fit.__code__.co_filename]
    place = (own or frames)[-1]
    return f"{Path(place.filename).name}:{place.lineno}"
