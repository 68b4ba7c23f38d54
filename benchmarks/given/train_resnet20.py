"""Trains ResNet-20 with batch normalisation on CIFAR-10 in the plain way, for suites that start at given weights.

    python benchmarks/given/train_resnet20.py resnet20-cifar10.safetensors --epochs 24 --bfloat16

The task's own training split, standardised as the task does it; the validation split is looked at for the log alone,
the test split never. Crops and flips, SGD with momentum and weight decay, one cycle of the learning rate.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from bayes_bench.networks import resnet20
from bayes_bench.tasks import TaskSpec, build_task

TASK = {
    "name": "cifar10",
    "data": {"source": "cifar10"},
    "network": {"name": "mlp"},
    "augmentation": {"shift": 4, "flip": True},
    "budget": 1,
}
BATCH, PEAK, DECAY = 128, 0.2, 5e-4


def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    network.eval()
    with torch.no_grad():
        found = sum(int((network(x[i : i + 500]).argmax(1) == y[i : i + 500]).sum()) for i in range(0, len(x), 500))
    network.train()
    return found / len(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bfloat16", action="store_true", help="products in bfloat16, where the processor has them")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = build_task(TaskSpec.model_validate(TASK)).fit_data
    assert data.validation is not None
    x, y = data.validation.inputs().contiguous(memory_format=torch.channels_last), data.validation.y
    rng = torch.Generator().manual_seed(options.seed)
    torch.manual_seed(options.seed)
    network = resnet20((3, 32, 32), 10).to(memory_format=torch.channels_last).train()
    batches = data.train.minibatches(BATCH, rng)
    steps = len(data.train) // BATCH
    optimizer = torch.optim.SGD(network.parameters(), lr=PEAK, momentum=0.9, weight_decay=DECAY, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=options.epochs * steps, pct_start=0.2)
    started = time.monotonic()
    for epoch in range(options.epochs):
        for _ in range(steps):
            images, labels = next(batches)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16):
                outputs = network(images.contiguous(memory_format=torch.channels_last))
            F.cross_entropy(outputs.float(), labels).backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}, {time.monotonic() - started:.0f} s: {accuracy(network, x, y):.4f}", flush=True)
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, options.out)


if __name__ == "__main__":
    main()
