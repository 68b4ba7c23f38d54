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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, ClassVar

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from bayes_bench.analysis import Evidence

INK, MUTED, GRID, SHADE, PAPER = "#1b1f24", "#5f6874", "#e2e5e9", "#eef0f3", "#ffffff"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#b8860b", "#56b4e9", "#882255", "#6b6b6b")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GLYPHS = ("●", "■", "▲", "◆", "▼", "✚", "✖", "★")
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


def std_of(values: Iterable[float]) -> float:
    """Standard deviation over seeds (divisor n − 1), NaN for one."""
    array = np.fromiter(values, dtype=np.float64)
    return float(array.std(ddof=1)) if len(array) > 1 else math.nan


def short(value: float, position: float | None = None) -> str:
    """20,000 as 20 k and 3,000,000 as 3 M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g} {letter}"
    return f"{value:g}"


def rest_after(text: str, prefix: str) -> str:
    return text.removeprefix(prefix) if text.startswith(prefix) else ""


def range_of(arrays: Sequence[NDArray[Any]]) -> tuple[float, float]:
    return min(float(a.min()) for a in arrays), max(float(a.max()) for a in arrays)


def log_axis(axes: Axes, ticks: Sequence[float]) -> None:
    """A logarithmic x axis with these ticks alone, in plain numbers."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
