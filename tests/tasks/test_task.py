"""Tasks built from specifications: standardisation, likelihoods in the right units, early checks."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bayes_bench.data.spec import OODSpec, SourceSpec
from bayes_bench.errors import BayesBenchError, DataError, UsageError
from bayes_bench.posterior.likelihood import Categorical, Gaussian, HeteroscedasticGaussian
from bayes_bench.tasks.spec import TaskSpec
from bayes_bench.tasks.suites import load_suite
from bayes_bench.tasks.task import Task, build_task


def spec(source: dict[str, Any], likelihood: str | dict[str, Any] = "categorical", **more: Any) -> TaskSpec:
    values: dict[str, Any] = {
        "name": "t",
        "data": source,
        "budget": 10,
        "network": {"name": "mlp", "hidden": [4]},
        "likelihood": {"name": likelihood} if isinstance(likelihood, str) else likelihood,
    }
    return TaskSpec.model_validate(values | more)


def regression_file(path: Path, dimensions: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    x = rng.normal(5, 2, (60, 3))
    x[:, 2] = 7.0  # constant
    y = rng.normal(0, 1, (60, dimensions)) * 10.0 ** np.arange(dimensions) + 100
    np.savez(path, x=x, y=y)
    return {"source": "npz", "path": str(path)}


@pytest.fixture(scope="module")
def digits() -> Task:
    return build_task(load_suite("digits").tasks[0])


def test_digits_task(digits: Task) -> None:
    train = digits.fit_data.train
    assert train.x.shape == (800, 1, 8, 8)
    assert train.x.dtype == torch.float32
    assert train.y.dtype == torch.int64
    assert digits.fit_data.validation is not None
    assert (len(digits.fit_data.validation), len(digits.test)) == (200, 797)
    assert float(train.x.mean()) == pytest.approx(0, abs=1e-5)
    assert float(train.x.std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert isinstance(digits.likelihood, Categorical)
    assert digits.likelihood.output_width == len(digits.classes) == 10
    assert {name: len(x) for name, x in digits.ood.items()} == {"letters": 1000}
    assert {name: len(x) for name, x in digits.validation_ood.items()} == {"letters-val": 1000}
    assert digits.curve_x is None
    assert "stand-in" in digits.notes[0]


def test_all_inputs_are_standardised_with_training_statistics(digits: Task) -> None:
    """Black is the same number everywhere: minus the training mean over the training spread."""
    black = -digits.standardiser.x_mean.item() / digits.standardiser.x_std.item()
    for x in (digits.test.x, digits.ood["letters"], digits.validation_ood["letters-val"]):
        assert float(x.min()) == pytest.approx(black, rel=1e-6)
        assert float(x.max()) == pytest.approx(
            (1 + black * digits.standardiser.x_std.item()) / digits.standardiser.x_std.item(), rel=1e-6
        )


def test_networks_differ_by_seed_only(digits: Task) -> None:
    state = torch.get_rng_state()
    first, again, other = (torch.nn.utils.parameters_to_vector(digits.build_network(s).parameters()) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_cubic_units() -> None:
    task = build_task(load_suite("cubic").tasks[0])
    train = task.fit_data.train
    assert isinstance(task.likelihood, Gaussian)
    noise = task.likelihood.noise_std
    assert isinstance(noise, float)
    assert noise * task.standardiser.y_std.item() == pytest.approx(3.0)
    for values in (train.x, train.y):
        assert float(values.mean()) == pytest.approx(0, abs=1e-6)
        assert float(values.std(correction=0)) == pytest.approx(1, abs=1e-6)
    x = train.x.double().numpy() * task.standardiser.x_std + task.standardiser.x_mean
    y = train.y.double().numpy() * task.standardiser.y_std + task.standardiser.y_mean
    assert np.abs(y - x**3).max() < 4 * 3  # raw units again: what is left is the noise
    assert task.curve_x is not None
    assert task.curve_x.shape == (241, 1)
    grid = task.curve_x.double().numpy() * task.standardiser.x_std + task.standardiser.x_mean
    np.testing.assert_allclose(grid[:, 0], np.linspace(-6, 6, 241), atol=1e-5)
    assert task.classes == ()


def test_gap_has_its_gap() -> None:
    task = build_task(load_suite("gap").tasks[0])
    x = task.fit_data.train.x.double().numpy() * task.standardiser.x_std + task.standardiser.x_mean
    assert not ((x > -0.999) & (x < 1.499)).any()
    assert task.spec.curve is not None
    assert task.spec.curve.gap == ((-1.0, 1.5),)


def test_features_are_standardised_one_by_one_and_constants_only_centred(tmp_path: Path) -> None:
    task = build_task(spec(regression_file(tmp_path / "a.npz", 1), "gaussian"))
    x = task.fit_data.train.x
    assert task.standardiser.x_mean.shape == (3,)
    assert task.standardiser.x_std[2] == 1.0
    torch.testing.assert_close(x.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-5, rtol=0)


def test_colour_images_are_standardised_per_channel(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(40, 3, 6, 6)) * np.array([1.0, 2.0, 5.0])[:, None, None] + 3
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(40) % 2)
    task = build_task(spec({"source": "npz", "path": str(tmp_path / "a.npz")}))
    assert task.standardiser.x_std.shape == (3, 1, 1)
    flat = task.fit_data.train.x.transpose(0, 1).flatten(1)
    torch.testing.assert_close(flat.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(flat.std(1, correction=0), torch.ones(3), atol=1e-5, rtol=0)


def test_several_targets(tmp_path: Path) -> None:
    source = regression_file(tmp_path / "a.npz", 2)
    learned = build_task(spec(source, "gaussian"))
    assert isinstance(learned.likelihood, Gaussian)
    assert learned.likelihood.noise_std == "learned"
    torch.testing.assert_close(learned.fit_data.train.y.std(0, correction=0), torch.ones(2), atol=1e-5, rtol=0)
    hetero = build_task(spec(source, "heteroscedastic"))
    assert isinstance(hetero.likelihood, HeteroscedasticGaussian)
    assert hetero.build_network(0)(hetero.test.x[:5]).shape == (5, 4)


def test_one_known_noise_for_several_targets_stays_one_number(tmp_path: Path) -> None:
    source = regression_file(tmp_path / "a.npz", 2)
    task = build_task(spec(source, likelihood={"name": "gaussian", "noise_std": 0.5}))
    assert isinstance(task.likelihood, Gaussian)
    y_std = task.standardiser.y_std
    assert y_std[0] == y_std[1]
    assert task.likelihood.noise_std == pytest.approx(0.5 / y_std[0])
    spread = task.fit_data.train.y.std(0, correction=0)
    assert float(spread[1] / spread[0]) == pytest.approx(10, rel=0.5)  # the targets keep their proportions
    assert float((spread**2).mean()) == pytest.approx(1, abs=1e-5)


# --- checksum


def test_checksum_follows_every_array(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"x_train": rng.normal(size=(20, 2)), "y_train": np.arange(20) % 2}
    arrays |= {
        f"{name}_{part}": arrays[f"{name}_train"][:6] + shift
        for part in ("validation", "test")
        for name, shift in (("x", 1), ("y", 0))
    }
    ood = rng.normal(size=(5, 2))
    path, ood_path = tmp_path / "a.npz", tmp_path / "ood.npz"
    task_spec = spec(
        {"source": "npz", "path": str(path)}, ood=[{"name": "far", "source": "npz", "path": str(ood_path)}]
    )

    def checksum(task_spec: TaskSpec = task_spec, **changed: np.ndarray) -> str:
        np.savez(path, **(arrays | {name: v for name, v in changed.items() if name != "ood"}))
        np.savez(ood_path, x=changed.get("ood", ood))
        return build_task(task_spec).checksum

    original = checksum()
    assert re.fullmatch(r"[0-9a-f]{64}", original)
    assert checksum() == original
    seen = {original}
    for name, values in (arrays | {"ood": ood}).items():
        different = values.copy()
        different[-1] = different[-1] + 1 if name[0] != "y" else 1 - different[-1]
        seen.add(checksum(**{name: different}))
    assert len(seen) == 8
    renamed = task_spec.model_copy(update={"ood": (OODSpec(name="other", source="npz", path=str(ood_path)),)})
    assert checksum(renamed) not in seen


def test_fewer_examples_are_always_the_same_ones_and_other_data(digits: Task) -> None:
    fewer = build_task(digits.spec.model_copy(update={"examples": 50}))
    again = build_task(digits.spec.model_copy(update={"examples": 50}))
    assert fewer.checksum == again.checksum != digits.checksum
    assert len(fewer.fit_data.train) == len(digits.fit_data.train)
    assert fewer.fit_data.validation is not None
    parts = [fewer.test.x, fewer.fit_data.validation.x, *fewer.ood.values(), *fewer.validation_ood.values()]
    assert [len(part) for part in parts] == [50] * len(parts)
    rows = {row.numpy().tobytes() for row in digits.test.x}
    assert all(row.numpy().tobytes() in rows for row in fewer.test.x)
    assert "test: a fixed random 50 of the 797 examples" in fewer.notes
    assert build_task(digits.spec.model_copy(update={"examples": 5000})).checksum == digits.checksum


def test_checksum_of_the_shipped_tasks() -> None:
    """Pinned: results of other checksums are results on other data."""
    assert build_task(load_suite("cubic").tasks[0]).checksum[:16] == "6efe8730aaf3ed86"
    assert build_task(load_suite("gap").tasks[0]).checksum[:16] == "94fb42d1e5a05a03"


def test_checksum_of_digits(digits: Task) -> None:
    assert digits.checksum[:16] == "d815221e505c9f24"


# --- errors


def test_missing_out_of_distribution_set_is_an_error_unless_optional(tmp_path: Path) -> None:
    source = regression_file(tmp_path / "a.npz", 1)
    missing = {"name": "far", "source": "npz", "path": str(tmp_path / "none.npz")}
    with pytest.raises(DataError, match=r"task 't': cannot read .*none.npz"):
        build_task(spec(source, "gaussian", ood=[missing]))
    task = build_task(spec(source, "gaussian", ood=[missing | {"optional": True}]))
    assert task.ood == {}
    assert "none.npz" in task.missing_ood["far"]
    assert "the out-of-distribution set 'far' is left out: cannot read" in task.notes[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": {"name": "convnet"}}, "network 'convnet' needs images"),
        ({"curve": {"low": 0, "high": 1, "inside": [[0, 1]]}}, "a curve needs one feature and one target"),
        ({"likelihood": {"name": "categorical"}}, "class labels must be whole numbers"),
    ],
)
def test_task_parts_must_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    source = regression_file(tmp_path / "a.npz", 2)
    values = {"likelihood": {"name": "gaussian"}} | changes
    with pytest.raises(BayesBenchError, match=message) as caught:
        build_task(spec(source, **values))
    assert str(caught.value).startswith("task 't': ")
    assert isinstance(caught.value, UsageError | DataError)


def test_one_class_is_no_classification(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(20.0), y=np.zeros(20, dtype=int))
    with pytest.raises(DataError, match="at least 2 classes, the data have 1"):
        build_task(spec({"source": "npz", "path": str(tmp_path / "a.npz")}))


def test_own_network_of_the_wrong_width_is_found_before_any_work(tmp_path: Path) -> None:
    source = regression_file(tmp_path / "a.npz", 1)
    code = tmp_path / "net.py"
    code.write_text(
        "import torch\ndef make(input_shape, outputs, width):\n    return torch.nn.Linear(input_shape[0], width)\n"
    )
    for width, fits in ((1, True), (5, False)):
        network = {"name": "custom", "entry": f"{code}:make", "options": {"width": width}}
        task_spec = spec(source, "gaussian", network=network)
        if fits:
            assert build_task(task_spec, allow_code=(code,)).build_network(0)(torch.zeros(2, 3)).shape == (
                2,
                1,
            )
        else:
            with pytest.raises(UsageError, match=r"the network gives \[2, 5\] for 2 inputs, but .* needs \[2, 1\]"):
                build_task(task_spec, allow_code=(code,))


def test_features_reach_the_task(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("u,v,y\n" + "".join(f"{i},{i % 7},{i % 2}\n" for i in range(40)))
    task = build_task(spec({"source": "csv", "path": str(path), "target": "y"}))
    assert task.features == ("u", "v")
    assert task.classes == ("0", "1")


def test_task_is_frozen(digits: Task) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        digits.checksum = ""  # type: ignore[misc]
    assert math.isfinite(digits.prior.std)


def test_source_specs_of_a_task_may_be_built_in_python() -> None:
    task_spec = spec({"source": "digits"})
    assert build_task(task_spec.model_copy(update={"data": SourceSpec(source="digits")})).test.x.shape[1:] == (1, 8, 8)
