"""Writes the package of a new method, from the example plug-in; imported by the command line alone."""

from __future__ import annotations

import keyword
import re
import tempfile
from importlib import resources
from pathlib import Path

from bayes_bench import registry
from bayes_bench.errors import StorageError, UsageError

PREFIX = "bayes-bench-"


def new_package(name: str, parent: Path) -> Path:
    """Write ``parent/bayes-bench-NAME``: an installable package with a method that works and is to be changed.

    Raises:
        UsageError: no name for a method, one that is taken, or the folder exists.
        StorageError: it cannot be written.
    """
    class_name = "".join(part.capitalize() for part in name.split("-"))
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or keyword.iskeyword(class_name):
        raise UsageError(
            f"{name!r} cannot name a method; use lower-case letters and digits, with hyphens between words: my-method"
        )
    if (taken := registry.methods().get(name)) is not None:
        raise UsageError(f"there is a method {name!r} already, from {taken.owner}; choose another name")
    if not parent.is_dir():
        raise UsageError(f"no folder {parent}; make it first")
    target = parent / f"{PREFIX}{name}"
    if target.exists():
        raise UsageError(f"{target} exists already; choose another name or folder")
    try:
        with tempfile.TemporaryDirectory(dir=parent) as temporary:
            unfinished = Path(temporary) / target.name
            for path, text in _template().items():
                file = unfinished / _renamed(path, name, class_name)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(_renamed(text, name, class_name), encoding="utf-8")
            unfinished.rename(target)  # all of it or nothing
    except OSError as error:
        raise StorageError(f"cannot write {target}: {error.strerror or error}") from error
    return target


def _template() -> dict[str, str]:
    """The files of the example plug-in, by their path in it (in a checkout: ``examples/plugin``)."""
    shipped = Path(str(resources.files("bayes_bench"))) / "plugin"
    folder = shipped if shipped.is_dir() else Path(__file__).resolve().parent.parent / "examples" / "plugin"
    paths = [*folder.glob("*.*"), *folder.glob("tests/*.py")]
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in sorted(paths)}


def _renamed(text: str, name: str, class_name: str) -> str:
    """Of text about the example, the same about the new method: its module, its class, its name."""
    text = re.sub(r"(?<=_)jitter", name.replace("-", "_"), text)
    return text.replace("Jitter", class_name).replace("jitter", name)
