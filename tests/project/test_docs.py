"""What the documentation says is what the code does: examples run, names exist, nothing is left out."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import numpy as np
import pytest
import torch
from PIL import Image

from bayes_bench.cli import cli
from bayes_bench.data import SOURCES
from bayes_bench.data.spec import OODSpec
from bayes_bench.jobs.job import Conditions
from bayes_bench.jobs.plan import plan
from bayes_bench.metrics import CATALOGUE
from bayes_bench.results.folder import read_records
from bayes_bench.runs.run import run
from bayes_bench.settings import Settings
from bayes_bench.tasks.spec import (
    AugmentationSpec,
    ConvNetSpec,
    CurveSpec,
    CustomNetworkSpec,
    GaussianSpec,
    MethodEntry,
    MLPSpec,
    PriorSpec,
    PublishedSpec,
    QuickSpec,
    ResNetSpec,
    SuiteSpec,
    TaskSpec,
)
from bayes_bench.tasks.suites import load_suite, shipped_suites
from bayes_bench.tasks.task import build_task
from bayes_bench.testing import conformance
from places import ROOT
from tiny_suites import CURVE, register_fakes, suite

EXAMPLE = ROOT / "examples" / "plugin"
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.DOTALL)


def prose(page: str) -> str:
    return re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)


def code_words(page: str) -> set[str]:
    """Everything in backticks outside of code blocks."""
    return set(re.findall(r"`([^`]+)`", prose(page)))


def sections(page: str) -> dict[str, str]:
    parts = re.split(r"^## (.+)$", prose(page), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(text: str) -> list[list[str]]:
    """Cells of the tables' lines, without headings and rules."""
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*\|$", text, re.M)]
    return [cells for cells in found if cells[0].startswith("`")]


# --- every page


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            file = ROOT / "docs" / path if path else ROOT / "docs" / page
            assert file.exists(), f"{page}: {target}"
            titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M) if anchor else []
            slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert not anchor or anchor in slugs, f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_options_and_commands_exist(page: str) -> None:
    options = {name for command in cli.commands.values() for p in command.params for name in p.opts}
    # Scripts of the checkout and other programs have options of their own.
    ours = re.sub(r"(?m)^(python benchmarks/|ray |srun |#SBATCH ).*$", "", PAGES[page])
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", ours)) <= options
    assert set(re.findall(r"bayes-bench (?!RUN)([a-z]+(?:-[a-z]+)?)", PAGES[page])) <= set(cli.commands)
    assert isinstance(cli, click.Group)


# --- suites.md


SUITES = [text for text in blocks("suites.md", "toml") if "[[tasks]]" in text]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the data that the examples name, and the network's file."""
    rng = np.random.default_rng(0)
    (tmp_path / "tables").mkdir()
    people = [f"{a:.3f},{b:.3f},{'high' if a > b else 'low'}" for a, b in rng.normal(size=(60, 2))]
    (tmp_path / "tables" / "people.csv").write_text("\n".join(["age,income,group", *people]))
    (tmp_path / "tables" / "elsewhere.csv").write_text("income,age\n100,100\n")
    np.savez(tmp_path / "arrays.npz", x=rng.normal(size=(60, 3)), y=rng.normal(size=(60, 2)))
    for folder in ("photos/cat", "photos/dog", "other-photos"):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    (tmp_path / "my_network.py").write_text(blocks("suites.md", "python")[0])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_is_an_example_for_every_kind_of_user_data() -> None:
    sources = {tomllib.loads(text)["tasks"][0]["data"]["source"] for text in SUITES}
    assert sources == {"csv", "npz", "image-folder"}


@pytest.mark.parametrize("text", SUITES, ids=[tomllib.loads(text)["name"] for text in SUITES])
def test_suite_examples_are_valid(text: str, project: Path) -> None:
    file = project / "example.toml"
    file.write_text(text)
    (spec,) = load_suite(str(file)).tasks
    task = build_task(spec, allow_code=[project / "my_network.py"])
    assert set(task.ood) == {ood.name for ood in spec.ood}
    assert not task.missing_ood
    assert plan([load_suite(str(file))])  # the methods and their settings exist


def test_every_key_is_documented() -> None:
    known = code_words("suites.md")
    specs: tuple[type[Settings], ...] = (
        SuiteSpec, TaskSpec, MethodEntry, MLPSpec, ConvNetSpec, ResNetSpec, CustomNetworkSpec, GaussianSpec,
        PriorSpec, CurveSpec, OODSpec, AugmentationSpec, PublishedSpec, QuickSpec,
    )  # fmt: skip
    for spec in specs:
        assert set(spec.model_fields) <= known, spec.__name__
    for source in SOURCES.values():
        assert source.name in known
        for options in (source.SplitOptions, source.InputOptions):
            assert set(options.model_fields) <= known, source.name


def test_shipped_suites_are_documented_with_their_budgets() -> None:
    table = rows(sections("suites.md")["The suites that ship"])
    for name in shipped_suites():
        tasks = load_suite(name).tasks
        about, *sets = [cells for cells in table if cells[0] == f"`{name}`"]
        assert about[-1] == " and ".join(f"{task.budget:,}" for task in tasks)
        for ood in (ood for task in tasks for ood in (*task.ood, *task.validation_ood)):
            assert f"`{ood.name}`" in " ".join(sets[0])


# --- metrics.md


def documented_metrics() -> list[tuple[str, list[str]]]:
    parts = {title: text for title, text in sections("metrics.md").items() if title != "The stored predictions"}
    return [(title, cells) for title, text in parts.items() for cells in rows(text)]


def test_metrics_are_documented_once_with_unit_and_direction() -> None:
    better = {True: "higher", False: "lower", None: ""}
    # val_nll is one row for both kinds of task.
    catalogue = sorted({(m.name, m.unit, better[m.higher_is_better]) for m in CATALOGUE if m.name != "nll"})
    found = sorted((cells[0].strip("`"), cells[1], cells[2]) for _, cells in documented_metrics())
    assert [row for row in found if row[0] != "nll"] == catalogue
    kinds = {section for section, cells in documented_metrics() if cells[0] == "`nll`"}
    assert kinds == {"Classification", "Regression"}


def test_metrics_that_the_text_mentions_exist() -> None:
    text = "".join(part for title, part in sections("metrics.md").items() if title != "The stored predictions")
    other = {"METRIC std", "all", "inside", "ood_auroc", "summary.csv", "validation_ood"}
    assert set(re.findall(r"`([^`]+)`", text)) - other <= {metric.name for metric in CATALOGUE}


# --- sklearn.md


@pytest.mark.parametrize("code", blocks("sklearn.md", "python"))
def test_sklearn_examples_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "sklearn.md", "exec"), {})


def test_every_parameter_of_the_estimators_is_documented() -> None:
    from bayes_bench.sklearn import BayesClassifier, BayesRegressor

    documented = {word for row in rows(PAGES["sklearn.md"]) for word in re.findall(r"`(\w+)`", row[0])}
    assert documented == BayesClassifier().get_params().keys() | BayesRegressor().get_params().keys()


# --- plugins.md


@pytest.fixture(scope="module")
def plugin() -> Iterator[ModuleType]:
    """The example as an imported module."""
    path = EXAMPLE / "bayes_bench_jitter.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[path.stem]


def test_the_page_shows_the_example_that_is_there() -> None:
    module, test = blocks("plugins.md", "python")
    assert module == (EXAMPLE / "bayes_bench_jitter.py").read_text(encoding="utf-8")
    assert test == (EXAMPLE / "tests" / "test_jitter.py").read_text(encoding="utf-8")
    assert blocks("plugins.md", "toml")[0] == (EXAMPLE / "pyproject.toml").read_text(encoding="utf-8")
    assert len(module.splitlines()) < 100


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
def test_the_plugin_passes(check: conformance.Callable[[conformance.Method], None], plugin: ModuleType) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as `bayes-bench check` does
    try:
        (result,) = conformance.check(plugin.Jitter, [check])
    finally:
        torch.set_num_threads(threads)
    assert result.passed, result.message


def test_the_plugins_entry_point_names_it(plugin: ModuleType) -> None:
    project = tomllib.loads(blocks("plugins.md", "toml")[0])["project"]
    (value,) = project["entry-points"]["bayes_bench.methods"].values()
    module, _, name = value.partition(":")
    assert module == plugin.__name__
    assert getattr(plugin, name).Config is plugin.JitterConfig


def test_every_check_is_documented() -> None:
    text = sections("plugins.md")["What `bayes-bench check` verifies"]
    names = [check.__name__.removeprefix("check_").replace("_", " ") for check in conformance.CHECKS]
    assert re.findall(r"^\| ([a-z ]+) \|", text, re.M)[1:] == names
    assert f"# {len(names)} checks" in PAGES["plugins.md"]


# --- runs.md


def test_every_field_of_a_record_is_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_fakes(monkeypatch)
    run(plan([suite(CURVE, methods=["pair"], seeds=[0])]), tmp_path / "run", conditions=Conditions("cpu", threads=1))
    ((folder, record),) = read_records(tmp_path / "run")[0]
    known = code_words("runs.md")
    assert set(record) <= known
    for section in ("seeds", "budget", "fit", "cost", "network", "data"):
        assert set(record[section]) <= known, section
    written = {path.name for path in folder.iterdir()} | {path.name for path in (tmp_path / "run").iterdir()}
    (tree,) = [text for text in blocks("runs.md", "") if "record.json" in text]
    assert {name for name in written if not name.startswith(".")} == set(re.findall(r"[\w.]+\.\w+|jobs", tree)) - {
        "metrics.md"
    }
