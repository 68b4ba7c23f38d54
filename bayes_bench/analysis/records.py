"""A run folder read back, and frames of its records. Imports no torch."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayes_bench import metrics
from bayes_bench.results.folder import job_folder, load_predictions, read_records, read_run
from bayes_bench.results.schema import canonical_hash
from bayes_bench.tasks.spec import CHANGES_NO_RESULT

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
    spec = {k: v for k, v in (record.get("task_spec") or {}).items() if k not in CHANGES_NO_RESULT and v is not None}
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


def metric_value(record: Mapping[str, Any], name: str) -> float | None:
    """The value of one metric of a record; None where it is not applicable or was not measured."""
    for row in record.get("metrics") or ():
        if row["name"] == name:
            return None if row["value"] is None else float(row["value"])
    return None
