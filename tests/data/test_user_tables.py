"""Tables as people have them: delimiters, no header, categories, missing values, truth values, duplicates."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder

from bayes_bench import data
from bayes_bench.data import Preparation, Reading, read_inputs, table
from bayes_bench.data.spec import OODSpec, SourceSpec
from bayes_bench.data.table import Layout, Table
from bayes_bench.errors import DataError, UsageError


def load(path: Path, kind: data.Kind = "classification", **options: Any) -> data.Split:
    return data.load_split(SourceSpec(source="csv", path=str(path), **options), Path("unused"), kind)


def everything(split: data.Split) -> np.ndarray:
    """Inputs and targets of all parts, by rising first input."""
    rows = np.concatenate([np.column_stack([part.x, part.y]) for part in (split.train, split.validation, split.test)])
    return rows[np.argsort(rows[:, 0])]


# --- how a table is written


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", " ", "   "])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_delimiters_are_recognised(tmp_path: Path, delimiter: str, end: str) -> None:
    path = tmp_path / "a.csv"
    lines = [delimiter.join(("a", "b", "y")), *(delimiter.join((f"{i}", f"{i / 4}", f"{2 * i}")) for i in range(20))]
    path.write_bytes((end.join(lines) + end).encode("utf-8-sig"))
    split = load(path, "regression", target="y")
    assert split.features == ("a", "b")
    np.testing.assert_array_equal(everything(split), [[i, i / 4, 2 * i] for i in range(20)])


def test_a_column_of_words_is_no_table_of_white_space(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("sepal length\n5.1\n4.9\n")
    assert read_inputs(path, (1,), Reading(("sepal length",))).x.tolist() == [[5.1], [4.9]]


@pytest.mark.parametrize("named", [False, True])
def test_no_header_and_white_space_as_old_repositories_have_it(tmp_path: Path, named: bool) -> None:
    path = tmp_path / "housing.data"
    path.write_text("".join(f"  {i}.5   {i * i}  {'cat' if i % 2 else 'dog'} \n" for i in range(20)))
    options = {"names": ["a", "b", "animal"], "target": "animal"} if named else {"target": "3"}
    split = load(path, header=False, **options)
    assert split.features == (("a", "b") if named else ("1", "2"))
    assert split.classes == ("cat", "dog")
    expected = [[i + 0.5, i * i, (i + 1) % 2] for i in range(20)]
    np.testing.assert_array_equal(everything(split), expected)
    # New rows, without the target, come without a header too.
    new = tmp_path / "new.data"
    new.write_text("1.5 1\n2.5 4\n")
    layout = Layout(header=False, names=("a", "b", "animal") if named else ())
    if named:
        with pytest.raises(DataError, match="2 cells, but 3 names are given"):
            Table(new, layout)
    found = read_inputs(new, (2,), Reading(split.features, Layout(header=False)))
    assert found.x.tolist() == [[1.5, 1], [2.5, 4]]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("1,2,u\n3,4,v\n", {"header": False, "names": ["a", "label"]}, "line 1: 3 cells, but 2 names are given"),
        ("1,2,u\n3,4\n", {"header": False, "target": "3"}, "line 2: 2 cells, the first line has 3"),
        ("1,2,u\n3,x,v\n", {"header": False, "target": "3"}, "line 2: column '2' is not a number ('x')"),
        ("1,2,u\n3,4,v\n", {"header": False}, "has no column 'label'; it has 1, 2, 3"),
        (
            "a;label\n1,5;u\n2,5;v\n",
            {},
            "line 2: column 'a' is not a number ('1,5'); if the comma is a decimal one, say",
        ),
        (",a,label\n0,1,u\n1,2,v\n", {}, "line 1: column 1 has no name, like a row's number"),
        ("a,label,\n0,u,1\n1,v,2\n", {}, "line 1: column 3 has no name"),
        ("Unnamed: 0,a,label\n0,1,u\n", {}, "column 1 is called 'Unnamed: 0', like a row's number"),
        ("a,label\n1,u\n2,NA\n", {}, "line 3: column 'label' says that there is none ('NA'); fill or remove the row"),
        ("a,label\n1,u\n2,nan\n", {}, "line 3: column 'label' says that there is none ('nan')"),
        ("a,label\n1,u\n2,?\n", {}, "line 3: column 'label' says that there is none ('?')"),
        ("a,c,label\n1,x,u\n2,,v\n", {"categorical": ["c"]}, "line 3: column 'c' is empty"),
        ("a,c,label\n1,x,u\n2,y,v\n", {}, "say categorical = ['c']"),
        ("a b c\n1 2\n", {"delimiter": "whitespace", "target": "c"}, "line 2: 2 cells, the header has 3"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(
    tmp_path: Path, content: str, options: dict[str, Any], message: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        load(path, **{"target": "label"} | options)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_options_that_contradict_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,c,y\n" + "".join(f"{i},u,{i % 2}\n" for i in range(20)))
    with pytest.raises(UsageError, match="names are for a table without a header"):
        load(path, target="y", names=["a", "c", "y"])
    with pytest.raises(UsageError, match="categorical names d, which is no feature"):
        load(path, target="y", features=["a"], categorical=["d"])


def test_a_nameless_column_may_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(",a,y\n" + "".join(f"{100 + i},{i},{i % 2}\n" for i in range(20)))
    split = load(path, target="y", features=["a"])
    np.testing.assert_array_equal(everything(split)[:, 0], np.arange(20))


def test_decimal_commas(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a;y\n" + "".join(f"{i},25;{2 * i},5\n" for i in range(20)))
    split = load(path, "regression", target="y", decimal=",")
    np.testing.assert_array_equal(everything(split), [[i + 0.25, 2 * i + 0.5] for i in range(20)])


def test_truth_values_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b,y\n" + "".join(f"{i},{i % 3 == 0},{i}\n" for i in range(20)))
    np.testing.assert_array_equal(
        everything(load(path, "regression", target="y"))[:, 1], [i % 3 == 0 for i in range(20)]
    )
    np.savez(tmp_path / "a.npz", x=np.arange(20) % 2 == 0, y=np.arange(20) % 2 == 0)
    split = data.load_split(SourceSpec(source="npz", path=str(tmp_path / "a.npz")), tmp_path)
    assert split.classes == ("False", "True")
    np.testing.assert_array_equal(split.train.x[:, 0], split.train.y)


def test_labels_may_be_any_text(tmp_path: Path) -> None:
    labels = ["①", "²", "--5", "-", "٣", "5", "=1+1", "<b>"]
    path = tmp_path / "a.csv"
    path.write_text("a,y\n" + "".join(f"{i},{labels[i % 8]}\n" for i in range(80)), encoding="utf-8")
    split = load(path, target="y")
    assert split.classes == tuple(sorted(labels))
    assert [split.classes[y] for y in split.test.y] == [labels[int(a) % 8] for a in split.test.x[:, 0]]


def test_missing_labels_of_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(20.0), y=np.array(["u", "v", "NA", "nan"] * 5))
    with pytest.raises(DataError, match=r"example 2 has no label \('NA'\), nor have 9 more; leave them out, or rename"):
        data.load_split(SourceSpec(source="npz", path=str(tmp_path / "a.npz")), tmp_path)


# --- categories and missing values


def test_categories_are_those_of_the_training_rows(tmp_path: Path) -> None:
    path, test = tmp_path / "a.csv", tmp_path / "t.csv"
    rng = np.random.default_rng(0)
    codes, towns = rng.integers(1, 4, 60), np.array(["Oslo", "Bergen", "Ås"])[rng.integers(0, 3, 60)]
    path.write_text("town,a,code,y\n" + "".join(f"{towns[i]},{i},{codes[i]},{i % 2}\n" for i in range(60)))
    test.write_text("town,a,code,y\nOslo,100,7,0\nParis,101,1,1\n")
    split = load(path, target="y", categorical=["town", "code"], test_path=str(test))
    expected = ("a", "town = Bergen", "town = Oslo", "town = Ås", "code = 1", "code = 2", "code = 3")
    assert split.columns == expected
    assert split.features == ("town", "a", "code")
    rows = split.train.x[:, 0].astype(int)
    theirs = OneHotEncoder(sparse_output=False).fit(np.column_stack([towns, codes]).astype(object))
    np.testing.assert_array_equal(
        split.train.x[:, 1:], theirs.transform(np.column_stack([towns, codes])[rows].astype(object))
    )
    assert split.test.x.tolist() == [[100, 0, 1, 0, 0, 0, 0], [101, 0, 0, 0, 1, 0, 0]]
    assert split.notes[:2] == (
        "column 'town': 1 test row with a category that no training row has ('Paris'); all indicators of the column "
        "are 0 there",
        "column 'code': 1 test row with a category that no training row has ('7'); all indicators of the column are 0 "
        "there",
    )
    # New rows and out-of-distribution sets meet the same transformers, which survive as JSON.
    assert split.preparation is not None
    again = Preparation.from_json(split.preparation.as_json())
    assert again == split.preparation
    new = read_inputs(test, split.input_shape, Reading(split.features, preparation=again))
    np.testing.assert_array_equal(new.x, split.test.x)
    assert "1 row with a category that no training row has ('Paris')" in new.notes[0]
    far = data.load_inputs(
        OODSpec(name="far", source="csv", path=str(test)),
        tmp_path,
        load(path, target="y", categorical=["town", "code"]),
    )
    np.testing.assert_array_equal(far.x, split.test.x)
    np.savez(tmp_path / "new.npz", x=split.test.x)
    with pytest.raises(DataError, match="made of a table's columns; give such a table"):
        read_inputs(tmp_path / "new.npz", split.input_shape, Reading(split.features, preparation=again))


@pytest.mark.parametrize("missing", ["median", "mean", "indicator"])
def test_missing_values_are_filled_from_training_rows_alone(tmp_path: Path, missing: str) -> None:
    path, rng = tmp_path / "a.csv", np.random.default_rng(0)
    values = rng.normal(3, 2, (60, 3)).round(3)
    values[rng.random((60, 3)) < 0.3] = np.nan
    values[:, 0] = np.arange(60)
    cells = [[("", "NA", "?", "nan")[i % 4] if v != v else str(v) for v in row] for i, row in enumerate(values)]
    path.write_text("id,b,c,y\n" + "".join(f"{','.join(row)},{i % 2}\n" for i, row in enumerate(cells)))
    split = load(path, target="y", missing=missing)
    with pytest.raises(
        DataError, match=r"has a missing value .*; impute it or remove the row, or for features say miss"
    ):
        load(path, target="y")
    rows = [part.x[:, 0].astype(int) for part in (split.train, split.validation, split.test)]
    strategy = "mean" if missing == "mean" else "median"
    theirs = SimpleImputer(strategy=strategy, add_indicator=missing == "indicator").fit(values[rows[0]])
    for part, chosen in zip((split.train, split.validation, split.test), rows, strict=True):
        np.testing.assert_array_equal(part.x, theirs.transform(values[chosen]))
    names = ("id", "b", "c") + (("b is missing", "c is missing") if missing == "indicator" else ())
    assert split.columns == names
    again = read_inputs(path, split.input_shape, Reading(split.features, preparation=split.preparation))
    np.testing.assert_array_equal(again.x, theirs.transform(values))


def test_missing_targets_stay_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,y\n" + "".join(f"{i},{'' if i == 7 else i}\n" for i in range(20)))
    with pytest.raises(DataError, match="line 9: column 'y' has a missing value"):
        load(path, "regression", target="y", missing="median")
    path.write_text("a,b,y\n" + "".join(f"{i},,{i}\n" for i in range(20)))
    with pytest.raises(DataError, match="column 'b' has no value in any training row; leave it out"):
        load(path, "regression", target="y", missing="median")


@pytest.mark.parametrize(
    "change", [{"fill": {"x": 1.0}}, {"indicators": ["b"]}, {"numbers": 3}, {"categories": {"c": []}}, {"fill": None}]
)
def test_a_preparation_from_anywhere_is_checked(change: dict[str, Any]) -> None:
    good = {"numbers": ["a"], "categories": {"c": ["u"]}, "fill": {}, "indicators": [], "missing": None}
    Preparation.from_json(good)
    with pytest.raises((ValueError, LookupError, TypeError, AttributeError)):
        Preparation.from_json(good | change)


# --- duplicates, memory


def test_duplicates_across_parts_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b,y\n" + "".join(f"{i % 50},{i % 50 / 7},{i % 2}\n" for i in range(100)))
    split = load(path, target="y")
    known = {tuple(row) for row in split.train.x}
    counts = [sum(tuple(row) in known for row in part.x) for part in (split.validation, split.test)]
    assert counts[0] > 5
    assert counts[1] > 5
    assert [note.split(" inputs are")[0] for note in split.notes] == [
        f"{counts[0]} of 15 validation",
        f"{counts[1]} of 20 test",
    ]
    path.write_text("a,b,y\n" + "".join(f"{i},{i / 7},{i % 2}\n" for i in range(100)))
    assert load(path, target="y").notes == ()


def test_a_table_takes_little_more_than_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak at most three times the arrays; the text of a table would be ten times as much."""
    monkeypatch.setattr(table, "CHUNK_CELLS", 2**12)
    path = tmp_path / "a.csv"
    np.savetxt(
        path,
        np.random.default_rng(0).normal(size=(20_000, 11)),
        delimiter=",",
        header="a,b,c,d,e,f,g,h,i,j,y",
        comments="",
    )
    load(path, "regression", target="y", features=["a"])  # what is imported on the way does not count
    tracemalloc.start()
    split = load(path, "regression", target="y")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * sum(part.x.nbytes + part.y.nbytes for part in (split.train, split.validation, split.test))
