"""Metrics of stored predictions, without training: after a job, and anew for a whole run. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bayes_bench import metrics, store


def measure(predictions: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> dict[str, Any]:
    """The parts ``metrics`` and ``alarms`` of a record.

    Raises:
        DivergenceError: the predictions contain NaN or infinity.
    """
    return {"metrics": metrics.compute(predictions, record), "alarms": metrics.alarms(predictions, record)}


def recompute_metrics(run_dir: Path) -> int:
    """Measure all finished jobs anew from their stored predictions, e.g. after a new metric; returns how many.

    Raises:
        UsageError: not a run folder, or in use.
        DataError: stored predictions are damaged.
    """
    store.read_run(run_dir)
    count = 0
    with store.locked(run_dir):
        for folder, record in store.read_records(run_dir)[0]:
            if record["status"] == "ok":
                record |= measure(store.load_predictions(folder), record)
                store.write_json(folder / store.RECORD, record)
                count += 1
    return count
