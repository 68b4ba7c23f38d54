"""Runs that are killed at random moments, over and over, until they are finished: are the results the same?"""

from __future__ import annotations

import csv
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bayes_bench.metrics import CATALOGUE

COMMAND = (sys.executable, "-m", "bayes_bench")
SETTINGS = {
    "hypergan": {"pretrain_steps": 50},
    "sgld": {"samples": 40, "chains": 4},
    "apd": {"samples": 40, "chains": 4, "student_steps": 60},
    "hmc": {"samples": 40, "chains": 4},
}
MEASURED_BY_THE_CLOCK = {metric.name for metric in CATALOGUE if metric.group == "cost"}


@dataclass(frozen=True)
class Case:
    """A run that is killed again and again.

    Attributes:
        arguments: of ``bayes-bench run``.
        sent: the signal; SIGINT is Ctrl-C.
    """

    name: str
    arguments: tuple[str, ...]
    sent: signal.Signals


@dataclass(frozen=True)
class Result:
    """What came of a case.

    Attributes:
        kills: processes that were killed before they had finished.
        lost: rows of the uninterrupted results that are missing.
        different: rows with another value, of those that no clock measures.
        went_on: jobs that went on from a snapshot.
    """

    case: str
    kills: int
    rows: int
    lost: int
    different: int
    went_on: int

    @property
    def passed(self) -> bool:
        return self.lost == self.different == 0


def cases(jobs: Sequence[int] = (0, 2)) -> list[Case]:
    """The kinds of killing: with and without worker processes, SIGKILL and Ctrl-C."""
    settings = [f"--set={method}.{key}={value}" for method, of in SETTINGS.items() for key, value in of.items()]
    common = ("cubic", "--methods=hypergan,map,ensemble,mcdropout,mnf,sgld,apd,hmc", "--seeds=0", "--threads=1")
    found = []
    for sent in (signal.SIGKILL, signal.SIGINT):
        for workers in jobs:
            parallel = (f"--jobs={workers}",) if workers else ()
            name = f"{sent.name}, {f'{workers} workers' if workers else 'in one process'}"
            found.append(Case(name, (*common, *settings, "--budget-scale=0.5", *parallel), sent))
    return found


def reference(case: Case, folder: Path) -> list[dict[str, str]]:
    """The rows of results.csv of a run that nobody kills."""
    done = subprocess.run([*COMMAND, "run", *case.arguments, "--quiet", f"--out={folder}"], check=False)
    if done.returncode:
        raise SystemExit(f"the run that is to be repeated fails with {done.returncode}")
    return rows(folder)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["metric"].partition("/")[0] not in MEASURED_BY_THE_CLOCK]


def kill(case: Case, folder: Path, expected: list[dict[str, str]], wanted: int, chance: random.Random) -> Result:
    """Start the command until it ends by itself after at least ``wanted`` kills; from the start again if need be."""
    kills = went_on = lost = different = 0
    while kills < wanted:
        shutil.rmtree(folder, ignore_errors=True)
        while True:
            with (folder.parent / "stderr.txt").open("w", encoding="utf-8") as errors:
                process = subprocess.Popen(
                    [*COMMAND, "run", *case.arguments, "--snapshot-every=0.05", f"--out={folder}"],
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                )
                try:
                    code = process.wait(chance.choice([chance.uniform(0.5, 6.0), chance.uniform(6.0, 25.0)]))
                except subprocess.TimeoutExpired:
                    process.send_signal(case.sent)
                    code = process.wait(120)
                    kills += 1
            went_on += (folder.parent / "stderr.txt").read_text(encoding="utf-8").count("goes on from a snapshot")
            if code == 0:
                break
            if code not in (-signal.SIGKILL, -signal.SIGINT, 130):
                raise SystemExit((folder.parent / "stderr.txt").read_text(encoding="utf-8"))
        found = {tuple(row.values()) for row in rows(folder)}
        places = {tuple(v for k, v in row.items() if k not in ("value", "reason")) for row in rows(folder)}
        for row in expected:
            here = tuple(v for k, v in row.items() if k not in ("value", "reason")) in places
            lost += not here
            different += here and tuple(row.values()) not in found
    return Result(case.name, kills, len(expected), lost, different, went_on)


def run(folder: Path, wanted: int, seed: int) -> list[Result]:
    """All cases, ``wanted`` kills of each."""
    chance = random.Random(seed)
    results = []
    expected: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for case in cases():
        plain = tuple(a for a in case.arguments if not a.startswith("--jobs"))
        if plain not in expected:
            expected[plain] = reference(Case("", plain, case.sent), folder / "uninterrupted")
        started = time.perf_counter()
        result = kill(case, folder / "killed", expected[plain], wanted, chance)
        print(result, f"{time.perf_counter() - started:.0f} s", flush=True)
        results.append(result)
    return results
