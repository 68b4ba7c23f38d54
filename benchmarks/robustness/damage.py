"""Damaged files: is every changed byte of what a run keeps noticed?"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from bayes_bench.errors import DataError
from bayes_bench.jobs.job import Conditions
from bayes_bench.jobs.plan import plan
from bayes_bench.posterior.snapshots import Snapshots
from bayes_bench.results.folder import JOB_FILES, RECORD, RUN, job_state, read_records, read_run
from bayes_bench.runs.run import run
from bayes_bench.tasks.suites import load_suite

SAMPLED = 200
"""Bytes of a large file that are tried."""


@dataclass(frozen=True)
class Result:
    """How many damaged versions of a file were tried, and how many were noticed."""

    file: str
    tried: int
    noticed: int


def finished_job(folder: Path) -> tuple[Path, str]:
    """A small finished job: its folder and key."""
    (job,) = plan([load_suite("cubic")], methods=["map"], seeds=[0], budget_scale=0.01)
    run([job], folder, conditions=Conditions("cpu", threads=1))
    ((found, record),) = read_records(folder)[0]
    return found, record["key"]


def versions(content: bytes, chance: random.Random) -> Iterator[bytes]:
    """Every byte changed once (of large files some), in one bit or to any other value; and shorter and longer ones."""
    positions = range(len(content))
    for position in positions if len(content) < 50_000 else chance.sample(positions, SAMPLED):
        for value in (
            content[position] ^ 1 << chance.randrange(8),
            (content[position] + chance.randrange(1, 256)) % 256,
        ):
            yield content[:position] + bytes([value]) + content[position + 1 :]
    for _ in range(20):
        yield content[: chance.randrange(len(content))]
    yield content + b"\n"
    yield b""


def try_file(path: Path, noticed: Callable[[], bool], chance: random.Random) -> Result:
    content = path.read_bytes()
    assert not noticed(), f"{path} is taken for damaged as it is"
    outcomes = []
    for damaged in versions(content, chance):
        path.write_bytes(damaged)
        outcomes.append(noticed())
    path.write_bytes(content)
    return Result(path.name, len(outcomes), sum(outcomes))


def measure(folder: Path, seed: int) -> list[Result]:
    """Record, log, predictions and posterior of a job, the run's description, and a snapshot."""
    chance = random.Random(seed)
    job, key = finished_job(folder / "run")

    def damaged_job() -> bool:
        return job_state(job, key).kind == "damaged"

    def damaged_run() -> bool:
        try:
            read_run(folder / "run")
        except DataError:
            return True
        return False

    results = [try_file(job / name, damaged_job, chance) for name in (RECORD, *JOB_FILES)]
    results.append(try_file(folder / "run" / RUN, damaged_run, chance))
    snapshots = Snapshots(folder / "snapshots", {"job": key})
    weights = {"weight": torch.randn(8, 3), "step": torch.tensor(3.0)}
    snapshots.save(1, {"state": weights, "spent": 10.5, "history": [{"evaluations": 5.0}]})
    results.append(try_file(folder / "snapshots" / "part-1.snapshot", lambda: snapshots.load(1) is None, chance))
    return results
