"""The parts of a record that are measured from its stored predictions. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bayes_bench.errors import DataError, UsageError
from bayes_bench.host.machine import code_hash
from bayes_bench.host.shipped import PACKAGE
from bayes_bench.metrics import references, registry
from bayes_bench.metrics.diversity import alarms


def measure(predictions: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> dict[str, Any]:
    """The parts ``metrics``, ``collapse``, ``alarms`` and ``reference`` of a record.

    A reference that is missing or of another posterior is the reason why its metrics are n/a.

    Raises:
        DivergenceError: the predictions contain NaN or infinity.
    """
    facts: dict[str, Any] | None = None
    arrays: Mapping[str, np.ndarray] | str = "no reference"
    if name := (record.get("task_spec") or {}).get("reference"):
        try:
            found = references.load(name)
            references.check(found, record)
        except (UsageError, DataError) as error:
            arrays = str(error)
        else:
            arrays, facts = found.arrays, {"name": name, **found.facts()}
    collapse = registry.collapse(predictions, record)
    return {
        "metrics": registry.compute(predictions, record, reference=arrays),
        "collapse": collapse,
        "alarms": alarms(collapse),
        "reference": facts,
    }


def measuring_code() -> str:
    """Hash of the code that measures, to notice that it has changed."""
    return code_hash([PACKAGE / "metrics"])
