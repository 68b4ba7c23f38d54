"""What a record says of task, machine and code."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_info

from bayes_bench.host import machine
from bayes_bench.host.shipped import PACKAGE
from bayes_bench.jobs.job import Conditions, Job, PlacedJob
from bayes_bench.methods import registry
from bayes_bench.methods.code import code_of_method
from bayes_bench.metrics.measure import measuring_code
from bayes_bench.results.schema import FORMAT
from bayes_bench.tasks.spec import CustomNetworkSpec
from bayes_bench.tasks.task import Task

CORE = ("posterior", "tasks", "jobs", "networks.py")
"""What a job's predictions depend on beside its method, in the package. Its data are told by their checksum."""


def derived_seed(seed: int, purpose: str) -> int:
    """A seed of 48 bits for one purpose of a job (``network``, ``fit``, ``sample``), unrelated to the others."""
    return int.from_bytes(hashlib.sha256(f"{purpose}:{seed}".encode()).digest()[:6], "big")


def record_before(item: PlacedJob, started: datetime, conditions: Conditions) -> dict[str, Any]:
    """A record with all that is known before training; as it is, the record of a failure."""
    job, task = item.job, item.task
    return {
        "format": FORMAT,
        "key": item.key,
        "variant": item.variant,
        "status": "failed",
        "error": None,
        "suite": job.suite,
        "task": job.task.name,
        "task_title": job.task.title,
        "label": job.label,
        "method": job.method,
        "seed": job.seed,
        "revision": job.revision,
        "seeds": {purpose: derived_seed(job.seed, purpose) for purpose in ("network", "fit", "sample")},
        "config": job.config,
        "settings": job.settings,
        "uses_prior": None,
        "support": None,
        "kind": task.likelihood.kind,
        "budget": {"total": job.budget, "spent": None, "unspent": None},
        "fit": None,
        "cost": None,
        "networks": None,
        **task_fields(task),
        "weight_layers": [],
        "weight_sizes": {},
        "metrics": [],
        "collapse": None,
        "alarms": [],
        "reference": None,
        "code": code_of(item.job, conditions.allow_code),
        "checkout": machine.checkout(),
        "versions": machine.versions(registry.methods()[job.method].owner),
        "machine": machine_facts(conditions) | {"threads": torch.get_num_threads()},
        "started": started.isoformat(timespec="seconds"),
        "finished": None,
        "files": {},
    }


def task_fields(task: Task) -> dict[str, Any]:
    """What a record says of its task alone."""
    validation = task.fit_data.validation
    return {
        "likelihood": repr(task.likelihood),
        "prior": asdict(task.prior),
        "network": {
            "spec": task.spec.network.model_dump(mode="json"),
            "input_shape": list(task.input_shape),
            "outputs": task.likelihood.output_width,
            "parameters": sum(p.numel() for p in task.build_network(0).parameters()),
        },
        "data": {
            "checksum": task.checksum,
            "n_train": len(task.fit_data.train),
            "n_validation": len(validation) if validation else 0,
            "n_test": len(task.test),
            "classes": list(task.classes),
            "features": list(task.features),
            "preparation": task.preparation.as_json() if task.preparation else None,
            "ranges": {"low": task.ranges[0].tolist(), "high": task.ranges[1].tolist()} if task.ranges else None,
            "ood": {name: len(part) for name, part in task.sets_of("ood").items()},
            "validation_ood": {name: len(part) for name, part in task.sets_of("validation_ood").items()},
            "missing_ood": dict(task.missing_ood),
            "notes": list(task.notes),
            "standardiser": {name: value.tolist() for name, value in vars(task.standardiser).items()},
        },
        "task_spec": task.spec.model_dump(mode="json"),
    }


def machine_facts(conditions: Conditions) -> dict[str, Any]:
    """What a record says of the machine."""
    cuda = conditions.device == "cuda"
    return {
        "processor": machine.processor(),
        "cores": machine.physical_cores(),
        "platform": platform.platform(),
        # The machine that starts a run on a cluster need not have the device.
        "device": torch.cuda.get_device_name() if cuda and torch.cuda.is_available() else conditions.device,
        "device_class": conditions.device_class,
        "memory_gb": machine.memory_gb(),
        "memory_limit_mb": conditions.memory_limit_mb,
        "precision": conditions.precision,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "linear_algebra": linear_algebra(),
    }


def linear_algebra() -> list[str]:
    """The libraries behind matrix products and their threads, e.g. ``openblas 0.3.27 SkylakeX pthreads``."""
    import scipy.linalg  # noqa: F401 (brings a library of its own, which is loaded sooner or later)

    found = set()
    for library in threadpool_info():
        words = [library.get(name) for name in ("internal_api", "version", "architecture", "threading_layer")]
        found.add(" ".join(str(word) for word in words if word))
    if torch.backends.mkl.is_available():
        found.add("mkl (in torch)")
    if torch.version.cuda:
        found.add(f"cuda {torch.version.cuda}, cudnn {torch.backends.cudnn.version()}")
    return sorted(found)


def code_of(job: Job, allow_code: Sequence[Path]) -> dict[str, str]:
    """Hashes of the code that a job's results come from, to notice that it has changed: whole folders, not a list.

    Returns:
        ``core``: what every job is fitted, drawn and predicted with; ``method``: its own; ``metrics``: what is measured
        afterwards, and can be measured anew; ``network``: the files of a network that is the user's own.
    """
    found = {
        "core": machine.code_hash([PACKAGE / part for part in CORE]),
        "method": machine.code_hash(code_of_method(registry.method_class(job.method))),
        "metrics": measuring_code(),
    }
    if isinstance(job.task.network, CustomNetworkSpec):
        found["network"] = machine.code_hash([Path(path) for path in allow_code])
    return found
