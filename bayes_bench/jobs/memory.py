"""What memory a job needs at least, from its sizes alone, before it starts.

A lower bound: what it calls impossible is impossible. It leaves out the libraries (about 0.5 GB), gradients of
activations, and whatever a method holds that it does not tell (``WeightPosterior._networks_held``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayes_bench.errors import MemoryLimitError
from bayes_bench.host import machine
from bayes_bench.posterior.base import WeightPosterior
from bayes_bench.settings import fields_told
from bayes_bench.tasks.task import Task

OWN_NETWORKS = 2
"""Of every posterior: the network, and the starting value of every parameter."""
PREDICTION_COPIES = 3
"""Of the predictions while they are written: the arrays, each as bytes, and the file's content."""
STATE_COPIES = 4
"""Of a posterior's state while it is written: itself, a clone, each tensor as bytes, and the file's content."""


@dataclass(frozen=True)
class Need:
    """Something that takes memory, in words, and what to change where it is too much."""

    what: str
    bytes: float
    remedy: str


@dataclass(frozen=True)
class Estimate:
    """What a job needs at least when it needs most: in main memory, and on a GPU where it uses one."""

    main: tuple[Need, ...]
    gpu: tuple[Need, ...] = ()

    @property
    def main_bytes(self) -> float:
        return sum(part.bytes for part in self.main)

    def check(self, parallel_jobs: int = 1) -> None:
        """Compare it with what there is, shared by so many jobs.

        Raises:
            MemoryLimitError: it cannot fit; the sentence names sizes and what to change.
        """
        _check(self.main, machine.memory_bytes(), "memory", parallel_jobs)
        if self.gpu:
            _check(self.gpu, torch.cuda.get_device_properties(0).total_memory, "GPU memory", parallel_jobs)


def estimate(posterior: WeightPosterior, task: Task, budget: int, networks: int, device: str) -> Estimate:
    """For a job that fits, draws ``networks`` networks, predicts all of the task's sets, and stores the results.

    Args:
        posterior: of the job, not fitted yet, on the CPU.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        BayesBenchError: what ``_networks_held`` raises where the method cannot fit within the budget.
    """
    held = posterior._networks_held(networks, posterior.as_seen(task.fit_data), budget)
    # Of a method that stores fewer than it may where the budget is small, those that it is sure to store.
    drawn = networks if posterior.support is None else int(held.draw)
    inputs = [part.inputs() for part in task.sets.values()]
    data = Need("data", sum(map(_size, _tensors(task))), "give the task fewer examples")
    predictions = _predictions(posterior, inputs, drawn, task)
    largest = max(inputs, key=len)
    one = posterior.features(largest[:1])
    block = posterior.stacked.block_bytes(drawn, one.expand(len(largest), *one.shape[1:]), device)

    def networks_part(count: float) -> Need:
        names = fields_told(type(posterior.config), "memory", True)
        smaller = f"lower {' or '.join(names)}, or choose a smaller network" if names else "choose a smaller network"
        each = posterior.network_bytes
        return Need(f"{count:,.0f} times a network's {machine.size_in_words(each)}", count * each, smaller)

    def stored(copies: int) -> Need:
        return Need(
            f"predictions of {drawn:,} networks for {sum(map(len, inputs)):,} inputs"
            + f", {copies} times" * (copies > 1),
            copies * predictions,
            "give the task fewer test or out-of-distribution examples",
        )

    evaluation = Need("one evaluation", block, "lower --memory-limit")
    fitting = [networks_part(OWN_NETWORKS + held.fit)]
    drawing = [networks_part(OWN_NETWORKS + held.state + held.drawing)]
    predicting = [networks_part(OWN_NETWORKS + held.state + held.draw), evaluation]
    saving = [networks_part(STATE_COPIES * held.state), stored(1)]
    if device == "cpu":
        writing = [networks_part(OWN_NETWORKS + held.state), stored(PREDICTION_COPIES)]
        return Estimate(_most(data, fitting, drawing, [*predicting, stored(1)], writing, saving))
    own = Need("training data", sum(map(_size, _fit_tensors(task))), data.remedy)
    return Estimate(_most(data, [stored(PREDICTION_COPIES)], saving), gpu=_most(own, fitting, drawing, predicting))


def stored_bytes(posterior: WeightPosterior, task: Task, budget: int, networks: int) -> float:
    """What a job's predictions and posterior take on disk."""
    held = posterior._networks_held(networks, posterior.as_seen(task.fit_data), budget)
    inputs = [part.inputs() for part in task.sets.values()]
    return _predictions(posterior, inputs, networks, task) + held.state * posterior.network_bytes


def ran_out(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the CPU or a GPU."""
    # PyTorch's allocator for the CPU raises a plain RuntimeError.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _most(always: Need, *phases: Sequence[Need]) -> tuple[Need, ...]:
    """The phase of a job that needs most, with what is held all the time."""
    return (always, *max(phases, key=lambda parts: sum(part.bytes for part in parts)))


def _check(parts: Sequence[Need], there: float | None, kind: str, parallel_jobs: int) -> None:
    needed = sum(part.bytes for part in parts)
    if there is None or needed <= there / parallel_jobs:
        return
    ordered = sorted(parts, key=lambda part: -part.bytes)
    named = [part for part in ordered if part.bytes > needed / 100]
    sizes = ", ".join(f"{part.what}: {machine.size_in_words(part.bytes)}" for part in named)
    shared = f" {parallel_jobs} jobs share" if parallel_jobs > 1 else " there are"
    fewer = ", or run fewer jobs at once" if parallel_jobs > 1 else ""
    raise MemoryLimitError(
        f"needs at least {machine.size_in_words(needed)} of {kind} ({sizes}), but{shared} "
        f"{machine.size_in_words(there)}; {ordered[0].remedy}{fewer}"
    )


def _predictions(posterior: WeightPosterior, inputs: Sequence[Tensor], networks: int, task: Task) -> int:
    """Bytes of the stored arrays: log probabilities as float16, or means and noise (float32) of a regression."""
    likelihood, mean = posterior.likelihood, task.standardiser.target_type.itemsize
    each = 2 * likelihood.output_width if likelihood.kind == "classification" else (4 + mean) * likelihood.target_width
    matrices = 1 + sum(p.dim() >= 2 for p in posterior.network.parameters())
    return networks * each * sum(map(len, inputs)) + 8 * networks**2 * matrices


def _fit_tensors(task: Task) -> list[Tensor]:
    """What is held of the examples that a method sees; inputs that stay in a file are not."""
    parts = [task.fit_data.train, *([task.fit_data.validation] if task.fit_data.validation else [])]
    return [tensor for part in parts for tensor in (part.x, part.y) if isinstance(tensor, Tensor)]


def _tensors(task: Task) -> list[Tensor]:
    evaluated = [tensor for name, part in task.sets.items() if name != "validation" for tensor in (part.x, part.y)]
    return [*_fit_tensors(task), *(tensor for tensor in evaluated if isinstance(tensor, Tensor))]


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
