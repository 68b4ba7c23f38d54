"""The page: what a run folder says, put in order for the template."""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from bayes_bench.analysis.evidence import Evidence, evidence
from bayes_bench.analysis.ranking import ranking
from bayes_bench.analysis.records import (
    Run,
    alarms,
    by_seeds,
    comparison_of,
    display_labels,
    display_tasks,
    ranges,
    results_frame,
    variant_of,
)
from bayes_bench.analysis.statistics import LEVEL, MIN_SEEDS_TO_RANK, REPLICATES
from bayes_bench.errors import BayesBenchError, counted, printable
from bayes_bench.report.charts import CHARTS, Chart, CriticalDifference, Look
from bayes_bench.report.findings import claims_of, headlines, listed
from bayes_bench.report.tables import TaskComparison, number, plain_table, tables_for

RANKED = ("nll", "accuracy")
"""Metrics that methods are ranked by across tasks."""


@dataclass(frozen=True)
class Book:
    """A run in the order of the page.

    Attributes:
        problems: sentences about what could not be read.
    """

    run: Run
    comparisons: tuple[TaskComparison, ...]
    look: Look
    problems: tuple[str, ...]


def open_book(run: Run) -> Book:
    """Group the records, read the predictions of finished jobs and reduce them."""
    labels, tasks = display_labels(run.records), display_tasks(run.records)
    planned = [str(label) for label in run.description.get("methods") or ()]
    order = {job["task"]: i for i, job in reversed(list(enumerate(run.description.get("jobs") or ())))}
    records = sorted(
        run.records,
        key=lambda r: (
            order.get(r["task"], len(order)),
            tasks[comparison_of(r)],
            planned.index(r["label"]) if r["label"] in planned else len(planned),
            labels[variant_of(r)],
            r["seed"],
        ),
    )
    grouped: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        grouped[comparison_of(record)][labels[variant_of(record)]].append(record)
    problems = list(run.problems)
    comparisons = []
    for i, (identifier, methods) in enumerate(grouped.items()):
        jobs: dict[str, list[Evidence]] = {}
        for method, several in methods.items():
            for record in several:
                if record["status"] != "ok":
                    continue
                try:
                    job = evidence(run.predictions(record), record)
                except BayesBenchError as error:
                    problems.append(printable(str(error)))
                    # The metrics in the record still count; only figures and marks need the predictions.
                    job = Evidence(record, {})
                jobs.setdefault(method, []).append(job)
        comparisons.append(TaskComparison(tasks[identifier], f"task-{i + 1}", methods, jobs))
    names = dict.fromkeys(name for comparison in comparisons for name in comparison.records)
    in_order = sorted(names, key=lambda n: planned.index(n) if n in planned else len(planned))
    return Book(run, tuple(comparisons), Look(tuple(in_order)), tuple(problems))


def charts_for(book: Book, comparison: TaskComparison) -> list[Chart]:
    """The figures of a comparison that have something to show."""
    made = [chart(comparison.jobs, book.look) for chart in CHARTS[comparison.kind]]
    return [chart for chart in made if chart.panels()]


def ranks_of(book: Book) -> CriticalDifference:
    """Ranks across tasks, by NLL and by accuracy; without panels where there are too few tasks to test them."""
    results, tasks = results_frame(book.run.records), display_tasks(book.run.records)
    # The same data with another budget, or thinned out for a quick variant, are no other task.
    data = {tasks[comparison_of(r)]: str((r.get("task_spec") or {}).get("data")) for r in book.run.records}
    return CriticalDifference({}, book.look, tuple(ranking(results, metric, data) for metric in RANKED))


def render(book: Book) -> str:
    """The whole page as HTML; depends on nothing but the book."""
    return _share_styles(_environment().get_template("page.html.j2").render(_context(book)))


def _share_styles(html: str) -> str:
    """Name the styles that drawings repeat, in a style sheet at the end: they would be half of the page."""
    names: dict[str, str] = {}

    def name(found: re.Match[str]) -> str:
        return f'class="{names.setdefault(found[1], f"d{len(names)}")}"'

    html = re.sub(r"<svg\b.*?</svg>", lambda svg: re.sub(r'style="([^"]*)"', name, svg[0]), html, flags=re.DOTALL)
    rules = "".join(f".{short}{{{style}}}\n" for style, short in names.items())
    head, body, tail = html.rpartition("</body>")
    return f'{head}<style id="drawings">\n{rules}</style>\n{body}{tail}'


@cache
def _environment() -> Environment:
    folder = resources.files("bayes_bench.report") / "templates"
    environment = Environment(
        loader=FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("style.css", "page.js"))
    # The browser runs this script and no other, whatever a record from elsewhere has smuggled in, and loads nothing.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    environment.globals |= {"style": Markup(style), "script": Markup(script), "script_digest": f"sha256-{digest}"}
    return environment


def _context(book: Book) -> dict[str, Any]:
    run = book.run
    records = list(run.records)
    failed = [record for record in records if record["status"] != "ok"]
    missing = run.missing()
    labels, tasks = display_labels(records), display_tasks(records)
    ranks = ranks_of(book)
    first, *others = ranks.rankings
    return {
        "title": listed([comparison.name for comparison in book.comparisons], "and") if records else "nothing yet",
        "facts": _facts(book, failed, missing),
        "look": book.look,
        "comparisons": [_section(book, comparison) for comparison in book.comparisons],
        "failed": by_seeds(
            (tasks[comparison_of(r)], labels[variant_of(r)], r["seed"], str(r.get("error") or "no reason recorded"))
            for r in failed
        ),
        "missing": missing,
        "problems": book.problems,
        "alarms": alarms(records),
        # The first always, to say why there is none.
        "rankings": [first, *(other for other in others if other.tested)],
        "ranks": _figure(ranks, "ranks-") if ranks.panels() else None,
        "settings": _settings(book),
        "versions": _distinct(records, "versions", run.description),
        "machine": _distinct(records, "machine", run.description),
        "commands": {name: _command(command) for name, command in _commands(run.description).items()},
        "mixed_code": _mixed_code(book),
        "level": round(100 * LEVEL),
        "replicates": number(REPLICATES, 0),
        "min_seeds": MIN_SEEDS_TO_RANK,
        "thresholds": sorted({record["collapse"]["threshold"] for record in records if record.get("collapse")}),
        "claimed": any(claims_of(comparison) for comparison in book.comparisons),
        "referenced": any(comparison.reference for comparison in book.comparisons),
    }


def _facts(book: Book, failed: Sequence[Any], missing: Sequence[str]) -> list[str]:
    records = book.run.records
    seeds = sorted({record["seed"] for record in records})
    facts = []
    if records:
        facts.append(counted(len(book.look.methods), "method"))
        facts.append(counted(len(book.comparisons), "task"))
        facts.append(f"{counted(len(seeds), 'seed')} ({ranges(seeds)})")
        facts += _budgets(book)
    done = len(records) - len(failed)
    planned = len(records) + len(missing)
    facts.append(f"{done} of {counted(planned, 'job')} finished")
    if dates := sorted(str(record["finished"])[:10] for record in records if record.get("finished")):
        facts.append(dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}")
    return facts


def _budgets(book: Book) -> list[str]:
    """Where a task did not have its suite's budget: a reader must know that before any number."""
    shares = {comparison.name: comparison.share for comparison in book.comparisons}
    if not any(shares.values()):
        return []
    if len(set(shares.values())) == 1:
        return [f"{next(iter(shares.values()))} the suite's budget"]
    return [f"{name}: {share} the suite's budget" for name, share in shares.items() if share]


def _section(book: Book, comparison: TaskComparison) -> dict[str, Any]:
    record = comparison.any_record
    data = record.get("data") or {}
    return {
        "name": comparison.name,
        "anchor": comparison.anchor,
        "title": record.get("task_title") or "",
        "headlines": headlines(comparison),
        "share": comparison.share,
        "claims": claims_of(comparison),
        "facts": _task_facts(record, comparison.share),
        "notes": [
            *(data.get("notes") or ()),
            *(f"{name} is missing: {why}" for name, why in (data.get("missing_ood") or {}).items()),
        ],
        "tables": tables_for(comparison),
        "figures": [
            _figure(chart, f"{comparison.anchor}-{i}-") for i, chart in enumerate(charts_for(book, comparison))
        ],
        "ranked": any(marks.best is not None for marks in comparison._marks.values()),
    }


def _figure(chart: Chart, prefix: str) -> dict[str, Any]:
    """A chart for the template; ``prefix`` keeps the ids of its drawings apart from those of others."""
    return {
        "title": chart.title,
        "caption": chart.caption,
        "width": chart.width,
        "legend": chart.methods() if chart.by_colour else [],
        "panels": [
            {"name": name, "svg": Markup(chart.svg(name, f"{prefix}{i}-")), "method": name in chart.look.methods}
            for i, name in enumerate(chart.panels())
        ],
        "table": plain_table(chart.frame()),
    }


def _task_facts(record: Mapping[str, Any], share: str) -> list[tuple[str, str]]:
    data, network = record.get("data") or {}, record.get("network") or {}
    facts: list[tuple[str, str]] = []
    if data:
        counts = [
            f"{number(data[f'n_{part}'], 0)} {part}"
            for part in ("train", "validation", "test")
            if data.get(f"n_{part}")
        ]
        facts.append(("Data", ", ".join(counts)))
        if data.get("classes"):
            facts.append(("Classes", f"{len(data['classes'])}: {', '.join(map(str, data['classes'][:12]))}"
                          + (" …" if len(data["classes"]) > 12 else "")))  # fmt: skip
        if data.get("ood"):
            facts.append(
                ("Out of distribution", ", ".join(f"{name} ({number(n, 0)})" for name, n in data["ood"].items()))
            )
        if data.get("validation_ood"):
            text = ", ".join(f"{name} ({number(n, 0)})" for name, n in data["validation_ood"].items())
            facts.append(("For tuning only", text))
    if network:
        spec = {k: v for k, v in (network.get("spec") or {}).items() if k != "name"}
        name = (network.get("spec") or {}).get("name", "network")
        described = ", ".join(f"{key} {_setting(value)}" for key, value in spec.items())
        facts.append(("Network", f"{name} ({described}); {number(network.get('parameters') or 0, 0)} parameters"))
    if record.get("likelihood"):
        text = re.sub(r"\d+\.\d{5,}", lambda found: f"{float(found[0]):.4g}", str(record["likelihood"]))
        standardised = bool((data.get("standardiser") or {}).get("y_std"))
        facts.append(("Likelihood", text + (", of standardised targets" if standardised else "")))
    if record.get("prior"):
        facts.append(("Prior", "Gaussian, " + ", ".join(f"{k} {_setting(v)}" for k, v in record["prior"].items())))
    if (record.get("budget") or {}).get("total"):
        text = f"{number(record['budget']['total'], 0)} gradient evaluations per job"
        facts.append(("Budget", f"{text}: {share} the suite's" if share else text))
    return facts


def _settings(book: Book) -> list[dict[str, Any]]:
    """Per method its settings by task; one column where all tasks have the same."""
    shown = []
    for method in book.look.methods:
        by_task = {c.name: c.records[method][0] for c in book.comparisons if method in c.records}
        columns: dict[str, Mapping[str, Any]] = dict(by_task)
        first = next(iter(by_task.values()))
        same = ("config", "settings", "method")
        if len(by_task) > 1 and all(all(r.get(k) == first.get(k) for k in same) for r in by_task.values()):
            columns = {"all tasks": first}
        names = list(dict.fromkeys(name for record in columns.values() for name in record.get("config") or {}))
        rows = [
            {
                "name": name,
                "values": [
                    {
                        "text": _setting((record.get("config") or {}).get(name)),
                        "given": name in (record.get("settings") or {}),
                    }
                    for record in columns.values()
                ],
            }
            for name in names
        ]
        notes = [str(n) for r in by_task.values() for n in (r.get("fit") or {}).get("notes") or ()]
        shown.append(
            {
                "method": method,
                "registered": str(first["method"]),
                "columns": list(columns),
                "rows": rows,
                "prior": _by_task({task: record.get("uses_prior") for task, record in by_task.items()}),
                "support": first.get("support"),
                "notes": list(dict.fromkeys(notes)),
            }
        )
    return shown


def _by_task(values: Mapping[str, bool | None]) -> str:
    """``yes``, or ``digits: yes, cubic: no``."""
    words = {task: {True: "yes", False: "no", None: "unknown"}[value] for task, value in values.items()}
    if len(set(words.values())) == 1:
        return next(iter(words.values()))
    return ", ".join(f"{task}: {word}" for task, word in words.items())


def _setting(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_setting(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_setting, value)) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _distinct(records: Sequence[Mapping[str, Any]], part: str, description: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Facts of all records; where they differ, all values with their number of jobs."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for source in records or [description]:
        for name, value in (source.get(part) or {}).items():
            counts[str(name)][_setting(value)] += 1
    return [
        (name, next(iter(values)) if len(values) == 1 else "; ".join(f"{v} ({n} jobs)" for v, n in values.items()))
        for name, values in counts.items()
    ]


def _commands(description: Mapping[str, Any]) -> dict[str, Any]:
    """The latest command of every run that the page is made of, by its name; one run has none."""
    return dict(description.get("commands") or {"": description.get("command")})


def _command(command: Any) -> str:
    if isinstance(command, str):
        return command
    return shlex.join(str(part) for part in command or ())


def _mixed_code(book: Book) -> list[str]:
    """Methods whose seeds, and tasks whose methods, ran with different code."""
    found = []
    for comparison in book.comparisons:
        cores = set()
        for method, records in comparison.records.items():
            codes = {str(sorted((r.get("code") or {}).items())) for r in records if r["status"] == "ok"}
            cores |= {str((r.get("code") or {}).get("core")) for r in records if r["status"] == "ok"}
            if len(codes) > 1:
                found.append(f"{comparison.name}: the seeds of {method} were run with different versions of the code")
        if len(cores) > 1:
            found.append(f"{comparison.name}: the methods were run with different versions of the library's code")
    return found


def without_figures(html: str) -> str:
    """The page with its drawings cut out, to compare pages across versions of Matplotlib."""
    html = re.sub(r"<svg\b.*?</svg>", "<svg></svg>", html, flags=re.DOTALL)
    return re.sub(r'(<style id="drawings">).*?(</style>)', r"\1\2", html, flags=re.DOTALL)
