"""A method from a file: used by name, in this process and in workers, and refused with a sentence."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from bayes_bench import Diagnostic, DiagnosticTable, MethodConfig, UsageError
from bayes_bench.cli import cli
from bayes_bench.methods import registry
from bayes_bench.methods.code import code_of_method
from bayes_bench.results.folder import read_records
from bayes_bench_baselines import MAP
from places import ROOT

EXAMPLE = ROOT / "examples" / "plugin" / "bayes_bench_jitter.py"


@pytest.fixture(autouse=True)
def _forget():
    before = dict(registry._from_files)
    modules, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - modules:
        if "_of_mine" in name or name.startswith("bayes_bench_file_"):
            del sys.modules[name]
    sys.path[:] = path
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
        ("1 / 0", "Mine", r"ZeroDivisionError: division by zero \(line 1\)"),
        ("raise ValueError('x' * 10**6)", "Mine", r"ValueError: x{280,290} \(line 1\)$"),
        ("", "_Mine", "'_Mine' cannot name a method"),
        ("", "Méthode", "cannot name a method"),
        ("", "Mine", "unknown class of .*bad.py: 'Mine'"),
        ("Mine = 3", "Mine", "is not a subclass of WeightPosterior"),
        ("import nothing_like_it", "Mine", "cannot be imported: ModuleNotFoundError"),
        ("raise SystemExit(3)", "Mine", "cannot be imported: SystemExit"),
        ("def f(:", "Mine", "cannot be imported: SyntaxError"),
        ("from bayes_bench import WeightPosterior as Mine", "Mine", "Config is not a subclass of MethodConfig"),
        (
            "from bayes_bench import WeightPosterior\nclass Mine(WeightPosterior): Config = {}",
            "Mine",
            "Config is not a subclass of MethodConfig",
        ),
        ("from bayes_bench import HyperGAN\nclass hypergan(HyperGAN): pass", "hypergan", "already, from bayes-bench"),
    ],
)
def test_what_is_no_method_is_refused(tmp_path, content, name, sentence):
    (tmp_path / "bad.py").write_text(content)
    with pytest.raises(UsageError, match=sentence):
        registry.add_file(f"{tmp_path / 'bad.py'}:{name}")
    assert not registry.files_of([name])


def test_the_name_given_is_the_name(file, tmp_path):
    file.write_text(file.read_text() + "\n\nOther = Jitter\n")
    assert registry.add_file(f"{file}:Other") == "Other"
    assert registry.files_of(["Other"]) == (f"{file}:Other",)


def test_a_file_imports_its_neighbours_and_may_move(file, tmp_path):
    (tmp_path / "neighbour_of_mine.py").write_text("from bayes_bench import WeightPosterior\n")
    file.write_text("import neighbour_of_mine\n" + file.read_text())
    registry.add_file(f"{file}:Jitter")
    module = registry.method_class("Jitter").__module__
    assert module == "bayes_bench_file_mine"  # not of the folder: a saved posterior names it
    (tmp_path / "elsewhere").mkdir()
    other = Path(shutil.copy(EXAMPLE, tmp_path / "elsewhere" / "mine.py"))
    with pytest.raises(UsageError, match="there is a method 'Jitter' already"):
        registry.add_file(f"{other}:Jitter")


def test_an_interrupted_import_leaves_no_half_module(tmp_path, file):
    broken = tmp_path / "broken.py"
    broken.write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        registry.add_file(f"{broken}:Jitter")
    shutil.copy(EXAMPLE, broken)
    assert registry.add_file(f"{broken}:Jitter") == "Jitter"


def test_a_missing_class_and_other_code_are_told(file, tmp_path):
    done = CliRunner().invoke(cli, ["show", str(file)])
    assert "name the class as well" in str(done.exception)
    with pytest.raises(UsageError, match="did you mean 'Jitter'"):
        registry.add_file(f"{file}:jitter")
    search = ["tune", f"{file}:Jitter", "cubic", "--trials", "1", "--seeds", "100", "--budget-scale", "0.01"]
    arguments = [*search, "--out", str(tmp_path / "tuning"), "--quiet"]
    assert CliRunner().invoke(cli, arguments, catch_exceptions=False).exit_code == 0
    file.write_text(file.read_text() + "\n# changed\n")
    done = CliRunner().invoke(cli, arguments)
    assert "holds another search (different file)" in str(done.exception)


def test_a_missing_file_and_a_cluster(file, tmp_path):
    with pytest.raises(UsageError, match="there is no Python file"):
        registry.add_file(f"{tmp_path / 'nowhere.py'}:Mine")
    arguments = ["run", "cubic", "--methods", f"{file}:Jitter", "--executor", "ray", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, arguments)
    assert isinstance(done.exception, UsageError)
    assert not (tmp_path / "out").exists()


# Plug-ins as they come -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("template.py", b"class {{ name }}:\n    pass\n"),
        ("latin.py", "# -*- coding: latin-1 -*-\nname = 'é'\n".encode("latin-1")),
        ("broken.py", b"\xff\xfe not text"),
        ("above.py", b"from ...... import nothing\n"),
    ],
)
def test_files_that_cannot_be_followed_count_and_end_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes
) -> None:
    folder = tmp_path / "odd" / "family"
    folder.mkdir(parents=True)
    (tmp_path / "odd" / "__init__.py").touch()
    (folder / "__init__.py").touch()
    (folder / "method.py").write_text("from bayes_bench import MAP\n\n\nclass Odd(MAP):\n    pass\n")
    (folder / name).write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("odd.family.method")
    try:
        assert folder in code_of_method(module.Odd)
    finally:
        for known in [known for known in sys.modules if known.partition(".")[0] == "odd"]:
            del sys.modules[known]


def test_a_namespace_package_has_parts_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = "from bayes_bench import MAP\nfrom spread.shared import x\n\n\nclass M(MAP):\n    pass\n"
    for root, file, content in (("here", "family/method.py", method), ("there", "shared.py", "x = 1\n")):
        path = tmp_path / root / "spread" / file
        path.parent.mkdir(parents=True)
        path.write_text(content)
        monkeypatch.syspath_prepend(tmp_path / root)
    module = importlib.import_module("spread.family.method")
    try:
        assert all(part.exists() for part in code_of_method(module.M))
    finally:
        for known in [known for known in sys.modules if known.partition(".")[0] == "spread"]:
            del sys.modules[known]


def test_a_subclass_is_not_the_method_that_it_derives_from(tmp_path: Path) -> None:
    class Mine(MAP):
        pass

    assert "bayes_bench_baselines.map:MAP" in MAP._names()
    assert "bayes_bench_baselines.map:MAP" not in Mine._names()


def test_diagnostics_of_the_wrong_kind_are_told_where_they_are_written() -> None:
    with pytest.raises(UsageError, match="columns must be a tuple of Diagnostic"):
        DiagnosticTable("Chains", Diagnostic("rhat", "R-hat"))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="diagnostics must be a tuple of DiagnosticTable"):

        class Wrong(MethodConfig):
            """Wrong."""

            diagnostics = DiagnosticTable("Chains", (Diagnostic("rhat", "R-hat"),))  # type: ignore[assignment]
