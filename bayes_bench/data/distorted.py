"""Validation examples torn apart: an out-of-distribution set for tuning, made of the task's own data.

Images are cut into a grid of square patches that are shuffled and turned by quarters of a circle, in another
way for each image. All pixel values stay, so mean intensity tells nothing, and strokes stay strokes within a
patch, but the whole is no digit any more. Features: every column is shuffled by itself over the examples,
which keeps each feature's distribution and destroys what they have to do with each other.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bayes_bench.data.base import Inputs, Source, Split, Stream
from bayes_bench.errors import DataError
from bayes_bench.settings import Settings, setting

DISTORTION_SEED = 1729


class DistortedOptions(Settings):
    grid: int = setting(2, "images are cut into grid × grid patches; it must divide their height and width", ge=2)


def inputs(options: DistortedOptions, data_root: Path, split: Split) -> Inputs:
    """One distorted copy of every validation input, in the same order and of the same shape."""
    x = split.validation.inputs()
    stream = Stream((DISTORTION_SEED, "distorted"))
    if x.ndim == 4:
        return Inputs(
            _shuffle_patches(x, options.grid, stream),
            (f"the validation images, cut into {options.grid}×{options.grid} patches and shuffled",),
        )
    if x.ndim == 2 and x.shape[1] > 1:
        columns = [x[stream.permutation(len(x)), j] for j in range(x.shape[1])]
        return Inputs(np.stack(columns, 1), ("the validation examples, each feature shuffled by itself",))
    raise DataError(f"distorted needs images or at least 2 features, but the task's inputs have shape {x.shape[1:]}")


def _shuffle_patches(x: np.ndarray, grid: int, stream: Stream) -> np.ndarray:
    n, channels, height, width = x.shape
    if height % grid or width % grid or height // grid != width // grid:
        raise DataError(
            f"distorted: grid = {grid} does not cut images of {height}×{width} into square patches; "
            "choose a grid that divides both sides of a square image"
        )
    side = height // grid
    patches = x.reshape(n, channels, grid, side, grid, side).transpose(0, 2, 4, 1, 3, 5)
    patches = patches.reshape(n, grid * grid, channels, side, side)
    # A random permutation, then one step on in the cycle it makes: no patch stays where it was.
    cycle = np.argsort(stream.uniform(n, grid * grid), axis=1, kind="stable")
    source = np.empty_like(cycle)
    np.put_along_axis(source, cycle, np.roll(cycle, 1, axis=1), axis=1)
    patches = np.take_along_axis(patches, source[:, :, None, None, None], axis=1)
    turns = stream.integers(4, n, grid * grid)
    for quarter in (1, 2, 3):
        turned = turns == quarter
        patches[turned] = np.rot90(patches[turned], quarter, axes=(2, 3))
    whole = patches.reshape(n, grid, grid, channels, side, side).transpose(0, 3, 1, 4, 2, 5)
    return np.ascontiguousarray(whole.reshape(x.shape))


SOURCE = Source(
    name="distorted",
    summary="the task's validation inputs with shuffled, turned patches (or shuffled features)",
    InputOptions=DistortedOptions,
    inputs=inputs,
)
