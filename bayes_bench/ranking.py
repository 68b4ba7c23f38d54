"""Ranks of methods across tasks, after Demšar (JMLR 2006). Imported by the report; imports no torch.

Letters: k methods, n tasks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

MIN_SEEDS = 5
MIN_TASKS = 6
LEVEL = 0.05


@dataclass(frozen=True)
class Ranking:
    """Mean ranks by one metric, 1 is best and ties share.

    Attributes:
        table: columns ``method``, ``rank``, ``std`` and ``blocks``, by rank; empty where declined.
        tasks: n, those that all methods finished.
        over: what the ranks are means over, in words.
        declined: why there is no ranking; empty where there is one.
        p_value: of the Friedman test (of two methods: Wilcoxon's signed-rank test) that no method differs; NaN with
            too few tasks for a test.
        critical_difference: of two mean ranks, by Nemenyi's test at 5 %; NaN likewise.
        groups: methods that cannot be told apart, by rank; those that stand alone are in none.
    """

    metric: str
    table: pd.DataFrame
    tasks: int = 0
    over: str = ""
    declined: str = ""
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
        return not math.isnan(self.p_value)


def ranking(results: pd.DataFrame, metric: str = "nll") -> Ranking:
    """Rank methods by one metric, over the tasks and seeds that all of them finished.

    With at least 6 tasks, every task counts once (by the mean over its seeds) and the differences are tested. With
    fewer tasks but at least 5 seeds, ranks are averaged over tasks and seeds and nothing is tested: seeds of one task
    say nothing about other tasks. With less it declines.

    Args:
        results: ``analysis.results_frame``.
        metric: one with a direction.
    """
    rows = results[(results["metric"] == metric) & results["value"].notna()]
    table = rows.pivot_table(index=["suite", "task", "seed"], columns="method", values="value").dropna()
    empty = pd.DataFrame(columns=["method", "rank", "std", "blocks"])
    if table.shape[1] < 2 or table.empty:
        return Ranking(metric, empty, declined="fewer than two methods finished the same jobs")
    by_task = table.groupby(level=["suite", "task"])
    tasks, seeds = by_task.ngroups, int(by_task.size().min())
    if tasks < MIN_TASKS and seeds < MIN_SEEDS:
        there = f"{tasks} task{'s' if tasks > 1 else ''} and {seeds} seed{'s' if seeds > 1 else ''}"
        needed = f"at least {MIN_TASKS} tasks or {MIN_SEEDS} seeds"
        return Ranking(metric, empty, tasks, declined=f"{there}; a ranking across tasks needs {needed}")
    blocks = by_task.mean() if tasks >= MIN_TASKS else table
    ranks = blocks.rank(axis=1, ascending=not rows["higher_is_better"].iloc[0])
    frame = pd.DataFrame({"rank": ranks.mean(), "std": ranks.std(ddof=1), "blocks": len(ranks)})
    frame = frame.sort_values("rank", kind="stable").reset_index(names="method")
    if tasks < MIN_TASKS:
        over = f"{len(ranks)} jobs of {'one task' if tasks == 1 else f'{tasks} tasks'}"
        return Ranking(metric, frame, tasks, over)
    p_value, apart = _p_value(blocks), nemenyi(len(frame), tasks)
    groups = _groups(frame, apart if p_value < LEVEL else math.inf)
    return Ranking(metric, frame, tasks, f"{tasks} tasks", "", p_value, apart, groups)


def nemenyi(methods: int, tasks: int) -> float:
    """Difference of mean ranks that is significant at 5 %: q / √2 · √(k(k + 1) / 6n), Demšar (2006), section 3.2.2."""
    quantile = stats.studentized_range.ppf(1 - LEVEL, methods, np.inf) / math.sqrt(2)
    return float(quantile * math.sqrt(methods * (methods + 1) / (6 * tasks)))


def _p_value(blocks: pd.DataFrame) -> float:
    columns = blocks.to_numpy().T
    if (columns == columns[0]).all():
        return 1.0
    test = stats.wilcoxon(columns[0], columns[1]) if len(columns) == 2 else stats.friedmanchisquare(*columns)
    return float(test.pvalue)


def _groups(table: pd.DataFrame, apart: float) -> tuple[tuple[str, ...], ...]:
    """Runs of at least two methods whose first and last are less than ``apart`` apart, none within another."""
    names, ranks = table["method"].tolist(), table["rank"].to_numpy()
    found: list[tuple[int, int]] = []
    for first in range(len(names)):
        last = int(np.flatnonzero(ranks < ranks[first] + apart)[-1])
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return tuple(tuple(names[first : last + 1]) for first, last in found)
