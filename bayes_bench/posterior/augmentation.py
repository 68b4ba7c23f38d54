"""Random changes of training images, a whole batch at once and on its device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayes_bench.errors import DataError


@dataclass(frozen=True)
class Augmentation:
    """Shifts and mirrors images, each in its own way.

    Attributes:
        shift: every image is moved by −shift … shift pixels in both directions, all equally likely; what enters is
            reflected at the border.
        flip: every image is mirrored left to right with probability ½.
    """

    shift: int = 0
    flip: bool = False

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse inputs of another shape than images, or too small ones.

        Raises:
            DataError: says which.
        """
        if len(shape) != 3:
            raise DataError(f"only images [C, H, W] can be augmented; an input has shape {list(shape)}")
        if self.shift >= min(shape[1:]):
            raise DataError(
                f"images of {shape[1]}×{shape[2]} cannot be shifted by {self.shift} pixels; give a smaller shift"
            )

    def __call__(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Images ``[..., C, H, W]`` → the same shape. ``rng`` is a CPU generator: the same changes on every device."""
        channels, height, width = x.shape[-3:]
        images = x.reshape(-1, channels, height, width)
        n = len(images)
        moves = torch.randint(-self.shift, self.shift + 1, (2, n, 1), generator=rng)
        mirrored = torch.rand(n, 1, generator=rng) < (0.5 if self.flip else 0.0)
        columns = torch.arange(width)
        columns = torch.where(mirrored, columns.flip(0), columns)
        rows = _reflected(torch.arange(height) + moves[0], height).to(x.device)
        columns = _reflected(columns + moves[1], width).to(x.device)
        image = torch.arange(n, device=x.device)[:, None, None, None]
        channel = torch.arange(channels, device=x.device)[:, None, None]
        changed = images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
        return changed.reshape(x.shape)


def _reflected(index: Tensor, size: int) -> Tensor:
    """Positions beyond 0 … size−1 mirrored at the first and the last, by less than ``size``."""
    last = size - 1
    return last - (last - index.abs()).abs()
