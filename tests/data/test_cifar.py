"""CIFAR-10: small batches of our own for every way to fail, the real files where they are at hand."""

from __future__ import annotations

import hashlib
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from bayes_bench import data
from bayes_bench.data import cifar, svhn
from bayes_bench.data.spec import OODSpec, SourceSpec
from bayes_bench.errors import DataError, UsageError
from bayes_bench.tasks.suites import load_suite
from bayes_bench.tasks.task import build_task


@pytest.fixture
def small_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root whose "CIFAR-10" has 5 × 40 + 30 random images; all checksums are those of these files."""
    rng = np.random.default_rng(0)
    folder = tmp_path / cifar.FOLDER
    folder.mkdir()
    contents: dict[str, Any] = {"batches.meta": {"label_names": list(cifar.CLASSES)}}
    for name in cifar.FILES:
        if name != "batches.meta":
            n = 30 if name == "test_batch" else 40
            images = rng.integers(0, 256, (n, 3 * 32 * 32), dtype=np.uint8)
            contents[name] = {"data": images, "labels": [int(i) % 10 for i in range(n)]}
    md5 = {}
    for name, content in contents.items():
        packed = pickle.dumps(content)
        (folder / name).write_bytes(packed)
        monkeypatch.setitem(cifar.FILES, name, hashlib.sha256(packed).hexdigest())
        md5[name] = hashlib.md5(packed).hexdigest()
    for listed in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, listed, [[name, md5[name]] for name, _ in getattr(CIFAR10, listed)])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5["batches.meta"]})

    def no_download(*what: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(cifar, "download", no_download)
    return tmp_path


def spec(**options: Any) -> SourceSpec:
    return SourceSpec.model_validate({"source": "cifar10", **options})


def rows(x: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in x}


def test_split_is_fixed_balanced_and_apart(small_cifar: Path) -> None:
    split = data.load_split(spec(validation_per_class=4), small_cifar)
    assert split.train.x.shape == (160, 3, 32, 32)
    assert split.train.x.dtype == np.float32
    assert (split.train.x.min(), split.train.x.max()) == (0.0, 1.0)
    assert np.bincount(split.validation.y).tolist() == [4] * 10
    assert np.bincount(split.train.y).tolist() == [16] * 10
    assert not rows(split.train.x) & rows(split.validation.x)
    assert split.classes == cifar.CLASSES
    again = data.load_split(spec(validation_per_class=4), small_cifar)
    assert np.array_equal(split.train.x, again.train.x)


def test_pixels_and_labels_are_those_of_the_batches(small_cifar: Path) -> None:
    split = data.load_split(spec(validation_per_class=4), small_cifar)
    batch = pickle.loads((small_cifar / cifar.FOLDER / "test_batch").read_bytes())
    assert np.array_equal(split.test.x, batch["data"].reshape(-1, 3, 32, 32) / np.float32(255))
    assert split.test.y.tolist() == batch["labels"]


def test_some_classes_are_numbered_in_their_order(small_cifar: Path) -> None:
    whole = data.load_split(spec(validation_per_class=4), small_cifar)
    some = data.load_split(spec(validation_per_class=4, classes=[7, 2]), small_cifar)
    assert some.classes == ("horse", "bird")
    for label, number in enumerate((7, 2)):
        for part in ("train", "validation", "test"):
            ours, theirs = getattr(some, part), getattr(whole, part)
            assert rows(ours.x[ours.y == label]) == rows(theirs.x[theirs.y == number])


def test_the_other_classes_are_an_out_of_distribution_set(small_cifar: Path) -> None:
    split = data.load_split(spec(validation_per_class=4, classes=[0, 1]), small_cifar)
    others = OODSpec.model_validate({"name": "others", "source": "cifar10", "classes": [2, 3, 4]})
    found = data.load_inputs(others, small_cifar, split)
    assert len(found.x) == 9
    assert not rows(found.x) & rows(split.test.x)
    same = OODSpec.model_validate({"name": "same", "source": "cifar10"})
    with pytest.raises(DataError, match="inputs of the task itself"):
        data.load_inputs(same, small_cifar, data.load_split(spec(validation_per_class=4), small_cifar))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": [3, 3]}, "every class once"),
        ({"classes": []}, "at least one"),
        ({"classes": [10]}, "classes"),
        (
            {"train_per_class": 18, "validation_per_class": 4},
            "18 training and 4 validation images of the class 'airplane'",
        ),
        ({"validation_per_class": 20}, "were asked for"),
    ],
)
def test_options_that_do_not_fit(small_cifar: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        data.load_split(spec(**options), small_cifar)


def test_missing_files_are_named(small_cifar: Path) -> None:
    (small_cifar / cifar.FOLDER / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"CIFAR-10 is missing: data_batch_3 .* the download failed \(no network"):
        data.load_split(spec(), small_cifar)


@pytest.mark.parametrize("name", list(cifar.FILES))
def test_truncated_files_are_refused(small_cifar: Path, name: str) -> None:
    path = small_cifar / cifar.FOLDER / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=f"{name} is not CIFAR-10's file"):
        data.load_split(spec(), small_cifar)


def test_a_foreign_batch_is_never_unpickled(small_cifar: Path, tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    (small_cifar / cifar.FOLDER / "data_batch_2").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(DataError, match="data_batch_2 is not CIFAR-10's file"):
        data.load_split(spec(), small_cifar)
    assert not (tmp_path / "executed").exists()


def test_an_optional_set_is_not_downloaded(small_cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(data_root: Path) -> None:
        pytest.fail("tried to download")

    assert svhn.SOURCE.files is not None
    monkeypatch.setattr(svhn, "SOURCE", replace(svhn.SOURCE, files=replace(svhn.SOURCE.files, fetch=download)))
    monkeypatch.setitem(data.SOURCES, "svhn", svhn.SOURCE)
    split = data.load_split(spec(validation_per_class=4), small_cifar)
    digits = OODSpec(name="SVHN", source="svhn", optional=True)
    with pytest.raises(DataError, match=r"SVHN is missing: .* bayes-bench data fetch svhn gets it"):
        data.load_inputs(digits, small_cifar, split)


REAL = os.environ.get("BAYES_BENCH_DATA")


@pytest.mark.skipif(not (REAL and (Path(REAL) / cifar.FOLDER).is_dir()), reason="needs CIFAR-10 in BAYES_BENCH_DATA")
def test_the_real_set() -> None:
    assert REAL
    (task,) = (build_task(task, Path(REAL)) for task in load_suite("cifar5").tasks)
    assert tuple(task.fit_data.train.x.shape) == (22_500, 3, 32, 32)
    assert len(task.test) == len(task.ood["other-classes"]) == 5000
    assert task.classes == ("airplane", "automobile", "bird", "cat", "deer")
    assert abs(task.standardiser.x_mean.mean() - 0.48) < 0.02
    network = task.build_network(0)
    assert sum(parameter.numel() for parameter in network.parameters()) == 89_861
