"""notMNIST: letters A–J of many typefaces at 28×28, the usual out-of-distribution set beside MNIST.

The 10,000 images of davidflanagan/notMNIST-to-MNIST, idx files in ``notMNIST/MNIST/raw`` below the data root
(torchvision's layout for ``MNIST(root="notMNIST")``). There is no automatic download.
"""

from __future__ import annotations

from pathlib import Path

from bayes_bench.data import idx, mnist
from bayes_bench.data.base import Inputs, Source, Split, unit_images
from bayes_bench.errors import DataError
from bayes_bench.settings import Settings

FOLDER = Path("notMNIST") / "MNIST" / "raw"
FILE = "t10k-images-idx3-ubyte"
SHA256 = "8e7f38ae95cc8f48e0986175ffc9137e5007ebcf3d8fdf6656c904eb9dab198b"


class NotMnistOptions(Settings):
    """No options: all images of the t10k file."""


def inputs(options: NotMnistOptions, data_root: Path, split: Split) -> Inputs:
    """Images ``[N, 1, 28, 28]`` in [0, 1].

    Raises:
        DataError: missing, damaged, or MNIST's own digits in the place of letters.
    """
    folder = data_root / FOLDER
    path = idx.find(folder, FILE)
    if path is None:
        raise DataError(
            f"notMNIST is missing: {FILE} not found in {folder} (nor as .gz); get the idx files of "
            "github.com/davidflanagan/notMNIST-to-MNIST, put them there, or point --data-root or "
            "BAYES_BENCH_DATA to the folder that holds notMNIST"
        )
    file = idx.read(path)
    if file.values.ndim != 3 or file.values.shape[1:] != (28, 28):
        raise DataError(f"{path} holds values of shape {file.values.shape}, not images of 28×28")
    if file.sha256 in mnist.FILES.values():
        raise DataError(
            f"{path} is MNIST's own file, not notMNIST: its digits would count as out-of-distribution; "
            "replace it by notMNIST's"
        )
    notes: tuple[str, ...] = ()
    if file.sha256 != SHA256:
        notes = (f"not the published t10k file (SHA-256 {file.sha256[:12]}…, {len(file.values):,} images)",)
    return Inputs(unit_images(file.values)[:, None], notes)


SOURCE = Source(
    name="notmnist",
    summary="notMNIST, 10,000 letters A–J at 28×28 (the t10k file)",
    InputOptions=NotMnistOptions,
    inputs=inputs,
)
