"""Tuning: the search for a method's settings on one task, by validation scores alone.

    OUT/journal.jsonl   every finished trial, in Optuna's journal format; what an unfinished search continues from
    OUT/trials.csv      the same as a table
    OUT/best.toml       the best trial's settings, as a suite has them

Imports neither torch nor Optuna before a search starts.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bayes_bench import metrics
from bayes_bench.errors import DivergenceError, UsageError, named
from bayes_bench.host.files import writing
from bayes_bench.host.machine import MEMORY_LIMIT_MB
from bayes_bench.jobs.job import Conditions, Job
from bayes_bench.methods import registry
from bayes_bench.results.folder import check_run_dir
from bayes_bench.results.lock import locked
from bayes_bench.results.sets import kind_of
from bayes_bench.tuning.journal import JOURNAL, Journal, snippet, write_trials
from bayes_bench.tuning.plan import Result, Rule, Search, Trial
from bayes_bench.tuning.suggest import load_optuna, suggest

if TYPE_CHECKING:
    import torch

    from bayes_bench.tasks.task import Task


TrialWatch = Callable[[Result, Trial, float], None]
"""Called after every trial with the search so far, the trial, and the seconds that are left."""


def check(out: Path) -> None:
    """Can a search be made or continued in that folder? Creates nothing.

    Raises:
        UsageError: Optuna is not installed, or the folder is something else.
    """
    load_optuna()
    check_run_dir(out, JOURNAL, "tuning")


def tune(
    search: Search,
    out: Path,
    *,
    trials: int,
    conditions: Conditions | None = None,
    command: Sequence[str] = (),
    watch: TrialWatch | None = None,
) -> Result:
    """Run trials until ``trials`` are finished in all, and keep ``out`` up to date after each.

    Trial 0 has the current settings; the others are suggested by Optuna's TPE. A trial that diverges or is refused
    is one that failed, and the search goes on. Ctrl-C loses the trial that is running.

    Of ``conditions``, precision and snapshots do not matter here.

    Raises:
        UsageError: no Optuna, no such device, no validation data, a budget too small for the current settings, or a
            folder of another search, or one in use.
        UnsupportedNetworkError: the method cannot treat the task's network.
        DataError: data are missing or damaged, or the journal is damaged.
        PluginError: the method is broken.
    """
    check(out)
    from bayes_bench.jobs.execute import build_posterior, default_threads
    from bayes_bench.posterior.checks import resolve_device
    from bayes_bench.posterior.surroundings import limited_threads, settled, warm_up
    from bayes_bench.tasks.task import build_task

    conditions = conditions or Conditions()
    place = resolve_device(conditions.device)
    registry.method_class(search.method)
    task = build_task(search.task, conditions.data_root, conditions.allow_code)
    if not task.fit_data.validation:
        raise UsageError(f"task {search.task.name!r} has no validation data, by which tuning could choose")
    build_posterior(search.jobs[0], task).check_fit(task.fit_data, search.jobs[0].budget)
    outside = task.likelihood.kind == "classification" and task.sets_of("validation_ood")
    rule = Rule("val_ood_auroc" if outside else "val_nll")
    with (
        locked(out),
        settled(place),
        limited_threads(conditions.threads or default_threads(task)),
        writing(out),
    ):
        identity = search.identity(task.checksum, place.type, conditions.memory_limit_mb)
        journal = Journal(out, rule, search.space, identity)

        def so_far(interrupted: bool = False) -> Result:
            done = tuple(journal.trials())
            result = Result(search, rule, done, trials, interrupted, snippet(search, rule, done, command))
            write_trials(out, result)
            return result

        try:
            warm_up()
            result = so_far()
            durations: list[float] = []
            while len(result.trials) < trials:
                started = time.perf_counter()
                trial = _run_trial(result, task, place, conditions.memory_limit_mb)
                journal.add(trial, search.space)
                result = so_far()
                durations.append(time.perf_counter() - started)
                if watch:
                    watch(result, trial, statistics.fmean(durations) * (trials - len(result.trials)))
        except KeyboardInterrupt:
            result = so_far(interrupted=True)
    return result


# One trial ------------------------------------------------------------------------------------------------


def _run_trial(so_far: Result, task: Task, device: torch.device, memory_limit_mb: int) -> Trial:
    search, number = so_far.search, len(so_far.trials)
    settings = suggest(search.space, so_far.rule, so_far.trials) if number else search.current
    for other in so_far.trials:
        if other.settings == settings:  # seeded: the same settings would give the same scores
            return Trial(number, settings, other.scores, other.error)
    try:
        scores = [score(job, task, device, memory_limit_mb) for job in search.jobs_with(settings)]
    except Exception as error:  # whatever a method raises: these settings fail, the search goes on
        return Trial(number, settings, {}, named(error))
    return Trial(number, settings, {name: statistics.fmean(one[name] for one in scores) for name in scores[0]})


def score(job: Job, task: Task, device: torch.device, memory_limit_mb: int = MEMORY_LIMIT_MB) -> dict[str, float]:
    """Fit, draw and predict as a run does, and measure on validation and validation-OOD data alone.

    Raises:
        DivergenceError: a score is not finite.
        Exception: whatever the method raises.
    """
    from bayes_bench.jobs.execute import fit_and_draw
    from bayes_bench.jobs.predictions import predict, raw_targets

    posterior, fit, weights = fit_and_draw(job, task, device, memory_limit_mb=memory_limit_mb)
    validation = task.fit_data.validation
    assert validation is not None
    predictions = {
        f"{name}/{key}": values
        for name, part in task.sets.items()
        if kind_of(name) in ("validation", "validation_ood")
        for key, values in predict(posterior, weights, part.inputs(), task.standardiser).items()
    }
    y = predictions["validation/y"] = raw_targets(validation.y, task.standardiser)
    wanted = [metric for metric in metrics.CATALOGUE if metric.group == "validation"]
    rows = metrics.compute(predictions, {"kind": task.likelihood.kind}, wanted)
    scores = {row["name"]: math.nan if row["value"] is None else row["value"] for row in rows}
    if task.likelihood.kind == "classification":
        probs = metrics.summarise(predictions["validation/log_probs"], ()).probs
        scores["val_accuracy"] = metrics.accuracy(probs, y)
        if outside := task.sets_of("validation_ood"):
            scores["val_ood_auroc"] = statistics.fmean(scores[f"val_ood_auroc/{name}"] for name in outside)
    else:
        scores["val_rmse"] = metrics.rmse(predictions["validation/mean"], y)
    for name, value in scores.items():
        if not math.isfinite(value):
            raise DivergenceError(f"{name} is not finite")
    return scores | {"fit_seconds": fit.seconds}
