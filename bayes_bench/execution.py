"""One job: fit, draw once, predict, measure, and write its record. Imported by the runner, its executors and tuning.

Letters: S networks drawn, N examples, K outputs, D target dimensions, P parameters or points of a curve.
"""

from __future__ import annotations

import hashlib
import platform
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from threadpoolctl import threadpool_info
from torch import Tensor, nn

from bayes_bench import memory
from bayes_bench.errors import named
from bayes_bench.gallery import gallery
from bayes_bench.host import machine
from bayes_bench.host.stopping import Stop
from bayes_bench.jobs import Job, device_class
from bayes_bench.methods import registry
from bayes_bench.metrics.measure import measure
from bayes_bench.networks import layer_names
from bayes_bench.posterior.base import WeightPosterior, WeightSamples
from bayes_bench.posterior.likelihood import RESERVED
from bayes_bench.posterior.snapshots import EVERY, Snapshots
from bayes_bench.posterior.stacked import take
from bayes_bench.posterior.surroundings import is_small, limited_threads, settled, warm_up
from bayes_bench.posterior.training import FitSummary, Monitor
from bayes_bench.results.folder import SNAPSHOTS, check_new_record, write_job
from bayes_bench.results.schema import FORMAT
from bayes_bench.tasks.spec import CustomNetworkSpec
from bayes_bench.tasks.task import Standardiser, Task

NETWORKS = 100
"""Networks in a job's draw (fewer where the support is smaller); every metric speaks of these same networks."""
OUTPUT_BYTES = 64 * 2**20
"""Memory for the outputs of one chunk of examples."""
GRAM_BYTES = 32 * 2**20
"""Memory for the float64 copy of one chunk of weights."""
INTENSITY_ROWS = 256
TIMED_INPUTS = 500
LOWEST_LOG_PROB = float(np.finfo(np.float16).min)


@dataclass(frozen=True)
class Conditions:
    """How the jobs of a run are computed, the same for all of them.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        precision: of products on a GPU.
        threads: CPU threads of a job; None lets ``default_threads`` choose.
        data_root: folder of the benchmark data, as in ``tasks.build_task``.
        allow_code: Python files that a network may come from.
        snapshot_every: between two snapshots of a fit.
        memory_limit_mb: for the intermediate values of one evaluation of networks.
        parallel_jobs: how many jobs share the machine's memory; changes no result.
        method_files: methods that come from files, as ``registry.add_file`` takes them.
    """

    device: str
    precision: Literal["float32", "tf32"] = "float32"
    threads: int | None = None
    data_root: Path | None = None
    allow_code: tuple[Path, ...] = ()
    snapshot_every: float = EVERY
    memory_limit_mb: int = machine.MEMORY_LIMIT_MB
    parallel_jobs: int = 1
    method_files: tuple[str, ...] = ()

    @property
    def device_class(self) -> str:
        """What a job's key says of them, beside the memory limit."""
        return device_class(self.device, self.precision)


class JobMonitor(Monitor, Protocol):
    """Whoever watches a job."""

    def message(self, sentence: str) -> None:
        """Something the user should know of the job; its name is to be put before the sentence."""


@dataclass(frozen=True)
class Keyed:
    """A job that its data have given a key and a folder."""

    job: Job
    task: Task
    key: str
    variant: str
    folder: Path


def default_threads(task: Task) -> int:
    """CPU threads of a job for which the user has set none; depends on the network and the machine alone."""
    return 1 if is_small(task.build_network(0)) else machine.physical_cores()


def derived_seed(seed: int, purpose: str) -> int:
    """A seed of 48 bits for one purpose of a job (``network``, ``fit``, ``sample``), unrelated to the others."""
    return int.from_bytes(hashlib.sha256(f"{purpose}:{seed}".encode()).digest()[:6], "big")


# One job --------------------------------------------------------------------------------------------------


def execute(
    item: Keyed, conditions: Conditions, monitor: JobMonitor | None = None, stop: Stop | None = None
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
    device = torch.device(conditions.device)
    snapshots = Snapshots(
        item.folder / SNAPSHOTS,
        {"job": item.key, "code": code_of(item.job, conditions.allow_code), "torch": torch.__version__},
        every=conditions.snapshot_every,
        stop=stop,
        **({"tell": monitor.message} if monitor else {}),
    )
    threads = conditions.threads or default_threads(item.task)
    with (
        settled(device, conditions.precision),
        limited_threads(threads),
        warnings.catch_warnings(record=True) as caught,
    ):
        warm_up()
        started = datetime.now(UTC)
        record = _record_before(item, started, conditions)
        log = [_first_line(item, started)]
        predictions: dict[str, np.ndarray] | None = None
        posterior: WeightPosterior | None = None
        try:
            posterior, measured, predictions = _fit_and_predict(item, conditions, monitor, snapshots)
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
    settings = [name for name in job.config if name in memory.SETTINGS]
    method = f", {', '.join(settings)} of {job.method}" if settings else ""
    return f"{named(error)} (memory ran out; lower --memory-limit, the number of parallel jobs{method}, or the network)"


def write_failure(item: Keyed, conditions: Conditions, error: str, log: str) -> dict[str, Any]:
    """Write the failed record of a job that could not do it itself: its process died or took too long.

    Snapshots stay, so that the job goes on from there when it is run again.

    Args:
        error: in one line.
        log: the rest of what is known.

    Raises:
        StorageError: it cannot be written.
    """
    now = datetime.now(UTC)
    record = _record_before(item, now, conditions) | {"error": error}
    record["finished"] = record["started"]
    record["machine"]["threads"] = conditions.threads or default_threads(item.task)
    lines = [_first_line(item, now), log, f"{record['finished']} failed: {error}"]
    return write_job(item.folder, record, log="\n".join(lines) + "\n")


def _first_line(item: Keyed, started: datetime) -> str:
    return f"{started.isoformat(timespec='seconds')} {item.job.name}, method {item.job.method}, key {item.key}"


def _fit_and_predict(
    item: Keyed, conditions: Conditions, monitor: Monitor | None, snapshots: Snapshots
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
    predictions = predict_task(posterior, weights, task)
    if task.likelihood.kind == "classification":
        shown = {"test": task.test.inputs()} | {f"ood/{name}": x for name, x in task.ood.items()}
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
            "diagnostics": fit.diagnostics,
            "notes": list(fit.notes),
        },
        "cost": cost,
        "weight_layers": list(layer_sizes),
        "weight_sizes": layer_sizes | {"all": sum(_size(w) for name, w in weights.items() if _is_weight(name))},
    }
    return posterior, measured, predictions


def build_posterior(job: Job, task: Task, memory_limit_mb: int = machine.MEMORY_LIMIT_MB) -> WeightPosterior:
    """The job's posterior, not fitted yet."""
    posterior = registry.method_class(job.method)(
        task.build_network(derived_seed(job.seed, "network")),
        task.likelihood,
        task.prior,
        registry.resolve_config(job.method, job.config),
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
    seed = derived_seed(job.seed, "fit")
    fit = posterior.fit(
        task.fit_data, budget=job.budget, seed=seed, device=device, monitor=monitor, snapshots=snapshots
    )
    return posterior, fit, posterior.sample(NETWORKS, seed=derived_seed(job.seed, "sample"))


def predict_task(posterior: WeightPosterior, weights: WeightSamples, task: Task) -> dict[str, np.ndarray]:
    """The stored predictions of a job, apart from those about weights: ``test/log_probs``, ``ood/NAME/log_probs`` etc.

    Classification stores log probabilities as float16 ``[S, N, C]``, 2·S·N·C bytes: 20 MB for 10,000 images,
    100 networks and 10 classes. Regression stores float32 ``[S, N, D]`` in the units of the targets.
    """
    units = task.standardiser
    found: dict[str, np.ndarray] = {}
    sets = {"test": task.test.inputs()}
    if task.fit_data.validation:
        sets["validation"] = task.fit_data.validation.inputs()
    sets |= {f"ood/{name}": x for name, x in task.ood.items()}
    sets |= {f"validation_ood/{name}": x for name, x in task.validation_ood.items()}
    if task.curve_x is not None:
        sets["curve"] = task.curve_x
    for name, x in sets.items():
        found |= {f"{name}/{key}": values for key, values in predict(posterior, weights, x, units).items()}
    if task.likelihood.kind == "classification":
        for name, x in sets.items():
            found[f"{name}/mean_intensity"] = _mean_intensity(x)
    found["test/y"] = raw_targets(task.test.y, units)
    if task.fit_data.validation:
        found["validation/y"] = raw_targets(task.fit_data.validation.y, units)
    if task.curve_x is not None:
        found["curve/x"] = _raw_inputs(task.curve_x, units)
        found["train/x"] = _raw_inputs(task.fit_data.train.inputs(), units)
        found["train/y"] = raw_targets(task.fit_data.train.y, units)[:, 0]
    return found


def _mean_intensity(x: Tensor) -> np.ndarray:
    """Mean of each input, ``[N]``, in parts: all of a set in float64 would be twice the set."""
    means = np.empty(len(x), np.float32)
    for start in range(0, len(x), INTENSITY_ROWS):
        part = x[start : start + INTENSITY_ROWS].flatten(1).double()
        means[start : start + INTENSITY_ROWS] = part.mean(1).float().numpy()
    return means


def predict(
    posterior: WeightPosterior, weights: WeightSamples, x: Tensor, units: Standardiser
) -> dict[str, np.ndarray]:
    """Predictive distributions of all networks on standardised inputs x ``[N, ...]``, in bounded chunks of examples.

    Returns:
        ``log_probs`` float16 ``[S, N, C]``; or ``mean`` and ``noise_std`` float32 ``[S, N, D]`` in raw units.
    """
    networks = len(next(iter(weights.values())))
    rows = max(1, OUTPUT_BYTES // (4 * networks * posterior.likelihood.output_width))
    found: dict[str, np.ndarray] = {}
    for start in range(0, len(x), rows):
        outputs = posterior.outputs(x[start : start + rows], weights)
        for name, values in posterior.likelihood.predict(outputs, weights).items():
            piece = values.cpu().numpy()
            if name == "log_probs":
                # Below float16's range a log probability would become −infinity; −65,504 says as much.
                stored = np.maximum(piece, LOWEST_LOG_PROB).astype(np.float16)
            elif name == "mean":
                stored = (piece.astype(np.float64) * units.y_std + units.y_mean).astype(np.float32)
            else:
                stored = (piece.astype(np.float64) * units.y_std).astype(np.float32)
            if name not in found:
                found[name] = np.empty((networks, len(x), *stored.shape[2:]), stored.dtype)
            found[name][:, start : start + rows] = stored
    return found


def gram_matrices(network: nn.Module, weights: WeightSamples) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Gram matrices ``[S, S]`` (float64) of the networks' weight vectors: per layer, and ``all``.

    A layer is a parameter of two or more dimensions (the weight of a linear layer or a convolution), without
    its bias; ``all`` is every parameter of the network. Norms, distances and cosines follow from them.

    Returns:
        The matrices, and the number of weights of each layer in the network's order.
    """
    names = layer_names(network)
    grams: dict[str, np.ndarray] = {}
    networks = len(next(iter(weights.values())))
    total = torch.zeros(networks, networks, dtype=torch.float64)
    for parameter, value in weights.items():
        if not _is_weight(parameter):
            continue
        gram = _gram(value)
        total += gram
        if parameter in names:
            grams[names[parameter]] = gram.numpy()
    sizes = {layer: _size(weights[parameter]) for parameter, layer in names.items()}
    return grams | {"all": total.numpy()}, sizes


def _gram(value: Tensor) -> Tensor:
    """Gram matrix ``[S, S]`` of one parameter's samples ``[S, *shape]``, on the CPU."""
    networks = value.shape[0]
    if value.stride(0) == 0:
        return torch.full((networks, networks), float(value[0].double().square().sum()), dtype=torch.float64)
    # Of factors a passing copy: their product, once made, would be kept for as long as the draw.
    flat = take(value, 0, networks).flatten(1)
    columns = max(1, GRAM_BYTES // (8 * networks))
    total = torch.zeros(networks, networks, dtype=torch.float64, device=value.device)
    for start in range(0, flat.shape[1], columns):
        part = flat[:, start : start + columns].double()
        total += part @ part.T
    return total.cpu()


def _is_weight(name: str) -> bool:
    return not name.startswith(RESERVED)


def _size(value: Tensor) -> int:
    return value[0].numel()


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


def raw_targets(y: Tensor, units: Standardiser) -> np.ndarray:
    """Targets as the task's metrics need them: class indices, or standardised values back in their own units."""
    if units.y_mean.size == 0:
        return y.numpy()
    return np.asarray(y.double().numpy() * units.y_std + units.y_mean, dtype=np.float32)


def _raw_inputs(x: Tensor, units: Standardiser) -> np.ndarray:
    """One-dimensional inputs ``[N, 1]`` in raw units, ``[N]``."""
    return np.asarray(x.double().numpy() * units.x_std + units.x_mean, dtype=np.float32).reshape(-1)


# Records --------------------------------------------------------------------------------------------------


def _record_before(item: Keyed, started: datetime, conditions: Conditions) -> dict[str, Any]:
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
            "input_shape": list(task.test.x.shape[1:]),
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
            "ood": {name: len(x) for name, x in task.ood.items()},
            "validation_ood": {name: len(x) for name, x in task.validation_ood.items()},
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
    """Hashes of the code that a job's results come from, to notice that it has changed."""
    here = Path(__file__).resolve().parent
    modules = ("posterior", "training", "examples", "likelihood", "prior", "networks", "tasks")
    core = [*(f"{name}.py" for name in modules), "stacked"]
    file = Path(str(sys.modules[registry.method_class(job.method).__module__].__file__)).resolve()
    found = {"core": machine.code_hash([here / name for name in core])}
    # A method in a package may use its neighbours: all of the package counts.
    in_package = (file.parent / "__init__.py").exists()
    found["method"] = machine.code_hash([file.parent if in_package else file])
    if isinstance(job.task.network, CustomNetworkSpec):
        found["network"] = machine.code_hash([Path(path) for path in allow_code])
    return found


# Surroundings ---------------------------------------------------------------------------------------------
