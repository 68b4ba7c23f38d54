"""Suites found and read: those that come with the package, those of installed packages, and users' own files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bayes_bench.errors import UsageError, unknown_name
from bayes_bench.host import plugins
from bayes_bench.host.shipped import REFERENCE_SUFFIX, suite_folder
from bayes_bench.settings import explain, parse_toml
from bayes_bench.tasks.spec import SuiteSpec

LARGEST_SUITE = 4 * 2**20
"""Bytes of a suite's file; no suite comes near."""


def shipped_suites() -> dict[str, Path]:
    return {path.stem: path for path in sorted(suite_folder().glob("*.toml"))}


def installed_suites() -> dict[str, str]:
    """Names of the suites that other packages bring, and who brings them; ours go first under the same name."""
    found = plugins.by_name(plugins.SUITES)
    return {
        name: " and ".join(map(plugins.owner, found[name])) for name in sorted(found.keys() - shipped_suites().keys())
    }


def uses_of_sources() -> Mapping[str, tuple[str, ...]]:
    """Shipped suites by the sources they use."""
    uses: dict[str, list[str]] = {}
    for suite in shipped_suites():
        tasks = load_suite(suite).tasks
        for name in sorted({spec.source for task in tasks for spec in (task.data, *task.ood, *task.validation_ood)}):
            uses.setdefault(name, []).append(suite)
    return {name: tuple(suites) for name, suites in uses.items()}


def load_suite(name_or_path: str) -> SuiteSpec:
    """A suite by its name, ours or that of an installed package, or a user's own by the path of its TOML file.

    Raises:
        UsageError: no such suite, no file or a large one, unreadable TOML (with its line), or a wrong key or value
            (with its path).
    """
    shipped = shipped_suites()
    path = shipped.get(name_or_path) or plugins.only(plugins.SUITES, name_or_path, "suite", Path)
    if path is None:
        path = Path(name_or_path)
        if path.suffix.lower() != ".toml":
            known = [*shipped, *installed_suites()]
            raise UsageError(unknown_name("suite", name_or_path, known) + " (or give the path of a .toml file)")
    try:
        content = _with_absolute_paths(parse_toml(_read(path)), path.resolve().parent)
    except OSError as error:
        raise UsageError(f"cannot read the suite {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not a UTF-8 text file ({error.reason} at byte {error.start})") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    try:
        suite = SuiteSpec.model_validate(content)
    except ValidationError as error:
        raise explain(error, str(path), content) from error
    from bayes_bench.tasks.check import check_task  # here, because it imports all data sources

    for task in suite.tasks:
        try:
            check_task(task)
        except UsageError as error:
            raise UsageError(f"{path}: task {task.name!r}: {error}") from error
    return suite


def _read(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise UsageError("it is not a file")  # a pipe would be waited for without end
    with path.open("rb") as file:
        content = file.read(LARGEST_SUITE + 1)
    if len(content) > LARGEST_SUITE:
        raise UsageError(f"it has more than {LARGEST_SUITE:,} bytes")
    return content.decode("utf-8-sig")  # some editors begin a file with a mark


def _with_absolute_paths(value: Any, folder: Path) -> Any:
    """The content of a suite's file with the files that data sources and tasks name made absolute.

    By convention such options of a source are called ``path`` or end in ``_path``; a relative one counts from
    ``folder``. Of a task they are ``weights``, and ``reference`` where it is a file.
    """
    if isinstance(value, list):
        return [_with_absolute_paths(item, folder) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: str(folder / _expanded(item))
        if isinstance(item, str) and _names_file(key, item, value)
        else _with_absolute_paths(item, folder)
        for key, item in value.items()
    }


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"no home folder for {path!r}; write the whole path") from error


def _names_file(key: str, item: str, table: dict[str, Any]) -> bool:
    if "source" in table:
        return key == "path" or key.endswith("_path")
    return "network" in table and (key == "weights" or (key == "reference" and item.endswith(REFERENCE_SUFFIX)))
