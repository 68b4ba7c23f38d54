"""The shipped suites say what they should; a user's own suite is read with its own folder in mind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bayes_bench.errors import UsageError
from bayes_bench.jobs.plan import plan
from bayes_bench.tasks.spec import CHANGES_NO_RESULT, NOT_IN_KEY, RETIRED, CategoricalSpec, GaussianSpec, QuickSpec
from bayes_bench.tasks.suites import load_suite, shipped_suites
from bayes_bench.tasks.task import build_task

SHIPPED = ("cubic", "digits", "digits-mlp", "gap", "mnist-5000")
METHODS = ["map", "ensemble", "mcdropout", "mnf", "sgld", "apd", "hypergan"]
CSV_SUITE = """
name = "mine"
[[tasks]]
name = "mine"
budget = 1000
[tasks.data]
source = "csv"
path = "tables/train.csv"
test_path = "tables/test.csv"
target = "y"
[tasks.network]
name = "mlp"
[[tasks.ood]]
name = "far"
source = "csv"
path = "tables/far.csv"
"""


def test_the_shipped_suites() -> None:
    assert set(SHIPPED) <= set(shipped_suites())


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_suite(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == name == shipped_suites()[name].stem
    assert suite.description
    assert [entry.method for entry in suite.methods] == METHODS
    assert len(suite.seeds) >= 3
    (task,) = suite.tasks
    assert task.title
    if isinstance(task.likelihood, CategoricalSpec):
        assert task.ood
        assert task.validation_ood  # tuning must never need the reported sets
    else:
        assert isinstance(task.likelihood, GaussianSpec)
        assert task.likelihood.noise_std == 3.0
        assert task.curve is not None
        assert (task.curve.low, task.curve.high) == (-6, 6)


@pytest.mark.parametrize("name", shipped_suites())
def test_every_shipped_suite_has_a_quick_variant(name: str) -> None:
    full = load_suite(name)
    quick = full.quick_variant()
    assert (quick.name, quick.quick) == (f"{name}-quick", None)
    jobs = plan([quick])
    assert {job.suite for job in jobs} == {quick.name}
    first = full.tasks[0]
    assert jobs[0].task.budget == first.budget  # the report says what share of it was spent
    assert jobs[0].budget < first.budget
    assert quick.methods == full.methods


def test_a_quick_variant_of_fewer_examples_has_no_reference() -> None:
    suite = load_suite("cubic").model_copy(update={"quick": QuickSpec(budget_scale=0.5, examples=10)})
    (task,) = suite.quick_variant().tasks
    assert (task.examples, task.reference) == (10, None)


def test_a_suite_without_a_quick_variant_says_so() -> None:
    suite = load_suite("cubic").model_copy(update={"quick": None})
    with pytest.raises(UsageError, match=r"the suite 'cubic' has no quick variant; give it a table \[quick\]"):
        suite.quick_variant()


def test_factors_on_the_budget_multiply() -> None:
    suite = load_suite("cubic").model_copy(update={"budget_scale": 0.5})
    assert {job.budget for job in plan([suite], budget_scale=0.1)} == {5_000}


@pytest.mark.parametrize(
    ("metric", "sentence"),
    [
        ("accurracy", "task 'mine': published: unknown metric 'accurracy', did you mean 'accuracy'?"),
        ("ood_auroc/near", "published: metric 'ood_auroc/near': unknown out-of-distribution set 'near'"),
        ("rmse", "published: unknown metric 'rmse'"),  # a regression's
    ],
)
def test_a_published_number_of_an_unknown_metric_is_refused(tmp_path: Path, metric: str, sentence: str) -> None:
    file = write_user_suite(tmp_path)
    claim = '[[tasks.published]]\nmethod = "map"\nmetric = "{}"\nvalue = 0.9\nsource = "A"\n'
    for known in ("accuracy@100", "nll", "ood_auroc/far", "weight_diversity/conv1"):
        file.write_text(CSV_SUITE + claim.format(known))
        assert plan([load_suite(str(file))])[0].task.published[0].metric == known
    file.write_text(CSV_SUITE + claim.format(metric))
    with pytest.raises(UsageError) as caught:
        plan([load_suite(str(file))])
    assert sentence in str(caught.value)


def test_reported_and_tuning_letters_are_disjoint() -> None:
    (task,) = load_suite("digits").tasks
    assert task.ood[0].options["letters"] == "A-J"
    assert task.validation_ood[0].options["letters"] == "K-T"


def test_gap_curve_matches_the_data() -> None:
    (task,) = load_suite("gap").tasks
    assert task.curve is not None
    assert tuple(task.data.options["exclude"]) == task.curve.gap[0]
    assert task.curve.inside == ((-4, -1), (1.5, 4))


@pytest.mark.parametrize(("name", "parameters"), [("digits", 6_090), ("cubic", 301), ("gap", 301)])
def test_shipped_networks_have_the_size_the_suites_state(name: str, parameters: int) -> None:
    network = build_task(load_suite(name).tasks[0]).build_network(0)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def write_user_suite(folder: Path) -> Path:
    tables = folder / "tables"
    tables.mkdir(parents=True)
    (tables / "train.csv").write_text("a,b,y\n" + "".join(f"{i},{i * i},{i % 2}\n" for i in range(30)))
    (tables / "test.csv").write_text("a,b,y\n100,1,0\n101,2,1\n")
    (tables / "far.csv").write_text("a,b\n1e6,1e6\n")
    (folder / "mine.toml").write_text(CSV_SUITE)
    return folder / "mine.toml"


def test_paths_are_relative_to_the_suites_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_user_suite(tmp_path / "project")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for folder, name in ((elsewhere, str(file)), (file.parent, "mine.toml"), (tmp_path, "project/mine.toml")):
        monkeypatch.chdir(folder)
        (spec,) = load_suite(name).tasks
        assert Path(spec.data.options["path"]) == file.parent / "tables" / "train.csv"
        assert Path(spec.ood[0].options["path"]) == file.parent / "tables" / "far.csv"
        monkeypatch.chdir(elsewhere)  # the run may be somewhere else than the reading
        task = build_task(spec)
        assert len(task.test) == 2
        assert len(task.ood["far"]) == 1


def test_absolute_paths_stay(tmp_path: Path) -> None:
    file = write_user_suite(tmp_path / "project")
    content = file.read_text().replace("tables/", f"{tmp_path}/project/tables/")
    moved = tmp_path / "moved.toml"
    moved.write_text(content)
    (spec,) = load_suite(str(moved)).tasks
    assert len(build_task(spec).test) == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'source = "csv"\npath = "tables/train.csv"',
            'source = "csvv"\npath = "a"',
            "unknown data source 'csvv'",
        ),
        (
            'target = "y"',
            'target = "y"\nheadr = true',
            "task 'mine': data source 'csv': unknown option 'headr', did you mean 'header'?",
        ),
        ('target = "y"', "target = 3", "target"),
        ("budget = 1000", 'budget = "many"', "tasks['mine'].budget: Input should be a valid integer"),
        ('[tasks.network]\nname = "mlp"', '[tasks.network]\nname = "mlpp"', "tasks['mine'].network"),
        ('target = "y"', 'target = "y"\nkind = "regression"', "'csv' is for regression, but the likelihood"),
        ('name = "far"', "", "tasks['mine'].ood.0.name: Field required"),
        ("budget = 1000", "budget = = 1000", "line 5"),
    ],
)
def test_wrong_suites_name_file_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = write_user_suite(tmp_path)
    assert old in CSV_SUITE
    file.write_text(CSV_SUITE.replace(old, new, 1))
    with pytest.raises(UsageError) as caught:
        load_suite(str(file))
    assert message in str(caught.value)
    assert "more problem" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_data_of_a_suite_are_not_needed_to_read_it(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(CSV_SUITE)
    assert load_suite(str(tmp_path / "mine.toml")).tasks[0].name == "mine"


def test_no_such_suite(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown suite 'digit', did you mean 'digits'"):
        load_suite("digit")
    with pytest.raises(UsageError, match=r"cannot read the suite .*none.toml: No such file"):
        load_suite(str(tmp_path / "none.toml"))


def test_a_suite_that_is_no_file_or_endless_is_not_read(tmp_path: Path) -> None:
    pipe, large = tmp_path / "pipe.toml", tmp_path / "large.toml"
    os.mkfifo(pipe)
    with large.open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(UsageError, match=r"pipe.toml: it is not a file"):
        load_suite(str(pipe))
    with pytest.raises(UsageError, match=r"large.toml: it has more than 4,194,304 bytes"):
        load_suite(str(large))


def test_an_error_names_the_task_and_counts_a_mistake_once(tmp_path: Path) -> None:
    file = write_user_suite(tmp_path)
    file.write_text(CSV_SUITE + '[tasks.likelihood]\nname = "gaussian"\nnoise_std = [1]\n')
    with pytest.raises(UsageError) as caught:
        load_suite(str(file))
    assert str(caught.value) == (
        f"{file}: tasks['mine'].likelihood.noise_std: Input should be a valid number, or: Input should be 'learned' "
        "(got [1])"
    )


def test_a_name_is_explained_in_words(tmp_path: Path) -> None:
    file = write_user_suite(tmp_path)
    file.write_text(CSV_SUITE.replace('name = "far"', 'name = "../far"'))
    with pytest.raises(UsageError, match=r"a name has letters, digits, '_', '-' and '\.', at most 64, and starts with"):
        load_suite(str(file))


def test_a_network_that_no_machine_holds_is_refused(tmp_path: Path) -> None:
    file = write_user_suite(tmp_path)
    file.write_text(CSV_SUITE.replace('name = "mlp"', 'name = "mlp"\nhidden = [10000000, 10000000]'))
    with pytest.raises(UsageError, match=r"network 'mlp': its weights need [\d,.]+ GB; at most half of this machine's"):
        build_task(load_suite(str(file)).tasks[0])


def test_keys_of_earlier_versions_are_read_and_say_nothing(tmp_path: Path) -> None:
    text = CSV_SUITE.replace("budget = 1000\n", "budget = 1000\nseconds_per_job = 3\nmegabytes_per_job = 0.5\n")
    text = "quick = {budget_scale = 0.5, seconds_per_job = 1}\n" + text
    (tmp_path / "old.toml").write_text(text)
    (tmp_path / "new.toml").write_text("quick = {budget_scale = 0.5}\n" + CSV_SUITE)
    assert load_suite(str(tmp_path / "old.toml")) == load_suite(str(tmp_path / "new.toml"))


def test_keys_that_change_no_result_are_declared_at_the_key() -> None:
    assert {"title", "settings", "published", "reference", "collapse_threshold"} == CHANGES_NO_RESULT - RETIRED
    assert {"budget", "data", "ood", "validation_ood", "examples", "weights"} == NOT_IN_KEY - CHANGES_NO_RESULT


def test_suites_as_other_systems_write_them(tmp_path: Path) -> None:
    """A mark before the first character, and an ending in capitals."""
    file = write_user_suite(tmp_path)
    expected = load_suite(str(file))
    capitals = tmp_path / "MINE.TOML"
    capitals.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load_suite(str(capitals)) == expected
