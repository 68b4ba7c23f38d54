"""The console, and how numbers, durations and tables are written on it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bayes_bench.errors import printable

PIPE_WIDTH = 160
"""Columns of tables that do not go to a terminal, where nothing is gained by folding them."""
# Metric, header, factor, decimals (None: three significant digits). ``<set>`` stands for every reported OOD set.
HEADLINES: dict[str, tuple[tuple[str, str, float, int | None], ...]] = {
    "classification": (
        ("accuracy", "accuracy %", 100, 2),
        ("nll", "NLL", 1, 4),
        ("ece", "ECE %", 100, 2),
        ("disagreement", "disagreement %", 100, 2),
        ("ood_auroc/<set>", "AUROC <set>", 1, 4),
        ("fit_seconds", "fit s", 1, None),
    ),
    "regression": (
        ("rmse", "RMSE", 1, None),
        ("nll", "NLL", 1, 4),
        ("coverage95", "in 95 % band, %", 100, 1),
        ("epistemic_std_ratio/outside_inside", "epistemic std outside/inside", 1, None),
        ("fit_seconds", "fit s", 1, None),
    ),
}
TUNING_HEADLINES = (
    ("val_ood_auroc", "AUROC", 1, 4),
    ("val_accuracy", "accuracy %", 100, 2),
    ("val_rmse", "RMSE", 1, None),
    ("val_nll", "NLL", 1, 4),
    ("fit_seconds", "fit s", 1, None),
)
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def stdout() -> Console:
    """Tables and results."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False, emoji=False)


def duration(seconds: float | None) -> str:
    """``45 s``, ``12 min``, ``3.5 h``, or ``unknown``."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def outcome(record: Mapping[str, Any]) -> str:
    """One job's result in a few words."""
    if record["status"] != "ok":
        return f"failed: {record['error']}"
    values = {row["name"]: row["value"] for row in record.get("metrics") or ()}
    wanted = HEADLINES[record["kind"]][:2]
    shown = [
        f"{header} {number(values[name], factor, decimals)}"
        for name, header, factor, decimals in wanted
        if values.get(name) is not None
    ]
    return ", ".join([*shown, *(f"alarm: {alarm}" for alarm in record.get("alarms") or ())])


def number(value: float, factor: float, decimals: int | None) -> str:
    """A value of a table."""
    scaled = value * factor
    return f"{scaled:.3g}" if decimals is None else f"{scaled:.{decimals}f}"


def table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", numbers_from: int = 99, whole: int = 0
) -> Table:
    """A table of plain texts; columns from ``numbers_from`` on are aligned to the right, the first ``whole`` ones are
    never broken: what they hold is to be copied.
    """
    made = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    made.caption_justify = "left"
    for index, header in enumerate(headers):
        justify: Literal["left", "right"] = "right" if index >= numbers_from else "left"
        made.add_column(escape(header), justify=justify, overflow="fold", no_wrap=index < whole)
    for row in rows:
        made.add_row(*(escape(printable(cell)) for cell in row))
    return made
