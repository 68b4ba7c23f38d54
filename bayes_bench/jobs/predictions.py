"""The arrays of a job that are stored: predictions, images, Gram matrices of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bayes_bench.errors import DivergenceError
from bayes_bench.networks import layer_names
from bayes_bench.posterior.base import WeightPosterior, WeightSamples
from bayes_bench.posterior.likelihood import RESERVED
from bayes_bench.posterior.stacked.scaled import take
from bayes_bench.tasks.task import Standardiser, Task, farthest

OUTPUT_BYTES = 64 * 2**20
"""Memory for the outputs of one chunk of examples."""
GRAM_BYTES = 32 * 2**20
"""Memory for the float64 copy of one chunk of weights."""
INTENSITY_ROWS = 256
CHECKED_ROWS = 1024
LOWEST_LOG_PROB = float(np.finfo(np.float16).min)


def predict_task(posterior: WeightPosterior, weights: WeightSamples, task: Task) -> dict[str, np.ndarray]:
    """The stored predictions of a job, apart from those about weights: ``test/log_probs``, ``ood/NAME/log_probs`` etc.

    Classification stores log probabilities as float16 ``[S, N, C]``, 2·S·N·C bytes: 20 MB for 10,000 images,
    100 networks and 10 classes. Regression stores ``[S, N, D]`` in the units of the targets: float32, but where a mean
    is large beside its spread float64 (``Standardiser.target_type``).

    Raises:
        DivergenceError: a prediction is NaN or infinite; names set and example.
    """
    units = task.standardiser
    found: dict[str, np.ndarray] = {}
    for name, part in task.sets.items():
        x = part.inputs()
        predicted = predict(posterior, weights, x, units)
        _check_finite(name, predicted, x, task.columns)
        found |= {f"{name}/{key}": values for key, values in predicted.items()}
        if task.likelihood.kind == "classification":
            found[f"{name}/mean_intensity"] = _mean_intensity(x)
        if part.y is not None:
            found[f"{name}/y"] = raw_targets(part.y, units)
    if "curve" in task.sets:
        found["curve/x"] = _raw_inputs(task.sets["curve"].inputs(), units)
        found["train/x"] = _raw_inputs(task.fit_data.train.inputs(), units)
        found["train/y"] = raw_targets(task.fit_data.train.y, units)[:, 0]
    return found


def _check_finite(name: str, predicted: Mapping[str, np.ndarray], x: Tensor, columns: Sequence[str]) -> None:
    for values in predicted.values():
        for start in range(0, values.shape[1], CHECKED_ROWS):
            part = values[:, start : start + CHECKED_ROWS]
            if np.isfinite(part).all():
                continue
            row = start + int(np.isfinite(part).all((0, 2)).argmin())
            far = farthest(x[row].double().cpu().numpy(), row, columns)
            raise DivergenceError(f"predictions of the set {name!r} are not finite, first in example {row}: {far}")


def _mean_intensity(x: Tensor) -> np.ndarray:
    """Mean of each input, ``[N]``, in parts: all of a set in float64 would be twice the set."""
    means = np.empty(len(x), np.float32)
    for start in range(0, len(x), INTENSITY_ROWS):
        part = x[start : start + INTENSITY_ROWS].flatten(1).double()
        means[start : start + INTENSITY_ROWS] = part.mean(1).float().numpy()
    return means


def predict(
    posterior: WeightPosterior, weights: WeightSamples, x: Tensor, units: Standardiser
) -> dict[str, np.ndarray]:
    """Predictive distributions of all networks on standardised inputs x ``[N, ...]``, in bounded chunks of examples.

    Returns:
        ``log_probs`` float16 ``[S, N, C]``; or ``mean`` and ``noise_std`` ``[S, N, D]`` in raw units, the mean of
        ``units.target_type``, the noise float32.
    """
    networks = len(next(iter(weights.values())))
    rows = max(1, OUTPUT_BYTES // (4 * networks * posterior.likelihood.output_width))
    found: dict[str, np.ndarray] = {}
    for start in range(0, len(x), rows):
        outputs = posterior.outputs(x[start : start + rows], weights)
        for name, values in posterior.likelihood.predict(outputs, weights).items():
            piece = values.cpu().numpy()
            if name == "log_probs":
                # Below float16's range a log probability would become −infinity; −65,504 says as much.
                stored = np.maximum(piece, LOWEST_LOG_PROB).astype(np.float16)
            elif name == "mean":
                stored = (piece.astype(np.float64) * units.y_std + units.y_mean).astype(units.target_type)
            else:
                stored = (piece.astype(np.float64) * units.y_std).astype(np.float32)
            if name not in found:
                found[name] = np.empty((networks, len(x), *stored.shape[2:]), stored.dtype)
            found[name][:, start : start + rows] = stored
    return found


def gram_matrices(network: nn.Module, weights: WeightSamples) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Gram matrices ``[S, S]`` (float64) of the networks' weight vectors: per layer, and ``all``.

    A layer is a parameter of two or more dimensions (the weight of a linear layer or a convolution), without
    its bias; ``all`` is every parameter of the network. Norms, distances and cosines follow from them.

    Returns:
        The matrices, and the number of weights of each layer in the network's order.
    """
    names = layer_names(network)
    grams: dict[str, np.ndarray] = {}
    networks = len(next(iter(weights.values())))
    total = torch.zeros(networks, networks, dtype=torch.float64)
    for parameter, value in weights.items():
        if not is_weight(parameter):
            continue
        gram = _gram(value)
        total += gram
        if parameter in names:
            grams[names[parameter]] = gram.numpy()
    sizes = {layer: elements(weights[parameter]) for parameter, layer in names.items()}
    return grams | {"all": total.numpy()}, sizes


def _gram(value: Tensor) -> Tensor:
    """Gram matrix ``[S, S]`` of one parameter's samples ``[S, *shape]``, on the CPU."""
    networks = value.shape[0]
    if value.stride(0) == 0:
        return torch.full((networks, networks), float(value[0].double().square().sum()), dtype=torch.float64)
    # Of factors a passing copy: their product, once made, would be kept for as long as the draw.
    flat = take(value, 0, networks).flatten(1)
    columns = max(1, GRAM_BYTES // (8 * networks))
    total = torch.zeros(networks, networks, dtype=torch.float64, device=value.device)
    for start in range(0, flat.shape[1], columns):
        part = flat[:, start : start + columns].double()
        total += part @ part.T
    return total.cpu()


def is_weight(name: str) -> bool:
    return not name.startswith(RESERVED)


def elements(value: Tensor) -> int:
    return value[0].numel()


def raw_targets(y: Tensor, units: Standardiser) -> np.ndarray:
    """Targets as the task's metrics need them: class indices, or standardised values back in their own units."""
    if units.y_mean.size == 0:
        return y.numpy()
    return np.asarray(y.double().numpy() * units.y_std + units.y_mean, dtype=units.target_type)


def _raw_inputs(x: Tensor, units: Standardiser) -> np.ndarray:
    """One-dimensional inputs ``[N, 1]`` in raw units, ``[N]``."""
    return np.asarray(x.double().numpy() * units.x_std + units.x_mean, dtype=units.input_type).reshape(-1)
