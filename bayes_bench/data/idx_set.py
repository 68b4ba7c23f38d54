"""MNIST and the sets made to replace it: four idx files in torchvision's layout, ten classes, images of 28×28.

Missing files are downloaded through torchvision, which is imported only then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import field_validator

from bayes_bench.data import idx
from bayes_bench.data.base import Arrays, Inputs, Kind, Source, Split, Stream, split_per_class, unit_images
from bayes_bench.data.files import Files, Found, download, find, located, torchvision_remedy
from bayes_bench.errors import DataError
from bayes_bench.settings import Settings, setting

SUBSET_SEED = 5000
CLASSES = 10
SIDE = 28
Part = Literal["train", "t10k"]
PARTS: tuple[Part, ...] = ("train", "t10k")


class IdxSetOptions(Settings):
    train_per_class: int | None = setting(
        None,
        "a fixed class-balanced training subset of so many images per class; not given: all that remain",
        ge=1,
    )
    validation: int = setting(5000, "validation images, equally many per class, taken from the training file", ge=10)

    @field_validator("validation")
    @classmethod
    def _balanced(cls, value: int) -> int:
        if value % CLASSES:
            raise ValueError("must be a multiple of 10, so that every class gets the same number")
        return value


class IdxInputOptions(Settings):
    """No options: all test images."""


@dataclass(frozen=True)
class Content:
    """By what a set is known for which no checksums of the unzipped files are published.

    Attributes:
        md5: of the gzipped files, which are checked where they are there.
        counts: images of every class, by part.
        mean, std: ranges of the intensity in [0, 1], which other sets of the kind are outside of.
    """

    md5: Mapping[str, str]
    counts: Mapping[Part, int]
    mean: tuple[float, float]
    std: tuple[float, float]


@dataclass(frozen=True)
class IdxSet:
    """One such set.

    Attributes:
        name: of the source; it also seeds the choice of subsets.
        torchvision: name of torchvision's class, and of the folder.
        classes: in the order of their labels.
        sha256: of the unzipped files, by name; empty where ``content`` is what is known.
        others: SHA-256 of files of other sets that may lie in this one's place by mistake, with the set's title.
        licence: in words, with where the set comes from.
    """

    name: str
    title: str
    torchvision: str
    classes: tuple[str, ...]
    licence: str
    sha256: Mapping[str, str] = field(default_factory=dict)
    content: Content | None = None
    others: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return Path(self.torchvision) / "raw"

    @property
    def files(self) -> Files:
        return Files(
            title=self.title,
            folder=self.folder,
            look=self._look,
            check=self.check,
            fetch=self.fetch,
            remedy=torchvision_remedy(f"{self.torchvision}('DIR', download=True)"),
            licence=self.licence,
        )

    def source(self, summary: str) -> Source:
        return Source(
            name=self.name,
            summary=summary,
            kind="classification",
            SplitOptions=IdxSetOptions,
            split=self.split,
            InputOptions=IdxInputOptions,
            inputs=self.inputs,
            files=self.files,
        )

    def split(self, options: IdxSetOptions, data_root: Path, kind: Kind) -> Split:
        """Images ``[N, 1, 28, 28]`` in [0, 1]; the test set is the published one of 10,000.

        The training subset comes first in the fixed order, validation images right after it, so a subset never
        meets its validation set.

        Raises:
            DataError: files are missing and cannot be downloaded, are damaged, or are not this set's.
            UsageError: more images asked for than a class has.
        """
        files = self.load(data_root)
        images, labels = files["train-images-idx3-ubyte"], files["train-labels-idx1-ubyte"]
        train, validation = self._balanced_subset(labels, options)

        def arrays(x: np.ndarray, y: np.ndarray) -> Arrays:
            return Arrays(unit_images(x)[:, None], y.astype(np.int64))

        return Split(
            arrays(images[train], labels[train]),
            arrays(images[validation], labels[validation]),
            arrays(files["t10k-images-idx3-ubyte"], files["t10k-labels-idx1-ubyte"]),
            self.classes,
        )

    def inputs(self, options: IdxInputOptions, data_root: Path, split: Split) -> Inputs:
        """The test images ``[N, 1, 28, 28]`` in [0, 1].

        Raises:
            DataError: as ``split``.
        """
        return Inputs(unit_images(self.load(data_root, ("t10k",))["t10k-images-idx3-ubyte"])[:, None])

    def _balanced_subset(self, labels: np.ndarray, options: IdxSetOptions) -> tuple[np.ndarray, np.ndarray]:
        order = Stream((SUBSET_SEED, self.name)).permutation(len(labels))
        members = {name: order[labels[order] == number] for number, name in enumerate(self.classes)}
        return split_per_class(members, options.train_per_class, options.validation // CLASSES, self.name)

    def load(self, data_root: Path, parts: Sequence[Part] = PARTS) -> dict[str, np.ndarray]:
        """The files of these parts by name: images uint8 ``[N, 28, 28]``, labels uint8 ``[N]``; checked.

        What is missing is downloaded.
        """
        wanted = names(parts)
        if any(find(data_root / self.folder, name) is None for name in wanted):
            self.files.provide(data_root)
        return {name: self._read(data_root, name).values for name in wanted}

    def _read(self, data_root: Path, name: str) -> idx.IdxFile:
        folder = data_root / self.folder
        path = find(folder, name)
        # The gzipped file is the one whose checksum is published, where that is all there is.
        if self.content and (folder / f"{name}.gz").is_file():
            path = folder / f"{name}.gz"
        assert path is not None
        file = idx.read(path)
        if other := self.others.get(file.sha256):
            raise DataError(f"{path} is {other}'s file, not {self.title}'s; replace it")
        if self.content:
            self._check_content(file, name, self.content)
        elif file.sha256 != self.sha256[name]:
            raise DataError(
                f"{path} is not {self.title}'s file (SHA-256 {file.sha256[:12]}…, expected "
                f"{self.sha256[name][:12]}…); delete it and fetch it again"
            )
        return file

    def _check_content(self, file: idx.IdxFile, name: str, content: Content) -> None:
        refuse = f"{file.path} is not {self.title}'s file"
        if file.path.suffix == ".gz":
            md5 = hashlib.md5(file.path.read_bytes(), usedforsecurity=False).hexdigest()
            if md5 != content.md5[name]:
                raise DataError(f"{refuse} (MD5 {md5[:12]}…, expected {content.md5[name][:12]}…)")
        part: Part = "train" if name.startswith("train") else "t10k"
        each = content.counts[part]
        shape = (each * CLASSES, SIDE, SIDE) if "images" in name else (each * CLASSES,)
        if file.values.shape != shape:
            raise DataError(f"{refuse}: it holds values of shape {file.values.shape}, not {shape}")
        if "labels" in name:
            if np.bincount(file.values, minlength=CLASSES).tolist() != [each] * CLASSES:
                raise DataError(f"{refuse}: its labels are not {each:,} of each of {CLASSES} classes")
        else:
            check_statistics(file.values, content.mean, content.std, refuse)

    def _look(self, data_root: Path) -> Found:
        return located({name: find(data_root / self.folder, name) for name in names(PARTS)})

    def check(self, data_root: Path) -> str:
        """Read what there is, as ``Files.check``."""
        files = [self._read(data_root, name) for name in names(PARTS) if find(data_root / self.folder, name)]
        if self.content is None:
            return "SHA-256 as published"
        zipped = sum(file.path.suffix == ".gz" for file in files)
        if zipped == len(files):
            return "MD5 as published"
        return "sizes, labels and intensities as published" + (f", of {zipped} files MD5" if zipped else "")

    def fetch(self, data_root: Path) -> None:
        """Download with torchvision, as ``Files.fetch``."""
        download(self.torchvision, self.name, data_root)


def names(parts: Sequence[Part]) -> tuple[str, ...]:
    """The files of these parts."""
    return tuple(name for part in parts for name in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"))


def check_statistics(images: np.ndarray, mean: tuple[float, float], std: tuple[float, float], refuse: str) -> None:
    """Refuse images (uint8) the mean and standard deviation of whose intensity are outside of these ranges.

    Raises:
        DataError: ``refuse``, with the numbers.
    """
    counts = np.bincount(images.reshape(-1), minlength=256)
    levels = np.arange(256) / 255
    found = float(counts @ levels / counts.sum())
    spread = float(np.sqrt(counts @ (levels - found) ** 2 / counts.sum()))
    if not (mean[0] <= found <= mean[1] and std[0] <= spread <= std[1]):
        raise DataError(
            f"{refuse}: the mean intensity is {found:.3f} and its standard deviation {spread:.3f}, where "
            f"{mean[0]:g} to {mean[1]:g} and {std[0]:g} to {std[1]:g} are expected"
        )
