"""The images that methods find least and most uncertain."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from bayes_bench.analysis.evidence import Images
from bayes_bench.report.charts.base import INK, MUTED, Chart

SHOWN = 4
"""Images of each kind in a row."""
SIDE, GAP, HALVES, LINE, ROW = 30.0, 4.0, 16.0, 11.0, 66.0
"""Of the drawing in units of its own: an image, the gap to the next, that between least and most, a line, a row."""
WIDTH = 2 * SHOWN * SIDE + 2 * (SHOWN - 1) * GAP + HALVES
WRONG = "#d55e00"


@dataclass(frozen=True)
class Shown:
    """One image in its place: ``x``, ``y`` of its left upper corner."""

    x: float
    y: float
    pixels: NDArray[np.uint8]
    label: str
    entropy: float
    title: str
    wrong: bool


class Gallery(Chart):
    """Per method a row for every set: least uncertain on the left, most uncertain on the right."""

    title = "Images a method is most and least sure of"
    caption = (
        f"Of the first seed, the {SHOWN} images of lowest (left) and of highest predictive entropy H(p̄) (right), with "
        "the predicted class and the entropy in nats; wrong predictions are marked ✗. To be sure of images from "
        "outside is overconfidence; test images it is unsure of should be hard for people, too."
    )
    width = 4.4
    by_colour = False
    reading = "nothing"

    def panels(self) -> tuple[str, ...]:
        return tuple(m for m in self.methods() if self._images(m))

    def describe(self, panel: str) -> str:
        return f"Images that {panel} is most and least sure of. Classes and entropies are in the table below."

    def draw(self, panel: str, axes: Axes) -> None:
        images = self._images(panel)
        for row, (name, found) in enumerate(images.items()):
            for x, text in _headings(name):
                axes.text(x, row * ROW + LINE - 2, text, fontsize=7.5, color=MUTED)
            for one in self._row(panel, found, row):
                wide, high = _size(one.pixels)
                shade: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255} if len(one.pixels) == 1 else {}
                axes.imshow(
                    one.pixels[0] if len(one.pixels) == 1 else one.pixels.transpose(1, 2, 0),
                    extent=(one.x, one.x + wide, one.y + high, one.y),
                    interpolation="none",
                    **shade,
                )
                middle = one.x + SIDE / 2
                colour = WRONG if one.wrong else INK
                axes.text(middle, one.y + SIDE + 8, one.label, fontsize=7, ha="center", color=colour)
                axes.text(middle, one.y + SIDE + 17, f"{one.entropy:.2f}", fontsize=6.5, ha="center", color=MUTED)
        axes.set(xlim=(-1, WIDTH + 1), ylim=(ROW * len(images), 0))
        axes.set_axis_off()

    def svg(self, panel: str, prefix: str = "") -> str:
        """Written by hand, with one embedded image for a row: a tenth of what Matplotlib makes of it."""
        parts = []
        for row, (name, found) in enumerate(self._images(panel).items()):
            shown, strip = list(self._row(panel, found, row)), f"{prefix}{row}"
            address = _data_address(np.concatenate([one.pixels for one in shown], axis=2))
            wide, high = _size(shown[0].pixels)
            size = f'width="{wide * len(shown):g}" height="{high:g}" preserveAspectRatio="none"'
            clip = f'<clipPath id="{strip}-clip"><rect width="{wide:g}" height="{high:g}"/></clipPath>'
            parts.append(f'<defs><image id="{strip}" {size} href="{address}"/>{clip}</defs>')
            parts += [
                f'<text x="{x:g}" y="{row * ROW + LINE - 2:g}" class="muted">{escape(text)}</text>'
                for x, text in _headings(name)
            ]
            for i, one in enumerate(shown):
                look = ' class="wrong"' if one.wrong else ""
                parts.append(
                    f'<g transform="translate({one.x:g} {one.y:g})"><title>{escape(one.title)}</title>'
                    f'<g clip-path="url(#{prefix}{row}-clip)"><use href="#{strip}" x="{-i * wide:g}"/></g>'
                    f'<text x="{SIDE / 2:g}" y="{SIDE + 8:g}"{look}>{escape(one.label)}</text>'
                    f'<text x="{SIDE / 2:g}" y="{SIDE + 17:g}" class="muted">{one.entropy:.2f}</text></g>'
                )
        box = f"0 0 {WIDTH:g} {ROW * len(self._images(panel)):g}"
        label = escape(self.describe(panel), quote=True)
        return f'<svg viewBox="{box}" role="img" aria-label="{label}" class="gallery">{"".join(parts)}</svg>'

    def frame(self) -> pd.DataFrame:
        rows = []
        for method in self.panels():
            classes = self._classes(method)
            for name, found in self._images(method).items():
                for i in _shown(found):
                    truth = "" if found.truth is None else classes[found.truth[i]]
                    kind = "least" if i < len(found.index) // 2 else "most"
                    predicted, number = classes[found.predicted[i]], int(found.index[i])
                    rows.append((method, _set(name), kind, number, predicted, truth, float(found.entropy[i])))
        return pd.DataFrame(
            rows, columns=["method", "data", "uncertain", "image number", "predicted", "true", "entropy, nats"]
        )

    def _images(self, method: str) -> dict[str, Images]:
        """Of the first seed."""
        return {name: found for name, found in self.jobs[method][0].images.items() if len(found.index)}

    def _classes(self, method: str) -> list[str]:
        return [str(name) for name in self.jobs[method][0].record["data"]["classes"]]

    def _row(self, method: str, found: Images, row: int) -> Iterator[Shown]:
        classes, places = self._classes(method), _shown(found)
        for place, i in enumerate(places):
            most = 2 * place >= len(places)
            column = place - len(places) // 2 if most else place
            x = column * (SIDE + GAP) + (_middle() if most else 0.0)
            predicted = classes[found.predicted[i]]
            wrong = found.truth is not None and bool(found.truth[i] != found.predicted[i])
            title = f"image {found.index[i]}: predicted {predicted}"
            if found.truth is not None:
                title += f", truth {classes[found.truth[i]]}"
            label = f"✗ {predicted}" if wrong else predicted
            label = label if len(label) <= 6 else f"{label[:5]}…"
            entropy = float(found.entropy[i])
            yield Shown(x, row * ROW + LINE, found.pixels[i], label, entropy, f"{title}, {entropy:.3f} nats", wrong)


def _shown(found: Images) -> list[int]:
    """The first of the least uncertain and the last of the most."""
    count = len(found.index)
    few = min(SHOWN, count // 2)
    return [*range(few), *range(count - few, count)]


def _size(pixels: NDArray[np.uint8]) -> tuple[float, float]:
    """Width and height of an image in the drawing: its longer side is ``SIDE``."""
    high, wide = pixels.shape[1:]
    return SIDE * wide / max(high, wide), SIDE * high / max(high, wide)


def _middle() -> float:
    """Where the most uncertain begin."""
    return SHOWN * SIDE + (SHOWN - 1) * GAP + HALVES


def _headings(name: str) -> list[tuple[float, str]]:
    return [(0.0, f"{_set(name)}: least uncertain"), (_middle(), "most uncertain")]


def _set(name: str) -> str:
    return "Test data" if name == "test" else f"Out: {name.removeprefix('ood/')}"


def _data_address(pixels: NDArray[np.uint8]) -> str:
    """The image within the page: PNG for grey, JPEG for colours."""
    from PIL import Image

    grey = len(pixels) == 1
    image = Image.fromarray(pixels[0] if grey else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    buffer = io.BytesIO()
    if grey:
        image.save(buffer, format="png", optimize=True)
    else:
        image.save(buffer, format="jpeg", quality=85)
    content = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{'png' if grey else 'jpeg'};base64,{content}"
