"""``bayes-bench data``: the benchmark sets that lie in files, where they are, whether they are intact, getting them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bayes_bench import data
from bayes_bench.data.files import Files, Found
from bayes_bench.errors import DataError, UsageError, unknown_name


@dataclass(frozen=True)
class Entry:
    """A benchmark set, by the name of its source, as it lies below a data root.

    Attributes:
        bytes: on disk.
        suites: shipped ones that use it.
    """

    name: str
    files: Files
    found: Found
    bytes: int
    suites: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """What ``verify`` found of one set.

    Attributes:
        state: ``intact``, ``damaged``, ``partly there``, ``missing`` or ``unreadable``.
        sentence: what was checked, or what is wrong.
        fails: whether the command should.
    """

    name: str
    state: str
    sentence: str
    fails: bool


def known() -> dict[str, Files]:
    """Sources whose data lie in files of a benchmark set."""
    return {name: source.files for name, source in data.SOURCES.items() if source.files is not None}


def chosen(names: Sequence[str]) -> dict[str, Files]:
    """The sets of these names, each once; all where none is named.

    Raises:
        UsageError: an unknown name.
    """
    sets = known()
    for name in names:
        if name not in sets:
            raise UsageError(unknown_name("data set", name, sets))
    return {name: sets[name] for name in names or sets}


def overview(data_root: Path, uses: Mapping[str, tuple[str, ...]]) -> list[Entry]:
    """All sets, as far as it can be told without reading them.

    Args:
        uses: names of suites, by the sources that they use.
    """
    entries = []
    for name, files in known().items():
        found = files.found(data_root)
        entries.append(Entry(name, files, found, sum(map(_size, found.present)), uses.get(name, ())))
    return entries


def verify(names: Sequence[str], data_root: Path, tell: Callable[[Verdict], None]) -> bool:
    """Read the sets (all where none is named) and tell of each; True where nothing fails.

    What is damaged fails, and so does what is named and not wholly there.

    Raises:
        UsageError: an unknown name.
    """
    good = True
    for name, files in chosen(names).items():
        verdict = _verdict(name, files, data_root, named=name in names)
        tell(verdict)
        good = good and not verdict.fails
    return good


def _verdict(name: str, files: Files, data_root: Path, *, named: bool) -> Verdict:
    found = files.found(data_root)
    if found.problem:
        return Verdict(name, found.state, found.problem, True)
    lacking = f"{', '.join(found.missing)} not found in {files.place(found, data_root)}"
    remedy = f"bayes-bench data fetch {name}"
    if not found.present:
        return Verdict(name, "missing", f"{lacking}; to get it: {remedy}", named)
    try:
        checked = files.check(data_root)
    except DataError as error:
        return Verdict(name, "damaged", str(error), True)
    if found.missing:
        return Verdict(name, "partly there", f"{lacking}; the rest: {checked}; to get it: {remedy}", named)
    return Verdict(name, "intact", checked, False)


def fetch(names: Sequence[str], data_root: Path, tell: Callable[[str], None]) -> None:
    """Download what is missing of the named sets, and check each.

    Raises:
        UsageError: an unknown name.
        DataError: a set cannot be had, or what is there is damaged.
    """
    for name, files in chosen(names).items():
        there = files.found(data_root).state == "present"
        files.provide(data_root)
        checked = files.check(data_root)
        place = files.place(files.found(data_root), data_root)
        tell(f"{name}: {'already there' if there else 'fetched'}, {checked} ({place})")


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    return path.stat().st_size
