"""A user's own images: ``root/class/*.png`` (also jpg, bmp, …), all of one size."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
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
    unit_images,
)
from bayes_bench.data.files import check_file
from bayes_bench.errors import DataError, UsageError
from bayes_bench.settings import Settings, setting

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""By content: Pillow would hand a PostScript file that is called .png to another program."""
MOST_PIXELS = 64_000_000
Size = tuple[Annotated[int, Field(gt=0, le=100_000)], Annotated[int, Field(gt=0, le=100_000)]]


class ImageFolderOptions(FractionOptions):
    path: Path = setting(..., "folder with one folder of images per class; relative to the suite's file")
    test_path: Path | None = setting(None, "a folder of test images with the same classes")
    size: Size | None = setting(None, "[height, width] to bring all images to; not given: they must be equal")
    channels: Literal[1, 3] = setting(3, "1 reads grey levels, 3 reads colours")


class ImageInputOptions(Settings):
    path: Path = setting(..., "folder of images, at any depth; resized to the task's images where they differ")


def split(options: ImageFolderOptions, data_root: Path, kind: Kind) -> Split:
    """Images ``[N, C, H, W]`` in [0, 1]; the classes are the folders' names in alphabetical order."""
    if kind == "regression":
        raise UsageError("data source 'image-folder' has classes, but the likelihood is for regression")
    classes = tuple(path.name for path in _listing(options.path) if path.is_dir() and not path.name.startswith("."))
    if len(classes) < 2:
        raise DataError(
            f"{options.path} must hold at least 2 folders of images, one per class; it holds {len(classes)}"
        )
    data = _labelled(options.path, classes, options.size, options.channels)
    test = None
    if options.test_path is not None:
        names = {path.name for path in _listing(options.test_path) if path.is_dir() and not path.name.startswith(".")}
        if unknown := names - set(classes):
            raise DataError(f"{options.test_path} has a class {min(unknown)!r} that {options.path} has not")
        held = tuple(name for name in classes if name in names)
        test = _labelled(options.test_path, held, options.size or _size(data), options.channels)
        test = Arrays(test.x, np.array([classes.index(name) for name in held])[test.y])
    train, validation, test = split_by_fractions(data, options, str(options.path), test)
    return Split(train, validation, test, classes)


def _size(data: Arrays) -> Size:
    return int(data.x.shape[2]), int(data.x.shape[3])


def _listing(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the folder {folder}: {getattr(error, 'strerror', None) or error}") from error


def _labelled(root: Path, classes: Sequence[str], size: Size | None, channels: int) -> Arrays:
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        members = [path for path in _listing(root / name) if path.suffix.lower() in SUFFIXES and path.is_file()]
        if not members:
            raise DataError(f"{root / name} holds no images ({', '.join(SUFFIXES)})")
        files += members
        labels += [label] * len(members)
    _refuse_links(root, files)
    return Arrays(read_images(files, size, channels)[0], np.array(labels, dtype=np.int64))


def _refuse_links(root: Path, files: Sequence[Path]) -> None:
    """A folder from elsewhere must not bring in files that are not in it.

    Raises:
        DataError: names the first.
    """
    inside = root.resolve()
    for file in files:
        if not file.resolve().is_relative_to(inside):
            raise DataError(f"{file} is a symbolic link out of {root}; copy what it names into the folder")


def read_images(files: Sequence[Path], size: Size | None, channels: int) -> tuple[np.ndarray, int]:
    """Images float32 ``[N, C, H, W]`` in [0, 1] with 1 or 3 channels, and how many of them were resized.

    ``size`` is height and width to resize to; None takes the size of the first and wants all to have it.

    Raises:
        DataError: a file that is no image, or another size where none was given.
    """
    from PIL import Image

    images: list[np.ndarray] = []
    resized, wanted = 0, size
    for file in files:
        image = _open(file, channels)
        found = (image.height, image.width)
        if not images:
            # Bytes of all images, and as many single-precision numbers.
            check_size(file.parent, 5 * len(files) * channels * math.prod(wanted or found))
        wanted = wanted or found
        if found != wanted:
            if size is None:
                raise DataError(
                    f"{file} is {found[0]}×{found[1]} pixels, the first image {wanted[0]}×{wanted[1]}; "
                    "give `size = [height, width]` to resize all"
                )
            image = image.resize((wanted[1], wanted[0]), Image.Resampling.BOX if _shrinks(found, wanted) else None)
            resized += 1
        images.append(np.asarray(image, dtype=np.uint8).reshape(*wanted, channels))
    stacked = np.stack(images).transpose(0, 3, 1, 2)
    return unit_images(np.ascontiguousarray(stacked)), resized


def read_grey(files: Sequence[Path], root: Path, size: Size) -> np.ndarray:
    """Grey levels uint8 ``[N, H, W]`` of images below ``root``, all of which must have this size.

    Raises:
        DataError: a file that is no image, of another size, or a link out of ``root``.
    """
    _refuse_links(root, files)
    images = np.empty((len(files), *size), dtype=np.uint8)
    for place, file in enumerate(files):
        image = _open(file, channels=1)
        if (image.height, image.width) != size:
            raise DataError(f"{file} is {image.height}×{image.width} pixels, not {size[0]}×{size[1]}")
        images[place] = np.asarray(image)
    return images


def _open(file: Path, channels: int) -> Image:
    """An image in grey levels (1 channel) or colours (3).

    Raises:
        DataError: it is none, or too large.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(file, formats=FORMATS)  # reads no more than the header
        with opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise DataError(f"{file} is too large an image: {opened.width:,}×{opened.height:,} pixels")
            return opened.convert("L" if channels == 1 else "RGB")
    except DataError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{file} is too large an image: {error}") from error
    except Exception as error:  # decoders raise what they like on damaged files
        raise DataError(f"cannot read the image {file}: {error}") from error


def _shrinks(found: Size, wanted: Size) -> bool:
    return found[0] >= wanted[0] and found[1] >= wanted[1]


def inputs(options: ImageInputOptions, data_root: Path, split: Split) -> Inputs:
    """All images below a folder, in the task's size and number of channels."""
    x, resized = read_image_inputs(options.path, split.input_shape)
    size = "×".join(str(side) for side in split.input_shape[1:])
    return Inputs(x, (f"{options.path.name}: {resized} of {len(x)} images resized to {size}",) if resized else ())


def read_image_inputs(path: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """Images of one file or of all files below a folder as ``[N, *shape]``, and how many were resized."""
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise DataError(f"{path}: images need inputs [1 or 3, H, W], but an input has shape {list(shape)}")
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        _refuse_links(path, files)
    else:
        check_file(path)
        files = [path]
    if not files:
        raise DataError(f"{path} holds no images ({', '.join(SUFFIXES)})")
    return read_images(files, (shape[1], shape[2]), shape[0])


SOURCE = Source(
    name="image-folder",
    summary="your own images: a folder with one folder of images per class",
    SplitOptions=ImageFolderOptions,
    split=split,
    InputOptions=ImageInputOptions,
    inputs=inputs,
)
