"""MNIST: 28×28 handwritten digits, in ``MNIST/raw`` below the data root."""

from __future__ import annotations

from bayes_bench.data.idx_set import IdxSet

# SHA-256 of the unzipped files.
FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
SET = IdxSet(
    name="mnist",
    title="MNIST",
    torchvision="MNIST",
    classes=tuple(str(digit) for digit in range(10)),
    licence="LeCun, Cortes and Burges, from NIST's special databases; usually given as CC BY-SA 3.0",
    sha256=FILES,
)
FOLDER = SET.folder
SOURCE = SET.source("MNIST, 28×28 digits, or a fixed class-balanced subset; downloaded where missing")
