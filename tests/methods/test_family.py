"""A family of methods is its folder and two entry points: everything else of the product finds it by them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from bayes_bench import cli

CONFIG = '''
from typing import ClassVar

from bayes_bench import Diagnostic, DiagnosticTable, MethodConfig, setting


class SpreadConfig(MethodConfig):
    """Spread: a few networks of random weights."""

    reference = "made up"
    requires: ClassVar = {}
    diagnostics: ClassVar = (
        DiagnosticTable("Spreads", (Diagnostic("width", "widest", "Spread"),), ("A spread above 3 is a remark.",)),
    )
    networks: int = setting(3, "of which at most three are kept", gt=0, memory=True, tune=(2, 3))
'''
METHOD = """
import torch

from bayes_bench import Held, WeightPosterior

from .config import SpreadConfig


class Spread(WeightPosterior):
    Config = SpreadConfig
    uses_prior = False

    @property
    def support(self):
        return min(self.config.networks, 3)

    def _networks_held(self, drawn, data, budget):
        return Held(self.config.networks, self.support, self.support)

    def _fit(self, data, loop, rng):
        many = self.initial_weights(self.config.networks, rng, loop)
        self.kept = {name: w[: self.support] for name, w in many.items()}
        loop.charge(loop.budget)
        loop.diagnose(width=max(float(w.abs().max()) for w in self.kept.values()))

    def _sample(self, n, rng):
        return {name: w[:n].clone() for name, w in self.kept.items()}

    def _state(self):
        return self.kept

    def _load_state(self, state):
        self.kept = dict(state)
"""
SUITE = """
name = "tiny"
methods = ["spread", "map"]
seeds = [0]

[[tasks]]
name = "digits"
budget = 3000
examples = 20
data = {source = "digits"}
network = {name = "mlp", hidden = [5]}
"""


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The command where a package with the family is installed."""
    site = tmp_path / "site"
    folder = site / "throwaway" / "spread"
    folder.mkdir(parents=True)
    (site / "throwaway" / "__init__.py").touch()
    (folder / "__init__.py").touch()
    (folder / "config.py").write_text(CONFIG)
    (folder / "spread.py").write_text(METHOD)
    facts = site / "throwaway-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: throwaway\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(
        "[bayes_bench.methods]\nspread = throwaway.spread.spread:Spread\n\n"
        "[bayes_bench.configs]\nspread = throwaway.spread.config:SpreadConfig\n"
    )
    (tmp_path / "tiny.toml").write_text(SUITE)
    monkeypatch.syspath_prepend(site)
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()

    def run(*arguments: str) -> tuple[int | str | None, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        said = capsys.readouterr()
        return ended.value.code, said.out + said.err

    yield run
    for name in [name for name in sys.modules if name.partition(".")[0] == "throwaway"]:
        del sys.modules[name]


def test_a_family_plugs_in_by_its_folder_and_two_entry_points(call, tmp_path: Path) -> None:
    assert "spread" in call("list", "methods")[1]
    assert "a few networks of random weights" in call("show", "spread")[1]
    code, said = call("run", "tiny.toml", "--out", "run")
    assert code == 0, said
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for words in ("Spreads", "widest", "A spread above 3 is a remark."):
        assert words in page

    assert call("verify", "run")[0] == 0
    (record,) = (tmp_path / "run").glob("jobs/*/spread/*/record.json")
    code, said = call("rerun", str(record.relative_to(tmp_path)))
    assert code == 0, said

    code, said = call(
        "run", "tiny.toml", "--out", "large", "--methods", "spread", "--set", "spread.networks=1000000000"
    )
    assert code == 1
    assert "lower networks, or choose a smaller network" in said

    # A word more in the family's own folder is a change of its code, and of nobody else's.
    (tmp_path / "site" / "throwaway" / "spread" / "spread.py").write_text(METHOD + "\n# more\n")
    code, said = call("run", "tiny.toml", "--out", "run")
    assert code == 0, said
    assert "spread" in said
    assert "has changed" in said or "changed since" in said
