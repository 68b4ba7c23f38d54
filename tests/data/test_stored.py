"""Training inputs that stay in a file: the same results as in memory, with memory that follows the batch."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bayes_bench import cli, data
from bayes_bench.data import npy, stored
from bayes_bench.data.spec import SourceSpec
from bayes_bench.errors import DataError, UsageError
from bayes_bench.methods import registry
from bayes_bench.posterior.examples import Examples, FitData, StoredInputs
from bayes_bench.results.folder import read_records
from bayes_bench.tasks.spec import TaskSpec
from bayes_bench.tasks.task import Standardiser, _checksum, build_task, input_units


def arrays(n: int = 120, shape: tuple[int, ...] = (3,), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(2, 3, (n, *shape)).astype(np.float32)
    return x, (x.reshape(n, -1).sum(1) > 2 * x[0].size).astype(np.int64)


def write(folder: Path, x: np.ndarray, y: np.ndarray) -> dict[str, dict[str, Any]]:
    """The same arrays as NPY files and as an NPZ file; returns the sources."""
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    np.savez(folder / "both.npz", x=x, y=y)
    return {
        "npy": {"source": "npy", "path": str(folder / "x.npy"), "target_path": str(folder / "y.npy")},
        "npz": {"source": "npz", "path": str(folder / "both.npz")},
    }


def task_spec(source: dict[str, Any], **more: Any) -> TaskSpec:
    network = {"name": "mlp", "hidden": [6]}
    return TaskSpec.model_validate({"name": "t", "data": source, "network": network, "budget": 3000} | more)


# --- the source


@pytest.mark.parametrize(
    ("x", "options"),
    [
        (arrays()[0], {}),
        (arrays(shape=(1, 6, 6))[0].clip(0, 9).astype(np.uint8), {}),
        (arrays(shape=(6, 6))[0].clip(0, 9).astype(np.uint8), {"split_seed": 3}),
        (arrays(shape=(5, 4, 3))[0].astype(np.float64), {"channels_last": True, "validation": 0.3, "test": 0.1}),
        (arrays(shape=())[0], {}),
    ],
    ids=["features", "byte images", "grey bytes", "channels last", "one feature"],
)
def test_npy_is_npz_with_training_inputs_in_the_file(tmp_path: Path, x: np.ndarray, options: dict[str, Any]) -> None:
    sources = write(tmp_path, x, np.arange(len(x)) % 3)
    lazy, whole = (
        data.load_split(SourceSpec.model_validate(source | options), tmp_path) for source in sources.values()
    )
    assert isinstance(lazy.train.x, data.StoredRows)
    assert isinstance(lazy.validation.x, np.ndarray)
    assert lazy.classes == whole.classes
    for part in ("train", "validation", "test"):
        mine, theirs = getattr(lazy, part), getattr(whole, part)
        np.testing.assert_array_equal(mine.inputs(), theirs.x)
        np.testing.assert_array_equal(mine.y, theirs.y)
        assert mine.x.dtype == theirs.x.dtype == (np.float64 if x.dtype == np.float64 else np.float32)
        assert mine.x.shape == theirs.x.shape


def test_npy_regression_with_test_files(tmp_path: Path) -> None:
    x, _ = arrays()
    source = write(tmp_path, x, x[:, :2] * 2.0)["npy"]
    np.save(tmp_path / "tx.npy", x[:7])
    np.save(tmp_path / "ty.npy", x[:7, :2])
    source |= {"test_path": str(tmp_path / "tx.npy"), "test_target_path": str(tmp_path / "ty.npy"), "validation": 0.1}
    split = data.load_split(SourceSpec.model_validate(source), tmp_path, "regression")
    assert (len(split.train), len(split.validation), len(split.test)) == (108, 12, 7)
    np.testing.assert_array_equal(split.train.y, split.train.inputs()[:, :2] * 2)
    np.testing.assert_array_equal(split.test.x, x[:7])


def test_npy_paths_count_from_the_suite(tmp_path: Path) -> None:
    """A whole run: the same records' metrics as of the NPZ file, and the same checksum of the data."""
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", *arrays())
    found = []
    for name, keys in (("npy", 'path = "data/x.npy", target_path = "data/y.npy"'), ("npz", 'path = "data/both.npz"')):
        (tmp_path / f"{name}.toml").write_text(
            f'name = "{name}"\nmethods = ["map"]\nseeds = [0]\n[[tasks]]\nname = "t"\nbudget = 3000\n'
            f'data = {{ source = "{name}", {keys} }}\nnetwork = {{ name = "mlp", hidden = [6] }}\n'
        )
        with pytest.raises(SystemExit) as ended:
            cli.main(["run", str(tmp_path / f"{name}.toml"), "--quiet", "--out", str(tmp_path / name)])
        assert ended.value.code == 0
        ((_, record),) = read_records(tmp_path / name)[0]
        found.append(record)
    mine, theirs = found
    assert mine["data"]["checksum"] == theirs["data"]["checksum"]
    assert mine["data"]["standardiser"] == theirs["data"]["standardiser"]
    timed = {"fit_seconds", "predict_seconds_per_1000", "peak_memory_mb"}
    metrics = [{row["name"]: row["value"] for row in record["metrics"] if row["name"] not in timed} for record in found]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: np.save(folder / "y.npy", np.arange(7)), r"x\.npy has 120 examples, .*y\.npy has 7"),
        (lambda folder: np.save(folder / "x.npy", np.asfortranarray(np.ones((120, 3)))), "is in Fortran order"),
        (lambda folder: np.save(folder / "x.npy", np.ones((0, 3))), r"x\.npy holds no examples"),
        (lambda folder: np.save(folder / "x.npy", np.ones((120, 0))), r"an input of shape \[0\] holds no values"),
        (lambda folder: np.save(folder / "x.npy", np.float64(1.0)), r"x\.npy holds no examples"),
        (lambda folder: np.save(folder / "x.npy", np.array(["a"] * 120)), "inputs must be an array of numbers"),
        (lambda folder: np.save(folder / "x.npy", np.array([None] * 120)), "holds Python objects"),
        (lambda folder: np.save(folder / "x.npy", np.full((120, 3), np.nan)), "training inputs contain NaN"),
        (lambda folder: (folder / "x.npy").write_bytes(b"not an array"), "is not an NPZ or NPY file"),
        (lambda folder: (folder / "x.npy").unlink(), r"cannot read .*x\.npy: No such file"),
        (lambda folder: cut(folder / "x.npy", -4), r"x\.npy is damaged: an array claims 1,440 bytes"),
        (lambda folder: cut(folder / "x.npy", None), r"x\.npy is damaged: an array has not the size"),
        (lambda folder: (folder / "both.npz").rename(folder / "y.npy"), r"y\.npy is not an NPY file of one array"),
    ],
    ids=lambda value: None if isinstance(value, str) else "file",
)
def test_npy_files_that_do_not_serve(tmp_path: Path, change: Any, message: str) -> None:
    source = write(tmp_path, *arrays())["npy"]
    change(tmp_path)
    with pytest.raises(DataError, match=message):
        data.load_split(SourceSpec.model_validate(source), tmp_path)


def mean_and_std(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    units = input_units(x)
    return units.mean, units.std


def standardiser(x: np.ndarray) -> Standardiser:
    return Standardiser(*mean_and_std(x))


def cut(path: Path, end: int | None) -> None:
    """The file without its last bytes, or where ``end`` is None with a byte more."""
    content = path.read_bytes()
    # The header alone stays as it is: a short file must be shorter than what its header claims.
    path.write_bytes(content + b"\0" if end is None else content[: 1440 - 1])


def test_npy_test_files_come_in_pairs(tmp_path: Path) -> None:
    source = write(tmp_path, *arrays())["npy"] | {"test_path": "tx.npy"}
    with pytest.raises(UsageError, match="give test_path and test_target_path together"):
        data.check_spec(SourceSpec.model_validate(source))


def test_a_file_that_shrinks_later_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, *arrays())
    rows = npy.stored(tmp_path / "x.npy", channels_last=False)
    cut(tmp_path / "x.npy", -4)
    with pytest.raises(DataError, match=r"cannot read .*x\.npy any more"):
        rows[:5]


# --- tasks and methods


def test_stored_inputs_are_those_in_memory(tmp_path: Path) -> None:
    x, y = arrays(shape=(1, 6, 6))
    sources = write(tmp_path, (x * 9).clip(0, 255).astype(np.uint8), y)
    lazy, whole = (build_task(task_spec(source)) for source in sources.values())
    train, same = lazy.fit_data.train, whole.fit_data.train
    assert isinstance(train.x, StoredInputs)
    assert not train.in_memory
    assert same.in_memory
    assert lazy.checksum == whole.checksum
    assert torch.equal(train.inputs(), same.inputs())
    assert torch.equal(train.x[3:9:2], same.x[3:9:2])
    index = torch.tensor([[5, 0, 70], [5, 5, 1]])
    assert torch.equal(train.x[index], same.x[index])
    for rows, count in ((None, 1), (7, 12)):
        blocks, others = (list(examples.blocks(rows)) for examples in (train, same))
        assert len(blocks) == len(others) == count
        for (x, y), (other_x, other_y) in zip(blocks, others, strict=True):
            assert torch.equal(x, other_x)
            assert torch.equal(y, other_y)


FITS = {
    "map": {},
    "ensemble": {"members": 2, "adversarial_epsilon": 0.05},
    "mcdropout": {},
    "mnf": {},
    "sgld": {},
    "apd": {"student_steps": 20, "student_hidden": (20,), "critic_hidden": (20,)},
    "hypergan": {},
}


@pytest.mark.parametrize("method", FITS)
def test_a_fit_on_stored_inputs_is_the_same_bit_for_bit(tmp_path: Path, method: str) -> None:
    x, y = arrays(shape=(1, 6, 6))
    draws = []
    for source in write(tmp_path, (x * 9).clip(0, 255).astype(np.uint8), y).values():
        task = build_task(task_spec(source))
        config = registry.resolve_config(method, {"batch_size": 8, **FITS[method]})
        posterior = registry.method_class(method)(task.build_network(0), task.likelihood, task.prior, config)
        posterior.fit(task.fit_data, budget=4000, seed=0, snapshots=tmp_path / f"snapshots-{len(draws)}")
        draws.append(posterior.sample(3, seed=0))
    for name, values in draws[0].items():
        assert torch.equal(values, draws[1][name])


def test_hmc_says_that_it_needs_the_inputs_in_memory(tmp_path: Path) -> None:
    task = build_task(task_spec(write(tmp_path, *arrays())["npy"]))
    hmc = registry.method_class("hmc")(task.build_network(0), task.likelihood, task.prior)
    with pytest.raises(UsageError, match="hmc takes all training inputs at every step, which must be in memory"):
        hmc.check_fit(task.fit_data, 10**9)


FIT = """
import json, resource, sys
import torch
from bayes_bench.tasks.spec import TaskSpec
from bayes_bench.tasks import build_task
from bayes_bench_baselines import DeepEnsemble
torch.set_num_threads(1)
task = build_task(TaskSpec.model_validate(json.loads(sys.argv[1])))
posterior = DeepEnsemble(task.build_network(0), task.likelihood, task.prior)
posterior.fit(task.fit_data, budget=4000)
posterior.predict(task.test.inputs(), posterior.sample(2, seed=0))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_memory_follows_the_batch_not_the_file(tmp_path: Path) -> None:
    """400 MB of inputs, most of them a hole in the file, in at most 120 MB more than 4 MB take."""
    peaks = []
    for n in (1000, 100_000):
        folder = tmp_path / str(n)
        folder.mkdir()
        x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (n, 1, 32, 32))
        x[:50] = np.random.default_rng(0).normal(size=(50, 1, 32, 32))
        del x
        np.save(folder / "y.npy", np.arange(n) % 2)
        source = {"source": "npy", "path": str(folder / "x.npy"), "target_path": str(folder / "y.npy")}
        spec = task_spec(source | {"validation": 100 / n, "test": 100 / n})
        ended = subprocess.run(
            [sys.executable, "-c", FIT, json.dumps(spec.model_dump(mode="json"))],
            capture_output=True,
            text=True,
            timeout=280,
            check=True,
        )
        peaks.append(int(ended.stdout) / 1024)
    assert peaks[1] - peaks[0] < 120, peaks


# --- passes in blocks


@pytest.mark.parametrize("shape", [(50, 3, 4, 4), (50, 7), (50, 5, 6), (50,)])
def test_units_of_blocks_are_those_of_the_whole(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(3, 2, shape).astype(np.float32)
    axes = {4: (0, 2, 3), 2: (0,)}.get(len(shape))
    expected = x.mean(axes, dtype=np.float64), x.std(axes, dtype=np.float64)
    whole = [values.reshape(expected[0].shape) for values in mean_and_std(x)]
    for mine, theirs in zip(whole, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)  # one block: to the last bit
    monkeypatch.setattr(stored, "BLOCK", 40)
    for mine, theirs in zip(mean_and_std(x), expected, strict=True):
        np.testing.assert_allclose(mine.reshape(theirs.shape), theirs, rtol=1e-14)


def test_standardised_inputs_and_checksums_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(3, 2, (50, 3, 4, 4)).astype(np.float32)
    units = standardiser(x)
    once = ((x.astype(np.float64) - units.x_mean) / units.x_std).astype(np.float32)
    arrays = {"b": x, "a": np.arange(50)}
    checksum = _checksum(arrays)
    monkeypatch.setattr(stored, "BLOCK", 100)
    assert len(list(data.blocks(x))) == 25
    np.testing.assert_array_equal(units.inputs(x).numpy(), once)
    assert _checksum(arrays) == checksum


def test_passes_over_images_take_little_more_than_their_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "BLOCK", 2**16)
    images = np.random.default_rng(0).integers(0, 256, (400, 3, 32, 32), dtype=np.uint8)
    size = 4 * images.size

    def peak(call: Any) -> float:
        tracemalloc.start()
        result = call()
        taken = tracemalloc.get_traced_memory()[1] / size
        tracemalloc.stop()
        del result
        return taken

    assert peak(lambda: data.base.unit_images(images)) < 1.1
    x = data.base.unit_images(images)
    units = standardiser(x)
    assert peak(lambda: units.inputs(x)) < 1.5
    assert peak(lambda: input_units(x)) < 0.5


def test_not_finite_inputs_are_found_in_any_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bayes_bench.posterior.examples.BLOCK", 12)
    x = torch.zeros(30, 3)
    Examples(x, torch.zeros(30, dtype=torch.int64))
    x[29, 1] = torch.inf
    with pytest.raises(DataError, match="the inputs contain NaN or infinity"):
        FitData(Examples(x, torch.zeros(30, dtype=torch.int64)))
