"""References: made of a run folder, read back, compared with jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bayes_bench import report
from bayes_bench.analysis.records import load_records, published_frame
from bayes_bench.errors import DataError, UsageError
from bayes_bench.host import shipped
from bayes_bench.jobs import renew
from bayes_bench.jobs.job import Conditions
from bayes_bench.jobs.plan import plan
from bayes_bench.jobs.provenance import task_fields
from bayes_bench.metrics import measure, references
from bayes_bench.results.folder import load_predictions, read_records, save_predictions
from bayes_bench.results.schema import canonical_hash
from bayes_bench.runs import run as runner
from bayes_bench.runs.observer import Observer
from bayes_bench.tasks.spec import SuiteSpec, TaskSpec
from bayes_bench.tasks.suites import load_suite
from bayes_bench.tasks.task import build_task
from synthetic import METHODS, make_job, task_spec, write_job, write_plan, write_run
from tiny_suites import CURVE, register_fakes, suite

SMALL = {"networks": 12, "examples": 40, "ood": {"ood/letters": 30, "validation_ood/letters-kt": 10}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three seeds of a method that reports on its fit, on both kinds of task, beside another method."""
    run = tmp_path / "run"
    records = []
    for kind in ("classification", "regression"):
        for label in ("hypergan", "map"):
            for seed in (0, 1, 2):
                record, predictions = make_job(METHODS[label], seed, kind, **SMALL)
                record["fit"]["diagnostics"] = {"rhat_predictions": 1.01 + 0.01 * seed, "acceptance": 0.8}
                write_job(run, record, predictions)
                records.append(record)
    write_plan(run, records)
    return run


def make(run: Path, out: Path, label: str = "hypergan", task: str = "digits") -> references.Reference:
    return references.make(run, label, task, out)


# Making and reading ---------------------------------------------------------------------------------------


def test_seeds_are_merged(folder: Path, tmp_path: Path) -> None:
    made = make(folder, tmp_path / "digits.safetensors")
    stored = [load_predictions(f) for f, r in read_records(folder)[0] if r["task"] == "digits"
              and r["label"] == "hypergan"]  # fmt: skip
    probs = np.exp(np.concatenate([p["ood/letters/log_probs"] for p in stored]).astype(float))
    np.testing.assert_allclose(made.arrays["ood/letters/probs"], probs.mean(0), atol=1e-3)
    np.testing.assert_allclose(made.arrays["ood/letters/epistemic_variance"], probs.var(0).sum(-1), atol=1e-3)
    assert set(made.arrays) == {
        f"{part}/{what}" for part in ("test", "validation", "ood/letters") for what in ("probs", "epistemic_variance")
    }
    assert made.about["networks"] == 36
    assert made.seeds == [0, 1, 2]
    assert made.diagnostics == {"rhat_predictions": (1.01, 1.03), "acceptance": (0.8, 0.8)}
    assert made.cautions() == ["hypergan ignores the prior: it samples no posterior of this task"]


def test_a_file_holds_what_was_made(folder: Path, tmp_path: Path) -> None:
    for task in ("digits", "cubic"):
        out = tmp_path / f"{task}.safetensors"
        made = make(folder, out, task=task)
        read = references.load(str(out))
        assert read.about == made.about
        assert read.arrays.keys() == made.arrays.keys()
        for name, array in made.arrays.items():
            assert array.dtype == np.float32
            np.testing.assert_array_equal(read.arrays[name], array)
        content = out.read_bytes()
        make(folder, out, task=task)
        assert out.read_bytes() == content


def test_a_regression_is_thinned_and_its_noise_compact() -> None:
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(1200, 9, 1)).astype(np.float32)
    per_network = np.broadcast_to(rng.uniform(1, 2, (1200, 1, 1)), mean.shape)
    made = references.reduce({"curve/mean": mean, "curve/noise_std": np.full_like(mean, 3.0), "test/mean": mean,
                             "test/noise_std": per_network})  # fmt: skip
    shapes = {name: array.shape for name, array in made.items()}
    assert shapes == {
        "curve/mean": (500, 9, 1),
        "curve/noise_std": (1, 1, 1),
        "test/mean": (200, 9, 1),
        "test/noise_std": (200, 1, 1),
    }
    np.testing.assert_array_equal(made["test/mean"], mean[::6])
    np.testing.assert_allclose(made["test/noise_std"][:, 0, 0], per_network[::6, 0, 0])


@pytest.mark.parametrize(("task", "kilobytes"), [("digits", 150), ("cubic", 700)])
def test_files_of_the_shipped_tasks_are_small(task: str, kilobytes: int) -> None:
    spec = load_suite(task).tasks[0]
    data = build_task(spec)
    rng = np.random.default_rng(0)
    sizes = {"test": len(data.test), "validation": 200 if task == "digits" else 20}
    if task == "digits":
        drawn = {
            f"{part}/log_probs": rng.normal(size=(3, n, 10)) for part, n in (sizes | {"ood/letters": 1000}).items()
        }
    else:
        drawn = {f"{part}/mean": rng.normal(size=(800, n, 1)) for part, n in (sizes | {"curve": 241}).items()}
    assert sum(array.nbytes for array in references.reduce(drawn).values()) < 1000 * kilobytes


def test_the_resolution_is_the_distance_between_two_halves(folder: Path, tmp_path: Path) -> None:
    made = make(folder, tmp_path / "digits.safetensors")
    stored = [load_predictions(f) for f, r in read_records(folder)[0] if r["task"] == "digits"
              and r["label"] == "hypergan"]  # fmt: skip
    probs = np.exp(np.concatenate([p["test/log_probs"] for p in stored]).astype(float))
    gap = np.abs(probs[:18].mean(0) - probs[18:].mean(0)).sum(-1).mean() / 2
    assert made.about["resolution"]["reference_tv"] == pytest.approx(gap, abs=1e-3)
    cubic = make(folder, tmp_path / "cubic.safetensors", task="cubic").about["resolution"]
    assert set(cubic) == {f"reference_{what}/{region}" for what in ("tv", "mean_distance", "variance_ratio")
                          for region in ("inside", "gap", "outside")}  # fmt: skip


@pytest.mark.parametrize(
    ("label", "task", "out", "sentence"),
    [
        ("hypergann", "digits", "x.safetensors", "unknown finished method 'hypergann', did you mean 'hypergan'"),
        ("hypergan", "digit", "x.safetensors", "unknown finished task 'digit', did you mean 'digits'"),
        ("hypergan", None, "x.safetensors", "several tasks; choose one with --task: cubic, digits"),
        ("hypergan", "digits", "x.npz", r"a reference is a file \*.safetensors"),
        ("hypergan", "digits", "no/x.safetensors", "cannot write .*No such file"),
    ],
)
def test_refusals(folder: Path, tmp_path: Path, label: str, task: str | None, out: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        references.make(folder, label, task, tmp_path / out)
    assert not list(tmp_path.glob("*.safetensors"))


def test_failed_jobs_are_no_reference(tmp_path: Path) -> None:
    run, jobs = tmp_path / "run", []
    for seed in (0, 1):
        jobs.append(make_job(METHODS["hypergan"], seed, **SMALL, status="failed", error="diverged"))
        write_job(run, *jobs[-1])
    write_plan(run, [record for record, _ in jobs])
    with pytest.raises(UsageError, match="has no finished job"):
        make(run, tmp_path / "x.safetensors")
    write_job(run, *make_job(METHODS["hypergan"], 2, **SMALL))
    made = make(run, tmp_path / "x.safetensors")
    assert made.about["failed_seeds"] == [0, 1]
    assert "left out, because their jobs failed: seeds 0, 1" in made.cautions()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prior": {"std": 2.0, "scaling": "none"}}, r"are of different posteriors \(prior\)"),
        ({}, "have different settings, budgets or devices"),
    ],
)
def test_jobs_of_different_posteriors_or_settings_are_not_merged(
    folder: Path, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    other, predictions = make_job(METHODS["hypergan"], 3, **SMALL, variant="another", key="f" * 64, **changes)
    write_job(folder, other, predictions)
    assert make(folder, tmp_path / "x.safetensors").seeds == [0, 1, 2]  # the latest invocation's
    write_plan(folder, [])
    with pytest.raises(UsageError, match=sentence):
        make(folder, tmp_path / "x.safetensors")


def test_names_and_files(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path)
    (tmp_path / "references").mkdir()
    make(folder, tmp_path / "references" / "digits.safetensors")
    assert references.load("digits").about["task"] == "digits"
    with pytest.raises(UsageError, match="unknown reference 'digit', did you mean 'digits'"):
        references.load("digit")
    with pytest.raises(UsageError, match=r"the reference .*none.safetensors does not exist"):
        references.load(str(tmp_path / "none.safetensors"))
    (tmp_path / "text.safetensors").write_text("nothing of the kind")
    with pytest.raises(DataError, match="is damaged"):
        references.load(str(tmp_path / "text.safetensors"))
    save_predictions(tmp_path / "other.safetensors", {"x": np.zeros(1)})
    with pytest.raises(DataError, match="is not a reference"):
        references.load(str(tmp_path / "other.safetensors"))


# Which posterior ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"prior": {"std": 2.0, "scaling": "none"}}, ["prior"]),
        ({"likelihood": "Categorical(11)"}, ["likelihood"]),
        ({"data": {"checksum": "another"}, "prior": {"std": 1.0, "scaling": "fan_in"}}, ["data", "prior"]),
        ({"network": {"spec": {}, "input_shape": [1, 8, 8], "outputs": 10}}, ["network"]),
    ],
)
def test_another_posterior_is_told_by_its_parts(
    folder: Path, tmp_path: Path, changes: dict[str, Any], parts: list[str]
) -> None:
    out = tmp_path / "digits.safetensors"
    made = make(folder, out)
    spec = task_spec("classification") | {"reference": str(out)}
    record, predictions = make_job(METHODS["map"], 0, **SMALL, spec=spec)
    references.check(made, record)
    assert references.differences(made, record | changes) == parts
    verb = "differs" if len(parts) == 1 else "differ"
    with pytest.raises(UsageError, match=f"is of another posterior: {', '.join(parts)} {verb}"):
        references.check(made, record | changes)
    measured = measure.measure(predictions, record | changes)
    reasons = {row.get("reason") for row in measured["metrics"] if row["name"].startswith("reference_")}
    assert reasons == {f"the reference {str(out)!r} is of another posterior: {', '.join(parts)} {verb}"}
    assert measured["reference"] is None


def test_last_digits_of_a_standardised_noise_do_not_matter() -> None:
    record, _ = make_job(METHODS["map"], 0, "regression", **SMALL)
    near, far = (record | {"likelihood": f"Gaussian(noise_std={s}, dimensions=1)"} for s in (0.3000000000001, 0.301))
    exact = record | {"likelihood": "Gaussian(noise_std=0.3, dimensions=1)"}
    assert references.posterior_of(near) == references.posterior_of(exact) != references.posterior_of(far)


def test_the_grid_of_the_curve_counts_and_its_regions_do_not() -> None:
    record, _ = make_job(METHODS["map"], 0, "regression", **SMALL)
    spec = record["task_spec"]
    other = [record | {"task_spec": spec | {"curve": spec["curve"] | change}} for change in ({"gap": []}, {"high": 7})]
    assert references.posterior_of(other[0]) == references.posterior_of(record) != references.posterior_of(other[1])


# Runs -----------------------------------------------------------------------------------------------------


class Messages(Observer):
    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, sentence: str) -> None:
        self.said.append(sentence)


def without_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "write", lambda run_dir: run_dir / report.REPORT)


def run(out: Path, observer: Observer | None = None, **task: Any) -> runner.RunResult:
    jobs = plan([suite(CURVE | task, methods=["tiny", "pair"], seeds=[0])])
    return runner.run(jobs, out, conditions=Conditions("cpu", threads=1), observer=observer)


def rows_of(record: dict[str, Any]) -> dict[str, Any]:
    return {row["name"]: row["value"] for row in record["metrics"] if row["group"] == "reference"}


def test_a_new_reference_measures_finished_jobs_without_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_fakes(monkeypatch)
    without_page(monkeypatch)
    out, file = tmp_path / "run", str(tmp_path / "curve.safetensors")
    run(out)
    assert all(rows_of(record) == {} for record in load_records(out))
    made = references.make(out, "tiny", None, Path(file))
    assert made.about["posterior"] == references.posterior_of(task_fields(build_task(TaskSpec.model_validate(CURVE))))
    again = run(out, reference=file)
    assert (again.finished, again.skipped) == (0, 2)
    pair, tiny = load_records(out)
    assert rows_of(tiny)["reference_tv/outside"] == pytest.approx(0, abs=1e-6)
    assert rows_of(tiny)["reference_variance_ratio/inside"] == pytest.approx(1)
    assert rows_of(pair)["reference_tv/outside"] > 0
    assert tiny["reference"]["networks"] == 100
    # A file that is gone is a reason at recomputation, and an error in a run.
    Path(file).unlink()
    assert renew.recompute_metrics(out) == 2
    tiny = load_records(out)[1]
    assert set(rows_of(tiny).values()) == {None}
    with pytest.raises(UsageError, match=r"task 'curve': the reference .* does not exist; make it with a run without"):
        run(out, reference=file)
    # Without the key the metrics are gone.
    run(out)
    assert rows_of(load_records(out)[1]) == {}


def test_a_shipped_reference_of_other_data_is_said_and_of_another_prior_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_fakes(monkeypatch)
    without_page(monkeypatch)
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path)
    (tmp_path / "references").mkdir()
    file = tmp_path / "references" / "curve.safetensors"
    run(tmp_path / "run")
    made = references.make(tmp_path / "run", "tiny", None, file)

    def save(**changes: Any) -> None:
        posterior = made.about["posterior"] | changes
        about = made.about | {"posterior": posterior, "identity": canonical_hash(posterior)}
        references.save(references.Reference(about, made.arrays), file)

    save(data="of another installation")
    messages = Messages()
    run(tmp_path / "run", messages, reference="curve")
    (sentence,) = messages.said
    assert "no distances to the reference 'curve', whose data are not exactly those of this installation" in sentence
    assert set(rows_of(load_records(tmp_path / "run")[0]).values()) == {None}
    with pytest.raises(UsageError, match="data differs"):
        run(tmp_path / "run", reference=str(file))
    save(prior={"std": 3.0, "scaling": "none"})
    with pytest.raises(UsageError, match="prior differs"):
        run(tmp_path / "run", reference="curve")


def test_recompute_takes_the_reference_that_a_shipped_suite_has_by_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = write_run(tmp_path / "run", labels=("hypergan", "map"), seeds=(0,), kinds=("regression",), **SMALL)
    references.make(tmp_path / "run", "hypergan", None, tmp_path / "cubic.safetensors")
    spec = records[0]["task_spec"] | {"reference": str(tmp_path / "cubic.safetensors")}
    task = TaskSpec.model_validate({k: v for k, v in spec.items() if v is not None})
    monkeypatch.setattr(renew, "shipped_suites", lambda: {"cubic": tmp_path / "cubic.toml"})
    monkeypatch.setattr(renew, "load_suite", lambda name: SuiteSpec(name="cubic", tasks=(task,)))
    assert renew.recompute_metrics(tmp_path / "run") == 2
    ours = load_records(tmp_path / "run")[0]
    assert rows_of(ours)["reference_tv/gap"] == pytest.approx(0, abs=1e-6)


def test_recompute_takes_threshold_and_published_numbers_of_a_shipped_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = write_run(tmp_path / "run", labels=("hypergan",), seeds=(0,), kinds=("regression",), **SMALL)
    claim = {"method": "hypergan", "metric": "rmse", "value": 3.0, "source": "A", "note": ""}
    now = {"collapse_threshold": 1.0, "published": [claim]}
    spec = {k: v for k, v in records[0]["task_spec"].items() if v is not None} | now
    task = TaskSpec.model_validate(spec)
    monkeypatch.setattr(renew, "shipped_suites", lambda: {"cubic": tmp_path / "cubic.toml"})
    monkeypatch.setattr(renew, "load_suite", lambda name: SuiteSpec(name="cubic", tasks=(task,)))
    assert records[0]["alarms"] == []
    assert renew.recompute_metrics(tmp_path / "run") == 1
    (record,) = load_records(tmp_path / "run")
    assert record["collapse"]["threshold"] == 1
    assert "(threshold 1)" in record["alarms"][0]
    assert published_frame([record])["published"].tolist() == [3.0]


def test_a_file_counts_from_the_suites_folder(tmp_path: Path) -> None:
    text = (shipped.suite_folder() / "gap.toml").read_text(encoding="utf-8")
    for written, expected in (("far/x.safetensors", str(tmp_path / "far/x.safetensors")), ("cubic", "cubic")):
        named = text.replace('name = "gap"\ntitle', f'name = "gap"\nreference = "{written}"\ntitle')
        (tmp_path / "mine.toml").write_text(named, encoding="utf-8")
        assert load_suite(str(tmp_path / "mine.toml")).tasks[0].reference == expected
    (tmp_path / "mine.toml").write_text(named.replace('"cubic"\ntitle', '"../x"\ntitle'), encoding="utf-8")
    with pytest.raises(UsageError, match=r"reference: a reference is the name of a shipped one or a file"):
        load_suite(str(tmp_path / "mine.toml"))


# The page -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_the_page_names_the_reference(folder: Path, tmp_path: Path, kind: str) -> None:
    task = task_spec(kind)["name"]
    file = tmp_path / "x.safetensors"
    make(folder, file, task=task)
    records = []
    for label in ("hypergan", "ensemble", "map"):
        for seed in (0, 1, 2):
            record, predictions = make_job(
                METHODS[label], seed, kind, **SMALL, spec=task_spec(kind) | {"reference": str(file)}
            )
            record |= measure.measure(predictions, record)
            write_job(tmp_path / "page", record, predictions)
            records.append(record)
    write_plan(tmp_path / "page", records)
    html = report.write(tmp_path / "page").read_text(encoding="utf-8")
    assert html.count("<h4>Distance to the reference posterior</h4>") == 1
    assert "Reference: hypergan, 36 networks from 3 seeds; rhat_predictions 1.01 to 1.03, acceptance 0.8." in html
    assert "Its resolution, the same numbers between two halves of its networks: total variation 0." in html
    assert "<dt>Reference posterior</dt>" in html
