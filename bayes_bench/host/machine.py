"""Facts about the machine and the software that a record keeps. Imports no torch."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from bayes_bench.host.shipped import PACKAGE

MEMORY_LIMIT_MB = 512
"""What one call may use for intermediate values, where nothing else is set; in MB (2**20 bytes)."""
MOST_THREADS = 1024
"""Of a job; systems end a process that asks for far more."""
LINUX_CPUS = Path("/sys/devices/system/cpu")
OWN_GROUPS = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")
GIT_SECONDS = 5.0


def physical_cores() -> int:
    """Physical cores this process may use, ≥ 1: hardware threads of one core count once, where the system tells."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    usable = os.sched_getaffinity(0)
    cores = set()
    for cpu in usable:
        try:
            cores.add((LINUX_CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:
            return len(usable)
    return max(1, len(cores))


def processor() -> str:
    """The processor's name as people know it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"


def memory_bytes() -> int | None:
    """Main memory that this process may use, or None where the system does not tell.

    The machine's, or less: a container's or a batch system's limit (cgroups, both versions), or ``ulimit -v``.
    """
    found = _group_limits()
    with suppress(AttributeError, ValueError, OSError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(ImportError, AttributeError, ValueError, OSError):
        import resource

        if (limit := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY:
            found.append(limit)
    return min((number for number in found if number > 0), default=None)


def memory_gb() -> float | None:
    """``memory_bytes`` in GB (2**30 bytes), rounded."""
    found = memory_bytes()
    return None if found is None else round(found / 2**30, 1)


def _group_limits() -> list[int]:
    """Memory limits of this process's control groups and of all groups that these are in."""
    try:
        lines = OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, name = GROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = GROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        # In a container the path may be the host's: then the root is the container's own group.
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError):  # no such folder here, or "max"
                found.append(int((folder / name).read_text()))
            if folder == root:
                break
    return found


def size_in_words(number: float) -> str:
    """``11.7 GB``, ``120 MB``, ``0.3 MB``."""
    return f"{number / 2**30:,.1f} GB" if number >= 2**30 else f"{number / 2**20:,.3g} MB"


def reset_peak_memory() -> bool:
    """Let ``peak_memory_mb`` count from now on. False where the system cannot (all but Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_memory_mb() -> float | None:
    """Most memory (resident set) this process has used since the reset, in MB (2**20 bytes); None on Windows."""
    with suppress(OSError, IndexError, ValueError):
        # Not getrusage where there is a choice: a process inherits that figure from the one that started it.
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**10
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def versions(owner: str) -> dict[str, str]:
    """Versions of everything that numbers depend on.

    Args:
        owner: the distribution that registered the method, with its version.
    """
    found = {"python": platform.python_version(), "method": owner}
    for name in ("bayes-bench", "torch", "torchvision", "numpy", "scipy", "scikit-learn", "safetensors"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name.replace("-", "_")] = importlib.metadata.version(name)
    return found


@cache
def checkout() -> dict[str, Any] | None:
    """The Git commit that this package is run from, and whether tracked files differ from it.

    None for an installed package, and where there is no Git to ask.
    """
    if not any((folder / ".git").exists() for folder in PACKAGE.parents):
        return None

    def ask(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(PACKAGE), *arguments],
            capture_output=True,
            check=True,
            encoding="utf-8",
            timeout=GIT_SECONDS,
        ).stdout.strip()

    try:
        ask("ls-files", "--error-unmatch", "__init__.py")  # an environment within somebody's own repository is not it
        commit, changes = ask("rev-parse", "HEAD"), ask("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(changes)}


def code_hash(paths: Iterable[Path]) -> str:
    """SHA-256 (first 16 digits) of Python files and of all Python files in folders: to notice changed code.

    Raises:
        FileNotFoundError: a path leads nowhere, so that nothing of it would be noticed.
    """
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(path.parent).as_posix()}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]
