"""notMNIST: letters A–J of many typefaces at 28×28, the usual out-of-distribution set beside MNIST.

Either the 10,000 images of davidflanagan/notMNIST-to-MNIST, an idx file in ``notMNIST/MNIST/raw`` below the data root
(torchvision's layout for ``MNIST(root="notMNIST")``), or the letter folders of the published notMNIST_small:
``notMNIST_small/A`` to ``J`` below the data root or below its ``notMNIST``.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np

from bayes_bench.data import idx, image_folder, mnist
from bayes_bench.data.base import Inputs, Source, Split, unit_images
from bayes_bench.data.files import Files, Found, find
from bayes_bench.data.idx_set import SIDE, check_statistics
from bayes_bench.errors import DataError
from bayes_bench.settings import Settings

FOLDER = Path("notMNIST") / "MNIST" / "raw"
FILE = "t10k-images-idx3-ubyte"
SHA256 = "8e7f38ae95cc8f48e0986175ffc9137e5007ebcf3d8fdf6656c904eb9dab198b"
ADDRESS = f"https://github.com/davidflanagan/notMNIST-to-MNIST/raw/master/{FILE}.gz"
LETTERS = "ABCDEFGHIJ"
LETTER_FOLDERS = (Path("notMNIST_small"), Path("notMNIST") / "notMNIST_small")
# Of the published archive: empty files, in all copies of it.
UNREADABLE = {"A": "RGVtb2NyYXRpY2FCb2xkT2xkc3R5bGUgQm9sZC50dGY=.png", "F": "Q3Jvc3NvdmVyIEJvbGRPYmxpcXVlLnR0Zg==.png"}
# Mean and standard deviation of the intensity: .427 and .459 in the published file, within .015 and .005 of that in
# any 500 of its images; MNIST's are .131 and .308.
MEAN, STD = (0.38, 0.47), (0.435, 0.48)
MAX_DIGITS = 0.5  # part of the images that may be MNIST's own
REPLACE = "delete it and fetch notMNIST again"
UNPACK = "unpack notMNIST_small again, with all of A to J"
REMEDY = f"its digits would count as out-of-distribution; {REPLACE}"


class NotMnistOptions(Settings):
    """No options: all images of the t10k file, or of the letter folders."""


def inputs(options: NotMnistOptions, data_root: Path, split: Split) -> Inputs:
    """Images ``[N, 1, 28, 28]`` in [0, 1].

    Raises:
        DataError: missing and not to be downloaded, damaged, or something else, such as MNIST's own digits.
    """
    if not _look(data_root).present:
        DATA_FILES.provide(data_root)
    images, notes = load(data_root)
    return Inputs(unit_images(images)[:, None], notes)


def load(data_root: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Images uint8 ``[N, 28, 28]`` of the file, or of the folders where it is not there, and notes on them."""
    path = find(data_root / FOLDER, FILE)
    if path is None:
        folder = _letter_folder(data_root)
        assert folder is not None, "look before"
        images, notes = _read_letters(folder)
        _check_content(images, folder, data_root)
        return images, notes
    file = idx.read(path)
    if file.values.ndim != 3 or file.values.shape[1:] != (SIDE, SIDE) or not len(file.values):
        raise DataError(f"{path} holds values of shape {file.values.shape}, not images of 28×28; {REPLACE}")
    if file.sha256 in mnist.FILES.values():
        raise DataError(f"{path} is MNIST's own file, not notMNIST: {REMEDY}")
    if file.sha256 == SHA256:
        return file.values, ()
    _check_content(file.values, path, data_root)
    return file.values, (f"not the published t10k file (SHA-256 {file.sha256[:12]}…, {len(file.values):,} images)",)


def _letter_folder(data_root: Path) -> Path | None:
    for folder in LETTER_FOLDERS:
        if any((data_root / folder / letter).is_dir() for letter in LETTERS):
            return data_root / folder
    return None


def _read_letters(folder: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """All images of the letter folders: by letter, and within one by the names of the files.

    Raises:
        DataError: a folder is missing or empty, or an image is damaged or no 28×28 one; it is named.
    """
    found: list[Path] = []
    left_out = 0
    for letter in LETTERS:
        if not (folder / letter).is_dir():
            raise DataError(f"notMNIST: {folder} has no folder {letter}; {UNPACK}")
        paths = sorted((folder / letter).glob("*.png"))
        kept = [path for path in paths if path.name != UNREADABLE.get(letter)]
        if not kept:
            raise DataError(f"notMNIST: {folder / letter} holds no PNG images that can be read; {UNPACK}")
        left_out += len(paths) - len(kept)
        found += kept
    try:
        images = image_folder.read_grey(found, folder, (SIDE, SIDE))
    except DataError as error:
        raise DataError(f"{error}; {UNPACK}") from error
    notes = [f"the {len(images):,} images of the letter folders {folder.name}, not those of the t10k file"]
    if left_out:
        notes.append(f"{left_out} of the published files that are known to be unreadable are left out")
    return images, tuple(notes)


def _check_content(images: np.ndarray, where: Path, data_root: Path) -> None:
    """Refuse images that are mostly MNIST's digits, where MNIST is at hand, or have not notMNIST's intensities."""
    digits: set[bytes] = set()
    for part in ("train", "t10k"):
        path = find(data_root / mnist.FOLDER, f"{part}-images-idx3-ubyte")
        if path is not None:
            with suppress(DataError):  # damaged: that is MNIST's matter, and the intensities are still compared
                digits |= {image.tobytes() for image in idx.read(path).values}
    shared = np.mean([image.tobytes() in digits for image in images])
    if shared > MAX_DIGITS:
        raise DataError(f"{shared:.0%} of the images in {where} are MNIST's own, not notMNIST's: {REMEDY}")
    try:
        check_statistics(images, MEAN, STD, f"{where} does not hold notMNIST's letters")
    except DataError as error:
        raise DataError(f"{error}; {REPLACE}") from error


def _look(data_root: Path) -> Found:
    folder = _letter_folder(data_root)
    path = find(data_root / FOLDER, FILE)
    if path is None and folder is not None:
        there = tuple(folder / letter for letter in LETTERS if (folder / letter).is_dir())
        return Found(
            there, tuple(letter for letter in LETTERS if not (folder / letter).is_dir()), folder.relative_to(data_root)
        )
    return Found((path,)) if path else Found((), (FILE,))


def _check(data_root: Path) -> str:
    _, notes = load(data_root)
    return "; ".join(("intensities as published", *notes)) if notes else "SHA-256 as published"


def fetch(data_root: Path) -> None:
    """Download the t10k file, as ``Files.fetch``; another file than the published one is not kept."""
    from filelock import FileLock
    from torchvision.datasets.utils import download_url

    folder = data_root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(data_root / ".notmnist.lock"):
        if find(folder, FILE) is not None:
            return
        fetched = folder / f"{FILE}.part.gz"
        fetched.unlink(missing_ok=True)  # what a killed download left would be taken for the whole file
        try:
            download_url(ADDRESS, str(folder), fetched.name)
            sha256 = idx.read(fetched).sha256
            if sha256 != SHA256:
                raise DataError(f"{ADDRESS} gave another file than the published one (SHA-256 {sha256[:12]}…)")
            fetched.rename(folder / f"{FILE}.gz")
        finally:
            fetched.unlink(missing_ok=True)


DATA_FILES = Files(
    title="notMNIST",
    folder=FOLDER,
    look=_look,
    check=_check,
    fetch=fetch,
    remedy=(
        f"get {FILE}.gz of github.com/davidflanagan/notMNIST-to-MNIST and put it there, or the folders of "
        "notMNIST_small into the data root, or point --data-root or BAYES_BENCH_DATA to the folder that holds them"
    ),
    licence="Bulatov, letters of freely available fonts; the idx file Flanagan, MIT licence",
)
SOURCE = Source(
    name="notmnist",
    summary="notMNIST, letters A–J at 28×28: 10,000 of the t10k file, or notMNIST_small; downloaded where missing",
    InputOptions=NotMnistOptions,
    inputs=inputs,
    files=DATA_FILES,
)
