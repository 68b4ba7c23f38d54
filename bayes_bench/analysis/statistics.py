"""From records to tables, intervals and marks. Imports no torch.

What is compared: within a *comparison* all methods had the same task, data and budget. A *variant* is one
method with one group of settings within it; seeds of one variant are averaged, variants never mixed.
Letters: K seeds, N examples, M out-of-distribution examples, R bootstrap replicates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np

from bayes_bench.analysis.evidence import Evidence, evidence
from bayes_bench.analysis.records import (
    comparison_of,
    display_labels,
    display_tasks,
    load_run,
    metric_value,
    variant_of,
)
from bayes_bench.errors import UsageError, counted, unknown_name
from bayes_bench.metrics.base import Floats, Ints
from bayes_bench.metrics.calibration import BINS, bin_index

MIN_SEEDS_TO_RANK = 3
LEVEL = 0.95
FREEDOMS = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 40, 120, math.inf)
"""Degrees of freedom at which quantiles of the studentized range, which are slow, are computed."""
RESOLUTION = 1e-9
"""Of the larger value: by less than this two numbers do not differ."""
REPLICATES = 1000


# Differences, and whether they are more than noise --------------------------------------------------------


class Statistic(Protocol):
    """A metric that can be computed again, for every seed, under resampled examples."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, in the order of the rows."""

    @property
    def populations(self) -> tuple[int, ...]:
        """Sizes of the sets of examples that are resampled: (N,), (N, M), or () for none."""

    def per_seed(self, weights: Sequence[Floats] | None = None) -> Floats:
        """The metric of every seed: ``[K]``, or ``[R, K]`` under weights ``[R, N]`` for each population."""


@dataclass(frozen=True)
class ExampleMean:
    """Mean over examples (accuracy, NLL, Brier, CRPS) or its square root (RMSE). ``values`` is ``[K, N]``."""

    seeds: tuple[int, ...]
    values: Floats
    root: bool = False

    @property
    def populations(self) -> tuple[int, ...]:
        return (self.values.shape[1],)

    def per_seed(self, weights: Sequence[Floats] | None = None) -> Floats:
        means = self.values.mean(axis=1) if weights is None else weights[0] @ self.values.T / self.values.shape[1]
        return np.sqrt(means) if self.root else np.asarray(means, dtype=np.float64)


@dataclass(frozen=True)
class BinnedGap:
    """Expected calibration error: ``gap`` = correct − confidence and its ``bin``, both ``[K, N]``."""

    seeds: tuple[int, ...]
    gap: Floats
    bin: Ints

    @property
    def populations(self) -> tuple[int, ...]:
        return (self.gap.shape[1],)

    def per_seed(self, weights: Sequence[Floats] | None = None) -> Floats:
        n = self.gap.shape[1]
        columns = []
        for gap, index in zip(self.gap, self.bin, strict=True):
            spread = np.zeros((n, int(index.max()) + 1))
            spread[np.arange(n), index] = gap
            sums = spread.sum(axis=0) if weights is None else weights[0] @ spread
            columns.append(np.abs(sums).sum(axis=-1) / n)
        return np.stack(columns, axis=-1)


@dataclass(frozen=True)
class RankArea:
    """AUROC of ``outside`` scores ``[K, M]`` over ``inside`` scores ``[K, N]``, ties counting ½."""

    seeds: tuple[int, ...]
    inside: Floats
    outside: Floats

    @property
    def populations(self) -> tuple[int, ...]:
        return (self.inside.shape[1], self.outside.shape[1])

    def per_seed(self, weights: Sequence[Floats] | None = None) -> Floats:
        if weights is None:
            weights = [np.ones((1, size)) for size in self.populations]
            point: Floats = self.per_seed(weights)[0]
            return point
        n, m = self.populations
        columns = []
        for inside, outside in zip(self.inside, self.outside, strict=True):
            order = np.argsort(inside)
            below = np.searchsorted(inside[order], outside, side="left")
            up_to = np.searchsorted(inside[order], outside, side="right")
            total = np.zeros((len(weights[0]), n + 1))
            np.cumsum(weights[0][:, order], axis=1, out=total[:, 1:])
            wins = np.einsum("rm,rm->r", weights[1], total[:, below] + total[:, up_to])
            columns.append(wins / (2 * n * m))
        return np.stack(columns, axis=-1)


@dataclass(frozen=True)
class SeedMean:
    """A number per seed, ``[K]``, that is no mean over examples."""

    seeds: tuple[int, ...]
    values: Floats

    @property
    def populations(self) -> tuple[int, ...]:
        return ()

    def per_seed(self, weights: Sequence[Floats] | None = None) -> Floats:
        return self.values if weights is None else self.values[None, :]


def statistic(jobs: Sequence[Evidence], metric: str) -> Statistic | None:
    """The statistic behind a metric's name for the jobs (seeds) of one variant; None where it is n/a for all.

    Metrics that are a mean over examples, an ECE or an AUROC know their examples, of the others only the seeds vary.
    """
    jobs = [job for job in jobs if metric_value(job.record, metric) is not None]
    if not jobs:
        return None
    seeds = tuple(int(job.record["seed"]) for job in jobs)

    def rows(name: str) -> Floats | None:
        found = [job.examples[name] for job in jobs if name in job.examples]
        sizes = {array.shape for array in found}
        return np.stack(found) if len(found) == len(jobs) and len(sizes) == 1 else None

    means = {
        "accuracy": "correct",
        "nll": "nll",
        "brier": "brier",
        "crps": "crps",
        "rmse": "squared_error",
        "nll_temperature_scaled": "nll_scaled",
    }
    name = f"correct@{metric.removeprefix('accuracy@')}" if metric.startswith("accuracy@") else means.get(metric, "")
    if (values := rows(name)) is not None:
        return ExampleMean(seeds, values, root=metric == "rmse")
    stem, _, ood = metric.partition("/")
    score = {"ood_auroc": "entropy", "ood_auroc_mi": "information", "ood_auroc_maxprob": "doubt"}.get(stem, "")
    inside, outside = rows(score), rows(f"{score}/{ood}")
    if inside is not None and outside is not None:
        return RankArea(seeds, inside, outside)
    confidence = rows({"ece": "confidence", "ece_adaptive": "confidence"}.get(metric, "confidence_scaled"))
    correct = rows("correct")
    if metric in ("ece", "ece_adaptive", "ece_temperature_scaled") and confidence is not None and correct is not None:
        bins = np.stack([bin_index(row, _edges(row, metric)) for row in confidence])
        return BinnedGap(seeds, correct - confidence, bins)
    return SeedMean(seeds, np.array([metric_value(job.record, metric) for job in jobs], dtype=np.float64))


def _edges(confidence: Floats, metric: str) -> Floats:
    levels = np.linspace(0, 1, BINS + 1)
    return np.quantile(confidence, levels) if metric == "ece_adaptive" else levels


def bootstrap(statistics: Mapping[str, Statistic], *, replicates: int = REPLICATES, seed: int = 0) -> dict[str, Floats]:
    """Paired bootstrap over examples: every replicate draws one set of them that all statistics share.

    Args:
        statistics: by name, all over the same examples.
        replicates: R.
        seed: of the resampling; the same seed gives the same replicates.

    Returns:
        The mean over seeds in every replicate, ``[R]``, by name; constant where a statistic has no examples.
        Differences of two entries are the paired differences.

    Raises:
        UsageError: the statistics are not over the same examples.
    """
    populations = {statistic.populations for statistic in statistics.values()}
    if len(populations) > 1:
        raise UsageError(f"a paired bootstrap needs the same examples for all methods, got {sorted(populations)}")
    sizes = next(iter(populations), ())
    rng = np.random.default_rng(seed)
    result = {name: np.empty(replicates) for name in statistics}
    # Weights of a few million examples at a time keep the memory bounded.
    step = max(1, 2_000_000 // max(1, sum(sizes)))
    for start in range(0, replicates, step):
        part = slice(start, min(start + step, replicates))
        weights = [_draw(rng, part.stop - part.start, size) for size in sizes]
        for name, statistic in statistics.items():
            result[name][part] = statistic.per_seed(weights).mean(axis=-1)
    return result


def _draw(rng: np.random.Generator, replicates: int, size: int) -> Floats:
    """How often each of ``size`` things is drawn in ``size`` draws with replacement, ``[R, size]``."""
    chosen = rng.integers(0, size, (replicates, size)) + size * np.arange(replicates)[:, None]
    return np.bincount(chosen.reshape(-1), minlength=replicates * size).reshape(replicates, size).astype(np.float64)


@dataclass(frozen=True)
class Interval:
    """first − second of a metric, with an interval that allows for the choice of examples and of training seeds.

    Attributes:
        low, high: value ∓ quantile × √V. V is the variance over test examples, by paired bootstrap, plus that of the
            means over seeds, s²/K of each side (or of the paired differences). What varies with example and seed
            together is in both: the interval is rather too wide. The quantile is Student's, or, where several methods
            are compared with each other, that of the studentized range over √2 (Games & Howell, 1976), so that all
            intervals hold at once; its degrees of freedom are Welch and Satterthwaite's. With one seed the interval
            speaks of examples alone.
        seeds: of the side that has fewer.
        level: of all intervals at once.
    """

    metric: str
    first: str
    second: str
    value: float
    low: float
    high: float
    seeds: int
    level: float = LEVEL

    @property
    def distinguishable(self) -> bool:
        """Whether the interval leaves out 0."""
        return not self.low <= 0 <= self.high

    def no_worse(self, margin: float, higher_is_better: bool = True) -> bool:
        """Whether the whole interval says that first is worse than second by less than ``margin``."""
        return self.low > -margin if higher_is_better else self.high < margin


def difference(
    metric: str,
    first: tuple[str, Statistic],
    second: tuple[str, Statistic],
    *,
    paired: bool = False,
    replicates: int = REPLICATES,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval:
    """Difference of two named statistics over the same examples.

    Args:
        paired: the same seeds stand for the same start and order of training on both sides.
    """
    alike = _alike({"first": first[1], "second": second[1]})
    drawn = bootstrap(alike, replicates=replicates, seed=seed)
    first, second = (first[0], alike["first"]), (second[0], alike["second"])
    return _difference(metric, first, second, drawn["first"] - drawn["second"], level, paired=paired)


def _alike(statistics: Mapping[str, Statistic]) -> Mapping[str, Statistic]:
    """Without examples where not all have the same, because predictions are missing: then seeds alone vary."""
    if len({s.populations for s in statistics.values()}) == 1:
        return statistics
    return {name: SeedMean(s.seeds, s.per_seed()) for name, s in statistics.items()}


def _difference(
    metric: str,
    first: tuple[str, Statistic],
    second: tuple[str, Statistic],
    drawn: Floats,
    level: float,
    *,
    methods: int = 2,
    paired: bool = False,
) -> Interval:
    left, right = first[1].per_seed(), second[1].per_seed()
    value = float(left.mean() - right.mean())
    # Variances and their degrees of freedom.
    parts = [(float(drawn.var()), min(first[1].populations, default=2) - 1)]
    over_seeds = [values for values in ((left - right,) if paired else (left, right)) if len(values) > 1]
    parts += [(float(values.var(ddof=1)) / len(values), len(values) - 1) for values in over_seeds]
    variance = sum(part for part, _ in parts)
    # What rounding makes of equal numbers is no difference, however alike the seeds are.
    rounding = RESOLUTION * float(max(np.abs(left).max(), np.abs(right).max()))
    half = rounding if variance == 0 else math.inf
    if 0 < variance < math.inf:
        freedom = 1 / sum((part / variance) ** 2 / max(1, own) for part, own in parts)
        half = max(rounding, _quantile(level, methods, freedom) * math.sqrt(variance))
    return Interval(metric, first[0], second[0], value, value - half, value + half, min(len(left), len(right)), level)


def _quantile(level: float, methods: int, freedom: float) -> float:
    """Of Student's t for two methods; for more of the studentized range over √2, interpolated between ``FREEDOMS``."""
    from scipy import stats  # takes most of a second

    if methods == 2:
        return float(stats.t.ppf((1 + level) / 2, freedom))
    below = max(own for own in FREEDOMS if own <= max(1.0, freedom))
    above = min(own for own in FREEDOMS if own >= max(1.0, freedom))
    low, high = _range_quantile(level, methods, below), _range_quantile(level, methods, above)
    if below == above:
        return low
    share = (1 / below - 1 / freedom) / (1 / below - 1 / above)
    return low + share * (high - low)


@cache
def _range_quantile(level: float, methods: int, freedom: float) -> float:
    from scipy import stats

    return float(stats.studentized_range.ppf(level, methods, freedom)) / math.sqrt(2)


@dataclass(frozen=True)
class Marks:
    """Who is best in one column of a table.

    Attributes:
        best: the method with the best mean, or None where no ranking is made.
        tied: methods whose difference to the best may be 0 (the interval includes it).
        differences: of every other ranked method to the best.
        declined: why there is no ranking; empty where there is one.
    """

    best: str | None
    tied: frozenset[str] = frozenset()
    differences: Mapping[str, Interval] = field(default_factory=dict)
    declined: str = ""


def mark_best(
    metric: str,
    statistics: Mapping[str, Statistic],
    higher_is_better: bool,
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
    level: float = LEVEL,
) -> Marks:
    """The best method and those that cannot be told from it; declines with fewer than 3 seeds or 2 methods.

    The intervals hold at once, whichever is best: were all equally good, one would be called worse in 5 % of cases.
    """
    ranked = {name: s for name, s in statistics.items() if len(s.seeds) >= MIN_SEEDS_TO_RANK}
    if len(statistics) < 2:
        return Marks(None, declined="one method has a value")
    if len(ranked) == 1:
        return Marks(None, declined=f"only {next(iter(ranked))} has {MIN_SEEDS_TO_RANK} seeds, which a ranking takes")
    if not ranked:
        seeds = max(len(s.seeds) for s in statistics.values())
        return Marks(None, declined=f"{counted(seeds, 'seed')}, {MIN_SEEDS_TO_RANK} are needed to rank")
    ranked = dict(_alike(ranked))
    means = {name: float(s.per_seed().mean()) for name, s in ranked.items()}
    best = (max if higher_is_better else min)(means, key=lambda name: means[name])
    drawn = bootstrap(ranked, replicates=replicates, seed=seed)
    differences = {
        name: _difference(
            metric, (name, s), (best, ranked[best]), drawn[name] - drawn[best], level, methods=len(ranked)
        )
        for name, s in ranked.items()
        if name != best
    }
    tied = frozenset(name for name, d in differences.items() if not d.distinguishable)
    return Marks(best, tied, differences)


def compare(
    run_dir: Path | str,
    task: str,
    metric: str,
    first: str,
    second: str,
    *,
    replicates: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Compare two methods of a run folder on one metric of one task: first − second with a 95 % interval.

    Raises:
        UsageError: unknown task or method (as ``results.csv`` names them), or a metric that is n/a.
    """
    run = load_run(run_dir)
    labels, tasks = display_labels(run.records), display_tasks(run.records)
    if task not in tasks.values():
        raise UsageError(unknown_name("task", task, tasks.values()))
    chosen = [r for r in run.records if tasks[comparison_of(r)] == task and r["status"] == "ok"]
    sides = []
    for name in (first, second):
        records = [r for r in chosen if labels[variant_of(r)] == name]
        if not records:
            raise UsageError(unknown_name("method", name, {labels[variant_of(r)] for r in chosen}))
        jobs = [evidence(run.predictions(r), r) for r in records]
        found = statistic(jobs, metric)
        if found is None:
            raise UsageError(f"{metric} is not applicable to {name} on {task}")
        sides.append((name, found))
    return difference(metric, sides[0], sides[1], replicates=replicates, seed=seed)
