"""What a sentence tells to install works from anywhere: it names packages of the index, and those that are declared."""

from __future__ import annotations

import re
import tomllib

import pytest

from bayes_bench.runs.executors.base import NO_RAY
from bayes_bench.tuning.suggest import NO_OPTUNA
from bayes_bench_baselines import LaplaceConfig, VIConfig
from places import ROOT

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
SAID = {
    "tune": NO_OPTUNA,
    "cluster": NO_RAY,
    "laplace": f"pip install '{LaplaceConfig.requires['laplace']}'",
    "posteriors": f"pip install '{VIConfig.requires['posteriors']}'",
}


@pytest.mark.parametrize("extra", SAID)
def test_a_sentence_names_what_the_extra_has(extra: str) -> None:
    assert re.findall(r"pip install '(.+?)'", SAID[extra]) == EXTRAS[extra]


def test_no_sentence_names_our_distribution_as_if_an_index_had_it() -> None:
    for folder in ("bayes_bench", "baselines"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "bayes-bench[" not in path.read_text(encoding="utf-8"), path
