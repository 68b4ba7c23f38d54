"""The command ``bayes-bench``: thin, and every import of weight happens inside the command that needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import click

from bayes_bench.errors import BayesBenchError, DataError, UsageError, named, printable, unknown_name
from bayes_bench.host.machine import MEMORY_LIMIT_MB, MOST_THREADS

if TYPE_CHECKING:
    import numpy as np

    from bayes_bench.analysis.records import Run
    from bayes_bench.jobs.fitted import FittedJob
    from bayes_bench.posterior.predictive import ClassPrediction, ValuePrediction
    from bayes_bench.tasks.spec import TaskSpec

DEFAULT_SUITES = ("digits", "cubic")
INTERRUPTED = 130
SECTIONS = {
    "Compare methods": ("run", "report", "tune", "reference"),
    "Look again": ("compare", "verify", "rerun"),
    "Look up": ("list", "show", "data"),
    "Use and extend": ("predict", "check", "new-method"),
}


# Help and errors ------------------------------------------------------------------------------------------


class HelpfulGroup(click.Group):
    """Suggests near names."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise UsageError(unknown_name("command", args[0], self.commands))
        return super().resolve_command(ctx, args)


class SectionedGroup(HelpfulGroup):
    """Lists commands under the headings of ``SECTIONS``."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, names in SECTIONS.items():
            rows = [(name, self.commands[name].get_short_help_str(80)) for name in names]
            with formatter.section(heading):
                formatter.write_dl(rows)


class GroupedOption(click.Option):
    """An option with a heading in the help."""

    def __init__(self, *args: Any, heading: str = "Options", **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.heading = heading


class GroupedCommand(click.Command):
    """Lists options under their headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        headings: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            if row is not None and isinstance(parameter, click.Option):
                headings.setdefault(getattr(parameter, "heading", "Options"), []).append(row)
        for heading, rows in headings.items():
            with formatter.section(heading):
                formatter.write_dl(rows)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Entry point: expected errors are one sentence on stderr and an exit code, never a traceback."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # a service or ``>&-`` has closed it
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 (until the end)
    try:
        code = cli.main(args=None if args is None else list(args), prog_name="bayes-bench", standalone_mode=False)
    except click.exceptions.Abort:
        _fail("interrupted; the same command continues", INTERRUPTED)
    except click.ClickException as error:
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            click.echo(error.format_message())
            sys.exit(error.exit_code)
        _fail(error.format_message(), error.exit_code)
    except BayesBenchError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:
        # The reader (``| head``) has gone; closing stderr keeps Python from complaining at exit.
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        # A path that no part of the program could look at: too long a name, a folder above it without permission.
        _fail(f"cannot use {error.filename or 'a file'}: {error.strerror or error}", UsageError.exit_code)
    except (MemoryError, RuntimeError) as error:
        from bayes_bench.jobs.memory import ran_out

        if not ran_out(error):
            raise
        # Outside of jobs: where data are read, networks are built to be looked at, or the page is made.
        _fail(f"memory ran out ({named(error)}); use fewer examples or a smaller network", UsageError.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(sentence: str, code: int) -> NoReturn:
    click.echo(f"Error: {' '.join(printable(sentence).split())}", err=True)
    sys.exit(code)


@click.group(
    cls=SectionedGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  bayes-bench run                                         seven methods on digits and a 1-D regression
  bayes-bench run digits --methods hypergan,mcdropout     two methods, 3 seeds
  bayes-bench run digits --set hypergan.adversarial_weight=0 --out reports/runs/no-discriminator
  bayes-bench tune hypergan digits                        search for better settings, on validation data
  bayes-bench show hypergan                               its settings and where they come from
  bayes-bench predict reports/runs/digits hypergan new.csv --out answers.csv
""",
)
@click.version_option(package_name="bayes-bench", message="%(prog)s %(version)s")
def cli() -> None:
    """Compare Bayesian neural networks: which posterior over weights should I use, and what does it cost?

    Every method gets the same network, data, likelihood, prior and budget, and the result is one page.
    """


# run, report, tune ----------------------------------------------------------------------------------------


WHAT, HOW, WHERE, CLUSTER = "What to run", "How", "Input and output", "On several machines"

set_option = click.option(
    "--set",
    "settings",
    cls=GroupedOption,
    heading=WHAT,
    multiple=True,
    metavar="METHOD.KEY=VALUE",
    help="Change one setting of a method; may be repeated.",
)
quick_option = click.option(
    "--quick",
    cls=GroupedOption,
    heading=WHAT,
    is_flag=True,
    help="The suite's quick variant, SUITE-quick: minutes on 2 cores.",
)
budget_scale_option = click.option(
    "--budget-scale",
    cls=GroupedOption,
    heading=WHAT,
    type=float,
    default=1.0,
    metavar="FACTOR",
    help="Multiply every budget, e.g. 0.1 for a quick look.",
)
device_option = click.option(
    "--device",
    cls=GroupedOption,
    heading=HOW,
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where networks are trained.",
)
threads_option = click.option(
    "--threads",
    cls=GroupedOption,
    heading=HOW,
    type=click.IntRange(1, MOST_THREADS),
    help="CPU threads; default: one for small networks, else the physical cores.",
)
memory_limit_option = click.option(
    "--memory-limit",
    "memory_limit_mb",
    cls=GroupedOption,
    heading=HOW,
    type=click.IntRange(min=1),
    metavar="MB",
    default=MEMORY_LIMIT_MB,
    show_default=True,
    help="For the intermediate values of one evaluation of networks; part of a job's key.",
)
data_root_option = click.option(
    "--data-root",
    cls=GroupedOption,
    heading=WHERE,
    type=click.Path(path_type=Path),
    help="Folder of data sets; default: $BAYES_BENCH_DATA, else the user's cache folder.",
)
allow_code_option = click.option(
    "--allow-code",
    cls=GroupedOption,
    heading=WHERE,
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="FILE",
    help="A Python file that a suite may take its network from; it is executed.",
)


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
@click.option(
    "--methods",
    cls=GroupedOption,
    heading=WHAT,
    metavar="A,B",
    help="Methods, or FILE.py:CLASS for one of your own; default: those of the suite.",
)
@click.option("--seeds", cls=GroupedOption, heading=WHAT, metavar="LIST", help="0,1,2 or 0-4; default: the suite's.")
@quick_option
@set_option
@budget_scale_option
@device_option
@click.option(
    "--precision",
    cls=GroupedOption,
    heading=HOW,
    type=click.Choice(["float32", "tf32"]),
    default="float32",
    show_default=True,
    help="How a GPU multiplies: tf32 is faster, with factors rounded to 10 bits.",
)
@threads_option
@memory_limit_option
@click.option(
    "--jobs",
    "at_once",
    cls=GroupedOption,
    heading=HOW,
    type=click.IntRange(min=1),
    metavar="N",
    help="Jobs at once, each in a process of its own; the results are the same.",
)
@click.option(
    "--timeout",
    cls=GroupedOption,
    heading=HOW,
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Give up a job that takes longer; it is a failed one.",
)
@click.option(
    "--snapshot-every",
    cls=GroupedOption,
    heading=HOW,
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How much of a fit an interruption may cost.",
)
@click.option("--fresh", cls=GroupedOption, heading=HOW, is_flag=True, help="Run finished jobs again.")
@click.option("--dry-run", cls=GroupedOption, heading=HOW, is_flag=True, help="Only show jobs, expected time and disk.")
@click.option("--quiet", cls=GroupedOption, heading=HOW, is_flag=True, help="Only errors and the path of the report.")
@click.option(
    "--out",
    cls=GroupedOption,
    heading=WHERE,
    type=click.Path(path_type=Path),
    help="Run folder; default: reports/runs/SUITES. A second run into it continues.",
)
@data_root_option
@allow_code_option
@click.option(
    "--executor",
    cls=GroupedOption,
    heading=CLUSTER,
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="ray: a Ray cluster, see docs/clusters.md.",
)
@click.option(
    "--address",
    cls=GroupedOption,
    heading=CLUSTER,
    metavar="HOST:PORT",
    help="Of the cluster's head; default: the cluster that this machine belongs to.",
)
@click.option(
    "--cpus-per-job",
    cls=GroupedOption,
    heading=CLUSTER,
    type=click.IntRange(min=1),
    metavar="N",
    help="Cores that a job reserves; default: 1.",
)
@click.option(
    "--gpus-per-job",
    cls=GroupedOption,
    heading=CLUSTER,
    type=click.FloatRange(min=0),
    metavar="N",
    help="GPUs that a job reserves, or a part of one such as 0.25; default: 0.",
)
def run(
    suites: tuple[str, ...],
    methods: str | None,
    seeds: str | None,
    quick: bool,
    settings: tuple[str, ...],
    budget_scale: float,
    device: str,
    precision: Literal["float32", "tf32"],
    threads: int | None,
    memory_limit_mb: int,
    at_once: int | None,
    timeout: float | None,
    snapshot_every: float,
    fresh: bool,
    dry_run: bool,
    quiet: bool,
    out: Path | None,
    data_root: Path | None,
    allow_code: tuple[Path, ...],
    executor: Literal["local", "ray"],
    address: str | None,
    cpus_per_job: int | None,
    gpus_per_job: float | None,
) -> int:
    """Train methods on suites and write one comparison page.

    SUITE is a name from `bayes-bench list suites` or the path of a TOML file; default: digits and cubic, which
    need no download. Each task, method and seed is a job with a folder of its own. A job that is finished with
    the same settings, data and budget is not run again, so an interrupted run continues with the same command.

    Exit code: 0, or 1 when a job failed, 2 for a mistake in the input, 130 after Ctrl-C.
    """
    from bayes_bench.cli_options import parse_override, parse_seeds
    from bayes_bench.jobs.job import device_class
    from bayes_bench.jobs.plan import plan
    from bayes_bench.results.folder import check_run_dir
    from bayes_bench.runs.executors.base import Workers
    from bayes_bench.tasks.suites import load_suite

    workers = Workers(executor, at_once, timeout, address, cpus_per_job, gpus_per_job)
    workers.check()
    specs = [load_suite(name) for name in suites or DEFAULT_SUITES]
    if quick:
        specs = [spec.quick_variant() for spec in specs]
    planned = plan(
        specs,
        methods=[_taken_from_file(name) for name in _names("--methods", methods)],
        seeds=parse_seeds(seeds) if seeds is not None else (),
        overrides=[parse_override(text) for text in settings],
        budget_scale=budget_scale,
        warn=lambda sentence: click.echo(sentence, err=True),
    )
    run_dir = out or Path("reports/runs") / "+".join(spec.name for spec in specs)
    check_run_dir(run_dir)
    from bayes_bench import terminal

    if dry_run:
        own = [spec for spec, name in zip(specs, suites, strict=False) if name.endswith(".toml")]
        if own:
            _build_tasks([task for spec in own for task in spec.tasks], data_root, allow_code)
        table, sentence = terminal.plan_table(planned, run_dir, device_class(device, precision), memory_limit_mb, fresh)
        terminal.stdout().print(table)
        click.echo(sentence)
        return 0
    with terminal.progress(quiet) as observer:
        from bayes_bench.runs.run import run as run_jobs

        result = run_jobs(
            planned,
            run_dir,
            suites=specs,
            device=device,
            precision=precision,
            threads=threads,
            fresh=fresh,
            data_root=data_root,
            allow_code=allow_code,
            memory_limit_mb=memory_limit_mb,
            command=["bayes-bench", *sys.argv[1:]],
            observer=observer,
            workers=workers,
            snapshot_every=snapshot_every,
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


def _build_tasks(tasks: Iterable[TaskSpec], data_root: Path | None, allow_code: Sequence[Path]) -> None:
    """Read the data and build the networks of these tasks, but for those that would download a benchmark set."""
    from bayes_bench import data
    from bayes_bench.tasks.task import build_task

    root = data.resolve_data_root(data_root)
    for task in tasks:
        sources = [data.find_source(one.source) for one in (task.data, *task.ood, *task.validation_ood)]
        if all(one and (one.files is None or one.files.found(root).state == "present") for one in sources):
            build_task(task, data_root, allow_code)


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


@cli.command(
    cls=GroupedCommand,
    epilog="""\b
Examples:
  bayes-bench tune ensemble digits                          16 trials with two seeds each
  bayes-bench tune hypergan digits --trials 64              continues: the first 16 are not run again
  bayes-bench tune map my-task.toml --set map.batch_size=32
""",
)
@click.argument("method")
@click.argument("suite")
@click.option(
    "--trials",
    cls=GroupedOption,
    heading=WHAT,
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Trials in all, those of earlier calls included.",
)
@click.option(
    "--seeds", cls=GroupedOption, heading=WHAT, metavar="LIST", help="None of the suite's own; default: 100,101."
)
@click.option("--task", cls=GroupedOption, heading=WHAT, metavar="NAME", help="Needed where SUITE has several tasks.")
@quick_option
@set_option
@budget_scale_option
@device_option
@threads_option
@memory_limit_option
@click.option("--quiet", cls=GroupedOption, heading=HOW, is_flag=True, help="Only failed trials and the path.")
@click.option(
    "--out",
    cls=GroupedOption,
    heading=WHERE,
    type=click.Path(path_type=Path),
    help="Folder; default: reports/tuning/SUITE-METHOD. A second search into it continues.",
)
@data_root_option
@allow_code_option
def tune(
    method: str,
    suite: str,
    trials: int,
    seeds: str | None,
    task: str | None,
    quick: bool,
    settings: tuple[str, ...],
    budget_scale: float,
    device: str,
    threads: int | None,
    memory_limit_mb: int,
    quiet: bool,
    out: Path | None,
    data_root: Path | None,
    allow_code: tuple[Path, ...],
) -> int:
    """Search for settings of METHOD on a task of SUITE.

    By validation scores alone: test data and reported out-of-distribution sets are left alone. The first trial has
    the current settings. What may be tried is what the settings declare (`bayes-bench show METHOD`) and --set does
    not fix. An interrupted search continues with the same command. The best settings are printed as a suite has
    them, and nothing is changed.

    Exit code: 0, or 1 when every trial failed, 2 for a mistake in the input, 130 after Ctrl-C.
    """
    from bayes_bench.cli_options import parse_override, parse_seeds
    from bayes_bench.tasks.suites import load_suite
    from bayes_bench.tuning.journal import TABLE
    from bayes_bench.tuning.plan import SEEDS, plan
    from bayes_bench.tuning.search import check as check_folder
    from bayes_bench.tuning.search import tune as searched

    method, spec = _taken_from_file(method), load_suite(suite)
    search = plan(
        spec,
        method,
        task=task,
        seeds=parse_seeds(seeds) if seeds is not None else SEEDS,
        overrides=[parse_override(text) for text in settings],
        budget_scale=budget_scale,
        quick=quick,
    )
    several = f"-{search.task.name}" if len(spec.tasks) > 1 else ""
    folder = out or Path("reports/tuning") / f"{search.suite}{several}-{method}"
    check_folder(folder)
    from bayes_bench import terminal

    result = searched(
        search,
        folder,
        trials=trials,
        device=device,
        threads=threads,
        data_root=data_root,
        allow_code=allow_code,
        memory_limit_mb=memory_limit_mb,
        command=["bayes-bench", *sys.argv[1:]],
        watch=terminal.failed_trial_line if quiet else terminal.trial_line,
    )
    if result.best and not quiet:
        terminal.stdout().print(terminal.tuning_table(result))
        click.echo(result.best)
    click.echo(f"Trials: {folder / TABLE}")
    if result.interrupted:
        click.echo(f"Interrupted after {len(result.trials)} of {trials} trials; the same command continues.", err=True)
    elif not result.best:
        click.echo(f"All {len(result.trials)} trials failed; the first: {result.trials[0].error}", err=True)
    return result.exit_code


@cli.command(
    cls=GroupedCommand,
    epilog="""\b
Examples:
  bayes-bench run my-task.toml --methods hmc --out reports/runs/hmc
  bayes-bench reference reports/runs/hmc hmc --out my-task.safetensors
""",
)
@click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("method")
@click.option("--task", help="Which task; needed where the run has several for the method.")
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="File, *.safetensors.")
def reference(run_dir: Path, method: str, task: str | None, out: Path) -> None:
    """Make a reference posterior of a long run.

    Merges the stored predictions of all seeds of the finished jobs (RUN, METHOD) into one small file. A task whose
    suite names the file (key `reference`) gets every method's distance to it: without training, by the same `run`
    command again. Only a method that samples the posterior itself makes a reference: look at its diagnostics, and at
    the distances between the two halves of its networks.
    """
    from bayes_bench import terminal
    from bayes_bench.metrics import references

    made = references.make(run_dir, method, task, out)
    console = terminal.stdout()
    about, seeds = made.about, ", ".join(map(str, made.seeds))
    click.echo(f"{about['task']}: {about['label']}, {about['networks']:,} networks of seeds {seeds}\n")
    for table in terminal.reference_tables(made):
        console.print(table)
    for sentence in made.cautions():
        click.echo(sentence, err=True)
    click.echo(f"Reference: {out} ({out.stat().st_size / 1000:,.0f} kB)")


def _print_results(found: Run) -> None:
    from bayes_bench import terminal

    console = terminal.stdout()
    for problem in found.problems:
        click.echo(problem, err=True)
    tables = terminal.result_tables(found.records)
    for table in tables:
        console.print(table)
    if tables:
        console.print("mean ± standard deviation over seeds; n/a: the page says why", style="dim")
    for table in terminal.published_tables(found.records):
        console.print(table)
    for line in terminal.alarm_lines(found.records):
        console.print(line, style="bold red", markup=False)


def _names(option: str, text: str | None, example: str = "hypergan,mcdropout") -> tuple[str, ...]:
    if text is None:
        return ()
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise UsageError(f"{option} {text!r}: write names separated by commas, e.g. {example}")
    return names


def _taken_from_file(name: str) -> str:
    """A method's name; of ``FILE.py:CLASS`` the name under which it is taken from the file, which is executed."""
    if name.endswith(".py"):
        raise UsageError(f"name the class as well: {name}:CLASS")
    if ".py:" not in name:
        return name
    from bayes_bench.methods import registry

    return registry.add_file(name)


# list, show -----------------------------------------------------------------------------------------------


@cli.command("list")
@click.argument("what", type=click.Choice(["methods", "suites", "metrics"]))
def list_(what: str) -> None:
    """List methods, suites or metrics."""
    from bayes_bench import terminal

    headers, rows = {"methods": _method_rows, "suites": _suite_rows, "metrics": _metric_rows}[what]()
    terminal.stdout().print(terminal.table(headers, rows))


def _method_rows() -> tuple[list[str], list[list[str]]]:
    from bayes_bench.methods import registry

    rows = []
    for name, method in registry.inspect_methods().items():
        summary = f"BROKEN: {method.error}" if method.error else _first_line(registry.config_class(name).__doc__)
        if method.needs:
            summary += f" Needs: pip install '{method.needs}'."
        rows.append([name, summary, method.owner])
    return ["method", "what it is", "from"], rows


def _suite_rows() -> tuple[list[str], list[list[str]]]:
    from bayes_bench.tasks.suites import installed_suites, load_suite, shipped_suites

    rows = []
    for name in (*shipped_suites(), *installed_suites()):
        try:
            suite = load_suite(name)
        except BayesBenchError as error:
            rows.append([name, f"BROKEN: {error}", "", "", ""])
            continue
        tasks = ", ".join(task.name for task in suite.tasks)
        methods = ", ".join(entry.label for entry in suite.methods)
        rows.append([name, suite.description, tasks, methods, "--quick" if suite.quick else ""])
    return ["suite", "what it measures", "tasks", "methods", "quick variant"], rows


def _metric_rows() -> tuple[list[str], list[list[str]]]:
    from bayes_bench.metrics import catalogue

    better = {True: "higher", False: "lower", None: ""}
    rows = [
        [metric.name, metric.group, metric.unit, better[metric.higher_is_better], metric.description]
        for metric in catalogue()
    ]
    return ["metric", "group", "unit", "better", "definition"], rows


@cli.command()
@click.argument("method")
def show(method: str) -> None:
    """Show what METHOD is, and its settings.

    Every setting with its default, range, meaning and where the value comes from.
    """
    from inspect import getdoc

    from bayes_bench import terminal
    from bayes_bench.methods import registry

    method = _taken_from_file(method)
    cls = registry.config_class(method)
    console = terminal.stdout()
    console.print(f"{method}  (from {registry.methods()[method].owner})\n", style="bold", markup=False)
    paragraphs = (getdoc(cls) or "").split("\n\n")
    console.print("\n\n".join(" ".join(text.split()) for text in paragraphs), markup=False)
    if cls.reference:
        console.print(f"\nReference: {cls.reference}", markup=False)
    docs = registry.describe_settings(cls)
    rows = [
        [doc.name, doc.default, doc.allowed, f"{doc.meaning} [{doc.source}]" if doc.source else doc.meaning]
        for doc in docs
    ]
    if rows:
        console.print()
        console.print(terminal.table(["setting", "default", "allowed", "meaning [source]"], rows, whole=1))
        console.print(f"Change one with: bayes-bench run --set {method}.{rows[0][0]}=VALUE", markup=False)
    if tuned := [[doc.name, doc.tuned] for doc in docs if doc.tuned]:
        console.print(terminal.table(["setting", f"what bayes-bench tune {method} SUITE tries"], tuned, whole=1))


def _first_line(doc: str | None) -> str:
    return (doc or "").strip().partition("\n")[0]


# data -----------------------------------------------------------------------------------------------------


@cli.group(
    "data",
    cls=HelpfulGroup,
    short_help="Benchmark data sets: list, fetch, verify.",
    epilog="""\b
Examples:
  bayes-bench data list                          what is there, and which suites use it
  bayes-bench data fetch mnist notmnist          download what is missing
  bayes-bench data verify --data-root /data      read everything and compare with what was published
""",
)
def data_() -> None:
    """Benchmark data sets that lie in files.

    They are looked for below --data-root, else $BAYES_BENCH_DATA, else in the user's cache folder. A run fetches what
    it needs and does not find; these commands do it beforehand, or say what is there.
    """


@data_.command("list")
@data_root_option
def data_list(data_root: Path | None) -> None:
    """List the sets, where each is looked for, and the shipped suites that use it."""
    from bayes_bench import data, terminal
    from bayes_bench.data import catalogue
    from bayes_bench.host import machine
    from bayes_bench.tasks.suites import uses_of_sources

    root = data.resolve_data_root(data_root)
    rows = [
        [
            entry.name,
            entry.found.state,
            machine.size_in_words(entry.bytes) if entry.found.present else "",
            str(entry.found.folder or entry.files.folder),
            ", ".join(entry.suites),
            entry.files.licence,
        ]
        for entry in catalogue.overview(root, uses_of_sources())
    ]
    terminal.stdout().print(terminal.table(["set", "state", "size", "folder", "suites", "from"], rows, whole=1))
    click.echo(f"Data root: {root}")


@data_.command("fetch")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@data_root_option
def data_fetch(names: tuple[str, ...], data_root: Path | None) -> None:
    """Download sets, as far as they are missing, and check them.

    Exit code: 0, or 2 for a name that is none, a set that cannot be had, or damaged files.
    """
    from bayes_bench import data
    from bayes_bench.data import catalogue

    catalogue.fetch(names, data.resolve_data_root(data_root), click.echo)


@data_.command("verify")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@data_root_option
def data_verify(names: tuple[str, ...], data_root: Path | None) -> int:
    """Read the files of sets, all where none is named, and compare them with what was published.

    Exit code: 0, or 1 when a file is damaged or is another set's, or a set that was named is not wholly there.
    """
    from bayes_bench import data
    from bayes_bench.data import catalogue

    root = data.resolve_data_root(data_root)
    good = catalogue.verify(names, root, lambda found: click.echo(f"{found.name}: {found.state}: {found.sentence}"))
    return 0 if good else 1


# compare, verify, rerun -----------------------------------------------------------------------------------


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
    from bayes_bench import terminal
    from bayes_bench.analysis.changes import compare_runs
    from bayes_bench.analysis.records import load_run

    if csv is not None and not csv.absolute().parent.is_dir():
        raise UsageError(f"--csv {csv}: there is no folder {csv.parent}; make it first")
    wanted = {kind: [name for name, *_ in columns] for kind, columns in terminal.HEADLINES.items()}
    found = compare_runs(load_run(before), load_run(after), _names("--metrics", metrics, "accuracy,nll") or wanted)
    for problem in found.problems:
        click.echo(problem, err=True)
    names = (before.name or str(before), after.name or str(after))
    names = names if names[0] != names[1] else (str(before), str(after))
    console = terminal.stdout()
    for table in terminal.changes_tables(found, *names):
        console.print(table)
    if found.differing:
        console.print(terminal.setup_table(found, *names))
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
    from bayes_bench import terminal
    from bayes_bench.runs.verify import verify as verified

    found = verified(run_dir)
    if found.differences:
        terminal.stdout().print(terminal.differences_table(found.differences))
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
    "--out",
    type=click.Path(path_type=Path),
    help="New folder that keeps the repeated job; default: a temporary one.",
)
@data_root_option
@allow_code_option
def rerun(
    record: Path, threads: int | None, out: Path | None, data_root: Path | None, allow_code: tuple[Path, ...]
) -> int:
    """Repeat one job and compare.

    RECORD is a job's folder, or the record.json in it. The job is run again with the task, method, settings, seed,
    budget, device, precision, threads and memory limit that the record names. What is not as it was then (code,
    versions, machine, data) is said first; then every stored array and every metric is compared; timings, memory and
    interruptions aside. A job that failed is expected to fail in the same way.

    Exit code: 0 for the same bit for bit, 1 when anything differs, 2 for a mistake in the input.
    """
    import tempfile

    from bayes_bench import terminal
    from bayes_bench.results.folder import SNAPSHOTS, check_run_dir
    from bayes_bench.runs.rerun import read, repeat

    recorded = read(record)
    if out is not None:
        # Snapshots are those of a repetition that was interrupted: it goes on from them.
        if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - {SNAPSHOTS}):
            raise UsageError(f"{out} is not an empty folder; choose another --out")
        check_run_dir(out, SNAPSHOTS)
    console = terminal.stdout()

    def tell(differences: list[Any]) -> None:
        if differences:
            console.print(terminal.differences_table(differences, title="not as it was"))

    click.echo(f"{recorded.job.name} again", err=True)
    with tempfile.TemporaryDirectory() as temporary:
        found = repeat(
            recorded,
            out or Path(temporary),
            threads=threads,
            data_root=data_root,
            allow_code=allow_code,
            tell=tell,
        )
    if found.arrays:
        console.print(terminal.arrays_table(found.arrays))
    if found.differences:
        console.print(terminal.differences_table(found.differences))
    for sentence in found.notes:
        click.echo(sentence, err=True)
    click.echo(terminal.repetition(found))
    return found.exit_code


# predict, check -------------------------------------------------------------------------------------------


@cli.command(
    cls=GroupedCommand,
    epilog="""\b
Examples:
  bayes-bench predict reports/runs/digits hypergan new.npz
  bayes-bench predict reports/runs/my-task ensemble new.csv --seed 1 --out answers.csv
""",
)
@click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("method")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--task", help="Which task's posterior; needed where the run has several for the method.")
@click.option("--seed", type=int, help="Which seed's posterior; default: the lowest.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="CSV file; default: standard output.")
@click.option(
    "--allow-code",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="FILE",
    help="A Python file that the network may come from; it is executed.",
)
def predict(
    run_dir: Path,
    method: str,
    file: Path,
    task: str | None,
    seed: int | None,
    out: Path | None,
    allow_code: tuple[Path, ...],
) -> None:
    """Predict new inputs, with uncertainty.

    Uses the very networks that the metrics of the finished job (RUN, METHOD) speak of. FILE holds raw inputs as
    the task's own: a CSV table with its columns, an NPZ file with an array `x`, an NPY file, an image or a folder
    of images. The answer is CSV, a line per input: the probability of every class, predictive entropy and mutual
    information (nats); or for a regression, in the units of the targets, the mean, the epistemic standard
    deviation (between networks) and the total one (with the noise).
    """
    from bayes_bench.host.files import write_text
    from bayes_bench.results.folder import read_run

    if out is not None and not out.absolute().parent.is_dir():
        raise UsageError(f"cannot write {out}: no folder {out.parent}")
    read_run(run_dir)
    if not file.exists():
        raise DataError(f"cannot read {file}: no such file or folder")
    from bayes_bench import data
    from bayes_bench.jobs.fitted import load

    fitted = load(run_dir, _taken_from_file(method), task=task, seed=seed, allow_code=allow_code)
    x = data.read_inputs(file, fitted.input_shape, fitted.features, **_reading(fitted))
    text = _prediction_csv(fitted, fitted.predict(x))
    if out is None:
        click.echo(text, nl=False)
        return
    write_text(out, text)
    record = fitted.record
    click.echo(
        f"{len(x)} predictions of {record['networks']} networks ({record['task']}/{record['label']}, "
        f"seed {record['seed']}) written to {out}",
        err=True,
    )


def _reading(fitted: FittedJob) -> dict[str, Any]:
    """What the task's own data source was told about the order of an image's axes holds for new files too."""
    data = fitted.record["task_spec"].get("data") or {}
    return {"channels_last": bool(data.get("channels_last", False)), "delimiter": str(data.get("delimiter", ","))}


def _prediction_csv(fitted: FittedJob, prediction: ClassPrediction | ValuePrediction) -> str:
    import csv
    import io

    import numpy as np

    from bayes_bench.host.files import spreadsheet_safe
    from bayes_bench.posterior.predictive import ClassPrediction

    columns: dict[str, np.ndarray] = {}
    if isinstance(prediction, ClassPrediction):
        columns["label"] = np.array(fitted.classes)[prediction.label.numpy()]
        for index, name in enumerate(fitted.classes):
            columns[f"p({name})"] = prediction.mean[:, index].numpy()
        columns["entropy"] = prediction.entropy.numpy()
        columns["mutual_information"] = prediction.mutual_information.numpy()
    else:
        dimensions = prediction.mean.shape[1]
        for index in range(dimensions):
            suffix = f"_{index}" if dimensions > 1 else ""
            columns[f"mean{suffix}"] = prediction.mean[:, index].numpy()
            columns[f"epistemic_std{suffix}"] = prediction.epistemic_variance[:, index].sqrt().numpy()
            columns[f"total_std{suffix}"] = prediction.variance[:, index].sqrt().numpy()
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(map(spreadsheet_safe, columns))
    for row in zip(*columns.values(), strict=True):
        writer.writerow([spreadsheet_safe(cell) if isinstance(cell, str) else f"{cell:.6g}" for cell in row])
    return buffer.getvalue()


@cli.command()
@click.argument("method")
def check(method: str) -> int:
    """Run the conformance kit on METHOD.

    For authors of plug-ins: trains the method on tiny tasks, looks whether it keeps what every posterior
    promises, and says what to mend. Exit code 1 when a check fails.
    """
    from bayes_bench.methods import registry

    method = _taken_from_file(method)
    registry.config_class(method)
    cls = registry.method_class(method)
    import torch

    from bayes_bench import terminal
    from bayes_bench.testing import conformance

    torch.set_num_threads(1)  # the kit's networks are tiny: more threads would only wait for each other
    results = conformance.check(cls)
    rows = [["passed" if result.passed else "FAILED", result.name, result.message] for result in results]
    terminal.stdout().print(terminal.table(["", "check", "what to do"], rows))
    failed = sum(not result.passed for result in results)
    click.echo(f"{method}: {len(results) - failed} of {len(results)} checks passed")
    return int(failed > 0)


@cli.command("new-method")
@click.argument("name")
@click.option(
    "--in",
    "parent",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    metavar="FOLDER",
    help="Where the package's folder is made; default: here.",
)
def new_method(name: str, parent: Path) -> None:
    """Write a package for a method of your own.

    Makes the folder bayes-bench-NAME with everything a plug-in needs: a method that works, to be changed, its
    settings, tests, and the entry point by which bayes-bench finds it.
    """
    import shlex

    from bayes_bench.methods import scaffold

    folder = scaffold.new_package(name, parent)
    click.echo(f"{folder}: the method is in {scaffold.module_of(name)}.py")
    click.echo(f"Next: pip install -e {shlex.quote(str(folder))} && bayes-bench check {name}")
