"""The folders of data that come with the package."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
REFERENCE_SUFFIX = ".safetensors"


def shipped_folder(name: str, in_checkout: str) -> Path:
    """A folder that an installed package has inside itself, and a checkout beside it."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / in_checkout


def suite_folder() -> Path:
    """The folder of the suites that come with the package (in a checkout: ``benchmarks/suites/``)."""
    return shipped_folder("suites", "benchmarks/suites")


def reference_folder() -> Path:
    """The folder of the references that come with the package (in a checkout: ``benchmarks/references/``)."""
    return shipped_folder("references", "benchmarks/references")
