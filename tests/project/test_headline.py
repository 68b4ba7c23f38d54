"""The tables in README.md and reports/README.md are those of the committed results."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from bayes_bench.errors import UsageError
from bayes_bench.results.folder import read_run
from places import ROOT
from synthetic import METHODS, make_job, task_spec, write_job, write_plan

SMALL = {"networks": 12, "examples": 120, "ood": {"ood/letters": 90}}


@pytest.fixture(scope="module")
def headline() -> Iterator[ModuleType]:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("headline", ROOT / "reports" / "headline.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["headline"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["headline"]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Two methods with two seeds at a quarter of the budget; the machine's folders are in notes, errors and command."""
    folder, records = tmp_path / "run", []
    spec = task_spec("classification")
    for label in ("ensemble", "hypergan"):
        for seed in (0, 1):
            record, predictions = make_job(METHODS[label], seed, spec=spec, budget_scale=0.25, **SMALL)
            record["data"]["notes"] = ["no SVHN: cannot read /home/me/data/svhn/test.mat"]
            write_job(folder, record, predictions)
            records.append(record)
    failed, _ = make_job(METHODS["map"], 0, spec=spec, budget_scale=0.25, **SMALL, status="failed")
    failed["error"] = "DataError: cannot read ~/data/x.gz"
    write_job(folder, failed, None)
    write_plan(
        folder,
        [*records, failed],
        command=["bayes-bench", "run", "digits", "--out", "/home/me/runs/digits", "--data-root=/home/me/data"],
        suites=[{"name": "digits", "tasks": [spec]}],
    )
    return folder


def test_the_pages_are_up_to_date(headline: ModuleType) -> None:
    assert headline.main(["--check"]) == 0


def test_an_added_run_has_no_folder_of_the_machine(headline: ModuleType, run_dir: Path, tmp_path: Path) -> None:
    target = headline.add(run_dir, "digits", tmp_path / "reference")
    files = {path.name for path in target.iterdir()}
    assert files == {"results.csv", "summary.csv", "published.csv", "history.csv", "report.html", "run.json"}
    for path in target.iterdir():
        text = path.read_text(encoding="utf-8")
        assert "/home/" not in text, path.name
        assert "~/data" not in text, path.name
        assert str(tmp_path) not in text, path.name
    assert "cannot read …/x.gz" in (target / "results.csv").read_text(encoding="utf-8")
    assert read_run(target)["command"] == [
        "bayes-bench", "run", "digits", "--out", "digits", "--data-root=data",
    ]  # fmt: skip
    assert sum(path.stat().st_size for path in target.iterdir()) < headline.LARGEST_FOLDER


def test_a_table_says_what_the_tables_of_the_run_say(headline: ModuleType, run_dir: Path, tmp_path: Path) -> None:
    headline.add(run_dir, "digits", tmp_path / "reference", ["bayes-bench", "run", "all of them"])
    found = headline.references(tmp_path / "reference")
    table = headline.task_table(found["digits"], "digits")
    summary = pd.read_csv(run_dir.parent / "reference/digits/summary.csv").set_index("method")
    nll, std = summary.loc["ensemble", "nll"], summary.loc["ensemble", "nll std"]
    ensemble, hypergan, failed = [line for line in table.splitlines() if line.startswith("| `")]
    assert (ensemble.split()[1], hypergan.split()[1], failed.split()[1]) == ("`ensemble`", "`hypergan`", "`map`")
    assert f"| {nll:.3f} ± {std:.3f} |" in ensemble
    assert ensemble.endswith("| 2 |")
    assert "| – |" in failed
    assert "Budget: 100,000 gradient evaluations per job, **a quarter of the suite's budget** of 400,000." in table
    claims = headline.claims_table(found["digits"])
    accuracy = 100 * summary.loc["hypergan", "accuracy"]
    assert f"| `hypergan` | accuracy, % | {accuracy:.2f} ±" in claims
    assert "| `apd` | accuracy, % | – | – | 98.61 | – | Paper A: from memory |" in claims
    assert claims.endswith("\n\ndigits: ours had **a quarter of the suite's budget**.")
    twice = pd.concat([found["digits"].published, found["digits"].published.assign(task="digits (digits-quick)")])
    of_two = headline.claims_table(replace(found["digits"], published=twice))
    assert of_two.startswith("| task | method |")
    assert "| digits (digits-quick) | `hypergan` |" in of_two
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- table all -->\nold\n<!-- end -->\nb\n<!-- table digits/claims -->\n<!-- end -->\nc\n")
    text = headline.written(page, found)
    assert "[The page](reference/digits/report.html). `bayes-bench run 'all of them'`; Example CPU, 2 cores;" in text
    assert text.count(claims) == 2
    assert "old" not in text
    assert text.startswith("a\n<!-- table all -->\n### digits")
    assert text.endswith("\n<!-- end -->\nc\n")
    page.write_text(text)
    assert headline.written(page, found) == text


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("digit", "page.md: table 'digit': unknown folder of results 'digit', did you mean 'digits'"),
        ("digits/x", "page.md: table 'digits/x': unknown table 'x'; known: claims, digits"),
    ],
)
def test_a_table_of_nothing_is_an_error(
    headline: ModuleType, run_dir: Path, tmp_path: Path, name: str, sentence: str
) -> None:
    headline.add(run_dir, "digits", tmp_path / "reference")
    page = tmp_path / "page.md"
    page.write_text(f"<!-- table {name} -->\n<!-- end -->\n")
    with pytest.raises(UsageError) as caught:
        headline.written(page, headline.references(tmp_path / "reference"))
    assert sentence in str(caught.value)


def test_a_run_without_results_is_not_added(headline: ModuleType, tmp_path: Path) -> None:
    write_plan(tmp_path / "run", [make_job(METHODS["map"], 0, **SMALL)[0]])
    with pytest.raises(UsageError, match="has no finished job; nothing to commit"):
        headline.add(tmp_path / "run", "digits", tmp_path / "reference")
    assert not (tmp_path / "reference").exists()


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("/home/a/runs/x", "x"),
        ("--out=~/runs/x", "--out=x"),
        ("../../a/runs/x", "x"),
        ("reports/runs/x", "reports/runs/x"),
    ],
)
def test_folders_of_the_machine_leave_a_command(headline: ModuleType, word: str, kept: str) -> None:
    assert headline._without_folders(word) == kept


def test_a_task_that_begins_like_another_has_its_own_title_and_place(headline: ModuleType, tmp_path: Path) -> None:
    names = ("digits", "digits-mlp")
    plan = {
        "jobs": [{"task": name} for name in reversed(names)],
        "suites": [{"tasks": [{"name": name, "budget": len(name)}]} for name in names],
    }
    shown = ["digits", "digits-mlp (budget 400)"]
    reference = headline.Reference(tmp_path, plan, pd.DataFrame({"task": shown}), None)
    assert [reference.spec(task)["name"] for task in shown] == list(names)
    assert reference.tasks == shown[::-1]


def test_what_looks_like_a_path_and_is_none_stays(headline: ModuleType) -> None:
    for text in ("std/mean/x", "1/3 and 2/3", "https://example.org/a/b", "jobs/digits/map", "p / q / r"):
        assert headline.without_paths({"a": [text]}) == {"a": [text]}
    assert json.loads(json.dumps(headline.without_paths({"a": [1, None, "in '/a/b c/d.gz'"]})))["a"][:2] == [1, None]
