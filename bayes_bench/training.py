"""The one optimisation loop: budget, progress, validation, best snapshot, early stopping, divergence guard.

Every method that trains by steps drives it, so budgets mean the same everywhere.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from bayes_bench.errors import DivergenceError, UsageError

GUARD_EVERY = 50
"""Steps between two looks at the loss: each look waits for a GPU."""


VALIDATION_SHARE = 0.2
"""At most this share of a budget goes into validations, where there would be too many of them."""


class Monitor(Protocol):
    """Whoever watches a fit."""

    def progress(self, spent: float, budget: int, values: Mapping[str, float]) -> None:
        """Called every few steps with the gradient evaluations spent so far and the latest numbers."""


class HasState(Protocol):
    """Modules and optimisers."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


class TensorState(dict[str, Tensor]):
    """Named tensors as something a snapshot can hold: restored in place, so that optimisers keep their hold."""

    def state_dict(self) -> dict[str, Any]:
        return {name: value.detach() for name, value in self.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any], /) -> None:
        for name, value in self.items():
            value.copy_(state[name])


@dataclass(frozen=True)
class FitSummary:
    """What a fit cost and how it went.

    Attributes:
        budget, spent: network-example gradient evaluations allowed and used.
        stopped: ``"budget"``, or ``"early"`` where validation stopped improving.
        history: one row per validation, ``evaluations`` and the numbers seen then.
        diagnostics: what the method says about its own fit (effective sample size, acceptance rate, ...).
        parameters_stored: numbers that the fitted posterior keeps.
    """

    budget: int
    spent: float
    seconds: float
    steps: int
    stopped: Literal["budget", "early"]
    history: list[dict[str, float]]
    notes: tuple[str, ...]
    parameters_stored: int
    diagnostics: dict[str, float]

    @property
    def unspent(self) -> float:
        return max(0.0, self.budget - self.spent)


class TrainingLoop:
    """The purse of one fit. A method calls ``run`` (or ``charge`` for evaluations outside of it)."""

    def __init__(self, budget: int, monitor: Monitor | None = None):
        self.budget = budget
        self.spent = 0.0
        self.steps = 0
        self.stopped: Literal["budget", "early"] = "budget"
        self.history: list[dict[str, float]] = []
        self.notes: list[str] = []
        self.diagnostics: dict[str, float] = {}
        self._monitor = monitor

    @property
    def progress(self) -> float:
        """Share of the budget that is spent, in [0, 1]."""
        return min(1.0, self.spent / self.budget)

    def note(self, sentence: str) -> None:
        """Something a reader of the record should know."""
        self.notes.append(sentence)

    def diagnose(self, **numbers: float) -> None:
        """Numbers about the fit itself that belong into the record, e.g. ``loop.diagnose(acceptance=0.8)``.

        They are for readers and cost no budget, as the evaluation on test data does not. Not finite: left out.
        """
        self.diagnostics |= {name: float(value) for name, value in numbers.items() if math.isfinite(value)}

    def charge(self, evaluations: float) -> None:
        """Pay for network evaluations outside of ``run``.

        Raises:
            UsageError: the budget does not allow them.
        """
        if self.spent + evaluations > self.budget:
            raise UsageError(
                f"the budget of {self.budget:,} gradient evaluations is too small; at least "
                f"{math.ceil(self.spent + evaluations):,} are needed"
            )
        self._spend(evaluations)

    def run(
        self,
        step: Callable[[], Mapping[str, Tensor]],
        state: Mapping[str, HasState],
        *,
        cost: float,
        steps: int | None = None,
        leave: float = 0.0,
        schedule: Callable[[float], None] | None = None,
        validate: Callable[[], Mapping[str, float]] | None = None,
        validation_cost: float = 0.0,
        validations: int = 20,
        keep_best: bool = False,
        patience: int | None = None,
    ) -> None:
        """Call ``step`` until the budget is spent, or ``steps`` times.

        Args:
            step: one update; returns scalar tensors to report, of which ``"loss"`` is guarded.
            state: the named modules and optimisers, all that a snapshot must hold.
            cost: gradient evaluations per step; 0 only together with ``steps``.
            steps: how many steps, where the budget is not what ends this part of a fit.
            leave: gradient evaluations of the budget that later parts of the fit need.
            schedule: called before each step with the share of this run that is done, e.g. to set learning rates.
            validate: called ``validations`` times (without ``steps`` fewer, where they would take more than a fifth of
                the budget), evenly over the run, and at its end; its numbers go to the history, and ``"val_nll"``
                (lower is better) decides what the best snapshot is.
            validation_cost: gradient evaluations of one call of ``validate``.
            keep_best: end with the snapshot of the best ``val_nll`` rather than the last.
            patience: stop after that many validations without a better ``val_nll``; None never stops early.

        Raises:
            UsageError: the budget does not pay for one step.
            DivergenceError: the loss is NaN or infinite.
        """
        reserve = validation_cost if validate else 0.0
        limit = self.budget - leave
        if self.spent + cost + reserve > limit:
            self.charge(cost + reserve + leave)
        start, done, checks, best, best_state, stale = self.spent, 0, 0, math.inf, None, 0
        span = limit - start
        if reserve and steps is None:
            validations = max(1, min(validations, int(VALIDATION_SHARE * span / reserve)))
        latest: Mapping[str, Tensor] = {}
        while True:
            last = self.spent + cost + reserve > limit or done == steps
            progress = (self.spent - start) / span if steps is None else done / steps
            due = progress >= (checks + 1) / validations
            # One on the way must leave enough for another step and the validation at the end.
            if validate and (last or (due and self.spent + cost + 2 * reserve <= limit)):
                checks = int(progress * validations)
                row = {"evaluations": self.spent, **_numbers(latest), **validate()}
                self._spend(reserve)
                self.history.append(row)
                self._guard(row)
                # Without validation data there is nothing to select by: every snapshot is as good as the next.
                score = row.get("val_nll", -math.inf)
                stale = 0 if score < best else stale + 1
                if score < best:
                    best = score
                    best_state = _snapshot(state) if keep_best and math.isfinite(score) else None
                if patience is not None and math.isfinite(best) and stale >= patience and not last:
                    self.stopped = "early"
                    last = True
            if last:
                break
            if schedule:
                schedule(progress)
            latest = step()
            self._spend(cost)
            self.steps += 1
            done += 1
            if self.steps % GUARD_EVERY == 0:
                numbers = _numbers(latest)
                self._guard(numbers)
                if self._monitor:
                    self._monitor.progress(self.spent, self.budget, numbers)
        self._guard(_numbers(latest))
        if best_state is not None and stale:
            for name, holder in state.items():
                holder.load_state_dict(best_state[name])
        if self._monitor:
            self._monitor.progress(self.spent, self.budget, _numbers(latest))

    def _spend(self, evaluations: float) -> None:
        # Rounded, so that sums of thirds do not exceed a budget by rounding errors.
        self.spent = round(self.spent + evaluations, 6)

    def _guard(self, numbers: Mapping[str, float]) -> None:
        loss, score = numbers.get("loss", 0.0), numbers.get("val_nll", 0.0)
        # An infinite validation NLL is a bad score, not a broken fit: an earlier snapshot may be fine.
        for name, value, bad in (("loss", loss, not math.isfinite(loss)), ("val_nll", score, math.isnan(score))):
            if bad:
                raise DivergenceError(
                    f"training diverged: {name} is {value} after {self.steps:,} steps; "
                    "lower the learning rate or step size"
                )

    def summary(self, *, seconds: float, parameters_stored: int) -> FitSummary:
        return FitSummary(
            budget=self.budget,
            spent=self.spent,
            seconds=seconds,
            steps=self.steps,
            stopped=self.stopped,
            history=self.history,
            notes=tuple(self.notes),
            parameters_stored=parameters_stored,
            diagnostics=self.diagnostics,
        )


def cosine_decay(optimizer: torch.optim.Optimizer, floor: float = 0.0) -> Callable[[float], None]:
    """A schedule for ``TrainingLoop.run``: from each group's learning rate down to ``floor`` times it."""
    peaks = [group["lr"] for group in optimizer.param_groups]

    def schedule(progress: float) -> None:
        scale = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * scale

    return schedule


def _numbers(values: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


def _snapshot(state: Mapping[str, HasState]) -> dict[str, Any]:
    return {name: copy.deepcopy(holder.state_dict()) for name, holder in state.items()}
