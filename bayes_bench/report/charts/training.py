"""Figures of training and of what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from bayes_bench.analysis.evidence import Evidence
from bayes_bench.analysis.records import metric_value
from bayes_bench.metrics.base import Floats
from bayes_bench.report.charts.base import (
    MUTED,
    Chart,
    range_of,
    short,
    std_of,
)

MOST_LAYERS = 6
"""Layers with a panel of their own; of deeper networks the curves show all weights together."""


class Training(Chart):
    """What was logged while a method was trained: small multiples over the budget spent."""

    title = "During training"
    caption = (
        "On validation data, with the networks that a fit draws there, against gradient evaluations. Line: mean over "
        "seeds, band: ± standard deviation, as far as all seeds go; dotted: single seeds that go on after others have "
        "stopped early. Accuracy, NLL and RMSE are scaled to what comes after the first quarter. Falling disagreement "
        "is networks becoming alike; norm spread (std / mean of the weights' norms) alone says little about that."
    )
    width = 2.6
    height = 2.1
    _names: ClassVar[Mapping[str, str]] = {
        "Accuracy, %": "val_accuracy",
        "RMSE, standardised": "val_rmse",
        "NLL, nats": "val_nll",
        "Disagreement, %": "disagreement",
        "Mutual information, nats": "mutual_information",
        "Epistemic std, standardised": "epistemic_std",
        "Discriminator's accuracy, %": "discriminator_accuracy",
    }
    _layer = "Norm spread: "
    _of_quality: ClassVar[frozenset[str]] = frozenset({"Accuracy, %", "RMSE, standardised", "NLL, nats"})
    _of_several: ClassVar[frozenset[str]] = frozenset({"disagreement", "mutual_information", "epistemic_std"})

    def panels(self) -> tuple[str, ...]:
        logged = dict.fromkeys(
            name for jobs in self.jobs.values() for job in jobs for row in _history(job) for name in row
        )
        layers = [f"{self._layer}{name.partition('/')[2]}" for name in logged if name.startswith("weight_spread/")]
        if len(layers) > MOST_LAYERS:
            layers = [f"{self._layer}all"]
        return tuple(panel for panel in (*self._names, *layers) if any(self._series(panel, m) for m in self.methods()))

    def draw(self, panel: str, axes: Axes) -> None:
        everything: list[tuple[Floats, Floats]] = []
        for i, method in enumerate(self.methods()):
            series = self._series(panel, method)
            if not series:
                continue
            everything += series
            style = self.look.line(method)
            grid, mean, std = _over_seeds(series)
            band: Any = {"color": self.look.colour(method), "alpha": 0.15, "linewidth": 0}
            axes.fill_between(grid, mean - std, mean + std, gid=self.look.gid(method, "spread"), **band)
            axes.plot(grid, mean, markevery=(3 * i % 10, 10), **style | {"linewidth": 1.5, "markersize": 3.5})
            for x, y in series:
                after = x >= grid[-1]
                if after.sum() > 1:
                    axes.plot(x[after], y[after], **style | {"linestyle": ":", "linewidth": 0.9, "marker": ""})
        axes.set_xlabel("gradient evaluations")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(short)
        axes.set_xlim(0, max(float(x[-1]) for x, _ in everything))
        quality = panel in self._of_quality
        low, high = _settled(everything) if quality else range_of([y for _, y in everything])
        if panel == "NLL, nats" and 0 < 5 * low < high:
            axes.set_yscale("log")
            axes.set_ylim(low / 1.15, high * 1.15)
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            return
        pad = 0.06 * (high - low) or 0.01 * max(1.0, abs(high))  # a tiny pad is lost beside a huge number
        if panel.startswith("Discriminator"):
            axes.axhline(50, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))  # it cannot tell codes apart
            axes.set_ylim(min(low, 45), max(high, 55))
        else:
            axes.set_ylim(low - pad if quality else 0, high + pad)
        axes.yaxis.set_major_locator(MaxNLocator(5))

    def frame(self) -> pd.DataFrame:
        parts = []
        for panel in self.panels():
            for method in self.methods():
                if series := self._series(panel, method):
                    grid, mean, std = _over_seeds(series, 6)
                    columns = {"logged": panel, "method": method, "evaluations": grid.round(), "mean": mean, "std": std}
                    parts.append(pd.DataFrame(columns).assign(seeds=len(series)))
        return pd.concat(parts) if parts else pd.DataFrame()

    def _series(self, panel: str, method: str) -> list[tuple[Floats, Floats]]:
        layer = panel.removeprefix(self._layer)
        name = self._names.get(panel) or ("weight_spread" if layer == "all" else f"weight_spread/{layer}")
        scale = 100.0 if panel.endswith("%") else 1.0
        found = []
        for job in self.jobs[method]:
            if name in self._of_several and (job.record.get("networks") or 0) < 2:
                continue
            rows = [
                (row["evaluations"], scale * row[name])
                for row in _history(job)
                if row.get(name) is not None and row.get("evaluations") is not None
            ]
            if len(rows) > 1:
                x, y = np.array(rows, dtype=np.float64).T
                found.append((x, y))
        return found


def _history(job: Evidence) -> Sequence[Mapping[str, Any]]:
    return (job.record.get("fit") or {}).get("history") or ()


def _over_seeds(series: Sequence[tuple[Floats, Floats]], points: int = 41) -> tuple[Floats, Floats, Floats]:
    """Mean and standard deviation over seeds (0 for one) on a common grid, as far as all of them go."""
    grid = np.linspace(max(x[0] for x, _ in series), min(x[-1] for x, _ in series), points)
    values = np.stack([np.interp(grid, x, y) for x, y in series])
    spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(points)
    return grid, values.mean(axis=0), spread


def _settled(series: Sequence[tuple[Floats, Floats]]) -> tuple[float, float]:
    """Lowest and highest value after the first quarter of the budget, where fits begin anywhere."""
    start = 0.25 * max(float(x[-1]) for x, _ in series)
    after = [y[x >= start] for x, y in series]
    return range_of([y for y in after if y.size] or [y for _, y in series])


def pareto_front(points: pd.DataFrame) -> pd.DataFrame:
    """The rows (``cost``, ``nll``) that no other beats: none has a lower NLL at the same cost, up to 1 %, or less."""
    cost, nll = points["cost"].to_numpy(), points["nll"].to_numpy()
    beaten = np.any((cost <= 1.01 * cost[:, None]) & (nll < nll[:, None]), axis=1)
    return points.iloc[np.flatnonzero(~beaten)].sort_values("cost")


class QualityCost(Chart):
    """Negative log likelihood against what it cost, by every measure of cost, with the Pareto front."""

    title = "Quality against cost"
    caption = (
        "Test NLL (lower is better) against gradient evaluations of the target network; against training seconds, "
        "which also count discriminators, flows and generators; against the seconds that 1,000 predictions take with "
        "all networks; and against the parameters that are stored. Dots: mean over seeds, bars: standard deviation; "
        "dotted: the Pareto front, methods that no other beats in both (of all methods, hidden ones too; costs within "
        "1 % of each other count as equal)."
    )
    width = 2.6
    height = 2.4
    reading = "points"
    _costs: ClassVar[Mapping[str, str]] = {
        "NLL against gradient evaluations": "evaluations_spent",
        "NLL against training seconds": "fit_seconds",
        "NLL against seconds for 1,000 predictions": "predict_seconds_per_1000",
        "NLL against parameters stored": "parameters_stored",
    }

    def panels(self) -> tuple[str, ...]:
        return tuple(panel for panel in self._costs if not self._points(panel).empty)

    def draw(self, panel: str, axes: Axes) -> None:
        points = self._points(panel)
        for method, row in zip(points["method"], points.drop(columns="method").to_numpy(float), strict=True):
            style = self.look.line(method) | {"linestyle": "none", "markersize": 7, "elinewidth": 0.9}
            self.errorbar(axes, method, row[0], row[2], style, xerr=row[1], yerr=row[3])
        front = pareto_front(points)
        axes.plot(front["cost"], front["nll"], color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1,
                  drawstyle="steps-post")  # fmt: skip
        axes.set_xlabel(panel.removeprefix("NLL against "))
        if points["cost"].max() > 30 * points["cost"].min() > 0:
            axes.set_xscale("log")
        elif points["cost"].min() >= 0:
            axes.set_xlim(0, 1.12 * float((points["cost"] + points["cost_std"]).max()) or 1)
        if axes.get_xscale() == "linear":
            axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(short)
        axes.margins(y=0.15)

    def frame(self) -> pd.DataFrame:
        return pd.concat([self._points(panel).assign(panel=panel) for panel in self.panels()])[
            ["panel", "method", "cost", "cost_std", "nll", "nll_std", "seeds"]
        ]

    def _points(self, panel: str) -> pd.DataFrame:
        rows = []
        for method in self.methods():
            pairs = [
                (cost, quality)
                for job in self.jobs[method]
                if (cost := metric_value(job.record, self._costs[panel])) is not None
                and (quality := metric_value(job.record, "nll")) is not None
            ]
            if pairs:
                cost, nll = np.array(pairs).T
                spread = (std_of(cost), std_of(nll)) if len(pairs) > 1 else (0.0, 0.0)
                rows.append((method, cost.mean(), spread[0], nll.mean(), spread[1], len(pairs)))
        return pd.DataFrame(rows, columns=["method", "cost", "cost_std", "nll", "nll_std", "seeds"])
