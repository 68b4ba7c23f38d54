"""The images that a job keeps for its report: of every set the most and the least uncertain."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from bayes_bench.metrics.base import summarise
from bayes_bench.results.schema import LARGEST_IMAGE
from bayes_bench.tasks.task import Standardiser

IMAGES = 8
"""As many of each kind."""


def gallery(
    predictions: Mapping[str, np.ndarray], sets: Mapping[str, Tensor], units: Standardiser
) -> dict[str, np.ndarray]:
    """Images of the lowest and the highest predictive entropy H(p̄).

    Args:
        predictions: ``SET/log_probs [S, N, C]``.
        sets: standardised inputs ``[N, ...]``; sets that are no images give nothing.
        units: of the inputs.

    Returns:
        ``SET/images`` uint8 ``[n, c, h, w]`` with c of 1 or 3, and ``SET/image_index`` int64 ``[n]``, where they are in
        the set; by rising entropy, the first half the least uncertain. Of images larger than ``LARGEST_IMAGE`` every
        second, third, … pixel is kept.
    """
    found: dict[str, np.ndarray] = {}
    for name, x in sets.items():
        if x.ndim != 4 or x.shape[1] not in (1, 3) or not len(x):
            continue
        order = np.argsort(summarise(predictions[f"{name}/log_probs"], ()).entropy, kind="stable")
        few = min(IMAGES, len(order) // 2)
        index = np.concatenate([order[:few], order[len(order) - few :]])
        found |= {f"{name}/images": _pixels(x[index], units), f"{name}/image_index": index.astype(np.int64)}
    return found


def _pixels(x: Tensor, units: Standardiser) -> np.ndarray:
    """Standardised images as bytes; values that are no shares of full brightness are stretched to their range."""
    step = -(-max(x.shape[2:]) // LARGEST_IMAGE)
    raw = x[:, :, ::step, ::step].double().cpu().numpy() * units.x_std + units.x_mean
    low, high = (0.0, 1.0) if raw.min(initial=0) > -1e-3 and raw.max(initial=0) < 1 + 1e-3 else (raw.min(), raw.max())
    shares: np.ndarray = np.clip((raw - low) / (high - low or 1.0), 0, 1)
    pixels: np.ndarray = np.rint(255 * shares).astype(np.uint8)
    return pixels
