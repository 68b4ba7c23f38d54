"""Random search over the settings of each method, on validation and validation-OOD data only.

    python benchmarks/tuning/random_search.py digits hypergan --trials 32 --out digits-hypergan.jsonl

Every method gets the same number of trials at the suite's full budget, two training seeds each, none of
which the suites use. Test data and the reported out-of-distribution sets are never touched. One JSON line
per trial; the same command continues an unfinished search.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import click
import numpy as np
import torch

from bayes_bench.metrics import auroc
from bayes_bench.registry import method_class
from bayes_bench.suite import load_suite
from bayes_bench.tasks import Task, build_task

SEEDS = (100, 101)
SPACES = {
    "hypergan": {
        ("networks", "batch_size"): [(4, 16), (8, 8), (4, 32)],
        "generator_hidden": [(64,), (128,)],
        "weight_gain": [0.3, 0.4, 0.577],
        "weight_noise": [0.2, 0.3, 0.4, 0.5, 0.6],
        "prior_weight": [1.0, 2.0, 3.0],
        "learning_rate": [2e-3, 4e-3, 6e-3, 1e-2],
        "adversarial_weight": [0.1, 1.0],
        "fixed_generator_scale": [0.0, 0.5],
    },
    "mcdropout": {
        "drop_rate": [0.05, 0.1, 0.15, 0.2, 0.3, 0.5],
        "where": ["all", "linear", "last"],
        "batch_size": [32, 64, 128],
        "learning_rate": [1e-3, 3e-3, 1e-2],
    },
    "ensemble": {
        "members": [3, 5, 10],
        "batch_size": [16, 32, 64],
        "learning_rate": [1e-3, 3e-3, 1e-2],
        "map_members": [False, True],
        "adversarial_epsilon": [0.0, 0.01],
    },
    "map": {"batch_size": [16, 32, 64, 128], "learning_rate": [1e-3, 2e-3, 3e-3, 5e-3, 1e-2]},
}


def draw(space: dict, rng: random.Random) -> dict:
    settings = {}
    for key, values in space.items():
        value = rng.choice(values)
        settings.update(zip(key, value, strict=True) if isinstance(key, tuple) else [(key, value)])
    return settings


def evaluate(task: Task, method: str, settings: dict, seed: int) -> dict[str, float]:
    """Validation scores of one fit and one draw of 100 networks."""
    kind = method_class(method)
    posterior = kind(task.build_network(seed), task.likelihood, task.prior, kind.Config(**settings))
    summary = posterior.fit(task.fit_data, budget=task.spec.budget, seed=seed)
    weights = posterior.sample(100, seed=seed)
    scores = posterior.validation_scores(task.fit_data, weights) | {"seconds": summary.seconds}
    if task.likelihood.kind == "classification":
        inside = posterior.predict(task.fit_data.validation.x, weights)
        for name, x in task.validation_ood.items():
            outside = posterior.predict(x, weights)
            scores[f"auroc_{name}"] = auroc(inside.entropy.numpy(), outside.entropy.numpy())
    return scores


@click.command()
@click.argument("suite")
@click.argument("method", type=click.Choice(sorted(SPACES)))
@click.option("--trials", default=32, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON lines; continued where it exists.")
@click.option("--data-root", type=click.Path(path_type=Path))
def main(suite: str, method: str, trials: int, out: Path, data_root: Path | None) -> None:
    torch.set_num_threads(1)
    (spec,) = load_suite(suite).tasks
    task = build_task(spec, data_root)
    done = len(out.read_text().splitlines()) if out.exists() else 0
    for trial in range(done, trials):
        settings = draw(SPACES[method], random.Random(f"{suite} {trial}"))
        scores = [evaluate(task, method, settings, seed) for seed in SEEDS]
        mean = {key: float(np.mean([score[key] for score in scores])) for key in scores[0]}
        with out.open("a") as file:
            file.write(json.dumps({"trial": trial, "settings": settings, **mean}) + "\n")


if __name__ == "__main__":
    main()
