"""Capital letters at 8×8 pixels: the stand-in for notMNIST beside scikit-learn's digits.

The glyphs are outlines of text fonts that come with matplotlib. Each is turned, sheared, stretched and
shifted a little, drawn as a 32×32 bitmap, and its set pixels are counted in blocks of 4×4, which gives the
17 grey levels of the digits the way the digits got them. The weight of the strokes is set so that the ink
of the images is distributed like the ink of the digits: neither mean intensity nor resolution tells letters
from digits.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bayes_bench.data.base import Inputs, Source, Split, Stream
from bayes_bench.errors import DataError
from bayes_bench.settings import Settings, setting

DRAW_SEED = 1901
DEFAULT_COUNT = 1000
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "cmr10",
    "cmss10",
    "cmtt10",
    "cmb10",
)
# Ink of the digits that are trained on: share of set pixels per image, at 21 evenly spaced quantiles.
DIGITS_INK = (
    *(0.2207, 0.2568, 0.2616, 0.2666, 0.2725, 0.2783, 0.2842, 0.2891, 0.2939, 0.2998, 0.3057),
    *(0.3096, 0.3145, 0.3193, 0.3232, 0.3284, 0.334, 0.3398, 0.3467, 0.3565, 0.3994),
)
# SHA-256 of the grey levels (uint8) of the first 1,000 images, the same with matplotlib 3.8, 3.10 and 3.11.
CHECKSUMS = {
    "A-J": "763b367678ab0732f40d29a31a3ded3359c5b1814d597660ba8abdfb655247e6",
    "K-T": "0bf461076ba0a6d5b01adbdfc10e14887f02300c612f018fe8581a675a8f1393",
}
STAND_IN = "a stand-in for notMNIST, not notMNIST: letters {letters} rendered at 8×8 from matplotlib's fonts"

BITMAP, LEVELS = 32, 16  # pixels a side before counting; a full block of 4×4
FINE = 64  # samples a side when outlines are filled
CURVE_STEPS = 6  # straight edges per curve of an outline


class LettersOptions(Settings):
    letters: Literal["A-J", "K-T"] = setting("A-J", "which ten letters")
    count: int = setting(DEFAULT_COUNT, "number of images; letters and fonts take turns", ge=10, le=100_000)


def inputs(options: LettersOptions, data_root: Path, split: Split) -> Inputs:
    """Letters ``[count, 1, 8, 8]`` in [0, 1] in steps of 1/16."""
    if split.input_shape != (1, 8, 8):
        raise DataError(f"letters are images of shape (1, 8, 8), but the task's inputs have {split.input_shape}")
    levels = render(options.letters, options.count)
    notes = [STAND_IN.format(letters=options.letters.replace("-", "–"))]
    if options.count == DEFAULT_COUNT and checksum(levels) != CHECKSUMS[options.letters]:
        notes.append(
            "the pixels differ from those of the reference results (another version of matplotlib or of its "
            "fonts); compare results of this set only with those of the same installation"
        )
    return Inputs((levels.astype(np.float32) / LEVELS)[:, None], tuple(notes))


def checksum(levels: np.ndarray) -> str:
    """SHA-256 of grey levels."""
    return hashlib.sha256(np.ascontiguousarray(levels, dtype=np.uint8).tobytes()).hexdigest()


def render(letters: str, count: int) -> np.ndarray:
    """Grey levels 0 … 16, uint8 ``[count, 8, 8]``; always the same for the same letters and count."""
    first, last = letters.split("-")
    alphabet = [chr(code) for code in range(ord(first), ord(last) + 1)]
    glyphs = [[_outline(font, letter) for font in FONTS] for letter in alphabet]
    jitter = Stream((DRAW_SEED, "letters", letters)).uniform(count, 7, low=-1.0)
    filled = np.empty((count, FINE, FINE), dtype=bool)
    for i in range(count):
        letter, font = i % len(alphabet), i // len(alphabet) % len(FONTS)
        filled[i] = _fill(*glyphs[letter][font], jitter[i])
    bitmaps = _set_ink(filled)
    block = BITMAP // 8
    levels: np.ndarray = bitmaps.reshape(count, 8, block, 8, block).sum((2, 4)).astype(np.uint8)
    return levels


def _outline(font: str, letter: str) -> tuple[np.ndarray, np.ndarray]:
    """Edges of a glyph, their starts and ends ``[2, E]`` (x, y upwards), the longer side of its box being 1.

    FT2Font reads the file directly (matplotlib's TextPath would first index all fonts of the machine) and in
    the font's own units, so that no version of matplotlib or FreeType rounds them in a way of its own.
    """
    import matplotlib as mpl
    from matplotlib import ft2font

    file = str(Path(mpl.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf")
    if hasattr(ft2font, "LoadFlags"):  # matplotlib 3.10 and later
        flags: Any = ft2font.LoadFlags.NO_SCALE
    else:
        flags = getattr(ft2font, "LOAD_NO_SCALE")  # noqa: B009 - today's type stubs do not know it
    # Before 3.11 the default factor of 8 would divide and round the horizontal coordinates.
    old = tuple(int(part) for part in mpl.__version__.split(".")[:2]) < (3, 11)
    options: dict[str, Any] = {"hinting_factor": 1} if old else {}
    face = ft2font.FT2Font(file, **options)
    face.set_size(96, 72)
    face.load_char(ord(letter), flags=flags)
    vertices, codes = face.get_path()
    starts, ends = _flatten(np.asarray(vertices, dtype=np.float64), np.asarray(codes))
    size = (starts.max(1) - starts.min(1)).max()
    return starts / size, ends / size


def _flatten(vertices: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Straight edges ``[2, E]`` of an outline of lines and Bézier curves in matplotlib's path codes."""
    move, line, quadratic, cubic, close = 1, 2, 3, 4, 79
    t = np.linspace(0.0, 1.0, CURVE_STEPS + 1)[:, None]
    starts, ends = [], []
    first = here = vertices[0]
    i = 0
    while i < len(codes):
        code, point = int(codes[i]), vertices[i]
        i += {quadratic: 2, cubic: 3}.get(code, 1)
        if code == move:
            first = here = point
            continue
        if code in (line, close):
            corners = np.stack([here, first if code == close else point])
        elif code == quadratic:
            corners = (1 - t) ** 2 * here + 2 * t * (1 - t) * point + t**2 * vertices[i - 1]
        else:
            corners = (1 - t) ** 3 * here + 3 * t * (1 - t) ** 2 * point
            corners = corners + 3 * t**2 * (1 - t) * vertices[i - 2] + t**3 * vertices[i - 1]
        starts.append(corners[:-1])
        ends.append(corners[1:])
        here = corners[-1]
    return np.concatenate(starts).T, np.concatenate(ends).T


def _fill(starts: np.ndarray, ends: np.ndarray, jitter: np.ndarray) -> np.ndarray:
    """One glyph, jittered and filled by the non-zero winding rule: bool ``[FINE, FINE]``, row 0 on top.

    ``jitter`` is seven numbers in [−1, 1): rotation, shear, width, height, size, shift in x and in y.
    """
    angle, shear = 0.2 * jitter[0], 0.15 * jitter[1]
    width, height = 0.86 + 0.08 * jitter[2], 0.94 + 0.06 * jitter[3]
    cosine, sine = np.cos(angle), np.sin(angle)
    matrix = np.array(
        [
            [cosine * width, (cosine * shear - sine) * height],
            [-sine * width, -(sine * shear + cosine) * height],  # minus: rows count downwards
        ]
    )
    starts, ends = matrix @ starts, matrix @ ends
    low, high = starts.min(1), starts.max(1)
    # Digits were scaled to the box they fill; so are letters, but for a little play.
    scale = FINE * (0.97 + 0.03 * jitter[4]) * min(1.0 / (high - low).max(), 1.0)
    shift = FINE * (0.5 + np.array([0.06, 0.03]) * jitter[5:7]) - scale * (low + high) / 2
    x0, y0 = starts * scale + shift[:, None]
    x1, y1 = ends * scale + shift[:, None]
    # An edge crosses the sample rows between its ends, and adds its direction to the winding number of all
    # samples right of the crossing.
    row = np.arange(FINE)[:, None] + 0.5
    rows, edge = np.nonzero((y0 <= row) != (y1 <= row))
    slope = (x1 - x0)[edge] / (y1 - y0)[edge]
    crossing = x0[edge] + (rows + 0.5 - y0[edge]) * slope
    column = np.clip(np.ceil(crossing - 0.5), 0, FINE).astype(np.int64)
    direction = np.where(y0[edge] < y1[edge], 1.0, -1.0)
    winding = np.bincount(rows * (FINE + 1) + column, weights=direction, minlength=FINE * (FINE + 1))
    inside: np.ndarray = winding.reshape(FINE, FINE + 1).cumsum(1)[:, :FINE] != 0
    return inside


def _set_ink(filled: np.ndarray) -> np.ndarray:
    """Bitmaps bool ``[N, 32, 32]`` whose ink follows the digits': strokes are thickened or thinned.

    The filled glyphs are blurred and cut at the level that leaves the wanted number of pixels. The glyph with
    least ink of its own gets the least, so letters keep their order from I to B. All in whole numbers: the
    same everywhere.
    """
    n = len(filled)
    step = FINE // BITMAP
    field = filled.reshape(n, BITMAP, step, BITMAP, step).sum((2, 4), dtype=np.int32)
    own_ink = field.sum((1, 2))
    for _ in range(2):
        field = _blur(_blur(field, 1), 2)
    rank = np.empty(n, dtype=np.int64)
    rank[np.argsort(own_ink, kind="stable")] = np.arange(n)
    quantiles = np.linspace(0.0, 1.0, len(DIGITS_INK))
    ink = np.interp((rank + 0.5) / n, quantiles, DIGITS_INK)
    wanted = np.rint(ink * BITMAP**2).astype(np.int64)
    flat = field.reshape(n, -1)
    level = np.take_along_axis(np.sort(flat, axis=1)[:, ::-1], wanted[:, None] - 1, axis=1)
    bitmaps: np.ndarray = (flat >= level).reshape(n, BITMAP, BITMAP)
    return bitmaps


def _blur(field: np.ndarray, axis: int) -> np.ndarray:
    """Binomial filter 1 4 6 4 1 (times 16) along one axis; outside is empty."""
    field = np.moveaxis(field, axis, 0)
    result = 6 * field
    for distance, tap in ((1, 4), (2, 1)):
        result[distance:] += tap * field[:-distance]
        result[:-distance] += tap * field[distance:]
    return np.moveaxis(result, 0, axis)


SOURCE = Source(
    name="letters",
    summary="capital letters A–J or K–T at 8×8 in the style of the digits (a stand-in for notMNIST)",
    InputOptions=LettersOptions,
    inputs=inputs,
)
