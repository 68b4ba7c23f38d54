"""What the site has beyond the pages in this folder: a page per method and per suite, made from the code and the
committed results, and pages from elsewhere in the repository. Read by MkDocs (``hooks`` in mkdocs.yml).
"""

from __future__ import annotations

import posixpath
import re
import sys
from inspect import getdoc
from pathlib import Path
from typing import Any

import pandas as pd
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "reports" / "reference"
sys.path.insert(0, str(ROOT / "reports"))

from headline import folder_tables, references  # noqa: E402

from bayes_bench.methods import registry  # noqa: E402
from bayes_bench.tasks.spec import SuiteSpec  # noqa: E402
from bayes_bench.tasks.suites import load_suite, shipped_suites  # noqa: E402

# Page of the site → file of the repository, where it is not docs/PAGE.
ELSEWHERE = {
    "index.md": "README.md",
    "results.md": "reports/README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "speed-notes.md": "benchmarks/speed/NOTES.md",
}
FIRST = ("hypergan", "mcdropout", "mnf", "apd", "ensemble", "sgld", "laplace", "vi", "hmc", "map")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    nav = {name: pages for entry in config.nav or [] for name, pages in entry.items()}
    nav["Methods"] = [
        {"Overview": "methods.md"},
        *({name: _page_of(name)} for name in FIRST),
    ]
    nav["Suites"] = [{"Overview": "suites.md"}, *({name: f"suites/{name}.md"} for name in shipped_suites())]
    config.nav = [{name: pages} for name, pages in nav.items()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    made = {page: (ROOT / file).read_text(encoding="utf-8") for page, file in ELSEWHERE.items()}
    made |= {_page_of(name): method_page(name) for name in FIRST if name != "hypergan"}
    made |= {f"suites/{name}.md": suite_page(name) for name in shipped_suites()}
    for page, content in made.items():
        files.append(File.generated(config, page, content=content))
    for file in sorted(REFERENCE.rglob("*")):
        if file.suffix in (".html", ".csv", ".png"):
            files.append(File.generated(config, _place(file), abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links are those of the repository; here they lead to where its files are on the site."""
    source = page.file.src_uri
    if source == "methods.md":
        markdown = _overview(markdown)
    if source == "hypergan.md":
        markdown += "\n\n## Settings\n\n" + settings_table("hypergan") + results_of("hypergan")
    home = _repository_path(source)
    pages = {_repository_path(file.src_uri): file.src_uri for file in files}

    def moved(link: re.Match[str]) -> str:
        image, text, target = link.groups()
        path, anchor = target.partition("#")[::2]
        if "://" in target or not path:
            return link[0]
        there = posixpath.normpath(posixpath.join(posixpath.dirname(home), path))
        if there == "docs/methods.md" and anchor in FIRST:
            there, anchor = f"docs/methods/{anchor}.md", ""
        if there not in pages:
            return text  # code and folders are not on the site
        address = posixpath.relpath(pages[there], posixpath.dirname(source) or ".")
        return f"{image}[{text}]({address}{'#' + anchor if anchor else ''})"

    return LINK.sub(moved, markdown)


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> Navigation:
    listed = {page.file.src_uri for page in nav.pages}
    if missing := sorted(file.src_uri for file in files.documentation_pages() if file.src_uri not in listed):
        raise ValueError(f"not in the navigation of mkdocs.yml: {', '.join(missing)}")
    return nav


def _repository_path(uri: str) -> str:
    """Where a file of the site is in the repository; generated pages count as pages of docs/."""
    if uri.startswith("reference/"):
        return f"reports/{uri}"
    return ELSEWHERE.get(uri, f"docs/{uri}")


def _place(file: Path) -> str:
    return f"reference/{file.relative_to(REFERENCE).as_posix()}"


# Methods --------------------------------------------------------------------------------------------------


def _page_of(name: str) -> str:
    return "hypergan.md" if name == "hypergan" else f"methods/{name}.md"


def _idea(name: str) -> str:
    """The first paragraph of its settings' docstring."""
    return " ".join((getdoc(registry.config_class(name)) or "").split("\n\n")[0].split())


def method_page(name: str) -> str:
    """What the code says of a method, what docs/methods.md says, its settings and its measured numbers."""
    config = registry.config_class(name)
    text = _sections((ROOT / "docs" / "methods.md").read_text(encoding="utf-8"))[name]
    text = text.replace("](", "](../").replace("](../http", "](http")
    source = f"\n\n**Source**: {config.reference}.\n" if config.reference and "**Source.**" not in text else ""
    settings = settings_table(name)
    return f"# {name}\n\n{_idea(name)}\n\n{text}{source}\n\n## Settings\n\n{settings}{results_of(name)}"


def settings_table(name: str) -> str:
    """From the settings' declarations, as ``bayes-bench show`` prints them."""
    rows = [
        [f"`{doc.name}`", f"`{doc.default}`", doc.allowed, doc.meaning + (f" ({doc.source})" if doc.source else "")]
        for doc in registry.describe_settings(registry.config_class(name))
    ]
    return _table(["setting", "default", "allowed", "meaning"], rows) if rows else "It has none.\n"


def results_of(name: str) -> str:
    """The committed results of one method on every task, generated like the headline tables."""
    lines = []
    # In the ablation a method is one of its variants, with settings of that suite's own.
    for folder in sorted(path.parent for path in REFERENCE.glob("*/summary.csv") if path.parent.name != "ablation"):
        frame = pd.read_csv(folder / "summary.csv")
        for _, rows in frame[frame["method"] == name].groupby("task"):
            row = rows.iloc[0]
            shown = [
                f"{label} {_printed(row, metric, scale, decimals)}"
                for label, metric, scale, decimals in (
                    ("accuracy", "accuracy", 100, 2),
                    ("NLL", "nll", 1, 4),
                    ("RMSE", "rmse", 1, 3),
                    ("ECE", "ece", 100, 2),
                )
                if metric in row and pd.notna(row[metric])
            ]
            home = posixpath.dirname(f"docs/{_page_of(name)}")
            page = posixpath.relpath(f"reports/reference/{folder.name}/report.html", home)
            lines.append([f"[{folder.name}]({page})", str(int(row["seeds"])), "; ".join(shown)])
    if not lines:
        return ""
    return "\n\n## Measured\n\n" + _table(["results", "seeds", "accuracy and ECE in %, mean ± std over seeds"], lines)


def _printed(row: Any, metric: str, scale: float, decimals: int) -> str:
    text = f"{scale * row[metric]:.{decimals}f}"
    std = row.get(f"{metric} std")
    return text if pd.isna(std) else f"{text} ± {scale * std:.{decimals}f}"


def _overview(markdown: str) -> str:
    """docs/methods.md without its sections, which have pages of their own here."""
    head = markdown.partition("\n## ")[0]
    rows = [[f"[`{name}`]({_page_of(name)})", _idea(name)] for name in FIRST]
    return f"{head}\n\n{_table(['method', 'idea'], rows)}"


def _sections(markdown: str) -> dict[str, str]:
    parts = re.split(r"^## (.+)$", markdown, flags=re.MULTILINE)
    return {title: text.strip() for title, text in zip(parts[1::2], parts[2::2], strict=True)}


# Suites ---------------------------------------------------------------------------------------------------


def suite_page(name: str) -> str:
    """What a suite's file says, and what it gave."""
    suite = load_suite(name)
    parts = [f"# {name}\n\n{suite.description}\n\n```bash\nbayes-bench run {name}\n```\n"]
    parts.append(_facts(suite))
    for task in suite.tasks:
        facts = [
            ["data", f"{task.title}: {_words(task.data)}"],
            ["network", _words(task.network)],
            ["likelihood", _words(task.likelihood)],
            ["prior", f"N(0, {task.prior.std}²), scaling {task.prior.scaling}"],
            ["budget per job", f"{task.budget:,} gradient evaluations"],
            ["out of distribution", ", ".join(spec.name for spec in task.ood) or "none"],
            ["for tuning only", ", ".join(spec.name for spec in task.validation_ood) or "none"],
        ]
        parts.append(f"\n## {task.name}\n\n" + _table(["", ""], facts))
        settings = [
            [f"`{method}`", ", ".join(f"`{key} = {value}`" for key, value in given.items())]
            for method, given in task.settings.items()
        ]
        if settings:
            parts.append("\nSettings other than the defaults:\n\n" + _table(["method", "settings"], settings))
    if name in (found := references()):
        page = f"[The page](../../reports/reference/{name}/report.html)."
        parts.append(f"\n## Results\n\n{page}\n\n{folder_tables(found[name])}\n")
    return "".join(parts)


def _words(spec: Any) -> str:
    """A part of a task as its file has it, in one line."""
    content = spec.model_dump(mode="json", exclude_none=True)
    return ", ".join(str(value) if key in ("name", "source") else f"{key} {value}" for key, value in content.items())


def _facts(suite: SuiteSpec) -> str:
    methods = ", ".join(f"`{entry.label}`" for entry in suite.methods)
    seeds = ", ".join(map(str, suite.seeds))
    text = f"\nMethods: {methods or 'all'}; seeds {seeds} unless told otherwise."
    if quick := suite.quick:
        parts = [f"{quick.budget_scale:g} of the budget", f"seeds {', '.join(map(str, quick.seeds))}"]
        parts += [f"{quick.examples:,} training examples"] if quick.examples else []
        text += f" `--quick` takes {', '.join(parts)}."
    return f"{text}\n"


def _table(headers: list[str], rows: list[list[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"
