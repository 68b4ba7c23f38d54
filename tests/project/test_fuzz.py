"""Random and hostile input: whatever is read, the outcome is a result or one of the documented errors.

Quick by default, and the same on every machine: examples are derived from the tests themselves.
``BAYES_BENCH_FUZZ=20 pytest tests/project/test_fuzz.py`` tries twenty times as many, new ones at every call; what it
finds becomes an ``@example`` or a test of its own.
"""

from __future__ import annotations

import json
import math
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import bad_inputs
from bayes_bench import metrics, report
from bayes_bench.analysis.records import load_records, results_frame
from bayes_bench.cli.options import parse_override, parse_seeds
from bayes_bench.cli.tables import result_tables
from bayes_bench.errors import BayesBenchError, DataError
from bayes_bench.host.files import file_facts
from bayes_bench.jobs.plan import Override, plan
from bayes_bench.jobs.renew import recompute_metrics
from bayes_bench.methods import registry
from bayes_bench.results.folder import PREDICTIONS, RECORD, RUN, job_state, load_predictions, read_run, write_record
from bayes_bench.results.schema import FORMAT, read_record, write_checked
from bayes_bench.tasks.spec import SuiteSpec
from bayes_bench.tasks.suites import load_suite
from hostile import FACTOR, JSON, forge, fuzz, mutated
from synthetic import METHODS, make_job, write_job, write_plan

# Commands -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", bad_inputs.hand_written(), ids=lambda case: ascii(case.name[:60]))
def test_bad_input_is_refused_with_one_sentence(case: bad_inputs.BadInput, tmp_path: Path) -> None:
    assert bad_inputs.refusal(case, tmp_path) == ""


def test_generated_bad_input_is_refused_with_one_sentence(tmp_path: Path) -> None:
    for number, case in enumerate(bad_inputs.generated(0, 160 * FACTOR)):
        assert bad_inputs.refusal(case, tmp_path / str(number)) == ""


# Suites and settings --------------------------------------------------------------------------------------


def no_none(value: Any) -> Any:
    """TOML has no null."""
    if isinstance(value, dict):
        return {key: no_none(item) for key, item in value.items() if item is not None}
    return [no_none(item) for item in value if item is not None] if isinstance(value, list) else value


@fuzz(150)
@given(mutated(bad_inputs.suite()))
@example(bad_inputs.task(name="a" * 300))
@example(bad_inputs.task(settings={"map": {"batch_size": 60 * [[]]}}))
def test_a_suite_is_planned_or_refused(content: Mapping[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "suite.toml"
        path.write_bytes(bad_inputs.toml(no_none(content)).encode("utf-8", "surrogatepass"))
        try:
            jobs = plan([load_suite(str(path))])
        except BayesBenchError:
            return
        assert all(job.key("", "cpu") for job in jobs)


@fuzz(100)
@given(st.binary(max_size=200))
@example(b"name = '" + b"\xff")
@example(b"x = " + 3000 * b"[")
@example(b"x = " + 5000 * b"9")
@example(b'x = "\\u001b"')
@example(b"x = 1979-05-27T07:32:00Z")
def test_any_bytes_as_a_suite(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "suite.toml"
        path.write_bytes(content)
        with pytest.raises(BayesBenchError):
            load_suite(str(path))


SETTINGS = st.sampled_from([f"hypergan.{name}" for name in registry.config_class("hypergan").model_fields])
SMALL_SUITE = SuiteSpec.model_validate(bad_inputs.suite(methods=["hypergan"]))


@fuzz(200)
@given(st.one_of(st.text(max_size=30), st.builds("{}={}".format, SETTINGS, st.one_of(st.text(max_size=12), JSON))))
@example("hypergan.mixer_hidden=64,64")
@example("hypergan.batch_size=" + 5000 * "9")
@example("hypergan.batch_size=" + 3000 * "[")
def test_any_text_as_a_setting(text: str) -> None:
    try:
        override = parse_override(text)
        assert isinstance(override, Override)
        plan([SMALL_SUITE], overrides=[override])
    except BayesBenchError:
        pass


@fuzz(200)
@given(st.one_of(st.text(max_size=20), st.from_regex(r"[0-9, -]{0,12}", fullmatch=True)))
@example("٣")
@example(5000 * "9")
def test_any_text_as_seeds(text: str) -> None:
    try:
        seeds = parse_seeds(text)
    except BayesBenchError:
        return
    assert seeds
    assert len(set(seeds)) == len(seeds)


# Metrics --------------------------------------------------------------------------------------------------

LOGITS = st.sampled_from([0.0, 1.0, -1.0, 1e-38, 80.0, -80.0, 1e38, -1e38, math.inf, -math.inf, math.nan])


@st.composite
def class_job(draw: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Log probabilities as a job stores them, of few networks, examples and classes, with all kinds of extremes."""
    networks, examples = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    classes, outside = draw(st.integers(1, 3)), draw(st.integers(0, 2))

    def log_probs(count: int) -> np.ndarray:
        size = networks * count * classes
        logits = np.array(draw(st.lists(LOGITS, min_size=size, max_size=size))).reshape(networks, count, classes)
        with np.errstate(all="ignore"):
            top = logits.max(-1, keepdims=True) if size else 0.0
            normal = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
        return np.asarray(np.maximum(normal, -65504.0), np.float16)

    predictions = {"test/log_probs": log_probs(examples), "ood/far/log_probs": log_probs(outside)}
    labels = st.lists(st.integers(0, classes - 1), min_size=examples, max_size=examples)
    predictions |= {"validation/log_probs": log_probs(examples), "validation_ood/near/log_probs": log_probs(outside)}
    predictions |= {"test/y": np.array(draw(labels)), "validation/y": np.array(draw(labels))}
    gram = draw(st.sampled_from([0.0, 1.0, -1.0, 1e300, 1e-300]))
    predictions |= {f"weights/gram/{name}": np.full((networks, networks), gram) for name in ("linear1", "all")}
    spec = {"ood": [{"name": "far"}], "validation_ood": [{"name": "near"}]}
    record = {"kind": "classification", "networks": networks, "support": draw(st.sampled_from([None, networks]))}
    return predictions, record | {"task_spec": spec, "budget": {"total": 5}, "cost": {}}


@fuzz(150)
@given(class_job())
def test_class_metrics_are_finite_or_give_a_reason(job: tuple[dict[str, np.ndarray], dict[str, Any]]) -> None:
    check_rows(*job)


VALUES = st.sampled_from([0.0, 1.0, -1.0, 1e-38, 3e38, -3e38, 1e-45, math.nan, math.inf])


@st.composite
def value_job(draw: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Predictions of a regression, likewise."""
    networks, examples, points = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(2, 5))

    def array(*shape: int) -> np.ndarray:
        size = math.prod(shape)
        return np.array(draw(st.lists(VALUES, min_size=size, max_size=size)), np.float32).reshape(shape)

    predictions = {
        f"{name}/{what}": array(networks, count, 1)
        for name, count in (("test", examples), ("validation", examples), ("curve", points))
        for what in ("mean", "noise_std")
    }
    predictions |= {"test/y": array(examples, 1), "validation/y": array(examples, 1)}
    predictions["curve/x"] = np.linspace(-2, 2, points, dtype=np.float32)
    curve = {"low": -2.0, "high": 2.0, "points": points, "inside": [[-1.0, 1.0]], "gap": []}
    record = {"kind": "regression", "networks": networks, "support": None, "task_spec": {"curve": curve}}
    return predictions, record | {"budget": {"total": 5}, "cost": {}}


@fuzz(150)
@given(value_job())
def test_value_metrics_are_finite_or_give_a_reason(job: tuple[dict[str, np.ndarray], dict[str, Any]]) -> None:
    check_rows(*job)


def check_rows(predictions: dict[str, np.ndarray], record: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # overflow is what is tried here
        try:
            rows = metrics.compute(predictions, record)
            metrics.alarms(predictions, record)
        except BayesBenchError:
            return
    assert rows
    for row in rows:
        assert row["reason"] if row["value"] is None else math.isfinite(row["value"]), row


# Run folders ----------------------------------------------------------------------------------------------

SMALL = {"networks": 3, "examples": 6, "ood": {"ood/letters": 4, "validation_ood/letters-kt": 3}}
JOBS = {
    (kind, status): make_job(
        METHODS["hypergan"], 0, kind, **SMALL, status=status, error=None if status == "ok" else "no"
    )
    for kind in ("classification", "regression")
    for status in ("ok", "failed")
}


def run_folder(folder: Path, kind: str, status: str) -> Path:
    """Of two jobs, the first of which is the one that is tampered with; returns its folder."""
    record, predictions = JOBS[kind, status]
    other, more = make_job(METHODS["map"], 0, kind, **SMALL)
    write_job(folder, other, more)
    write_plan(folder, [record, other])
    return write_job(folder, record, predictions)


def report_and_recompute(folder: Path) -> None:
    """Both must work, or say what is wrong; the page is always a page."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for act in (lambda: report.write(folder).read_text(encoding="utf-8"), lambda: recompute_metrics(folder)):
            with suppress(BayesBenchError):
                act()


@fuzz(4)
@given(st.data())
@pytest.mark.parametrize("status", ["ok", "failed"])
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_a_record_that_says_anything(kind: str, status: str, data: st.DataObject) -> None:
    """Its checksum matches: whoever gives a run folder away can see to that."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = run_folder(folder, kind, status)
        content = data.draw(mutated(read_record(job / RECORD)))
        forge(job / RECORD, content)
        report_and_recompute(folder)


NAMES = st.sampled_from(
    ["test/log_probs", "test/y", "ood/letters/log_probs", "weights/gram/all", "test/mean", "test/noise_std", "curve/x",
     "curve/mean", "train/y", "ood/../x/log_probs", "x", "curve/noise_std", "validation/mean_intensity"]
)  # fmt: skip
DTYPES = st.sampled_from([np.float16, np.float32, np.float64, np.int64, np.uint8, np.bool_])


@fuzz(6)
@given(st.data())
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_predictions_that_hold_anything(kind: str, data: st.DataObject) -> None:
    from safetensors.numpy import save

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = run_folder(folder, kind, "ok")
        arrays = dict(load_predictions(job))
        for _ in range(data.draw(st.integers(1, 3))):
            key = data.draw(st.one_of(NAMES, st.sampled_from(sorted(arrays))))
            shape = data.draw(st.lists(st.integers(0, 6), max_size=4))
            value = data.draw(st.sampled_from([0.0, 1.0, -5.0, 3e38, 1e-45, math.nan, math.inf]))
            kept = arrays.get(key)
            match data.draw(st.integers(0, 3)):
                case 0:
                    arrays.pop(key, None)
                case 1 if kept is not None and kept.dtype.kind == "f":
                    with np.errstate(over="ignore"):
                        arrays[key] = np.full(kept.shape, value).astype(kept.dtype)
                case 2 if kept is not None:
                    arrays[key] = kept.astype(data.draw(DTYPES))
                case _:
                    with np.errstate(all="ignore"):
                        arrays[key] = np.full(shape, value).astype(data.draw(DTYPES))
        (job / PREDICTIONS).write_bytes(save({k: np.ascontiguousarray(v) for k, v in arrays.items()}))
        record = read_record(job / RECORD)
        files = record["files"] | {PREDICTIONS: file_facts(job / PREDICTIONS)}
        write_record(job, record | {"files": files})
        report_and_recompute(folder)


@fuzz(30)
@given(mutated({"format": 1, "jobs": [{"key": 64 * "a", "task": "t", "label": "l", "seed": 1}], "command": ["x"]}))
def test_a_description_that_says_anything(content: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / RUN).write_text(json.dumps(content))
        report_and_recompute(folder)


@pytest.mark.parametrize("file", [RECORD, PREDICTIONS, RUN])
def test_every_damage_is_noticed(file: str, tmp_path: Path) -> None:
    job = run_folder(tmp_path, "regression", "ok")
    key = read_record(job / RECORD)["key"]
    path = tmp_path / file if file == RUN else job / file
    if file == RUN:
        write_checked(path, read_run(tmp_path) | {"format": FORMAT})
    for what, content in bad_inputs.damages(path.read_bytes(), 0, 120 * FACTOR):
        path.write_bytes(content)
        if file == RUN:
            with pytest.raises(DataError):
                read_run(tmp_path)
        else:
            assert job_state(job, key).kind == "damaged", what
            assert str(path) in job_state(job, key).problem


def test_a_damaged_record_is_named_and_never_averaged(tmp_path: Path) -> None:
    job = run_folder(tmp_path, "regression", "ok")
    path = job / RECORD
    path.write_bytes(path.read_bytes().replace(b'"seed": 0', b'"seed": 1'))
    page = report.write(tmp_path).read_text(encoding="utf-8")
    assert f"{path} is damaged: its checksum differs" in page
    assert "hypergan" not in set(results_frame(load_records(tmp_path))["method"])


@pytest.mark.parametrize("value", [1e100, -1e100, 5e-324])
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_a_page_of_numbers_at_their_bounds(kind: str, value: float, tmp_path: Path) -> None:
    def at_bound(content: Any, sign: int) -> Any:
        if isinstance(content, dict):
            return {key: at_bound(item, sign) for key, item in content.items()}
        if isinstance(content, list):
            return [at_bound(item, sign) for item in content]
        return sign * value if isinstance(content, float) else content

    records = []
    for label in ("hypergan", "map"):
        for seed in range(3):  # enough to rank
            record, predictions = make_job(METHODS[label], seed, kind, **SMALL)
            extreme = {part: at_bound(record[part], (-1) ** seed) for part in ("metrics", "fit", "cost", "prior")}
            write_job(tmp_path, record | extreme, predictions)
            records.append(record)
    write_plan(tmp_path, records)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert "</html>" in report.write(tmp_path).read_text(encoding="utf-8")
        assert result_tables(load_records(tmp_path))
