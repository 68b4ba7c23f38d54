"""``run`` and ``report``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bayes_bench.cli.group import GroupedCommand, cli, option
from bayes_bench.cli.options import (
    CLUSTER,
    HOW,
    WHAT,
    WHERE,
    allow_code_option,
    budget_scale_option,
    data_root_option,
    device_option,
    gathered,
    memory_limit_option,
    method_name,
    quick_option,
    set_option,
    split_names,
    threads_option,
)
from bayes_bench.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from bayes_bench.analysis.records import Run
    from bayes_bench.jobs.job import Conditions, Job
    from bayes_bench.jobs.pace import Expectation
    from bayes_bench.runs.executors.base import Workers
    from bayes_bench.runs.observer import Observer


DEFAULT_SUITES = ("digits", "cubic")


@cli.command(
    cls=GroupedCommand,
    epilog="""\b
Examples:
  bayes-bench run --dry-run                      what the default would do, and how long it would take
  bayes-bench run mnist-5000 --quick             the same suite, cut down to minutes
  bayes-bench run digits --seeds 0-4             five seeds; those already finished are not run again
  bayes-bench run digits --jobs 4 --timeout 600  four jobs at once; ten minutes are the most for each
  bayes-bench run my-task.toml --methods hypergan,ensemble
""",
)
@click.argument("suites", nargs=-1, metavar="[SUITE]...")
@option(
    WHAT, "--methods", metavar="A,B", help="Methods, or FILE.py:CLASS for one of your own; default: those of the suite."
)
@option(WHAT, "--seeds", metavar="LIST", help="0,1,2 or 0-4; default: the suite's.")
@quick_option
@set_option
@budget_scale_option
@device_option
@option(
    HOW,
    "--precision",
    type=click.Choice(["float32", "tf32"]),
    default="float32",
    show_default=True,
    help="How a GPU multiplies: tf32 is faster, with factors rounded to 10 bits.",
)
@threads_option
@memory_limit_option
@option(
    HOW,
    "--jobs",
    "at_once",
    type=click.IntRange(min=1),
    metavar="N",
    help="Jobs at once, each in a process of its own; the results are the same.",
)
@option(
    HOW,
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Give up a job that takes longer; it is a failed one.",
)
@option(
    HOW,
    "--snapshot-every",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How much of a fit an interruption may cost.",
)
@option(HOW, "--fresh", is_flag=True, help="Run finished jobs again.")
@option(HOW, "--dry-run", is_flag=True, help="Only show jobs, and by a few steps of each what time and disk they take.")
@option(HOW, "--quiet", is_flag=True, help="Only errors and the path of the report.")
@option(
    WHERE,
    "--out",
    type=click.Path(path_type=Path),
    help="Run folder; default: reports/runs/SUITES. A second run into it continues.",
)
@data_root_option
@allow_code_option
@option(
    CLUSTER,
    "--executor",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="ray: a Ray cluster, see docs/clusters.md.",
)
@option(
    CLUSTER,
    "--address",
    metavar="HOST:PORT",
    help="Of the cluster's head; default: the cluster that this machine belongs to.",
)
@option(
    CLUSTER, "--cpus-per-job", type=click.IntRange(min=1), metavar="N", help="Cores that a job reserves; default: 1."
)
@option(
    CLUSTER,
    "--gpus-per-job",
    type=click.FloatRange(min=0),
    metavar="N",
    help="GPUs that a job reserves, or a part of one such as 0.25; default: 0.",
)
@gathered(
    "conditions", "bayes_bench.jobs.job:Conditions",
    "device", "precision", "threads", "memory_limit_mb", "snapshot_every", "data_root", "allow_code",
)  # fmt: skip
@gathered(
    "workers", "bayes_bench.runs.executors.base:Workers",
    "executor", "timeout", "address", "cpus_per_job", "gpus_per_job", jobs="at_once",
)  # fmt: skip
def run(
    suites: tuple[str, ...],
    methods: str | None,
    seeds: str | None,
    quick: bool,
    settings: tuple[str, ...],
    budget_scale: float,
    fresh: bool,
    dry_run: bool,
    quiet: bool,
    out: Path | None,
    conditions: Conditions,
    workers: Workers,
) -> int:
    """Train methods on suites and write one comparison page.

    SUITE is a name from `bayes-bench list suites` or the path of a TOML file; default: digits and cubic, which
    need no download. Each task, method and seed is a job with a folder of its own. A job that is finished with
    the same settings, data and budget is not run again, so an interrupted run continues with the same command.

    Exit code: 0, or 1 when a job failed, 2 for a mistake in the input, 130 after Ctrl-C.
    """
    from bayes_bench.cli.options import parse_override, parse_seeds
    from bayes_bench.jobs.plan import plan
    from bayes_bench.results.folder import check_run_dir
    from bayes_bench.tasks.suites import load_suite

    workers.check()
    specs = [load_suite(name) for name in suites or DEFAULT_SUITES]
    if quick:
        specs = [spec.quick_variant() for spec in specs]
    planned = plan(
        specs,
        methods=[method_name(name) for name in split_names("--methods", methods)],
        seeds=parse_seeds(seeds) if seeds is not None else (),
        overrides=[parse_override(text) for text in settings],
        budget_scale=budget_scale,
        warn=lambda sentence: click.echo(sentence, err=True),
    )
    run_dir = out or Path("reports/runs") / "+".join(spec.name for spec in specs)
    check_run_dir(run_dir)
    from bayes_bench.cli.console import stdout
    from bayes_bench.cli.progress import progress

    with progress(quiet) as observer:
        if dry_run:
            table, sentence = _dry_run(planned, run_dir, conditions, workers, observer, fresh=fresh)
            stdout().print(table)
            click.echo(sentence)
            return 0
        from bayes_bench.runs.run import run as run_jobs

        result = run_jobs(
            planned,
            run_dir,
            conditions,
            workers=workers,
            suites=specs,
            fresh=fresh,
            command=["bayes-bench", *sys.argv[1:]],
            observer=observer,
        )
    if not quiet:
        from bayes_bench.analysis.records import load_run

        _print_results(load_run(run_dir))
    click.echo(f"Report: {result.report}")
    if result.interrupted:
        done = result.finished + result.failed + result.skipped
        click.echo(f"Interrupted after {done} of {result.total} jobs; the same command continues.", err=True)
    elif result.failed:
        click.echo(f"{result.failed} of {result.total} jobs failed; their log.txt says why.", err=True)
    return result.exit_code


def _dry_run(
    planned: Sequence[Job],
    run_dir: Path,
    conditions: Conditions,
    workers: Workers,
    observer: Observer,
    *,
    fresh: bool,
) -> tuple[Table, str]:
    """What a run would do, after all that it would refuse, and how long by a few steps of a job of every row.

    Raises:
        BayesBenchError: what ``runs.run`` would raise before its first job.
    """
    from bayes_bench.cli import tables
    from bayes_bench.jobs.pace import expectation
    from bayes_bench.results.folder import job_state
    from bayes_bench.runs.run import prepare

    conditions, placed = prepare(planned, run_dir, conditions, workers, observer)
    waiting = [item for item in placed if fresh or job_state(item.folder, item.key).kind != "finished"]
    found: dict[tuple[str, str], Expectation] = {}
    for item in waiting if workers.executor == "local" else ():
        row = item.job.task.model_dump_json(), item.job.label
        if row not in found:
            found[row] = expectation(item.job, item.task, conditions)
    return tables.plan_table(planned, [item.job for item in waiting], run_dir, found)


@cli.command()
@click.argument("runs", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="RUN...")
@click.option("--recompute", is_flag=True, help="Measure stored predictions anew, e.g. after a new metric.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Where to write; needed for several runs, default for one: RUN itself.",
)
@click.option(
    "--export",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Also write every table as CSV, Markdown and LaTeX and every figure as SVG and CSV.",
)
def report(runs: tuple[Path, ...], recompute: bool, out: Path | None, export: Path | None) -> None:
    """Render a run folder anew, or several as one page.

    Writes results.csv, summary.csv and report.html from what is stored, also of an unfinished run. Methods that have
    other settings in another of the RUNs are told apart by the folders' names.
    """
    from bayes_bench.results.folder import RUN, read_run

    for folder in runs:
        read_run(folder)
    if len(runs) > 1 and out is None:
        raise UsageError("the common page of several runs needs a folder of its own; give --out FOLDER")
    itself = len(runs) == 1 and out is not None and out.resolve() == runs[0].resolve()
    if out is not None and (out / RUN).exists() and not itself:
        raise UsageError(f"{out} is a run folder with a page of its own; choose another --out")
    from bayes_bench import report as rendering
    from bayes_bench.analysis.merging import merge
    from bayes_bench.analysis.records import load_run

    if recompute:
        from bayes_bench.jobs.renew import recompute_metrics

        click.echo(f"measured {sum(map(recompute_metrics, runs))} jobs anew", err=True)
    run = load_run(runs[0]) if len(runs) == 1 else merge(runs)
    path = rendering.write(run, out)
    _print_results(run)
    click.echo(f"Report: {path}")
    if export is not None:
        from bayes_bench.report.export import export as export_files

        click.echo(f"Exported: {len(export_files(run, export))} files in {export}")


def _print_results(found: Run) -> None:
    from bayes_bench.cli.console import stdout
    from bayes_bench.cli.tables import alarm_lines, published_tables, result_tables

    console = stdout()
    for problem in found.problems:
        click.echo(problem, err=True)
    tables = result_tables(found.records)
    for table in tables:
        console.print(table)
    if tables:
        console.print("mean ± standard deviation over seeds; n/a: the page says why", style="dim")
    for table in published_tables(found.records):
        console.print(table)
    for line in alarm_lines(found.records):
        console.print(line, style="bold red", markup=False)
