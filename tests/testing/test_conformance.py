"""Every registered method keeps its promises, and the kit notices when one does not."""

import pytest
import torch
from torch import nn

from bayes_bench import MethodConfig, TensorState, TrainingLoop, WeightPosterior, setting
from bayes_bench.methods.registry import method_class, methods
from bayes_bench.testing import CHECKS, check, check_interrupted_fit_goes_on


@pytest.mark.parametrize("check_one", CHECKS, ids=lambda one: one.__name__)
@pytest.mark.parametrize("name", sorted(methods()))
def test_method(name, check_one):
    check_one(method_class(name))


class Config(MethodConfig):
    """A Gaussian around one trained network: the smallest method that keeps every promise."""

    noise: float = setting(0.02, "standard deviation of the weights", gt=0)


class Correct(WeightPosterior):
    Config = Config
    uses_prior = True

    def _fit(self, data, loop, rng):
        self.state = TensorState({name: w[0] for name, w in self.initial_weights(1, rng, loop).items()})
        optimizer = torch.optim.Adam([w.requires_grad_() for w in self.state.values()], lr=0.02)
        batches = data.train.minibatches(32, rng)

        def step():
            x, y = next(batches)
            own = {name: w.unsqueeze(0) for name, w in self.state.items()}
            full = self.complete(own)
            loss = self.loss(self.stacked(full, x), y, full) + self.prior.penalty(own) / len(data.train)
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            return {"loss": loss.detach().sum()}

        loop.run(step, {"weights": self.state, "optimizer": optimizer, "batches": batches}, cost=32)
        self.state = {name: w.detach() for name, w in self.state.items()}

    def _sample(self, n, rng):
        # In the order of `initial`: a loaded state may list its entries in another one.
        draws = [
            {
                name: self.state[name] + self.config.noise * torch.randn(w.shape, generator=rng)
                for name, w in self.initial.items()
            }
            for _ in range(n)
        ]
        return {name: torch.stack([draw[name] for draw in draws]) for name in self.initial}

    def _state(self):
        return self.state

    def _load_state(self, state):
        self.state = dict(state)


def test_the_correct_method_passes():
    assert [result for result in check(Correct) if not result.passed or result.message] == []


def test_a_method_without_snapshots_passes_and_is_told():
    class Plain(Correct):
        def _fit(self, data, loop, rng):
            self.state = {name: w[0] for name, w in self.initial_weights(1, rng, loop).items()}
            loop.charge(10)

    (result,) = check(Plain, [check_interrupted_fit_goes_on])
    assert result.passed
    assert "keeps no snapshots" in result.message


class NoDocumentation(Correct):
    class Config(Config):
        noise: float = 0.02


class IgnoresThePrior(Correct):
    def _fit(self, data, loop, rng):
        penalty, self.prior = self.prior, type(self.prior)(1.0)
        super()._fit(data, loop, rng)
        self.prior = penalty


class ClaimsToIgnoreThePrior(Correct):
    uses_prior = False


class WrongName(Correct):
    def _sample(self, n, rng):
        weights = super()._sample(n, rng)
        name = next(iter(weights))
        return {**weights, name + "_": weights.pop(name)}


class ForgetsTheNoiseScale(Correct):
    def _sample(self, n, rng):
        return {name: w for name, w in super()._sample(n, rng).items() if not name.startswith("likelihood.")}


class DoesNotTrain(Correct):
    def _fit(self, data, loop, rng):
        self.state = {name: w[0] for name, w in self.initial_weights(1, rng, loop).items()}
        loop.charge(10)


class DoesNotTrainTheNoise(Correct):
    def _fit(self, data, loop, rng):
        super()._fit(data, loop, rng)
        self.state |= self.likelihood.initial_parameters()


class NeverPays(Correct):
    def _fit(self, data, loop, rng):
        super()._fit(data, loop, rng)
        loop.spent = 0.0


class Overspends(Correct):
    def _fit(self, data, loop, rng):
        super()._fit(data, loop, rng)
        loop.spent = loop.budget + 32


class SamplesFromGlobalNoise(Correct):
    def _sample(self, n, rng):
        return super()._sample(n, torch.default_generator)


class IgnoresTheSamplingSeed(Correct):
    def _sample(self, n, rng):
        return super()._sample(n, torch.Generator().manual_seed(0))


class HandsOutItsOwnTensors(Correct):
    support = 1

    def _sample(self, n, rng):
        return {name: w[None] for name, w in self.state.items()}


class DrawsTensorByTensor(Correct):
    def _sample(self, n, rng):
        return {name: w + self.config.noise * torch.randn(n, *w.shape, generator=rng) for name, w in self.state.items()}


class DrawsSomethingFirst(Correct):
    """Nested draws, but a second call does not go on where the first one ended."""

    def _sample(self, n, rng):
        own = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=rng)))
        return super()._sample(n, own)


class RepeatsNetworks(Correct):
    support = 5

    def _sample(self, n, rng):
        weights = super()._sample(1, rng)
        return {name: w.repeat(n, *[1] * (w.dim() - 1)) for name, w in weights.items()}


class GivesMoreThanItsSupport(Correct):
    support = 2

    def _sample(self, n, rng):
        return super()._sample(n + 1, rng)


class IgnoresTheFitSeed(Correct):
    def _fit(self, data, loop, rng):
        super()._fit(data, loop, torch.Generator().manual_seed(0))


class InitialisesFromGlobalState(Correct):
    def _fit(self, data, loop, rng):
        super()._fit(data, loop, rng)
        self.state = {name: w + 1e-3 * torch.randn(w.shape) for name, w in self.state.items()}


class SetsTheGlobalSeed(Correct):
    def _sample(self, n, rng):
        torch.manual_seed(0)
        return super()._sample(n, rng)


class GivesNothing(Correct):
    def _sample(self, n, rng):
        super()._sample(n, rng)


class HasItsOwnInit(Correct):
    def __init__(self, network):
        super().__init__(network, None)


class NeedsASetting(Correct):
    class Config(Config):
        """One setting without a default."""

        noise: float = setting(..., "standard deviation of the weights", gt=0)


class RestoresTheGlobalStateItReads(Correct):
    """Leaves the global state as it was, but its result depends on it."""

    def _fit(self, data, loop, rng):
        super()._fit(data, loop, rng)
        with torch.random.fork_rng(devices=[]):
            self.state = {name: w + 1e-3 * torch.randn(w.shape) for name, w in self.state.items()}


class ForgetsPartOfItsState(Correct):
    def _state(self):
        return {name: w for name, w in self.state.items() if "bias" not in name}

    def _load_state(self, state):
        self.state = {**{name: w.clone() for name, w in self.initial.items()}, **state}


class Forgetful(TrainingLoop):
    """A loop that is given a part of the state."""

    parts = ("weights", "optimizer")

    def run(self, step, state, **arguments):
        super().run(step, {name: state[name] for name in self.parts}, **arguments)


class ForgetsItsMinibatches(Correct):
    def _fit(self, data, loop, rng):
        loop.__class__ = Forgetful
        super()._fit(data, loop, rng)


class TransposesASquare(Correct):
    """The right shapes, the wrong network: outputs of the sample are not those of the target network."""

    def outputs(self, x, weights, **options):
        return super().outputs(x, weights, **options).flip(-1)


class ChangesTheUsersNetwork(Correct):
    def __init__(self, network, *args, **kwargs):
        nn.init.zeros_(next(iter(network.parameters())))
        super().__init__(network, *args, **kwargs)


class TrainsFrozenParameters(Correct):
    def __init__(self, network, *args, **kwargs):
        network = nn.Sequential(network)[0]
        frozen = [p for p in network.parameters() if not p.requires_grad]
        for p in frozen:
            p.requires_grad_(True)
        super().__init__(network, *args, **kwargs)
        for p in frozen:
            p.requires_grad_(False)


class SharesWeightsInSecret(Correct):
    def _sample(self, n, rng):
        return {name: w.clone().expand(n, *w.shape) for name, w in self.state.items()}


MUTANTS = {
    NoDocumentation: "settings are documented",
    IgnoresThePrior: "uses prior is honest",
    ClaimsToIgnoreThePrior: "uses prior is honest",
    WrongName: "names and shapes",
    ForgetsTheNoiseScale: "names and shapes",
    DoesNotTrain: "fit learns",
    DoesNotTrainTheNoise: "fit learns regression",
    NeverPays: "budget is kept",
    Overspends: "budget is kept",
    SamplesFromGlobalNoise: "sampling is seeded",
    IgnoresTheSamplingSeed: "sampling is seeded",
    HandsOutItsOwnTensors: "sampling leaves the posterior",
    DrawsTensorByTensor: "draws are nested",
    DrawsSomethingFirst: "draws continue",
    RepeatsNetworks: "support is honoured",
    GivesMoreThanItsSupport: "support is honoured",
    IgnoresTheFitSeed: "fit is seeded",
    InitialisesFromGlobalState: "global random state is untouched",
    SetsTheGlobalSeed: "global random state is untouched",
    GivesNothing: "sampling is seeded",
    HasItsOwnInit: "fit is seeded",
    NeedsASetting: "settings are documented",
    RestoresTheGlobalStateItReads: "fit ignores global random state",
    ForgetsPartOfItsState: "save and load",
    ForgetsItsMinibatches: "interrupted fit goes on",
    TransposesASquare: "stacked equals loop",
    ChangesTheUsersNetwork: "network is left alone",
    TrainsFrozenParameters: "frozen parameters stay",
    SharesWeightsInSecret: "memory is not overstated",
}


@pytest.mark.parametrize(
    ("mutant", "told"),
    [
        ("GivesNothing", "GivesNothing._sample gave NoneType; return a mapping of names to"),
        ("HasItsOwnInit", "do not write an __init__ of your own; build in _fit what you need"),
        ("NeedsASetting", "give every setting a default; these have none: noise"),
    ],
)
def test_one_mistake_is_told_once_and_says_what_to_do(mutant, told):
    failed = [result.message for result in check(globals()[mutant], CHECKS[:6]) if not result.passed]
    assert told in failed[0]
    assert len(failed) == 1 or all(message.startswith("as for “") for message in failed[1:])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_mutants_are_caught(mutant):
    (responsible,) = [one for one in CHECKS if one.__name__ == "check_" + MUTANTS[mutant].replace(" ", "_")]
    (result,) = check(mutant, [responsible])
    assert not result.passed
    assert result.message, "a failure needs a message"
