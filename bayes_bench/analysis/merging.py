"""Several run folders as one, for a common page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bayes_bench.analysis.records import Run, comparison_of, load_run, ranges, variant_of
from bayes_bench.errors import UsageError


def merge(folders: Sequence[Path]) -> Run:
    """The jobs of several runs; of one that is in several the one that finished last, if any did.

    A method that has other settings in another run, on the very same task and budget, is called ``METHOD (RUN)`` in
    each, RUN being the folder's name. Tasks with another budget or other data stand beside each other, as they do in
    one run.

    Raises:
        UsageError: one is no run folder, or given twice.
        DataError: the ``run.json`` of one is damaged.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UsageError("a run folder is given twice; give each once")
    runs = dict(zip(_short_names(folders), map(load_run, folders), strict=True))
    several = _ambiguous(runs)
    records: dict[tuple[str, str, int], dict[str, Any]] = {}
    origins: dict[tuple[str, str], tuple[Path, str]] = {}
    labels: dict[tuple[str, str, str], str] = {}
    twice: set[tuple[str, str, int]] = set()
    for name, run in runs.items():
        for record in run.records:
            label = record["label"]
            shown = f"{label} ({name})" if (comparison_of(record), label) in several else label
            labels[name, label, record["key"]] = shown
            place = (shown, variant_of(record), record["seed"])
            if place in records:
                twice.add(place)
                if _worth(records[place]) > _worth(record):
                    continue
            records[place] = record | {"label": shown, "claimed_as": label}
            origins[shown, record["key"]] = (run.folder, label)
    problems = [f"{name}: {problem}" for name, run in runs.items() for problem in run.problems]
    if twice:
        seeds = ranges(seed for _, _, seed in twice)
        problems.append(f"{len(twice)} jobs (seeds {seeds}) are in several of the runs; what finished last is shown")
    return Run(folders[0], _description(runs, labels), tuple(records.values()), tuple(problems), origins)


def _worth(record: dict[str, Any]) -> tuple[bool, str]:
    """A finished job goes before a failed one, a later one before an earlier one."""
    return record["status"] == "ok", str(record.get("finished") or "")


def _short_names(folders: Sequence[Path]) -> list[str]:
    """As many of the last parts of every path as tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    length = 1
    while len({path[-length:] for path in parts}) < len(parts):
        length += 1
    return ["/".join(path[-length:]) for path in parts]


def _ambiguous(runs: dict[str, Run]) -> set[tuple[str, str]]:
    """Comparisons and labels that are another variant in another run."""
    variants: dict[tuple[str, str], set[str]] = defaultdict(set)
    for run in runs.values():
        for record in run.records:
            variants[comparison_of(record), record["label"]].add(variant_of(record))
    return {place for place, found in variants.items() if len(found) > 1}


def _stem(label: str) -> str:
    return label.partition(" (")[0]


def _description(runs: dict[str, Run], labels: dict[tuple[str, str, str], str]) -> dict[str, Any]:
    """What a page needs of ``run.json``: the order of methods, the planned jobs, and the commands."""
    jobs, methods = {}, []
    for name, run in runs.items():
        methods += [str(label) for label in run.description.get("methods") or ()]
        for job in run.description.get("jobs") or ():
            shown = labels.get((name, job["label"], job["key"]), job["label"])
            jobs[shown, job["key"]] = job | {"label": shown}
    shown = dict.fromkeys([*labels.values(), *(job["label"] for job in jobs.values())])
    planned = list(dict.fromkeys(methods))
    order = sorted(shown, key=lambda label: planned.index(stem) if (stem := _stem(label)) in planned else len(planned))
    commands = {name: run.description.get("command") for name, run in runs.items()}
    return {"methods": order, "jobs": list(jobs.values()), "commands": commands}
