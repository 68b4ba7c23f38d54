"""Reference posteriors: what a long, Metropolis-corrected run predicts for a task, in one small file. Imports no torch.

A file is safetensors. Its metadata entry ``bayes_bench`` is JSON: which posterior (data, network, likelihood, prior),
which method and seeds, their diagnostics, and the *resolution*: the distances between two halves of the reference's
own networks. Arrays, for the sets ``test``, ``validation``, ``ood/NAME`` and ``curve`` (T networks, N inputs):

    SET/probs, SET/epistemic_variance    classification: p̄ [N, C] and Σ_c Var_s p_s(c) [N], float32
    SET/mean, SET/noise_std              regression: [T, N, D] of a thinned draw, in the targets' units;
                                         noise_std has size 1 along a dimension that does not change it
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from bayes_bench import metrics
from bayes_bench.errors import DataError, UsageError, unknown_name
from bayes_bench.host.files import replacing
from bayes_bench.host.shipped import REFERENCE_SUFFIX, reference_folder
from bayes_bench.metrics.distance import CATALOGUE, class_variance
from bayes_bench.metrics.registry import compute
from bayes_bench.results import schema
from bayes_bench.results.folder import finished_jobs, load_predictions, read_records, read_run
from bayes_bench.results.schema import canonical_hash
from bayes_bench.settings import check_values

FORMAT = 1
METADATA = "bayes_bench"
CURVE_NETWORKS = 500
WORST_RHAT = 1.1
LEAST_ROUNDING = 1e-6
"""Share of a standard deviation that may be rounded away."""
OTHER_NETWORKS = 200
"""Networks kept of a regression: most on the curve, where distances are measured; fewer elsewhere."""

Arrays = dict[str, NDArray[Any]]


class _Job(schema.Part):
    seed: schema.Count
    key: schema.Hash
    networks: schema.Positive
    diagnostics: dict[schema.Short, float | None]


class _About(schema.Part):
    """A reference's metadata, as readers rely on it."""

    identity: schema.Hash
    posterior: schema.Table
    task: schema.Short
    kind: Literal["classification", "regression"]
    method: schema.Short
    label: schema.Short
    uses_prior: bool | None
    budget: schema.Positive
    networks: schema.Positive
    jobs: Annotated[list[_Job], Field(min_length=1)]
    failed_seeds: list[schema.Count]
    resolution: dict[schema.Short, float]


@dataclass(frozen=True)
class Reference:
    """A reference posterior.

    Attributes:
        about: the metadata: ``posterior`` and its ``identity``, ``task``, ``kind``, ``method``, ``label``,
            ``uses_prior``, ``budget`` of a job, ``networks`` in all, ``jobs`` (``seed``, ``key``, ``networks``,
            ``diagnostics`` of each), ``failed_seeds``, ``resolution`` by metric, ``versions``, ``command``.
        arrays: as listed in the module's docstring.
    """

    about: Mapping[str, Any]
    arrays: Arrays

    @property
    def seeds(self) -> list[int]:
        return [job["seed"] for job in self.about["jobs"]]

    @property
    def diagnostics(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest value over the jobs of every number that the method reports about its fit."""
        found: dict[str, list[float]] = defaultdict(list)
        for job in self.about["jobs"]:
            for name, value in job["diagnostics"].items():
                if value is not None:
                    found[name].append(value)
        return {name: (min(values), max(values)) for name, values in found.items()}

    def cautions(self) -> list[str]:
        """Sentences on why it may be a poor reference; mostly none."""
        found = []
        if not self.about["uses_prior"]:
            found.append(f"{self.about['label']} ignores the prior: it samples no posterior of this task")
        ends = self.diagnostics
        if "acceptance" not in ends:
            found.append(f"{self.about['label']} reports no Metropolis acceptance: its bias is part of this reference")
        if "rhat_predictions" in ends and ends["rhat_predictions"][1] > WORST_RHAT:
            worst = ends["rhat_predictions"][1]
            found.append(f"R-hat of the predictions is up to {worst:.3g}: the chains have not mixed; run them longer")
        if failed := self.about["failed_seeds"]:
            found.append(f"left out, because their jobs failed: seeds {', '.join(map(str, failed))}")
        if len(self.about["jobs"]) == 1:
            found.append("one seed: two seeds or more show whether its chains agree")
        return found

    def facts(self) -> dict[str, Any]:
        """What the record of a job keeps of it, for readers of the report."""
        kept = ("identity", "method", "label", "networks", "resolution")
        return {name: self.about[name] for name in kept} | {
            "seeds": self.seeds,
            "diagnostics": {name: list(ends) for name, ends in self.diagnostics.items()},
        }


# Which posterior ------------------------------------------------------------------------------------------


def posterior_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What defines a posterior and the inputs it predicts, from the fields of a record.

    Read are ``data``, ``network``, ``likelihood``, ``prior`` and ``task_spec``; a task's fields are the same
    (``provenance.task_fields``). Numbers of the likelihood are rounded: standardisation makes their last digits differ
    between machines.
    """
    curve = record["task_spec"].get("curve")
    return {
        "data": record["data"]["checksum"],
        "network": {name: record["network"][name] for name in ("spec", "input_shape", "outputs")},
        "likelihood": re.sub(r"\d+\.\d+(e-?\d+)?", lambda found: f"{float(found[0]):.8g}", record["likelihood"]),
        "prior": dict(record["prior"]),
        "curve": {name: curve[name] for name in ("low", "high", "points")} if curve else None,
    }


def differences(reference: Reference, record: Mapping[str, Any]) -> list[str]:
    """Parts of ``posterior_of`` in which a job's (or a task's) posterior is not that of the reference."""
    own = posterior_of(record)
    if reference.about["identity"] == canonical_hash(own):
        return []
    return [name for name in own if reference.about["posterior"].get(name) != own[name]]


def check(reference: Reference, record: Mapping[str, Any]) -> None:
    """The reference must be of the posterior that the record's (or task's) fields define.

    Raises:
        UsageError: it is of another one; says what differs.
    """
    if found := differences(reference, record):
        name, verb = record["task_spec"]["reference"], "differs" if len(found) == 1 else "differ"
        raise UsageError(f"the reference {name!r} is of another posterior: {', '.join(found)} {verb}")


# Files ----------------------------------------------------------------------------------------------------


def load(name_or_path: str) -> Reference:
    """A shipped reference by its name, or a user's own by the path of its file.

    Raises:
        UsageError: no such reference.
        DataError: its file is damaged, or of a newer format.
    """
    from safetensors import SafetensorError, safe_open

    path = reference_path(name_or_path)
    if not path.is_file():
        if name_or_path.endswith(REFERENCE_SUFFIX):
            raise UsageError(f"the reference {path} does not exist")
        shipped = [file.stem for file in reference_folder().glob(f"*{REFERENCE_SUFFIX}")]
        raise UsageError(unknown_name("reference", name_or_path, shipped))
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get(METADATA, "null"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError) as error:
        raise DataError(f"the reference {path} is damaged: {error}") from error
    if not isinstance(about, dict) or not isinstance(about.get("format"), int) or "posterior" not in about:
        raise DataError(f"{path} is not a reference; make one with: bayes-bench reference RUN METHOD --out FILE")
    if about["format"] > FORMAT:
        raise DataError(f"{path} has format {about['format']}, this version reads up to {FORMAT}; update bayes-bench")
    try:
        check_values(about)
        schema.check(_About, about)
        _check_arrays(arrays)
    except (UsageError, DataError) as error:
        raise DataError(f"the reference {path} is damaged: {error}") from error
    return Reference(about, arrays)


def _check_arrays(arrays: Arrays) -> None:
    """Are these arrays of a reference? Whether they go with a job's predictions is looked at where they are compared.

    Raises:
        DataError: an array of another type or number of dimensions, or with values that are not finite.
    """
    dimensions = {"probs": 2, "epistemic_variance": 1, "mean": 3, "noise_std": 3}
    for name, array in arrays.items():
        single = array.dtype == np.float32 or (name.endswith("/mean") and array.dtype == np.float64)
        fits = single and array.ndim == dimensions.get(name.rpartition("/")[2]) and array.size > 0
        if not (fits and np.isfinite(array).all()):
            raise DataError(f"its array {name[:80]!a}, {array.dtype} {list(array.shape)}, is none of a reference")


def save(reference: Reference, path: Path) -> None:
    """Write the file, atomically; equal references give equal files.

    Raises:
        StorageError: no such folder, or not writable.
    """
    from safetensors.numpy import save as serialise

    metadata = {METADATA: json.dumps(reference.about, allow_nan=False)}
    content = serialise({name: np.ascontiguousarray(array) for name, array in reference.arrays.items()}, metadata)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


# Making one -----------------------------------------------------------------------------------------------


def make(run_dir: Path, label: str, task: str | None, out: Path) -> Reference:
    """Merge the finished jobs (all seeds) of one method and task into a reference, and write it.

    Args:
        run_dir: a run folder.
        label: the method's row in the tables.
        task: may be left out where the run has the method for one task only.
        out: the file, ``*.safetensors``.

    Raises:
        UsageError: no finished job of this kind, several tasks to choose from, jobs of different posteriors or
            settings, a file that cannot be written.
        DataError: stored predictions are damaged.
    """
    if out.suffix != REFERENCE_SUFFIX:
        raise UsageError(f"a reference is a file *{REFERENCE_SUFFIX}, got {out}")
    description = read_run(run_dir)
    jobs, failed = _jobs_of(run_dir, label, task, {job["key"] for job in description["jobs"]})
    records = [record for _, record in jobs]
    first = records[0]
    drawn = [load_predictions(folder) for folder, _ in jobs]
    suffix = "/log_probs" if first["kind"] == "classification" else ("/mean", "/noise_std")
    names = [name for name in drawn[0] if name.endswith(suffix) and not name.startswith("validation_ood/")]
    for predictions in drawn:
        if any(name not in predictions or predictions[name].shape[1:] != drawn[0][name].shape[1:] for name in names):
            raise DataError(f"{run_dir}: the jobs of {label!r} hold different arrays; run them again with --fresh")
    merged = {name: np.concatenate([predictions[name] for predictions in drawn]) for name in names}
    positions = {name: drawn[0][name] for name in ("curve/x",) if name in drawn[0]}
    posterior = posterior_of(first)
    about = {
        "format": FORMAT,
        "identity": canonical_hash(posterior),
        "posterior": posterior,
        "task": first["task"],
        "kind": first["kind"],
        "method": first["method"],
        "label": label,
        "uses_prior": first.get("uses_prior"),
        "budget": first["budget"]["total"],
        "networks": sum(record["networks"] for record in records),
        "jobs": [
            {
                "seed": record["seed"],
                "key": record["key"],
                "networks": record["networks"],
                "diagnostics": dict(record["fit"].get("diagnostics") or {}),
            }
            for record in records
        ],
        "failed_seeds": failed,
        "resolution": _resolution(merged, positions, first),
        "versions": first.get("versions") or {},
        "command": list(description.get("command") or ()),
    }
    reference = Reference(about, reduce(merged))
    save(reference, out)
    return reference


def reduce(predictions: Mapping[str, NDArray[Any]]) -> Arrays:
    """The arrays of a reference from predictions of all its networks, as jobs store them."""
    found: Arrays = {}
    for name, values in predictions.items():
        prefix, _, what = name.rpartition("/")
        if what == "log_probs":
            found[f"{prefix}/probs"] = metrics.summarise(values, ()).probs.astype(np.float32)
            found[f"{prefix}/epistemic_variance"] = class_variance(values).astype(np.float32)
        elif what in ("mean", "noise_std"):
            thinned = _thinned(values, CURVE_NETWORKS if prefix == "curve" else OTHER_NETWORKS)
            found[name] = _compact(thinned).astype(np.float32) if what == "noise_std" else _short(thinned)
    return found


def _short(values: NDArray[Any]) -> NDArray[Any]:
    """In single precision, unless its rounding would be seen beside what the values vary by."""
    single = values.astype(np.float32)
    return single if np.abs(single - values).max() <= LEAST_ROUNDING * values.std() else values


def _thinned(values: NDArray[Any], most: int) -> NDArray[Any]:
    """At most so many of S networks, evenly spaced."""
    networks = len(values)
    return values if networks <= most else values[np.arange(most) * networks // most]


def _compact(values: NDArray[Any]) -> NDArray[Any]:
    """Size 1 along every dimension that changes nothing."""
    for axis in range(values.ndim):
        first = values.take([0], axis=axis)
        if (values == first).all():
            values = first
    return values


def _resolution(merged: Arrays, positions: Arrays, record: Mapping[str, Any]) -> dict[str, float]:
    """Every distance between the two halves of the networks, in the order of the seeds."""
    half = min(len(values) for values in merged.values()) // 2
    if half == 0:
        return {}
    first = {name: values[:half] for name, values in merged.items()}
    second = {name: values[half : 2 * half] for name, values in merged.items()} | positions
    own = {**record, "task_spec": record["task_spec"] | {"reference": "its other half"}}
    rows = compute(second, own, CATALOGUE, reduce(first))
    return {row["name"]: row["value"] for row in rows if row["value"] is not None}


def _jobs_of(
    run_dir: Path, label: str, task: str | None, planned: set[str]
) -> tuple[list[tuple[Path, dict[str, Any]]], list[int]]:
    """Finished jobs in the order of their seeds, and the seeds that failed."""
    found = finished_jobs(run_dir, label, task)
    # Of several variants the latest invocation's counts, as in `bayes-bench predict`.
    latest = {record["variant"] for _, record in found if record["key"] in planned}
    found = [item for item in found if not latest or item[1]["variant"] in latest]
    _check_alike([record for _, record in found], f"the finished jobs of {label!r} for {found[0][1]['task']!r}")
    found.sort(key=lambda item: item[1]["seed"])
    seeds = {record["seed"] for _, record in found}
    variants = {record["variant"] for _, record in found}
    failed = {record["seed"] for _, record in read_records(run_dir)[0] if record.get("variant") in variants} - seeds
    return found, sorted(failed)


def _check_alike(records: Sequence[Mapping[str, Any]], what: str) -> None:
    remedy = "run one of them again, so that it is the run folder's latest, or into a folder of its own"
    posteriors = [posterior_of(record) for record in records]
    parts = [name for name in posteriors[0] if any(other[name] != posteriors[0][name] for other in posteriors)]
    if parts:
        raise UsageError(f"{what} are of different posteriors ({', '.join(parts)}); {remedy}")
    if len({record["variant"] for record in records}) > 1:
        raise UsageError(f"{what} have different settings, budgets or devices; {remedy}")


def reference_path(name_or_path: str) -> Path:
    """The file that a task's ``reference`` means; a name is that of a shipped one."""
    if name_or_path.endswith(REFERENCE_SUFFIX):
        return Path(name_or_path)
    return reference_folder() / f"{name_or_path}{REFERENCE_SUFFIX}"
