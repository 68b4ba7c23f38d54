"""The memory limit of a run, and the estimate of what a job needs before it starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bayes_bench import Categorical, MemoryLimitError, UsageError, report
from bayes_bench.jobs import execute as execution
from bayes_bench.jobs import memory
from bayes_bench.jobs.job import Conditions
from bayes_bench.jobs.plan import Override, plan
from bayes_bench.posterior.stacked import network
from bayes_bench.results.folder import read_records
from bayes_bench.runs.observer import Observer
from bayes_bench.runs.run import run
from bayes_bench.tasks.task import build_task
from tiny_suites import CURVE, DIGITS, find_finished, register_fakes, suite


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    register_fakes(monkeypatch)
    monkeypatch.setattr(report, "write", lambda run_dir: Path(run_dir) / "report.html")


class Told(Observer):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, sentence: str) -> None:
        self.messages.append(sentence)


def records(run_dir: Path) -> list[dict[str, Any]]:
    return [record for _, record in read_records(run_dir)[0]]


# The limit ------------------------------------------------------------------------------------------------


def test_the_limit_reaches_every_evaluation_of_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = set()
    choose = network.choose_blocks

    def seen(*arguments: Any, memory_limit: int, **options: Any) -> Any:
        limits.add(memory_limit)
        return choose(*arguments, memory_limit=memory_limit, **options)

    monkeypatch.setattr(network, "choose_blocks", seen)
    jobs = plan([suite(DIGITS, methods=["ensemble"], seeds=[0])], overrides=[Override("ensemble", "members", 2)])
    run(jobs, tmp_path / "run", conditions=Conditions("cpu", threads=1, memory_limit_mb=3))
    assert limits == {3 * 2**20}
    (record,) = records(tmp_path / "run")
    assert record["machine"]["memory_limit_mb"] == 3


def test_the_limit_is_part_of_the_key(tmp_path: Path) -> None:
    jobs = plan([suite(methods=["tiny"], seeds=[0])])
    assert jobs[0].key("data", "cpu", 512) == jobs[0].key("data", "cpu")
    for limit in (512, 1):
        result = run(jobs, tmp_path / "run", conditions=Conditions("cpu", threads=1, memory_limit_mb=limit))
        assert result.finished == 1
    assert len({record["variant"] for record in records(tmp_path / "run")}) == 2
    assert [find_finished(jobs[0], tmp_path / "run", "cpu", limit) for limit in (512, 1, 2)] == [True, True, False]


def test_a_limit_changes_nothing_but_rounding() -> None:
    task = build_task(suite(DIGITS).tasks[0])
    (job,) = plan([suite(DIGITS, methods=["tiny"], seeds=[0])])
    outputs = []
    for limit in (512, 1):
        posterior, _, weights = execution.fit_and_draw(job, task, torch.device("cpu"), memory_limit_mb=limit)
        posterior.memory_limit = limit * 4096  # far below what one example of all networks takes
        outputs.append(posterior.outputs(task.test.x[:50], weights).numpy())
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-4, atol=1e-4)


def test_a_limit_without_any_memory_is_refused() -> None:
    posterior = execution.registry.method_class("tiny")(nn.Linear(2, 2), Categorical(2))
    with pytest.raises(UsageError, match="a memory limit of 0 bytes"):
        posterior.memory_limit = 0


# The estimate ---------------------------------------------------------------------------------------------


def estimated(method: str, device: str = "cpu", **task: Any) -> memory.Estimate:
    (job,) = plan([suite(DIGITS | task, methods=[method], seeds=[0])])
    return memory.estimate(execution.build_posterior(job, made := build_task(job.task)), made, job.budget, 100, device)


def test_sizes_are_those_of_the_task_and_the_draw() -> None:
    parts = {part.what: part.bytes for part in estimated("tiny").main}
    task = build_task(suite(DIGITS).tasks[0])
    inputs = sum(map(len, (task.test, task.fit_data.validation, *task.ood.values())))  # type: ignore[arg-type]
    stored = 100 * inputs * 10 * 2 + 3 * 8 * 100**2
    assert parts[f"predictions of 100 networks for {inputs:,} inputs, 3 times"] == 3 * stored
    pixels = (inputs + len(task.fit_data.train)) * 64 * 4
    assert pixels <= parts["data"] <= pixels + 8 * (inputs + len(task.fit_data.train))


def test_a_method_whose_networks_share_weights_needs_less() -> None:
    wide = {"network": {"name": "mlp", "hidden": [2000, 2000]}}
    full, shared = estimated("tiny", **wide).main_bytes, estimated("mcdropout", **wide).main_bytes
    parameters = 64 * 2000 + 2000 * 2000
    assert full > 100 * 4 * parameters
    assert 100 * 4 * 2000 * 2000 < shared < full


def test_what_lies_on_a_gpu_is_told_apart() -> None:
    found = estimated("tiny", "cuda")
    assert {part.what.split()[0] for part in found.gpu} == {"training", "102", "one"}
    assert {part.what.split()[0] for part in found.main} == {"data", "predictions"}


def test_a_job_that_cannot_fit_is_told_sizes_and_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    found = memory.Estimate((memory.Need("a draw", 3 * 2**30, "lower samples"), memory.Need("data", 2**29, "")))
    monkeypatch.setattr(memory.machine, "memory_bytes", lambda: 4 * 2**30)
    found.check()
    sentence = (
        "needs at least 3.5 GB of memory (a draw: 3.0 GB, data: 512 MB), but 2 jobs share 4.0 GB; lower samples, or "
        "run fewer jobs at once"
    )
    with pytest.raises(MemoryLimitError) as refused:
        found.check(parallel_jobs=2)
    assert str(refused.value) == sentence
    monkeypatch.setattr(memory.machine, "memory_bytes", lambda: None)
    found.check(parallel_jobs=100)


def test_a_job_that_cannot_fit_fails_at_once_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = CURVE | {"name": "wide", "network": {"name": "mlp", "hidden": [20_000]}}
    monkeypatch.setattr(memory.machine, "memory_bytes", lambda: 8 * 2**20)
    told = Told()
    fitted = []
    monkeypatch.setattr(execution, "fit_and_draw", spy(execution.fit_and_draw, fitted))
    jobs = plan([suite(CURVE, wide, methods=["tiny"], seeds=[0])])
    result = run(jobs, tmp_path / "run", conditions=Conditions("cpu", threads=1), observer=told)
    assert (result.finished, result.failed) == (1, 1)
    assert [job.task.name for job in fitted] == ["curve"]
    (sentence,) = told.messages
    assert sentence.startswith("wide/tiny will fail: needs at least 43.3 MB of memory (102 times a network's 0.229 MB")
    (failed,) = [record for record in records(tmp_path / "run") if record["status"] == "failed"]
    assert failed["error"] == "MemoryLimitError: " + sentence.removeprefix("wide/tiny will fail: ")
    assert "choose a smaller network" in sentence


def spy(function: Any, calls: list[Any]) -> Any:
    def called(job: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(job)
        return function(job, *arguments, **options)

    return called


def test_chains_that_the_method_itself_refuses_are_a_failed_row_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bayes_bench.posterior.base.memory_bytes", lambda: 2**16)
    overrides = [Override("sgld", "samples", 1000)]
    jobs = plan([suite(CURVE | {"budget": 5000}, methods=["sgld", "tiny"], seeds=[0])], overrides=overrides)
    result = run(jobs, tmp_path / "run", conditions=Conditions("cpu", threads=1))
    assert (result.finished, result.failed) == (1, 1)
    (failed,) = [record for record in records(tmp_path / "run") if record["status"] == "failed"]
    assert "1,000 networks of" in failed["error"]
    assert failed["error"].endswith("lower samples")


def test_a_job_that_runs_out_of_memory_says_what_to_lower(tmp_path: Path) -> None:
    spec = suite(methods=["tiny"], seeds=[0])
    run(plan([spec], overrides=[Override("tiny", "trouble", "memory")]), tmp_path / "run", conditions=Conditions("cpu"))
    (record,) = records(tmp_path / "run")
    assert record["error"] == (
        "MemoryError (memory ran out; lower --memory-limit, the number of parallel jobs, or the network)"
    )
    out_of_memory = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
    (job,) = plan([suite(methods=["sgld"], seeds=[0])])
    assert "chains, samples, batch_size of sgld" in execution.reason(out_of_memory, job)
    assert execution.reason(ValueError("no"), job) == "ValueError: no"


MEASURE = """
import json, sys
from pathlib import Path
import numpy as np
from bayes_bench.jobs import execute as execution, memory, provenance
from bayes_bench.jobs.job import Conditions, PlacedJob
from bayes_bench.jobs.plan import plan
from bayes_bench.host import machine
from bayes_bench.posterior import surroundings
from bayes_bench.tasks.spec import SuiteSpec
from bayes_bench.tasks import build_task

folder, method, hidden, tested, budget, settings = Path(sys.argv[1]), *map(json.loads, sys.argv[2:])
rng = np.random.default_rng(0)
sizes = {"train": 500, "test": tested}
arrays = {f"x_{part}": rng.normal(size=(n, 784)).astype(np.float32) for part, n in sizes.items()}
np.savez(folder / "data.npz", **arrays, **{f"y_{part}": np.arange(n) % 10 for part, n in sizes.items()})
task = {
    "name": "t", "data": {"source": "npz", "path": str(folder / "data.npz")}, "budget": budget,
    "network": {"name": "mlp", "hidden": hidden},
}
entry = {"label": method, "method": method, "settings": settings}
(job,) = plan([SuiteSpec.model_validate({"name": "s", "tasks": [task], "methods": [entry], "seeds": [0]})])
surroundings.warm_up()
provenance.linear_algebra()
status = Path("/proc/self/status").read_text()
before = int(status.partition("VmRSS:")[2].split()[0]) * 2**10
task = build_task(job.task)
machine.reset_peak_memory()
estimate = memory.estimate(execution.build_posterior(job, task), task, job.budget, 100, "cpu")
record = execution.execute(PlacedJob(job, task, "k", "v", folder / "job"), Conditions("cpu", threads=2))
assert record["status"] == "ok", record["error"]
print(json.dumps([estimate.main_bytes, machine.peak_memory_mb() * 2**20 - before]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures in /proc")
@pytest.mark.parametrize(
    ("method", "hidden", "tested", "budget", "settings"),
    [
        ("map", [5000, 5000], 500, 1000, {}),
        ("ensemble", [2000, 2000], 500, 3000, {"members": 20}),
        ("mcdropout", [2000, 2000], 500, 1000, {}),
        ("sgld", [1000, 1000], 500, 4000, {"samples": 40, "chains": 2}),
        ("hypergan", [1000, 1000], 500, 2000, {}),
        ("mnf", [2000, 2000], 500, 1000, {}),
        ("map", [50], 500_000, 3000, {}),
        ("mcdropout", [50], 200_000, 3000, {}),
    ],
)
def test_the_estimate_is_a_lower_bound_and_not_far_from_what_is_measured(
    tmp_path: Path, method: str, hidden: list[int], tested: int, budget: int, settings: dict[str, Any]
) -> None:
    arguments = [json.dumps(value) for value in (method, hidden, tested, budget, settings)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    estimate, measured = json.loads(done.stdout)
    print(f"{method} {hidden}: estimate {estimate / 2**20:,.0f} MB, measured {measured / 2**20:,.0f} MB")
    assert estimate <= measured <= 2 * estimate
