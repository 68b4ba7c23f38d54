"""Metrics of stored predictions, without training: after a job, and anew for a whole run. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bayes_bench import metrics, reference, store
from bayes_bench.errors import DataError, UsageError
from bayes_bench.jobs import NOT_IN_KEY
from bayes_bench.suite import load_suite, shipped_suites


def measure(predictions: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> dict[str, Any]:
    """The parts ``metrics``, ``alarms`` and ``reference`` of a record.

    A reference that is missing or of another posterior is the reason why its metrics are n/a.

    Raises:
        DivergenceError: the predictions contain NaN or infinity.
    """
    facts: dict[str, Any] | None = None
    arrays: Mapping[str, np.ndarray] | str = "no reference"
    if name := (record.get("task_spec") or {}).get("reference"):
        try:
            found = reference.load(name)
            reference.check(found, record)
        except (UsageError, DataError) as error:
            arrays = str(error)
        else:
            arrays, facts = found.arrays, {"name": name, **found.facts()}
    return {
        "metrics": metrics.compute(predictions, record, reference=arrays),
        "alarms": metrics.alarms(predictions, record),
        "reference": facts,
    }


def measure_again(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Measure one finished job anew from its stored predictions and write its record; returns the record.

    Raises:
        DataError: stored predictions are damaged.
        DivergenceError: they contain NaN or infinity.
        StorageError: the record cannot be written.
    """
    return store.write_record(folder, {**record, **measure(store.load_predictions(folder), record)})


def recompute_metrics(run_dir: Path) -> int:
    """Measure all finished jobs anew from their stored predictions, e.g. after a new metric; returns how many.

    A job of a shipped suite that was run when its task named no reference is measured against the one it has by now.

    Raises:
        UsageError: not a run folder, or in use.
        DataError: stored predictions are damaged.
    """
    store.read_run(run_dir)
    count = 0
    with store.locked(run_dir):
        for folder, record in store.read_records(run_dir)[0]:
            if record["status"] == "ok":
                measure_again(folder, record | {"task_spec": _with_reference(record)})
                count += 1
    return count


def _with_reference(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record's task, with the reference that the shipped suite gives the very same task."""
    spec = dict(record["task_spec"])
    if spec.get("reference") is None and record["suite"] in shipped_suites():
        for task in load_suite(record["suite"]).tasks:
            if task.model_dump(mode="json", exclude=NOT_IN_KEY) == {
                k: v for k, v in spec.items() if k not in NOT_IN_KEY
            }:
                spec["reference"] = task.reference
    return spec
