"""Figures: each is an object with ``plot()`` (a Matplotlib figure) and ``frame()`` (the table behind it).

A figure consists of panels, small enough to stand below each other on a phone. The colours of methods are
safe for colour-blind readers (after Okabe and Ito); a marker shape says the same for print.
"""

from __future__ import annotations

import io
import json
import math
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from bayes_bench.analysis.evidence import Evidence

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

    def shape(self, method: str) -> int:
        """Index of its marker; one further every eight methods, so that no two share both colour and shape."""
        index = self.index(method)
        return (index + index // len(COLOURS)) % len(MARKERS)

    def marker(self, method: str) -> str:
        return MARKERS[self.shape(method)]

    def glyph(self, method: str) -> str:
        return GLYPHS[self.shape(method)]

    def line(self, method: str) -> dict[str, Any]:
        """Keyword arguments of ``Axes.plot``; beyond eight methods, where colours come again, the dash is another."""
        dash = DASHES[self.index(method) // len(COLOURS) % len(DASHES)]
        return {"color": self.colour(method), "linestyle": dash, "marker": self.marker(method), "gid": self.gid(method)}

    def gid(self, method: str, part: Literal["values", "spread"] = "values") -> str:
        """What tells the page whose a part of a drawing is: values can be read off, the spread only hides with them."""
        return f"{part}-{self.index(method)}"


@dataclass(frozen=True)
class Chart(ABC):
    """One figure.

    Attributes:
        title: heading, in words.
        caption: what is drawn and what a reader must know.
        width, height: of one panel, in inches.
        by_colour: whether the colour tells the methods apart, so that a legend is needed.
        reading: what the page reads off under a pointer: all lines at one place of the axis, or the nearest point.
    """

    jobs: Jobs
    look: Look
    title: ClassVar[str]
    caption: ClassVar[str]
    width: ClassVar[float] = 3.5
    height: ClassVar[float] = 2.5
    by_colour: ClassVar[bool] = True
    reading: ClassVar[Literal["lines", "points", "nothing"]] = "lines"

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
            scales = {} if self.reading == "nothing" else _scales(figure) | {"reading": self.reading}
        return inline_svg(buffer.getvalue(), self.describe(panel), prefix, scales)

    def errorbar(self, axes: Axes, method: str, x: Any, y: Any, style: Mapping[str, Any], **errors: Any) -> None:
        """``Axes.errorbar`` whose bars belong to the method, too."""
        for bars in axes.errorbar(x, y, **errors, **style)[2]:
            bars.set_gid(self.look.gid(method, "spread"))


def _scales(figure: Figure) -> dict[str, str]:
    """How the page gets from places in the drawing to values.

    ``x`` and ``y``: ends of the axis in units of the SVG, the values there, ``log`` or ``linear``, as a JSON list;
    ``names`` of a categorical x axis; ``label`` of the x axis.
    """
    (axes,) = figure.axes
    box, (width, height) = axes.get_position(), 72 * figure.get_size_inches()

    def scale(axis: Axis, first: float, last: float) -> str:
        return json.dumps([round(first, 2), round(last, 2), *map(float, axis.get_view_interval()), axis.get_scale()])

    found = {
        "x": scale(axes.xaxis, box.x0 * width, box.x1 * width),
        "y": scale(axes.yaxis, (1 - box.y0) * height, (1 - box.y1) * height),
        "label": axes.get_xlabel(),
    }
    if isinstance(formatter := axes.xaxis.get_major_formatter(), FixedFormatter):
        found["names"] = json.dumps(list(formatter.seq), ensure_ascii=False)
    return found


def inline_svg(document: str, description: str, prefix: str = "", facts: Mapping[str, str] | None = None) -> str:
    """Turn Matplotlib's SVG document into a small element: no metadata, addresses, fonts or size of its own.

    Colours become variables of the page, and screen readers get ``description``; ``facts`` become its data attributes,
    and the parts of methods (``Look.gid``) have ``data-method``, their number, and ``data-part``.
    """
    drawn = ET.fromstring(document[document.index("<svg") :])
    named = set(re.findall(r'(?:url\(|href=")#([\w-]+)', document))
    for element in drawn.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.tail = None
        element.text = element.text if element.tag == "text" else None
        _tidy(element.attrib, prefix, named)
    _unwrap(drawn)
    attributes = {"viewBox": drawn.get("viewBox", ""), "role": "img", "aria-label": description}
    attributes |= {f"data-{name}": text for name, text in (facts or {}).items()}
    drawn.attrib.clear()
    drawn.attrib.update(attributes)
    return ET.tostring(drawn, encoding="unicode")


def _tidy(attributes: dict[str, str], prefix: str, named: Collection[str]) -> None:
    """Of one element: what the page needs, in few characters; ids where something refers to them."""
    identifier = attributes.pop("id", "")
    if part := re.fullmatch(r"(values|spread)-(\d+)", identifier):
        attributes |= {"data-part": part[1], "data-method": part[2]}
    elif (identifier and "d" in attributes) or identifier.startswith(("p", "C")):
        attributes["id"] = prefix + identifier
    if "{http://www.w3.org/1999/xlink}href" in attributes:
        attributes["href"] = attributes.pop("{http://www.w3.org/1999/xlink}href")
    for name, text in attributes.items():
        if name == "href" and text.startswith("#"):
            text = f"#{prefix}{text[1:]}"
        elif name == "style":
            text = re.sub(r"font: (?:[a-z]+ )*([\d.]+px)[^;]*", r"font-size: \1", text)
            text = re.sub(r"font-family: [^;]*;? ?", "", text)
            text = re.sub(r"#[0-9a-f]{6}\b", lambda match: _variable(match[0]), text)
        elif name == "transform":
            text = re.sub(r"rotate\(-0 [^)]*\)", "", text)
        if name != "id" and not name.startswith("data-") and not text.startswith("data:"):
            text = " ".join(re.sub(r"(\d\.\d{2})\d+", r"\1", text.replace("url(#", f"url(#{prefix}")).split())
        attributes[name] = text
    if not attributes.get("transform", "there"):
        del attributes["transform"]


def _unwrap(element: ET.Element) -> None:
    """Drop what is not seen: groups that group nothing, style sheets, and shapes without fill and stroke."""
    kept: list[ET.Element] = []
    for child in list(element):
        _unwrap(child)
        if child.tag in ("style", "metadata") or child.get("style") == "fill: none":
            continue
        if child.tag in ("g", "defs") and not len(child):
            continue
        kept += child if child.tag == "g" and not child.attrib else [child]
    element[:] = kept


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
