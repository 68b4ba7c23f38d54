"""Writes the package of a new method, from the example plug-in."""

from __future__ import annotations

import importlib.util
import keyword
import re
import tempfile
from pathlib import Path

from bayes_bench.errors import StorageError, UsageError
from bayes_bench.host.shipped import shipped_folder
from bayes_bench.methods import registry

PREFIX = "bayes-bench-"
FILES = ("README.md", "bayes_bench_jitter.py", "pyproject.toml", "tests/test_jitter.py")
"""Of the example."""


def new_package(name: str, parent: Path) -> Path:
    """Write ``parent/bayes-bench-NAME``: an installable package with a method that works and is to be changed.

    Raises:
        UsageError: no name for a method, one that is taken, or the folder exists.
        StorageError: it cannot be written.
    """
    class_name = "".join(part.capitalize() for part in name.split("-"))
    template = _template()
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or keyword.iskeyword(class_name):
        raise UsageError(
            f"{name!r} cannot name a method; use lower-case letters and digits, with hyphens between words: my-method"
        )
    if (taken := registry.methods().get(name)) is not None:
        raise UsageError(f"there is a method {name!r} already, from {taken.owner}; choose another name")
    others = re.sub("Jitter", "", " ".join(template.values()))
    if re.search(rf"\b{class_name}\b", others) or importlib.util.find_spec(module_of(name)) is not None:
        raise UsageError(f"{name!r} would name its class or module as another one is; choose another name")
    if not parent.is_dir():
        raise UsageError(f"no folder {parent}; make it first")
    target = parent / f"{PREFIX}{name}"
    if target.exists():
        raise UsageError(f"{target} exists already; choose another name or folder")
    try:
        with tempfile.TemporaryDirectory(dir=parent) as temporary:
            unfinished = Path(temporary) / target.name
            for path, text in template.items():
                file = unfinished / _renamed(path, name, class_name)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(_renamed(text, name, class_name), encoding="utf-8")
            unfinished.rename(target)  # all of it or nothing
    except OSError as error:
        raise StorageError(f"cannot write {target}: {error.strerror or error}") from error
    return target


def module_of(name: str) -> str:
    """The module of a new method's package."""
    return f"bayes_bench_{name.replace('-', '_')}"


def _template() -> dict[str, str]:
    """The files of the example plug-in, by their path in it (in a checkout: ``examples/plugin``)."""
    folder = shipped_folder("plugin", "examples/plugin")
    return {path: (folder / path).read_text(encoding="utf-8") for path in FILES}


def _renamed(text: str, name: str, class_name: str) -> str:
    """Of text about the example, the same about the new method: its module, its class, its name."""
    new = {"_jitter": f"_{name.replace('-', '_')}", "Jitter": class_name, "jitter": name}
    return re.sub("_?jitter|Jitter", lambda found: new[found[0]], text)
