"""Figures of one-dimensional regressions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from bayes_bench.metrics.base import Floats
from bayes_bench.metrics.job import regions
from bayes_bench.report.charts.base import (
    INK,
    MUTED,
    SHADE,
    Chart,
    range_of,
)

KNOWN_FUNCTIONS: Mapping[str, Callable[[Floats], Floats]] = {"cubic": lambda x: x**3}
"""The noise-free function of data sources that have one."""


class Curves(Chart):
    """Predictive mean and epistemic band of a 1-D regression, one panel per method on one scale."""

    title = "Predictions on the line"
    caption = (
        "Line: predictive mean; band: ± 2 epistemic standard deviations (spread of the networks' means, without the "
        "noise), for the first seed. Thin lines: means of the other seeds. Dots: training data. Dashed: the function "
        "without noise, where known. Grey: no training data there. All panels have one scale, which may cut bands."
    )
    width = 2.6
    height = 2.4
    by_colour = False

    def panels(self) -> tuple[str, ...]:
        return tuple(m for m in self.methods() if any(job.curve for job in self.jobs[m]))

    def describe(self, panel: str) -> str:
        return f"Predictive mean and epistemic band of {panel} with the training data. Numbers in the table below."

    def draw(self, panel: str, axes: Axes) -> None:
        drawn = [job for job in self.jobs[panel] if job.curve]
        colour, first = self.look.colour(panel), drawn[0].curve
        _shade(axes, drawn[0].record)
        for job in drawn[1:]:
            axes.plot(job.curve["x"], job.curve["mean"], color=colour, linewidth=0.7, alpha=0.55)
        low, high = _band(first)
        axes.fill_between(first["x"], low, high, color=colour, alpha=0.22, linewidth=0)
        if (truth := _truth(drawn[0].record)) is not None:
            axes.plot(first["x"], truth(first["x"]), color=INK, linewidth=0.9, linestyle=(0, (4, 2.5)))
        axes.plot(first["x"], first["mean"], color=colour, gid=self.look.gid(panel))
        if "train_x" in first:
            axes.scatter(first["train_x"], first["train_y"], s=9, color=INK, linewidths=0, zorder=4)
        axes.set(xlim=(first["x"].min(), first["x"].max()), ylim=self._limits(), xlabel="x", ylabel="y")
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))

    def frame(self) -> pd.DataFrame:
        columns: dict[str, Floats] = {}
        for method in self.panels():
            curve = next(job.curve for job in self.jobs[method] if job.curve)
            rows = slice(None, None, max(1, len(curve["x"]) // 24))
            columns.setdefault("x", curve["x"][rows])
            columns[f"{method} mean"] = curve["mean"][rows]
            columns[f"{method} epistemic std"] = curve["epistemic_std"][rows]
        return pd.DataFrame(columns)

    def _limits(self) -> tuple[float, float]:
        """One scale that shows the data and the function, and of the bands as much as twice their range."""
        core, bands = [], []
        for method in self.panels():
            for job in (job for job in self.jobs[method] if job.curve):
                bands += [job.curve["mean"], *_band(job.curve)]
                core += [job.curve[name] for name in ("train_y",) if name in job.curve]
                if (truth := _truth(job.record)) is not None:
                    core.append(truth(job.curve["x"]))
        core_low, core_high = range_of(core or bands)
        low, high = range_of(core + bands)
        slack = 0.5 * (core_high - core_low)
        low, high = max(low, core_low - slack), min(high, core_high + slack)
        pad = 0.04 * (high - low) or 1.0
        return low - pad, high + pad


class EpistemicSpread(Chart):
    """Epistemic standard deviation along the curve, all methods on one scale."""

    title = "Epistemic uncertainty along the line"
    caption = (
        "Standard deviation between the networks' means f_s(x), mean over seeds. Grey: no training data there, where "
        "it should grow."
    )
    width = 3.6
    height = 2.6

    def panels(self) -> tuple[str, ...]:
        return ("Epistemic standard deviation",) if self.methods() else ()

    def methods(self) -> list[str]:
        return [
            m
            for m in super().methods()
            if any(job.curve and (job.record.get("networks") or 0) > 1 for job in self.jobs[m])
        ]

    def draw(self, panel: str, axes: Axes) -> None:
        _shade(axes, self.jobs[self.methods()[0]][0].record)
        for i, method in enumerate(self.methods()):
            x, spread = self._mean(method)
            axes.plot(x, spread, markevery=(4 * i, 24), **self.look.line(method) | {"markersize": 4})
            axes.set_xlim(x.min(), x.max())
        axes.set_ylim(bottom=0)
        axes.set(xlabel="x", ylabel="std of f(x)")

    def frame(self) -> pd.DataFrame:
        columns: dict[str, Floats] = {}
        for method in self.methods():
            x, spread = self._mean(method)
            rows = slice(None, None, max(1, len(x) // 24))
            columns.setdefault("x", x[rows])
            columns[method] = spread[rows]
        return pd.DataFrame(columns)

    def _mean(self, method: str) -> tuple[Floats, Floats]:
        curves = [job.curve for job in self.jobs[method] if job.curve]
        return curves[0]["x"], np.mean([curve["epistemic_std"] for curve in curves], axis=0)


def _band(curve: Mapping[str, Floats]) -> tuple[Floats, Floats]:
    return curve["mean"] - 2 * curve["epistemic_std"], curve["mean"] + 2 * curve["epistemic_std"]


def _truth(record: Mapping[str, Any]) -> Callable[[Floats], Floats] | None:
    return KNOWN_FUNCTIONS.get(str(((record.get("task_spec") or {}).get("data") or {}).get("source")))


def _shade(axes: Axes, record: Mapping[str, Any]) -> None:
    """Grey where the task says that there are no training data, with the regions' names above."""
    spec = record["task_spec"]["curve"]
    x = np.linspace(spec["low"], spec["high"], 2001)
    for name, mask in regions(x, spec).items():
        edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            low, high = x[start], x[stop - 1]
            if name != "inside":
                axes.axvspan(low, high, color=SHADE, linewidth=0, zorder=0)
            if (high - low) / (x[-1] - x[0]) > 0.1:
                axes.text((low + high) / 2, 1.015, name, ha="center", va="bottom", fontsize=7, color=MUTED,
                          transform=axes.get_xaxis_transform())  # fmt: skip
