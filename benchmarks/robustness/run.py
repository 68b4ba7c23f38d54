"""How much a run survives: kills, damaged files, bad input, parallel jobs, many jobs.

    python benchmarks/robustness/run.py --out reports/reference/robustness

Writes ``table.csv`` and ``table.md``; ends with 1 where a promise is broken. Linux only, about 45 minutes on two cores.
"""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "helpers"))

import damage
import inputs
import kills
import parallel

GROWTH = 1.05
"""Most that memory may grow between the second quarter of a long run and its last."""


@dataclass(frozen=True)
class Row:
    """A line of the table; ``kept`` is whether the promise was."""

    what: str
    tried: int
    result: str
    kept: bool


def kill_rows(folder: Path, wanted: int, seed: int) -> list[Row]:
    return [
        Row(
            f"kills: {result.case}",
            result.kills,
            f"{result.lost} jobs lost, {result.different} of {result.rows} numbers different, "
            f"{result.went_on} times from a snapshot",
            result.passed,
        )
        for result in kills.run(folder, wanted, seed)
    ]


def damage_rows(folder: Path, wanted: int, seed: int) -> list[Row]:
    return [
        Row(f"damaged {result.file}", result.tried, f"{result.noticed} noticed", result.noticed == result.tried)
        for result in damage.measure(folder, seed)
    ]


def input_rows(folder: Path, wanted: int, seed: int) -> list[Row]:
    return [
        Row(f"bad input: {result.kind}", result.tried, f"{result.refused} refused in one sentence", result.passed)
        for result in inputs.measure(folder, seed)
    ]


def parallel_rows(folder: Path, wanted: int, seed: int) -> list[Row]:
    return [
        Row(f"{jobs} worker processes", 8, "as in one process" if same else "other results", same)
        for jobs, same in parallel.same_as_serial(folder).items()
    ]


def soak_rows(folder: Path, wanted: int, seed: int) -> list[Row]:
    found = parallel.soak(folder / "soak")
    grown = [f"{before:.0f} → {after:.0f} MB" for before, after in (found.worker_mb, found.driver_mb)]
    kept = (
        found.finished == found.jobs
        and found.processes == found.leftovers == 0
        and found.driver_files[1] <= found.driver_files[0]
        and all(after <= GROWTH * before for before, after in (found.worker_mb, found.driver_mb))
    )
    result = (
        f"{found.finished} finished; a worker {grown[0]}, the driver {grown[1]}, its open files "
        f"{found.driver_files[0]:.0f} → {found.driver_files[1]:.0f}; {found.processes} processes and "
        f"{found.leftovers} files left"
    )
    return [Row(f"small jobs, {found.workers} at once", found.jobs, result, kept)]


PARTS: dict[str, Callable[[Path, int, int], list[Row]]] = {
    "damage": damage_rows,
    "inputs": input_rows,
    "parallel": parallel_rows,
    "soak": soak_rows,
    "kills": kill_rows,
}


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--only", type=click.Choice(list(PARTS)), multiple=True, help="Default: all parts.")
@click.option("--kills", "wanted", default=15, show_default=True, help="Of each kind.")
@click.option("--seed", default=0, show_default=True)
def main(out: Path, only: tuple[str, ...], wanted: int, seed: int) -> None:
    """Measure how much a run survives."""
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for name in only or PARTS:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            rows += PARTS[name](Path(folder), wanted, seed)
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    with (out / "table.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["what", "tried", "result", "kept"])
        writer.writerows([row.what, row.tried, row.result, "yes" if row.kept else "NO"] for row in rows)
    lines = ["| what | tried | result |", "| --- | --- | --- |"]
    lines += [f"| {row.what} | {row.tried:,} | {row.result if row.kept else f'**{row.result}**'} |" for row in rows]
    (out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    sys.exit(not all(row.kept for row in rows))


if __name__ == "__main__":
    main()
