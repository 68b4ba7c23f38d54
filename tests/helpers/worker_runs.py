"""Runs with workers of any kind, and what the tests look at in them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from bayes_bench.jobs.job import Conditions, Job
from bayes_bench.jobs.plan import plan
from bayes_bench.results.folder import read_records
from bayes_bench.runs.executors.base import Workers
from bayes_bench.runs.observer import Observer
from bayes_bench.runs.run import RunResult, run
from tiny_suites import CURVE, suite

MEASURED = {"started", "finished", "fit", "cost", "metrics", "files", "checksum"}
"""Parts of a record with times, memory and hashes of them."""


class Seen(Observer):
    def __init__(self) -> None:
        self.messages: list[str] = []
        self.started_jobs: list[str] = []
        self.numbers: list[int] = []
        self.values: list[float] = []

    def message(self, sentence: str) -> None:
        self.messages.append(sentence)

    def started(self, job: Job, number: int, total: int, seconds_left: float | None) -> None:
        self.started_jobs.append(job.label)

    def progress(self, job: Job, fraction: float, values: Any, seconds_left: float | None) -> None:
        self.values.append(values["loss"])

    def finished(self, job: Job, number: int, total: int, record: Any, *rest: Any) -> None:
        self.numbers.append(number)


def rogue_entry(folder: Path, label: str, trouble: str = "") -> dict[str, Any]:
    """A suite's entry of a rogue method, which leaves its mark in ``folder``."""
    settings = {"trouble": trouble, "mark": str(folder / f"{label}.mark")}
    return {"label": label, "method": "rogue", "settings": settings}


def go(
    methods: list[Any],
    run_dir: Path,
    budget: int = 100,
    snapshot_every: float = 60,
    seen: Seen | None = None,
    **workers: Any,
) -> tuple[RunResult, dict[str, dict[str, Any]], Seen]:
    """A run of a tiny regression with one seed: how it ended, records by label, and what was said."""
    seen = seen or Seen()
    jobs = plan([suite(CURVE | {"budget": budget}, methods=methods, seeds=[0])])
    result = run(
        jobs,
        run_dir,
        conditions=Conditions("cpu", threads=1, snapshot_every=snapshot_every),
        observer=seen,
        workers=Workers(**workers),
    )
    records, problems = read_records(run_dir)
    assert problems == []
    return result, {record["label"]: record for _, record in records}, seen


def log_of(run_dir: Path, label: str) -> str:
    (path,) = (run_dir / "jobs/curve" / label).glob("*/log.txt")
    return path.read_text(encoding="utf-8")


def without_measurements(run_dir: Path) -> dict[str, Any]:
    """Everything that a run has computed: records without times, and hashes of the stored arrays."""
    found = {}
    for folder, record in read_records(run_dir)[0]:
        kept = {name: value for name, value in record.items() if name not in MEASURED}
        kept["history"] = record["fit"]["history"]
        kept["values"] = [row for row in record["metrics"] if row["group"] != "cost"]
        kept["hashes"] = {name: facts for name, facts in record["files"].items() if name != "log.txt"}
        found[folder.relative_to(run_dir).as_posix()] = json.loads(json.dumps(kept))
    return found


def number_in(mark: Path) -> int:
    """The process that has left the mark, which is waited for."""
    return int(until(lambda: mark.is_file() and mark.read_text()))


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def alive(number: int) -> bool:
    with suppress(OSError, IndexError):
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
