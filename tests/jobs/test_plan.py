from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from bayes_bench.cli.options import parse_override, parse_seeds
from bayes_bench.errors import PluginError, UsageError
from bayes_bench.host import plugins
from bayes_bench.jobs.job import Job
from bayes_bench.jobs.plan import Override, plan
from bayes_bench.tasks.spec import SuiteSpec
from tiny_suites import CURVE, DIGITS, register_fakes, suite


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    register_fakes(monkeypatch)


def only(specs: SuiteSpec, **arguments: Any) -> Job:
    (job,) = plan([specs], **arguments)
    return job


def one(**task: Any) -> SuiteSpec:
    return suite(CURVE | task, methods=["tiny"], seeds=[0])


def test_the_first_seed_of_everything_comes_first() -> None:
    order = [(job.seed, job.task.name, job.label) for job in plan([suite(CURVE, DIGITS)])]
    assert order == [
        (seed, task, label) for seed in (0, 1) for task in ("curve", "digits") for label in ("tiny", "pair")
    ]


def test_a_job_is_json() -> None:
    job = plan([suite(DIGITS)], overrides=[Override("tiny", "scale", 0.5)])[0]
    again = Job.model_validate_json(job.model_dump_json())
    assert again == job
    assert again.key("data", "cpu") == job.key("data", "cpu")
    assert job.settings == {"scale": 0.5}
    assert job.config == {"scale": 0.5, "kind": None, "trouble": ""}


def test_settings_of_task_entry_and_command_line_win_in_this_order() -> None:
    entry = {"label": "wide", "method": "tiny", "settings": {"kind": "entry"}}
    by_method = CURVE | {"settings": {"tiny": {"scale": 2, "kind": "task"}}}
    by_label = CURVE | {"settings": {"tiny": {"scale": 2}, "wide": {"scale": 3, "trouble": "label"}}}
    assert only(suite(by_method, methods=[entry], seeds=[0])).settings == {"scale": 2, "kind": "entry"}
    spec = suite(by_label, methods=[entry], seeds=[0])
    assert only(spec).settings == {"scale": 3, "trouble": "label", "kind": "entry"}
    overrides = [Override("wide", "scale", 5), Override("tiny", "scale", 4), Override("tiny", "kind", "method")]
    assert only(spec, overrides=overrides).settings == {"scale": 5, "trouble": "label", "kind": "method"}


def test_methods_are_labels_of_the_suite_or_registered_names() -> None:
    entry = {"label": "wide", "method": "tiny", "settings": {"scale": 7}}
    specs = suite(methods=[entry], seeds=[0])
    jobs = plan([specs], methods=["wide", "tiny"])
    assert [(job.label, job.method, job.config["scale"]) for job in jobs] == [
        ("wide", "tiny", 7),
        ("tiny", "tiny", 0.1),
    ]
    other = suite(DIGITS, name="other", methods=["pair"], seeds=[0])
    assert [(job.suite, job.label) for job in plan([specs, other], methods=["wide"])] == [("tiny-suite", "wide")]
    without = suite(methods=[], seeds=[0])
    assert {job.label for job in plan([without])} >= {"tiny", "pair", "hypergan", "map"}


def test_broken_methods_are_left_out_unless_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    before = plugins.entry_points

    def load() -> None:
        sys.exit("no licence")

    bad = SimpleNamespace(name="bad", value="bad:Bad", dist=None, load=load)
    added = {plugins.METHODS: [bad]}
    monkeypatch.setattr(plugins, "entry_points", lambda group: [*before(group=group), *added.get(group, [])])
    warnings: list[str] = []
    labels = {job.label for job in plan([suite(methods=[], seeds=[0])], warn=warnings.append)}
    assert {"tiny", "pair", "map"} <= labels
    assert "bad" not in labels
    (warning,) = warnings
    assert warning.startswith(
        "left out: method 'bad' of an unknown package is broken: cannot import bad:Bad (SystemExit"
    )
    for asked in ({"methods": ["bad"]}, {}):
        with pytest.raises(PluginError, match=r"no licence\); mend or uninstall it, or choose others with --methods"):
            plan([suite(methods=["bad"])], warn=warnings.append, **asked)
    assert len(warnings) == 1


def test_the_budget_is_scaled() -> None:
    assert only(one(), budget_scale=0.25).budget == 25
    assert only(one(), budget_scale=0.0001).budget == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"network": {"name": "mlp", "hidden": [6]}},
        {"likelihood": {"name": "gaussian", "noise_std": 2.0}},
        {"prior": {"std": 2.0}},
        {"budget": 101},
        {"name": "curve-2"},
        {"settings": {"tiny": {"scale": 0.2}}},
        {"curve": None},
    ],
)
def test_the_key_changes_with_what_changes_results(changes: dict[str, Any]) -> None:
    assert only(one(**changes)).key("data", "cpu") != only(one()).key("data", "cpu")
    assert only(one(**changes)).variant("data", "cpu") != only(one()).variant("data", "cpu")


@pytest.mark.parametrize(
    "changes",
    [
        {"title": "another title"},
        {"seconds_per_job": 3.0, "megabytes_per_job": 4.0},  # keys of earlier versions
        {"reference": "long-run.safetensors"},
        {"settings": {"pair": {}, "map": {"batch_size": 7}}},  # of other methods
        {"settings": {"tiny": {"scale": 0.1}}},  # the default, said aloud
    ],
)
def test_the_key_stays_with_what_changes_no_result(changes: dict[str, Any]) -> None:
    assert only(one(**changes)).key("data", "cpu") == only(one()).key("data", "cpu")


def test_the_key_depends_on_seed_data_device_and_revision() -> None:
    job = only(one())
    keys = {
        job.key("data", "cpu"),
        job.key("other data", "cpu"),
        job.key("data", "cuda"),
        only(one(), seeds=[7]).key("data", "cpu"),
        only(one(), overrides=[Override("tiny", "kind", "x")]).key("data", "cpu"),
        job.model_copy(update={"revision": 2}).key("data", "cpu"),
    }
    assert len(keys) == 6
    assert all(len(key) == 64 for key in keys)
    # A label is a name for people; the folder keeps labels apart.
    assert job.model_copy(update={"label": "x", "suite": "y"}).key("data", "cpu") == job.key("data", "cpu")


def test_a_variant_is_everything_but_the_seed() -> None:
    variants = {job.variant("data", "cpu") for job in plan([suite(methods=["tiny"])], seeds=range(5))}
    assert len(variants) == 1


@pytest.mark.parametrize(
    ("text", "seeds"), [("0-4", (0, 1, 2, 3, 4)), ("0,1,2", (0, 1, 2)), ("0-2, 7,1", (0, 1, 2, 7)), ("3", (3,))]
)
def test_seeds(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "1,", "-1", "4-2", "1-2-3", "1.5", "0-99999999999", "²"])
def test_wrong_seeds(text: str) -> None:
    with pytest.raises(UsageError, match="--seeds"):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("text", "override"),
    [
        ("hypergan.lambda=0.5", Override("hypergan", "lambda", 0.5)),
        ("no.d.mixer=false", Override("no.d", "mixer", False)),
        ("a.widths=[1, 2]", Override("a", "widths", [1, 2])),
        ("a.mode=joint", Override("a", "mode", "joint")),
        ('a.mode="joint"', Override("a", "mode", "joint")),
        ("a.mode=x = y", Override("a", "mode", "x = y")),
        ("a.mode=", Override("a", "mode", "")),
    ],
)
def test_overrides(text: str, override: Override) -> None:
    assert parse_override(text) == override


@pytest.mark.parametrize("text", ["a.b", "=1", "b=1", ".b=1", "a.=1", "a.b=1\nc=2"])
def test_wrong_overrides(text: str) -> None:
    with pytest.raises(UsageError, match="--set"):
        parse_override(text)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"methods": ["tinny"]}, "unknown method 'tinny', did you mean 'tiny'"),
        (
            {"overrides": [Override("tinny", "scale", 1)]},
            "--set tinny.scale: unknown method 'tinny', did you mean 'tiny'",
        ),
        ({"overrides": [Override("map", "batch_size", 1)]}, "'map' is not among the methods run"),
        ({"overrides": [Override("tiny", "scalle", 1)]}, "unknown setting of method 'tiny': 'scalle'"),
        ({"overrides": [Override("tiny", "scale", "x")]}, "scale: .*number"),
        ({"budget_scale": 0}, "--budget-scale"),
        ({"budget_scale": float("nan")}, "--budget-scale"),
        ({"budget_scale": float("inf")}, "--budget-scale"),
        ({"budget_scale": 1e300}, r"--budget-scale 1e\+300 gives 'curve' a budget beyond 64 bits"),
        ({"budget_scale": 1e308}, "a budget beyond 64 bits"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        plan([suite()], **arguments)


def test_wrong_suites() -> None:
    with pytest.raises(UsageError, match="unknown method 'nix'"):
        plan([suite(methods=["nix"])])
    with pytest.raises(UsageError, match="task 'curve': settings for an unknown method 'tinny'"):
        plan([suite(CURVE | {"settings": {"tinny": {}}})])
    with pytest.raises(UsageError, match="data source"):
        plan([suite(CURVE | {"data": {"source": "cubik"}})])
    with pytest.raises(UsageError, match="the same suite is named twice"):
        plan([suite(), suite()])
    with pytest.raises(UsageError, match="both hold curve/tiny seed 0"):
        plan([suite(), suite(name="other")])
