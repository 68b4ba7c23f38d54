"""What may be said of a comparison in one sentence, and claims of others beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bayes_bench import metrics
from bayes_bench.analysis.records import published_frame
from bayes_bench.report.tables import TaskComparison, decimals_for, number, signed


@dataclass(frozen=True)
class Claim:
    """A published number and ours, as tables show them; ``ours`` is ``–`` where the method was not run."""

    task: str
    method: str
    metric: str
    ours: str
    spread: str
    seeds: str
    published: str
    difference: str
    source: str
    note: str

    @property
    def measured(self) -> str:
        """Ours with its spread, in one cell."""
        return f"{self.ours} {self.spread}".rstrip()


def claims(frame: pd.DataFrame) -> list[Claim]:
    """The rows of ``analysis.records.published_frame`` in print; fractions are in percent."""
    return [_claim(row) for row in frame.to_dict("records")]


def claims_of(comparison: TaskComparison) -> list[Claim]:
    """Those of one comparison."""
    return claims(published_frame([record for records in comparison.records.values() for record in records]))


def _claim(row: Mapping[Any, Any]) -> Claim:
    percent = row["unit"] == "fraction"
    scale, unit = (100.0, ", %") if percent else (1.0, f", {row['unit']}" if row["unit"] else "")
    decimals = 2 if percent else max(2, decimals_for(abs(row["published"]), 3))
    measured = row["seeds"] > 0
    return Claim(
        task=str(row["task"]),
        method=str(row["method"]),
        metric=f"{row['metric']}{unit}",
        ours=number(row["mean"] * scale, decimals) if measured else "–",
        spread=f"± {number(row['std'] * scale, decimals)}" if row["seeds"] > 1 else "",
        seeds=str(row["seeds"]) if measured else "–",
        published=number(row["published"] * scale, decimals),
        difference=signed(row["difference"] * scale, decimals) if measured else "–",
        source=str(row["source"]),
        note=str(row["note"]),
    )


@dataclass(frozen=True)
class Headline:
    what: str
    text: str


def headlines(comparison: TaskComparison) -> list[Headline]:
    """Who is best on the task and whether that is more than noise, one sentence per question."""
    if comparison.kind == "classification":
        asked = [("Accuracy", "accuracy", 100.0, " %", 2), ("NLL", "nll", 1.0, "", 3)]
        asked += [(f"OOD, {name}", f"ood_auroc/{name}", 1.0, " AUROC", 3) for name in comparison.ood_sets]
    else:
        asked = [("RMSE", "rmse", 1.0, "", 3), ("NLL", "nll", 1.0, "", 3)]
    found = []
    for what, metric, scale, unit, digits in asked:
        if text := _headline(comparison, metric, scale, unit, digits):
            found.append(Headline(what, text))
    grows = [
        f"{method} {_spoken(ratios, 1.0, 3)}"
        for method in comparison.records
        if (ratios := comparison.values(method, "epistemic_std_ratio/outside_inside"))
    ]
    if grows:
        found.append(Headline("Epistemic std outside / inside", "; ".join(grows) + "."))
    return found


def _headline(comparison: TaskComparison, metric: str, scale: float, unit: str, digits: int) -> str:
    known = metrics.find(metric, comparison.kind)
    values = {m: comparison.values(m, metric) for m in comparison.records}
    values = {m: v for m, v in values.items() if v}
    if not values or known is None:
        return ""
    marks = comparison.marks(metric)
    if marks.best is None:
        best = (max if known.higher_is_better else min)(values, key=lambda m: float(np.mean(values[m])))
        said = f"{best} {_spoken(values[best], scale, digits)}{unit}"
        if len(values) == 1:
            return f"{said}; no other method to compare with."
        return f"no ranking ({marks.declined}); the best mean is that of {said}."
    value = f"{_spoken(values[marks.best], scale, digits)}{unit}"
    equal = [m for m in values if m in marks.tied and marks.differences[m].value == 0]
    tied = [m for m in values if m in marks.tied and m not in equal]
    behind = [m for m in values if m in marks.differences and m not in marks.tied]
    unranked = [m for m in values if m != marks.best and m not in marks.differences]
    if equal:
        text = f"{_few([marks.best, *equal])} have the {'best' if tied or behind else 'same'} mean, {value}"
    else:
        text = f"{marks.best} {value} {'has the best mean' if tied else 'is best'}"
    if tied:
        text += f", not distinguishable from {_few(tied)}"
    if behind:
        gaps = sorted((marks.differences[m] for m in behind), key=lambda gap: abs(gap.value))
        parts = [
            f"{gap.first} by {number(abs(gap.value) * scale, digits)} "
            f"[{_interval(gap.low, gap.high, gap.value, scale, digits)}]"
            for gap in gaps
        ]
        text += "; behind: " + _few(parts)
    if unranked:
        text += f"; not ranked for want of seeds: {_few(unranked)}"
    return text + "."


def _few(items: Sequence[str]) -> str:
    """All in a list, or of more than eight the first six and how many others there are."""
    return listed(items if len(items) <= 8 else [*items[:6], f"{len(items) - 6} others"], "and")


def _interval(low: float, high: float, value: float, scale: float, digits: int) -> str:
    if value < 0:
        low, high = -high, -low
    nearest = min(abs(low), abs(high)) * scale
    if 0 < nearest < 0.5 * 10**-digits:  # not to read as 0, which the interval leaves out
        digits = decimals_for(nearest, 1)
    return f"{number(low * scale, digits)}, {number(high * scale, digits)}"


def _spoken(values: Sequence[float], scale: float, digits: int) -> str:
    """Mean ± standard deviation over seeds, in text."""
    mean = float(np.mean(values)) * scale
    decimals = digits if scale == 100 else decimals_for(abs(mean), digits)
    spread = f" ± {number(float(np.std(values, ddof=1)) * scale, decimals)}" if len(values) > 1 else ""
    return number(mean, decimals) + spread


def listed(items: Sequence[str], word: str) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {word} {items[-1]}"
