"""From a run folder to ``results.csv``, ``summary.csv`` and ``report.html``. Imports no torch.

Everything shown comes from the stored records and predictions: the same folder gives the same files, at any
time, on any machine, finished or not.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from bayes_bench import store
from bayes_bench.analysis import Run, load_run, results_frame, summary_frame, wide_frame

RESULTS = "results.csv"
SUMMARY = "summary.csv"
REPORT = "report.html"


def write(run_dir: Path | str) -> Path:
    """Write the tables and the page of a run folder, each atomically; returns the path of the page.

    Raises:
        UsageError: not a run folder.
        DataError: ``run.json`` is damaged. Damaged jobs are mentioned on the page.
    """
    from bayes_bench.report.page import open_book, render

    run = load_run(run_dir)
    # Everything is made before anything is written: a failure leaves the old files as they were.
    texts = {**csv_tables(run), REPORT: render(open_book(run))}
    for name, text in texts.items():
        store.write_text(run.folder / name, text)
    return run.folder / REPORT


def csv_tables(run: Run) -> dict[str, str]:
    """The content of ``results.csv`` and ``summary.csv``, by name."""
    results = results_frame(run.records)
    return {RESULTS: csv(results), SUMMARY: csv(wide_frame(summary_frame(results)))}


def csv(frame: pd.DataFrame) -> str:
    """CSV with full precision; a text that a spreadsheet would take for a formula gets an apostrophe before it."""

    def guard(value: object) -> object:
        return store.spreadsheet_safe(" ".join(value.split("\n"))) if isinstance(value, str) else value

    return str(frame.map(guard).rename(columns=guard).to_csv(index=False, lineterminator="\n"))
