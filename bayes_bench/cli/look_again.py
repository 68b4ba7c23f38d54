"""``compare``, ``verify`` and ``rerun``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bayes_bench.cli.group import GroupedCommand, cli
from bayes_bench.cli.options import allow_code_option, data_root_option, gathered, split_names
from bayes_bench.errors import UsageError
from bayes_bench.host.machine import MOST_THREADS

if TYPE_CHECKING:
    from bayes_bench.jobs.job import Conditions


@cli.command()
@click.argument("before", metavar="BEFORE", type=click.Path(path_type=Path))
@click.argument("after", metavar="AFTER", type=click.Path(path_type=Path))
@click.option("--metrics", metavar="LIST", help="Names from results.csv, separated by commas; default: the main ones.")
@click.option("--csv", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Also write the numbers.")
@click.option("--fail-on-worse", is_flag=True, help="Exit code 1 when a metric is worse by more than noise.")
def compare(before: Path, after: Path, metrics: str | None, csv: Path | None, fail_on_worse: bool) -> int:
    """What changed between two runs, and is it more than noise?

    Compares what both have finished, by the names of tasks and methods, and says what they were set up with
    differently. The interval is that of AFTER − BEFORE, for the choice of seeds and test examples; of seeds alone where
    a metric is no mean over examples or the test data differ. It is not adjusted for the number of rows: of 20 rows
    without any change one is expected to stand out.

    Exit code: 0, or 1 with --fail-on-worse where a metric other than a cost got worse, 2 for a mistake in the input.
    """
    from bayes_bench.analysis.changes import compare_runs
    from bayes_bench.analysis.records import load_run
    from bayes_bench.cli import tables
    from bayes_bench.cli.console import HEADLINES, stdout

    if csv is not None and not csv.absolute().parent.is_dir():
        raise UsageError(f"--csv {csv}: there is no folder {csv.parent}; make it first")
    wanted = {kind: [name for name, *_ in columns] for kind, columns in HEADLINES.items()}
    found = compare_runs(load_run(before), load_run(after), split_names("--metrics", metrics, "accuracy,nll") or wanted)
    for problem in found.problems:
        click.echo(problem, err=True)
    names = (before.name or str(before), after.name or str(after))
    names = names if names[0] != names[1] else (str(before), str(after))
    console = stdout()
    for table in tables.changes_tables(found, *names):
        console.print(table)
    if found.differing:
        console.print(tables.setup_table(found, *names))
    for name, places in zip(names, (found.only_before, found.only_after), strict=True):
        if places:
            click.echo(f"only in {name}: " + "; ".join(f"{task}, {method}" for task, method in places))
    if csv is not None:
        from bayes_bench import report
        from bayes_bench.host.files import write_text

        write_text(csv, report.csv(found.frame()))
        click.echo(f"Written: {csv}")
    return 1 if fail_on_worse and found.worse else 0


@cli.command()
@click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))
def verify(run_dir: Path) -> int:
    """Check a run folder against itself.

    Compares every file with the checksum in its job's record, every metric, alarm and reference with what is
    measured anew from the stored predictions, and results.csv and summary.csv with the records. Numbers are compared
    exactly. Trains nothing and changes nothing.

    Exit code: 0 when all agree, 1 when anything differs or is damaged, 2 where RUN is no run folder.
    """
    from bayes_bench.results.folder import read_run

    read_run(run_dir)
    from bayes_bench.cli import tables
    from bayes_bench.cli.console import stdout
    from bayes_bench.runs.verify import verify as verified

    found = verified(run_dir)
    if found.differences:
        stdout().print(tables.differences_table(found.differences))
    for sentence in found.versions:
        click.echo(sentence, err=True)
    for job in found.missing:
        click.echo(f"not run yet: {job}", err=True)
    count = len(found.differences)
    verdict = f"{count} difference{'s' * (count > 1)}" if count else "all agree"
    click.echo(f"{found.jobs} jobs, {found.values:,} metrics: {verdict}")
    return found.exit_code


@cli.command(
    cls=GroupedCommand,
    epilog="""\b
Examples:
  bayes-bench rerun reports/runs/digits/jobs/digits/map/seed-0-1a2b3c4d
  bayes-bench rerun record.json --threads 1 --out again
""",
)
@click.argument("record", type=click.Path(path_type=Path))
@click.option("--threads", type=click.IntRange(1, MOST_THREADS), help="CPU threads; default: as the record says.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="New folder that keeps the repeated job; default: a temporary one."
)
@data_root_option
@allow_code_option
@gathered("conditions", "bayes_bench.jobs.job:Conditions", "threads", "data_root", "allow_code")
def rerun(record: Path, out: Path | None, conditions: Conditions) -> int:
    """Repeat one job and compare.

    RECORD is a job's folder, or the record.json in it. The job is run again with the task, method, settings, seed,
    budget, device, precision, threads and memory limit that the record names. What is not as it was then (code,
    versions, machine, data) is said first; then every stored array and every metric is compared; timings, memory and
    interruptions aside. A job that failed is expected to fail in the same way.

    Exit code: 0 for the same bit for bit, 1 when anything differs, 2 for a mistake in the input.
    """
    import tempfile

    from bayes_bench.cli import tables
    from bayes_bench.cli.console import stdout
    from bayes_bench.results.folder import SNAPSHOTS, check_run_dir
    from bayes_bench.runs.rerun import read, repeat

    recorded = read(record)
    if out is not None:
        # Snapshots are those of a repetition that was interrupted: it goes on from them.
        if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - {SNAPSHOTS}):
            raise UsageError(f"{out} is not an empty folder; choose another --out")
        check_run_dir(out, SNAPSHOTS)
    console = stdout()

    def tell(differences: list[Any]) -> None:
        if differences:
            console.print(tables.differences_table(differences, title="not as it was"))

    click.echo(f"{recorded.job.name} again", err=True)
    with tempfile.TemporaryDirectory() as temporary:
        found = repeat(recorded, out or Path(temporary), conditions=conditions, tell=tell)
    if found.arrays:
        console.print(tables.arrays_table(found.arrays))
    if found.differences:
        console.print(tables.differences_table(found.differences))
    for sentence in found.notes:
        click.echo(sentence, err=True)
    click.echo(tables.repetition(found))
    return found.exit_code
