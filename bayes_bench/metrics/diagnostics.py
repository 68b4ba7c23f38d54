"""What a method says about its own fit (effective sample size, acceptance rate, ...). Read from the record."""

from __future__ import annotations

from bayes_bench.metrics.base import Metric, NotApplicableError
from bayes_bench.metrics.job import JobPredictions


def _diagnostic(job: JobPredictions, name: str) -> float:
    value = job.diagnostics().get(name)
    if value is None:
        raise NotApplicableError("not reported")
    return value


CATALOGUE = (
    Metric(
        "diagnostic/<name>",
        "",
        None,
        "diagnostics",
        (),
        "a number that the method reports about its own fit; docs/methods.md says what each means",
        _diagnostic,
        kind="any",
        over="diagnostic",
    ),
)
