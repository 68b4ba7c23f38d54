"""Parallel jobs: do the results depend on how many run at once, and does a long run of many leak anything?"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayes_bench.metrics import CATALOGUE
from bayes_bench.results.folder import POSTERIOR, PREDICTIONS, read_records

COMMAND = (sys.executable, "-m", "bayes_bench")
COST = {metric.name for metric in CATALOGUE if metric.group == "cost"}
STARTED_MB = 100
"""Resident memory of a process that has begun to import PyTorch."""
VARYING = {"started", "finished", "cost", "files", "machine"}


def stable(record: Mapping[str, Any]) -> str:
    """A record as text, without what the clock and the memory meter say."""
    kept = {key: value for key, value in record.items() if key not in VARYING}
    kept["metrics"] = [row for row in record["metrics"] if row["name"] not in COST]
    kept["fit"] = {key: value for key, value in record["fit"].items() if key != "seconds"}
    kept["predictions"] = record["files"][PREDICTIONS]["sha256"]
    kept["posterior"] = record["files"][POSTERIOR]["sha256"]
    return json.dumps(kept, sort_keys=True)


def same_as_serial(folder: Path) -> dict[int, bool]:
    """For 1, 2, 3 and 4 worker processes: are records, predictions and posteriors those of a run without any?"""

    def results(jobs: int) -> list[str]:
        out = folder / f"jobs-{jobs}"
        parallel = [f"--jobs={jobs}"] if jobs else []
        arguments = ["cubic", "--methods=map,ensemble,mcdropout,sgld", "--seeds=0-1", "--budget-scale=0.1", "--quiet"]
        subprocess.run([*COMMAND, "run", *arguments, "--threads=1", *parallel, f"--out={out}"], check=True)
        return [stable(record) for _, record in read_records(out)[0]]

    serial = results(0)
    return {jobs: results(jobs) == serial for jobs in (1, 2, 3, 4)}


@dataclass(frozen=True)
class Soak:
    """What a run of many small jobs left behind, and how it grew.

    Attributes:
        worker_mb: median resident memory of a worker in the second quarter of the run and in the last, MB.
        driver_mb: the same of the process that gives out the jobs.
        driver_files: open files of that process, in these quarters.
        processes: of the run that are there after its end.
        leftovers: temporary files and snapshots in the run folder.
    """

    jobs: int
    finished: int
    workers: int
    worker_mb: tuple[float, float]
    driver_mb: tuple[float, float]
    driver_files: tuple[float, float]
    processes: int
    leftovers: int


def soak(folder: Path, jobs: int = 200, workers: int = 4) -> Soak:
    """``jobs`` tiny jobs, ``workers`` at once. Linux only: it reads /proc."""
    arguments = ["cubic", "--methods=map", f"--seeds=0-{jobs - 1}", "--budget-scale=0.01", "--threads=1", "--quiet"]
    process = subprocess.Popen([*COMMAND, "run", *arguments, f"--jobs={workers}", f"--out={folder}"])
    samples: list[tuple[float, float, int]] = []
    seen: set[int] = set()
    while process.poll() is None:
        below = _descendants(process.pid)
        seen |= below
        sizes = sorted(size for pid in below if (size := _resident(pid)) > 0)[-workers:]
        # Only while all of them work: at the start they import, at the end the page is made without them.
        if len(sizes) < workers or min(sizes) < STARTED_MB:
            time.sleep(0.5)
            continue
        with contextlib.suppress(OSError):
            files = len(os.listdir(f"/proc/{process.pid}/fd"))  # noqa: PTH208 - a name for each, nothing of a path
            samples.append((statistics.median(sizes), _resident(process.pid), files))
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"the run fails with {process.returncode}")
    time.sleep(2)
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]

    def grown(index: int) -> tuple[float, float]:
        return statistics.median(s[index] for s in early), statistics.median(s[index] for s in late)

    records = read_records(folder)[0]
    return Soak(
        jobs=jobs,
        finished=sum(record["status"] == "ok" for _, record in records),
        workers=workers,
        worker_mb=grown(0),
        driver_mb=grown(1),
        driver_files=grown(2),
        processes=sum(Path(f"/proc/{pid}").exists() for pid in seen),
        leftovers=len([*folder.rglob("*.tmp"), *folder.rglob("*.snapshot")]),
    )


def _descendants(pid: int) -> set[int]:
    found: set[int] = set()
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found |= {int(child)} | _descendants(int(child))
    return found


def _resident(pid: int) -> float:
    """Resident memory in MB (2**20 bytes), 0 for a process that has ended."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]) / 2**10
    return 0.0
