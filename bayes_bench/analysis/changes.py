"""What changed between two runs, and whether it is more than noise."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pandas as pd

from bayes_bench import metrics
from bayes_bench.analysis.evidence import Evidence, evidence
from bayes_bench.analysis.records import Run, comparison_of, display_labels, display_tasks, metric_value, variant_of
from bayes_bench.analysis.statistics import MIN_SEEDS_TO_RANK, Interval, difference, statistic
from bayes_bench.errors import DataError, UsageError, unknown_name
from bayes_bench.metrics import cost

Verdict = Literal["same", "better", "worse", "higher", "lower", "within noise", "too few seeds"]
COSTS = frozenset(metric.name for metric in cost.CATALOGUE)
Place = tuple[str, str]
"""Task and method, as tables call them."""


@dataclass(frozen=True)
class Change:
    """One metric of one method on one task: means over seeds before and after.

    Attributes:
        seeds_before, seeds_after: how many have a value.
        low, high: 95 % interval of after − before, as ``statistics.Interval``, paired where the seeds are the same; of
            seeds alone where the metric is no mean over examples or the runs' test data differ.
        verdict: ``higher`` and ``lower`` for metrics without a better direction; ``too few seeds`` below three in one
            of the runs.
    """

    task: str
    method: str
    metric: str
    before: float
    after: float
    low: float
    high: float
    seeds_before: int
    seeds_after: int
    verdict: Verdict


@dataclass(frozen=True)
class RunChanges:
    """All changes, and what was set up differently.

    Attributes:
        differing: (where, what, before, after): settings, budgets, data, code, versions, machine.
        only_before, only_after: tasks and methods that one run alone has finished.
        problems: of the runs, and where stored predictions could not be read.
    """

    changes: tuple[Change, ...]
    differing: tuple[tuple[str, str, str, str], ...]
    only_before: tuple[Place, ...]
    only_after: tuple[Place, ...]
    problems: tuple[str, ...]

    @property
    def worse(self) -> tuple[Change, ...]:
        """What got worse, costs aside: they vary with what else a machine does."""
        return tuple(change for change in self.changes if change.verdict == "worse" and change.metric not in COSTS)

    def frame(self) -> pd.DataFrame:
        """A row per change."""
        return pd.DataFrame([asdict(change) for change in self.changes], columns=list(Change.__dataclass_fields__))


def compare_runs(before: Run, after: Run, wanted: Mapping[str, Sequence[str]] | Sequence[str]) -> RunChanges:
    """Compare what both runs have finished, by the names of tasks and methods.

    Args:
        wanted: names of metrics, ``STEM/<set>`` for every out-of-distribution set; or these by kind of task.

    Raises:
        UsageError: the runs have nothing in common, or none of it has a metric that was asked for.
    """
    sides = [_finished(run) for run in (before, after)]
    common = [place for place in sides[0] if place in sides[1]]
    if not common:
        raise UsageError(f"{before.folder} and {after.folder} have finished no task with the same method")
    known = _known([r for place in common for r in sides[0][place]], [r for place in common for r in sides[1][place]])
    for name in () if isinstance(wanted, Mapping) else wanted:
        if not _matching(name, known):
            raise UsageError(unknown_name("metric", name, known))
    problems = [*before.problems, *after.problems]
    changes: list[Change] = []
    for place in common:
        records = sides[0][place], sides[1][place]
        same_data = len({(r.get("data") or {}).get("checksum") for side in records for r in side}) == 1
        jobs = [
            list(_evidence(run, side, same_data, problems)) for run, side in zip((before, after), records, strict=True)
        ]
        names = wanted if not isinstance(wanted, Mapping) else wanted[str(records[0][0].get("kind"))]
        here = _known(*records)
        metrics = dict.fromkeys(metric for name in names for metric in _matching(name, here))
        changes += [change for metric in metrics if (change := _change(place, metric, *jobs)) is not None]
    return RunChanges(
        tuple(changes),
        tuple(_differing(common, sides)),
        tuple(place for place in sides[0] if place not in sides[1]),
        tuple(place for place in sides[1] if place not in sides[0]),
        tuple(dict.fromkeys(problems)),
    )


def _known(*sides: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the metrics that the records of both sides have, sorted."""
    found = [{row["name"] for record in side for row in record["metrics"]} for side in sides]
    return sorted(set.intersection(*found))


def _matching(name: str, known: Iterable[str]) -> list[str]:
    """The metric of that name, or with ``<set>`` at its end those of every set."""
    stem = name.removesuffix("<set>")
    return [one for one in known if one == name or (stem != name and one.startswith(stem))]


def _finished(run: Run) -> dict[Place, list[dict[str, Any]]]:
    labels, tasks = display_labels(run.records), display_tasks(run.records)
    found: dict[Place, list[dict[str, Any]]] = defaultdict(list)
    for record in run.records:
        if record["status"] == "ok":
            found[tasks[comparison_of(record)], labels[variant_of(record)]].append(record)
    return dict(found)


def _evidence(run: Run, records: Iterable[dict[str, Any]], same_data: bool, problems: list[str]) -> Iterator[Evidence]:
    """Without examples where they are not the other run's: then seeds alone are resampled."""
    for record in records:
        try:
            yield evidence(run.predictions(record), record) if same_data else Evidence(record, {})
        except DataError as error:
            problems.append(str(error))
            yield Evidence(record, {})


def _change(place: Place, name: str, before: Sequence[Evidence], after: Sequence[Evidence]) -> Change | None:
    first, second = statistic(before, name), statistic(after, name)
    if first is None or second is None:
        return None
    gap = difference(name, ("after", second), ("before", first), paired=first.seeds == second.seeds)
    known = metrics.find(name, str(before[0].record.get("kind")))
    values = [{job.record["seed"]: metric_value(job.record, name) for job in side} for side in (before, after)]
    verdict = _verdict(gap, values[0] == values[1], known.higher_is_better if known else None)
    return Change(
        *place,
        name,
        before=float(first.per_seed().mean()),
        after=float(second.per_seed().mean()),
        low=gap.low,
        high=gap.high,
        seeds_before=len(first.seeds),
        seeds_after=len(second.seeds),
        verdict=verdict,
    )


def _verdict(gap: Interval, same: bool, higher_is_better: bool | None) -> Verdict:
    if same:
        return "same"
    if gap.seeds < MIN_SEEDS_TO_RANK:
        return "too few seeds"
    if not gap.distinguishable:
        return "within noise"
    if higher_is_better is None:
        return "higher" if gap.value > 0 else "lower"
    return "better" if (gap.value > 0) == higher_is_better else "worse"


def _differing(
    places: Sequence[Place], sides: Sequence[Mapping[Place, Sequence[Mapping[str, Any]]]]
) -> Iterator[tuple[str, str, str, str]]:
    """Where and what was set up differently; what all have in common is said once."""
    found: dict[tuple[str, str, str], list[Place]] = defaultdict(list)
    for place in places:
        facts = [_facts(side[place]) for side in sides]
        for name in dict.fromkeys((*facts[0], *facts[1])):
            left, right = (side.get(name, "none") for side in facts)
            if left != right:
                found[name, left, right].append(place)
    methods_of = Counter(task for task, _ in places)
    for (name, left, right), where in found.items():
        if len(where) == len(places):
            yield "everything", name, left, right
            continue
        rest = list(where)
        for task in dict.fromkeys(task for task, _ in where):
            if methods_of[task] > 1 and sum(one == task for one, _ in where) == methods_of[task]:
                yield task, name, left, right
                rest = [place for place in rest if place[0] != task]
        yield from ((f"{task}, {method}", name, left, right) for task, method in rest)


def _facts(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What a result depends on, in words; of several seeds all values."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for record in records:
        facts: dict[str, Any] = {"budget": (record.get("budget") or {}).get("total")}
        facts["data"] = str((record.get("data") or {}).get("checksum") or "unknown")[:8]
        facts |= {f"setting {name}": value for name, value in (record.get("config") or {}).items()}
        for part in ("code", "versions", "machine"):
            facts |= {
                f"{part}: {name}": value for name, value in (record.get(part) or {}).items() if name != "memory_gb"
            }
        for name, value in facts.items():
            found[name][f"{value:,}" if name == "budget" and value else str(value)] = None
    return {name: "; ".join(values) for name, values in found.items()}
