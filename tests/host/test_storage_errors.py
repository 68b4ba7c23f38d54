"""A full disk, a folder without permission: one sentence, exit code 2, and what was there is as it was."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bayes_bench import report
from bayes_bench.errors import StorageError
from bayes_bench.results.folder import job_state
from places import HELPERS
from synthetic import METHODS, make_job, write_job, write_plan

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits, mounts and users are those of POSIX")

SETUP = "import os, resource, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); from synthetic import *\n"


def child(code: str, *args: object, setup: str = SETUP) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, whose limits and user it may change; its arguments are in ``sys.argv[2:]``."""
    command = [sys.executable, "-c", setup + code, str(HELPERS), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def small_run(folder: Path) -> dict[str, bytes]:
    """A run of one job with its report; returns the contents of all its files."""
    record, predictions = make_job(METHODS["map"], 0, "regression", networks=1)
    write_job(folder, record, predictions)
    write_plan(folder, [record])
    report.write(folder)
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_report_that_does_not_fit_leaves_the_old_one(tmp_path: Path) -> None:
    before = small_run(tmp_path)
    code = """
from bayes_bench.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
main(["report", sys.argv[2]])
"""
    done = child(code, tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        f"Error: cannot write {tmp_path}/results.csv: File too large; "
        "free space there, then the same command continues\n"
    )
    assert contents(tmp_path) == before


def test_a_job_that_does_not_fit_leaves_the_others(tmp_path: Path) -> None:
    before = small_run(tmp_path)
    code = """
from bayes_bench.errors import StorageError
record, predictions = make_job(METHODS["map"], 1, "regression", networks=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
try:
    write_job(Path(sys.argv[2]), record, predictions)
except StorageError as error:
    print(error)
"""
    done = child(code, tmp_path)
    assert "predictions.safetensors: File too large; free space there" in done.stdout, done.stderr
    assert contents(tmp_path) == before


@pytest.fixture
def full_disk() -> Iterator[Path]:
    """A disk of 256 kB; only root may make one."""
    with tempfile.TemporaryDirectory() as name:
        mount = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", name], capture_output=True, check=False
        )
        if mount.returncode:
            pytest.skip("this user may not mount a small disk")
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", name], check=True)


def test_a_full_disk(full_disk: Path) -> None:
    record, predictions = make_job(METHODS["map"], 0, "regression", networks=1)
    folder = write_job(full_disk, record, predictions)
    (full_disk / "ballast").write_bytes(bytes(150_000))
    before = contents(full_disk)
    other, more = make_job(METHODS["hypergan"], 1, networks=40)
    with pytest.raises(StorageError, match="No space left on device; free space there, then the same command"):
        write_job(full_disk, other, more)
    assert contents(full_disk) == before
    (full_disk / "ballast").unlink()
    assert job_state(folder, record["key"]).kind == "finished"
    write_job(full_disk, record, predictions)


def test_a_folder_that_becomes_unwritable(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = small_run(folder)
        code = """
import safetensors.numpy
from bayes_bench.host.files import write_text
from bayes_bench.errors import StorageError
record, predictions = make_job(METHODS["map"], 1, "regression", networks=1)
run = Path(sys.argv[2])
if os.getuid() == 0:
    os.setuid(65534)  # permissions do not stop root
for path in (run, run / "new" / "place"):
    try:
        write_job(path, record, predictions)
    except StorageError as error:
        print(error)
try:
    write_text(run / "report.html", "new")
except StorageError as error:
    print(error)
"""
        folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
        for path in folders:
            path.chmod(0o555)
        done = child(code, folder)
        for path in folders:
            path.chmod(0o755)
        assert done.stdout.count("Permission denied; make it writable or choose another folder") == 3, done.stderr
        assert contents(folder) == before
