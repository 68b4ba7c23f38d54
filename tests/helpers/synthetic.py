"""Run folders with made-up results, written with NumPy only: what the runner would leave, without training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bayes_bench import metrics
from bayes_bench.results import folder as store
from bayes_bench.results.schema import canonical_hash, write_json

LAYERS = {"conv1": 144, "conv2": 4608, "linear1": 640}


@dataclass(frozen=True)
class Method:
    """A made-up method: how many networks, how well they do, how much they differ."""

    label: str
    support: int | None
    uses_prior: bool
    signal: float
    spread_in: float
    spread_out: float
    settings: Mapping[str, Any]
    config: Mapping[str, Any]
    seconds: float


METHODS = {
    "hypergan": Method(
        "hypergan",
        None,
        False,
        4.6,
        0.8,
        2.4,
        {"adversarial_weight": 0.5},
        {"adversarial_weight": 0.5, "hidden": [64, 64], "mixer": True, "learning_rate": 0.001},
        9.4,
    ),
    "mcdropout": Method("mcdropout", None, True, 4.2, 1.1, 1.3, {}, {"rate": 0.2, "learning_rate": 0.001}, 4.1),
    "ensemble": Method("ensemble", 5, True, 4.8, 0.9, 2.1, {}, {"members": 5, "learning_rate": 0.001}, 4.9),
    "map": Method("map", 1, True, 4.5, 0.0, 0.0, {}, {"learning_rate": 0.001}, 3.8),
}
VERSIONS = {
    "bayes_bench": "0.1.0",
    "method": "bayes-bench 0.1.0",
    "numpy": "2.0.0",
    "python": "3.11.0",
    "torch": "2.10.0",
}
MACHINE = {"processor": "Example CPU", "cores": 2, "threads": 2, "device": "cpu", "memory_gb": 8.0}


def task_spec(kind: str) -> dict[str, Any]:
    """What the suites' digits and cubic tasks look like in a record."""
    if kind == "classification":
        return {
            "name": "digits",
            "title": "8×8 handwritten digits against rendered letters",
            "data": {"source": "digits"},
            "network": {"name": "convnet", "channels": [16, 32], "kernel": 3, "hidden": [], "activation": "leaky_relu"},
            "likelihood": {"name": "categorical"},
            "prior": {"std": 1.0, "scaling": "none"},
            "budget": 400_000,
            "ood": [{"source": "letters", "name": "letters"}],
            "validation_ood": [{"source": "letters", "name": "letters-kt"}],
            "curve": None,
            "published": [
                {
                    "method": "hypergan",
                    "metric": "accuracy",
                    "value": 0.9931,
                    "source": "Paper A",
                    "note": "no error bars",
                },
                {"method": "ensemble", "metric": "nll", "value": 0.016, "source": "Paper B", "note": ""},
                {"method": "apd", "metric": "accuracy", "value": 0.9861, "source": "Paper A", "note": "from memory"},
            ],
            "settings": {},
        }
    return {
        "name": "cubic",
        "title": "y = x³ with noise, 20 points",
        "data": {"source": "cubic", "exclude": [-1.0, 1.5]},
        "network": {"name": "mlp", "hidden": [100], "activation": "relu"},
        "likelihood": {"name": "gaussian", "noise_std": 3.0},
        "prior": {"std": 1.0, "scaling": "none"},
        "budget": 60_000,
        "ood": [],
        "validation_ood": [],
        "curve": {"low": -6.0, "high": 6.0, "points": 121, "inside": [[-4.0, -1.0], [1.5, 4.0]], "gap": [[-1.0, 1.5]]},
        "settings": {},
    }


def class_predictions(
    method: Method,
    seed: int,
    networks: int,
    examples: int,
    ood: Mapping[str, int],
    classes: int = 10,
    shape: Sequence[int] = (1, 8, 8),
) -> dict[str, np.ndarray]:
    """Log probabilities of networks that agree more on their own data than elsewhere."""
    data = np.random.default_rng(7)  # the same examples for all methods and seeds
    rng = np.random.default_rng([seed, sum(map(ord, method.label))])

    def log_probs(base: np.ndarray, spread: float) -> np.ndarray:
        logits = base + spread * rng.normal(size=(networks, *base.shape)) + 0.3 * rng.normal(size=base.shape)
        logits -= logits.max(axis=-1, keepdims=True)
        return (logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))).astype(np.float16)

    found: dict[str, np.ndarray] = {}
    for part, count in (("test", examples), ("validation", max(20, examples // 4))):
        y = data.integers(0, classes, count)
        difficulty = data.gamma(4.0, 0.25, (count, 1))
        base = method.signal * difficulty * np.eye(classes)[y] + data.normal(size=(count, classes)) * 0.8
        found[f"{part}/log_probs"] = log_probs(base, method.spread_in)
        found[f"{part}/y"] = y.astype(np.int64)
        found[f"{part}/mean_intensity"] = data.normal(size=count).astype(np.float32)
    for name, count in ood.items():
        base = data.normal(size=(count, classes)) * 1.6
        found[f"{name}/log_probs"] = log_probs(base, method.spread_out)
        found[f"{name}/mean_intensity"] = data.normal(0.2, 1.0, count).astype(np.float32)
    for name in ("test", *(name for name in ood if name.startswith("ood/"))):
        pixels = np.random.default_rng(13).integers(0, 256, (found[f"{name}/log_probs"].shape[1], *shape), np.uint8)
        order = np.argsort(metrics.summarise(found[f"{name}/log_probs"], ()).entropy, kind="stable")
        index = np.concatenate([order[:8], order[-8:]])
        found |= {f"{name}/images": pixels[index], f"{name}/image_index": index}
    return found


def value_predictions(method: Method, seed: int, networks: int, curve: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Cubic curves whose spread grows away from the data."""
    data = np.random.default_rng(11)
    rng = np.random.default_rng([seed, sum(map(ord, method.label))])
    intervals = np.array(curve["inside"])

    def sample(count: int) -> np.ndarray:
        chosen = intervals[data.integers(0, len(intervals), count)]
        return chosen[:, 0] + (chosen[:, 1] - chosen[:, 0]) * data.random(count)

    shape = rng.normal(size=(networks, 3))
    bias = 2 * rng.normal()

    def functions(x: np.ndarray) -> np.ndarray:
        outside = np.maximum(np.abs(x) - 4, 0)
        inside = method.spread_in * (shape[:, :1] + shape[:, 1:2] * np.sin(x))
        truth = np.clip(x**3, -64, 64) + 30 * np.sign(x) * outside
        return (truth + bias * np.cos(x) + inside + 14 * method.spread_out * shape[:, 2:] * outside)[..., None]

    found: dict[str, np.ndarray] = {}
    for part, count in (("test", 200), ("validation", 20), ("train", 20)):
        x = sample(count)
        y = x**3 + 3 * data.normal(size=count)
        if part == "train":
            found |= {"train/x": x.astype(np.float32), "train/y": y.astype(np.float32)}
            continue
        mean = functions(x).astype(np.float32)
        found |= {f"{part}/mean": mean, f"{part}/noise_std": np.full_like(mean, 3.0)}
        found[f"{part}/y"] = y[:, None].astype(np.float32)
    grid = np.linspace(curve["low"], curve["high"], curve["points"])
    mean = functions(grid).astype(np.float32)
    return found | {
        "curve/x": grid.astype(np.float32),
        "curve/mean": mean,
        "curve/noise_std": np.full_like(mean, 3.0),
    }


def grams(method: Method, seed: int, networks: int, layers: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Gram matrices of weight vectors that share a mean."""
    rng = np.random.default_rng([seed, 5])
    total = np.zeros((networks, networks))
    found = {}
    for name, size in layers.items():
        dimensions = min(size, 60)
        shared = rng.normal(size=dimensions)
        weights = shared + 0.4 * method.spread_in * rng.normal(size=(networks, dimensions))
        found[f"weights/gram/{name}"] = weights @ weights.T
        total += found[f"weights/gram/{name}"]
    return found | {"weights/gram/all": total}


def make_job(
    method: Method,
    seed: int,
    kind: str = "classification",
    *,
    networks: int = 100,
    examples: int = 300,
    ood: Mapping[str, int] | None = None,
    spec: Mapping[str, Any] | None = None,
    budget_scale: float = 1.0,
    **changes: Any,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Record and predictions of one job; ``changes`` replace fields of the record before it is measured."""
    spec = dict(spec or task_spec(kind))
    drawn = networks if method.support is None else min(networks, method.support)
    sizes = {"ood/letters": 250, "validation_ood/letters-kt": 60} if ood is None else ood
    if kind == "classification":
        predictions = class_predictions(method, seed, drawn, examples, sizes)
        layers = LAYERS
    else:
        predictions = value_predictions(method, seed, drawn, spec["curve"])
        layers = {"linear1": 100, "linear2": 100}
    predictions |= grams(method, seed, drawn, layers)
    budget = int(spec["budget"] * budget_scale)
    spent = budget * (0.8 if method.label == "mcdropout" else 1.0)
    steps = np.linspace(0.1, 1, 10)
    variant = canonical_hash([spec, method.label, method.config, budget])
    record: dict[str, Any] = {
        "format": 1,
        "key": canonical_hash([variant, seed]),
        "variant": variant,
        "status": "ok",
        "error": None,
        "suite": spec["name"],
        "task": spec["name"],
        "task_title": spec["title"],
        "label": method.label,
        "method": method.label,
        "seed": seed,
        "config": dict(method.config),
        "settings": dict(method.settings),
        "uses_prior": method.uses_prior,
        "support": method.support,
        "kind": kind,
        "budget": {"total": budget, "spent": spent, "unspent": budget - spent},
        "fit": {
            "seconds": method.seconds + 0.1 * seed,
            "steps": 1000,
            "stopped": "early" if spent < budget else "budget",
            "history": [
                {
                    "evaluations": float(spent * part),
                    "loss": float(2 * math.exp(-4 * part) + 0.1),
                    "val_nll": float(1.5 * math.exp(-4 * part) + 0.2 + 0.01 * seed),
                    "disagreement": float(0.3 * method.spread_in * math.exp(-2 * part)),
                }
                | (
                    {
                        "val_accuracy": float(0.97 - 0.5 * math.exp(-5 * part) - 0.002 * seed),
                        "mutual_information": float(0.2 * method.spread_in * math.exp(-2 * part)),
                    }
                    if kind == "classification"
                    else {"val_rmse": float(0.2 + math.exp(-4 * part)), "epistemic_std": 0.05 * method.spread_out}
                )
                | {f"weight_spread/{name}": 0.1 * method.spread_in * math.exp(-part) for name in layers if drawn > 1}
                for part in steps
            ],
            "notes": [],
        },
        "cost": {
            "fit_seconds": method.seconds + 0.1 * seed,
            "predict_seconds_per_1000": 0.02 * drawn,
            "parameters_stored": 5000 * (drawn if method.support else 8),
            "peak_memory_mb": 512.0,
        },
        "networks": drawn,
        "likelihood": "Categorical(10)" if kind == "classification" else "Gaussian(noise_std=3.0, dimensions=1)",
        "prior": {"std": 1.0, "scaling": "none"},
        "network": {
            "spec": spec["network"],
            "input_shape": [1, 8, 8] if kind == "classification" else [1],
            "outputs": 10 if kind == "classification" else 1,
            "parameters": 5418,
        },
        "data": {
            "checksum": canonical_hash(spec["data"]),
            "n_train": 800 if kind == "classification" else 20,
            "n_validation": len(predictions["validation/y"]),
            "n_test": len(predictions["test/y"]),
            "classes": [str(c) for c in range(10)] if kind == "classification" else [],
            "ood": {name.split("/")[1]: n for name, n in sizes.items() if name.startswith("ood/")}
            if kind == "classification"
            else {},
            "validation_ood": {},
            "missing_ood": {},
            "notes": ["letters A–J rendered from fonts stand in for notMNIST; they are not notMNIST"]
            if kind == "classification"
            else [],
            "standardiser": {},
        },
        "task_spec": spec,
        "weight_layers": list(layers),
        "weight_sizes": layers | {"all": 5418},
        "metrics": [],
        "collapse": None,
        "alarms": [],
        "code": {"core": "0" * 16, "method": "1" * 16},
        "versions": VERSIONS,
        "machine": MACHINE,
        "started": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:04:15+00:00",
        "files": {},
    } | changes
    if record["status"] == "ok":
        record["metrics"] = metrics.compute(predictions, record)
        record["collapse"] = metrics.collapse(predictions, record)
        record["alarms"] = metrics.alarms(predictions, record)
    return record, predictions


def write_job(run_dir: Path, record: Mapping[str, Any], predictions: Mapping[str, np.ndarray] | None) -> Path:
    """Store a job as the runner does."""
    folder = store.job_folder(run_dir, record["task"], record["label"], record["seed"], record["key"])
    store.write_job(folder, record, predictions=predictions if record["status"] == "ok" else None)
    return folder


def write_plan(run_dir: Path, records: Sequence[Mapping[str, Any]], **changes: Any) -> None:
    """``run.json`` of an invocation that planned the jobs of ``records``."""
    run_dir.mkdir(parents=True, exist_ok=True)
    plan = {
        "format": 1,
        "command": ["bayes-bench", "run", "digits", "cubic", "--methods", "hypergan,mcdropout,ensemble,map"],
        "suites": [],
        "methods": list(dict.fromkeys(record["label"] for record in records)),
        "seeds": sorted({record["seed"] for record in records}),
        "created": "2026-01-02T03:04:05+00:00",
        "versions": VERSIONS,
        "machine": MACHINE,
        "jobs": [{name: record[name] for name in ("key", "suite", "task", "label", "seed")} for record in records],
    }
    write_json(run_dir / store.RUN, plan | changes)


def write_run(
    run_dir: Path,
    *,
    labels: Sequence[str] = tuple(METHODS),
    seeds: Sequence[int] = (0, 1, 2),
    kinds: Sequence[str] = ("classification", "regression"),
    **options: Any,
) -> list[dict[str, Any]]:
    """A whole run folder; returns its records."""
    records = []
    for kind in kinds:
        for label in labels:
            for seed in seeds:
                record, predictions = make_job(METHODS[label], seed, kind, **options)
                write_job(run_dir, record, predictions)
                records.append(record)
    write_plan(run_dir, records)
    return records
