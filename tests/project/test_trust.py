"""What SECURITY.md promises of files from elsewhere: no code, nothing outside of the folder, no broken page."""

from __future__ import annotations

import ast
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

import bad_inputs
from bad_inputs import run_in_process
from bayes_bench import HyperGAN, HyperGANConfig, report
from bayes_bench.data import read_inputs
from bayes_bench.errors import DataError, UsageError
from bayes_bench.host.files import file_facts
from bayes_bench.metrics import references
from bayes_bench.posterior.stored import METADATA
from bayes_bench.results.folder import POSTERIOR, PREDICTIONS, RECORD, read_records, write_record
from bayes_bench.testing import classification
from hostile import forge, fuzz, mutated
from places import ROOT
from synthetic import METHODS, make_job, write_job, write_plan

FOLDERS = ("bayes_bench", "baselines", "benchmarks")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
LOADERS = {
    *("torch.load", "torch.jit.load", "np.load", "numpy.load", "pd.read_pickle", "pandas.read_pickle"),
    *("eval", "exec"),
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_or_evaluated(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {alias.name.partition(".")[0] for alias in node.names} & UNPICKLERS, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] not in UNPICKLERS, node.lineno
        elif isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in LOADERS, node.lineno
            assert not any(keyword.arg in ("allow_pickle", "weights_only") for keyword in node.keywords), node.lineno


# A run folder from elsewhere ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run of one job, and new inputs beside it."""
    folder = tmp_path_factory.mktemp("real")
    case = bad_inputs.with_suite("good", bad_inputs.suite(seeds=[0]), new__csv="a,b\n1,2\n0.5,0.1\n")
    outcome = run_in_process(case.prepare(folder))
    assert outcome.exit_code == 0, outcome
    return folder / "run"


def copied(run_dir: Path, to: Path) -> tuple[Path, Path, dict[str, Any]]:
    """A copy of the run, its job's folder and record."""
    shutil.copytree(run_dir, to)
    ((folder, record),) = read_records(to)[0]
    return to, folder, record


def changed(record: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of a record with one value replaced."""
    return bad_inputs.replaced(record, path.split("/"), lambda parent, key: parent.__setitem__(key, value))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("task", "../../../tmp", "no finished job"),
        ("label", "..", "no finished job"),
        ("files", {"../../secret": {"sha256": 64 * "0", "bytes": 1}}, "no finished job"),
        ("network/spec", {"name": "mlp", "hidden": [10_000_000, 10_000_000]}, "its weights need"),
        ("network/spec", {"name": "mlp", "hidden": [-1]}, "is damaged"),
        (
            "network/spec",
            {"name": "custom", "entry": "evil.py:net"},
            "run the command in the folder that evil.py counts from",
        ),
        ("network/spec", {"name": "nothing"}, "is damaged"),
        ("network/input_shape", [10**15], "is damaged"),
        ("network/outputs", 3, "is damaged"),
        ("networks", 10**9, "no finished job"),
        ("kind", "regression", "is damaged"),
        ("method", "os:system", "unknown method"),
        ("prior", {"std": -1}, "is damaged"),
        ("prior", {"evil": 1}, "is damaged"),
        ("data/standardiser", {"x_mean": [0, 0], "x_std": [0, 1]}, "is damaged"),
        ("data/standardiser", {"x_mean": 3 * [[0, 0]], "x_std": [1, 1]}, "is damaged"),
        ("data/standardiser", {"x_mean": "x"}, "is damaged"),
        ("data/classes", ["cat"], "is damaged"),
        ("seeds", {}, "is damaged"),
        ("seeds", {"network": -1, "sample": 0}, "no finished job"),
        ("task_spec/data", {"delimiter": "\n"}, "cannot stand between"),
        ("files/posterior.safetensors", {"sha256": 64 * "0", "bytes": 3}, "is damaged"),
    ],
)
def test_a_record_cannot_ask_for_anything(run_dir: Path, tmp_path: Path, path: str, value: Any, said: str) -> None:
    run, folder, record = copied(run_dir, tmp_path / "run")
    forge(folder / RECORD, changed(record, path, value))
    outcome = run_in_process(["predict", str(run), "map", str(run_dir.parent / "new.csv")])
    assert outcome.crash == ""
    assert (outcome.exit_code, outcome.out) == (2, "")
    assert said in outcome.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@fuzz(25)
@given(st.data())
def test_predict_and_reference_of_a_record_that_says_anything(
    run_dir: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    run, folder, record = copied(run_dir, tmp_path_factory.mktemp("fuzz") / "run")
    forge(folder / RECORD, data.draw(mutated(record)))
    for arguments in (["predict", str(run), "map", str(run_dir.parent / "new.csv")],
                      ["reference", str(run), "map", "--out", str(run / "r.safetensors")]):  # fmt: skip
        outcome = run_in_process(arguments)
        assert outcome.crash == ""
        assert outcome.exit_code in (0, 2)


@fuzz(40)
@given(st.data())
def test_predict_with_a_posterior_that_holds_anything(
    run_dir: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    run, folder, record = copied(run_dir, tmp_path_factory.mktemp("fuzz") / "run")
    path = folder / POSTERIOR
    with safe_open(path, framework="pt") as file:
        about, state = json.loads(file.metadata()[METADATA]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for _ in range(data.draw(st.integers(0, 2))):
        name = data.draw(st.one_of(st.sampled_from(sorted(state)), st.text(max_size=5)))
        shape = data.draw(st.lists(st.integers(0, 5), max_size=3))
        dtype = data.draw(st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool]))
        state[name] = torch.full(shape, data.draw(st.sampled_from([0.0, 1.0, float("nan")]))).to(dtype)
    if data.draw(st.booleans()):
        state.pop(data.draw(st.sampled_from(sorted(state))))
    if data.draw(st.booleans()):
        about = data.draw(mutated(about))
    path.write_bytes(save(state, {METADATA: json.dumps(about)}))
    write_record(folder, record | {"files": record["files"] | {POSTERIOR: file_facts(path)}})
    outcome = run_in_process(["predict", str(run), "map", str(run_dir.parent / "new.csv")])
    assert outcome.crash == ""
    assert outcome.exit_code in (0, 2)
    assert "nan" not in outcome.out


def test_a_posterior_cannot_ask_for_more_memory_than_it_holds(tmp_path: Path) -> None:
    problem = classification()
    posterior = HyperGAN(problem.network, problem.likelihood, config=HyperGANConfig(networks=4, batch_size=8))
    posterior.fit(problem.data, budget=4 * 8 * 10 + 200)
    path = tmp_path / "posterior.safetensors"
    posterior.save(path)
    with safe_open(path, framework="pt") as file:
        about, state = json.loads(file.metadata()[METADATA]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    about["config"]["mixer_hidden"] = [20_000, 20_000]
    path.write_bytes(save(state, {METADATA: json.dumps(about)}))
    with pytest.raises(DataError, match="far more memory than it holds"):
        HyperGAN.load(path, problem.network, problem.likelihood)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
def test_arrays_of_types_that_numpy_lacks_are_damage(run_dir: Path, tmp_path: Path, dtype: str) -> None:
    run, folder, record = copied(run_dir, tmp_path / "run")
    content = save({"test/log_probs": torch.zeros(1, 2, 2, dtype=getattr(torch, dtype))})
    files = dict(record["files"])
    for path in (folder / PREDICTIONS, folder / POSTERIOR, tmp_path / "r.safetensors"):
        path.write_bytes(content)
        files |= {path.name: file_facts(path)} if path.parent == folder else {}
    forge(folder / RECORD, record | {"files": files})
    for arguments, code in ((["report", str(run)], 0), (["verify", str(run)], 1), (["rerun", str(folder)], 2)):
        outcome = run_in_process(arguments)
        assert (outcome.exit_code, outcome.crash) == (code, "")
    with pytest.raises(DataError, match="is damaged"):
        references.load(str(tmp_path / "r.safetensors"))


def test_a_link_to_a_job_elsewhere_is_named_on_the_page(tmp_path: Path) -> None:
    record, predictions = make_job(METHODS["map"], 0, "regression", networks=1)
    folder = write_job(tmp_path / "run", record, predictions)
    write_plan(tmp_path / "run", [record])
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    page = report.write(tmp_path / "run").read_text(encoding="utf-8")
    assert f"{folder} is a symbolic link" in page


def test_a_folder_may_be_called_anything(tmp_path: Path) -> None:
    record, predictions = make_job(METHODS["map"], 0, "regression", networks=1)
    folder = write_job(tmp_path, record, predictions)
    write_plan(tmp_path, [record])
    folder.rename(folder.with_name("<script>\x1b[31m\udcff"))
    page = report.write(tmp_path).read_text(encoding="utf-8")
    assert "&lt;script&gt;\ufffd[31m\ufffd/record.json is damaged: it is the record of another job" in page


def test_names_in_a_spreadsheet_are_no_formulas(run_dir: Path, tmp_path: Path) -> None:
    run, folder, record = copied(run_dir, tmp_path / "run")
    forge(folder / RECORD, changed(record, "data/classes", ["=cmd|' /C calc'!A0", "@SUM(1)"]))
    outcome = run_in_process(["predict", str(run), "map", str(run_dir.parent / "new.csv")])
    cells = [line.split(",")[0] for line in outcome.out.splitlines()[1:]]
    assert cells
    assert all(cell.startswith("'") for cell in cells)
    row = {"value": 1.0, "unit": "", "higher_is_better": None, "group": "g"}
    forge(folder / RECORD, changed(record, "metrics", [{"name": "=1+1", **row}, {"name": "ok", **row}]))
    report.write(run)
    assert ",'=1+1," in (run / report.SUMMARY).read_text(encoding="utf-8").splitlines()[0]
    assert "=1+1" not in (run / report.RESULTS).read_text(encoding="utf-8").replace("'=1+1", "")


# A data file from elsewhere -------------------------------------------------------------------------------


@fuzz(150)
@given(st.sampled_from(["x.csv", "x.npz", "x.npy", "x.png", "x.gif", "x.tif", "x.webp"]), st.binary(max_size=300))
def test_any_bytes_as_new_inputs(tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    try:
        x = read_inputs(path, (1, 2, 2)).x
    except (DataError, UsageError):
        return
    assert np.isfinite(x).all()


@fuzz(60)
@given(st.sampled_from(["npz", "npy", "png", "gif", "tif", "webp", "jpg", "bmp", "ppm"]), st.integers(0, 2**32))
def test_damaged_inputs(tmp_path_factory: pytest.TempPathFactory, suffix: str, seed: int) -> None:
    """Good files with something changed: another image, or the documented error."""
    from PIL import Image

    path = tmp_path_factory.getbasetemp() / f"damaged.{suffix}"
    values = (np.arange(64, dtype=np.float32) / 64).reshape(1, 1, 8, 8)
    if suffix == "npz":
        np.savez(path, x=values)
    elif suffix == "npy":
        np.save(path, values)
    else:
        Image.fromarray((values[0, 0] * 255).astype(np.uint8)).save(path)
    for _, content in bad_inputs.damages(path.read_bytes(), seed, 3):
        path.write_bytes(content)
        with suppress(DataError):
            assert read_inputs(path, (1, 8, 8)).x.shape == (1, 1, 8, 8)
