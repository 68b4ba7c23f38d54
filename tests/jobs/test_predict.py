"""``predict``: answers that reproduce the record, with the file of each row and what lies outside the training data."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bayes_bench import cli
from bayes_bench.errors import DataError
from bayes_bench.jobs.predict import load
from bayes_bench.results.folder import RECORD, load_predictions, read_records
from bayes_bench.results.schema import write_checked


def run(folder: Path, data: dict[str, Any], likelihood: str = "categorical", budget: int = 3000) -> Path:
    """A run of MAP on a task with these data; returns its folder."""
    keys = ", ".join(f"{key} = {json.dumps(value)}" for key, value in data.items())
    (folder / "s.toml").write_text(
        f'name = "s"\nmethods = ["ensemble"]\nseeds = [0]\n[[tasks]]\nname = "t"\nbudget = {budget}\n'
        f'data = {{ {keys} }}\nnetwork = {{ name = "mlp", hidden = [50] }}\nlikelihood = {{ name = "{likelihood}" }}\n'
    )
    assert ended("run", str(folder / "s.toml"), "--quiet", "--out", str(folder / "run")) == 0
    return folder / "run"


def ended(*arguments: str) -> Any:
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    return caught.value.code


def predict(run_dir: Path, new: Path) -> list[dict[str, str]]:
    out = run_dir.parent / "answers.csv"
    assert ended("predict", str(run_dir), "ensemble", str(new), "--out", str(out)) == 0
    with out.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def table(path: Path, rows: list[list[Any]], header: str) -> Path:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def test_answers_reproduce_the_recorded_metrics(tmp_path: Path) -> None:
    """Julian days: six digits would leave whole weeks alike."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 2))
    y = 2459006.8 + 3 * x[:, 0] + 0.3 * rng.normal(size=150)
    train = table(tmp_path / "train.csv", np.column_stack([x, y])[:110].tolist(), "a,b,y")
    test = table(tmp_path / "test.csv", np.column_stack([x, y])[110:].tolist(), "a,b,y")
    run_dir = run(
        tmp_path,
        {"source": "csv", "path": "train.csv", "test_path": "test.csv", "target": "y"},
        "gaussian",
        budget=60_000,
    )
    assert train.exists()
    ((_, record),) = read_records(run_dir)[0]
    recorded = {row["name"]: row["value"] for row in record["metrics"]}
    means = np.array([float(row["mean"]) for row in predict(run_dir, test)])
    assert len(set(means)) == 40
    assert recorded["rmse"] < 1
    assert np.sqrt(np.mean((means - y[110:]) ** 2)) == pytest.approx(recorded["rmse"], rel=1e-5)


def test_probabilities_are_those_that_are_stored(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 2))
    rows = [[a, b, "uv"[int(a + b > 0)]] for a, b in x.tolist()]
    table(tmp_path / "train.csv", rows[:60], "a,b,y")
    test = table(tmp_path / "test.csv", rows[60:], "a,b,y")
    run_dir = run(tmp_path, {"source": "csv", "path": "train.csv", "test_path": "test.csv", "target": "y"})
    ((folder, record),) = read_records(run_dir)[0]
    recorded = {row["name"]: row["value"] for row in record["metrics"]}
    answers = predict(run_dir, test)
    p = np.array([[float(row["p(u)"]), float(row["p(v)"])] for row in answers])
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-12)
    stored = np.exp(load_predictions(folder)["test/log_probs"].astype(np.float64)).mean(0)
    np.testing.assert_allclose(p, stored, atol=2e-3)  # which are stored in half precision
    right = np.mean([row["label"] == label for row, (_, _, label) in zip(answers, rows[60:], strict=True)])
    assert right == pytest.approx(recorded["accuracy"], abs=1e-9)


def test_inputs_outside_the_training_range_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [[i / 10, -i, i % 2] for i in range(60)]
    table(tmp_path / "train.csv", rows, "a,b,y")
    run_dir = run(tmp_path, {"source": "csv", "path": "train.csv", "target": "y"})
    new = table(tmp_path / "new.csv", [[3, -30], [1e6, -30], [1e6, 7]], "a,b")
    assert [float(row["outside"]) for row in predict(run_dir, new)] == [0, 0.5, 1]
    assert "note: 2 of 3 inputs have features outside the range of the training examples" in capsys.readouterr().err
    # Records of earlier versions do not know the range: there is no column.
    ((folder, record),) = read_records(run_dir)[0]
    del record["data"]["ranges"], record["data"]["preparation"]
    write_checked(folder / RECORD, record)
    assert "outside" not in predict(run_dir, new)[0]
    record["data"]["ranges"] = {"low": [0, 1, 2], "high": [1, 2, 3]}
    write_checked(folder / RECORD, record)
    with pytest.raises(DataError, match="the ranges of the inputs do not go with their shape"):
        load(run_dir, "ensemble")


def test_headers_must_have_the_training_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(tmp_path / "train.csv", [[i, i % 2] for i in range(40)], "a,y")
    run_dir = run(tmp_path, {"source": "csv", "path": "train.csv", "target": "y"})
    for header, message in (("b", "has no column 'a'; it has b"), ("1", "first line must name the columns: a")):
        new = table(tmp_path / "new.csv", [[1], [2]], header)
        assert ended("predict", str(run_dir), "ensemble", str(new)) == 2
        assert message in capsys.readouterr().err


def test_inputs_without_a_prediction_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(tmp_path / "train.csv", [[i / 1e9, i * 7 % 40 / 1e9, i % 2] for i in range(40)], "a,b,y")
    run_dir = run(tmp_path, {"source": "csv", "path": "train.csv", "target": "y"})
    # Beyond single precision once it is standardised; and within it, but too large for a sum of two.
    for value, message in (
        ("3e38", r"'b' of row 2 lies [\d.]*e\+46"),
        ("3.5e30", r"'[ab]' of row 2 lies [\d.]*e\+38 train"),
    ):
        new = table(tmp_path / "new.csv", [[0, 0], [0, 1e-9], [3.4e30, value]], "a,b")
        assert ended("predict", str(run_dir), "ensemble", str(new)) == 2
        assert re.search(message, capsys.readouterr().err)


def test_new_rows_meet_the_training_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    colours = ("red", "green", "blue")
    rows = [["" if i % 9 == 0 else i % 13, colours[i % 3], i % 2] for i in range(60)]
    table(tmp_path / "train.csv", rows, "a,colour,y")
    options = {"target": "y", "categorical": ["colour"], "missing": "indicator"}
    run_dir = run(tmp_path, {"source": "csv", "path": "train.csv", **options})
    fitted = load(run_dir, "ensemble")
    assert fitted.columns == ("a", "a is missing", "colour = blue", "colour = green", "colour = red")
    new = table(tmp_path / "new.csv", [["blue", 3], ["violet", ""]], "colour,a")
    answers = predict(run_dir, new)
    assert "note: column 'colour': 1 row with a category that no training row has ('violet')" in capsys.readouterr().err
    assert fitted.preparation is not None
    median = fitted.preparation.fill["a"]
    expected = fitted.predict(np.array([[3, 0, 1, 0, 0], [median, 1, 0, 0, 0]]))
    found = [[float(row["p(0)"]), float(row["p(1)"])] for row in answers]
    np.testing.assert_array_equal(found, expected.mean.numpy())  # type: ignore[union-attr]


def test_images_are_told_by_their_files(tmp_path: Path) -> None:
    for label in ("dark", "light"):
        (tmp_path / "pets" / label).mkdir(parents=True)
        for i in range(8):
            level = 10 * i + 128 * (label == "light")
            Image.new("L", (3, 3), level).save(tmp_path / "pets" / label / f"{i}.png")
    run_dir = run(tmp_path, {"source": "image-folder", "path": "pets", "channels": 1})
    answers = predict(run_dir, tmp_path / "pets")
    assert [row["file"] for row in answers] == [f"{label}/{i}.png" for label in ("dark", "light") for i in range(8)]
    assert list(answers[0])[:2] == ["file", "label"]
    assert predict(run_dir, tmp_path / "pets" / "dark" / "3.png")[0]["file"] == "3.png"


def test_an_ood_set_without_predictions_is_named_in_the_record(tmp_path: Path) -> None:
    """Finite in single precision after standardising, too far for a network: set and row are in the error."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2))
    np.savez(tmp_path / "a.npz", x=x, y=(x[:, 0] > 0).astype(int))
    np.savez(tmp_path / "far.npz", x=np.array([[3.0, 3.0], [3e38, 3e38]]))
    (tmp_path / "s.toml").write_text(
        'name = "s"\nmethods = ["map"]\nseeds = [0]\n[[tasks]]\nname = "t"\nbudget = 3000\n'
        'data = { source = "npz", path = "a.npz" }\nnetwork = { name = "mlp", hidden = [200] }\n'
        'ood = [{ name = "far", source = "npz", path = "far.npz" }]\n'
    )
    assert ended("run", str(tmp_path / "s.toml"), "--quiet", "--out", str(tmp_path / "run")) == 1
    ((_, record),) = read_records(tmp_path / "run")[0]
    assert record["status"] == "failed"
    assert "predictions of the set 'ood/far' are not finite, first in example 1: the value [" in record["error"]
    assert not record["metrics"]
