"""One peer against bayes-bench, paired in one process; ``peers.py`` starts it in the peer's own environment.

    python peer_worker.py PEER ROWS.jsonl [--quick]

Every peer works the way its own documentation or examples do. Where it offers several, all are tried and the
faster one counts; the row's note names it. Both sides get the same network, the same inputs, float32 and two
threads, and must agree on the predictions before anything is timed.

A prediction ends with the mean probabilities of a batch. Drawing masks or weights is part of it (an ensemble has
nothing to draw); ours also computes entropies, except from Gaussian weights. A training step is an n-th of a fit
of n steps, which includes the initialisation on both sides.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayes_bench import Categorical, Examples, FitData
from bayes_bench.networks import convnet, mlp
from bayes_bench.posterior.stacked.network import StackedNetwork
from bayes_bench_baselines.dropout.mcdropout import MCDropout
from bayes_bench_baselines.ensembles.config import DeepEnsembleConfig
from bayes_bench_baselines.ensembles.ensemble import DeepEnsemble

CLASSES = 10
SAMPLES = 100
RELATIVE_STD = 0.5
"""The given Gaussian over weights: standard deviation as a share of each weight's magnitude."""
TRAINING_BATCH = 64
LEARNING_RATE = 1e-3
PAIR_SECONDS = 0.05
"""Shorter work is repeated within a measurement until it takes about so long."""
DIGIT, PHOTO = (1, 28, 28), (3, 32, 32)


@dataclass(frozen=True)
class Architecture:
    """A network, its inputs' shape, and the steps of a fit that is timed: more where weights, not passes, cost most."""

    shape: tuple[int, int, int]
    build: Callable[[], nn.Sequential]
    steps: int


NETWORKS = {
    "MLP 784-512-512-10": Architecture(DIGIT, lambda: mlp(math.prod(DIGIT), (512, 512), CLASSES), 30),
    "MNIST convnet": Architecture(DIGIT, lambda: convnet(DIGIT, (32, 32), CLASSES), 10),
    "CIFAR convnet": Architecture(PHOTO, lambda: convnet(PHOTO, (32, 64, 64), CLASSES, kernel=3, hidden=(128,)), 10),
}
QUICK, LARGEST = "MNIST convnet", "CIFAR convnet"

Run = Callable[[], Tensor]
"""Does the work once and returns mean probabilities ``[B, C]``."""
Ways = dict[str, Run]
"""What a peer offers for one work, by the words for the note."""


@dataclass(frozen=True)
class Peer:
    """How one peer does each work; None where it has no way of its own.

    Attributes:
        dropout: (network without dropout, drop rate, x): ``SAMPLES`` passes with masks before all layers but the first.
        ensemble: (members, x).
        training: (network, members, data, steps, x): train from new initialisations, then predict x.
        gaussian: (network, x): ``SAMPLES`` draws of every weight w from N(w, (RELATIVE_STD · w)²).
    """

    dropout: Callable[[nn.Sequential, float, Tensor], Ways] | None = None
    ensemble: Callable[[list[nn.Sequential], Tensor], Ways] | None = None
    training: Callable[[nn.Sequential, int, Examples, int, Tensor], Ways] | None = None
    gaussian: Callable[[nn.Sequential, Tensor], Ways] | None = None


# The peers: imported within, as no environment has more than one of them -----------------------------------


def torch_uncertainty() -> Peer:
    from torch_uncertainty.layers.bayesian import BayesConv2d, BayesLinear  # type: ignore[import-not-found]
    from torch_uncertainty.methods import (  # type: ignore[import-not-found]
        StochasticModel,
        deep_ensembles,
        mc_dropout,
    )
    from torch_uncertainty.transforms import RepeatTarget  # type: ignore[import-not-found]

    @torch.no_grad()
    def averaged(model: nn.Module, networks: int, x: Tensor) -> Tensor:
        """As in its classification routine: the wrappers return all networks along the batch."""
        logits: Tensor = model(x)
        return logits.reshape(networks, len(x), CLASSES).softmax(-1).mean(0)

    def dropout(network: nn.Sequential, rate: float, x: Tensor) -> Ways:
        layers: list[nn.Module] = []
        for layer in copy.deepcopy(network):
            if isinstance(layer, nn.Linear | nn.Conv2d) and any(isinstance(e, nn.Linear | nn.Conv2d) for e in layers):
                layers.append(nn.Dropout(rate) if isinstance(layer, nn.Linear) else nn.Dropout2d(rate))
            layers.append(layer)
        return {
            f"mc_dropout, on_batch={on_batch}": partial(
                averaged, mc_dropout(nn.Sequential(*layers), SAMPLES, on_batch=on_batch).eval(), SAMPLES, x
            )
            for on_batch in (True, False)
        }

    def ensemble(members: list[nn.Sequential], x: Tensor) -> Ways:
        return {"deep_ensembles": partial(averaged, deep_ensembles(list(members)).eval(), len(members), x)}

    def training(network: nn.Sequential, members: int, data: Examples, steps: int, x: Tensor) -> Ways:
        """Its routine's training step without Lightning, whose overhead is not the method's."""
        repeat, loss = RepeatTarget(members), nn.CrossEntropyLoss()

        def train(fused: bool) -> Tensor:
            model = deep_ensembles(network, num_estimators=members)
            optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=fused)
            for index in torch.randperm(len(data)).split(TRAINING_BATCH)[:steps]:
                inputs, targets = repeat((data.x[index], data.y[index]))
                optimizer.zero_grad()
                loss(model(inputs), targets).backward()
                optimizer.step()
            return averaged(model.eval(), members, x)

        return {"routine's step, Adam": partial(train, False), "routine's step, fused Adam": partial(train, True)}

    @torch.no_grad()
    def bayesian(layer: nn.Module) -> nn.Module:
        if isinstance(layer, nn.Linear):
            new = BayesLinear(layer.in_features, layer.out_features)
        elif isinstance(layer, nn.Conv2d):
            new = BayesConv2d(layer.in_channels, layer.out_channels, layer.kernel_size, padding=layer.padding)
        else:
            return copy.deepcopy(layer)
        for name, mean in layer.named_parameters():
            getattr(new, f"{name}_mu").copy_(mean)
            # Its parameter is called sigma, but the standard deviation is softplus of it.
            getattr(new, f"{name}_sigma").copy_((RELATIVE_STD * mean.abs()).expm1().log())
        return new  # type: ignore[no-any-return]

    def gaussian(network: nn.Sequential, x: Tensor) -> Ways:
        model = StochasticModel(nn.Sequential(*map(bayesian, network)), num_samples=SAMPLES).eval()
        return {"Bayes layers, StochasticModel": partial(averaged, model, SAMPLES, x)}

    return Peer(dropout, ensemble, training, gaussian)


def posteriors() -> Peer:
    import posteriors as library  # type: ignore[import-not-found]
    import torchopt  # type: ignore[import-not-found]

    # Its examples predict with vmap over stacked parameters, of an ensemble (parallel chains) as of a draw.

    def ensemble(members: list[nn.Sequential], x: Tensor) -> Ways:
        function = library.model_to_function(members[0])
        parameters, _ = torch.func.stack_module_state(list[nn.Module](members))

        @torch.no_grad()
        def predict() -> Tensor:
            logits: Tensor = torch.vmap(function, in_dims=(0, None))(parameters, x)
            return logits.softmax(-1).mean(0)

        return {"vmap over stacked parameters": predict}

    def gaussian(network: nn.Sequential, x: Tensor) -> Ways:
        function = library.model_to_function(network)
        mean = weights_of(network)
        log_std = {name: (RELATIVE_STD * value.abs()).log() for name, value in mean.items()}
        state = library.vi.diag.init(mean, torchopt.adam(), log_std)

        @torch.no_grad()
        def predict() -> Tensor:
            sample = library.vi.diag.sample(state, (SAMPLES,))
            logits: Tensor = torch.vmap(function, in_dims=(0, None))(sample, x)
            return logits.softmax(-1).mean(0)

        return {"vi.diag.sample, vmap": predict}

    return Peer(ensemble=ensemble, gaussian=gaussian)


def laplace_torch() -> Peer:
    from laplace import Laplace  # type: ignore[import-not-found]

    def gaussian(network: nn.Sequential, x: Tensor) -> Ways:
        model = copy.deepcopy(network)
        laplace = Laplace(model, "classification", subset_of_weights="all", hessian_structure="diag")
        mean = nn.utils.parameters_to_vector(model.parameters()).detach()
        precision = (RELATIVE_STD * mean).square().reciprocal()
        # Its saved form, filled in: posterior precision is that of the data, H, plus the prior's.
        given = {"mean": mean, "H": precision - laplace.prior_precision, "n_outputs": CLASSES}
        laplace.load_state_dict(laplace.state_dict() | given)

        @torch.no_grad()
        def predict() -> Tensor:
            mean_probabilities: Tensor = laplace(x, pred_type="nn", link_approx="mc", n_samples=SAMPLES)
            return mean_probabilities

        return {"diagonal, pred_type='nn'": predict}

    return Peer(gaussian=gaussian)


def bayesian_torch() -> Peer:
    from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn  # type: ignore[import-not-found]

    def gaussian(network: nn.Sequential, x: Tensor) -> Ways:
        model = copy.deepcopy(network)
        settings = {
            "prior_mu": 0.0,
            "prior_sigma": 1.0,
            "posterior_mu_init": 0.0,
            "posterior_rho_init": -3.0,
            "type": "Reparameterization",
            "moped_enable": True,  # means from the network's weights, standard deviations a share of them
            "moped_delta": RELATIVE_STD,
        }
        dnn_to_bnn(model, settings)
        model.eval()

        @torch.no_grad()
        def predict() -> Tensor:
            return torch.stack([model(x).softmax(-1) for _ in range(SAMPLES)]).mean(0)

        return {"dnn_to_bnn, loop over passes": predict}

    return Peer(gaussian=gaussian)


PEERS: dict[str, Callable[[], Peer]] = {
    "torch-uncertainty": torch_uncertainty,
    "posteriors": posteriors,
    "laplace-torch": laplace_torch,
    "bayesian-torch": bayesian_torch,
}


# The same works with bayes-bench, each beside the peer's -----------------------------------------------------


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


def labelled(x: Tensor) -> Examples:
    """Labels that a network can learn: which of fixed random directions fits an input best."""
    directions = torch.randn(x[0].numel(), CLASSES, generator=torch.Generator().manual_seed(0))
    return Examples(x, (x.flatten(1) @ directions).argmax(1))


def mc_dropout_pair(
    way: Callable[[nn.Sequential, float, Tensor], Ways], network: nn.Sequential, x: Tensor
) -> tuple[Ways, Run]:
    posterior = MCDropout(network, Categorical(CLASSES))
    posterior.fit(FitData(labelled(x)), budget=len(x), seed=0)  # a step or so: which layers are masked is found here
    trained = copy.deepcopy(network)
    trained.load_state_dict({name: posterior.state_dict()[name] for name in trained.state_dict()})
    seeds = itertools.count()

    def ours() -> Tensor:
        return posterior.predict(x, posterior.sample(SAMPLES, seed=next(seeds))).mean

    return way(trained, posterior.config.drop_rate, x), ours


def ensemble_pair(
    way: Callable[[list[nn.Sequential], Tensor], Ways], build: Callable[[], nn.Sequential], members: int, x: Tensor
) -> tuple[Ways, Run]:
    networks = [build() for _ in range(members)]
    posterior = DeepEnsemble(networks[0], Categorical(CLASSES), config=DeepEnsembleConfig(members=members))
    own = [weights_of(network) for network in networks]
    posterior.load_state_dict({name: torch.stack([weights[name] for weights in own]) for name in own[0]})
    weights = posterior.sample(members, seed=0)
    return way(networks, x), lambda: posterior.predict(x, weights).mean


def training_pair(
    way: Callable[[nn.Sequential, int, Examples, int, Tensor], Ways],
    network: nn.Sequential,
    members: int,
    data: Examples,
    steps: int,
    x: Tensor,
) -> tuple[Ways, Run]:
    config = DeepEnsembleConfig(
        members=members,
        batch_size=TRAINING_BATCH,
        learning_rate=LEARNING_RATE,
        final_learning_rate=1.0,  # of the other side stays the same too
    )
    seeds = itertools.count()

    def ours() -> Tensor:
        posterior = DeepEnsemble(network, Categorical(CLASSES), config=config)
        posterior.fit(FitData(data), budget=steps * members * TRAINING_BATCH, seed=next(seeds))
        return posterior.predict(x, posterior.sample(members, seed=0)).mean

    return way(network, members, data, steps, x), ours


def gaussian_pair(way: Callable[[nn.Sequential, Tensor], Ways], network: nn.Sequential, x: Tensor) -> tuple[Ways, Run]:
    mean = weights_of(network)
    std = {name: RELATIVE_STD * value.abs() for name, value in mean.items()}
    stacked = StackedNetwork(network)

    @torch.no_grad()
    def ours() -> Tensor:
        weights = {name: torch.randn(SAMPLES, *m.shape).mul_(std[name]).add_(m) for name, m in mean.items()}
        return stacked(weights, x).softmax(-1).mean(0)

    return way(network, x), ours


# Checks and timing ---------------------------------------------------------------------------------------------


def rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def check(ways: Ways, ours: Run) -> None:
    """Raise unless the peer gives our probabilities, and is as random, up to what two calls of ours differ by."""
    first, second = ours(), ours()
    own = rms(first - second)
    for way, run in ways.items():
        theirs, again = run(), run()
        if theirs.shape != first.shape or not torch.allclose(theirs.sum(-1), torch.ones(len(theirs)), atol=1e-4):
            raise RuntimeError(f"{way}: not probabilities of shape {list(first.shape)}")
        if (difference := rms(theirs - first)) > 4 * own + 1e-5:
            raise RuntimeError(f"{way}: its probabilities are {difference:.2g} (RMS) from ours, ours {own:.2g} apart")
        if not own / 4 - 1e-5 <= (spread := rms(theirs - again)) <= 4 * own + 1e-5:
            raise RuntimeError(f"{way}: two calls differ by {spread:.2g} (RMS), two of ours by {own:.2g}")


def seconds(run: Run, times: int = 1) -> float:
    """Mean time of one call."""
    started = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - started) / times


def compare(ways: Ways, ours: Run, pairs: int, steps: int) -> dict[str, Any]:
    """Time the faster of ``ways`` and ours in turn; ``steps`` is what one call is divided by."""
    trials = {way: min(seconds(run) for _ in range(2 if len(ways) > 1 else 1)) for way, run in ways.items()}
    way = min(trials, key=lambda name: trials[name])
    theirs = partial(seconds, ways[way], math.ceil(PAIR_SECONDS / trials[way]))
    mine = partial(seconds, ours, math.ceil(PAIR_SECONDS / seconds(ours)))
    times = [(theirs(), mine()) for _ in range(pairs)]
    return {
        "peer_ms": 1e3 * statistics.median(peer for peer, _ in times) / steps,
        "ours_ms": 1e3 * statistics.median(own for _, own in times) / steps,
        "ratio": statistics.median(peer / own for peer, own in times),
        "pairs": pairs,
        "note": way,
    }


@dataclass(frozen=True)
class Case:
    """One row: what the table says of it, and what builds both sides. ``steps``: training steps in one call."""

    work: str
    network: str
    batch: int
    samples: int
    build: Callable[[], tuple[Ways, Run]]
    steps: int = 1


def cases(peer: Peer, quick: bool) -> Iterator[Case]:
    for name in [QUICK] if quick else NETWORKS:
        # The largest network at its smaller size alone, and not in training: the others say how size matters.
        batches, sizes = ((16,), (5,)) if quick or name == LARGEST else ((100, 16), (5, 10))
        shape, build, steps = NETWORKS[name].shape, NETWORKS[name].build, 5 if quick else NETWORKS[name].steps
        network = build()
        for batch in batches:
            x = torch.randn(batch, *shape)
            if peer.dropout:
                yield Case("MC dropout", name, batch, SAMPLES, partial(mc_dropout_pair, peer.dropout, network, x))
            if peer.ensemble:
                for members in sizes:
                    both = partial(ensemble_pair, peer.ensemble, build, members, x)
                    yield Case("ensemble", name, batch, members, both)
            if peer.gaussian:
                yield Case("Gaussian weights", name, batch, SAMPLES, partial(gaussian_pair, peer.gaussian, network, x))
        if peer.training and name != LARGEST:
            data = labelled(torch.randn(steps * TRAINING_BATCH, *shape))
            for members in sizes:
                both = partial(training_pair, peer.training, network, members, data, steps, x)
                yield Case("ensemble training step", name, TRAINING_BATCH, members, both, steps)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("rows", type=Path, help="JSON lines, one appended as soon as its row is measured")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    peer = PEERS[arguments.peer]()
    for case in cases(peer, arguments.quick):
        row: dict[str, Any] = {
            "work": case.work,
            "network": case.network,
            "batch": case.batch,
            "samples": case.samples,
        }
        try:
            ways, ours = case.build()
            check(ways, ours)
            row |= compare(ways, ours, 3, case.steps)
        except Exception as error:  # whatever a peer raises: the row says so, and the others are still measured
            row["note"] = f"failed: {type(error).__name__}: {error}".splitlines()[0]
        with arguments.rows.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
