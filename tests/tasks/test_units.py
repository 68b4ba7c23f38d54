"""Numbers of any offset and factor: what networks see, and what is reported, does not depend on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayes_bench import cli
from bayes_bench.data.npy import stored
from bayes_bench.errors import DataError
from bayes_bench.jobs.predictions import raw_targets
from bayes_bench.results.folder import load_predictions, read_records
from bayes_bench.tasks.spec import TaskSpec
from bayes_bench.tasks.task import Standardiser, Task, build_task, input_units, target_units

OFFSETS = st.floats(-1e9, 1e9)
FACTORS = st.floats(1e-25, 1e25)


def line(n: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Inputs ``[N, 2]`` of both signs and targets ``[N]``, of a size about 1."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (n, 2))
    return x, np.sin(x[:, 0]) + 0.1 * rng.normal(size=n)


def spec(source: str, folder: Path, **more: Any) -> TaskSpec:
    names = {"csv": ("a.csv", {"target": "y"}), "npz": ("a.npz", {}), "npy": ("x.npy", {})}
    name, options = names[source]
    if source == "npy":
        options = {"target_path": str(folder / "y.npy")}
    content = {
        "name": "t",
        "data": {"source": source, "path": str(folder / name), **options},
        "budget": 2000,
        "network": {"name": "mlp", "hidden": [4]},
        "likelihood": {"name": "gaussian"},
    }
    return TaskSpec.model_validate(content | more)


def write(folder: Path, x: np.ndarray, y: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    rows = ["a,b,y", *(",".join(map(repr, row)) for row in np.column_stack([x, y]).tolist())]
    (folder / "a.csv").write_text("\n".join(rows) + "\n")
    np.savez(folder / "a.npz", x=x, y=y)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)


def seen(task: Task) -> list[np.ndarray]:
    """All that networks see."""
    train = task.fit_data.train
    sets = [value for part in task.sets.values() for value in (part.inputs(), part.y) if value is not None]
    return [value.numpy() for value in (train.inputs(), train.y, *sets)]


# --- what networks see


@pytest.mark.parametrize("source", ["csv", "npz", "npy"])
@settings(max_examples=30, deadline=None)
@given(offset=OFFSETS, factor=FACTORS)
def test_networks_see_the_same_whatever_the_offset_and_the_factor(
    tmp_path_factory: pytest.TempPathFactory, source: str, offset: float, factor: float
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"units-{source}"
    x, y = line()
    write(folder, x, y)
    plain = seen(build_task(spec(source, folder)))
    write(folder, factor * (x + offset), factor * (y + offset))
    moved = seen(build_task(spec(source, folder)))
    # Rounding of the raw numbers themselves, beside single precision's own.
    tolerance = 1e-6 + 8 * np.finfo(np.float64).eps * abs(offset)
    for before, after in zip(plain, moved, strict=True):
        np.testing.assert_allclose(after, before, atol=tolerance, rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(offset=OFFSETS, factor=FACTORS)
def test_targets_come_back_in_their_own_units(offset: float, factor: float) -> None:
    _, y = line()
    raw = factor * (y[:, None] + offset)
    units = target_units(raw)
    standardiser = Standardiser(np.zeros(1), np.ones(1), units.mean, units.std)
    back = raw_targets(standardiser.targets(raw), standardiser)
    np.testing.assert_allclose(back, raw, rtol=0, atol=2e-6 * float(raw.std()))


def test_unix_seconds_stay_apart(tmp_path: Path) -> None:
    x, y = line(260)
    write(tmp_path, 1.7e9 + 200 * x, y)
    task = build_task(spec("csv", tmp_path))
    inputs = np.concatenate([part.inputs().numpy() for part in (task.fit_data.train, task.fit_data.validation)])  # type: ignore[union-attr]
    assert len(np.unique(inputs[:, 0])) == len(inputs)


def test_the_mean_of_many_large_numbers() -> None:
    """A plain sum of so many is off by far more than what they vary by."""
    x = 1e9 + 1e-4 * np.random.default_rng(0).normal(size=(300_000, 1))
    units = input_units(x)
    exact = float(np.mean(x - 1e9))
    assert abs(float(units.mean[0]) - 1e9 - exact) < 2e-7  # what float64 carries there
    np.testing.assert_allclose(units.std, (x - 1e9).std(0), rtol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e8 + 0.1, -1e-30, 3e38])
def test_constants_are_only_centred(value: float) -> None:
    units = input_units(np.full((999, 1), value))
    assert units.std.tolist() == [1.0]
    assert units.mean.tolist() == [value]


@pytest.mark.parametrize("factor", [1e-25, 1e-13, 1.0, 1e30])
def test_a_small_feature_is_no_constant(factor: float) -> None:
    x, _ = line()
    np.testing.assert_allclose(input_units(factor * x).std, factor * x.std(0), rtol=1e-12)


def test_single_precision_is_measured_as_ever() -> None:
    x = line()[0].astype(np.float32)
    np.testing.assert_array_equal(input_units(x).mean, x.mean(0, dtype=np.float64))
    np.testing.assert_array_equal(input_units(x).std, x.std(0, dtype=np.float64))


# --- what cannot be told is refused


@pytest.mark.parametrize("source", ["csv", "npz", "npy"])
def test_a_spread_that_is_lost_is_refused(tmp_path: Path, source: str) -> None:
    x, y = line()
    write(tmp_path, x + np.array([0.0, 1e15]), y)
    name = "'b'" if source == "csv" else "1"
    message = rf"feature {name} varies by [\d.]+ \(standard deviation\) among numbers of 1e\+15.*subtract a constant"
    with pytest.raises(DataError, match=message):
        build_task(spec(source, tmp_path))
    write(tmp_path, x, y + 1e15)
    with pytest.raises(
        DataError, match=r"the target varies by .* among numbers of 1e\+15: that is lost in the rounding"
    ):
        build_task(spec(source, tmp_path))


def test_single_precision_that_was_saved_too_early_is_refused(tmp_path: Path) -> None:
    x, y = line()
    write(tmp_path, (1.7e9 + 200 * x).astype(np.float32), y)
    with pytest.raises(DataError, match=r"rounding of float32; subtract a constant .* or save it as float64"):
        build_task(spec("npz", tmp_path))
    write(tmp_path, (2000 + 10 * x).round().astype(np.float32), y)  # years
    build_task(spec("npz", tmp_path))


@pytest.mark.parametrize("part", ["test", "far"])
def test_inputs_beyond_numbers_after_standardising_are_named(tmp_path: Path, part: str) -> None:
    x, y = line()
    far = np.array([[0.0, 0.0], [0.0, 1e30]])
    arrays = {
        "x_train": 1e-20 * x,
        "y_train": y,
        "x_test": far if part == "test" else 1e-20 * x[:9] + 1,
        "y_test": y[:2],
    }
    arrays["y_test"] = y[: len(arrays["x_test"])]
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez(tmp_path / "far.npz", x=far)
    ood = [{"name": "far", "source": "npz", "path": str(tmp_path / "far.npz")}] if part == "far" else []
    what = "the test inputs" if part == "test" else "the out-of-distribution set 'far'"
    with pytest.raises(DataError, match=rf"{what}: the value \[1\] of row 1 lies 1\.\d*e\+50 training standard dev"):
        build_task(spec("npz", tmp_path, ood=ood))


def test_ranges_are_those_of_training_inputs(tmp_path: Path) -> None:
    x, y = line()
    write(tmp_path, x, y)
    for source in ("npz", "npy"):
        task = build_task(spec(source, tmp_path))
        assert task.ranges is not None
        train = task.fit_data.train.inputs().double().numpy() * task.standardiser.x_std + task.standardiser.x_mean
        np.testing.assert_allclose(np.stack(task.ranges), [train.min(0), train.max(0)], rtol=1e-5)
    rows = stored(tmp_path / "x.npy", channels_last=False)
    assert rows.dtype == np.float64


# --- what is reported


def test_results_do_not_depend_on_the_offset(tmp_path: Path) -> None:
    """A whole run on seconds since 1970 with targets about 1e8: the metrics of the same data about zero."""
    rng = np.random.default_rng(1)
    t = rng.normal(0, 200, 200)
    y = np.sin(t / 150) + 0.1 * rng.normal(size=200)
    found = {}
    for name, (x_offset, y_offset) in {"plain": (0.0, 0.0), "moved": (1.7e9, 1e8)}.items():
        rows = "".join(f"{a!r},{b!r}\n" for a, b in zip((t + x_offset).tolist(), (y + y_offset).tolist(), strict=True))
        (tmp_path / f"{name}.csv").write_text("t,y\n" + rows)
        low, high = x_offset - 500, x_offset + 500
        (tmp_path / f"{name}.toml").write_text(
            f'name = "{name}"\nmethods = ["map"]\nseeds = [0]\n[[tasks]]\nname = "t"\nbudget = 30_000\n'
            f'data = {{ source = "csv", path = "{name}.csv", target = "y" }}\nlikelihood = {{ name = "gaussian" }}\n'
            f'network = {{ name = "mlp", hidden = [10] }}\n'
            f"curve = {{ low = {low}, high = {high}, inside = [[{low}, {high}]] }}\n"
        )
        with pytest.raises(SystemExit) as ended:
            cli.main(["run", str(tmp_path / f"{name}.toml"), "--quiet", "--out", str(tmp_path / name)])
        assert ended.value.code == 0
        ((folder, record),) = read_records(tmp_path / name)[0]
        found[name] = {row["name"]: row["value"] for row in record["metrics"]} | load_predictions(folder)
    plain, moved = found["plain"], found["moved"]
    assert 0.05 < plain["rmse"] < 0.6
    for metric in ("rmse", "nll", "crps", "coverage95", "width95", "val_nll"):
        assert moved[metric] == pytest.approx(plain[metric], rel=1e-4), metric
    assert plain["test/mean"].dtype == np.float32
    assert moved["test/mean"].dtype == np.float64
    np.testing.assert_allclose(moved["test/mean"] - 1e8, plain["test/mean"], atol=1e-5)
    np.testing.assert_allclose(moved["curve/x"] - 1.7e9, plain["curve/x"], atol=1e-3)
