"""Tables and figures of a report as files for a paper: CSV, Markdown, LaTeX (booktabs) and SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path

import matplotlib as mpl
from matplotlib.lines import Line2D

from bayes_bench import report
from bayes_bench.analysis.records import Run, load_run
from bayes_bench.errors import UsageError
from bayes_bench.host.files import make_folder, write_text
from bayes_bench.report.charts import Chart
from bayes_bench.report.charts.base import STYLE
from bayes_bench.report.page import charts_for, open_book, ranks_of
from bayes_bench.report.tables import Cell, Table, tables_for

TEXT_WIDTH = 345
"""Points, of LaTeX's article class at 10 points."""
LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": "$-$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "p\u0304": r"$\bar{p}$",
    "²": "$^2$",
    "½": r"$\frac{1}{2}$",
    "Σ": r"$\Sigma$",
    "∫": r"$\int$",
    "·": r"$\cdot$",
    "‖": r"$\|$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "|": r"$|$",
    "<": "$<$",
    ">": "$>$",
    "–": "--",
    "…": r"\ldots{}",
}


def export(run: Run | Path | str, folder: Path) -> list[Path]:
    """Write every table and figure of a run's report into a folder, which may be there already.

    A table is ``TASK-CAPTION`` as ``.csv`` (value and spread apart), ``.md`` and ``.tex``; a figure is ``TASK-TITLE``
    as ``.svg``, all panels side by side, with its numbers in a ``.csv``.

    Returns:
        What was written.

    Raises:
        UsageError: not a run folder, nothing in it is finished, or ``folder`` is a file.
        DataError: ``run.json`` is damaged.
        StorageError: a file cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is no folder; choose another for --export")
    run = run if isinstance(run, Run) else load_run(run)
    book = open_book(run)
    texts: dict[str, str] = {}

    def add(chart: Chart, *task: str) -> None:
        name = _file_name(texts, *task, chart.title)
        texts.update({f"{name}.svg": drawing(chart), f"{name}.data.csv": report.csv(chart.frame())})

    for comparison in book.comparisons:
        for table in tables_for(comparison):
            name = _file_name(texts, comparison.name, table.caption)
            title = f"{comparison.name}: {table.caption}"
            texts |= {f"{name}.csv": _csv(table), f"{name}.md": markdown(table, title)}
            texts[f"{name}.tex"] = latex(table, title, name)
        for chart in charts_for(book, comparison):
            add(chart, comparison.name)
    if (ranks := ranks_of(book)).panels():
        add(ranks)
    if not texts:
        raise UsageError(f"{run.folder} has no finished job; there is nothing to export")
    make_folder(folder)
    for file, text in texts.items():
        write_text(folder / file, text)
    return [folder / file for file in texts]


def _file_name(taken: Mapping[str, str], *parts: str) -> str:
    """The parts as a file name without its ending, numbered where another text has given the same."""
    name = "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-.").lower() or "unnamed" for part in parts)
    numbered = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(one for one in numbered if not {f"{one}.csv", f"{one}.svg"} & taken.keys())


# Tables ---------------------------------------------------------------------------------------------------


def _columns(table: Table) -> list[tuple[str, str]]:
    """Group and text of every column of numbers; the group is empty where there are none."""
    groups = [text for text, span in table.groups for _ in range(span)] or [""] * len(table.headers)
    texts = [f"{header.text} {header.direction}".rstrip() for header in table.headers]
    return list(zip(groups, texts, strict=True))


def _remarks(table: Table) -> list[str]:
    """What stands below the table."""
    marks = {cell.mark for row in table.rows for cell in row.cells}
    said = [f"{letter}: {reason}." for letter, reason in table.notes]
    said += ["Mean ± standard deviation over seeds."] if any(c.spread for row in table.rows for c in row.cells) else []
    if "best" in marks:
        said.append("Bold: best mean." + (" Italic: not distinguishable from it." if "tied" in marks else ""))
    return [*said, *table.remarks]


def _csv(table: Table) -> str:
    import pandas as pd

    rows = []
    for row in table.rows:
        cells: dict[str, str] = {"method": row.method}
        for (group, text), cell in zip(_columns(table), row.cells, strict=True):
            name = f"{group}: {text}" if group else text
            value, spread = (_machine_number(text) for text in (cell.text, cell.spread.removeprefix("± ")))
            cells |= {name: value, f"{name} (spread)": spread, f"{name} (mark)": cell.mark}
        rows.append(cells | {"seeds": row.seeds})
    frame = pd.DataFrame(rows)
    return report.csv(frame.loc[:, [name for name in frame if (frame[name] != "").any()]])


def _machine_number(text: str) -> str:
    """A printed number as programs read it."""
    return text.replace("−", "-").replace(",", "")


def markdown(table: Table, title: str) -> str:
    """A pipe table: the best mean is bold, what cannot be told from it italic."""

    def text(cell: Cell) -> str:
        words = f"{cell.text} {cell.spread}".rstrip() + (f" ({cell.note})" if cell.note else "")
        return {"best": f"**{words}**", "tied": f"*{words}*"}.get(cell.mark, words)

    headers = ["Method", *(f"{group}: {text}" if group else text for group, text in _columns(table)), "Seeds"]
    lines = [headers, ["---", *("---:" for _ in headers[1:])]]
    lines += [[row.method, *map(text, row.cells), row.seeds] for row in table.rows]
    body = "\n".join(f"| {' | '.join(map(_pipe_safe, line))} |" for line in lines)
    return "\n\n".join([f"**{_one_line(title)}**", body, *map(_one_line, _remarks(table))]) + "\n"


def latex(table: Table, title: str, label: str) -> str:
    """A ``table`` environment for booktabs: the best mean bold, what cannot be told from it italic.

    What is wider than the text of LaTeX's own article class is scaled down to it, by graphicx.
    """

    def text(cell: Cell) -> str:
        words = tex(f"{cell.text} {cell.spread}".rstrip()) + (f"$^{{{cell.note}}}$" if cell.note else "")
        return {"best": rf"\textbf{{{words}}}", "tied": rf"\textit{{{words}}}"}.get(cell.mark, words)

    wide = _points(table) > TEXT_WIDTH
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{tex(title)}}}",
        rf"\label{{tab:{label}}}",
        *([r"\resizebox{\textwidth}{!}{%"] if wide else []),
        rf"\begin{{tabular}}{{l{'r' * len(table.headers)}r}}",
        r"\toprule",
    ]
    if table.groups:
        spans = [rf"\multicolumn{{{span}}}{{c}}{{{tex(group)}}}" for group, span in table.groups]
        lines.append(_row(["", *spans, ""]))
        first = 2
        for group, span in table.groups:
            if group:
                lines.append(rf"\cmidrule(lr){{{first}-{first + span - 1}}}")
            first += span
    lines += [_row(["Method", *(tex(text) for _, text in _columns(table)), "Seeds"]), r"\midrule"]
    lines += [_row([tex(row.method), *map(text, row.cells), tex(row.seeds)]) for row in table.rows]
    lines += [r"\bottomrule", r"\end{tabular}" + ("}" if wide else "")]
    if remarks := _remarks(table):
        lines += [r"\par\smallskip\footnotesize", " ".join(map(tex, remarks))]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _points(table: Table) -> float:
    """Width of the printed table, roughly: 5 points a letter and 12 between columns."""
    rows = [["Method", *(text for _, text in _columns(table)), "Seeds"]]
    rows += [[row.method, *(f"{cell.text} {cell.spread}" for cell in row.cells), row.seeds] for row in table.rows]
    return sum(5 * max(map(len, column)) + 12 for column in zip(*rows, strict=True))


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _pipe_safe(text: str) -> str:
    return _one_line(text).replace("|", "\\|")


def tex(text: str) -> str:
    """Any text for LaTeX, in any mode of it; what pdflatex has no letter for becomes a question mark."""
    pattern = "|".join(map(re.escape, sorted(LATEX, key=len, reverse=True)))
    parts = re.split(f"({pattern})", _one_line(text))
    return "".join(LATEX.get(part) or re.sub(r"[^\x20-\xff]", "?", part) for part in parts)


# Figures --------------------------------------------------------------------------------------------------


def drawing(chart: Chart) -> str:
    """All panels of a figure as an SVG document of its own, with a legend where colours tell methods apart."""
    figure = chart.plot()
    if chart.by_colour:
        columns = 2 * min(4, len(chart.panels())) + 1
        lines = [Line2D([], [], label=method, **chart.look.line(method)) for method in chart.methods()]
        figure.legend(handles=lines, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    buffer = io.StringIO()
    with mpl.rc_context(STYLE | {"svg.hashsalt": chart.title}):
        figure.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None})
    return re.sub(r'<g id="(?:values|spread)-\d+"', "<g", buffer.getvalue())
