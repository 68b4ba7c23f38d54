"""Trials on disk, and the snippet of settings for a suite."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from bayes_bench.errors import DataError, UsageError, named
from bayes_bench.host.files import spreadsheet_safe, write_text
from bayes_bench.results import schema
from bayes_bench.settings import Space, check_values
from bayes_bench.tuning.plan import Result, Rule, Search, Trial
from bayes_bench.tuning.suggest import STUDY, frozen, load_optuna

JOURNAL, TABLE, BEST = "journal.jsonl", "trials.csv", "best.toml"


class StoredTrial(schema.Part):
    model_config = schema.Part.model_config | {"extra": "forbid"}

    settings: schema.Table
    scores: dict[Annotated[str, Field(pattern=r"^[a-z_]+(/[A-Za-z0-9_.-]+)?$")], float]
    error: schema.Text


class Journal:
    """The finished trials on disk. A trial is one line, written when it is finished."""

    def __init__(self, out: Path, rule: Rule, space: dict[str, Space], identity: dict[str, Any]):
        self._optuna = optuna = load_optuna()
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
        schema.check(StoredTrial, stored)
        trial = Trial(number, **stored)
        wanted = {self._rule.by, "val_nll"} | ({"val_accuracy"} if self._rule.by == "val_ood_auroc" else set())
        if trial.settings.keys() != self._space.keys() or not (trial.error or wanted <= trial.scores.keys()):
            raise DataError(f"trial {number} lacks settings or scores of this search")
        return trial

    def add(self, trial: Trial, space: dict[str, Space]) -> None:
        value = None if trial.error else trial.scores[self._rule.by]
        self._study.add_trial(frozen(self._optuna, trial, space, value))


def _cut_after_last_line(path: Path) -> None:
    with path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def write_trials(out: Path, result: Result) -> None:
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


def snippet(search: Search, rule: Rule, trials: Sequence[Trial], command: Sequence[str]) -> str:
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
