"""Tables on a terminal. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from bayes_bench.cli.console import HEADLINES, SUPERSCRIPTS, TUNING_HEADLINES, duration, number, table
from bayes_bench.errors import printable
from bayes_bench.host.machine import size_in_words
from bayes_bench.jobs.job import Job
from bayes_bench.tuning.journal import plain
from bayes_bench.tuning.plan import Result

if TYPE_CHECKING:
    from bayes_bench.analysis.changes import RunChanges
    from bayes_bench.jobs.pace import Expectation
    from bayes_bench.metrics.references import Reference
    from bayes_bench.runs.rerun import ArrayMismatch, Repetition
    from bayes_bench.runs.verify import Mismatch

BEST_TRIALS = 5
MOST_CLAIMS = 12
"""Published numbers that are printed after a run; more are on the page and in published.csv."""


# Tables ---------------------------------------------------------------------------------------------------


def result_tables(records: Sequence[Mapping[str, Any]]) -> list[Table]:
    """A table per task: headline metrics, mean ± standard deviation over seeds."""
    from bayes_bench.analysis.records import results_frame, summary_frame

    if not records:
        return []
    results = results_frame(records)
    kinds = {(record["suite"], record["task"]): record.get("kind") or "classification" for record in records}
    summary = summary_frame(results)
    tables = []
    for names, group in summary.groupby(["suite", "task"], sort=False):
        suite, task = (str(name) for name in names)
        # A task that was run with several budgets has a suffix in its displayed name.
        kind = kinds.get((suite, task)) or next(k for (s, t), k in kinds.items() if s == suite and task.startswith(t))
        known = [str(name) for name in group["metric"].dropna().unique()]
        columns = [
            (name, header.replace("<set>", name.partition("/")[2]), factor, decimals)
            for pattern, header, factor, decimals in HEADLINES[kind]
            for name in known
            if name == pattern or (pattern.endswith("<set>") and name.startswith(pattern.removesuffix("<set>")))
        ]
        rows = []
        for _, entries in group.groupby(["method", "variant"], sort=False):
            cells = {str(entry["metric"]): entry for entry in entries.to_dict("records")}
            seeds = int(entries["seeds"].max())
            values = [_mean_and_std(cells.get(name), factor, decimals) for name, _, factor, decimals in columns]
            rows.append([str(entries["method"].iloc[0]), str(seeds) if seeds else "failed", *values])
        headers = ["method", "seeds", *(header for _, header, _, _ in columns)]
        title = task if task.startswith(suite) or f"({suite})" in task else f"{suite}: {task}"
        tables.append(table(headers, rows, title=title, numbers_from=1))
    return tables


def published_tables(records: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Published numbers beside ours, a table per task; none where they would fill more than a screen."""
    from bayes_bench.analysis.records import budget_share, comparison_of, display_tasks, published_frame
    from bayes_bench.report.findings import claims
    from bayes_bench.report.tables import share_in_words

    frame = published_frame(records)
    if len(frame) > MOST_CLAIMS:
        return []
    names = display_tasks(records)
    shares = {names[comparison_of(record)]: share_in_words(budget_share(record)) for record in records}
    tables = []
    for task, group in frame.groupby("task", sort=False):
        found = claims(group)
        notes = dict.fromkeys(claim.note for claim in found if claim.note)
        marks = {note: str(i).translate(SUPERSCRIPTS) for i, note in enumerate(notes, 1)}
        rows = [
            [c.method, c.metric, c.measured, c.seeds, c.published, c.difference, c.source + marks.get(c.note, "")]
            for c in found
        ]
        share = shares[str(task)]
        title = f"{task} beside published numbers (claims)" + (
            f"; ours had {share} the suite's budget" if share else ""
        )
        headers = ["method", "metric", "ours", "seeds", "published", "difference", "source"]
        made = table(headers, rows, title=title)
        made.caption = escape("\n".join(printable(f"{mark} {note}") for note, mark in marks.items()))
        tables.append(made)
    return tables


def alarm_lines(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line per collapse alarm."""
    from bayes_bench.analysis.records import alarms

    return [printable(f"ALARM {place}: {sentence}") for place, sentence in alarms(records)]


def _mean_and_std(entry: Mapping[Any, Any] | None, factor: float, decimals: int | None) -> str:
    if entry is None or math.isnan(entry["mean"]):
        return "n/a"
    mean = number(entry["mean"], factor, decimals)
    return mean if math.isnan(entry["std"]) else f"{mean} ± {number(entry['std'], factor, decimals)}"


def reference_tables(made: Reference) -> list[Table]:
    """What a reference holds, what its method says of its fit, and how far its two halves are apart."""
    holds = [[name, " × ".join(map(str, array.shape))] for name, array in sorted(made.arrays.items())]
    tables = [table(["array", "shape"], holds)]
    if diagnostics := made.diagnostics:
        rows = [[name, f"{low:.4g}", f"{high:.4g}"] for name, (low, high) in diagnostics.items()]
        tables.append(table(["diagnostic of the jobs", "lowest", "highest"], rows, numbers_from=1))
    if resolution := made.about["resolution"]:
        rows = [[name, f"{value:.4g}"] for name, value in resolution.items()]
        tables.append(table(["between two halves of its networks", ""], rows, numbers_from=1))
    return tables


def plan_table(
    jobs: Sequence[Job], waiting: Sequence[Job], run_dir: Path, expected: Mapping[tuple[str, str], Expectation]
) -> tuple[Table, str]:
    """What a run would do, and a sentence with the expected time and disk space.

    Args:
        waiting: the jobs that are not finished.
        expected: of a job by its task, as JSON, and its label; what is missing is unknown.
    """
    groups: dict[tuple[str, str, str], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.suite, job.task.name, job.label), []).append(job)
    rows = []
    for (suite, task, label), members in groups.items():
        ahead = sum(job in waiting for job in members)
        one = _expected(members[0], expected)
        time_, size = (
            duration(one.seconds if one else None),
            size_in_words(one.bytes) if one and one.bytes is not None else "unknown",
        )
        rows.append(
            [
                *(suite, task, label, ",".join(str(job.seed) for job in members), f"{members[0].budget:,}"),
                *((time_, size) if ahead else ("", "")),
                f"{len(members) - ahead} of {len(members)}",
            ]
        )
    headers = ["suite", "task", "method", "seeds", "budget", "time per job", "disk per job", "finished"]
    each = [_expected(job, expected) for job in waiting]
    known = [one for one in each if one is not None]
    seconds = [one.seconds for one in known if one.seconds is not None]
    sizes = [one.bytes for one in known if one.bytes is not None]
    sentence = f"{len(waiting)} of {len(jobs)} jobs to run into {run_dir}"
    if waiting and known:  # nothing is tried here of jobs that run on a cluster
        total = sum(seconds) if len(seconds) == len(each) else None
        disk = size_in_words(sum(sizes)) if len(sizes) == len(each) else "unknown"
        sentence += f"; one after the other, by a few steps of each on this machine: {duration(total)}; disk: {disk}"
    return table(headers, rows, numbers_from=4), sentence


def _expected(job: Job, expected: Mapping[tuple[str, str], Expectation]) -> Expectation | None:
    return expected.get((job.task.model_dump_json(), job.label))


# Looking again --------------------------------------------------------------------------------------------


def differences_table(differences: Sequence[Mismatch], title: str = "") -> Table:
    """What is not as it was recorded, a row each."""
    rows = [[one.where, one.kind, one.what, one.recorded, one.found] for one in differences]
    return table(["where", "kind", "what", "in the record", "now"], rows, title=title)


def arrays_table(arrays: Sequence[ArrayMismatch]) -> Table:
    """By how much stored arrays differ, a row each."""
    rows = [
        [one.name, one.problem or f"{one.differing:,} of {one.size:,}", "" if one.problem else f"{one.largest:.3g}"]
        for one in arrays
    ]
    return table(["array", "values that differ", "at most by"], rows, numbers_from=1)


def changes_tables(found: RunChanges, before: str, after: str) -> list[Table]:
    """Metrics of two runs side by side, a table per task; ``before`` and ``after`` name the runs."""
    from bayes_bench.report.tables import signed

    looks = {name: (header, factor, decimals) for kind in HEADLINES.values() for name, header, factor, decimals in kind}
    tables = []
    for task in dict.fromkeys(change.task for change in found.changes):
        rows = []
        for change in (change for change in found.changes if change.task == task):
            stem, slash, ood = change.metric.partition("/")
            look = looks.get(change.metric) or looks.get(f"{stem}/<set>") or (change.metric, 1, None)
            header, factor, decimals = look[0].replace("<set>", ood) if slash else look[0], look[1], look[2]
            printed = [number(value, factor, decimals) for value in (change.before, change.after)]
            gap, low, high = (
                signed(factor * value, 4 if decimals is None else decimals + 1)
                for value in (change.after - change.before, change.low, change.high)
            )
            seeds = f"{change.seeds_before}, {change.seeds_after}"
            rows.append([change.method, header, *printed, gap, f"[{low}, {high}]", seeds, change.verdict])
        headers = ["method", "metric", before, after, "difference", "95 % interval", "seeds", ""]
        tables.append(table(headers, rows, title=task))
    return tables


def setup_table(found: RunChanges, before: str, after: str) -> Table:
    """What two runs were set up with differently."""
    return table(["where", "what", before, after], [list(row) for row in found.differing], title="Set up differently")


def repetition(found: Repetition) -> str:
    """How a repeated job compares, in a sentence."""
    record = found.record
    if record["status"] != "ok":
        how = "it fails in the same way" if found.same else "it fails"
        return f"{how}: {record['error']}"
    if found.same:
        return "the same, bit for bit"
    return f"not the same: {len(found.arrays)} arrays and {len(found.differences)} other values differ"


# Tuning ---------------------------------------------------------------------------------------------------


def tuning_table(result: Result) -> Table:
    """The best trials by the rule, and the current settings wherever they rank."""
    ranked = result.rule.ranked(result.trials)
    shown = ranked[:BEST_TRIALS] + [trial for trial in ranked[BEST_TRIALS:] if trial.number == 0]
    columns = [column for column in TUNING_HEADLINES if shown and column[0] in shown[0].scores]
    rows = [
        [
            "current" if trial.number == 0 else str(trial.number),
            *(number(trial.scores[name], factor, decimals) for name, _, factor, decimals in columns),
            ", ".join(f"{name}={plain(value)}" for name, value in trial.settings.items()),
        ]
        for trial in shown
    ]
    failed = len(result.trials) - len(ranked)
    title = f"{len(result.trials)} trials" + (f", {failed} failed" if failed else "") + f"; {result.rule}"
    headers = ["trial", *(header for _, header, _, _ in columns), "settings"]
    return table(headers, rows, title=title)
