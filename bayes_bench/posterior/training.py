"""The one optimisation loop: budget, progress, validation, snapshots, early stopping, divergence guard.

Every method that trains by steps drives it, so budgets mean the same everywhere.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from bayes_bench.errors import DivergenceError, UsageError
from bayes_bench.posterior.snapshots import Snapshots

GUARD_EVERY = 50
"""Steps between two looks at the loss: each look waits for a GPU."""


VALIDATION_SHARE = 0.2
"""At most this share of a budget goes into validations, where there would be too many of them."""


class Monitor(Protocol):
    """Whoever watches a fit."""

    def progress(self, spent: float, budget: int, values: Mapping[str, float]) -> None:
        """Called every few steps with the gradient evaluations spent so far and the latest numbers."""


class SnapshotMismatchError(Exception):
    """A snapshot does not fit what the method has now; the fit must begin anew, without it."""


class HasState(Protocol):
    """Modules, optimisers, minibatches, and whatever else can give its state and take it back."""

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


class Stateful:
    """An object that a snapshot can hold: the attributes named in ``STATE`` are all of it that changes in a fit.

    They are numbers, texts, tensors, or lists and dictionaries of them.
    """

    STATE: ClassVar[tuple[str, ...]]

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.STATE}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        for name in self.STATE:
            setattr(self, name, state[name])


@dataclass(frozen=True)
class FitSummary:
    """What a fit cost and how it went.

    Attributes:
        budget, spent: network-example gradient evaluations allowed and used.
        stopped: ``"budget"``, or ``"early"`` where validation stopped improving.
        history: one row per validation, ``evaluations`` and the numbers seen then.
        diagnostics: what the method says about its own fit (effective sample size, acceptance rate, ...).
        parameters_stored: numbers that the fitted posterior keeps.
        interruptions: how often the fit went on from a snapshot; ``seconds`` has the time before these as well.
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
    interruptions: int = 0

    @property
    def unspent(self) -> float:
        return max(0.0, self.budget - self.spent)


@dataclass
class _Position:
    """How far a part of a fit has come.

    Attributes:
        start: gradient evaluations spent before it.
        done: its steps.
        checks: its validations.
        best: lowest validation NLL, and ``stale`` validations since then.
        widest: highest diversity of a validation.
        latest: what the last step reported.
    """

    start: float
    done: int = 0
    checks: int = 0
    best: float = math.inf
    stale: int = 0
    widest: float = 0.0
    finished: bool = False
    latest: Mapping[str, Any] = field(default_factory=dict)


class TrainingLoop:
    """The purse of one fit. A method calls ``run`` (or ``charge`` for evaluations outside of it).

    Args:
        rng: all randomness of the fit; snapshots hold its state.
        snapshots: where the parts of the fit go on from and keep their state.
    """

    def __init__(
        self,
        budget: int,
        monitor: Monitor | None = None,
        *,
        rng: torch.Generator | None = None,
        snapshots: Snapshots | None = None,
    ):
        self.budget = budget
        self.spent = 0.0
        self.steps = 0
        self.stopped: Literal["budget", "early"] = "budget"
        self.history: list[dict[str, float]] = []
        self.notes: list[str] = []
        self.diagnostics: dict[str, float] = {}
        self.interruptions = 0
        self._monitor = monitor
        self._rng, self._snapshots = rng, snapshots
        self._parts = 0
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the fit began, with the time before interruptions."""
        return time.perf_counter() - self._started

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
        diversity_fall: float | None = None,
    ) -> None:
        """Call ``step`` until the budget is spent, or ``steps`` times.

        Args:
            step: one update; returns scalar tensors to report, of which ``"loss"`` is guarded.
            state: everything that ``step`` changes, by name: modules, optimisers, minibatches. With it a fit that was
                interrupted goes on as if it had not been; where it is empty, this part of the fit starts again.
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
            diversity_fall: with ``patience``, stop only where the diversity that ``validate`` reports
                (``"disagreement_normalised"``, else ``"epistemic_std"``) is also lower than its highest value by at
                least this share.

        Raises:
            UsageError: the budget does not pay for one step.
            DivergenceError: the loss is NaN or infinite.
            KeyboardInterrupt: the fit was asked to stop; its snapshot is written.
        """
        self._parts += 1
        reserve = validation_cost if validate else 0.0
        limit = self.budget - leave
        if self.spent + cost + reserve > limit:
            self.charge(cost + reserve + leave)
        position = _Position(start=self.spent)
        best_state: dict[str, Any] | None = None
        if restored := self._restore(state):
            position, best_state = restored
        start, span = position.start, limit - position.start
        if reserve and steps is None:
            validations = max(1, min(validations, int(VALIDATION_SHARE * span / reserve)))
        with self._deferring(state):
            while not position.finished:
                last = self.spent + cost + reserve > limit or position.done == steps
                progress = (self.spent - start) / span if steps is None else position.done / steps
                due = progress >= (position.checks + 1) / validations
                # One on the way must leave enough for another step and the validation at the end.
                if validate and (last or (due and self.spent + cost + 2 * reserve <= limit)):
                    position.checks = int(progress * validations)
                    row = {"evaluations": self.spent, **_numbers(position.latest), **validate()}
                    self._spend(reserve)
                    self.history.append(row)
                    self._guard(row)
                    # Without validation data there is nothing to select by: every snapshot is as good as the next.
                    score = row.get("val_nll", -math.inf)
                    position.stale = 0 if score < position.best else position.stale + 1
                    if score < position.best:
                        position.best = score
                        best_state = _copy(state) if keep_best and math.isfinite(score) else None
                    seen = patience is not None and math.isfinite(position.best)
                    # Undefined where no example is misclassified: then nothing is known to have fallen.
                    diversity = row.get("disagreement_normalised", row.get("epistemic_std"))
                    if diversity is not None:
                        position.widest = max(position.widest, diversity)
                    fallen = diversity_fall is None or (
                        diversity is not None and diversity <= (1 - diversity_fall) * position.widest
                    )
                    if seen and position.stale >= (patience or 0) and fallen and not last:
                        self.stopped = "early"
                        last = True
                if last:
                    break
                if schedule:
                    schedule(progress)
                position.latest = step()
                self._spend(cost)
                self.steps += 1
                position.done += 1
                if self.steps % GUARD_EVERY == 0:
                    numbers = _numbers(position.latest)
                    self._guard(numbers)
                    if self._monitor:
                        self._monitor.progress(self.spent, self.budget, numbers)
                self._keep(position, state, best_state)
            self._guard(_numbers(position.latest))
            if best_state is not None and position.stale:
                _load(state, best_state)
            position.finished = True
            self._keep(position, state, None)
        if self._monitor:
            self._monitor.progress(self.spent, self.budget, _numbers(position.latest))

    # Snapshots ------------------------------------------------------------------------------------------------

    _OWN = ("spent", "steps", "stopped", "history", "notes", "diagnostics", "interruptions")

    def _deferring(self, state: Mapping[str, HasState]) -> AbstractContextManager[None]:
        return self._snapshots.deferring() if self._snapshots and state else nullcontext()

    def _keep(self, position: _Position, state: Mapping[str, HasState], best_state: dict[str, Any] | None) -> None:
        """Write a snapshot where it is time for one or the fit has been asked to stop, and then stop."""
        snapshots = self._snapshots
        if snapshots is None:
            return
        stopping = snapshots.stopping
        wanted = snapshots.worthwhile() if position.finished else snapshots.due()
        if state and (stopping or wanted):
            snapshots.save(
                self._parts,
                {
                    "loop": {name: getattr(self, name) for name in self._OWN},
                    "seconds": self.seconds,
                    "position": vars(position) | {"latest": _numbers(position.latest)},
                    "threads": torch.get_num_threads(),
                    "rng": None if self._rng is None else self._rng.get_state(),
                    "state": {name: holder.state_dict() for name, holder in state.items()},
                    "best": best_state,
                },
            )
        if stopping:
            raise KeyboardInterrupt

    def _restore(self, state: Mapping[str, HasState]) -> tuple[_Position, dict[str, Any] | None] | None:
        """Go back to this part's snapshot; None where there is none.

        Raises:
            SnapshotMismatchError: it is of something else.
        """
        if not (self._snapshots and state and (stored := self._snapshots.load(self._parts))):
            return None
        before = self.interruptions
        try:
            _load(state, stored["state"])
            if self._rng is not None:
                self._rng.set_state(stored["rng"])
            position = _Position(**stored["position"])
            own = stored["loop"]
            for name in self._OWN:
                setattr(self, name, own[name])
            self._started = time.perf_counter() - stored["seconds"]
            self.interruptions = max(before, self.interruptions + 1)
        except Exception as error:  # whatever a module, an optimiser or a plug-in's own object says to it
            raise SnapshotMismatchError(str(error)) from error
        self._note_threads(stored["threads"])
        if not position.finished:
            self._snapshots.tell(f"goes on from a snapshot at {self.progress:.0%} of its budget")
        if self._monitor:
            self._monitor.progress(self.spent, self.budget, position.latest)
        return position, stored["best"]

    def _note_threads(self, before: int) -> None:
        now = torch.get_num_threads()
        sentence = f"begun with {before} CPU threads and went on with {now}: the last digits depend on that"
        if now != before and sentence not in self.notes:
            self.note(sentence)

    # Inside -------------------------------------------------------------------------------------------------

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

    def summary(self, *, parameters_stored: int) -> FitSummary:
        return FitSummary(
            budget=self.budget,
            spent=self.spent,
            seconds=self.seconds,
            steps=self.steps,
            stopped=self.stopped,
            history=self.history,
            notes=tuple(self.notes),
            parameters_stored=parameters_stored,
            diagnostics=self.diagnostics,
            interruptions=self.interruptions,
        )


def cosine_decay(optimizer: torch.optim.Optimizer, floor: float = 0.0) -> Callable[[float], None]:
    """A schedule for ``TrainingLoop.run``: from each group's learning rate down to ``floor`` times it."""
    peaks = [group["lr"] for group in optimizer.param_groups]

    def schedule(progress: float) -> None:
        scale = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * scale

    return schedule


def _numbers(values: Mapping[str, Tensor | float]) -> dict[str, float]:
    return {name: float(value.detach() if isinstance(value, Tensor) else value) for name, value in values.items()}


def _copy(state: Mapping[str, HasState]) -> dict[str, Any]:
    return {name: copy.deepcopy(holder.state_dict()) for name, holder in state.items()}


def _load(state: Mapping[str, HasState], stored: Mapping[str, Any]) -> None:
    for name, holder in state.items():
        holder.load_state_dict(stored[name])
