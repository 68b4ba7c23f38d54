"""Suites whose fits start at given weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bayes_bench import DataError, UsageError, report
from bayes_bench.host.machine import MEMORY_LIMIT_MB
from bayes_bench.jobs.job import Conditions, Job
from bayes_bench.jobs.plan import plan
from bayes_bench.jobs.predict import load
from bayes_bench.results.folder import read_records
from bayes_bench.results.schema import canonical_hash
from bayes_bench.runs.run import run
from bayes_bench.runs.verify import verify
from bayes_bench.tasks.network import build_network
from bayes_bench.tasks.spec import NOT_IN_KEY, CustomNetworkSpec, MLPSpec, SuiteSpec
from bayes_bench.tasks.suites import load_suite
from bayes_bench.tasks.task import build_task

NETWORK = """
from torch import nn


def build(input_shape, outputs):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, outputs))
"""
SUITE = """
name = "given"
methods = ["map", "mcdropout", "laplace"]
seeds = [0]

[[tasks]]
name = "digits"
budget = 30000
examples = 40
data = {source = "digits"}
network = {name = "custom", entry = "net.py:build"}
start = "given"
weights = "trained.safetensors"
bayesian = "last"
ood = [{name = "letters", source = "letters", letters = "A-J"}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network's code, its trained weights, and a suite that starts there."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "net.py").write_text(NETWORK)
    (folder / "given.toml").write_text(SUITE)
    spec = CustomNetworkSpec(entry=f"{folder / 'net.py'}:build")
    network = build_network(spec, (1, 8, 8), 10, 0, (folder / "net.py",))
    fresh = SuiteSpec.model_validate(
        {"name": "s", "tasks": [{"name": "digits", "data": {"source": "digits"}, "network": MLPSpec(), "budget": 1}]}
    )
    train = build_task(fresh.tasks[0]).fit_data.train
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(train.x[:400]), train.y[:400]).backward()
        optimizer.step()
    save_file(network.state_dict(), folder / "trained.safetensors")
    return folder


@pytest.fixture(scope="module")
def suite(folder: Path) -> SuiteSpec:
    suite = load_suite(str(folder / "given.toml"))
    (task,) = suite.tasks
    assert task.weights == folder / "trained.safetensors"
    network = CustomNetworkSpec(entry=f"{folder / 'net.py'}:build")
    return suite.model_copy(update={"tasks": (task.model_copy(update={"network": network}),)})


@pytest.fixture(scope="module")
def finished(folder: Path, suite: SuiteSpec) -> Path:
    run(plan([suite]), folder / "run", conditions=Conditions("cpu", threads=1, allow_code=(folder / "net.py",)))
    return folder / "run"


def test_a_suite_starts_at_given_weights(folder: Path, finished: Path) -> None:
    records = {record["method"]: record for _, record in read_records(finished)[0]}
    assert {record["status"] for record in records.values()} == {"ok"}, records
    for record in records.values():
        numbers = record["fit"]["diagnostics"]
        assert numbers["given_accuracy"] > 0.85
        assert abs(numbers["mean_network_accuracy"] - numbers["given_accuracy"]) < 0.1
        assert "1 layers of batch normalisation are frozen at their running statistics" in record["fit"]["notes"]
    page = report.write(finished).read_text(encoding="utf-8")
    assert "The given network" in page
    assert not verify(finished).differences
    fitted = load(finished, "laplace", allow_code=(folder / "net.py",))
    assert fitted.posterior.bayesian == "last"
    predictions = fitted.predict(np.random.default_rng(0).random((3, 1, 8, 8)))
    assert predictions.entropy.shape == (3,)


def test_given_weights_are_part_of_the_key_and_their_place_is_not(
    folder: Path, suite: SuiteSpec, tmp_path: Path
) -> None:
    (task,) = suite.tasks
    code = (folder / "net.py",)
    checksum = build_task(task, allow_code=code).checksum
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes((folder / "trained.safetensors").read_bytes())
    assert build_task(task.model_copy(update={"weights": moved}), allow_code=code).checksum == checksum
    network = build_network(task.network, (1, 8, 8), 10, 3, code)
    save_file(network.state_dict(), moved)
    assert build_task(task.model_copy(update={"weights": moved}), allow_code=code).checksum != checksum


def canonical_key_of_before(job: Job) -> str:
    """As versions made it that knew none of these keys."""
    added = {"start", "weights", "bayesian", "batch_norm"}
    task = {k: v for k, v in job.task.model_dump(mode="json").items() if k not in {*NOT_IN_KEY, *added}}
    variant = {"format": 1, "task": task, "data": "ab", "method": job.method, "revision": job.revision}
    variant |= {"config": job.config, "budget": job.budget, "device": "cpu", "memory_limit_mb": MEMORY_LIMIT_MB}
    return canonical_hash({"variant": canonical_hash(variant), "seed": job.seed})


def test_keys_of_tasks_that_say_nothing_of_a_start_stay(suite: SuiteSpec) -> None:
    (job, *_) = plan([suite])
    fresh = {"start": "fresh", "weights": None, "bayesian": "all", "batch_norm": None}
    plain = job.model_copy(update={"task": job.task.model_copy(update=fresh)})
    assert plain.key("ab", "cpu") == canonical_key_of_before(plain)
    assert job.key("ab", "cpu") != plain.key("ab", "cpu")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"start": "given"}, "needs the network's weights"),
        ({"weights": "x.safetensors"}, "a fresh start would replace them"),
        ({"start": "old"}, "start"),
    ],
)
def test_a_start_that_cannot_be_is_an_error_of_the_suite(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    lines = [f'{key} = "{value}"' for key, value in changes.items()]
    text = 'name = "s"\n[[tasks]]\nname = "t"\nbudget = 1\ndata = {source = "digits"}\nnetwork = {name = "mlp"}\n'
    (tmp_path / "s.toml").write_text(text + "\n".join(lines) + "\n")
    with pytest.raises(UsageError, match=said):
        load_suite(str(tmp_path / "s.toml"))


def test_weights_of_another_network_are_named(folder: Path, suite: SuiteSpec, tmp_path: Path) -> None:
    (task,) = suite.tasks
    code = (folder / "net.py",)
    state = build_network(task.network, (1, 8, 8), 10, 0, code).state_dict()

    def built(path: Path) -> None:
        build_task(task.model_copy(update={"weights": path}), allow_code=code)

    with pytest.raises(DataError, match="cannot read the weights"):
        built(tmp_path / "none.safetensors")
    save_file({name: value for name, value in state.items() if name != "4.bias"}, tmp_path / "a.safetensors")
    with pytest.raises(DataError, match=r"weights of another network: it lacks 4\.bias"):
        built(tmp_path / "a.safetensors")
    save_file(state | {"more": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(DataError, match="it has unknown more"):
        built(tmp_path / "b.safetensors")
    save_file(state | {"4.bias": torch.zeros(3)}, tmp_path / "c.safetensors")
    with pytest.raises(DataError, match=r"4\.bias has the shape \[3\], the network's has \[10\]"):
        built(tmp_path / "c.safetensors")
    torch.save(state, tmp_path / "d.safetensors")
    with pytest.raises(DataError, match="they are a safetensors file"):
        built(tmp_path / "d.safetensors")
