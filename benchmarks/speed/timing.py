"""Fair times: everything that is compared runs in turn in one process; medians of pairwise ratios.

On a GPU the clock is read by events on the device. ``gemm`` and ``bandwidth`` are the machine's limits, measured
beside whatever is held against them, since a shared machine is not the same from one minute to the next.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

GEMM_SIZE = 1024
"""Square products of this size, 2.1 GFLOP: large enough to run at the machine's rate, short enough to repeat."""
MAX_TURNS = 40
TURN_SECONDS = 0.01
"""Shorter work is repeated within a turn until it takes about so long."""


@dataclass(frozen=True)
class Times:
    """Seconds of each candidate in each turn; all lists have the same length."""

    turns: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.turns[name])

    def ratio(self, slower: str, faster: str) -> float:
        """Median over the turns of ``slower``'s time divided by ``faster``'s."""
        return statistics.median(a / b for a, b in zip(self.turns[slower], self.turns[faster], strict=True))

    def __len__(self) -> int:
        return len(next(iter(self.turns.values())))


def seconds(work: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Mean time of so many calls."""
    if device.type == "cuda":
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(times):
            work()
        stop.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(stop) / 1e3 / times
    started = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - started) / times


def in_turn(
    candidates: Mapping[str, Callable[[], object]], device: torch.device, *, budget: float = 3.0, least: int = 5
) -> Times:
    """Run the candidates one after the other, again and again, for about ``budget`` seconds but ``least`` turns.

    Very long ones (ten times the budget) are content with three turns.
    """
    for work in candidates.values():
        work()  # plans, caches and memory are set up here
    times = {name: math.ceil(TURN_SECONDS / seconds(work, device)) for name, work in candidates.items()}
    turns: dict[str, list[float]] = {name: [] for name in candidates}
    order = list(candidates)
    started = time.perf_counter()
    while True:
        for name in order:
            if times[name] > 1:  # short: what ran before has taken the caches
                candidates[name]()
            turns[name].append(seconds(candidates[name], device, times[name]))
        order = order[1:] + order[:1]  # nobody always comes after the same one
        done = len(turns[next(iter(turns))])
        spent = time.perf_counter() - started
        if done >= MAX_TURNS or (done >= least and spent > budget) or (done >= 3 and spent > 10 * budget):
            return Times(turns)


def gemm(device: torch.device) -> tuple[Callable[[], Tensor], float]:
    """A matrix product to run in turn with others, and its floating-point operations."""
    left, right, out = (torch.randn(GEMM_SIZE, GEMM_SIZE, device=device) for _ in range(3))
    return lambda: torch.mm(left, right, out=out), 2.0 * GEMM_SIZE**3


def bandwidth(device: torch.device) -> float:
    """Bytes per second of a copy between arrays far larger than any cache, read and written."""
    source, target = (torch.randn(2**26, device=device) for _ in range(2))  # 256 MiB each
    times = in_turn({"copy": lambda: target.copy_(source)}, device, budget=1.0)
    return 2 * source.numel() * source.element_size() / times.median("copy")


def flops(network: nn.Module, shape: tuple[int, ...]) -> tuple[float, float]:
    """Floating-point operations of one forward pass for one example: all, and those of the first layer.

    Multiply-adds of linear layers and convolutions count 2; everything else is left out, as is usual. Training takes
    three times as many, less those of the first layer once, whose inputs need no gradient.
    """
    counts: list[float] = []

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        counts.append(2.0 * output[0].numel() * layer.weight[0].numel())  # type: ignore[index,operator,union-attr]

    handles = [
        layer.register_forward_hook(count) for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    device = next(network.parameters()).device
    with torch.no_grad():
        network(torch.zeros(1, *shape, device=device))
    for handle in handles:
        handle.remove()
    return sum(counts), counts[0]
