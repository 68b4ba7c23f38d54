"""A user's own images: ``root/class/*.png`` (also jpg, bmp, …), all of one size.

Whatever mode and depth an image has, 0 is black and 1 is white: 16 bits are read as such, orientation tags are
followed, and what is transparent lets a stated ground show. Where that cannot be told, the image is refused.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from bayes_bench.data.base import (
    Arrays,
    FractionOptions,
    Inputs,
    Kind,
    Source,
    Split,
    check_size,
    split_by_fractions,
)
from bayes_bench.data.files import check_file
from bayes_bench.errors import DataError, UsageError, counted
from bayes_bench.settings import Settings, setting

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""By content: Pillow would hand a PostScript file that is called .png to another program."""
MOST_PIXELS = 64_000_000
WHITE = 255.0
"""In 8 bits."""
LEFTOVERS = ("._", "__MACOSX")
"""How names begin of what another system's archiver leaves beside the files themselves."""
NOT_COUNTED = (".", "Thumbs.db", "desktop.ini")
"""How names begin of what file managers leave: nobody took them for images."""
DEEP = ("I;16", "I;16B", "I;16L", "I;16N")
MOST_REASONS = 5
"""For which files are not used, in a note."""
Ground = Literal["white", "black"]
Size = tuple[Annotated[int, Field(gt=0, le=100_000)], Annotated[int, Field(gt=0, le=100_000)]]


def _ground() -> Ground:
    ground: Ground = setting("white", "what shows where an image is transparent: 'white' or 'black'")
    return ground


class ImageFolderOptions(FractionOptions):
    path: Path = setting(..., "folder with one folder of images per class; relative to the suite's file")
    test_path: Path | None = setting(None, "a folder of test images with the same classes")
    size: Size | None = setting(None, "[height, width] to bring all images to; not given: they must be equal")
    channels: Literal[1, 3] = setting(3, "1 reads grey levels, 3 reads colours")
    ground: Ground = _ground()


class ImageInputOptions(Settings):
    path: Path = setting(..., "folder of images, at any depth; resized to the task's images where they differ")
    ground: Ground = _ground()


@dataclass(frozen=True)
class Images:
    """Images that were read, float32 ``[N, C, H, W]`` in [0, 1], with what had to be done to some of them."""

    x: np.ndarray
    resized: int
    transparent: int


def split(options: ImageFolderOptions, data_root: Path, kind: Kind) -> Split:
    """Images ``[N, C, H, W]`` in [0, 1]; the classes are the folders' names in alphabetical order."""
    if kind == "regression":
        raise UsageError("data source 'image-folder' has classes, but the likelihood is for regression")
    classes = tuple(path.name for path in _class_folders(options.path))
    if len(classes) < 2:
        raise DataError(
            f"{options.path} must hold at least 2 folders of images, one per class; it holds {len(classes)}"
        )
    data, notes = _labelled(options.path, classes, options.size, options)
    test = None
    if options.test_path is not None:
        names = {path.name for path in _class_folders(options.test_path)}
        if unknown := names - set(classes):
            raise DataError(f"{options.test_path} has a class {min(unknown)!r} that {options.path} has not")
        held = tuple(name for name in classes if name in names)
        test, more = _labelled(options.test_path, held, options.size or _size(data), options)
        test = Arrays(test.x, np.array([classes.index(name) for name in held])[test.y])
        notes += more
    train, validation, test = split_by_fractions(data, options, str(options.path), test)
    return Split(train, validation, test, classes, tuple(notes))


def _class_folders(root: Path) -> list[Path]:
    return [path for path in _listing(root) if path.is_dir() and not path.name.startswith((*LEFTOVERS, *NOT_COUNTED))]


def _size(data: Arrays) -> Size:
    return int(data.x.shape[2]), int(data.x.shape[3])


def _listing(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the folder {folder}: {getattr(error, 'strerror', None) or error}") from error


def _labelled(
    root: Path, classes: Sequence[str], size: Size | None, options: ImageFolderOptions
) -> tuple[Arrays, list[str]]:
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        members = [path for path in _listing(root / name) if _is_image(path)]
        if not members:
            raise DataError(f"{root / name} holds no images ({', '.join(SUFFIXES)})")
        files += members
        labels += [label] * len(members)
    _refuse_links(root, files)
    images = read_images(files, size, options.channels, options.ground)
    notes = [*_left_out(root, files), *_about_transparency(root, images, options.ground)]
    return Arrays(images.x, np.array(labels, dtype=np.int64)), notes


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(LEFTOVERS)


def _left_out(root: Path, used: Iterable[Path]) -> list[str]:
    """A note on the files below a folder that are not used, counted by why."""
    taken = set(used)
    reasons: Counter[str] = Counter()
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if path in taken or not path.is_file():
            continue
        if any(part.startswith(LEFTOVERS) for part in parts):
            reasons["left by another system's archiver (._NAME, __MACOSX)"] += 1
        elif any(part.startswith(NOT_COUNTED) for part in parts):
            continue
        elif path.suffix.lower() not in SUFFIXES:
            reasons[f"of the ending {path.suffix or '(none)'}, which is not read"] += 1
        else:
            reasons[f"in {'/'.join(parts[:-1]) or 'no class folder'}, where no images are looked for"] += 1
    if not reasons:
        return []
    foremost = reasons.most_common(MOST_REASONS)
    shown = "; ".join(f"{number} {why}" for why, number in foremost)
    rest = reasons.total() - sum(number for _, number in foremost)
    more = f"; {rest} more" if rest else ""
    return [f"{root.name}: {counted(reasons.total(), 'file')} not used: {shown}{more}"]


def _about_transparency(root: Path, images: Images, ground: Ground) -> list[str]:
    if not images.transparent:
        return []
    return [f"{root.name}: {images.transparent} of {len(images.x)} images are transparent in parts, shown on {ground}"]


def _refuse_links(root: Path, files: Sequence[Path]) -> None:
    """A folder from elsewhere must not bring in files that are not in it.

    Raises:
        DataError: names the first.
    """
    inside = root.resolve()
    for file in files:
        if not file.resolve().is_relative_to(inside):
            raise DataError(f"{file} is a symbolic link out of {root}; copy what it names into the folder")


def read_images(files: Sequence[Path], size: Size | None, channels: int, ground: Ground = "white") -> Images:
    """Images with 1 or 3 channels.

    ``size`` is height and width to resize to; None takes the size of the first and wants all to have it.

    Raises:
        DataError: a file that is no image, or another size where none was given.
    """
    from PIL import Image

    x = np.empty(0, dtype=np.float32)
    resized, transparent, wanted = 0, 0, size
    for place, file in enumerate(files):
        image, white, see_through = _open(file, channels, ground)
        found = (image.height, image.width)
        if place == 0:
            wanted = wanted or found
            check_size(file.parent, 4 * len(files) * channels * math.prod(wanted))
            x = np.empty((len(files), channels, *wanted), dtype=np.float32)
        assert wanted is not None
        if found != wanted:
            if size is None:
                raise DataError(
                    f"{file} is {found[0]}×{found[1]} pixels, the first image {wanted[0]}×{wanted[1]}; "
                    "give `size = [height, width]` to resize all"
                )
            image = image.resize((wanted[1], wanted[0]), Image.Resampling.BOX if _shrinks(found, wanted) else None)
            resized += 1
        transparent += see_through
        # One channel of a grey image of 16 bits is all three of a colour.
        x[place] = _pixels(image, white).reshape(*wanted, -1).transpose(2, 0, 1)
    return Images(x, resized, transparent)


def _pixels(image: Image, white: float) -> np.ndarray:
    """Values in [0, 1], float32; an image in floats may have left its range when it was resized."""
    values = np.asarray(image, dtype=np.float32) / np.float32(white)
    return values if image.mode != "F" else np.clip(values, 0, 1)


def read_grey(files: Sequence[Path], root: Path, size: Size) -> np.ndarray:
    """Grey levels uint8 ``[N, H, W]`` of images below ``root``, all of which must have this size.

    Raises:
        DataError: a file that is no image of 8 bits, of another size, or a link out of ``root``.
    """
    _refuse_links(root, files)
    images = np.empty((len(files), *size), dtype=np.uint8)
    for place, file in enumerate(files):
        image, white, _ = _open(file, 1, "white")
        if (image.height, image.width) != size or white != WHITE:
            raise DataError(f"{file} is {image.height}×{image.width} pixels, not {size[0]}×{size[1]} of 8 bits")
        images[place] = np.asarray(image)
    return images


def _open(file: Path, channels: int, ground: Ground) -> tuple[Image, float, bool]:
    """An image in grey levels (1 channel) or colours (3), which of its values is white, and whether a ground shows.

    Raises:
        DataError: it is none, too large, of several frames, or its values have no known white.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that are damaged, and readable in spite of it
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as opened:  # reads no more than the header
                return _read(opened, file, channels, ground)
    except DataError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{file} is too large an image: {error}") from error
    except Exception as error:  # decoders raise what they like on damaged files
        raise DataError(f"cannot read the image {file}: {error}") from error


def _read(opened: ImageFile, file: Path, channels: int, ground: Ground) -> tuple[Image, float, bool]:
    """As ``_open``, of an image whose header was read."""
    from PIL import Image, ImageOps

    if opened.width * opened.height > MOST_PIXELS:
        raise DataError(f"{file} is too large an image: {opened.width:,}×{opened.height:,} pixels")
    # Cameras put previews and maps behind a JPEG, which is the picture itself.
    if opened.format != "MPO" and getattr(opened, "is_animated", False):
        raise DataError(f"{file} holds several frames; save the one that is meant as an image of its own")
    white = _white_of_deep(opened, file)
    if white is not None:
        return _deep(opened, white, file), white, False
    upright = ImageOps.exif_transpose(opened)
    see_through = bool({"A", "a"} & set(upright.getbands())) or "transparency" in upright.info
    if see_through:
        layer = upright.convert("RGBA")
        see_through = bool((np.asarray(layer)[..., 3] < WHITE).any())
        upright = Image.alpha_composite(Image.new("RGBA", layer.size, ground), layer)
    return upright.convert("L" if channels == 1 else "RGB"), WHITE, see_through


def _white_of_deep(image: ImageFile, file: Path) -> float | None:
    """Which value is white in an image of more than 8 bits; None in others.

    Raises:
        DataError: its values are not known to have a white.
    """
    tags = getattr(image, "tag_v2", {})  # of a TIFF file
    bits_tag, kind_tag = 258, 339
    if image.mode in DEEP or (image.mode == "I" and image.format in ("PNG", "PPM")):
        bits = tags.get(bits_tag, 16)
        return float(2 ** int(bits[0] if isinstance(bits, tuple) else bits) - 1)
    if image.mode in ("I", "F"):
        signed = tags.get(kind_tag, (1,))
        what = "floating-point" if image.mode == "F" else "signed" if signed in (2, (2,)) else "32-bit"
        raise DataError(
            f"{file} holds {what} values, which have no known white; save it with 8 or 16 bits, or all of them as an "
            "NPZ file (source = 'npz')"
        )
    return None


def _deep(image: ImageFile, white: float, file: Path) -> Image:
    """A grey image of more than 8 bits in floats, upright, 0 being black.

    Raises:
        DataError: one of its greys stands for transparency.
    """
    from PIL import Image as Images
    from PIL import ImageOps

    photometric = 262
    upright = ImageOps.exif_transpose(image)
    values = np.asarray(upright).astype(np.float32)
    if "transparency" in image.info:
        raise DataError(f"{file} has 16 bits and a grey that stands for transparency; save it with an alpha channel")
    if getattr(image, "tag_v2", {}).get(photometric) == 0:  # white is zero; Pillow turns that around in 8 bits only
        values = np.float32(white) - values
    return Images.fromarray(values)


def _shrinks(found: Size, wanted: Size) -> bool:
    return found[0] >= wanted[0] and found[1] >= wanted[1]


def inputs(options: ImageInputOptions, data_root: Path, split: Split) -> Inputs:
    """All images below a folder, in the task's size and number of channels."""
    return read_image_inputs(options.path, split.input_shape, options.ground)[0]


def read_image_inputs(path: Path, shape: tuple[int, ...], ground: Ground = "white") -> tuple[Inputs, tuple[str, ...]]:
    """Images of one file or of all files below a folder as ``[N, *shape]``, and the name of each in the folder."""
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise DataError(f"{path}: images need inputs [1 or 3, H, W], but an input has shape {list(shape)}")
    if path.is_dir():
        files = sorted(
            file
            for file in path.rglob("*")
            if _is_image(file) and not any(part.startswith(LEFTOVERS) for part in file.relative_to(path).parts)
        )
        _refuse_links(path, files)
    else:
        check_file(path)
        files = [path]
    if not files:
        raise DataError(f"{path} holds no images ({', '.join(SUFFIXES)})")
    images = read_images(files, (shape[1], shape[2]), shape[0], ground)
    size = "×".join(str(side) for side in shape[1:])
    notes = [f"{path.name}: {images.resized} of {len(files)} images resized to {size}"] if images.resized else []
    notes += _about_transparency(path, images, ground)
    if path.is_dir():
        notes += _left_out(path, files)
    names = tuple(str(file.relative_to(path).as_posix()) if path.is_dir() else file.name for file in files)
    return Inputs(images.x, tuple(notes)), names


SOURCE = Source(
    name="image-folder",
    summary="your own images: a folder with one folder of images per class",
    SplitOptions=ImageFolderOptions,
    split=split,
    InputOptions=ImageInputOptions,
    inputs=inputs,
)
