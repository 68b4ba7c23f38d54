"""Metrics: what is measured of one job, from its stored predictions and record. Imports no torch.

``CATALOGUE`` lists every metric; :func:`compute` evaluates those that apply to a job. The definitions are
pure functions in one module per family and can be used alone::

    from bayes_bench.metrics import auroc, ece
    ece(probs, y)
"""

from __future__ import annotations

from bayes_bench.metrics.base import Metric, NotApplicableError, normalise, summarise
from bayes_bench.metrics.calibration import ece, ece_adaptive, fit_temperature, reliability
from bayes_bench.metrics.classification import accuracy, brier, nll
from bayes_bench.metrics.ood import auroc, average_precision, fpr_at_tpr
from bayes_bench.metrics.pairs import (
    disagreement,
    mutual_information,
    norm_spread,
    pair_cosine,
    pair_distance,
    total_variation,
)
from bayes_bench.metrics.registry import CATALOGUE, alarms, catalogue, collapse, compute, find
from bayes_bench.metrics.regression import coverage, crps, rmse
from bayes_bench.settings import COLLAPSE_THRESHOLD

__all__ = [
    "CATALOGUE",
    "COLLAPSE_THRESHOLD",
    "Metric",
    "NotApplicableError",
    "accuracy",
    "alarms",
    "auroc",
    "average_precision",
    "brier",
    "catalogue",
    "collapse",
    "compute",
    "coverage",
    "crps",
    "disagreement",
    "ece",
    "ece_adaptive",
    "find",
    "fit_temperature",
    "fpr_at_tpr",
    "mutual_information",
    "nll",
    "norm_spread",
    "normalise",
    "pair_cosine",
    "pair_distance",
    "reliability",
    "rmse",
    "summarise",
    "total_variation",
]
