"""The next settings to try, by Optuna."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from bayes_bench.errors import UsageError
from bayes_bench.settings import Range, Space
from bayes_bench.tuning.plan import Rule, Trial

DIGITS = 3
"""Significant digits of a setting that is searched in a range of numbers: more would say more than two seeds know."""
ATTEMPTS = 20
"""How often the sampler is asked for settings that were not tried before."""
STUDY = "tune"
"""The study's name in the journal."""
NO_OPTUNA = "tuning needs Optuna: pip install 'optuna>=4.0'"


def load_optuna() -> Any:
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


def suggest(space: dict[str, Space], rule: Rule, done: Sequence[Trial]) -> dict[str, Any]:
    """Settings for the next trial; depends on the finished trials alone, so a continued search is the same search.

    TPE looks only at the order of the trials' values. They are told as places in the rule's ranking, in which those
    below the accuracy that the rule asks for are behind all others, as TPE has it for trials that break a constraint;
    those that failed are last.
    """
    optuna = load_optuna()
    distributions = {name: _distribution(optuna, choices) for name, choices in space.items()}
    places = {trial.number: place for place, trial in enumerate(rule.ranked(done))}
    settings: dict[str, Any] = {}
    for attempt in range(ATTEMPTS):
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=len(done) * ATTEMPTS + attempt))
        for trial in done:
            study.add_trial(frozen(optuna, trial, space, value=places.get(trial.number, len(done))))
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


def frozen(optuna: Any, trial: Trial, space: dict[str, Space], value: float | None) -> Any:
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
