"""KMNIST (Kuzushiji-MNIST): 28×28 cursive Japanese characters, in ``KMNIST/raw`` below the data root.

Checksums are known of the gzipped files alone; without these the set is known by its counts and intensities.
"""

from __future__ import annotations

from bayes_bench.data import fashion_mnist, mnist
from bayes_bench.data.idx_set import Content, IdxSet

# MD5 of the gzipped files, as torchvision has them.
GZIPPED = {
    "train-images-idx3-ubyte": "bdb82020997e1d708af4cf47b453dcf7",
    "train-labels-idx1-ubyte": "e144d726b3acfaa3e44228e80efcd344",
    "t10k-images-idx3-ubyte": "5c965bf0a639b31b8f53240b1b52f4d7",
    "t10k-labels-idx1-ubyte": "7320c461ea6c1c855c0b718fb2a4b134",
}
SET = IdxSet(
    name="kmnist",
    title="KMNIST",
    torchvision="KMNIST",
    classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    licence="CODH, from the Kuzushiji dataset of NIJL and others, CC BY-SA 4.0",
    # The mean and standard deviation that are usually given are .1918 and .3483; MNIST's are .1307 and .3081,
    # Fashion-MNIST's .2860 and .3530.
    content=Content(GZIPPED, {"train": 6000, "t10k": 1000}, mean=(0.17, 0.22), std=(0.325, 0.37)),
    others=dict.fromkeys(mnist.FILES.values(), "MNIST") | dict.fromkeys(fashion_mnist.FILES.values(), "Fashion-MNIST"),
)
SOURCE = SET.source("KMNIST, 28×28 Japanese characters, or a fixed class-balanced subset; downloaded where missing")
