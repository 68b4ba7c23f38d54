"""Forward passes and training steps of S networks on B examples: against the loop, ``vmap`` and the limits."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import timing
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from bayes_bench import Categorical, StackedNetwork
from bayes_bench.networks import convnet, mlp, resnet

CLASSES = 10
DIGIT, PHOTO = (1, 28, 28), (3, 32, 32)
NETWORKS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, int, int]]] = {
    "mlp": (lambda: mlp(784, (512, 512), CLASSES), DIGIT),
    "mnist": (lambda: convnet(DIGIT, (32, 32), CLASSES), DIGIT),
    "cifar": (lambda: convnet(PHOTO, (32, 64, 64), CLASSES, kernel=3, hidden=(128,)), PHOTO),
    "resnet": (lambda: resnet(PHOTO, CLASSES), PHOTO),
}
SAMPLES, BATCHES = (1, 10, 100), (1, 16, 100)
VMAP_IMAGES = 1600
"""``vmap`` is left out above so many network-images of a convolutional network: it would take minutes and gigabytes."""
COLUMNS = [
    "work", "network", "S", "B", "ours_ms", "loop_ms", "vmap_ms", "loop_ratio", "vmap_ratio", "gflops", "gemm_gflops",
    "share_of_gemm", "limit", "share_of_limit", "turns",
]  # fmt: skip


@dataclass(frozen=True)
class Cell:
    work: str
    network: str
    samples: int
    batch: int


def cells(quick: bool = False) -> list[Cell]:
    """All, or with ``quick`` a few."""
    if quick:
        return [Cell(work, "mnist", 10, 16) for work in ("forward", "training step")]
    return [
        Cell(work, network, samples, batch)
        for network in NETWORKS
        for work in ("forward", "training step")
        for samples in SAMPLES
        for batch in BATCHES
    ]


def measure(wanted: list[Cell], device: torch.device, budget: float) -> Iterator[dict[str, Any]]:
    """One row after the other; ``budget`` is seconds for one cell."""
    speed = timing.bandwidth(device)
    product, product_flops = timing.gemm(device)
    for cell in wanted:
        print(f"{cell.work}, {cell.network}, S = {cell.samples}, B = {cell.batch} …", file=sys.stderr, flush=True)
        build, shape = NETWORKS[cell.network]
        torch.manual_seed(0)
        network = build().to(device).eval()
        candidates = (_forward if cell.work == "forward" else _training)(network, shape, cell, device)
        times = timing.in_turn({**candidates, "gemm": product}, device, budget=budget)
        forward, first = timing.flops(network, shape)
        images = cell.samples * cell.batch
        count = images * (forward if cell.work == "forward" else 3 * forward - first)
        numbers = sum(p.numel() for p in network.parameters()) * cell.samples
        # Weights are read once; in training also in the backward pass, gradients written, and Adam reads four
        # numbers for each weight and writes three.
        moved = 4.0 * numbers * (1 if cell.work == "forward" else 10)
        rate = product_flops / times.median("gemm")
        share = count / product_flops * times.ratio("gemm", "ours")
        compute, memory = count / rate, moved / speed
        yield {
            "work": cell.work,
            "network": cell.network,
            "S": cell.samples,
            "B": cell.batch,
            "ours_ms": 1e3 * times.median("ours"),
            "loop_ms": 1e3 * times.median("loop"),
            "vmap_ms": 1e3 * times.median("vmap") if "vmap" in candidates else math.nan,
            "loop_ratio": times.ratio("loop", "ours"),
            "vmap_ratio": times.ratio("vmap", "ours") if "vmap" in candidates else math.nan,
            "gflops": count / times.median("ours") / 1e9,
            "gemm_gflops": rate / 1e9,
            "share_of_gemm": share,
            "limit": "memory" if memory > compute else "gemm",
            "share_of_limit": share * max(1.0, memory / compute),
            "turns": len(times),
        }


def _draw(network: nn.Module, samples: int) -> dict[str, Tensor]:
    return {name: 0.05 * torch.randn(samples, *p.shape, device=p.device) for name, p in network.named_parameters()}


def _with_vmap(cell: Cell) -> bool:
    return cell.network == "mlp" or cell.samples * cell.batch <= VMAP_IMAGES


def _forward(
    network: nn.Module, shape: tuple[int, ...], cell: Cell, device: torch.device
) -> dict[str, Callable[[], object]]:
    weights, x = _draw(network, cell.samples), torch.randn(cell.batch, *shape, device=device)
    stacked = StackedNetwork(network)

    @torch.no_grad()
    def ours() -> Tensor:
        return stacked(weights, x)

    @torch.no_grad()
    def loop() -> Tensor:
        return torch.stack(
            [functional_call(network, {n: w[s] for n, w in weights.items()}, (x,)) for s in range(cell.samples)]
        )

    @torch.no_grad()
    def mapped() -> Tensor:
        return vmap(lambda w: functional_call(network, w, (x,)))(weights)

    torch.testing.assert_close(ours(), loop(), rtol=1e-3, atol=1e-4)
    return {"ours": ours, "loop": loop} | ({"vmap": mapped} if _with_vmap(cell) else {})


def _training(
    network: nn.Module, shape: tuple[int, ...], cell: Cell, device: torch.device
) -> dict[str, Callable[[], object]]:
    """A step of S networks, each on images of its own: forward, backward, Adam.

    The loop is what one writes first: S modules, one after the other. Both sides have a fused Adam.
    """
    x = torch.randn(cell.samples, cell.batch, *shape, device=device)
    y = torch.randint(CLASSES, (cell.samples, cell.batch), device=device)
    initial, stacked, likelihood = _draw(network, cell.samples), StackedNetwork(network), Categorical(CLASSES)

    weights = {name: value.clone().requires_grad_() for name, value in initial.items()}
    fused = torch.optim.Adam(weights.values(), lr=1e-4, fused=True)

    def ours() -> None:
        stacked.losses_to_grad(weights, x, y, likelihood.nll, own_inputs=True)
        fused.step()

    members = [copy.deepcopy(network) for _ in range(cell.samples)]
    for s, member in enumerate(members):
        member.load_state_dict({name: value[s] for name, value in initial.items()})
    own_optimizer = torch.optim.Adam([p for member in members for p in member.parameters()], lr=1e-4, fused=True)

    def loop() -> None:
        own_optimizer.zero_grad()
        for s, member in enumerate(members):
            F.cross_entropy(member(x[s]), y[s]).backward()
        own_optimizer.step()

    own = {name: value.clone().requires_grad_() for name, value in initial.items()}
    other = torch.optim.Adam(own.values(), lr=1e-4, fused=True)

    def mapped() -> None:
        other.zero_grad()
        losses = vmap(lambda w, inputs, labels: F.cross_entropy(functional_call(network, w, (inputs,)), labels))(
            own, x, y
        )
        losses.sum().backward()
        other.step()

    return {"ours": ours, "loop": loop} | ({"vmap": mapped} if _with_vmap(cell) else {})
