"""Tables of text: a CSV file and its kin, read some rows at a time, with the line and column of whatever is wrong.

Cells become numbers as they are read: of the text no more than some rows is held.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from bayes_bench.data.base import check_size, is_missing
from bayes_bench.data.files import check_file
from bayes_bench.errors import DataError, UsageError
from bayes_bench.settings import Settings, setting

LARGEST = float(np.finfo(np.float32).max)
CHARACTER_BYTES = 8
"""Memory of a character of a file at the most: two of them are a cell, of eight bytes, held twice at the end."""
CHUNK_CELLS = 2**18
MOST_SHOWN = 50
"""Columns that a message names."""

RECOGNISED = (",", ";", "\t", "|")
"""Delimiters that are looked for, the first of those that make most cells; else white space."""
DELIMITER = r'^(auto|whitespace|tab|[^"\r\n\x00])$'
NAMELESS = re.compile(r"(Unnamed: [0-9]+)?")
"""What a column without a name is called: nothing, or what pandas makes of nothing."""
TRUTH = {"true": 1.0, "false": 0.0}


class LayoutOptions(Settings):
    """How a table is written."""

    delimiter: str = Field(
        "auto",
        pattern=DELIMITER,
        description="character between the cells, 'tab' or 'whitespace'; 'auto' recognises , ; tab | and white space",
    )
    header: bool = setting(True, "the first line names the columns")
    names: tuple[str, ...] | None = setting(
        None, "of a file without a header: names of its columns; not given: 1, 2, …", min_length=1
    )
    decimal: Literal[".", ","] = setting(".", "what stands before the decimals of a number")

    @property
    def layout(self) -> Layout:
        return Layout(self.delimiter, self.header, self.names or (), self.decimal)


@dataclass(frozen=True)
class Layout:
    """As ``LayoutOptions`` says it."""

    delimiter: str = "auto"
    header: bool = True
    names: tuple[str, ...] = ()
    decimal: str = "."

    def __post_init__(self) -> None:
        if not re.fullmatch(DELIMITER, self.delimiter):
            raise DataError(f"{self.delimiter!r} cannot stand between the cells of a table")
        if self.names and self.header:
            raise UsageError("names are for a table without a header; say header = false, or leave them out")


@dataclass(frozen=True)
class Columns:
    """Columns that were read.

    Attributes:
        numbers: float64 ``[N, columns]`` within the range of single precision; NaN where a value is missing.
        texts: of each column of text its N cells, stripped; empty where one is missing.
        lines: the line of the file where each row ends, counted from 1, int64 ``[N]``.
    """

    numbers: np.ndarray
    texts: dict[str, list[str]]
    lines: np.ndarray

    def __len__(self) -> int:
        return len(self.lines)


@dataclass
class Table:
    """A table in a file, of which the first line has been read.

    Args:
        features: names that the columns of a file without a header have, where there are as many and it names none.

    Raises:
        DataError: unreadable, no header, or a column name that is repeated.
    """

    path: Path
    layout: Layout = Layout()
    features: tuple[str, ...] = ()
    header: tuple[str, ...] = field(init=False)
    delimiter: str = field(init=False)
    _places: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        check_file(self.path)
        check_size(self.path, CHARACTER_BYTES * self.path.stat().st_size)
        self.delimiter = _recognised(self.path) if self.layout.delimiter == "auto" else self.layout.delimiter
        first = tuple(cell.strip() for _, row in islice(self._lines(), 1) for cell in row)
        if not first:
            raise DataError(f"{self.path} has no examples; it needs a header line and one line per example")
        self.header = self._names(first)
        if repeated := {name for name, times in Counter(self.header).items() if times > 1 and name}:
            raise DataError(f"{self.path}, line 1: column named twice: {', '.join(sorted(repeated))}")
        self._places = {name: place for place, name in enumerate(self.header)}

    def _names(self, first: tuple[str, ...]) -> tuple[str, ...]:
        if self.layout.header:
            if all(_is_number(cell) for cell in first):
                wanted = f": {_shown(self.features)}" if self.features else ", or say header = false"
                raise DataError(f"{self.path}, line 1: only numbers; the first line must name the columns{wanted}")
            return first
        names = self.layout.names or (self.features if len(self.features) == len(first) else ())
        if not names:
            return tuple(str(place) for place in range(1, len(first) + 1))
        if len(names) != len(first):
            raise DataError(f"{self.path}, line 1: {len(first)} cells, but {len(names)} names are given")
        return names

    def index(self, column: str) -> int:
        """Place of a column; a ``DataError`` where there is none of the name."""
        try:
            return self._places[column]
        except KeyError:
            raise DataError(f"{self.path} has no column {column!r}; it has {_shown(self.header)}") from None

    def columns_but(self, others: Sequence[str] = ()) -> tuple[str, ...]:
        """All columns but these, in their order.

        Raises:
            DataError: one has no name, as the row numbers that pandas and R write have none: nobody meant to use it.
        """
        for place, name in enumerate(self.header, 1):
            if NAMELESS.fullmatch(name):
                shown = f"is called {name!r}" if name else "has no name"
                raise DataError(
                    f"{self.path}, line 1: column {place} {shown}, like a row's number that was saved with the table; "
                    "name it if it is a feature, else list the columns to use in `features`"
                )
        return tuple(name for name in self.header if name not in others)

    def read(self, numbers: Sequence[str], texts: Sequence[str] = (), optional: Iterable[str] = ()) -> Columns:
        """Columns of numbers and columns of text; empty lines are skipped.

        Args:
            optional: columns in which values may be missing.

        Raises:
            DataError: a row of another length, no rows, or a cell that is missing or no number, with line and column.
        """
        places = {name: self.index(name) for name in (*numbers, *texts)}
        may_miss, at = frozenset(optional), [places[name] for name in numbers]
        blocks: list[np.ndarray] = []
        found: dict[str, list[str]] = {name: [] for name in texts}
        known: dict[str, str] = {}
        lines: list[np.ndarray] = []
        for chunk_lines, rows in self._chunks():
            blocks.append(self._numbers(rows, chunk_lines, numbers, at, may_miss))
            lines.append(np.array(chunk_lines, dtype=np.int64))
            for name in texts:
                cells = self._texts(rows, chunk_lines, name, places[name], name in may_miss)
                found[name] += (known.setdefault(cell, cell) for cell in cells)  # every text is kept once
        if not blocks:
            raise DataError(f"{self.path} has no examples; it needs a header line and one line per example")
        return Columns(np.concatenate(blocks), found, np.concatenate(lines))

    # Cells --------------------------------------------------------------------------------------------------

    def _numbers(
        self, rows: list[list[str]], lines: list[int], names: Sequence[str], at: list[int], may_miss: frozenset[str]
    ) -> np.ndarray:
        if self.layout.decimal == ".":
            try:
                values = np.array([[float(row[i]) for i in at] for row in rows], dtype=np.float64)
                if (np.abs(values) <= LARGEST).all():
                    return values.reshape(len(rows), len(at))
            except ValueError:
                pass  # a truth value, a missing one, or a wrong one: cell by cell
        cells = (
            self._number(row[i], line, name, name in may_miss)
            for row, line in zip(rows, lines, strict=True)
            for name, i in zip(names, at, strict=True)
        )
        return np.fromiter(cells, np.float64, len(rows) * len(at)).reshape(len(rows), len(at))

    def _number(self, cell: str, line: int, column: str, may_miss: bool) -> float:
        try:
            value = float(cell.replace(",", ".") if self.layout.decimal == "," else cell)
        except ValueError:
            value = TRUTH.get(cell.strip().lower(), float("nan"))
        if abs(value) <= LARGEST:
            return value
        cell = cell.strip()
        where = f"{self.path}, line {line}: column {column!r}"
        if is_missing(cell):
            if may_miss:
                return float("nan")
            raise DataError(
                f"{where} has a missing value ({cell!r}); impute it or remove the row, or for features say "
                "missing = 'median'"
            )
        if value == value:
            raise DataError(f"{where} is not a finite single-precision number ({cell!r})")
        if self.layout.decimal == "." and cell.count(",") == 1 and _is_number(cell.replace(",", ".")):
            raise DataError(f"{where} is not a number ({cell!r}); if the comma is a decimal one, say decimal = ','")
        raise DataError(
            f"{where} is not a number ({cell!r}); encode the column as numbers, say categorical = [{column!r}], or "
            "leave it out of `features`"
        )

    def _texts(self, rows: list[list[str]], lines: list[int], column: str, at: int, may_miss: bool) -> list[str]:
        cells = [row[at].strip() for row in rows]
        for place, cell in enumerate(cells):
            if is_missing(cell):
                if not may_miss:
                    what = f"says that there is none ({cell!r})" if cell else "is empty"
                    raise DataError(
                        f"{self.path}, line {lines[place]}: column {column!r} {what}; fill or remove the row, rename "
                        "the class where it is one, or for features say missing = 'indicator'"
                    )
                cells[place] = ""
        return cells

    # Rows ---------------------------------------------------------------------------------------------------

    def _chunks(self) -> Iterator[tuple[list[int], list[list[str]]]]:
        """The rows below the header with the lines where they end, some at a time."""
        width = len(self.header)
        rows = islice(self._lines(), int(self.layout.header), None)
        while chunk := list(islice(rows, max(1, CHUNK_CELLS // width))):
            for line, row in chunk:
                if len(row) != width:
                    other = "the header has" if self.layout.header else "the first line has"
                    raise DataError(f"{self.path}, line {line}: {len(row)} cells, {other} {width}")
            yield [line for line, _ in chunk], [row for _, row in chunk]

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """Rows that are not empty, with the line where each ends."""
        with _opened(self.path) as file:
            if self.delimiter == "whitespace":
                yield from ((number, cells) for number, line in enumerate(file, 1) if (cells := line.split()))
                return
            reader = csv.reader(file, delimiter="\t" if self.delimiter == "tab" else self.delimiter)
            try:
                for row in reader:
                    if row:
                        yield reader.line_num, row
            except csv.Error as error:
                raise DataError(f"{self.path}, line {reader.line_num}: {error}") from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield file
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error


def _recognised(path: Path) -> str:
    """The delimiter of a table, by its first two lines."""
    with _opened(path) as file:
        lines = list(islice((line for line in file if line.strip()), 2))
    if not lines:
        return RECOGNISED[0]

    def cells(delimiter: str) -> int:
        try:
            return len(next(csv.reader(lines, delimiter=delimiter)))
        except csv.Error:
            return 0

    best = max(RECOGNISED, key=cells)
    words = {len(line.split()) for line in lines}
    return "whitespace" if cells(best) < 2 and len(words) == 1 and max(words) > 1 else best


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_SHOWN]) + (" …" if len(names) > MOST_SHOWN else "")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
