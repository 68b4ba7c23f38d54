"""Tuning: the search for a method's settings on one task, by validation scores alone.

    OUT/journal.jsonl   every finished trial, in Optuna's journal format; what an unfinished search continues from
    OUT/trials.csv      the same as a table
    OUT/best.toml       the best trial's settings, as a suite has them

Imports neither torch nor Optuna before a search starts.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from bayes_bench import metrics
from bayes_bench.errors import DataError, DivergenceError, UsageError, named, unknown_name
from bayes_bench.host import machine
from bayes_bench.host.files import spreadsheet_safe, write_text, writing
from bayes_bench.host.machine import MEMORY_LIMIT_MB
from bayes_bench.jobs.job import NOT_IN_KEY, Job
from bayes_bench.jobs.plan import Override
from bayes_bench.jobs.plan import plan as plan_jobs
from bayes_bench.methods import registry
from bayes_bench.results import schema
from bayes_bench.results.folder import check_run_dir
from bayes_bench.results.lock import locked
from bayes_bench.settings import Range, Space, check_values, search_space
from bayes_bench.tasks.spec import SuiteSpec, TaskSpec

if TYPE_CHECKING:
    import torch

    from bayes_bench.tasks.task import Task

SEEDS = (100, 101)
"""Training seeds of every trial; no suite that ships uses them."""
ACCURACY_MARGIN = 0.01
"""By how much a trial's validation accuracy may be below the best trial's for its AUROC to count."""
DIGITS = 3
"""Significant digits of a setting that is searched in a range of numbers: more would say more than two seeds know."""
ATTEMPTS = 20
"""How often the sampler is asked for settings that were not tried before."""
JOURNAL, TABLE, BEST = "journal.jsonl", "trials.csv", "best.toml"
STUDY = "tune"
"""The study's name in the journal."""
NO_OPTUNA = "tuning needs Optuna: pip install 'bayes-bench[tune]'"


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


Watch = Callable[[Result, Trial, float], None]
"""Called after every trial with the search so far, the trial, and the seconds that are left."""


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


def check(out: Path) -> None:
    """Can a search be made or continued in that folder? Creates nothing.

    Raises:
        UsageError: Optuna is not installed, or the folder is something else.
    """
    _optuna()
    check_run_dir(out, JOURNAL, "tuning")


def tune(
    search: Search,
    out: Path,
    *,
    trials: int,
    device: str = "auto",
    threads: int | None = None,
    data_root: Path | None = None,
    allow_code: Sequence[Path] = (),
    memory_limit_mb: int = MEMORY_LIMIT_MB,
    command: Sequence[str] = (),
    watch: Watch | None = None,
) -> Result:
    """Run trials until ``trials`` are finished in all, and keep ``out`` up to date after each.

    Trial 0 has the current settings; the others are suggested by Optuna's TPE. A trial that diverges or is refused
    is one that failed, and the search goes on. Ctrl-C loses the trial that is running.

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

    place = resolve_device(device)
    registry.method_class(search.method)
    task = build_task(search.task, data_root, allow_code)
    if not task.fit_data.validation:
        raise UsageError(f"task {search.task.name!r} has no validation data, by which tuning could choose")
    build_posterior(search.jobs[0], task).check_fit(task.fit_data, search.jobs[0].budget)
    outside = task.likelihood.kind == "classification" and task.validation_ood
    rule = Rule("val_ood_auroc" if outside else "val_nll")
    with (
        locked(out),
        settled(place),
        limited_threads(threads or default_threads(task)),
        writing(out),
    ):
        identity = search.identity(task.checksum, place.type, memory_limit_mb)
        journal = _Journal(out, rule, search.space, identity)

        def so_far(interrupted: bool = False) -> Result:
            done = tuple(journal.trials())
            result = Result(search, rule, done, trials, interrupted, _snippet(search, rule, done, command))
            _write(out, result)
            return result

        try:
            warm_up()
            result = so_far()
            durations: list[float] = []
            while len(result.trials) < trials:
                started = time.perf_counter()
                trial = _run_trial(result, task, place, memory_limit_mb)
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
    settings = _suggest(search.space, so_far.rule, so_far.trials) if number else search.current
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
    sets = {"validation": validation.inputs()} | {
        f"validation_ood/{name}": x for name, x in task.validation_ood.items()
    }
    predictions = {
        f"{name}/{key}": values
        for name, x in sets.items()
        for key, values in predict(posterior, weights, x, task.standardiser).items()
    }
    y = predictions["validation/y"] = raw_targets(validation.y, task.standardiser)
    wanted = [metric for metric in metrics.CATALOGUE if metric.group == "validation"]
    rows = metrics.compute(predictions, {"kind": task.likelihood.kind}, wanted)
    scores = {row["name"]: math.nan if row["value"] is None else row["value"] for row in rows}
    if task.likelihood.kind == "classification":
        probs = metrics.summarise(predictions["validation/log_probs"], ()).probs
        scores["val_accuracy"] = metrics.accuracy(probs, y)
        if task.validation_ood:
            scores["val_ood_auroc"] = statistics.fmean(scores[f"val_ood_auroc/{name}"] for name in task.validation_ood)
    else:
        scores["val_rmse"] = metrics.rmse(predictions["validation/mean"], y)
    for name, value in scores.items():
        if not math.isfinite(value):
            raise DivergenceError(f"{name} is not finite")
    return scores | {"fit_seconds": fit.seconds}


# Optuna ---------------------------------------------------------------------------------------------------


def _optuna() -> Any:
    """Optuna, quiet about what it does.

    Raises:
        UsageError: it is not installed, or too old.
    """
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend  # noqa: F401 (new in 4.0)
    except ImportError as error:
        raise UsageError(NO_OPTUNA) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _suggest(space: dict[str, Space], rule: Rule, done: Sequence[Trial]) -> dict[str, Any]:
    """Settings for the next trial; depends on the finished trials alone, so a continued search is the same search.

    TPE looks only at the order of the trials' values. They are told as places in the rule's ranking, in which those
    below the accuracy that the rule asks for are behind all others, as TPE has it for trials that break a constraint;
    those that failed are last.
    """
    optuna = _optuna()
    distributions = {name: _distribution(optuna, choices) for name, choices in space.items()}
    places = {trial.number: place for place, trial in enumerate(rule.ranked(done))}
    settings: dict[str, Any] = {}
    for attempt in range(ATTEMPTS):
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=len(done) * ATTEMPTS + attempt))
        for trial in done:
            study.add_trial(_frozen(optuna, trial, space, value=places.get(trial.number, len(done))))
        asked = study.ask(distributions).params
        settings = {name: _decoded(space[name], asked[name]) for name in space}
        if all(settings != trial.settings for trial in done):
            break
    return settings


def _distribution(optuna: Any, space: Space) -> Any:
    if not isinstance(space, Range):
        # As text: Optuna stores choices of simple types alone, and takes 1 and true for the same.
        return optuna.distributions.CategoricalDistribution([json.dumps(choice) for choice in space])
    name = "IntDistribution" if isinstance(space.low, int) else "FloatDistribution"
    return getattr(optuna.distributions, name)(space.low, space.high, log=space.log)


def _decoded(space: Space, value: Any) -> Any:
    if not isinstance(space, Range):
        return json.loads(value)
    return min(max(float(f"{value:.{DIGITS}g}"), space.low), space.high) if isinstance(value, float) else value


def _inside(space: Space, value: Any) -> bool:
    if isinstance(space, Range):
        return isinstance(value, int | float) and space.low <= value <= space.high
    return json.dumps(value) in [json.dumps(choice) for choice in space]


def _frozen(optuna: Any, trial: Trial, space: dict[str, Space], value: float | None) -> Any:
    """A finished trial as Optuna has it; a current setting outside of the search space is no parameter there."""
    inside = {name: choices for name, choices in space.items() if _inside(choices, trial.settings[name])}
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState.FAIL if value is None else optuna.trial.TrialState.COMPLETE,
        value=value,
        params={
            name: trial.settings[name] if isinstance(choices, Range) else json.dumps(trial.settings[name])
            for name, choices in inside.items()
        },
        distributions={name: _distribution(optuna, choices) for name, choices in inside.items()},
        user_attrs={"settings": trial.settings, "scores": trial.scores, "error": trial.error},
    )


class _StoredTrial(schema.Part):
    model_config = schema.Part.model_config | {"extra": "forbid"}

    settings: schema.Table
    scores: dict[Annotated[str, Field(pattern=r"^[a-z_]+(/[A-Za-z0-9_.-]+)?$")], float]
    error: schema.Text


class _Journal:
    """The finished trials on disk. A trial is one line, written when it is finished."""

    def __init__(self, out: Path, rule: Rule, space: dict[str, Space], identity: dict[str, Any]):
        self._optuna = optuna = _optuna()
        self._rule, self._space = rule, space
        path = out / JOURNAL
        lock = optuna.storages.journal.JournalFileOpenLock(str(path))
        # The folder is locked for this process: what a killed one left half-written or locked is in nobody's use.
        path.with_name(f"{JOURNAL}.lock").unlink(missing_ok=True)
        if path.exists():
            _cut_after_last_line(path)
        backend = optuna.storages.journal.JournalFileBackend(str(path), lock_obj=lock)
        try:
            storage = optuna.storages.JournalStorage(backend)
            if optuna.get_all_study_names(storage):
                self._study = optuna.load_study(study_name=STUDY, storage=storage)
            else:
                direction = "minimize" if rule.by == "val_nll" else "maximize"
                self._study = optuna.create_study(study_name=STUDY, storage=storage, direction=direction)
            known = self._study.user_attrs.get("search")
            if not isinstance(known, dict | None):
                raise ValueError("it does not say what is searched")
        except OSError:
            raise
        except Exception as error:  # whatever Optuna makes of a file that may come from anybody
            raise DataError(f"{path} is damaged: {named(error)}") from error
        if known is None:
            self._study.set_user_attr("search", identity)
        elif differing := [part for part, value in identity.items() if known.get(part) != value]:
            raise UsageError(f"{out} holds another search (different {', '.join(differing)}); choose another --out")
        try:
            self.trials()
        except DataError as error:
            raise DataError(f"{path} is damaged: {error}") from error

    def trials(self) -> list[Trial]:
        return [self._trial(number, trial.user_attrs) for number, trial in enumerate(self._study.get_trials())]

    def _trial(self, number: int, stored: dict[str, Any]) -> Trial:
        """A stored trial.

        Raises:
            DataError: it is not one of this search.
        """
        try:
            check_values(stored)
        except UsageError as error:
            raise DataError(f"trial {number}: {error}") from error
        schema.check(_StoredTrial, stored)
        trial = Trial(number, **stored)
        wanted = {self._rule.by, "val_nll"} | ({"val_accuracy"} if self._rule.by == "val_ood_auroc" else set())
        if trial.settings.keys() != self._space.keys() or not (trial.error or wanted <= trial.scores.keys()):
            raise DataError(f"trial {number} lacks settings or scores of this search")
        return trial

    def add(self, trial: Trial, space: dict[str, Space]) -> None:
        value = None if trial.error else trial.scores[self._rule.by]
        self._study.add_trial(_frozen(self._optuna, trial, space, value))


def _cut_after_last_line(path: Path) -> None:
    with path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


# Files ----------------------------------------------------------------------------------------------------


def _write(out: Path, result: Result) -> None:
    write_text(out / TABLE, _table(result))
    if result.best:
        write_text(out / BEST, result.best)


def _table(result: Result) -> str:
    scores = list(dict.fromkeys(name for trial in result.trials for name in trial.scores))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["number", "state", *result.search.space, *scores, "error"])
    for trial in result.trials:
        settings = [spreadsheet_safe(plain(trial.settings[name])) for name in result.search.space]
        values = [trial.scores.get(name, "") for name in scores]
        error = spreadsheet_safe(trial.error)
        writer.writerow([trial.number, "failed" if trial.error else "finished", *settings, *values, error])
    return buffer.getvalue()


def plain(value: Any) -> str:
    """A setting's value in a table."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _snippet(search: Search, rule: Rule, trials: Sequence[Trial], command: Sequence[str]) -> str:
    """The best trial's settings as a table of the suite's task, and how they were found as a comment."""
    ranked = rule.ranked(trials)
    if not ranked:
        return ""
    best, first = ranked[0], search.jobs[0]
    which = "the current settings" if best.number == 0 else f"trial {best.number}"
    seeds = ", ".join(str(job.seed) for job in search.jobs)
    comment = [
        f"{search.label} on the task {search.task.name} of the suite {search.suite}: {which}, best of {len(trials)}.",
        f"Rule: {rule}.",
        f"Means over the seeds {seeds} with {first.budget:,} gradient evaluations each:",
        ", ".join(f"{name} {value:.4g}" for name, value in best.scores.items()),
        *([shlex.join(command)] if command else []),
    ]
    settings = {name: value for name, value in (search.kept | best.settings).items() if value is not None}
    lines = [f"{name} = {_toml(value)}" for name, value in settings.items()]
    return "\n".join([*(f"# {line}" for line in comment), f"[tasks.settings.{_key(search.label)}]", *lines]) + "\n"


def _toml(value: Any) -> str:
    """JSON is TOML but for objects."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


def _key(label: str) -> str:
    return json.dumps(label) if "." in label else label
