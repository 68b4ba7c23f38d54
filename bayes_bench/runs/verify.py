"""Does a run folder hold what it says? Everything is read and measured anew, nothing is written. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bayes_bench import report
from bayes_bench.analysis.records import Run, load_run
from bayes_bench.errors import BayesBenchError, DataError, named
from bayes_bench.host import machine
from bayes_bench.host.files import file_facts, read_bytes
from bayes_bench.metrics.measure import measure
from bayes_bench.results.folder import load_predictions, read_records, read_run

METRICS_DEPEND_ON = ("bayes_bench", "numpy", "scipy", "scikit_learn")
"""Of a record's versions, those that may change the last digits of what is measured of the same predictions."""
SHOWN = 60
"""Characters of a differing line that are shown."""

Kind = Literal["damaged", "value", "version", "table"]


@dataclass(frozen=True)
class Mismatch:
    """Something that is not as it was recorded.

    Attributes:
        kind: ``"damaged"`` (a record or a file is not what it should be), ``"value"`` (another number, or another
            reason for an n/a), ``"version"`` (a metric that only one of two versions has, or describes otherwise),
            ``"table"`` (a CSV file that is not of these records).
        where: the job, as ``task/label seed k``, or the file.
        recorded, found: the two values, in words.
    """

    kind: Kind
    where: str
    what: str
    recorded: str
    found: str


@dataclass(frozen=True)
class Verification:
    """What was compared and what differs.

    Attributes:
        jobs, values: how many records and metrics were compared.
        missing: planned jobs that have no record yet.
        versions: sentences about versions that are not those of the records.
    """

    jobs: int
    values: int
    differences: tuple[Mismatch, ...]
    missing: tuple[str, ...]
    versions: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0, or 1 where anything differs."""
        return int(bool(self.differences))


def verify(run_dir: Path) -> Verification:
    """Compare every record with its files, its metrics with its predictions, and the tables with the records.

    Numbers are compared exactly: metrics are functions of the stored predictions, without chance.

    Raises:
        UsageError: not a run folder.
        DataError: ``run.json`` is damaged.
    """
    description = read_run(run_dir)
    records, problems = read_records(run_dir)
    differences = [Mismatch("damaged", "a record", "cannot be read", "", problem) for problem in problems]
    values = 0
    for folder, record in records:
        where = f"{record['task']}/{record['label']} seed {record['seed']}"
        try:
            values += len(record.get("metrics") or ())
            differences += _job(folder, record, where)
        except BayesBenchError as error:
            differences.append(Mismatch("damaged", where, "cannot be measured", "", str(error)))
        except Exception as error:
            # A record from elsewhere may hold anything in any place.
            differences.append(Mismatch("damaged", where, "cannot be measured", "", named(error)))
    differences += _tables(run_dir)
    found = [record for _, record in records]
    missing = Run(run_dir, description, tuple(found)).missing()
    return Verification(len(records), values, tuple(differences), tuple(missing), tuple(_versions(found)))


def compare_metrics(where: str, recorded: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[Mismatch]:
    """Metrics, collapse, alarms and reference of two records of one job."""
    old, new = ({row["name"]: row for row in record["metrics"]} for record in (recorded, found))
    for name in {**old, **new}:
        if name not in new or name not in old:
            yield Mismatch("version", where, name, _cell(old.get(name)), _cell(new.get(name)))
            continue
        left, right = old[name], new[name]
        if (left["value"], left.get("reason")) != (right["value"], right.get("reason")):
            yield Mismatch("value", where, name, _cell(left), _cell(right) + _apart(left["value"], right["value"]))
        for field in ("unit", "higher_is_better", "group"):
            if left.get(field) != right[field]:
                yield Mismatch("version", where, f"{field} of {name}", str(left.get(field)), str(right[field]))
    for part in ("collapse", "alarms", "reference"):
        if recorded.get(part) != found[part]:
            # Records of earlier versions have alarms, but not what these follow from.
            kind: Kind = "value" if part in recorded else "version"
            yield Mismatch(kind, where, part, str(recorded.get(part)), str(found[part]))


def _job(folder: Path, record: Mapping[str, Any], where: str) -> Iterator[Mismatch]:
    intact = True
    for difference in _files(folder, record, where):
        intact = False
        yield difference
    if record["status"] == "ok" and intact:
        yield from compare_metrics(where, record, measure(load_predictions(folder), record))


def _files(folder: Path, record: Mapping[str, Any], where: str) -> Iterator[Mismatch]:
    for name, facts in record["files"].items():
        path, size = folder / name, f"{facts['bytes']:,} bytes"
        if not path.is_file():
            yield Mismatch("damaged", where, name, size, "missing")
            continue
        try:
            there = path.stat().st_size
            if there != facts["bytes"]:
                yield Mismatch("damaged", where, name, size, f"{there:,} bytes")
            elif (found := file_facts(path)) != facts:
                kept = [f"{one['bytes']:,} bytes, SHA-256 {one['sha256'][:8]}…" for one in (facts, found)]
                yield Mismatch("damaged", where, name, *kept)
        except OSError as error:
            yield Mismatch("damaged", where, name, size, f"cannot be read: {error.strerror or error}")


def _tables(run_dir: Path) -> Iterator[Mismatch]:
    try:
        expected = report.csv_tables(load_run(run_dir))
    except Exception as error:  # of records that are damaged in a way that shows only here
        yield Mismatch("damaged", "the tables", "cannot be made of these records", "", named(error))
        return
    for name, text in expected.items():
        path = run_dir / name
        try:
            # Of a longer file the first line too many is difference enough.
            stored = read_bytes(path, 2 * len(text.encode()) + SHOWN).decode("utf-8", errors="replace")
        except (OSError, DataError):
            yield Mismatch("table", name, "cannot be read; bayes-bench report makes it anew", "", "")
            continue
        if stored != text:
            old, new = stored.splitlines(), text.splitlines()
            length = max(len(old), len(new))
            old, new = (lines + ["(no line)"] * (length - len(lines)) for lines in (old, new))
            pairs = zip(old, new, strict=True)
            line, (left, right) = next(
                ((number, pair) for number, pair in enumerate(pairs, start=1) if pair[0] != pair[1]),
                (length, ("other line ends", "")),
            )
            yield Mismatch("table", name, f"line {line}", _short(left), _short(right))


def _versions(records: list[dict[str, Any]]) -> Iterator[str]:
    here = machine.versions("")
    for name in METRICS_DEPEND_ON:
        recorded = {str((record.get("versions") or {}).get(name)) for record in records}
        if others := sorted(recorded - {here.get(name)}):
            yield f"{name} is {here.get(name)} here and was {', '.join(others)}: last digits may differ"


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "not measured"
    return repr(row["value"]) if row["value"] is not None else f"n/a: {row.get('reason')}"


def _apart(left: Any, right: Any) -> str:
    numbers = isinstance(left, float | int) and isinstance(right, float | int)
    return f" (by {abs(right - left):.2g})" if numbers else ""


def _short(line: str) -> str:
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"
