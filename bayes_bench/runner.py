"""Runs jobs: builds tasks, fits, draws once, predicts, measures, and writes one record per job.

Letters: S networks drawn, N examples, K outputs, D target dimensions, P parameters or points of a curve.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from bayes_bench import machine, reference, registry, store
from bayes_bench.errors import BayesBenchError, DataError, UsageError, named
from bayes_bench.jobs import Job, Observer, device_class, expected_seconds
from bayes_bench.likelihood import RESERVED
from bayes_bench.measure import measure, measure_again
from bayes_bench.posterior import WeightPosterior, WeightSamples, resolve_device
from bayes_bench.suite import REFERENCE_SUFFIX, CustomNetworkSpec, SuiteSpec
from bayes_bench.tasks import Standardiser, Task, build_task
from bayes_bench.training import FitSummary, Monitor

NETWORKS = 100
"""Networks in a job's draw (fewer where the support is smaller); every metric speaks of these same networks."""
OUTPUT_BYTES = 64 * 2**20
"""Memory for the outputs of one chunk of examples."""
GRAM_BYTES = 32 * 2**20
"""Memory for the float64 copy of one chunk of weights."""
TIMED_INPUTS = 500
SMALL_NETWORK = 10_000
"""Parameters below which a job gets one thread: more were measured to gain nothing there, and on a machine that is
busy otherwise threads that wait for each other at every tiny step made such jobs ten times slower."""
LOWEST_LOG_PROB = float(np.finfo(np.float16).min)
PROGRESS_SECONDS = 0.2


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        finished, failed, skipped: jobs run to the end, failed, and found finished.
        report: the HTML file.
    """

    run_dir: Path
    finished: int
    failed: int
    skipped: int
    total: int
    interrupted: bool
    report: Path

    @property
    def exit_code(self) -> int:
        """0, or 1 with a failed job, or 130 after Ctrl-C."""
        return 130 if self.interrupted else int(self.failed > 0)


@dataclass(frozen=True)
class Keyed:
    """A job that its data have given a key and a folder."""

    job: Job
    task: Task
    key: str
    variant: str
    folder: Path


def run(
    jobs: Sequence[Job],
    run_dir: Path,
    *,
    suites: Sequence[SuiteSpec] = (),
    device: str = "auto",
    precision: Literal["float32", "tf32"] = "float32",
    threads: int | None = None,
    fresh: bool = False,
    data_root: Path | None = None,
    allow_code: Sequence[Path] = (),
    command: Sequence[str] = (),
    observer: Observer | None = None,
) -> RunResult:
    """Run jobs one after the other into a run folder, and render its report.

    A job whose record is there and valid is skipped. A job that raises becomes a failed record and the others
    go on. After Ctrl-C the finished jobs are rendered and the result says ``interrupted``.

    Args:
        jobs: from ``jobs.plan``, in the order they are run.
        run_dir: made where it is not; a run folder is continued.
        suites: kept in ``run.json``, for readers.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        precision: of products on a GPU. PyTorch's own default for convolutions there is ``"tf32"``; ours is not.
        threads: CPU threads of PyTorch while the run lasts; default: the physical cores this process may use, but
            one for networks below ``SMALL_NETWORK``. The caller's own number is put back.
        fresh: run finished jobs again.
        data_root: folder of the benchmark data, as in ``tasks.build_task``.
        allow_code: Python files that a network may come from.
        command: the command line, kept in ``run.json``.
        observer: told about progress.

    Raises:
        UsageError: no such device, tf32 without a GPU, a folder that cannot be written or is in use, a budget too small
            for a method's settings, a reference that is missing or of another posterior; nothing was run.
        UnsupportedNetworkError: a method cannot treat a task's network; nothing was run.
        DataError: data are missing or damaged; nothing was written.
        PluginError: a method is broken; nothing was written.
    """
    from bayes_bench import report

    observer = observer or Observer()
    store.check_run_dir(run_dir)
    place = resolve_device(device)
    if precision == "tf32" and place.type != "cuda":
        raise UsageError("precision tf32 is a GPU's; run without --precision, or with --device cuda")
    for method in {job.method for job in jobs}:
        registry.method_class(method)
    keyed = _keyed(jobs, run_dir, device_class(place.type, precision), data_root, allow_code)
    _preflight(keyed)
    _check_references(keyed, observer)
    counts = {"finished": 0, "failed": 0, "skipped": 0}
    interrupted = False
    with store.locked(run_dir), settled(place, precision):
        machine_facts = {**_machine(place), "precision": precision}
        _write_plan(run_dir, keyed, suites, command, machine_facts)
        warm_up()
        clock = _Clock(keyed)
        outdated = 0
        for number, item in enumerate(keyed, start=1):
            try:
                state = store.job_state(item.folder, item.key)
                if state.kind == "damaged":
                    observer.message(f"{state.problem}; the job runs again")
                if state.kind == "finished" and not fresh:
                    assert state.record is not None
                    outdated += state.record.get("code") != _code(item, allow_code)
                    record, seconds = _with_reference_of(item, state.record, observer), None
                    counts["skipped"] += 1
                    clock.skip(item)
                else:
                    started = time.perf_counter()
                    observer.started(item.job, number, len(keyed), clock.begin(item))
                    with limited_threads(threads or default_threads(item.task)):
                        record = execute(item, place, machine_facts, allow_code, _Monitor(item.job, observer, clock))
                    seconds = time.perf_counter() - started
                    counts["finished" if record["status"] == "ok" else "failed"] += 1
                    clock.end(item, seconds)
                observer.finished(item.job, number, len(keyed), record, seconds, clock.left(0.0))
            except KeyboardInterrupt:
                interrupted = True
                break
        if outdated:
            observer.message(
                f"the code has changed since {outdated} of the finished jobs were run; --fresh runs them again"
            )
        path = report.write(run_dir)
    return RunResult(run_dir, **counts, total=len(keyed), interrupted=interrupted, report=path)


def _preflight(keyed: Sequence[Keyed]) -> None:
    """What methods would refuse is refused before the first job trains: all of it at once.

    Raises:
        BayesBenchError: of the type of the first refusal.
    """
    answers: dict[str, BayesBenchError | None] = {}
    refused: dict[tuple[str, str], BayesBenchError] = {}
    for item in keyed:
        if item.variant not in answers:
            answers[item.variant] = _refusal(item)
        if error := answers[item.variant]:
            refused.setdefault((item.job.task.name, item.job.label), error)
    if not refused:
        return
    sentences: dict[str, str] = {}
    for (task, label), error in refused.items():
        sentences.setdefault(str(error), f"{task}/{label}: {error}")
    unfit = {label for _, label in refused}
    others = [label for label in dict.fromkeys(item.job.label for item in keyed) if label not in unfit]
    remedy = f" (without {', '.join(sorted(unfit))}: --methods {','.join(others)})" if others else ""
    first = next(iter(refused.values()))
    raise type(first)("; ".join(sentences.values()) + remedy) from first


def _refusal(item: Keyed) -> BayesBenchError | None:
    try:
        build_posterior(item.job, item.task).check_fit(item.task.fit_data, item.job.budget)
    except BayesBenchError as error:
        return error
    except Exception:
        return None  # a mistake in the method: its job will fail and be a row of the report
    return None


def _check_references(keyed: Sequence[Keyed], observer: Observer) -> None:
    """What a task names as its reference must be one of its posterior, and is looked at before the first job trains.

    A shipped reference may differ in the data alone where an installation renders or reads them differently: then
    its metrics are n/a and the run goes on.
    """
    for task in {item.job.task.model_dump_json(): item.task for item in keyed}.values():
        name = task.spec.reference
        if name is None:
            continue
        fields = task_fields(task)
        try:
            found = reference.load(name)
            shipped_elsewhere = not name.endswith(REFERENCE_SUFFIX) and reference.differences(found, fields) == ["data"]
            if not shipped_elsewhere:
                reference.check(found, fields)
        except (UsageError, DataError) as error:
            raise type(error)(
                f"task {task.spec.name!r}: {error}; make it with a run without the task's key 'reference', then: "
                f"bayes-bench reference RUN METHOD --task {task.spec.name} --out FILE"
            ) from error
        if shipped_elsewhere:
            observer.message(
                f"task {task.spec.name!r}: no distances to the reference {name!r}, whose data are not exactly those of "
                "this installation"
            )


def _with_reference_of(item: Keyed, record: dict[str, Any], observer: Observer) -> dict[str, Any]:
    """The record of a finished job, measured anew where its task now names another reference."""
    name = item.job.task.reference
    if record["task_spec"].get("reference") == name:
        return record
    try:
        return measure_again(item.folder, record | {"task_spec": record["task_spec"] | {"reference": name}})
    except DataError as error:
        observer.message(f"{item.job.name} is not compared with the reference {name!r}: {error}")
        return record


def build_tasks(jobs: Sequence[Job], data_root: Path | None = None, allow_code: Sequence[Path] = ()) -> dict[str, Task]:
    """Every task once, by the JSON of its specification."""
    tasks: dict[str, Task] = {}
    for job in jobs:
        name = job.task.model_dump_json()
        if name not in tasks:
            tasks[name] = build_task(job.task, data_root, tuple(allow_code))
    return tasks


def default_threads(task: Task) -> int:
    """CPU threads of a job for which the user has set none; depends on the network and the machine alone."""
    small = sum(p.numel() for p in task.build_network(0).parameters()) < SMALL_NETWORK
    return 1 if small else machine.physical_cores()


def derived_seed(seed: int, purpose: str) -> int:
    """A seed of 48 bits for one purpose of a job (``network``, ``fit``, ``sample``), unrelated to the others."""
    return int.from_bytes(hashlib.sha256(f"{purpose}:{seed}".encode()).digest()[:6], "big")


# One job --------------------------------------------------------------------------------------------------


def execute(
    item: Keyed,
    device: torch.device,
    machine_facts: Mapping[str, Any],
    allow_code: Sequence[Path],
    monitor: _Monitor,
) -> dict[str, Any]:
    """Fit, draw, predict, measure, store. Whatever the method raises becomes a failed record.

    Returns:
        The record as written.

    Raises:
        UsageError: the results cannot be written.
        KeyboardInterrupt: passed on; the job then leaves no trace.
    """
    started = datetime.now(UTC)
    record = _record_before(item, started, machine_facts, allow_code)
    log = [f"{started.isoformat(timespec='seconds')} {item.job.name}, method {item.job.method}, key {item.key}"]
    predictions: dict[str, np.ndarray] | None = None
    posterior: WeightPosterior | None = None
    with warnings.catch_warnings(record=True) as caught:
        try:
            posterior, measured, predictions = _fit_and_predict(item, device, monitor)
            record |= measured
            record |= measure(predictions, record) | {"status": "ok"}
        except Exception as error:
            # Any exception of a method or a metric: this row fails, the other jobs go on.
            record["error"] = named(error)
            log.append(traceback.format_exc().rstrip())
            predictions = posterior = None
    log += [f"warning: {warning.category.__name__}: {warning.message}" for warning in caught]
    log += [f"note: {note}" for note in (record["fit"] or {}).get("notes", ())]
    log += [f"alarm: {alarm}" for alarm in record["alarms"]]
    finished = datetime.now(UTC)
    record["finished"] = finished.isoformat(timespec="seconds")
    log.append(f"{record['finished']} {record['status']}" + (f": {record['error']}" if record["error"] else ""))
    return store.write_job(
        item.folder,
        record,
        predictions=predictions,
        save_posterior=posterior.save if posterior else None,
        log="\n".join(log) + "\n",
    )


def _fit_and_predict(
    item: Keyed, device: torch.device, monitor: _Monitor
) -> tuple[WeightPosterior, dict[str, Any], dict[str, np.ndarray]]:
    job, task = item.job, item.task
    own_peak = machine.reset_peak_memory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    posterior, fit, weights = fit_and_draw(job, task, device, monitor)
    networks = len(next(iter(weights.values())))
    predictions = predict_task(posterior, weights, task)
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
            "history": fit.history,
            "diagnostics": fit.diagnostics,
            "notes": list(fit.notes),
        },
        "cost": cost,
        "weight_layers": list(layer_sizes),
        "weight_sizes": layer_sizes | {"all": sum(_size(w) for name, w in weights.items() if _is_weight(name))},
    }
    return posterior, measured, predictions


def build_posterior(job: Job, task: Task) -> WeightPosterior:
    """The job's posterior, not fitted yet."""
    return registry.method_class(job.method)(
        task.build_network(derived_seed(job.seed, "network")),
        task.likelihood,
        task.prior,
        registry.resolve_config(job.method, job.config),
    )


def fit_and_draw(
    job: Job, task: Task, device: torch.device, monitor: Monitor | None = None
) -> tuple[WeightPosterior, FitSummary, WeightSamples]:
    """A fitted posterior, what the fit cost, and the one draw that every metric of the job speaks of."""
    posterior = build_posterior(job, task)
    seed = derived_seed(job.seed, "fit")
    fit = posterior.fit(task.fit_data, budget=job.budget, seed=seed, device=device, monitor=monitor)
    return posterior, fit, posterior.sample(NETWORKS, seed=derived_seed(job.seed, "sample"))


def predict_task(posterior: WeightPosterior, weights: WeightSamples, task: Task) -> dict[str, np.ndarray]:
    """The stored predictions of a job, apart from those about weights: ``test/log_probs``, ``ood/NAME/log_probs`` etc.

    Classification stores log probabilities as float16 ``[S, N, C]``, 2·S·N·C bytes: 20 MB for 10,000 images,
    100 networks and 10 classes. Regression stores float32 ``[S, N, D]`` in the units of the targets.
    """
    units = task.standardiser
    found: dict[str, np.ndarray] = {}
    sets = {"test": task.test.x}
    if task.fit_data.validation:
        sets["validation"] = task.fit_data.validation.x
    sets |= {f"ood/{name}": x for name, x in task.ood.items()}
    sets |= {f"validation_ood/{name}": x for name, x in task.validation_ood.items()}
    if task.curve_x is not None:
        sets["curve"] = task.curve_x
    for name, x in sets.items():
        found |= {f"{name}/{key}": values for key, values in predict(posterior, weights, x, units).items()}
    if task.likelihood.kind == "classification":
        for name, x in sets.items():
            found[f"{name}/mean_intensity"] = x.flatten(1).double().mean(1).float().numpy()
    found["test/y"] = raw_targets(task.test.y, units)
    if task.fit_data.validation:
        found["validation/y"] = raw_targets(task.fit_data.validation.y, units)
    if task.curve_x is not None:
        found["curve/x"] = _raw_inputs(task.curve_x, units)
        found["train/x"] = _raw_inputs(task.fit_data.train.x, units)
        found["train/y"] = raw_targets(task.fit_data.train.y, units)[:, 0]
    return found


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


def layer_names(network: nn.Module) -> dict[str, str]:
    """Parameters of two or more dimensions → how tables call their layer.

    A layer with a name keeps it (``encoder.first``); one that only has a number in an ``nn.Sequential`` is called
    by its kind and its place among these (``conv1``, ``conv2``, ``linear1``).
    """
    kinds: dict[str, int] = {}
    names: dict[str, str] = {}
    parameters = [name for name, p in network.named_parameters() if p.dim() >= 2]
    for parameter in parameters:
        path, _, last = parameter.rpartition(".")
        module = network.get_submodule(path)
        kind = type(module).__name__.lower().rstrip("0123456789d") or "layer"
        kind = "conv" if kind.startswith("conv") else kind
        kinds[kind] = kinds.get(kind, 0) + 1
        numbered = all(part.isdigit() for part in path.split("."))
        name = f"{kind}{kinds[kind]}" if path and numbered else path
        names[parameter] = name if last == "weight" and name else parameter
    # A user's module may itself be called "conv1": then every layer goes by its parameter's name.
    return names if len({*names.values(), "all"}) == len(names) + 1 else {name: name for name in parameters}


def _gram(value: Tensor) -> Tensor:
    """Gram matrix ``[S, S]`` of one parameter's samples ``[S, *shape]``, on the CPU."""
    networks = value.shape[0]
    if value.stride(0) == 0:
        return torch.full((networks, networks), float(value[0].double().square().sum()), dtype=torch.float64)
    flat = value.flatten(1)
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


def _record_before(
    item: Keyed, started: datetime, machine_facts: Mapping[str, Any], allow_code: Sequence[Path]
) -> dict[str, Any]:
    """A record with all that is known before training; as it is, the record of a failure."""
    job, task = item.job, item.task
    return {
        "format": store.FORMAT,
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
        "alarms": [],
        "reference": None,
        "code": _code(item, allow_code),
        "versions": machine.versions(registry.methods()[job.method].owner),
        "machine": {**machine_facts, "threads": torch.get_num_threads()},
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


def _keyed(
    jobs: Sequence[Job],
    run_dir: Path,
    device: str,
    data_root: Path | None,
    allow_code: Sequence[Path],
) -> list[Keyed]:
    tasks = build_tasks(jobs, data_root, allow_code)
    found = []
    for job in jobs:
        task = tasks[job.task.model_dump_json()]
        key, variant = job.key(task.checksum, device), job.variant(task.checksum, device)
        folder = store.job_folder(run_dir, job.task.name, job.label, job.seed, key)
        found.append(Keyed(job, task, key, variant, folder))
    return found


def _write_plan(
    run_dir: Path,
    keyed: Sequence[Keyed],
    suites: Sequence[SuiteSpec],
    command: Sequence[str],
    machine_facts: Mapping[str, Any],
) -> None:
    plan = {
        "format": store.FORMAT,
        "command": list(command),
        "suites": [suite.model_dump(mode="json") for suite in suites],
        "methods": list(dict.fromkeys(item.job.label for item in keyed)),
        "seeds": list(dict.fromkeys(item.job.seed for item in keyed)),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": machine.versions(""),
        "machine": dict(machine_facts),
        "jobs": [
            {
                "key": item.key,
                "suite": item.job.suite,
                "task": item.job.task.name,
                "label": item.job.label,
                "seed": item.job.seed,
                "folder": item.folder.relative_to(run_dir).as_posix(),
            }
            for item in keyed
        ],
    }
    try:
        store.write_json(run_dir / store.RUN, plan)
    except OSError as error:
        raise UsageError(f"cannot write to {run_dir}: {error.strerror or error}") from error


def _machine(device: torch.device) -> dict[str, Any]:
    return {
        "processor": machine.processor(),
        "cores": machine.physical_cores(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "memory_gb": machine.memory_gb(),
    }


def _code(item: Keyed, allow_code: Sequence[Path]) -> dict[str, str]:
    """Hashes of the code that a job's results come from, to notice that it has changed."""
    import sys

    here = Path(__file__).resolve().parent
    core = ["posterior.py", "training.py", "likelihood.py", "prior.py", "networks.py", "tasks.py", "stacked"]
    file = Path(str(sys.modules[registry.method_class(item.job.method).__module__].__file__)).resolve()
    found = {"core": machine.code_hash([here / name for name in core])}
    # A method in a package may use its neighbours: all of the package counts.
    in_package = (file.parent / "__init__.py").exists()
    found["method"] = machine.code_hash([file.parent if in_package else file])
    if isinstance(item.job.task.network, CustomNetworkSpec):
        found["network"] = machine.code_hash([Path(path) for path in allow_code])
    return found


# Surroundings ---------------------------------------------------------------------------------------------


@contextmanager
def limited_threads(number: int) -> Iterator[None]:
    """CPU threads of PyTorch and of NumPy's linear algebra; both are put back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        with threadpool_limits(number, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def settled(device: torch.device, precision: str = "float32") -> Iterator[None]:
    """Determinism and precision for the run; the caller's settings are put back afterwards."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    backends: Any = torch.backends
    rounding = [backends.cuda.matmul, backends.cudnn.conv] if device.type == "cuda" else []
    before = [place.fp32_precision for place in rounding]
    for place in rounding:
        place.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        for place, value in zip(rounding, before, strict=True):
            place.fp32_precision = value


def warm_up() -> None:
    """PyTorch imports its compiler at the first optimiser step, a second that no job should pay for."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter])
    parameter.square().sum().backward()
    optimizer.step()


class _Clock:
    """Time left, from the jobs of the same kind that this run has seen, else from what the tasks say."""

    def __init__(self, keyed: Sequence[Keyed]):
        self._ahead = list(keyed)
        self._seen: dict[tuple[str, str], list[float]] = {}
        self._current: Keyed | None = None
        self._started = 0.0

    def begin(self, item: Keyed) -> float | None:
        self._ahead.remove(item)
        self._current, self._started = item, time.perf_counter()
        return self.left(0.0)

    def skip(self, item: Keyed) -> None:
        self._ahead.remove(item)

    def end(self, item: Keyed, seconds: float) -> None:
        self._current = None
        self._seen.setdefault((item.job.task.name, item.job.label), []).append(seconds)

    def left(self, fraction: float) -> float | None:
        """Seconds, or None while any job's duration is unknown."""
        waiting = [self._expected(item) for item in self._ahead]
        current = 0.0
        if self._current is not None:
            elapsed = time.perf_counter() - self._started
            expected = self._expected(self._current)
            # Early in a job its own pace says little: trust it as far as the job has got.
            pace = elapsed / fraction if fraction > 0.02 else None
            if expected is None and pace is None:
                return None
            total = (
                pace if expected is None else expected if pace is None else fraction * pace + (1 - fraction) * expected
            )
            current = max(0.0, (total or 0.0) - elapsed)
            waiting = [total if seconds is None else seconds for seconds in waiting]
        known = [seconds for seconds in waiting if seconds is not None]
        return current + sum(known) if len(known) == len(waiting) else None

    def _expected(self, item: Keyed) -> float | None:
        job = item.job
        seen = self._seen.get((job.task.name, job.label))
        if seen:
            return statistics.fmean(seen)
        same_task = [statistics.fmean(all_) for (task, _), all_ in self._seen.items() if task == job.task.name]
        if same_task:
            return statistics.fmean(same_task)
        return expected_seconds(job)


class _Monitor:
    """Passes a fit's progress on, a few times a second."""

    def __init__(self, job: Job, observer: Observer, clock: _Clock):
        self._job, self._observer, self._clock = job, observer, clock
        self._next = 0.0

    def progress(self, spent: float, budget: int, values: Mapping[str, float]) -> None:
        now = time.perf_counter()
        if now >= self._next:
            self._next = now + PROGRESS_SECONDS
            fraction = min(1.0, spent / budget)
            self._observer.progress(self._job, fraction, values, self._clock.left(fraction))
