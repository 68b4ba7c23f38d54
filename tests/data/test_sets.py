"""Fashion-MNIST, KMNIST, SVHN, MNIST beside other tasks, and ``bayes-bench data``: small files of our own."""

from __future__ import annotations

import errno
import gzip
import hashlib
import http.client
import os
import socket
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from bayes_bench import cli, data
from bayes_bench.data import catalogue, fashion_mnist, files, idx_set, kmnist, mnist, notmnist, svhn
from bayes_bench.data.spec import OODSpec, SourceSpec
from bayes_bench.errors import DataError, UsageError
from image_files import idx_bytes, letters, no_download, pixels

COUNTS = {"train": 30, "t10k": 5}  # of each class


def write_set(root: Path, chosen: idx_set.IdxSet, seed: int, white: float, grey: float) -> dict[str, bytes]:
    """Four idx files with random images in the place of a set; returns their contents by name."""
    rng = np.random.default_rng(seed)
    folder = root / chosen.folder
    folder.mkdir(parents=True)
    contents = {}
    for part, each in COUNTS.items():
        contents[f"{part}-images-idx3-ubyte"] = idx_bytes(pixels(rng, 10 * each, white, grey))
        contents[f"{part}-labels-idx1-ubyte"] = idx_bytes(np.tile(np.roll(np.arange(10, dtype=np.uint8), seed), each))
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return contents


def sha256(contents: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


@pytest.fixture
def small_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with a small MNIST, Fashion-MNIST and KMNIST; their checksums and counts are those of these files."""
    digits = write_set(tmp_path, mnist.SET, 0, white=0.08, grey=0.1)
    clothes = write_set(tmp_path, fashion_mnist.SET, 1, white=0.2, grey=0.17)
    characters = write_set(tmp_path, kmnist.SET, 2, white=0.1, grey=0.18)
    assert kmnist.SET.content is not None
    known = replace(
        kmnist.SET.content,
        counts=COUNTS,
        md5={name: hashlib.md5(gzip.compress(content, mtime=0)).hexdigest() for name, content in characters.items()},
    )
    small = (
        replace(mnist.SET, sha256=sha256(digits)),
        replace(fashion_mnist.SET, sha256=sha256(clothes), others=dict.fromkeys(sha256(digits).values(), "MNIST")),
        replace(
            kmnist.SET,
            content=known,
            others=dict.fromkeys(sha256(digits).values(), "MNIST")
            | dict.fromkeys(sha256(clothes).values(), "Fashion-MNIST"),
        ),
    )
    for one in small:
        monkeypatch.setitem(data.SOURCES, one.name, one.source(""))
    monkeypatch.setattr(idx_set, "download", no_download)
    return tmp_path


def spec(source: str, **options: object) -> SourceSpec:
    return SourceSpec.model_validate({"source": source, "validation": 50, **options})


# --- the sets in MNIST's place


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist"])
def test_idx_sets_split_alike_and_each_in_its_own_way(small_sets: Path, name: str) -> None:
    split = data.load_split(spec(name, train_per_class=10), small_sets)
    assert np.bincount(split.train.y).tolist() == [10] * 10
    assert np.bincount(split.validation.y).tolist() == [5] * 10
    assert split.test.x.shape == (50, 1, 28, 28)
    assert len(set(split.classes)) == 10
    sets = (mnist.SET, fashion_mnist.SET, kmnist.SET)
    labels = np.arange(300) % 10
    options = idx_set.IdxSetOptions(train_per_class=10, validation=50)
    chosen = {one.name: one._balanced_subset(labels, options)[0].tolist() for one in sets}
    assert len(set(map(tuple, chosen.values()))) == 3


def test_idx_sets_as_out_of_distribution_are_their_test_images(small_sets: Path) -> None:
    split = data.load_split(spec("fashion-mnist"), small_sets)
    for folder, name in (("MNIST", "mnist"), ("KMNIST", "kmnist")):
        (small_sets / folder / "raw" / "train-images-idx3-ubyte").unlink()  # not needed for it
        found = data.load_inputs(OODSpec(name="other", source=name), small_sets, split)
        assert found.x.shape == (50, 1, 28, 28)
        content = (small_sets / folder / "raw" / "t10k-images-idx3-ubyte").read_bytes()[16:]
        np.testing.assert_array_equal(np.rint(found.x * 255).astype(np.uint8).tobytes(), content)


def test_a_set_as_out_of_distribution_of_itself_is_refused(small_sets: Path) -> None:
    split = data.load_split(spec("mnist"), small_sets)
    with pytest.raises(DataError, match="100% of the out-of-distribution set 'same' are inputs of the task itself"):
        data.load_inputs(OODSpec(name="same", source="mnist"), small_sets, split)


@pytest.mark.parametrize(
    ("name", "folder", "other", "message"),
    [
        ("fashion-mnist", "FashionMNIST", "MNIST", "is MNIST's file, not Fashion-MNIST's"),
        ("kmnist", "KMNIST", "MNIST", "is MNIST's file, not KMNIST's"),
        ("kmnist", "KMNIST", "FashionMNIST", "is Fashion-MNIST's file, not KMNIST's"),
        ("mnist", "MNIST", "KMNIST", r"is not MNIST's file \(SHA-256"),
    ],
)
def test_files_of_another_set_are_refused(small_sets: Path, name: str, folder: str, other: str, message: str) -> None:
    file = Path("raw") / "train-images-idx3-ubyte"
    (small_sets / folder / file).write_bytes((small_sets / other / file).read_bytes())
    with pytest.raises(DataError, match=message):
        data.load_split(spec(name), small_sets)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("t10k-images-idx3-ubyte", idx_bytes(np.zeros((50, 28, 28), np.uint8)), r"the mean intensity is 0\.000"),
        ("t10k-images-idx3-ubyte", idx_bytes(np.zeros((49, 28, 28), np.uint8)), r"values of shape \(49, 28, 28\), not"),
        ("t10k-labels-idx1-ubyte", idx_bytes(np.zeros(50, np.uint8)), "its labels are not 5 of each of 10 classes"),
        ("t10k-labels-idx1-ubyte", idx_bytes(np.tile(np.arange(1, 11, dtype=np.uint8), 5)), "its labels are not"),
        ("t10k-labels-idx1-ubyte", b"\0\0\x08\x01\0\0", "is not an idx file of bytes"),
    ],
    ids=["black", "one image less", "one class", "labels from 1", "truncated"],
)
def test_kmnist_is_known_by_its_content(small_sets: Path, file: str, content: bytes, message: str) -> None:
    path = small_sets / "KMNIST" / "raw" / file
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        data.load_split(spec("kmnist"), small_sets)


def test_kmnist_is_known_by_the_checksums_of_its_gzipped_files(small_sets: Path) -> None:
    folder = small_sets / "KMNIST" / "raw"
    before = data.load_split(spec("kmnist"), small_sets)
    for path in list(folder.iterdir()):
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
        path.write_bytes(b"the gzipped file is the one that is read")
    np.testing.assert_array_equal(data.load_split(spec("kmnist"), small_sets).train.x, before.train.x)
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), mtime=1))
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz is not KMNIST's file \(MD5"):
        data.load_split(spec("kmnist"), small_sets)


def test_missing_kmnist_says_how_to_get_it(small_sets: Path) -> None:
    (small_sets / "KMNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError) as caught:
        data.load_split(spec("kmnist"), small_sets)
    assert "KMNIST is missing: t10k-labels-idx1-ubyte not found in" in str(caught.value)
    assert "torchvision.datasets.KMNIST('DIR', download=True)" in str(caught.value)


# --- SVHN


@pytest.fixture
def small_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with an "SVHN" of 200 + 60 random images; its checksums are those of these files."""
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    (tmp_path / svhn.FOLDER).mkdir()
    for name, n in (("train_32x32.mat", 200), ("test_32x32.mat", 60)):
        path = tmp_path / svhn.FOLDER / name
        images = rng.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
        savemat(path, {"X": images, "y": (np.arange(n) % 10 + 1).astype(np.uint8)[:, None]})
        monkeypatch.setitem(svhn.FILES, name, hashlib.md5(path.read_bytes()).hexdigest())

    def no_class(*arguments: object, **options: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr("torchvision.datasets.SVHN", no_class)
    return tmp_path


def test_svhn_is_what_torchvision_makes_of_it(small_svhn: Path) -> None:
    from torchvision.datasets.svhn import SVHN

    class Unchecked(SVHN):
        def _check_integrity(self) -> bool:
            return True

    theirs = Unchecked(str(small_svhn / svhn.FOLDER), split="test")
    split = data.load_split(spec("svhn"), small_svhn)
    np.testing.assert_array_equal(split.test.x, theirs.data / np.float32(255))
    assert split.test.y.tolist() == theirs.labels.tolist()
    assert split.test.y.tolist()[:10] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


def test_svhn_split_is_fixed_and_apart(small_svhn: Path) -> None:
    split = data.load_split(spec("svhn"), small_svhn)
    assert split.train.x.shape == (150, 3, 32, 32)
    assert np.bincount(split.validation.y).tolist() == [5] * 10
    rows = [{row.tobytes() for row in part.x} for part in (split.train, split.validation)]
    assert not rows[0] & rows[1]
    np.testing.assert_array_equal(split.train.x, data.load_split(spec("svhn"), small_svhn).train.x)


def test_svhn_in_the_data_root_itself_and_without_its_training_file(small_svhn: Path) -> None:
    (small_svhn / svhn.FOLDER / "test_32x32.mat").rename(small_svhn / "test_32x32.mat")
    split = data.load_split(spec("svhn"), small_svhn)
    (small_svhn / svhn.FOLDER / "train_32x32.mat").unlink()
    beside = replace(split, test=split.train)
    found = data.load_inputs(OODSpec(name="numbers", source="svhn"), small_svhn, beside)
    np.testing.assert_array_equal(found.x, split.test.x)
    with pytest.raises(
        DataError, match=r"SVHN is missing: train_32x32.mat not found in .* the download failed \(no net"
    ):
        data.load_split(spec("svhn"), small_svhn)


def test_an_svhn_file_is_checked_before_it_is_decoded(small_svhn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(path: Path) -> None:
        raise AssertionError("the file was given to the decoder")

    monkeypatch.setattr("scipy.io.loadmat", decoded)
    for damage in (lambda content: content[:-10], lambda content: b"MATLAB" + content[6:]):
        path = small_svhn / svhn.FOLDER / "test_32x32.mat"
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(DataError, match=r"test_32x32.mat is not SVHN's file \(MD5"):
            svhn.read(path)


def test_svhn_is_fetched_by_torchvision_as_far_as_it_is_missing(
    small_svhn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_svhn / svhn.FOLDER / "test_32x32.mat"
    content = path.read_bytes()
    path.unlink()
    calls = []

    def fetch(root: str, split: str, download: bool) -> None:
        calls.append((root, split, download))
        path.write_bytes(content)

    monkeypatch.setattr("torchvision.datasets.SVHN", fetch)
    assert len(data.load_split(spec("svhn"), small_svhn).test) == 60
    assert calls == [(str(small_svhn / svhn.FOLDER), "test", True)]


# --- bayes-bench data


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["data", *map(str, arguments)])
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def test_every_set_with_files_is_known() -> None:
    assert sorted(catalogue.known()) == ["cifar10", "fashion-mnist", "kmnist", "mnist", "notmnist", "svhn"]


def test_list_says_what_is_there_and_who_needs_it(small_sets: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    (small_sets / "KMNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    code, out, _ = call("list", "--data-root", small_sets)
    assert code == 0
    rows = {line.split()[0]: " ".join(line.split()) for line in out.splitlines() if line.strip()}
    assert "mnist present 0.262 MB MNIST/raw ablation, mnist-5000, mnist" in rows["mnist"]
    assert "kmnist partly there" in rows["kmnist"]
    assert "svhn missing svhn cifar10" in rows["svhn"]
    assert f"Data root: {small_sets}" in out


def test_verify_reads_what_is_there(small_sets: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = call("verify", "--data-root", small_sets)
    lines = dict(line.split(": ", 1) for line in out.splitlines())
    assert code == 0
    assert lines["mnist"] == "intact: SHA-256 as published"
    assert lines["kmnist"] == "intact: sizes, labels and intensities as published"
    assert lines["cifar10"].startswith("missing: batches.meta, data_batch_1")
    path = small_sets / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    code, out, _ = call("verify", "--data-root", small_sets)
    assert code == 1
    assert "fashion-mnist: damaged: " in out
    assert "is truncated" in out
    assert "kmnist: intact" in out  # the others are looked at all the same


def test_verify_says_how_notmnist_was_recognised(small_sets: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    folder = small_sets / notmnist.FOLDER
    folder.mkdir(parents=True)
    (folder / notmnist.FILE).write_bytes(idx_bytes(letters(40)))
    code, out, _ = call("verify", "notmnist", "--data-root", small_sets)
    assert code == 0
    assert "notmnist: intact: intensities as published; not the published t10k file (SHA-256" in out
    (folder / notmnist.FILE).write_bytes((small_sets / "MNIST" / "raw" / "t10k-images-idx3-ubyte").read_bytes())
    code, out, _ = call("verify", "notmnist", "--data-root", small_sets)
    assert code == 1
    assert "are MNIST's own, not notMNIST's" in out


def test_a_set_that_may_not_be_read_is_its_own_problem(
    small_sets: Path, call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(root: Path) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(root / svhn.FOLDER))

    files = replace(catalogue.known()["svhn"], look=refuse)
    source = replace(data.SOURCES["svhn"], files=files)
    monkeypatch.setattr(data, "SOURCES", {**data.SOURCES, "svhn": source})
    code, out, _ = call("list", "--data-root", small_sets)
    assert (code, "svhn            unreadable" in out) == (0, True)
    code, out, _ = call("verify", "--data-root", small_sets)
    assert code == 1
    assert f"svhn: unreadable: cannot read {small_sets / svhn.FOLDER}: Permission denied; allow it" in out
    assert "kmnist: intact" in out
    code, _, err = call("fetch", "svhn", "--data-root", small_sets)
    assert (code, "Permission denied" in err) == (2, True)


def test_verify_of_a_named_set(small_sets: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    assert call("verify", "mnist", "kmnist", "--data-root", small_sets)[0] == 0
    code, out, _ = call("verify", "mnist", "svhn", "--data-root", small_sets)
    assert code == 1
    assert "svhn: missing: train_32x32.mat, test_32x32.mat not found in" in out
    assert "to get it: bayes-bench data fetch svhn" in out
    (small_sets / "MNIST" / "raw" / "train-labels-idx1-ubyte").unlink()
    code, out, _ = call("verify", "mnist", "--data-root", small_sets)
    assert code == 1
    assert "mnist: partly there: train-labels-idx1-ubyte not found in" in out
    assert call("verify", "--data-root", small_sets)[0] == 0


def test_unknown_names_are_told_the_known_ones(tmp_path: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    for command in ("verify", "fetch"):
        code, _, err = call(command, "mnits", "--data-root", tmp_path)
        assert code == 2
        assert err.startswith("Error: unknown data set 'mnits', did you mean 'mnist'? known: cifar10, fashion-mnist")
    code, _, err = call("verfy")
    assert (code, err) == (2, "Error: unknown command 'verfy', did you mean 'verify'? known: fetch, list, verify\n")


def test_fetch_downloads_what_is_missing_and_checks_it(
    small_sets: Path, call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_sets / "MNIST" / "raw" / "train-images-idx3-ubyte"
    content = path.read_bytes()
    code, out, _ = call("fetch", "mnist", "--data-root", small_sets)
    assert (code, out) == (0, f"mnist: already there, SHA-256 as published ({path.parent})\n")
    path.unlink()
    code, _, err = call("fetch", "mnist", "--data-root", small_sets)
    assert code == 2
    assert "MNIST is missing: train-images-idx3-ubyte not found in" in err
    assert "the download failed (no network in this test); get it where there is internet" in err
    monkeypatch.setattr(idx_set, "download", lambda *what: path.write_bytes(content))
    code, out, _ = call("fetch", "mnist", "--data-root", small_sets)
    assert (code, out) == (0, f"mnist: fetched, SHA-256 as published ({path.parent})\n")
    path.unlink()
    monkeypatch.setattr(idx_set, "download", lambda *what: path.write_bytes(content[:-5]))
    code, _, err = call("fetch", "mnist", "--data-root", small_sets)
    assert code == 2
    assert "is truncated" in err


def test_fetch_needs_a_name(call: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = call("fetch")
    assert code == 2
    assert "Missing argument 'NAME...'" in err


# --- the real files


@pytest.mark.data
@pytest.mark.parametrize("name", ["mnist", "notmnist", "cifar10", "fashion-mnist", "kmnist", "svhn"])
def test_real_sets_are_intact(name: str) -> None:
    root = data.resolve_data_root()
    if "BAYES_BENCH_DATA" not in os.environ or catalogue.known()[name].look(root).state == "missing":
        pytest.skip(f"no {name} in BAYES_BENCH_DATA")
    assert "as published" in catalogue.known()[name].check(root)


@pytest.mark.data
def test_real_statistics_are_inside_the_stated_ranges_and_mnist_outside() -> None:
    root = data.resolve_data_root()
    for found in (mnist.SET.files.look(root), notmnist.DATA_FILES.look(root)):
        if "BAYES_BENCH_DATA" not in os.environ or found.state != "present":
            pytest.skip("no MNIST and notMNIST in BAYES_BENCH_DATA")
    images, _ = notmnist.load(root)
    digits = mnist.SET.load(root, ("t10k",))["t10k-images-idx3-ubyte"]
    rng = np.random.default_rng(0)
    for _ in range(20):
        idx_set.check_statistics(images[rng.choice(len(images), 500)], notmnist.MEAN, notmnist.STD, "letters")
    assert kmnist.SET.content is not None
    for mean, std in ((notmnist.MEAN, notmnist.STD), (kmnist.SET.content.mean, kmnist.SET.content.std)):
        with pytest.raises(DataError, match=r"digits: the mean intensity is 0\.133"):
            idx_set.check_statistics(digits, mean, std, "digits")


def test_names_of_no_set_are_an_error() -> None:
    with pytest.raises(UsageError, match="unknown data set 'digits'"):
        catalogue.chosen(("digits",))


def test_whatever_a_server_answers_is_a_failed_download(tmp_path: Path) -> None:
    def fetch(data_root: Path) -> None:
        raise http.client.BadStatusLine("neither OSError nor RuntimeError")

    with pytest.raises(DataError, match=r"the download failed \(neither OSError"):
        replace(mnist.SOURCE.files, fetch=fetch).provide(tmp_path)


def test_the_remedy_for_svhn_names_what_is_missing(small_svhn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*arguments: object, **options: object) -> None:
        raise OSError("offline")

    monkeypatch.setattr("torchvision.datasets.SVHN", fetch)
    (small_svhn / svhn.FOLDER / "train_32x32.mat").unlink()
    with pytest.raises(DataError, match=r"SVHN\('DIR/svhn', 'train', download=True\)\"\)"):
        data.load_split(spec("svhn"), small_svhn)


def test_a_server_that_says_nothing_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SILENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def fetch(data_root: Path) -> None:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.getsockname()[1]}/") as answer:
                answer.read()

        silent = replace(mnist.SOURCE.files, fetch=fetch)
        with pytest.raises(DataError, match=r"the download failed .*timed out"):
            silent.provide(tmp_path)
    assert socket.getdefaulttimeout() is None
