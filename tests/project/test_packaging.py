"""What a user installs: the wheel, in an environment of its own, used from another folder. Never skipped."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from places import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment with only the wheel of ours, over the packages that the running one has."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip())
    # A line in a .pth adds the parent's packages behind this environment's own, without its editable installs.
    (site / "parent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return scripts, site


def run(installed, *arguments, cwd):
    scripts, _ = installed
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(scripts / arguments[0]), *arguments[1:]]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=cwd, env=environment)


def test_the_wheel_holds_what_it_should(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"bayes_bench/py.typed", "bayes_bench_baselines/py.typed"} <= names
    assert {f"bayes_bench/report/templates/{name}" for name in ("page.html.j2", "page.js", "style.css")} <= names
    for suite in (ROOT / "benchmarks").glob("*.toml"):
        assert f"bayes_bench/suites/{suite.name}" in names
    for reference in (ROOT / "benchmarks" / "references").iterdir():
        assert f"bayes_bench/references/{reference.name}" in names
    for source in [*(ROOT / "bayes_bench").rglob("*"), *(ROOT / "baselines" / "bayes_bench_baselines").rglob("*.py")]:
        if source.is_file() and "__pycache__" not in source.parts:
            base = ROOT / "baselines" if "baselines" in source.relative_to(ROOT).parts[0] else ROOT
            assert source.relative_to(base).as_posix() in names
    assert not [name for name in names if name.split("/")[0] in ("tests", "benchmarks", "baselines", "reports")]


def test_methods_are_found(installed, tmp_path):
    done = run(installed, "bayes-bench", "list", "methods", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("hypergan", "mcdropout", "ensemble", "map"):
        assert name in done.stdout
    where = run(installed, "python", "-c", "import bayes_bench; print(bayes_bench.__file__)", cwd=tmp_path).stdout
    assert Path(where.strip()).is_relative_to(installed[1]), "the wheel must be what is tested, not the checkout"


def test_a_small_run_from_another_folder(installed, tmp_path):
    arguments = ["run", "digits", "cubic", "--methods", "hypergan,mcdropout", "--seeds", "0", "--budget-scale", "0.05"]
    done = run(installed, "bayes-bench", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "reports" / "runs" / "digits+cubic"
    for name in ("results.csv", "summary.csv", "report.html", "run.json"):
        assert (folder / name).stat().st_size > 0
    records = sorted(path.parent.parent.name for path in folder.glob("jobs/*/*/*/record.json"))
    assert records == ["hypergan", "hypergan", "mcdropout", "mcdropout"]
    again = run(installed, "bayes-bench", *arguments, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr


def install_package(installed, folder):
    """As ``pip install --no-deps folder``, without the network: the build back end is the parent's."""
    python = installed[0] / "python"
    options = ["--quiet", "--no-deps", "--no-build-isolation"]
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", *options, str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_plugin_runs_beside_the_methods_that_ship(installed, tmp_path):
    copied = shutil.copytree(ROOT / "examples" / "plugin", tmp_path / "plugin")
    install_package(installed, copied)
    done = run(installed, "bayes-bench", "check", "jitter", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    arguments = ["run", "digits", "--methods", "map,jitter", "--seeds", "0", "--budget-scale", "0.05", "--out", "run"]
    done = run(installed, "bayes-bench", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = (tmp_path / "run" / "summary.csv").read_text()
    assert "digits,map," in summary
    assert "digits,jitter," in summary


def test_a_new_method_is_installed_and_passes(installed, tmp_path):
    done = run(installed, "bayes-bench", "new-method", "my-way", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    install_package(installed, tmp_path / "bayes-bench-my-way")
    done = run(installed, "bayes-bench", "check", "my-way", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "jitter" not in run(installed, "bayes-bench", "show", "my-way", cwd=tmp_path).stdout.lower()
    done = run(installed, "bayes-bench", "new-method", "my-way", cwd=tmp_path / "bayes-bench-my-way")
    assert done.returncode == 2
    assert "there is a method 'my-way' already, from bayes-bench-my-way" in done.stderr
