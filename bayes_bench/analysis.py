"""From records to tables, intervals and marks. Imports no torch.

What is compared: within a *comparison* all methods had the same task, data and budget. A *variant* is one
method with one group of settings within it; seeds of one variant are averaged, variants never mixed.
Letters: K seeds, N examples, M out-of-distribution examples, R bootstrap replicates.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayes_bench import metrics
from bayes_bench.errors import UsageError, counted, unknown_name
from bayes_bench.metrics import calibration, classification, regression
from bayes_bench.metrics.base import GROUP_SIZES, Floats, Ints, summarise
from bayes_bench.metrics.calibration import BINS, bin_index
from bayes_bench.metrics.job import JobPredictions
from bayes_bench.results.folder import job_folder, load_predictions, read_records, read_run
from bayes_bench.results.schema import canonical_hash

MIN_SEEDS_TO_RANK = 3
LEVEL = 0.95
FREEDOMS = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 40, 120, math.inf)
"""Degrees of freedom at which quantiles of the studentized range, which are slow, are computed."""
REPLICATES = 1000
CURVE_SIZES = (1, 2, 3, 5, 10, 20, 50, 100)
"""Numbers of networks on the curve of accuracy against number of networks."""

RESULT_COLUMNS = (
    "suite",
    "task",
    "method",
    "seed",
    "status",
    "metric",
    "value",
    "unit",
    "higher_is_better",
    "variant",
    "error",
    "reason",
)
SUMMARY_COLUMNS = (
    "suite",
    "task",
    "method",
    "metric",
    "unit",
    "higher_is_better",
    "seeds",
    "mean",
    "std",
    "sem",
    "variant",
)
PUBLISHED_COLUMNS = (
    "suite",
    "task",
    "method",
    "metric",
    "unit",
    "higher_is_better",
    "mean",
    "std",
    "seeds",
    "published",
    "difference",
    "budget",
    "full_budget",
    "source",
    "note",
    "variant",
)
HISTORY_COLUMNS = ("suite", "task", "method", "variant", "seed", "evaluations")
# What changes no result, and the settings of other methods, do not make another comparison.
_COSMETIC = (
    "title",
    "settings",
    "seconds_per_job",
    "megabytes_per_job",
    "reference",
    "published",
    "collapse_threshold",
)


# Records and frames ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A run folder as it stands, finished or not.

    Attributes:
        description: ``run.json``, empty where there is none.
        records: of all jobs, finished and failed.
        problems: a sentence for every damaged record.
        origins: of merged runs, label and key of a record → its run folder and its label there.
    """

    folder: Path
    description: Mapping[str, Any]
    records: tuple[dict[str, Any], ...]
    problems: tuple[str, ...] = ()
    origins: Mapping[tuple[str, str], tuple[Path, str]] = field(default_factory=dict)

    def predictions(self, record: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """The stored predictions of a finished job; ``DataError`` where they are missing or damaged."""
        here = (self.folder, record["label"])
        folder, label = self.origins.get((record["label"], record["key"]), here)
        return load_predictions(job_folder(folder, record["task"], label, record["seed"], record["key"]))

    def missing(self) -> list[str]:
        """Planned jobs of the latest invocation without a record, in words."""
        known = {(record["label"], record["key"]) for record in self.records}
        return [
            f"{job['task']} / {job['label']} / seed {job['seed']}"
            for job in self.description.get("jobs") or ()
            if (job["label"], job["key"]) not in known
        ]


def load_run(run_dir: Path | str) -> Run:
    """Read a run folder: its description and all records.

    Raises:
        UsageError: it is not a run folder.
        DataError: ``run.json`` is damaged (a damaged record is only a problem in words).
    """
    folder = Path(run_dir)
    description = read_run(folder)
    found, problems = read_records(folder)
    return Run(folder, description, tuple(_latest([record for _, record in found])), tuple(problems))


def load_records(run_dir: Path | str) -> list[dict[str, Any]]:
    """All records of a run folder, ordered by suite, task, label and seed."""
    return list(load_run(run_dir).records)


def _latest(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sorted records; of several with one variant and seed the last finished."""
    chosen: dict[tuple[Any, ...], dict[str, Any]] = {}
    for record in records:
        place = (record["suite"], record["task"], record["label"], variant_of(record), record["seed"])
        if place not in chosen or _finished(record) >= _finished(chosen[place]):
            chosen[place] = record
    return [chosen[place] for place in sorted(chosen)]


def _finished(record: Mapping[str, Any]) -> str:
    return str(record.get("finished") or "")


def comparison_of(record: Mapping[str, Any]) -> str:
    """Identifier (8 hex digits) of what may be compared: task, data and budget."""
    # Without keys that say nothing, so that one which later versions have sets no record of an earlier one apart.
    spec = {k: v for k, v in (record.get("task_spec") or {}).items() if k not in _COSMETIC and v is not None}
    checksum = (record.get("data") or {}).get("checksum")
    budget = (record.get("budget") or {}).get("total")
    return canonical_hash([record["suite"], record["task"], spec, checksum, budget])[:8]


def variant_of(record: Mapping[str, Any]) -> str:
    """Identifier (8 hex digits) of all that makes a result but the seed."""
    parts = [
        comparison_of(record),
        record["label"],
        record["method"],
        record.get("config"),
        record.get("variant"),
    ]
    return canonical_hash(parts)[:8]


def display_labels(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Variant → the label in tables: a suffix where a label has several variants in one comparison."""
    variants: dict[tuple[str, str], set[str]] = defaultdict(set)
    for record in records:
        variants[comparison_of(record), record["label"]].add(variant_of(record))
    return {
        variant: label if len(several) == 1 else f"{label}~{variant[:4]}"
        for (_, label), several in variants.items()
        for variant in several
    }


def display_tasks(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Comparison → the task's name, with a suffix where several suites have one of that name (as a suite and its quick
    variant do), or one task has several comparisons (another budget, other data).
    """
    comparisons: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
    for record in records:
        comparisons[record["suite"], record["task"]][comparison_of(record)] = record
    suites = Counter(task for _, task in comparisons)
    names = {}
    for (suite, name), several in comparisons.items():
        task = name if suites[name] == 1 else f"{name} ({suite})"
        budgets = Counter((record.get("budget") or {}).get("total") for record in several.values())
        for comparison, record in several.items():
            budget = (record.get("budget") or {}).get("total")
            if len(several) == 1:
                names[comparison] = task
            elif budgets[budget] == 1 and budget is not None:
                names[comparison] = f"{task} (budget {budget:,.0f})"
            else:
                names[comparison] = f"{task}~{comparison[:4]}"
    return names


def results_frame(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per job and metric (columns ``RESULT_COLUMNS``); a failed job is one row with its error.

    A metric that is not applicable has an empty value and its reason.
    """
    labels, tasks = display_labels(records), display_tasks(records)
    rows = []
    for record in records:
        common = {
            "suite": record["suite"],
            "task": tasks[comparison_of(record)],
            "method": labels[variant_of(record)],
            "seed": record["seed"],
            "status": record["status"],
            "variant": variant_of(record),
            "error": record.get("error"),
        }
        rows += [
            common
            | {
                "metric": row["name"],
                "value": row["value"],
                "unit": row["unit"],
                "higher_is_better": row["higher_is_better"],
                "reason": row.get("reason"),
            }
            for row in record.get("metrics") or ()
        ] or [common]
    frame = pd.DataFrame(rows, columns=list(RESULT_COLUMNS))
    frame["value"] = pd.to_numeric(frame["value"], errors="coerce").astype("float64")
    # Text and missing values only, whichever string type pandas would infer.
    for name in set(RESULT_COLUMNS) - {"value", "seed"}:
        column = frame[name].astype(object)
        frame[name] = column.where(column.notna(), None)
    return frame


def summary_frame(results: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over seeds, one row per task, method and metric (columns ``SUMMARY_COLUMNS``).

    ``seeds`` counts the seeds with a value; ``std`` has divisor seeds − 1 and ``sem`` is std / √seeds, both
    empty for one seed. A method whose jobs all failed has one row without a metric and 0 seeds.
    """
    keys = ["suite", "task", "method", "variant", "metric", "unit", "higher_is_better"]
    rows = []
    everything_failed = results.groupby(keys[:4], dropna=False, sort=False)["metric"].transform(
        lambda metric: metric.isna().all()
    )
    kept = results[results["metric"].notna() | everything_failed.astype(bool)]
    for names, group in kept.groupby(keys, dropna=False, sort=False):
        values = group["value"].dropna().to_numpy()
        count = len(values)
        with np.errstate(over="ignore"):  # a record from elsewhere may hold any numbers
            mean = float(values.mean()) if count else math.nan
            std = float(np.std(values, ddof=1)) if count > 1 else math.nan
        rows.append(
            dict(zip(keys, names, strict=True))
            | {
                "seeds": count,
                "mean": mean,
                "std": std,
                "sem": std / math.sqrt(count) if count > 1 else math.nan,
            }
        )
    frame = pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS))
    for name in ("metric", "unit", "higher_is_better"):
        column = frame[name].astype(object)
        frame[name] = column.where(column.notna(), None)
    return frame


def wide_frame(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary with one row per task and method: ``seeds``, then ``METRIC`` (mean), ``METRIC std``."""
    keys = ["suite", "task", "method", "variant"]
    rows = []
    for names, group in summary.groupby(keys, dropna=False, sort=False):
        row = dict(zip(keys, names, strict=True)) | {"seeds": int(group["seeds"].max())}
        for entry in group[group["metric"].notna()].to_dict("records"):
            row[str(entry["metric"])] = entry["mean"]
            row[f"{entry['metric']} std"] = entry["std"]
        rows.append(row)
    return pd.DataFrame(rows)


def budget_share(record: Mapping[str, Any]) -> float | None:
    """The job's budget as a share of the task's full one; None where a record does not say it."""
    total, full = ((record.get(part) or {}).get(name) for part, name in (("budget", "total"), ("task_spec", "budget")))
    return float(total / full) if total and full else None


def published_frame(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per published number of every task (columns ``PUBLISHED_COLUMNS``), with ours where there is one.

    ``mean`` and ``std`` are over the ``seeds`` with a value and ``difference`` is mean − published; they are empty
    where the method was not run. A method with several variants has a row for each.
    """
    labels, tasks = display_labels(records), display_tasks(records)
    grouped: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        grouped[comparison_of(record)].append(record)
    rows = []
    for comparison, members in grouped.items():
        # A record that no command has looked at since has what the suite listed then; lists grow.
        first = max(members, key=lambda record: len((record.get("task_spec") or {}).get("published") or ()))
        spec = first.get("task_spec") or {}
        for claim in spec.get("published") or ():
            known = metrics.find(claim["metric"], str(first.get("kind") or "classification"))
            variants: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
            for record in members:
                if (record.get("claimed_as") or record["label"]) == claim["method"]:
                    variants[variant_of(record)].append(record)
            for variant, ours in variants.items() or [("", [])]:
                values = [v for record in ours if (v := metric_value(record, claim["metric"])) is not None]
                mean = float(np.mean(values)) if values else math.nan
                rows.append(
                    {
                        "suite": first["suite"],
                        "task": tasks[comparison],
                        "method": labels.get(variant, claim["method"]),
                        "metric": claim["metric"],
                        "unit": known.unit if known else "",
                        "higher_is_better": known.higher_is_better if known else None,
                        "mean": mean,
                        "std": float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
                        "seeds": len(values),
                        "published": claim["value"],
                        "difference": mean - claim["value"],
                        "budget": (first.get("budget") or {}).get("total"),
                        "full_budget": spec.get("budget"),
                        "source": claim["source"],
                        "note": claim.get("note") or "",
                        "variant": variant,
                    }
                )
    return pd.DataFrame(rows, columns=list(PUBLISHED_COLUMNS))


def history_frame(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """What fits logged, a row per validation: ``HISTORY_COLUMNS``, then all numbers that any of them has."""
    labels, tasks = display_labels(records), display_tasks(records)
    rows: list[dict[str, Any]] = []
    for record in records:
        common = {
            "suite": record["suite"],
            "task": tasks[comparison_of(record)],
            "method": labels[variant_of(record)],
            "variant": variant_of(record),
            "seed": record["seed"],
        }
        rows += [dict(row) | common for row in (record.get("fit") or {}).get("history") or ()]
    names = dict.fromkeys((*HISTORY_COLUMNS, *(name for row in rows for name in row)))
    return pd.DataFrame(rows, columns=list(names))


def by_seeds(events: Iterable[tuple[str, str, int, str]]) -> list[tuple[str, str]]:
    """(task, method, seed, sentence) → where and sentence, the same sentence of several seeds once."""
    found: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for task, method, seed, sentence in events:
        found[task, method, sentence].append(seed)
    return [
        (f"{task}, {method}, seed{'s' if len(seeds) > 1 else ''} {ranges(seeds)}", sentence)
        for (task, method, sentence), seeds in found.items()
    ]


def ranges(numbers: Iterable[int]) -> str:
    """``0–2, 5``."""
    runs: list[list[int]] = []
    for n in sorted(set(numbers)):
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}–{r[-1]}" for r in runs)


def alarms(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Where an alarm was raised (task, method, seeds, as tables call them) and what it says."""
    labels, tasks = display_labels(records), display_tasks(records)
    return by_seeds(
        (tasks[comparison_of(record)], labels[variant_of(record)], record["seed"], str(alarm))
        for record in records
        for alarm in record.get("alarms") or ()
    )


# What the bootstrap needs of every job --------------------------------------------------------------------


@dataclass(frozen=True)
class Images:
    """The images of one set that a job found least (the first half) and most uncertain, by rising entropy.

    Attributes:
        pixels: uint8 ``[n, 1 or 3, h, w]``.
        index: where they are in the set, ``[n]``.
        predicted: class of the highest p̄, ``[n]``.
        entropy: H(p̄) in nats, ``[n]``.
        truth: true class, ``[n]``; None for data from outside.
    """

    pixels: NDArray[np.uint8]
    index: Ints
    predicted: Ints
    entropy: Floats
    truth: Ints | None


@dataclass(frozen=True)
class Evidence:
    """What one job says about every single example, reduced over its networks.

    Attributes:
        record: the job's record.
        examples: named arrays. Classification, ``[N]``: ``correct`` (all networks), ``correct@k`` (mean over
            groups of k, for the k of ``CURVE_SIZES`` and the metrics), ``nll``, ``brier``, ``confidence``,
            ``entropy``, ``information``, ``doubt`` (−max p̄), ``y``, ``nll_scaled``, ``confidence_scaled``;
            the scores also as ``entropy/SET`` etc. ``[M]``. Regression: ``squared_error``, ``nll``, ``crps``.
        curve: for 1-D regressions ``x``, ``mean``, ``epistemic_std``, ``noise_std`` ``[P]``, and the training
            data ``train_x``, ``train_y`` where stored.
        images: of ``test`` and every ``ood/SET`` of images, where stored.
    """

    record: Mapping[str, Any]
    examples: Mapping[str, Floats]
    curve: Mapping[str, Floats] = field(default_factory=dict)
    images: Mapping[str, Images] = field(default_factory=dict)


def evidence(predictions: Mapping[str, NDArray[Any]], record: Mapping[str, Any]) -> Evidence:
    """Reduce stored predictions; what a job did not store is left out."""
    job = JobPredictions(predictions, record)
    if job.kind == "classification":
        return Evidence(record, _class_examples(job), images=_images(job))
    return Evidence(record, _value_examples(job), _curve(predictions))


def _class_examples(job: JobPredictions) -> dict[str, Floats]:
    found: dict[str, Floats] = {}
    if "test/log_probs" in job.predictions and job.predictions["test/log_probs"].shape[1]:
        sizes = sorted({*CURVE_SIZES, *GROUP_SIZES})
        summary, y = summarise(job.predictions["test/log_probs"], sizes), job.labels_of("test")
        found["y"] = y.astype(np.float64)
        found["correct"] = (summary.log_mean.argmax(axis=-1) == y).astype(np.float64)
        for k, labels in summary.group_labels.items():
            found[f"correct@{k}"] = (labels == y).mean(axis=0)
        found["nll"] = -classification.example_log_likelihood(summary.log_mean, y)
        found["brier"] = classification.example_brier(summary.probs, y)
        found["confidence"] = summary.probs.max(axis=-1)
        found |= _scores(summary.entropy, summary.mutual_information, summary.log_mean, "")
        temperature = metric_value(job.record, "temperature")
        if temperature:
            scaled = calibration.scale(summary.log_mean, temperature)
            found["nll_scaled"] = -classification.example_log_likelihood(scaled, y)
            found["confidence_scaled"] = np.exp(scaled.max(axis=-1))
    for name in job.sets("ood"):
        stored = job.predictions.get(f"ood/{name}/log_probs")
        if stored is not None and stored.shape[1]:
            outside = summarise(stored, ())
            found |= _scores(outside.entropy, outside.mutual_information, outside.log_mean, f"/{name}")
    return found


def _scores(entropy: Floats, information: Floats, log_mean: Floats, suffix: str) -> dict[str, Floats]:
    doubt = -np.exp(log_mean.max(axis=-1))
    return {f"entropy{suffix}": entropy, f"information{suffix}": information, f"doubt{suffix}": doubt}


def _images(job: JobPredictions) -> dict[str, Images]:
    stored, found = job.predictions, {}
    for name in ("test", *(f"ood/{ood}" for ood in job.sets("ood"))):
        if f"{name}/images" in stored and f"{name}/log_probs" in stored:
            index = np.asarray(stored[f"{name}/image_index"])
            summary = summarise(stored[f"{name}/log_probs"][:, index], ())
            truth = job.labels_of(name)[index] if f"{name}/y" in stored else None
            found[name] = Images(
                stored[f"{name}/images"], index, summary.log_mean.argmax(axis=-1), summary.entropy, truth
            )
    return found


def _value_examples(job: JobPredictions) -> dict[str, Floats]:
    if "test/mean" not in job.predictions or not job.predictions["test/mean"].shape[1]:
        return {}
    values = job.values_of("test")
    error = ((values.mean.mean(axis=0) - values.y) ** 2).mean(axis=-1)
    found = {"squared_error": error}
    found["crps"] = regression.example_crps(values.mean, values.noise_std, values.y).mean(axis=-1)
    if (values.noise_std > 0).all():
        found["nll"] = regression.example_nll(values.mean, values.noise_std, values.y)
    return found


def _curve(predictions: Mapping[str, NDArray[Any]]) -> dict[str, Floats]:
    """The curve of the first target dimension."""
    if "curve/mean" not in predictions or "curve/x" not in predictions:
        return {}
    mean = np.asarray(predictions["curve/mean"], dtype=np.float64)[..., 0]
    found = {
        "x": np.asarray(predictions["curve/x"], dtype=np.float64).reshape(-1),
        "mean": mean.mean(axis=0),
        "epistemic_std": mean.std(axis=0),
    }
    if "curve/noise_std" in predictions:
        noise = np.asarray(predictions["curve/noise_std"], dtype=np.float64)[..., 0]
        found["noise_std"] = np.sqrt((np.broadcast_to(noise, mean.shape) ** 2).mean(axis=0))
    if {"train/x", "train/y"} <= predictions.keys():
        found["train_x"] = np.asarray(predictions["train/x"], dtype=np.float64).reshape(-1)
        found["train_y"] = np.asarray(predictions["train/y"], dtype=np.float64).reshape(len(found["train_x"]), -1)[:, 0]
    return found


def metric_value(record: Mapping[str, Any], name: str) -> float | None:
    """The value of one metric of a record; None where it is not applicable or was not measured."""
    for row in record.get("metrics") or ():
        if row["name"] == name:
            return None if row["value"] is None else float(row["value"])
    return None


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
class Difference:
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
) -> Difference:
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
) -> Difference:
    left, right = first[1].per_seed(), second[1].per_seed()
    value = float(left.mean() - right.mean())
    # Variances and their degrees of freedom.
    parts = [(float(drawn.var()), min(first[1].populations, default=2) - 1)]
    over_seeds = [values for values in ((left - right,) if paired else (left, right)) if len(values) > 1]
    parts += [(float(values.var(ddof=1)) / len(values), len(values) - 1) for values in over_seeds]
    variance = sum(part for part, _ in parts)
    half = 0.0 if variance == 0 else math.inf
    if 0 < variance < math.inf:
        freedom = 1 / sum((part / variance) ** 2 / max(1, own) for part, own in parts)
        half = _quantile(level, methods, freedom) * math.sqrt(variance)
    return Difference(metric, first[0], second[0], value, value - half, value + half, min(len(left), len(right)), level)


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
    differences: Mapping[str, Difference] = field(default_factory=dict)
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
) -> Difference:
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
