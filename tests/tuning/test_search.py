"""The search for settings: what may be tried, the rule, the folder that continues, and what is never looked at."""

from __future__ import annotations

import csv
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_bench import MethodConfig, Range, cli, metrics, setting
from bayes_bench.errors import DataError, UsageError
from bayes_bench.host import plugins
from bayes_bench.jobs.execute import fit_and_draw
from bayes_bench.jobs.job import Conditions
from bayes_bench.jobs.plan import Override, plan
from bayes_bench.jobs.predictions import predict_task
from bayes_bench.methods import registry
from bayes_bench.results.sets import kind_of
from bayes_bench.settings import search_space
from bayes_bench.tasks import task as tasks
from bayes_bench.tasks.spec import QuickSpec, SuiteSpec
from bayes_bench.tuning import search as tuning
from bayes_bench.tuning.journal import BEST, JOURNAL, TABLE
from bayes_bench.tuning.plan import Result, Rule, Search, Trial
from bayes_bench.tuning.plan import plan as plan_search
from fake_methods import Tiny, TinyConfig
from tiny_suites import CURVE, DIGITS, point, register_fakes, suite

LETTERS = {"name": "letters-val", "source": "letters", "letters": "K-T"}
CLASSES = DIGITS | {"validation_ood": [LETTERS]}


class TunableConfig(TinyConfig):
    """Tunable: Tiny with a search space."""

    scale: float = setting(0.7, "standard deviation of the weights", tune=Range(0.01, 0.5, log=True), gt=0)
    kind: str | None = setting(None, "anything", tune=(None, "a", "b"))


class Tunable(Tiny):
    Config = TunableConfig


@pytest.fixture(autouse=True)
def methods(monkeypatch: pytest.MonkeyPatch) -> None:
    register_fakes(monkeypatch)
    # Read once: looking through all that is installed takes longer than a trial.
    groups = (plugins.METHODS, plugins.CONFIGS, plugins.METRICS)
    points = {group: list(plugins.entry_points(group=group)) for group in groups}
    points[plugins.METHODS].append(point("tunable", Tunable))
    monkeypatch.setattr(plugins, "entry_points", lambda group: points[group])


def search(spec: SuiteSpec | None = None, **options: Any) -> Search:
    return plan_search(spec or suite(), "tunable", **options)


def go(out: Path, trials: int, what: Search | None = None) -> Result:
    return tuning.tune(what or search(), out, conditions=Conditions("cpu", threads=1), trials=trials)


def rows(out: Path) -> list[dict[str, str]]:
    with (out / TABLE).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def without_clock(result: Result) -> list[Trial]:
    return [
        replace(trial, scores={name: value for name, value in trial.scores.items() if name != "fit_seconds"})
        for trial in result.trials
    ]


# What may be tried ----------------------------------------------------------------------------------------


def test_the_search_space_has_values_as_the_settings_hold_them() -> None:
    class Config(MethodConfig):
        rate: float = setting(1.0, "a number", tune=Range(1, 2), gt=0)
        count: int = setting(1, "an integer", tune=Range(1, 8, log=True))
        widths: tuple[int, ...] = setting((4,), "integers", tune=[(4,), (8, 8)])
        rest: int = setting(1, "not searched")

    space = search_space(Config)
    assert space == {"rate": Range(1.0, 2.0), "count": Range(1, 8, log=True), "widths": ([4], [8, 8])}
    assert isinstance(space["rate"], Range)
    assert isinstance(space["rate"].low, float)
    assert Config.model_json_schema()["properties"]["rate"]["tune"] == {"low": 1, "high": 2, "log": False}


@pytest.mark.parametrize(
    ("annotation", "default", "tune", "sentence"),
    [
        (float, 1.0, (1.0, -1.0), "greater than 0"),
        (float, 1.0, Range(-1, 1), "greater than 0"),
        (int, 1, Range(0.5, 1.5), "valid integer"),
        (float, 1.0, (1.0, "fast"), "valid number"),
        (float, 1.0, (1, 1.0), "each once"),
        (float, 1.0, (1.0,), "at least two"),
        (float | None, 1.0, (None, 1.0), "none cannot be a choice"),
    ],
)
def test_what_cannot_be_tried_is_an_error_where_it_is_written(
    annotation: Any, default: Any, tune: Any, sentence: str
) -> None:
    fields = {"__annotations__": {"key": annotation}, "key": setting(default, "a number", tune=tune, gt=0)}
    with pytest.raises(UsageError, match=rf"Broken\.key: tune.*{sentence}"):
        type("Broken", (MethodConfig,), fields | {"__module__": __name__})


def test_a_range_is_for_numbers_and_in_order() -> None:
    with pytest.raises(UsageError, match="a range is for numbers"):

        class Broken(MethodConfig):
            key: bool = setting(True, "yes or no", tune=Range(0, 1))

    with pytest.raises(UsageError, match="low must be below high"):
        Range(1, 1)
    with pytest.raises(UsageError, match="starts above 0"):
        Range(0, 1, log=True)


@pytest.mark.parametrize("method", ["hypergan", "mcdropout", "ensemble", "map"])
def test_the_projects_methods_can_be_tuned(method: str) -> None:
    assert {"batch_size", "learning_rate"} <= search_space(registry.config_class(method)).keys()


# What is planned ------------------------------------------------------------------------------------------


def test_fixed_settings_are_not_searched() -> None:
    entry = {"label": "tunable", "method": "tunable", "settings": {"kind": "c"}}
    of_suite = search(suite(CURVE | {"settings": {"tunable": {"trouble": ""}}}, methods=[entry]))
    assert list(of_suite.space) == ["scale"]
    assert of_suite.kept == {"trouble": ""}  # the entry's own setting stays where it is
    given = search(overrides=[Override("tunable", "scale", 0.2)])
    assert list(given.space) == ["kind"]
    assert given.kept == {"scale": 0.2}
    assert given.current == {"kind": None}


@pytest.mark.parametrize(
    ("method", "options", "sentence"),
    [
        ("tiny", {}, "declares nothing to tune"),
        ("tunabel", {}, "did you mean 'tunable'"),
        ("tunable", {"seeds": [7, 1]}, "1 is a seed of the suite"),
        ("tunable", {"task": "curv"}, "did you mean 'curve'"),
        ("tunable", {"budget_scale": 0.0}, "--budget-scale"),
        ("tunable", {"overrides": [Override("tunable", key, "1") for key in ("scale", "kind")]}, "is fixed"),
    ],
)
def test_what_cannot_be_searched_is_one_sentence(method: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        plan_search(suite(), method, **options)


def test_seeds_of_the_suite_are_its_own_in_the_quick_variant_too() -> None:
    full = suite().model_copy(update={"quick": QuickSpec(budget_scale=0.5, seeds=(5,))})
    assert 1 in full.seeds
    for seed in (1, 5):
        with pytest.raises(UsageError, match=f"{seed} is a seed of the suite"):
            search(full, seeds=[seed], quick=True)
    assert search(full, seeds=[100], quick=True).suite == full.name + "-quick"


def test_one_of_several_tasks_is_named() -> None:
    spec = suite(CURVE, DIGITS)
    with pytest.raises(UsageError, match="several tasks; name one with --task: curve, digits"):
        search(spec)
    assert search(spec, task="digits").task.name == "digits"


# The rule -------------------------------------------------------------------------------------------------


def trial(number: int, nll: float = 0.1, error: str = "", **scores: float) -> Trial:
    return Trial(number, {}, {} if error else {"val_nll": nll, **scores}, error)


def test_the_rule_weighs_auroc_only_among_accurate_trials() -> None:
    trials = [
        trial(0, val_accuracy=0.97, val_ood_auroc=0.90),
        trial(1, val_accuracy=0.98, val_ood_auroc=0.80),
        trial(2, val_accuracy=0.969, val_ood_auroc=0.99),  # more than a point behind
        trial(3, error="DivergenceError: the loss is nan"),
        trial(4, nll=0.05, val_accuracy=0.975, val_ood_auroc=0.90),  # as good as 0, and likelier
    ]
    assert [one.number for one in Rule("val_ood_auroc").ranked(trials)] == [4, 0, 1, 2]


def test_the_rule_is_the_likelihood_elsewhere() -> None:
    trials = [trial(0, 0.3), trial(1, error="x"), trial(2, -0.5), trial(3, 0.1)]
    assert [one.number for one in Rule("val_nll").ranked(trials)] == [2, 3, 0]
    assert Rule("val_nll").ranked([trial(0, error="x")]) == []


@pytest.mark.parametrize(
    ("task", "by"),
    [(CURVE, "val_nll"), (DIGITS, "val_nll"), (CLASSES, "val_ood_auroc")],
    ids=lambda value: str(value)[:12],
)
def test_the_rule_follows_from_the_task(task: dict[str, Any], by: str, tmp_path: Path) -> None:
    assert go(tmp_path / "out", 1, search(suite(task))).rule.by == by


# Trials ---------------------------------------------------------------------------------------------------


def test_trial_0_has_the_current_settings_and_the_others_are_within_the_space(tmp_path: Path) -> None:
    result = go(tmp_path / "out", 14)
    assert result.trials[0].settings == {"scale": 0.7, "kind": None}  # outside of the range, as they may be
    assert all(0.01 <= one.settings["scale"] <= 0.5 for one in result.trials[1:])
    assert {one.settings["kind"] for one in result.trials} == {None, "a", "b"}
    assert all(float(f"{one.settings['scale']:.3g}") == one.settings["scale"] for one in result.trials)
    assert len({str(one.settings) for one in result.trials}) == 14
    best = result.rule.ranked(result.trials)[0]
    assert best.scores["val_nll"] <= result.trials[0].scores["val_nll"]


def test_scores_are_those_of_a_run(tmp_path: Path) -> None:
    what = search(suite(CLASSES))
    (first,) = go(tmp_path / "out", 1, what).trials
    task = tasks.build_task(what.task)
    record = {"kind": "classification", "task_spec": what.task.model_dump(mode="json")}
    wanted = [metric for metric in metrics.CATALOGUE if metric.group == "validation"]
    found: dict[str, list[float]] = {}
    for job in plan([suite(CLASSES)], methods=["tunable"], seeds=[100, 101]):
        posterior, _, weights = fit_and_draw(job, task, torch.device("cpu"))
        for row in metrics.compute(predict_task(posterior, weights, task), record, wanted):
            found.setdefault(row["name"], []).append(row["value"])
    assert found.keys() == {"val_nll", "val_ood_auroc/letters-val"}
    for name, values in found.items():
        assert first.scores[name] == sum(values) / 2
    assert first.scores["val_ood_auroc"] == first.scores["val_ood_auroc/letters-val"]


class Untouchable:
    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"the reported data were touched: {name}")


def test_the_error_of_a_regression_is_that_of_the_mean_over_networks(tmp_path: Path) -> None:
    what = search(suite(CURVE))
    task = tasks.build_task(what.task)
    cpu = torch.device("cpu")
    found = tuning.score(what.jobs[0], task, cpu)["val_rmse"]
    posterior, _, weights = fit_and_draw(what.jobs[0], task, cpu)
    assert task.fit_data.validation is not None
    x, y = task.fit_data.validation.x, task.fit_data.validation.y
    error = float((posterior.outputs(x, weights).double().mean(0) - y).square().mean().sqrt()) * task.standardiser.y_std
    assert found == pytest.approx(error, rel=1e-5)


def test_test_data_and_reported_sets_are_never_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = tasks.build_task

    def without_reported(spec: Any, *arguments: Any) -> tasks.Task:
        assert spec.ood == ()  # not even read
        untouchable: Any = Untouchable()
        task = build(spec, *arguments)
        own = ("validation", "validation_ood")
        sets = {name: part if kind_of(name) in own else untouchable for name, part in task.sets.items()}
        return replace(task, sets=sets)

    monkeypatch.setattr(tasks, "build_task", without_reported)
    for name, task in (("curve", CURVE), ("digits", CLASSES)):
        result = go(tmp_path / name, 2, search(suite(task)))
        assert [one.error for one in result.trials] == ["", ""]


def test_a_failed_trial_is_recorded_and_the_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = Tunable._fit

    def sometimes(self: Tunable, *arguments: Any) -> None:
        if self.config.kind == "a":
            raise ZeroDivisionError("division by zero\nsecond line")
        fit(self, *arguments)

    monkeypatch.setattr(Tunable, "_fit", sometimes)
    result = go(tmp_path / "out", 8)
    failed = [one for one in result.trials if one.settings["kind"] == "a"]
    assert failed
    assert {one.error for one in failed} == {"ZeroDivisionError: division by zero"}
    table = rows(tmp_path / "out")
    assert [row["state"] == "failed" for row in table] == [one in failed for one in result.trials]
    assert {row["error"] for row in table} == {"", "ZeroDivisionError: division by zero"}
    assert result.exit_code == 0


def test_a_search_in_which_all_fails(tmp_path: Path) -> None:
    result = go(tmp_path / "out", 2, search(overrides=[Override("tunable", "trouble", "diverge")]))
    assert result.exit_code == 1
    assert not (tmp_path / "out" / BEST).exists()


# The folder -----------------------------------------------------------------------------------------------


def test_an_interrupted_search_continues_as_if_it_were_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = go(tmp_path / "whole", 12)
    score, calls = tuning.score, iter(range(100))

    def interrupted_in_trial_3(*arguments: Any) -> dict[str, float]:
        if next(calls) == 7:
            raise KeyboardInterrupt
        return score(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "score", interrupted_in_trial_3)
        first = go(tmp_path / "parts", 12)
    assert (len(first.trials), first.interrupted, first.exit_code) == (3, True, 130)
    assert len(rows(tmp_path / "parts")) == 3
    # A process that was killed while it wrote a line, and held Optuna's lock.
    journal = tmp_path / "parts" / JOURNAL
    with journal.open("a") as file:
        file.write('{"op_code": 4, "worker')
    journal.with_name(f"{JOURNAL}.lock").touch()
    second = go(tmp_path / "parts", 12)
    assert without_clock(second) == without_clock(whole)
    assert second.trials[:3] == first.trials  # not run again
    assert len(rows(tmp_path / "parts")) == 12
    assert go(tmp_path / "parts", 5).trials == second.trials  # nothing to do


@pytest.mark.parametrize(
    ("other", "part"),
    [
        (lambda: search(seeds=[100, 102]), "seeds"),
        (lambda: search(budget_scale=0.5), "budget"),
        (lambda: search(suite(name="other")), "suite"),
        (lambda: search(suite(CURVE | {"network": {"name": "mlp", "hidden": [6]}})), "task"),
        (lambda: search(overrides=[Override("tunable", "kind", "b")]), "settings, search space"),
        (lambda: plan_search(suite(), "map"), "method, settings, search space"),
    ],
    ids=["seeds", "budget", "suite", "task", "settings", "method"],
)
def test_the_folder_of_another_search_is_refused(other: Any, part: str, tmp_path: Path) -> None:
    go(tmp_path / "out", 1)
    before = (tmp_path / "out" / JOURNAL).read_bytes()
    with pytest.raises(UsageError, match=rf"another search \(different {part}\); choose another --out"):
        go(tmp_path / "out", 2, other())
    assert (tmp_path / "out" / JOURNAL).read_bytes() == before


def test_other_data_are_another_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(tmp_path / "out", 1)
    build = tasks.build_task
    monkeypatch.setattr(tasks, "build_task", lambda *arguments: replace(build(*arguments), checksum="other"))
    with pytest.raises(UsageError, match="different data"):
        go(tmp_path / "out", 2)


def test_a_folder_of_something_else_and_a_damaged_journal_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="not a tuning folder"):
        go(tmp_path, 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / JOURNAL).write_text("no journal\n{}\n")
    with pytest.raises(DataError, match=r"journal\.jsonl is damaged"):
        go(tmp_path / "out", 1)


def test_without_optuna(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UsageError) as refused:
        go(tmp_path / "out", 1)
    assert str(refused.value) == "tuning needs Optuna: pip install 'optuna>=4.0'"
    assert not (tmp_path / "out").exists()


# The command ----------------------------------------------------------------------------------------------


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(["tune", *arguments])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_the_command_from_start_to_snippet(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["map", "cubic", "--budget-scale", "0.02", "--set", "map.patience=5"]
    code, out, err = call(capsys, *arguments, "--trials", "2")
    assert code == 0, err
    folder = Path("reports/tuning/cubic-map")
    assert sorted(path.name for path in folder.iterdir() if path.name != ".lock") == [
        "best.toml", "journal.jsonl", "trials.csv",
    ]  # fmt: skip
    assert "2 trials; lowest val_nll" in out
    assert "[1/2] trial 0 (current settings): " in err
    assert out.endswith(f"Trials: {folder / 'trials.csv'}\n")
    snippet = (folder / "best.toml").read_text(encoding="utf-8")
    assert snippet in out
    assert "# Means over the seeds 100, 101 with 2,000 gradient evaluations each:" in snippet
    code, _, err = call(capsys, *arguments, "--trials", "3", "--quiet")
    assert (code, err) == (0, "")
    table = rows(folder)
    assert [row["state"] for row in table] == ["finished"] * 3
    # The snippet goes into a suite as it is, and gives the settings of the best trial.
    best = min(table, key=lambda row: float(row["val_nll"]))
    written = tomllib.loads("[[tasks]]\n" + (folder / "best.toml").read_text())["tasks"][0]["settings"]
    (job,) = plan([suite(CURVE | {"settings": written}, methods=["map"], seeds=[0])])
    assert job.settings == {
        "patience": 5, "batch_size": int(best["batch_size"]), "learning_rate": float(best["learning_rate"]),
    }  # fmt: skip


def test_ctrl_c_and_failures_of_the_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["tunable", "cubic", "--trials", "2", "--budget-scale", "0.001"]
    code, _, err = call(capsys, *arguments, "--out", "a", "--set", "tunable.trouble=interrupt")
    assert code == 130
    assert err == "Interrupted after 0 of 2 trials; the same command continues.\n"
    code, out, err = call(capsys, *arguments, "--out", "b", "--set", "tunable.trouble=diverge", "--quiet")
    assert code == 1
    assert out == f"Trials: {Path('b/trials.csv')}\n"
    assert "All 2 trials failed; the first: DivergenceError: training diverged" in err
