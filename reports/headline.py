"""Headline tables of the results in ``reports/reference``, and how results come to lie there.

    python reports/headline.py                 write the tables into README.md and reports/README.md
    python reports/headline.py --check         exit code 1 where a table is not that of the committed results
    python reports/headline.py --add RUN NAME  copy from a run folder what is committed, then write the tables

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``. NAME is ``all``, a folder of ``reports/reference``,
``FOLDER/TASK`` or ``FOLDER/claims``. Every number comes from the CSV files of the folder.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bayes_bench import report
from bayes_bench.analysis.records import load_run
from bayes_bench.errors import BayesBenchError, UsageError, unknown_name
from bayes_bench.host.files import write_text
from bayes_bench.report.findings import claims
from bayes_bench.report.page import open_book, render
from bayes_bench.report.tables import decimals_for, share_in_words
from bayes_bench.results.folder import RUN, read_run
from bayes_bench.results.schema import write_checked

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "reports" / "reference"
PAGES = (ROOT / "README.md", ROOT / "reports" / "README.md")
TABLE = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
# An absolute path, or one below a home folder; the last component may stay.
MACHINE_PATH = re.compile(r"""(?<![\w/.:~<-])~?/(?:[^\s/'",;:()<>]+/)+([^\s/'",;:()<>]*)""")
LARGEST_FOLDER = 1_000_000
"""Bytes that a committed folder should stay below."""


@dataclass(frozen=True)
class Column:
    """A metric of ``summary.csv`` in a table; ``decimals`` None: three significant digits of the largest."""

    metric: str
    header: str
    scale: float = 1.0
    decimals: int | None = None


CLASSIFICATION = (
    Column("accuracy@1", "accuracy %, 1 network", 100, 2),
    Column("accuracy", "all networks", 100, 2),
    Column("nll", "NLL"),
    Column("ece", "ECE %", 100, 1),
    Column("ood_auroc/<set>", "AUROC <set>", 1, 3),
    Column("disagreement", "disagreement %", 100, 2),
    Column("total_variation/<set>", "total variation <set>"),
)
COST = (
    Column("evaluations_spent", "gradient evaluations", 1, 0),
    Column("fit_seconds", "training, s", 1, 0),
    Column("predict_seconds_per_1000", "1,000 predictions, s"),
    Column("parameters_stored", "parameters stored", 1, 0),
)
REGRESSION = (
    Column("nll", "NLL", 1, 3),
    Column("rmse", "RMSE inside"),
    Column("epistemic_std_ratio/gap_inside", "epistemic std, gap/inside"),
    Column("epistemic_std_ratio/outside_inside", "epistemic std, outside/inside"),
    Column("reference_tv/inside", "distance to the posterior, inside", 1, 3),
    Column("reference_tv/outside", "outside", 1, 3),
)


@dataclass(frozen=True)
class Reference:
    """One folder of committed results: ``run.json``, ``summary.csv`` and ``published.csv``, where there is one."""

    folder: Path
    run: Mapping[str, Any]
    summary: pd.DataFrame
    published: pd.DataFrame | None

    @property
    def tasks(self) -> list[str]:
        """In the order they were run."""
        planned = list(dict.fromkeys(job["task"] for job in self.run["jobs"]))
        return sorted(dict.fromkeys(self.summary["task"]), key=lambda task: planned.index(self.spec(task)["name"]))

    def spec(self, task: str) -> Mapping[str, Any]:
        """The task as the suite has it; a task with several budgets, or of several suites, has a suffix in its name."""
        specs = [spec for suite in self.run["suites"] for spec in suite["tasks"] if task.startswith(spec["name"])]
        return max(specs, key=lambda spec: len(spec["name"]))  # a name may begin like another: digits, digits-mlp

    def rows(self, task: str) -> pd.DataFrame:
        """Of the summary, in the order of the methods in the plan."""
        order = {name: i for i, name in enumerate(self.run["methods"])}
        rows = self.summary[self.summary["task"] == task]
        return rows.sort_values("method", key=lambda names: names.map(lambda n: order.get(n.partition("~")[0], 99)))


def references(folder: Path = REFERENCE) -> dict[str, Reference]:
    """The folders that hold results of a run, by name; others, such as those of benchmarks, are left out."""
    found = {}
    for path in sorted(folder.glob("*/run.json")):
        published = path.parent / report.PUBLISHED
        found[path.parent.name] = Reference(
            path.parent,
            read_run(path.parent),
            pd.read_csv(path.parent / report.SUMMARY),
            pd.read_csv(published, keep_default_na=False, na_values={"mean": "", "std": "", "difference": ""})
            if published.exists()
            else None,
        )
    return found


# Tables ---------------------------------------------------------------------------------------------------


def task_table(reference: Reference, task: str) -> str:
    """One row per method, mean ± standard deviation over seeds, and below what budget and floor there were."""
    rows = reference.rows(task)
    known = CLASSIFICATION if "accuracy" in rows and rows["accuracy"].notna().any() else REGRESSION
    return f"{_rows_table(rows, known)}\n\n{_budget(reference, task)}{_floors(rows)}"


def cost_table(reference: Reference, task: str) -> str:
    """What each method cost, one row per method."""
    return _rows_table(reference.rows(task), COST)


def _rows_table(rows: pd.DataFrame, patterns: Sequence[Column]) -> str:
    columns = [column for pattern in patterns for column in _expanded(pattern, rows)]
    decimals = {c.metric: _decimals(c, rows[c.metric]) for c in columns}
    lines = [
        [f"`{row['method']}`", *(_cell(row, c, decimals[c.metric]) for c in columns), str(row["seeds"])]
        for row in rows.to_dict("records")
    ]
    return _markdown(["method", *(column.header for column in columns), "seeds"], lines)


def claims_table(reference: Reference) -> str:
    """Published numbers beside ours, and below what share of the budget ours had; empty where the suite has none."""
    if reference.published is None or reference.published.empty:
        return ""
    tasks = list(dict.fromkeys(reference.published["task"]))
    several = len(tasks) > 1
    lines = []
    for c in claims(reference.published):
        source = f"{c.source}: {c.note}" if c.note else c.source
        ours = [f"`{c.method}`", c.metric, c.measured, c.seeds, c.published, c.difference, source]
        lines.append([c.task, *ours] if several else ours)
    headers = ["method", "metric", "ours", "seeds", "published (claim)", "difference", "source"]
    table = _markdown(["task", *headers] if several else headers, lines)
    shares = {task: _share(reference, task) for task in tasks}
    remarks = [f"{task}: ours had **{share} the suite's budget**." for task, share in shares.items() if share]
    return "\n\n".join([table, *remarks])


def folder_tables(reference: Reference) -> str:
    """All tables of a folder."""
    parts = []
    for task in reference.tasks:
        title = f"**{task}**: {reference.spec(task)['title']}"
        parts += [title, task_table(reference, task), cost_table(reference, task)]
    if table := claims_table(reference):
        parts.append(table)
    return "\n\n".join(parts)


def everything(found: Mapping[str, Reference], page: Path) -> str:
    """A section per folder: link, command, machine, tables."""
    parts = []
    for name, reference in found.items():
        link = (reference.folder / report.REPORT).relative_to(page.parent).as_posix()
        about, versions = reference.run["machine"], reference.run["versions"]
        parts += [
            f"### {name}",
            f"[The page]({link}). `{shlex.join(reference.run['command'])}`; {about['processor']}, "
            f"{about['cores']} cores{_device(about)}; Python {versions['python']}, PyTorch {versions['torch']}.",
            folder_tables(reference),
        ]
    return "\n\n".join(parts)


def _device(about: Mapping[str, Any]) -> str:
    return "" if about["device"] == "cpu" else f", {about['device']}"


def _expanded(column: Column, rows: pd.DataFrame) -> list[Column]:
    """The column, or for a pattern one for every set, where any method has a value."""
    stem = column.metric.removesuffix("<set>")
    names = [column.metric] if stem == column.metric else [name for name in rows if name.startswith(stem)]
    used = [n for n in names if n in rows and not n.endswith(" std") and rows[n].notna().any()]
    return [replace(column, metric=n, header=column.header.replace("<set>", n.removeprefix(stem))) for n in used]


def _decimals(column: Column, values: pd.Series[float]) -> int:
    return decimals_for(float(values.abs().max()), 3) if column.decimals is None else column.decimals


def _cell(row: Mapping[Any, Any], column: Column, decimals: int) -> str:
    mean, std = row[column.metric] * column.scale, row.get(f"{column.metric} std", np.nan) * column.scale
    if not np.isfinite(mean):
        return "–"
    text = f"{mean:,.{decimals}f}" + (f" ± {std:,.{decimals}f}" if std > 0 or (std == 0 and decimals) else "")
    return text.replace("-", "−")


def _budget(reference: Reference, task: str) -> str:
    if not np.isfinite(_total(reference, task)):
        return "No job has finished."
    share = _share(reference, task)
    short = f", **{share} the suite's budget** of {reference.spec(task)['budget']:,}" if share else ""
    total = round(_total(reference, task))
    several = reference.rows(task)["seeds"].max() > 1
    over = "Mean ± standard deviation over training seeds." if several else "One training seed."
    return f"Budget: {total:,} gradient evaluations per job{short}. {over}"


def _floors(rows: pd.DataFrame) -> str:
    """What the mean intensity of an image alone reaches where methods have an AUROC."""
    floors = _expanded(Column("mean_intensity_auroc/<set>", "<set>"), rows)
    reached = ", ".join(f"{rows[c.metric].mean():.3f} ({c.header})" for c in floors)
    return f" AUROC of the mean intensity of an image, without any network: {reached}." if reached else ""


def _share(reference: Reference, task: str) -> str:
    """The budget of a task's jobs in words of the suite's; empty where it is that, or no job has finished."""
    total = _total(reference, task)
    return share_in_words(total / reference.spec(task)["budget"]) if np.isfinite(total) else ""


def _total(reference: Reference, task: str) -> float:
    rows = reference.rows(task)
    return float((rows["evaluations_spent"] + rows["evaluations_unspent"]).max())


def _markdown(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [headers, ["---"] * len(headers), *([cell.replace("|", "\\|") for cell in line] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


# Pages ----------------------------------------------------------------------------------------------------


def written(page: Path, found: Mapping[str, Reference]) -> str:
    """A page's text with its tables made anew.

    Raises:
        UsageError: a marker names a folder or task that is not there.
    """

    def make(match: re.Match[str]) -> str:
        return f"{match[1]}{_named(match[2], found, page)}\n{match[3]}"

    return TABLE.sub(make, page.read_text(encoding="utf-8"))


def _named(name: str, found: Mapping[str, Reference], page: Path) -> str:
    folder, _, part = name.partition("/")
    if name == "all":
        return everything(found, page)
    if folder not in found:
        raise UsageError(f"{page.name}: table {name!r}: {unknown_name('folder of results', folder, found)}")
    reference = found[folder]
    makers: dict[str, Callable[[], str]] = {"": lambda: folder_tables(reference)}
    makers["claims"] = lambda: claims_table(reference)
    makers |= {task: lambda task=task: task_table(reference, task) for task in reference.tasks}  # type: ignore[misc]
    if part not in makers:
        raise UsageError(f"{page.name}: table {name!r}: {unknown_name('table', part, filter(None, makers))}")
    return makers[part]()


# What is committed of a run -------------------------------------------------------------------------------


def add(run_dir: Path, name: str, folder: Path = REFERENCE, command: Sequence[str] = ()) -> Path:
    """Write a run's tables, page and plan, without paths of this machine, to ``folder/name``.

    Args:
        command: what made the results, where that is not the run folder's latest command.

    Raises:
        UsageError: not a run folder, or no job of it is finished.
        DataError: ``run.json`` is damaged.
    """
    run = load_run(run_dir)
    if not any(record["status"] == "ok" for record in run.records):
        raise UsageError(f"{run_dir} has no finished job; nothing to commit")
    for job in run.missing():
        print(f"not run yet: {job}", file=sys.stderr)
    words = list(command or run.description["command"])
    description = without_paths(dict(run.description)) | {"command": [_without_folders(word) for word in words]}
    clean = replace(run, description=description, records=tuple(without_paths(record) for record in run.records))
    texts = {**report.csv_tables(clean), report.REPORT: render(open_book(clean))}
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    for file, text in texts.items():
        write_text(target / file, text)
    write_checked(target / RUN, description)
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"{target}: {size / 1000:,.0f} kB", file=sys.stderr)
    if size > LARGEST_FOLDER:
        print(f"more than {LARGEST_FOLDER / 1000:,.0f} kB: put fewer tasks or methods into one folder", file=sys.stderr)
    return target


def without_paths(content: Any) -> Any:
    """JSON whose texts name files of this machine without their folders."""
    if isinstance(content, str):
        return MACHINE_PATH.sub(r"…/\1", content)
    if isinstance(content, Mapping):
        return {key: without_paths(value) for key, value in content.items()}
    return [without_paths(value) for value in content] if isinstance(content, list) else content


def _without_folders(word: str) -> str:
    """An argument; of a path that is absolute, or leads out of the current folder, the last component."""
    option, equals, value = word.rpartition("=")
    return f"{option}{equals}{Path(value).name}" if value.startswith(("/", "~", "../")) else word


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a table is out of date")
    parser.add_argument("--add", nargs=2, metavar=("RUN", "NAME"), help="copy what is committed of a run folder")
    parser.add_argument("--command", default="", help="with --add: what made the results, if several commands did")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.add:
            add(Path(chosen.add[0]), chosen.add[1], command=shlex.split(chosen.command))
        found = references()
        texts = {page: written(page, found) for page in PAGES}
    except BayesBenchError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    outdated = [page for page, text in texts.items() if page.read_text(encoding="utf-8") != text]
    for page in outdated:
        if not chosen.check:
            page.write_text(texts[page], encoding="utf-8", newline="\n")
        print(f"{page.relative_to(ROOT)}: {'out of date' if chosen.check else 'written'}", file=sys.stderr)
    return int(chosen.check and bool(outdated))


if __name__ == "__main__":
    sys.exit(main())
