"""The critical-difference diagram: mean ranks across tasks, and who cannot be told apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bayes_bench.analysis.ranking import LEVEL, Ranking
from bayes_bench.report.charts.base import INK, MUTED, Chart


@dataclass(frozen=True)
class CriticalDifference(Chart):
    """One panel per ranking that was tested; ``jobs`` is not used."""

    title = "Ranks across tasks"
    caption = (
        "Mean rank over the tasks, 1 is best. Thick bars join methods that cannot be told apart: their ranks differ by "
        f"less than the critical difference (CD) of Nemenyi's test at {100 * LEVEL:g} %, or the test of all methods "
        "finds no difference (Demšar, JMLR 2006)."
    )
    by_colour = False
    reading = "nothing"
    rankings: tuple[Ranking, ...] = ()

    @property
    def width(self) -> float:  # type: ignore[override]
        """Of one panel, by the longest names."""
        return 2.6 + self._margins()[0] + self._margins()[1]

    def _margins(self) -> tuple[float, float]:
        """Inches for the names on the left and on the right."""
        sides: tuple[list[int], list[int]] = ([8], [8])
        for found in self.rankings:
            names = [len(_short(name)) for name in found.table["method"]]
            half = -(-len(names) // 2)
            sides[0].extend(names[:half])
            sides[1].extend(names[half:])
        return 0.5 + 0.075 * max(sides[0]), 0.5 + 0.075 * max(sides[1])

    @property
    def height(self) -> float:  # type: ignore[override]
        """Of one panel, by the number of methods."""
        methods = max((len(ranking.table) for ranking in self.rankings), default=0)
        return 0.9 + 0.19 * (-(-methods // 2)) + 0.07 * max((len(r.groups) for r in self.rankings), default=0)

    def panels(self) -> tuple[str, ...]:
        return tuple(f"By {ranking.name}" for ranking in self.rankings if ranking.tested)

    def describe(self, panel: str) -> str:
        found = self._ranking(panel)
        ranks = ", ".join(f"{row.method} {row.rank:.2f}" for row in found.table.itertuples())
        groups = "; ".join(" and ".join(group) for group in found.groups) or "none"
        return f"Mean ranks over {found.tasks} tasks: {ranks}. Not distinguishable: {groups}."

    def draw(self, panel: str, axes: Axes) -> None:
        found = self._ranking(panel)
        names, ranks = found.table["method"].tolist(), found.table["rank"].to_numpy(float)
        k, left = len(names), -(-len(names) // 2)
        first_line = 0.9 + 0.4 * len(found.groups)
        bottom = first_line + 1.0 * (left - 1) + 0.5
        axes.hlines(0, 1, k, color=INK, linewidth=1)
        for tick in range(1, k + 1, 1 + (k - 1) // 12):
            axes.vlines(tick, -0.12, 0, color=INK, linewidth=1)
            axes.text(tick, -0.25, str(tick), ha="center", va="bottom", fontsize=8, color=MUTED)
        pad = 0.03 * (k - 1)
        for i, (name, rank) in enumerate(zip(names, ranks, strict=True)):
            on_left = i < left
            y = first_line + (i if on_left else k - 1 - i)
            end = 1 - pad if on_left else k + pad
            axes.plot([rank, rank, end], [0, y, y], color=self.look.colour(name), linewidth=1.1)
            axes.plot(rank, 0, color=self.look.colour(name), marker=self.look.marker(name), markersize=6, clip_on=False)
            text = f"{_short(name)}  {rank:.2f}" if on_left else f"{rank:.2f}  {_short(name)}"
            x = end - pad / 2 if on_left else end + pad / 2
            axes.text(x, y, text, ha="right" if on_left else "left", va="center", fontsize=8)
        for i, group in enumerate(found.groups):
            ends = [float(ranks[names.index(name)]) for name in (group[0], group[-1])]
            axes.hlines(0.45 + 0.4 * i, ends[0] - pad / 3, ends[1] + pad / 3, color=INK, linewidth=3)
        if not math.isnan(found.critical_difference):
            width = min(found.critical_difference, k - 1)
            axes.hlines(-1.1, 1, 1 + width, color=MUTED, linewidth=1)
            axes.vlines([1, 1 + width], -1.2, -1.0, color=MUTED, linewidth=1)
            label = f"CD {found.critical_difference:.2f}"
            axes.text(1 + width + pad, -1.1, label, va="center", fontsize=8, color=MUTED)
        left_margin, right_margin = ((k - 1) * inches / 2.6 for inches in self._margins())
        axes.set(xlim=(1 - left_margin, k + right_margin), ylim=(bottom, -1.6))
        axes.set_axis_off()

    def frame(self) -> pd.DataFrame:
        parts = []
        for found in (ranking for ranking in self.rankings if ranking.tested):
            groups = ["/".join(str(i + 1) for i, g in enumerate(found.groups) if m in g) for m in found.table["method"]]
            parts.append(found.table.assign(metric=found.metric, group=np.array(groups, dtype=object)))
        return pd.concat(parts) if parts else pd.DataFrame()

    def _ranking(self, panel: str) -> Ranking:
        return next(ranking for ranking in self.rankings if panel == f"By {ranking.name}")


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"
