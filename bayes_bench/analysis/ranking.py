"""Ranks of methods across tasks, after Demšar (JMLR 2006).

Letters: k methods, n tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from bayes_bench.errors import counted

MIN_SEEDS = 5
MIN_TASKS = 6
LEVEL = 0.05


@dataclass(frozen=True)
class Ranking:
    """Mean ranks by one metric, 1 is best and ties share.

    Attributes:
        table: columns ``method``, ``rank``, ``std`` and ``blocks``, by rank; empty where declined.
        tasks: n, those that all ranked methods finished; with the same data they count as one.
        over: what the ranks are means over, in words.
        left_out: methods that did not finish as many tasks as others.
        declined: why there is no ranking; empty where there is one.
        test: what the p-value is of; empty with too few tasks for a test.
        p_value: that no method differs.
        critical_difference: of two mean ranks, by Nemenyi's test at 5 %; NaN without a test, and for two methods.
        groups: methods that cannot be told apart, by rank; those that stand alone are in none.
    """

    metric: str
    table: pd.DataFrame
    tasks: int = 0
    over: str = ""
    left_out: tuple[str, ...] = ()
    declined: str = ""
    test: str = ""
    p_value: float = math.nan
    critical_difference: float = math.nan
    groups: tuple[tuple[str, ...], ...] = ()

    @property
    def name(self) -> str:
        """The metric in text."""
        return self.metric.upper() if self.metric in ("nll", "rmse", "crps") else self.metric

    @property
    def tested(self) -> bool:
        """Whether there were tasks enough for a test."""
        return bool(self.test)


def ranking(results: pd.DataFrame, metric: str = "nll", data: Mapping[str, str] | None = None) -> Ranking:
    """Rank methods by one metric, over the tasks and seeds that all of them finished.

    With at least 6 tasks, every task counts once (by the mean over its seeds) and the differences are tested. With
    fewer tasks but at least 5 seeds, ranks are averaged over tasks and seeds and nothing is tested: seeds of one task
    say nothing about other tasks. With less it declines.

    Args:
        results: ``analysis.records.results_frame``.
        metric: one with a direction.
        data: name of a task → identifier of its data. Tasks of the same data (another budget, say) are no independent
            evidence: their ranks are averaged into one.
    """
    rows = results[(results["metric"] == metric) & results["value"].notna()]
    wide = rows.pivot_table(index=["suite", "task", "seed"], columns="method", values="value")
    finished = wide.notna().groupby(level=["suite", "task"]).any().sum()
    left_out = tuple(finished.index[finished < finished.max()]) if len(finished) else ()
    table = wide.drop(columns=list(left_out)).dropna()
    if table.shape[1] < 2 or table.empty:
        reason = "fewer than two methods finished the same jobs"
        return Ranking(metric, _table(table.iloc[:0]), left_out=left_out, declined=reason)

    def sources(index: pd.Index[Any]) -> pd.Index[Any]:
        """The data of every row."""
        return index.get_level_values("task").map(lambda task: (data or {}).get(task, task))

    tasks, seeds = sources(table.index).nunique(), int(table.groupby(level=["suite", "task"]).size().min())
    if tasks < MIN_TASKS and seeds < MIN_SEEDS:
        there = f"{counted(tasks, 'task')} and {counted(seeds, 'seed')} that all finished"
        needed = f"a ranking across tasks needs at least {MIN_TASKS} tasks or {MIN_SEEDS} seeds"
        return Ranking(metric, _table(table.iloc[:0]), tasks, left_out=left_out, declined=f"{there}; {needed}")
    ascending = not rows["higher_is_better"].iloc[0]
    if tasks < MIN_TASKS:
        ranks = table.rank(axis=1, ascending=ascending)
        over = f"{len(ranks)} results (seeds of {counted(tasks, 'task')})"
        return Ranking(metric, _table(ranks), tasks, over, left_out)
    by_task = table.groupby(level=["suite", "task"]).mean().rank(axis=1, ascending=ascending)
    ranks = by_task.groupby(sources(by_task.index)).mean().rank(axis=1)
    test, p_value = _test(ranks)
    apart = nemenyi(ranks.shape[1], tasks) if ranks.shape[1] > 2 else math.nan
    least = math.inf if p_value >= LEVEL else 0.0 if math.isnan(apart) else apart
    frame = _table(ranks)
    return Ranking(metric, frame, tasks, f"{tasks} tasks", left_out, "", test, p_value, apart, _groups(frame, least))


def nemenyi(methods: int, tasks: int) -> float:
    """Difference of mean ranks that is significant at 5 %: q / √2 · √(k(k + 1) / 6n), Demšar (2006), section 3.2.2."""
    quantile = stats.studentized_range.ppf(1 - LEVEL, methods, np.inf) / math.sqrt(2)
    return float(quantile * math.sqrt(methods * (methods + 1) / (6 * tasks)))


def _table(ranks: pd.DataFrame) -> pd.DataFrame:
    """Mean rank of every method, with its standard deviation over the blocks, the best first."""
    if ranks.empty:
        return pd.DataFrame(columns=["method", "rank", "std", "blocks"])
    frame = pd.DataFrame({"rank": ranks.mean(), "std": ranks.std(ddof=1), "blocks": len(ranks)})
    return frame.sort_values("rank", kind="stable").reset_index(names="method")


def _test(ranks: pd.DataFrame) -> tuple[str, float]:
    """Name and p-value of the test that no method differs."""
    columns, (n, k) = ranks.to_numpy().T, ranks.shape
    if k == 2:
        # Of ranks the signed ranks are all alike: the sign test.
        wins = int((columns[0] < columns[1]).sum())
        decided = int((columns[0] != columns[1]).sum())
        return "Sign test", float(stats.binomtest(wins, decided).pvalue) if decided else 1.0
    name = "Friedman test (in the form of Iman and Davenport)"
    if (columns == columns[0]).all():
        return name, 1.0
    chi2 = float(stats.friedmanchisquare(*columns).statistic)
    rest = n * (k - 1) - chi2
    return name, float(stats.f.sf((n - 1) * chi2 / rest, k - 1, (k - 1) * (n - 1))) if rest > 1e-9 else 0.0


def _groups(table: pd.DataFrame, apart: float) -> tuple[tuple[str, ...], ...]:
    """Runs of at least two methods whose first and last are less than ``apart`` apart, none within another."""
    names, ranks = table["method"].tolist(), table["rank"].to_numpy()
    found: list[tuple[int, int]] = []
    for first in range(len(names)):
        last = max(int(np.flatnonzero(ranks < ranks[first] + apart).max(initial=0)), first)
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return tuple(tuple(names[first : last + 1]) for first, last in found)
