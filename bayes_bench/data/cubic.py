"""The 1-D toy of the field: y = x³ + N(0, 3²) (Hernández-Lobato & Adams 2015)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import model_validator

from bayes_bench.data.base import Arrays, Kind, Source, Split, Stream
from bayes_bench.settings import Settings, setting

DATA_SEED = 2015
NOISE_STD = 3.0
LOW, HIGH = -4.0, 4.0
SIZES = {"train": 20, "validation": 20, "test": 200}


class CubicOptions(Settings):
    exclude: tuple[float, float] | None = setting(None, "an interval [low, high] that holds no points at all")

    @model_validator(mode="after")
    def _inside(self) -> CubicOptions:
        if self.exclude and not LOW < self.exclude[0] < self.exclude[1] < HIGH:
            raise ValueError(f"exclude must be [low, high] with {LOW:g} < low < high < {HIGH:g}")
        return self


def split(options: CubicOptions, data_root: Path, kind: Kind) -> Split:
    """20 training, 20 validation and 200 test points, x ``[N, 1]`` in [−4, 4], y ``[N, 1]``.

    One x is uniform in each of N equal cells (of what ``exclude`` leaves), so that chance leaves no hole
    where the curve is called inside.
    """
    low, high = options.exclude or (HIGH, HIGH)
    gap = high - low

    def points(part: str) -> Arrays:
        stream = Stream((DATA_SEED, "cubic", part))
        n = SIZES[part]
        x = LOW + (HIGH - LOW - gap) * (np.arange(n) + stream.uniform(n)) / n
        x = np.where(x > low, x + gap, x)
        y = x**3 + NOISE_STD * stream.normal(n)
        return Arrays(x[:, None].astype(np.float32), y[:, None].astype(np.float32))

    return Split(points("train"), points("validation"), points("test"))


SOURCE = Source(
    name="cubic",
    summary="y = x³ + N(0, 3²), 20 training points in [−4, 4]; `exclude` leaves a gap",
    kind="regression",
    SplitOptions=CubicOptions,
    split=split,
)
