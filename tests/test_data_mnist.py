"""MNIST and notMNIST: small files of our own for every way to fail, the real files where they are at hand."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from bayes_bench import data
from bayes_bench.data import idx, mnist, notmnist
from bayes_bench.errors import DataError, UsageError
from bayes_bench.suite import OODSpec, SourceSpec

NOTMNIST = OODSpec(name="notMNIST", source="notmnist")


def idx_bytes(values: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def no_download(data_root: Path) -> None:
    raise OSError("no network in this test")


@pytest.fixture
def small_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root whose "MNIST" has 300 + 50 random images; the checksums are those of these files."""
    rng = np.random.default_rng(0)
    folder = tmp_path / mnist.FOLDER
    folder.mkdir(parents=True)
    for part, n in (("train", 300), ("t10k", 50)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        for name, values in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            content = idx_bytes(values)
            (folder / name).write_bytes(content)
            monkeypatch.setitem(mnist.FILES, name, hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(mnist, "download", no_download)
    return tmp_path


@pytest.fixture
def letters_beside(small_mnist: Path) -> Path:
    """The file of notMNIST beside the small MNIST, which has 40 other random images."""
    folder = small_mnist / notmnist.FOLDER
    folder.mkdir(parents=True)
    images = np.random.default_rng(1).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    (folder / notmnist.FILE).write_bytes(idx_bytes(images))
    return small_mnist


SMALL = SourceSpec(source="mnist", train_per_class=10, validation=50)


def test_subset_is_fixed_balanced_and_apart_from_validation(small_mnist: Path) -> None:
    split = data.load_split(SMALL, small_mnist)
    assert np.bincount(split.train.y).tolist() == [10] * 10
    assert np.bincount(split.validation.y).tolist() == [5] * 10
    assert split.test.x.shape == (50, 1, 28, 28)
    assert split.train.x.dtype == np.float32
    assert 0 <= split.train.x.min() < split.train.x.max() == 1
    train = {row.tobytes() for row in split.train.x}
    assert len(train) == 100
    assert not train & {row.tobytes() for row in split.validation.x}
    again = data.load_split(SMALL, small_mnist)
    np.testing.assert_array_equal(split.train.x, again.train.x)


def test_labels_stay_with_their_images(small_mnist: Path) -> None:
    files = mnist.load_files(small_mnist)
    label_of = dict(zip((im.tobytes() for im in files["train-images-idx3-ubyte"]), np.arange(300) % 10, strict=True))
    split = data.load_split(SMALL, small_mnist)
    for part in (split.train, split.validation):
        pixels = np.rint(part.x[:, 0] * 255).astype(np.uint8)
        assert [label_of[row.tobytes()] for row in pixels] == part.y.tolist()


def test_without_a_subset_all_that_remain_are_trained_on(small_mnist: Path) -> None:
    split = data.load_split(SourceSpec(source="mnist", validation=50), small_mnist)
    assert (len(split.train), len(split.validation)) == (250, 50)


def test_more_images_than_there_are(small_mnist: Path) -> None:
    with pytest.raises(UsageError, match=r"28 training and 5 validation images of the digit 0 .* has 30"):
        data.load_split(SourceSpec(source="mnist", train_per_class=28, validation=50), small_mnist)


def test_gzipped_files_are_read(small_mnist: Path) -> None:
    before = data.load_split(SMALL, small_mnist)
    for path in list((small_mnist / mnist.FOLDER).iterdir()):
        Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    np.testing.assert_array_equal(data.load_split(SMALL, small_mnist).train.x, before.train.x)


def test_missing_files_say_what_where_and_how(small_mnist: Path) -> None:
    folder = small_mnist / mnist.FOLDER
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError) as caught:
        data.load_split(SMALL, small_mnist)
    message = str(caught.value)
    assert "t10k-labels-idx1-ubyte not found in" in message
    assert "train-images" not in message
    assert str(folder) in message
    assert "the download failed (no network in this test)" in message
    assert "BAYES_BENCH_DATA" in message
    assert "--data-root" in message


def test_missing_files_are_downloaded(small_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small_mnist / mnist.FOLDER / "train-images-idx3-ubyte"
    content = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(mnist, "download", lambda root: path.write_bytes(content))
    assert len(data.load_split(SMALL, small_mnist).train) == 100


def test_a_download_that_leaves_files_missing(small_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (small_mnist / mnist.FOLDER / "train-images-idx3-ubyte").unlink()
    monkeypatch.setattr(mnist, "download", lambda root: None)
    with pytest.raises(DataError, match="the download left train-images-idx3-ubyte missing"):
        data.load_split(SMALL, small_mnist)


def test_download_goes_through_torchvision_into_the_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    calls = []
    monkeypatch.setattr(torchvision.datasets, "MNIST", lambda root, download: calls.append((root, download)))
    mnist.download(tmp_path / "new")
    assert calls == [(str(tmp_path / "new"), True)]


def test_truncated_file(small_mnist: Path) -> None:
    path = small_mnist / mnist.FOLDER / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"is truncated: 234,216 bytes where its header says 235,216; delete it"):
        data.load_split(SMALL, small_mnist)


def test_truncated_gzip(small_mnist: Path) -> None:
    path = small_mnist / mnist.FOLDER / "train-images-idx3-ubyte"
    Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes())[:-100])
    path.unlink()
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz is damaged or truncated"):
        data.load_split(SMALL, small_mnist)


@pytest.mark.parametrize("content", [b"", b"\0\0\x08", b"\0\0\x08\x03\0\0", b"<html>not found</html>"])
def test_not_an_idx_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DataError, match="is not an idx file of bytes"):
        idx.read(path)


def test_changed_pixels_are_not_mnist(small_mnist: Path) -> None:
    path = small_mnist / mnist.FOLDER / "t10k-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte is not MNIST's file \(SHA-256"):
        data.load_split(SMALL, small_mnist)


def test_notmnist_inputs(letters_beside: Path) -> None:
    found = data.load_inputs(NOTMNIST, letters_beside, data.load_split(SMALL, letters_beside))
    assert found.x.shape == (40, 1, 28, 28)
    assert found.x.max() <= 1
    assert "not the published t10k file" in found.notes[0]


def test_notmnist_missing(small_mnist: Path) -> None:
    with pytest.raises(DataError) as caught:
        data.load_inputs(NOTMNIST, small_mnist, data.load_split(SMALL, small_mnist))
    message = str(caught.value)
    assert "t10k-images-idx3-ubyte not found in" in message
    assert str(small_mnist / notmnist.FOLDER) in message
    assert "davidflanagan/notMNIST-to-MNIST" in message
    assert "BAYES_BENCH_DATA" in message


@pytest.mark.parametrize("file", ["t10k-images-idx3-ubyte", "train-images-idx3-ubyte"])
def test_notmnist_that_is_mnist_is_refused(letters_beside: Path, file: str) -> None:
    """An empty folder that some loader has filled with MNIST itself."""
    own = (letters_beside / mnist.FOLDER / file).read_bytes()
    (letters_beside / notmnist.FOLDER / notmnist.FILE).write_bytes(own)
    with pytest.raises(DataError, match="is MNIST's own file, not notMNIST"):
        data.load_inputs(NOTMNIST, letters_beside, data.load_split(SMALL, letters_beside))


def test_notmnist_with_shuffled_digits_is_refused(letters_beside: Path) -> None:
    """Another file, but the same pixels in another order."""
    digits = mnist.load_files(letters_beside)["t10k-images-idx3-ubyte"][::-1]
    (letters_beside / notmnist.FOLDER / notmnist.FILE).write_bytes(idx_bytes(digits))
    with pytest.raises(DataError, match="100% of the out-of-distribution set 'notMNIST' are inputs of the task"):
        data.load_inputs(NOTMNIST, letters_beside, data.load_split(SMALL, letters_beside))


def test_notmnist_truncated(letters_beside: Path) -> None:
    path = letters_beside / notmnist.FOLDER / notmnist.FILE
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match="is truncated"):
        data.load_inputs(NOTMNIST, letters_beside, data.load_split(SMALL, letters_beside))


# --- the real files


@pytest.fixture(scope="module")
def real_root() -> Path:
    root = os.environ.get("BAYES_BENCH_DATA")
    if not root:
        pytest.skip("BAYES_BENCH_DATA is not set: the real MNIST and notMNIST are not at hand")
    if not (Path(root) / mnist.FOLDER).is_dir():
        pytest.skip(f"no MNIST in BAYES_BENCH_DATA ({root})")
    return Path(root)


@pytest.mark.data
def test_real_mnist_5000(real_root: Path) -> None:
    split = data.load_split(SourceSpec(source="mnist", train_per_class=500, validation=1000), real_root)
    assert np.bincount(split.train.y).tolist() == [500] * 10
    assert np.bincount(split.validation.y).tolist() == [100] * 10
    assert np.bincount(split.test.y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    # MNIST's published mean and standard deviation are .1307 and .3081.
    assert split.train.x.mean() == pytest.approx(0.1307, abs=0.002)
    assert split.train.x.std() == pytest.approx(0.3081, abs=0.002)
    digest = hashlib.sha256(split.train.x.tobytes() + split.train.y.tobytes()).hexdigest()
    assert digest == "5488f30a6e724a3f4d09671e25320cf98222fbb1c363b565b8db93d5d2bcee2f"


@pytest.mark.data
def test_real_notmnist(real_root: Path) -> None:
    if not (real_root / notmnist.FOLDER).is_dir():
        pytest.skip(f"no notMNIST in BAYES_BENCH_DATA ({real_root})")
    split = data.load_split(SourceSpec(source="mnist", train_per_class=10, validation=10), real_root)
    found = data.load_inputs(NOTMNIST, real_root, split)
    assert found.x.shape == (10_000, 1, 28, 28)
    assert found.notes == ()
    assert found.x.mean() > 2 * split.train.x.mean()  # letters of notMNIST are much bolder
