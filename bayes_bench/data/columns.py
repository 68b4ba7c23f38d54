"""Columns of a table that are no numbers as they stand: categories, and values that are missing.

What is done with them is found on the training rows by scikit-learn's transformers, and kept as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bayes_bench.errors import DataError, counted

Missing = Literal["median", "mean", "indicator"]
MOST_SHOWN = 5


@dataclass(frozen=True)
class Preparation:
    """How columns become the inputs of a network: numbers, indicators of missing ones, a one-hot code of categories.

    Attributes:
        numbers: the columns of numbers, in their order.
        categories: of each column of categories those of the training rows, sorted. One that is none of them, or is
            missing, has all indicators 0.
        fill: what stands in for a missing number, by column; empty where none may be missing.
        indicators: columns of numbers beside which an indicator says whether the value was missing.
        missing: how ``fill`` was chosen; None where no value may be missing.
    """

    numbers: tuple[str, ...]
    categories: Mapping[str, tuple[str, ...]]
    fill: Mapping[str, float]
    indicators: tuple[str, ...]
    missing: Missing | None = None

    @classmethod
    def fit(
        cls, numbers: Sequence[str], values: np.ndarray, texts: Mapping[str, np.ndarray], missing: Missing | None
    ) -> Preparation:
        """From the training rows alone.

        Args:
            numbers: names of the columns of ``values``.
            values: float64 ``[N, numbers]``, NaN where one is missing.
            texts: the cells of each column of categories, objects ``[N]``; empty where one is missing.
            missing: what to do with missing numbers.

        Raises:
            DataError: a column without any value.
        """
        from sklearn.impute import MissingIndicator, SimpleImputer
        from sklearn.preprocessing import OneHotEncoder

        categories: dict[str, tuple[str, ...]] = {}
        for name, cells in texts.items():
            there = cells[cells != ""]
            if not len(there):
                raise DataError(f"column {name!r} has no value in any training row; leave it out of `features`")
            categories[name] = tuple(map(str, OneHotEncoder().fit(there[:, None]).categories_[0]))
        fill: dict[str, float] = {}
        indicators: tuple[str, ...] = ()
        if missing is not None and len(numbers):
            strategy = "mean" if missing == "mean" else "median"
            statistics = SimpleImputer(strategy=strategy, keep_empty_features=False).fit(values).statistics_
            for name, value in zip(numbers, statistics.tolist(), strict=True):
                if value != value:
                    raise DataError(f"column {name!r} has no value in any training row; leave it out of `features`")
                fill[name] = value
            if missing == "indicator":
                indicators = tuple(numbers[place] for place in MissingIndicator().fit(values).features_)
        return cls(tuple(numbers), categories, fill, indicators, missing)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the values of an input."""
        coded = (f"{name} = {category}" for name, known in self.categories.items() for category in known)
        return (*self.numbers, *(f"{name} is missing" for name in self.indicators), *coded)

    def apply(self, values: np.ndarray, texts: Mapping[str, np.ndarray]) -> np.ndarray:
        """Inputs float64 ``[N, names]`` of rows as ``fit`` takes them."""
        parts = [values]
        if self.fill:
            fill = np.array([self.fill[name] for name in self.numbers])
            parts = [np.where(np.isnan(values), fill, values)]
        if self.indicators:
            parts.append(np.isnan(values[:, [self.numbers.index(name) for name in self.indicators]]))
        if self.categories:
            from sklearn.preprocessing import OneHotEncoder

            known = [np.array(category, dtype=object) for category in self.categories.values()]
            encoder = OneHotEncoder(categories=known, handle_unknown="ignore", sparse_output=False)
            encoder.fit([[category[0] for category in known]])
            parts.append(encoder.transform(np.stack([texts[name] for name in self.categories], axis=1)))
        return np.concatenate(parts, axis=1, dtype=np.float64)

    def unseen(self, texts: Mapping[str, np.ndarray], what: str) -> list[str]:
        """A sentence on each column with categories that no training row has; ``what`` the rows are, in words."""
        notes = []
        for name, known in self.categories.items():
            strange = texts[name][~np.isin(texts[name], [*known, ""])]
            if len(strange):
                values = sorted(set(strange.tolist()))
                shown = ", ".join(map(repr, values[:MOST_SHOWN])) + (" …" if len(values) > MOST_SHOWN else "")
                notes.append(
                    f"column {name!r}: {counted(len(strange), what)} with a category that no training row has "
                    f"({shown}); all indicators of the column are 0 there"
                )
        return notes

    def as_json(self) -> dict[str, Any]:
        return {
            "numbers": list(self.numbers),
            "categories": {name: list(known) for name, known in self.categories.items()},
            "fill": dict(self.fill),
            "indicators": list(self.indicators),
            "missing": self.missing,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Preparation:
        """What ``as_json`` gave.

        Raises:
            ValueError, LookupError, TypeError, AttributeError: it is something else.
        """
        found = cls(
            tuple(map(str, content["numbers"])),
            {str(name): tuple(map(str, known)) for name, known in content["categories"].items()},
            {str(name): float(value) for name, value in content["fill"].items()},
            tuple(map(str, content["indicators"])),
            content["missing"],
        )
        if not all(found.categories.values()) or not (
            set(found.fill) == set(found.numbers if found.missing else ()) and set(found.indicators) <= set(found.fill)
        ):
            raise ValueError("the preparation of its columns does not go together")
        return found
