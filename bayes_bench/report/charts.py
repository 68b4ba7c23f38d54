"""Figures: each is an object with ``plot()`` (a Matplotlib figure) and ``frame()`` (the table behind it).

A figure consists of panels, small enough to stand below each other on a phone. The colours of methods are
safe for colour-blind readers (after Okabe and Ito); a marker shape says the same for print.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, ClassVar

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from bayes_bench.analysis import CURVE_SIZES, Evidence, metric_value
from bayes_bench.metrics.base import Floats, regions
from bayes_bench.metrics.calibration import BINS, bin_index

INK, MUTED, GRID, SHADE, PAPER = "#1b1f24", "#5f6874", "#e2e5e9", "#eef0f3", "#ffffff"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#b8860b", "#56b4e9", "#882255", "#6b6b6b")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GLYPHS = ("●", "■", "▲", "◆", "▼", "✚", "✖", "★")
MOST_LAYERS = 6
"""Layers with a panel of their own; of deeper networks the curves show all weights together."""
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
# Sentinel colours of the drawings become variables of the page's style sheet, which knows a dark variant.
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    SHADE: "--shade",
    PAPER: "--paper",
    **{colour: f"--c{i}" for i, colour in enumerate(COLOURS)},
}
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "svg.fonttype": "none",
    "svg.hashsalt": "bayes-bench",
    "path.simplify": True,
    "text.parse_math": False,
}
KNOWN_FUNCTIONS: Mapping[str, Callable[[Floats], Floats]] = {"cubic": lambda x: x**3}
"""The noise-free function of data sources that have one."""

Jobs = Mapping[str, Sequence[Evidence]]
"""Method (as tables call it) → its finished jobs, one per seed."""


@dataclass(frozen=True)
class Look:
    """Colour, marker and dash of every method, the same in all figures of a page."""

    methods: tuple[str, ...]

    def index(self, method: str) -> int:
        return self.methods.index(method)

    def colour(self, method: str) -> str:
        return COLOURS[self.index(method) % len(COLOURS)]

    def variable(self, method: str) -> str:
        return VARIABLES[self.colour(method)]

    def marker(self, method: str) -> str:
        return MARKERS[self.index(method) % len(MARKERS)]

    def glyph(self, method: str) -> str:
        return GLYPHS[self.index(method) % len(GLYPHS)]

    def line(self, method: str) -> dict[str, Any]:
        """Keyword arguments of ``Axes.plot``; beyond eight methods the dash tells them apart."""
        dash = DASHES[self.index(method) // len(COLOURS) % len(DASHES)]
        return {"color": self.colour(method), "linestyle": dash, "marker": self.marker(method)}


@dataclass(frozen=True)
class Chart(ABC):
    """One figure.

    Attributes:
        title: heading, in words.
        caption: what is drawn and what a reader must know.
        width, height: of one panel, in inches.
        by_colour: whether the colour tells the methods apart, so that a legend is needed.
    """

    jobs: Jobs
    look: Look
    title: ClassVar[str]
    caption: ClassVar[str]
    width: ClassVar[float] = 3.5
    height: ClassVar[float] = 2.5
    by_colour: ClassVar[bool] = True

    @abstractmethod
    def panels(self) -> tuple[str, ...]:
        """Names of the panels; none where there is nothing to show."""

    @abstractmethod
    def draw(self, panel: str, axes: Axes) -> None:
        """Draw one panel."""

    @abstractmethod
    def frame(self) -> pd.DataFrame:
        """The numbers behind the figure."""

    def describe(self, panel: str) -> str:
        """The panel in words, for readers who do not see it."""
        return f"{self.title}, {panel}: {', '.join(self.methods())}. The numbers are in the table below."

    def methods(self) -> list[str]:
        """Methods that the figure shows, in the page's order."""
        return [method for method in self.look.methods if self.jobs.get(method)]

    def plot(self, panel: str | None = None) -> Figure:
        """One panel, or all with their names above, in rows of at most four."""
        names = self.panels() if panel is None else (panel,)
        columns = min(4, max(1, len(names)))
        rows = math.ceil(len(names) / columns)
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=(self.width * columns, self.height * max(1, rows)), layout="constrained")
            for i, name in enumerate(names):
                axes = figure.add_subplot(rows, columns, i + 1)
                self.draw(name, axes)
                if panel is None:
                    axes.set_title(name, fontsize=9, color=INK, loc="left", pad=14)
        return figure

    def svg(self, panel: str, prefix: str = "") -> str:
        """One panel as an SVG element for an HTML page; ``prefix`` keeps its ids apart from other drawings'."""
        figure = self.plot(panel)
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)  # type: ignore[union-attr, call-arg]
        buffer = io.StringIO()
        salt = {"svg.hashsalt": f"{type(self).__name__}/{panel}"}
        with mpl.rc_context(STYLE | salt), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a label of a record from elsewhere may leave no space for a plot
            empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            figure.savefig(buffer, format="svg", transparent=True, metadata=empty)
        return inline_svg(buffer.getvalue(), self.describe(panel), prefix)


def inline_svg(document: str, description: str, prefix: str = "") -> str:
    """Turn Matplotlib's SVG document into an element: no metadata, addresses, fonts or size of its own.

    Colours become variables of the page, and screen readers get ``description``.
    """
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]+)"', svg)
    assert box is not None, "Matplotlib writes a viewBox"
    opening = f'<svg viewBox="{box[1]}" role="img" aria-label="{escape(description, quote=True)}">'
    svg = opening + svg[svg.index(">") + 1 :]
    svg = re.sub(r'<g id="[^"]*"', "<g", svg).replace("xlink:href=", "href=")
    svg = re.sub(r'(\bid="|\bhref="#|url\(#)', rf"\g<1>{prefix}", svg)
    svg = re.sub(r"font: (?:[a-z]+ )*([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r"#[0-9a-f]{6}\b", lambda match: _variable(match[0]), svg)
    svg = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\d\.\d{2})\d+", r"\1", tag[0]), svg)
    return re.sub(r"\n\s*", "\n", svg).strip()


def _variable(colour: str) -> str:
    return f"var({VARIABLES[colour]})" if colour in VARIABLES else colour


# Classification -------------------------------------------------------------------------------------------


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
            axes.errorbar(
                rows["networks"],
                rows["accuracy %"],
                yerr=rows["std"].fillna(0),
                elinewidth=0.8,
                **self.look.line(method),
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50, 100]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
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
                    rows.append((method, k, float(np.mean(values)), _std(values), len(values)))
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
            spread = f" ± {_std(values):.3f}" if len(values) > 1 else ""
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
        "Share of images whose predictive entropy H(p̄) is at most the value on the axis, in nats on [0, ln C]; all "
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
        axes.set(xlim=(0, grid[-1]), ylim=(-0.02, 1.02), xlabel="entropy, nats", ylabel="share of images")
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
            x = [places.index(place) + 0.12 * (i - (len(table) - 1) / 2) for place in values]
            style = self.look.line(method) | {"linestyle": "none", "markersize": 6}
            axes.plot(x, list(values.values()), **style)
        axes.set_xticks(range(len(places)), places)
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
            return "test" if name == "disagreement" else _after(name, "disagreement/")
        return _after(name, self._prefixes[panel])


# Regression -----------------------------------------------------------------------------------------------


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
        axes.plot(first["x"], first["mean"], color=colour)
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
        core_low, core_high = _range(core or bands)
        low, high = _range(core + bands)
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


def _range(arrays: Sequence[NDArray[Any]]) -> tuple[float, float]:
    return min(float(a.min()) for a in arrays), max(float(a.max()) for a in arrays)


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


# Training and cost ----------------------------------------------------------------------------------------


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
            axes.fill_between(grid, mean - std, mean + std, color=self.look.colour(method), alpha=0.15, linewidth=0)
            axes.plot(grid, mean, markevery=(4 * i % 15, 15), **style | {"linewidth": 1.5, "markersize": 3.5})
            for x, y in series:
                after = x >= grid[-1]
                if after.sum() > 1:
                    axes.plot(x[after], y[after], **style | {"linestyle": ":", "linewidth": 0.9, "marker": ""})
        axes.set_xlabel("gradient evaluations")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(_short)
        axes.set_xlim(0, max(float(x[-1]) for x, _ in everything))
        quality = panel in self._of_quality
        low, high = _settled(everything) if quality else _range([y for _, y in everything])
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
                    grid, mean, std = _over_seeds(series, 11)
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


def _over_seeds(series: Sequence[tuple[Floats, Floats]], points: int = 61) -> tuple[Floats, Floats, Floats]:
    """Mean and standard deviation over seeds (0 for one) on a common grid, as far as all of them go."""
    grid = np.linspace(max(x[0] for x, _ in series), min(x[-1] for x, _ in series), points)
    values = np.stack([np.interp(grid, x, y) for x, y in series])
    spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(points)
    return grid, values.mean(axis=0), spread


def _settled(series: Sequence[tuple[Floats, Floats]]) -> tuple[float, float]:
    """Lowest and highest value after the first quarter of the budget, where fits begin anywhere."""
    start = 0.25 * max(float(x[-1]) for x, _ in series)
    after = [y[x >= start] for x, y in series]
    return _range([y for y in after if y.size] or [y for _, y in series])


class QualityCost(Chart):
    """Negative log likelihood against what it cost, by both measures of cost."""

    title = "Quality against cost"
    caption = (
        "Test NLL (lower is better) against gradient evaluations of the target network, and against training seconds, "
        "which also count discriminators, flows and generators. Dots: mean over seeds, bars: standard deviation; "
        "dotted: the methods that no other beats in both."
    )
    width = 3.4
    height = 2.6
    _costs: ClassVar[Mapping[str, str]] = {
        "NLL against evaluations": "evaluations_spent",
        "NLL against training seconds": "fit_seconds",
    }

    def panels(self) -> tuple[str, ...]:
        return tuple(panel for panel in self._costs if not self._points(panel).empty)

    def draw(self, panel: str, axes: Axes) -> None:
        points = self._points(panel)
        for method, row in zip(points["method"], points.drop(columns="method").to_numpy(float), strict=True):
            style = self.look.line(method) | {"linestyle": "none", "markersize": 7}
            axes.errorbar(row[0], row[2], xerr=row[1], yerr=row[3], elinewidth=0.9, **style)
        front = points.sort_values(["cost", "nll"])
        front = front[front["nll"] <= front["nll"].cummin()]
        axes.plot(front["cost"], front["nll"], color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1,
                  drawstyle="steps-post")  # fmt: skip
        axes.set(
            xlabel="gradient evaluations" if "evaluations" in panel else "training seconds",
            ylabel="NLL, nats",
        )
        if points["cost"].max() > 30 * points["cost"].min() > 0:
            axes.set_xscale("log")
        elif points["cost"].min() >= 0:
            axes.set_xlim(0, 1.12 * float((points["cost"] + points["cost_std"]).max()) or 1)
        if axes.get_xscale() == "linear":
            axes.xaxis.set_major_locator(MaxNLocator(5))
        if "evaluations" in panel:
            axes.xaxis.set_major_formatter(_short)
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
                spread = (_std(cost), _std(nll)) if len(pairs) > 1 else (0.0, 0.0)
                rows.append((method, cost.mean(), spread[0], nll.mean(), spread[1], len(pairs)))
        return pd.DataFrame(rows, columns=["method", "cost", "cost_std", "nll", "nll_std", "seeds"])


def _std(values: Iterable[float]) -> float:
    """Standard deviation over seeds (divisor n − 1), NaN for one."""
    array = np.fromiter(values, dtype=np.float64)
    return float(array.std(ddof=1)) if len(array) > 1 else math.nan


def _short(value: float, position: float | None = None) -> str:
    """20,000 as 20 k and 3,000,000 as 3 M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g} {letter}"
    return f"{value:g}"


def _after(text: str, prefix: str) -> str:
    return text.removeprefix(prefix) if text.startswith(prefix) else ""


CHARTS: Mapping[str, tuple[type[Chart], ...]] = {
    "classification": (AccuracyCurve, EntropyCDF, Reliability, Diversity, QualityCost, Training),
    "regression": (Curves, EpistemicSpread, QualityCost, Diversity, Training),
}
