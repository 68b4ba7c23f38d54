"""``list``, ``show`` and ``data``."""

from __future__ import annotations

from pathlib import Path

import click

from bayes_bench.cli.group import HelpfulGroup, cli
from bayes_bench.cli.options import data_root_option, method_name
from bayes_bench.errors import BayesBenchError


@cli.command("list")
@click.argument("what", type=click.Choice(["methods", "suites", "metrics"]))
def list_(what: str) -> None:
    """List methods, suites or metrics."""
    from bayes_bench.cli.console import stdout, table

    headers, rows = {"methods": _method_rows, "suites": _suite_rows, "metrics": _metric_rows}[what]()
    stdout().print(table(headers, rows))


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

    from bayes_bench.cli.console import stdout, table
    from bayes_bench.methods import registry

    method = method_name(method)
    cls = registry.config_class(method)
    console = stdout()
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
        console.print(table(["setting", "default", "allowed", "meaning [source]"], rows, whole=1))
        console.print(f"Change one with: bayes-bench run --set {method}.{rows[0][0]}=VALUE", markup=False)
    if tuned := [[doc.name, doc.tuned] for doc in docs if doc.tuned]:
        console.print(table(["setting", f"what bayes-bench tune {method} SUITE tries"], tuned, whole=1))


def _first_line(doc: str | None) -> str:
    return (doc or "").strip().partition("\n")[0]


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
    from bayes_bench import data
    from bayes_bench.cli.console import stdout, table
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
    stdout().print(table(["set", "state", "size", "folder", "suites", "from"], rows, whole=1))
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
