"""Figures of the report, by kind of task."""

from __future__ import annotations

from collections.abc import Mapping

from bayes_bench.report.charts.base import COLOURS, Chart, Jobs, Look
from bayes_bench.report.charts.classification import (
    ROC,
    AccuracyCurve,
    Diversity,
    EntropyCDF,
    Reliability,
    RiskCoverage,
)
from bayes_bench.report.charts.images import Gallery
from bayes_bench.report.charts.ranks import CriticalDifference
from bayes_bench.report.charts.regression import Curves, EpistemicSpread
from bayes_bench.report.charts.training import QualityCost, Training

__all__ = ["CHARTS", "COLOURS", "Chart", "CriticalDifference", "Jobs", "Look"]

CHARTS: Mapping[str, tuple[type[Chart], ...]] = {
    "classification": (
        AccuracyCurve,
        RiskCoverage,
        ROC,
        EntropyCDF,
        Gallery,
        Reliability,
        Diversity,
        QualityCost,
        Training,
    ),
    "regression": (Curves, EpistemicSpread, QualityCost, Diversity, Training),
}
"""By kind of task, in the order of the page."""
