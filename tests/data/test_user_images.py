"""Images as cameras, scanners, microscopes and archivers write them: the right value, or one sentence with the file."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bayes_bench import data
from bayes_bench.data import read_inputs
from bayes_bench.data.image_folder import SUFFIXES, read_images
from bayes_bench.data.spec import OODSpec, SourceSpec
from bayes_bench.errors import DataError

RAMP = np.linspace(0, 1, 12).reshape(3, 4)
"""Shares of white, of 3×4 pixels."""


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def read(path: Path, channels: int = 1, **options: Any) -> np.ndarray:
    return read_images([path], None, channels, **options).x[0]


def bytes_of(values: np.ndarray, depth: int = 8) -> np.ndarray:
    return np.rint(values * (2**depth - 1)).astype(np.uint8 if depth == 8 else np.uint16)


# --- depth and mode


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits(tmp_path: Path, suffix: str, channels: int) -> None:
    values = bytes_of(RAMP, 16)
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(values))
    np.testing.assert_allclose(read(path, channels), np.broadcast_to(values / 65535, (channels, 3, 4)), atol=1e-7)


def test_sixteen_bits_resized(tmp_path: Path) -> None:
    values = bytes_of(np.kron(RAMP, np.ones((2, 2))), 16)
    path = saved(tmp_path / "a.png", Image.fromarray(values))
    np.testing.assert_allclose(read_images([path], (3, 4), 1).x[0, 0], bytes_of(RAMP, 16) / 65535, atol=1e-6)
    larger = read_images([path], (12, 16), 1).x
    assert larger.min() >= 0
    assert larger.max() <= 1


def test_other_depths_of_a_microscope(tmp_path: Path) -> None:
    """Twelve bits and white as zero, as TIFF files say it in their tags."""
    values = np.array([[0, 1000, 4095, 2048]], dtype=np.uint16)
    dark = saved(tmp_path / "inverse.tif", Image.fromarray(values), tiffinfo={262: 0})
    np.testing.assert_allclose(read(dark)[0], 1 - values / 65535, atol=1e-7)
    packed = bytes([0x00, 0x03, 0xE8, 0xFF, 0xF8, 0x00])  # 0, 1000, 4095, 2048 in twelve bits each
    tags = [(256, 4, 4), (257, 4, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (279, 4, 6)]
    head = b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + struct.pack("<H", len(tags))
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    (tmp_path / "twelve.tif").write_bytes(head + entries + bytes(4))
    np.testing.assert_allclose(read(tmp_path / "twelve.tif")[0], values / 4095, atol=1e-6)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *((mode, "png") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        *((mode, "tif") for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr")),
        *((mode, "jpg") for mode in ("L", "RGB", "CMYK", "YCbCr")),
        *((mode, "webp") for mode in ("RGB", "RGBA")),
        *((mode, "bmp") for mode in ("1", "L", "P", "RGB")),
        ("P", "gif"),
        ("L", "gif"),
    ],
)
def test_every_mode_has_black_and_white(tmp_path: Path, mode: str, suffix: str) -> None:
    """Left half black, right half white, whatever the mode is."""
    half = np.zeros((8, 16), np.uint8)
    half[:, 8:] = 255
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(half).convert("RGB").convert(mode))
    for channels in (1, 3):
        found = read(path, channels)
        np.testing.assert_allclose(found, np.broadcast_to(half / 255, (channels, 8, 16)), atol=0.02)


@pytest.mark.parametrize(
    ("values", "what"),
    [(RAMP.astype(np.float32), "floating-point"), ((1e5 * RAMP).astype(np.int32), "signed")],
)
def test_values_without_a_known_white(tmp_path: Path, values: np.ndarray, what: str) -> None:
    path = saved(tmp_path / "a.tif", Image.fromarray(values))
    with pytest.raises(
        DataError, match=rf"a\.tif holds {what} values, which have no known white; save it with 8 or 16"
    ):
        read(path)


# --- transparency, orientation, frames


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_black_ink_on_a_transparent_ground(tmp_path: Path, mode: str) -> None:
    ink = np.zeros((4, 4, 4), np.uint8)
    ink[1:3, 1:3, 3] = 255
    ink[0, 0, 3] = 51  # a fifth of the ink
    image = Image.fromarray(ink).convert(mode)
    options = {"transparency": 0} if mode == "P" else {}
    if mode == "P":
        palette = Image.new("P", (4, 4), 0)
        palette.putpalette([0, 0, 0, 0, 0, 0])
        palette.paste(1, (1, 1, 3, 3))
        image = palette
    path = saved(tmp_path / "a.png", image, **options)
    expected = np.ones((4, 4))
    expected[1:3, 1:3] = 0
    if mode != "P":
        expected[0, 0] = 0.8
    for channels in (1, 3):
        np.testing.assert_allclose(read(path, channels), np.broadcast_to(expected, (channels, 4, 4)), atol=1e-6)
    assert read(path, ground="black").max() == 0
    assert read_images([path], None, 1).transparent == 1


def test_an_opaque_alpha_channel_is_no_transparency(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGBA", (4, 4), (255, 0, 0, 255)))
    assert read_images([path], None, 3).transparent == 0
    assert read(path, 3)[:, 0, 0].tolist() == [1, 0, 0]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_orientation_tags_are_followed(tmp_path: Path, suffix: str, orientation: int) -> None:
    upright = np.zeros((16, 32), np.uint8)
    upright[:8, :16] = 255  # a bright upper left corner
    turns = {1: 0, 3: 2, 6: 1, 8: 3}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(upright, turns)))
    path = saved(tmp_path / f"a.{suffix}", stored.convert("RGB"), exif=exif)
    np.testing.assert_allclose(read(path)[0], upright / 255, atol=0.02)


def test_several_frames_are_refused(tmp_path: Path) -> None:
    frames = [Image.new("L", (4, 4), level) for level in (0, 200)]
    for name in ("a.gif", "a.tif", "a.png", "a.webp"):
        path = saved(tmp_path / name, frames[0], save_all=True, append_images=frames[1:])
        with pytest.raises(DataError, match=rf"{name} holds several frames; save the one that is meant"):
            read(path)


def test_what_a_camera_puts_behind_a_picture_is_no_frame(tmp_path: Path) -> None:
    """A JPEG with a preview behind it, as telephones write it."""
    path = tmp_path / "a.jpg"
    Image.new("L", (8, 8), 255).save(path, format="MPO", save_all=True, append_images=[Image.new("L", (8, 8), 0)])
    assert read(path).min() == 1


def test_a_grey_that_stands_for_transparency_in_sixteen_bits(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(bytes_of(RAMP, 16)))
    content = path.read_bytes()
    chunk = b"tRNS" + struct.pack(">H", 0)
    place = content.index(b"IDAT") - 4
    path.write_bytes(
        content[:place] + struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[place:]
    )
    with pytest.raises(DataError, match=r"a\.png has 16 bits and a grey that stands for transparency"):
        read(path)


# --- folders


def folder(root: Path) -> Path:
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True)
        for i in range(6):
            Image.new("L", (4, 4), 20 * i + 100 * (label == "dog")).save(root / label / f"{i}.png")
    return root


def test_files_that_are_not_used_are_counted(tmp_path: Path) -> None:
    root = folder(tmp_path / "pets")
    (root / "cat" / "more").mkdir()
    for i in range(3):
        Image.new("L", (4, 4)).save(root / "cat" / "more" / f"{i}.png")
        (root / "dog" / f"{i}.heic").write_bytes(b"x")
        (root / "dog" / f"._{i}.png").write_bytes(b"\0\5\x16\7")
    (root / "__MACOSX" / "cat").mkdir(parents=True)
    (root / "__MACOSX" / "cat" / "._0.png").write_bytes(b"\0\5\x16\7")
    (root / ".DS_Store").write_bytes(b"x")
    Image.new("L", (4, 4)).save(root / "loose.png")
    split = data.load_split(SourceSpec(source="image-folder", path=str(root), channels=1), tmp_path)
    assert split.classes == ("cat", "dog")
    assert sum(len(part) for part in (split.train, split.validation, split.test)) == 12
    (note,) = split.notes
    assert note.startswith("pets: 11 files not used: 4 left by another system's archiver (._NAME, __MACOSX); 3 ")
    assert "3 in cat/more, where no images are looked for" in note
    assert "3 of the ending .heic, which is not read" in note
    assert "1 in no class folder, where no images are looked for" in note
    spec = OODSpec(name="out", source="image-folder", path=str(root))
    with pytest.raises(DataError, match="inputs of the task itself"):  # those in deeper folders are found here
        data.load_inputs(spec, tmp_path, split)
    found = read_inputs(root, (1, 4, 4))
    assert len(found.x) == len(found.files) == 16
    assert found.notes == (
        "pets: 7 files not used: 4 left by another system's archiver (._NAME, __MACOSX); 3 of the ending .heic, which "
        "is not read",
    )


def test_images_are_told_by_their_files(tmp_path: Path) -> None:
    for i, name in enumerate(("b.png", "a/c.png", "a/B.PNG")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (2, 2), 50 * i).save(tmp_path / name)
    found = read_inputs(tmp_path, (1, 2, 2))
    assert found.files == ("a/B.PNG", "a/c.png", "b.png")
    np.testing.assert_allclose(found.x[:, 0, 0, 0], np.array([100, 50, 0]) / 255, atol=1e-7)
    assert read_inputs(tmp_path / "b.png", (1, 2, 2)).files == ("b.png",)


def test_transparency_is_noted(tmp_path: Path) -> None:
    root = folder(tmp_path / "pets")
    Image.new("LA", (4, 4), (0, 0)).save(root / "cat" / "ink.png")
    spec = {"source": "image-folder", "path": str(root), "channels": 1}
    split = data.load_split(SourceSpec.model_validate(spec), tmp_path)
    assert "pets: 1 of 13 images are transparent in parts, shown on white" in split.notes
    split = data.load_split(SourceSpec.model_validate(spec | {"ground": "black"}), tmp_path)
    assert "pets: 1 of 13 images are transparent in parts, shown on black" in split.notes


def test_endings_are_those_of_formats_that_are_read(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        image = Image.new("RGB" if suffix == ".ppm" else "L", (8, 8), "white")
        assert read(saved(tmp_path / f"a{suffix}", image)).min() > 0.98
