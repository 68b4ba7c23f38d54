"""How time and memory of a prediction grow with the number of networks and with their size.

Memory is the peak of a process of its own for each point, less what it holds before the prediction.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

IMAGES = 10_000
"""As many as MNIST has for testing."""
POINTS = [(10, 1), (100, 1), (1000, 1), (10, 2), (10, 4)]
"""(S, factor on the channels of the MNIST network)."""
COLUMNS = ["S", "width", "weights", "images", "seconds", "peak_mb", "extra_mb", "all_outputs_mb"]


def points(quick: bool = False) -> Iterator[dict[str, Any]]:
    """One row for each point, measured in a new process."""
    for samples, width in POINTS[:1] if quick else POINTS:
        print(f"predicting with S = {samples}, {width} × the channels …", file=sys.stderr, flush=True)
        command = [sys.executable, str(Path(__file__)), str(samples), str(width)]
        yield json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(samples: int, width: int) -> dict[str, Any]:
    """Draw and predict ``IMAGES`` images with ``iter_samples``; a generator that was not trained costs as much."""
    import torch

    from bayes_bench import Categorical, HyperGAN
    from bayes_bench.host import machine
    from bayes_bench.networks import convnet

    torch.manual_seed(0)
    posterior = HyperGAN(convnet((1, 28, 28), (32 * width, 32 * width), 10), Categorical(10))
    posterior._build()
    posterior.fitted = True
    x = torch.rand(IMAGES, 1, 28, 28)
    posterior.predict(x[:100], posterior.iter_samples(2, seed=0))  # libraries are loaded and set up here
    machine.reset_peak_memory()
    before = machine.peak_memory_mb() or float("nan")
    started = time.perf_counter()
    posterior.predict(x, posterior.iter_samples(samples, seed=1))
    seconds = time.perf_counter() - started
    peak = machine.peak_memory_mb() or float("nan")
    return {
        "S": samples,
        "width": width,
        "weights": sum(p.numel() for p in posterior.network.parameters()),
        "images": IMAGES,
        "seconds": seconds,
        "peak_mb": peak,
        "extra_mb": peak - before,
        "all_outputs_mb": 8 * samples * IMAGES * 10 / 2**20,  # what holding every network's outputs would take
    }


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]))))
