"""Metrics of stored predictions, without training: after a job, and anew for a whole run. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bayes_bench.metrics.measure import measure, measuring_code
from bayes_bench.results.folder import load_predictions, read_records, read_run, write_record
from bayes_bench.results.lock import locked
from bayes_bench.settings import COLLAPSE_THRESHOLD
from bayes_bench.tasks.spec import NOT_IN_KEY, QUICK_SUFFIX, SuiteSpec
from bayes_bench.tasks.suites import load_suite, shipped_suites


def measure_again(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Measure one finished job anew from its stored predictions and write its record; returns the record.

    Raises:
        DataError: stored predictions are damaged.
        DivergenceError: they contain NaN or infinity.
        StorageError: the record cannot be written.
    """
    code = {**(record.get("code") or {}), "metrics": measuring_code()}
    return write_record(folder, {**record, **measure(load_predictions(folder), record), "code": code})


def recompute_metrics(run_dir: Path) -> int:
    """Measure all finished jobs anew from their stored predictions, e.g. after a new metric; returns how many.

    A job of a shipped suite is measured against the reference, the threshold of the collapse alarm and the published
    numbers that its task has by now.

    Raises:
        UsageError: not a run folder, or in use.
        DataError: stored predictions are damaged.
    """
    read_run(run_dir)
    count = 0
    with locked(run_dir):
        for folder, record in read_records(run_dir)[0]:
            if record["status"] == "ok":
                measure_again(folder, record | {"task_spec": _as_shipped(record)})
                count += 1
    return count


def renewed(folder: Path, record: Mapping[str, Any], compared: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a finished job whose task is compared with something else by now; measured anew where it matters.

    Args:
        compared: the task's ``reference``, ``collapse_threshold`` and ``published`` as they are now.

    Raises:
        DataError, DivergenceError, StorageError: as ``measure_again``.
    """
    spec = {"collapse_threshold": COLLAPSE_THRESHOLD, "published": [], **record["task_spec"]}
    changed = {name for name, value in compared.items() if spec.get(name) != value}
    new = {**record, "task_spec": {**spec, **compared}}
    if changed - {"published"}:
        return measure_again(folder, new)
    return write_record(folder, new) if changed else dict(record)


def _as_shipped(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record's task, with what the shipped suite compares the very same task with."""
    spec = dict(record["task_spec"])
    suite = _shipped(record["suite"])
    for task in suite.tasks if suite else ():
        now = task.model_dump(mode="json")
        if all(value == spec.get(name, value) for name, value in now.items() if name not in NOT_IN_KEY):
            spec |= {name: now[name] for name in ("collapse_threshold", "published")}
            if spec.get("reference") is None:
                spec["reference"] = now["reference"]
    return spec


def _shipped(name: str) -> SuiteSpec | None:
    """A shipped suite, or its quick variant."""
    if name in shipped_suites():
        return load_suite(name)
    stem = name.removesuffix(QUICK_SUFFIX)
    if stem == name or stem not in shipped_suites():
        return None
    suite = load_suite(stem)
    return suite.quick_variant() if suite.quick else None
