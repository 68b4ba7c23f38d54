"""The conjugate test bed: methods against posteriors that are known exactly.

    python benchmarks/conjugate/run.py --out reports/reference/conjugate

Writes ``table.csv`` and ``table.md``: one row for each problem, method and settings. The first rows of a problem are
references: independent draws from the posterior, and the best factorised Gaussian. A sampler is followed by the closed
form of its chain, where there is one.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch

from bayes_bench import BayesBenchError, WeightPosterior
from bayes_bench.methods.registry import method_class, methods
from bayes_bench.testing import (
    LinearRegression,
    MomentErrors,
    compare,
    compare_moments,
    sghmc_covariance,
    sgld_covariance,
)

DIMENSIONS = (2, 10)
"""Of the inputs; a bias comes on top."""

DRAWS = 1000
"""Networks drawn, or the support where that is less."""

CHAINS: dict[str, Any] = {"chains": 20, "samples": 1000, "step_size": 0.02}
FULL_BATCHES: dict[str, Any] = {"batch_size": 100}
SMALL_BATCHES: dict[str, Any] = {"batch_size": 10, "batches": "independent"}
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "map": [FULL_BATCHES | {"learning_rate": 0.03}],
    "ensemble": [FULL_BATCHES | {"map_members": True, "learning_rate": 0.03}],
    "mnf": [
        FULL_BATCHES | {"learning_rate": 0.01, "keep_best": False} | extra for extra in ({"multiplicative": False}, {})
    ],
    "sgld": [
        CHAINS | FULL_BATCHES,
        CHAINS | FULL_BATCHES | {"step_size": 0.005},
        CHAINS | SMALL_BATCHES,
        CHAINS | SMALL_BATCHES | {"batches": "epochs"},
        CHAINS | FULL_BATCHES | {"algorithm": "psgld"},
        CHAINS | FULL_BATCHES | {"algorithm": "sghmc"},
        CHAINS | SMALL_BATCHES | {"algorithm": "sghmc"},
        CHAINS | SMALL_BATCHES | {"algorithm": "sghmc", "batches": "epochs"},
    ],
    "apd": [
        CHAINS
        | FULL_BATCHES
        | {
            "samples": 4000,
            "student_steps": 1500,
            "student_learning_rate": 3e-3,
            "student_batch": 256,
            "gradient_penalty": 1.0,
            "student_average": 0.998,
        }
    ],
    "hmc": [{"chains": 20, "samples": 1000}],
}
"""Settings to try that differ from a method's defaults, by method; where none are named, the defaults."""

COLUMNS = (
    "inputs", "method", "settings", "networks", "mean_error_max", "mean_error_rms", "covariance_error", "temperature",
    "kl", "seconds",
)  # fmt: skip
Row = dict[str, Any]


def row(inputs: int, method: str, settings: str, networks: int | None, found: MomentErrors, seconds: float = 0) -> Row:
    return {
        "inputs": inputs,
        "method": method,
        "settings": settings,
        "networks": networks,
        "seconds": seconds or None,
        **asdict(found),
    }


def fit(problem: LinearRegression, kind: type[WeightPosterior], settings: Mapping[str, Any], budget: int) -> Row:
    """Fit one method; the comparison of its draws."""
    posterior = problem.build(kind, kind.Config(**settings))
    summary = posterior.fit(problem.data, budget=budget, seed=0)
    vectors = problem.vectors(posterior.sample(DRAWS, seed=0))
    return {"networks": len(vectors), "found": compare(problem, vectors), "seconds": summary.seconds}


def closed_form(problem: LinearRegression, config: Any) -> Any:
    """Covariance of the chain that ``sgld`` simulates with these settings; None where no closed form is known."""
    full = config.batch_size >= len(problem.x)
    if config.schedule != "constant" or not (full or config.batches == "independent"):
        return None
    batch_size = None if full else config.batch_size
    match config.algorithm:
        case "sgld":
            return sgld_covariance(problem, config.step_size, batch_size)
        case "sghmc":
            return sghmc_covariance(problem, config.step_size, config.friction, batch_size)
    return None


def measure(kinds: Mapping[str, type[WeightPosterior]], budget: int) -> Iterator[Row]:
    """All rows, as they are measured; what a method refuses is said and left out."""
    for inputs in DIMENSIONS:
        problem = LinearRegression.make(inputs)
        yield row(inputs, "exact draws", "", DRAWS, compare(problem, problem.draws(DRAWS)))
        best = compare_moments(problem, problem.mean, problem.factorised_covariance)
        yield row(inputs, "best factorised Gaussian", "", None, best)
        for name, kind in kinds.items():
            for settings in SETTINGS.get(name, [{}]):
                words = ", ".join(f"{key}={value}" for key, value in settings.items())
                try:
                    result = fit(problem, kind, settings, budget)
                except (BayesBenchError, ValueError) as error:
                    click.echo(f"{inputs} inputs, {name} {words}: {error}")
                    continue
                yield row(inputs, name, words, result["networks"], result["found"], result["seconds"])
                covariance = closed_form(problem, kind.Config(**settings)) if name == "sgld" else None
                if covariance is not None:
                    found = compare_moments(problem, problem.mean, covariance)
                    yield row(inputs, f"{name}, closed form", words, None, found)


def text(value: Any) -> str:
    """A cell: three digits, and nothing where there is nothing."""
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def markdown(rows: list[Row]) -> str:
    lines = ["| " + " | ".join(column.replace("_", " ") for column in COLUMNS) + " |", "| --- " * len(COLUMNS) + "|"]
    lines += ["| " + " | ".join(text(line[column]) for column in COLUMNS) + " |" for line in rows]
    return "\n".join(lines) + "\n"


def run(kinds: Mapping[str, type[WeightPosterior]], out: Path, budget: int) -> list[Row]:
    """Measure the methods and write both tables."""
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    with (out / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for line in measure(kinds, budget):
            writer.writerow({column: text(line[column]) for column in COLUMNS})
            file.flush()  # what is done stays when the run is ended
            rows.append(line)
    (out / "table.md").write_text(markdown(rows), encoding="utf-8")
    return rows


@click.command()
@click.argument("names", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), default="reports/runs/conjugate", show_default=True)
@click.option("--budget", default=2_000_000, show_default=True, help="Gradient evaluations of each fit.")
def main(names: tuple[str, ...], out: Path, budget: int) -> None:
    """Compare the methods NAMES, or all that are registered, with exact posteriors."""
    torch.set_num_threads(1)
    try:
        kinds = {name: method_class(name) for name in names or methods()}
    except BayesBenchError as error:
        raise click.ClickException(str(error)) from error
    click.echo(markdown(run(kinds, out, budget)))


if __name__ == "__main__":
    main()
