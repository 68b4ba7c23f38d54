"""A user's own data: CSV, NPZ and image folders, and new inputs for predictions."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bayes_bench import data
from bayes_bench.data import Reading, read_inputs
from bayes_bench.data.spec import OODSpec, SourceSpec
from bayes_bench.errors import DataError, UsageError


def load(source: str, path: Path, kind: data.Kind = "classification", **options: Any) -> data.Split:
    spec = SourceSpec(source=source, path=str(path), **options)
    return data.load_split(spec, Path("unused"), kind)


def load_ood(source: str, path: Path, split: data.Split, **options: Any) -> data.Inputs:
    spec = OODSpec(name="out", source=source, path=str(path), **options)
    return data.load_inputs(spec, Path("unused"), split)


# --- CSV


def write_csv(path: Path, n: int = 100) -> np.ndarray:
    """Columns a, label, b, with a = 0, 1, 2, …, b = −a/2, and label by a modulo 3; returns a."""
    names = ("red", "green", "blue")
    rows = [f"{i},{names[i % 3]},{-i / 2}" for i in range(n)]
    path.write_text("a,label,b\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return np.arange(n)


def test_csv_classification(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    a = write_csv(path)
    split = load("csv", path, target="label", validation=0.1, test=0.3)
    parts = (split.train, split.validation, split.test)
    assert [len(part) for part in parts] == [60, 10, 30]
    assert split.classes == ("blue", "green", "red")
    assert split.features == ("a", "b")
    seen = np.concatenate([part.x for part in parts])
    np.testing.assert_array_equal(np.sort(seen[:, 0]), a)
    np.testing.assert_array_equal(seen[:, 1], -seen[:, 0] / 2)
    for part in parts:
        assert part.y.tolist() == [(2, 1, 0)[int(value) % 3] for value in part.x[:, 0]]
        assert np.ptp(np.bincount(part.y)) <= 2


def test_csv_split_seed_belongs_to_the_task(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_csv(path)
    first, again = (load("csv", path, target="label").test.x for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, load("csv", path, target="label", split_seed=1).test.x)


def test_csv_regression_with_two_targets_and_chosen_features(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("x;y;z;name\n" + "".join(f"{i};{2 * i};{3 * i};n{i}\n" for i in range(20)))
    split = load("csv", path, "regression", target=["y", "z"], features=["x"], delimiter=";")
    assert split.classes == ()
    assert split.train.y.dtype == np.float64
    assert split.train.y.shape == (13, 2)
    np.testing.assert_array_equal(split.train.y, split.train.x * [2, 3])


def test_csv_kind_option_overrules_nothing_but_decides_alone(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("x,y\n" + "".join(f"{i},{i % 2}\n" for i in range(20)))
    spec = SourceSpec(source="csv", path=str(path), target="y", kind="regression")
    assert data.load_split(spec, tmp_path).train.y.shape == (13, 1)


def test_csv_test_file(tmp_path: Path) -> None:
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    write_csv(train)
    test.write_text("b,a,label\n7,1000,green\n8,1001,red\n")
    split = load("csv", train, target="label", test_path=str(test), validation=0.2)
    assert (len(split.train), len(split.validation)) == (80, 20)
    np.testing.assert_array_equal(split.test.x, [[1000, 7], [1001, 8]])  # columns by name, not by place
    assert split.test.y.tolist() == [1, 2]
    test.write_text("a,b,label\n1,2,red\n3,4,violet\n")
    with pytest.raises(DataError, match=r"test.csv, line 3: class 'violet' of column 'label' does not occur"):
        load("csv", train, target="label", test_path=str(test))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b,label\n1,2,u\n3,,v\n", "line 3: column 'b' has a missing value ('')"),
        ("a,b,label\n1,2,u\n\n3,NA,v\n", "line 4: column 'b' has a missing value ('NA')"),
        ("a,b,label\n1,nan,u\n3,4,v\n", "line 2: column 'b' has a missing value ('nan')"),
        ("a,b,label\n1,2,u\nblue,4,v\n", "line 3: column 'a' is not a number ('blue'); encode"),
        ("a,b,label\n1,2,u\n1e99,4,v\n", "line 3: column 'a' is not a finite single-precision number"),
        ("a,b,label\n1,2,u\n3,4,\n", "line 3: column 'label' is empty"),
        ("a,b,label\n1,2,u\n3,4\n", "line 3: 2 cells, the header has 3"),
        ('a,b,label\n1,"2\n",u\n3,x,v\n', "line 4: column 'b' is not a number ('x')"),
        ("a,a,label\n1,2,u\n", "line 1: column named twice: a"),
        ("1,2,3\n4,5,6\n", "line 1: only numbers; the first line must name the columns"),
        ("a,b,label\n", "has no examples"),
        ("", "has no examples"),
        ("a,b,class\n1,2,u\n", "has no column 'label'; it has a, b, class"),
        ("label\nu\nv\n", "has no feature columns beside the target"),
    ],
)
def test_csv_errors_name_line_and_column(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        load("csv", path, target="label")
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_csv_with_very_many_columns_is_read_in_a_moment(tmp_path: Path) -> None:
    path, columns = tmp_path / "wide.csv", 100_000
    rows = [",".join([*("1" for _ in range(columns)), label]) for label in "uvuvuv"]
    path.write_text("\n".join([",".join([*map("c{}".format, range(columns)), "label"]), *rows]))
    started = time.perf_counter()
    assert load("csv", path, target="label").input_shape == (columns,)
    with pytest.raises(DataError, match=r"has no column 'nothing'; it has c0, .* …$"):
        load("csv", path, target="nothing")
    assert time.perf_counter() - started < 20  # minutes, where every column is looked for among all


def test_csv_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none.csv: No such file"):
        load("csv", tmp_path / "none.csv", target="y")
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"a,b\n\xff\xfe,1\n")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        load("csv", binary, target="a")


def test_csv_targets_and_features_must_make_sense(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_csv(path)
    with pytest.raises(UsageError, match="one target column, got 2"):
        load("csv", path, target=["a", "label"])
    with pytest.raises(UsageError, match="a is both feature and target"):
        load("csv", path, target="a", features=["a", "b"])


def test_csv_with_a_class_that_training_would_never_see(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,label\n" + "".join(f"{i},u\n" for i in range(9)) + "9,v\n")
    # The only example of class v is in the middle of the order, which here is set apart for testing.
    with pytest.raises(DataError, match="class number 1 has too few examples to keep one for training"):
        load("csv", path, target="label", validation=0.3, test=0.4)


def test_a_class_without_test_examples_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,label\n" + "0,v\n" + "".join(f"{i},u\n" for i in range(1, 30)))
    assert load("csv", path, target="label", split_seed=1).notes == (
        "no validation example of the class 'v': too few examples to set one apart",
        "no test example of the class 'v': too few examples to set one apart",
    )


def test_quantities_without_a_likelihood_of_a_regression(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,y\n" + "".join(f"{i},{i / 2}\n" for i in range(30)))
    with pytest.raises(DataError, match=r"column 'y' holds numbers such as 0.5, which are no classes; give the task a"):
        load("csv", path, target="y")


def test_fractions_must_leave_something(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_csv(path)
    with pytest.raises(DataError, match=r"validation and test take 1\.1 of the data"):
        load("csv", path, target="label", validation=0.5, test=0.6)
    write_csv(path, n=2)
    with pytest.raises(DataError, match=r"2 examples cannot be split into 1 \+ 1 and a rest"):
        load("csv", path, target="label")


def test_csv_as_out_of_distribution(tmp_path: Path) -> None:
    path, other = tmp_path / "table.csv", tmp_path / "other.csv"
    write_csv(path)
    split = load("csv", path, target="label")
    other.write_text("extra,b,a\nu,1,2\nv,3,4\n")
    np.testing.assert_array_equal(load_ood("csv", other, split).x, [[2, 1], [4, 3]])
    other.write_text("b,c\n1,2\n")
    with pytest.raises(DataError, match=r"other.csv has no column 'a'; it has b, c"):
        load_ood("csv", other, split)
    with pytest.raises(DataError, match=r"100% of the out-of-distribution set 'out' are inputs of the task"):
        load_ood("csv", path, split)


# --- NPZ


def test_npz_splits_x_and_y(tmp_path: Path) -> None:
    path = tmp_path / "arrays.npz"
    x = np.arange(60.0).reshape(30, 2)
    np.savez(path, x=x, y=np.arange(30) % 3 + 5)
    split = load("npz", path)
    assert [len(part) for part in (split.train, split.validation, split.test)] == [20, 4, 6]
    assert split.classes == ("5", "6", "7")
    for part in (split.train, split.validation, split.test):
        assert part.y.tolist() == [int(value) // 2 % 3 for value in part.x[:, 0]]


def test_npz_with_named_parts(tmp_path: Path) -> None:
    path = tmp_path / "arrays.npz"
    x = np.arange(40.0)
    arrays = {"x_train": x, "y_train": x, "x_test": x[:7] + 100, "y_test": x[:7], "x_validation": x[:3] + 200}
    np.savez(path, **arrays, y_validation=x[:3])
    split = load("npz", path, "regression")
    assert [part.x.shape for part in (split.train, split.validation, split.test)] == [(40, 1), (3, 1), (7, 1)]
    assert split.train.y.shape == (40, 1)
    np.savez(path, **{name: values for name, values in arrays.items() if name != "x_validation"})
    split = load("npz", path, "regression", validation=0.25)
    assert [len(part) for part in (split.train, split.validation, split.test)] == [30, 10, 7]
    np.savez(path, x_train=x, y_train=x, x_validation=x[:3] + 200, y_validation=x[:3])
    split = load("npz", path, "regression", test=0.25)
    assert [len(part) for part in (split.train, split.validation, split.test)] == [30, 3, 10]
    assert split.validation.x.min() == 200


@pytest.mark.parametrize(
    ("shape", "channels_last", "expected"),
    [((20, 5, 5), False, (1, 5, 5)), ((20, 3, 5, 4), False, (3, 5, 4)), ((20, 5, 4, 3), True, (3, 5, 4))],
)
def test_npz_images(tmp_path: Path, shape: tuple[int, ...], channels_last: bool, expected: tuple[int, ...]) -> None:
    path = tmp_path / "arrays.npz"
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(path, x=x, y=np.arange(20) % 2)
    split = load("npz", path, channels_last=channels_last)
    assert split.input_shape == expected
    assert split.train.x.dtype == np.float32
    known = {np.float32(value) for value in np.arange(256) / np.float32(255)}
    assert set(split.train.x.ravel().tolist()) <= {float(value) for value in known}
    if channels_last:
        images = {image.transpose(2, 0, 1).tobytes() for image in x}
        assert {np.rint(image * 255).astype(np.uint8).tobytes() for image in split.train.x} <= images


@pytest.mark.parametrize(
    ("arrays", "kind", "message"),
    [
        ({"a": np.zeros(3)}, "classification", "has no array 'x'; it has a"),
        ({"x": np.zeros(9), "y": np.zeros(8, int)}, "classification", "x has 9 examples, y has 8"),
        ({"x": np.zeros(9), "y": np.full(9, 0.5)}, "classification", "class labels must be whole numbers"),
        ({"x": np.zeros(9), "y": np.array(list("aabbaabba"))}, "regression", "targets must be numbers"),
        (
            {"x": np.array(list("aabbaabba")), "y": np.zeros(9)},
            "regression",
            "inputs must be an array of numbers",
        ),
        ({"x": np.zeros(9), "y": np.full(9, np.nan)}, "regression", "contain NaN or infinity"),
        ({"x": np.full((9, 2), np.inf), "y": np.zeros(9)}, "regression", "contain NaN or infinity"),
        (
            {
                "x_train": np.zeros(9),
                "y_train": np.arange(9) % 2,
                "x_test": np.ones(2),
                "y_test": np.array([0, 4]),
            },
            "classification",
            "class 4 (example 1) does not occur in the training examples",
        ),
        (
            {
                "x_train": np.zeros((9, 2)),
                "y_train": np.zeros(9),
                "x_test": np.ones(2),
                "y_test": np.zeros(2),
            },
            "regression",
            "inputs x_test have another shape than x_train",
        ),
        (
            {"x_train": np.zeros(9), "y_train": np.zeros(9), "x_test": np.ones(2)},
            "regression",
            "has no array 'y_test'",
        ),
        (
            {"x": np.full((9, 2), 1e300), "y": np.zeros(9)},
            "regression",
            "contain numbers beyond ±3.4e+38",
        ),
        ({"x": np.zeros((9,) + 17 * (1,)), "y": np.zeros(9)}, "regression", "an input has 17 dimensions, at most 16"),
    ],
)
def test_npz_errors(
    tmp_path: Path, arrays: dict[str, np.ndarray], kind: data.Kind, message: str, recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "arrays.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataError) as caught:
        load("npz", path, kind)
    assert message in str(caught.value)
    assert not recwarn.list


def test_npz_never_unpickles(tmp_path: Path) -> None:
    path = tmp_path / "arrays.npz"
    np.savez(path, x=np.array([{"a": 1}], dtype=object), y=np.zeros(1))
    with pytest.raises(DataError, match="holds Python objects, which are never unpickled"):
        load("npz", path)


def test_npz_damaged(tmp_path: Path) -> None:
    path = tmp_path / "arrays.npz"
    np.savez(path, x=np.zeros((100, 10)), y=np.zeros(100))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match="is not an NPZ or NPY file of plain arrays"):
        load("npz", path, "regression")
    with pytest.raises(DataError, match=r"cannot read .*none.npz"):
        load("npz", tmp_path / "none.npz")


def test_npz_as_out_of_distribution(tmp_path: Path) -> None:
    path, other = tmp_path / "arrays.npz", tmp_path / "other.npz"
    np.savez(path, x=np.arange(60.0).reshape(30, 2), y=np.arange(30) % 3)
    np.savez(other, far=np.full((4, 2), 1e3), wide=np.zeros((4, 3)))
    split = load("npz", path)
    assert load_ood("npz", other, split, key="far").x.tolist() == [[1e3, 1e3]] * 4
    with pytest.raises(DataError, match=r"inputs of shape \(3,\), the task's have \(2,\)"):
        load_ood("npz", other, split, key="wide")
    with pytest.raises(DataError, match=r"other.npz has no array 'x'; it has far, wide"):
        load_ood("npz", other, split)


# --- image folders


def write_images(root: Path, size: tuple[int, int] = (6, 5), mode: str = "RGB", per_class: int = 10) -> Path:
    """Folders ``dark`` and ``light``; (height, width) = size; grey level below or above 128."""
    for label, name in enumerate(("dark", "light")):
        folder = root / name
        folder.mkdir(parents=True)
        for i in range(per_class):
            level = 10 * i + 128 * label
            Image.new(mode, (size[1], size[0]), level if mode == "L" else (level, 0, level)).save(folder / f"{i}.png")
        (folder / "notes.txt").write_text("no image")
    return root


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_image_folder(tmp_path: Path, mode: str, channels: int) -> None:
    root = write_images(tmp_path / "images", mode=mode)
    split = load("image-folder", root, channels=channels)
    assert split.classes == ("dark", "light")
    assert split.input_shape == (channels, 6, 5)
    assert [len(part) for part in (split.train, split.validation, split.test)] == [13, 3, 4]
    seen = []
    for part in (split.train, split.validation, split.test):
        levels = np.rint(part.x[:, 0, 0, 0] * 255).astype(int)
        assert ((levels >= 128) == part.y).all()
        seen += levels.tolist()
        if channels == 3:
            assert (part.x[:, 1] == 0).all()
            np.testing.assert_array_equal(part.x[:, 0], part.x[:, 2])
    assert sorted(seen) == [10 * i + 128 * label for label in (0, 1) for i in range(10)]


def test_image_folder_test_path(tmp_path: Path) -> None:
    root, test = write_images(tmp_path / "train"), tmp_path / "test"
    (test / "light").mkdir(parents=True)
    Image.new("RGB", (5, 6), (200, 0, 200)).save(test / "light" / "a.png")
    split = load("image-folder", root, test_path=str(test))
    assert split.test.y.tolist() == [1]  # by the training folder's classes, though it is the only folder here
    assert len(split.train) + len(split.validation) == 20
    (test / "grey").mkdir()
    with pytest.raises(DataError, match=r"test has a class 'grey' that .*train has not"):
        load("image-folder", root, test_path=str(test))


def test_image_folder_sizes(tmp_path: Path) -> None:
    root = write_images(tmp_path / "images")
    Image.new("RGB", (10, 12), (255, 0, 0)).save(root / "light" / "odd.png")
    with pytest.raises(DataError, match=r"odd.png is 12×10 pixels, the first image 6×5; give `size"):
        load("image-folder", root)
    assert load("image-folder", root, size=[3, 4]).input_shape == (3, 3, 4)


def test_image_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the folder .*none"):
        load("image-folder", tmp_path / "none")
    root = write_images(tmp_path / "images")
    with pytest.raises(UsageError, match="the likelihood is for regression"):
        load("image-folder", root, "regression")
    (root / "light" / "broken.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(DataError, match=r"cannot read the image .*broken.png"):
        load("image-folder", root)
    (root / "empty").mkdir()
    (root / "light" / "broken.png").unlink()
    with pytest.raises(DataError, match=r"empty holds no images"):
        load("image-folder", root)
    with pytest.raises(DataError, match="at least 2 folders of images, one per class; it holds 0"):
        load("image-folder", root / "light")


def test_image_folder_as_out_of_distribution(tmp_path: Path) -> None:
    split = load("image-folder", write_images(tmp_path / "images"), channels=1)
    flat = tmp_path / "flat"
    (flat / "deeper").mkdir(parents=True)
    Image.new("RGB", (5, 6), (9, 9, 9)).save(flat / "a.png")
    Image.new("RGB", (10, 12), (255, 255, 255)).save(flat / "deeper" / "b.png")
    found = load_ood("image-folder", flat, split)
    assert found.x.shape == (2, 1, 6, 5)
    assert found.x.max() == 1
    assert found.notes == ("flat: 1 of 2 images resized to 6×5",)


# --- new inputs for predictions


def test_read_inputs_csv(tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    path.write_text("note,b,a\nu,1,2\n")
    assert read_inputs(path, (2,), Reading(("a", "b"))).x.tolist() == [[2, 1]]
    path.write_text("p0,p1,p2,p3\n1,2,3,4\n")
    assert read_inputs(path, (1, 2, 2)).x.tolist() == [[[[1, 2], [3, 4]]]]
    with pytest.raises(DataError, match="has no column 'a'"):
        read_inputs(path, (2,), Reading(("a", "b")))
    with pytest.raises(DataError, match="has 4 columns, but an input has 3 values"):
        read_inputs(path, (3,))


def test_read_inputs_arrays(tmp_path: Path) -> None:
    x = np.arange(8, dtype=np.float64).reshape(2, 4)
    np.save(tmp_path / "new.npy", x)
    np.savez(tmp_path / "new.npz", x=x.reshape(2, 2, 2))
    expected = x.reshape(2, 1, 2, 2)
    np.testing.assert_array_equal(read_inputs(tmp_path / "new.npy", (1, 2, 2)).x, expected)
    np.testing.assert_array_equal(read_inputs(tmp_path / "new.npz", (1, 2, 2)).x, expected)
    assert read_inputs(tmp_path / "new.npy", (4,)).x.dtype == np.float64
    with pytest.raises(DataError, match=r"inputs of shape \(4,\), the task's have \(3,\)"):
        read_inputs(tmp_path / "new.npy", (3,))
    np.save(tmp_path / "new.npy", np.full((1, 4), np.nan))
    with pytest.raises(DataError, match="contains NaN or infinity"):
        read_inputs(tmp_path / "new.npy", (4,))


def test_read_inputs_images(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 255).save(tmp_path / "a.png")
    assert read_inputs(tmp_path / "a.png", (1, 8, 8)).x.shape == (1, 1, 8, 8)
    assert read_inputs(tmp_path, (3, 4, 4)).x.tolist() == np.ones((1, 3, 4, 4)).tolist()
    with pytest.raises(DataError, match=r"images need inputs \[1 or 3, H, W\]"):
        read_inputs(tmp_path / "a.png", (64,))


def test_read_inputs_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "a.doc").write_text("1")
    with pytest.raises(DataError, match=r"give a \.csv, \.npz or \.npy file"):
        read_inputs(tmp_path / "a.doc", (1,))
    with pytest.raises(DataError, match="no such file or folder"):
        read_inputs(tmp_path / "none.csv", (1,))
