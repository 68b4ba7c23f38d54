"""Every metric by name, ours and those of installed packages, and all of them computed for a job."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from numpy.typing import NDArray

from bayes_bench.errors import DivergenceError, PluginError, named
from bayes_bench.host import plugins
from bayes_bench.metrics import calibration, classification, cost, diagnostics, distance, diversity, ood, regression
from bayes_bench.metrics.base import Metric, NotApplicableError
from bayes_bench.metrics.job import JobPredictions
from bayes_bench.results.sets import KINDS
from bayes_bench.settings import COLLAPSE_THRESHOLD, LARGEST_NUMBER

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_@.-]*(/<[a-z_]+>)?")
TASKS = {"classification", "regression"}
CATALOGUE: tuple[Metric, ...] = (
    *classification.CATALOGUE,
    *calibration.CATALOGUE,
    *diversity.CATALOGUE,
    *ood.CATALOGUE,
    *regression.CATALOGUE,
    *distance.CATALOGUE,
    *cost.CATALOGUE,
    *diagnostics.CATALOGUE,
)
"""Our own; ``catalogue`` has those of installed packages, too."""


@cache
def catalogue() -> tuple[Metric, ...]:
    """Every metric, also those of installed packages (entry points in ``bayes_bench.metrics``).

    Raises:
        PluginError: such a package is broken, or a metric has the name of another. Otherwise numbers would silently be
            missing.
    """
    found = list(CATALOGUE)
    for name, points in sorted(plugins.by_name(plugins.METRICS).items()):
        loaded = plugins.only(plugins.METRICS, name, "metric", Metric | tuple)
        for metric in loaded if isinstance(loaded, tuple) else (loaded,):
            if not isinstance(metric, Metric):
                raise PluginError(f"metric {name!r}: {points[0].value} ({plugins.owner(points[0])}) holds no Metric")
            if not NAME.fullmatch(metric.name):
                raise PluginError(
                    f"metric {name!r} of {plugins.owner(points[0])}: {metric.name!r} is no name for a metric; take "
                    "letters, digits and _, and at most one part in angle brackets after a slash"
                )
            if any(metric.name == other.name and {metric.kind, other.kind} != TASKS for other in found):
                raise PluginError(
                    f"metric {name!r} of {plugins.owner(points[0])}: there is a metric {metric.name!r} already; "
                    "rename it"
                )
            found.append(metric)
    return tuple(found)


def compute(
    predictions: Mapping[str, NDArray[Any]],
    record: Mapping[str, Any],
    metrics: Sequence[Metric] | None = None,
    reference: Mapping[str, NDArray[Any]] | str = "the reference was not read",
) -> list[dict[str, Any]]:
    """The rows of a record's ``metrics``: every metric that is defined for the job's kind of task.

    Args:
        predictions: the stored arrays of the job.
        record: its record; read are ``kind``, ``networks``, ``support``, ``task_spec``, ``weight_layers``,
            ``budget`` and ``cost``. It may lack ``metrics``.
        metrics: what to evaluate; default: ``catalogue()``.
        reference: arrays of the reference that the task names (``metrics.references``), or why there are none.

    Returns:
        Rows ``{name, value, unit, higher_is_better, group}``; where the value is None (n/a) also ``reason``.

    Raises:
        DivergenceError: the predictions contain NaN or infinity.
    """
    job = JobPredictions(predictions, record, reference)
    rows = []
    for metric in catalogue() if metrics is None else metrics:
        if metric.kind not in ("any", job.kind) or (metric.against_reference and not job.has_reference):
            continue
        for item in _items(metric, job):
            row: dict[str, Any] = {
                "name": metric.name_for(item) if item is not None else metric.name,
                "value": None,
                "unit": metric.unit,
                "higher_is_better": metric.higher_is_better,
                "group": metric.group,
            }
            try:
                value = float(metric.evaluate(job) if item is None else metric.evaluate(job, item))
            except NotApplicableError as reason:
                row["reason"] = str(reason)
            except Exception as error:
                if metric in CATALOGUE or isinstance(error, DivergenceError):
                    raise
                # What others wrote costs its own number, not the job.
                row["reason"] = f"the plug-in's metric failed: {named(error)}"
            else:
                if abs(value) <= LARGEST_NUMBER:
                    row["value"] = value
                else:
                    row["reason"] = "not a finite number"
            rows.append(row)
    return rows


def collapse(
    predictions: Mapping[str, NDArray[Any]], record: Mapping[str, Any], threshold: float | None = None
) -> dict[str, Any] | None:
    """By how much two networks differ away from the data (see ``bayes_bench.metrics.diversity.collapse``).

    Args:
        threshold: below which that is a collapse; default: the task's.
    """
    if threshold is None:
        threshold = float((record.get("task_spec") or {}).get("collapse_threshold", COLLAPSE_THRESHOLD))
    return diversity.collapse(JobPredictions(predictions, record), threshold)


def alarms(
    predictions: Mapping[str, NDArray[Any]], record: Mapping[str, Any], threshold: float | None = None
) -> list[str]:
    """Sentences about a collapsed posterior (see ``bayes_bench.metrics.diversity.alarms``); mostly none."""
    return diversity.alarms(collapse(predictions, record, threshold))


def find(name: str, kind: str) -> Metric | None:
    """The metric behind a name of ``results.csv`` (``ood_auroc/letters``) for a kind of task, or None.

    For reading: a broken package of metrics is no obstacle.
    """
    try:
        known = catalogue()
    except PluginError:
        known = CATALOGUE
    return find_in([metric for metric in known if metric.kind in ("any", kind)], name)


def find_in(known: Iterable[Metric], name: str) -> Metric | None:
    """The first of some metrics that a name of ``results.csv`` is a value of, or None."""
    for metric in known:
        stem, placeholder, _ = metric.name.partition("<")
        if name == metric.name or (placeholder and name.startswith(stem)):
            return metric
    return None


def _items(metric: Metric, job: JobPredictions) -> Sequence[str | None]:
    """What a metric is evaluated for; ``[None]`` where it is one number."""
    match metric.over:
        case kind if kind in KINDS:
            return job.sets(kind)
        case "layer":
            return job.layers()
        case "diagnostic":
            return list(job.diagnostics())
        case "region" | "ratio":
            spec = (job.record.get("task_spec") or {}).get("curve")
            if spec is None:
                return ["test"] if metric.against_reference else []
            if metric.over == "region":
                return ["inside", *(["gap"] if spec.get("gap") else []), "outside"]
            return [*(["gap_inside"] if spec.get("gap") else []), "outside_inside"]
        case _:
            return [None]
