"""Figures of classifications, and of the diversity of networks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator

from bayes_bench.analysis.evidence import CURVE_SIZES
from bayes_bench.analysis.records import metric_value
from bayes_bench.metrics.base import Floats
from bayes_bench.metrics.calibration import BINS, bin_index
from bayes_bench.report.charts.base import (
    MUTED,
    Chart,
    log_axis,
    rest_after,
    std_of,
)


class AccuracyCurve(Chart):
    """Accuracy of the mean over k networks, against k."""

    title = "Accuracy against number of networks"
    caption = (
        "Mean prediction of k networks, averaged over the disjoint groups of k in the draw; mean over seeds, "
        "bars: standard deviation over seeds. A line ends at the networks that a method has."
    )
    width = 3.6
    height = 2.6

    def panels(self) -> tuple[str, ...]:
        return ("Test accuracy, %",) if not self.frame().empty else ()

    def draw(self, panel: str, axes: Axes) -> None:
        frame = self.frame()
        for method in self.methods():
            rows = frame[frame["method"] == method]
            style = self.look.line(method) | {"elinewidth": 0.8}
            self.errorbar(axes, method, rows["networks"], rows["accuracy %"], style, yerr=rows["std"].fillna(0))
        log_axis(axes, [1, 2, 5, 10, 20, 50, 100])
        axes.set_xlabel("networks")

    def frame(self) -> pd.DataFrame:
        rows = []
        for method in self.methods():
            for k in CURVE_SIZES:
                values = [
                    100 * job.examples[f"correct@{k}"].mean()
                    for job in self.jobs[method]
                    if f"correct@{k}" in job.examples
                ]
                if values:
                    rows.append((method, k, float(np.mean(values)), std_of(values), len(values)))
        return pd.DataFrame(rows, columns=["method", "networks", "accuracy %", "std", "seeds"])


class Reliability(Chart):
    """Accuracy of the examples predicted with about the same confidence."""

    title = "Reliability"
    caption = (
        f"Accuracy of the test examples in each of {BINS} bins of confidence (max p̄), all seeds together; the area "
        "of a dot is its share of examples. Below the diagonal: overconfident. Bins without examples have no dot."
    )
    width = 2.6
    height = 2.45
    by_colour = False
    reading = "nothing"

    def panels(self) -> tuple[str, ...]:
        return tuple(m for m in self.methods() if any("confidence" in job.examples for job in self.jobs[m]))

    def describe(self, panel: str) -> str:
        return f"Reliability diagram of {panel}: accuracy against confidence. The numbers are in the table below."

    def draw(self, panel: str, axes: Axes) -> None:
        rows = self._bins(panel)
        colour = self.look.colour(panel)
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.vlines(rows["confidence"], rows["confidence"], rows["accuracy"], color=colour, linewidth=1.2, alpha=0.6)
        share = rows["examples"] / rows["examples"].sum()
        axes.scatter(rows["confidence"], rows["accuracy"], s=6 + 110 * share, color=colour, linewidths=0, zorder=3)
        values = [v for job in self.jobs[panel] if (v := metric_value(job.record, "ece")) is not None]
        if values:
            spread = f" ± {std_of(values):.3f}" if len(values) > 1 else ""
            axes.text(
                0.98,
                0.04,
                f"ECE {np.mean(values):.3f}{spread}",
                ha="right",
                fontsize=8,
                transform=axes.transAxes,
            )
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="confidence", ylabel="accuracy")
        axes.xaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
        axes.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))

    def frame(self) -> pd.DataFrame:
        return pd.concat([self._bins(panel).assign(method=panel) for panel in self.panels()]).loc[
            :, ["method", "bin", "examples", "confidence", "accuracy"]
        ]

    def _bins(self, method: str) -> pd.DataFrame:
        jobs = [job for job in self.jobs[method] if "confidence" in job.examples]
        confidence = np.concatenate([job.examples["confidence"] for job in jobs])
        correct = np.concatenate([job.examples["correct"] for job in jobs])
        edges = np.linspace(0, 1, BINS + 1)
        index = bin_index(confidence, edges)
        count = np.bincount(index, minlength=BINS)
        full = np.flatnonzero(count)
        return pd.DataFrame(
            {
                "bin": [f"({edges[b]:.2f}, {edges[b + 1]:.2f}]" for b in full],
                "examples": count[full],
                "confidence": np.bincount(index, confidence, minlength=BINS)[full] / count[full],
                "accuracy": np.bincount(index, correct, minlength=BINS)[full] / count[full],
            }
        )


class EntropyCDF(Chart):
    """Empirical distribution of predictive entropy, for data from the training distribution and from outside."""

    title = "Predictive entropy in and out of distribution"
    caption = (
        "Share of examples whose predictive entropy H(p̄) is at most the value on the axis, in nats on [0, ln C]; all "
        "seeds together. Wanted: high on the left for test data, low until far right for data from elsewhere."
    )
    width = 3.5
    height = 2.6

    def panels(self) -> tuple[str, ...]:
        names = {key for jobs in self.jobs.values() for job in jobs for key in job.examples}
        out = sorted(name for name in names if name.startswith("entropy/"))
        return tuple((["Test data"] if "entropy" in names else []) + [f"Out: {name[8:]}" for name in out])

    def draw(self, panel: str, axes: Axes) -> None:
        grid, curves = self._curves(panel)
        for i, (method, values) in enumerate(curves.items()):
            # Markers apart from each other tell the lines apart without colour.
            every = (3 * i, 28)
            axes.plot(grid, values, markevery=every, **self.look.line(method) | {"markersize": 4})
        axes.set(xlim=(0, grid[-1]), ylim=(-0.02, 1.02), xlabel="entropy, nats", ylabel="share of examples")
        axes.text(1, 1.02, f"ln {round(math.exp(grid[-1]))}", ha="right", va="bottom", fontsize=8, color=MUTED,
                  transform=axes.transAxes)  # fmt: skip

    def frame(self) -> pd.DataFrame:
        parts = []
        for panel in self.panels():
            grid, curves = self._curves(panel)
            rows = slice(None, None, 10)
            parts.append(
                pd.DataFrame({"data": panel, "entropy ≤": grid[rows]} | {m: v[rows] for m, v in curves.items()})
            )
        return pd.concat(parts) if parts else pd.DataFrame()

    def _curves(self, panel: str) -> tuple[Floats, dict[str, Floats]]:
        key = "entropy" if panel == "Test data" else f"entropy/{panel.removeprefix('Out: ')}"
        classes = max(len(job.record["data"]["classes"]) for jobs in self.jobs.values() for job in jobs)
        grid = np.linspace(0, math.log(max(2, classes)), 141)
        curves = {}
        for method in self.methods():
            values = [job.examples[key] for job in self.jobs[method] if key in job.examples]
            if values:
                pooled = np.sort(np.concatenate(values))
                # Rounding may put a total ignorance a hair beyond ln C.
                curves[method] = np.searchsorted(pooled, grid + 1e-9, side="right") / len(pooled)
        return grid, curves


class RiskCoverage(Chart):
    """Error on what is left when the most uncertain examples are put aside."""

    title = "Risk and coverage"
    caption = (
        "Error on the test examples that are left when the most uncertain ones, by predictive entropy H(p̄), are put "
        "aside; mean over seeds. The earlier a line falls, the better a method knows where it errs. The axis is "
        "logarithmic; examples of equal entropy share their error."
    )
    width = 3.6
    height = 2.6
    _aside: ClassVar[Floats] = np.logspace(-3, math.log10(0.9), 61)

    def panels(self) -> tuple[str, ...]:
        return ("Error of those left, %",) if self._curves() else ()

    def draw(self, panel: str, axes: Axes) -> None:
        for i, (method, errors) in enumerate(self._curves().items()):
            style = self.look.line(method) | {"markersize": 4}
            axes.plot(100 * self._aside, errors, markevery=(2 * i % 12, 12), **style)
        log_axis(axes, [0.1, 1, 10, 90])
        axes.set(xlim=(0.1, 100), xlabel="most uncertain put aside, %")
        axes.set_ylim(bottom=0)

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame({"put aside, %": 100 * self._aside} | self._curves()).iloc[::5].reset_index(drop=True)

    def _curves(self) -> dict[str, Floats]:
        found = {}
        for method in self.methods():
            jobs = [job.examples for job in self.jobs[method] if {"entropy", "correct"} <= job.examples.keys()]
            if jobs:
                errors = [risk_of_the_kept(job["entropy"], 1 - job["correct"], 1 - self._aside) for job in jobs]
                found[method] = 100 * np.mean(errors, axis=0)
        return found


def risk_of_the_kept(scores: Floats, losses: Floats, shares: Floats) -> Floats:
    """Mean loss of the given shares of the examples with the lowest scores, at least one; ties share their loss.

    Args:
        scores, losses: ``[N]``.
        shares: in (0, 1].
    """
    _, group = np.unique(scores, return_inverse=True)
    shared = (np.bincount(group, losses) / np.bincount(group))[np.sort(group)]
    kept = np.maximum(1, np.round(shares * len(scores)).astype(np.int64))
    means: Floats = np.cumsum(shared)[kept - 1] / kept
    return means


class ROC(Chart):
    """Receiver operating characteristic of predictive entropy, for data from outside against test data."""

    title = "Detecting data from elsewhere"
    caption = (
        "Share of the outside data that is flagged against the share of test data wrongly flagged, over all thresholds "
        "of the predictive entropy H(p̄); mean over seeds. The axis is logarithmic, for the left is where detectors are "
        "used. Dashed: chance. The area below a line, on a linear axis, is the AUROC."
    )
    width = 3.6
    height = 2.6
    _grid: ClassVar[Floats] = np.logspace(-3, 0, 61)

    def panels(self) -> tuple[str, ...]:
        names = {
            key for jobs in self.jobs.values() for job in jobs for key in job.examples if "entropy" in job.examples
        }
        return tuple(f"Out: {name[8:]}" for name in sorted(names) if name.startswith("entropy/"))

    def draw(self, panel: str, axes: Axes) -> None:
        axes.plot(self._grid, self._grid, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        for i, (method, flagged) in enumerate(self._curves(panel).items()):
            style = self.look.line(method) | {"markersize": 4}
            axes.plot(self._grid, flagged, markevery=(2 * i % 12, 12), **style)
        log_axis(axes, [0.001, 0.01, 0.1, 1])
        axes.set(xlim=(1e-3, 1.1), ylim=(-0.02, 1.02), xlabel="test data flagged", ylabel="outside data flagged")

    def frame(self) -> pd.DataFrame:
        parts = [
            pd.DataFrame({"data": panel, "test data flagged": self._grid} | self._curves(panel)).iloc[::5]
            for panel in self.panels()
        ]
        return pd.concat(parts) if parts else pd.DataFrame()

    def _curves(self, panel: str) -> dict[str, Floats]:
        key = f"entropy/{panel.removeprefix('Out: ')}"
        found = {}
        for method in self.methods():
            jobs = [job.examples for job in self.jobs[method] if {"entropy", key} <= job.examples.keys()]
            if jobs:
                curves = [np.interp(self._grid, *roc_curve(job["entropy"], job[key])) for job in jobs]
                found[method] = np.mean(curves, axis=0)
        return found


def roc_curve(inside: Floats, outside: Floats) -> tuple[Floats, Floats]:
    """Shares of the scores ``inside`` and ``outside`` at or above every threshold, both rising from 0 to 1."""
    thresholds = np.unique(np.concatenate([inside, outside]))[::-1]
    flagged = [1 - np.searchsorted(np.sort(scores), thresholds) / len(scores) for scores in (inside, outside)]
    return np.concatenate([[0.0], flagged[0]]), np.concatenate([[0.0], flagged[1]])


class Diversity(Chart):
    """Weight diversity per layer, and beside it what keeps it honest."""

    title = "Diversity of the networks"
    caption = (
        "Norm spread is std / mean of the L2 norms of the weight samples (the HyperGAN paper's measure). It can "
        "mislead: one network randomly rescaled has any spread, a hundred permutations of one network have none. So "
        "beside it stand the mean distance between two samples, ‖w_i − w_j‖ / √(‖w_i‖‖w_j‖), their cosine, and the "
        "share of pairs of networks that disagree on an input. None of these is a target. Mean over seeds."
    )
    width = 2.5
    height = 2.4
    reading = "points"
    _prefixes: ClassVar[Mapping[str, str]] = {
        "Norm spread of weights": "weight_diversity/",
        "Distance between weights": "weight_distance/",
        "Cosine between weights": "weight_cosine/",
    }
    _function = "Disagreement of predictions"

    def panels(self) -> tuple[str, ...]:
        shown = [panel for panel in self._prefixes if self._table(panel)]
        return (*shown, *([self._function] if self._table(self._function) else []))

    def methods(self) -> list[str]:
        """Only methods with several networks have a diversity."""
        return [m for m in super().methods() if any((job.record.get("networks") or 0) > 1 for job in self.jobs[m])]

    def draw(self, panel: str, axes: Axes) -> None:
        table = self._table(panel)
        places = list(dict.fromkeys(place for values in table.values() for place in values))
        for i, (method, values) in enumerate(table.items()):
            apart = min(0.12, 0.8 / len(table))
            x = [places.index(place) + apart * (i - (len(table) - 1) / 2) for place in values]
            style = self.look.line(method) | {"linestyle": "none", "markersize": 6}
            axes.plot(x, list(values.values()), **style)
        axes.xaxis.set_major_locator(FixedLocator(range(len(places))))
        axes.xaxis.set_major_formatter(FixedFormatter(places))
        crowded = max(map(len, places)) * len(places) > 30
        axes.tick_params(axis="x", labelrotation=30 if crowded else 0)
        if crowded:
            for label in axes.get_xticklabels():
                label.set_horizontalalignment("right")
                label.set_rotation_mode("anchor")
        axes.set_xlim(-0.6, len(places) - 0.4)
        axes.margins(y=0.12)
        if panel != "Cosine between weights":
            axes.set_ylim(bottom=0)
        axes.grid(visible=False, axis="x")

    def frame(self) -> pd.DataFrame:
        rows = [
            (
                panel,
                place,
                *(self._table(panel).get(method, {}).get(place, math.nan) for method in self.methods()),
            )
            for panel in self.panels()
            for place in dict.fromkeys(place for values in self._table(panel).values() for place in values)
        ]
        return pd.DataFrame(rows, columns=["measure", "where", *self.methods()])

    def _table(self, panel: str) -> dict[str, dict[str, float]]:
        """Method → layer or data set → mean over seeds."""
        table: dict[str, dict[str, float]] = {}
        for method in self.methods():
            values: dict[str, list[float]] = {}
            for job in self.jobs[method]:
                for row in job.record.get("metrics") or ():
                    place = self._place(panel, row["name"])
                    if place and row["value"] is not None:
                        values.setdefault(place, []).append(row["value"])
            if values:
                table[method] = {place: float(np.mean(found)) for place, found in values.items()}
        return table

    def _place(self, panel: str, name: str) -> str:
        if panel == self._function:
            return "test" if name == "disagreement" else rest_after(name, "disagreement/")
        return rest_after(name, self._prefixes[panel])
