"""A user's own table: a CSV file, or one with other delimiters, of numbers, categories and missing values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import field_validator

from bayes_bench.data.base import (
    REGRESSION,
    Arrays,
    FractionOptions,
    Inputs,
    Kind,
    Source,
    Split,
    check_size,
    encode_labels,
    split_by_fractions,
)
from bayes_bench.data.columns import Missing, Preparation
from bayes_bench.data.table import Columns, Layout, LayoutOptions, Table
from bayes_bench.errors import DataError, UsageError
from bayes_bench.settings import setting


class CsvOptions(FractionOptions, LayoutOptions):
    path: Path = setting(..., "the CSV file; relative to the suite's file")
    target: tuple[str, ...] = setting(..., "target column, or a list of them for regression", min_length=1)
    features: tuple[str, ...] | None = setting(None, "feature columns; not given: all but the targets", min_length=1)
    categorical: tuple[str, ...] = setting(
        (), "feature columns of categories, text or numbers: each category of the training rows becomes an indicator"
    )
    missing: Missing | None = setting(
        None,
        "what stands in for missing feature values: the training rows' 'median' or 'mean', or the median beside an "
        "'indicator' column; not given: they are errors",
    )
    test_path: Path | None = setting(None, "a CSV file of test examples with the same columns")

    @field_validator("target", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


class CsvInputOptions(LayoutOptions):
    path: Path = setting(..., "the CSV file; it must have the task's feature columns, others are ignored")


@dataclass(frozen=True)
class _Rows:
    """Rows of a table, not prepared yet: what ``Preparation`` takes, and targets."""

    values: np.ndarray
    texts: dict[str, np.ndarray]
    y: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> _Rows:
        texts = {name: cells[rows] for name, cells in self.texts.items()}
        return _Rows(self.values[rows], texts, self.y[rows])


def split(options: CsvOptions, data_root: Path, kind: Kind) -> Split:
    """Features ``[N, F]``; class labels may be any text, regression targets are numbers ``[N, D]``."""
    if kind == "classification" and len(options.target) > 1:
        raise UsageError(f"data source 'csv': classification has one target column, got {len(options.target)}")
    table = Table(options.path, options.layout)
    for name in options.target:
        table.index(name)  # a misspelt target would else be looked for among the features
    features = options.features or table.columns_but(options.target)
    if both := set(features) & set(options.target):
        raise UsageError(f"data source 'csv': {', '.join(sorted(both))} is both feature and target")
    if not features:
        raise DataError(f"{options.path} has no feature columns beside the target")
    if strange := set(options.categorical) - set(features):
        raise UsageError(f"data source 'csv': categorical names {', '.join(sorted(strange))}, which is no feature")
    rows, classes = _rows(table, features, options, kind, None)
    # The split is one of the rows' numbers: what is prepared for training knows of training rows alone.
    test_rows, test_numbers = rows, None
    if options.test_path is not None:
        test_rows, _ = _rows(Table(options.test_path, options.layout), features, options, kind, classes)
        test_numbers = Arrays(np.arange(len(test_rows.y)), test_rows.y)
    numbers = Arrays(np.arange(len(rows.y)), rows.y)
    train, validation, test = (
        part.inputs() for part in split_by_fractions(numbers, options, str(options.path), test_numbers)
    )
    parts = {"training": rows[train], "validation": rows[validation], "test": test_rows[test]}
    preparation, notes = None, []
    if options.categorical or options.missing:
        plain = [name for name in features if name not in options.categorical]
        fitted = parts["training"]
        try:
            preparation = Preparation.fit(plain, fitted.values, fitted.texts, options.missing)
        except DataError as error:
            raise DataError(f"{options.path}: {error}") from error
        check_size(options.path, 16 * len(rows.y) * len(preparation.names))
        notes = [note for name, part in parts.items() for note in preparation.unseen(part.texts, f"{name} row")]
    made = {
        name: Arrays(preparation.apply(part.values, part.texts) if preparation else part.values, part.y)
        for name, part in parts.items()
    }
    return Split(
        made["training"],
        made["validation"],
        made["test"],
        classes,
        notes=tuple(notes),
        features=tuple(features),
        preparation=preparation,
    )


def _rows(
    table: Table, features: Sequence[str], options: CsvOptions, kind: Kind, known: tuple[str, ...] | None
) -> tuple[_Rows, tuple[str, ...]]:
    target, labelled = options.target, kind == "classification"
    plain = [name for name in features if name not in options.categorical]
    found = table.read(
        [*plain, *(() if labelled else target)],
        [*options.categorical, *(target if labelled else ())],
        features if options.missing else (),
    )
    texts = _as_arrays(found, options.categorical)
    if not labelled:
        return _Rows(found.numbers[:, : len(plain)], texts, found.numbers[:, len(plain) :]), ()
    labels = found.texts[target[0]]
    if quantity := _a_quantity(labels):
        raise DataError(
            f"{table.path}: column {target[0]!r} holds numbers such as {quantity}, which are no classes; {REGRESSION}"
        )
    y, classes = encode_labels(labels, known)
    if (y < 0).any():
        row = int(np.argmin(y))
        raise DataError(
            f"{table.path}, line {found.lines[row]}: class {labels[row]!r} of column {target[0]!r} "
            "does not occur in the training file"
        )
    return _Rows(found.numbers, texts, y), classes


def _as_arrays(found: Columns, names: Sequence[str]) -> dict[str, np.ndarray]:
    return {name: np.array(found.texts[name], dtype=object) for name in names}


def _a_quantity(labels: Sequence[str]) -> str | None:
    """Of labels that are all numbers the first that is not whole."""
    try:
        fractions = [label for label in labels if not float(label).is_integer()]
    except ValueError:
        return None
    return fractions[0] if fractions else None


def inputs(options: CsvInputOptions, data_root: Path, split: Split) -> Inputs:
    """The task's feature columns of another file, ``[N, F]``."""
    return read_features(options.path, split.input_shape, split.features, options.layout, split.preparation)


def read_features(
    path: Path,
    shape: tuple[int, ...],
    features: tuple[str, ...],
    layout: Layout,
    preparation: Preparation | None = None,
) -> Inputs:
    """Inputs float64 ``[N, *shape]`` from a table: the named columns, or all if ``features`` is empty."""
    table = Table(path, layout, features)
    columns = features or table.columns_but()
    if preparation is None:
        if math.prod(shape) != len(columns):
            raise DataError(
                f"{path} has {len(columns)} columns, but an input has {math.prod(shape)} values {list(shape)}"
            )
        return Inputs(table.read(columns).numbers.reshape(-1, *shape))
    found = table.read(preparation.numbers, tuple(preparation.categories), features if preparation.missing else ())
    texts = _as_arrays(found, tuple(preparation.categories))
    check_size(path, 16 * len(found) * len(preparation.names))
    return Inputs(preparation.apply(found.numbers, texts), tuple(preparation.unseen(texts, "row")))


SOURCE = Source(
    name="csv",
    summary="your own table: CSV and the like; `path`, `target`",
    SplitOptions=CsvOptions,
    split=split,
    InputOptions=CsvInputOptions,
    inputs=inputs,
)
