from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bayes_bench import Categorical, Gaussian, report
from bayes_bench.errors import DataError, UnsupportedNetworkError, UsageError
from bayes_bench.jobs import execute as execution
from bayes_bench.jobs import predictions
from bayes_bench.jobs.job import Conditions, Job
from bayes_bench.jobs.plan import Override, plan
from bayes_bench.jobs.predict import load
from bayes_bench.jobs.provenance import derived_seed
from bayes_bench.jobs.renew import recompute_metrics
from bayes_bench.networks import layer_names
from bayes_bench.posterior import surroundings
from bayes_bench.results.folder import load_predictions, read_records, read_run, write_record
from bayes_bench.results.lock import locked
from bayes_bench.runs import run as runner
from bayes_bench.runs.observer import Observer
from bayes_bench.tasks.task import build_task
from fake_methods import Tiny
from tiny_suites import CURVE, DIGITS, find_finished, register_fakes, suite

WRITE_REPORT = report.write


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    register_fakes(monkeypatch)
    # The page is another module's work and takes seconds; test_cli renders real ones.
    monkeypatch.setattr(report, "write", lambda run_dir: Path(run_dir) / "report.html")


class Seen(Observer):
    def __init__(self) -> None:
        self.messages: list[str] = []
        self.fits: list[str] = []
        self.fractions: list[float] = []

    def message(self, sentence: str) -> None:
        self.messages.append(sentence)

    def started(self, job: Job, number: int, total: int, seconds_left: float | None) -> None:
        self.fits.append(job.name)

    def progress(self, job: Job, fraction: float, values: Any, seconds_left: float | None) -> None:
        self.fractions.append(fraction)


def go(jobs: Sequence[Job], run_dir: Path, **arguments: Any) -> tuple[runner.RunResult, Seen]:
    seen = Seen()
    conditions = Conditions("cpu", threads=1, data_root=arguments.pop("data_root", None))
    return runner.run(jobs, run_dir, conditions, observer=seen, **arguments), seen


def records(run_dir: Path) -> list[dict[str, Any]]:
    found, problems = read_records(run_dir)
    assert problems == []
    return [record for _, record in found]


def test_a_regression_is_recorded_in_raw_units(tmp_path: Path) -> None:
    (job,) = plan([suite(methods=["tiny"], seeds=[0])])
    result, seen = go([job], tmp_path / "run", suites=[suite()])
    assert (result.finished, result.failed, result.skipped, result.exit_code) == (1, 0, 0, 0)
    assert seen.fractions == [0.5]
    (record,) = records(tmp_path / "run")
    folder = next((tmp_path / "run" / "jobs" / "curve" / "tiny").iterdir())
    arrays = load_predictions(folder)
    n = record["data"]["n_test"]
    assert {name: values.shape for name, values in arrays.items()} == {
        "test/mean": (100, n, 1),
        "test/noise_std": (100, n, 1),
        "test/y": (n, 1),
        "validation/mean": (100, record["data"]["n_validation"], 1),
        "validation/noise_std": (100, record["data"]["n_validation"], 1),
        "validation/y": (record["data"]["n_validation"], 1),
        "curve/mean": (100, 7, 1),
        "curve/noise_std": (100, 7, 1),
        "curve/x": (7,),
        "train/x": (record["data"]["n_train"],),
        "train/y": (record["data"]["n_train"],),
        "weights/gram/linear1": (100, 100),
        "weights/gram/linear2": (100, 100),
        "weights/gram/all": (100, 100),
    }
    np.testing.assert_allclose(arrays["curve/x"], np.linspace(-6, 6, 7), atol=1e-5)
    np.testing.assert_allclose(arrays["test/noise_std"], 3.0, rtol=1e-5)  # the suite's, in the units of y
    assert np.abs(arrays["train/y"] - arrays["train/x"] ** 3).max() < 15  # y = x³ + N(0, 3²)
    assert {"rmse", "weight_diversity/linear1", "fit_seconds"} <= {row["name"] for row in record["metrics"]}
    assert record["kind"] == "regression"
    assert record["budget"] == {"total": 100, "spent": 50.0, "unspent": 50.0}
    assert record["weight_layers"] == ["linear1", "linear2"]
    assert record["weight_sizes"] == {"linear1": 5, "linear2": 5, "all": 16}
    assert (record["networks"], record["support"], record["uses_prior"]) == (100, None, False)
    assert record["machine"]["threads"] == 1
    assert record["cost"]["peak_memory_mb"] > 50
    run = read_run(tmp_path / "run")
    assert [entry["key"] for entry in run["jobs"]] == [record["key"]]
    assert (tmp_path / "run" / run["jobs"][0]["folder"] / "record.json").is_file()


def test_a_classification_is_recorded(tmp_path: Path) -> None:
    (job,) = plan([suite(DIGITS, methods=["pair"], seeds=[4])])
    go([job], tmp_path / "run")
    (record,) = records(tmp_path / "run")
    arrays = load_predictions(next((tmp_path / "run" / "jobs" / "digits" / "pair").iterdir()))
    assert arrays["test/log_probs"].shape == (2, record["data"]["n_test"], 10)
    assert arrays["test/log_probs"].dtype == np.float16
    total = np.exp(arrays["ood/letters/log_probs"].astype(np.float64)).sum(-1)
    np.testing.assert_allclose(total, 1, atol=5e-3)
    assert arrays["test/mean_intensity"].shape == (record["data"]["n_test"],)
    assert abs(arrays["test/mean_intensity"].mean()) < 0.1  # standardised
    assert (record["networks"], record["support"], record["seed"]) == (2, 2, 4)
    assert record["weight_layers"] == ["conv1", "linear1"]
    values = {row["name"]: row for row in record["metrics"]}
    assert values["accuracy@5"]["reason"] == "support 2"
    assert 0 <= values["ood_auroc/letters"]["value"] <= 1


def test_predictions_are_those_of_the_sampled_networks(tmp_path: Path) -> None:
    """Chunking, float16 and units change nothing beyond rounding."""
    spec = suite(DIGITS).tasks[0]
    task = build_task(spec)
    posterior = Tiny(task.build_network(0), task.likelihood, task.prior)
    posterior.fit(task.fit_data, budget=10)
    weights = posterior.sample(5, seed=0)
    direct = torch.log_softmax(posterior.outputs(task.test.x, weights), -1).numpy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictions, "OUTPUT_BYTES", 4 * 5 * 10 * 64)  # 64 examples at a time
        chunked = predictions.predict(posterior, weights, task.test.x, task.standardiser)["log_probs"]
    np.testing.assert_allclose(chunked, direct, rtol=2e-3, atol=1e-6)


def test_impossible_classes_stay_finite() -> None:
    class Sure(Categorical):
        def predict(self, outputs: Any, weights: Any) -> Any:
            return {"log_probs": torch.tensor([0.0, -1e30]).expand(*outputs.shape[:2], 2)}

    network = nn.Linear(1, 2)
    posterior = Tiny(network, Sure(2))
    posterior.load_state_dict(dict(network.named_parameters()))
    units = build_task(suite(DIGITS).tasks[0]).standardiser
    stored = predictions.predict(posterior, posterior.sample(2, seed=0), torch.zeros(3, 1), units)["log_probs"]
    assert np.isfinite(stored).all()


def test_gram_matrices_equal_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "GRAM_BYTES", 8 * 6 * 4)  # 4 columns at a time
    network = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2))
    network[2].weight.requires_grad_(False)
    likelihood = Gaussian("learned", 2)
    posterior = Tiny(network, likelihood)
    posterior.load_state_dict({name: torch.ones_like(w) for name, w in posterior.initial.items()})
    weights = posterior.sample(6, seed=0)
    assert "likelihood.log_noise_std" in weights
    grams, sizes = predictions.gram_matrices(posterior.network, weights)
    assert sizes == {"linear1": 15, "linear2": 10}

    def gram(*names: str) -> np.ndarray:
        flat = torch.cat([weights[name].flatten(1) for name in names], 1).double()
        return (flat @ flat.T).numpy()

    np.testing.assert_allclose(grams["linear1"], gram("0.weight"), rtol=1e-12)
    np.testing.assert_allclose(grams["linear2"], gram("2.weight"), rtol=1e-6)
    np.testing.assert_allclose(grams["all"], gram(*(n for n, _ in network.named_parameters())), rtol=1e-6)


def test_layers_with_names_keep_them() -> None:
    named = nn.ModuleDict({"first": nn.Linear(1, 2), "block": nn.Sequential(nn.Conv2d(1, 1, 3))})
    assert layer_names(named) == {"first.weight": "first", "block.0.weight": "block.0"}
    clash = nn.ModuleDict({"linear1": nn.Linear(1, 2), "0": nn.Linear(1, 2)})
    assert len(set(layer_names(clash).values())) == 2
    both = nn.ModuleDict({"linear2": nn.Linear(1, 2), "0": nn.Linear(1, 2)})
    assert layer_names(both) == {"linear2.weight": "linear2.weight", "0.weight": "0.weight"}
    bilinear = nn.Sequential(nn.Bilinear(1, 1, 1))
    assert layer_names(bilinear) == {"0.weight": "bilinear1"}


def test_a_fit_that_says_what_no_record_holds_is_a_failed_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = Tiny._fit

    def talkative(self: Tiny, data: Any, loop: Any, rng: Any) -> None:
        loop.diagnose(**{1000 * "x": 1.0})
        fit(self, data, loop, rng)

    monkeypatch.setattr(Tiny, "_fit", talkative)
    result, _ = go(plan([suite(seeds=[0])]), tmp_path / "run")  # the other method has a fit of its own
    assert (result.finished, result.failed) == (1, 1)
    (failed,) = (record for record in records(tmp_path / "run") if record["status"] == "failed")
    assert failed["error"].startswith("DataError: its fit.diagnostics.xxx")


def test_finished_jobs_are_skipped_unless_fresh(tmp_path: Path) -> None:
    jobs = plan([suite()])
    assert not any(find_finished(job, tmp_path / "run") for job in jobs)
    first, seen = go(jobs[:3], tmp_path / "run")
    assert first.finished == 3
    assert [find_finished(job, tmp_path / "run") for job in jobs] == [True, True, True, False]
    second, seen = go(jobs, tmp_path / "run")
    assert (second.finished, second.skipped) == (1, 3)
    assert seen.fits == ["curve/pair seed 1"]
    assert seen.messages == []
    before = records(tmp_path / "run")
    third, seen = go(jobs, tmp_path / "run", fresh=True)
    assert (third.finished, third.skipped) == (4, 0)
    # The same job gives the same results: only what is measured by the clock differs.
    for old, new in zip(before, records(tmp_path / "run"), strict=True):
        assert old["files"]["predictions.safetensors"] == new["files"]["predictions.safetensors"]
        assert old["key"] == new["key"]


def test_changed_settings_make_new_jobs_beside_the_old(tmp_path: Path) -> None:
    spec = suite(methods=["tiny"], seeds=[0])
    go(plan([spec]), tmp_path / "run")
    result, _ = go(plan([spec], overrides=[Override("tiny", "scale", 0.5)]), tmp_path / "run")
    assert result.finished == 1
    both = records(tmp_path / "run")
    assert sorted(record["config"]["scale"] for record in both) == [0.1, 0.5]
    assert len({record["variant"] for record in both}) == 2
    assert len(read_run(tmp_path / "run")["jobs"]) == 1  # the plan of the latest invocation


def test_damaged_results_are_noticed_and_made_again(tmp_path: Path) -> None:
    jobs = plan([suite()])
    go(jobs, tmp_path / "run")
    folders = [folder for folder, _ in read_records(tmp_path / "run")[0]]
    (folders[0] / "record.json").write_text("{", encoding="utf-8")
    (folders[1] / "posterior.safetensors").unlink()
    (folders[2] / "record.json").unlink()
    result, seen = go(jobs, tmp_path / "run")
    assert (result.finished, result.skipped) == (3, 1)
    assert len(seen.messages) == 2
    assert all("the job runs again" in message for message in seen.messages)
    assert len(records(tmp_path / "run")) == 4


def test_changed_code_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = plan([suite()])
    go(jobs, tmp_path / "run")
    monkeypatch.setattr(runner, "code_of", lambda job, allow_code: {"core": "another"})
    result, seen = go(jobs, tmp_path / "run")
    assert result.skipped == 4
    assert seen.messages == ["the code has changed since 4 of the finished jobs were run; --fresh runs them again"]


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("diverge", "DivergenceError: training diverged: loss is nan after 7 steps"),
        ("crash", "ZeroDivisionError: division by zero"),
        (
            "exit",
            "PluginError: what Tiny uses asked to end the process in the middle of a fit (exit code 0); its library "
            "may not take such data or numbers",
        ),
    ],
)
def test_a_job_that_raises_is_a_failed_row_and_the_others_go_on(tmp_path: Path, trouble: str, reason: str) -> None:
    jobs = plan([suite()], overrides=[Override("tiny", "trouble", trouble)])
    result, _ = go(jobs, tmp_path / "run")
    assert (result.finished, result.failed, result.exit_code) == (2, 2, 1)
    failed = [record for record in records(tmp_path / "run") if record["status"] == "failed"]
    assert [record["error"] for record in failed] == [reason, reason]
    assert [record["metrics"] for record in failed] == [[], []]
    log = next((tmp_path / "run/jobs/curve/tiny").glob("seed-0-*/log.txt")).read_text(encoding="utf-8")
    assert "Traceback" in log
    assert "fake_methods.py" in log
    # Failures are not finished: they are tried again.
    again, seen = go(jobs, tmp_path / "run")
    assert (again.failed, again.skipped, len(seen.fits)) == (2, 2, 2)


def test_what_a_method_refuses_stops_the_run_before_anything_trains(tmp_path: Path) -> None:
    jobs = plan([suite(methods=["pair", "tiny"])], overrides=[Override("tiny", "trouble", "refuse")])
    sentence = r"curve/tiny: tiny cannot treat layer '1'; freeze it \(without tiny: --methods pair\)"
    with pytest.raises(UnsupportedNetworkError, match=sentence):
        runner.run(jobs, tmp_path / "run", conditions=Conditions("cpu", threads=1))
    assert not (tmp_path / "run").exists()


def test_all_refusals_are_told_at_once(tmp_path: Path) -> None:
    entries = [
        {"label": label, "method": "tiny", "settings": {"trouble": trouble}}
        for label, trouble in (("one", "refuse"), ("two", "refuse"), ("small", "refuse by budget"))
    ]
    with pytest.raises(UnsupportedNetworkError) as refused:
        runner.run(plan([suite(methods=entries)]), tmp_path / "run", conditions=Conditions("cpu", threads=1))
    assert str(refused.value) == (
        "curve/one: tiny cannot treat layer '1'; freeze it; curve/small: tiny needs a budget of 7"  # once, if alike
    )


def test_a_check_that_crashes_is_that_jobs_own_failure(tmp_path: Path) -> None:
    jobs = plan([suite(seeds=[0])], overrides=[Override("tiny", "trouble", "check crashes")])
    result = runner.run(jobs, tmp_path / "run", conditions=Conditions("cpu", threads=1))
    assert (result.finished, result.failed) == (1, 1)


def test_what_a_method_says_of_its_fit_is_recorded_and_a_metric(tmp_path: Path) -> None:
    runner.run(plan([suite(methods=["tiny"], seeds=[0])]), tmp_path / "run", conditions=Conditions("cpu", threads=1))
    ((_, record),) = read_records(tmp_path / "run")[0]
    assert record["fit"]["diagnostics"] == {"answer": 42.0}
    values = {row["name"]: row["value"] for row in record["metrics"]}
    assert values["diagnostic/answer"] == 42.0


def test_the_page_shows_how_far_chains_agree_and_students_follow(tmp_path: Path) -> None:
    settings = {"chains": 2, "samples": 20, "batch_size": 5, "step_size": 0.001}
    entries = [
        {"label": "chains", "method": "sgld", "settings": settings},
        {"label": "student", "method": "apd", "settings": settings | {"student_steps": 5}},
    ]
    jobs = plan([suite(CURVE | {"budget": 3000}, methods=entries, seeds=[0])])
    assert runner.run(jobs, tmp_path / "run", conditions=Conditions("cpu", threads=1)).exit_code == 0
    page = WRITE_REPORT(tmp_path / "run").read_text(encoding="utf-8")
    for text in ("R-hat", "temperature excess", "Student and teacher", "Kolmogorov–Smirnov"):
        assert text in page


def test_a_failure_replaces_an_earlier_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = plan([suite(methods=["tiny"], seeds=[0])])
    go(jobs, tmp_path / "run")

    def broken(*arguments: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(execution, "measure", broken)
    result, _ = go(jobs, tmp_path / "run", fresh=True)
    assert result.failed == 1
    (record,) = records(tmp_path / "run")
    assert record["error"].startswith("MemoryError (memory ran out; lower ")
    assert record["files"].keys() == {"log.txt"}


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path) -> None:
    interrupting = {"label": "stop", "method": "tiny", "settings": {"trouble": "interrupt"}}
    jobs = plan([suite(methods=["pair", interrupting], seeds=[0, 1])])
    result, _ = go(jobs, tmp_path / "run")
    assert (result.finished, result.interrupted, result.exit_code, result.total) == (1, True, 130, 4)
    assert sorted(path.parent.parent.name for path in (tmp_path / "run").glob("jobs/*/*/*/*.*")) == ["pair"] * 4
    assert len(read_run(tmp_path / "run")["jobs"]) == 4
    with locked(tmp_path / "run"):
        pass  # the lock was released


def test_warnings_and_notes_are_in_the_log(tmp_path: Path) -> None:
    jobs = plan([suite(methods=["tiny"], seeds=[0])], overrides=[Override("tiny", "trouble", "warn")])
    go(jobs, tmp_path / "run")
    log = next((tmp_path / "run").glob("jobs/*/*/*/log.txt")).read_text(encoding="utf-8")
    assert "warning: UserWarning: tiny is too small" in log
    assert "note: tiny was here" in log


def test_global_state_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    go(plan([suite()]), tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_settings_that_a_method_changes_do_not_reach_other_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    entry = {"label": "changes", "method": "tiny", "settings": {"trouble": "settings"}}
    result, _ = go(plan([suite(methods=[entry, "map"], seeds=[0])]), Path("run"))
    assert (result.finished, result.failed) == (1, 1)
    assert Path.cwd() == tmp_path
    assert torch.get_default_dtype() is torch.float32
    assert torch.is_grad_enabled()
    assert len(list((tmp_path / "run").glob("jobs/*/*/*/record.json"))) == 2


def test_progress_of_a_job_whose_start_was_not_told(tmp_path: Path) -> None:
    conditions, seen = Conditions("cpu"), Seen()
    (item,) = runner._placed(plan([suite(methods=["tiny"], seeds=[0])]), tmp_path, conditions)
    books = runner._Books([item], conditions, seen, fresh=False)
    books.progress(item, 0.5, {"loss": 1.0})
    books.progress(item, 0.6, {"loss": 1.0})
    assert (seen.fits, seen.fractions) == (["curve/tiny seed 0"], [0.5, 0.6])


def test_threads_follow_the_size_of_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution.machine, "physical_cores", lambda: 2)
    wide = CURVE | {"name": "wide", "network": {"name": "mlp", "hidden": [5_000]}}
    jobs = plan([suite(CURVE, wide, methods=["pair"], seeds=[0])])
    runner.run(jobs, tmp_path / "auto", conditions=Conditions("cpu"))
    runner.run(jobs, tmp_path / "two", conditions=Conditions("cpu", threads=2))
    used = {
        folder: {record["task"]: record["machine"]["threads"] for record in records(tmp_path / folder)}
        for folder in ("auto", "two")
    }
    assert used == {"auto": {"curve": 1, "wide": 2}, "two": {"curve": 2, "wide": 2}}


def test_products_on_a_gpu_are_not_rounded_unless_asked() -> None:
    places = [torch.backends.cuda.matmul, torch.backends.cudnn.conv]
    before = [place.fp32_precision for place in places]
    for precision, expected in (("float32", "ieee"), ("tf32", "tf32")):
        with surroundings.settled(torch.device("cuda"), precision):
            assert [place.fp32_precision for place in places] == [expected] * 2
        assert [place.fp32_precision for place in places] == before
    with surroundings.settled(torch.device("cpu")):
        assert [place.fp32_precision for place in places] == before


def test_the_record_says_the_precision_and_a_cpu_has_one(tmp_path: Path) -> None:
    jobs = plan([suite(CURVE, methods=["pair"], seeds=[0])])
    runner.run(jobs, tmp_path / "run", conditions=Conditions("cpu"))
    assert records(tmp_path / "run")[0]["machine"]["precision"] == "float32"
    with pytest.raises(UsageError, match="tf32 is a GPU's"):
        runner.run(jobs, tmp_path / "rounded", conditions=Conditions("cpu", precision="tf32"))
    assert not (tmp_path / "rounded").exists()


def test_missing_data_stop_the_run_before_anything_is_written(tmp_path: Path) -> None:
    mnist = {
        "name": "m",
        "data": {"source": "mnist"},
        "network": {"name": "mlp"},
        "budget": 10,
        "ood": [{"name": "letters", "source": "notmnist"}],
    }
    spec = suite(CURVE, mnist, methods=["tiny"], seeds=[0])
    empty = tmp_path / "data"
    empty.mkdir()
    (empty / "MNIST").write_text("a file where a folder belongs")
    with pytest.raises(DataError, match="task 'm'"):
        go(plan([spec]), tmp_path / "run", data_root=empty)
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with locked(tmp_path / "run"), pytest.raises(UsageError, match="another bayes-bench run"):
        go(plan([suite()]), tmp_path / "run")


def test_metrics_are_measured_anew_without_training(tmp_path: Path) -> None:
    go(plan([suite(methods=["tiny"], seeds=[0])]), tmp_path / "run")
    (folder, record), *_ = read_records(tmp_path / "run")[0]
    write_record(folder, record | {"metrics": []})
    assert recompute_metrics(tmp_path / "run") == 1
    assert records(tmp_path / "run") == [record]


def test_a_restored_job_predicts_as_it_did(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    go(plan([suite(CURVE, DIGITS)]), run_dir)
    fitted = load(run_dir, "tiny", task="curve", seed=1)
    arrays = load_predictions(next((run_dir / "jobs/curve/tiny").glob("seed-1-*")))
    predicted = fitted.predict(arrays["curve/x"][:, None])
    np.testing.assert_allclose(predicted.mean, arrays["curve/mean"].astype(np.float64).mean(0), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(predicted.aleatoric_variance, 9.0, rtol=1e-5)
    epistemic = arrays["curve/mean"].astype(np.float64).var(0)
    np.testing.assert_allclose(predicted.epistemic_variance, epistemic, rtol=1e-3)
    digits = load(run_dir, "pair", task="digits")
    assert digits.record["seed"] == 0
    assert digits.predict(np.zeros((3, 1, 8, 8), np.float32)).networks == 2
    with pytest.raises(DataError, match="inputs have shape"):
        digits.predict(np.zeros((3, 8, 8), np.float32))


def test_what_cannot_be_restored_is_said(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    go(plan([suite(CURVE, DIGITS, methods=["tiny"])]), run_dir)
    for arguments, sentence in (
        ({"label": "tinny"}, "unknown finished method 'tinny', did you mean 'tiny'"),
        ({"label": "tiny"}, "choose one with --task: curve, digits"),
        ({"label": "tiny", "task": "curves"}, "unknown finished task 'curves'"),
        ({"label": "tiny", "task": "curve", "seed": 9}, "unknown finished seed '9'"),
    ):
        with pytest.raises(UsageError, match=sentence):
            load(run_dir, **arguments)
    path = next((run_dir / "jobs/curve/tiny").glob("seed-0-*/posterior.safetensors"))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="damaged"):
        load(run_dir, "tiny", task="curve")


def test_of_several_variants_the_latest_plan_counts(tmp_path: Path) -> None:
    spec = suite(methods=["tiny"], seeds=[0])
    for scale in (0.5, 0.1, 0.5):  # the last invocation finds its job finished
        go(plan([spec], overrides=[Override("tiny", "scale", scale)]), tmp_path / "run")
    assert load(tmp_path / "run", "tiny").record["config"]["scale"] == 0.5


def test_derived_seeds_differ() -> None:
    seeds = {derived_seed(seed, purpose) for seed in range(50) for purpose in ("network", "fit", "sample")}
    assert len(seeds) == 150
    assert derived_seed(0, "sample") == derived_seed(0, "sample")
    assert json.loads(json.dumps(max(seeds))) < 2**53  # exact in every reader of JSON


def test_results_keep_their_types() -> None:
    result = runner.RunResult(Path("r"), 1, 0, 0, 1, False, Path("r/report.html"))
    assert [replace(result, **changes).exit_code for changes in ({}, {"failed": 1}, {"interrupted": True})] == [
        0,
        1,
        130,
    ]
