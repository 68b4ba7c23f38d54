"""The page and the tables beside it, from synthetic run folders.

The golden files are made anew with ``BAYES_BENCH_UPDATE_GOLDEN=1 pytest tests/report/test_page.py``; look at the
difference before committing it. Figures are cut out of the golden page: they differ between versions of Matplotlib.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.integrate import trapezoid

from bayes_bench import report
from bayes_bench.analysis.records import load_records, load_run, metric_value
from bayes_bench.report.charts import CHARTS, Look
from bayes_bench.report.charts.classification import (
    ROC,
    AccuracyCurve,
    Diversity,
    EntropyCDF,
    Reliability,
    risk_of_the_kept,
    roc_curve,
)
from bayes_bench.report.charts.regression import Curves
from bayes_bench.report.charts.training import Training, pareto_front
from bayes_bench.report.page import open_book, without_figures
from bayes_bench.report.tables import decimals_for, number, signed, tables_for
from bayes_bench.results.folder import read_records
from synthetic import METHODS, make_job, task_spec, write_job, write_plan, write_run

GOLDEN = Path(__file__).parent / "golden"
SMALL = {"networks": 12, "examples": 120, "ood": {"ood/letters": 90, "validation_ood/letters-kt": 30}}
VOID = {"meta", "br", "hr", "link", "img", "input"}


class Page(HTMLParser):
    """Checks nesting while it reads; keeps tags with their attributes, and all text outside of style."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def render(folder: Path) -> tuple[str, Page]:
    html = report.write(folder).read_text(encoding="utf-8")
    return html, Page(html)


@pytest.fixture(scope="module")
def golden_run(tmp_path_factory) -> Path:
    """Three seeds of four methods on two tasks; two seeds of one method failed, one job is still missing."""
    folder = tmp_path_factory.mktemp("golden")
    records = []
    for kind in ("classification", "regression"):
        for label in METHODS:
            for seed in (0, 1, 2):
                fails = label == "mcdropout" and kind == "regression" and seed > 0
                changes = {"status": "failed", "error": "the loss became NaN at step 12"} if fails else {}
                record, predictions = make_job(METHODS[label], seed, kind, **SMALL, **changes)
                records.append(record)
                if (label, kind, seed) != ("map", "regression", 2):
                    write_job(folder, record, predictions)
    write_plan(folder, records)
    report.write(folder)
    return folder


# Golden ---------------------------------------------------------------------------------------------------


def test_golden_page(golden_run):
    made = without_figures((golden_run / "report.html").read_text(encoding="utf-8"))
    golden = GOLDEN / "report.html"
    if os.environ.get("BAYES_BENCH_UPDATE_GOLDEN"):
        golden.write_text(made, encoding="utf-8", newline="\n")
    assert made.splitlines() == golden.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", ["results.csv", "summary.csv", "published.csv", "history.csv"])
def test_golden_tables(golden_run, name):
    golden = GOLDEN / name
    if os.environ.get("BAYES_BENCH_UPDATE_GOLDEN"):
        golden.write_bytes((golden_run / name).read_bytes())
    made, expected = pd.read_csv(golden_run / name), pd.read_csv(golden)
    # Text to the letter, numbers to what the order of a sum may change.
    pd.testing.assert_frame_equal(made, expected, rtol=1e-9, atol=1e-12)


def test_rendering_again_changes_no_byte(golden_run):
    names = ("report.html", "results.csv", "summary.csv", "published.csv", "history.csv")
    before = [(golden_run / name).read_bytes() for name in names]
    report.write(golden_run)
    assert [(golden_run / name).read_bytes() for name in names] == before
    assert not list(golden_run.glob(".*.tmp"))


# The page -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(golden_run) -> tuple[str, Page]:
    html = (golden_run / "report.html").read_text(encoding="utf-8")
    return html, Page(html)


def test_page_is_self_contained_and_small(page):
    html, parsed = page
    assert not re.search(r"https?:|//[a-z]|url\((?!#)|@import|<link|<img|DOCTYPE svg|<metadata", html)
    for tag, attributes in parsed.tags:
        assert not {"src", "srcset", "data", "onclick"} & attributes.keys()
        assert (attributes.get("href") or "#").startswith("data:image/" if tag == "image" else "#")
    assert len(html.encode()) < 1_500_000


def test_links_have_targets_and_ids_are_unique(page):
    _, parsed = page
    ids = [attributes["id"] for _, attributes in parsed.tags if attributes.get("id")]
    assert len(set(ids)) == len(ids)
    clips = {attributes["clip-path"] for _, attributes in parsed.tags if "clip-path" in attributes}
    assert {clip.removeprefix("url(#").removesuffix(")") for clip in clips} <= set(ids)
    for tag in ("a", "use"):
        for attributes in parsed.all(tag):
            assert attributes["href"].removeprefix("#") in ids


def test_every_figure_has_a_name_and_its_table(page):
    html, parsed = page
    drawings = parsed.all("svg")
    assert html.count("</svg>") == len(drawings)
    assert len(drawings) > 20
    assert all(a["role"] == "img" and len(a["aria-label"]) > 20 for a in drawings)
    for figure in re.findall(r"<figure.*?</figure>", html, flags=re.DOTALL):
        assert figure.count("<details>") == 1
        assert figure.count("<td>") >= 4


def test_drawings_follow_the_pages_colours_and_fonts(page):
    html, _ = page
    assert "var(--c0)" in re.search(r'<style id="drawings">.*?</style>', html, flags=re.DOTALL)[0]
    for drawing in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL):
        assert "style=" not in drawing
        assert "#1b1f24" not in drawing
        assert "font-family" not in drawing
        assert "DejaVu" not in drawing


def test_page_says_what_a_reader_needs(page):
    _, parsed = page
    for sentence in (
        "21 of 24 jobs finished",
        "± is the standard deviation over seeds",
        "Out is the positive class",
        "the score is predictive entropy",
        "ties counting ½",
        "the mean intensity of the image alone, without any network, reaches AUROC",
        "they are not notMNIST",
        "uses prior: no",
        "the loss became NaN at step 12",
        "cubic / map / seed 2",
        "No ranking across tasks: 2 tasks and 1 seed",
        "bayes-bench run digits cubic --methods hypergan,mcdropout,ensemble,map",
        "Example CPU",
        "not distinguishable from the best",
    ):
        assert sentence in parsed.words


def test_marked_best_is_the_best_mean_of_the_summary(golden_run):
    summary = pd.read_csv(golden_run / "summary.csv")
    book = open_book(load_run(golden_run))
    digits = next(c for c in book.comparisons if c.name == "digits")
    for metric, better in (("accuracy", "idxmax"), ("nll", "idxmin"), ("ood_auroc/letters", "idxmax")):
        rows = summary[summary["task"] == "digits"].set_index("method")[metric]
        assert digits.marks(metric).best == getattr(rows, better)()
    html = (golden_run / "report.html").read_text(encoding="utf-8")
    assert 'class="best"' in html


def test_not_applicable_has_its_reason_beside_and_below(page):
    html, parsed = page
    assert 'title="support 5"' in html
    assert "support 5." in parsed.words


def test_given_settings_are_marked(page):
    html, _ = page
    assert "<mark>0.5</mark>" in html  # adversarial_weight
    assert "<mark>0.001</mark>" not in html  # a default


# Other runs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_one_seed_of_one_method(tmp_path, kind):
    write_run(tmp_path, labels=["map"], seeds=[4], kinds=[kind], **SMALL)
    html, parsed = render(tmp_path)
    assert "no other method to compare with" in parsed.words
    assert "Nothing is marked as best" in parsed.words
    assert 'class="best"' not in html
    assert "nan" not in re.sub(r"provenance|permutations", "", parsed.words.lower()).split()
    assert ("Reliability" in parsed.words) == (kind == "classification")


def test_one_seed_of_two_methods_is_not_ranked(tmp_path):
    write_run(tmp_path, labels=["map", "ensemble"], seeds=[0], kinds=["classification"], **SMALL)
    html, parsed = render(tmp_path)
    assert "no ranking (1 seed, 3 are needed to rank)" in parsed.words
    assert 'class="best"' not in html
    assert 'class="tied"' not in html


def test_nothing_finished_yet(tmp_path):
    record, _ = make_job(METHODS["map"], 0, **SMALL)
    write_plan(tmp_path, [record])
    _, parsed = render(tmp_path)
    assert "No job has finished or failed yet" in parsed.words
    assert "digits / map / seed 0" in parsed.words
    assert pd.read_csv(tmp_path / "results.csv").empty


def test_only_failures(tmp_path):
    record, _ = make_job(METHODS["map"], 0, status="failed", error="out of memory", fit=None, cost=None, **SMALL)
    write_job(tmp_path, record, None)
    write_plan(tmp_path, [record])
    _, parsed = render(tmp_path)
    assert "out of memory" in parsed.words
    assert "No job of this task has finished" in parsed.words
    row = pd.read_csv(tmp_path / "results.csv").iloc[0]
    assert (row["status"], row["error"]) == ("failed", "out of memory")


def test_damaged_predictions_are_told_and_the_rest_is_shown(tmp_path):
    records = write_run(tmp_path, labels=["map"], kinds=["classification"], **SMALL)
    broken = next(tmp_path.glob("jobs/*/map/seed-1-*/predictions.safetensors"))
    broken.write_bytes(b"\0" * 100)
    _, parsed = render(tmp_path)
    assert "is damaged" in parsed.words
    accuracy = np.mean([metric_value(record, "accuracy") for record in records])
    assert number(100 * accuracy, 2) in parsed.words


def test_settings_and_budgets_are_never_mixed(tmp_path):
    changed = replace(METHODS["hypergan"], config={"adversarial_weight": 0.0})
    made = [make_job(m, s, **SMALL) for m in (METHODS["hypergan"], changed) for s in (0, 1, 2)]
    made.append(make_job(METHODS["hypergan"], 0, budget_scale=0.5, **SMALL))
    for record, predictions in made:
        write_job(tmp_path, record, predictions)
    write_plan(tmp_path, [record for record, _ in made])
    render(tmp_path)
    summary = pd.read_csv(tmp_path / "summary.csv")
    assert summary["accuracy"].notna().all()
    assert sorted(summary["seeds"]) == [1, 3, 3]
    assert summary["variant"].nunique() == 3
    assert set(summary["task"]) == {"digits (budget 400,000)", "digits (budget 200,000)"}
    assert summary["method"].str.startswith("hypergan").all()
    assert (summary["method"] == "hypergan").sum() == 1


def test_changed_code_is_told(tmp_path):
    for seed in (0, 1):
        record, predictions = make_job(METHODS["map"], seed, code={"core": str(seed), "method": "x"}, **SMALL)
        write_job(tmp_path, record, predictions)
    write_plan(tmp_path, [record])
    _, parsed = render(tmp_path)
    assert "the seeds of map were run with different versions of the code" in parsed.words


def test_alarms_are_shown_once_with_their_seeds(tmp_path):
    for seed in (0, 1, 3):
        record, predictions = make_job(METHODS["hypergan"], seed, **SMALL)
        write_job(tmp_path, record | {"alarms": ["collapse: all alike"]}, predictions)
    write_plan(tmp_path, [record])
    _, parsed = render(tmp_path)
    assert parsed.words.count("collapse: all alike") == 1
    assert "digits, hypergan, seeds 0–1, 3: collapse: all alike" in parsed.words


def test_more_methods_than_colours(tmp_path):
    methods = [replace(METHODS["ensemble"], label=f"ensemble-{i:02}") for i in range(10)]
    made = [make_job(method, 0, **SMALL) for method in methods]
    for record, predictions in made:
        write_job(tmp_path, record, predictions)
    write_plan(tmp_path, [record for record, _ in made])
    _, parsed = render(tmp_path)
    look = Look(tuple(method.label for method in methods))
    assert len({(look.colour(m), str(look.line(m)["linestyle"])) for m in look.methods}) == 10
    assert len({(look.colour(m), look.marker(m)) for m in look.methods}) == 10
    assert len({(look.variable(m), look.glyph(m)) for m in look.methods}) == 10
    assert "ensemble-09" in parsed.words


def test_a_method_that_uses_the_prior_on_one_task_alone_says_so(tmp_path):
    made = [make_job(METHODS["ensemble"], 0, kind, **SMALL) for kind in ("classification", "regression")]
    made[0][0]["uses_prior"], made[1][0]["uses_prior"] = True, False
    for record, predictions in made:
        write_job(tmp_path, record, predictions)
    write_plan(tmp_path, [record for record, _ in made])
    _, parsed = render(tmp_path)
    assert "uses prior: digits: yes, cubic: no" in parsed.words


def test_one_missing_predictions_file_leaves_a_page(tmp_path):
    for label in ("ensemble", "map"):
        for seed in (0, 1, 2):
            record, predictions = make_job(METHODS[label], seed, **SMALL)
            write_job(tmp_path, record, predictions)
    write_plan(tmp_path, [r for _, r in read_records(tmp_path)[0]])
    next(tmp_path.rglob("ensemble/seed-1*/predictions.safetensors")).unlink()
    _, parsed = render(tmp_path)
    assert "predictions.safetensors" in parsed.words
    assert "6 of 6 jobs finished" in parsed.words


def test_equal_means_are_called_equal(tmp_path):
    made = [make_job(replace(METHODS["ensemble"], label=label), seed, **SMALL) for label in "ab" for seed in (0, 1, 2)]
    for record, _ in made:
        record["key"] = hashlib.sha256(f"{record['label']}{record['seed']}".encode()).hexdigest()
        predictions = made[record["seed"]][1]
        record["metrics"] = made[record["seed"]][0]["metrics"]
        write_job(tmp_path, record, predictions)
    write_plan(tmp_path, [record for record, _ in made])
    _, parsed = render(tmp_path)
    assert "a and b have the same mean, " in parsed.words


def test_the_pareto_front_does_not_rank_what_batches_leave_of_a_budget():
    points = pd.DataFrame({"cost": [4965.0, 4997.0, 4990.0, 100.0], "nll": [0.5, 0.3, 0.4, 0.9]})
    assert pareto_front(points)["nll"].tolist() == [0.9, 0.3]


EVIL = "<script>alert(1)</script>\"'&"


def test_every_text_is_escaped(tmp_path):
    spec = task_spec("classification") | {"title": EVIL, "ood": [{"source": "x", "name": "letters"}]}
    spec["network"] = {"name": EVIL, EVIL: EVIL}
    evil = replace(METHODS["ensemble"], config={EVIL: EVIL}, settings={EVIL: 1})
    sizes = {"ood/letters": 30}
    made = [make_job(evil, seed, spec=spec, examples=60, ood=sizes) for seed in (0, 1, 2)]
    failed, _ = make_job(METHODS["map"], 0, spec=spec, examples=60, ood=sizes, status="failed", error=EVIL)
    for record, predictions in [*made, (failed, None)]:
        data = record["data"] | {
            "notes": [EVIL],
            "classes": [EVIL] * 10,
            "missing_ood": {"letters-kt": EVIL},
        }
        changes = {
            "data": data,
            "alarms": [EVIL],
            "likelihood": EVIL,
            "versions": {EVIL: EVIL},
            "machine": {EVIL: EVIL},
        }
        if predictions:
            record = record | {"fit": record["fit"] | {"notes": [EVIL]}, "weight_layers": ["conv1", EVIL]}
            record["metrics"] = [*record["metrics"], {**record["metrics"][0], "name": f"weight_diversity/{EVIL}"}]
        write_job(tmp_path, record | changes, predictions)
    write_plan(tmp_path, [r for r, _ in made] + [failed | {"key": "0" * 64}], command=["run", EVIL])
    html, parsed = render(tmp_path)
    assert html.count("<script") == 1
    (script,) = re.findall(r"<script>(.*)</script>", html, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html
    assert EVIL not in html
    assert parsed.words.count("<script>alert(1)</script>") > 15
    assert "onerror" not in html


def test_a_spreadsheet_sees_no_formula():
    frame = pd.DataFrame({"error": ["=HYPERLINK(1)", "+x", "-x", "@y", "a\nb", None], "value": [-1.5, 2, 3, 4, 5, 6]})
    text = report.csv(frame)
    assert pd.read_csv(io.StringIO(text))["error"].tolist()[:5] == ["'=HYPERLINK(1)", "'+x", "'-x", "'@y", "a b"]
    assert "\n'=HYPERLINK(1),-1.5\n" in text


def test_a_failure_while_rendering_leaves_the_old_files(tmp_path, monkeypatch):
    write_run(tmp_path, labels=["map"], seeds=[0], kinds=["regression"])
    for name in ("results.csv", "summary.csv", "report.html"):
        (tmp_path / name).write_text("old", encoding="utf-8")
    monkeypatch.setattr("bayes_bench.report.page.render", lambda book: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.write(tmp_path)
    assert {(tmp_path / n).read_text() for n in ("results.csv", "summary.csv", "report.html")} == {"old"}


# Figures and numbers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def book(golden_run):
    return open_book(load_run(golden_run))


def jobs_of(book, task):
    return next(comparison.jobs for comparison in book.comparisons if comparison.name == task)


def test_every_figure_draws_and_has_numbers(book):
    for comparison in book.comparisons:
        for make in CHARTS[comparison.kind]:
            chart = make(comparison.jobs, book.look)
            figure = chart.plot()
            assert len(figure.axes) == len(chart.panels()) > 0
            assert len(chart.frame()) > 0
            assert all(axes.has_data() for axes in figure.axes)


def test_accuracy_curve_agrees_with_the_metric(book):
    jobs = jobs_of(book, "digits")
    frame = AccuracyCurve(jobs, book.look).frame().set_index(["method", "networks"])["accuracy %"]
    expected = np.mean([metric_value(job.record, "accuracy@10") for job in jobs["hypergan"]])
    assert frame["hypergan", 10] == pytest.approx(100 * expected)
    assert list(frame["map"].index) == [1]
    assert frame["ensemble"].index.max() == 5


def test_reliability_counts_every_example(book):
    frame = Reliability(jobs_of(book, "digits"), book.look).frame()
    assert (frame.groupby("method")["examples"].sum() == 3 * SMALL["examples"]).all()
    gap = (frame["examples"] * (frame["accuracy"] - frame["confidence"]).abs()).groupby(frame["method"]).sum()
    pooled = gap["map"] / (3 * SMALL["examples"])
    each = [metric_value(job.record, "ece") for job in jobs_of(book, "digits")["map"]]
    assert pooled <= np.mean(each) + 1e-9  # pooling bins can only cancel errors


def test_entropy_distribution_is_one_at_ln_c(book):
    chart = EntropyCDF(jobs_of(book, "digits"), book.look)
    assert chart.panels() == ("Test data", "Out: letters")
    frame = chart.frame()
    last = frame.groupby("data").last()
    assert last["entropy ≤"].tolist() == pytest.approx([np.log(10)] * 2)
    assert (last.drop(columns="entropy ≤") == 1).all().all()


def test_risk_of_all_is_the_error_and_ties_share_it(book):
    for job in jobs_of(book, "digits")["ensemble"]:
        (error,) = risk_of_the_kept(job.examples["entropy"], 1 - job.examples["correct"], np.ones(1))
        assert error == pytest.approx(1 - metric_value(job.record, "accuracy"))
    scores, losses = np.array([3.0, 1, 1, 2]), np.array([1.0, 1, 0, 0])
    risks = risk_of_the_kept(scores, losses, np.array([0.01, 0.25, 0.5, 0.75, 1]))
    np.testing.assert_allclose(risks, [0.5, 0.5, 0.5, 1 / 3, 0.5])


def test_the_area_below_the_roc_curve_is_the_auroc(book):
    for job in jobs_of(book, "digits")["ensemble"]:
        flagged, found = roc_curve(job.examples["entropy"], job.examples["entropy/letters"])
        assert (flagged[0], found[0], flagged[-1], found[-1]) == (0, 0, 1, 1)
        area = trapezoid(found, flagged)
        assert area == pytest.approx(metric_value(job.record, "ood_auroc/letters"), abs=1e-9)
    flagged, found = roc_curve(np.array([0.0, 1, 1]), np.array([1.0, 2]))
    np.testing.assert_allclose(flagged, [0, 0, 2 / 3, 1])
    np.testing.assert_allclose(found, [0, 0.5, 1, 1])
    chart = ROC(jobs_of(book, "digits"), book.look)
    assert chart.panels() == ("Out: letters",)
    assert (chart.frame().drop(columns="data").diff().dropna() >= 0).all().all()


def test_the_threshold_of_the_alarm_is_said_where_the_first_method_has_one_network(book):
    comparison = next(comparison for comparison in book.comparisons if comparison.name == "digits")
    records = dict(sorted(comparison.records.items(), key=lambda item: item[0] != "map"))
    assert next(iter(records)) == "map"
    tables = tables_for(replace(comparison, records=records))
    (diversity,) = [table for table in tables if table.caption == "Diversity of predictions"]
    assert "A total variation below 0.01 raises the collapse alarm." in diversity.remarks


def test_diversity_leaves_out_one_network(book):
    chart = Diversity(jobs_of(book, "digits"), book.look)
    assert "map" not in chart.methods()
    assert chart.panels()[0] == "Norm spread of weights"
    assert chart.panels()[-1] == "Disagreement of predictions"
    assert set(chart.frame()["where"]) == {"conv1", "conv2", "linear1", "all", "test", "letters"}


def test_training_has_a_panel_per_measure_and_layer(book):
    chart = Training(jobs_of(book, "digits"), book.look)
    layers = [f"Norm spread: {layer}" for layer in ("conv1", "conv2", "linear1")]
    assert chart.panels() == ("Accuracy, %", "NLL, nats", "Disagreement, %", "Mutual information, nats", *layers)
    frame = chart.frame().set_index(["logged", "method"])
    accuracy = frame.loc[("Accuracy, %", "map")]
    assert len(accuracy) == 6
    assert (accuracy["seeds"] == 3).all()
    assert accuracy["std"].to_numpy() == pytest.approx(np.full(6, 0.2))  # the seeds are 0.2 points apart
    assert "map" not in frame.loc["Disagreement, %"].index  # one network


def test_seeds_that_go_on_after_others_are_drawn_alone(book):
    jobs = jobs_of(book, "digits")["map"]
    short = jobs[0].record["fit"]["history"][:5]
    first = replace(jobs[0], record=jobs[0].record | {"fit": {"history": short}})
    chart = Training({"map": [first, *jobs[1:]]}, book.look)
    (axes,) = chart.plot("Accuracy, %").axes
    band, *alone = axes.get_lines()
    assert band.get_xdata()[-1] == short[-1]["evaluations"]
    assert [line.get_linestyle() for line in alone] == [":", ":"]
    assert alone[0].get_xdata()[-1] == jobs[1].record["fit"]["history"][-1]["evaluations"]


def test_curves_share_one_scale(book):
    chart = Curves(jobs_of(book, "cubic"), book.look)
    figure = chart.plot()
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    low, high = figure.axes[0].get_ylim()
    assert low < -216
    assert high > 216  # the known function on [−6, 6]


def test_numbers_in_print():
    assert number(-0.0004, 3) == "0.000"
    assert number(-1234.5, 1) == "−1,234.5"
    assert signed(0.02, 2) == "+0.02"
    assert signed(-0.02, 2) == "−0.02"
    assert [decimals_for(v, 3) for v in (0.0312, 0.97, 2.5, 34.5, 1234, 0.0)] == [4, 3, 2, 1, 0, 2]


def test_records_are_read_as_they_are_stored(golden_run):
    path = next(golden_run.glob("jobs/digits/map/*/record.json"))
    stored = json.loads(path.read_text(encoding="utf-8"))
    del stored["checksum"]
    assert stored in load_records(golden_run)
