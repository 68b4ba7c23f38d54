"""Facts about the machine and the software that a record keeps. Imports no torch."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

LINUX_CPUS = Path("/sys/devices/system/cpu")


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


def memory_gb() -> float | None:
    """Main memory in GB (2**30 bytes), or None where the system does not tell."""
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


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
    for name in ("bayes-bench", "torch", "numpy", "scikit-learn", "safetensors"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name.replace("-", "_")] = importlib.metadata.version(name)
    return found


def code_hash(paths: list[Path]) -> str:
    """SHA-256 (first 16 digits) of Python files and of all Python files in folders: to notice changed code."""
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            with suppress(OSError):
                digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]
