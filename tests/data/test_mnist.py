"""MNIST and notMNIST: small files of our own for every way to fail, the real files where they are at hand."""

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bayes_bench import data
from bayes_bench.data import catalogue, idx, idx_set, mnist, notmnist
from bayes_bench.data.spec import OODSpec, SourceSpec
from bayes_bench.errors import DataError, UsageError
from image_files import idx_bytes, letters, no_download, pixels

NOTMNIST = OODSpec(name="notMNIST", source="notmnist")


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
    monkeypatch.setattr(idx_set, "download", no_download)
    monkeypatch.setattr("torchvision.datasets.utils.download_url", no_download)
    return tmp_path


@pytest.fixture
def letters_beside(small_mnist: Path) -> Path:
    """The file of notMNIST beside the small MNIST, which has 40 other random images."""
    folder = small_mnist / notmnist.FOLDER
    folder.mkdir(parents=True)
    (folder / notmnist.FILE).write_bytes(idx_bytes(letters(40)))
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
    files = mnist.SET.load(small_mnist)
    label_of = dict(zip((im.tobytes() for im in files["train-images-idx3-ubyte"]), np.arange(300) % 10, strict=True))
    split = data.load_split(SMALL, small_mnist)
    for part in (split.train, split.validation):
        pixels = np.rint(part.x[:, 0] * 255).astype(np.uint8)
        assert [label_of[row.tobytes()] for row in pixels] == part.y.tolist()


def test_without_a_subset_all_that_remain_are_trained_on(small_mnist: Path) -> None:
    split = data.load_split(SourceSpec(source="mnist", validation=50), small_mnist)
    assert (len(split.train), len(split.validation)) == (250, 50)


def test_more_images_than_there_are(small_mnist: Path) -> None:
    with pytest.raises(UsageError, match=r"28 training and 5 validation images of the class '0' .* have 30"):
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
    monkeypatch.setattr(idx_set, "download", lambda *what: path.write_bytes(content))
    assert len(data.load_split(SMALL, small_mnist).train) == 100


def test_a_download_that_leaves_files_missing(small_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (small_mnist / mnist.FOLDER / "train-images-idx3-ubyte").unlink()
    monkeypatch.setattr(idx_set, "download", lambda *what: None)
    with pytest.raises(DataError, match="the download left train-images-idx3-ubyte missing"):
        data.load_split(SMALL, small_mnist)


def test_download_goes_through_torchvision_into_the_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    calls = []
    monkeypatch.setattr(torchvision.datasets, "MNIST", lambda root, download: calls.append((root, download)))
    mnist.SET.fetch(tmp_path / "new")
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
    digits = mnist.SET.load(letters_beside)["t10k-images-idx3-ubyte"][::-1]
    (letters_beside / notmnist.FOLDER / notmnist.FILE).write_bytes(idx_bytes(digits))
    with pytest.raises(DataError, match=r"100% of the images in .* are MNIST's own, not notMNIST's"):
        data.load_inputs(NOTMNIST, letters_beside, data.load_split(SMALL, letters_beside))


def test_notmnist_that_looks_otherwise_is_refused(letters_beside: Path) -> None:
    """Digits that are no MNIST at hand: they are too thin to be letters."""
    thin = pixels(np.random.default_rng(2), 40, white=0.08, grey=0.1)
    (letters_beside / notmnist.FOLDER / notmnist.FILE).write_bytes(idx_bytes(thin))
    with pytest.raises(DataError, match=r"does not hold notMNIST's letters: the mean intensity is 0\.13"):
        data.load_inputs(NOTMNIST, letters_beside, data.load_split(SMALL, letters_beside))


@pytest.mark.parametrize("shape", [(), (0, 28, 28), (3, 32, 32)])
def test_notmnist_of_another_shape_is_refused(shape: tuple[int, ...], letters_beside: Path) -> None:
    (letters_beside / notmnist.FOLDER / notmnist.FILE).write_bytes(idx_bytes(np.zeros(shape, np.uint8)))
    with pytest.raises(DataError, match=r"not images of 28×28; delete it and fetch notMNIST again"):
        data.load_inputs(NOTMNIST, letters_beside, data.load_split(SMALL, letters_beside))


def test_a_header_that_claims_more_than_there_is(small_mnist: Path) -> None:
    path = small_mnist / "MNIST" / "raw" / "train-images-idx3-ubyte"
    content = path.read_bytes()
    path.write_bytes(content[:4] + 3 * b"\xff\xff\xff\xff" + content[16:])
    with pytest.raises(DataError, match=r"is truncated: .* bytes where its header says [\d,]+; delete it"):
        data.load_split(SMALL, small_mnist)


def test_a_damaged_mnist_is_no_reason_to_refuse_letters(letters_beside: Path) -> None:
    split = data.load_split(SMALL, letters_beside)
    path = letters_beside / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    assert len(data.load_inputs(NOTMNIST, letters_beside, split).x) > 0


def test_notmnist_truncated(letters_beside: Path) -> None:
    path = letters_beside / notmnist.FOLDER / notmnist.FILE
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match="is truncated"):
        data.load_inputs(NOTMNIST, letters_beside, data.load_split(SMALL, letters_beside))


# --- notMNIST's letter folders


def write_letters(folder: Path, images: np.ndarray) -> None:
    """Images one after the other into A, B, … J, with names in another order than they are written in."""
    for number, image in enumerate(images):
        letter = folder / notmnist.LETTERS[number % 10]
        letter.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(letter / f"{(7 * number) % 1000:03}.png")


@pytest.fixture
def letter_folders(small_mnist: Path) -> Path:
    """notMNIST_small with four images of every letter and the two files that are known to be unreadable."""
    folder = small_mnist / "notMNIST" / "notMNIST_small"
    write_letters(folder, letters(40))
    for letter, name in notmnist.UNREADABLE.items():
        (folder / letter / name).touch()
    return small_mnist


def test_letter_folders_in_the_order_of_letters_and_names(letter_folders: Path) -> None:
    found = data.load_inputs(NOTMNIST, letter_folders, data.load_split(SMALL, letter_folders))
    order = sorted(range(40), key=lambda number: (number % 10, (7 * number) % 1000))
    np.testing.assert_array_equal(found.x[:, 0], letters(40)[order] / np.float32(255))
    assert found.notes == (
        "the 40 images of the letter folders notMNIST_small, not those of the t10k file",
        "2 of the published files that are known to be unreadable are left out",
    )


def test_letter_folders_below_the_data_root(letter_folders: Path) -> None:
    (letter_folders / "notMNIST" / "notMNIST_small").rename(letter_folders / "notMNIST_small")
    assert len(data.load_inputs(NOTMNIST, letter_folders, data.load_split(SMALL, letter_folders)).x) == 40


def test_an_unreadable_letter_is_named(letter_folders: Path) -> None:
    path = letter_folders / "notMNIST" / "notMNIST_small" / "C" / "014.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"cannot read the image .*C/014\.png"):
        data.load_inputs(NOTMNIST, letter_folders, data.load_split(SMALL, letter_folders))


def test_a_letter_of_another_size_is_named(letter_folders: Path) -> None:
    path = letter_folders / "notMNIST" / "notMNIST_small" / "B" / "007.png"
    Image.new("L", (28, 30)).save(path)
    with pytest.raises(DataError, match=r"B/007\.png is 30×28 pixels, not 28×28"):
        data.load_inputs(NOTMNIST, letter_folders, data.load_split(SMALL, letter_folders))


def test_a_missing_letter_is_named(letter_folders: Path) -> None:
    (letter_folders / "notMNIST" / "notMNIST_small" / "H").rename(letter_folders / "elsewhere")
    with pytest.raises(
        DataError, match="notMNIST_small has no folder H; unpack notMNIST_small again, with all of A to J"
    ):
        data.load_inputs(NOTMNIST, letter_folders, data.load_split(SMALL, letter_folders))


def test_a_missing_letter_is_looked_for_where_the_others_are(letter_folders: Path) -> None:
    folder = letter_folders / "notMNIST" / "notMNIST_small"
    (folder / "H").rename(letter_folders / "elsewhere")
    assert catalogue.overview(letter_folders, {})[-1].found.folder == Path("notMNIST/notMNIST_small")
    with pytest.raises(DataError, match=f"notMNIST is missing: H not found in {folder}"):
        notmnist.DATA_FILES.provide(letter_folders)


def test_letter_folders_with_digits_are_refused(letter_folders: Path) -> None:
    digits = mnist.SET.load(letter_folders)["t10k-images-idx3-ubyte"]
    write_letters(letter_folders / "notMNIST" / "notMNIST_small", digits[:40])
    with pytest.raises(DataError, match=r"100% of the images in .*notMNIST_small are MNIST's own"):
        data.load_inputs(NOTMNIST, letter_folders, data.load_split(SMALL, letter_folders))


def test_notmnist_is_fetched_checked_and_kept_zipped(small_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = idx_bytes(letters(30))

    def download(address: str, root: str, filename: str) -> None:
        assert address == notmnist.ADDRESS
        (Path(root) / filename).write_bytes(gzip.compress(content))

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)
    folder = small_mnist / notmnist.FOLDER
    with pytest.raises(DataError, match="gave another file than the published one"):
        notmnist.fetch(small_mnist)
    assert list(folder.iterdir()) == []
    monkeypatch.setattr(notmnist, "SHA256", hashlib.sha256(content).hexdigest())
    found = data.load_inputs(NOTMNIST, small_mnist, data.load_split(SMALL, small_mnist))
    assert found.notes == ()
    assert [path.name for path in folder.iterdir()] == [f"{notmnist.FILE}.gz"]


def test_an_interrupted_download_of_notmnist_leaves_nothing(small_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = idx_bytes(letters(30))
    monkeypatch.setattr(notmnist, "SHA256", hashlib.sha256(content).hexdigest())
    folder = small_mnist / notmnist.FOLDER

    def interrupted(address: str, root: str, filename: str) -> None:
        (Path(root) / filename).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("torchvision.datasets.utils.download_url", interrupted)
    with pytest.raises(KeyboardInterrupt):
        notmnist.fetch(small_mnist)
    assert list(folder.iterdir()) == []

    def download(address: str, root: str, filename: str) -> None:
        if not (Path(root) / filename).exists():  # torchvision keeps what is there
            (Path(root) / filename).write_bytes(gzip.compress(content))

    (folder / f"{notmnist.FILE}.part.gz").write_bytes(b"of a process that was killed")
    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)
    notmnist.fetch(small_mnist)
    assert [path.name for path in folder.iterdir()] == [f"{notmnist.FILE}.gz"]


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
