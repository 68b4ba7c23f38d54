"""What is run: suites × tasks × methods × seeds resolved into jobs. Imports no torch, needs no data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bayes_bench.errors import PluginError, UsageError, unknown_name
from bayes_bench.host import plugins
from bayes_bench.jobs.job import Job
from bayes_bench.methods import registry
from bayes_bench.results.sets import KINDS
from bayes_bench.settings import LARGEST_INTEGER
from bayes_bench.tasks.spec import CategoricalSpec, MethodEntry, SuiteSpec, TaskSpec


@dataclass(frozen=True)
class Override:
    """One ``--set``: ``target`` is a label, or a method and then all its labels."""

    target: str
    key: str
    value: Any


def plan(
    suites: Sequence[SuiteSpec],
    *,
    methods: Sequence[str] = (),
    seeds: Sequence[int] = (),
    overrides: Iterable[Override] = (),
    budget_scale: float = 1.0,
    warn: Callable[[str], None] = lambda _: None,
) -> tuple[Job, ...]:
    """All jobs in the order they are run: first every task and method with the first seed.

    Args:
        suites: what is run, in this order.
        methods: labels of the suites' entries, or names of registered methods; empty for the suites' own lists
            (for a suite without a list: every registered method that is not broken).
        seeds: empty for the suites' own.
        overrides: settings above those of suites and tasks.
        budget_scale: factor on every task's budget, > 0.
        warn: told which methods are left out because they are broken.

    Raises:
        UsageError: an unknown method, label or setting, a value of the wrong type, a data source or option that
            does not exist, a published number of an unknown metric, or one job in two suites.
        PluginError: a method that is asked for is broken.
    """
    from bayes_bench.tasks.check import check_task

    if not (0 < budget_scale < float("inf")):
        raise UsageError(f"--budget-scale must be a positive number, got {budget_scale:g}")
    overrides = tuple(overrides)
    if len({suite.name for suite in suites}) < len(suites):
        raise UsageError("the same suite is named twice; name it once")
    if plugins.by_name(plugins.METRICS):
        from bayes_bench.metrics import catalogue

        catalogue()  # a broken one is told now, not when the first job is measured
    registered = registry.methods()
    usable = () if methods or all(suite.methods for suite in suites) else _usable(registered, warn)
    entries = {suite.name: _entries(suite, suites, methods, registered, usable) for suite in suites}
    _check_overrides(overrides, [entry for chosen in entries.values() for entry in chosen], registered)
    jobs: list[tuple[int, Job]] = []
    for suite in suites:
        for task in suite.tasks:
            check_task(task)
            _check_published(suite, task)
            _check_task_settings(suite, task, registered)
            for entry in entries[suite.name]:
                settings = _settings(task, entry, overrides)
                try:
                    config = registry.resolve_config(entry.method, settings)
                except UsageError as error:
                    raise UsageError(f"suite {suite.name!r}, task {task.name!r}: {error}") from error
                for position, seed in enumerate(seeds or suite.seeds):
                    job = Job(
                        suite=suite.name,
                        task=task,
                        label=entry.label,
                        method=entry.method,
                        seed=seed,
                        budget=_scaled(task, budget_scale * suite.budget_scale),
                        settings=settings,
                        config=config.model_dump(mode="json"),
                        revision=config.revision,
                    )
                    jobs.append((position, job))
    if not jobs:
        raise UsageError("nothing to run: the suites have none of these methods")
    _check_distinct([job for _, job in jobs])
    # Stable: within a seed the order of the suites stays.
    return tuple(job for _, job in sorted(jobs, key=lambda item: item[0]))


def _check_published(suite: SuiteSpec, task: TaskSpec) -> None:
    """A misspelt metric would stand beside nothing.

    Raises:
        UsageError: the metric does not exist for the task, or speaks of a set that the task does not have.
    """
    if not task.published:
        return
    from bayes_bench import metrics  # here, because it is of no use to most suites and builds on SciPy

    where = f"suite {suite.name!r}, task {task.name!r}: published"
    kind = "classification" if isinstance(task.likelihood, CategoricalSpec) else "regression"
    for claim in task.published:
        metric = metrics.find(claim.metric, kind)
        if metric is None:
            known = [metric.name for metric in metrics.catalogue() if metric.kind in ("any", kind)]
            raise UsageError(f"{where}: {unknown_name('metric', claim.metric, known)}")
        if metric.over in KINDS:
            sets = [spec.name for spec in getattr(task, metric.over)]
            if (name := claim.metric.partition("/")[2]) not in sets:
                unknown = unknown_name("out-of-distribution set", name, sets)
                raise UsageError(f"{where}: metric {claim.metric!r}: {unknown}")


def _entries(
    suite: SuiteSpec,
    suites: Sequence[SuiteSpec],
    methods: Sequence[str],
    registered: Mapping[str, Any],
    usable: Sequence[str],
) -> tuple[MethodEntry, ...]:
    """What is run of a suite; ``usable`` methods where neither the suite nor the user names any."""
    listed = {entry.label: entry for entry in suite.methods}
    if not methods:
        chosen = suite.methods or tuple(MethodEntry(label=name, method=name) for name in usable)
        if not chosen:
            raise UsageError("no methods are registered that work; install the package first: pip install .")
        for entry in chosen:
            if entry.method not in registered:
                raise UsageError(f"suite {suite.name!r}: {unknown_name('method', entry.method, registered)}")
        return chosen
    elsewhere = {entry.label for other in suites for entry in other.methods}
    found = []
    for name in dict.fromkeys(methods):
        if name in listed:
            if listed[name].method not in registered:
                raise UsageError(f"suite {suite.name!r}: {unknown_name('method', listed[name].method, registered)}")
            found.append(listed[name])
        elif name in registered:
            found.append(MethodEntry(label=name, method=name))
        elif name not in elsewhere:
            raise UsageError(unknown_name("method", name, registered.keys() | elsewhere))
    return tuple(found)


def _usable(registered: Iterable[str], warn: Callable[[str], None]) -> list[str]:
    """Methods that can be imported; nobody has asked for the others, so they are left out and said."""
    found = []
    for name in registered:
        try:
            registry.method_class(name)
            found.append(name)
        except PluginError as error:
            warn(f"left out: {error}")
    return found


def _scaled(task: TaskSpec, scale: float) -> int:
    """The task's budget times the factor, at least 1.

    Raises:
        UsageError: beyond what a record can hold.
    """
    budget = task.budget * scale
    if budget > LARGEST_INTEGER:
        raise UsageError(f"--budget-scale {scale:g} gives {task.name!r} a budget beyond 64 bits; give a smaller one")
    return max(1, round(budget))


def _settings(task: TaskSpec, entry: MethodEntry, overrides: Iterable[Override]) -> dict[str, Any]:
    """Settings of the task for the method, then for the label, of the entry, of the command line; later ones win."""
    settings = dict(task.settings.get(entry.method, {}))
    if entry.label != entry.method:
        settings |= task.settings.get(entry.label, {})
    settings |= entry.settings
    # A label is nearer than a method of the same name, whatever the order on the command line.
    for target in (entry.method, entry.label):
        settings |= {override.key: override.value for override in overrides if override.target == target}
    return settings


def _check_overrides(
    overrides: Iterable[Override], entries: Sequence[MethodEntry], registered: Mapping[str, Any]
) -> None:
    known = {entry.label for entry in entries} | {entry.method for entry in entries}
    for override in overrides:
        where = f"--set {override.target}.{override.key}"
        if override.target in known:
            continue
        if override.target in registered:
            raise UsageError(f"{where}: {override.target!r} is not among the methods run ({', '.join(sorted(known))})")
        raise UsageError(f"{where}: {unknown_name('method', override.target, known)}")


def _check_task_settings(suite: SuiteSpec, task: TaskSpec, registered: Mapping[str, Any]) -> None:
    """A misspelt name in a task's settings would change nothing and tell nobody."""
    known = registered.keys() | {entry.label for entry in suite.methods} | {entry.method for entry in suite.methods}
    for name in task.settings:
        if name not in known:
            sentence = unknown_name("method", name, known)
            raise UsageError(f"suite {suite.name!r}, task {task.name!r}: settings for an {sentence}")


def _check_distinct(jobs: Sequence[Job]) -> None:
    seen: dict[tuple[str, str, int], Job] = {}
    for job in jobs:
        other = seen.setdefault((job.task.name, job.label, job.seed), job)
        if other.suite != job.suite and other.variant("", "") == job.variant("", ""):
            raise UsageError(
                f"the suites {other.suite!r} and {job.suite!r} both hold {job.name}; "
                "run them with two commands, so that each has a folder of its own"
            )
