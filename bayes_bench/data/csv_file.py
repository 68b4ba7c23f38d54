"""A user's own table: a CSV file with a header line, numbers in every feature column."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import Field, field_validator

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
from bayes_bench.data.files import check_file
from bayes_bench.errors import DataError, UsageError
from bayes_bench.settings import Settings, setting

LARGEST = float(np.finfo(np.float32).max)
CELL_BYTES = 30
"""Memory of a character of a file, as cells of one or two characters need it at the most."""
MOST_SHOWN = 50
"""Columns that a message names."""


DELIMITER = r'^[^"\r\n\x00]$'


class CsvOptions(FractionOptions):
    path: Path = setting(..., "the CSV file; relative to the suite's file")
    target: tuple[str, ...] = setting(..., "target column, or a list of them for regression", min_length=1)
    features: tuple[str, ...] | None = setting(None, "feature columns; not given: all but the targets", min_length=1)
    test_path: Path | None = setting(None, "a CSV file of test examples with the same columns")
    delimiter: str = Field(",", pattern=DELIMITER, description="character between the cells")

    @field_validator("target", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


class CsvInputOptions(Settings):
    path: Path = setting(..., "the CSV file; it must have the task's feature columns, others are ignored")
    delimiter: str = Field(",", pattern=DELIMITER, description="character between the cells")


@dataclass(frozen=True)
class Rows:
    """Cells as text; ``lines[i]`` is the line of the file where row i ends, counted from 1."""

    path: Path
    header: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]

    def text(self, column: str) -> list[str]:
        """Cells of one column, stripped, none empty."""
        at = self.index(column)
        cells = [row[at].strip() for row in self.rows]
        for cell, line in zip(cells, self.lines, strict=True):
            if not cell:
                raise DataError(f"{self.path}, line {line}: column {column!r} is empty; fill or remove the row")
        return cells

    def numbers(self, columns: Sequence[str]) -> np.ndarray:
        """Float32 ``[N, columns]``, finite; a cell that is no number is an error naming column and line."""
        at = [self.index(column) for column in columns]
        try:
            values = np.array([[float(row[i]) for i in at] for row in self.rows], dtype=np.float64)
        except ValueError:
            self._complain(columns, at)
            raise
        if not (np.abs(values) <= LARGEST).all():
            self._complain(columns, at)
        return values.astype(np.float32)

    def _complain(self, columns: Sequence[str], at: list[int]) -> None:
        for row, line in zip(self.rows, self.lines, strict=True):
            for column, i in zip(columns, at, strict=True):
                where, cell = f"{self.path}, line {line}: column {column!r}", row[i].strip()
                if cell.lower() in ("", "?", "na", "n/a", "nan", "null", "none"):
                    raise DataError(f"{where} has a missing value ({cell!r}); impute it or remove the row")
                try:
                    value = float(cell)
                except ValueError:
                    raise DataError(
                        f"{where} is not a number ({cell!r}); "
                        "encode the column as numbers or leave it out of `features`"
                    ) from None
                if not abs(value) <= LARGEST:
                    raise DataError(f"{where} is not a finite single-precision number ({cell!r})")

    def index(self, column: str) -> int:
        """Place of a column; a ``DataError`` where there is none of the name."""
        try:
            return self._places[column]
        except KeyError:
            shown = ", ".join(self.header[:MOST_SHOWN]) + (" …" if len(self.header) > MOST_SHOWN else "")
            raise DataError(f"{self.path} has no column {column!r}; it has {shown}") from None

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.header)}


def read_table(path: Path, delimiter: str = ",") -> Rows:
    """Read a CSV file with a header; empty lines are skipped.

    Raises:
        DataError: unreadable, no header, a repeated column name, or a row of another length.
    """
    rows: list[list[str]] = []
    lines: list[int] = []
    check_file(path)
    check_size(path, CELL_BYTES * path.stat().st_size)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=delimiter)
            header = tuple(cell.strip() for cell in next(reader, []))
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise DataError(f"{path}, line {reader.line_num}: {len(row)} cells, the header has {len(header)}")
                rows.append(row)
                lines.append(reader.line_num)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from error
    if not header or not rows:
        raise DataError(f"{path} has no examples; it needs a header line and one line per example")
    if all(_is_number(cell) for cell in header):
        raise DataError(f"{path}, line 1: only numbers; the first line must name the columns")
    if repeated := {name for name, times in Counter(header).items() if times > 1}:
        raise DataError(f"{path}, line 1: column named twice: {', '.join(sorted(repeated))}")
    return Rows(path, header, rows, lines)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def split(options: CsvOptions, data_root: Path, kind: Kind) -> Split:
    """Features ``[N, F]``; class labels may be any text, regression targets are numbers ``[N, D]``."""
    if kind == "classification" and len(options.target) > 1:
        raise UsageError(f"data source 'csv': classification has one target column, got {len(options.target)}")
    table = read_table(options.path, options.delimiter)
    for name in options.target:
        table.index(name)  # a misspelt target would else be looked for among the features
    features = options.features or tuple(name for name in table.header if name not in options.target)
    if both := set(features) & set(options.target):
        raise UsageError(f"data source 'csv': {', '.join(sorted(both))} is both feature and target")
    if not features:
        raise DataError(f"{options.path} has no feature columns beside the target")
    data, classes = _arrays(table, features, options.target, kind, None)
    test = None
    if options.test_path is not None:
        test_table = read_table(options.test_path, options.delimiter)
        test, _ = _arrays(test_table, features, options.target, kind, classes)
    train, validation, test = split_by_fractions(data, options, str(options.path), test)
    return Split(train, validation, test, classes, features=features)


def _arrays(
    table: Rows, features: Sequence[str], target: Sequence[str], kind: Kind, known: tuple[str, ...] | None
) -> tuple[Arrays, tuple[str, ...]]:
    x = table.numbers(features)
    if kind == "regression":
        return Arrays(x, table.numbers(target)), ()
    labels = table.text(target[0])
    if quantity := _a_quantity(labels):
        raise DataError(
            f"{table.path}: column {target[0]!r} holds numbers such as {quantity}, which are no classes; {REGRESSION}"
        )
    y, classes = encode_labels(labels, known)
    if (y < 0).any():
        row = int(np.argmin(y))
        raise DataError(
            f"{table.path}, line {table.lines[row]}: class {labels[row]!r} of column {target[0]!r} "
            "does not occur in the training file"
        )
    return Arrays(x, y), classes


def _a_quantity(labels: Sequence[str]) -> str | None:
    """Of labels that are all numbers the first that is not whole."""
    try:
        fractions = [label for label in labels if not float(label).is_integer()]
    except ValueError:
        return None
    return fractions[0] if fractions else None


def inputs(options: CsvInputOptions, data_root: Path, split: Split) -> Inputs:
    """The task's feature columns of another file, ``[N, F]``."""
    return Inputs(read_features(options.path, split.input_shape, split.features, options.delimiter))


def read_features(path: Path, shape: tuple[int, ...], features: tuple[str, ...], delimiter: str = ",") -> np.ndarray:
    """Inputs float32 ``[N, *shape]`` from a CSV file: the named columns, or all if ``features`` is empty."""
    table = read_table(path, delimiter)
    columns = features or table.header
    if math.prod(shape) != len(columns):
        raise DataError(f"{path} has {len(columns)} columns, but an input has {math.prod(shape)} values {list(shape)}")
    return table.numbers(columns).reshape(-1, *shape)


SOURCE = Source(
    name="csv",
    summary="your own table: CSV with a header; `path`, `target`",
    SplitOptions=CsvOptions,
    split=split,
    InputOptions=CsvInputOptions,
    inputs=inputs,
)
