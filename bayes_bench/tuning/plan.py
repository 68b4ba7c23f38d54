"""What is searched, and which trial is the best. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bayes_bench.errors import UsageError, unknown_name
from bayes_bench.host import machine
from bayes_bench.host.machine import MEMORY_LIMIT_MB
from bayes_bench.jobs.job import Job
from bayes_bench.jobs.plan import Override
from bayes_bench.jobs.plan import plan as plan_jobs
from bayes_bench.methods import registry
from bayes_bench.settings import Range, Space, search_space
from bayes_bench.tasks.spec import NOT_IN_KEY, SuiteSpec, TaskSpec

SEEDS = (100, 101)
"""Training seeds of every trial; no suite that ships uses them."""
ACCURACY_MARGIN = 0.01
"""By how much a trial's validation accuracy may be below the best trial's for its AUROC to count."""


@dataclass(frozen=True)
class Search:
    """What is searched: frozen, checked, and nothing trained yet.

    Attributes:
        label: the suite's entry, mostly the name of the method.
        task: without its reported out-of-distribution sets, so that these are not even read.
        jobs: one per seed, with the current settings.
        space: what may be tried, by setting.
        kept: settings that the suite's task or the command line gives, for the snippet.
    """

    suite: str
    label: str
    task: TaskSpec
    jobs: tuple[Job, ...]
    space: dict[str, Space]
    kept: dict[str, Any]

    @property
    def method(self) -> str:
        return self.jobs[0].method

    @property
    def current(self) -> dict[str, Any]:
        """The settings in the search space as they are now, those of trial 0."""
        return {name: self.jobs[0].config[name] for name in self.space}

    def jobs_with(self, settings: dict[str, Any]) -> list[Job]:
        """One job per seed with other settings.

        Raises:
            UsageError: the method refuses them.
        """
        complete = self.jobs[0].settings | settings
        config = registry.resolve_config(self.method, complete).model_dump(mode="json")
        return [job.model_copy(update={"settings": complete, "config": config}) for job in self.jobs]

    def identity(self, checksum: str, device: str, memory_limit_mb: int = MEMORY_LIMIT_MB) -> dict[str, Any]:
        """All that must be the same for a search to be continued, in parts that a sentence can name."""
        first = self.jobs[0]
        parts = {
            "suite": self.suite,
            "task": [self.task.name, self.task.model_dump(mode="json", exclude=NOT_IN_KEY)],
            "method": [self.label, self.method, first.revision],
            "settings": first.config,
            "search space": {
                name: asdict(space) if isinstance(space, Range) else space for name, space in self.space.items()
            },
            "seeds": [job.seed for job in self.jobs],
            "budget": first.budget,
            "data": checksum,
            "device": device,
            "memory limit": memory_limit_mb,
        }
        if files := registry.files_of([self.method]):
            parts["file"] = [*files, machine.code_hash([Path(files[0].rpartition(":")[0])])]
        same: dict[str, Any] = json.loads(json.dumps(parts))
        return same


@dataclass(frozen=True)
class Trial:
    """One finished trial.

    Attributes:
        settings: of the search space, as JSON has them.
        scores: means over the seeds: ``val_nll``, ``val_accuracy`` or ``val_rmse``, ``val_ood_auroc`` (of all sets and
            of each), ``fit_seconds``; empty where it failed.
        error: why it failed, else empty.
    """

    number: int
    settings: dict[str, Any]
    scores: dict[str, float]
    error: str = ""


@dataclass(frozen=True)
class Rule:
    """Which of several trials is best."""

    by: Literal["val_ood_auroc", "val_nll"]

    def __str__(self) -> str:
        if self.by == "val_nll":
            return "lowest val_nll"
        return f"highest val_ood_auroc among the trials whose val_accuracy is within {ACCURACY_MARGIN} of the best"

    def ranked(self, trials: Iterable[Trial]) -> list[Trial]:
        """The trials that did not fail, best first; equals by likelihood, then in the order they were tried."""
        scored = [trial for trial in trials if not trial.error]
        most_accurate = max((trial.scores.get("val_accuracy", 0.0) for trial in scored), default=0.0)

        def place(trial: Trial) -> tuple[float, ...]:
            rest = (trial.scores["val_nll"], trial.number)
            if self.by == "val_nll":
                return rest
            behind = most_accurate - trial.scores["val_accuracy"]
            if behind > ACCURACY_MARGIN + 1e-9:
                return (1, behind, *rest)
            return (0, -trial.scores["val_ood_auroc"], *rest)

        return sorted(scored, key=place)


@dataclass(frozen=True)
class Result:
    """A search as far as it has come.

    Attributes:
        trials: all finished ones, in the order they were tried; the first has the current settings.
        wanted: how many were asked for.
        best: the snippet for a suite; empty while no trial has scores.
    """

    search: Search
    rule: Rule
    trials: tuple[Trial, ...]
    wanted: int
    interrupted: bool
    best: str

    @property
    def exit_code(self) -> int:
        """0, or 1 where every trial failed, or 130 after Ctrl-C."""
        return 130 if self.interrupted else int(not self.best)


def plan(
    suite: SuiteSpec,
    method: str,
    *,
    task: str | None = None,
    seeds: Sequence[int] = SEEDS,
    overrides: Iterable[Override] = (),
    budget_scale: float = 1.0,
    quick: bool = False,
) -> Search:
    """What ``tune`` will search. Needs no data.

    Args:
        method: a label of the suite's entries, or the name of a registered method.
        task: its name; may be left out where the suite has only one.
        seeds: training seeds of every trial, none of the suite's own.
        quick: on the suite's quick variant; the suite's own seeds stay its own, as both have the same settings.
        overrides: settings that are fixed and so not searched, as are those of the suite's own entry.

    Raises:
        UsageError: an unknown method, task or setting, a seed of the suite, no quick variant, or nothing to search.
        PluginError: the method is broken.
    """
    names = [spec.name for spec in suite.tasks]
    if task is None and len(names) > 1:
        raise UsageError(f"the suite {suite.name!r} has several tasks; name one with --task: {', '.join(names)}")
    if task is not None and task not in names:
        raise UsageError(unknown_name("task", task, names))
    if taken := sorted(set(seeds) & set(suite.seeds)):
        raise UsageError(
            f"--seeds: {', '.join(map(str, taken))} is a seed of the suite {suite.name!r}, whose results must not "
            "depend on what was tuned with it; take others, e.g. 100,101"
        )
    if quick:
        return plan(
            suite.quick_variant(), method, task=task, seeds=seeds, overrides=overrides, budget_scale=budget_scale
        )
    (chosen,) = [spec for spec in suite.tasks if task in (None, spec.name)]
    chosen = chosen.model_copy(update={"ood": ()})
    own = {entry.label: entry.settings for entry in suite.methods}.get(method, {})
    overrides = tuple(overrides)
    alone = suite.model_copy(update={"tasks": (chosen,)})
    planned = plan_jobs([alone], methods=[method], seeds=seeds, overrides=overrides, budget_scale=budget_scale)
    declared = search_space(registry.config_class(planned[0].method))
    fixed = own.keys() | {override.key for override in overrides}
    space = {name: space for name, space in declared.items() if name not in fixed}
    if not declared:
        raise UsageError(
            f"the method {planned[0].method!r} declares nothing to tune; its author can, with setting(…, tune=…)"
        )
    if not space:
        raise UsageError(f"nothing to tune: every setting in the search space is fixed ({', '.join(declared)})")
    kept = {key: value for key, value in planned[0].settings.items() if key not in own}
    return Search(suite.name, method, chosen, planned, space, kept)
