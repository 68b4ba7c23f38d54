"""One number of every committed result, computed anew: does this version still give what the tables say?

Opt-in: ``pytest -m slow tests/project/test_reference_results.py``. The cheapest job of each folder is run with the
folder's own command; other machines train to other last digits, so the comparison has a tolerance.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from bayes_bench.errors import DataError
from bayes_bench.results.folder import read_run
from bayes_bench.tasks.spec import TaskSpec
from bayes_bench.tasks.task import build_task
from places import ROOT

FOLDER = ROOT / "reports" / "reference"
FOLDERS = sorted(path.parent.name for path in FOLDER.glob("*/run.json"))
LONGEST = 1800
"""Seconds that the job may have taken when it was recorded."""
STANDARD_ERRORS = 3
"""Of the accuracy over the test examples: on MNIST a quarter of a point, less than what methods differ by."""
RELATIVE = {"nll": 0.25, "rmse": 0.12}
WHERE = ("--out", "--data-root", "--methods", "--seeds", "--jobs", "--executor", "--address", "--threads")
"""Options of the recorded command that are this test's own to choose."""


def cheapest(results: pd.DataFrame) -> pd.Series:
    """The row ``fit_seconds`` of the job that trained fastest, of the methods as the suite has them."""
    seconds = results[(results["metric"] == "fit_seconds") & results["value"].notna()]
    return seconds.sort_values(["value", "method"]).iloc[0]


def of_job(results: pd.DataFrame, job: pd.Series) -> dict[str, float]:
    """The metrics of one job, by name."""
    rows = results
    for name in ("suite", "task", "method", "seed"):
        rows = rows[rows[name] == job[name]]
    return dict(zip(rows["metric"], rows["value"], strict=True))


def without_options(command: list[str]) -> list[str]:
    """The arguments of a recorded ``bayes-bench run`` without those of ``WHERE``."""
    kept, skip = [], False
    for word in command:
        if not skip and word.partition("=")[0] not in WHERE:
            kept.append(word)
        skip = not skip and word in WHERE
    return kept


def test_options_are_left_out_with_their_values() -> None:
    command = ["bayes-bench", "run", "digits", "--out", "x", "--set", "map.batch_size=3", "--seeds=0-2", "--quick"]
    assert without_options(command) == ["bayes-bench", "run", "digits", "--set", "map.batch_size=3", "--quick"]


@pytest.mark.slow
@pytest.mark.timeout(4 * LONGEST)
@pytest.mark.parametrize("name", FOLDERS)
def test_the_cheapest_job_gives_the_recorded_number(name: str, tmp_path: Path) -> None:
    run = read_run(FOLDER / name)
    results = pd.read_csv(FOLDER / name / "results.csv")
    job = cheapest(results)
    if job["value"] > LONGEST:
        pytest.skip(f"its cheapest job took {job['value']:.0f} s")
    if run["machine"]["device"] != "cpu" and not torch.cuda.is_available():
        pytest.skip(f"it was run on {run['machine']['device']}")
    specs = [spec for suite in run["suites"] for spec in suite["tasks"] if suite["name"] == job["suite"]]
    try:
        examples = {spec["name"]: len(build_task(TaskSpec.model_validate(spec)).test.x) for spec in specs}
    except DataError as error:
        pytest.skip(str(error))
    arguments = without_options(run["command"])[1:]
    own = ["--methods", job["method"], "--seeds", str(job["seed"]), "--threads", "1", "--out", str(tmp_path / "run")]
    subprocess.run([sys.executable, "-m", "bayes_bench", *arguments, *own], check=True, timeout=4 * LONGEST)
    recorded, found = of_job(results, job), of_job(pd.read_csv(tmp_path / "run" / "results.csv"), job)
    for metric, share in RELATIVE.items():
        if metric in recorded:
            assert found[metric] == pytest.approx(recorded[metric], rel=share)
    if accuracy := recorded.get("accuracy"):
        number = next(n for name, n in examples.items() if job["task"].startswith(name))
        standard_error = (accuracy * (1 - accuracy) / number) ** 0.5
        assert found["accuracy"] == pytest.approx(accuracy, abs=STANDARD_ERRORS * standard_error)
