"""``tune`` and ``reference``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bayes_bench.cli.group import GroupedCommand, cli, option
from bayes_bench.cli.options import (
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
    threads_option,
)

if TYPE_CHECKING:
    from bayes_bench.jobs.job import Conditions


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
@option(
    WHAT,
    "--trials",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Trials in all, those of earlier calls included.",
)
@option(WHAT, "--seeds", metavar="LIST", help="None of the suite's own; default: 100,101.")
@option(WHAT, "--task", metavar="NAME", help="Needed where SUITE has several tasks.")
@quick_option
@set_option
@budget_scale_option
@device_option
@threads_option
@memory_limit_option
@option(HOW, "--quiet", is_flag=True, help="Only failed trials and the path.")
@option(
    WHERE,
    "--out",
    type=click.Path(path_type=Path),
    help="Folder; default: reports/tuning/SUITE-METHOD. A second search into it continues.",
)
@data_root_option
@allow_code_option
@gathered(
    "conditions", "bayes_bench.jobs.job:Conditions", "device", "threads", "memory_limit_mb", "data_root", "allow_code"
)
def tune(
    method: str,
    suite: str,
    trials: int,
    seeds: str | None,
    task: str | None,
    quick: bool,
    settings: tuple[str, ...],
    budget_scale: float,
    quiet: bool,
    out: Path | None,
    conditions: Conditions,
) -> int:
    """Search for settings of METHOD on a task of SUITE.

    By validation scores alone: test data and reported out-of-distribution sets are left alone. The first trial has
    the current settings. What may be tried is what the settings declare (`bayes-bench show METHOD`) and --set does
    not fix. An interrupted search continues with the same command. The best settings are printed as a suite has
    them, and nothing is changed.

    Exit code: 0, or 1 when every trial failed, 2 for a mistake in the input, 130 after Ctrl-C.
    """
    from bayes_bench.cli.options import parse_override, parse_seeds
    from bayes_bench.tasks.suites import load_suite
    from bayes_bench.tuning.journal import TABLE
    from bayes_bench.tuning.plan import SEEDS, plan
    from bayes_bench.tuning.search import check as check_folder
    from bayes_bench.tuning.search import tune as searched

    method, spec = method_name(method), load_suite(suite)
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
    from bayes_bench.cli import tables
    from bayes_bench.cli.console import stdout
    from bayes_bench.cli.progress import failed_trial_line, trial_line

    result = searched(
        search,
        folder,
        trials=trials,
        conditions=conditions,
        command=["bayes-bench", *sys.argv[1:]],
        watch=failed_trial_line if quiet else trial_line,
    )
    if result.best and not quiet:
        stdout().print(tables.tuning_table(result))
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
    from bayes_bench.cli import tables
    from bayes_bench.cli.console import stdout
    from bayes_bench.metrics import references

    made = references.make(run_dir, method, task, out)
    console = stdout()
    about, seeds = made.about, ", ".join(map(str, made.seeds))
    click.echo(f"{about['task']}: {about['label']}, {about['networks']:,} networks of seeds {seeds}\n")
    for table in tables.reference_tables(made):
        console.print(table)
    for sentence in made.cautions():
        click.echo(sentence, err=True)
    click.echo(f"Reference: {out} ({out.stat().st_size / 1000:,.0f} kB)")
