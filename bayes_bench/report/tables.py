"""Tables of the report: cells with value, spread, mark and reason, ready for a template.

Every number is a mean over seeds, ± their standard deviation (divisor n − 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from bayes_bench import metrics
from bayes_bench.analysis.evidence import Evidence
from bayes_bench.analysis.records import budget_share
from bayes_bench.analysis.statistics import Marks, mark_best, statistic
from bayes_bench.errors import counted
from bayes_bench.methods.registry import diagnostic_tables
from bayes_bench.metrics.registry import find_in

NOTES = "abcdefghijklmnopqrstuvwxyz"
SHARES = {
    "three quarters": 3 / 4,
    "two thirds": 2 / 3,
    "half": 1 / 2,
    "a third": 1 / 3,
    "a quarter": 1 / 4,
    "a fifth": 1 / 5,
    "an eighth": 1 / 8,
    "a tenth": 1 / 10,
    "a twentieth": 1 / 20,
    "a hundredth": 1 / 100,
    "a thousandth": 1 / 1000,
}


@dataclass(frozen=True)
class Column:
    """One metric as a table shows it.

    Attributes:
        digits: significant digits of the largest value, or decimals where ``fixed``.
        scale: factor before printing (100 for percent).
        marked: whether the best is marked, where the metric has a direction.
    """

    metric: str
    header: str
    digits: int = 3
    fixed: bool = False
    scale: float = 1.0
    marked: bool = True
    group: str = ""


@dataclass(frozen=True)
class Cell:
    """``mark`` is ``best``, ``tied`` or empty; ``note`` refers to a footnote; ``title`` is a tooltip."""

    text: str
    spread: str = ""
    mark: str = ""
    note: str = ""
    title: str = ""


@dataclass(frozen=True)
class Row:
    method: str
    seeds: str
    tags: tuple[str, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Header:
    text: str
    direction: str
    title: str


@dataclass(frozen=True)
class Table:
    """``groups`` are headings over several columns: text and how many; ``primary`` tables come before figures."""

    caption: str
    headers: tuple[Header, ...]
    groups: tuple[tuple[str, int], ...]
    rows: tuple[Row, ...]
    notes: tuple[tuple[str, str], ...] = ()
    remarks: tuple[str, ...] = ()
    primary: bool = False


@dataclass(frozen=True)
class TaskComparison:
    """All that was run on one task with the same data and budget.

    Attributes:
        name: the task, as tables call it.
        records: of every method (in the page's order), finished and failed.
        jobs: the finished ones, reduced.
    """

    name: str
    anchor: str
    records: Mapping[str, Sequence[Mapping[str, Any]]]
    jobs: Mapping[str, Sequence[Evidence]]
    _marks: dict[str, Marks] = field(default_factory=dict, compare=False)

    @property
    def any_record(self) -> Mapping[str, Any]:
        """A finished record where there is one; what it says of the task holds for all."""
        everything = [record for records in self.records.values() for record in records]
        return next((record for record in everything if record["status"] == "ok"), everything[0])

    @property
    def kind(self) -> str:
        return str(self.any_record.get("kind") or "classification")

    @property
    def share(self) -> str:
        """The budget in words of the suite's full one, empty where it is that."""
        return share_in_words(budget_share(self.any_record))

    @property
    def ood_sets(self) -> list[str]:
        """Reported out-of-distribution sets, declared or measured."""
        return [str(spec["name"]) for spec in (self.any_record.get("task_spec") or {}).get("ood") or ()]

    @property
    def reference(self) -> Mapping[str, Any] | None:
        """Facts about the reference posterior that the finished jobs were compared with."""
        finished = (job.record for jobs in self.jobs.values() for job in jobs)
        return next((record["reference"] for record in finished if record.get("reference")), None)

    def layers(self) -> list[str]:
        return list(
            dict.fromkeys(n for m in self.records for r in self.records[m] for n in r.get("weight_layers") or ())
        )

    def values(self, method: str, metric: str) -> list[float]:
        """The metric of every finished seed that has a value."""
        rows = (row for job in self.jobs.get(method, ()) for row in job.record.get("metrics") or ())
        return [float(row["value"]) for row in rows if row["name"] == metric and row["value"] is not None]

    def reason(self, method: str, metric: str) -> str:
        """Why a metric has no value."""
        if not self.jobs.get(method):
            return "no finished job"
        for job in self.jobs[method]:
            for row in job.record.get("metrics") or ():
                if row["name"] == metric and row["value"] is None:
                    return str(row.get("reason") or "not applicable")
        return "not measured"

    def marks(self, metric: str) -> Marks:
        """Who is best, and who cannot be told from it; computed once."""
        if metric not in self._marks:
            known = metrics.find(metric, self.kind)
            found = {m: s for m in self.jobs if (s := statistic(self.jobs[m], metric)) is not None}
            if known is None or known.higher_is_better is None or not found:
                self._marks[metric] = Marks(None)
            else:
                self._marks[metric] = mark_best(metric, found, known.higher_is_better)
        return self._marks[metric]


def build(
    comparison: TaskComparison,
    caption: str,
    columns: Sequence[Column],
    remarks: Iterable[str] = (),
    primary: bool = False,
) -> Table | None:
    """A table with one row per method; None where no method has any of the metrics."""
    used = [c for c in columns if any(comparison.values(m, c.metric) for m in comparison.records)]
    if not used:
        return None
    notes: dict[str, str] = {}
    decimals = {c.metric: _decimals(comparison, c) for c in used}
    rows = []
    for method in comparison.records:
        if not primary and not comparison.jobs.get(method):
            continue  # that all jobs of a method failed is said once, in the first tables
        cells = [_cell(comparison, method, c, decimals[c.metric], notes) for c in used]
        rows.append(Row(method, seeds_of(comparison, method), tags_of(comparison, method), tuple(cells)))
    groups: list[tuple[str, int]] = []
    for column in used:
        if groups and groups[-1][0] == column.group:
            groups[-1] = (column.group, groups[-1][1] + 1)
        else:
            groups.append((column.group, 1))
    headers = tuple(_header(comparison, column) for column in used)
    letters = tuple((letter, reason) for reason, letter in notes.items())
    shown = tuple(groups) if any(text for text, _ in groups) else ()
    return Table(caption, headers, shown, tuple(rows), letters, tuple(remarks), primary)


def seeds_of(comparison: TaskComparison, method: str) -> str:
    """``3``, or ``2 of 3`` where jobs failed."""
    total, finished = len(comparison.records[method]), len(comparison.jobs.get(method, ()))
    return str(total) if finished == total else f"{finished} of {total}"


def tags_of(comparison: TaskComparison, method: str) -> tuple[str, ...]:
    """What a reader must know about a method beside its name."""
    records = comparison.records[method]
    found = []
    if any(record.get("uses_prior") is False for record in records):
        found.append("uses prior: no")
    if supports := {record["support"] for record in records if record.get("support") is not None}:
        count = max(supports)
        found.append(counted(count, "network"))
    if len(comparison.jobs.get(method, ())) < len(records):
        found.append("failed jobs")
    return tuple(found)


def _header(comparison: TaskComparison, column: Column) -> Header:
    known = metrics.find(column.metric, comparison.kind)
    better = known.higher_is_better if known and column.marked else None
    direction = {True: "↑", False: "↓", None: ""}[better]
    return Header(column.header, direction, f"{column.metric}: {known.description}" if known else column.metric)


def _cell(comparison: TaskComparison, method: str, column: Column, decimals: int, notes: dict[str, str]) -> Cell:
    values = [v * column.scale for v in comparison.values(method, column.metric)]
    if not values:
        reason = comparison.reason(method, column.metric)
        note = notes.setdefault(reason, NOTES[len(notes) % len(NOTES)])
        return Cell("n/a", note=note, title=reason)
    mean = float(np.mean(values))
    if not column.fixed:
        decimals = max(decimals, decimals_for(abs(mean), 2))  # what is small beside the largest is not rounded away
    text = number(mean, decimals)
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    # Where nothing is compared, a spread of exactly 0 (parameters, evaluations) only clutters.
    spread = f"± {number(std, decimals)}" if len(values) > 1 and (column.marked or std > 0) else ""
    title = counted(len(values), "seed")
    expected = len(comparison.jobs[method])
    if len(values) < expected:
        title += f" of {expected}: {comparison.reason(method, column.metric)}"
    marks = comparison.marks(column.metric) if column.marked else Marks(None)
    mark = ""
    if marks.best == method:
        mark, title = "best", f"best mean; {title}"
    elif method in marks.differences:
        gap = marks.differences[method]
        mark = "tied" if method in marks.tied else ""
        interval = (
            f"difference to the best {signed(gap.value * column.scale, decimals + 1)}, 95 % interval "
            f"[{signed(gap.low * column.scale, decimals + 1)}, {signed(gap.high * column.scale, decimals + 1)}]"
        )
        title = f"{interval}; {title}"
    return Cell(text, spread, mark, title=title)


def _decimals(comparison: TaskComparison, column: Column) -> int:
    if column.fixed:
        return column.digits
    largest = max(abs(np.mean(v)) for m in comparison.records if (v := comparison.values(m, column.metric)))
    return decimals_for(float(largest) * column.scale, column.digits)


def decimals_for(largest: float, digits: int) -> int:
    """Decimals that give a number of this size so many significant digits, between 0 and 4."""
    if not math.isfinite(largest) or largest == 0:
        return digits - 1
    return int(np.clip(digits - 1 - math.floor(math.log10(largest)), 0, 4))


def number(value: float, decimals: int) -> str:
    """With thousands separators and a true minus sign; no minus before zero."""
    text = f"{value:,.{decimals}f}"
    return text.replace("-", "−") if float(text.replace(",", "")) != 0 else text.removeprefix("-")


def signed(value: float, decimals: int) -> str:
    """With a sign, whichever it is."""
    text = number(value, decimals)
    return text if text.startswith("−") or value == 0 else f"+{text}"


def share_in_words(share: float | None) -> str:
    """``a quarter of``, ``37 % of``, ``twice``, ``4 times``; empty for all of it, and where it is not known."""
    if share is None or math.isclose(share, 1, rel_tol=1e-3):
        return ""
    for words, value in SHARES.items():
        if math.isclose(share, value, rel_tol=1e-3):
            return f"{words} of"
    if share > 1:
        return "twice" if math.isclose(share, 2, rel_tol=1e-3) else f"{share:.3g} times"
    return f"{100 * share:.2g} % of"


def plain_table(frame: pd.DataFrame) -> dict[str, Any]:
    """Headers and rows of text for the table behind a figure; a row of one method has its name beside it."""
    decimals = {}
    for name in frame.columns:
        if pd.api.types.is_float_dtype(frame[name]):
            finite = frame[name][np.isfinite(frame[name])].abs()
            decimals[name] = decimals_for(float(finite.max()), 4) if len(finite) else 0

    def text(name: Any, value: Any) -> str:
        if name not in decimals:
            return str(value)
        return number(float(value), decimals[name]) if math.isfinite(value) else "–"

    methods = frame["method"] if "method" in frame else [""] * len(frame)
    rows = [
        {"method": method, "cells": [text(name, value) for name, value in zip(frame.columns, row, strict=True)]}
        for method, row in zip(methods, frame.itertuples(index=False, name=None), strict=True)
    ]
    return {"headers": [str(name) for name in frame.columns], "rows": rows}


# What is shown --------------------------------------------------------------------------------------------


def tables_for(comparison: TaskComparison) -> list[Table]:
    """The tables of one comparison, in order of importance; those without any value are left out."""
    makers = _class_tables if comparison.kind == "classification" else _value_tables
    rest = (*_diagnostic_tables(comparison), _plugin_table(comparison), _cost_table(comparison))
    return [table for table in (*makers(comparison), *rest) if table is not None]


def _class_tables(comparison: TaskComparison) -> Iterable[Table | None]:
    yield build(
        comparison,
        "Prediction",
        [
            *(
                Column(f"accuracy@{k}", f"{k}", 2, fixed=True, scale=100, group="Accuracy, %, with networks")
                for k in (1, 5, 10, 100)
            ),
            Column("accuracy", "all", 2, fixed=True, scale=100, group="Accuracy, %, with networks"),
            Column("nll", "NLL", 3, fixed=True, group="All networks"),
            Column("brier", "Brier", 3, fixed=True, group="All networks"),
        ],
        ["Accuracy with k networks is that of their mean prediction, averaged over the disjoint groups of k."],
        primary=True,
    )
    for name in comparison.ood_sets:
        yield build(
            comparison,
            f"Out-of-distribution detection: {name}",
            [
                Column(f"ood_auroc/{name}", "entropy", 3, fixed=True, group="AUROC by score"),
                Column(f"ood_auroc_mi/{name}", "mutual inf.", 3, fixed=True, group="AUROC by score"),
                Column(f"ood_auroc_maxprob/{name}", "−max p̄", 3, fixed=True, group="AUROC by score"),
                Column(f"aupr_out/{name}", "out", 3, fixed=True, group="AUPR by entropy"),
                Column(f"aupr_in/{name}", "in", 3, fixed=True, group="AUPR by entropy"),
                Column(f"fpr95/{name}", "FPR95", 3, fixed=True, group="By entropy"),
                Column("entropy_test", "test", group="Mean entropy"),
                Column(f"entropy/{name}", name, group="Mean entropy"),
            ],
            _ood_remarks(comparison, name),
            primary=True,
        )
    yield _class_reference_table(comparison)
    yield build(
        comparison,
        "Calibration",
        [
            Column("ece", "ECE", 3, fixed=True, group="As predicted"),
            Column("ece_adaptive", "ECE, adaptive bins", 3, fixed=True, group="As predicted"),
            Column("temperature", "temperature", group="After temperature scaling"),
            Column("nll_temperature_scaled", "NLL", 3, fixed=True, group="After temperature scaling"),
            Column("ece_temperature_scaled", "ECE", 3, fixed=True, group="After temperature scaling"),
        ],
        ["The temperature is one number fitted on validation data; a temperature above 1 repairs overconfidence."],
    )
    yield _function_table(comparison)
    yield _weight_table(comparison)


def _ood_remarks(comparison: TaskComparison, name: str) -> Iterable[str]:
    yield "Out is the positive class; ties count ½. FPR95: share of test images flagged when 95 % of the set is."
    base = [v for m in comparison.records for v in comparison.values(m, f"aupr_base_rate/{name}")]
    if base:
        yield f"Chance: AUROC 0.5, AUPR-out {np.mean(base):.3f}, AUPR-in {1 - np.mean(base):.3f}."
    floor = [v for m in comparison.records for v in comparison.values(m, f"mean_intensity_auroc/{name}")]
    if floor:
        yield f"Floor: the mean intensity of the image alone, without any network, reaches AUROC {np.mean(floor):.3f}."


def _class_reference_table(comparison: TaskComparison) -> Table | None:
    columns = [
        Column("reference_tv", "test", 3, fixed=True, group="Total variation"),
        *(
            Column(f"reference_tv_ood/{name}", name, 3, fixed=True, group="Total variation")
            for name in comparison.ood_sets
        ),
        Column("reference_agreement", "test", 2, fixed=True, scale=100, group="Same class, %"),
        Column("reference_variance_ratio", "test", group="Ratio of epistemic variances"),
        *(
            Column(f"reference_variance_ratio_ood/{name}", name, group="Ratio of epistemic variances")
            for name in comparison.ood_sets
        ),
    ]
    said = "Total variation is ½ Σ_c |p̄ − p̄_ref|, mean over examples."
    return _reference_table(comparison, columns, said)


def _value_reference_table(comparison: TaskComparison) -> Table | None:
    columns = [
        Column(f"{metric}/{region}", region, 3, fixed=fixed, group=group)
        for metric, group, fixed in (
            ("reference_tv", "Total variation", True),
            ("reference_mean_distance", "Distance of means", False),
            ("reference_variance_ratio", "Ratio of epistemic variances", False),
        )
        for region in ("inside", "gap", "outside", "test")
    ]
    said = "Total variation is ½ ∫ |p − p_ref| dy between the predictive densities, mean over inputs."
    return _reference_table(comparison, columns, said)


def _reference_table(comparison: TaskComparison, columns: Sequence[Column], said: str) -> Table | None:
    remarks = [said, "A variance ratio of 1 is right; below 1 the method is too certain."]
    if facts := comparison.reference:
        remarks += _reference_remarks(facts, columns)
    return build(comparison, "Distance to the reference posterior", columns, remarks, primary=True)


def _reference_remarks(facts: Mapping[str, Any], columns: Sequence[Column]) -> Iterable[str]:
    """What the reference is, and how near to it its own networks are."""
    networks, seeds = number(facts["networks"], 0), len(facts["seeds"])
    said = f"Reference: {facts['label']}, {networks} networks from {seeds} seed{'s' if seeds > 1 else ''}"
    ranges = [
        f"{name} {low:.4g}" + (f" to {high:.4g}" if high != low else "")
        for name, (low, high) in facts["diagnostics"].items()
    ]
    yield f"{said}; {', '.join(ranges)}." if ranges else f"{said}."
    floor: dict[str, list[str]] = {}
    for column in columns:
        if (value := facts["resolution"].get(column.metric)) is not None:
            decimals = column.digits if column.fixed else decimals_for(abs(value) * column.scale, column.digits)
            floor.setdefault(column.group, []).append(f"{number(value * column.scale, decimals)} ({column.header})")
    if floor:
        parts = [f"{group[0].lower()}{group[1:]} {', '.join(values)}" for group, values in floor.items()]
        yield f"Its resolution, the same numbers between two halves of its networks: {'; '.join(parts)}."


def _function_table(comparison: TaskComparison) -> Table | None:
    columns = [
        Column("disagreement", "test", group="Disagreement"),
        *(Column(f"disagreement/{name}", name, group="Disagreement") for name in comparison.ood_sets),
        Column("disagreement_normalised", "test / single error", group="Disagreement"),
        Column("mutual_information@5", "5 networks", 3, fixed=True, group="Mutual information, test"),
        Column("mutual_information", "all", 3, fixed=True, group="Mutual information, test"),
    ]
    columns += [Column(f"total_variation/{name}", name, group="Total variation") for name in comparison.ood_sets]
    columns += [Column("total_variation/outside", "outside the data", group="Total variation")]
    found = (
        record["collapse"] for records in comparison.records.values() for record in records if record.get("collapse")
    )
    threshold = next((collapse["threshold"] for collapse in found), None)
    remarks = ["No diversity is a target: nothing is marked."]
    if threshold is not None:
        remarks.append(f"A total variation below {threshold:g} raises the collapse alarm.")
    if comparison.kind == "classification":
        remarks.insert(0, "Mutual information is at most ln S for S networks: compare it at equal S.")
    return build(comparison, "Diversity of predictions", columns, remarks)


def _weight_table(comparison: TaskComparison) -> Table | None:
    columns = [
        Column(f"{metric}/{layer}", layer, 3, fixed=True, group=group)
        for metric, group, layers in (
            ("weight_diversity", "Norm spread", (*comparison.layers(), "all")),
            ("weight_distance", "Distance", ("all",)),
            ("weight_cosine", "Cosine", ("all",)),
        )
        for layer in layers
    ]
    remarks = [
        "Norm spread alone can mislead: read it beside distance, cosine and the diversity of predictions. For "
        "comparison, the HyperGAN paper reports about 0.21, 0.21 and 0.27 for the three layers of its MNIST network."
    ]
    return build(comparison, "Diversity of weights", columns, remarks)


def _value_tables(comparison: TaskComparison) -> Iterable[Table | None]:
    yield build(
        comparison,
        "Prediction",
        [
            Column("rmse", "RMSE"),
            Column("nll", "NLL"),
            Column("crps", "CRPS"),
            Column("coverage95", "coverage of the 95 % band"),
            Column("width95", "width of the 95 % band"),
        ],
        ["In the units of the targets, on test data; bands between quantiles of the mixture of all networks."],
        primary=True,
    )
    std, ratio = "Epistemic standard deviation", "Ratio to inside"
    yield build(
        comparison,
        "Epistemic uncertainty",
        [
            *(Column(f"epistemic_std/{region}", region, group=std) for region in ("inside", "gap", "outside")),
            Column("epistemic_std_ratio/gap_inside", "gap", group=ratio),
            Column("epistemic_std_ratio/outside_inside", "outside", group=ratio),
            Column("epistemic_variance_ratio/outside_inside", "outside, variances", group=ratio),
            Column("rmse", "RMSE on test data", marked=False, group="Beside it"),
        ],
        ["Spread between the networks' means, averaged over the parts of the curve; without the noise."],
        primary=True,
    )
    yield _value_reference_table(comparison)
    yield _function_table(comparison)
    yield _weight_table(comparison)


def _diagnostic_tables(comparison: TaskComparison) -> Iterable[Table | None]:
    """What methods say of their own fits, in the tables that they declare; those of one title are one."""
    columns: dict[str, dict[str, Column]] = {}
    remarks: dict[str, dict[str, None]] = {}
    for job in (job for several in comparison.jobs.values() for job in several):
        fit = job.record.get("fit") or {}
        # Earlier versions did not keep what a method declares.
        for declared in fit["tables"] if "tables" in fit else diagnostic_tables(job.record["method"]):
            title = declared["title"]
            for column in declared["columns"]:
                made = Column(f"diagnostic/{column['name']}", column["text"], group=column.get("group", ""))
                columns.setdefault(title, {}).setdefault(made.metric, made)
            remarks.setdefault(title, {}).update(dict.fromkeys(declared.get("remarks") or ()))
    for title, own in columns.items():
        yield build(comparison, title, list(own.values()), remarks[title])


def _plugin_table(comparison: TaskComparison) -> Table | None:
    """Metrics that are not ours; where their package is not installed, nothing says which direction is better."""
    rows = (row for jobs in comparison.jobs.values() for job in jobs for row in job.record.get("metrics") or ())
    names = dict.fromkeys(row["name"] for row in rows if find_in(metrics.CATALOGUE, row["name"]) is None)
    return build(comparison, "Metrics of plug-ins", [Column(name, name) for name in names])


def _cost_table(comparison: TaskComparison) -> Table | None:
    budget = (comparison.any_record.get("budget") or {}).get("total")
    remarks = ["One gradient evaluation is one network on one example, forward and backward; forward alone is a third."]
    if budget:
        share = f", {comparison.share} the suite's" if comparison.share else ""
        remarks.insert(
            0, f"Every method had a budget of {number(budget, 0)} evaluations{share}; early stopping leaves a rest."
        )
    return build(
        comparison,
        "Cost",
        [
            Column("evaluations_spent", "spent", 0, fixed=True, marked=False, group="Gradient evaluations"),
            Column("evaluations_unspent", "unspent", 0, fixed=True, marked=False, group="Gradient evaluations"),
            Column("fit_seconds", "training", marked=False, group="Seconds"),
            Column("predict_seconds_per_1000", "1,000 predictions", marked=False, group="Seconds"),
            Column("parameters_stored", "parameters stored", 0, fixed=True, marked=False, group="Size"),
            Column("peak_memory_mb", "peak memory, MB", 0, fixed=True, marked=False, group="Size"),
        ],
        remarks,
    )
