"""What version 0.1 left on disk before its modules moved still loads, renders, verifies, predicts and repeats.

``tests/fixtures/version-0.1`` was written by the code of commit b0462e2: two small runs (``curve.toml``,
``digits.toml``), a posterior of every method, the outputs of three of its networks, and answers of ``predict``.
"""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner

from bayes_bench import DataError
from bayes_bench.cli import cli
from bayes_bench.methods import registry
from bayes_bench.runs.rerun import read, repeat
from bayes_bench.tasks.suites import load_suite
from bayes_bench.tasks.task import build_task
from places import TESTS

FORMER = TESTS / "fixtures" / "version-0.1"
OUTPUTS = json.loads((FORMER / "posteriors" / "outputs.json").read_text())
INPUTS = torch.tensor([[-1.0], [0.5]])


@pytest.fixture(scope="module")
def task():
    return build_task(load_suite(str(FORMER / "curve.toml")).tasks[0])


def loaded(method, path, task):
    return registry.method_class(method).load(path, task.build_network(0), task.likelihood, task.prior)


@pytest.mark.parametrize("method", OUTPUTS)
def test_a_saved_posterior_gives_the_same_networks(method, task):
    posterior = loaded(method, FORMER / "posteriors" / f"{method}.safetensors", task)
    found = posterior.outputs(INPUTS, posterior.sample(3, seed=5)).flatten()
    torch.testing.assert_close(found, torch.tensor(OUTPUTS[method]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", OUTPUTS)
def test_a_new_file_names_the_registered_method(method, task, tmp_path):
    posterior = loaded(method, FORMER / "posteriors" / f"{method}.safetensors", task)
    posterior.save(tmp_path / "new.safetensors")
    assert f'"method\\": \\"{method}\\"'.encode() in (tmp_path / "new.safetensors").read_bytes()
    assert loaded(method, tmp_path / "new.safetensors", task).fitted


def test_another_methods_file_is_refused_with_both_names(task):
    with pytest.raises(DataError, match=r"holds a posterior of bayes_bench_baselines\.map:MAP, not ensemble"):
        loaded("ensemble", FORMER / "posteriors" / "map.safetensors", task)


def command(*words):
    done = CliRunner().invoke(cli, [str(word) for word in words])
    assert done.exit_code == 0, done.output + str(done.exception)
    return done.output


@pytest.fixture
def run(tmp_path):
    return shutil.copytree(FORMER / "curve", tmp_path / "run")


@pytest.mark.parametrize(("name", "said"), [("curve", "3 jobs, 84 metrics: all agree"), ("digits", "1 jobs")])
def test_a_former_run_verifies_and_renders_the_same_tables(name, said, tmp_path):
    run = shutil.copytree(FORMER / name, tmp_path / "run")
    assert said in command("verify", run)
    command("report", run)
    assert (run / "report.html").is_file()
    for table in ("results.csv", "summary.csv", "history.csv"):
        assert (run / table).read_text() == (FORMER / name / table).read_text()


@pytest.mark.parametrize("method", ["map", "ensemble", "hypergan"])
def test_a_former_job_predicts_what_it_did(method, run, tmp_path):
    (tmp_path / "new.csv").write_text("x\n-5.5\n-2.0\n0.25\n3.75\n5.5\n")
    found, before = command("predict", run, method, tmp_path / "new.csv"), (FORMER / f"curve-{method}.csv").read_text()
    assert found.splitlines()[0] == before.splitlines()[0]
    for new, old in zip(found.splitlines()[1:], before.splitlines()[1:], strict=True):
        assert [float(word) for word in new.split(",")] == pytest.approx([float(word) for word in old.split(",")], 1e-3)


def test_a_former_job_is_repeated(run, tmp_path):
    """To the last bit on the machine that wrote it; elsewhere arithmetic may differ in the last digits."""
    (folder,) = (run / "jobs" / "curve" / "map").iterdir()
    done = repeat(read(folder), tmp_path / "again")
    assert not [array for array in done.arrays if array.problem]
    assert all(array.largest < 0.01 for array in done.arrays)


def test_a_finished_former_job_is_not_run_again(run, tmp_path):
    before = {path: path.read_bytes() for path in run.glob("jobs/*/*/*/record.json")}
    command("run", FORMER / "curve.toml", "--methods", "map,ensemble,hypergan", "--out", run, "--quiet")
    assert before == {path: path.read_bytes() for path in run.glob("jobs/*/*/*/record.json")}
