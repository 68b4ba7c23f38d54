"""Tiny suites for the tests of jobs, runner and command line, and the fake methods under their names."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fake_methods
from bayes_bench.errors import DataError
from bayes_bench.host import plugins
from bayes_bench.host.machine import MEMORY_LIMIT_MB
from bayes_bench.jobs.job import Job
from bayes_bench.results.folder import RECORD, job_state, safe_name
from bayes_bench.results.schema import read_record
from bayes_bench.tasks.spec import SuiteSpec

CURVE = {
    "name": "curve",
    "title": "a curve",
    "data": {"source": "cubic"},
    "network": {"name": "mlp", "hidden": [5]},
    "likelihood": {"name": "gaussian", "noise_std": 3.0},
    "budget": 100,
    "curve": {"low": -6, "high": 6, "points": 7, "inside": [[-4, 4]]},
}
DIGITS = {
    "name": "digits",
    "data": {"source": "digits"},
    "network": {"name": "convnet", "channels": [3], "kernel": 3},
    "budget": 100,
    "ood": [{"name": "letters", "source": "letters", "letters": "A-J"}],
}


def suite(*tasks: dict[str, Any], **changes: Any) -> SuiteSpec:
    content = {"name": "tiny-suite", "tasks": tasks or [CURVE], "methods": ["tiny", "pair"], "seeds": [0, 1]}
    return SuiteSpec.model_validate(content | changes)


def point(name: str, cls: type) -> Any:
    dist = SimpleNamespace(name="fakes", version="1.0")
    return SimpleNamespace(name=name, value=f"fake_methods:{cls.__name__}", dist=dist, load=lambda: cls)


def register_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the methods that are installed."""
    fakes = [point("tiny", fake_methods.Tiny), point("pair", fake_methods.Pair)]
    real: Callable[..., Any] = entry_points
    monkeypatch.setattr(
        plugins, "entry_points", lambda group: [*real(group=group), *(fakes if group == plugins.METHODS else [])]
    )


def find_finished(job: Job, run_dir: Path, device: str = "auto", memory_limit_mb: int = MEMORY_LIMIT_MB) -> bool:
    """Has the run folder a finished record of this job? Believes the checksum of the data that the record names."""
    devices = ("cpu", "cuda") if device == "auto" else (device,)
    for folder in (run_dir / "jobs" / safe_name(job.task.name) / safe_name(job.label)).glob(f"seed-{job.seed}-*"):
        try:
            checksum = read_record(folder / RECORD)["data"]["checksum"]
        except (DataError, KeyError, TypeError):
            continue
        keys = (job.key(checksum, name, memory_limit_mb) for name in devices)
        if any(job_state(folder, key).kind == "finished" for key in keys):
            return True
    return False
