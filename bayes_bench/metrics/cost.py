"""What a result cost: gradient evaluations, time, parameters, memory. Read from the record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bayes_bench.metrics.base import Metric, NotApplicableError
from bayes_bench.metrics.job import JobPredictions

GROUP = "cost"
MEASURED = ("fit_seconds", "predict_seconds_per_1000", "peak_memory_mb")
"""What differs between two runs of the same job."""


def _field(section: str, name: str) -> Callable[[JobPredictions], float]:
    def read(job: JobPredictions) -> float:
        value: Any = (job.record.get(section) or {}).get(name)
        if value is None:
            raise NotApplicableError("not measured")
        return float(value)

    return read


CATALOGUE = (
    Metric(
        "evaluations_spent",
        "evaluations",
        None,
        GROUP,
        (),
        "gradient evaluations spent (one network, one example, forward and backward = 1; forward only = 1/3)",
        _field("budget", "spent"),
        kind="any",
    ),
    Metric(
        "evaluations_unspent",
        "evaluations",
        None,
        GROUP,
        (),
        "evaluations of the budget that early stopping left",
        _field("budget", "unspent"),
        kind="any",
    ),
    Metric(
        "fit_seconds",
        "s",
        False,
        GROUP,
        (),
        "seconds of training",
        _field("cost", "fit_seconds"),
        kind="any",
    ),
    Metric(
        "predict_seconds_per_1000",
        "s",
        False,
        GROUP,
        (),
        "seconds to predict 1,000 test inputs with all drawn networks",
        _field("cost", "predict_seconds_per_1000"),
        kind="any",
    ),
    Metric(
        "parameters_stored",
        "parameters",
        False,
        GROUP,
        (),
        "numbers a stored posterior consists of",
        _field("cost", "parameters_stored"),
        kind="any",
    ),
    Metric(
        "peak_memory_mb",
        "MB",
        False,
        GROUP,
        (),
        "peak memory of the job's process",
        _field("cost", "peak_memory_mb"),
        kind="any",
    ),
)
