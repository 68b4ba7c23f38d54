"""Tiny suites for the tests of jobs, runner and command line, and the fake methods under their names."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from types import SimpleNamespace
from typing import Any

import pytest

import fake_methods
from bayes_bench.host import plugins
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
