"""Fashion-MNIST: 28×28 grey images of clothes, in ``FashionMNIST/raw`` below the data root."""

from __future__ import annotations

from bayes_bench.data import mnist
from bayes_bench.data.idx_set import IdxSet

# SHA-256 of the unzipped files.
FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
SET = IdxSet(
    name="fashion-mnist",
    title="Fashion-MNIST",
    torchvision="FashionMNIST",
    classes=(
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    licence="Zalando SE, MIT licence",
    sha256=FILES,
    others=dict.fromkeys(mnist.FILES.values(), "MNIST"),
)
SOURCE = SET.source("Fashion-MNIST, 28×28 clothes, or a fixed class-balanced subset; downloaded where missing")
