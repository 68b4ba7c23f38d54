"""All about a task that can be checked without its data."""

from __future__ import annotations

from bayes_bench.data import check_spec, source_of
from bayes_bench.data.base import Kind
from bayes_bench.errors import UsageError
from bayes_bench.tasks.spec import CategoricalSpec, TaskSpec


def task_kind(spec: TaskSpec) -> Kind:
    """What the task's likelihood makes of the targets."""
    return "classification" if isinstance(spec.likelihood, CategoricalSpec) else "regression"


def check_task(spec: TaskSpec) -> None:
    """Check everything about a task's data that needs no data.

    Raises:
        UsageError: as ``check_spec``, or the targets do not fit the likelihood.
    """
    kind = task_kind(spec)
    options = check_spec(spec.data)
    declared = source_of(spec.data).kind or getattr(options, "kind", None)
    if declared not in (None, kind):
        raise UsageError(
            f"data source {spec.data.source!r} is for {declared}, "
            f"but the likelihood {spec.likelihood.name!r} is for {kind}"
        )
    for ood in (*spec.ood, *spec.validation_ood):
        check_spec(ood)
