"""From a run folder to its tables (``results.csv`` and others) and ``report.html``. Imports no torch.

Everything shown comes from the stored records and predictions: the same folder gives the same files, at any
time, on any machine, finished or not.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from bayes_bench.analysis.records import (
    Run,
    history_frame,
    load_run,
    published_frame,
    results_frame,
    summary_frame,
    wide_frame,
)
from bayes_bench.host.files import make_folder, spreadsheet_safe, write_text

RESULTS = "results.csv"
SUMMARY = "summary.csv"
PUBLISHED = "published.csv"
HISTORY = "history.csv"
REPORT = "report.html"


def write(run: Run | Path | str, folder: Path | None = None) -> Path:
    """Write the tables and the page of a run, each atomically; returns the path of the page.

    Args:
        run: a run folder, or what was read of one or several.
        folder: where to; default: the run folder itself.

    Raises:
        UsageError: not a run folder.
        DataError: ``run.json`` is damaged. Damaged jobs are mentioned on the page.
        StorageError: a file cannot be written.
    """
    from bayes_bench.report.page import open_book, render

    run = run if isinstance(run, Run) else load_run(run)
    # Everything is made before anything is written: a failure leaves the old files as they were.
    texts = {**csv_tables(run), REPORT: render(open_book(run))}
    folder = folder or run.folder
    make_folder(folder)
    for name, text in texts.items():
        write_text(folder / name, text)
    return folder / REPORT


def csv_tables(run: Run) -> dict[str, str]:
    """The content of ``results.csv`` and the other tables, by name."""
    results = results_frame(run.records)
    return {
        RESULTS: csv(results),
        SUMMARY: csv(wide_frame(summary_frame(results))),
        PUBLISHED: csv(published_frame(run.records)),
        # What is drawn, not what is compared: fewer digits keep a file of many validations small.
        HISTORY: csv(history_frame(run.records), "%.8g"),
    }


def csv(frame: pd.DataFrame, float_format: str | None = None) -> str:
    """CSV with full precision; a text that a spreadsheet would take for a formula gets an apostrophe before it."""

    def guard(value: object) -> object:
        return spreadsheet_safe(" ".join(value.split("\n"))) if isinstance(value, str) else value

    return str(
        frame.map(guard).rename(columns=guard).to_csv(index=False, float_format=float_format, lineterminator="\n")
    )
