"""One job: fit, draw once, predict, measure, and write its record.

Letters: S networks drawn, N examples, K outputs, D target dimensions, P parameters or points of a curve.
"""

from __future__ import annotations

import statistics
import time
import traceback
import warnings
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayes_bench.errors import named
from bayes_bench.host import machine
from bayes_bench.host.stopping import Stop
from bayes_bench.jobs import memory
from bayes_bench.jobs.gallery import gallery
from bayes_bench.jobs.given import TABLE, against_given
from bayes_bench.jobs.job import Conditions, Job, PlacedJob
from bayes_bench.jobs.predictions import elements, gram_matrices, is_weight, predict_task
from bayes_bench.jobs.provenance import code_of, derived_seed, record_before
from bayes_bench.jobs.watch import FitProgress, Watch
from bayes_bench.methods import registry
from bayes_bench.metrics.measure import measure
from bayes_bench.posterior.base import WeightPosterior, WeightSamples
from bayes_bench.posterior.checks import SEEDS
from bayes_bench.posterior.snapshots import Snapshots
from bayes_bench.posterior.surroundings import is_small, limited_threads, settled, warm_up
from bayes_bench.posterior.training import FitSummary, Monitor
from bayes_bench.results.folder import SNAPSHOTS, check_new_record, write_job
from bayes_bench.results.sets import KINDS, kind_of
from bayes_bench.settings import fields_told
from bayes_bench.tasks.task import Task

NETWORKS = 100
"""Networks in a job's draw (fewer where the support is smaller); every metric speaks of these same networks."""
TIMED_INPUTS = 500


def default_threads(task: Task) -> int:
    """CPU threads of a job for which the user has set none; depends on the network and the machine alone."""
    return 1 if is_small(task.build_network(0)) else machine.physical_cores()


def execute(
    item: PlacedJob, conditions: Conditions, watch: Watch | None = None, stop: Stop | None = None
) -> dict[str, Any]:
    """Fit, draw, predict, measure, store. Whatever the method raises becomes a failed record.

    A fit that was interrupted goes on from the snapshots in the job's folder.

    Args:
        stop: a request ends the job with ``KeyboardInterrupt``, a fit that keeps snapshots after another one.

    Returns:
        The record as written.

    Raises:
        UsageError: the results cannot be written.
        KeyboardInterrupt: passed on; the job then has no record.
    """
    device, watch = torch.device(conditions.device), watch or Watch()
    code = code_of(item.job, conditions.allow_code)
    del code["metrics"]  # a fit does not depend on what is measured afterwards
    snapshots = Snapshots(
        item.folder / SNAPSHOTS,
        {"job": item.key, "code": code, "torch": torch.__version__},
        every=conditions.snapshot_every,
        stop=stop,
        tell=watch.message,
    )
    threads = conditions.threads or default_threads(item.task)
    with (
        settled(device, conditions.precision),
        limited_threads(threads),
        warnings.catch_warnings(record=True) as caught,
    ):
        warm_up()
        started = datetime.now(UTC)
        record = record_before(item, started, conditions)
        log = [_first_line(item, started)]
        predictions: dict[str, np.ndarray] | None = None
        posterior: WeightPosterior | None = None
        try:
            posterior, measured, predictions = _fit_and_predict(item, conditions, FitProgress(watch), snapshots)
            check_new_record(record | measured)  # a plug-in's fit may say anything of itself
            record |= measured
            record |= measure(predictions, record) | {"status": "ok"}
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # Anything else that a method or a metric raises, sys.exit too: this row fails, the other jobs go on.
            record["error"] = reason(error, item.job)
            log.append(traceback.format_exc().rstrip())
            predictions = posterior = None
    log += [f"warning: {warning.category.__name__}: {warning.message}" for warning in caught]
    log += [f"note: {note}" for note in (record["fit"] or {}).get("notes", ())]
    log += [f"alarm: {alarm}" for alarm in record["alarms"]]
    record["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
    log.append(f"{record['finished']} {record['status']}" + (f": {record['error']}" if record["error"] else ""))
    return write_job(
        item.folder,
        record,
        predictions=predictions,
        save_posterior=posterior.save if posterior else None,
        log="\n".join(log) + "\n",
    )


def reason(error: BaseException, job: Job) -> str:
    """Why the job failed, in one line; where memory ran out, with what lowers the need of it."""
    if not memory.ran_out(error):
        return named(error)
    settings = fields_told(registry.config_class(job.method), "memory", True)
    method = f", {', '.join(settings)} of {job.method}" if settings else ""
    return f"{named(error)} (memory ran out; lower --memory-limit, the number of parallel jobs{method}, or the network)"


def write_failure(item: PlacedJob, conditions: Conditions, error: str, log: str) -> dict[str, Any]:
    """Write the failed record of a job that could not do it itself: its process died or took too long.

    Snapshots stay, so that the job goes on from there when it is run again.

    Args:
        error: in one line.
        log: the rest of what is known.

    Raises:
        StorageError: it cannot be written.
    """
    now = datetime.now(UTC)
    record = record_before(item, now, conditions) | {"error": error}
    record["finished"] = record["started"]
    record["machine"]["threads"] = conditions.threads or default_threads(item.task)
    lines = [_first_line(item, now), log, f"{record['finished']} failed: {error}"]
    return write_job(item.folder, record, log="\n".join(lines) + "\n")


def _first_line(item: PlacedJob, started: datetime) -> str:
    return f"{started.isoformat(timespec='seconds')} {item.job.name}, method {item.job.method}, key {item.key}"


def _fit_and_predict(
    item: PlacedJob, conditions: Conditions, monitor: Monitor, snapshots: Snapshots
) -> tuple[WeightPosterior, dict[str, Any], dict[str, np.ndarray]]:
    job, task, device = item.job, item.task, torch.device(conditions.device)
    check_memory(job, task, conditions)
    own_peak = machine.reset_peak_memory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    posterior, fit, weights = fit_and_draw(
        job, task, device, monitor, snapshots, memory_limit_mb=conditions.memory_limit_mb
    )
    networks = len(next(iter(weights.values())))
    given = against_given(posterior, weights, task) if job.task.start == "given" else {}
    predictions = predict_task(posterior, weights, task)
    if task.likelihood.kind == "classification":
        shown = {name: part.inputs() for name, part in task.sets.items() if KINDS[kind_of(name)].pictured}
        predictions |= gallery(predictions, shown, task.standardiser)
    grams, layer_sizes = gram_matrices(posterior.network, weights)
    predictions |= {f"weights/gram/{name}": gram for name, gram in grams.items()}
    cost: dict[str, Any] = {
        "fit_seconds": fit.seconds,
        "predict_seconds_per_1000": _time_prediction(posterior, weights, task.test.x[:TIMED_INPUTS]),
        "parameters_stored": fit.parameters_stored,
        "peak_memory_mb": machine.peak_memory_mb(),
        "peak_memory_of": (
            "resident memory of the process during the job, with libraries and data"
            if own_peak
            else "resident memory of the process since its start, with earlier jobs"
        ),
    }
    if device.type == "cuda":
        cost["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated(device) / 2**20
    measured = {
        "uses_prior": posterior.uses_prior,
        "support": posterior.support,
        "networks": networks,
        "budget": {"total": fit.budget, "spent": fit.spent, "unspent": fit.unspent},
        "fit": {
            "seconds": fit.seconds,
            "steps": fit.steps,
            "stopped": fit.stopped,
            "interruptions": fit.interruptions,
            "history": fit.history,
            "diagnostics": fit.diagnostics | given,
            "tables": [*registry.diagnostic_tables(job.method), *([asdict(TABLE)] if given else [])],
            "notes": list(fit.notes),
        },
        "cost": cost,
        "weight_layers": list(layer_sizes),
        "weight_sizes": layer_sizes | {"all": sum(elements(w) for name, w in weights.items() if is_weight(name))},
    }
    return posterior, measured, predictions


def build_posterior(job: Job, task: Task, memory_limit_mb: int = machine.MEMORY_LIMIT_MB) -> WeightPosterior:
    """The job's posterior, not fitted yet."""
    spec = job.task
    posterior = registry.method_class(job.method)(
        task.build_network(derived_seed(job.seed, "network")),
        task.likelihood,
        task.prior,
        registry.resolve_config(job.method, job.config),
        start=spec.start,
        bayesian=spec.bayesian if isinstance(spec.bayesian, str) else list(spec.bayesian),
        batch_norm=spec.batch_norm,
    )
    posterior.memory_limit = memory_limit_mb * 2**20
    return posterior


def check_memory(job: Job, task: Task, conditions: Conditions) -> None:
    """Whether the job can fit into memory, before it is tried.

    Raises:
        MemoryLimitError: it cannot, by the sizes alone.
        BayesBenchError: the method refuses the task or its budget.
    """
    posterior = build_posterior(job, task, conditions.memory_limit_mb)
    memory.estimate(posterior, task, job.budget, NETWORKS, conditions.device).check(conditions.parallel_jobs)


def fit_and_draw(
    job: Job,
    task: Task,
    device: torch.device,
    monitor: Monitor | None = None,
    snapshots: Snapshots | None = None,
    *,
    memory_limit_mb: int = machine.MEMORY_LIMIT_MB,
) -> tuple[WeightPosterior, FitSummary, WeightSamples]:
    """A fitted posterior, what the fit cost, and the one draw that every metric of the job speaks of."""
    posterior = build_posterior(job, task, memory_limit_mb)
    seed = derived_seed(job.seed, "fit") % SEEDS
    fit = posterior.fit(
        task.fit_data, budget=job.budget, seed=seed, device=device, monitor=monitor, snapshots=snapshots
    )
    return posterior, fit, posterior.sample(NETWORKS, seed=derived_seed(job.seed, "sample") % SEEDS)


def _time_prediction(posterior: WeightPosterior, weights: WeightSamples, x: Tensor) -> float:
    """Seconds for 1,000 inputs with all networks of the draw: median of 3, after the predictions warmed up."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        posterior.likelihood.predict(posterior.outputs(x, weights), weights)
        if posterior.device.type == "cuda":
            torch.cuda.synchronize(posterior.device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds) * 1000 / len(x)
