"""HyperGAN's training step against the loop that one writes first, its parts, and the time to 98 % on MNIST."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import timing
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from bayes_bench import Categorical, Examples, FitData, HyperGAN, HyperGANConfig, TrainingLoop
from bayes_bench.methods.hypergan.discriminator import Discriminator, discriminator_loss, generator_loss
from bayes_bench.methods.hypergan.mixer import Mixer
from bayes_bench.methods.hypernetworks.layers import unit_scale_mlp
from bayes_bench.networks import convnet

DIGIT, CLASSES = (1, 28, 28), 10
TARGET = 0.98
BUDGET = 300_000
"""Gradient evaluations of the fit that is timed: six passes over the training images for one network."""
COLUMNS = [
    "networks", "images", "head", "generator_parameters", "ours_ms", "loop_ms", "loop_ratio", "loop_same_heads_ms",
    "loop_same_heads_ratio", "networks_ms", "rest_ms", "networks_share_of_gemm", "turns",
]  # fmt: skip
CASES = [
    ("dense", (64,), 8, 64),
    ("dense", (64,), 4, 16),
    ("chunked", (64,), 8, 64),
    ("chunked", (64,), 4, 16),
    ("dense", (512, 512), 8, 64),
]


class ReachedError(Exception):
    """Ends a fit from within."""


def own_step(posterior: HyperGAN, data: FitData) -> Callable[[], object]:
    """The step that a fit repeats, with everything around it set up."""
    caught: list[Callable[[], object]] = []

    class Loop(TrainingLoop):
        def run(self, step: Callable[[], Mapping[str, Tensor]], *_: Any, **__: Any) -> None:
            caught.append(step)

    posterior._fit(data, Loop(10**9), torch.Generator().manual_seed(0))
    return caught[0]


class Straightforward:
    """The method as one writes it first: a forward pass for each generated network, default Adam, dense heads."""

    def __init__(self, network: nn.Module, networks: int, hidden: tuple[int, ...]):
        self.network, self.networks = network, networks
        self.shapes = {name: p.shape for name, p in network.named_parameters()}
        layers = sorted({name.rpartition(".")[0] for name in self.shapes})
        self.owned = [[name for name in self.shapes if name.rpartition(".")[0] == layer] for layer in layers]
        sizes = [sum(self.shapes[name].numel() for name in names) for names in self.owned]
        self.scales = [self.shapes[names[0]][1:].numel() ** -0.5 for names in self.owned]
        config = HyperGANConfig()
        self.noise, self.code = config.noise_dim, config.code_dim
        self.generators = nn.ModuleList(unit_scale_mlp(self.code, hidden, size) for size in sizes)
        self.mixer = Mixer(self.noise, config.mixer_hidden, self.code * len(layers))
        self.discriminator = Discriminator(self.code * len(layers), 1, config.discriminator_hidden)
        self.optimizer = torch.optim.Adam([*self.generators.parameters(), *self.mixer.parameters()], lr=1e-3)
        self.adversary = torch.optim.Adam(self.discriminator.parameters(), lr=3e-4)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            fake = self.mixer(torch.randn(32, self.noise))
        self.adversary.zero_grad()
        discriminator_loss(self.discriminator(torch.randn_like(fake)), self.discriminator(fake)).backward()
        self.adversary.step()
        codes = self.mixer(torch.randn(self.networks, self.noise))
        pieces = codes.chunk(len(self.owned), 1)
        flat = [g(z) * scale for g, z, scale in zip(self.generators, pieces, self.scales, strict=True)]
        losses = []
        for s in range(self.networks):
            weights = {}
            for names, values in zip(self.owned, flat, strict=True):
                parts = values[s].split([self.shapes[name].numel() for name in names])
                weights |= {name: part.view(self.shapes[name]) for name, part in zip(names, parts, strict=True)}
            losses.append(F.cross_entropy(functional_call(self.network, weights, (x[s],)), y[s]))
        loss = torch.stack(losses).mean() + 0.1 * generator_loss(self.discriminator(codes))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss


def steps(device: torch.device, budget: float, quick: bool) -> Iterator[dict[str, Any]]:
    """Rows of training steps on the MNIST network; the straightforward loop has the paper's heads of width 512."""
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(2048, *DIGIT, generator=rng), torch.randint(CLASSES, (2048,), generator=rng)
    data = FitData(Examples(x, y)).to(device)
    for head, hidden, networks, images in CASES[:1] if quick else CASES:
        print(f"HyperGAN step, {head} {hidden}, {networks} × {images} …", file=sys.stderr, flush=True)
        config = HyperGANConfig(networks=networks, batch_size=images, head=head, generator_hidden=hidden)
        yield compare(config, data, device, 3 * budget)


def compare(config: HyperGANConfig, data: FitData, device: torch.device, budget: float) -> dict[str, Any]:
    """One row; the straightforward loop also with our width of heads, where these are dense."""
    torch.manual_seed(0)
    network = convnet(DIGIT, (32, 32), CLASSES)
    posterior = HyperGAN(network, Categorical(CLASSES), config=config)
    posterior._to_device(device)
    step = own_step(posterior, data)
    drawn = posterior._sample(config.networks, torch.Generator().manual_seed(0))
    weights = {name: value.detach().requires_grad_() for name, value in drawn.items()}
    x = torch.randn(config.networks, config.batch_size, *DIGIT, device=device)
    y = torch.randint(CLASSES, (config.networks, config.batch_size), device=device)
    paper = Straightforward(posterior.network, config.networks, (512, 512))
    same = Straightforward(posterior.network, config.networks, config.generator_hidden)

    def networks_part() -> None:
        for value in weights.values():
            value.grad = None
        posterior.losses(weights, x, y, own_inputs=True).mean().backward()

    product, product_flops = timing.gemm(device)
    candidates = {
        "ours": step,
        "networks": networks_part,
        "loop": lambda: paper.step(x, y),
        "gemm": product,
    }
    if config.head == "dense":
        candidates["same"] = lambda: same.step(x, y)
    times = timing.in_turn(candidates, device, budget=budget)
    forward, first = timing.flops(network, DIGIT)
    count = config.networks * config.batch_size * (3 * forward - first)
    return {
        "networks": config.networks,
        "images": config.batch_size,
        "head": f"{config.head} {config.generator_hidden}",
        "generator_parameters": sum(p.numel() for p in posterior.generators.parameters()),
        "ours_ms": 1e3 * times.median("ours"),
        "loop_ms": 1e3 * times.median("loop"),
        "loop_ratio": times.ratio("loop", "ours"),
        "loop_same_heads_ms": 1e3 * times.median("same") if "same" in candidates else math.nan,
        "loop_same_heads_ratio": times.ratio("same", "ours") if "same" in candidates else math.nan,
        "networks_ms": 1e3 * times.median("networks"),
        "rest_ms": 1e3 * (times.median("ours") - times.median("networks")),
        "networks_share_of_gemm": count / product_flops * times.ratio("gemm", "networks"),
        "turns": len(times),
    }


def time_to_accuracy(data: FitData, device: torch.device, seed: int) -> dict[str, Any]:
    """Seconds of a fit, validation included, until the mixture of 10 drawn networks has 98 % on the validation digits.

    The budget decides how the learning rate falls and when it is validated; the fit ends at the first success.
    """
    torch.manual_seed(seed)
    posterior = HyperGAN(convnet(DIGIT, (32, 32), CLASSES), Categorical(CLASSES))
    found: dict[str, Any] = {
        "seed": seed,
        "target": TARGET,
        "seconds": float("nan"),
        "evaluations": 0.0,
        "accuracy": 0.0,
    }
    started, scores = time.perf_counter(), posterior.validation_scores

    def watched(*args: Any) -> dict[str, float]:
        row = scores(*args)
        found["accuracy"] = max(found["accuracy"], row["val_accuracy"])
        if row["val_accuracy"] >= TARGET:
            found["seconds"] = time.perf_counter() - started
            raise ReachedError
        return row

    class Count:
        def progress(self, spent: float, budget: int, values: Mapping[str, float]) -> None:
            found["evaluations"] = spent

    posterior.validation_scores = watched  # type: ignore[method-assign]
    with contextlib.suppress(ReachedError):
        posterior.fit(data, budget=BUDGET, seed=seed, device=device, monitor=Count())
    return found
