from __future__ import annotations

import resource
import subprocess
from pathlib import Path

import pytest

from bayes_bench.host import machine

UNLIMITED = "9223372036854771712\n"


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty tree of control groups, and 16 GB of main memory."""
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(machine, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine.os, "sysconf", {"SC_PHYS_PAGES": 4 * 2**20, "SC_PAGE_SIZE": 4096}.get)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_limits_it_is_the_machines_memory(groups: Path) -> None:
    assert machine.memory_bytes() == 16 * 2**30
    assert machine.memory_gb() == 16.0


def test_the_lowest_limit_of_a_group_or_one_above_it_counts(groups: Path) -> None:
    write(groups / "own", "0::/batch/job\n")
    write(groups / "cgroup/batch/job/memory.max", "max\n")
    write(groups / "cgroup/batch/memory.max", str(3 * 2**30))
    assert machine.memory_gb() == 3.0
    write(groups / "cgroup/batch/job/memory.max", str(2**30))
    assert machine.memory_gb() == 1.0


def test_version_1_and_a_container_that_sees_its_own_group_as_the_root(groups: Path) -> None:
    write(groups / "own", "5:cpu:/docker/abc\n4:hugetlb,memory:/docker/abc\n")
    write(groups / "cgroup/memory/memory.limit_in_bytes", UNLIMITED)
    assert machine.memory_gb() == 16.0
    write(groups / "cgroup/memory/memory.limit_in_bytes", str(5 * 2**29))
    assert machine.memory_gb() == 2.5


def test_a_limit_of_the_process_counts(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (2**31, 2**31))
    assert machine.memory_gb() == 2.0


def test_a_system_that_tells_nothing(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(machine.os, "sysconf")
    assert machine.memory_bytes() is None
    assert machine.memory_gb() is None


# The commit -----------------------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_checkout_is_its_commit_and_whether_files_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "repository" / "package"
    for name in ("__init__.py", "machine.py"):
        write(package / name, "")
    monkeypatch.setattr(machine, "PACKAGE", package)
    ask = machine.checkout.__wrapped__
    assert ask() is None
    git(package.parent, "init", "--quiet")
    assert ask() is None, "a package that a repository around it does not track is installed there"
    git(package.parent, "add", ".")
    git(package.parent, "commit", "--quiet", "-m", "first")
    assert ask() == {"commit": git(package, "rev-parse", "HEAD"), "dirty": False}
    (package / "machine.py").write_text("changed = True")
    assert ask()["dirty"] is True
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask() is None, "there is no git"


def test_versions_name_what_numbers_depend_on() -> None:
    found = machine.versions("fakes 1.0")
    assert found["method"] == "fakes 1.0"
    wanted = {"python", "bayes_bench", "torch", "torchvision", "numpy", "scipy", "scikit_learn", "safetensors"}
    assert wanted <= found.keys()
