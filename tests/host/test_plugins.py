"""Suites, data sets, metrics and networks of installed packages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bayes_bench import cli, data, metrics, report
from bayes_bench.data.base import Arrays, Inputs, Settings, Source, Split, setting
from bayes_bench.data.spec import OODSpec, SourceSpec
from bayes_bench.errors import PluginError, UsageError
from bayes_bench.host import plugins
from bayes_bench.metrics import CATALOGUE, Metric
from bayes_bench.tasks.suites import installed_suites, load_suite
from entry_point import Point
from synthetic import METHODS, make_job, write_run
from tiny_suites import register_fakes

Install = Callable[..., None]

SUITE = """
name = "blobs"
description = "Two heaps of points."
methods = ["tiny"]
seeds = [0]

[[tasks]]
name = "blobs"
budget = 200
data = { source = "blobs", examples = 40 }
network = { name = "mlp", hidden = [4] }
likelihood = { name = "categorical" }
ood = [{ name = "far", source = "blobs" }]
"""


class BlobOptions(Settings):
    examples: int = setting(60, "points of each part", gt=1)


def blobs(options: BlobOptions, root: Path, kind: Any) -> Split:
    rng = np.random.default_rng(0)

    def part() -> Arrays:
        y = np.arange(options.examples) % 2
        return Arrays((rng.normal(size=(len(y), 2)) + 3 * y[:, None]).astype(np.float32), y)

    return Split(part(), part(), part(), ("left", "right"))


def far(options: Settings, root: Path, split: Split) -> Inputs:
    return Inputs(np.full((30, 2), 50, dtype=np.float32) + np.arange(30, dtype=np.float32)[:, None])


BLOBS = Source("blobs", "two heaps of points", "classification", BlobOptions, blobs, Settings, far)


def surprise(job: metrics.base.JobPredictions) -> float:
    return float(job.classes_of("test").entropy.max())


SURPRISE = Metric(
    "surprise", "nats", False, "of a plug-in", ("test/log_probs",), "highest entropy of any input", surprise
)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    real = plugins.entry_points

    def add(*points: Point) -> None:
        monkeypatch.setattr(
            plugins, "entry_points", lambda group: [*real(group=group), *(p for p in points if p.group == group)]
        )
        metrics.catalogue.cache_clear()

    yield add
    monkeypatch.undo()
    metrics.catalogue.cache_clear()


@pytest.fixture
def installed(install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A package with one of each; the folder of its suite."""
    register_fakes(monkeypatch)
    file = tmp_path / "package" / "blobs.toml"
    file.parent.mkdir()
    file.write_text(SUITE)
    fakes = plugins.entry_points
    points = [Point("blobs", file, plugins.SUITES), Point("blobs", BLOBS, plugins.DATA)]
    points.append(Point("surprise", SURPRISE, plugins.METRICS))
    monkeypatch.setattr(
        plugins, "entry_points", lambda group: [*fakes(group=group), *(p for p in points if p.group == group)]
    )
    metrics.catalogue.cache_clear()
    return file.parent


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    return int(stop.value.code or 0)


def test_a_suite_runs_on_data_and_metrics_of_a_package(
    installed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run("run", "blobs", "--out", str(out), "--quiet") == 0
    results = (out / "results.csv").read_text()
    assert "surprise" in results
    assert "ood_auroc/far" in results
    html = (out / "report.html").read_text()
    assert "Metrics of plug-ins" in html
    capsys.readouterr()
    assert run("list", "suites") == 0
    assert "Two heaps" in capsys.readouterr().out
    assert run("list", "metrics") == 0
    assert "surprise" in capsys.readouterr().out


def test_the_page_shows_such_metrics_where_the_package_is_not_installed(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(Point("surprise", SURPRISE, plugins.METRICS))
    write_run(tmp_path, labels=("hypergan", "map"), kinds=("classification",), networks=5, examples=60)
    monkeypatch.undo()
    metrics.catalogue.cache_clear()
    html = report.write(tmp_path).read_text(encoding="utf-8")
    assert "Metrics of plug-ins" in html
    assert ">surprise<" in html


def test_several_metrics_in_one(install: Install) -> None:
    install(Point("more", (SURPRISE, replace(SURPRISE, name="shock")), plugins.METRICS))
    assert {metric.name for metric in metrics.catalogue()} - {metric.name for metric in CATALOGUE} == {
        "surprise",
        "shock",
    }
    record, predictions = make_job(METHODS["map"], 0, networks=5, examples=60)
    assert {"surprise", "shock"} <= {row["name"] for row in metrics.compute(predictions, record)}


@pytest.mark.parametrize(
    ("loaded", "sentence"),
    [
        (ImportError("no module named x"), "is broken: cannot import"),
        (SystemExit(3), "is broken: cannot import"),
        (SURPRISE.evaluate, "is no"),
        ((SURPRISE, 3), "holds no Metric"),
        (CATALOGUE[0], "there is a metric 'accuracy' already"),
        (replace(SURPRISE, name="a b<c>,"), "is no name for a metric"),
    ],
)
def test_a_broken_metric_is_told_with_its_owner(install: Install, loaded: Any, sentence: str) -> None:
    install(Point("surprise", loaded, plugins.METRICS, owner="their-package"))
    with pytest.raises(PluginError, match=sentence) as error:
        metrics.catalogue()
    assert "their-package 1.0" in str(error.value)


@pytest.mark.parametrize("broken", [lambda job: 1 / 0, lambda job: None])
def test_a_metric_that_fails_costs_its_own_number(install: Install, broken: Any) -> None:
    install(Point("surprise", replace(SURPRISE, evaluate=broken), plugins.METRICS))
    record, predictions = make_job(METHODS["map"], 0, networks=5, examples=60)
    rows = {row["name"]: row for row in metrics.compute(predictions, record)}
    assert rows["surprise"]["value"] is None
    assert "the plug-in's metric failed" in rows["surprise"]["reason"]
    assert rows["accuracy"]["value"] is not None


def test_a_broken_metric_stops_a_run_before_it_trains(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(Point("surprise", ImportError("boom"), plugins.METRICS))
    assert run("run", "digits", "--methods", "map", "--dry-run", "--out", str(tmp_path / "run")) == 2
    assert "surprise" in capsys.readouterr().err


def test_a_broken_metric_is_no_obstacle_to_reading(install: Install, tmp_path: Path) -> None:
    write_run(tmp_path, labels=("map",), kinds=("classification",), networks=5, examples=60)
    install(Point("surprise", ImportError("boom"), plugins.METRICS))
    assert report.write(tmp_path).is_file()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [(lambda *_: {}["x"], "of a plug-in failed: KeyError"), (lambda *_: None, "gave NoneType, not Split")],
)
def test_a_source_that_fails_is_told_by_name(install: Install, tmp_path: Path, make: Any, sentence: str) -> None:
    install(Point("blobs", replace(BLOBS, split=make), plugins.DATA))
    with pytest.raises(PluginError, match=sentence):
        data.load_split(SourceSpec.model_validate({"source": "blobs"}), tmp_path)


def test_a_source_with_its_options_is_checked(installed: Path) -> None:
    with pytest.raises(UsageError, match="unknown option 'exmples', did you mean 'examples'"):
        data.check_spec(SourceSpec.model_validate({"source": "blobs", "exmples": 3}))
    assert data.check_spec(OODSpec.model_validate({"name": "far", "source": "blobs"})) is not None
    with pytest.raises(UsageError, match="unknown data source 'blob', did you mean 'blobs'"):
        data.check_spec(SourceSpec.model_validate({"source": "blob"}))


def test_names_that_two_packages_register_are_refused(install: Install, tmp_path: Path) -> None:
    points = [Point("blobs", BLOBS, plugins.DATA, owner=owner) for owner in ("one", "two")]
    install(*points)
    with pytest.raises(PluginError, match=r"registered twice, by one 1.0 .* and two 1.0"):
        data.find_source("blobs")


def test_ours_go_first(install: Install, tmp_path: Path) -> None:
    install(Point("digits", tmp_path / "none.toml", plugins.SUITES), Point("digits", BLOBS, plugins.DATA))
    assert load_suite("digits").tasks[0].name == "digits"
    assert data.find_source("digits") is data.SOURCES["digits"]
    assert installed_suites() == {}


def test_a_broken_suite_is_listed_as_such(install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(Point("theirs", tmp_path / "none.toml", plugins.SUITES))
    assert run("list", "suites") == 0
    assert "BROKEN: cannot read the suite" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UsageError, match="did you mean 'theirs'"):
        load_suite("thiers")
