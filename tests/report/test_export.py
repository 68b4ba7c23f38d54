"""Tables and figures as files for a paper: complete, readable by machines, safe with any text."""

import re
import xml.etree.ElementTree as ET

import pandas as pd
import pytest
from click.testing import CliRunner

from bayes_bench import DataError, UsageError, report
from bayes_bench.analysis.records import load_run
from bayes_bench.cli import cli
from bayes_bench.report.export import _file_name, export, tex
from bayes_bench.report.page import charts_for, open_book
from bayes_bench.report.tables import tables_for
from synthetic import METHODS, make_job, write_job, write_plan

SMALL = {"networks": 12, "examples": 120, "ood": {"ood/letters": 90, "validation_ood/letters-kt": 30}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    records = []
    for kind in ("classification", "regression"):
        for method in METHODS.values():
            for seed in (0, 1, 2):
                record, predictions = make_job(method, seed, kind, **SMALL)
                write_job(folder, record, predictions)
                records.append(record)
    write_plan(folder, records)
    report.write(folder)
    return folder


@pytest.fixture(scope="module")
def files(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper") / "new" / "folder"
    return {path.name: path.read_text(encoding="utf-8") for path in export(run, folder)}


def test_every_table_and_figure_is_there(run, files):
    book = open_book(load_run(run))
    tables = [table for comparison in book.comparisons for table in tables_for(comparison)]
    charts = [chart for comparison in book.comparisons for chart in charts_for(book, comparison)]
    endings = [name.partition(".")[2] for name in files]
    assert {ending: endings.count(ending) for ending in set(endings)} == {
        **dict.fromkeys(("csv", "md", "tex"), len(tables)),
        **dict.fromkeys(("svg", "data.csv"), len(charts)),
    }
    assert {"digits-prediction.tex", "cubic-prediction.md", "digits-reliability.svg"} <= files.keys()


def test_numbers_are_those_of_the_summary(run, files, tmp_path):
    (tmp_path / "table.csv").write_text(files["digits-prediction.csv"])
    table = pd.read_csv(tmp_path / "table.csv").set_index("method")
    summary = pd.read_csv(run / "summary.csv")
    summary = summary[summary["task"] == "digits"].set_index("method")
    nll = next(name for name in table if name.endswith("NLL ↓"))
    for method in METHODS:
        assert table.loc[method, nll] == pytest.approx(summary.loc[method, "nll"], abs=5e-4)
        assert table.loc[method, f"{nll} (spread)"] == pytest.approx(summary.loc[method, "nll std"], abs=5e-4)
    assert (table[f"{nll} (mark)"] == "best").sum() == 1
    best = table.index[table[f"{nll} (mark)"] == "best"][0]
    line = next(line for line in files["digits-prediction.md"].splitlines() if line.startswith(f"| {best} |"))
    assert f"**{table.loc[best, nll]}" in line


def test_markdown_and_latex_are_whole(files):
    for name, text in files.items():
        if name.endswith(".md"):
            lines = [line for line in text.splitlines() if line.startswith("|")]
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
        if name.endswith(".tex"):
            assert re.findall(r"\\begin\{(\w+)\}", text) == list(reversed(re.findall(r"\\end\{(\w+)\}", text)))
            plain = re.sub(r"\\.", "", text)
            assert plain.count("{") == plain.count("}")
            assert max(map(ord, text)) < 256
            rows = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
            assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1
            assert "?" not in text


def test_tables_wider_than_the_text_are_scaled(files):
    assert r"\resizebox{\textwidth}{!}{%" in files["digits-prediction.tex"]
    assert r"\end{tabular}}" in files["digits-prediction.tex"]
    narrow = [text for name, text in files.items() if name.endswith(".tex") and r"\resizebox" not in text]
    assert narrow
    assert all(r"\end{tabular}" + "\n" in text for text in narrow)


def test_figures_are_documents_with_their_numbers(files):
    for name, text in files.items():
        if name.endswith(".svg"):
            assert ET.fromstring(text).tag.endswith("svg")
            assert "var(--" not in text
    assert files["digits-reliability.data.csv"].startswith("method,bin,examples,confidence,accuracy\n")


def test_names_that_would_be_one_file_are_numbered():
    taken = {}
    for expected in ("digits-ood-a-b", "digits-ood-a-b-2", "digits-ood-a-b-3"):
        name = _file_name(taken, "digits", {1: "OOD: a b", 2: "OOD: a-b", 3: "OOD: a_b"}[len(taken) + 1])
        assert name == expected
        taken[f"{name}.csv"] = ""


def test_a_file_in_the_place_of_the_folder_is_refused_at_once(run, tmp_path):
    (tmp_path / "file").touch()
    before = (run / "report.html").stat().st_mtime_ns
    done = CliRunner().invoke(cli, ["report", str(run), "--export", str(tmp_path / "file")])
    assert done.exit_code == 2
    assert (run / "report.html").stat().st_mtime_ns == before


def test_exporting_again_gives_the_same_files(run, files, tmp_path):
    assert {path.name: path.read_text(encoding="utf-8") for path in export(run, tmp_path)} == files


def test_any_text_is_safe_in_latex():
    assert tex("50 % & a_b {x} \\ ~ ^ # $") == (
        r"50 \% \& a\_b \{x\} \textbackslash{} \textasciitilde{} \textasciicircum{} \# \$"
    )
    assert tex("1.0 ± 0.1 − p\u0304 ↑ 漢\n\n%") == r"1.0 $\pm$ 0.1 $-$ $\bar{p}$ $\uparrow$ ? \%"


def test_the_command(run, tmp_path):
    done = CliRunner().invoke(cli, ["report", str(run), "--export", str(tmp_path / "paper")], catch_exceptions=False)
    assert done.exit_code == 0
    assert f"Exported: {len(list((tmp_path / 'paper').iterdir()))} files in" in done.output


def test_nothing_to_export(tmp_path, run):
    record, _ = make_job(METHODS["map"], 0, status="failed", error="it broke")
    write_job(tmp_path / "run", record, None)
    write_plan(tmp_path / "run", [record])
    with pytest.raises(UsageError, match="nothing to export"):
        export(tmp_path / "run", tmp_path / "paper")
    assert not (tmp_path / "paper").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is no folder"):
        export(run, tmp_path / "file")
    with pytest.raises((UsageError, DataError)):
        export(tmp_path, tmp_path / "paper")
