"""A method from a file: used by name, in this process and in workers, and refused with a sentence."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from bayes_bench import UsageError, registry
from bayes_bench.cli import cli
from bayes_bench.store import read_records

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "plugin" / "bayes_bench_jitter.py"


@pytest.fixture(autouse=True)
def _forget():
    before = dict(registry._from_files)
    yield
    registry._from_files.clear()
    registry._from_files.update(before)


@pytest.fixture
def file(tmp_path):
    return Path(shutil.copy(EXAMPLE, tmp_path / "mine.py"))


def test_it_is_a_method_like_the_others(file):
    assert registry.add_file(f"{file}:Jitter") == "Jitter"
    assert registry.add_file(f"{file}:Jitter") == "Jitter"  # named twice is once
    cls = registry.method_class("Jitter")
    assert cls.Config is registry.config_class("Jitter")
    assert registry.resolve_config("Jitter", {"scale": 0.5}).scale == 0.5
    assert registry.methods()["Jitter"].owner == str(file)
    assert registry.files_of({"map", "Jitter"}) == (f"{file}:Jitter",)
    assert not registry.inspect_methods()["Jitter"].error


def test_a_run_beside_others_and_predictions(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["run", "cubic", "--methods", "map,./mine.py:Jitter", "--seeds", "0", "--budget-scale", "0.05"]
    options = ["--set", "Jitter.scale=0.07", "--out", "out"]
    command = [sys.executable, "-m", "bayes_bench", *arguments, *options, "--jobs", "2"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    records = {record["label"]: record for _, record in read_records(tmp_path / "out")[0]}
    assert records["Jitter"]["config"]["scale"] == 0.07
    assert {record["status"] for record in records.values()} == {"ok"}

    def here(*words):
        done = CliRunner().invoke(cli, words, catch_exceptions=False)
        assert done.exit_code == 0
        return done.output

    assert here(*arguments, *options).count("already finished") == 2
    (tmp_path / "new.csv").write_text("x\n0.5\n")
    assert here("predict", "out", "./mine.py:Jitter", "new.csv").startswith("mean,epistemic_std")
    file.write_text(file.read_text().replace("n = self.config, len", "n = self.config, 1 * len"))
    assert "the code has changed since 1 of the finished jobs" in here(*arguments, *options)


def test_check_and_show_take_files(file):
    done = CliRunner().invoke(cli, ["show", f"{file}:Jitter"])
    assert done.exit_code == 0
    assert "standard deviation of the noise" in done.output


@pytest.mark.parametrize(
    ("content", "name", "sentence"),
    [
        ("", "Mine", "has no class 'Mine'"),
        ("Mine = 3", "Mine", "is not a subclass of WeightPosterior"),
        ("import nothing_like_it", "Mine", "cannot be imported: ModuleNotFoundError"),
        ("raise SystemExit(3)", "Mine", "cannot be imported: SystemExit"),
        ("def f(:", "Mine", "cannot be imported: SyntaxError"),
        ("from bayes_bench import WeightPosterior as Mine", "Mine", "Config is not a subclass of MethodConfig"),
        ("from bayes_bench import HyperGAN\nclass hypergan(HyperGAN): pass", "hypergan", "already, from bayes-bench"),
    ],
)
def test_what_is_no_method_is_refused(tmp_path, content, name, sentence):
    (tmp_path / "bad.py").write_text(content)
    with pytest.raises(UsageError, match=sentence):
        registry.add_file(f"{tmp_path / 'bad.py'}:{name}")
    assert not registry.files_of([name])


def test_a_missing_file_and_a_cluster(file, tmp_path):
    with pytest.raises(UsageError, match="cannot read the Python file"):
        registry.add_file(f"{tmp_path / 'nowhere.py'}:Mine")
    arguments = ["run", "cubic", "--methods", f"{file}:Jitter", "--executor", "ray", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, arguments)
    assert isinstance(done.exception, UsageError)
    assert not (tmp_path / "out").exists()
