"""A package for a new method: complete, under the new name, or nothing."""

from pathlib import Path

import pytest

from bayes_bench import UsageError
from bayes_bench.errors import StorageError
from bayes_bench.methods import scaffold
from places import ROOT

EXAMPLE = ROOT / "examples" / "plugin"


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_everything_is_there_under_the_new_name(tmp_path):
    folder = scaffold.new_package("swag-2", tmp_path)
    assert folder == tmp_path / "bayes-bench-swag-2"
    assert files(tmp_path) == {
        f"bayes-bench-swag-2/{path}"
        for path in ("README.md", "pyproject.toml", "bayes_bench_swag_2.py", "tests/test_swag_2.py")
    }
    for path in folder.rglob("*.*"):
        assert "jitter" not in path.read_text().lower()
    compile((folder / "bayes_bench_swag_2.py").read_text(), "module", "exec")
    assert 'swag-2 = "bayes_bench_swag_2:Swag2"' in (folder / "pyproject.toml").read_text()


@pytest.mark.parametrize("name", ["", "My", "a_b", "../x", "-a", "a-", "a--b", "1a", "none", "true", "a b", "ä", "x\n"])
def test_names_that_cannot_be(tmp_path, name):
    with pytest.raises(UsageError, match="cannot name a method"):
        scaffold.new_package(name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["my-jitter", "jitter-2"])
def test_names_that_hold_the_examples_name(tmp_path, name):
    folder = scaffold.new_package(name, tmp_path)
    assert f"bayes_bench_{name.replace('-', '_')}.py" in files(folder)


@pytest.mark.parametrize("name", ["tensor-state", "weight-posterior", "baselines"])
def test_names_that_are_taken_in_the_code(tmp_path, name):
    with pytest.raises(UsageError, match="as another one is"):
        scaffold.new_package(name, tmp_path)


def test_nothing_is_overwritten(tmp_path):
    with pytest.raises(UsageError, match=r"'map' already, from bayes-bench"):
        scaffold.new_package("map", tmp_path)
    (tmp_path / "bayes-bench-mine").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        scaffold.new_package("mine", tmp_path)
    with pytest.raises(UsageError, match="no folder"):
        scaffold.new_package("mine", tmp_path / "nowhere")


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def full(self, *arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StorageError, match="No space left"):
        scaffold.new_package("mine", tmp_path)
    assert not list(tmp_path.iterdir())
